"""Read what each trial's ``result.json`` holds beyond the table of trials: scores by picture, probes by binary unit."""

import array
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.space.collapse import by_record
from ablations.storage.folder import Identity

MEASURES = ("sign_loss", "output_loss", "window", "zeros", "entropy", "flipped", "branch_ratio")
"""The numbers of which a unit has one each; ``bbcu.training.probes`` defines them."""

RANGES = tuple((stream, end) for stream in ("residual", "branch", "input") for end in ("p1", "p99"))
"""The percentiles that give the value range of each stream of a unit."""

NUMBERS = (*MEASURES, *(f"{stream}_{end}" for stream, end in RANGES))

PictureScores = tuple[tuple[str, ...], NDArray[np.float64]]
"""The names of the pictures of a test set, and the PSNR of each in dB."""


@dataclasses.dataclass(frozen=True)
class Records:
    """What the ``result.json`` of many trials hold, compact enough for ten thousand trials.

    ``units`` has one row per trial and binary unit, with columns cell, seed, unit, ``depth`` (from 1 at the input),
    :data:`NUMBERS` (NaN if not measured) and ``range_gap``: by how many powers of ten the branch's deviation exceeds
    that of what it is added to, at least 0, because only a branch of the greater range drowns the other. ``pictures``
    holds the scores by picture of a trial on a test set, ``collapsed`` the trials whose own record says that their body
    contributes nothing, with the evidence. ``damaged`` are the trials whose record cannot be read.
    """

    units: pd.DataFrame
    pictures: Mapping[tuple[Identity, str], PictureScores]
    collapsed: Mapping[Identity, str]
    damaged: Sequence[Identity] = ()


def read_records(identities: Iterable[Identity], record: Callable[[Identity], Mapping[str, Any] | None]) -> Records:
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    pictures: dict[tuple[Identity, str], PictureScores] = {}
    collapsed: dict[Identity, str] = {}
    labels: list[tuple[str, int, str, int]] = []
    numbers = array.array("d")
    damaged: list[Identity] = []
    for identity in identities:
        document = record(identity)
        if document is None:
            damaged.append(identity)
            continue
        for test_set, scores in document.get("metrics", {}).items():
            found = {name: float(score["psnr_db"]) for name, score in (scores.get("images") or {}).items()}
            # Trials share their test sets, so the names of the pictures are stored once.
            shared = names.setdefault(tuple(found), tuple(found))
            pictures[identity, test_set] = shared, np.array(list(found.values()), dtype=np.float64)
        units = (document.get("probes") or {}).get("units") or {}
        labels += [(*identity, name, depth) for depth, name in enumerate(units, start=1)]
        for unit in units.values():
            numbers.extend(measurements(unit))
        if reason := by_record(document):
            collapsed[identity] = reason
    return Records(unit_frame(labels, numbers), pictures, collapsed, damaged)


def measurements(unit: Mapping[str, Any]) -> list[float]:
    values = [unit.get(name) for name in MEASURES] + [(unit.get(stream) or {}).get(end) for stream, end in RANGES]
    return [math.nan if value is None else value for value in values]


def unit_frame(labels: Sequence[tuple[str, int, str, int]], numbers: Sequence[float]) -> pd.DataFrame:
    frame = pd.DataFrame(labels, columns=["cell", "seed", "unit", "depth"])
    measured = np.asarray(numbers, dtype=np.float64).reshape(-1, len(NUMBERS))
    frame[list(NUMBERS)] = measured
    ratio = measured[:, NUMBERS.index("branch_ratio")].tolist()
    # The last bits of a logarithm depend on the processor.
    frame["range_gap"] = [round(math.log10(max(each, 1.0)), 12) for each in ratio]
    return frame
