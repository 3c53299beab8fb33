"""Analyse cells as a factorial design: what can be estimated of it, and what cannot, with the reason."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from analysis.effects.contrasts import base_and_others, levels_by_cell
from analysis.statistics.estimates import MARGIN_DB, IncompleteDataError, Verdict, verdicts
from analysis.statistics.factorial import (
    FEWEST_FOR_HALF_NORMAL,
    Cell,
    Effect,
    Effects,
    HalfNormal,
    Responses,
    Shares,
    effects,
    fitted_effects,
    half_normal,
    restricted,
    shapley,
)
from analysis.statistics.rounding import rounded
from analysis.study.settings import SettingResults
from bbcu.model.specs import PARTS

Found = TypeVar("Found")

MOST_CELLS = 4096  # a larger grid is that of unrelated cells, such as published methods, and not a design
MOST_COMPONENTS = 10  # Shapley shares need all 2^k cells; nobody trains them all for more components than this
FEW_SEEDS = 2  # so few seeds hardly measure noise, so a half-normal plot takes it from the effects themselves
PARTED = "binarize"  # the factor whose levels list the parts of the network that are binary

FULL, BINARY = "full", "binary"  # the levels of a part: in full precision, the reference, or binary


@dataclasses.dataclass(frozen=True)
class FactorialAnalysis:
    """The factorial analysis of one test set; each part is None if it cannot be estimated.

    ``whole`` says whether all cells of the design are there, ``problems``, in sentences, what was refused and why.
    ``verdicts`` belong to the effects, in their order, and are one family. ``held`` are the two levels to which factors
    of more levels were restricted for the Shapley shares and the half-normal plot.
    """

    responses: Responses
    whole: bool
    effects: Effects | None
    verdicts: tuple[Verdict, ...]
    half_normal: HalfNormal | None
    shares: Shares | None
    held: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...]

    @property
    def judged(self) -> tuple[tuple[Effect, Verdict], ...]:
        """Every effect with its verdict; empty if no effect can be estimated."""
        return tuple(zip(self.effects.effects if self.effects else (), self.verdicts, strict=True))

    @property
    def interactions(self) -> tuple[Effect, ...]:
        return tuple(effect for effect, _ in self.judged if len(effect.term.moved) > 1)


def factorial_analyses(results: SettingResults, margin: float = MARGIN_DB) -> dict[str, FactorialAnalysis]:
    """Analyse every test set; empty if fewer than two factors vary."""
    factors = {} if results.methods else design_factors(results)
    if len(factors) < 2 or math.prod(len(levels) for levels in factors.values()) > MOST_CELLS:
        return {}
    return {name: analyse(responses_of(results, factors, name), margin) for name in results.sets}


def design_factors(results: SettingResults) -> dict[str, tuple[str, ...]]:
    """The factors that vary among the finished cells with their levels, the reference first.

    If the cells binarise every subset of some parts, these parts are factors in place of the one that lists them: the
    effect of a part is then the effect of binarising it.
    """
    found = {factor: base_and_others(results, factor) for factor in results.factors}
    varied = {factor: (base, *others) for factor, (base, others) in found.items() if others}
    parts = separate_parts(varied.get(PARTED, ()))
    if parts:
        varied = {factor: levels for factor, levels in varied.items() if factor != PARTED}
    return {**varied, **dict.fromkeys(parts, (FULL, BINARY))}


def separate_parts(levels: Sequence[str]) -> tuple[str, ...]:
    """The parts of which ``levels`` binarise every subset, in their order in the network; empty if a subset lacks."""
    subsets = {frozenset(parts_in(level)) for level in levels}
    parts = [part for part in PARTS if 0 < sum(part in subset for subset in subsets) < len(subsets)]
    return tuple(parts) if len(parts) > 1 and len(subsets) == 2 ** len(parts) else ()


def parts_in(level: str) -> list[str]:
    return [part for part in level.strip("[]").replace(" ", "").split(",") if part]


def place_of(levels: Mapping[str, str], factors: Collection[str]) -> Cell:
    """The level of each factor of the design in a cell; a part's level follows from the parts that the cell lists."""

    def level(factor: str) -> str:
        if factor in PARTS and PARTED not in factors:
            return BINARY if factor in parts_in(levels.get(PARTED, "")) else FULL
        return levels.get(factor, "")

    return tuple(level(factor) for factor in factors)


def responses_of(results: SettingResults, factors: Mapping[str, tuple[str, ...]], test_set: str) -> Responses:
    """PSNR by cell of the design and seed; a cell left out as the same network as another has that one's scores."""
    scores = results.scores(f"{test_set}/psnr_db")
    places = places_of(results, factors)
    values = {place: {seed: scores[cell, seed] for seed in results.seeds_of(cell)} for cell, place in places.items()}
    for place, same in merged_cells(results, factors).items():
        values.setdefault(place, {seed: scores[same, seed] for seed in results.seeds_of(same)})
    return Responses(factors, values)


def places_of(results: SettingResults, factors: Collection[str]) -> dict[str, Cell]:
    return {cell: place_of(levels, factors) for cell, levels in levels_by_cell(results, "level").items()}


def part_costs(results: SettingResults, factors: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[float, float]]:
    """The change in operations (10^9) and parameters (thousands) from binarising each part, over all other choices.

    Empty if the design has no parts, or lacks one of its cells.
    """
    places = {place: cell for cell, place in places_of(results, factors).items()}
    parts = [factor for factor, levels in factors.items() if levels == (FULL, BINARY)]
    if len(places) < math.prod(len(levels) for levels in factors.values()):
        return {}

    def change(part: str, cost: str) -> float:
        costs, index = results.cells[f"metric/cost/{cost}"], list(factors).index(part)
        binary, full = (
            [costs[cell] for place, cell in places.items() if place[index] == level] for level in (BINARY, FULL)
        )
        return float(math.fsum(binary) / len(binary) - math.fsum(full) / len(full))

    return {part: (change(part, "ops_g"), change(part, "params_k")) for part in parts}


def merged_cells(results: SettingResults, factors: Mapping[str, tuple[str, ...]]) -> dict[Cell, str]:
    """The cells of the design that were left out as the same network as a finished cell, each with that cell."""
    found: dict[Cell, str] = {}
    for row in results.left_out:
        place = place_of(row.levels, factors)
        known = all(level in levels for level, levels in zip(place, factors.values(), strict=True))
        if row.same_as is not None and row.same_as in results.cells.index and known:
            found.setdefault(place, row.same_as)
    return found


def analyse(responses: Responses, margin: float) -> FactorialAnalysis:
    """Estimate everything that the cells of a design allow, and say what they do not allow."""
    problems: list[str] = []

    def attempt(estimator: Callable[[Responses], Found], design: Responses, refusal: str) -> Found | None:
        try:
            return estimator(design)
        except IncompleteDataError as error:
            problems.append(f"{refusal}: {error}.")
            return None

    direct = attempt(effects, responses, "Not all cells of the design are there")
    found = direct or attempt(fitted_effects, responses, "Nor can effects be fitted")
    judged = verdicts([each.by_seed for each in found.effects], margin) if found else []
    pair_levels = {factor: levels[:2] for factor, levels in responses.factors.items()}
    held = {factor: levels for factor, levels in pair_levels.items() if len(responses.factors[factor]) > 2}
    pairs = restricted(responses, pair_levels)
    few = len(pairs.factors) <= MOST_COMPONENTS
    shares = attempt(shapley, pairs, "The gain cannot be shared among the components") if few else None
    # The plot needs the cells that the shares need, so that a refusal is said once.
    whole = shares is not None or not few
    plotted = whole and len(pairs.factors) >= FEWEST_FOR_HALF_NORMAL and len(pairs.seeds) <= FEW_SEEDS
    plot = attempt(half_normal, pairs, "There is no half-normal plot") if plotted else None
    return FactorialAnalysis(responses, direct is not None, found, tuple(judged), plot, shares, held, tuple(problems))


def marginal_means(found: FactorialAnalysis, first: str, second: str) -> dict[str, list[float]]:
    """The mean score at each level of ``first``, by level of ``second``, over all cells and the complete seeds."""
    responses, seeds = found.responses, found.effects.seeds if found.effects else ()
    means = {cell: math.fsum(responses.values[cell][seed] for seed in seeds) / len(seeds) for cell in responses.grid}
    names = list(responses.factors)
    places = names.index(first), names.index(second)

    def mean_at(levels: tuple[str, str]) -> float:
        chosen = [mean for cell, mean in means.items() if (cell[places[0]], cell[places[1]]) == levels]
        return math.fsum(chosen) / len(chosen)

    return {
        other: [mean_at((level, other)) for level in responses.factors[first]] for other in responses.factors[second]
    }


def factor_pairs(found: FactorialAnalysis) -> list[tuple[str, str]]:
    """The pairs of factors of a whole design, the largest interaction first, then by name."""
    if not found.whole:
        return []
    sizes = dict.fromkeys(itertools.combinations(found.responses.factors, 2), 0.0)
    for each in found.interactions:
        (first, _), (second, _) = each.term.moved
        size = rounded(abs(each.estimate.mean))
        if math.isfinite(size):
            sizes[first, second] = max(sizes[first, second], size)
    return sorted(sizes, key=lambda pair: (-sizes[pair], pair))
