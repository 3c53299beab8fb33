"""Lay a figure out as it is saved, and find the texts that are cut, cover each other or cannot be told apart."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.report.drawing import STYLE

ALIKE = 0.02
"""Two entries of a legend differ in more than this part of their ink."""

SLACK = 2.0
"""How many pixels a text may reach over an edge or into another: less than a letter's own margin."""


def laid_out(draw: Callable[..., Any], *args: Any, **kwargs: Any) -> Figure:
    """The figure that a function draws, with its texts in their places."""
    with matplotlib.style.context(["default", str(STYLE)]):
        figure = Figure()
        draw.__wrapped__(figure, *args, **kwargs)  # type: ignore[attr-defined]
        FigureCanvasAgg(figure).draw()
    return figure


def texts(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """Every text that is seen, with its place in pixels."""
    beyond = {id(text) for text in ticks_beyond_the_axes(figure)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip() and id(text) not in beyond:
            box = text.get_window_extent()
            if box.width > 0:
                yield text.get_text(), box


def ticks_beyond_the_axes(figure: Figure) -> Iterator[Text]:
    """The tick labels that exist but are not drawn, because their places are outside the limits."""
    for axis in (axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:  # type: ignore[operator]
                yield from (tick.label1, tick.label2)


def problems(figure: Figure) -> list[str]:
    """The texts that are cut, and those that lie on each other."""
    width, height = figure.bbox.width, figure.bbox.height
    found = list(dict.fromkeys((text, box.bounds) for text, box in texts(figure)))
    boxes = [(text, Bbox.from_bounds(*bounds)) for text, bounds in found]
    cut = [
        f"cut: {text!r}"
        for text, box in boxes
        if min(box.x0, box.y0) < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK
    ]
    return cut + [f"{a!r} on {b!r}" for (a, one), (b, other) in itertools.combinations(boxes, 2) if on(one, other)]


def on(one: Bbox, other: Bbox) -> bool:
    """Whether two texts overlap by more than the slack."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(across > SLACK and down > SLACK)


def covered_points(figure: Figure) -> list[str]:
    """The texts in panels under which a mark lies."""
    return [
        text.get_text()
        for panel in figure.axes
        for text in panel.texts
        for place in marks(panel)
        if text.get_window_extent().contains(*place)
    ]


def marks(panel: Axes) -> Any:
    """The places in pixels of all marks in a panel."""
    found = [panel.transData.transform(line.get_xydata()) for line in panel.lines if line.get_marker() != "None"]
    return np.concatenate(found) if found else np.empty((0, 2))


def alike_in_gray(figure: Figure) -> list[str]:
    """The pairs in a legend that are the same once colours are gray and none is lighter than the other."""
    pixels = np.asarray(figure.canvas.buffer_rgba(), dtype=np.float64)[..., :3]  # type: ignore[attr-defined]
    luminance = pixels @ np.array([0.2126, 0.7152, 0.0722])
    found = []
    for legend in [*figure.legends, *(panel.get_legend() for panel in figure.axes)]:
        if legend is None:
            continue
        drawn = [(text.get_text(), pattern(luminance, legend, text)) for text in legend.get_texts()]
        found += [
            f"{first!r} looks like {second!r}"
            for (first, one), (second, other) in itertools.combinations(drawn, 2)
            if np.abs(one - other).mean() < ALIKE
        ]
    return found


def pattern(luminance: Any, legend: Legend, text: Text) -> Any:
    """What a legend draws to the left of one of its texts: 0 where there is no ink, 1 where there is most."""
    figure, box = legend.get_figure(root=True), text.get_window_extent()
    assert figure is not None
    letter = float(text.get_fontsize()) * figure.dpi / 72
    right, middle = round(box.x0 - legend.handletextpad * letter), round(len(luminance) - (box.y0 + box.y1) / 2)
    across, down = round(legend.handlelength * letter), round(letter / 2)
    ink = 255 - luminance[middle - down : middle + down, right - across : right]
    return ink / ink.max()


def legend_texts(figure: Figure) -> list[str]:
    """What the legend below a figure names."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]
