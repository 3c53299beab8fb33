"""The figures of a report as PNG bytes, the same bytes for the same numbers."""

import functools
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec

import matplotlib
import matplotlib.style
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from analysis.contrasts import Contrast
from analysis.pictures import Strip, Tile
from analysis.sections import natural
from analysis.statistics import Estimate

STYLE = Path(__file__).with_name("style.mplstyle")

WIDTH = 10.0
"""The width of every figure in inches."""

LINE_STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
"""Six against seven colours, so that 42 lines differ in their combination."""

MOST_LINES = 12
"""More curves than this cannot be told apart; the first ones are drawn and the report says so."""

FEW_POINTS = 8
"""A line through so few points marks them; a single point would not be seen otherwise."""

WIDE_RANGE = 10
"""From this ratio of the largest loss to the smallest on, the end of training is flat on a linear scale."""

TILES_PER_ROW = 5

CAPTION_LETTERS = 24
"""How many letters fit under a tile."""

Arguments = ParamSpec("Arguments")


def as_png(
    draw: Callable[Concatenate[Figure, Arguments], None],
) -> Callable[Arguments, bytes]:
    """Turn a function that draws on a figure into one that gives PNG bytes.

    Matplotlib's defaults come first, so that a reader's own settings change nothing; the file names no software.
    """

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> bytes:
        with matplotlib.style.context(["default", str(STYLE)]):
            figure, buffer = Figure(), io.BytesIO()
            draw(figure, *args, **kwargs)
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    return drawn


@as_png
def effects_figure(figure: Figure, contrasts: Sequence[Contrast], sets: Sequence[str]) -> None:
    """A forest plot: a row per contrast, a panel per test set, the mean difference with its 95 % interval."""
    figure.set_size_inches(WIDTH, 1.4 + 0.42 * len(contrasts))
    panels = figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, sets, strict=True):
        panel.axvline(0, color="0.3", linewidth=1)
        for row, contrast in enumerate(contrasts):
            draw_effect(panel, row, contrast.psnr[name])
        panel.set_title(name)
        panel.margins(x=0.12)
        panel.locator_params(axis="x", nbins=5)
    figure.supxlabel("difference in PSNR (dB)", fontsize=11)
    rows = [f"{contrast.factor}: {contrast.base} → {contrast.level}" for contrast in contrasts]
    panels[0].set_yticks(range(len(rows)), [wrapped(row, 34) for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)


def draw_effect(panel: Axes, row: int, estimate: Estimate) -> None:
    """One estimate: filled where the interval excludes 0, hollow where it does not or where there is none."""
    certain = estimate.low > 0 or estimate.high < 0
    colour = ("C0" if estimate.mean > 0 else "C1") if certain else "0.45"
    if estimate.n > 1:
        panel.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    marker = "D" if estimate.n == 1 else "o"
    panel.plot([estimate.mean], [row], marker, color=colour, markersize=7, markerfacecolor=colour if certain else "w")


@as_png
def curves_figure(figure: Figure, table: pd.DataFrame, labels: Sequence[str]) -> None:
    """A panel per metric, a line per cell in the order of ``labels``: the mean over seeds within the seeds' range."""
    metrics = sorted(table["metric"].unique(), key=lambda metric: (not metric.startswith("train/"), natural(metric)))
    columns = len(metrics) if len(metrics) <= 3 else 2 if len(metrics) == 4 else 3
    rows = math.ceil(len(metrics) / columns)
    legend_columns = balanced(len(labels), int(WIDTH / (0.7 + 0.085 * max(map(len, labels)))))
    figure.set_size_inches(WIDTH, 3.3 * rows + 0.3 + 0.24 * math.ceil(len(labels) / legend_columns))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, metric in zip(panels, metrics, strict=False):
        draw_curves(panel, table[table["metric"] == metric], labels)
        panel.set_title(metric_title(metric))
        panel.set_xlabel("training step")
        panel.locator_params(axis="x", nbins=5)
    for panel in list(figure.axes)[len(metrics) :]:
        panel.remove()
    handles = handles_by_label(figure)
    figure.legend(
        [handles[label] for label in labels if label in handles],
        [label for label in labels if label in handles],
        loc="outside lower center",
        ncols=legend_columns,
        handlelength=4,
    )


def draw_curves(panel: Axes, table: pd.DataFrame, labels: Sequence[str]) -> None:
    """One metric's lines, each with its band; a loss that falls far is drawn on a logarithmic scale."""
    alpha = min(0.15, 0.6 / len(labels))
    for index, label in enumerate(labels):
        line = table[table["label"] == label].sort_values("step")
        if line.empty:
            continue
        colour, style = f"C{index % 7}", LINE_STYLES[index % len(LINE_STYLES)]
        panel.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=alpha, linewidth=0)
        marker = "o" if len(line) <= FEW_POINTS else ""
        panel.plot(line["step"], line["mean"], color=colour, linestyle=style, marker=marker, label=label)
    if table["metric"].iloc[0] == "train/loss" and table["high"].max() > WIDE_RANGE * table["low"].min() > 0:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())


def handles_by_label(figure: Figure) -> dict[str, Artist]:
    """The line of each label, from the first panel that has one."""
    handles: dict[str, Artist] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


def metric_title(metric: str) -> str:
    """What a curve's metric is called over its panel: ``Set5, PSNR (dB)``."""
    where, _, what = metric.rpartition("/")
    names = {"psnr_db": "PSNR (dB)", "loss": "loss"}
    return f"{'training' if where == 'train' else where}, {names.get(what, what)}"


@as_png
def strip_figure(figure: Figure, strip: Strip) -> None:
    """One test picture: the tiles in rows, each with its name and its set's PSNR under it."""
    columns = balanced(len(strip.tiles), TILES_PER_ROW)
    rows = math.ceil(len(strip.tiles) / columns)
    tile_width = WIDTH / columns
    captions = [caption(tile) for tile in strip.tiles]
    height, width = max(tile.pixels.shape[:2] for tile in strip.tiles)
    lines = 1 + max(text.count("\n") for text in captions)
    figure.set_size_inches(WIDTH, rows * (tile_width * height / width + 0.1 + 0.18 * lines))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, tile, text in zip(panels, strip.tiles, captions, strict=False):
        draw_tile(panel, tile, text)
    for panel in panels[len(strip.tiles) :]:
        panel.set_axis_off()


def draw_tile(panel: Axes, tile: Tile, text: str) -> None:
    """One picture with its caption; every pixel is enlarged as it is, so that nothing is smoothed over."""
    panel.imshow(tile.pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    panel.set_xlabel(text, fontsize=10)


def balanced(count: int, most: int) -> int:
    """In how many columns, of at most ``most``, so many things fill their rows evenly."""
    rows = math.ceil(count / max(1, most))
    return math.ceil(count / rows)


def caption(tile: Tile) -> str:
    """The tile's name and its set's PSNR, in lines that fit under it."""
    psnr = "" if math.isnan(tile.psnr_db) else f"\n{tile.psnr_db:.2f} dB"
    return wrapped(tile.title, CAPTION_LETTERS) + psnr


def wrapped(text: str, letters: int) -> str:
    """The text in lines of at most so many letters, a longer word excepted."""
    return "\n".join(textwrap.wrap(text, letters, break_long_words=False, break_on_hyphens=False))
