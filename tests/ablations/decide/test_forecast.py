"""What a study may expect: how its cells are taken to spread, the trainings that follow, and the smallest effect."""

import math
import os
from pathlib import Path

import pytest

from ablations.decide.forecast import (
    EFFECTS_DB,
    Spread,
    forecasts,
    smallest_effect,
    smallest_effect_of_seeds,
    spread_in,
)
from ablations.space.interventions import Pair
from ablations.space.stopping_rule import StoppingRule
from analysis.statistics.expectation import smallest_shown
from analysis.statistics.sequential import Boundary
from bbcu.errors import ConfigError
from tests.harness.deciding import BASELINE_DB, STUDY, leave_result, planned

ROOT_2 = math.sqrt(2)


@pytest.fixture(autouse=True)
def results_need_not_be_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


def leave_scores(outputs: Path, surrogate: str, *above_baseline: float) -> str:
    """Leave results of a cell under the seeds 0, 1, ...; return its key."""
    for seed, score in enumerate(above_baseline):
        leave_result(planned(outputs, surrogate, seed), BASELINE_DB + score)
    return planned(outputs, surrogate, 0).identity[0]


# --- how cells spread -------------------------------------------------------------------------------------------------


def test_cells_of_an_earlier_study_have_their_own_spread_and_others_the_median(tmp_path: Path) -> None:
    first = leave_scores(tmp_path, "quadratic", 1.0, 1.2)
    second = leave_scores(tmp_path, "clip", 2.0, 2.4)
    third = leave_scores(tmp_path, "identity", 3.0, 3.8)
    alone = leave_scores(tmp_path, "ede", 4.0)
    spread = spread_in(tmp_path, STUDY)
    found = [spread.of(cell) for cell in (first, second, third, alone, "0" * 64)]
    assert found == pytest.approx([0.2 / ROOT_2, 0.4 / ROOT_2, 0.8 / ROOT_2, 0.4 / ROOT_2, 0.4 / ROOT_2])
    assert spread.means[alone] == pytest.approx(BASELINE_DB + 4.0)


def test_a_single_spread_holds_for_every_cell() -> None:
    assert Spread(0.3).of("any") == 0.3
    assert Spread(0.3).in_words(["any"]) == "by 0.3 dB"


def test_it_is_said_where_the_spread_of_cells_comes_from() -> None:
    spread = Spread(0.3, {"a": 0.1, "b": 0.5}, study="before")
    assert spread.in_words(["a", "b"]) == "each as in study before"
    assert spread.in_words(["c"]) == "by the median of study before, 0.3 dB"
    assert spread.in_words(["a", "c"]) == (
        "each as in study before, or if they are not in it by the median of study before, 0.3 dB"
    )


def test_the_correlation_within_a_seed_is_that_of_the_earlier_study(tmp_path: Path) -> None:
    leave_scores(tmp_path, "quadratic", 1.0, 1.2, 1.1)
    leave_scores(tmp_path, "clip", 2.0, 2.4, 2.2)
    assert spread_in(tmp_path, STUDY).correlation == pytest.approx(0.99)
    leave_scores(tmp_path, "identity", 3.4, 3.0, 3.2)
    assert spread_in(tmp_path, STUDY).correlation == 0.0


def test_a_study_that_does_not_exist_is_an_error_that_names_those_that_do(tmp_path: Path) -> None:
    leave_scores(tmp_path, "quadratic", 1.0)
    with pytest.raises(ConfigError, match=rf"spread_from=none: no such study in .*; available: {STUDY}$"):
        spread_in(tmp_path, "none")


def test_a_study_without_two_seeds_in_any_cell_is_an_error(tmp_path: Path) -> None:
    leave_scores(tmp_path, "quadratic", 1.0)
    leave_scores(tmp_path, "clip", 1.0)
    with pytest.raises(ConfigError, match=r"none of its cells has results of two seeds, so it shows no spread$"):
        spread_in(tmp_path, STUDY)


# --- trainings --------------------------------------------------------------------------------------------------------

ONE: tuple[Pair, ...] = (("reference", "a"), ("reference", "b"))
OTHER: tuple[Pair, ...] = (("other reference", "c"),)
CELLS = ("reference", "a", "b", "other reference", "c", "in none")
RULE = StoppingRule((3, 4, 5), 0, 0.05, (ONE, OTHER))


def test_trainings_are_predicted_for_the_margin_and_round_effects() -> None:
    found = forecasts(RULE, CELLS, Spread(0.02), paired=False)
    assert [each.effects for each in found] == ["0 dB", "0.05 dB", "0.1 dB", "0.2 dB", "0.5 dB", "1 dB"]
    at_0_1 = StoppingRule((3, 4), 0, 0.1, (ONE,))
    assert len(forecasts(at_0_1, CELLS, Spread(0.02), paired=False)) == len(EFFECTS_DB)


def test_trainings_are_those_of_all_families_and_of_cells_in_none() -> None:
    huge = forecasts(RULE, CELLS, Spread(1e-4), paired=False)[-1]
    assert (huge.trainings, huge.trainings_if_fixed) == (len(CELLS) * 3, len(CELLS) * 5)
    assert (huge.decided, huge.decided_if_fixed) == (1.0, 1.0)
    hopeless = forecasts(RULE, CELLS, Spread(1000.0), paired=False)[-1]
    assert hopeless.trainings == pytest.approx(5 * 5 + 3, abs=0.1)
    assert hopeless.decided < 0.1


def test_the_effects_of_an_earlier_study_are_a_case_if_it_has_all_compared_cells() -> None:
    means = {"reference": 30.0, "a": 31.0, "b": 30.0, "other reference": 32.0, "c": 32.0}
    known = forecasts(RULE, CELLS, Spread(0.001, {}, means, study="before"), paired=False)
    assert known[-1].effects == "as in study before"
    assert known[-1].trainings == pytest.approx(len(CELLS) * 3, abs=0.1)
    lacking = {cell: mean for cell, mean in means.items() if cell != "c"}
    assert len(forecasts(RULE, CELLS, Spread(0.001, {}, lacking, study="before"), paired=False)) == len(known) - 1


def test_correlation_within_seeds_saves_trainings_only_where_cells_are_paired() -> None:
    def at_0_1(correlation: float, paired: bool) -> float:
        return forecasts(RULE, CELLS, Spread(0.05, correlation=correlation), paired=paired)[2].trainings

    assert at_0_1(0.9, False) == at_0_1(0.0, False)
    assert at_0_1(0.9, True) < at_0_1(0.0, True) - 1


def test_the_smallest_effect_is_that_of_the_differences_that_are_tested() -> None:
    by_rule, fixed = Boundary(RULE.looks), Boundary((5,))
    assert smallest_effect(RULE, Spread(0.1), paired=False) == smallest_shown(0.1, by_rule, len(ONE))
    assert smallest_effect_of_seeds(5, 8, Spread(0.1), paired=False) == smallest_shown(0.1, fixed, 8)
    paired = smallest_effect_of_seeds(5, 8, Spread(0.1, correlation=0.5), paired=True)
    assert paired == pytest.approx(smallest_shown(0.1, fixed, 8, paired=True))
