"""What may be said of numbers under several seeds."""

import math

import pytest
from scipy import stats

from analysis.statistics import Estimate, paired_difference, summary, verdict


def test_mean_and_standard_deviation_of_three_values() -> None:
    got = summary([30.0, 31.0, 35.0])
    assert got.mean == pytest.approx((30 + 31 + 35) / 3)
    assert got.sd == pytest.approx(math.sqrt((2**2 + 1**2 + 3**2) / 2))
    assert got.n == 3


def test_one_value_has_no_standard_deviation() -> None:
    got = summary([30.0])
    assert (got.mean, got.n) == (30.0, 1)
    assert math.isnan(got.sd)


def test_a_paired_difference_by_hand() -> None:
    got = paired_difference([31.0, 32.0, 33.0], [30.0, 30.0, 30.0])
    quantile = 4.302652729749462
    width = quantile * 1 / math.sqrt(3)
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((2, 2 - width, 2 + width, 3))


def test_interval_and_p_are_those_of_the_paired_t_test() -> None:
    values, reference = [30.11, 30.52, 29.87, 30.4], [30.02, 30.31, 29.9, 30.1]
    test = stats.ttest_rel(values, reference)
    interval = test.confidence_interval(0.95)
    got = paired_difference(values, reference)
    assert (got.low, got.high, got.p) == pytest.approx((interval.low, interval.high, test.pvalue))


def test_noise_that_two_cells_share_cancels() -> None:
    shared = [0.0, 5.0, -3.0]
    got = paired_difference([30.5 + noise for noise in shared], [30.0 + noise for noise in shared])
    assert (got.mean, got.low, got.high, got.p) == (0.5, 0.5, 0.5, 0.0)


def test_equal_values_are_no_difference() -> None:
    assert paired_difference([30.0, 31.0], [30.0, 31.0]) == Estimate(0.0, 0.0, 0.0, 2, 1.0)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_seeds_have_no_interval(count: int) -> None:
    got = paired_difference([31.0] * count, [30.0] * count)
    assert got.n == count
    assert all(math.isnan(value) for value in (got.low, got.high, got.p))


def test_values_that_do_not_pair_up_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        pytest.param(Estimate(0.2, 0.1, 0.3, 3, 0.01), "better", id="above zero"),
        pytest.param(Estimate(-0.2, -0.3, -0.1, 3, 0.01), "worse", id="below zero"),
        pytest.param(Estimate(0.2, -0.1, 0.5, 3, 0.2), "not distinguishable from noise at n = 3", id="around zero"),
        pytest.param(Estimate(0.2, 0.0, 0.4, 3, 0.05), "not distinguishable from noise at n = 3", id="touching zero"),
        pytest.param(Estimate(0.2, math.nan, math.nan, 1, math.nan), "one seed: no verdict", id="one seed"),
        pytest.param(Estimate(math.nan, math.nan, math.nan, 0, math.nan), "no complete seed: no verdict", id="none"),
        pytest.param(
            Estimate(math.nan, math.nan, math.nan, 3, math.nan), "not a finite number: no verdict", id="diverged"
        ),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_zero(estimate: Estimate, words: str) -> None:
    assert verdict(estimate) == words
