"""What each trial's ``result.json`` holds beyond the typed tables: scores by picture, and probes by binary unit."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.results import Identity

RANGES = ("residual", "branch", "input")
"""The streams of a unit whose value range is measured."""

MEASURES = ("sign_loss", "output_loss", "window", "zeros", "entropy", "flipped", "branch_ratio")
"""The numbers that a unit has one of; ``bbcu.probes`` says what each is."""

NO_SIGNAL = 1e-6
"""A branch whose deviation is a smaller share of what it is added to changes no pixel."""

SAME_SCORE_DB = 1e-3
"""A score this close to the baseline's is the baseline's: the body adds nothing to the picture."""

UNIT_COLUMNS = ("cell", "seed", "unit", "depth", *MEASURES, "range_gap")


def picture_scores(document: Mapping[str, Any], test_set: str) -> dict[str, float]:
    """The PSNR of each picture of a test set in dB; empty where the trial did not keep them."""
    images = document.get("metrics", {}).get(test_set, {}).get("images", {})
    return {name: float(score["psnr_db"]) for name, score in images.items()}


def unit_table(documents: Mapping[Identity, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per trial and binary unit, ``depth`` counting from 1 at the input.

    Columns are :data:`MEASURES`, ``range_gap``, and percentiles and deviation of each stream, such as ``branch_p99``.
    ``range_gap`` is how many powers of ten lie between the deviations of the branch and of what it is added to.
    """
    rows = [
        {"cell": cell, "seed": seed, "unit": name, "depth": depth, **unit_row(measured)}
        for (cell, seed), document in documents.items()
        for depth, (name, measured) in enumerate(units_of(document).items(), start=1)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(UNIT_COLUMNS))


def units_of(document: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The measurements of each unit by its name; empty where the trial was not probed."""
    units: Mapping[str, Mapping[str, Any]] = (document.get("probes") or {}).get("units") or {}
    return units


def unit_row(measured: Mapping[str, Any]) -> dict[str, float]:
    """A unit's measurements, flat; NaN for what it does not allow."""
    row = {name: number(measured.get(name)) for name in MEASURES}
    ratio = row["branch_ratio"]
    row["range_gap"] = abs(math.log10(ratio)) if ratio > 0 else math.nan
    for stream in RANGES:
        for name, value in (measured.get(stream) or {}).items():
            row[f"{stream}_{name}"] = number(value)
    return row


def number(value: float | None) -> float:
    """A measurement, NaN for None."""
    return math.nan if value is None else float(value)


def dead_reason(document: Mapping[str, Any], row: "pd.Series", sets: tuple[str, ...]) -> str:
    """Why a finished trial's binary body contributes nothing; empty where it does, or where nothing tells.

    A flag that the trial recorded itself comes first, then its probes, then its scores.
    """
    flag = document.get("dead")
    if flag:
        return flag if isinstance(flag, str) else "recorded as dead by the trial itself"
    units = [unit_row(measured) for measured in units_of(document).values()]
    if units and all(unit["entropy"] <= NO_SIGNAL for unit in units):
        return "the bits of every channel of every binary unit are all equal"
    if units and all(unit["branch_ratio"] <= NO_SIGNAL for unit in units):
        return "no branch of a binary unit adds anything to its residual"
    return "" if row["method"] in ("bicubic", "identity") else baseline_again(row, sets)


def baseline_again(row: "pd.Series", sets: tuple[str, ...]) -> str:
    """Whether every score is the baseline's, in words; empty where one is not."""
    gaps = [abs(row[f"metric/{name}/psnr_db"] - row[f"metric/baseline/{name}/psnr_db"]) for name in sets]
    if gaps and all(gap <= SAME_SCORE_DB for gap in gaps):
        return f"its PSNR is the baseline's within {SAME_SCORE_DB:g} dB on every test set"
    return ""
