"""Learning curves: the mean over seeds and the range that they span, at few enough points to draw."""

import math

import pandas as pd

from analysis.study.settings import Section

MOST_POINTS = 60
"""A curve with more steps than this is averaged over equal windows of steps, so that noise does not hide its course."""


def curve_table(section: Section) -> pd.DataFrame:
    """One row per metric, cell and window of steps, sorted: ``step`` (the window's mean), ``mean``, ``low``, ``high``
    over the ``n`` seeds that have it, the lowest and highest seed being the means within the window.
    """
    curves = section.curves()
    parts = [windowed(group, metric) for metric, group in curves.groupby("metric", sort=True)]
    if not parts:
        return pd.DataFrame(columns=["metric", "cell", "label", "step", "mean", "low", "high", "n"])
    table = pd.concat(parts, ignore_index=True)
    table.insert(2, "label", table["cell"].map(dict(section.labels)))
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
