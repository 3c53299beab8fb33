"""The same results give the same files, whatever the last bits of a processor are."""

import dataclasses
import itertools
import math
import random
from pathlib import Path

import pandas as pd
import pytest

from analysis.report.page import compose
from analysis.report.rounding import as_csv, rounded, rounded_number
from analysis.study.loading import StudyResults
from tests.harness.studies import loaded, trial


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
    assert rounded_number(number) == wanted
    assert math.copysign(1, rounded_number(number)) == math.copysign(1, wanted)


def test_every_number_of_a_frame_is_rounded_in_its_csv() -> None:
    frame = pd.DataFrame(
        {"text": ["a"], "whole": [3], "number": [0.1 + 0.2], "mixed": pd.Series([1 / 3], dtype=object)}
    )
    assert as_csv(frame) == b"text,whole,number,mixed\na,3,0.3,0.333333333\n"
    assert rounded({"nested": [(1 / 3, "text", None)]}) == {"nested": [(0.333333333, "text", None)]}


def perturbed(results: StudyResults) -> StudyResults:
    """The same results with other last bits in every score."""
    noise = random.Random(0)
    metrics = [name for name in results.trials if str(name).startswith("metric/")]
    changed = results.trials[metrics].map(lambda score: score * (1 + noise.choice((-1e-13, 1e-13))))
    return dataclasses.replace(results, trials=results.trials.assign(**changed))


def test_other_last_bits_give_the_same_files(tracking_uri: str, tmp_path: Path) -> None:
    # Every second cell scores as another one does, so that an order by the last bits would show.
    finished = [
        trial(seed, 30.0 + 0.1 * seed - 0.37 * (not residual) + 0.01 * seed * (bn == "post"), residual=residual, bn=bn)
        for seed, residual, bn in itertools.product(range(3), (True, False), ("none", "pre", "post"))
    ]
    results = loaded(tracking_uri, tmp_path, finished, samples=True)
    once, again = compose(results), compose(perturbed(results))
    assert [name for name in once if once[name] != again[name]] == []
