"""Estimate and test differences from a few seeds, and say what the seeds cannot show.

Cells are compared within a seed, because trials of one seed share patches, noise and initial values: the difference
of two cells under one seed is one observation, and the interval is taken over seeds. Intervals and the p of an
:class:`Estimate` are for one comparison. Among twenty effects that are all 0, one 95 % interval is expected to exclude
0, so conclusions about a family of comparisons go through :func:`verdicts`, which corrects for their number.

``docs/statistics.md`` says which method is used when, with formulas and sources; ``analysis/statistics/simulation.py``
measures how often the intervals cover and the verdicts err.
"""

import bisect
import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from analysis.statistics.rounding import rounded, settled

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95  # the share of intervals that cover the truth, if differences between seeds are normal

ALPHA = 0.05
"""How often a family of verdicts may hold a wrong one of a kind: a false difference, or a false equivalence."""

MARGIN_DB = 0.05
"""Differences in PSNR that are smaller than this do not matter; papers print two decimals and argue over 0.1 dB."""

POWER = 0.8  # how probable the decision is to be, with the number of seeds that is said to be needed
MOST_SEEDS = 1000  # plans for more seeds than this are not computed
CAUTION = 0.8  # the one-sided confidence of the upper limit of the spread that a cautious plan assumes (Browne, 1995)
NO_SPREAD_DB = 1e-9  # differences whose spread is smaller than this are the same number but for rounding
MOST_FLIPPED = 20  # the exact test lists 2^n sign patterns; with more seeds than this the t test is safe without it

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(96)
"""Gauss-Legendre quadrature, fine enough for five digits of the power of a test."""


class IncompleteDataError(ValueError):
    """Numbers that are missing for what was asked; the message names them."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n - 1 in the denominator; NaN for n = 1) of ``n`` values."""

    mean: float
    sd: float
    n: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean difference, its 95 % interval from ``low`` to ``high``, and the two-sided p of no difference.

    For n = 1 the interval and p are NaN: one seed cannot tell an effect from noise. For n = 0 all four are NaN.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float


@dataclasses.dataclass(frozen=True)
class Intervals:
    """What :class:`Estimate` holds, for many estimates at once, as arrays of one shape."""

    mean: Array
    low: Array
    high: Array
    p: Array


class Outcome(enum.StrEnum):
    """The conclusion about a difference to the reference, in a quality in which more is better."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class SeedsNeeded:
    """How many seeds would decide a comparison with 80 % power, if the observed difference is the true one.

    ``likely`` takes the observed spread for the true one, ``cautious`` the 80 % upper limit of it. Either is None if
    it is unknown or beyond 1,000; ``reason`` says which, in words.
    """

    likely: int | None
    cautious: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The conclusion about one comparison in a family of ``comparisons``, and why.

    ``p_difference`` and ``p_equivalence`` are corrected by Holm over the family; both are NaN if nothing could be
    tested. ``seeds_needed`` is None unless the outcome is undecided.
    """

    outcome: Outcome
    reason: str
    estimate: Estimate
    p_difference: float
    p_equivalence: float
    comparisons: int
    seeds_needed: SeedsNeeded | None


@dataclasses.dataclass(frozen=True)
class ImageEstimate:
    """A difference estimated over pictures for networks that are trained, so ``estimate.n`` counts pictures.

    It predicts other pictures with these very networks and not other seeds, so no verdict on a component rests on it.
    ``scope`` is that as a sentence, to be shown with the numbers.
    """

    estimate: Estimate
    scope: str


def summary(values: Sequence[float]) -> Summary:
    array = np.asarray(values, dtype=float)
    mean = float(array.mean()) if array.size else math.nan
    sd = float(array.std(ddof=1)) if array.size > 1 else math.nan
    return rounded(Summary(mean, sd, int(array.size)))


def student(values: npt.ArrayLike) -> Intervals:
    """Student's 95 % interval and two-sided test of the mean over the last axis, which is at least 2 long.

    If values are all equal, the interval is the point, and p is 0, or 1 if they are all 0; scipy's test warns then.
    """
    array = np.asarray(values, dtype=float)
    count = array.shape[-1]
    mean, error = settled(array.mean(axis=-1)), standard_error(array)
    width = error * quantile(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean) / error, count - 1)
    return Intervals(mean, mean - width, mean + width, np.where((error == 0) & (mean == 0), 1.0, p))


@functools.cache
def quantile(count: int) -> float:
    """How many standard errors the interval over so many values reaches to either side."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def standard_error(values: Array) -> Array:
    return settled(values.std(axis=-1, ddof=1) / math.sqrt(values.shape[-1]))


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one number per seed, such as a difference or an effect, with Student's interval and test."""
    found = summary(values)
    if found.n < 2 or not np.all(np.isfinite(values)):
        return Estimate(found.mean, math.nan, math.nan, found.n, math.nan)
    got = student(values)
    return rounded(Estimate(found.mean, float(got.low), float(got.high), found.n, float(got.p)))


def sign_flip_p(differences: Sequence[float]) -> float:
    """The exact two-sided p that the differences are as likely to be negative as positive.

    The share of the 2^n ways to sign them whose mean is at least as far from 0 as the observed one. It assumes
    symmetry and no normality, and cannot be below :func:`smallest_sign_flip_p`. NaN if there is no difference or one
    is not finite; raises ValueError for more than 20 (Fisher, 1935; Pitman, 1937).
    """
    array = np.asarray(differences, dtype=float)
    if array.size > MOST_FLIPPED:
        raise ValueError(f"the exact test takes at most {MOST_FLIPPED} differences, not {array.size}")
    if array.size == 0 or not np.all(np.isfinite(array)):
        return math.nan
    sums = np.zeros(1)
    for difference in array:
        sums = np.concatenate([sums + difference, sums - difference])
    rounding = 1e-12 * float(np.abs(array).sum())
    return float(np.mean(np.abs(sums) >= abs(float(array.sum())) - rounding))


def smallest_sign_flip_p(seeds: int) -> float:
    """The smallest p that the exact test can give: all signs agree, in one of the two directions; 0.25 for three."""
    if seeds < 1:
        raise ValueError(f"{seeds} seeds have no sign to flip")
    return float(2.0 ** (1 - seeds))


def what_seeds_allow(seeds: int, comparisons: int = 1) -> str:
    """What a number of seeds can show at best, as a sentence for a report."""
    if seeds < 2:
        return "One seed has no spread: no interval, no test and no verdict."
    smallest = smallest_sign_flip_p(seeds)
    able = "can" if smallest * comparisons < ALPHA else "cannot"
    reach = rounded(quantile(seeds) / math.sqrt(seeds))
    return (
        f"With {seeds} seeds the 95 % interval reaches {reach:.2f} standard deviations to either side, if differences "
        f"are normal; without that assumption the smallest two-sided p is {smallest:.3g}, which {able} fall below "
        f"{ALPHA:g}{among(comparisons)}."
    )


def among(comparisons: int) -> str:
    return f" among {comparisons} comparisons" if comparisons > 1 else ""


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


def equivalence_p(values: npt.ArrayLike, margin: float = MARGIN_DB) -> Array:
    """The p of two one-sided t tests over the last axis: small if the mean is closer to 0 than ``margin``.

    It is below 0.05 exactly if the 90 % interval lies within the margin on both sides (Schuirmann, 1987).
    """
    array = np.asarray(values, dtype=float)
    room, error = settled(margin - np.abs(array.mean(axis=-1))), standard_error(array)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.t.sf(room / error, array.shape[-1] - 1)
    return np.where((error == 0) & (room == 0), 1.0, p)


def outcomes(mean: npt.ArrayLike, p_difference: npt.ArrayLike, p_equivalence: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """The :class:`Outcome` of every comparison from corrected p.

    A difference that is not 0 but surely smaller than the margin is equivalent: that is what a margin is for.
    """
    sign, different = np.asarray(mean), np.asarray(p_difference) < ALPHA
    conditions = [np.asarray(p_equivalence) < ALPHA, different & (sign > 0), different & (sign < 0)]
    names = [str(outcome) for outcome in (Outcome.EQUIVALENT, Outcome.BETTER, Outcome.WORSE)]
    return np.select(conditions, names, default=str(Outcome.UNDECIDED))


def verdicts(differences: Sequence[Sequence[float]], margin: float = MARGIN_DB) -> list[Verdict]:
    """Better, worse, equivalent or undecided for each comparison of a family, corrected for their number.

    ``differences`` holds, per comparison, the differences to the reference in dB, one per seed; more is better. The
    chance of any false better or worse among comparisons without a difference is at most 5 %, and so is that of any
    false equivalent among those whose difference reaches the margin. A comparison with one seed, or whose seeds all
    show the same difference other than 0, tests nothing: it is undecided and does not count.
    Raises ValueError for a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"the margin is {margin:g} dB and must be above 0")
    estimates = [estimate(values) for values in differences]
    tests = [tested(values, margin) for values in differences]
    comparisons = sum(not math.isnan(p) for p, _ in tests)
    p_difference, p_equivalence = (rounded(holm([each[kind] for each in tests]).tolist()) for kind in (0, 1))
    named = outcomes([found.mean for found in estimates], p_difference, p_equivalence)
    return [
        explained(Verdict(Outcome(name), "", found, different, equivalent, comparisons, None), values, margin)
        for name, found, different, equivalent, values in zip(
            named, estimates, p_difference, p_equivalence, differences, strict=True
        )
    ]


def tested(differences: Sequence[float], margin: float) -> tuple[float, float]:
    found = summary(differences)
    same = found.sd < NO_SPREAD_DB <= abs(found.mean)
    if found.n < 2 or not np.all(np.isfinite(differences)) or same:
        return math.nan, math.nan
    return float(student(differences).p), float(equivalence_p(differences, margin))


def explained(bare: Verdict, differences: Sequence[float], margin: float) -> Verdict:
    """The verdict with its reason and, if it is undecided, the seeds that would decide it."""
    found, family = bare.estimate, among(bare.comparisons)
    if bare.outcome in (Outcome.BETTER, Outcome.WORSE):
        return dataclasses.replace(
            bare, reason=f"{interval_text(found)}; corrected p = {bare.p_difference:.2g}{family}"
        )
    if bare.outcome is Outcome.EQUIVALENT and found.mean == found.low == found.high == 0:
        return dataclasses.replace(bare, reason=f"the same score under each of {found.n} seeds")
    if bare.outcome is Outcome.EQUIVALENT:
        not_zero = "; not 0, but smaller than what matters" if bare.p_difference < ALPHA else ""
        why = f"within {margin:g} dB of 0, corrected p = {bare.p_equivalence:.2g}{family}{not_zero}"
        return dataclasses.replace(bare, reason=f"{interval_text(found)}: {why}")
    needed = seeds_to_decide(differences, margin, max(bare.comparisons, 1))
    if math.isnan(bare.p_difference):
        return dataclasses.replace(bare, reason=needed.reason, seeds_needed=needed)
    if found.p < ALPHA:
        why = f"the interval excludes 0, but not after correction{family}"
    else:
        why = f"{found.n} seeds rule out neither no difference nor one of {margin:g} dB"
    return dataclasses.replace(bare, reason=f"{interval_text(found)}: {why}; {needed.reason}", seeds_needed=needed)


def interval_text(found: Estimate) -> str:
    return f"{found.mean:+.3f} dB, 95 % interval {found.low:+.3f} to {found.high:+.3f}, {found.n} seeds"


def power_of_difference(seeds: int, sd: float, effect: float, alpha: float = ALPHA) -> float:
    """How probable the paired t test is to detect a true difference ``effect`` if differences spread by ``sd``.

    The tail of the noncentral t distribution, integrated over the distribution of the observed spread, which stays
    exact at noncentralities at which scipy's fails.
    """
    critical = float(stats.t.isf(alpha / 2, seeds - 1))
    shift = abs(effect) / sd * math.sqrt(seeds)

    def given_spread(ratio: Array) -> Array:
        return np.asarray(special.ndtr(shift - critical * ratio) + special.ndtr(-shift - critical * ratio))

    return over_spread(given_spread, seeds - 1, 1.0)


def power_of_equivalence(seeds: int, sd: float, effect: float, margin: float, alpha: float = ALPHA) -> float:
    """How probable the two one-sided tests are to find a true difference ``effect`` within ``margin``.

    Exact, unlike the sum of two noncentral t probabilities: both tests share one observed spread (Owen, 1965).
    """
    critical = float(stats.t.isf(alpha, seeds - 1))
    scale = math.sqrt(seeds) / sd
    largest = margin * scale / critical

    def given_spread(ratio: Array) -> Array:
        room = margin * scale - critical * ratio
        return np.asarray(special.ndtr(room - effect * scale) - special.ndtr(-room - effect * scale))

    return over_spread(given_spread, seeds - 1, float(stats.chi2.cdf(largest**2 * (seeds - 1), seeds - 1)))


def over_spread(given_spread: Callable[[Array], Array], freedom: int, share: float) -> float:
    """The mean of ``given_spread`` over the observed spread, in units of the true one; 0 beyond its ``share``."""
    ratio = np.sqrt(2 * special.gammaincinv(freedom / 2, share * (NODES + 1) / 2) / freedom)
    return float(np.sum(NODE_WEIGHTS / 2 * share * given_spread(ratio)))


def seeds_for_difference(sd: float, effect: float, alpha: float = ALPHA) -> int | None:
    """The fewest seeds that detect a true difference ``effect`` with 80 % power; None beyond 1,000.

    Raises ValueError for a spread that is not above 0.
    """
    return fewest(lambda seeds: power_of_difference(seeds, sd, effect, alpha), sd)


def seeds_for_equivalence(
    sd: float, margin: float = MARGIN_DB, effect: float = 0.0, alpha: float = ALPHA
) -> int | None:
    """The fewest seeds that find a true difference ``effect`` within ``margin`` with 80 % power; None beyond 1,000.

    Raises ValueError for a spread that is not above 0.
    """
    return fewest(lambda seeds: power_of_equivalence(seeds, sd, effect, margin, alpha), sd)


def fewest(power_of: Callable[[int], float], sd: float) -> int | None:
    """The fewest seeds, 2 to 1,000, that reach ``POWER``, given a power that grows with them."""
    if not (math.isfinite(sd) and sd > 0):
        raise ValueError(f"the spread between seeds is {sd:g} dB and must be above 0: one seed does not show it")
    counts = range(2, MOST_SEEDS + 1)
    index = bisect.bisect_left(counts, POWER, key=lambda seeds: rounded(power_of(seeds)))
    return counts[index] if index < len(counts) else None


def seeds_to_decide(differences: Sequence[float], margin: float = MARGIN_DB, comparisons: int = 1) -> SeedsNeeded:
    """How many seeds would decide a comparison, by a difference or by equivalence, whichever takes fewer.

    Planned for the observed difference, with ``ALPHA`` shared among ``comparisons``, the first and hardest step of
    Holm. The observed difference is itself noise, so this is a plan for the next study and not a promise.
    """
    found = summary(differences)
    if found.n < 2:
        seeds = "no complete seed" if found.n == 0 else "one seed"
        return SeedsNeeded(None, None, f"{seeds}: the spread is unknown, and so is how many seeds would decide")
    if not np.all(np.isfinite(differences)):
        return SeedsNeeded(None, None, "not a finite number: more seeds cannot help")
    if found.sd < NO_SPREAD_DB:
        return SeedsNeeded(None, None, f"all {found.n} seeds give {found.mean:+.3f} dB: they are not replicates")
    upper = upper_limit_of_sd(found)
    likely = fewest_to_decide(found.sd, found.mean, margin, comparisons)
    cautious = fewest_to_decide(upper, found.mean, margin, comparisons)
    reason = (
        f"{count_text(likely)} would decide it with {100 * POWER:.0f} % power, were the true difference the observed "
        f"one and the spread {found.sd:.3f} dB as observed; {count_text(cautious)}, were it {upper:.3f} dB, its upper "
        "limit"
    )
    return SeedsNeeded(likely, cautious, reason)


def upper_limit_of_sd(found: Summary) -> float:
    """The one-sided upper confidence limit of a standard deviation: 4 times the observed for two seeds, 2 for three."""
    return rounded(found.sd * math.sqrt((found.n - 1) / float(stats.chi2.ppf(1 - CAUTION, found.n - 1))))


def fewest_to_decide(sd: float, effect: float, margin: float, comparisons: int) -> int | None:
    alpha = ALPHA / comparisons
    both = (seeds_for_difference(sd, effect, alpha), seeds_for_equivalence(sd, margin, effect, alpha))
    return min((seeds for seeds in both if seeds is not None), default=None)


def count_text(seeds: int | None) -> str:
    return f"more than {MOST_SEEDS} seeds" if seeds is None else f"{seeds} seeds"


def over_images(differences: Mapping[int, Mapping[str, float]]) -> ImageEstimate:
    """Estimate a difference over pictures: averaged over seeds within every picture, then over pictures.

    ``differences`` holds one by seed and picture. Raises IncompleteDataError if a seed lacks a picture of another.
    """
    pictures = sorted(set().union(*differences.values()))
    lacking = [picture for picture in pictures if not all(picture in found for found in differences.values())]
    if lacking or not pictures:
        raise IncompleteDataError(f"pictures without a score under every seed of both cells: {', '.join(lacking)}")
    found = [float(np.mean([by_picture[picture] for by_picture in differences.values()])) for picture in pictures]
    seeds = f"seed{'s' if len(differences) > 1 else ''} {', '.join(map(str, differences))}"
    scope = (
        f"over {len(pictures)} pictures, for the networks trained under {seeds}: it speaks of other pictures, "
        "not of other seeds"
    )
    return ImageEstimate(estimate(found), scope)
