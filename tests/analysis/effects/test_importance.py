"""Which keys mattered to the score among the cells that a search tried, and how its report shows that."""

import dataclasses
import itertools
from collections.abc import Sequence

import pytest

from analysis.effects.importance import FEWEST_CELLS, Importance, importances
from analysis.report.importance import MOST_DRAWN, importance_figure, importance_frame
from analysis.report.page import compose
from tests.harness.judging import only_task
from tests.harness.studies import Trial, in_memory, trial

SEARCH = {"name": "search"}
GAIN = {"blocks": {1: 0.0, 2: 0.3, 4: 0.4}, "residual": {True: 1.0, False: 0.0}, "threshold": {True: 0.0, False: 0.0}}
"""What each level adds to the PSNR in dB: the residual much, blocks less, the threshold nothing."""


def tried(count: int = 12, seeds: Sequence[int] = (0,), spread: float = 0.0) -> list[Trial]:
    """The first cells of a search over three keys; the PSNR of a seed is that much off."""
    found = []
    for levels in list(itertools.product(*GAIN.values()))[:count]:
        blocks, residual, threshold = levels
        psnr = 30 + sum(GAIN[key][level] for key, level in zip(GAIN, levels, strict=True))
        for seed in seeds:
            each = trial(seed, psnr + spread * (seed - 1), residual=residual, threshold=threshold)
            found.append(dataclasses.replace(each, others={"blocks": blocks, "channels": 8}))
    return found


def of(trials: Sequence[Trial]) -> list[Importance] | str:
    return importances(only_task(in_memory(trials, design=SEARCH)))


def test_the_key_that_decides_the_score_comes_first_and_one_without_effect_has_nothing() -> None:
    found = of(tried())
    assert not isinstance(found, str)
    assert [(one.key, one.levels) for one in found] == [("residual", 2), ("blocks", 3), ("threshold", 2)]
    assert sum(one.share for one in found) == pytest.approx(1)
    assert found[0].share > 0.5 > found[1].share > found[2].share == 0


def test_a_cell_counts_with_its_mean_over_the_seeds() -> None:
    assert of(tried(seeds=(0, 1, 2), spread=0.4)) == of(tried())


def test_a_key_counts_by_what_it_does_among_the_best_cells_and_not_among_the_worst() -> None:
    """Blocks help only beside a residual, and the threshold only where there is none."""
    found = []
    for blocks, residual, threshold in itertools.product((1, 2, 4), (True, False), (True, False)):
        psnr = 32 + 0.2 * blocks if residual else 30 + 0.2 * threshold
        each = trial(0, psnr, residual=residual, threshold=threshold)
        found.append(dataclasses.replace(each, others={"blocks": blocks, "channels": 8}))
    shares = {one.key: one.share for one in of(found) if isinstance(one, Importance)}
    assert shares["blocks"] > 2 * shares["threshold"]


def test_the_order_of_the_trials_changes_nothing() -> None:
    assert of(tried()[::-1]) == of(tried())


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        pytest.param(tried(FEWEST_CELLS - 1), "fewer than 10 cells", id="few cells"),
        pytest.param(
            [dataclasses.replace(each, psnr_db={"Set5": 30.0}) for each in tried()], "the same score", id="one score"
        ),
        pytest.param(
            [dataclasses.replace(trial(0, 30 + n), others={"channels": 8 * n}) for n in range(1, 12)],
            "fewer than two vary",
            id="one key",
        ),
    ],
)
def test_why_nothing_is_estimated(trials: Sequence[Trial], reason: str) -> None:
    found = of(trials)
    assert isinstance(found, str)
    assert reason in found


def test_the_report_of_a_search_shows_it_as_a_hint() -> None:
    files = compose(in_memory(tried(), design=SEARCH))
    page = files["report.md"].decode()
    assert "## Which factors mattered to the search" in page
    assert "**This is a hint, no verdict**" in page
    assert "](importance.png)" in page
    lines = files["importance.csv"].decode().splitlines()
    assert lines[0] == "key,levels,importance"
    assert [line.split(",")[0] for line in lines[1:]] == ["residual", "blocks", "threshold"]
    assert "importance.svg" in files


def test_the_report_of_a_small_search_says_why_it_does_not() -> None:
    files = compose(in_memory(tried(4), design=SEARCH))
    assert "Which keys mattered is not estimated from fewer than 10 cells." in files["report.md"].decode()
    assert "importance.png" not in files


def test_the_report_of_another_design_has_none() -> None:
    files = compose(in_memory(tried()))
    assert "mattered" not in files["report.md"].decode()
    assert "importance.csv" not in files


def test_a_figure_has_no_more_keys_than_can_be_read() -> None:
    many = [Importance(f"key{number:02}", 2, 1 / 40) for number in range(40)]
    drawn = importance_figure(many).svg
    assert drawn is not None
    assert drawn != importance_figure(many[: MOST_DRAWN - 1]).svg
    assert drawn == importance_figure(many[:MOST_DRAWN]).svg
    assert len(importance_frame(many)) == 40
