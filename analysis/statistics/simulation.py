"""Measure how often the intervals cover and the verdicts err: ``python -m analysis.statistics.simulation``.

It runs ``analysis.statistics.estimates`` and ``analysis.statistics.factorial`` on scores whose truth is known.
``--write docs/statistics.md`` puts the tables between the page's two markers; a test compares them.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis.statistics.estimates import (
    ALPHA,
    MARGIN_DB,
    Array,
    Outcome,
    equivalence_p,
    holm,
    outcomes,
    sign_flip_p,
    student,
)
from analysis.statistics.factorial import fieller, half_normal_weights, lenth, shapley_weights, terms, weights

SEED_COUNTS = (2, 3, 5, 10)  # the numbers of seeds of the simulated studies
STUDIES = 2000  # with so many studies, a coverage of 95 % is known to 1 point

ERRORS_PER_COVERAGE = 5
"""Error rates take so many times as many studies, so that a rate of 5 % is known to half a point."""

SINGLE_PER_ERRORS = 20
"""Those of a single comparison, exactly 5 % under normal noise, take so many times more: to a tenth of a point."""

EXACT_PER_ERRORS = 4  # those of the exact test, which is slower, take so many times more
SEED = 20240607  # the seed of the generator; every table starts from it, so each can be computed alone

NOISE_DB = 0.1
"""The spread of a cell between seeds; that of the trials under ``reports/examples/`` goes from 0.03 to 0.15 dB."""

SHARED_DB = 0.3  # the noise of a seed that all cells share, which pairing must remove
UNEVEN = (0.5, 1.5)  # cells may spread differently: the first by half of ``NOISE_DB``, the last by one and a half
QUIET_DB = 0.02  # a spread at which ten seeds show equivalence easily, so that a false one at the margin would show too

START = "<!-- simulation: start -->"
END = "<!-- simulation: end -->"

FACTORS = {"residual": ("true", "false"), "threshold": ("true", "false"), "bn": ("none", "pre", "post")}
"""A mixed design of 12 cells."""

COMPONENTS = 3  # a design of 8 cells for the Shapley shares
FAMILIES = (1, 5, 20)  # how many comparisons with one reference a study makes

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


NOISES: Mapping[str, Noise] = {"normal": normal, "heavy tails": heavy, "skewed": skewed}
"""The noise for which the intervals must cover."""

BEYOND: Mapping[str, Noise] = {"extreme": extreme}  # the noise for which they no longer do


@dataclasses.dataclass(frozen=True)
class Row:
    """A rate for each number of seeds, between 0 and 1 or NaN, under one noise, each from so many ``studies``."""

    what: str
    noise: str
    rates: tuple[float, ...]
    studies: int


@dataclasses.dataclass(frozen=True)
class Family:
    """Comparisons with one reference, all with one true ``difference`` in dB.

    A cell spreads by ``spread`` dB between seeds; if ``uneven``, the reference by half and the others by one and a
    half of that, so that skewed noise leaves differences skewed.
    """

    comparisons: int
    noise: str
    difference: float = 0.0
    spread: float = NOISE_DB
    uneven: bool = False

    def drawn(self, seeds: int, studies: int) -> Array:
        """Simulated differences (studies, comparisons, seeds); the comparisons share the noise of the reference."""
        reference, others = UNEVEN if self.uneven else (1.0, 1.0)
        noise = {**NOISES, **BEYOND}[self.noise]
        cells = self.spread * noise(np.random.default_rng(SEED), (studies, self.comparisons + 1, seeds))
        return np.asarray(self.difference + others * cells[:, 1:] - reference * cells[:, :1])


@dataclasses.dataclass(frozen=True)
class Table:
    """Rates of one kind; ``columns`` head them."""

    title: str
    explanation: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = tuple(f"n = {seeds}" for seeds in SEED_COUNTS)


def simulated(studies: int = STUDIES) -> tuple[Table, ...]:
    """All tables; the same numbers for the same number of studies."""
    many = ERRORS_PER_COVERAGE * studies
    no_effect = [Family(comparisons, noise) for comparisons in FAMILIES for noise in NOISES]
    at_the_margin = [dataclasses.replace(family, difference=MARGIN_DB, spread=QUIET_DB) for family in no_effect]
    even_noise, skewed_noise = (
        [Family(comparisons, noise, uneven=True) for comparisons in FAMILIES for noise in noises]
        for noises in (("normal", "heavy tails"), ("skewed", "extreme"))
    )
    return (
        Table(
            "Coverage of the 95 % intervals",
            "The share of intervals that hold the truth, to be between 93 and 97 %.",
            coverage_rows(NOISES, studies),
        ),
        Table(
            "Coverage under extreme noise",
            "The same if now and then a training almost fails. More seeds hardly help; averages over cells do.",
            coverage_rows(BEYOND, studies),
        ),
        Table(
            "False verdicts without an effect",
            "The share of studies with any `better` or `worse`, to be at most 5 %; under normal noise that of a single "
            "comparison is exactly 5 %.",
            (
                *(rates(family, any_difference, many) for family in [*no_effect, *even_noise]),
                rates(Family(FAMILIES[-1], "normal"), any_uncorrected, many, ", had they not been corrected"),
                rates(Family(1, "skewed"), exact_rejections, many, ", exact sign-flip test"),
            ),
        ),
        Table(
            "False verdicts under uneven and skewed noise",
            "The same if ablated cells spread three times as much as the reference, and more to one side.",
            tuple(rates(family, any_difference, many) for family in skewed_noise),
        ),
        Table(
            "False `equivalent` if every true difference is the margin",
            "The share of studies with any `equivalent`, to be at most 5 %.",
            tuple(rates(family, any_equivalence, many) for family in at_the_margin),
        ),
        Table(
            "Half-normal plot without an effect",
            "The share of studies, of one seed each, with any effect marked, to be at most 5 %.",
            half_normal_rows(many),
            ("8 cells", "16 cells", "32 cells"),
        ),
    )


def scores(noise: Noise, truth: Array, seeds: int, studies: int) -> Array:
    """Simulated PSNR in dB, an array (studies, cells, seeds) around the ``truth`` of each cell."""
    generator = np.random.default_rng(SEED)
    shared = SHARED_DB * noise(generator, (studies, 1, seeds))
    uneven = np.linspace(*UNEVEN, len(truth))[:, None]
    return np.asarray(truth[:, None] + shared + NOISE_DB * uneven * noise(generator, (studies, len(truth), seeds)))


def coverage_rows(noises: Mapping[str, Noise], studies: int) -> tuple[Row, ...]:
    pairs = [term for term in terms(FACTORS, 2) if len(term.moved) == 2]
    coverages: dict[str, Callable[[Noise, int, int], float]] = {
        "difference of two cells": coverage_of(np.array([[-1.0, 1.0]])),
        "main effect": coverage_of(np.array([weights(FACTORS, term) for term in terms(FACTORS, 1)])),
        "interaction of two factors": coverage_of(np.array([weights(FACTORS, term) for term in pairs])),
        "Shapley gain in dB": coverage_of(shapley_weights(COMPONENTS)),
        "Shapley share of the gain": share_coverage,
    }
    return tuple(
        Row(what, name, tuple(coverage(noise, seeds, studies) for seeds in SEED_COUNTS), studies)
        for what, coverage in coverages.items()
        for name, noise in noises.items()
    )


def coverage_of(contrast: Array) -> Callable[[Noise, int, int], float]:
    """Return the coverage over all rows of ``contrast``, weights of the cells of a design, as a function of noise."""

    def coverage(noise: Noise, seeds: int, studies: int) -> float:
        truth = cell_truth(contrast.shape[1])
        found = student(contrast @ scores(noise, truth, seeds, studies))
        return float(np.mean((found.low <= contrast @ truth) & (contrast @ truth <= found.high)))

    return coverage


def cell_truth(cells: int) -> Array:
    """True scores in dB that fall from the first cell to the last, irregularly, so that no effect is 0 by symmetry."""
    return np.asarray(34.0 - 0.2 * np.arange(cells) + 0.1 * np.sin(np.arange(cells) ** 2))


def share_coverage(noise: Noise, seeds: int, studies: int) -> float:
    """Fieller's interval of each component's share, among the studies whose total gain is surely not 0.

    The others have none: 3 in 10 of those with two seeds, and hardly any with more.
    """
    contrast, truth = shapley_weights(COMPONENTS), cell_truth(2**COMPONENTS)
    drawn = scores(noise, truth, seeds, studies)
    total, true_total = drawn[:, 0] - drawn[:, -1], truth[0] - truth[-1]
    low, high = fieller(contrast @ drawn, total[:, None, :])
    given = np.isfinite(low)
    expected = np.broadcast_to((contrast @ truth) / true_total, low.shape)
    return float(np.mean((low <= expected)[given] & (expected <= high)[given]))


def rates(family: Family, rate: Callable[[Array], float], studies: int, remark: str = "") -> Row:
    """A rate over the studies of a family, for each number of seeds."""
    if family.comparisons == 1:
        studies *= EXACT_PER_ERRORS if rate is exact_rejections else SINGLE_PER_ERRORS
    plural = "s" if family.comparisons > 1 else ""
    what = f"{family.comparisons} comparison{plural}{', uneven spread' if family.uneven else ''}{remark}"
    return Row(what, family.noise, tuple(rate(family.drawn(seeds, studies)) for seeds in SEED_COUNTS), studies)


def family_outcomes(differences: Array) -> npt.NDArray[np.str_]:
    found = student(differences)
    return outcomes(found.mean, holm(found.p), holm(equivalence_p(differences, MARGIN_DB)))


def any_difference(differences: Array) -> float:
    said = family_outcomes(differences)
    return float(np.mean(((said == str(Outcome.BETTER)) | (said == str(Outcome.WORSE))).any(axis=-1)))


def any_uncorrected(differences: Array) -> float:
    return float(np.mean((student(differences).p < ALPHA).any(axis=-1)))


def exact_rejections(differences: Array) -> float:
    return float(np.mean([sign_flip_p(values) < ALPHA for values in differences[:, 0].tolist()]))


def any_equivalence(differences: Array) -> float:
    return float(np.mean((family_outcomes(differences) == str(Outcome.EQUIVALENT)).any(axis=-1)))


def half_normal_rows(studies: int) -> tuple[Row, ...]:
    what = "any effect beyond the simultaneous margin"
    return tuple(
        Row(what, name, tuple(any_marked(noise, components, studies) for components in (3, 4, 5)), studies)
        for name, noise in NOISES.items()
    )


def any_marked(noise: Noise, components: int, studies: int) -> float:
    """The share of unreplicated two-level designs without an effect in which some effect is marked."""
    factors = {f"factor {index}": ("reference", "ablated") for index in range(components)}
    drawn = NOISE_DB * noise(np.random.default_rng(SEED), (studies, 2**components))
    sizes = drawn @ half_normal_weights(factors).T
    simultaneous = lenth(sizes)[2]
    return float(np.mean((np.abs(sizes) > simultaneous[:, None]).any(axis=-1)))


def page(tables: Sequence[Table], studies: int) -> str:
    many = ERRORS_PER_COVERAGE * studies
    lines = [
        f"Written by `python -m analysis.statistics.simulation`: {studies:,} simulated studies for every coverage and "
        f"{many:,} for every error rate, {SINGLE_PER_ERRORS * many:,} for that of a single comparison by its verdict "
        f"and {EXACT_PER_ERRORS * many:,} for that of the exact test, all in per cent."
    ]
    for table in tables:
        lines += [f"### {table.title}", table.explanation, table_text(table)]
    return "\n\n".join(lines)


def table_text(table: Table) -> str:
    header = ["what", "noise", *table.columns]
    rule = ["---", "---", *("---:" for _ in table.columns)]
    body = [[row.what, row.noise, *(f"{100 * rate:.1f}" for rate in row.rates)] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *body])


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
