"""What an intervention saves by count and by the clock, and what another price of a binary multiply-add changes."""

import itertools
import math
from collections.abc import Sequence

import pandas as pd
import pytest

from ablations.space.interventions import Pair
from analysis.effects.curves import TIME, front
from analysis.effects.savings import Prices, Saving, Word, prices_of, savings, word_of
from analysis.study.tasks import TaskResults
from tests.harness.judging import only_task
from tests.harness.studies import Trial, counted, full_trial, in_memory, timed


@pytest.mark.parametrize(
    ("by_count", "by_clock", "p", "word"),
    [
        pytest.param(0.9, 0.71, 0.001, Word.REAL, id="most of it is confirmed"),
        pytest.param(0.9, 0.45, 0.001, Word.REAL, id="half of it is confirmed"),
        pytest.param(0.9, 0.449, 0.001, Word.SMALLER, id="less than half"),
        pytest.param(0.9, 0.95, 0.001, Word.REAL, id="more than counted"),
        pytest.param(0.9, 0.71, 0.05, Word.NONE, id="within the noise"),
        pytest.param(0.03, 0.02, 0.001, Word.REAL, id="2 % is a difference"),
        pytest.param(0.03, 0.0199, 0.0, Word.NONE, id="less than 2 % is none, however sure"),
        pytest.param(0.03, -0.0199, 0.0, Word.NONE, id="a loss below 2 % is none"),
        pytest.param(0.03, -0.02, 0.001, Word.COSTS, id="a loss"),
        pytest.param(-0.5, -0.5, 0.001, Word.COSTS, id="a loss as counted"),
        pytest.param(0.0, 0.3, 0.001, Word.UNCOUNTED, id="nothing is saved by count"),
        pytest.param(-0.1, 0.3, 0.001, Word.UNCOUNTED, id="dearer by count"),
        pytest.param(math.nan, 0.3, 0.001, Word.UNCOUNTED, id="nothing was counted"),
        pytest.param(0.9, 0.71, math.nan, Word.ONE_SEED, id="not tested"),
    ],
)
def test_the_word_for_a_saving(by_count: float, by_clock: float, p: float, word: Word) -> None:
    assert word_of(by_count, by_clock, p) is word


REFERENCE, UP, TAIL, NARROW = (["body"], ["body", "up"], ["body", "tail"], ["head"])

COUNTS = {"body": (4.0, 4.0), "body up": (0.5, 7.5), "body tail": (3.9, 4.1), "head": (1.0, 0.0)}
"""Multiply-adds in full precision and in binary, 10^9; the last cell stands for a network of another layout."""

RATIOS = {"body": 0.5, "body up": 0.1, "body tail": 0.6, "head": 1.0}


def measured(names: Sequence[str], seed: int, noise: float = 0.004, **place: str) -> Trial:
    key = " ".join(names)
    ratio = RATIOS[key] * (1 + noise * (seed - 1))
    each = counted(full_trial(seed, binarize=list(names)), *COUNTS[key])
    return timed(each, ratio, 100.0 + seed if names == NARROW else 1000.0 + seed, **place)


def results_of(seeds: Sequence[int] = (0, 1, 2), noise: float = 0.004) -> TaskResults:
    cells = (REFERENCE, UP, TAIL, NARROW)
    return only_task(in_memory([measured(names, seed, noise) for names, seed in itertools.product(cells, seeds)]))


def pair_of(*names: Sequence[str]) -> Pair:
    before, after = (measured(each, 0).cell for each in names)
    return before, after


def saved(results: TaskResults, *names: Sequence[str]) -> Saving:
    ops = dict(results.cells["metric/cost/ops_g"])
    return savings(results.latency, ops, [pair_of(REFERENCE, UP), pair_of(REFERENCE, TAIL), pair_of(*names)])[
        pair_of(*names)
    ]


def test_a_saving_is_of_the_ratios_and_its_noise_is_that_of_the_seeds() -> None:
    found = saved(results_of(), REFERENCE, UP)
    assert found.by_count == pytest.approx(1 - (0.5 + 7.5 / 64) / (4 + 4 / 64), abs=1e-3)
    assert found.by_clock == pytest.approx(0.8, abs=1e-6)
    assert found.low < 0.8 < found.high
    assert (found.n, found.word) == (3, Word.REAL)
    assert saved(results_of(), REFERENCE, TAIL).word is Word.COSTS
    assert saved(results_of(noise=0.3), REFERENCE, TAIL).word is Word.NONE


def test_one_measurement_has_no_noise_and_no_word() -> None:
    found = saved(results_of((0,)), REFERENCE, UP)
    assert (found.word, found.n) == (Word.ONE_SEED, 1)
    assert math.isnan(found.low)


def test_between_two_layouts_the_times_of_the_twins_come_in() -> None:
    """The narrow network takes as long as its twin, which takes a tenth of the other one's time."""
    found = saved(results_of(), REFERENCE, NARROW)
    assert found.by_clock == pytest.approx(1 - 101 / 1001 / 0.5, abs=1e-3)
    alike = saved(results_of(), REFERENCE, UP)
    assert found.high - found.low > 2 * (alike.high - alike.low)  # the noise of the twins is in it


def test_times_within_two_percent_are_the_same_on_a_front() -> None:
    points = pd.DataFrame({"label": list("abcd"), "mean": [30.0, 31.0, 31.0, 32.0], TIME: [0.5, 0.509, 0.6, 0.7]})
    assert front(points, TIME)["label"].tolist() == ["b", "d"]
    assert front(points.rename(columns={TIME: "ops_g"}), "ops_g")["label"].tolist() == ["a", "b", "d"]


def priced(most: int = 40, noise: float = 0.004) -> Prices:
    results = results_of(noise=noise)
    means = {cell: float(ops) for cell, ops in dict(results.cells["metric/cost/ops_g"]).items()}
    means[measured(TAIL, 0).cell] = 5.0
    found = prices_of(results, results.latency, means, most)
    assert found
    return found


def test_the_front_at_each_price_and_by_the_clock() -> None:
    found = priced()
    assert found.prices == ["1/64", "1/8"]
    narrow, up, tail, body = (measured(names, 0).cell for names in (NARROW, UP, TAIL, REFERENCE))
    costs = found.costs.set_index("cell")
    assert costs.loc[up, "1/8"] == round(0.5 + 7.5 / 8, 3)
    assert costs.loc[[narrow, up], TIME].tolist() == pytest.approx([101 / 1001, 0.1], abs=1e-3)
    assert found.fronts["1/64"] == {up, narrow, tail}
    assert found.fronts["1/8"] == {narrow, tail}
    assert found.fronts[TIME] == {narrow, body, tail}
    assert found.only_on("1/64", "1/8") == ["binarize=[body,up]"]
    assert found.only_on(TIME, "1/64") == ["binarize=[body]"]


def test_a_cell_that_was_not_measured_is_not_missed_on_the_front_by_the_clock() -> None:
    found = priced()
    unknown = found.costs["cell"].eq(measured(UP, 0).cell)
    costs = found.costs.assign(**{TIME: found.costs[TIME].mask(unknown)})
    bare = Prices(costs, found.fronts, (), 4)
    assert found.only_on("1/64", TIME) == ["binarize=[body,up]"]
    assert bare.only_on("1/64", TIME) == []


def test_pairs_that_change_their_order_are_told_and_by_the_clock_only_if_sure() -> None:
    narrow, up, tail, body = (measured(names, 0).cell for names in (NARROW, UP, TAIL, REFERENCE))
    flips = {(flip.cheaper, flip.other): flip.change for flip in priced().flips}
    assert flips.keys() == {(up, narrow), (tail, body)}
    assert flips[up, narrow]["1/64"] == pytest.approx(0.617 - 1)
    assert flips[up, narrow]["1/8"] == pytest.approx(1.4375 - 1, abs=1e-3)
    assert flips[tail, body][TIME] == pytest.approx(0.2)
    noisy = {(flip.cheaper, flip.other) for flip in priced(noise=0.3).flips}
    assert noisy == {(up, narrow)}
    assert priced(most=3).compared == 3


def test_results_without_counts_have_no_other_price() -> None:
    results = only_task(in_memory([full_trial(seed, binarize=names) for seed in (0, 1) for names in (REFERENCE, UP)]))
    assert prices_of(results, results.latency, {}, 40) is None
    assert results.latency.main is None
