"""The same numbers, to the last bit, and the same files on processors that add and multiply in other ways."""

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from analysis.statistics.estimates import combination, correlation_within_seeds, estimate, share, verdicts
from analysis.statistics.factorial import Responses, fitted_weights, half_normal
from analysis.study.probes import read_records
from tests.harness.paths import REPOSITORY

PROCESSORS = {
    "of 2004": {
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4",
    },
    "of 2011": {"OPENBLAS_CORETYPE": "Sandybridge", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
}
"""What makes the libraries compute as they do on other processors, which have less than any that this runs on."""


@functools.cache
def numbers() -> list[str]:
    """Everything that is estimated from a few designs, as text with all digits."""
    return list(estimated())


def estimated() -> Iterator[str]:
    draw = np.random.default_rng(0)
    for levels, seeds in (((2, 2), 3), ((2, 2, 2, 2), 2), ((3, 2, 4), 5), ((2,) * 6, 8)):
        factors = {f"factor{n}": tuple(f"level{m}" for m in range(count)) for n, count in enumerate(levels)}
        grid = list(itertools.product(*factors.values()))
        table = draw.normal(32, 0.3, (len(grid), seeds)).round(7)
        values = {cell: dict(enumerate(map(float, scores))) for cell, scores in zip(grid, table, strict=True)}
        scores = {" ".join(cell): by_seed for cell, by_seed in values.items()}
        for cells in (grid, [cell for n, cell in enumerate(grid) if n % 5]):
            fit = fitted_weights(factors, {" ".join(cell): cell for cell in cells})
            yield repr(fit)
            for paired in (False, True):
                yield repr(verdicts([combination(each, scores, paired=paired) for each in fit.weights.values()]))
        if max(levels) == 2 < len(levels):
            yield repr(half_normal(Responses(factors, values)))
        yield repr([estimate(row) for row in table.tolist()])
        yield repr(correlation_within_seeds(scores))
    yield repr([share(count, 20) for count in range(21)])
    ratios = draw.lognormal(0, 3, 1000).tolist()
    units = {f"unit{number}": {"branch_ratio": ratio} for number, ratio in enumerate(ratios)}
    yield repr(read_records([("cell", 0)], lambda _: {"probes": {"units": units}}).units["range_gap"].tolist())


def on(processor: dict[str, str]) -> list[str]:
    """The numbers as a process computes them that takes its processor for another one."""
    command = [sys.executable, "-m", "tests.analysis.statistics.test_processors"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **processor}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_every_number_has_the_same_bits_on_another_processor(processor: dict[str, str]) -> None:
    assert on(processor) == numbers()


if __name__ == "__main__":
    print(json.dumps(numbers()))
