"""Draw when the comparisons of a stopping rule were decided: comparisons as lines, looks as columns."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.space.family import change_between
from ablations.space.interventions import Pair
from analysis.effects.comparisons import Row, label_of
from analysis.effects.family import Measured
from analysis.effects.ruled import RuledFamily
from analysis.report.drawing import WIDTH, Note, balanced, drawing, evenly_wrapped, legible, noted, signed
from analysis.report.forest import CROWDED, FEWEST_LETTERS, LETTER_INCHES, LETTERS, LINE_INCHES, OUTCOME_MARKS, Mark
from analysis.report.notes import NOT_SHOWN, measured_note
from analysis.study.tasks import TaskResults

ROW_INCHES = 0.3
NUMBER_INCHES = 0.75  # the narrowest column with room for the number beside a mark
MARK_SIZE = 10.0  # in points, of the look that closed a comparison
MOST_TICKS = 12  # looks with a number below them; more would overlap
MOST_LEGEND_LETTERS = 70  # in one row of the legend

PASSED = Mark("|", "0.45", True, "a look that left it open")


@dataclasses.dataclass(frozen=True)
class Decision:
    """A comparison of a stopping rule in words, and what each look showed of it, up to the one that closed it."""

    label: str
    by_set: Mapping[str, tuple[Measured, ...]]
    cell: str = ""  # the one after the change


def decisions(family: RuledFamily, results: TaskResults, rows: Sequence[Row]) -> list[Decision]:
    """Return the comparisons of a task: those of the first table in its order, then those that only test a claim."""
    shown = {frozenset(row.pair): row for row in rows if row.pair in family}
    others = [pair for pair in family.pairs if frozenset(pair) not in shown]
    named = [*((row.label, row.pair) for row in shown.values()), *((changed(results, pair), pair) for pair in others)]
    return [
        Decision(label, {name: tuple(family.course(name, pair)) for name in results.sets}, pair[1])
        for label, pair in named
    ]


def changed(results: TaskResults, pair: Pair) -> str:
    """Say what changes from one cell to another; cells of which no trial has finished go by their names."""
    if all(cell in results.trained for cell in pair):
        return label_of(results, change_between(*pair, results.study_cells))
    return " → ".join(results.labels[cell] for cell in pair)


def decision_frame(found: Sequence[Decision]) -> pd.DataFrame:
    """Return a row per comparison, test set and look that it was open at."""
    return pd.DataFrame(
        {
            "comparison": each.label,
            "test_set": name,
            "look": measured.look,
            "seeds": measured.estimate.n,
            "psnr_difference_db": measured.estimate.mean,
            "low_repeated_95_db": measured.estimate.low,
            "high_repeated_95_db": measured.estimate.high,
            "p_difference_holm": measured.verdict.p_difference if measured.verdict else "",
            "p_equivalence_holm": measured.verdict.p_equivalence if measured.verdict else "",
            "state": str(measured.conclusion),
        }
        for each in found
        for name, course in each.by_set.items()
        for measured in course
    )


@drawing()
def decisions_figure(figure: Figure, found: Sequence[Decision], sets: Sequence[str], looks: Sequence[int]) -> None:
    """Draw a row per comparison and a panel per test set: a line over the looks, and a mark where it was closed."""
    labels = [evenly_wrapped(each.label, LETTERS.get(len(sets), FEWEST_LETTERS)) for each in found]
    heights = [max(ROW_INCHES, 0.1 + LINE_INCHES * (1 + label.count("\n"))) for label in labels]
    middles = [sum(heights[:place]) + height / 2 for place, height in enumerate(heights)]
    figure.set_size_inches(WIDTH, 1.4 + sum(heights))
    panels = list(figure.subplots(1, len(sets), squeeze=False, sharex=True, sharey=True).flat)
    panels[0].set_yticks(middles, map(legible, labels))
    panels[0].set_ylim(sum(heights), 0)
    panels[0].set_xlim(-0.5, len(looks) - 0.5)
    step = -(-len(looks) // MOST_TICKS)
    panels[0].set_xticks(range(0, len(looks), step), map(str, looks[::step]))
    longest = max(len(line) for label in labels for line in label.split("\n"))
    column = (WIDTH - 0.3 - LETTER_INCHES * longest) / len(sets) / len(looks)
    used: dict[str, Artist] = {}
    for panel, name in zip(panels, sets, strict=True):
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        panel.set_title(name)
        unit = "; differences in dB" if column >= NUMBER_INCHES else ""
        panel.set_xlabel(f"seeds at the look{unit}", fontsize=11 if len(sets) < CROWDED else 9)
        for middle, height in list(zip(middles, heights, strict=True))[::2]:
            panel.axhspan(middle - height / 2, middle + height / 2, color="0.965", linewidth=0, zorder=0)
        for middle, each in zip(middles, found, strict=True):
            notes = [note_of(each, name, measured) for measured in each.by_set.get(name, ())]
            course = list(zip(each.by_set.get(name, ()), notes, strict=True))
            used |= draw_course(panel, middle, course, looks, numbers=column >= NUMBER_INCHES)
    used = {name: used[name] for name in (PASSED.name, *(mark.name for mark in OUTCOME_MARKS.values())) if name in used}
    columns = balanced(len(used), len(used) if sum(map(len, used)) < MOST_LEGEND_LETTERS else 4)
    if used:
        figure.legend(list(used.values()), list(used), loc="outside lower center", ncols=columns)


def note_of(each: Decision, name: str, measured: Measured) -> Note:
    """Describe what a look showed of a comparison."""
    look = f"look at {measured.look} seeds" if measured.look else "no look yet"
    return measured_note((each.label, name, look), measured, each.cell)


def draw_course(
    panel: Axes, middle: float, course: Sequence[tuple[Measured, Note]], looks: Sequence[int], *, numbers: bool
) -> dict[str, Artist]:
    """Draw one comparison on one test set, with the last estimate in dB if ``numbers``; return its marks by name."""
    places = [looks.index(each.look or looks[0]) for each, _ in course]
    if not places:
        return {}
    panel.plot([-0.5, places[-1]], [middle] * 2, color="0.6", linewidth=1.2, solid_capstyle="butt", zorder=1)
    used: dict[str, Artist] = {}
    if places[:-1]:
        look: dict[str, Any] = {**PASSED.look(7.0), "linestyle": ""}
        for passed, (_, known) in zip(places[:-1], course[:-1], strict=True):
            noted(panel.plot([passed], [middle], **look, zorder=2), known)
        used[PASSED.name] = Line2D([], [], **look)
    last, note = course[-1]
    mark = OUTCOME_MARKS[str(last.conclusion)]
    look = {**mark.look(MARK_SIZE), "linestyle": ""}
    noted(panel.plot(places[-1:], [middle], **look, zorder=3), note)
    if numbers and last.conclusion not in NOT_SHOWN and math.isfinite(last.estimate.mean):
        place, text = (places[-1], middle), signed(last.estimate.mean, 3)
        number = panel.annotate(text, place, (9, 0), textcoords="offset points", fontsize=8, va="center", color="0.2")
        noted([number], note)
    return {**used, mark.name: Line2D([], [], **look)}
