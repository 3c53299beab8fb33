"""Forest plots: what each intervention does, as intervals beside the seeds behind them, and in each context.

The view models say what is drawn and not why; their numbers are rounded by the caller.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.report.drawing import NO_NOTE, WIDTH, Note, balanced, drawing, evenly_wrapped, legible, noted, signed
from analysis.statistics.estimates import Estimate

FAR = 8.0
"""What reaches so many times as far from 0 as the median does not stretch the axis: see :func:`axis_for`."""

COLLAPSED_FAR = 2.0  # the same of marks with a collapsed seed, in terms of the farthest of the other marks

COLLAPSE = "C3"  # the colour of collapsed seeds and of what they cause
SEED = "0.25"  # the gray of the other seeds
MARGIN = "0.86"  # the gray of the margin

STRIP_INCHES = 0.56  # beyond the end of an axis, for an arrow and a number
MOST_BEYOND = 5  # marks of seeds fit there: those that are the farthest away
LETTER_INCHES, LINE_INCHES = 0.07, 0.19  # of a row's label
LETTERS = {1: 46, 2: 36, 3: 32}  # of a label in a line, by the number of panels
FEWEST_LETTERS = 26
CROWDED = 4  # panels side by side have smaller numbers
TICK_INCHES = 0.6  # of a tick's number
POINTS_PER_LETTER = 1.7  # size of a font whose letters are a point wide

MARK_SIZE, SMALL_MARK_SIZE = 8.0, 5.0  # in points
INTERVAL_WIDTH = 0.27  # of the size of its mark
SEED_LOOK: dict[str, Any] = {"color": SEED, "marker": "o", "markersize": 3.4, "markeredgewidth": 0, "linestyle": ""}
COLLAPSED_LOOK: dict[str, Any] = {
    **{"color": COLLAPSE, "marker": "x", "markersize": 5.5, "markeredgewidth": 1.8, "linestyle": ""},
}
MOST_LEGEND_LETTERS = 70  # in one row of the legend

SEED_ROW_INCHES = 0.46  # a row with an interval and its seeds below it
INTERVAL_PLACE, DOT_PLACE = -0.07, 0.11  # of those, in inches below the middle of their row
CONTEXT_INCHES = 0.12  # from the interval of a context to the next one in a row
AROUND_CONTEXTS_INCHES = 0.24


@dataclasses.dataclass(frozen=True)
class Dot:
    """One seed's score minus the mean of the reference side, in dB."""

    value: float
    collapsed: bool = False
    note: Note = NO_NOTE


@dataclasses.dataclass(frozen=True)
class ForestCell:
    """One row in one panel.

    ``outcome`` is a key of :data:`OUTCOME_MARKS`; it is printed where there is no estimate.
    """

    estimate: Estimate | None
    outcome: str
    dots: tuple[Dot, ...]
    note: Note = NO_NOTE


@dataclasses.dataclass(frozen=True)
class ForestRow:
    """One intervention in words, and what it does by panel; a panel may lack it."""

    label: str
    cells: Mapping[str, ForestCell]


@dataclasses.dataclass(frozen=True)
class ContextDot:
    """What an intervention does in one context; ``reference`` if that is the context of the reference cell."""

    estimate: Estimate
    reference: bool = False
    collapsed: bool = False
    note: Note = NO_NOTE


@dataclasses.dataclass(frozen=True)
class ContextRow:
    """One intervention in words, what it does in each context, and the mean over them, NaN if there is none."""

    label: str
    dots: tuple[ContextDot, ...]
    mean: float = math.nan
    note: Note = NO_NOTE  # of the mean


@dataclasses.dataclass(frozen=True)
class Mark:
    """A marker, its colour, whether it is filled, and what the legend calls it."""

    marker: str
    colour: str
    filled: bool
    name: str

    def look(self, size: float) -> dict[str, Any]:
        face = self.colour if self.filled else "w"
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "markersize": size}

    def handle(self, size: float = MARK_SIZE) -> Line2D:
        """Return what a legend shows: the mark on its interval."""
        return Line2D([], [], **self.look(size), linewidth=INTERVAL_WIDTH * size)


OUTCOME_MARKS: dict[str, Mark] = {
    "better": Mark("^", "C0", True, "better"),
    "worse": Mark("v", "C1", True, "worse"),
    "equivalent": Mark("s", "C2", True, "equivalent"),
    "undecided": Mark("o", "0.45", False, "undecided"),
    "open": Mark("o", "0.2", False, "still open"),
    "no result": Mark("X", "0.45", False, "no result"),
    "risk of collapse": Mark("P", COLLAPSE, False, "risk of collapse"),
    "nothing learned": Mark("*", "0.45", False, "nothing learned"),
    "one seed": Mark("D", "0.45", False, "one seed, no verdict"),
    "": Mark("o", "0.2", True, "mean"),
}
"""The mark of each outcome; shape and filling distinguish them in print. The last one is of a description."""

CONTEXT_MARKS: dict[tuple[bool, bool], Mark] = {
    (True, False): Mark("D", "C0", True, "at the reference"),
    (True, True): Mark("X", COLLAPSE, True, "at the reference, with a collapsed seed"),
    (False, False): Mark("o", "0.45", False, "in another context"),
    (False, True): Mark("x", COLLAPSE, True, "in another context, with a collapsed seed"),
}
"""The mark of a context by whether it is the reference's and whether a seed collapsed."""

ABSENT = ForestCell(None, "", ())


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values from ``low`` to ``high`` are drawn to scale; a strip beyond a cut end holds what is not."""

    low: float
    high: float
    inches: float  # from low to high
    below: bool = False
    above: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the panel: those of the axis, and of a strip beyond each end that is cut."""
        return (
            self.beyond(-1, STRIP_INCHES) if self.below else self.low,
            self.beyond(1, STRIP_INCHES) if self.above else self.high,
        )

    @property
    def ticks(self) -> list[float]:
        """Zero and other multiples of 1, 2 or 5 times a power of ten, as close as their numbers allow."""
        close, far = TICK_INCHES * (self.high - self.low) / self.inches, max(-self.low, self.high)
        power = 10.0 ** math.floor(math.log10(far))
        steps = [power * part for part in (5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if power * part <= far]
        if steps[0] < close:
            return sorted((0.0, steps[0] if self.high > -self.low else -steps[0]))
        step = min(step for step in steps if step >= close)
        return [step * place for place in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def side(self, value: float) -> int:
        """Return -1 below the axis, 1 above it, and 0 on it."""
        return -1 if value < self.low else 1 if value > self.high else 0

    def beyond(self, side: int, inches: float) -> float:
        """Return the place that is so many inches beyond an end."""
        away = (self.high - self.low) * inches / self.inches
        return self.low - away if side < 0 else self.high + away


Extent = tuple[Sequence[float], bool]  # the values of a mark, and whether a collapsed seed is behind it


def axis_for(extents: Sequence[Extent], margin: float, inches: float) -> Axis:
    """Return the axis of marks, and cut it where it would be long because of a few of them.

    A mark reaches as far as its value that is farthest from 0. It does not stretch the axis if it reaches farther than
    ``FAR`` times the median (the upper one of two) or, with a collapsed seed behind it, than ``COLLAPSED_FAR`` times
    the farthest mark without one. The other marks and the margin are whole. ``inches`` is the width of a panel.
    """
    sound = sorted(reach(values) for values, collapsed in extents if not collapsed)
    among = sound or sorted(reach(values) for values, _ in extents) or [margin]
    limit = FAR * max(among[len(among) // 2], margin)
    farthest = max([size for size in among if size <= limit], default=limit)
    limits = {False: limit, True: COLLAPSED_FAR * max(farthest, margin) if sound else limit}
    shown = [value for values, collapsed in extents if reach(values) <= limits[collapsed] for value in values]
    low, high = min([*shown, -margin]), max([*shown, margin])
    room = 0.06 * (high - low)
    low, high = low - room, high + room
    every = [value for values, _ in extents for value in values]
    below, above = any(value < low for value in every), any(value > high for value in every)
    return Axis(low, high, inches - STRIP_INCHES * (below + above), below, above)


def reach(values: Sequence[float]) -> float:
    return max(map(abs, values), default=0.0)


def values_of(found: Estimate) -> list[float]:
    return [value for value in (found.mean, found.low, found.high) if not math.isnan(value)]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The labels of rows, each in lines, and the height of each row; the vertical axis of a panel is in inches."""

    labels: Sequence[str]
    heights: Sequence[float]
    panels: int

    @classmethod
    def of(cls, labels: Sequence[str], inches: Sequence[float], panels: int) -> "Rows":
        """Return rows that are as high as their labels, and at least so many ``inches``."""
        lines = [evenly_wrapped(label, LETTERS.get(panels, FEWEST_LETTERS)) for label in labels]
        text = [0.1 + LINE_INCHES * (1 + label.count("\n")) for label in lines]
        return cls(lines, list(map(max, inches, text)), panels)

    @property
    def panel_inches(self) -> float:
        """About how wide a panel is."""
        longest = max(len(line) for text in self.labels for line in text.split("\n"))
        return (WIDTH - 0.3 - LETTER_INCHES * longest) / self.panels - 0.1

    @property
    def middles(self) -> list[float]:
        ends = itertools.accumulate(self.heights)
        return [end - height / 2 for end, height in zip(ends, self.heights, strict=True)]

    def draw(self, figure: Figure, axis: Axis, margin: float, titles: Sequence[str], interval: str = "") -> list[Axes]:
        """Return panels side by side, with what is behind the marks: rows, margin, zero, and where the axis is cut.

        ``interval`` says what the intervals are, if they are not those of a single test.
        """
        figure.set_size_inches(WIDTH, 1.4 + sum(self.heights))
        axes = list(figure.subplots(1, self.panels, squeeze=False, sharex=True, sharey=True).flat)
        axes[0].set_yticks(self.middles, map(legible, self.labels))
        axes[0].set_ylim(sum(self.heights), 0)
        axes[0].set_xlim(*axis.limits)
        axes[0].set_xticks(axis.ticks)
        for panel, title in zip(axes, titles, strict=True):
            panel.grid(visible=False, axis="y")
            panel.tick_params(axis="y", length=0)
            panel.tick_params(axis="x", labelsize=10 if self.panels < CROWDED else 8)
            for middle, height in list(zip(self.middles, self.heights, strict=True))[::2]:
                panel.axhspan(middle - height / 2, middle + height / 2, color="0.965", linewidth=0, zorder=0)
            panel.axvspan(-margin, margin, color=MARGIN, linewidth=0, zorder=0.5)
            panel.axvline(0, color="0.3", linewidth=1, zorder=1)
            for cut, end in ((axis.below, axis.low), (axis.above, axis.high)):
                if cut:
                    panel.axvline(end, color="0.55", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            panel.set_title(title)
            text = "\n".join(filter(None, ("difference in PSNR (dB)", interval)))
            panel.set_xlabel(text, fontsize=11 if self.panels < CROWDED else 9)
        return axes


@drawing()
def forest_figure(
    figure: Figure,
    rows: Sequence[ForestRow],
    panels: Sequence[str],
    margin: float,
    reference: ForestRow | None = None,
    *,
    repeated: bool = False,
) -> None:
    """Draw a row per intervention and a panel per test set: the 95 % interval, and the seeds as dots below it.

    All panels share one axis. What lies far beyond the rest is an arrow with its number at the end of the axis.
    ``reference`` is the first row. ``repeated`` says that the intervals are those of a stopping rule.
    """
    every = [reference, *rows] if reference else list(rows)
    cells = [[row.cells.get(name, ABSENT) for name in panels] for row in every]
    flat = [cell for row in cells for cell in row]
    table = Rows.of([row.label for row in every], [SEED_ROW_INCHES] * len(every), len(panels))
    axis = axis_for([extent(cell) for cell in flat if cell.dots or cell.estimate], margin, table.panel_inches)
    axes = table.draw(figure, axis, margin, panels, "repeated 95 % intervals" if repeated else "")
    for middle, row in zip(table.middles, cells, strict=True):
        for panel, cell in zip(axes, row, strict=True):
            draw_cell(panel, axis, middle, cell)
    for panel in axes if reference else ():
        panel.axhline(table.heights[0], color="0.6", linewidth=0.8)
    legend_below(figure, forest_legend(flat), margin)


def extent(cell: ForestCell) -> Extent:
    found = [*(dot.value for dot in cell.dots), *(values_of(cell.estimate) if cell.estimate else ())]
    return found, any(dot.collapsed for dot in cell.dots)


def draw_cell(panel: Axes, axis: Axis, middle: float, cell: ForestCell) -> None:
    """Draw the interval and, below it, the seeds; or the outcome in words if there is no estimate."""
    place, below = middle + INTERVAL_PLACE, middle + DOT_PLACE
    arrows: set[int] = set()
    if cell.estimate:
        arrows = draw_interval(panel, axis, place, cell.estimate, OUTCOME_MARKS[cell.outcome], note=cell.note)
    elif cell.outcome:
        look: dict[str, Any] = {"color": "0.4", "ha": "center", "va": "center"}
        look["bbox"] = {"facecolor": "w", "edgecolor": "none", "pad": 1.0}
        size = min(9.0, POINTS_PER_LETTER * 72 * axis.inches / len(cell.outcome))
        noted([panel.text((axis.low + axis.high) / 2, place, legible(cell.outcome), fontsize=size, **look)], cell.note)
    for dot in cell.dots:
        if axis.side(dot.value) == 0:
            draw_dot(panel, dot.value, below, dot)
    for side in (-1, 1):
        beyond = sorted((dot for dot in cell.dots if axis.side(dot.value) == side), key=lambda dot: abs(dot.value))
        for index, dot in enumerate(beyond[-MOST_BEYOND:]):
            draw_dot(panel, axis.beyond(side, 0.08 + 0.1 * index), below, dot)
        if beyond and side not in arrows:
            draw_arrow(panel, axis, side, place, beyond[-1].value, SEED, beyond[-1].note)


def draw_dot(panel: Axes, value: float, place: float, dot: Dot) -> None:
    noted(panel.plot([value], [place], zorder=3, **(COLLAPSED_LOOK if dot.collapsed else SEED_LOOK)), dot.note)


def draw_interval(
    panel: Axes,
    axis: Axis,
    place: float,
    found: Estimate,
    mark: Mark,
    size: float = MARK_SIZE,
    note: Note = NO_NOTE,
) -> set[int]:
    """Draw an interval and its mean, with an arrow at each end of the axis beyond which it goes; return those."""
    ends = [found.mean if math.isnan(end) else end for end in (found.low, found.high)]
    if ends[0] < ends[1]:
        inside = [min(max(end, axis.low), axis.high) for end in ends]
        width = INTERVAL_WIDTH * size
        look: dict[str, Any] = {"color": mark.colour, "linewidth": width, "solid_capstyle": "butt"}
        noted(panel.plot(inside, [place] * 2, **look, zorder=2), note)
    where = axis.side(found.mean)
    if where == 0:
        noted(panel.plot([found.mean], [place], **mark.look(size), zorder=4), note)
    arrows = {side for end in ends if (side := axis.side(end))}
    for side in sorted(arrows):
        farthest = ends[0] if side < 0 else ends[1]
        draw_arrow(panel, axis, side, place, found.mean if side == where else farthest, mark.colour, note)
    return arrows


def draw_arrow(panel: Axes, axis: Axis, side: int, place: float, value: float, colour: str, note: Note) -> None:
    """Draw an arrow beyond an end of the axis and, behind it, the value that it stands for."""
    head, ha = ("<", "right") if side < 0 else (">", "left")
    noted(panel.plot([axis.beyond(side, 0.08)], [place], head, color=colour, markersize=4.5, zorder=3), note)
    noted(
        [panel.text(axis.beyond(side, 0.14), place, signed(value), fontsize=8, ha=ha, va="center", color="0.2")], note
    )


def forest_legend(cells: Sequence[ForestCell]) -> dict[str, Artist]:
    """Return the marks that the cells use, by name."""
    used = {cell.outcome for cell in cells if cell.estimate}
    handles: dict[str, Artist] = {mark.name: mark.handle() for key, mark in OUTCOME_MARKS.items() if key in used}
    dots = {dot.collapsed for cell in cells for dot in cell.dots}
    looks = {"a seed": (False, SEED_LOOK), "a collapsed seed": (True, COLLAPSED_LOOK)}
    return handles | {name: Line2D([], [], **look) for name, (kind, look) in looks.items() if kind in dots}


def legend_below(figure: Figure, marks: Mapping[str, Artist], margin: float) -> None:
    handles = {**marks, f"within {margin:g} dB of 0": Patch(color=MARGIN)}
    columns = balanced(len(handles), len(handles) if sum(map(len, handles)) < MOST_LEGEND_LETTERS else 4)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


@drawing()
def contexts_figure(figure: Figure, rows: Sequence[ContextRow], margin: float) -> None:
    """Draw a row per intervention: a mark with its 95 % interval in each context, and their mean as a tick.

    The contexts of a row are below each other in the order given. The one of the reference is larger and filled.
    """
    heights = [AROUND_CONTEXTS_INCHES + CONTEXT_INCHES * len(row.dots) for row in rows]
    table = Rows.of([row.label for row in rows], heights, 1)
    extents = [(values_of(dot.estimate), dot.collapsed) for row in rows for dot in row.dots]
    axis = axis_for(extents, margin, table.panel_inches)
    (panel,) = table.draw(figure, axis, margin, [""])
    for middle, row in zip(table.middles, rows, strict=True):
        places = [middle + CONTEXT_INCHES * (index - (len(row.dots) - 1) / 2) for index in range(len(row.dots))]
        for place, dot in zip(places, row.dots, strict=True):
            draw_interval(panel, axis, place, dot.estimate, *mark_of(dot), dot.note)
        if places and not math.isnan(row.mean) and axis.side(row.mean) == 0:
            ends = [places[0] - CONTEXT_INCHES / 2, places[-1] + CONTEXT_INCHES / 2]
            noted(panel.plot([row.mean] * 2, ends, color="0.1", linewidth=1.4, zorder=1.5), row.note)
    handles: dict[str, Artist] = {mark.name: mark.handle(size) for row in rows for mark, size in map(mark_of, row.dots)}
    if any(not math.isnan(row.mean) for row in rows):
        handles["mean over contexts"] = Line2D([], [], color="0.1", marker="|", markersize=12, linestyle="")
    legend_below(figure, handles, margin)


def mark_of(dot: ContextDot) -> tuple[Mark, float]:
    return CONTEXT_MARKS[dot.reference, dot.collapsed], MARK_SIZE if dot.reference else SMALL_MARK_SIZE
