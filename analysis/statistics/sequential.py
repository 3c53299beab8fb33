"""Group-sequential tests: verdicts that may fall at several numbers of seeds, with one error rate over all of them.

A study that tests at 5 % after 3 seeds, again after 4, and so on to 10 errs in one study of six. Here each look has a
level of its own, and the levels spend 5 % over all looks (Jennison and Turnbull, 1991, 2000). Over a family of
comparisons, Holm's procedure runs at each look on repeated p-values (Ye et al., 2013; Tamhane et al., 2021).

``docs/statistics.md`` has the method in full, and how often it errs.
"""

import dataclasses
import enum
import functools
import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import interpolate, special

from analysis.statistics.estimates import (
    ALPHA,
    POWER,
    Array,
    Estimate,
    Outcome,
    Scores,
    Verdict,
    combination,
    detectable_errors,
    holm,
    outcomes,
    p_text,
    tested,
    unknown,
    untested,
)
from analysis.statistics.rounding import rounded

Pair = tuple[str, str]
"""The keys of two cells; an effect is the second one's mean less the first one's."""

FLOOR, RISE = 0.01, 20.0
"""The shape of the boundary. Most of the error is kept for the last look, so that all looks together find nearly what
one test at the last look finds; the floor lets a large effect be found at the first."""

GRID = 300  # points at which the chance to cross later is known, for each number of seeds
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(32)
LARGEST_DEVIATION = 9.0  # standard deviations beyond which a density is nothing
SMALLEST_LEVEL, LARGEST_LEVEL = 1e-9, 0.99  # below the first, errors at different looks just add up
LEVELS = np.geomspace(SMALLEST_LEVEL, LARGEST_LEVEL, 19)  # of the last look, at which the overall error is computed


# --- the boundary -----------------------------------------------------------------------------------------------------


def crossing(levels: Sequence[float], looks: Sequence[int], sides: int) -> float:
    """The chance that Student's t of a mean of 0 has a p of at most ``levels[k]`` at some look k, exactly.

    ``looks`` are numbers of values, ascending, and ``sides`` is 2 or 1. With Q the sum of the squares of n values,
    u = sum / sqrt(n * Q) says the same as t. It is a Markov chain, since t and Q are independent (Basu, 1955): the next
    value over sqrt(Q) is Student's t over sqrt(n), whatever the values before. The chance to cross from u on is
    integrated backwards, over the angle whose sine is u.
    """
    edges = {look: edge(level, look, sides) for look, level in zip(looks, levels, strict=True)}
    grid = later = np.zeros(GRID)
    for count in range(looks[-1] - 1, looks[0] - 1, -1):
        following, next_grid, next_later = edges.get(count + 1, math.pi / 2), grid, later
        grid = angles(edges.get(count, math.pi / 2), count, sides)
        later = np.zeros(GRID)
        # With v = tan(angle) for the next value over sqrt(Q), u' = stretch * sin(angle + turn).
        root = math.sqrt(count) * np.sin(grid)
        stretch, turn = np.sqrt((root**2 + 1) / (count + 1)), np.arctan(root)
        upper = np.arcsin(np.clip(math.sin(following) / stretch, -1.0, 1.0))
        lower = -upper if sides == 2 else np.full(GRID, -math.pi / 2)
        # Beyond the edges: where the sine is above that of `upper` and, with two sides, below that of `lower`.
        # With one side and a negative edge, angles near -pi are beyond it too.
        other = (-math.pi - lower, lower) if sides == 2 else (upper - 2 * math.pi, -math.pi - upper)
        for low, high in ((upper, math.pi - upper), other):
            later += chance_between(low - turn, high - turn, count)
        if count + 1 < looks[-1]:
            for low, high in ((lower, upper), (math.pi - upper, math.pi - lower), (-math.pi - upper, -math.pi - lower)):
                later += expected_between(low, high, turn, stretch, count, next_grid, next_later)
    first = looks[0]
    if len(looks) == 1:
        return float(levels[0])
    ends = grid[0], grid[-1]
    where = (ends[0] + ends[1]) / 2 + (ends[1] - ends[0]) / 2 * NODES_FINE
    density = np.exp(log_constant(first - 1)) * np.cos(where) ** (first - 2)
    inside = float(np.sum(density * np.interp(where, grid, later) * NODE_WEIGHTS_FINE)) * (ends[1] - ends[0]) / 2
    return float(levels[0] + inside)


NODES_FINE, NODE_WEIGHTS_FINE = np.polynomial.legendre.leggauss(200)


def edge(level: float, look: int, sides: int) -> float:
    """The angle of u at which the p of ``look`` values is ``level``."""
    t = float(special.stdtrit(look - 1, 1 - level / sides)) if level > 0 else math.inf
    return math.atan2(t, math.sqrt(look - 1)) if math.isfinite(t) else math.copysign(math.pi / 2, t)


def angles(upper: float, count: int, sides: int) -> Array:
    """A grid of angles of u between the edges, as far as u of ``count`` values ever comes, dense at both ends."""
    reach = min(math.pi / 2, LARGEST_DEVIATION / math.sqrt(count))
    upper = min(upper, reach)
    lower = -upper if sides == 2 else -reach
    return lower + (upper - lower) * (1 - np.cos(np.linspace(0, math.pi, GRID))) / 2


def log_constant(freedom: int) -> float:
    """The logarithm of c in the density c * cos^(freedom - 1) of the angle atan(t / sqrt(freedom))."""
    return float(special.gammaln((freedom + 1) / 2) - special.gammaln(freedom / 2) - math.log(math.pi) / 2)


def chance_between(low: Array, high: Array, freedom: int) -> Array:
    """The chance that atan(t / sqrt(freedom)) lies between two angles; 0 where they are the wrong way round."""
    low, high = (np.clip(angle, -math.pi / 2, math.pi / 2) for angle in (low, high))
    # From the nearer tail, so that small chances keep their digits.
    mirrored = low + high < 0
    near, far = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    tails = [special.stdtr(freedom, -math.sqrt(freedom) * np.tan(angle)) for angle in (near, far)]
    return np.maximum(tails[0] - tails[1], 0.0)


def expected_between(
    low: Array, high: Array, turn: Array, stretch: Array, freedom: int, grid: Array, later: Array
) -> Array:
    """The mean of the chance to cross ``later``, given on the angles ``grid``, over the next angles between two."""
    reach = min(math.pi / 2, LARGEST_DEVIATION / math.sqrt(freedom))
    low, high = (np.clip(angle, turn - reach, turn + reach) for angle in (low, high))
    half = np.maximum(high - low, 0.0) / 2
    where = ((low + high) / 2)[:, None] + half[:, None] * NODES
    density = np.exp(log_constant(freedom)) * np.maximum(np.cos(where - turn[:, None]), 0.0) ** (freedom - 1)
    angle = np.arcsin(np.clip(stretch[:, None] * np.sin(where), -1.0, 1.0))
    values = interpolate.PchipInterpolator(grid, later)(np.clip(angle, grid[0], grid[-1]))
    return np.asarray((density * values * NODE_WEIGHTS).sum(axis=1) * half)


@dataclasses.dataclass(frozen=True)
class Boundary:
    """The level of a test at each look, and what all looks together come to.

    ``looks`` are numbers of seeds, ascending, at least 2. The level at look n of at most K is g * w(n) with
    w(n) = floor + (1 - floor) * (n / K)^rise; ``rise`` 0 is one level for all looks (Pocock, 1977). The overall error
    for each g is that of Student's t of one sample; that of Welch's t is not larger if spreads are equal or only one
    counts. Raises ValueError for looks that do not ascend.
    """

    looks: tuple[int, ...]
    floor: float = FLOOR
    rise: float = RISE

    def __post_init__(self) -> None:
        if not self.looks or self.looks[0] < 2 or any(a >= b for a, b in itertools.pairwise(self.looks)):
            raise ValueError(f"looks {self.looks} must ascend and start at 2 or more")

    def weight(self, look: int) -> float:
        return self.floor + (1 - self.floor) * math.pow(look / self.looks[-1], self.rise)

    def overall(self, level: npt.ArrayLike, sides: int) -> Array:
        """The error over all looks if the level at the last one is ``level``; NaN stays."""
        given = np.asarray(level, dtype=float)
        bounded = np.clip(given, SMALLEST_LEVEL, LARGEST_LEVEL)
        return np.asarray(np.minimum(given * _ratio(self, sides)(np.log(bounded)), 1.0))

    def repeated_p(self, look: int, p: npt.ArrayLike, sides: int) -> Array:
        """The overall error at which the boundary is just crossed by a p at a look; NaN stays.

        A false rejection at any look happens no more often than this says (Jennison and Turnbull, 2000, chapter 9).
        """
        return self.overall(np.minimum(np.asarray(p, dtype=float) / self.weight(look), 1.0), sides)

    def level(self, look: int, alpha: float, sides: int) -> float:
        """The level of the test at a look if all looks together are to err with probability ``alpha``."""
        return _last_level(self, alpha, sides) * self.weight(look)


@functools.lru_cache(maxsize=64)
def _ratio(boundary: Boundary, sides: int) -> interpolate.PchipInterpolator:
    """The overall error over the level at the last look, by the logarithm of that level."""
    weights = [boundary.weight(look) for look in boundary.looks]
    found = [crossing([level * weight for weight in weights], boundary.looks, sides) / level for level in LEVELS]
    # All looks err at least as often as the last; the integral is some thousandths less where it has all of the error.
    return interpolate.PchipInterpolator(np.log(LEVELS), np.maximum(found, 1.0))


@functools.lru_cache(maxsize=1024)
def _last_level(boundary: Boundary, alpha: float, sides: int) -> float:
    """The level of the test at the last look if all looks together are to err with probability ``alpha``."""
    low, high = alpha * SMALLEST_LEVEL, 1.0
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if boundary.overall(middle, sides) < alpha else (low, middle)
    return float(rounded(low))


# --- the procedure ----------------------------------------------------------------------------------------------------

UNDECIDED, DIFFERENT, EQUIVALENT = 0, 1, 2


def corrected(repeated: npt.ArrayLike, rejected: npt.ArrayLike) -> Array:
    """Repeated p-values corrected by Holm over the last axis; what was rejected at an earlier look comes first.

    NaN is a comparison that cannot be tested. It keeps its place, with a p of 1: the size of a family is planned.
    """
    given = np.asarray(repeated, dtype=float)
    return holm(np.where(rejected, 0.0, np.where(np.isnan(given), 1.0, given)))


def falls(
    p_difference: npt.ArrayLike, p_equivalence: npt.ArrayLike, boundary: Boundary, alpha: float = ALPHA
) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """The look at which each comparison is decided, and as what, for many families at once.

    The p are those of single tests, as arrays (..., looks, comparisons). Returns the index of the look, that of the
    last for an undecided comparison, and UNDECIDED, DIFFERENT or EQUIVALENT; both (..., comparisons).
    """
    different, equivalent = (np.asarray(p, dtype=float) for p in (p_difference, p_equivalence))
    shape = (*different.shape[:-2], different.shape[-1])
    kinds, found = np.zeros(shape, dtype=int), np.full(shape, len(boundary.looks) - 1)
    for index, look in enumerate(boundary.looks):
        is_open = kinds == UNDECIDED
        own = [np.where(is_open, p[..., index, :], np.nan) for p in (different, equivalent)]
        repeated = [boundary.repeated_p(look, p, sides) for p, sides in zip(own, (2, 1), strict=True)]
        are_different, are_equivalent = (
            is_open & (corrected(p, kinds == kind) < alpha)
            for p, kind in zip(repeated, (DIFFERENT, EQUIVALENT), strict=True)
        )
        kinds = np.where(are_equivalent, EQUIVALENT, np.where(are_different, DIFFERENT, kinds))
        found = np.where(is_open & (kinds != UNDECIDED), index, found)
    return found, kinds


# --- the verdicts of a study ------------------------------------------------------------------------------------------


class Progress(enum.StrEnum):
    """What has become of a comparison: it gets further seeds only while it is open.

    ``RISK`` is that of one that is undecided at the last look and has a collapsed trial.
    """

    OPEN = "open"
    DECIDED = "decided"
    LAST_LOOK = "undecided at the last look"
    RISK = "risk of collapse"
    NOTHING = "nothing learned"
    NO_RESULT = "no result"


@dataclasses.dataclass(frozen=True)
class Trials:
    """What is known on one test set, by cell: the ``scores`` of finished trials in dB, by seed; the seeds whose trial
    has ``ended``, with a score or without one; and those whose trial ``collapsed``.
    """

    scores: Scores
    ended: Mapping[str, Collection[int]]
    collapsed: Mapping[str, Collection[int]]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A comparison at the look at which it was closed, or at the last complete look; ``look`` is 0 before the first.

    The estimate of ``verdict`` is over the seeds of that look. Its interval is the repeated one, which covers the truth
    at all looks together in 95 % of studies, and its p the repeated one, before it is corrected for the family.
    """

    progress: Progress
    look: int
    verdict: Verdict


def judged(
    pairs: Sequence[Pair],
    trials: Trials,
    boundary: Boundary,
    first_seed: int,
    margin: float,
    *,
    paired: bool = False,
) -> dict[Pair, Judged]:
    """The comparisons of one family on one test set, from the first look to the last that is complete.

    Look n is about the n seeds from ``first_seed``. It is complete when every trial has ended that an open comparison
    has among them; an incomplete look decides nothing. What was decided stays so, whatever trials come later. A
    comparison is not found equivalent while a trial of its cells has collapsed. It is closed without a verdict if all
    trials of both cells collapsed, or if a cell has no score.
    """
    return states(pairs, trials, boundary, first_seed, margin, paired=paired)[-1]


def states(
    pairs: Sequence[Pair],
    trials: Trials,
    boundary: Boundary,
    first_seed: int,
    margin: float,
    *,
    paired: bool = False,
) -> list[dict[Pair, Judged]]:
    """What :func:`judged` says before the first look, and after each complete look as long as a comparison is open."""
    found = {pair: _before_first(pair, trials, boundary, first_seed, len(pairs)) for pair in pairs}
    every = [dict(found)]
    for look in boundary.looks:
        seeds = range(first_seed, first_seed + look)
        left = [pair for pair in pairs if found[pair].progress is Progress.OPEN]
        if not left or not all(set(seeds) <= set(trials.ended.get(cell, ())) for pair in left for cell in pair):
            break
        at_look = {pair: _tested_at(pair, trials, seeds, margin, paired) for pair in left}
        columns = []
        for kind, sides in ((DIFFERENT, 2), (EQUIVALENT, 1)):
            nominal = [at_look[pair].p[kind] if pair in at_look else math.nan for pair in pairs]
            rejected = [_kind(found[pair]) == kind for pair in pairs]
            repeated = boundary.repeated_p(look, nominal, sides)
            columns.append((rounded(repeated.tolist()), rounded(corrected(repeated, rejected).tolist())))
        for place, pair in enumerate(pairs):
            if pair in at_look:
                numbers = [(repeated[place], p[place]) for repeated, p in columns]
                found[pair] = _closed(at_look[pair], look, boundary, numbers, len(pairs), margin)
        every.append(dict(found))
    return every


@dataclasses.dataclass(frozen=True)
class _AtLook:
    """A comparison at one look: the estimate, and the p of single tests by kind."""

    estimate: Estimate
    p: Mapping[int, float]
    progress: Progress
    has_collapsed: bool


def _scores_within(pair: Pair, trials: Trials, seeds: range) -> dict[str, dict[int, float]]:
    return {
        cell: {seed: score for seed, score in trials.scores.get(cell, {}).items() if seed in seeds} for cell in pair
    }


def _tested_at(pair: Pair, trials: Trials, seeds: range, margin: float, paired: bool) -> _AtLook:
    scores = _scores_within(pair, trials, seeds)
    estimate = combination({pair[1]: 1.0, pair[0]: -1.0}, scores, paired=paired)
    down = {cell: [seed for seed in scores[cell] if seed in trials.collapsed.get(cell, ())] for cell in pair}
    progress = Progress.OPEN
    if not all(scores.values()):
        progress = Progress.NO_RESULT
    elif all(len(down[cell]) == len(scores[cell]) for cell in pair):
        progress = Progress.NOTHING
    p_difference, p_equivalence = tested(estimate, margin) if progress is Progress.OPEN else (math.nan, math.nan)
    if any(down.values()):
        p_equivalence = math.nan
    return _AtLook(estimate, {DIFFERENT: p_difference, EQUIVALENT: p_equivalence}, progress, any(down.values()))


def _kind(found: Judged) -> int:
    if found.progress is not Progress.DECIDED:
        return UNDECIDED
    return EQUIVALENT if found.verdict.outcome is Outcome.EQUIVALENT else DIFFERENT


def _before_first(pair: Pair, trials: Trials, boundary: Boundary, first_seed: int, comparisons: int) -> Judged:
    scores = _scores_within(pair, trials, range(first_seed, first_seed + boundary.looks[0]))
    n = min(map(len, scores.values()))
    mean = combination({pair[1]: 1.0, pair[0]: -1.0}, scores).mean
    reason = f"before the first look, at {boundary.looks[0]} seeds"
    verdict = Verdict(Outcome.UNDECIDED, reason, unknown(mean, n), math.nan, math.nan, comparisons, math.nan)
    return Judged(Progress.OPEN, 0, verdict)


def _closed(
    at: _AtLook,
    look: int,
    boundary: Boundary,
    numbers: Sequence[tuple[float, float]],
    comparisons: int,
    margin: float,
) -> Judged:
    """Return what a look makes of a comparison; ``numbers`` are its repeated and corrected p by kind."""
    (repeated, p_difference), (_, p_equivalence) = numbers
    if math.isnan(at.p[DIFFERENT]):
        p_difference = math.nan
    if math.isnan(at.p[EQUIVALENT]):
        p_equivalence = math.nan
    outcome = Outcome(str(outcomes(at.estimate.mean, p_difference, p_equivalence)))
    progress = at.progress
    if progress is Progress.OPEN and outcome is not Outcome.UNDECIDED:
        progress = Progress.DECIDED
    elif progress is Progress.OPEN and look == boundary.looks[-1]:
        progress = Progress.RISK if at.has_collapsed else Progress.LAST_LOOK
    shown = repeated_interval(at.estimate, look, boundary, repeated)
    reachable = detectable_at_last(at.estimate, look, boundary, comparisons)
    bare = Verdict(outcome, "", shown, p_difference, p_equivalence, comparisons, reachable, look)
    return Judged(progress, look, dataclasses.replace(bare, reason=reason(bare, progress, margin)))


def repeated_interval(found: Estimate, look: int, boundary: Boundary, repeated: float) -> Estimate:
    """An estimate with the repeated 95 % interval and the repeated p of a look in place of those of a single test."""
    if math.isnan(found.p):
        return found
    reach = 0.0
    if found.error > 0:
        reach = float(special.stdtrit(found.freedom, 1 - boundary.level(look, ALPHA, 2) / 2)) * found.error
    return rounded(dataclasses.replace(found, low=found.mean - reach, high=found.mean + reach, p=repeated))


def detectable_at_last(found: Estimate, look: int, boundary: Boundary, comparisons: int) -> float:
    """The smallest true difference that the test at the last look finds with 80 % power, if the spread stays as it is.

    At the first step of Holm; NaN without a spread.
    """
    last = boundary.looks[-1]
    if not found.error > 0 or look < 2:
        return math.nan
    error, freedom = found.error * math.sqrt(look / last), found.freedom * (last - 1) / (look - 1)
    return rounded(error * detectable_errors(rounded(freedom), rounded(boundary.level(last, ALPHA / comparisons, 2))))


def reason(verdict: Verdict, progress: Progress, margin: float) -> str:
    found = verdict.estimate
    if progress is Progress.NOTHING:
        return f"all trials of both cells collapsed at the look at {verdict.look} seeds: nothing was learned"
    if math.isnan(verdict.p_difference):
        return untested(found)
    if verdict.outcome is Outcome.EQUIVALENT and found.error == 0:
        return f"the same score under each of {found.n} seeds"
    interval = (
        f"{found.mean:+.3f} dB, repeated 95 % interval {found.low:+.3f} to {found.high:+.3f} "
        f"at the look at {verdict.look} seeds"
    )
    different, equivalent = (p_text(p, verdict.comparisons) for p in (verdict.p_difference, verdict.p_equivalence))
    if verdict.outcome is Outcome.EQUIVALENT:
        not_zero = "; not 0, but smaller than what matters" if verdict.p_difference < ALPHA else ""
        return f"{interval}; within {margin:g} dB of 0, {equivalent}{not_zero}"
    if verdict.outcome is not Outcome.UNDECIDED:
        return f"{interval}; {different}"
    power = ""
    if not math.isnan(verdict.detectable):
        shows = "would have shown" if progress in (Progress.LAST_LOOK, Progress.RISK) else "would show"
        power = f"; with {100 * POWER:.0f} % power the last look {shows} {verdict.detectable:.2g} dB"
    return f"{interval}; undecided{' so far' * (progress is Progress.OPEN)}, {different}{power}"
