"""PSNR as a curve: over training steps, over the residual alignment, and over cost."""

import math
from collections.abc import Sequence

import pandas as pd

from analysis.effects.contrasts import CellSummary
from analysis.published.tables import points
from analysis.study.settings import SettingResults, label, varying

MOST_POINTS = 60
"""A learning curve of more steps is averaged over equal windows of steps, so that noise does not hide its course."""

ALIGNMENT_COLUMNS = ["test_set", "group", "align", "cell", "mean", "low", "high", "n"]
COST_COLUMNS = ["test_set", "label", "mean", "n", "ops_g", "params_k", "source"]


def curve_table(results: SettingResults) -> pd.DataFrame:
    """One row per metric, cell and window of steps, sorted: ``step`` (the window's mean), ``mean``, ``low``, ``high``.

    These are over the ``n`` seeds that have the window, the lowest and highest seed being the means within it.
    """
    curves = results.curves()
    parts = [windowed(group, metric) for metric, group in curves.groupby("metric", sort=True)]
    if not parts:
        return pd.DataFrame(columns=["metric", "cell", "label", "step", "mean", "low", "high", "n"])
    table = pd.concat(parts, ignore_index=True)
    table.insert(2, "label", table["cell"].map(dict(results.labels)))
    return table


def windowed(curves: pd.DataFrame, metric: object) -> pd.DataFrame:
    """One metric's curves, averaged within windows and then over seeds."""
    steps = curves["step"].nunique()
    width = 1 if steps <= MOST_POINTS else math.ceil((curves["step"].max() + 1) / MOST_POINTS)
    window = curves["step"] // width
    step = curves.groupby(window)["step"].mean()
    seeds = curves.groupby(["cell", window.rename("window"), "seed"])["value"].mean()
    table = seeds.groupby(["cell", "window"]).agg(mean="mean", low="min", high="max", n="count").reset_index()
    table.insert(0, "metric", str(metric))
    table.insert(2, "step", table["window"].map(step))
    return table.drop(columns="window")


def alignment_table(results: SettingResults) -> pd.DataFrame:
    """PSNR by residual alignment, for groups of cells that differ in nothing else and have two alignments or more.

    ``low`` and ``high`` are the lowest and highest of the ``n`` seeds. Empty for methods, which differ in more.
    """
    cells = results.cells
    if "factor/align" not in cells or cells.empty or results.methods:
        return pd.DataFrame(columns=ALIGNMENT_COLUMNS)
    others = [factor for factor in results.factors if factor != "align"]
    names = varying(
        [{factor: str(row[f"factor/{factor}"]) for factor in others} for _, row in cells.iterrows()], others
    )
    reached = {
        name: results.finished.groupby("cell")[f"metric/{name}/psnr_db"].agg(["mean", "min", "max", "size"])
        for name in results.sets
    }
    align = pd.to_numeric(cells["factor/align"], errors="coerce").astype("float64")
    rows = []
    for levels, group in cells.assign(align=align).groupby([f"factor/{name}" for name in others], sort=False):
        if group["align"].nunique() < 2:
            continue
        text = label(dict(zip(others, map(str, levels), strict=True)), names)
        ordered = group.sort_values("align")
        for name, scores in reached.items():
            frame = scores.loc[ordered.index].set_axis(["mean", "low", "high", "n"], axis=1)
            frame = frame.assign(test_set=name, group=text, align=ordered["align"])
            rows.append(frame.rename_axis("cell").reset_index())
    return pd.concat(rows, ignore_index=True)[ALIGNMENT_COLUMNS] if rows else pd.DataFrame(columns=ALIGNMENT_COLUMNS)


def cost_table(results: SettingResults, cells: Sequence[CellSummary]) -> pd.DataFrame:
    """PSNR, operations and parameters of every network here, and of the paper's on the same task and test sets."""
    rows = [
        (name, cell.label, cell.psnr[name].mean, cell.psnr[name].n, cell.ops_g, cell.params_k, "here")
        for cell in cells
        for name in results.sets
        if cell.ops_g > 0
    ]
    here = pd.DataFrame(rows, columns=COST_COLUMNS)
    paper = points()
    paper = paper[(paper["task"] == results.setting.get("task.name")) & paper["test_set"].isin(results.sets)]
    printed = paper.rename(columns={"name": "label", "psnr_db": "mean"}).assign(source="paper", n="")
    return here if printed.empty else pd.concat([here, printed[COST_COLUMNS]], ignore_index=True)


def costs_differ(table: pd.DataFrame) -> bool:
    here = table[table["source"] == "here"]
    return bool(here["ops_g"].nunique() > 1 or here["params_k"].nunique() > 1)
