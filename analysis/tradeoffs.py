"""PSNR against what can be turned up: the residual alignment, operations and parameters."""

from collections.abc import Sequence

import pandas as pd

from analysis.contrasts import CellSummary
from analysis.published import points
from analysis.sections import Section, label, varying

ALIGNMENT_COLUMNS = ("test_set", "group", "align", "cell", "mean", "low", "high", "n")


def alignment_table(section: Section) -> pd.DataFrame:
    """PSNR by residual alignment, for groups of cells that are alike otherwise and have two alignments or more.

    ``low`` and ``high`` are the lowest and highest of the ``n`` seeds.
    """
    cells = section.cells
    if "factor/align" not in cells or cells.empty:
        return pd.DataFrame(columns=list(ALIGNMENT_COLUMNS))
    others = [factor for factor in section.factors if factor != "align"]
    names = varying(
        [{factor: str(row[f"factor/{factor}"]) for factor in others} for _, row in cells.iterrows()], others
    )
    align = pd.to_numeric(cells["factor/align"], errors="coerce")
    rows = []
    for levels, group in cells.assign(align=align).groupby([f"factor/{name}" for name in others], sort=False):
        if group["align"].nunique() < 2:
            continue
        text = label(dict(zip(others, map(str, levels), strict=True)), names)
        rows += [
            alignment_row(section, name, text, str(cell), float(row["align"]))
            for name in section.sets
            for cell, row in group.sort_values("align").iterrows()
        ]
    return pd.DataFrame(rows, columns=list(ALIGNMENT_COLUMNS))


def alignment_row(section: Section, test_set: str, group: str, cell: str, align: float) -> dict[str, object]:
    """One cell on one test set."""
    scores = section.finished.loc[section.finished["cell"] == cell, f"metric/{test_set}/psnr_db"]
    return {
        "test_set": test_set,
        "group": group,
        "align": align,
        "cell": cell,
        "mean": scores.mean(),
        "low": scores.min(),
        "high": scores.max(),
        "n": len(scores),
    }


def cost_table(section: Section, cells: Sequence[CellSummary]) -> pd.DataFrame:
    """PSNR with operations and parameters of every cell here, and of the paper's methods on the same task and sets."""
    rows = [
        {
            "test_set": name,
            "label": cell.label,
            "mean": cell.psnr[name].mean,
            "n": cell.psnr[name].n,
            "ops_g": cell.ops_g,
            "params_k": cell.params_k,
            "source": "here",
        }
        for cell in cells
        for name in section.sets
    ]
    paper = points()
    paper = paper[(paper["task"] == section.setting.get("task.name")) & paper["test_set"].isin(section.sets)]
    printed = paper.rename(columns={"name": "label", "psnr_db": "mean"}).assign(source="paper", n="")
    columns = ["test_set", "label", "mean", "n", "ops_g", "params_k", "source"]
    here = pd.DataFrame(rows, columns=columns)
    return here if printed.empty else pd.concat([here, printed[columns]], ignore_index=True)


def costs_differ(table: pd.DataFrame) -> bool:
    """Whether there is a trade to show: cells of different cost."""
    here = table[table["source"] == "here"]
    return bool(here["ops_g"].nunique() > 1 or here["params_k"].nunique() > 1)
