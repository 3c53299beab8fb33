"""What may be said of numbers under several seeds."""

import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.estimates import (
    ALPHA,
    Estimate,
    IncompleteDataError,
    Outcome,
    equivalence_p,
    estimate,
    holm,
    over_images,
    power_of_difference,
    power_of_equivalence,
    seeds_for_difference,
    seeds_for_equivalence,
    seeds_to_decide,
    sign_flip_p,
    smallest_sign_flip_p,
    student,
    summary,
    upper_limit_of_sd,
    verdicts,
    what_seeds_allow,
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
    exact = (interval.low, interval.high, test.pvalue)
    got, shown = student(values), estimate(values)
    assert (float(got.low), float(got.high), float(got.p)) == pytest.approx(exact, rel=1e-12)
    assert (shown.low, shown.high, shown.p) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(("value", "p"), [(0.5, 0.0), (0.0, 1.0)])
def test_equal_values_leave_no_width(value: float, p: float) -> None:
    assert estimate([value] * 3) == Estimate(value, value, value, 3, p)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_seeds_have_no_interval(count: int) -> None:
    got = estimate([1.0] * count)
    assert got.n == count
    assert all(math.isnan(value) for value in (got.low, got.high, got.p))


def test_many_intervals_at_once_are_those_of_one_at_a_time() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.1, (3, 2, 4))
    together = student(values)
    for index in np.ndindex(3, 2):
        alone = estimate(values[index].tolist())
        got = (together.mean[index], together.low[index], together.high[index], together.p[index])
        assert got == pytest.approx((alone.mean, alone.low, alone.high, alone.p))


def test_one_seed_that_is_not_a_number_leaves_no_interval() -> None:
    got = estimate([0.1, math.nan, 0.2])
    assert got.n == 3
    assert all(math.isnan(value) for value in (got.mean, got.low, got.high, got.p))


class TestExactTest:
    def test_p_is_that_of_scipys_permutation_test(self) -> None:
        values, reference = [30.11, 30.52, 29.87, 30.4, 30.2, 30.3], [30.02, 30.31, 29.9, 30.1, 30.21, 30.0]
        exact = stats.permutation_test(
            (values, reference),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        got = sign_flip_p([value - other for value, other in zip(values, reference, strict=True)])
        assert got == pytest.approx(exact.pvalue)

    @pytest.mark.parametrize(("seeds", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
    def test_few_seeds_have_a_floor_that_unanimous_seeds_reach(self, seeds: int, p: float) -> None:
        assert smallest_sign_flip_p(seeds) == p
        assert sign_flip_p([0.1 * (index + 1) for index in range(seeds)]) == p

    def test_rounding_breaks_no_tie(self) -> None:
        """-0.4 + 0.6 + 0.3 - 0.9 is a sum of -0.4 and so is another, which floating point puts a bit nearer to 0."""
        tenths = [-4, 6, 3, -9]
        signed = [np.dot(signs, tenths) for signs in itertools.product((-1, 1), repeat=4)]
        exact = np.mean(np.abs(signed) >= abs(sum(tenths)))
        assert sign_flip_p([value / 10 for value in tenths]) == exact == 14 / 16

    def test_too_many_seeds_are_an_error_and_a_diverged_one_gives_no_p(self) -> None:
        with pytest.raises(ValueError, match="at most 20 differences, not 21"):
            sign_flip_p([0.1] * 21)
        assert math.isnan(sign_flip_p([0.1, math.inf]))
        assert math.isnan(sign_flip_p([]))
        with pytest.raises(ValueError, match="0 seeds"):
            smallest_sign_flip_p(0)


@pytest.mark.parametrize(
    ("seeds", "comparisons", "words"),
    [
        pytest.param(1, 1, "no interval, no test and no verdict", id="one"),
        pytest.param(3, 1, "2.48 standard deviations .* smallest two-sided p is 0.25, which cannot fall", id="three"),
        pytest.param(6, 1, "smallest two-sided p is 0.0312, which can fall below 0.05\\.$", id="six"),
        pytest.param(6, 2, "which cannot fall below 0.05 among 2 comparisons", id="six, two comparisons"),
    ],
)
def test_what_a_number_of_seeds_allows_is_said(seeds: int, comparisons: int, words: str) -> None:
    assert re.search(words, what_seeds_allow(seeds, comparisons))


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


class TestEquivalence:
    def test_p_is_the_larger_of_two_one_sided_tests(self) -> None:
        values = [0.01, 0.03, -0.01, 0.02]
        above = stats.ttest_1samp(values, -0.05, alternative="greater").pvalue
        below = stats.ttest_1samp(values, 0.05, alternative="less").pvalue
        assert equivalence_p(values, 0.05) == pytest.approx(max(above, below))

    @pytest.mark.parametrize(("value", "p"), [(0.0, 0.0), (0.25, 1.0), (0.5, 1.0)])
    def test_values_without_spread(self, value: float, p: float) -> None:
        assert equivalence_p([value, value], 0.25) == p


CLEAR, TINY, NOISY = [0.30, 0.32, 0.31], [0.001, 0.002, 0.000], [0.10, 0.02, -0.05]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("differences", "outcome", "words"),
        [
            pytest.param(CLEAR, Outcome.BETTER, "+0.310 dB, 95 % interval +0.285 to +0.335, 3 seeds", id="better"),
            pytest.param([-value for value in CLEAR], Outcome.WORSE, "-0.310 dB", id="worse"),
            pytest.param(TINY, Outcome.EQUIVALENT, "within 0.05 dB of 0", id="equivalent"),
            pytest.param(
                [0.010, 0.011, 0.012], Outcome.EQUIVALENT, "not 0, but smaller than what matters", id="small, not 0"
            ),
            pytest.param(
                NOISY, Outcome.UNDECIDED, "3 seeds rule out neither no difference nor one of 0.05", id="noisy"
            ),
            pytest.param([0.3], Outcome.UNDECIDED, "one seed: the spread is unknown", id="one seed"),
            pytest.param([], Outcome.UNDECIDED, "no complete seed: the spread is unknown", id="no seed"),
            pytest.param([0.1, math.nan], Outcome.UNDECIDED, "not a finite number", id="diverged"),
            pytest.param([0.2, 0.2, 0.2], Outcome.UNDECIDED, "they are not replicates", id="no spread"),
            pytest.param([0.0, 0.0], Outcome.EQUIVALENT, "the same score under each of 2 seeds", id="same"),
        ],
    )
    def test_each_has_its_reason(self, differences: list[float], outcome: Outcome, words: str) -> None:
        (got,) = verdicts([differences])
        assert got.outcome is outcome
        assert words in got.reason

    def test_the_margin_decides_what_matters(self) -> None:
        assert verdicts([CLEAR], margin=0.5)[0].outcome is Outcome.EQUIVALENT
        assert verdicts([TINY], margin=0.0015)[0].outcome is Outcome.UNDECIDED

    def test_a_margin_that_is_none_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="must be above 0"):
            verdicts([CLEAR], margin=0.0)

    def test_a_family_asks_more_of_each_comparison(self) -> None:
        """Alone p is 0.02; the second of two Holm steps leaves it, the first of three trebles it."""
        values = [0.03, 0.04, 0.05]
        assert stats.ttest_1samp(values, 0).pvalue == pytest.approx(0.0202, abs=1e-4)
        assert verdicts([values])[0].outcome is Outcome.BETTER
        assert verdicts([values, CLEAR])[0].outcome is Outcome.BETTER
        got = verdicts([values, NOISY, NOISY])[0]
        assert got.outcome is Outcome.UNDECIDED
        assert got.p_difference == pytest.approx(3 * stats.ttest_1samp(values, 0).pvalue)
        assert "the interval excludes 0, but not after correction among 3 comparisons" in got.reason

    def test_equivalence_is_corrected_too(self) -> None:
        alone, among = verdicts([TINY])[0], verdicts([TINY, NOISY])[0]
        assert among.p_equivalence == pytest.approx(2 * alone.p_equivalence)

    def test_what_cannot_be_tested_is_no_comparison(self) -> None:
        got = verdicts([CLEAR, [0.3], [0.2, 0.2]])
        assert [found.comparisons for found in got] == [1, 1, 1]
        assert [math.isnan(found.p_difference) for found in got] == [False, True, True]

    def test_only_the_undecided_are_told_how_many_seeds(self) -> None:
        decided, open_ = verdicts([CLEAR, NOISY])
        assert decided.seeds_needed is None
        assert open_.seeds_needed == seeds_to_decide(NOISY, comparisons=2)


class TestPower:
    @pytest.mark.parametrize(
        ("seeds", "sd", "effect", "alpha"),
        [(2, 0.1, 0.1, 0.05), (3, 0.1, 0.3, 0.05), (10, 0.1, -0.1, 0.05), (50, 0.1, 0.02, 0.01), (4, 0.1, 0.0, 0.05)],
    )
    def test_of_a_difference_is_the_tail_of_the_noncentral_t(
        self, seeds: int, sd: float, effect: float, alpha: float
    ) -> None:
        critical, shift = stats.t.isf(alpha / 2, seeds - 1), effect / sd * math.sqrt(seeds)
        tail = stats.nct.sf(critical, seeds - 1, shift) + stats.nct.cdf(-critical, seeds - 1, shift)
        assert power_of_difference(seeds, sd, effect, alpha) == pytest.approx(tail, abs=1e-5)

    @pytest.mark.parametrize(("seeds", "sd", "effect"), [(3, 0.02, 0.0), (5, 0.05, 0.0), (10, 0.05, 0.01)])
    def test_of_equivalence_is_what_simulated_studies_find(self, seeds: int, sd: float, effect: float) -> None:
        drawn = np.random.default_rng(3).normal(effect, sd, (40_000, seeds))
        found = float(np.mean(equivalence_p(drawn, 0.05) < ALPHA))
        assert power_of_equivalence(seeds, sd, effect, 0.05) == pytest.approx(found, abs=0.01)

    def test_of_equivalence_at_the_margin_approaches_alpha(self) -> None:
        assert power_of_equivalence(20, 0.01, 0.05, 0.05) == pytest.approx(0.05, abs=1e-4)

    def test_cohens_table(self) -> None:
        """A difference of half a standard deviation: 34 pairs, 51 at 1 % (any table of paired t tests)."""
        assert seeds_for_difference(sd=1.0, effect=0.5) == 34
        assert seeds_for_difference(sd=1.0, effect=-0.5) == 34
        assert seeds_for_difference(sd=1.0, effect=0.5, alpha=0.01) == 51

    def test_every_argument_of_an_equivalence_counts(self) -> None:
        few = seeds_for_equivalence(sd=0.05)
        others = [
            seeds_for_equivalence(sd=0.08),
            seeds_for_equivalence(sd=0.05, margin=0.04),
            seeds_for_equivalence(sd=0.05, effect=0.02),
            seeds_for_equivalence(sd=0.05, alpha=0.01),
        ]
        assert few is not None
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


class TestSeedsToDecide:
    def test_it_is_the_cheaper_of_difference_and_equivalence(self) -> None:
        near, far = [0.00, 0.04, -0.03], [0.5, 0.2, 0.0]
        sd_near, sd_far = summary(near).sd, summary(far).sd
        assert seeds_to_decide(near).likely == seeds_for_equivalence(sd_near, 0.05, summary(near).mean)
        assert seeds_to_decide(far).likely == seeds_for_difference(sd_far, summary(far).mean)

    def test_a_cautious_plan_takes_the_upper_limit_of_the_spread(self) -> None:
        """The limit is sd * sqrt((n - 1) / chi2), chi2 the 20 % quantile with n - 1 = 2 degrees: 0.4463."""
        far = [0.5, 0.2, 0.0]
        upper = summary(far).sd * math.sqrt(2 / 0.4462871)
        assert upper_limit_of_sd(summary(far)) == pytest.approx(upper)
        got = seeds_to_decide(far)
        assert got.cautious == seeds_for_difference(upper, summary(far).mean)
        assert f"{got.likely} seeds would decide it with 80 % power" in got.reason

    def test_more_seeds_than_anyone_has_are_none(self) -> None:
        got = seeds_to_decide([1.05, -0.95], margin=0.05)
        assert (got.likely, got.cautious) == (None, None)
        assert "more than 1000 seeds" in got.reason

    def test_an_undecided_study_needs_more_seeds_than_it_has(self) -> None:
        generator = np.random.default_rng(4)
        for seeds in (2, 3, 5, 10):
            found = [verdicts([values])[0] for values in generator.normal(0.02, 0.05, (40, seeds)).tolist()]
            needs = [verdict.seeds_needed for verdict in found if verdict.seeds_needed is not None]
            assert needs
            assert all(need.likely is None or need.likely > seeds for need in needs)


VALUES = {0: {"baby": 0.5, "bird": 0.2}, 1: {"baby": 0.7, "bird": 0.4}}


class TestImages:
    def test_differences_are_averaged_over_seeds_and_estimated_over_pictures(self) -> None:
        """baby: (0.5 + 0.7) / 2 = 0.6; bird: (0.2 + 0.4) / 2 = 0.3."""
        got = over_images(VALUES)
        interval = stats.ttest_1samp([0.6, 0.3], 0).confidence_interval(0.95)
        assert (got.estimate.mean, got.estimate.n) == (pytest.approx(0.45), 2)
        assert (got.estimate.low, got.estimate.high) == pytest.approx((interval.low, interval.high))
        assert got.scope.startswith("over 2 pictures, for the networks trained under seeds 0, 1: it speaks of other")

    def test_a_missing_picture_is_an_error_that_names_it(self) -> None:
        with pytest.raises(IncompleteDataError, match=r"under every seed of both cells: bird$"):
            over_images({**VALUES, 1: {"baby": 0.7}})
