"""The forest plots: every number is seen, at its place or as an arrow with its value, and no text covers it."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.drawing import Note
from analysis.report.forest import (
    COLLAPSED_LOOK,
    OUTCOME_MARKS,
    SEED_LOOK,
    ContextDot,
    ContextRow,
    Dot,
    ForestCell,
    ForestRow,
    axis_for,
    contexts_figure,
    forest_figure,
)
from analysis.statistics.estimates import Estimate
from tests.harness.layouts import alike_in_gray, covered_points, laid_out, legend_texts, problems

MARGIN = 0.05
SETS = ("Set5", "Set14", "B100", "Urban100")


def estimate(mean: float, reach: float = 0.1, n: int = 3) -> Estimate:
    low, high = (mean - reach, mean + reach) if n > 1 else (math.nan, math.nan)
    return Estimate(mean=mean, low=low, high=high, n=n, p=0.5, error=1.0, freedom=4.0)


def cell(mean: float, outcome: str = "undecided", reach: float = 0.1, collapsed: bool = False) -> ForestCell:
    """A cell with three seeds near its mean; of a collapsed one, the last seed."""
    dots = (Dot(mean - 0.02), Dot(mean + 0.01), Dot(mean + 0.03, collapsed))
    return ForestCell(estimate(mean, reach), outcome, dots)


def row(label: str, *cells: ForestCell) -> ForestRow:
    return ForestRow(label, dict(zip(SETS, cells, strict=False)))


REFERENCE = row("BBCU, the reference", *[ForestCell(None, "", (Dot(-0.03), Dot(0.01), Dot(0.02)))] * 4)

LONG = "BatchNorm after the convolution in place of residual alignment 65"

DEAD = ForestCell(None, "nothing learned", (Dot(-4.4, True), Dot(-4.4, True), Dot(-4.4, True)))


def drawn(rows: list[ForestRow], sets: int = 1, reference: ForestRow | None = None) -> Figure:
    return laid_out(forest_figure, rows, SETS[:sets], MARGIN, reference)


def marked(panel: Axes, look: dict[str, Any]) -> list[float]:
    """Where along the axis a panel has marks of a look."""
    found = [line for line in panel.lines if line.get_marker() == look["marker"] and line.get_color() == look["color"]]
    return [float(np.asarray(line.get_xdata())[0]) for line in found]


def words(panel: Axes) -> list[str]:
    return [text.get_text() for text in panel.texts]


class TestForest:
    @pytest.mark.parametrize(("sets", "count"), [(1, 1), (2, 9), (3, 9), (4, 25)])
    def test_no_text_is_cut_or_covers_a_mark_or_another_text(self, sets: int, count: int) -> None:
        outcomes = [outcome for outcome in OUTCOME_MARKS if outcome]
        rows = [
            row(LONG, *[cell(0.1 * (index % 5) - 0.2, outcomes[index % len(outcomes)])] * 4) for index in range(count)
        ]
        if count > 8:
            rows[3] = row(LONG, *[cell(0.1, "risk of collapse", 5.0, collapsed=True)] * 4)
            rows[5] = row(LONG, *[DEAD] * 4)
            rows[7] = row(LONG, *[cell(-3.0, "worse")] * 4)
        figure = drawn(rows, sets, REFERENCE)
        assert problems(figure) == []
        assert covered_points(figure) == []
        assert alike_in_gray(figure) == []

    def test_panels_share_one_axis(self) -> None:
        figure = drawn([row("a change", cell(0.1), cell(-1.5), cell(0.6))], sets=3)
        assert len({(panel.get_xlim(), tuple(panel.get_xticks())) for panel in figure.axes}) == 1

    def test_each_seed_is_a_dot_and_a_collapsed_one_looks_different(self) -> None:
        (panel,) = drawn([row("a change", cell(0.2, collapsed=True))]).axes
        assert marked(panel, SEED_LOOK) == pytest.approx([0.18, 0.21])
        assert marked(panel, COLLAPSED_LOOK) == pytest.approx([0.23])

    def test_the_reference_is_the_first_row_with_its_own_seeds(self) -> None:
        (panel,) = drawn([row("a change", cell(0.2))], reference=REFERENCE).axes
        assert [label.get_text() for label in panel.get_yticklabels()] == ["BBCU, the reference", "a change"]
        assert marked(panel, SEED_LOOK)[:3] == pytest.approx([-0.03, 0.01, 0.02])

    def test_an_interval_far_beyond_the_rest_ends_in_arrows_with_its_values(self) -> None:
        rest = [row(f"change {index}", cell(0.1 * index)) for index in range(5)]
        (panel,) = drawn([*rest, row("an outlier", cell(0.2, "undecided", 6.0))]).axes
        assert words(panel) == ["\N{MINUS SIGN}5.80", "+6.20"]
        low, high = panel.get_xlim()
        assert -1 < low < high < 2
        assert [line.get_marker() for line in panel.lines if line.get_marker() in ("<", ">")] == ["<", ">"]

    def test_a_mean_beyond_the_axis_is_the_number_at_the_arrow(self) -> None:
        rest = [row(f"change {index}", cell(0.1 * index)) for index in range(5)]
        (panel,) = drawn([*rest, row("an outlier", cell(-9.0, "worse"))]).axes
        assert words(panel) == ["\N{MINUS SIGN}9.00"]

    def test_seeds_beyond_the_axis_are_marks_there_with_the_value_of_the_farthest(self) -> None:
        rest = [row(f"change {index}", cell(0.1 * index)) for index in range(5)]
        (panel,) = drawn([*rest, row("no residual", DEAD)]).axes
        assert words(panel) == ["nothing learned", "\N{MINUS SIGN}4.40"]
        assert len(set(marked(panel, COLLAPSED_LOOK))) == 3

    def test_of_many_seeds_beyond_the_axis_the_farthest_are_drawn(self) -> None:
        far = [Dot(-2.5), *(Dot(-3.0) for _ in range(5)), *(Dot(-4.4, True) for _ in range(2))]
        rest = [row(f"change {index}", cell(0.1 * index)) for index in range(5)]
        (panel,) = drawn([*rest, row("no residual", ForestCell(None, "", tuple(far)))]).axes
        assert len(marked(panel, COLLAPSED_LOOK)) == 2
        assert len(marked(panel, SEED_LOOK)) == 3 * 5 + 3

    def test_a_row_without_an_estimate_says_why(self) -> None:
        (panel,) = drawn([row("a change", ForestCell(None, "nothing learned", ()))]).axes
        assert words(panel) == ["nothing learned"]

    def test_one_seed_has_no_interval(self) -> None:
        (panel,) = drawn([row("a change", ForestCell(estimate(0.2, n=1), "one seed", (Dot(0.2),)))]).axes
        assert max(len(np.asarray(line.get_xdata())) for line in panel.lines if line.get_color() == "0.45") == 1

    def test_the_legend_names_only_the_marks_that_are_used(self) -> None:
        figure = drawn([row("a change", cell(0.2, "better")), row("another", cell(0.2, "worse", collapsed=True))])
        assert legend_texts(figure) == ["better", "worse", "a seed", "a collapsed seed", "within 0.05 dB of 0"]

    def test_a_hostile_label_is_drawn_as_text(self) -> None:
        hostile = "_$\\frac{1}$ <script> \N{HIRAGANA LETTER A} a\nb"
        drawing = forest_figure([row(hostile, ForestCell(None, hostile, (Dot(0.1),)))], ["Set5"], MARGIN)
        assert drawing.png.startswith(b"\x89PNG")

    def test_the_same_numbers_give_the_same_bytes(self) -> None:
        rows = [row(LONG, cell(0.1, collapsed=True)), row("another", DEAD)]
        first = forest_figure(rows, ["Set5"], MARGIN, REFERENCE)
        assert first == forest_figure(rows, ["Set5"], MARGIN, REFERENCE)
        assert first.svg is not None
        assert first.svg.startswith(b"<?xml")


class TestAxis:
    """``axis_for``: which values stretch the axis."""

    def test_what_is_near_the_rest_is_on_the_axis(self) -> None:
        axis = axis_for([([0.2], False)] * 5 + [([-1.5], False)], MARGIN, 6.0)
        assert (axis.side(-1.5), axis.below, axis.above) == (0, False, False)

    def test_what_is_far_from_the_rest_is_not(self) -> None:
        axis = axis_for([([0.2], False)] * 5 + [([-1.7], False)], MARGIN, 6.0)
        assert (axis.side(-1.7), axis.below, axis.above) == (-1, True, False)
        assert axis.high > 0.2

    def test_a_collapsed_seed_at_most_doubles_the_axis(self) -> None:
        near, far = ([-0.39], True), ([-0.41], True)
        assert not axis_for([([0.2], False), near], MARGIN, 6.0).below
        assert axis_for([([0.2], False), far], MARGIN, 6.0).below

    def test_if_all_collapsed_they_are_on_the_axis(self) -> None:
        assert axis_for([([-4.4], True)] * 3, MARGIN, 6.0).side(-4.4) == 0

    def test_the_margin_is_always_on_the_axis(self) -> None:
        axis = axis_for([([0.0], False)], MARGIN, 6.0)
        assert (axis.side(-MARGIN), axis.side(MARGIN)) == (0, 0)

    def test_a_cut_end_has_a_strip_beyond_it(self) -> None:
        axis = axis_for([([0.2], False)] * 5 + [([9.0], False)], MARGIN, 6.0)
        assert axis.limits[0] == axis.low
        assert axis.limits[1] > axis.high

    @pytest.mark.parametrize("high", [0.07, 0.3, 1.9, 21.0])
    @pytest.mark.parametrize("inches", [0.8, 6.0])
    def test_its_ticks_are_zero_and_round_numbers_beside_it(self, high: float, inches: float) -> None:
        ticks = axis_for([([high], False)], MARGIN, inches).ticks
        assert 0 in ticks
        assert 2 <= len(ticks) <= 11


class TestContexts:
    ROWS = (
        ContextRow(LONG, (ContextDot(estimate(0.3), reference=True), ContextDot(estimate(-0.4))), -0.05),
        ContextRow("another", (ContextDot(estimate(0.2), collapsed=True), ContextDot(estimate(0.1)))),
    )

    def drawn(self) -> Figure:
        return laid_out(contexts_figure, self.ROWS, MARGIN)

    def test_no_text_is_cut_or_covers_a_mark_or_another_text(self) -> None:
        figure = self.drawn()
        assert problems(figure) == []
        assert covered_points(figure) == []
        assert alike_in_gray(figure) == []

    def test_each_context_and_the_mean_over_them_have_a_note(self) -> None:
        dots = (ContextDot(estimate(0.3), True, note=Note("one")), ContextDot(estimate(-0.4), note=Note("other")))
        figure = laid_out(contexts_figure, [ContextRow("a", dots, 0.1, Note("mean"))], MARGIN)
        noted = [str(artist.get_gid()) for artist in figure.findobj(lambda artist: artist.get_gid() is not None)]
        assert Counter(noted) == {"\none": 2, "\nother": 2, "\nmean": 1}

    def test_contexts_are_unordered_so_no_line_joins_them(self) -> None:
        (panel,) = self.drawn().axes
        places = [set(np.asarray(line.get_ydata()).tolist()) for line in panel.lines if line.get_marker() != "None"]
        across = [line for line in panel.lines if len(set(np.asarray(line.get_ydata()).tolist())) == 1]
        assert [len(place) for place in places] == [1] * 4
        assert len({place.pop() for place in places}) == 4
        assert len(across) == 4 + 4

    def test_the_context_of_the_reference_is_larger_and_filled(self) -> None:
        (panel,) = self.drawn().axes
        first, second = [line for line in panel.lines if line.get_marker() != "None"][:2]
        assert first.get_markersize() > second.get_markersize()
        assert (first.get_markerfacecolor(), second.get_markerfacecolor()) == (first.get_color(), "w")

    def test_the_mean_over_contexts_is_a_tick_where_there_is_one(self) -> None:
        (panel,) = self.drawn().axes
        upright = [np.asarray(line.get_xdata()) for line in panel.lines if line.get_color() == "0.1"]
        assert [place.tolist() for place in upright] == [[-0.05, -0.05]]

    def test_the_legend_names_what_is_drawn(self) -> None:
        assert legend_texts(self.drawn()) == [
            "at the reference",
            "in another context",
            "in another context, with a collapsed seed",
            "mean over contexts",
            "within 0.05 dB of 0",
        ]
