"""What a study with a stopping rule may expect, by simulation: how many trainings, which verdicts, and how early.

The simulated studies are decided by :func:`analysis.statistics.sequential.falls`, as real ones are. A fixed plan is one
whose only look is the last.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from analysis.statistics.estimates import ALPHA, Array, Contrast, detectable_errors, welch
from analysis.statistics.rounding import rounded
from analysis.statistics.sequential import UNDECIDED, Boundary, Pair, falls

STUDIES = 2000  # simulated studies, with which a share of 50 % is known to 2 points
SEED = 20240607  # the seed of the generator; every simulation starts from it
MOST_AT_ONCE = 2**23  # numbers in an array, 64 MB; studies with many looks and comparisons are simulated in parts

Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""Draws numbers of mean 0 and variance 1."""


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return generator.standard_normal(shape)


def correlated(noise: Noise, generator: np.random.Generator, shape: tuple[int, int, int], correlation: float) -> Array:
    """Noise (studies, cells, seeds) of variance 1 with this correlation of two cells under one seed."""
    studies, _, seeds = shape
    own = noise(generator, shape)
    shared = noise(generator, (studies, 1, seeds))
    return np.asarray(np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared)


# --- simulated studies, many at once ----------------------------------------------------------------------------------


def differences(
    noise: Array, places: npt.NDArray[np.int_], effects: Array, looks: Sequence[int], *, paired: bool = False
) -> Contrast:
    """The differences of pairs of cells at each look, as arrays (studies, looks, comparisons).

    ``noise`` (studies, cells, seeds) in dB is what the scores have beyond the true means. ``places`` (comparisons, 2)
    says which cells are compared, and ``effects`` in dB what the second one's mean truly is less the first one's.
    """
    before, after = places.T
    if paired:
        noise = noise[:, after] - noise[:, before]
    counts = np.asarray(looks)[:, None]
    # Of noise alone, so that no digits are lost to means.
    sums, squares = (
        np.moveaxis(np.cumsum(values, axis=-1)[..., counts[:, 0] - 1], -1, -2) for values in (noise, noise**2)
    )
    means, variances = sums / counts, np.maximum(squares - sums**2 / counts, 0.0) / (counts - 1)
    if paired:
        freedom = np.broadcast_to(counts - 1.0, means.shape)
        return Contrast(means + effects, np.sqrt(variances / counts), freedom)
    of_pairs = [np.stack([values[..., after], values[..., before]], axis=-1) for values in (means, variances)]
    found = welch((1.0, -1.0), of_pairs[0], of_pairs[1], counts[:, :, None])
    return dataclasses.replace(found, mean=found.mean + effects)


def single_tests(found: Contrast, boundary: Boundary, margin: float) -> tuple[Array, Array]:
    """The p of no difference and of equivalence of single tests at each look, from arrays (..., looks, comparisons).

    A p that no correction could make significant is 1, which saves most of the work and changes no verdict. NaN for
    scores that do not vary but differ.
    """
    untested = (found.error == 0) & (found.mean != 0)
    p_values = []
    for sides, distance in ((2, np.abs(found.mean)), (1, margin - np.abs(found.mean))):
        p = np.where(untested, math.nan, 1.0)
        small = ~untested & (distance >= found.error * least_errors(boundary, sides)[:, None])
        some = selected(found, small)
        p[small] = some.p if sides == 2 else some.p_equivalence(margin)
        p_values.append(p)
    return p_values[0], p_values[1]


@functools.lru_cache(maxsize=64)
def least_errors(boundary: Boundary, sides: int) -> Array:
    """How many standard errors a significant difference has at least at each look, however many degrees of freedom."""
    levels = np.array([boundary.level(look, ALPHA, sides) for look in boundary.looks])
    return np.asarray(-special.ndtri(levels / sides) * (1 - 1e-9))


@dataclasses.dataclass(frozen=True)
class Closed:
    """Comparisons at the look at which each is closed, as arrays (studies, comparisons).

    ``seeds`` is the number of seeds there, ``kinds`` is UNDECIDED, DIFFERENT or EQUIVALENT.
    """

    seeds: npt.NDArray[np.int_]
    kinds: npt.NDArray[np.int_]
    estimate: Contrast


def closed(found: Contrast, looks: Sequence[int], boundary: Boundary, margin: float) -> Closed:
    """Close comparisons by a rule with the looks of ``boundary``.

    ``found`` (studies, looks, comparisons) is at all of ``looks``; the comparisons of a study are one family.
    """
    made = [looks.index(look) for look in boundary.looks]
    at_looks = selected(found, (..., made, slice(None)))
    index, kinds = falls(*single_tests(at_looks, boundary, margin), boundary)
    at_look = Contrast(
        *(
            np.take_along_axis(values, index[..., None, :], axis=-2)[..., 0, :]
            for values in (at_looks.mean, at_looks.error, at_looks.freedom)
        )
    )
    return Closed(np.array(boundary.looks)[index], kinds, at_look)


def selected(found: Contrast, which: Any) -> Contrast:
    return Contrast(found.mean[which], found.error[which], found.freedom[which])


# --- what one study may expect ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is true of a study, in dB: the effect of each comparison, and the standard deviation of each cell.

    The comparisons are one family; an effect is what the mean of the second cell is more than that of the first.
    ``correlation`` is that of the scores of two cells under one seed.
    """

    effects: Mapping[Pair, float]
    spreads: Mapping[str, float]
    correlation: float = 0.0
    noise: Noise = normal


def effects_of(pairs: Iterable[Pair], means: Mapping[str, float]) -> dict[Pair, float]:
    """The effects of comparisons of cells with these means."""
    return {(before, after): means[after] - means[before] for before, after in pairs}


@dataclasses.dataclass(frozen=True)
class ExpectedComparison:
    """A comparison: in which share of the studies it is ``decided``, and after how many seeds it is closed on average.

    ``decided_if_fixed`` is the share if all cells have the seeds of the last look. ``excess`` is by how many dB the
    estimate at the look at which it is closed is farther from 0 than the truth on average; NaN for a truth of 0.
    """

    pair: Pair
    decided: float
    seeds: float
    decided_if_fixed: float
    excess: float


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The mean number of ``trainings`` of a study with a stopping rule, and that of the fixed plan."""

    trainings: float
    trainings_if_fixed: int
    comparisons: tuple[ExpectedComparison, ...]


def expectation(
    truth: Truth, boundary: Boundary, margin: float, *, paired: bool = False, studies: int = STUDIES
) -> Expectation:
    """What a study of the cells with a spread in ``truth`` may expect, on one test set.

    A cell gets the seeds of the look at which the last of its comparisons is closed; one without a comparison those of
    the first. The same arguments give the same numbers. Raises KeyError for a comparison of a cell without a spread.
    """
    first, last = boundary.looks[0], boundary.looks[-1]
    compared = list(dict.fromkeys(cell for pair in truth.effects for cell in pair))
    trainings, fixed = float((len(truth.spreads) - len(compared)) * first), len(truth.spreads) * last
    if not compared:
        return Expectation(trainings, fixed, ())
    places = np.array([[compared.index(cell) for cell in pair] for pair in truth.effects])
    effects = np.array(list(truth.effects.values()))
    spreads = np.array([truth.spreads[cell] for cell in compared])[:, None]
    generator = np.random.default_rng(SEED)
    at_once = max(1, MOST_AT_ONCE // (len(boundary.looks) * (len(compared) + len(effects))))
    sums = np.zeros((4, len(effects)))
    for start in range(0, studies, at_once):
        shape = (min(at_once, studies - start), len(compared), last)
        noise = spreads * correlated(truth.noise, generator, shape, truth.correlation)
        found = differences(noise, places, effects, boundary.looks, paired=paired)
        by_rule = closed(found, boundary.looks, boundary, margin)
        fixed_plan = closed(found, boundary.looks, Boundary((last,)), margin)
        for cell in range(len(compared)):
            trainings += by_rule.seeds[:, (places == cell).any(axis=1)].max(axis=1).sum() / studies
        sums += [
            (by_rule.kinds != UNDECIDED).sum(axis=0),
            by_rule.seeds.sum(axis=0),
            (fixed_plan.kinds != UNDECIDED).sum(axis=0),
            (np.sign(effects) * (by_rule.estimate.mean - effects)).sum(axis=0),
        ]
    decided, seeds, if_fixed, excess = sums / studies
    columns = (decided, seeds, if_fixed, np.where(effects == 0, math.nan, excess))
    rows = zip(truth.effects, *(column.tolist() for column in columns), strict=True)
    return rounded(Expectation(trainings, fixed, tuple(ExpectedComparison(*row) for row in rows)))


def smallest_shown(spread: float, boundary: Boundary, comparisons: int, *, paired: bool = False) -> float:
    """The smallest true difference in dB that the last look shows with 80 % power at the first step of Holm.

    ``spread`` is the standard deviation of both cells between seeds or, if ``paired``, that of their differences within
    a seed. A boundary of one look is a plan with a fixed number of seeds.
    """
    last, cells = boundary.looks[-1], 1 if paired else 2
    level = rounded(boundary.level(last, ALPHA / comparisons, 2))
    return rounded(spread * math.sqrt(cells / last) * detectable_errors(float(cells * (last - 1)), level))
