"""Measure how often the intervals cover and the verdicts err: ``python -m analysis.statistics.simulation``.

It runs ``estimates``, ``factorial`` and ``sequential`` of ``analysis.statistics`` on scores whose truth is known.
``--write docs/statistics.md`` puts the tables between the page's two markers; a test compares some of them.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import special

from analysis.statistics.estimates import (
    ALPHA,
    MARGIN_DB,
    Array,
    Contrast,
    Outcome,
    holm,
    outcomes,
    student,
    welch,
)
from analysis.statistics.expectation import (
    Closed,
    Expectation,
    Noise,
    Truth,
    closed,
    correlated,
    differences,
    effects_of,
    expectation,
    normal,
)
from analysis.statistics.factorial import combined_all, half_normal_weights, lenth
from analysis.statistics.sequential import DIFFERENT, EQUIVALENT, Boundary, Pair, crossing

SEED_COUNTS = (2, 3, 5, 10)  # the numbers of seeds of the simulated studies
STUDIES = 20_000  # with so many studies, a rate of 5 % is known to 0.3 points
SEED = 20240607  # the seed of the generator; every rate starts from it, so each can be computed alone

NOISE_DB = 0.1
"""The spread of a cell between seeds where all cells spread equally."""

SEEN_DB = (0.004, 0.016, 0.028, 0.039, 0.054, 0.060, 0.062, 0.087, 0.130, 0.296, 0.670)
"""Every fourth of the 39 standard deviations of ``study=components`` at the default budget, and the largest."""

UNEVEN_DB = (0.05, 0.15)  # the reference and the ablated cells, where ablated ones spread three times as much
QUIET_DB = 0.02  # a spread at which ten seeds show equivalence easily, so that a false one at the margin would show too

CORRELATIONS = (0.0, 0.4, 0.9)  # of the scores of two cells under one seed
FAMILIES = (1, 5, 20)  # how many comparisons with one reference a study makes

START = "<!-- simulation: start -->"
END = "<!-- simulation: end -->"

CONTRASTS: Mapping[str, tuple[float, ...]] = {
    "difference of two cells": (-1.0, 1.0),
    "average over four contexts": (-0.25, 0.25) * 4,
    "interaction": (1.0, -1.0, -1.0, 1.0),
}


def heavy(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Student's t with 5 degrees of freedom, at variance 1: kurtosis 9, three times that of the normal."""
    return np.asarray(generator.standard_t(5, shape) / np.sqrt(5 / 3))


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A mirrored gamma of shape 4 at variance 1, skewness -1: bad seeds fall farther than good ones rise."""
    return np.asarray((4 - generator.gamma(4.0, size=shape)) / 2)


def extreme(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A mirrored lognormal at variance 1, skewness -6: now and then a training almost fails."""
    draws = np.exp(generator.standard_normal(shape))
    return np.asarray((np.exp(0.5) - draws) / np.sqrt((np.e - 1) * np.e))


SYMMETRIC: Mapping[str, Noise] = {"normal": normal, "heavy tails": heavy}
NOISES: Mapping[str, Noise] = {**SYMMETRIC, "skewed": skewed}  # the noise for which the intervals must cover
BEYOND: Mapping[str, Noise] = {**NOISES, "extreme": extreme}  # and that for which they no longer do

Spreads = Callable[[np.random.Generator, tuple[int, int]], Array]
"""Draws the spread of each cell, in dB, of an array (studies, cells)."""


def equal(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.full(shape, NOISE_DB)


def quiet(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.full(shape, QUIET_DB)


def as_seen(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    return generator.choice(SEEN_DB, size=shape)


def uneven(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    spreads = np.full(shape, UNEVEN_DB[1])
    spreads[:, 0] = UNEVEN_DB[0]
    return spreads


SPREADS: Mapping[str, Spreads] = {"equal": equal, "as seen": as_seen}


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How the scores of a study vary: the noise, the spread of each cell and the ``correlation`` within a seed."""

    noise: Noise
    spreads: Spreads = equal
    correlation: float = 0.0

    def drawn(self, cells: int, seeds: int, studies: int) -> Array:
        """Simulated scores (studies, cells, seeds) in dB around a truth of 0."""
        generator = np.random.default_rng(SEED)
        noise = correlated(self.noise, generator, (studies, cells, seeds), self.correlation)
        return np.asarray(self.spreads(generator, (studies, cells))[..., None] * noise)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is simulated, and for each column a rate, or the lowest and the highest of several, between 0 and 1."""

    labels: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]

    @property
    def text(self) -> str:
        shown = [" to ".join(f"{round(100 * rate, 1) + 0.0:.1f}" for rate in rates) for rates in self.rates]
        return f"| {' | '.join([*self.labels, *shown])} |"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rates of one kind; ``labels`` and ``columns`` head them."""

    title: str
    explanation: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def text(self) -> str:
        header = f"| {' | '.join([*self.labels, *self.columns])} |"
        rule = f"| {' | '.join(['---'] * len(self.labels) + ['---:'] * len(self.columns))} |"
        return "\n".join([header, rule, *(row.text for row in self.rows)])


SEEDS = tuple(f"n = {seeds}" for seeds in SEED_COUNTS)


def simulated(studies: int = STUDIES) -> tuple[Table, ...]:
    """All tables; the same numbers for the same number of studies."""
    makers = (coverage, false_differences, false_methods, hard_cases, false_equivalences, power, half_normals)
    by_rule = (
        *(published_levels, levels_of_looks, differences_by_rule, equivalences_by_rule, hard_cases_by_rule),
        *(coverage_by_rule, power_by_rule, excess_by_rule, trainings_by_rule),
    )
    return tuple(make(studies) for make in (*makers, *by_rule))


def coverage(studies: int) -> Table:
    rows = tuple(
        Row(
            (what, spreads, f"{correlation:g}"),
            tuple(
                extremes(
                    covering(weights, Conditions(noise, SPREADS[spreads], correlation).drawn(len(weights), n, studies))
                    for noise in NOISES.values()
                )
                for n in SEED_COUNTS
            ),
        )
        for (what, weights), spreads, correlation in itertools.product(CONTRASTS.items(), SPREADS, CORRELATIONS)
    )
    return Table(
        "Coverage of the 95 % intervals",
        "The share of intervals that hold the truth: the lowest and the highest of the three kinds of noise.",
        ("what", "spreads", "correlation"),
        SEEDS,
        rows,
    )


def extremes(rates: Iterable[float]) -> tuple[float, float]:
    found = list(rates)
    return min(found), max(found)


def covering(weights: Sequence[float], scores: Array) -> float:
    found = weighed(weights, scores)
    return float(np.mean(np.abs(found.mean) <= found.width))


def weighed(weights: Sequence[float], scores: Array) -> Contrast:
    """The weighted sum of cells, from scores (..., cells, seeds)."""
    return welch(weights, scores.mean(axis=-1), scores.var(axis=-1, ddof=1), np.full(len(weights), scores.shape[-1]))


def to_reference(scores: Array) -> Contrast:
    """The differences of all cells but the first to the first, from scores (studies, cells, seeds)."""
    others = scores[:, 1:]
    reference = np.broadcast_to(scores[:, :1], others.shape)
    return weighed((1.0, -1.0), np.stack([others, reference], axis=-2))


def family_outcomes(found: Contrast) -> npt.NDArray[np.str_]:
    """What :func:`analysis.statistics.estimates.verdicts` finds, for many families at once."""
    return outcomes(found.mean, holm(found.p), holm(found.p_equivalence(MARGIN_DB)))


def any_difference(scores: Array) -> float:
    said = family_outcomes(to_reference(scores))
    return float(np.mean(((said == str(Outcome.BETTER)) | (said == str(Outcome.WORSE))).any(axis=-1)))


def any_equivalence(scores: Array) -> float:
    return float(np.mean((family_outcomes(to_reference(scores)) == str(Outcome.EQUIVALENT)).any(axis=-1)))


def uncorrected(scores: Array) -> float:
    return float(np.mean((to_reference(scores).p < ALPHA).any(axis=-1)))


def pooled(scores: Array) -> float:
    """The error rate of verdicts with one variance for all cells, the mean of theirs."""
    _, cells, seeds = scores.shape
    error = np.sqrt(2 / seeds * scores.var(axis=-1, ddof=1).mean(axis=-1, keepdims=True))
    mean = to_reference(scores).mean
    found = Contrast(mean, np.broadcast_to(error, mean.shape), np.full(mean.shape, float(cells * (seeds - 1))))
    return float(np.mean((holm(found.p) < ALPHA).any(axis=-1)))


def by_seeds(
    rate: Callable[[Array], float],
    comparisons: int,
    conditions: Iterable[Conditions],
    studies: int,
    difference: float = 0.0,
) -> tuple[tuple[float], ...]:
    """The highest rate under any of the conditions for each number of seeds; ``difference`` is to the reference."""
    truth = np.array([0.0, *[difference] * comparisons])[:, None]
    given = list(conditions)
    return tuple(
        (max(rate(truth + each.drawn(comparisons + 1, seeds, studies)) for each in given),) for seeds in SEED_COUNTS
    )


def named(comparisons: int) -> str:
    return "1 comparison" if comparisons == 1 else f"{comparisons} comparisons"


def false_differences(studies: int) -> Table:
    def rates(size: int, spreads: str, correlation: float, noises: Mapping[str, Noise]) -> tuple[tuple[float], ...]:
        conditions = [Conditions(noise, SPREADS[spreads], correlation) for noise in noises.values()]
        return by_seeds(any_difference, size, conditions, studies)

    rows = tuple(
        Row(
            (named(size), spreads, f"{correlation:g}"),
            rates(size, spreads, correlation, SYMMETRIC) + rates(size, spreads, correlation, {"skewed": skewed}),
        )
        for size, spreads, correlation in itertools.product(FAMILIES, SPREADS, CORRELATIONS)
    )
    return Table(
        "False verdicts without an effect",
        "The share of studies with any `better` or `worse` in a family of comparisons that share one reference, to be "
        "at most 5 %: for normal or heavy-tailed noise, whichever is worse, and for skewed noise.",
        ("family", "spreads", "correlation"),
        (*SEEDS, *(f"skewed, {seeds}" for seeds in SEEDS)),
        rows,
    )


def false_methods(studies: int) -> Table:
    conditions = [Conditions(normal, as_seen)]
    methods = {"without a correction": uncorrected, "with one pooled variance": pooled}
    return Table(
        "The same by other methods",
        "20 comparisons under normal noise, spreads as seen, no correlation.",
        ("method",),
        SEEDS,
        tuple(Row((what,), by_seeds(rate, FAMILIES[-1], conditions, studies)) for what, rate in methods.items()),
    )


def hard_cases(studies: int) -> Table:
    rows = tuple(
        Row((named(size), name), by_seeds(any_difference, size, [Conditions(noise, uneven)], studies))
        for name, noise in BEYOND.items()
        for size in FAMILIES
    )
    return Table(
        "False verdicts where all ablated cells spread three times as much as the reference",
        "The same share, without correlation. Here the verdicts err too often.",
        ("family", "noise"),
        SEEDS,
        rows,
    )


def false_equivalences(studies: int) -> Table:
    rows = tuple(
        Row(
            (named(size), name),
            by_seeds(
                any_equivalence, size, [Conditions(noise, spreads) for noise in NOISES.values()], studies, MARGIN_DB
            ),
        )
        for size in FAMILIES
        for name, spreads in (("all 0.02 dB", quiet), ("as seen", as_seen))
    )
    return Table(
        "False `equivalent` if every true difference is the margin",
        "The share of studies with any `equivalent`, to be at most 5 %: the highest of the three kinds of noise, "
        "without correlation.",
        ("family", "spreads"),
        SEEDS,
        rows,
    )


def power(studies: int) -> Table:
    def found(seeds: int, effect: float, family: int, correlation: float, paired: bool) -> tuple[float]:
        scores = Conditions(normal, equal, correlation).drawn(2, seeds, studies) / NOISE_DB
        scores[:, 1] += effect
        test = student(scores[:, 1] - scores[:, 0]) if paired else weighed((-1.0, 1.0), scores)
        return (float(np.mean(test.p < ALPHA / family)),)

    columns = list(itertools.product((False, True), CORRELATIONS))
    alone = [(seeds, effect, 1) for seeds in (3, 5, 8) for effect in (1.0, 2.0, 3.0)]
    among = [(3, 4.0, 20), (3, 8.0, 20), (5, 3.0, 20), (8, 2.0, 20)]
    return Table(
        "Power of Welch's test beside the paired one",
        "How often a true difference of so many standard deviations s of a cell is found, alone or as the first of 20 "
        "comparisons, under normal noise and equal spreads, by the correlation r within a seed.",
        ("seeds", "difference", "comparisons"),
        tuple(f"{'paired' if paired else 'Welch'}, r = {correlation:g}" for paired, correlation in columns),
        tuple(
            Row((str(case[0]), f"{case[1]:g} s", str(case[2])), tuple(found(*case, r, paired) for paired, r in columns))
            for case in [*alone, *among]
        ),
    )


def half_normals(studies: int) -> Table:
    sizes = (3, 4, 5)
    return Table(
        "Half-normal plot without an effect",
        "The share of studies, of one seed each, with any effect marked, to be at most 5 %.",
        ("noise",),
        tuple(f"{2**size} cells" for size in sizes),
        tuple(
            Row((name,), tuple((any_marked(noise, size, studies),) for size in sizes)) for name, noise in NOISES.items()
        ),
    )


def any_marked(noise: Noise, components: int, studies: int) -> float:
    """The share of unreplicated two-level designs without an effect in which some effect is marked."""
    factors = {f"factor {index}": ("reference", "ablated") for index in range(components)}
    drawn = Conditions(noise).drawn(2**components, 1, studies)[..., 0]
    sizes = combined_all(half_normal_weights(factors), drawn.T).T
    simultaneous = lenth(sizes)[2]
    return float(np.mean((np.abs(sizes) > simultaneous[:, None]).any(axis=-1)))


# --- studies with a stopping rule -------------------------------------------------------------------------------------

EVERY = tuple(range(3, 13))
"""The looks of the simulated rule: the first at 3 seeds, the last at 12, and one at every number between."""

RULES: Mapping[str, tuple[int, ...]] = {"every seed": EVERY, "3, 5, 8, 12": (3, 5, 8, 12)}
FIXED = EVERY[-1:]
MANY = (1, 8, 20)  # how many comparisons with one reference are decided

PART = 1000  # studies whose differences are computed at once, so that they fit into a processor's cache

METHODS: Mapping[str, tuple[bool, float]] = {
    **{f"Welch, r = {correlation:g}": (False, correlation) for correlation in CORRELATIONS},
    **{f"paired, r = {correlation:g}": (True, correlation) for correlation in CORRELATIONS[1:]},
}
"""Whether cells are compared within a seed, and the correlation there."""

EFFECTS = (0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0)
"""True differences, in standard deviations of a cell. The rule loses most power at 1 to 1.5."""

PUBLISHED: Mapping[str, tuple[tuple[int, ...], float]] = {
    "3 to 10": (tuple(range(3, 11)), 0.0120),
    "3, 5, 8": ((3, 5, 8), 0.0199),
    **{
        ", ".join(f"{60 * look}" for look in range(1, looks + 1)): (tuple(range(60, 60 * looks + 1, 60)), level)
        for looks, level in ((2, 0.0294), (3, 0.0221))
    },
}
"""Looks, and the level of each that comes to 5 % over all, by others: two by simulation of Student's t, the rest from
Pocock (1977) for normal values."""

COMPONENTS: Mapping[str, tuple[float, float]] = {
    "reference": (34.171, 0.059),
    "residual=false": (32.617, 0.100),
    "residual=block": (34.100, 0.062),
    "bn=pre": (34.035, 0.028),
    "bn=post": (33.266, 0.004),
    "bn=out": (34.125, 0.017),
    "act=after": (34.142, 0.039),
    "act=none": (34.059, 0.061),
    "align=1": (33.404, 0.004),
    "act=after align=1": (32.630, 0.177),
    "act=after bn=post": (33.321, 0.055),
}
"""The mean PSNR and its standard deviation, in dB, of the compared cells of the same study."""

AT_THE_REFERENCE: tuple[Pair, ...] = tuple(("reference", cell) for cell in tuple(COMPONENTS)[1:9])
STUDIES_OF_COMPONENTS: Mapping[str, tuple[int, tuple[Pair, ...]]] = {
    "components: 39 cells, 11 comparisons": (
        39,
        (
            *AT_THE_REFERENCE,
            ("act=after align=1", "act=after bn=post"),
            ("act=after align=1", "act=after"),
            ("act=after bn=post", "act=after"),
        ),
    ),
    "one at a time: 9 cells, 9 comparisons": (9, (*AT_THE_REFERENCE, ("align=1", "bn=post"))),
}
"""How many cells ``components`` has, and which of them are compared: each change of the reference, and the pairs that
test a claim of the paper."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Comparisons of cells with one reference, at the looks :data:`EVERY`, and how their scores vary."""

    comparisons: int
    conditions: Conditions
    paired: bool = False

    def parts(self, studies: int) -> Iterator[Contrast]:
        """The differences without an effect, some studies at a time: arrays (studies, looks, comparisons)."""
        drawn = self.conditions.drawn(self.comparisons + 1, EVERY[-1], studies)
        places = np.array([[0, cell] for cell in range(1, self.comparisons + 1)])
        for start in range(0, studies, PART):
            part = drawn[start : start + PART]
            yield differences(part, places, np.zeros(self.comparisons), EVERY, paired=self.paired)

    def share(
        self, studies: int, holds: Callable[[Closed], npt.NDArray[np.bool_]], difference: float, *rules: tuple[int, ...]
    ) -> tuple[float, ...]:
        """The share of studies with any comparison of which something holds, by rule; ``difference`` is true."""
        found = np.array(
            [
                [holds(by_looks(part, difference, looks)).any(axis=-1).sum() for looks in rules]
                for part in self.parts(studies)
            ]
        )
        return tuple((found.sum(axis=0) / studies).tolist())


def by_looks(found: Contrast, difference: float | Array, looks: tuple[int, ...]) -> Closed:
    """Close comparisons by a rule with these looks, if ``difference`` is true."""
    moved = dataclasses.replace(found, mean=found.mean + difference)
    return closed(moved, EVERY, Boundary(looks), MARGIN_DB)


def is_different(found: Closed) -> npt.NDArray[np.bool_]:
    return np.asarray(found.kinds == DIFFERENT)


def is_equivalent(found: Closed) -> npt.NDArray[np.bool_]:
    return np.asarray(found.kinds == EQUIVALENT)


def published_levels(studies: int) -> Table:
    return Table(
        "One level for all looks, as others give it",
        "The error over all looks by the exact law, to be 5 % where the level is for Student's t, and near it where it "
        "is for normal values.",
        ("looks, in seeds", "level of each"),
        ("error",),
        tuple(
            Row((text, f"{100 * level:.2f} %"), ((crossing([level] * len(looks), looks, 2),),))
            for text, (looks, level) in PUBLISHED.items()
        ),
    )


def levels_of_looks(studies: int) -> Table:
    boundaries = [Boundary(EVERY), Boundary(RULES["3, 5, 8, 12"]), Boundary(EVERY, 0.0, 0.0)]

    def level(boundary: Boundary, look: int, comparisons: int) -> float | None:
        return boundary.level(look, ALPHA / comparisons, 2) if look in boundary.looks else None

    def texts(look: int) -> Iterator[str]:
        for comparisons in (1, MANY[-1]):
            for boundary in boundaries:
                found = level(boundary, look, comparisons)
                yield "" if found is None else f"{100 * found:.3g} %, {special.stdtrit(look - 1, 1 - found / 2):.2f}"

    columns = [f"{what}, {many}" for many in ("alone", f"of {MANY[-1]}") for what in (*RULES, "one level")]
    return Table(
        "Levels of the looks",
        f"The two-sided level of a look and the critical |t| of the paired test, alone and at the first step of Holm "
        f"among {MANY[-1]}. *One level* is that of Pocock (1977) for a look at every seed.",
        ("seeds", *columns),
        (),
        tuple(Row((str(look), *texts(look)), ()) for look in EVERY),
    )


def errors_by_rule(
    studies: int, kind: Callable[[Closed], npt.NDArray[np.bool_]], difference: float, spreads: Mapping[str, Spreads]
) -> tuple[Row, ...]:
    def rates(size: int, spread: str, paired: bool, correlation: float) -> tuple[tuple[float], ...]:
        families = [Family(size, Conditions(noise, spreads[spread], correlation), paired) for noise in NOISES.values()]
        found = [family.share(studies, kind, difference, *RULES.values()) for family in families]
        every, few = zip(*found, strict=True)
        return (*((rate,) for rate in every), (max(few),))

    return tuple(
        Row((named(size), spread, method), rates(size, spread, *METHODS[method]))
        for size, spread, method in itertools.product(MANY, spreads, METHODS)
    )


LABELS_OF_ERRORS = ("family", "spreads", "method and correlation")
COLUMNS_OF_ERRORS = (*NOISES, "3, 5, 8, 12")


def differences_by_rule(studies: int) -> Table:
    return Table(
        "False `better` or `worse` by the rule",
        "The share of studies without an effect with any such verdict at any look, to be at most 5 %, or 6 % where "
        "noise is not normal. The last column is the highest of the three kinds of noise with looks at 3, 5, 8 and 12.",
        LABELS_OF_ERRORS,
        COLUMNS_OF_ERRORS,
        errors_by_rule(studies, is_different, 0.0, SPREADS),
    )


def equivalences_by_rule(studies: int) -> Table:
    return Table(
        "False `equivalent` by the rule if every true difference is the margin",
        "The share of studies with any such verdict at any look, to be at most 5 %, or 6 % where noise is not normal. "
        "Columns as above.",
        LABELS_OF_ERRORS,
        COLUMNS_OF_ERRORS,
        errors_by_rule(studies, is_equivalent, MARGIN_DB, {"all 0.02 dB": quiet, "as seen": as_seen}),
    )


def hard_cases_by_rule(studies: int) -> Table:
    looks = (*RULES.values(), FIXED)
    return Table(
        "False `better` or `worse` by the rule where all ablated cells spread three times as much as the reference",
        "The same share, without correlation, beside that of a fixed plan with 12 seeds.",
        ("family", "noise"),
        (*RULES, "12 seeds"),
        tuple(
            Row(
                (named(size), name),
                tuple(
                    (rate,)
                    for rate in Family(size, Conditions(noise, uneven)).share(studies, is_different, 0.0, *looks)
                ),
            )
            for name, noise in BEYOND.items()
            for size in MANY
        ),
    )


def coverage_by_rule(studies: int) -> Table:
    def rate(difference: float, conditions: Conditions, paired: bool) -> float:
        parts = Family(1, conditions, paired).parts(studies)
        return sum(int(repeated_holds(by_looks(part, difference, EVERY), difference).sum()) for part in parts) / studies

    def rates(difference: float, spread: str, paired: bool, correlation: float) -> tuple[float, float]:
        return extremes(
            rate(difference, Conditions(noise, SPREADS[spread], correlation), paired) for noise in NOISES.values()
        )

    return Table(
        "Coverage of the repeated 95 % intervals at the look of the verdict",
        "The share of intervals that hold the truth at the look at which a single comparison is closed, by the true "
        "difference: the lowest and the highest of the three kinds of noise.",
        ("difference", "spreads"),
        tuple(METHODS),
        tuple(
            Row(
                (f"{difference:g} dB", spread), tuple(rates(difference, spread, *method) for method in METHODS.values())
            )
            for difference, spread in itertools.product((0.0, 0.05, 0.1, 0.2, 0.4), SPREADS)
        ),
    )


def repeated_holds(found: Closed, truth: float) -> npt.NDArray[np.bool_]:
    """Whether the repeated 95 % interval of each comparison at its look holds the truth."""
    levels = np.zeros(EVERY[-1] + 1)
    levels[list(EVERY)] = [Boundary(EVERY).level(look, ALPHA, 2) for look in EVERY]
    reach = special.stdtrit(found.estimate.freedom, 1 - levels[found.seeds] / 2) * found.estimate.error
    return np.asarray(np.abs(found.estimate.mean - truth) <= reach)


def power_by_rule(studies: int) -> Table:
    cases = [(1, False), *itertools.product(MANY[1:], (False, True))]

    def rows(size: int, together: bool) -> Iterator[Row]:
        effects = NOISE_DB * np.multiply.outer(EFFECTS, np.ones(size) if together else np.eye(size)[0])
        found = [power_of(Family(size, Conditions(normal), paired), effects, studies) for paired in (False, True)]
        others = "the same" if together else "none" if size > 1 else ""
        for effect, (fixed, every, few, seeds), (fixed_paired, every_paired, *_) in zip(EFFECTS, *found, strict=True):
            rates = (fixed, every, fixed - every, fixed - few, seeds, fixed_paired, fixed_paired - every_paired)
            yield Row((named(size), others, f"{effect:g} s"), tuple((rate,) for rate in rates))

    return Table(
        "Power of the rule beside a fixed plan with 12 seeds",
        "How often a true difference of so many standard deviations s of a cell is found, with Holm, under normal "
        "noise, equal spreads and no correlation; the other comparisons have no effect or the same. The loss, in "
        "points, is to be at most 2. *Seeds* is their mean number at the verdict as a share of 12.",
        ("family", "effect of the others", "difference"),
        (
            *("12 seeds", "every seed", "loss", "loss, looks 3, 5, 8, 12", "seeds"),
            *("paired, 12 seeds", "loss, paired"),
        ),
        tuple(row for case in cases for row in rows(*case)),
    )


def power_of(family: Family, effects: Array, studies: int) -> list[tuple[float, float, float, float]]:
    """The power of 12 seeds, of every look and of few, and the mean share of seeds, for each row of true ``effects``.

    Each is a mean over the comparisons with an effect.
    """
    found = np.zeros((len(effects), 4))
    for part in family.parts(studies):
        for row, effect in zip(found, effects, strict=True):
            by_rule = [by_looks(part, effect, looks) for looks in (FIXED, *RULES.values())]
            real = effect > 0
            row[:3] += [is_different(each)[:, real].mean(axis=1).sum() for each in by_rule]
            row[3] += by_rule[1].seeds[:, real].mean(axis=1).sum() / EVERY[-1]
    return [tuple(row) for row in (found / studies).tolist()]


def excess_by_rule(studies: int) -> Table:
    parts = list(Family(1, Conditions(normal)).parts(studies))

    def excess(effect: float, looks: tuple[int, ...], chosen: Callable[[Closed], npt.NDArray[np.bool_]]) -> float:
        found = [by_looks(part, effect * NOISE_DB, looks) for part in parts]
        means = np.concatenate([each.estimate.mean[chosen(each)] for each in found])
        return float(means.mean() / NOISE_DB - effect) if means.size else np.nan

    def every_study(found: Closed) -> npt.NDArray[np.bool_]:
        return np.full(found.kinds.shape, True)

    return Table(
        "By how much an estimate exceeds the truth at the look of its verdict",
        "Of a single comparison, in per cent of the standard deviation s of a cell: the mean over all studies, and "
        "over those that found a difference, beside the latter in a fixed plan with 12 seeds. Noise is normal.",
        ("difference",),
        ("all studies", "found different", "found different, 12 seeds"),
        tuple(
            Row(
                (f"{effect:g} s",),
                (
                    (excess(effect, EVERY, every_study),),
                    (excess(effect, EVERY, is_different),),
                    (excess(effect, FIXED, is_different),),
                ),
            )
            for effect in EFFECTS
        ),
    )


def trainings_by_rule(studies: int) -> Table:
    def row(name: str, looks: str) -> Row:
        cells, pairs = STUDIES_OF_COMPONENTS[name]
        means, spreads = ({cell: each[part] for cell, each in COMPONENTS.items()} for part in (0, 1))
        compared = dict.fromkeys(cell for pair in pairs for cell in pair)
        # The cells in no comparison have the seeds of the first look, whatever their scores.
        rest = {f"cell {number}": 0.0 for number in range(len(compared), cells)}
        truth = Truth(effects_of(pairs, means), {cell: spreads[cell] for cell in compared} | rest)
        found = expectation(truth, Boundary(RULES[looks]), MARGIN_DB, studies=studies)
        by_rule, fixed = (float(np.mean(shares)) for shares in decided_shares(found))
        return Row((name, looks), ((found.trainings / found.trainings_if_fixed,), (by_rule,), (fixed,)))

    return Table(
        "Trainings for the effects and spreads of `components`",
        "The mean number of trainings as a share of 12 for every cell, to be at most 60 %, and the mean share of the "
        "comparisons that are decided. The means and standard deviations of the report are taken to be the truth.",
        ("study", "looks"),
        ("trainings", "decided", "decided, 12 seeds"),
        tuple(row(*labels) for labels in itertools.product(STUDIES_OF_COMPONENTS, RULES)),
    )


def decided_shares(found: Expectation) -> tuple[list[float], list[float]]:
    return [each.decided for each in found.comparisons], [each.decided_if_fixed for each in found.comparisons]


# --- the command ------------------------------------------------------------------------------------------------------


def page(tables: Sequence[Table], studies: int) -> str:
    lines = [
        f"Written by `python -m analysis.statistics.simulation`: {studies:,} studies for every number, in per cent."
    ]
    for table in tables:
        lines += [f"### {table.title}", table.explanation, table.text]
    return "\n\n".join(lines)


def replaced(text: str, new: str) -> str:
    """A page with ``new`` between its two markers; raises ValueError if it does not have each of them once."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"the page needs one line {START} and after it one line {END}")
    before, rest = text.split(START)
    return f"{before}{START}\n\n{new}\n\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.statistics.simulation", description="Count how often intervals cover and verdicts err."
    )
    parser.add_argument("--studies", type=int, default=STUDIES, help="simulated studies per number (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    options = parser.parse_args(arguments)
    if options.studies < 1:
        parser.error("--studies takes a number above 0")
    text = page(simulated(options.studies), options.studies)
    if options.write is None:
        print(text)
        return
    try:
        options.write.write_text(replaced(options.write.read_text(encoding="utf-8"), text), encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.exit(f"analysis.statistics.simulation: {options.write}: {error}")


if __name__ == "__main__":
    main()
