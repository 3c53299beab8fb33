"""The sample pictures: which cells and which window a strip shows."""

import dataclasses

import numpy as np
import pytest

from analysis.report.pictures import MOST_CELLS, Strip, Tile, disagreement, shown_cells, strips, zoomed
from analysis.study.tasks import TaskResults, split_by_task
from tests.harness.judging import summaries
from tests.harness.studies import components_study, read_back


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TaskResults:
    """A whole study of the components under two seeds, with samples."""
    finished, left_out = components_study(range(2))
    study = read_back(tmp_path_factory.mktemp("whole"), finished, samples=True, left_out=left_out)
    (results,) = split_by_task(study)
    return results


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

    @pytest.mark.parametrize("place", range(9))
    def test_the_cell_that_others_are_measured_against_is_always_shown(self, whole: TaskResults, place: int) -> None:
        ranked = [dataclasses.replace(cell, is_reference=False) for cell in summaries(whole)]
        ranked[place] = dataclasses.replace(ranked[place], is_reference=True)
        shown = shown_cells(ranked)
        assert ranked[place] in shown
        assert (len(shown), shown[0], shown[-1]) == (MOST_CELLS, ranked[0], ranked[-1])

    def test_a_strip_holds_input_baseline_cells_and_truth(self, whole: TaskResults) -> None:
        (strip,), available, _ = strips(whole, summaries(whole), "bicubic")
        assert isinstance(strip, Strip)
        assert [tile.title for tile in strip.tiles][:2] == ["input", "bicubic"]
        assert strip.tiles[-1].title == "truth"
        assert (len(strip.tiles), available) == (2 + MOST_CELLS + 1, 1)
