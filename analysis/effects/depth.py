"""What the probes saw unit by unit, from the input of the network to its output.

Cells that differ from the anchor in one factor alone are set beside each other, or each cell by its name where there
are few or where they are methods; a mean over cells that differ in several would show the mixture.
``bbcu.training.probes`` says what each measure is.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.effects.contrasts import anchor, base_and_others
from analysis.study.settings import Section

SHOWN_FACTORS = ("residual", "bn", "align", "act", "surrogate", "threshold", "weight", "act_fn")
"""The factors whose levels are set beside each other."""

SHOWN_MEASURES = ("output_loss", "sign_loss", "window")
"""The measures that are drawn by depth."""

MOST_FACTORS = 3
"""More columns of panels cannot be read at half the size."""

MOST_ALL = 7
"""So few cells are drawn all, where no two of them differ in some factor alone."""

EVERY = "cell"
"""What stands for the factor where every cell has a line, under its name."""

MOST_RANGES = 6
"""How many cells' value ranges are drawn."""

DEPTH_COLUMNS = ("factor", "level", "cell", "depth", "measure", "mean", "low", "high", "n")

Star = Mapping[str, Mapping[str, str]]
"""By factor and then by level, the cell that has this level and is the anchor otherwise."""


def star(section: Section, factors: tuple[str, ...] = SHOWN_FACTORS) -> dict[str, dict[str, str]]:
    """By factor of several levels, the anchor and the cells that differ from it in that factor alone."""
    if section.cells.empty:
        return {}
    centre = section.cells.loc[anchor(section)]
    found: dict[str, dict[str, str]] = {}
    for factor in factors:
        if factor not in section.factors:
            continue
        others = [f"level/{other}" for other in section.factors if other != factor]
        alike = section.cells[(section.cells[others] == centre[others]).all(axis=1)]
        levels = {str(row[f"level/{factor}"]): str(cell) for cell, row in alike.iterrows()}
        if len(levels) > 1:
            found[factor] = levels
    return found


def shown(section: Section) -> dict[str, dict[str, str]]:
    """The cells of each column of panels, by factor and level: those of the star, or each by its name.

    Methods are shown by their names, and so are a few cells such as those of a chain, where a factor varies that no two
    cells differ in alone.
    """
    cells = [str(cell) for cell in section.cells.index]
    found = star(section)
    varied = {factor for factor in SHOWN_FACTORS if factor in section.factors and base_and_others(section, factor)[1]}
    if section.methods or (len(cells) <= MOST_ALL and not varied <= found.keys()):
        return {EVERY: {section.labels[cell]: cell for cell in cells}}
    return dict(list(found.items())[:MOST_FACTORS])


def depth_table(section: Section) -> pd.DataFrame:
    """A row per factor, level, unit and measure: the mean over the ``n`` seeds, and the lowest and highest of them."""
    units = section.units
    rows = [
        {
            "factor": factor,
            "level": level,
            "cell": cell,
            "depth": depth,
            "measure": measure,
            "mean": values.mean(),
            "low": values.min(),
            "high": values.max(),
            "n": values.count(),
        }
        for factor, levels in shown(section).items()
        for level, cell in levels.items()
        for measure in SHOWN_MEASURES
        for depth, values in units[units["cell"] == cell].groupby("depth")[measure]
        if values.count()
    ]
    return pd.DataFrame(rows, columns=list(DEPTH_COLUMNS))


def range_cells(section: Section) -> list[str]:
    """The cells whose value ranges are drawn: the anchor, and those that are drawn by depth too, if they have any."""
    measured = set(section.units["cell"]) if not section.units.empty else set()
    every = {**star(section), **shown(section)} if not section.methods else shown(section)
    found = [cell for levels in every.values() for cell in levels.values() if cell in measured]
    centre = [cell for cell in [anchor(section)] if cell in measured] if not section.cells.empty else []
    return list(dict.fromkeys([*centre, *found]))[:MOST_RANGES]


def range_table(section: Section) -> pd.DataFrame:
    """A row per cell and unit: the percentiles of the branch and of what it is added to, as means over seeds.

    ``beside`` is the residual, or the unit's input where it has none.
    """
    columns = ["cell", "label", "depth", "has_residual", "beside_p1", "beside_p99", "branch_p1", "branch_p99", "n"]
    units = section.units
    if "branch_p99" not in units:
        return pd.DataFrame(columns=columns)
    frames = []
    for cell in range_cells(section):
        own = units[units["cell"] == cell].copy()
        has = own["residual_p99"].notna() if "residual_p99" in own else pd.Series(False, index=own.index)
        for end in ("p1", "p99"):
            own[f"beside_{end}"] = np.where(has, own.get(f"residual_{end}", np.nan), own[f"input_{end}"])
        grouped = own.assign(has_residual=has).groupby("depth")
        frame = grouped[columns[4:8]].mean().assign(has_residual=grouped["has_residual"].any(), n=grouped.size())
        frames.append(frame.reset_index().assign(cell=cell, label=section.labels[cell]))
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
