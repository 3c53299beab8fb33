"""What each trial's ``result.json`` holds beyond the typed tables: scores by picture, and probes by binary unit."""

import array
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.storage.folder import Identity

RANGES = ("residual", "branch", "input")
"""The streams of a unit whose value range is measured."""

MEASURES = ("sign_loss", "output_loss", "window", "zeros", "entropy", "flipped", "branch_ratio")
"""The numbers that a unit has one of; ``bbcu.training.probes`` says what each is."""

NO_SIGNAL = 1e-6
"""A branch whose deviation is a smaller share of what it is added to changes no pixel."""

SAME_SCORE_DB = 1e-3
"""A score this close to the baseline's is the baseline's: the body adds nothing to the picture."""

UNIT_COLUMNS = ("cell", "seed", "unit", "depth", *MEASURES, "range_gap")

PictureScores = tuple[tuple[str, ...], NDArray[np.float64]]
"""The names of the pictures of a test set, and the PSNR of each in dB."""


@dataclasses.dataclass(frozen=True)
class Records:
    """What the ``result.json`` of many trials hold, in so little room that those of ten thousand fit in memory.

    ``units`` has one row per trial and binary unit, ``depth`` counting from 1 at the input; its columns are
    :data:`MEASURES`, ``range_gap``, and percentiles and deviation of each stream, such as ``branch_p99``. ``range_gap``
    is by how many powers of ten the branch's deviation exceeds that of what it is added to, and 0 where it does not:
    only a branch of the greater range drowns the other. ``pictures`` gives
    the scores by picture of a trial on a test set; ``dead`` what its own record tells of a body that contributes
    nothing.
    """

    units: pd.DataFrame
    pictures: Mapping[tuple[Identity, str], PictureScores]
    dead: Mapping[Identity, str]


def read_records(identities: Iterable[Identity], record: Callable[[Identity], Mapping[str, Any]]) -> Records:
    """Read the record of every trial, one at a time."""
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    pictures: dict[tuple[Identity, str], PictureScores] = {}
    dead: dict[Identity, str] = {}
    table = UnitRows()
    for identity in identities:
        document = record(identity)
        for test_set, scores in document.get("metrics", {}).items():
            found = {name: float(score["psnr_db"]) for name, score in (scores.get("images") or {}).items()}
            # Trials share their test sets, so the names of the pictures are kept once.
            shared = names.setdefault(tuple(found), tuple(found))
            pictures[identity, test_set] = shared, np.array(list(found.values()), dtype=np.float64)
        units = units_of(document)
        columns = unit_columns(list(units.values()))
        table.add(identity, list(units), columns)
        if reason := recorded_death(document, columns):
            dead[identity] = reason
    return Records(table.frame(), pictures, dead)


class UnitRows:
    """The rows of ``Records.units`` while they are gathered, a column at a time: a row of its own takes 1 KB each."""

    def __init__(self) -> None:
        self._numbers: dict[str, array.array[float]] = {}
        self._labels: list[tuple[str, int, str, int]] = []

    def add(self, identity: Identity, names: Sequence[str], columns: Mapping[str, Sequence[float]]) -> None:
        """Add the units of a trial, by their names and measurements."""
        for column in columns.keys() - self._numbers.keys():
            self._numbers[column] = array.array("d", [math.nan]) * len(self._labels)
        for column, values in self._numbers.items():
            values.extend(columns.get(column) or [math.nan] * len(names))
        self._labels += [(*identity, name, depth) for depth, name in enumerate(names, start=1)]

    def frame(self) -> pd.DataFrame:
        """All rows."""
        if not self._labels:
            return pd.DataFrame(columns=list(UNIT_COLUMNS))
        cells, seeds, names, depths = zip(*self._labels, strict=True)
        first = {"cell": cells, "seed": seeds, "unit": names, "depth": depths}
        columns = {name: np.asarray(values) for name, values in self._numbers.items()}
        ratio = columns["branch_ratio"]
        gap = np.log10(np.fmax(ratio, 1), out=np.full_like(ratio, np.nan), where=~np.isnan(ratio))
        streams = {name: columns[name] for name in sorted(columns.keys() - set(MEASURES))}
        return pd.DataFrame({**first, **{name: columns[name] for name in MEASURES}, "range_gap": gap, **streams})


def units_of(document: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The measurements of each unit by its name; empty where the trial was not probed."""
    units: Mapping[str, Mapping[str, Any]] = (document.get("probes") or {}).get("units") or {}
    return units


def unit_columns(units: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The measurements of a trial's units, flat, a column each; NaN for what a unit does not allow."""
    columns = {name: numbers(name, units) for name in MEASURES}
    for stream in RANGES:
        found = [unit.get(stream) or {} for unit in units]
        for name in dict.fromkeys(name for values in found for name in values):
            columns[f"{stream}_{name}"] = numbers(name, found)
    return columns


def numbers(name: str, rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """One measurement of every row, NaN for None."""
    return [math.nan if (value := row.get(name)) is None else value for row in rows]


def recorded_death(document: Mapping[str, Any], units: Mapping[str, Sequence[float]]) -> str:
    """What a trial's record tells of a binary body that contributes nothing; empty where it tells nothing.

    ``dead`` is true or the reason in words where the trial itself found so; its probes may tell it without that.
    """
    flag = document.get("dead")
    if flag:
        return flag if isinstance(flag, str) else "recorded as dead by the trial itself"
    if none_above(units["entropy"]):
        return "the bits of every channel of every binary unit are all equal"
    if none_above(units["branch_ratio"]):
        return "no branch of a binary unit adds anything to its residual"
    return ""


def none_above(signals: Sequence[float]) -> bool:
    """Whether there are units and none has a signal; one that was not measured may have."""
    return len(signals) > 0 and all(signal <= NO_SIGNAL for signal in signals)


def baseline_again(trials: pd.DataFrame, sets: Iterable[str]) -> pd.Series:
    """Which trials have the baseline's PSNR on every test set, though they are no baseline themselves."""
    gaps = [(trials[f"metric/{name}/psnr_db"] - trials[f"metric/baseline/{name}/psnr_db"]).abs() for name in sets]
    if not gaps:
        return pd.Series(False, index=trials.index)
    same = pd.concat(gaps, axis=1).le(SAME_SCORE_DB).all(axis=1)
    return same & ~trials["method"].isin(["bicubic", "identity"])
