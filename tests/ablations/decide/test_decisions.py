"""What a study with a stopping rule has decided as a whole."""

import pytest

from analysis.statistics.sequential import Judged, Progress
from tests.harness.decisions import comparison, decisions, judged, still_open, worse

LAST = judged(Progress.LAST_LOOK, 12)


@pytest.mark.parametrize(
    ("on", "progress", "look"),
    [
        pytest.param({}, Progress.OPEN, 0, id="before the first result"),
        pytest.param({"Set5": still_open(0)}, Progress.OPEN, 0, id="before the first look"),
        pytest.param({"Set5": worse(3), "Set14": worse(6)}, Progress.DECIDED, 6, id="decided at two looks"),
        pytest.param({"Set5": worse(3), "Set14": still_open(6)}, Progress.OPEN, 6, id="open on one test set"),
        pytest.param({"Set5": worse(3), "Set14": LAST}, Progress.LAST_LOOK, 12, id="undecided on one test set"),
        pytest.param({"Set5": judged(Progress.NOTHING, 3)}, Progress.NOTHING, 3, id="all collapsed"),
        pytest.param({"Set5": judged(Progress.NO_RESULT, 3)}, Progress.NO_RESULT, 3, id="all failed"),
    ],
)
def test_a_comparison_is_decided_if_it_is_on_every_test_set(
    on: dict[str, Judged], progress: Progress, look: int
) -> None:
    found = comparison("clip", on)
    assert (found.progress, found.look) == (progress, look)


def test_comparisons_are_counted_with_the_open_ones_last() -> None:
    found = decisions(
        comparison("a", {"Set5": still_open(12)}), comparison("b", {"Set5": LAST}), comparison("c", {"Set5": worse(3)})
    )
    assert list(found.counts.items()) == [(Progress.DECIDED, 1), (Progress.LAST_LOOK, 1), (Progress.OPEN, 1)]


@pytest.mark.parametrize(
    ("looks", "following"),
    [
        pytest.param((), 3, id="the first"),
        pytest.param((4,), 6, id="the one after"),
        pytest.param((4, 3), 4, id="the earliest of two tasks"),
    ],
)
def test_the_next_look_is_the_first_at_which_an_open_comparison_may_be_decided(
    looks: tuple[int, ...], following: int
) -> None:
    found = [comparison(f"cell {look}", {"Set5": still_open(look)}) for look in looks]
    assert decisions(*(found or [comparison("clip", {})])).next_look == following


def test_there_is_no_next_look_if_nothing_is_open() -> None:
    assert decisions(comparison("clip", {"Set5": worse(3)})).next_look is None


def test_the_rule_may_ask_for_the_seeds_of_open_comparisons_up_to_the_last_look() -> None:
    closed, left = comparison("clip", {"Set5": worse(3)}), comparison("ede", {"Set5": still_open(3)})
    asked = [(cell, seed) for cell in ("reference", "clip", "ede") for seed in (10, 11, 12)]
    asked += [("reference", 13), ("ede", 13)]
    assert decisions(closed, left, looks=(3, 4, 5, 7), first_seed=10).possible(asked) == [
        [("reference", 14), ("ede", 14)],
        [("reference", 15), ("ede", 15), ("reference", 16), ("ede", 16)],
    ]


def test_a_comparison_is_named_with_its_task_if_the_study_has_several() -> None:
    one, other = comparison("clip", {}), comparison("clip", {}, pair=("r", "c"), task="sr_x4")
    assert decisions(one).title(one) == "clip"
    assert decisions(one, other).title(other) == "clip, sr_x4"
