"""Estimate effects from designs without a pair of cells for each, and see which stand out with one seed.

:func:`fitted_weights` says how to weigh the cells of a fraction, for :func:`analysis.statistics.estimates.combination`
to estimate. :func:`half_normal` takes the noise from the effects themselves.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from analysis.statistics.estimates import ALPHA, Array, IncompleteDataError, common_seeds
from analysis.statistics.rounding import rounded

Factors = Mapping[str, tuple[str, ...]]  # the levels of each, the reference first
Cell = tuple[str, ...]  # one level for every factor, in the order of the factors

MOST_NAMED = 6  # how many cells an error names before it counts the rest
FEWEST_FOR_HALF_NORMAL = 3  # two factors have three effects, with no majority to take the noise from
TOLERANCE = 1e-9  # how far rounding may move a contrast off what the cells determine


@dataclasses.dataclass(frozen=True)
class Responses:
    """Scores of a factorial design by cell and then by seed, such as PSNR in dB; one without a score is absent."""

    factors: Factors
    values: Mapping[Cell, Mapping[int, float]]

    @property
    def grid(self) -> tuple[Cell, ...]:
        return tuple(itertools.product(*self.factors.values()))

    def name(self, cell: Cell) -> str:
        """A cell as a user types it: ``residual=true bn=post``."""
        return " ".join(f"{factor}={level}" for factor, level in zip(self.factors, cell, strict=True))


@dataclasses.dataclass(frozen=True)
class Term:
    """The factors that leave their reference, and for which level: one for a main effect, two for an interaction.

    A main effect is the level minus the reference, averaged over all levels of the other factors. An interaction is
    how much that of one factor changes when the other changes from its reference too; textbooks of two-level designs
    print half of it.
    """

    moved: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " x ".join(f"{factor}={level}" for factor, level in self.moved)


@dataclasses.dataclass(frozen=True)
class Fit:
    """The weight of each cell in every term that the cells determine, by the key of the cell.

    ``refused`` are the terms that they do not determine; ``method`` says what the fit assumes.
    """

    weights: Mapping[Term, Mapping[str, float]]
    refused: tuple[Term, ...]
    method: str


@dataclasses.dataclass(frozen=True)
class Point:
    """One effect of a half-normal plot: its signed size on the textbook's scale, and its half-normal quantile."""

    factors: tuple[str, ...]
    effect: float
    quantile: float
    stands_out: bool


@dataclasses.dataclass(frozen=True)
class HalfNormal:
    """A half-normal plot of all effects of a two-level design, the smallest first.

    ``pse`` is Lenth's pseudo standard error. An effect beyond ``margin`` stands out on its own; one beyond
    ``simultaneous_margin`` stands out among all of them, and only that is marked.
    """

    points: tuple[Point, ...]
    pse: float
    margin: float
    simultaneous_margin: float


def fitted_weights(factors: Factors, cells: Mapping[str, Cell], order: int = 2) -> Fit:
    """Weigh ``cells``, given by their keys, so that their weighted sum is the least-squares estimate of each term.

    The model has a mean, main effects and interactions of up to ``order`` factors; higher interactions are taken to be
    0, and if they are not, they bias these effects. A term that the cells do not determine is refused. The cells must
    be distinct networks: one that stands there twice would count twice.
    """
    columns = (Term(()), *terms(factors, order))
    levels = [set(zip(factors, cell, strict=True)) for cell in cells.values()]
    rows = np.array([[float(cell.issuperset(column.moved)) for column in columns] for cell in levels])
    basis, recipes = orthonormal(rows.reshape(len(cells), len(columns)))
    found, refused = {}, []
    for term in columns[1:]:
        sought = np.array([coefficient(factors, term, column) for column in columns])
        by_cell = combined(combined(sought, recipes.T), basis)
        if np.allclose(combined(by_cell, rows), sought, rtol=0, atol=TOLERANCE):
            pairs = zip(cells, by_cell.tolist(), strict=True)
            found[term] = {key: weight for key, weight in pairs if abs(weight) > TOLERANCE}
        else:
            refused.append(term)
    method = (
        f"least squares on {len(cells)} of {math.prod(map(len, factors.values()))} cells, interactions of more than "
        f"{order} factors taken to be 0"
    )
    return Fit(found, tuple(refused), method)


def coefficient(factors: Factors, term: Term, column: Term) -> float:
    """How much of the model's ``column`` is in a term: its share of the levels over which the term is averaged.

    A column that lacks something which the term moves is the same before and after, and cancels.
    """
    if not set(term.moved) <= set(column.moved):
        return 0.0
    return math.prod(1 / len(factors[factor]) for factor, level in column.moved if (factor, level) not in term.moved)


def terms(factors: Factors, order: int = 2) -> tuple[Term, ...]:
    """All main effects against the reference levels, and then all interactions of up to ``order`` factors."""
    return tuple(
        Term(tuple(zip(chosen, levels, strict=True)))
        for size in range(1, order + 1)
        for chosen in itertools.combinations(factors, size)
        for levels in itertools.product(*(factors[factor][1:] for factor in chosen))
    )


def weights(factors: Factors, term: Term) -> Array:
    """The weight of every cell of the grid in the contrast of a term."""
    moved = dict(term.moved)
    parts = []
    for factor, levels in factors.items():
        if factor not in moved:
            parts.append(np.full(len(levels), 1 / len(levels)))
            continue
        part = np.zeros(len(levels))
        part[0], part[levels.index(moved[factor])] = -1.0, 1.0
        parts.append(part)
    return functools.reduce(np.kron, parts)


def combined(weights: Array, rows: Array) -> Array:
    """Add up rows, each times its weight.

    This adds in the same order on every processor, so the sum has the same last bits; a product of matrices, as a
    solution from a library of linear algebra, has not.
    """
    return np.asarray((weights.reshape(-1, *[1] * (rows.ndim - 1)) * rows).sum(axis=0))


def combined_all(weights: Array, rows: Array) -> Array:
    """Add up rows for each of many sets of weights."""
    return np.array([combined(each, rows) for each in weights])


def orthonormal(matrix: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis of the columns of a matrix as rows, and how it is made of these columns.

    A column that depends on those before it adds nothing, and ``recipes @ matrix.T`` is the basis: by Gram and
    Schmidt's method, twice for each column, so that the vectors are orthogonal to the last digits.
    """
    length, count = matrix.shape
    found = np.empty((0, length + count))
    for column in np.hstack([matrix.T, np.eye(count)]):
        rest = column
        for _ in range(2):
            rest = rest - combined((found[:, :length] * rest[:length]).sum(axis=1), found)
        size = math.sqrt(math.fsum(rest[:length] ** 2))
        if size > TOLERANCE:
            found = np.vstack([found, rest / size])
    return found[:, :length], found[:, length:]


def half_normal(responses: Responses) -> HalfNormal:
    """All effects of a two-level design against half-normal quantiles, for designs with one or two seeds.

    Without replicates the spread comes from the effects themselves: most of them are assumed to be noise, which is
    wrong for many active components. The effects are on the textbook's scale, on which all have one variance: half the
    interaction of a :class:`Term`, a quarter for three factors. Effects of equal size are sorted by name. Raises
    IncompleteDataError if no seed has all cells or a training diverged, and ValueError for more than two levels or
    fewer than three factors (Daniel, 1959; Lenth, 1989).
    """
    check_two_levels(responses)
    if len(responses.factors) < FEWEST_FOR_HALF_NORMAL:
        raise ValueError(f"a half-normal plot needs {FEWEST_FOR_HALF_NORMAL} factors, not {len(responses.factors)}")
    table = complete(responses)
    names = [tuple(factor for factor, _ in term.moved) for term in terms(responses.factors, len(responses.factors))]
    sizes = np.array(rounded(combined_all(half_normal_weights(responses.factors), table.mean(axis=1)).tolist()))
    pse, margin, simultaneous = (rounded(float(value)) for value in lenth(sizes))
    quantiles = stats.halfnorm.ppf((np.arange(len(sizes)) + 0.5) / len(sizes)).tolist()
    order = sorted(zip(names, sizes.tolist(), strict=True), key=lambda one: (abs(one[1]), one[0]))
    points = tuple(
        Point(factors, size, quantile, abs(size) > simultaneous)
        for (factors, size), quantile in zip(order, quantiles, strict=True)
    )
    return HalfNormal(points, pse, margin, simultaneous)


def complete(responses: Responses) -> Array:
    """The scores (cells, seeds) under the seeds that have all cells.

    Raises IncompleteDataError if no seed does, or for a score that is not a finite number: without it, the effects
    would be those of the seeds that went well.
    """
    absent = [cell for cell in responses.grid if not responses.values.get(cell)]
    if absent:
        named = ", ".join(responses.name(cell) for cell in absent[:MOST_NAMED])
        more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
        raise IncompleteDataError(f"no seed has all {len(responses.grid)} cells; without any score: {named}{more}")
    seeds = common_seeds({responses.name(cell): responses.values[cell] for cell in responses.grid})
    if not seeds:
        raise IncompleteDataError(f"no seed has all {len(responses.grid)} cells, though each has a score")
    table = np.array([[responses.values[cell][seed] for seed in seeds] for cell in responses.grid], dtype=float)
    if not np.all(np.isfinite(table)):
        raise IncompleteDataError("a score is not a finite number")
    return table


def check_two_levels(responses: Responses) -> None:
    for factor, levels in responses.factors.items():
        if len(levels) > 2:
            raise ValueError(f"factor {factor!r} has {len(levels)} levels, not 2")


def half_normal_weights(factors: Factors) -> Array:
    """The weight of every cell in each of the effects of a two-level design, all of one variance."""
    return np.array([weights(factors, term) / 2 ** (len(term.moved) - 1) for term in terms(factors, len(factors))])


def lenth(sizes: Array) -> tuple[Array, Array, Array]:
    """Lenth's pseudo standard error over the last axis, the margin of error and the simultaneous margin of error.

    The median of the effects is noise if fewer than half are real; those beyond 2.5 of it are left out of a second
    median. A third as many degrees of freedom as effects is Lenth's own approximation; with 7 effects it is cautious.
    """
    magnitudes, count = np.abs(sizes), sizes.shape[-1]
    first = 1.5 * np.median(magnitudes, axis=-1, keepdims=True)
    small = np.where(magnitudes <= 2.5 * first, magnitudes, np.nan)
    pse = 1.5 * np.nanmedian(small, axis=-1)
    each = stats.t.isf(ALPHA / 2, count / 3)
    together = stats.t.isf((1 - (1 - ALPHA) ** (1 / count)) / 2, count / 3)
    return np.asarray(pse), np.asarray(pse * each), np.asarray(pse * together)
