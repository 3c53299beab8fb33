"""What may be said of numbers under several seeds."""

import dataclasses
import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.estimates import (
    ALPHA,
    IncompleteDataError,
    Outcome,
    break_even_correlation,
    combination,
    correlation_within_seeds,
    estimate,
    holm,
    over_images,
    power_of_difference,
    power_of_equivalence,
    rank_correlation,
    seeds_for_difference,
    seeds_for_equivalence,
    share,
    student,
    summary,
    verdicts,
)


@pytest.mark.parametrize(
    ("values", "sd"), [([30.0, 31.0, 35.0], math.sqrt((2**2 + 1**2 + 3**2) / 2)), ([30.0], math.nan)]
)
def test_a_summary_has_the_standard_deviation_of_two_values_or_more(values: list[float], sd: float) -> None:
    got = summary(values)
    assert (got.mean, got.sd, got.n) == pytest.approx((sum(values) / len(values), sd, len(values)), nan_ok=True)


def test_interval_and_p_are_those_of_the_t_test() -> None:
    values = [0.09, 0.21, -0.03, 0.3]
    test = stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(0.95)
    got = estimate(values)
    assert (got.low, got.high, got.p) == pytest.approx((interval.low, interval.high, test.pvalue), rel=1e-8)
    assert (got.n, got.freedom) == (4, 3)
    assert got.error == pytest.approx(np.std(values, ddof=1) / 2)


@pytest.mark.parametrize(("value", "p"), [(0.5, 0.0), (0.0, 1.0)])
def test_equal_values_leave_no_width(value: float, p: float) -> None:
    got = estimate([value] * 3)
    assert (got.mean, got.low, got.high, got.n, got.p, got.error) == (value, value, value, 3, p, 0.0)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_seeds_have_no_interval(count: int) -> None:
    got = estimate([1.0] * count)
    assert got.n == count
    assert all(math.isnan(value) for value in (got.low, got.high, got.p))


def test_many_estimates_at_once_are_those_of_one_at_a_time() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.1, (3, 2, 4))
    together = student(values)
    for index in np.ndindex(3, 2):
        alone = estimate(values[index].tolist())
        got = [each[index] for each in (together.mean, together.width, together.p, together.error, together.freedom)]
        assert got == pytest.approx([alone.mean, alone.high - alone.mean, alone.p, alone.error, alone.freedom])


def test_one_seed_that_is_not_a_number_leaves_no_interval() -> None:
    got = estimate([0.1, math.nan, 0.2])
    assert got.n == 3
    assert all(math.isnan(value) for value in (got.mean, got.low, got.high, got.p))


class TestHolm:
    def test_a_worked_example(self) -> None:
        """Ascending: 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, and 1 * 0.04 may not be below 0.06."""
        assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_it_is_the_closed_test_of_bonferroni(self) -> None:
        """A hypothesis falls when every intersection that holds it falls: slow, and the definition."""
        p_values = np.random.default_rng(1).uniform(0, 0.3, 6)
        subsets = [subset for size in range(1, 7) for subset in itertools.combinations(range(6), size)]
        closed = [
            max(min(1.0, len(subset) * min(p_values[list(subset)])) for subset in subsets if index in subset)
            for index in range(6)
        ]
        assert holm(p_values).tolist() == pytest.approx(closed)

    def test_what_was_not_tested_does_not_count(self) -> None:
        got = holm([0.02, math.nan, 0.01])
        assert (got[0], got[2]) == pytest.approx((0.02, 0.02))
        assert math.isnan(got[1])

    def test_families_are_corrected_apart(self) -> None:
        families = np.array([[0.01, 0.04], [0.5, 0.001]])
        assert np.array_equal(holm(families), [holm(family) for family in families])


def test_equivalence_p_is_the_larger_of_two_one_sided_tests() -> None:
    values = [0.01, 0.03, -0.01, 0.02]
    above = stats.ttest_1samp(values, -0.05, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.05, alternative="less").pvalue
    assert student(values).p_equivalence(0.05) == pytest.approx(max(above, below))


@pytest.mark.parametrize(("value", "p"), [(0.0, 0.0), (0.25, 1.0), (0.5, 1.0)])
def test_values_without_spread_are_equivalent_within_the_margin(value: float, p: float) -> None:
    assert student([value, value]).p_equivalence(0.25) == p


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


SCORES = {
    "reference": by_seed(34.1, 34.3, 34.0),
    "ablated": by_seed(33.9, 33.7, 33.95, 33.6),
    "other": by_seed(33.0, 33.2),
    "once": by_seed(33.5),
    "bicubic": by_seed(32.0),
}
DIFFERENCE = {"reference": -1.0, "ablated": 1.0}


class TestCombination:
    def test_of_two_cells_it_is_welchs_test(self) -> None:
        values = [list(SCORES[cell].values()) for cell in ("ablated", "reference")]
        test = stats.ttest_ind(*values, equal_var=False)
        interval = test.confidence_interval()
        got = combination(DIFFERENCE, SCORES)
        assert (got.low, got.high, got.p) == pytest.approx((interval.low, interval.high, test.pvalue), rel=1e-8)
        assert got.n == 3
        assert got.freedom == pytest.approx(test.df)

    def test_of_many_cells_variances_add_up_with_satterthwaites_freedom(self) -> None:
        """The parts w^2 s^2 / n of three cells; each has n - 1 degrees of freedom."""
        weights = {"reference": 1.0, "ablated": -0.5, "other": -0.5}
        samples = {cell: np.array(list(SCORES[cell].values())) for cell in weights}
        parts = {cell: weights[cell] ** 2 * values.var(ddof=1) / len(values) for cell, values in samples.items()}
        freedom = sum(parts.values()) ** 2 / sum(part**2 / (len(samples[cell]) - 1) for cell, part in parts.items())
        got = combination(weights, SCORES)
        assert got.mean == pytest.approx(sum(weights[cell] * samples[cell].mean() for cell in weights))
        assert (got.error, got.freedom) == pytest.approx((math.sqrt(sum(parts.values())), freedom))
        assert got.high - got.mean == pytest.approx(stats.t.ppf(0.975, freedom) * got.error)

    def test_paired_it_is_students_test_within_the_seeds_that_all_cells_have(self) -> None:
        differences = [SCORES["ablated"][seed] - SCORES["reference"][seed] for seed in (0, 1, 2)]
        got = combination(DIFFERENCE, SCORES, paired=True)
        assert astuple(got) == pytest.approx(astuple(estimate(differences)))
        assert (got.n, got.freedom) == (3, 2)

    def test_a_cell_of_weight_0_does_not_matter(self) -> None:
        assert combination({**DIFFERENCE, "once": 0.0, "absent": 0.0}, SCORES) == combination(DIFFERENCE, SCORES)

    def test_a_cell_with_one_seed_leaves_no_interval(self) -> None:
        got = combination({"once": 1.0, "reference": -1.0}, SCORES)
        assert got.n == 1
        assert got.mean == pytest.approx(33.5 - (34.1 + 34.3 + 34.0) / 3)
        assert all(math.isnan(value) for value in (got.low, got.high, got.p, got.error, got.freedom))

    @pytest.mark.parametrize("paired", [False, True])
    def test_a_cell_that_trains_nothing_is_known_exactly(self, paired: bool) -> None:
        """Its one score holds under every seed, so the test is that of the other cell alone."""
        got = combination({"reference": 1.0, "bicubic": -1.0}, SCORES, paired=paired, exact={"bicubic"})
        alone = estimate([34.1 - 32.0, 34.3 - 32.0, 34.0 - 32.0])
        assert astuple(got) == pytest.approx(astuple(alone))

    def test_an_exact_cell_with_two_scores_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"cell 'other' trains nothing but has different scores: \[33.0, 33.2\]"):
            combination({"reference": 1.0, "other": -1.0}, SCORES, exact={"other"})

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("paired", [False, True])
    def test_a_training_that_diverged_is_not_left_out(self, bad: float, paired: bool) -> None:
        got = combination(DIFFERENCE, {**SCORES, "ablated": by_seed(33.9, bad, 33.95)}, paired=paired)
        assert got.n == 3
        assert math.isnan(got.mean)
        assert math.isnan(got.p)

    @pytest.mark.parametrize("paired", [False, True])
    def test_a_cell_without_a_score_leaves_nothing(self, paired: bool) -> None:
        got = combination({"reference": 1.0, "absent": -1.0}, SCORES, paired=paired)
        assert got.n == 0
        assert math.isnan(got.mean)

    @pytest.mark.parametrize(("value", "p"), [(0.5, 0.0), (0.0, 1.0)])
    def test_scores_that_do_not_vary_leave_no_width(self, value: float, p: float) -> None:
        same = {"one": by_seed(34.0 + value, 34.0 + value), "two": by_seed(34.0, 34.0, 34.0)}
        got = combination({"one": 1.0, "two": -1.0}, same)
        assert (got.mean, got.low, got.high, got.n, got.p, got.error) == (value, value, value, 2, p, 0.0)

    def test_the_order_of_cells_and_seeds_does_not_matter(self) -> None:
        turned = {cell: dict(reversed(scores.items())) for cell, scores in reversed(SCORES.items())}
        weights = {"reference": 0.1, "ablated": 0.2, "other": -0.3}
        for paired in (False, True):
            got = combination(dict(reversed(weights.items())), turned, paired=paired)
            assert got == combination(weights, SCORES, paired=paired)


class TestShare:
    @pytest.mark.parametrize(("count", "total"), [(0, 3), (1, 3), (3, 3), (7, 40)])
    def test_it_is_the_exact_interval(self, count: int, total: int) -> None:
        exact = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
        assert astuple(share(count, total)) == pytest.approx((exact.low, exact.high))

    @pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0, 0)])
    def test_more_than_all_is_an_error(self, count: int, total: int) -> None:
        with pytest.raises(ValueError, match=f"{count} of {total} is no share"):
            share(count, total)


class TestCorrelationWithinSeeds:
    def test_of_two_cells_it_is_pearsons(self) -> None:
        one, two = [34.1, 34.3, 34.0], [33.0, 33.4, 33.1]
        got = correlation_within_seeds({"one": by_seed(*one), "two": by_seed(*two)})
        assert got == pytest.approx(stats.pearsonr(one, two).statistic)

    def test_it_is_pooled_over_all_pairs(self) -> None:
        table = np.random.default_rng(0).normal(34, [[0.1], [0.5], [0.2]], (3, 4))
        covariance = np.cov(table)
        pairs = list(itertools.combinations(range(3), 2))
        expected = sum(covariance[pair] for pair in pairs) / sum(
            math.sqrt(covariance[one, one] * covariance[two, two]) for one, two in pairs
        )
        got = correlation_within_seeds({str(row): by_seed(*values) for row, values in enumerate(table.tolist())})
        assert got == pytest.approx(expected)

    def test_only_seeds_that_all_cells_have_count(self) -> None:
        one, two = by_seed(34.1, 34.3, 34.0), by_seed(33.0, 33.4, 33.1)
        longer = {"one": {**one, 3: 20.0}, "two": {**two, 4: 50.0}}
        assert correlation_within_seeds(longer) == correlation_within_seeds({"one": one, "two": two})

    @pytest.mark.parametrize(
        "scores",
        [
            pytest.param({}, id="nothing"),
            pytest.param({"one": by_seed(34.0, 34.1)}, id="one cell"),
            pytest.param({"one": by_seed(34.0), "two": by_seed(33.0)}, id="one seed"),
            pytest.param({"one": by_seed(34.0, 34.1), "two": {7: 33.0, 8: 33.1}}, id="no common seed"),
            pytest.param({"one": by_seed(34.0, 34.1), "two": by_seed(33.0, 33.0)}, id="no spread"),
            pytest.param({"one": by_seed(34.0, 34.1), "two": by_seed(33.0, math.inf)}, id="diverged"),
        ],
    )
    def test_it_may_be_unknown(self, scores: dict[str, dict[int, float]]) -> None:
        assert math.isnan(correlation_within_seeds(scores))


CLEAR, TINY, NOISY = (estimate(each) for each in ([0.30, 0.32, 0.31], [0.001, 0.002, 0.0], [0.10, 0.02, -0.05]))


class TestVerdicts:
    @pytest.mark.parametrize(
        ("differences", "outcome", "words"),
        [
            pytest.param(
                [0.30, 0.32, 0.31], Outcome.BETTER, "+0.310 dB, 95 % interval +0.285 to +0.335, 3 seeds", id="better"
            ),
            pytest.param([-0.30, -0.32, -0.31], Outcome.WORSE, "-0.310 dB", id="worse"),
            pytest.param([0.001, 0.002, 0.0], Outcome.EQUIVALENT, "within 0.05 dB of 0", id="equivalent"),
            pytest.param(
                [0.010, 0.011, 0.012], Outcome.EQUIVALENT, "not 0, but smaller than what matters", id="small, not 0"
            ),
            pytest.param(
                [0.10, 0.02, -0.05],
                Outcome.UNDECIDED,
                "it may be 0, p = 0.64, and it may exceed 0.05 dB; "
                "with 80 % power these seeds would have shown 0.24 dB",
                id="noisy",
            ),
            pytest.param([0.3], Outcome.UNDECIDED, "one seed: its spread is unknown", id="one seed"),
            pytest.param([], Outcome.UNDECIDED, "a cell has no score", id="no seed"),
            pytest.param([0.1, math.nan], Outcome.UNDECIDED, "not a finite number", id="diverged"),
            pytest.param([0.2, 0.2, 0.2], Outcome.UNDECIDED, "they are not replicates", id="no spread"),
            pytest.param([0.0, 0.0], Outcome.EQUIVALENT, "the same score under each of 2 seeds", id="same"),
        ],
    )
    def test_each_has_its_reason(self, differences: list[float], outcome: Outcome, words: str) -> None:
        (got,) = verdicts([estimate(differences)])
        assert got.outcome is outcome
        assert words in got.reason

    def test_error_and_freedom_of_the_estimate_decide(self) -> None:
        """Not the seeds: Welch's test of cells with 3 and 4 seeds has 4.7 degrees of freedom."""
        found = combination(DIFFERENCE, SCORES)
        (got,) = verdicts([found], margin=0.6)
        one_sided = stats.t.sf((0.6 - abs(found.mean)) / found.error, found.freedom)
        assert (got.p_difference, got.p_equivalence) == pytest.approx((found.p, one_sided), rel=1e-6)

    def test_the_margin_decides_what_matters(self) -> None:
        assert verdicts([CLEAR], margin=0.5)[0].outcome is Outcome.EQUIVALENT
        assert verdicts([TINY], margin=0.0015)[0].outcome is Outcome.UNDECIDED

    def test_a_margin_that_is_none_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="must be above 0"):
            verdicts([CLEAR], margin=0.0)

    def test_a_family_asks_more_of_each_comparison(self) -> None:
        """Alone p is 0.02; the second of two Holm steps leaves it, the first of three trebles it."""
        values = [0.03, 0.04, 0.05]
        found = estimate(values)
        assert found.p == pytest.approx(0.0202, abs=1e-4)
        assert verdicts([found])[0].outcome is Outcome.BETTER
        assert verdicts([found, CLEAR])[0].outcome is Outcome.BETTER
        got = verdicts([found, NOISY, NOISY])[0]
        assert got.outcome is Outcome.UNDECIDED
        assert got.p_difference == pytest.approx(3 * found.p)
        assert "the interval excludes 0, but corrected p = 0.061 among 3 comparisons" in got.reason

    def test_equivalence_is_corrected_too(self) -> None:
        alone, among = verdicts([TINY])[0], verdicts([TINY, NOISY])[0]
        assert among.p_equivalence == pytest.approx(2 * alone.p_equivalence)

    def test_equivalence_that_only_the_family_prevents_is_said(self) -> None:
        near = estimate([0.02, -0.01, 0.01])
        assert verdicts([near])[0].outcome is Outcome.EQUIVALENT
        got = verdicts([near, *[NOISY] * 9])[0]
        assert got.outcome is Outcome.UNDECIDED
        assert "the interval lies within 0.05 dB of 0, but corrected p = 0.2 among 10 comparisons" in got.reason

    def test_what_cannot_be_tested_is_no_comparison(self) -> None:
        got = verdicts([CLEAR, estimate([0.3]), estimate([0.2, 0.2])])
        assert [found.comparisons for found in got] == [1, 1, 1]
        assert [math.isnan(found.p_difference) for found in got] == [False, True, True]
        assert [math.isnan(found.detectable) for found in got] == [False, True, True]

    def test_the_smallest_detectable_difference_depends_on_error_freedom_and_family(self) -> None:
        """At it the power is 80 %, with 5 % divided by the number of comparisons; the mean plays no part."""
        for family in ([NOISY], [NOISY, CLEAR, TINY]):
            got = verdicts(family)[0].detectable
            power = power_of_difference(NOISY.error, NOISY.freedom, got, 0.05 / len(family))
            assert power == pytest.approx(0.8, abs=1e-6)
        moved = dataclasses.replace(NOISY, mean=NOISY.mean + 1)
        assert verdicts([moved])[0].detectable == verdicts([NOISY])[0].detectable


class TestPower:
    @pytest.mark.parametrize(
        ("freedom", "shift", "alpha"),
        [(1, 1.4, 0.05), (1, 300.0, 0.0025), (2.3, 5.2, 0.05), (9, -3.2, 0.05), (49, 1.4, 0.01), (3, 0.0, 0.05)],
    )
    def test_of_a_difference_is_the_tail_of_the_noncentral_t(self, freedom: float, shift: float, alpha: float) -> None:
        critical = stats.t.isf(alpha / 2, freedom)
        tail = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
        assert power_of_difference(0.1, freedom, 0.1 * shift, alpha) == pytest.approx(tail, abs=1e-4)

    @pytest.mark.parametrize(("seeds", "sd", "effect"), [(3, 0.02, 0.0), (5, 0.05, 0.0), (10, 0.05, 0.01)])
    def test_of_equivalence_is_what_simulated_studies_find(self, seeds: int, sd: float, effect: float) -> None:
        drawn = np.random.default_rng(3).normal(effect, sd, (40_000, seeds))
        found = float(np.mean(student(drawn).p_equivalence(0.05) < ALPHA))
        power = power_of_equivalence(sd / math.sqrt(seeds), seeds - 1, effect, 0.05)
        assert power == pytest.approx(found, abs=0.01)

    def test_of_equivalence_at_the_margin_approaches_alpha(self) -> None:
        assert power_of_equivalence(0.01 / math.sqrt(20), 19, 0.05, 0.05) == pytest.approx(0.05, abs=1e-4)

    def test_cohens_table(self) -> None:
        """A difference of half a standard deviation: 64 in each of two groups, 96 at 1 %; 34 pairs, 51 at 1 %."""
        assert seeds_for_difference(sd=1.0, effect=0.5) == 64
        assert seeds_for_difference(sd=1.0, effect=-0.5) == 64
        assert seeds_for_difference(sd=1.0, effect=0.5, alpha=0.01) == 96
        assert seeds_for_difference(sd=1.0, effect=0.5, paired=True) == 34
        assert seeds_for_difference(sd=1.0, effect=0.5, alpha=0.01, paired=True) == 51

    def test_every_argument_of_an_equivalence_counts(self) -> None:
        few = seeds_for_equivalence(sd=0.05)
        others = [
            seeds_for_equivalence(sd=0.08),
            seeds_for_equivalence(sd=0.05, margin=0.04),
            seeds_for_equivalence(sd=0.05, effect=0.02),
            seeds_for_equivalence(sd=0.05, alpha=0.01),
        ]
        fewer = seeds_for_equivalence(sd=0.05, paired=True)
        assert few is not None
        assert fewer is not None
        assert fewer < few
        assert all(more is not None and more > few for more in others)

    def test_what_no_number_of_seeds_shows(self) -> None:
        assert seeds_for_difference(sd=0.1, effect=0.0) is None
        assert seeds_for_equivalence(sd=0.1, margin=0.05, effect=0.05) is None

    @pytest.mark.parametrize("sd", [0.0, math.nan])
    def test_a_spread_that_is_unknown_plans_nothing(self, sd: float) -> None:
        with pytest.raises(ValueError, match="one seed does not show it"):
            seeds_for_difference(sd, 0.1)
        with pytest.raises(ValueError, match="one seed does not show it"):
            seeds_for_equivalence(sd)


VALUES = {0: {"baby": 0.5, "bird": 0.2}, 1: {"baby": 0.7, "bird": 0.4}}


class TestImages:
    def test_differences_are_averaged_over_seeds_and_estimated_over_pictures(self) -> None:
        """baby: (0.5 + 0.7) / 2 = 0.6; bird: (0.2 + 0.4) / 2 = 0.3."""
        got = over_images(VALUES)
        interval = stats.ttest_1samp([0.6, 0.3], 0).confidence_interval(0.95)
        assert (got.estimate.mean, got.estimate.n) == (pytest.approx(0.45), 2)
        assert (got.estimate.low, got.estimate.high) == pytest.approx((interval.low, interval.high))
        assert got.scope == "over 2 pictures, for the networks trained under seeds 0 and 1"

    def test_a_missing_picture_is_an_error_that_names_it(self) -> None:
        with pytest.raises(IncompleteDataError, match=r"under every seed of both cells: bird$"):
            over_images({**VALUES, 1: {"baby": 0.7}})


def test_pairing_pays_above_the_correlation_at_which_both_intervals_are_as_wide() -> None:
    for seeds in (3, 5):
        rho = break_even_correlation(seeds)
        apart = stats.t.ppf(0.975, 2 * (seeds - 1)) * math.sqrt(2 / seeds)
        paired = stats.t.ppf(0.975, seeds - 1) * math.sqrt(2 * (1 - rho) / seeds)
        assert apart == pytest.approx(paired)
    assert break_even_correlation(3) == pytest.approx(0.58, abs=0.005)
    with pytest.raises(ValueError, match="no correlation"):
        break_even_correlation(1)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([1, 2, 3, 4], [10, 20, 30, 40], 1.0, id="the same order"),
        pytest.param([1, 2, 3, 4], [4, 3, 2, 1], -1.0, id="the opposite order"),
        pytest.param([1, 2, 3, 4], [1, 2, 4, 3], 0.8, id="two neighbours swapped"),
        pytest.param([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2, id="a tie"),
        pytest.param([1, 2], [1, 2], math.nan, id="two"),
        pytest.param([1, 1, 1], [1, 2, 3], math.nan, id="all alike"),
    ],
)
def test_ranks_correlate_as_spearman_says(first: list[float], second: list[float], expected: float) -> None:
    assert rank_correlation(first, second) == pytest.approx(expected, nan_ok=True)


def test_ranks_correlate_as_scipy_says() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        first, second = draw.integers(0, 6, (2, 9)).tolist()
        assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
