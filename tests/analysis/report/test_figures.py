"""The figures: no label is cut or lies on another, however long, and each appears only where its data do."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.effects.contrasts import cell_summaries, contrasts
from analysis.effects.curves import alignment_table, cost_table, costs_differ, curve_table
from analysis.effects.depth import SHOWN_MEASURES, depth_table, range_table, star
from analysis.effects.factors import factor_pairs, factorial_analyses
from analysis.report import figures
from analysis.report.figures import FEW_POINTS
from analysis.report.page import compose
from analysis.report.pictures import MOST_CELLS, Strip, Tile, disagreement, shown_cells, strips, zoomed
from analysis.study.settings import SettingResults, split_by_setting
from tests.harness.studies import FULL_REFERENCE, Trial, components_study, full_trial, read_back, trial

ALIKE = 0.02
"""Two entries of a legend differ in more than this part of their ink."""

SLACK = 2.0
"""How many pixels a text may reach over an edge or into another: less than a letter's own margin."""

pytestmark = pytest.mark.filterwarnings("error::UserWarning:matplotlib.*", "error::UserWarning:analysis.*")


def results_of(folder: Path, finished: Sequence[Trial], **others: Any) -> SettingResults:
    (results,) = split_by_setting(read_back(folder, finished, samples=True, **others))
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SettingResults:
    """A whole study of the components under two seeds, with samples."""
    finished, left_out = components_study(range(2))
    return results_of(tmp_path_factory.mktemp("whole"), finished, left_out=left_out)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> SettingResults:
    """Many cells with long names on four test sets."""
    levels = itertools.product(
        (True, "block", False),
        ("none", "pre", "post", "out"),
        ("inside", "after"),
        ("quadratic", "my.own.package.surrogates.LearnedHyperbolicTangent"),
    )
    return results_of(tmp_path_factory.mktemp("crowded"), list(itertools.starmap(crowded_trial, levels)))


def crowded_trial(residual: bool | str, bn: str, act: str, surrogate: str) -> Trial:
    one = full_trial(0, residual=residual, bn=bn, act=act)
    psnr = one.psnr_db["Set5"]
    return dataclasses.replace(
        one,
        levels={**one.levels, "surrogate": surrogate},
        psnr_db={"Set5": psnr, "Set14": psnr - 3, "B100": psnr - 4, "Urban100": psnr - 5},
        reference={**FULL_REFERENCE, "surrogate": "quadratic"},
        images={},
        ops_g=2.0 + (bn != "none"),
    )


def laid_out(draw: Callable[..., Any], *args: Any) -> Figure:
    """The figure that a function draws, with its texts in their places."""
    with matplotlib.style.context(["default", str(figures.STYLE)]):
        figure = Figure()
        draw.__wrapped__(figure, *args)  # type: ignore[attr-defined]
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
    return across > SLACK and down > SLACK


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
    letter = text.get_fontsize() * figure.dpi / 72
    right, middle = round(box.x0 - legend.handletextpad * letter), round(len(luminance) - (box.y0 + box.y1) / 2)
    across, down = round(legend.handlelength * letter), round(letter / 2)
    ink = 255 - luminance[middle - down : middle + down, right - across : right]
    return ink / ink.max()


def drawings(results: SettingResults) -> dict[str, tuple[Any, ...]]:
    """Every figure that the results's data allow, with its arguments."""
    summaries, read = cell_summaries(results), factorial_analyses(results)
    first = next(iter(read.values()))
    found = {
        "effects": (figures.effects_figure, contrasts(results), results.sets, 0.05),
        "interactions": (figures.interactions_figure, read, 0.05),
        "means": (figures.means_figure, first, factor_pairs(first)[:6]),
        "shares": (figures.shares_figure, read),
        "half_normal": (figures.half_normal_figure, {name: one.half_normal for name, one in read.items()}),
        "depth": (figures.depth_figure, depth_table(results), SHOWN_MEASURES),
        "ranges": (figures.ranges_figure, range_table(results)),
        "pareto": (figures.pareto_figure, cost_table(results, summaries), results.sets),
        "curves": (figures.curves_figure, curve_table(results), [cell.label for cell in summaries][:12]),
        "strip": (figures.strip_figure, strips(results, summaries, "bicubic")[0][0]),
    }
    aligned = alignment_table(results)
    return found if aligned.empty else {**found, "alignment": (figures.alignment_figure, aligned, results.sets)}


@pytest.fixture(scope="module")
def of_whole(whole: SettingResults) -> dict[str, tuple[Any, ...]]:
    return drawings(whole)


@pytest.fixture(scope="module")
def of_crowded(crowded: SettingResults) -> dict[str, tuple[Any, ...]]:
    return drawings(crowded)


NAMES = ("effects", "interactions", "means", "shares", "half_normal", "depth", "ranges", "pareto", "curves", "strip")


class TestLayout:
    @pytest.mark.parametrize(
        ("study", "name"),
        [*(("of_whole", name) for name in (*NAMES, "alignment")), *(("of_crowded", name) for name in NAMES)],
    )
    def test_no_label_is_cut_or_covered_and_no_two_of_a_legend_look_alike_in_gray(
        self, study: str, name: str, request: pytest.FixtureRequest
    ) -> None:
        draw, *arguments = request.getfixturevalue(study)[name]
        figure = laid_out(draw, *arguments)
        assert problems(figure) == []
        assert alike_in_gray(figure) == []
        for panel in figure.axes if name == "half_normal" else ():
            names = [text.get_window_extent() for text in panel.texts]
            points = [panel.transData.transform(line.get_xydata()) for line in panel.lines if line.get_marker() == "o"]
            assert names
            assert not [place for place in np.concatenate(points) for name in names if name.contains(*place)]

    def test_the_check_sees_an_overlap(self) -> None:
        figure = Figure()
        figure.text(0.5, 0.5, "one")
        figure.text(0.5, 0.5, "other")
        figure.text(0.98, 0.1, "beyond the edge")
        FigureCanvasAgg(figure).draw()
        assert problems(figure) == ["cut: 'beyond the edge'", "'one' on 'other'"]

    def test_the_check_sees_lines_that_differ_in_colour_alone(self) -> None:
        figure = Figure(dpi=150)
        panel = figure.subplots()
        for colour, style, label in (("C0", "-", "one"), ("C1", "-", "other"), ("C2", "--", "dashed")):
            panel.plot([0, 1], color=colour, linestyle=style, label=label)
        panel.legend(handlelength=3)
        FigureCanvasAgg(figure).draw()
        assert alike_in_gray(figure) == ["'one' looks like 'other'"]

    @pytest.mark.parametrize("points", [FEW_POINTS, 60])
    def test_forty_two_lines_differ_without_their_colours(self, points: int) -> None:
        looks = [{**figures.look(index, points), "color": ""} for index in range(42)]
        assert not [one for index, one in enumerate(looks) if one in looks[:index]]


def test_the_same_numbers_give_the_same_png_and_svg(of_whole: dict[str, tuple[Any, ...]]) -> None:
    draw, *arguments = of_whole["effects"]
    first = draw(*arguments)
    assert first == draw(*arguments)
    assert first.svg.startswith(b"<?xml")
    draw, *arguments = of_whole["strip"]
    assert draw(*arguments).svg is None


class TestWhatIsShown:
    def test_a_figure_appears_only_where_its_data_do(self, tmp_path: Path) -> None:
        files = compose(read_back(tmp_path, [trial(0, 30.0), trial(0, 29.0, residual=False)]))
        pictures = {name.removesuffix(".png") for name in files if name.endswith(".png")}
        assert pictures == {"effects", "curves"}

    def test_the_star_holds_cells_that_differ_in_one_factor(self, whole: SettingResults) -> None:
        found = star(whole)
        assert {factor: list(levels) for factor, levels in found.items()} == {
            "residual": ["true", "false"],
            "bn": ["none", "post"],
            "align": ["auto", "1"],
            "act": ["inside", "after"],
        }
        assert whole.labels[found["align"]["1"]] == "residual=true bn=none align=1 act=inside"

    def test_depth_lines_are_means_over_seeds_within_their_range(self, whole: SettingResults) -> None:
        row = depth_table(whole).query("factor == 'residual' and level == 'false' and depth == 3").iloc[0]
        raw = whole.units[(whole.units["cell"] == row["cell"]) & (whole.units["depth"] == 3)][row["measure"]]
        assert (row["mean"], row["low"], row["high"], row["n"]) == (raw.mean(), raw.min(), raw.max(), 2)

    def test_ranges_take_the_input_where_there_is_no_residual(self, whole: SettingResults) -> None:
        table = range_table(whole).set_index(["label", "depth"])
        without = table.loc[("residual=false bn=none align=auto act=inside", 1)]
        assert not without["has_residual"]
        assert without["beside_p99"] == pytest.approx(2.3 * 5.0)

    def test_alignment_joins_cells_that_are_alike_otherwise(self, whole: SettingResults) -> None:
        table = alignment_table(whole)
        assert {tuple(group["align"]) for _, group in table.groupby("group")} == {(1.0, 130.0)}
        assert set(table["group"]) == {
            f"residual={residual} bn=none act={act}" for residual in ("true", "false") for act in ("inside", "after")
        }

    def test_the_papers_points_stand_beside_ours_on_its_task_and_sets(self, whole: SettingResults) -> None:
        table = cost_table(whole, cell_summaries(whole))
        paper = table[table["source"] == "paper"].set_index("label")
        assert paper.loc["SRResNet", ["mean", "ops_g"]].tolist() == [38.0, 85.43]
        assert set(table["test_set"]) == {"Set5"}
        assert costs_differ(table)

    def test_the_front_holds_what_nothing_as_cheap_beats(self) -> None:
        points = pd.DataFrame({"ops_g": [1.0, 1.0, 2.0, 3.0, 4.0], "mean": [30.0, 31.0, 30.5, 33.0, 33.0]})
        assert figures.pareto(points, "ops_g")[["ops_g", "mean"]].values.tolist() == [[1.0, 31.0], [3.0, 33.0]]


class TestPictures:
    def test_the_window_is_where_the_outputs_differ_most(self) -> None:
        one, other = np.zeros((30, 30)), np.zeros((30, 30))
        other[12:16, 20:24] = 1.0
        top, left, rows, columns = disagreement([one, other])
        assert (rows, columns) == (10, 10)
        assert top <= 12
        assert top + rows >= 16
        assert left <= 20
        assert left + columns >= 24
        assert disagreement([one, one]) == (10, 10, 10, 10)

    def test_a_tile_has_the_psnr_of_its_window_alone(self) -> None:
        truth = Tile("truth", None, np.nan, np.full((30, 30), 0.5))
        pixels = truth.pixels.copy()
        pixels[:10, :10] += 0.1
        got = zoomed(Tile("cell", 0, 30.0, pixels), (0, 0, 10, 10), truth)
        assert got.crop_psnr_db == pytest.approx(20.0)
        assert got.error is not None
        assert got.error.max() == pytest.approx(0.1)
        assert zoomed(Tile("cell", 0, 30.0, pixels), (15, 15, 10, 10), truth).crop_psnr_db == np.inf

    def test_the_input_of_a_super_resolution_is_cut_at_its_own_size(self) -> None:
        truth = Tile("truth", None, np.nan, np.zeros((30, 30)))
        got = zoomed(Tile("input", None, np.nan, np.zeros((15, 15))), (10, 10, 10, 10), truth)
        assert got.zoom is not None
        assert (got.zoom.shape, got.error) == ((5, 5), None)

    @pytest.mark.parametrize("place", range(12))
    def test_the_cell_that_others_are_measured_against_is_always_shown(
        self, crowded: SettingResults, place: int
    ) -> None:
        ranked = [dataclasses.replace(cell, is_reference=False) for cell in cell_summaries(crowded)][:12]
        ranked[place] = dataclasses.replace(ranked[place], is_reference=True)
        shown = shown_cells(ranked)
        assert ranked[place] in shown
        assert (len(shown), shown[0], shown[-1]) == (MOST_CELLS, ranked[0], ranked[-1])

    def test_a_strip_holds_input_baseline_cells_and_truth(self, whole: SettingResults) -> None:
        (strip,), available, _ = strips(whole, cell_summaries(whole), "bicubic")
        assert isinstance(strip, Strip)
        assert [tile.title for tile in strip.tiles][:2] == ["input", "bicubic"]
        assert strip.tiles[-1].title == "truth"
        assert (len(strip.tiles), available) == (2 + MOST_CELLS + 1, 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("surrogate=my.package.Class", "surrogate=Class", id="a class's path"),
        pytest.param("threshold=0.25 lr=1.5", "threshold=0.25 lr=1.5", id="numbers stay"),
        pytest.param("binarize=[body,up]", "binarize=[body,up]", id="a list stays"),
    ],
)
def test_of_a_dotted_path_the_name_is_shown(text: str, shown: str) -> None:
    assert figures.wrapped(text, 40) == shown
