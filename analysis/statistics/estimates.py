"""Estimate and test differences between cells from a few seeds, and say what the seeds cannot show.

Every cell has a variance of its own, and a difference of cells is tested by Welch's method: trainings diverge from one
part in a million, so cells of one seed have as good as nothing in common, and ablated cells spread differently.
Intervals and the p of an :class:`Estimate` are for one comparison. Among twenty effects that are all 0, one 95 %
interval is expected to exclude 0, so conclusions about a family of comparisons go through :func:`verdicts`, which
corrects for their number.

``docs/statistics.md`` says which method is used when, with formulas and sources; ``analysis/statistics/simulation.py``
measures how often the intervals cover and the verdicts err.
"""

import bisect
import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from analysis.statistics.rounding import rounded, settled

Array = npt.NDArray[np.float64]

Scores = Mapping[str, Mapping[int, float]]  # by cell and then by seed, such as PSNR in dB

CONFIDENCE = 0.95  # the share of intervals that cover the truth, if scores are normal

ALPHA = 0.05
"""How often a family of verdicts may hold a wrong one of a kind: a false difference, or a false equivalence."""

MARGIN_DB = 0.05
"""Differences in PSNR that are smaller than this do not matter; papers print two decimals and argue over 0.1 dB."""

POWER = 0.8  # how probable it must be to find a difference before seeds are said to be able to show it
FEWEST_RANKED = 3  # numbers that have a rank correlation
MOST_SEEDS = 1000  # plans for more seeds than this are not computed
HALVINGS = 50  # of an interval, which leave 15 digits

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(96)
"""Gauss-Legendre quadrature, fine enough for four digits of the power of a test."""

NORMAL_NODES = 8.5 * NODES
NORMAL_WEIGHTS = 8.5 * NODE_WEIGHTS * np.exp(-(NORMAL_NODES**2) / 2) / math.sqrt(2 * math.pi)
"""The same for the mean of a function of a standard normal number."""


class IncompleteDataError(ValueError):
    """Numbers that are missing for what was asked; the message names them."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n - 1 in the denominator; NaN for n = 1) of ``n`` values."""

    mean: float
    sd: float
    n: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean difference, its 95 % interval from ``low`` to ``high``, and the two-sided p of no difference.

    ``n`` is the smallest number of seeds of a cell in it, ``error`` the standard error, and ``freedom`` the degrees of
    freedom of Student's t. With one seed in a cell all but the mean are NaN: one seed cannot tell an effect from noise.
    If no score varies, the interval is the point, p is 0, or 1 for a mean of 0, and ``freedom`` is NaN.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float
    error: float
    freedom: float


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Weighted sums of means, their standard errors and the degrees of freedom of these, as arrays of one shape."""

    mean: Array
    error: Array
    freedom: Array

    @property
    def width(self) -> Array:
        """How far the 95 % intervals reach to either side."""
        reach = special.stdtrit(self.freedom, (1 + CONFIDENCE) / 2) * self.error
        return np.where(self.error == 0, 0.0, reach)

    @property
    def p(self) -> Array:
        """The two-sided p of a sum of 0; without any spread 0, or 1 if the sum is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * special.stdtr(self.freedom, -np.abs(self.mean) / self.error)
        return np.where(self.error == 0, np.where(self.mean == 0, 1.0, 0.0), p)

    def p_equivalence(self, margin: float = MARGIN_DB) -> Array:
        """The p of two one-sided t tests: small if the sum is closer to 0 than ``margin``.

        It is below 0.05 exactly if the 90 % interval lies within the margin on both sides (Schuirmann, 1987).
        """
        room = settled(margin - np.abs(self.mean))
        with np.errstate(divide="ignore", invalid="ignore"):
            p = special.stdtr(self.freedom, -room / self.error)
        return np.where(self.error == 0, np.where(room > 0, 0.0, 1.0), p)


class Outcome(enum.StrEnum):
    """The conclusion about a difference to the reference, in a quality in which more is better."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The conclusion about one comparison in a family of ``comparisons``, and why.

    ``p_difference`` and ``p_equivalence`` are corrected by Holm over the family. ``detectable`` is the smallest true
    difference in dB that would have been shown with 80 % power, given the standard error, at the first and hardest step
    of Holm. All three are NaN if nothing could be tested; ``detectable`` also if no score varies. ``look`` is the
    number of seeds at which it fell, if it may fall at several (:mod:`analysis.statistics.sequential`).
    """

    outcome: Outcome
    reason: str
    estimate: Estimate
    p_difference: float
    p_equivalence: float
    comparisons: int
    detectable: float
    look: int | None = None


@dataclasses.dataclass(frozen=True)
class ImageEstimate:
    """A difference estimated over pictures for networks that are trained, so ``estimate.n`` counts pictures.

    It predicts other pictures with these very networks and not other seeds, so no verdict on a component rests on it.
    ``scope`` says which pictures and seeds that is, to be shown with the numbers.
    """

    estimate: Estimate
    scope: str


def summary(values: Sequence[float]) -> Summary:
    array = np.asarray(values, dtype=float)
    mean = float(array.mean()) if array.size else math.nan
    sd = float(array.std(ddof=1)) if array.size > 1 else math.nan
    return rounded(Summary(mean, sd, int(array.size)))


def student(values: npt.ArrayLike) -> Contrast:
    """The mean over the last axis, which is at least 2 long, with n - 1 degrees of freedom (Student, 1908)."""
    array = np.asarray(values, dtype=float)
    count = array.shape[-1]
    error = settled(array.std(axis=-1, ddof=1) / math.sqrt(count))
    return Contrast(settled(array.mean(axis=-1)), error, np.where(error == 0, math.nan, count - 1.0))


def welch(weights: npt.ArrayLike, means: npt.ArrayLike, variances: npt.ArrayLike, counts: npt.ArrayLike) -> Contrast:
    """Weighted sums of means over the last axis, from the variance and the number of values behind each mean.

    No variance is assumed to be that of another mean. A mean that is known exactly has a variance of 0 and an infinite
    count. The degrees of freedom are approximate (Welch, 1947; Satterthwaite, 1946).
    """
    weight, each, count = (np.asarray(values, dtype=float) for values in (weights, variances, counts))
    parts = weight**2 * each / count
    squared = parts.sum(axis=-1)
    error = settled(np.sqrt(squared))
    with np.errstate(invalid="ignore"):
        freedom = squared**2 / (parts**2 / (count - 1)).sum(axis=-1)
    return Contrast(settled((weight * means).sum(axis=-1)), error, np.where(error == 0, math.nan, freedom))


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one number per seed, such as a difference within each seed, with Student's interval and test."""
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return unknown(summary(values).mean, len(values))
    return shown(student(values), len(values))


def shown(found: Contrast, n: int) -> Estimate:
    mean, width = float(found.mean), float(found.width)
    return rounded(
        Estimate(mean, mean - width, mean + width, n, float(found.p), float(found.error), float(found.freedom))
    )


def unknown(mean: float, n: int) -> Estimate:
    """An estimate without an interval or a test."""
    return rounded(Estimate(mean, math.nan, math.nan, n, math.nan, math.nan, math.nan))


def combination(
    weights: Mapping[str, float], scores: Scores, *, paired: bool = False, exact: Collection[str] = frozenset()
) -> Estimate:
    """Sum up the mean scores of cells, each times its weight, such as 1 and -1 for a difference of two.

    Cells vary independently, each with its own variance (:func:`welch`). If ``paired``, the sum is taken within each
    seed that all cells have, and its interval is Student's. The cells in ``exact`` train nothing: they have one score,
    which holds under every seed, and do not count towards ``n``. Cells of weight 0 do not matter. A score that is not a
    finite number makes the estimate NaN, because leaving it out would select the seeds that went well; so does a cell
    without a score. Raises ValueError for an exact cell with different scores.
    """
    tables = {cell: rounded(dict(scores.get(cell, {}))) for cell, weight in weights.items() if weight != 0}
    constant = {cell: exact_score(cell, table) for cell, table in tables.items() if cell in exact}
    varying = {cell: table for cell, table in tables.items() if cell not in exact}
    if paired and varying:
        seeds = common_seeds(varying)
        by_seed = [constant | {cell: table[seed] for cell, table in varying.items()} for seed in seeds]
        return estimate([weighted(weights, row) for row in by_seed])
    n = min(map(len, (varying or tables).values()), default=0)
    means = constant | {cell: mean_of(table.values()) for cell, table in varying.items()}
    mean = weighted(weights, means) if means else math.nan
    if (n < 2 and varying) or not math.isfinite(mean):
        return unknown(mean, n)
    variances = [variance_of(varying[cell].values()) if cell in varying else 0.0 for cell in means]
    counts = [len(varying[cell]) if cell in varying else math.inf for cell in means]
    found = welch([weights[cell] for cell in means], list(means.values()), variances, counts)
    return shown(dataclasses.replace(found, mean=settled(mean)), n)


def exact_score(cell: str, table: Mapping[int, float]) -> float:
    if len(set(table.values())) > 1:
        raise ValueError(f"cell {cell!r} trains nothing but has different scores: {sorted(set(table.values()))}")
    return next(iter(table.values()), math.nan)


def common_seeds(scores: Scores) -> list[int]:
    """The seeds that all cells have, in ascending order."""
    return sorted(set.intersection(*(set(table) for table in scores.values()))) if scores else []


def weighted(weights: Mapping[str, float], numbers: Mapping[str, float]) -> float:
    """The sum of numbers times their weights, NaN if one is not finite; it does not depend on the order."""
    terms = [weights[cell] * number for cell, number in numbers.items()]
    return math.fsum(terms) if all(map(math.isfinite, terms)) else math.nan


def mean_of(values: Collection[float]) -> float:
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def variance_of(values: Collection[float]) -> float:
    mean = mean_of(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def share(count: int, total: int) -> Interval:
    """The exact 95 % interval of a probability, from ``count`` of ``total`` (Clopper and Pearson, 1934).

    Raises ValueError unless 0 <= count <= total and total is above 0.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is no share")
    tail = (1 - CONFIDENCE) / 2
    low = special.betaincinv(count, total - count + 1, tail) if count > 0 else 0.0
    high = special.betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return rounded(Interval(float(low), float(high)))


def correlation_within_seeds(scores: Scores) -> float:
    """The correlation of two cells over the seeds that all cells have, pooled over all pairs of cells.

    It is the sum of the covariances over the sum of the products of the standard deviations; pairing pays only if it is
    clearly above 0. NaN for fewer than two cells or common seeds, for scores that do not vary or are not finite.
    """
    seeds = common_seeds(scores)
    if len(scores) < 2 or len(seeds) < 2:
        return math.nan
    table = np.array([[each[seed] for seed in seeds] for each in scores.values()], dtype=float)
    if not np.all(np.isfinite(table)):
        return math.nan
    rest = table - table.mean(axis=1, keepdims=True)
    size = settled(np.sqrt((rest**2).sum(axis=1)))
    # A sum over pairs is half of what the square of a sum has beyond the squares themselves.
    products = float(size.sum() ** 2 - (size**2).sum())
    covariances = float((rest.sum(axis=0) ** 2).sum() - (rest**2).sum())
    return rounded(covariances / products) if products > 0 else math.nan


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of two rows of numbers, 1 for the same order, ties at their mean rank (Spearman, 1904).

    NaN for fewer than three numbers, which have one order or the other, and if a row does not vary.
    """
    if len(first) < FEWEST_RANKED or len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    return rounded(float(np.corrcoef(ranks(first), ranks(second))[0, 1]))


def ranks(values: Sequence[float]) -> Array:
    """The place of each number in ascending order, from 1 on; equal numbers share the mean of theirs."""
    _, places, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def break_even_correlation(seeds: int) -> float:
    """The correlation within a seed above which pairing narrows an interval, for two cells of one spread.

    Paired, the variance falls by the correlation, and Student's t has half as many degrees of freedom. Raises
    ValueError for fewer than two seeds.
    """
    if seeds < 2:
        raise ValueError(f"{seeds} seed shows no correlation")
    apart, paired = (float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) for freedom in (2 * (seeds - 1), seeds - 1))
    return rounded(1 - (apart / paired) ** 2)


def holm(p_values: npt.ArrayLike) -> Array:
    """Each p corrected for the number of comparisons in the last axis, in the order given.

    The chance that a family holds any false rejection at ``ALPHA`` is then at most ``ALPHA``, however the
    comparisons depend on each other. A NaN stays NaN and does not count as a comparison (Holm, 1979).
    """
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given, axis=-1)
    ascending = np.take_along_axis(given, order, axis=-1)
    tested = np.sum(~np.isnan(given), axis=-1, keepdims=True)
    stepped = np.maximum.accumulate(ascending * (tested - np.arange(given.shape[-1])), axis=-1)
    corrected = np.empty_like(given)
    np.put_along_axis(corrected, order, np.minimum(stepped, 1.0), axis=-1)
    return corrected


def outcomes(mean: npt.ArrayLike, p_difference: npt.ArrayLike, p_equivalence: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """The :class:`Outcome` of every comparison from corrected p.

    A difference that is not 0 but surely smaller than the margin is equivalent: that is what a margin is for.
    """
    sign, different = np.asarray(mean), np.asarray(p_difference) < ALPHA
    conditions = [np.asarray(p_equivalence) < ALPHA, different & (sign > 0), different & (sign < 0)]
    names = [str(outcome) for outcome in (Outcome.EQUIVALENT, Outcome.BETTER, Outcome.WORSE)]
    return np.select(conditions, names, default=str(Outcome.UNDECIDED))


def verdicts(found: Sequence[Estimate], margin: float = MARGIN_DB) -> list[Verdict]:
    """Better, worse, equivalent or undecided for each comparison of a family, corrected for their number.

    ``found`` are differences to a reference in dB; more is better. The chance of any false better or worse among
    comparisons without a difference is at most 5 %, and so is that of any false equivalent among those whose difference
    reaches the margin. A comparison with one seed, or whose scores do not vary but differ, tests nothing: it is
    undecided and does not count. Raises ValueError for a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"the margin is {margin:g} dB and must be above 0")
    tests = [tested(each, margin) for each in found]
    comparisons = sum(not math.isnan(p) for p, _ in tests)
    p_difference, p_equivalence = (rounded(holm([each[kind] for each in tests]).tolist()) for kind in (0, 1))
    named = outcomes([each.mean for each in found], p_difference, p_equivalence)
    bare = [
        Verdict(Outcome(name), "", each, different, equivalent, comparisons, detectable(each, comparisons))
        for name, each, different, equivalent in zip(named, found, p_difference, p_equivalence, strict=True)
    ]
    return [dataclasses.replace(verdict, reason=reason(verdict, margin)) for verdict in bare]


def tested(found: Estimate, margin: float) -> tuple[float, float]:
    """The p of no difference and that of equivalence; NaN for scores that say nothing about chance."""
    if math.isnan(found.p) or (found.error == 0 and found.mean != 0):
        return math.nan, math.nan
    contrast = Contrast(*(np.asarray(value, dtype=float) for value in (found.mean, found.error, found.freedom)))
    return found.p, float(contrast.p_equivalence(margin))


def detectable(found: Estimate, comparisons: int) -> float:
    """The smallest true difference found with 80 % power at the first step of Holm; NaN without an error."""
    if not found.error > 0:
        return math.nan
    return rounded(found.error * detectable_errors(found.freedom, ALPHA / comparisons))


def reason(verdict: Verdict, margin: float) -> str:
    found = verdict.estimate
    if math.isnan(verdict.p_difference):
        return untested(found)
    if verdict.outcome is Outcome.EQUIVALENT and found.error == 0:
        return f"the same score under each of {found.n} seeds"
    different, equivalent = (p_text(p, verdict.comparisons) for p in (verdict.p_difference, verdict.p_equivalence))
    if verdict.outcome in (Outcome.BETTER, Outcome.WORSE):
        return f"{interval_text(found)}; {different}"
    if verdict.outcome is Outcome.EQUIVALENT:
        not_zero = "; not 0, but smaller than what matters" if verdict.p_difference < ALPHA else ""
        return f"{interval_text(found)}; within {margin:g} dB of 0, {equivalent}{not_zero}"
    if max(-found.low, found.high) < margin:
        why = f"the interval lies within {margin:g} dB of 0, but {equivalent}"
    elif found.p < ALPHA:
        why = f"the interval excludes 0, but {different}"
    else:
        why = f"it may be 0, {different}, and it may exceed {margin:g} dB"
    power = f"with {100 * POWER:.0f} % power these seeds would have shown {verdict.detectable:.2g} dB"
    return f"{interval_text(found)}; {why}; {power}"


def untested(found: Estimate) -> str:
    if found.n == 0:
        return "a cell has no score, so nothing was tested"
    if math.isnan(found.mean):
        return "a score is not a finite number, so nothing was tested"
    if math.isnan(found.p):
        return f"{found.mean:+.3f} dB, one seed: its spread is unknown, so nothing was tested"
    return f"{found.mean:+.3f} dB without any spread over {found.n} seeds: they are not replicates"


def interval_text(found: Estimate) -> str:
    return f"{found.mean:+.3f} dB, 95 % interval {found.low:+.3f} to {found.high:+.3f}, {found.n} seeds"


def p_text(p: float, comparisons: int) -> str:
    return f"corrected p = {p:.2g} among {comparisons} comparisons" if comparisons > 1 else f"p = {p:.2g}"


def power_of_difference(error: float, freedom: float, effect: float, alpha: float = ALPHA) -> float:
    """How probable a two-sided t test is to detect a true difference ``effect``, given its true standard error.

    The tails of the noncentral t distribution, which scipy's does not reach at large noncentralities.
    """
    critical = float(special.stdtrit(freedom, 1 - alpha / 2))
    return beyond(abs(effect) / error, freedom, critical)


def beyond(shift: float, freedom: float, critical: float) -> float:
    """The probability that noncentral t is farther from 0 than ``critical``.

    It is that of |z + shift| > critical * ratio, for a standard normal z and the ratio of the observed to the true
    spread. Given one of the two, the other has a known distribution; the one that is given is the one over which this
    changes more slowly.
    """
    if critical**2 > 2 * freedom:
        ratio = np.abs(NORMAL_NODES + shift) / critical
        return float(np.sum(NORMAL_WEIGHTS * special.gammainc(freedom / 2, freedom * ratio**2 / 2)))
    return over_spread(
        lambda ratio: np.asarray(special.ndtr(shift - critical * ratio) + special.ndtr(-shift - critical * ratio)),
        freedom,
        1.0,
    )


@functools.lru_cache(maxsize=4096)
def detectable_errors(freedom: float, alpha: float) -> float:
    """How many standard errors a true difference must have to be detected with 80 % power."""
    critical = float(special.stdtrit(freedom, 1 - alpha / 2))
    low, high = 0.0, 2 * critical
    while beyond(high, freedom, critical) <= POWER:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle, freedom, critical) > POWER else (middle, high)
    return rounded(high)


def power_of_equivalence(error: float, freedom: float, effect: float, margin: float, alpha: float = ALPHA) -> float:
    """How probable the two one-sided tests are to find a true difference ``effect`` within ``margin``.

    Exact, unlike the sum of two noncentral t probabilities: both tests share one observed spread (Owen, 1965).
    """
    critical = float(special.stdtrit(freedom, 1 - alpha))
    largest = margin / error / critical

    def given_spread(ratio: Array) -> Array:
        room = margin / error - critical * ratio
        return np.asarray(special.ndtr(room - effect / error) - special.ndtr(-room - effect / error))

    return over_spread(given_spread, freedom, float(special.gammainc(freedom / 2, largest**2 * freedom / 2)))


def over_spread(given_spread: Callable[[Array], Array], freedom: float, share: float) -> float:
    """The mean of ``given_spread`` over the observed spread, in units of the true one; 0 beyond its ``share``."""
    ratio = np.sqrt(2 * special.gammaincinv(freedom / 2, share * (NODES + 1) / 2) / freedom)
    return float(np.sum(NODE_WEIGHTS / 2 * share * given_spread(ratio)))


def seeds_for_difference(sd: float, effect: float, alpha: float = ALPHA, *, paired: bool = False) -> int | None:
    """The fewest seeds that detect a true difference ``effect`` of two cells with 80 % power; None beyond 1,000.

    ``sd`` is the spread of each cell between seeds or, if ``paired``, that of their differences within a seed. Raises
    ValueError for a spread that is not above 0.
    """
    return fewest(lambda error, freedom: power_of_difference(error, freedom, effect, alpha), sd, paired)


def seeds_for_equivalence(
    sd: float, margin: float = MARGIN_DB, effect: float = 0.0, alpha: float = ALPHA, *, paired: bool = False
) -> int | None:
    """The fewest seeds that find a true difference ``effect`` within ``margin`` with 80 % power; None beyond 1,000.

    ``sd`` and errors are those of :func:`seeds_for_difference`.
    """
    return fewest(lambda error, freedom: power_of_equivalence(error, freedom, effect, margin, alpha), sd, paired)


def fewest(power_of: Callable[[float, float], float], sd: float, paired: bool) -> int | None:
    """The fewest seeds, 2 to 1,000, that reach ``POWER``, given the power by standard error and degrees of freedom."""
    if not (math.isfinite(sd) and sd > 0):
        raise ValueError(f"the spread between seeds is {sd:g} dB and must be above 0: one seed does not show it")
    cells = 1 if paired else 2
    counts = range(2, MOST_SEEDS + 1)

    def power_with(seeds: int) -> float:
        return rounded(power_of(sd * math.sqrt(cells / seeds), cells * (seeds - 1)))

    index = bisect.bisect_left(counts, POWER, key=power_with)
    return counts[index] if index < len(counts) else None


def over_images(differences: Mapping[int, Mapping[str, float]]) -> ImageEstimate:
    """Estimate a difference over pictures: averaged over seeds within every picture, then over pictures.

    ``differences`` holds one by seed and picture. Raises IncompleteDataError if a seed lacks a picture of another.
    """
    pictures = sorted(set().union(*differences.values()))
    lacking = [picture for picture in pictures if not all(picture in found for found in differences.values())]
    if lacking or not pictures:
        raise IncompleteDataError(f"pictures without a score under every seed of both cells: {', '.join(lacking)}")
    found = [float(np.mean([by_picture[picture] for by_picture in differences.values()])) for picture in pictures]
    *first, last = map(str, differences)
    seeds = f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"
    scope = f"over {len(pictures)} picture{'s'[: len(pictures) > 1]}, for the networks trained under {seeds}"
    return ImageEstimate(estimate(found), scope)
