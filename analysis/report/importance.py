"""The figure of which keys mattered among the cells that a search tried, and the table behind it."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis.effects.importance import Importance
from analysis.report.drawing import WIDTH, drawing, wrapped

MOST_DRAWN = 16  # of more keys, those that mattered most


def importance_frame(found: Sequence[Importance]) -> pd.DataFrame:
    """A row for each key: how many levels the search tried, and its share of the importance."""
    return pd.DataFrame([(one.key, one.levels, one.share) for one in found], columns=["key", "levels", "importance"])


@drawing()
def importance_figure(figure: Figure, found: Sequence[Importance]) -> None:
    """Draw a bar for each key, the most important first, with its share."""
    shown = list(reversed(found[:MOST_DRAWN]))
    figure.set_size_inches(0.7 * WIDTH, 0.9 + 0.32 * len(shown))
    panel = figure.subplots()
    bars = panel.barh([wrapped(one.key, 30) for one in shown], [100 * one.share for one in shown], color="0.55")
    panel.bar_label(bars, [f"{100 * one.share:.0f} %" for one in shown], padding=4)
    panel.set_xlabel("share of the importance (%)")
    panel.margins(x=0.12)
    panel.set_xlim(left=0)
    panel.grid(False, axis="y")
