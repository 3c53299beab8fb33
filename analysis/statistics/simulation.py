"""Measure how often the intervals cover and the verdicts err: ``python -m analysis.statistics.simulation``.

It runs ``analysis.statistics.estimates`` and ``analysis.statistics.factorial`` on scores whose truth is known.
``--write docs/statistics.md`` puts the tables between the page's two markers; a test compares some of them.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

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
from analysis.statistics.factorial import combined_all, half_normal_weights, lenth

SEED_COUNTS = (2, 3, 5, 10)  # the numbers of seeds of the simulated studies
STUDIES = 20_000  # with so many studies, a rate of 5 % is known to 0.3 points
SEED = 20240607  # the seed of the generator; every rate starts from it, so each can be computed alone

NOISE_DB = 0.1
"""The spread of a cell between seeds where all cells spread equally."""

SEEN_DB = (0.004, 0.016, 0.028, 0.039, 0.054, 0.060, 0.062, 0.087, 0.130, 0.296, 0.670)
"""Every fourth of the 39 standard deviations in ``reports/examples/components/cells.csv``, and the largest."""

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

Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return generator.standard_normal(shape)


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
        own = self.noise(generator, (studies, cells, seeds))
        shared = self.noise(generator, (studies, 1, seeds))
        spread = self.spreads(generator, (studies, cells))[..., None]
        return np.asarray(spread * (np.sqrt(1 - self.correlation) * own + np.sqrt(self.correlation) * shared))


@dataclasses.dataclass(frozen=True)
class Row:
    """What is simulated, and for each column a rate, or the lowest and the highest of several, between 0 and 1."""

    labels: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]

    @property
    def text(self) -> str:
        shown = [" to ".join(f"{100 * rate:.1f}" for rate in rates) for rates in self.rates]
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
    return tuple(make(studies) for make in makers)


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
