"""Tabulate what the probes measured unit by unit, from the input of the network to its output.

Cells that differ from the reference cell in one factor are set beside each other, or each cell by its name if there
are few or if they are methods; a mean over cells that differ in several factors would show the mixture.
``bbcu.training.probes`` defines each measure.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.study.tasks import TaskResults, varying

SHOWN_FACTORS = ("residual", "bn", "act", "align", "surrogate", "threshold", "weight", "act_fn")
"""The factors whose levels are set beside each other."""

SHOWN_MEASURES = ("output_loss", "sign_loss", "window")  # the measures that are drawn by depth
MOST_FACTORS = 4  # more columns of panels are too small to read
MOST_ALL = 7  # so few cells are all drawn if no two of them differ in some factor alone
EVERY = "cell"  # stands for the factor if every cell has a line, under its name
MOST_RANGES = 6  # how many cells' value ranges are drawn

DEPTH_COLUMNS = ["factor", "level", "cell", "depth", "measure", "mean", "low", "high", "n"]
ENDS = ["beside_p1", "beside_p99", "branch_p1", "branch_p99"]
RANGE_COLUMNS = ["cell", "label", "depth", "has_residual", *ENDS, "n"]

CellsByLevel = Mapping[str, Mapping[str, str]]  # by factor and then by level, a cell that has this level


def star(results: TaskResults) -> dict[str, dict[str, str]]:
    """By factor of several levels, the reference cell and the cells that differ from it in that factor alone."""
    if not results.trained:
        return {}
    centre = results.trained[results.reference].asked
    found: dict[str, dict[str, str]] = {}
    for factor in SHOWN_FACTORS:
        rest = {key: value for key, value in centre.items() if key != factor}
        levels = {
            own.asked[factor]: cell
            for cell, own in results.trained.items()
            if factor in own.asked and {key: value for key, value in own.asked.items() if key != factor} == rest
        }
        if len(levels) > 1:
            found[factor] = levels
    return found


def shown(results: TaskResults) -> CellsByLevel:
    """The cells of each column of panels, by factor and level: those of the star, or each by its name.

    Methods are shown by name, and so are a few cells, such as those of a chain, if some factor varies in which no two
    cells alone differ.
    """
    found = star(results)
    varied = set(varying((levels.asked for levels in results.trained.values()), SHOWN_FACTORS))
    if results.methods or (len(results.trained) <= MOST_ALL and not varied <= found.keys()):
        return {EVERY: {results.labels[cell]: cell for cell in results.trained}}
    return dict(list(found.items())[:MOST_FACTORS])


def depth_table(results: TaskResults) -> pd.DataFrame:
    """A row per factor, level, unit and measure: mean, lowest and highest of the ``n`` seeds."""
    units = results.units
    rows = [
        (factor, level, cell, depth, measure, values.mean(), values.min(), values.max(), values.count())
        for factor, levels in shown(results).items()
        for level, cell in levels.items()
        for measure in SHOWN_MEASURES
        for depth, values in units[units["cell"] == cell].groupby("depth")[measure]
        if values.count()
    ]
    return pd.DataFrame(rows, columns=DEPTH_COLUMNS)


def range_cells(results: TaskResults) -> list[str]:
    """The measured cells whose value ranges are drawn: the reference cell, and those that are drawn by depth."""
    if not results.trained:
        return []
    measured = set(results.units["cell"])
    every = shown(results) if results.methods else {**star(results), **shown(results)}
    cells = [results.reference, *(cell for levels in every.values() for cell in levels.values())]
    return [cell for cell in dict.fromkeys(cells) if cell in measured][:MOST_RANGES]


def range_table(results: TaskResults) -> pd.DataFrame:
    """A row per cell and unit: the percentiles of the branch and of what it is added to, as means over seeds.

    ``beside`` is the residual, or the unit's input if it has no residual.
    """
    units = results.units
    if units["branch_p99"].isna().all():
        return pd.DataFrame(columns=RANGE_COLUMNS)
    frames = []
    for cell in range_cells(results):
        own = units[units["cell"] == cell].copy()
        has = own["residual_p99"].notna()
        for end in ("p1", "p99"):
            own[f"beside_{end}"] = np.where(has, own[f"residual_{end}"], own[f"input_{end}"])
        grouped = own.assign(has_residual=has).groupby("depth")
        frame = grouped[ENDS].mean().assign(has_residual=grouped["has_residual"].any(), n=grouped.size())
        frames.append(frame.reset_index().assign(cell=cell, label=results.labels[cell]))
    return pd.concat(frames, ignore_index=True)[RANGE_COLUMNS] if frames else pd.DataFrame(columns=RANGE_COLUMNS)
