"""The figures: no label is cut or lies on another, however long, and a cell looks the same in each of them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from analysis.effects.curves import front
from analysis.effects.depth import EVERY
from analysis.report import figures
from analysis.report.drawing import FEW_POINTS, STRANGER, Palette, evenly_wrapped, wrapped
from analysis.report.figures import MOST_NAMED
from analysis.report.pictures import Strip, Tile
from analysis.statistics.factorial import HalfNormal, Point
from tests.harness.layouts import alike_in_gray, covered_points, laid_out, legend_texts, problems

pytestmark = pytest.mark.filterwarnings("error::UserWarning:matplotlib.*", "error::UserWarning:analysis.*")

METHODS = (
    "SRResNet",
    "BBCU-L",
    "BAM",
    "BTM",
    "BBCU-M",
    "ReActNet",
    "Bi-Real",
    "SRResNet-Lite",
    "BNN",
    "IRNet",
)
LONG = tuple(f"residual=true bn=none act=inside align={index} binarize=[body,up]" for index in range(8))
GROUPS = tuple(f"residual=true bn=none act={index}" for index in range(8))
HOSTILE = (
    "_hidden",
    "$\\frac{1}$",
    "<script>",
    "\N{HIRAGANA LETTER A}",
    "my.own.package.surrogates.LearnedHyperbolicTangent",
)
MEASURES = ("output_loss", "sign_loss", "window")


def curve_frame(labels: Sequence[str], sets: Sequence[str] = ("Set5",)) -> pd.DataFrame:
    """Curves that end 0.1 dB apart; the second cell learns slowly at first."""
    rows = []
    metrics = [*(f"{name}/psnr_db" for name in sets), "train/loss", "train/psnr_db"]
    for metric, (index, label), step in itertools.product(metrics, enumerate(labels), (0, 100, 200, 300, 400)):
        mean = 30.0 + step / 200 - 0.1 * index - (5.0 if index == 1 and step == 0 else 0.0)
        rows.append((metric, f"{index}" * 64, label, float(step), mean, mean - 0.05, mean + 0.05, 3))
    return pd.DataFrame(rows, columns=["metric", "cell", "label", "step", "mean", "low", "high", "n"])


def depth_frame(levels: dict[str, Sequence[str]]) -> pd.DataFrame:
    """Probes of eight units for each level of each factor."""
    rows = [
        (factor, level, f"{index}" * 64, measure, depth, value, value - 0.02, value + 0.02, 3)
        for factor, names in levels.items()
        for index, level in enumerate(names)
        for measure in MEASURES
        for depth in range(1, 9)
        for value in [0.2 + 0.05 * index + 0.01 * depth]
    ]
    return pd.DataFrame(rows, columns=["factor", "level", "cell", "measure", "depth", "mean", "low", "high", "n"])


def cost_frame(here: Sequence[str], paper: Sequence[str] = (), sets: Sequence[str] = ("Set5",)) -> pd.DataFrame:
    """Cells here of one of five costs, the first the best; and the paper's, 2 dB better and ten times as large."""
    rows: list[tuple[Any, ...]] = [
        (
            name,
            label,
            f"{index}" * 64,
            *(mean - 0.1 * index for mean in (36.0, 35.9, 36.2)),
            3,
            9.0 - index % 5,
            90.0,
            "here",
        )
        for name in sets
        for index, label in enumerate(here)
    ]
    rows += [
        (name, label, "", 38 - 0.1 * index, np.nan, np.nan, 0, 85.0 - 7 * index, 900.0, "paper")
        for name in sets
        for index, label in enumerate(paper)
    ]
    columns = ["test_set", "label", "cell", "mean", "low", "high", "n", "ops_g", "params_k", "source"]
    return pd.DataFrame(rows, columns=columns)


def range_frame(labels: Sequence[str]) -> pd.DataFrame:
    rows = [
        (f"{index}" * 64, label, depth, index > 0, -2.0, 3.0 + depth, -1.0, 1.0, 3)
        for index, label in enumerate(labels)
        for depth in range(1, 9)
    ]
    ends = ["beside_p1", "beside_p99", "branch_p1", "branch_p99"]
    return pd.DataFrame(rows, columns=["cell", "label", "depth", "has_residual", *ends, "n"])


def alignment_frame(groups: Sequence[str], seeds: int = 3) -> pd.DataFrame:
    rows = [
        ("Set5", group, align, f"{index}" * 64, 33.0 + index / 10, 32.9 + index / 10, 33.2 + index / 10, seeds)
        for index, group in enumerate(groups)
        for align in (1.0, 65.0, 130.0)
    ]
    return pd.DataFrame(rows, columns=["test_set", "group", "align", "cell", "mean", "low", "high", "n"])


def half_normal() -> HalfNormal:
    sizes = [(("bn",), 0.05), (("act",), 0.1), (("residual", "bn"), 0.4), (("residual",), 1.2)]
    points = [Point(factors, size, 0.5 * index, size > 0.3) for index, (factors, size) in enumerate(sizes)]
    return HalfNormal(tuple(points), 0.05, 0.2, 0.3)


def strip() -> Strip:
    pixels = np.linspace(0, 1, 24 * 24).reshape(24, 24)
    tiles = [Tile(name, 0, 30.0, pixels, pixels[:8, :8], pixels[:8, :8], 28.0) for name in (*METHODS[:5], LONG[0])]
    return Strip("Set5", "baby", tuple(tiles), (0, 0, 8, 8))


NAMED = Palette(METHODS)
MIXED = Palette((*LONG, *METHODS))

DRAWN: dict[str, tuple[Any, ...]] = {
    "half-normal": (figures.half_normal_figure, {"Set5": half_normal(), "Set14": half_normal()}),
    "depth of four factors": (
        figures.depth_figure,
        depth_frame(
            {
                "residual": ("true", "block", "false"),
                "bn": ("none", "pre", "post", "out"),
                "act": ("inside", "after", "none"),
                "surrogate": ("quadratic", HOSTILE[-1]),
            }
        ),
        MEASURES,
        NAMED,
    ),
    "depth of methods": (figures.depth_figure, depth_frame({EVERY: METHODS}), MEASURES, NAMED),
    "ranges": (figures.ranges_figure, range_frame(LONG[:6])),
    "alignment": (
        figures.alignment_figure,
        alignment_frame(GROUPS),
        ["Set5"],
    ),
    "cost of methods": (
        figures.pareto_figure,
        cost_frame(METHODS, METHODS[:9], ("Set5", "Set14")),
        ("Set5", "Set14"),
        NAMED,
    ),
    "cost beside other names": (figures.pareto_figure, cost_frame(LONG, METHODS[:9]), ["Set5"], MIXED),
    "cost and time beside the paper": (
        figures.pareto_figure,
        cost_frame(METHODS, METHODS[:9]).assign(time=[0.1 * place or np.nan for place in range(10)] + [np.nan] * 9),
        ["Set5"],
        NAMED,
        "1/8",
    ),
    "cost of a search": (
        figures.pareto_figure,
        cost_frame([f"blocks={index}" for index in range(60)]),
        ["Set5"],
        Palette(tuple(f"blocks={index}" for index in range(60))),
    ),
    "curves of methods": (
        figures.curves_figure,
        curve_frame(METHODS, ("Set5", "Set14", "B100", "Urban100")),
        METHODS,
        "BBCU-L",
        NAMED,
    ),
    "curves of long names": (figures.curves_figure, curve_frame(LONG), LONG, LONG[0], MIXED),
    "curves of hostile names": (figures.curves_figure, curve_frame(HOSTILE), HOSTILE, HOSTILE[0], Palette(HOSTILE)),
    "strip": (figures.strip_figure, strip()),
}


class TestLayout:
    @pytest.mark.parametrize("name", DRAWN)
    def test_no_label_is_cut_or_covered_and_no_two_of_a_legend_look_alike_in_gray(self, name: str) -> None:
        draw, *arguments = DRAWN[name]
        figure = laid_out(draw, *arguments)
        assert problems(figure) == []
        assert alike_in_gray(figure) == []
        assert covered_points(figure) == []

    def test_the_check_sees_an_overlap(self) -> None:
        figure = Figure()
        figure.text(0.5, 0.5, "one")
        figure.text(0.5, 0.5, "other")
        figure.text(0.98, 0.1, "beyond the edge")
        FigureCanvasAgg(figure).draw()
        assert problems(figure) == ["cut: 'beyond the edge'", "'one' on 'other'"]

    def test_the_check_sees_a_text_on_a_mark(self) -> None:
        figure = Figure()
        panel = figure.subplots()
        panel.plot([0.5], [0.5], "o")
        panel.text(0.5, 0.5, "a name", ha="center", va="center")
        FigureCanvasAgg(figure).draw()
        assert covered_points(figure) == ["a name"]

    def test_the_check_sees_lines_that_differ_in_colour_alone(self) -> None:
        figure = Figure(dpi=150)
        panel = figure.subplots()
        for colour, style, label in (("C0", "-", "one"), ("C1", "-", "other"), ("C2", "--", "dashed")):
            panel.plot([0, 1], color=colour, linestyle=style, label=label)
        panel.legend(handlelength=3)
        FigureCanvasAgg(figure).draw()
        assert alike_in_gray(figure) == ["'one' looks like 'other'"]


def notes(draw: Any, *arguments: Any) -> list[str]:
    """The notes of the marks of a figure, each once, with the place of its runs before it."""
    figure = Figure()
    draw.__wrapped__(figure, *arguments)
    found = figure.findobj(lambda artist: artist.get_gid() is not None)
    return list(dict.fromkeys(str(artist.get_gid()).replace("\n", " | ") for artist in found))


class TestNotes:
    @pytest.mark.parametrize(
        ("name", "count", "expected"),
        [
            ("half-normal", 8, " | residual x bn, Set14: +0.400 dB, beyond the simultaneous margin"),
            (
                *("depth of methods", 30),
                "runs-111111111111 | BBCU-L, loss by the sign: 0.260 in unit 1, 0.330 in unit 8, mean of 3 seeds",
            ),
            (
                *("ranges", 12),
                f"runs-111111111111 | {LONG[1]}, residual: widest in unit 8, from -2.000 to 11.000, mean of 3 seeds",
            ),
            ("alignment", 32, f" | {GROUPS[1]}, Set5: PSNR in dB 33.100 at k=1, 33.100 at k=65, 33.100 at k=130"),
            (
                *("alignment", 32),
                f"runs-111111111111 | {GROUPS[1]}, k=65, Set5: 33.100 dB, 3 seeds from 33.000 to 33.300",
            ),
            (
                *("cost of methods", 38),
                "runs-111111111111 | BBCU-L, Set5: 35.900 dB, 3 seeds from 35.800 to 36.100, "
                "8.000 G OPs, 90.0 K params",
            ),
            ("cost of methods", 38, " | BBCU-L, Set14: 37.90 dB in the paper, 78.000 G OPs, 900.0 K params"),
            (
                *("cost and time beside the paper", 19),
                "runs-222222222222 | BAM, Set5: 35.800 dB, 3 seeds from 35.700 to 36.000, "
                "7.000 G OPs, 90.0 K params, 0.200 of the twin's time",
            ),
            (
                *("cost of a search", 60),
                "runs-595959595959 | blocks=59, Set5: 30.100 dB, 3 seeds from 30.000 to 30.300, "
                "5.000 G OPs, 90.0 K params",
            ),
            (
                *("curves of methods", 60),
                "runs-222222222222 | BAM, training PSNR (dB), minus the reference's: -0.100 at step 400, "
                "mean of 3 seeds",
            ),
        ],
    )
    def test_every_mark_says_its_number_and_what_it_is_of(self, name: str, count: int, expected: str) -> None:
        draw, *arguments = DRAWN[name]
        found = notes(draw, *arguments)
        assert len(found) == count
        assert expected in found


class TestPalette:
    @pytest.mark.parametrize("points", [FEW_POINTS, 60])
    def test_forty_two_lines_differ_without_their_colours(self, points: int) -> None:
        palette = Palette(tuple(map(str, range(42))))
        looks = [{**palette[label].line(points), "color": ""} for label in palette.labels]
        assert not [one for index, one in enumerate(looks) if one in looks[:index]]

    def test_one_hundred_and_twelve_points_differ(self) -> None:
        palette = Palette(tuple(map(str, range(112))))
        assert len({(palette[label].colour, palette[label].marker) for label in palette.labels}) == 112

    def test_a_label_that_is_not_in_the_report_is_gray(self) -> None:
        assert Palette(("BBCU-L",))["BAM"] == STRANGER

    def test_a_reimplemented_method_looks_as_its_printed_result(self) -> None:
        palette = Palette(("BBCU-L", "BAM (reimplementation)"))
        assert palette["BAM"] == palette["BAM (reimplementation)"] != palette["BBCU-L"]

    def test_a_cell_has_one_colour_in_every_figure(self) -> None:
        some = ("BAM", "BNN", "BBCU-L")
        drawn = [
            laid_out(figures.pareto_figure, cost_frame(some, some), ["Set5"], NAMED),
            laid_out(figures.curves_figure, curve_frame(some), some, "BBCU-L", NAMED),
            laid_out(figures.depth_figure, depth_frame({EVERY: some}), MEASURES, NAMED),
        ]
        for label in some:
            found = {(line.get_color(), line.get_marker()) for figure in drawn for line in named(figure, label)}
            assert {marker for _, marker in found} == {NAMED[label].marker}
            assert {colour for colour, _ in found} == {NAMED[label].colour}


def named(figure: Figure, label: str) -> list[Line2D]:
    return [line for panel in figure.axes for line in panel.lines if line.get_label() == label]


def ends(line: Line2D) -> float:
    return float(np.asarray(line.get_ydata())[-1])


class TestCurves:
    def drawn(self, labels: Sequence[str] = METHODS[:3]) -> list[Axes]:
        return laid_out(figures.curves_figure, curve_frame(labels, ("Set5", "Set14")), labels, "BBCU-L", NAMED).axes

    def test_one_panel_shows_the_level_and_the_others_the_difference_to_the_reference(self) -> None:
        panels = self.drawn()
        assert [panel.get_title().replace("\n", " ") for panel in panels] == [
            "Set5: PSNR (dB)",
            "Set5: PSNR (dB), minus the reference's",
            "Set14: PSNR (dB), minus the reference's",
            "training: PSNR (dB), minus the reference's",
        ]
        assert ends(named(panels[0].get_figure(root=True), "BAM")[0]) == pytest.approx(31.8)  # type: ignore[arg-type]
        last = [[ends(line) for line in panel.lines if line.get_label() in METHODS] for panel in panels[1:]]
        assert last == [pytest.approx([0.1, 0.0, -0.1])] * 3

    def test_differences_share_an_axis_that_fits_the_second_half_of_the_training(self) -> None:
        limits = {panel.get_ylim() for panel in self.drawn(("BBCU-L", "BAM"))[1:]}
        assert len(limits) == 1
        ((low, high),) = limits
        assert -0.2 < low < -0.1
        assert 0.0 < high < 0.1

    def test_without_another_cell_each_metric_has_a_panel(self) -> None:
        titles = [panel.get_title() for panel in self.drawn(["BBCU-L"])]
        assert titles == ["Set5: PSNR (dB)", "Set14: PSNR (dB)", "training: loss", "training: PSNR (dB)"]


class TestCosts:
    def test_the_papers_points_are_in_a_panel_of_their_own_axis(self) -> None:
        here, params, paper = laid_out(figures.pareto_figure, cost_frame(METHODS, METHODS[:9]), ["Set5"], NAMED).axes
        assert paper.get_title() == "Set5, in the paper"
        assert here.get_ylim() == params.get_ylim()
        assert here.get_ylim()[1] < 37 < paper.get_ylim()[0]
        assert {line.get_markerfacecolor() for line in paper.lines} == {"w"}
        assert not [line for line in here.lines if line.get_markerfacecolor() == "w"]

    def test_a_study_beside_which_the_paper_has_nothing_has_no_panel_for_it(self) -> None:
        assert len(laid_out(figures.pareto_figure, cost_frame(METHODS), ["Set5"], NAMED).axes) == 2

    def test_time_has_a_panel_where_it_was_measured_and_the_price_names_the_operations(self) -> None:
        table = cost_frame(METHODS, METHODS[:9])
        table["time"] = [0.5] + [np.nan] * (len(table) - 1)
        axes = laid_out(figures.pareto_figure, table, ["Set5"], NAMED, "1/8").axes
        assert [panel.get_xlabel() for panel in axes] == ["OPs at 1/8 (G)", "params (K)", "time / twin", "OPs (G)"]
        assert axes[2].get_ylim() == axes[0].get_ylim()
        assert "Pareto front" in axes[2].get_legend_handles_labels()[1]

    def test_of_many_cells_those_on_the_front_are_named_and_the_others_gray(self) -> None:
        names = [f"blocks={index}" for index in range(60)]
        figure = laid_out(figures.pareto_figure, cost_frame(names), ["Set5"], Palette(tuple(names)))
        assert legend_texts(figure) == ["Pareto front", "another cell", *(f"blocks={index}" for index in range(5))]
        assert len([line for line in figure.axes[0].lines if line.get_color() == "0.6"]) == 55

    def test_as_many_cells_as_there_are_marks_are_all_named(self) -> None:
        names = [f"blocks={index}" for index in range(MOST_NAMED)]
        figure = laid_out(figures.pareto_figure, cost_frame(names), ["Set5"], Palette(tuple(names)))
        assert legend_texts(figure) == ["Pareto front", *names]

    def test_points_that_would_cover_each_other_stand_side_by_side(self) -> None:
        assert figures.slots([(0.0, 0.5), (0.0, 0.51), (0.5, 0.5), (0.0, 0.52), (0.0, 0.9)]) == [0, 1, 0, 2, 0]

    def test_a_point_does_not_move_onto_another_one(self) -> None:
        first, second, third = (0.0, 0.5), (figures.MARK_WIDTH, 0.5), (0.0, 0.5)
        assert figures.slots([first, second, third]) == [0, 0, 2]

    def test_a_line_leads_from_a_moved_mark_to_its_place(self) -> None:
        table = cost_frame(METHODS[:2]).assign(mean=36.0, low=35.9, high=36.1, ops_g=9.0)
        panel = laid_out(figures.pareto_figure, table, ["Set5"], NAMED).axes[0]
        (leader,) = [text for text in panel.texts if isinstance(text, Annotation)]
        assert leader.xy == (9.0, 36.0)

    def test_places_are_those_on_the_axis_that_the_costs_get(self) -> None:
        assert figures.spread([1.0, 3.0, 5.0]) == [0.0, 0.5, 1.0]
        assert figures.spread([1.0, 10.0, 100.0]) == pytest.approx([0.0, 0.5, 1.0])

    def test_the_front_holds_what_nothing_as_cheap_beats(self) -> None:
        points = pd.DataFrame({"ops_g": [1.0, 1.0, 2.0, 3.0, 4.0], "mean": [30.0, 31.0, 30.5, 33.0, 33.0]})
        points = points.assign(label=list("abcde"))
        assert front(points, "ops_g")[["ops_g", "mean"]].values.tolist() == [[1.0, 31.0], [3.0, 33.0]]


class TestSeeds:
    @pytest.mark.parametrize(
        ("count", "dots"),
        [(1, [33.0]), (2, [32.0, 34.5]), (3, [32.0, 32.5, 34.5]), (5, [32.0, 34.5])],
    )
    def test_up_to_three_are_dots_and_more_a_range(self, count: int, dots: list[float]) -> None:
        assert figures.seeds_of(33.0, 32.0, 34.5, count) == dots

    @pytest.mark.parametrize(("count", "line"), [(3, "None"), (5, "-")])
    def test_an_alignment_has_the_dots_of_its_seeds(self, count: int, line: str) -> None:
        (panel,) = laid_out(figures.alignment_figure, alignment_frame([""], count), ["Set5"]).axes
        course, *seeds = panel.lines
        assert np.asarray(course.get_xdata()).tolist() == [1.0, 65.0, 130.0]
        assert {len(set(np.asarray(each.get_xdata()))) for each in seeds} == {1}
        assert {each.get_linestyle() for each in seeds} == {line}


class TestDepth:
    def test_panels_of_a_measure_share_their_axis(self) -> None:
        draw, *arguments = DRAWN["depth of four factors"]
        panels = laid_out(draw, *arguments).axes
        assert len(panels) == 4 * len(MEASURES)
        for start in range(0, len(panels), 4):
            assert len({panel.get_ylim() for panel in panels[start : start + 4]}) == 1

    def test_the_levels_of_a_factor_have_the_colours_of_its_own_panel(self) -> None:
        figure = laid_out(figures.depth_figure, depth_frame({"act": ("inside", "after")}), MEASURES, NAMED)
        assert [to_hex(line.get_color()) for line in figure.axes[0].lines] == [to_hex("C0"), to_hex("C1")]


@pytest.mark.parametrize("name", ["alignment", "curves of hostile names"])
def test_the_same_numbers_give_the_same_png_and_svg(name: str) -> None:
    draw, *arguments = DRAWN[name]
    first = draw(*arguments)
    assert first == draw(*arguments)
    assert first.svg.startswith(b"<?xml")


def test_pictures_have_no_svg() -> None:
    assert figures.strip_figure(strip()).svg is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("surrogate=my.package.Class", "surrogate=Class", id="a class's path"),
        pytest.param("threshold=0.25 lr=1.5", "threshold=0.25 lr=1.5", id="numbers stay"),
        pytest.param("binarize=[body,up]", "binarize=[body,up]", id="a list stays"),
    ],
)
def test_of_a_dotted_path_the_name_is_shown(text: str, shown: str) -> None:
    assert wrapped(text, 40) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Without activation", "Without activation"),
        ("BatchNorm after the add in place of alignment 65", "BatchNorm after the add\nin place of alignment 65"),
        ("A " + 45 * "m", "A\n" + 45 * "m"),
        ("", ""),
    ],
)
def test_the_lines_of_a_label_are_about_equal_and_no_word_is_cut(text: str, shown: str) -> None:
    assert evenly_wrapped(text, 46) == shown
