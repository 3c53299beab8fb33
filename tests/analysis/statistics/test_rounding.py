"""The same results give the same files, whatever the last bits of a processor are."""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.report.frames import as_csv
from analysis.report.page import compose
from analysis.statistics.estimates import combination, estimate, verdicts
from analysis.statistics.factorial import Responses, half_normal
from analysis.statistics.rounding import rounded, settled
from analysis.study.loading import StudyResults
from tests.harness.studies import read_back, trial


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        pytest.param(0.1 + 0.2, 0.3, id="a last bit"),
        pytest.param(0.1 + 0.2 - 0.3, 0.0, id="a difference that is 0"),
        pytest.param(-1e-17, 0.0, id="a sign that is none"),
        pytest.param(34.12345678912, 34.1234568, id="nine significant digits"),
        pytest.param(1.234e-9, 1.234e-9, id="a small p-value"),
        pytest.param(math.inf, math.inf, id="infinity"),
    ],
)
def test_a_number_is_rounded_to_what_is_meant(number: float, wanted: float) -> None:
    assert rounded(number) == wanted
    assert math.copysign(1, rounded(number)) == math.copysign(1, wanted)


def test_every_number_in_a_value_a_frame_or_an_array_is_rounded() -> None:
    frame = pd.DataFrame(
        {"text": ["a"], "whole": [3], "number": [0.1 + 0.2], "mixed": pd.Series([1 / 3], dtype=object)}
    )
    assert as_csv(frame) == b"text,whole,number,mixed\na,3,0.3,0.333333333\n"
    assert rounded({"nested": [(1 / 3, "text", None)]}) == {"nested": [(0.333333333, "text", None)]}
    assert settled([1e-15, -2e-13, 0.25]).tolist() == [0, 0, 0.25]


def other_bits(size: float = 1e-13) -> Callable[[float], float]:
    """Return a function that changes the last bits of a number."""
    noise = random.Random(0)
    return lambda score: score * (1 + noise.choice((-size, size)))


@pytest.mark.parametrize(
    "differences",
    [
        pytest.param([0.1, 0.2, 0.3], id="undecided, and what it would take"),
        pytest.param([0.31, 0.30, 0.32], id="better"),
        pytest.param([0.1 + 0.2, 0.3, 0.3], id="the same under every seed"),
        pytest.param([0.1 + 0.2 - 0.3, 0.0, -1e-14], id="nothing"),
        pytest.param([0.05, 0.05, 0.05 + 1e-14], id="the margin"),
        pytest.param([0.0125, 0.0375, 0.0005], id="digits that end in a five"),
    ],
)
def test_other_last_bits_give_the_same_verdict_in_the_same_words(differences: list[float]) -> None:
    others = list(map(other_bits(), differences))
    for family in ([], [[0.5, 0.6, 0.7]]):
        families = [list(map(estimate, [values, *family])) for values in (others, differences)]
        assert repr(verdicts(families[0])) == repr(verdicts(families[1]))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    "scores",
    [
        pytest.param([34.169812, 34.236446, 34.106174], id="cells that differ"),
        pytest.param([34.017153, 34.051274, 33.996281], id="the same cell"),
        pytest.param([32.718174] * 3, id="no spread"),
    ],
)
def test_other_last_bits_give_the_same_difference_of_cells(scores: list[float], paired: bool) -> None:
    reference = {0: 34.017153, 1: 34.051274, 2: 33.996281}
    for bits in (other_bits(), other_bits(1e-14)):
        both = [
            combination(
                {"ablated": 1.0, "reference": -1.0},
                {
                    "ablated": {seed: change(score) for seed, score in enumerate(scores)},
                    "reference": {seed: change(score) for seed, score in reference.items()},
                },
                paired=paired,
            )
            for change in (float, bits)
        ]
        assert repr(both[0]) == repr(both[1])


def test_other_last_bits_give_the_same_order_of_a_half_normal_plot() -> None:
    """All effects of two factors are equal here, so that only their names order them."""
    factors = {name: ("on", "off") for name in ("residual", "bn", "act")}
    scores = {cell: 30.0 + 0.1 * cell.count("off") for cell in itertools.product(*factors.values())}
    change = other_bits(1e-14)
    plots = [
        half_normal(Responses(factors, {cell: {0: bits(score)} for cell, score in scores.items()}))
        for bits in (float, change, change)
    ]
    names = [[point.factors for point in plot.points] for plot in plots]
    assert names[0] == names[1] == names[2]
    assert {plot.pse for plot in plots} == {plots[0].pse}


def perturbed(results: StudyResults) -> StudyResults:
    """The same results with other last bits in every score."""
    metrics = [name for name in results.trials if str(name).startswith("metric/")]
    changed = results.trials[metrics].map(other_bits())
    return dataclasses.replace(results, trials=results.trials.assign(**changed))


def test_other_last_bits_give_the_same_files(tmp_path: Path) -> None:
    # Every second cell scores as another one does, so that an order by the last bits would show.
    finished = [
        trial(seed, 30.0 + 0.1 * seed - 0.37 * (not residual) + 0.01 * seed * (bn == "post"), residual=residual, bn=bn)
        for seed, residual, bn in itertools.product(range(3), (True, False), ("none", "pre", "post"))
    ]
    results = read_back(tmp_path, finished, samples=True)
    once, again = compose(results), compose(perturbed(results))
    assert [name for name in once if once[name] != again[name]] == []
