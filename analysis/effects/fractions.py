"""Effects of designs in which no two cells differ in one key alone, and of those with hardly a seed to compare."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence

from ablations.space.interventions import CellLevels, Comparison, by_part, ordered_keys
from analysis.effects.family import combined
from analysis.statistics.estimates import Estimate, IncompleteDataError
from analysis.statistics.factorial import (
    FEWEST_FOR_HALF_NORMAL,
    HalfNormal,
    Responses,
    Term,
    fitted_weights,
    half_normal,
)
from analysis.study.tasks import TaskResults

MOST_COMBINATIONS = 4096  # more are not those of a design, but of unrelated cells
FEW_SEEDS = 2  # so few seeds hardly measure noise, so a half-normal plot takes it from the effects themselves


@dataclasses.dataclass(frozen=True)
class FittedEffect:
    """The effect of a term of the model, by test set, in dB."""

    term: Term
    by_set: Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a model of main effects and interactions of two factors says of cells that no pair compares.

    ``without_pairs`` are the keys in which no two cells differ alone, ``refused`` the terms that the cells do not
    determine.
    """

    effects: tuple[FittedEffect, ...]
    without_pairs: tuple[str, ...]
    refused: tuple[Term, ...]


def fitted(results: TaskResults, found: Sequence[Comparison]) -> Fit | None:
    """Fit the model where some key that varies has no pair of cells of its own; None elsewhere, and for methods.

    None also for a search: it chose its cells by their scores, so a model of them has no meaning. And None if every
    network collapsed, since nothing was learned that a model could explain.
    """
    if all(map(results.is_down, results.trained)):
        return None
    factors = varied(results)
    paired = {change.key for each in found for change in each.intervention.changes} | moved_alone(results, factors)
    lonely = tuple(key for key in factors if key not in paired)
    if results.methods or results.is_search or not lonely or math.prod(map(len, factors.values())) > MOST_COMBINATIONS:
        return None
    cells = {cell: place_of(levels, factors) for cell, levels in results.trained.items()}
    fit = fitted_weights(factors, cells)
    effects = tuple(
        FittedEffect(term, {name: combined(results, results.psnr(name), weights) for name in results.sets})
        for term, weights in fit.weights.items()
    )
    return Fit(effects, lonely, fit.refused)


def moved_alone(results: TaskResults, factors: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The keys in which some two trained cells differ, and in nothing else."""
    places = {place_of(levels, factors) for levels in results.trained.values()}
    rest = {key: {place[:at] + place[at + 1 :] for place in places} for at, key in enumerate(factors)}
    return {key for key, found in rest.items() if len(found) < len(places)}


def half_normals(results: TaskResults) -> dict[str, HalfNormal]:
    """Return a half-normal plot by test set, for complete designs of two levels with one or two seeds."""
    factors = varied(results)
    pairs = len(factors) >= FEWEST_FOR_HALF_NORMAL and all(len(levels) == 2 for levels in factors.values())
    if results.methods or not pairs or len(results.seeds) > FEW_SEEDS or len(results.trained) != 2 ** len(factors):
        return {}
    if any(map(results.is_down, results.trained)):
        return {}  # the scores of dead networks bound the effects, so most of them are not noise
    found = {}
    for name in results.sets:
        scores = {place_of(levels, factors): results.psnr(name)[cell] for cell, levels in results.trained.items()}
        with contextlib.suppress(IncompleteDataError):
            found[name] = half_normal(Responses(factors, scores))
    return found


def varied(results: TaskResults) -> dict[str, tuple[str, ...]]:
    """The keys that vary among the trained cells, as the user gave them, with their levels; the reference first."""
    asked = [by_part(levels.asked) for levels in results.trained.values()]
    if not asked:
        return {}
    first = by_part(results.trained[results.reference].asked)
    found = {
        key: tuple(dict.fromkeys([first.get(key, ""), *(levels.get(key, "") for levels in asked)]))
        for key in ordered_keys(asked)
    }
    return {key: levels for key, levels in found.items() if len(levels) > 1}


def place_of(levels: CellLevels, factors: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    own = by_part(levels.asked)
    return tuple(own.get(key, "") for key in factors)
