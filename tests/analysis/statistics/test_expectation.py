"""What a study with a stopping rule may expect: verdicts as those of real studies, and the trainings they take."""

import math
import sys

import numpy as np
import pytest

from analysis.statistics.estimates import Outcome, detectable_errors, power_of_difference
from analysis.statistics.expectation import (
    Truth,
    closed,
    correlated,
    differences,
    effects_of,
    expectation,
    normal,
    single_tests,
    smallest_shown,
)
from analysis.statistics.sequential import (
    DIFFERENT,
    EQUIVALENT,
    UNDECIDED,
    Boundary,
    Pair,
    Progress,
    Trials,
    falls,
    judged,
)

LOOKS = (3, 4, 5, 6)
BOUNDARY = Boundary(LOOKS)
MARGIN = 0.05

PAIRS: tuple[Pair, ...] = (("a", "b"), ("a", "c"), ("d", "c"))
PLACES = np.array([[0, 1], [0, 2], [3, 2]])
MEANS = {"a": 30.0, "b": 30.0, "c": 30.1, "d": 31.0}
EFFECTS = np.array(list(effects_of(PAIRS, MEANS).values()))

KINDS = {Outcome.BETTER: DIFFERENT, Outcome.WORSE: DIFFERENT, Outcome.EQUIVALENT: EQUIVALENT}


def noise(studies: int, spread: float = 0.02) -> np.ndarray:
    return spread * correlated(normal, np.random.default_rng(1), (studies, len(MEANS), LOOKS[-1]), 0.5)


# --- simulated studies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_simulated_studies_are_decided_as_real_ones_are(paired: bool) -> None:
    drawn = noise(studies=12)
    found = closed(differences(drawn, PLACES, EFFECTS, LOOKS, paired=paired), LOOKS, BOUNDARY, MARGIN)
    assert {UNDECIDED, DIFFERENT, EQUIVALENT} == set(found.kinds.ravel().tolist())
    assert len(set(found.seeds.ravel().tolist())) > 2
    for study, seeds, kinds, means in zip(drawn, found.seeds, found.kinds, found.estimate.mean, strict=True):
        scores = {
            cell: dict(enumerate((mean + own).tolist())) for (cell, mean), own in zip(MEANS.items(), study, strict=True)
        }
        real = judged(PAIRS, Trials(scores, scores, {}), BOUNDARY, 0, MARGIN, paired=paired)
        assert [each.look for each in real.values()] == seeds.tolist()
        assert [KINDS.get(each.verdict.outcome, UNDECIDED) for each in real.values()] == kinds.tolist()
        assert [each.verdict.estimate.mean for each in real.values()] == pytest.approx(means.tolist(), abs=1e-6)


def test_scores_that_do_not_vary_but_differ_test_nothing() -> None:
    still = differences(np.zeros((1, 4, LOOKS[-1])), PLACES, np.array([0.0, 0.1, -0.9]), LOOKS)
    assert closed(still, LOOKS, BOUNDARY, MARGIN).kinds.tolist() == [[EQUIVALENT, UNDECIDED, UNDECIDED]]
    scores = {cell: dict.fromkeys(range(LOOKS[-1]), mean) for cell, mean in MEANS.items()}
    real = judged(PAIRS, Trials(scores, scores, {}), BOUNDARY, 0, MARGIN)
    assert [each.progress for each in real.values()] == [Progress.DECIDED, Progress.LAST_LOOK, Progress.LAST_LOOK]


def test_the_p_that_are_left_out_change_no_verdict() -> None:
    found = differences(noise(studies=300), PLACES, EFFECTS, LOOKS)
    every = falls(found.p, found.p_equivalence(MARGIN), BOUNDARY)
    some = single_tests(found, BOUNDARY, MARGIN)
    assert np.mean(some[0] == 1) > 0.3
    assert all(np.array_equal(*pair) for pair in zip(every, falls(*some, BOUNDARY), strict=True))


def test_a_rule_with_fewer_looks_makes_only_these() -> None:
    found = closed(differences(noise(studies=50), PLACES, EFFECTS, LOOKS), LOOKS, Boundary((4, 6)), MARGIN)
    assert set(found.seeds.ravel().tolist()) == {4, 6}


def test_noise_correlates_within_a_seed() -> None:
    first, second, *_ = np.moveaxis(correlated(normal, np.random.default_rng(0), (20_000, 3, 2), 0.4), 1, 0)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] == pytest.approx(0.4, abs=0.02)
    assert first.std() == pytest.approx(1, abs=0.02)


# --- what one study may expect ----------------------------------------------------------------------------------------


def truth(effect: float, spread: float = 0.01, correlation: float = 0.0, others: int = 0) -> Truth:
    """Two comparisons with one reference, and other cells in none."""
    cells = ["reference", "one", "two", *(f"other {number}" for number in range(others))]
    pairs: list[Pair] = [("reference", "one"), ("reference", "two")]
    return Truth(dict.fromkeys(pairs, effect), dict.fromkeys(cells, spread), correlation)


def test_a_huge_effect_takes_the_seeds_of_the_first_look() -> None:
    found = expectation(truth(1000.0, others=4), BOUNDARY, MARGIN, studies=20)
    assert (found.trainings, found.trainings_if_fixed) == (7 * 3, 7 * 6)
    assert [(each.decided, each.seeds, each.decided_if_fixed) for each in found.comparisons] == [(1.0, 3.0, 1.0)] * 2


def test_cells_in_no_comparison_have_the_seeds_of_the_first_look() -> None:
    hopeless = expectation(truth(0.0, spread=1000.0, others=4), BOUNDARY, MARGIN, studies=20)
    assert hopeless.trainings == 3 * 6 + 4 * 3


def test_the_reference_has_the_seeds_of_the_last_comparison_that_is_closed() -> None:
    effects: dict[Pair, float] = {("reference", "one"): 1000.0, ("reference", "two"): 0.0}
    spreads = {"reference": 0.01, "one": 0.01, "two": 1000.0}
    assert expectation(Truth(effects, spreads), BOUNDARY, MARGIN, studies=20).trainings == 6 + 3 + 6


def test_without_a_comparison_every_cell_has_the_seeds_of_the_first_look() -> None:
    found = expectation(Truth({}, {"a": 0.1, "b": 0.1}), BOUNDARY, MARGIN)
    assert (found.trainings, found.trainings_if_fixed, found.comparisons) == (6.0, 12, ())


def test_the_fixed_plan_finds_what_its_power_says() -> None:
    pair: Pair = ("a", "b")
    (found,) = expectation(Truth({pair: 2.0}, {"a": 1.0, "b": 1.0}), BOUNDARY, 1e-9).comparisons
    power = power_of_difference(math.sqrt(2 / 6), 10, 2.0)
    assert found.decided_if_fixed == pytest.approx(power, abs=0.03)
    assert power - 0.05 < found.decided < power + 0.03
    assert 3 < found.seeds < 6


def test_an_estimate_at_an_early_look_exceeds_the_truth() -> None:
    found = expectation(truth(0.05), BOUNDARY, MARGIN)
    assert all(0 < each.excess < 0.01 for each in found.comparisons)
    assert all(math.isnan(each.excess) for each in expectation(truth(0.0), BOUNDARY, MARGIN, studies=5).comparisons)


def test_pairing_correlation_margin_and_noise_matter() -> None:
    base = truth(0.15, spread=0.05)
    correlated_truth = truth(0.15, spread=0.05, correlation=0.9)
    found = {
        expectation(base, BOUNDARY, MARGIN, studies=200).trainings,
        expectation(base, BOUNDARY, MARGIN, studies=200, paired=True).trainings,
        expectation(correlated_truth, BOUNDARY, MARGIN, studies=200).trainings,
        expectation(correlated_truth, BOUNDARY, MARGIN, studies=200, paired=True).trainings,
        expectation(base, BOUNDARY, 1.0, studies=200).trainings,
        expectation(Truth(base.effects, base.spreads, 0.0, uniform), BOUNDARY, MARGIN, studies=200).trainings,
    }
    assert len(found) == 6


def uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.uniform(-math.sqrt(3), math.sqrt(3), shape)


def test_the_same_study_may_expect_the_same() -> None:
    first, second = (expectation(truth(0.02), BOUNDARY, MARGIN, studies=100) for _ in range(2))
    assert first == second


def test_a_large_study_is_simulated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = expectation(truth(0.02), BOUNDARY, MARGIN)
    monkeypatch.setattr(sys.modules[expectation.__module__], "MOST_AT_ONCE", 4000)
    parts = expectation(truth(0.02), BOUNDARY, MARGIN)
    assert parts != whole
    assert parts.trainings == pytest.approx(whole.trainings, abs=0.3)
    assert parts.comparisons[0].decided == pytest.approx(whole.comparisons[0].decided, abs=0.05)


# --- the smallest effect ----------------------------------------------------------------------------------------------


def test_the_smallest_effect_of_a_fixed_plan_is_that_of_the_power_of_the_test() -> None:
    shown = smallest_shown(0.1, Boundary((5,)), 4)
    assert shown == pytest.approx(0.1 * math.sqrt(2 / 5) * detectable_errors(8.0, 0.05 / 4), rel=1e-6)
    paired = smallest_shown(0.1, Boundary((5,)), 4, paired=True)
    assert paired == pytest.approx(0.1 * math.sqrt(1 / 5) * detectable_errors(4.0, 0.05 / 4), rel=1e-6)


def test_the_last_look_shows_the_smallest_effect_with_80_percent_power() -> None:
    shown = smallest_shown(1.0, BOUNDARY, 1)
    error, freedom, level = math.sqrt(2 / 6), 10, BOUNDARY.level(6, 0.05, 2)
    assert power_of_difference(error, freedom, shown, level) == pytest.approx(0.8, abs=1e-4)
    assert shown > smallest_shown(1.0, Boundary((6,)), 1)
