"""The figures of a report as PNG and SVG; the same numbers give the same bytes.

A function draws one figure; its numbers are rounded by the caller.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator
from matplotlib.transforms import ScaledTranslation

from ablations.space.price import PAPER
from analysis.effects.curves import TIME, front
from analysis.effects.depth import EVERY
from analysis.report.drawing import (
    ALL_EQUAL,
    MOST_LINES,
    NO_NOTE,
    WIDTH,
    Look,
    Note,
    Palette,
    balanced,
    drawing,
    figure_legend,
    grid,
    handles_by_label,
    labelled,
    legend_height,
    noted,
    wrapped,
)
from analysis.report.notes import level_note, runs_of
from analysis.report.pictures import Pixels, Strip, Tile
from analysis.report.words import count
from analysis.statistics.factorial import HalfNormal, Point
from analysis.study.tasks import natural

TILES_PER_ROW = 5
CAPTION_LETTERS = 24  # that fit below a tile
MANY_DECADES = 60  # if it is this many times the smallest, only powers of ten are named
WIDE_RANGE = 10  # if the largest value is this many times the smallest, the axis is logarithmic
ROOM_FOR_A_NAME = 0.12  # between two names in a half-normal plot, as a part of the largest effect
MOST_LEVEL_LETTERS = 18  # of a level in a panel's legend
MOST_NAMED = 16  # cells against cost; of more, those on the front are named and the others are gray
MARK_WIDTH = MARK_HEIGHT = 0.045  # of a mark against cost, as a part of the points' range
LEADER: dict[str, Any] = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
MARK_SIZE, SEED_SIZE = 7.0, 2.8  # of the mean's mark and a seed's dot, in points


@drawing()
def half_normal_figure(figure: Figure, plots: Mapping[str, HalfNormal]) -> None:
    """Draw a panel per test set: the size of each effect against its half-normal quantile, and Lenth's margins."""
    for panel, (name, plot) in zip(grid(figure, len(plots), 4.2), plots.items(), strict=True):
        sizes = [abs(point.effect) for point in plot.points]
        for point, size in zip(plot.points, sizes, strict=True):
            dot = panel.plot([point.quantile], [size], "o", color="0.45", markerfacecolor="w")
            noted(dot if not point.stands_out else [], point_note(name, point))
        panel.axhline(plot.margin, linestyle=":", color="0.3", linewidth=1.2, label="margin")
        both = plot.simultaneous_margin
        panel.axhline(both, linestyle="--", color="0.3", linewidth=1.2, label="simultaneous margin")
        draw_standouts(panel, name, plot)
        panel.set_title(name)
        panel.set_xlabel("half-normal quantile")
        panel.set_ylabel("size of the effect (dB)")
        panel.margins(0.12)
        panel.set_ylim(bottom=0)
        panel.legend(loc="upper left")


def point_note(test_set: str, point: Point) -> Note:
    beyond = ", beyond the simultaneous margin" if point.stands_out else ""
    return Note(f"{' x '.join(point.factors)}, {test_set}: {point.effect:+.3f} dB{beyond}")


def draw_standouts(panel: Axes, name: str, plot: HalfNormal) -> None:
    """Mark the effects beyond the simultaneous margin and name those that have room for a name."""
    out = [point for point in reversed(plot.points) if point.stands_out]
    for point in out:
        noted(panel.plot([point.quantile], [abs(point.effect)], "o", color="C1"), point_note(name, point))
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


MEASURE_TITLES = {
    "output_loss": "loss of a unit's output",
    "sign_loss": "loss by the sign",
    "window": "share inside the gradient's window",
}


@drawing()
def depth_figure(figure: Figure, table: pd.DataFrame, measures: Sequence[str], palette: Palette) -> None:
    """Draw probes by depth: a row per measure, a column per factor, a line per level with the range of its seeds.

    ``table`` has a row per factor, level (of a ``cell``), depth and measure, with ``mean``, ``low`` and ``high`` over
    ``n`` seeds; up to four factors are readable. The palette is that of cells, which are the levels of the factor
    ``cell``.
    """
    factors = list(dict.fromkeys(table["factor"]))
    levels = {factor: list(dict.fromkeys(table.loc[table["factor"] == factor, "level"])) for factor in factors}
    every = levels.get(EVERY, [])
    figure.set_size_inches(WIDTH, 1.0 + 2.7 * len(measures) + legend_height(every))
    axes = figure.subplots(len(measures), len(factors), squeeze=False, sharex=True, sharey="row")
    for row, measure in enumerate(measures):
        for panel, factor in zip(axes[row], factors, strict=True):
            looks = palette if factor == EVERY else Palette(tuple(levels[factor]))
            chosen = table[(table["factor"] == factor) & (table["measure"] == measure)]
            for level in levels[factor]:
                name, line = level if factor == EVERY else brief(level), chosen[chosen["level"] == level]
                shown = level if factor == EVERY else f"{factor}={level}"
                draw_line(panel, line, "depth", name, looks[level], 0.15, depth_note(shown, measure, line))
            panel.margins(x=0.04)
            if row == 0 and factor != EVERY:
                legend_above(panel, factor, WIDTH / len(factors) - 0.3)
            if row == len(measures) - 1:
                panel.set_xlabel(wrapped("binary unit, from the input on", 100 // len(factors)))
                panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes[row, 0].set_ylabel(wrapped(MEASURE_TITLES[measure], 20))
    if every:
        figure_legend(figure, every)


def depth_note(level: str, measure: str, line: pd.DataFrame) -> Note:
    """Describe a line by its first and last unit."""
    if line.empty:
        return NO_NOTE
    ordered = line.sort_values("depth")
    ends = [ordered.iloc[place] for place in dict.fromkeys((0, len(ordered) - 1))]
    values = ", ".join(f"{each['mean']:.3f} in unit {each['depth']:g}" for each in ends)
    return Note(
        f"{level}, {MEASURE_TITLES[measure]}: {values}, mean of {count(int(ends[-1]['n']), 'seed')}",
        runs_of(str(ends[-1]["cell"])),
    )


def legend_above(panel: Axes, title: str, inches: float) -> None:
    """Put the legend of a panel so wide above it, where it covers no line, with the factor as its title."""
    labels = panel.get_legend_handles_labels()[1]
    columns = 2 if 2 * (0.7 + 0.075 * max(map(len, labels))) <= inches else 1
    panel.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=balanced(len(labels), columns),
        handlelength=3,
        title=title,
        title_fontsize=11,
        borderaxespad=0.2,
    )


def draw_line(panel: Axes, line: pd.DataFrame, across: str, label: str, look: Look, band: float, note: Note) -> None:
    """Draw the mean and, as a band so opaque, the range of the seeds."""
    panel.fill_between(line[across], line["low"], line["high"], color=look.colour, alpha=band, linewidth=0)
    noted(panel.plot(line[across], line["mean"], label=labelled(label), **look.line(len(line))), note)


def draw_seeds(
    panel: Axes, place: float, row: "pd.Series[Any]", colour: str, note: Note = NO_NOTE, **where: Any
) -> None:
    """Draw the seeds of a row as dots, or the range of more than three as a line between two dots."""
    seeds = seeds_of(row["mean"], row["low"], row["high"], int(row["n"]))
    look = {"linestyle": "-" if row["n"] > len(seeds) else "", "linewidth": 0.8, "color": colour, **where}
    noted(panel.plot([place] * len(seeds), seeds, marker="o", markersize=SEED_SIZE, **look), note)


def seeds_of(mean: float, low: float, high: float, count: int) -> list[float]:
    """Return the values of up to three seeds, which follow from these three; of more, the lowest and the highest."""
    return {1: [mean], 3: [low, 3 * mean - low - high, high]}.get(count, [low, high])


RESIDUAL: dict[str, Any] = {"facecolor": "0.72", "edgecolor": "0.5"}
INPUT: dict[str, Any] = {"facecolor": "0.9", "edgecolor": "0.5", "hatch": ".."}
BRANCH: dict[str, Any] = {"facecolor": "none", "edgecolor": "0.15", "hatch": "////"}
"""How a stream is filled: without a colour, since colours are those of cells."""


@drawing()
def ranges_figure(figure: Figure, table: pd.DataFrame) -> None:
    """Draw a panel per cell: the range of 98 % of the values of residual (or input) and branch, by depth."""
    cells = list(table.groupby("label", sort=False))
    for panel, (label, chosen) in zip(grid(figure, len(cells), 3.0, sharex=True, sharey=True), cells, strict=True):
        ordered = chosen.sort_values("depth")
        has_residual = bool(ordered["has_residual"].any())
        beside = ("residual", RESIDUAL) if has_residual else ("input (there is no residual)", INPUT)
        for stream, (name, filling) in (("beside", beside), ("branch", ("branch", BRANCH))):
            low, high = ordered[f"{stream}_p1"], ordered[f"{stream}_p99"]
            area = panel.fill_between(ordered["depth"], low, high, label=name, linewidth=1.0, **filling)
            noted([area], range_note(str(label), name, ordered, low, high))
        panel.set_yscale("symlog", linthresh=0.1)
        panel.set_title(wrapped(str(label), 34), fontsize=10)
        panel.set_xlabel("binary unit, from the input on")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        panel.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1]))
        panel.tick_params(labelbottom=True)
    figure.supylabel("value, 1st to 99th percentile", fontsize=11)
    figure_legend(figure, list(handles_by_label(figure)))


def range_note(label: str, name: str, ordered: pd.DataFrame, low: "pd.Series[Any]", high: "pd.Series[Any]") -> Note:
    """Describe an area by the widest range that a unit has."""
    widest = int(np.argmax((high - low).to_numpy()))
    unit = ordered["depth"].iloc[widest]
    values = f"widest in unit {unit:g}, from {low.iloc[widest]:.3f} to {high.iloc[widest]:.3f}"
    seeds = count(int(ordered["n"].iloc[widest]), "seed")
    return Note(f"{label}, {name}: {values}, mean of {seeds}", runs_of(str(ordered["cell"].iloc[0])))


@drawing()
def alignment_figure(figure: Figure, table: pd.DataFrame, sets: Sequence[str]) -> None:
    """Draw a panel per test set: PSNR against the residual alignment, a line per group of otherwise equal cells.

    ``table`` has ``test_set``, ``group``, ``align``, ``cell``, ``mean``, ``low``, ``high`` and ``n``, the number of
    seeds.
    """
    axes = grid(figure, len(sets), 3.6)
    groups = list(dict.fromkeys(table["group"]))[:MOST_LINES]
    looks = Palette(tuple(groups))
    for panel, name in zip(axes, sets, strict=False):
        chosen = table[(table["test_set"] == name) & table["group"].isin(groups)]
        for group in groups:
            line = chosen[chosen["group"] == group].sort_values("align")
            look = looks[group]
            means = ", ".join(f"{point['mean']:.3f} at k={point['align']:g}" for _, point in line.iterrows())
            drawn = panel.plot(line["align"], line["mean"], label=labelled(group or ALL_EQUAL), **look.line(len(line)))
            noted(drawn, Note(f"{group or ALL_EQUAL}, {name}: PSNR in dB {means}"))
            for _, point in line.iterrows():
                text = level_note((group, f"k={point['align']:g}", name), point)
                draw_seeds(panel, point["align"], point, look.colour, Note(text, runs_of(str(point["cell"]))))
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


COSTS = {"ops_g": "OPs (G)", "params_k": "params (K)", TIME: "time / twin"}


@drawing()
def pareto_figure(
    figure: Figure, table: pd.DataFrame, sets: Sequence[str], palette: Palette, price: str = PAPER
) -> None:
    """Draw a row per test set: PSNR against operations, parameters and, if it was measured, time; with the front.

    ``table`` has ``test_set``, ``label``, ``cell``, ``mean``, ``low``, ``high``, ``n``, ``ops_g``, ``params_k`` and
    ``source``: ``here`` or ``paper``; a column ``time`` too if there is one. Operations here are at ``price`` a binary
    multiply-add, the paper's at its own. The paper trains far longer, so that its points are in a panel of their own,
    hollow; those of a name that the palette lacks are gray. All cells here count for the front, also if too many are
    drawn to name each.
    """
    ours, printed = table[table["source"] == "here"], table[table["source"] == "paper"]
    named = named_cells(ours)
    costs = [cost for cost in COSTS if cost in ours]
    columns = [*costs, *(["paper"] if len(printed) else [])]
    names = list(dict.fromkeys([*named, *printed["label"]]))
    figure.set_size_inches(WIDTH, 0.9 + 3.6 * len(sets) + legend_height([*names, "Pareto front"]))
    widths = [1.0] * len(costs) + [0.8] * (len(columns) - len(costs))
    axes = figure.subplots(len(sets), len(columns), squeeze=False, width_ratios=widths)
    for row, name in zip(axes, sets, strict=True):
        for panel, cost in zip(row, costs, strict=False):
            draw_pareto(panel, ours[ours["test_set"] == name].dropna(subset=[cost, "mean"]), cost, named, palette)
            finish_costs(panel, cost, name, price)
        for panel in row[1 : len(costs)]:
            panel.sharey(row[0])
            panel.tick_params(labelleft=False)
        row[0].set_ylabel("PSNR (dB)")
        for panel in row[len(costs) :]:
            points = printed[printed["test_set"] == name].dropna(subset=["ops_g", "mean"])
            draw_points(panel, points, "ops_g", palette, printed=True)
            finish_costs(panel, "ops_g", f"{name}, in the paper")
    figure_legend(figure, list(handles_by_label(figure)))


def named_cells(cells: pd.DataFrame) -> list[str]:
    """Return the labels of all cells, or of those that are on some front if there are too many."""
    labels = list(dict.fromkeys(cells["label"]))
    if len(labels) <= MOST_NAMED:
        return labels
    best = {
        label
        for cost in COSTS
        if cost in cells
        for _, each in cells.groupby("test_set")
        for label in front(each.dropna(subset=[cost]), cost)["label"]
    }
    return [label for label in labels if label in best][:MOST_NAMED]


def draw_pareto(panel: Axes, cells: pd.DataFrame, cost: str, named: Sequence[str], palette: Palette) -> None:
    """Draw the cells of one panel and their front; those that are not ``named`` are small and gray."""
    best = front(cells, cost)
    panel.step(best[cost], best["mean"], "-", where="post", color="0.55", linewidth=1.2, label="Pareto front")
    crowd = cells[~cells["label"].isin(named)]
    if len(crowd):
        for place, (_, point) in enumerate(crowd.iterrows()):
            look: dict[str, Any] = {"color": "0.6", "markersize": 4, "label": None if place else "another cell"}
            noted(panel.plot([point[cost]], [point["mean"]], "o", **look), cost_note(point))
    draw_points(panel, cells[cells["label"].isin(named)], cost, palette)


def draw_points(panel: Axes, points: pd.DataFrame, cost: str, palette: Palette, *, printed: bool = False) -> None:
    """Draw each point with its seeds; one that would cover another is moved to the right, on a line."""
    figure = panel.get_figure(root=True)
    assert figure is not None
    places = zip(spread(points[cost].tolist()), spread(points["mean"].tolist(), wide=math.inf), strict=True)
    for (_, point), slot in zip(points.iterrows(), slots(list(places)), strict=True):
        name = str(point["label"])
        label = name if name in palette.labels else "not in this report"
        away = slot * (MARK_SIZE + 1)
        where = {"transform": panel.transData + ScaledTranslation(away / 72, 0, figure.dpi_scale_trans)}
        if slot:
            place = (point[cost], point["mean"])
            panel.annotate("", place, (away, 0), textcoords="offset points", arrowprops=LEADER, zorder=1.5)
        if not printed:
            draw_seeds(panel, point[cost], point, palette[name].colour, cost_note(point), **where)
        look = {**palette[name].point(filled=not printed), **where, "label": labelled(label)}
        noted(panel.plot([point[cost]], [point["mean"]], markersize=MARK_SIZE, zorder=3, **look), cost_note(point))
    # Lines that are moved to the side do not stretch the axes by themselves.
    values = points["mean"] if printed else pd.concat([points["low"], points["high"]])
    panel.update_datalim([(x, y) for x in points[cost] for y in (values.min(), values.max())])


def cost_note(point: "pd.Series[Any]") -> Note:
    """Describe a cell, or a method as the paper prints it."""
    costs = [f"{point['ops_g']:.3f} G OPs", f"{point['params_k']:.1f} K params"]
    costs += [f"{point[TIME]:.3f} of the twin's time"] if TIME in point and not math.isnan(point[TIME]) else []
    where = str(point["test_set"])
    if point["source"] == "paper":
        return Note(f"{point['label']}, {where}: {point['mean']:.2f} dB in the paper, {', '.join(costs)}")
    text = level_note((str(point["label"]), where), point)
    return Note(f"{text}, {', '.join(costs)}", runs_of(str(point["cell"])))


def spread(values: Sequence[float], wide: float = WIDE_RANGE) -> list[float]:
    """Return the places of values between the smallest, 0, and the largest, 1, on the axis that they get."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if is_wide(low, high, wide):
        return [math.log(value / low) / math.log(high / low) for value in values]
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def slots(places: Sequence[tuple[float, float]]) -> list[int]:
    """Return how many marks to the right of its place each point stands, so that it covers none before it."""
    taken: list[tuple[float, float]] = []
    found = []
    for x, y in places:
        near = [other for other, height in taken if abs(height - y) < MARK_HEIGHT]
        free = (slot for slot in itertools.count() if all(abs(x + slot * MARK_WIDTH - at) >= MARK_WIDTH for at in near))
        found.append(next(free))
        taken.append((x + found[-1] * MARK_WIDTH, y))
    return found


def is_wide(low: float, high: float, wide: float = WIDE_RANGE) -> bool:
    """Whether an axis from ``low`` to ``high`` is logarithmic."""
    return high > wide * low > 0


def finish_costs(panel: Axes, cost: str, title: str, price: str = PAPER) -> None:
    """Name the axis of costs, and make it logarithmic if they differ by much; ``price`` is that of its operations."""
    low, high = panel.dataLim.intervalx
    if is_wide(low, high):
        panel.set_xscale("log")
        plain_decades(panel.xaxis, (1, 2, 5) if high < MANY_DECADES * low else (1,))
    panel.margins(0.1)
    panel.set_title(title)
    panel.set_xlabel(f"OPs at {price} (G)" if cost == "ops_g" and price != PAPER else COSTS[cost])


def brief(level: str) -> str:
    """Shorten a level to fit a panel: a class's dotted path to its name, a long text to its start."""
    name = level.rpartition(".")[2] if level.count(".") > 1 else level
    return name if len(name) <= MOST_LEVEL_LETTERS else name[: MOST_LEVEL_LETTERS - 1] + "…"


@drawing()
def curves_figure(figure: Figure, table: pd.DataFrame, labels: Sequence[str], reference: str, palette: Palette) -> None:
    """Draw learning curves, a line per cell in the order of ``labels``: the mean within the range of the seeds.

    The first panel shows the PSNR on the first test set. The others show the difference to the mean of ``reference``
    under the same steps, on each test set and in training, where patches and their noise cancel; those in dB share an
    axis, which the second half of the training fits. Without another cell, each metric has a panel.
    ``table`` has ``metric``, ``cell``, ``label``, ``step``, ``mean``, ``low``, ``high`` and ``n``.
    """
    metrics = sorted(table["metric"].unique(), key=lambda metric: (metric.startswith("train/"), natural(metric)))
    relative = reference in set(table["label"]) and any(label != reference for label in labels)
    compared = [metric for metric in metrics if metric != "train/loss" or "train/psnr_db" not in metrics]
    panels = [(metric, False) for metric in (metrics[:1] if relative else metrics)]
    panels += [(metric, True) for metric in compared if relative]
    axes = grid(figure, len(panels), 3.3, 0.3 + legend_height(labels), wide=True)
    for panel, (metric, difference) in zip(axes, panels, strict=True):
        chosen = table[(table["metric"] == metric) & table["label"].isin([*labels, reference])]
        if difference:
            chosen = to_reference(chosen, reference)
            panel.axhline(0, color="0.3", linewidth=0.8)
        band = 0.0 if metric.startswith("train/") and difference else min(0.15, 0.6 / len(labels))
        for label in labels:
            line = chosen[chosen["label"] == label].sort_values("step")
            if len(line):
                note = curve_note(label, curve_title(metric, difference), line, difference)
                draw_line(panel, line, "step", label, palette[label], band, note)
        if metric == "train/loss" and not difference and is_wide(chosen["low"].min(), chosen["high"].max()):
            panel.set_yscale("log")
            plain_decades(panel.yaxis, (1, 2, 5))
        panel.set_title(curve_title(metric, difference))
        panel.set_xlabel("training step")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    kinds = zip(axes, panels, strict=True)
    share_settled([panel for panel, (metric, difference) in kinds if difference and metric.endswith("psnr_db")])
    figure_legend(figure, labels)


def curve_note(label: str, title: str, line: pd.DataFrame, difference: bool) -> Note:
    """Describe a curve by its last point."""
    last = line.iloc[-1]
    value = f"{last['mean']:{'+' if difference else ''}.3f} at step {last['step']:g}"
    where = title.replace(": ", " ")
    return Note(f"{label}, {where}: {value}, mean of {count(int(last['n']), 'seed')}", runs_of(str(last["cell"])))


def to_reference(curves: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return one metric's curves minus the mean of the reference's at the same step."""
    base = curves[curves["label"] == reference].set_index("step")["mean"]
    common = curves[curves["step"].isin(base.index)]
    values = ["mean", "low", "high"]
    return common.assign(**common[values].sub(common["step"].map(base), axis=0))


def share_settled(panels: Sequence[Axes]) -> None:
    """Give panels one vertical axis, from the lowest to the highest mean of the second half of the training."""
    lines = [np.asarray(line.get_xydata()).tolist() for panel in panels for line in panel.lines[1:]]
    values = [value for line in lines for step, value in line if step >= line[-1][0] / 2]
    if values:
        room = 0.08 * (max(values) - min(values)) or 1.0
        for panel in panels:
            panel.set_ylim(min(values) - room, max(values) + room)


def curve_title(metric: str, difference: bool) -> str:
    where, _, what = metric.rpartition("/")
    place = "training" if where == "train" else where
    unit = {"psnr_db": "PSNR (dB)", "loss": "loss"}.get(what, what)
    return wrapped(f"{place}: {unit}", 30) + (",\nminus the reference's" if difference else "")


def plain_decades(axis: Axis, factors: Sequence[int]) -> None:
    """Name the powers of ten on a logarithmic axis, times ``factors``, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=factors))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


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
