"""What the marks of a figure stand for in words: the number as the tables print it, and the run or seeds behind it."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.effects.family import Conclusion, Measured
from analysis.report.drawing import Note
from analysis.report.markup import anchor
from analysis.report.words import count, estimate, key
from analysis.statistics.estimates import Estimate
from analysis.statistics.rounding import rounded

NOT_SHOWN = (Conclusion.RISK, Conclusion.NOTHING)
"""The conclusions beside which a page does not show the difference of all trials."""


def runs_of(cell: str) -> str:
    """Return the place on the page that has the runs of a cell; empty without a cell."""
    return f"runs-{anchor(key(cell))}" if cell else ""


def seed_note(names: Iterable[str], seed: int, numbers: str, run: str, cell: str) -> Note:
    """Describe one trial; ``run`` is its MLflow run, empty if MLflow does not have it."""
    words = f"run {key(run)}" if run else "not in MLflow"
    return Note(f"{', '.join([*filter(None, names), f'seed {seed}'])}: {numbers}, {words}", runs_of(cell))


def effect_note(names: Iterable[str], found: Estimate, outcome: str = "", cell: str = "") -> Note:
    """Describe a difference with its interval, what is concluded of it, and how many seeds are behind it."""
    words = [estimate(found) + (" dB" if found.n else ""), *filter(None, [outcome])]
    words += [f"{count(found.n, 'seed')} a cell"] if found.n > 1 else []
    return Note(f"{', '.join(filter(None, names))}: {', '.join(words)}", runs_of(cell))


def measured_note(names: Iterable[str], found: Measured, cell: str) -> Note:
    """Describe a comparison as the tables do: without the collapsed trials where their share is what differs."""
    if found.conclusion not in NOT_SHOWN:
        outcome = "no verdict" if found.conclusion is Conclusion.ONE_SEED else str(found.conclusion or "")
        return effect_note(names, found.estimate, outcome, cell)
    is_known = found.conclusion is Conclusion.RISK and not math.isnan(found.learned)
    learned = [f"{rounded(found.learned):+.3f} dB without the collapsed"] if is_known else []
    return Note(f"{', '.join(filter(None, names))}: {', '.join([*learned, str(found.conclusion)])}", runs_of(cell))


def level_note(names: Iterable[str], row: "pd.Series[Any]") -> str:
    """Spell the PSNR of a row, its ``mean`` over ``n`` seeds with the ``low`` and the ``high`` one."""
    seeds = int(row["n"])
    spread = f" from {row['low']:.3f} to {row['high']:.3f}" if seeds > 1 else ""
    return f"{', '.join(filter(None, names))}: {row['mean']:.3f} dB, {count(seeds, 'seed')}{spread}"
