"""Read what each trial's ``result.json`` holds beyond the table of trials: scores by picture, probes by binary unit."""

import array
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.storage.folder import Identity

MEASURES = ("sign_loss", "output_loss", "window", "zeros", "entropy", "flipped", "branch_ratio")
"""The numbers of which a unit has one each; ``bbcu.training.probes`` defines them."""

RANGES = tuple((stream, end) for stream in ("residual", "branch", "input") for end in ("p1", "p99"))
"""The percentiles that give the value range of each stream of a unit."""

NUMBERS = (*MEASURES, *(f"{stream}_{end}" for stream, end in RANGES))

NO_SIGNAL = 1e-6  # a branch whose deviation is a smaller share of what it is added to changes no pixel

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
        if reason := why_collapsed(document, list(units.values())):
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


def why_collapsed(document: Mapping[str, Any], units: Sequence[Mapping[str, Any]]) -> str:
    """Why a trial's record says that its binary body contributes nothing; empty if it does not say so.

    ``dead`` in the record is true, or the reason, if the trial itself found so; the probes may show it without that.
    """
    flag = document.get("dead")
    if flag:
        return flag if isinstance(flag, str) else "recorded as dead by the trial itself"
    if none_above([unit.get("entropy") for unit in units]):
        return "the bits of every channel of every binary unit are all equal"
    if none_above([unit.get("branch_ratio") for unit in units]):
        return "no branch of a binary unit adds anything to its residual"
    return ""


def none_above(signals: Sequence[float | None]) -> bool:
    """Whether there are units and none has a signal; a unit that was not measured may have one."""
    return len(signals) > 0 and all(signal is not None and signal <= NO_SIGNAL for signal in signals)
