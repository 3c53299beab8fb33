"""PSNR against what can be turned up: the residual alignment, operations and parameters."""

from collections.abc import Sequence

import pandas as pd

from analysis.effects.contrasts import CellSummary
from analysis.published.tables import points
from analysis.study.settings import Section, label, varying

ALIGNMENT_COLUMNS = ("test_set", "group", "align", "cell", "mean", "low", "high", "n")


def alignment_table(section: Section) -> pd.DataFrame:
    """PSNR by residual alignment, for groups of cells that are alike otherwise and have two alignments or more;
    of methods none, as they differ in more.

    ``low`` and ``high`` are the lowest and highest of the ``n`` seeds.
    """
    cells = section.cells
    if "factor/align" not in cells or cells.empty or section.methods:
        return pd.DataFrame(columns=list(ALIGNMENT_COLUMNS))
    others = [factor for factor in section.factors if factor != "align"]
    names = varying(
        [{factor: str(row[f"factor/{factor}"]) for factor in others} for _, row in cells.iterrows()], others
    )
    align = pd.to_numeric(cells["factor/align"], errors="coerce")
    reached = {
        name: section.finished.groupby("cell")[f"metric/{name}/psnr_db"].agg(["mean", "min", "max", "size"])
        for name in section.sets
    }
    rows = []
    for levels, group in cells.assign(align=align).groupby([f"factor/{name}" for name in others], sort=False):
        if group["align"].nunique() < 2:
            continue
        text = label(dict(zip(others, map(str, levels), strict=True)), names)
        ordered = group.sort_values("align")
        for name, scores in reached.items():
            frame = scores.loc[ordered.index].set_axis(["mean", "low", "high", "n"], axis=1)
            frame = frame.assign(test_set=name, group=text, align=ordered["align"].astype("float64"))
            rows.append(frame.rename_axis("cell").reset_index())
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(ALIGNMENT_COLUMNS))
    return table[list(ALIGNMENT_COLUMNS)]


def cost_table(section: Section, cells: Sequence[CellSummary]) -> pd.DataFrame:
    """PSNR with operations and parameters of every network here, and of the paper's on the same task and sets."""
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
        if cell.ops_g > 0
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
