"""A section's cells read as a factorial design: what can be estimated of it, and what is refused with its reason."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping

from analysis.contrasts import base_and_others
from analysis.factorial import (
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
from analysis.sections import KEY_LENGTH, Section
from analysis.statistics import MARGIN_DB, IncompleteDataError, Verdict, verdicts

MOST_CELLS = 4096
"""A grid of more cells is that of unrelated cells, as of published methods, and no design."""

MOST_COMPONENTS = 10
"""Shapley shares take all 2^k cells; more components than this were never all trained."""

FEW_SEEDS = 2
"""Up to so many seeds hardly measure noise, and the half-normal plot takes it from the effects themselves."""

SAME = re.compile(rf"^the same network as .*\(([0-9a-f]{{{KEY_LENGTH}}})\): ")
"""How a plan says that a cell was left out because it is another cell."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """The factorial reading of one test set; each part is None where it cannot be had.

    ``whole`` says whether all cells of the design are there. ``problems`` says, in sentences, what was refused and
    why. ``verdicts`` belong to the effects, in their order, and are those of one family. ``held`` are the levels to
    which factors of more than two levels were restricted for the Shapley shares and the half-normal plot.
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
    def interactions(self) -> tuple[Effect, ...]:
        """The effects of two factors together."""
        return tuple(each for each in self.effects.effects if len(each.term.moved) > 1) if self.effects else ()


def readings(section: Section, margin: float = MARGIN_DB) -> dict[str, Reading]:
    """The factorial reading of every test set; empty where fewer than two factors vary."""
    factors = design_factors(section)
    if len(factors) < 2 or math.prod(len(levels) for levels in factors.values()) > MOST_CELLS:
        return {}
    return {name: reading(responses_of(section, factors, name), margin) for name in section.sets}


def design_factors(section: Section) -> dict[str, tuple[str, ...]]:
    """The factors that vary among the finished cells with their levels, the reference first."""
    found = {factor: base_and_others(section, factor) for factor in section.factors}
    return {factor: (base, *others) for factor, (base, others) in found.items() if others}


def responses_of(section: Section, factors: Mapping[str, tuple[str, ...]], test_set: str) -> Responses:
    """PSNR by cell of the design and seed, with the cells that are another cell under their own name too."""
    scores = section.scores(f"{test_set}/psnr_db")
    values: dict[Cell, dict[int, float]] = {}
    places = zip(*(section.cells[f"level/{factor}"].tolist() for factor in factors), strict=True)
    for cell, place in zip(section.cells["cell"].tolist(), places, strict=True):
        values[place] = {seed: scores[cell, seed] for seed in section.seeds_of(cell)}
    for place, twin in merged_cells(section, factors).items():
        values.setdefault(place, {seed: scores[twin, seed] for seed in section.seeds_of(twin)})
    return Responses(factors, values)


def merged_cells(section: Section, factors: Mapping[str, tuple[str, ...]]) -> dict[Cell, str]:
    """The cells of the design that were left out as the same network as a finished cell, each with that cell."""
    finished = {str(cell)[:KEY_LENGTH]: str(cell) for cell in section.cells.index}
    found: dict[Cell, str] = {}
    for row in section.left_out:
        same = SAME.match(row.reason)
        place = tuple(row.levels.get(factor, "") for factor in factors)
        known = all(level in levels for level, levels in zip(place, factors.values(), strict=True))
        if same and same[1] in finished and known:
            found.setdefault(place, finished[same[1]])
    return found


def reading(responses: Responses, margin: float) -> Reading:
    """Everything that the cells of a design allow."""
    problems: list[str] = []
    found, whole = estimated(responses, problems)
    judged = verdicts([each.by_seed for each in found.effects], margin) if found else []
    pair_levels = {factor: levels[:2] for factor, levels in responses.factors.items()}
    held = {factor: levels for factor, levels in pair_levels.items() if len(responses.factors[factor]) > 2}
    pairs = restricted(responses, pair_levels)
    return Reading(
        responses,
        whole,
        found,
        tuple(judged),
        plotted(pairs),
        shared(pairs, problems),
        held,
        tuple(problems),
    )


def estimated(responses: Responses, problems: list[str]) -> tuple[Effects | None, bool]:
    """Main effects and interactions, from all cells or else fitted to those that are there, and which of the two."""
    try:
        return effects(responses), True
    except IncompleteDataError as error:
        problems.append(f"Not all cells of the design are there: {error}.")
    try:
        return fitted_effects(responses), False
    except IncompleteDataError as error:
        problems.append(f"Nor can effects be fitted: {error}.")
        return None, False


def plotted(pairs: Responses) -> HalfNormal | None:
    """The half-normal plot, where seeds are few and factors are enough."""
    if len(pairs.factors) < FEWEST_FOR_HALF_NORMAL or len(pairs.seeds) > FEW_SEEDS:
        return None
    try:
        return half_normal(pairs)
    except IncompleteDataError:
        return None


def shared(pairs: Responses, problems: list[str]) -> Shares | None:
    """The Shapley shares, where all cells between reference and ablated are there."""
    if len(pairs.factors) > MOST_COMPONENTS:
        return None
    try:
        return shapley(pairs)
    except IncompleteDataError as error:
        problems.append(f"The gain cannot be shared among the components: {error}.")
        return None


def cell_means(responses: Responses, seeds: tuple[int, ...]) -> dict[Cell, float]:
    """The mean over ``seeds`` of every cell of the grid."""
    return {cell: math.fsum(responses.values[cell][seed] for seed in seeds) / len(seeds) for cell in responses.grid}


def marginal_means(found: Reading, first: str, second: str) -> dict[str, list[float]]:
    """The mean score at each level of ``first``, by level of ``second``, over all cells and the complete seeds."""
    responses, seeds = found.responses, found.effects.seeds if found.effects else ()
    means = cell_means(responses, seeds)
    names = list(responses.factors)
    places = names.index(first), names.index(second)

    def mean_at(levels: tuple[str, str]) -> float:
        chosen = [mean for cell, mean in means.items() if (cell[places[0]], cell[places[1]]) == levels]
        return math.fsum(chosen) / len(chosen)

    return {
        other: [mean_at((level, other)) for level in responses.factors[first]] for other in responses.factors[second]
    }


def factor_pairs(found: Reading) -> list[tuple[str, str]]:
    """The pairs of factors of a whole design, the largest interaction first."""
    if not found.whole:
        return []

    def size(pair: tuple[str, str]) -> float:
        sizes = [
            abs(each.estimate.mean)
            for each in found.interactions
            if tuple(factor for factor, _ in each.term.moved) == pair
        ]
        return max((value for value in sizes if math.isfinite(value)), default=0.0)

    return sorted(itertools.combinations(found.responses.factors, 2), key=lambda pair: (-size(pair), pair))
