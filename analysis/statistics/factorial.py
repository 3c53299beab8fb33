"""Estimate the effects of the factors of a design, alone and together, from numbers by cell and seed.

Every effect is a contrast between cells, taken within each seed, so what a seed does to all cells alike cancels; its
interval is Student's over seeds. A seed that lacks a cell is dropped and listed, and a design that lacks a cell is
refused, except by :func:`fitted_effects`, which estimates what the remaining cells determine.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from analysis.statistics.estimates import ALPHA, Array, Estimate, IncompleteDataError, estimate
from analysis.statistics.rounding import rounded, settled

Cell = tuple[str, ...]  # one level for every factor, in the order of the factors

MOST_NAMED = 6  # how many cells an error names before it counts the rest
FEWEST_FOR_HALF_NORMAL = 3  # two factors have three effects, with no majority to take the noise from
TOLERANCE = 1e-9  # how far rounding may move a contrast off what the cells determine


@dataclasses.dataclass(frozen=True)
class Responses:
    """Scores of a factorial design.

    ``factors`` lists the levels of each, the reference first. ``values`` holds, by cell and then by seed, a score such
    as PSNR in dB; a cell or a seed without a score is absent. A score that is not a finite number makes every estimate
    that needs it NaN: dropping it would select the seeds that went well.
    """

    factors: Mapping[str, tuple[str, ...]]
    values: Mapping[Cell, Mapping[int, float]]

    @property
    def grid(self) -> tuple[Cell, ...]:
        return tuple(itertools.product(*self.factors.values()))

    @property
    def scored(self) -> tuple[Cell, ...]:
        """The cells that have a score under some seed, in the order of the grid."""
        return tuple(cell for cell in self.grid if self.values.get(cell))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({seed for scores in self.values.values() for seed in scores}))

    def name(self, cell: Cell) -> str:
        """A cell as a user types it: ``residual=true bn=post``."""
        return " ".join(f"{factor}={level}" for factor, level in zip(self.factors, cell, strict=True))


@dataclasses.dataclass(frozen=True)
class Scores:
    """The responses of ``cells`` as an array (cells, seeds) without a gap, and the cells that dropped seeds lack."""

    table: Array
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    dropped: Mapping[int, tuple[Cell, ...]]


@dataclasses.dataclass(frozen=True)
class Term:
    """The factors that leave their reference, and for which level: one for a main effect, two for an interaction."""

    moved: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " x ".join(f"{factor}={level}" for factor, level in self.moved)


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effect of a term, in the unit of the responses.

    A main effect is the level minus the reference, averaged over all levels of the other factors. An interaction is
    how much that of one factor changes when the other changes from its reference too; textbooks of two-level designs
    print half of it. ``estimate`` is over ``by_seed``, which :func:`analysis.statistics.estimates.verdicts` takes.
    """

    term: Term
    by_seed: tuple[float, ...]
    estimate: Estimate


@dataclasses.dataclass(frozen=True)
class Effects:
    """The effects of a design, with what had to be left out.

    ``dropped`` lists, for every seed that is not used, the cells that it lacks; ``refused`` the terms that the cells
    do not determine; ``method`` says how the effects were estimated and what that assumes. ``misfit`` is the root mean
    square residual of a fitted model over its spare cells; NaN if none is spare or nothing was fitted.
    """

    effects: tuple[Effect, ...]
    seeds: tuple[int, ...]
    dropped: Mapping[int, tuple[Cell, ...]]
    refused: tuple[Term, ...]
    method: str
    misfit: float


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


@dataclasses.dataclass(frozen=True)
class Share:
    """A component's part of the gain: ``gain`` in the unit of the responses, ``fraction`` of the total.

    The interval of the fraction is Fieller's; it is NaN if the total gain may be 0, because then any fraction is
    possible. The p of both is that of no gain.
    """

    factor: str
    by_seed: tuple[float, ...]
    gain: Estimate
    fraction: Estimate


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shapley shares of all components; under every seed their gains add up to ``total``."""

    shares: tuple[Share, ...]
    total: Estimate


def restricted(responses: Responses, levels: Mapping[str, tuple[str, ...]]) -> Responses:
    """The part of a design in which the named factors have only these levels, the reference of the part first.

    It turns factors of many levels into pairs, and a design with gaps into a smaller one without.
    """
    factors = {**responses.factors, **levels}
    inside = set(itertools.product(*factors.values()))
    return Responses(factors, {cell: scores for cell, scores in responses.values.items() if cell in inside})


def complete(responses: Responses) -> Scores:
    """The scores of all cells under the seeds that have them all; raises IncompleteDataError if no seed does."""
    found = gathered(responses, responses.grid)
    if not found.seeds:
        raise IncompleteDataError(
            f"no seed has all {len(found.cells)} cells of the design; {gaps(responses, found.cells)}"
        )
    return found


def gathered(responses: Responses, cells: tuple[Cell, ...]) -> Scores:
    """The scores of ``cells`` under the seeds that have them all, and what the other seeds lack."""
    lacking = {
        seed: tuple(cell for cell in cells if seed not in responses.values.get(cell, {})) for seed in responses.seeds
    }
    seeds = tuple(seed for seed, missing in lacking.items() if not missing)
    table = np.array([[responses.values[cell][seed] for seed in seeds] for cell in cells] if seeds else [], dtype=float)
    return Scores(table, cells, seeds, {seed: missing for seed, missing in lacking.items() if missing})


def gaps(responses: Responses, cells: Sequence[Cell]) -> str:
    """Which of ``cells`` are missing: those without any score, or else those that each seed lacks."""
    if not responses.seeds:
        return "there is no score at all"
    absent = [cell for cell in cells if not responses.values.get(cell)]
    if absent:
        return f"without any score: {named(responses, absent)}"
    dropped = gathered(responses, tuple(cells)).dropped
    return "; ".join(f"seed {seed} lacks {named(responses, missing)}" for seed, missing in dropped.items())


def named(responses: Responses, cells: Sequence[Cell]) -> str:
    shown = ", ".join(responses.name(cell) for cell in cells[:MOST_NAMED])
    return shown + (f" and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else "")


def terms(factors: Mapping[str, tuple[str, ...]], order: int = 2) -> tuple[Term, ...]:
    """All main effects against the reference levels, and then all interactions of up to ``order`` factors."""
    return tuple(
        Term(tuple(zip(chosen, levels, strict=True)))
        for size in range(1, order + 1)
        for chosen in itertools.combinations(factors, size)
        for levels in itertools.product(*(factors[factor][1:] for factor in chosen))
    )


def weights(factors: Mapping[str, tuple[str, ...]], term: Term) -> Array:
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


def effects(responses: Responses, order: int = 2) -> Effects:
    """Main effects and interactions of up to ``order`` factors, from a design that has all its cells.

    They assume nothing about interactions of more factors. Raises IncompleteDataError if no seed has all cells.
    """
    scores = complete(responses)
    found = tuple(
        effect(term, combined(weights(responses.factors, term), scores.table))
        for term in terms(responses.factors, order)
    )
    return Effects(found, scores.seeds, scores.dropped, (), "contrasts between all cells of the design", math.nan)


def effect(term: Term, by_seed: Array) -> Effect:
    values = tuple(settled(by_seed).tolist())
    return Effect(term, values, estimate(values))


def fitted_effects(responses: Responses, order: int = 2) -> Effects:
    """The effects of :func:`effects` by least squares, from the cells that there are.

    The model has a mean, main effects and interactions of up to ``order`` factors, fitted within each seed to the
    cells that have a score; higher interactions are taken to be 0, and if they are not, they bias these effects. A
    term that the cells do not determine is refused. On a design with all its cells the result is that of
    :func:`effects`. Raises IncompleteDataError if no seed has all the cells that some seed has.
    """
    scores = gathered(responses, responses.scored)
    if not scores.seeds:
        lacking = gaps(responses, scores.cells)
        raise IncompleteDataError(f"no seed has all {len(scores.cells)} cells that some seed has; {lacking}")
    columns = model(responses.factors, order)
    there = set(scores.cells)
    rows = columns[[cell in there for cell in responses.grid]]
    basis, recipes = orthonormal(rows)
    found, refused = [], []
    for term in terms(responses.factors, order):
        sought = combined(weights(responses.factors, term), columns)
        by_cell = combined(combined(sought, recipes.T), basis)
        if np.allclose(combined(by_cell, rows), sought, rtol=0, atol=TOLERANCE):
            found.append(effect(term, combined(by_cell, scores.table)))
        else:
            refused.append(term)
    method = (
        f"least squares on {len(scores.cells)} of {len(responses.grid)} cells, interactions of more than "
        f"{order} factors taken to be 0"
    )
    misfit = leftover(basis, scores.table)
    return Effects(tuple(found), scores.seeds, scores.dropped, tuple(refused), method, misfit)


def model(factors: Mapping[str, tuple[str, ...]], order: int) -> Array:
    """The columns of the linear model on the whole grid: 1, and for each term whether the cell has all its levels."""
    grid = [set(zip(factors, cell, strict=True)) for cell in itertools.product(*factors.values())]
    return np.array([[1.0, *(float(cell.issuperset(term.moved)) for term in terms(factors, order))] for cell in grid])


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


def leftover(basis: Array, table: Array) -> float:
    """The root mean square residual of a model per spare cell and seed, given a basis of its columns.

    NaN if no cell is spare.
    """
    spare = len(table) - len(basis)
    if spare == 0:
        return math.nan
    fitted = combined_all(basis.T, combined_all(basis, table))
    return math.sqrt(math.fsum(((table - fitted) ** 2).flat) / (spare * table.shape[1]))


def half_normal(responses: Responses) -> HalfNormal:
    """All effects of a two-level design against half-normal quantiles, for designs with one or two seeds.

    Without replicates the spread comes from the effects themselves: most of them are assumed to be noise, which is
    wrong for many active components. The effects are on the textbook's scale, on which all have one variance: half the
    interaction of :func:`effects`, a quarter for three factors. Effects of equal size are sorted by name. Raises
    IncompleteDataError as :func:`effects` does, and ValueError for more than two levels or fewer than three factors
    (Daniel, 1959; Lenth, 1989).
    """
    check_two_levels(responses)
    if len(responses.factors) < FEWEST_FOR_HALF_NORMAL:
        raise ValueError(f"a half-normal plot needs {FEWEST_FOR_HALF_NORMAL} factors, not {len(responses.factors)}")
    scores = complete(responses)
    names = [tuple(factor for factor, _ in term.moved) for term in terms(responses.factors, len(responses.factors))]
    sizes = np.array(rounded(combined_all(half_normal_weights(responses.factors), scores.table.mean(axis=1)).tolist()))
    pse, margin, simultaneous = (rounded(float(value)) for value in lenth(sizes))
    quantiles = stats.halfnorm.ppf((np.arange(len(sizes)) + 0.5) / len(sizes)).tolist()
    order = sorted(zip(names, sizes.tolist(), strict=True), key=lambda one: (abs(one[1]), one[0]))
    points = tuple(
        Point(factors, size, quantile, abs(size) > simultaneous)
        for (factors, size), quantile in zip(order, quantiles, strict=True)
    )
    return HalfNormal(points, pse, margin, simultaneous)


def check_two_levels(responses: Responses) -> None:
    for factor, levels in responses.factors.items():
        if len(levels) > 2:
            raise ValueError(f"factor {factor!r} has {len(levels)} levels; choose two of them with restricted()")


def half_normal_weights(factors: Mapping[str, tuple[str, ...]]) -> Array:
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


def shapley(responses: Responses) -> Shares:
    """Each component's Shapley share of the gain from all components ablated to all of them at their reference.

    A share is what the component adds, averaged over all orders in which components can be added, so no order is
    preferred and nothing is counted twice: the shares sum to the gain. Each factor has its reference level and one
    ablated level; :func:`restricted` chooses. Raises ValueError for more levels, and IncompleteDataError if no seed
    has all 2^k cells (Shapley, 1953).
    """
    check_two_levels(responses)
    scores = complete(responses)
    by_factor = settled(combined_all(shapley_weights(len(responses.factors)), scores.table))
    total = settled(scores.table[0] - scores.table[-1])
    shares = tuple(
        Share(factor, tuple(gains.tolist()), estimate(gains.tolist()), fraction(gains, total))
        for factor, gains in zip(responses.factors, by_factor, strict=True)
    )
    return Shares(shares, estimate(total.tolist()))


def shapley_weights(components: int) -> Array:
    """The weight of every cell of a two-level grid, reference first, in the share of each component."""
    table = np.zeros((components, 2**components))
    for column, cell in enumerate(itertools.product((0, 1), repeat=components)):
        present = [index for index, level in enumerate(cell) if level == 0]
        for component in range(components):
            others = len(present) - (component in present)
            orders = math.factorial(others) * math.factorial(components - 1 - others) / math.factorial(components)
            table[component, column] = orders if component in present else -orders
    return table


def fraction(gains: Array, total: Array) -> Estimate:
    """The ratio of the mean gain to the mean total, with Fieller's interval and the p of no gain."""
    own = estimate(gains.tolist())
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.divide(gains.mean(), settled(total.mean())))
    if own.n < 2 or not math.isfinite(ratio):
        return Estimate(ratio, math.nan, math.nan, own.n, own.p)
    low, high = fieller(gains, total)
    return Estimate(ratio, float(low), float(high), own.n, own.p)


def fieller(numerator: Array, denominator: Array) -> tuple[Array, Array]:
    """The 95 % interval of a ratio of two means over the last axis, paired; NaN if the denominator may be 0.

    It holds all ratios r for which the mean of numerator - r * denominator may be 0 by Student's test (Fieller, 1954).
    """
    count = numerator.shape[-1]
    squared = float(stats.t.isf(ALPHA / 2, count - 1)) ** 2 / (count * (count - 1))
    top, bottom = numerator.mean(axis=-1), settled(denominator.mean(axis=-1))
    top_rest, bottom_rest = numerator - top[..., None], denominator - bottom[..., None]
    square = bottom**2 - squared * np.sum(bottom_rest**2, axis=-1)
    middle = top * bottom - squared * np.sum(top_rest * bottom_rest, axis=-1)
    constant = top**2 - squared * np.sum(top_rest**2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        width = np.sqrt(np.maximum(middle**2 - square * constant, 0.0))
        low, high = (middle - width) / square, (middle + width) / square
    bounded = square > 0
    return np.where(bounded, low, math.nan), np.where(bounded, high, math.nan)
