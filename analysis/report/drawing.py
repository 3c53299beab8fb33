"""How a figure becomes a PNG and an SVG: the same numbers give the same bytes, and one label has one look.

What every figure shares is here: the decorator that makes files of it, the text on it, its panels and its legend.
"""

import dataclasses
import functools
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text

from analysis.report.markup import one_line
from analysis.study.methods import REIMPLEMENTED_MARK

STYLE = Path(__file__).with_name("style.mplstyle")

WIDTH = 10.0  # of every figure, in inches
COLOURS = 7  # that the style cycles through
MOST_LINES = 12  # more curves cannot be told apart; the report says that only these are drawn
MOST_COLUMNS = 3  # more panels side by side cannot be read at half the size
FEW_POINTS = 12  # a line through so few points marks them, since a single one would be invisible otherwise
MARKS_ON_A_LINE = 8  # of a long line, if its dashes alone do not distinguish it

LINE_STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8", "H", "$\\times$")
"""Sixteen, with six dashes and seven colours, so that 42 lines and 112 points differ in their combination."""

ALL_EQUAL = "all else equal"  # the legend of cells that differ in nothing else

Arguments = ParamSpec("Arguments")

Draw = Callable[Concatenate[Figure, Arguments], None]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One figure as a PNG, and as an SVG unless it is made of pixels."""

    png: bytes
    svg: bytes | None


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
                notes = numbered_notes(figure)
                # Figure.savefig would draw once more, for the layout, which takes a third longer.
                canvas: Any = FigureCanvasAgg(figure)
                canvas.print_png(png, metadata={"Software": None})
                if vector:
                    # The SVG reuses the layout of the PNG: that takes half the time, and they are the same picture.
                    figure.set_layout_engine("none")
                    canvas = FigureCanvasSVG(figure)
                    canvas.print_svg(svg, metadata={"Date": None, "Creator": None})
            return Drawing(png.getvalue(), with_notes(svg.getvalue(), notes) if vector else None)

        return drawn

    return decorator


@dataclasses.dataclass(frozen=True)
class Note:
    """What a mark stands for: a text, and where on the page the runs of its cell are, empty if it has none."""

    text: str
    runs: str = ""


NO_NOTE = Note("")


def noted(artists: Iterable[Artist], note: Note) -> None:
    """Give the artists of one mark a note, which the SVG has as their title; the PNG stays as it is.

    An artist carries its note as its identifier until the figure is saved.
    """
    for artist in artists if note.text else ():
        artist.set_gid(f"{note.runs}\n{one_line(note.text)}")


def numbered_notes(figure: Figure) -> dict[str, Note]:
    """Give each artist that has a note a short identifier, and return the notes by it."""
    notes: dict[str, Note] = {}
    for artist in figure.findobj(lambda artist: artist.get_gid() is not None):
        runs, _, text = str(artist.get_gid()).partition("\n")
        name = f"note_{len(notes)}"
        artist.set_gid(name)
        notes[name] = Note(text, runs)
    return notes


def with_notes(svg: bytes, notes: Mapping[str, Note]) -> bytes:
    """Return an SVG in which the groups of these identifiers have the notes as their titles.

    All groups of a mark have its number, in the order of drawing, which is not that of the file: what is drawn later
    may be behind.
    """
    numbers = {note: number for number, note in enumerate(dict.fromkeys(notes.values()), start=1)}

    def titled(match: re.Match[bytes]) -> bytes:
        note = notes[match[1].decode()]
        runs = f' data-runs="{html.escape(note.runs)}"' if note.runs else ""
        return f'<g data-note="{numbers[note]}"{runs}>\n<title>{html.escape(note.text, quote=False)}</title>'.encode()

    return re.sub(rb'<g id="(note_\d+)">', titled, svg)


@dataclasses.dataclass(frozen=True)
class Look:
    """The colour, mark and dashes of one label; ``distinct`` if its dashes alone set its line apart."""

    colour: str
    marker: str
    dashes: Any
    distinct: bool = True

    def line(self, points: int) -> dict[str, Any]:
        """Return how a line through so many points is drawn; 42 lines differ even without colour."""
        return {
            "color": self.colour,
            "linestyle": self.dashes,
            "marker": self.marker if points <= FEW_POINTS or not self.distinct else "",
            "markevery": max(1, points // MARKS_ON_A_LINE),
        }

    def point(self, *, filled: bool = True) -> dict[str, Any]:
        """Return how a point is drawn."""
        face = self.colour if filled else "w"
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "linestyle": ""}


STRANGER = Look("0.45", "o", "-")


@dataclasses.dataclass(frozen=True)
class Palette:
    """The look of each cell or method, by its place in the report, so that it is the same in every figure.

    A label that is not in the report is gray. A method has one look, reimplemented here or as the paper prints it.
    """

    labels: tuple[str, ...]

    def __getitem__(self, label: str) -> Look:
        labels = [own.removesuffix(REIMPLEMENTED_MARK) for own in self.labels]
        name = label.removesuffix(REIMPLEMENTED_MARK)
        if name not in labels:
            return STRANGER
        index = labels.index(name)
        dashes, marker = LINE_STYLES[index % len(LINE_STYLES)], MARKERS[index % len(MARKERS)]
        return Look(f"C{index % COLOURS}", marker, dashes, index < len(LINE_STYLES))


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


def wrapped(text: str, letters: int) -> str:
    """Break a text into lines of at most so many letters; a class's dotted path is cut to its name."""
    short = re.sub(r"[A-Za-z_]\w*(?:\.\w+)*\.([A-Za-z_]\w*)", r"\1", text)
    fitting = " ".join(word if len(word) <= letters else word.replace("=", "= ", 1) for word in short.split())
    return "\n".join(textwrap.wrap(fitting, letters, break_on_hyphens=False))


def evenly_wrapped(text: str, letters: int) -> str:
    """Break a text into as few lines of at most so many letters, and these into as equal ones as that allows."""
    widest = wrapped(text, letters)
    shortest = max((len(word) for word in widest.split()), default=1)
    narrower = (wrapped(text, most) for most in range(shortest, letters))
    return next((found for found in narrower if found.count("\n") <= widest.count("\n")), widest)


def signed(value: float, decimals: int = 2) -> str:
    """Return a number as a figure prints it, with a true minus sign."""
    return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


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


def balanced(count: int, most: int) -> int:
    """Return the number of columns, at most ``most``, that fills the rows most evenly."""
    rows = math.ceil(count / max(1, most))
    return math.ceil(count / rows)


def figure_legend(figure: Figure, labels: Sequence[str]) -> None:
    """Put one legend below all panels, in as many columns as fit."""
    found = handles_by_label(figure)
    named = [labelled(label or ALL_EQUAL) for label in labels]
    handles = {label: found[label] for label in named if label in found}
    columns = legend_columns(named, figure.get_figwidth())
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, handlelength=3)


def legend_columns(labels: Sequence[str], inches: float = WIDTH) -> int:
    return balanced(len(labels), int(inches / (0.62 + 0.068 * max(map(len, labels)))))


def legend_height(labels: Sequence[str]) -> float:
    """The inches that a legend of the figure takes."""
    return 0.24 * math.ceil(len(labels) / legend_columns(labels)) if labels else 0.0


def handles_by_label(figure: Figure) -> dict[str, Artist]:
    handles: dict[str, Artist] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles
