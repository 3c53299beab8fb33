"""PSNR as a curve: over training steps, over the residual alignment, and over cost."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.effects.cells import CellSummary
from analysis.published.tables import points
from analysis.study.tasks import TaskResults, label, varying

MOST_POINTS = 60
"""A learning curve of more steps is averaged over equal windows of steps, so that noise does not hide its course."""

ALIGNMENT_COLUMNS = ["test_set", "group", "align", "cell", "mean", "low", "high", "n"]
TIME = "time"
"""The column of a cell's time over that of the reference's twin."""

SAME_TIME = 0.02
"""Times that differ by a smaller share are the same: a run differs from the next by as much for reasons that are no
network's, such as where its memory lies."""

COST_COLUMNS = ["test_set", "label", "mean", "low", "high", "n", "ops_g", "params_k", "source"]


def curve_table(results: TaskResults) -> pd.DataFrame:
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


def as_number(text: str) -> float:
    """Return a recorded number; NaN for another text, which the results of others may hold."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def alignment_table(results: TaskResults) -> pd.DataFrame:
    """PSNR by residual alignment, for groups of cells that differ in nothing else and have several alignments.

    ``low`` and ``high`` are the lowest and highest of the ``n`` seeds. Empty for methods, which differ in more.
    """
    if results.methods:
        return pd.DataFrame(columns=ALIGNMENT_COLUMNS)
    groups: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for cell, levels in results.trained.items():
        rest = tuple((key, value) for key, value in levels.recorded.items() if key != "align")
        align = as_number(levels.recorded.get("align", ""))
        if math.isfinite(align):
            groups.setdefault(rest, {})[cell] = align
    lines = {rest: found for rest, found in groups.items() if len(found) > 1}
    names = varying(map(dict, lines), dict.fromkeys(key for rest in lines for key, _ in rest))
    rows = [
        (
            name,
            label(dict(rest), names),
            align,
            cell,
            math.fsum(scores) / len(scores),
            min(scores),
            max(scores),
            len(scores),
        )
        for rest, found in lines.items()
        for name in results.sets
        for cell, align in sorted(found.items(), key=lambda item: item[1])
        if (scores := list(results.psnr(name)[cell].values()))
    ]
    return pd.DataFrame(rows, columns=ALIGNMENT_COLUMNS)


def cost_table(results: TaskResults, cells: Sequence[CellSummary]) -> pd.DataFrame:
    """PSNR, operations and parameters of every network here, and of the paper's on the same task and test sets.

    There is a column :data:`TIME` if a cell was measured.
    """
    rows = [
        (name, cell.label, cell.psnr[name].mean, min(scores), max(scores), len(scores), *costs, "here")
        for cell in cells
        for name in results.sets
        if cell.ops_g > 0
        for scores, costs in [(results.psnr(name)[cell.cell].values(), (cell.ops_g, cell.params_k))]
    ]
    here = pd.DataFrame(rows, columns=COST_COLUMNS)
    times = {cell.label: cell.relative_time for cell in cells if cell.relative_time == cell.relative_time}
    if times:
        here[TIME] = here["label"].map(times)
    paper = points()
    paper = paper[(paper["task"] == results.setting.get("task.name")) & paper["test_set"].isin(results.sets)]
    printed = paper.rename(columns={"name": "label", "psnr_db": "mean"}).assign(
        source="paper", n=0, low=math.nan, high=math.nan
    )
    return here if printed.empty else pd.concat([here, printed[COST_COLUMNS]], ignore_index=True)[list(here)]


def costs_differ(table: pd.DataFrame) -> bool:
    here = table[table["source"] == "here"]
    timed = TIME in here and here[TIME].nunique() > 1
    return bool(timed or here["ops_g"].nunique() > 1 or here["params_k"].nunique() > 1)


def front(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the points that no other beats in PSNR at the same or a lower cost, the cheapest first.

    Times that differ by less than :data:`SAME_TIME` are the same.
    """
    ordered = points.sort_values([cost, "mean", "label"], ascending=[True, False, True])
    highest = ordered["mean"].cummax()
    kept = ordered["mean"] > highest.shift(fill_value=-math.inf)
    if cost == TIME:
        reach = np.searchsorted(ordered[cost], ordered[cost] * (1 + SAME_TIME), side="right")
        kept &= ordered["mean"].to_numpy() >= highest.to_numpy()[reach - 1]
    return ordered[kept]
