"""A section's cells read as a factorial design: what can be estimated of it, and what is refused with its reason."""

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence

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
from analysis.study.settings import KEY_LENGTH, Section

MOST_CELLS = 4096
"""A grid of more cells is that of unrelated cells, as of published methods, and no design."""

MOST_COMPONENTS = 10
"""Shapley shares take all 2^k cells; more components than this were never all trained."""

FEW_SEEDS = 2
"""Up to so many seeds hardly measure noise, and the half-normal plot takes it from the effects themselves."""

PARTED = "binarize"
"""The factor whose levels list the parts of the network that are binary."""

PARTS = ("head", "body", "up", "tail")

FULL, BINARY = "full", "binary"
"""The levels of a part: in full precision, the reference, or binary."""

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
    factors = {} if section.methods else design_factors(section)
    if len(factors) < 2 or math.prod(len(levels) for levels in factors.values()) > MOST_CELLS:
        return {}
    return {name: reading(responses_of(section, factors, name), margin) for name in section.sets}


def design_factors(section: Section) -> dict[str, tuple[str, ...]]:
    """The factors that vary among the finished cells with their levels, the reference first.

    Where the cells binarise every subset of some parts, these parts are the factors, in place of the one that lists
    them: the effect of a part is then what binarising it does.
    """
    found = {factor: base_and_others(section, factor) for factor in section.factors}
    varied = {factor: (base, *others) for factor, (base, others) in found.items() if others}
    parts = separate_parts(varied.pop(PARTED)) if len(varied.get(PARTED, ())) > 2 else ()
    if not parts:
        return {factor: (base, *others) for factor, (base, others) in found.items() if others}
    return {**varied, **dict.fromkeys(parts, (FULL, BINARY))}


def separate_parts(levels: Sequence[str]) -> tuple[str, ...]:
    """The parts of which ``levels`` binarise every subset, in their order in the network; none where some is absent."""
    subsets = {frozenset(parts_in(level)) for level in levels}
    parts = [part for part in PARTS if 0 < sum(part in subset for subset in subsets) < len(subsets)]
    return tuple(parts) if len(parts) > 1 and len(subsets) == 2 ** len(parts) else ()


def parts_in(level: str) -> list[str]:
    """The parts that a level such as ``[body,up]`` lists."""
    return [part for part in level.strip("[]").replace(" ", "").split(",") if part]


def level_in(levels: Mapping[str, str], factor: str, factors: Collection[str]) -> str:
    """The level of a factor of the design in a cell, which may be a part of those that the cell lists."""
    if factor in PARTS and PARTED not in factors:
        return BINARY if factor in parts_in(levels.get(PARTED, "")) else FULL
    return levels.get(factor, "")


def place_of(levels: Mapping[str, str], factors: Collection[str]) -> Cell:
    """Where a cell stands in the design."""
    return tuple(level_in(levels, factor, factors) for factor in factors)


def responses_of(section: Section, factors: Mapping[str, tuple[str, ...]], test_set: str) -> Responses:
    """PSNR by cell of the design and seed, with the cells that are another cell under their own name too."""
    scores = section.scores(f"{test_set}/psnr_db")
    values: dict[Cell, dict[int, float]] = {}
    for cell, place in places_of(section, factors).items():
        values[place] = {seed: scores[cell, seed] for seed in section.seeds_of(cell)}
    for place, twin in merged_cells(section, factors).items():
        values.setdefault(place, {seed: scores[twin, seed] for seed in section.seeds_of(twin)})
    return Responses(factors, values)


def places_of(section: Section, factors: Collection[str]) -> dict[str, Cell]:
    """Where every finished cell stands in the design."""
    return {cell: place_of(levels, factors) for cell, levels in levels_by_cell(section, "level").items()}


def part_costs(section: Section, factors: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[float, float]]:
    """What binarising each part changes in operations (10^9) and in parameters (thousands), over all other choices.

    Empty where the design has no parts, or lacks one of its cells.
    """
    places = {place: cell for cell, place in places_of(section, factors).items()}
    parts = [factor for factor, levels in factors.items() if levels == (FULL, BINARY)]
    if len(places) < math.prod(len(levels) for levels in factors.values()):
        return {}

    def change(part: str, cost: str) -> float:
        costs = section.cells[f"metric/cost/{cost}"]
        sides = [
            [costs[cell] for place, cell in places.items() if place[list(factors).index(part)] == level]
            for level in (BINARY, FULL)
        ]
        return float(math.fsum(sides[0]) / len(sides[0]) - math.fsum(sides[1]) / len(sides[1]))

    return {part: (change(part, "ops_g"), change(part, "params_k")) for part in parts}


def merged_cells(section: Section, factors: Mapping[str, tuple[str, ...]]) -> dict[Cell, str]:
    """The cells of the design that were left out as the same network as a finished cell, each with that cell."""
    finished = {str(cell)[:KEY_LENGTH]: str(cell) for cell in section.cells.index}
    found: dict[Cell, str] = {}
    for row in section.left_out:
        same = SAME.match(row.reason)
        place = place_of(row.levels, factors)
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
