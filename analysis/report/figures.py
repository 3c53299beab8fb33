"""The figures of a report as PNG and SVG; the same numbers give the same bytes.

A function draws one figure; its numbers are rounded by the caller.
"""

import dataclasses
import functools
import io
import math
import re
import textwrap
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib
import matplotlib.style
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

from analysis.effects.contrasts import Contrast
from analysis.effects.depth import EVERY
from analysis.effects.factors import FactorialAnalysis, marginal_means
from analysis.report.markup import one_line
from analysis.report.pictures import Pixels, Strip, Tile
from analysis.report.words import INTERACTION_WORDS
from analysis.statistics.estimates import Outcome, Verdict
from analysis.statistics.factorial import HalfNormal
from analysis.statistics.rounding import rounded
from analysis.study.settings import natural

STYLE = Path(__file__).with_name("style.mplstyle")

WIDTH = 10.0  # of every figure, in inches
TILES_PER_ROW = 5
CAPTION_LETTERS = 24  # that fit below a tile
MOST_LINES = 12  # more curves cannot be told apart; the report says that only these are drawn
MOST_INTERACTIONS = 15  # the others are left to the table; the report says so
MOST_COLUMNS = 3  # more panels side by side cannot be read at half the size
MOST_LEVEL_LETTERS = 18  # of a level in a panel's legend
SHORT_LEVEL = 9  # two levels of so many letters fit side by side above one of three panels
MOST_TICK_LETTERS = 24  # of the tick labels below one of three panels
FEW_POINTS = 8  # a line through so few points marks them, since a single one would be invisible otherwise
MARKS_ON_A_LINE = 8  # of a long line, if its dashes alone do not distinguish it
WIDE_RANGE = 10  # if the largest value is this many times the smallest, the axis is logarithmic
ROOM_FOR_A_NAME = 0.12  # between two names in a half-normal plot, as a part of the largest effect

LINE_STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
"""Six, with seven colours, so that 42 lines differ in their combination."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

POINTS = (*MARKERS, "<", ">", "p", "h", "*", "d", "8", "H", "$\\times$")
"""The marks of cells against cost; if there are more cells, all are marked alike and the table names them."""

Arguments = ParamSpec("Arguments")

Draw = Callable[Concatenate[Figure, Arguments], None]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One figure as a PNG, and as an SVG unless it is made of pixels."""

    png: bytes
    svg: bytes | None


ALL_EQUAL = "all else equal"  # the legend of cells that differ in nothing else


def drawing(*, vector: bool = True) -> Callable[[Draw[Arguments]], Callable[Arguments, Drawing]]:
    """Turn a function that draws on a figure into one that returns a :class:`Drawing`.

    A user's own matplotlib settings change nothing, and the files name neither software nor date, so the same numbers
    give the same bytes.
    """

    def decorator(draw: Draw[Arguments]) -> Callable[Arguments, Drawing]:
        @functools.wraps(draw)
        def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawing:
            png, svg = io.BytesIO(), io.BytesIO()
            with matplotlib.style.context(["default", str(STYLE)]):
                figure = Figure()
                draw(figure, *args, **kwargs)
                for text in figure.findobj(Text):
                    text.set_text(legible(text.get_text()))
                figure.savefig(png, format="png", metadata={"Software": None})
                if vector:
                    # The SVG reuses the layout of the PNG: that takes half the time, and they are the same picture.
                    figure.set_layout_engine("none")
                    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
            return Drawing(png.getvalue(), svg.getvalue() if vector else None)

        return drawn

    return decorator


def legible(text: str) -> str:
    r"""Return a text that is drawn as it is: letters that the font lacks by number, and no dollar starts a formula.

    ``\$`` stays, so that a text may pass twice.
    """
    lines = ("".join(map(letter_for, one_line(line))) for line in text.split("\n"))
    return re.sub(r"(?<!\\)\$", r"\$", "\n".join(lines))


def letter_for(letter: str) -> str:
    return letter if letter.isascii() or ord(letter) in letters_of_the_font() else f"[U+{ord(letter):04X}]"


@functools.cache
def letters_of_the_font() -> Container[int]:
    return get_font(findfont("DejaVu Sans")).get_charmap()


def labelled(text: str) -> str:
    """Return a text as a legend shows it, which leaves out what begins with an underscore."""
    return legible(f" {text}" if text.startswith("_") else text)


Mark = tuple[str, str, bool]

VERDICT_MARKS: dict[Outcome, Mark] = {
    Outcome.BETTER: ("^", "C0", True),
    Outcome.WORSE: ("v", "C1", True),
    Outcome.EQUIVALENT: ("s", "C2", True),
    Outcome.UNDECIDED: ("o", "0.45", False),
}
"""Marker, colour and filling of each verdict; shape and filling distinguish them in print."""

ONE_SEED_MARK: Mark = ("D", "0.45", False)


@drawing()
def effects_figure(figure: Figure, contrasts: Sequence[Contrast], sets: Sequence[str], margin: float) -> None:
    """Draw a forest plot: a row per contrast, a panel per test set, the mean difference with its 95 % interval."""
    rows = [contrast.change for contrast in contrasts]
    panels = {name: [contrast.verdicts[name] for contrast in contrasts] for name in sets}
    forest(figure, rows, panels, margin, {outcome: str(outcome) for outcome in Outcome})


@drawing()
def interactions_figure(figure: Figure, analyses: Mapping[str, FactorialAnalysis], margin: float) -> None:
    """Draw a forest plot of the largest interactions of two factors, on every test set."""
    by_set = {
        name: {str(effect.term): verdict for effect, verdict in analysis.judged if len(effect.term.moved) > 1}
        for name, analysis in analyses.items()
    }
    shared = [term for term in next(iter(by_set.values())) if all(term in found for found in by_set.values())]
    size = {term: max(abs(found[term].estimate.mean) for found in by_set.values()) for term in shared}
    largest = sorted(shared, key=lambda term: -size[term])[:MOST_INTERACTIONS]
    terms = [term for term in shared if term in largest]
    panels = {name: [found[term] for term in terms] for name, found in by_set.items()}
    forest(figure, terms, panels, margin, INTERACTION_WORDS)


def forest(
    figure: Figure,
    rows: Sequence[str],
    panels: Mapping[str, Sequence[Verdict]],
    margin: float,
    words: Mapping[Outcome, str],
) -> None:
    """Draw rows of estimates in a panel for each test set; the margin is shaded."""
    names = [wrapped(row, 34) for row in rows]
    height = 0.9 + 0.16 * len(rows) + 0.22 * sum(1 + name.count("\n") for name in names)
    axes = grid(figure, len(panels), height, 0.5, wide=True, sharex=True, sharey=True)
    for panel, (name, found) in zip(axes, panels.items(), strict=True):
        panel.axvspan(-margin, margin, color="0.9", linewidth=0)
        panel.axvline(0, color="0.3", linewidth=1)
        for row, verdict in enumerate(found):
            marker, colour, filled = mark_of(verdict)
            mean, low, high = verdict.estimate.mean, verdict.estimate.low, verdict.estimate.high
            if verdict.estimate.n > 1:
                panel.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            panel.plot([mean], [row], marker, color=colour, markersize=8, markerfacecolor=colour if filled else "w")
        panel.set_title(name)
        panel.margins(x=0.12)
        panel.locator_params(axis="x", nbins=5)
        panel.set_xlabel("difference in PSNR (dB)")
        panel.tick_params(labelbottom=True)
    axes[0].set_yticks(range(len(rows)), map(legible, names))
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    shown = {mark_of(verdict) for found in panels.values() for verdict in found}
    marks = {words[outcome]: mark for outcome, mark in VERDICT_MARKS.items()} | {"one seed, no verdict": ONE_SEED_MARK}
    handles = {
        name: Line2D([], [], marker=marker, color=colour, markerfacecolor=colour if filled else "w", markersize=8)
        for name, (marker, colour, filled) in marks.items()
        if (marker, colour, filled) in shown
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))


def mark_of(verdict: Verdict) -> Mark:
    return ONE_SEED_MARK if verdict.estimate.n == 1 else VERDICT_MARKS[verdict.outcome]


@drawing()
def means_figure(figure: Figure, analysis: FactorialAnalysis, pairs: Sequence[tuple[str, str]]) -> None:
    """Draw a panel per pair of factors: the mean PSNR at the levels of one, a line for each level of the other."""
    axes = grid(figure, len(pairs), 3.9)
    for panel, (first, second) in zip(axes, pairs, strict=False):
        levels = analysis.responses.factors[first]
        for index, (level, means) in enumerate(rounded(marginal_means(analysis, first, second)).items()):
            style = LINE_STYLES[index % len(LINE_STYLES)]
            panel.plot(
                range(len(levels)), means, MARKERS[index % len(MARKERS)], linestyle=style, label=labelled(brief(level))
            )
        panel.set_xticks(range(len(levels)), [legible(brief(level)) for level in levels])
        if sum(len(brief(level)) for level in levels) > MOST_TICK_LETTERS:
            panel.tick_params(axis="x", rotation=20)
        panel.margins(x=0.15, y=0.12)
        panel.set_xlabel(first)
        legend_above(panel, second)
    figure.supylabel("mean PSNR (dB)", fontsize=11)


@drawing()
def half_normal_figure(figure: Figure, plots: Mapping[str, HalfNormal]) -> None:
    """Draw a panel per test set: the size of each effect against its half-normal quantile, and Lenth's margins."""
    for panel, (name, plot) in zip(grid(figure, len(plots), 4.2), plots.items(), strict=True):
        sizes = [abs(point.effect) for point in plot.points]
        panel.plot([point.quantile for point in plot.points], sizes, "o", color="0.45", markerfacecolor="w")
        panel.axhline(plot.margin, linestyle=":", color="0.3", linewidth=1.2, label="margin")
        both = plot.simultaneous_margin
        panel.axhline(both, linestyle="--", color="0.3", linewidth=1.2, label="simultaneous margin")
        draw_standouts(panel, plot)
        panel.set_title(name)
        panel.set_xlabel("half-normal quantile")
        panel.set_ylabel("size of the effect (dB)")
        panel.margins(0.12)
        panel.set_ylim(bottom=0)
        panel.legend(loc="upper left")


def draw_standouts(panel: Axes, plot: HalfNormal) -> None:
    """Mark the effects beyond the simultaneous margin and name those that have room for a name."""
    out = [point for point in reversed(plot.points) if point.stands_out]
    panel.plot([point.quantile for point in out], [abs(point.effect) for point in out], "o", color="C1")
    last = math.inf
    for point in out:
        room = ROOM_FOR_A_NAME * abs(out[0].effect)
        if last - abs(point.effect) < room or abs(point.effect) < room:
            continue
        last = abs(point.effect)
        text = wrapped(" x ".join(point.factors), 22)
        panel.annotate(
            text, (point.quantile, last), xytext=(-8, 0), textcoords="offset points", ha="right", va="center"
        )


@drawing()
def shares_figure(figure: Figure, analyses: Mapping[str, FactorialAnalysis]) -> None:
    """Draw a panel per test set: each component's share of the total gain in dB, with its 95 % interval."""
    found = {name: analysis.shares for name, analysis in analyses.items() if analysis.shares}
    most = max(len(shares.shares) for shares in found.values())
    axes = grid(figure, len(found), 1.2 + 0.42 * most)
    for panel, (name, shares) in zip(axes, found.items(), strict=False):
        for row, share in enumerate(shares.shares):
            gain = share.gain
            panel.barh(row, gain.mean, height=0.55, color="C5", edgecolor="0.2", hatch="//" if gain.mean < 0 else "")
            if gain.n > 1:
                panel.plot([gain.low, gain.high], [row, row], color="0.1", linewidth=2)
        panel.axvline(0, color="0.3", linewidth=1)
        panel.set_yticks(range(len(shares.shares)), [legible(share.factor) for share in shares.shares])
        panel.invert_yaxis()
        panel.margins(x=0.1)
        panel.set_title(f"{name}: {shares.total.mean:+.3f} dB in all")
        panel.set_xlabel("share of the gain (dB)")


MEASURE_TITLES = {
    "output_loss": "loss of a unit's output",
    "sign_loss": "loss by the sign",
    "window": "share inside the gradient's window",
}


@drawing()
def depth_figure(figure: Figure, table: pd.DataFrame, measures: Sequence[str]) -> None:
    """Draw probes by depth: a row per measure, a column per factor, a line per level with the range of its seeds.

    ``table`` has a row per factor, level, depth and measure, with ``mean``, ``low`` and ``high`` over seeds.
    """
    factors = list(dict.fromkeys(table["factor"]))
    every = list(dict.fromkeys(table.loc[table["factor"] == EVERY, "level"]))
    below = 0.24 * math.ceil(len(every) / legend_columns(every)) if every else 0.0
    figure.set_size_inches(WIDTH, 1.0 + 2.7 * len(measures) + below)
    axes = figure.subplots(len(measures), len(factors), squeeze=False, sharex=True, sharey="row")
    for row, measure in enumerate(measures):
        for column, factor in enumerate(factors):
            panel = axes[row, column]
            chosen = table[(table["factor"] == factor) & (table["measure"] == measure)]
            for index, level in enumerate(dict.fromkeys(chosen["level"])):
                name = str(level) if factor == EVERY else brief(str(level))
                draw_line(panel, chosen[chosen["level"] == level], "depth", name, index, 0.15)
            panel.margins(x=0.04)
            if row == 0 and factor != EVERY:
                legend_above(panel, factor)
            if row == len(measures) - 1:
                panel.set_xlabel("binary unit, from the input on")
                panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes[row, 0].set_ylabel(wrapped(MEASURE_TITLES[measure], 20))
    if every:
        figure_legend(figure, every)


def legend_above(panel: Axes, title: str) -> None:
    """Put a panel's legend above it, where it covers no line, with the factor as its title."""
    labels = panel.get_legend_handles_labels()[1]
    columns = 2 if max(map(len, labels)) <= SHORT_LEVEL else 1
    panel.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=balanced(len(labels), columns),
        handlelength=3,
        title=title,
        title_fontsize=11,
        borderaxespad=0.2,
    )


def draw_line(panel: Axes, line: pd.DataFrame, across: str, label: str, index: int, alpha: float) -> None:
    panel.fill_between(line[across], line["low"], line["high"], color=f"C{index % 7}", alpha=alpha, linewidth=0)
    panel.plot(line[across], line["mean"], label=labelled(label), **look(index, len(line)))


def look(index: int, points: int) -> dict[str, Any]:
    """Return the look of a line; 42 lines differ even without colour, by dashes and marks."""
    marked = points <= FEW_POINTS or index >= len(LINE_STYLES)
    return {
        "color": f"C{index % 7}",
        "linestyle": LINE_STYLES[index % len(LINE_STYLES)],
        "marker": MARKERS[index % len(MARKERS)] if marked else "",
        "markevery": max(1, points // MARKS_ON_A_LINE),
    }


@drawing()
def ranges_figure(figure: Figure, table: pd.DataFrame) -> None:
    """Draw a panel per cell: the range of 98 % of the values of residual (or input) and branch, by depth."""
    cells = list(table.groupby("label", sort=False))
    for panel, (label, chosen) in zip(grid(figure, len(cells), 3.0, sharex=True, sharey=True), cells, strict=True):
        ordered = chosen.sort_values("depth")
        has_residual = bool(ordered["has_residual"].any())
        beside = ("residual", "C0", "") if has_residual else ("input (there is no residual)", "C2", "..")
        for stream, (name, shade, hatch) in (("beside", beside), ("branch", ("branch", "C1", "////"))):
            filling: dict[str, Any] = {"facecolor": shade, "edgecolor": shade, "hatch": hatch, "alpha": 0.35}
            low, high = ordered[f"{stream}_p1"], ordered[f"{stream}_p99"]
            panel.fill_between(ordered["depth"], low, high, label=name, linewidth=1.2, **filling)
        panel.set_yscale("symlog", linthresh=0.1)
        panel.set_title(wrapped(str(label), 34), fontsize=10)
        panel.set_xlabel("binary unit, from the input on")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        panel.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1]))
        panel.tick_params(labelbottom=True)
    figure.supylabel("value, 1st to 99th percentile", fontsize=11)
    figure_legend(figure, list(handles_by_label(figure)))


@drawing()
def alignment_figure(figure: Figure, table: pd.DataFrame, sets: Sequence[str]) -> None:
    """Draw a panel per test set: PSNR against the residual alignment, a line per group of otherwise equal cells."""
    axes = grid(figure, len(sets), 3.6)
    groups = list(dict.fromkeys(table["group"]))[:MOST_LINES]
    for panel, name in zip(axes, sets, strict=False):
        chosen = table[(table["test_set"] == name) & table["group"].isin(groups)]
        for index, group in enumerate(groups):
            line = chosen[chosen["group"] == group].sort_values("align")
            panel.errorbar(
                line["align"],
                line["mean"],
                yerr=[line["mean"] - line["low"], line["high"] - line["mean"]],
                marker=MARKERS[index % len(MARKERS)],
                linestyle=LINE_STYLES[index % len(LINE_STYLES)],
                color=f"C{index % 7}",
                capsize=3,
                label=labelled(group or ALL_EQUAL),
            )
        panel.set_xscale("log")
        ticks = sorted(set(chosen["align"]))
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(name)
        panel.set_xlabel("residual alignment k")
        panel.set_ylabel("PSNR (dB)")
        panel.margins(0.08)
    if len(groups) > 1:
        figure_legend(figure, groups)


@drawing()
def pareto_figure(figure: Figure, table: pd.DataFrame, sets: Sequence[str]) -> None:
    """Draw a row per test set: PSNR against operations and parameters, the Pareto front, and the paper's points.

    ``table`` has ``test_set``, ``label``, ``mean``, ``ops_g``, ``params_k`` and ``source``, ``here`` or ``paper``. A
    mark is filled for a cell here and hollow for the paper's of the same name.
    """
    here, paper = (list(dict.fromkeys(table.loc[table["source"] == source, "label"])) for source in ("here", "paper"))
    named = list(dict.fromkeys([*(here if len(here) <= len(POINTS) else []), *paper]))
    entries = len(here if len(here) <= len(POINTS) else ["cell"]) + len(paper) + 1
    figure.set_size_inches(WIDTH, 0.6 + 3.9 * len(sets) + 0.24 * math.ceil(entries / 2))
    axes = figure.subplots(len(sets), 2, squeeze=False, sharey="row")
    for row, name in enumerate(sets):
        chosen = table[table["test_set"] == name]
        for panel, cost, text in zip(axes[row], ("ops_g", "params_k"), ("OPs (G)", "params (K)"), strict=True):
            draw_pareto(panel, chosen.dropna(subset=[cost, "mean"]), cost, named)
            panel.set_xlabel(text)
            panel.set_title(name)
        axes[row, 0].set_ylabel("PSNR (dB)")
    figure_legend(figure, list(handles_by_label(figure)))


def draw_pareto(panel: Axes, points: pd.DataFrame, cost: str, named: Sequence[str]) -> None:
    """Draw the points of one panel, and the front of those trained here; ``named`` have a mark of their own."""
    here = points[points["source"] == "here"]
    best = pareto(here, cost)
    panel.step(best[cost], best["mean"], "-", where="post", color="0.55", linewidth=1.2, label="Pareto front here")
    crowd = here[~here["label"].isin(named)]
    if len(crowd):
        panel.plot(crowd[cost], crowd["mean"], "o", color="C0", markersize=8, label="cell")
    for _, point in points[points["label"].isin(named) | (points["source"] == "paper")].iterrows():
        ours, name = point["source"] == "here", str(point["label"])
        index = named.index(name)
        marker, colour = POINTS[index % len(POINTS)], f"C{index % 7}"
        text, face = (name, colour) if ours else (f"paper: {name}", "w")
        mark: dict[str, Any] = {"marker": marker, "color": colour, "markerfacecolor": face, "linestyle": ""}
        panel.plot([point[cost]], [point["mean"]], label=labelled(text), markersize=8, **mark)
    if len(points) and points[cost].max() > WIDE_RANGE * points[cost].min() > 0:
        panel.set_xscale("log")
    panel.margins(0.1)


def pareto(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the points that no other beats in PSNR at the same or a lower cost, the cheapest first."""
    ordered = points.sort_values([cost, "mean"], ascending=[True, False])
    before = ordered["mean"].cummax().shift(fill_value=-math.inf)
    return ordered[ordered["mean"] > before]


def grid(figure: Figure, count: int, height: float, more: float = 0.2, wide: bool = False, **shared: Any) -> list[Axes]:
    """Return panels of a height in rows of equal width, at most three side by side; four make a square.

    The figure is ``more`` higher than its panels; a single panel does not take the whole width unless it is ``wide``.
    """
    columns = 2 if count == 4 else min(count, MOST_COLUMNS)
    rows = math.ceil(count / columns)
    figure.set_size_inches(WIDTH if wide or columns > 1 else 0.7 * WIDTH, more + height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for panel in axes[count:]:
        panel.remove()
    return axes[:count]


def brief(level: str) -> str:
    """Shorten a level to fit a panel: a class's dotted path to its name, a long text to its start."""
    name = level.rpartition(".")[2] if level.count(".") > 1 else level
    return name if len(name) <= MOST_LEVEL_LETTERS else name[: MOST_LEVEL_LETTERS - 1] + "…"


def figure_legend(figure: Figure, labels: Sequence[str]) -> None:
    """Put one legend below all panels, in as many columns as fit."""
    found = handles_by_label(figure)
    named = [labelled(label or ALL_EQUAL) for label in labels]
    handles = {label: found[label] for label in named if label in found}
    columns = legend_columns(named)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, handlelength=4)


def legend_columns(labels: Sequence[str]) -> int:
    return balanced(len(labels), int(WIDTH / (0.7 + 0.085 * max(map(len, labels)))))


@drawing()
def curves_figure(figure: Figure, table: pd.DataFrame, labels: Sequence[str]) -> None:
    """Draw a panel per metric, a line per cell in the order of ``labels``: the mean within the range of the seeds.

    A loss that falls far has a logarithmic axis.
    """
    metrics = sorted(table["metric"].unique(), key=lambda metric: (not metric.startswith("train/"), natural(metric)))
    more = 0.3 + 0.24 * math.ceil(len(labels) / legend_columns(labels))
    for panel, metric in zip(grid(figure, len(metrics), 3.3, more, wide=True), metrics, strict=True):
        chosen = table[table["metric"] == metric]
        for index, label in enumerate(labels):
            line = chosen[chosen["label"] == label].sort_values("step")
            if len(line):
                draw_line(panel, line, "step", label, index, min(0.15, 0.6 / len(labels)))
        if metric == "train/loss" and chosen["high"].max() > WIDE_RANGE * chosen["low"].min() > 0:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(NullLocator())
        where, _, what = metric.rpartition("/")
        names = {"psnr_db": "PSNR (dB)", "loss": "loss"}
        panel.set_title(f"{'training' if where == 'train' else where}, {names.get(what, what)}")
        panel.set_xlabel("training step")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    figure_legend(figure, labels)


def handles_by_label(figure: Figure) -> dict[str, Artist]:
    handles: dict[str, Artist] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


@drawing(vector=False)
def strip_figure(figure: Figure, strip: Strip) -> None:
    """Draw one test picture in blocks of three rows: the tiles, the window of each enlarged, and its error."""
    columns = balanced(len(strip.tiles), TILES_PER_ROW)
    blocks = math.ceil(len(strip.tiles) / columns)
    scores = ["" if math.isnan(tile.psnr_db) else f"\n{tile.psnr_db:.2f} dB" for tile in strip.tiles]
    captions = [wrapped(tile.title, CAPTION_LETTERS) + score for tile, score in zip(strip.tiles, scores, strict=True)]
    whole = max(tile.pixels.shape[:2] for tile in strip.tiles)
    tall, zoom_tall = whole[0] / whole[1], strip.place[2] / strip.place[3]
    lines = 1 + max(text.count("\n") for text in captions)
    width = WIDTH / columns
    heights = [tall + 0.18 * lines / width, zoom_tall + 0.24 / width, zoom_tall + 0.06 / width] * blocks
    figure.set_size_inches(WIDTH, width * sum(heights) + 0.1 * blocks)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    axes = figure.subplots(3 * blocks, columns, squeeze=False, height_ratios=heights)
    for panel in axes.flat:
        panel.set_axis_off()
    # The largest error of a cell's output is drawn white.
    errors = [tile.error.max() for tile in strip.tiles if tile.error is not None and tile.seed is not None]
    worst = float(max(errors, default=0.0)) or 1.0
    for index, (tile, text) in enumerate(zip(strip.tiles, captions, strict=True)):
        row, column = 3 * (index // columns), index % columns
        draw_tile(axes[row, column], tile.pixels, text)
        frame(axes[row, column], tile, strip)
        psnr = tile.crop_psnr_db
        here = "" if math.isnan(psnr) else "no error here" if math.isinf(psnr) else f"here {psnr:.2f} dB"
        if tile.zoom is not None:
            draw_tile(axes[row + 1, column], tile.zoom, here)
        if tile.error is not None:
            draw_tile(axes[row + 2, column], tile.error / worst, "")


def draw_tile(panel: Axes, pixels: Pixels, text: str) -> None:
    panel.set_axis_on()
    panel.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    panel.set_xlabel(text, fontsize=10)


def frame(panel: Axes, tile: Tile, strip: Strip) -> None:
    """Draw a frame around the window, light on dark so that it is visible on any picture."""
    top, left, rows, columns = strip.place
    scale = tile.pixels.shape[0] / max(other.pixels.shape[0] for other in strip.tiles)
    for colour, width in (("k", 3.0), ("w", 1.4)):
        corner = (left * scale - 0.5, top * scale - 0.5)
        panel.add_patch(Rectangle(corner, columns * scale, rows * scale, fill=False, edgecolor=colour, linewidth=width))


def balanced(count: int, most: int) -> int:
    """Return the number of columns, at most ``most``, that fills the rows most evenly."""
    rows = math.ceil(count / max(1, most))
    return math.ceil(count / rows)


def wrapped(text: str, letters: int) -> str:
    """Break a text into lines of at most so many letters; a class's dotted path is cut to its name."""
    short = re.sub(r"[A-Za-z_]\w*(?:\.\w+)*\.([A-Za-z_]\w*)", r"\1", text)
    fitting = " ".join(word if len(word) <= letters else word.replace("=", "= ", 1) for word in short.split())
    return "\n".join(textwrap.wrap(fitting, letters, break_on_hyphens=False))
