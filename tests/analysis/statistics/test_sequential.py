"""Verdicts at several looks: the boundary, Holm's procedure over the looks, and the comparisons of a study."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import special, stats

from analysis.statistics import estimates
from analysis.statistics.estimates import ALPHA, Outcome, combination, holm, student
from analysis.statistics.sequential import (
    DIFFERENT,
    EQUIVALENT,
    UNDECIDED,
    Boundary,
    Judged,
    Pair,
    Progress,
    Trials,
    corrected,
    crossing,
    falls,
    judged,
)

LOOKS = tuple(range(3, 13))
BOUNDARY = Boundary(LOOKS)


# --- the boundary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "level"),
    [((3, 4, 5, 6, 7, 8, 9, 10), 0.0120), ((3, 5, 8), 0.0199)],
)
def test_one_level_for_all_looks_is_that_of_an_independent_simulation(looks: tuple[int, ...], level: float) -> None:
    """Four million simulated paths gave 0.05011 and 0.05026 at the levels 0.01203 and 0.0199, +- 0.00011."""
    assert Boundary(looks, 0.0, 0.0).level(looks[0], 0.05, 2) == pytest.approx(level, rel=0.005)


def test_tests_at_5_percent_after_each_of_3_to_10_seeds_err_in_one_study_of_six() -> None:
    assert crossing([0.05] * 8, range(3, 11), 2) == pytest.approx(0.167, abs=0.0005)


def test_many_values_come_to_the_level_of_pocock_for_normal_ones() -> None:
    """Pocock (1977): 0.0294 for two equally spaced looks."""
    assert Boundary((20, 40), 0.0, 0.0).level(20, 0.05, 2) == pytest.approx(0.0294, rel=0.02)


def test_a_single_look_is_the_test_with_a_fixed_number() -> None:
    alone = Boundary((5,))
    assert alone.level(5, 0.05, 2) == pytest.approx(0.05, rel=1e-6)
    assert float(alone.repeated_p(5, 0.02, 1)) == pytest.approx(0.02, rel=1e-6)


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 20])
def test_all_looks_together_err_as_often_as_they_may(sides: int, alpha: float) -> None:
    """By counting simulated paths, independently of the integration."""
    draws = np.random.default_rng(3).standard_normal((200_000, LOOKS[-1]))
    hit = np.zeros(len(draws), dtype=bool)
    for look in LOOKS:
        found = student(draws[:, :look])
        one_sided = special.stdtr(look - 1, -found.mean / found.error)
        p = found.p if sides == 2 else one_sided
        hit |= p <= BOUNDARY.level(look, alpha, sides)
    assert hit.mean() == pytest.approx(alpha, abs=3.5 * math.sqrt(alpha / len(draws)))


def test_the_repeated_p_is_the_overall_level_at_which_the_boundary_is_crossed() -> None:
    for alpha in (0.2, 0.05, 0.001):
        for look in (3, 7, 12):
            level = BOUNDARY.level(look, alpha, 2)
            assert float(BOUNDARY.repeated_p(look, level, 2)) == pytest.approx(alpha, rel=1e-5)


@pytest.mark.parametrize("looks", [(2, 3, 4), (3, 4), (10, 15, 20)])
@pytest.mark.parametrize("sides", [1, 2])
def test_a_repeated_p_is_no_less_than_that_of_the_single_test(looks: tuple[int, ...], sides: int) -> None:
    p = np.append(np.geomspace(1e-6, 1.0, 200), 1.0)
    assert np.all(Boundary(looks).repeated_p(looks[-1], p, sides) >= p * (1 - 1e-12))


def test_a_one_sided_level_above_a_half_is_crossed_as_often_as_simulated() -> None:
    """Two million simulated paths crossed in 0.8998 of the cases, +- 0.0002."""
    boundary = Boundary((2, 3, 4))
    levels = [0.9 * boundary.weight(look) for look in boundary.looks]
    assert crossing(levels, boundary.looks, 1) == pytest.approx(0.8998, abs=0.0005)


def test_a_greater_overall_level_is_a_greater_level_at_every_look() -> None:
    """Holm's procedure over the looks needs it: what is rejected at a level is rejected at every greater one."""
    levels = [[BOUNDARY.level(look, alpha, 2) for alpha in np.geomspace(1e-6, 0.9, 40)] for look in LOOKS]
    assert all(np.all(np.diff(found) > 0) for found in levels)


def test_most_of_the_error_is_kept_for_the_last_look() -> None:
    assert BOUNDARY.level(12, 0.05, 2) > 0.9 * 0.05
    assert 0.0004 < BOUNDARY.level(3, 0.05, 2) < 0.0005


def test_an_untested_p_stays_unknown() -> None:
    assert math.isnan(float(BOUNDARY.repeated_p(3, math.nan, 2)))


@pytest.mark.parametrize("looks", [(), (1, 2), (3, 3), (5, 4)])
def test_looks_ascend_from_two_seeds_or_more(looks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        Boundary(looks)


# --- the family -------------------------------------------------------------------------------------------------------


def test_what_was_rejected_before_makes_the_rest_easier() -> None:
    assert corrected([0.02, 0.9], [False, False]).tolist() == pytest.approx([0.04, 0.9])
    assert corrected([0.02, 0.9], [False, True]).tolist() == pytest.approx([0.02, 0.0])


def test_what_cannot_be_tested_keeps_its_place() -> None:
    assert corrected([0.02, math.nan, math.nan], [False] * 3).tolist() == pytest.approx([0.06, 1.0, 1.0])


def test_each_comparison_falls_at_its_first_significant_look_and_stays() -> None:
    small, none = 1e-12, 1.0
    different = np.full((len(LOOKS), 3), none)
    different[0, 0] = different[4, 1] = small
    equivalent = np.full_like(different, none)
    equivalent[6, 0] = equivalent[6, 2] = small
    looks, kinds = falls(different, equivalent, BOUNDARY)
    assert looks.tolist() == [0, 4, 6]
    assert kinds.tolist() == [DIFFERENT, DIFFERENT, EQUIVALENT]


def test_an_undecided_comparison_ends_at_the_last_look() -> None:
    looks, kinds = falls(np.full((10, 1), 0.5), np.full((10, 1), 0.5), BOUNDARY)
    assert (looks.tolist(), kinds.tolist()) == ([9], [UNDECIDED])


def test_a_single_look_is_holms_procedure() -> None:
    draw = np.random.default_rng(0)
    p = draw.uniform(0, 0.05, (50, 1, 8)) ** 1.5
    _, kinds = falls(p, np.ones_like(p), Boundary((4,)))
    assert np.array_equal(kinds == DIFFERENT, holm(p[:, 0]) < ALPHA)


# --- the comparisons of a study ---------------------------------------------------------------------------------------

PAIR: Pair = ("reference", "ablated")
OTHER: Pair = ("reference", "other")


def spread(mean: float, seeds: int, sd: float = 0.05, first: int = 0) -> dict[int, float]:
    """Scores with this mean and standard deviation at every even number of seeds, nearly so at odd ones."""
    return {first + seed: mean + sd * (1 if seed % 2 else -1) for seed in range(seeds)}


def trials(scores: Mapping[str, Mapping[int, float]], **collapsed: tuple[int, ...]) -> Trials:
    return Trials(scores, {cell: set(found) for cell, found in scores.items()}, collapsed)


def one(scores: Mapping[str, Mapping[int, float]], **collapsed: tuple[int, ...]) -> Judged:
    return judged([PAIR], trials(scores, **collapsed), BOUNDARY, 0, 0.05)[PAIR]


def test_a_large_effect_is_decided_at_the_first_look() -> None:
    found = one({"reference": spread(34, 3), "ablated": spread(32, 3)})
    assert (found.progress, found.look, found.verdict.look) == (Progress.DECIDED, 3, 3)
    assert found.verdict.outcome is Outcome.WORSE
    assert found.verdict.estimate.mean == pytest.approx(-2)


def test_a_verdict_rests_on_the_seeds_of_its_look() -> None:
    """The reference has further seeds, of other comparisons; they change nothing."""
    few = one({"reference": spread(34, 3), "ablated": spread(32, 3)})
    many = one({"reference": {**spread(34, 3), **spread(40, 9, first=3)}, "ablated": spread(32, 3)})
    assert few == many


def test_a_verdict_stays_whatever_comes_later() -> None:
    ablated = {**spread(32, 3), **spread(34, 9, first=3)}
    found = one({"reference": spread(34, 12), "ablated": ablated})
    assert (found.look, found.verdict.outcome) == (3, Outcome.WORSE)


def test_the_interval_is_the_repeated_one_and_agrees_with_the_p() -> None:
    draw = np.random.default_rng(1)
    for effect in (0.0, 0.1, 0.2, 0.3, 0.5):
        scores = {
            "reference": dict(enumerate(draw.normal(34, 0.05, 12))),
            "ablated": dict(enumerate(draw.normal(34 + effect, 0.05, 12))),
        }
        found = one(scores)
        estimate = found.verdict.estimate
        assert (estimate.low > 0 or estimate.high < 0) == (estimate.p < ALPHA)
        reach = (estimate.high - estimate.low) / 2 / estimate.error
        assert reach == pytest.approx(stats.t.isf(BOUNDARY.level(found.look, 0.05, 2) / 2, estimate.freedom), rel=1e-5)


def test_an_incomplete_look_decides_nothing() -> None:
    ablated = spread(33.99, 4)
    del ablated[3]
    found = one({"reference": spread(34, 4), "ablated": ablated})
    assert (found.progress, found.look) == (Progress.OPEN, 3)


def test_before_the_first_look_nothing_is_tested() -> None:
    found = one({"reference": spread(34, 3), "ablated": spread(32, 2)})
    assert (found.progress, found.look, found.verdict.outcome) == (Progress.OPEN, 0, Outcome.UNDECIDED)
    assert found.verdict.reason == "before the first look, at 3 seeds"


def test_a_failed_trial_is_missing_and_is_not_waited_for() -> None:
    scores = {"reference": spread(34, 3), "ablated": {0: 31.9, 2: 32.1}}
    known = Trials(scores, {"reference": {0, 1, 2}, "ablated": {0, 1, 2}}, {})
    found = judged([PAIR], known, BOUNDARY, 0, 0.05)[PAIR]
    assert (found.look, found.verdict.estimate.n) == (3, 2)


def test_a_cell_without_a_score_closes_its_comparisons() -> None:
    known = Trials({"reference": spread(34, 3)}, {"reference": {0, 1, 2}, "ablated": {0, 1, 2}}, {})
    found = judged([PAIR], known, BOUNDARY, 0, 0.05)[PAIR]
    assert (found.progress, found.look) == (Progress.NO_RESULT, 3)
    assert found.verdict.reason == "a cell has no score, so nothing was tested"


def test_two_cells_that_learned_nothing_are_closed() -> None:
    found = one({"reference": spread(20, 3), "ablated": spread(18, 3)}, reference=(0, 1, 2), ablated=(0, 1, 2))
    assert (found.progress, found.look, found.verdict.outcome) == (Progress.NOTHING, 3, Outcome.UNDECIDED)


def test_a_cell_that_learned_nothing_can_be_worse() -> None:
    found = one({"reference": spread(34, 3), "ablated": spread(18, 3)}, ablated=(0, 1, 2))
    assert found.verdict.outcome is Outcome.WORSE


def test_a_collapsed_trial_is_never_equivalent() -> None:
    scores = {"reference": spread(34, 12, 0.001), "ablated": spread(34, 12, 0.001)}
    assert one(scores).verdict.outcome is Outcome.EQUIVALENT
    assert one(scores, ablated=(1,)).progress is Progress.RISK


def test_equal_scores_are_equivalent_at_the_first_look() -> None:
    scores = {"reference": {0: 34.0, 1: 34.0, 2: 34.0}, "ablated": {0: 34.0, 1: 34.0, 2: 34.0}}
    assert (one(scores).look, one(scores).verdict.outcome) == (3, Outcome.EQUIVALENT)


def test_what_cannot_be_decided_ends_at_the_last_look_and_says_what_it_would_have_shown() -> None:
    found = one({"reference": spread(34, 12), "ablated": spread(34.03, 12)})
    assert (found.progress, found.look) == (Progress.LAST_LOOK, 12)
    assert 0.05 < found.verdict.detectable < 0.1
    assert f"the last look would have shown {found.verdict.detectable:.2g} dB" in found.verdict.reason


def test_a_difference_is_tested_on_both_sides_and_equivalence_on_one() -> None:
    scores = {"reference": spread(34, 12), "ablated": spread(34.03, 12)}
    found = one(scores).verdict
    p_difference, p_equivalence = single_test(scores, PAIR, 12)
    assert found.p_difference == pytest.approx(float(BOUNDARY.repeated_p(12, p_difference, 2)))
    assert found.p_equivalence == pytest.approx(float(BOUNDARY.repeated_p(12, p_equivalence, 1)))


def test_only_seeds_of_the_rule_count() -> None:
    scores = {"reference": {**spread(10, 5), **spread(34, 3, first=5)}, "ablated": spread(32, 3, first=5)}
    found = judged([PAIR], trials(scores), BOUNDARY, 5, 0.05)[PAIR]
    assert (found.look, found.verdict.outcome, found.verdict.estimate.n) == (3, Outcome.WORSE, 3)


def test_a_decided_comparison_makes_the_next_one_easier() -> None:
    """Beside a decided one, a comparison has the p that it has alone; beside an open one, twice that."""
    scores = {"reference": spread(34, 12), "ablated": spread(34.03, 12)}
    alone = judged([PAIR], trials(scores), BOUNDARY, 0, 0.001)[PAIR]
    beside_decided = judged([PAIR, OTHER], trials({**scores, "other": spread(30, 3)}), BOUNDARY, 0, 0.001)
    beside_open = judged([PAIR, OTHER], trials({**scores, "other": spread(34, 12)}), BOUNDARY, 0, 0.001)
    assert beside_decided[OTHER].look == 3
    assert beside_decided[PAIR].verdict.p_difference == alone.verdict.p_difference
    assert beside_open[PAIR].verdict.p_difference == pytest.approx(2 * alone.verdict.p_difference, rel=1e-6)


def test_paired_scores_are_compared_within_seeds() -> None:
    shared = np.random.default_rng(0).normal(0, 1, 6)
    scores = {
        "reference": dict(enumerate(34 + shared)),
        "ablated": dict(enumerate(33.5 + shared + 0.01 * np.arange(6))),
    }
    assert one(scores).progress is Progress.OPEN
    paired = judged([PAIR], trials(scores), BOUNDARY, 0, 0.05, paired=True)[PAIR]
    assert (paired.progress, paired.verdict.outcome) == (Progress.DECIDED, Outcome.WORSE)


def test_judging_is_the_procedure_that_is_simulated() -> None:
    draw = np.random.default_rng(7)
    cells = ["reference", *(f"cell{number}" for number in range(6))]
    truth = np.array([34, 34, 33.95, 33.9, 33.8, 33.5, 34.01])
    pairs = [("reference", cell) for cell in cells[1:]]
    names = {
        DIFFERENT: {Outcome.BETTER, Outcome.WORSE},
        EQUIVALENT: {Outcome.EQUIVALENT},
        UNDECIDED: {Outcome.UNDECIDED},
    }
    for _ in range(5):
        drawn = draw.normal(truth[:, None], 0.04, (7, 12)).round(6)
        scores = {cell: dict(enumerate(row)) for cell, row in zip(cells, drawn.tolist(), strict=True)}
        found = judged(pairs, trials(scores), BOUNDARY, 0, 0.05)
        tests = [[single_test(scores, pair, look) for pair in pairs] for look in LOOKS]
        p_difference, p_equivalence = np.moveaxis(np.array(tests), -1, 0)
        looks, kinds = falls(p_difference, p_equivalence, BOUNDARY)
        assert [found[pair].look for pair in pairs] == [LOOKS[index] for index in looks]
        assert all(found[pair].verdict.outcome.value in names[kind] for pair, kind in zip(pairs, kinds, strict=True))


def single_test(scores: Mapping[str, Mapping[int, float]], pair: Pair, look: int) -> tuple[float, float]:
    own = {cell: {seed: scores[cell][seed] for seed in range(look)} for cell in pair}
    return estimates.tested(combination({pair[1]: 1.0, pair[0]: -1.0}, own), 0.05)
