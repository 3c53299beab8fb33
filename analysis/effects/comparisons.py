"""Compare cells: each intervention at the reference with its one verdict, and in its other contexts.

The verdicts are those of a :class:`analysis.effects.family.Family`. Whatever else is estimated, such as an average over
contexts or an interaction, describes and has no verdict.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from ablations.space.family import in_words
from ablations.space.interventions import (
    BINARY,
    Change,
    Comparison,
    Intervention,
    Pair,
    member_of,
    quartets,
)
from ablations.space.settings import DATA
from analysis.effects.family import Collapses, Family, Measured, combined, difference
from analysis.effects.savings import Saving
from analysis.statistics.estimates import (
    ALPHA,
    MARGIN_DB,
    Estimate,
    ImageEstimate,
    IncompleteDataError,
    holm,
    over_images,
    tested,
)
from analysis.statistics.rounding import rounded
from analysis.study.tasks import TaskResults


@dataclasses.dataclass(frozen=True)
class Context:
    """An intervention in one context: the cells, what they have in common that the reference has not, its effects.

    ``floor`` says that every trial of one of the cells collapsed: the effect is bounded by what a network that restores
    nothing scores.
    """

    pair: Pair
    label: str
    by_set: Mapping[str, Estimate]
    change: Mapping[str, Estimate]
    floor: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """One intervention: its effect at the reference, with the verdict, and what it does in its other contexts.

    ``context`` says how the pair differs from the reference cell in what both cells share; empty at the reference.
    ``collapsed`` counts for the cell before and the one after, at the look with most seeds under a stopping rule.
    ``described`` is the difference as those in other contexts are estimated: with a stopping rule, from the first look
    alone. ``average`` is over all contexts, those at a floor included. ``ops_g`` and ``params_k`` are the change in
    cost at the reference, and ``saving`` is what the clock says of it, None if it was not measured there.
    """

    intervention: Intervention
    label: str
    pair: Pair
    context: str
    by_set: Mapping[str, Measured]
    described: Mapping[str, Estimate]
    collapsed: tuple[Collapses, Collapses]
    contexts: tuple[Context, ...]
    average: Mapping[str, Estimate]
    pictures: Mapping[str, ImageEstimate]
    ops_g: float
    params_k: float
    saving: Saving | None = None


@dataclasses.dataclass(frozen=True)
class Interaction:
    """How much the effect of one intervention changes if another one is made too, averaged over ``contexts``.

    ``at_floor`` is in how many of them all trials of some cell collapsed, so that it mirrors a floor there.
    """

    first: Row
    second: Row
    by_set: Mapping[str, Estimate]
    contexts: int
    at_floor: int


def rows(results: TaskResults, found: Sequence[Comparison], family: Family) -> list[Row]:
    """Return every intervention: those of the family with a verdict, the others described in their nearest context.

    Two that have the same words, such as classes of one name in two modules, are told apart by what a user types.
    """
    every = [row_of(results, each, each.pairs[0], family) for each in found]
    counts = Counter(row.label for row in every)
    return [
        dataclasses.replace(row, label=f"{row.label} ({row.intervention.as_typed})") if counts[row.label] > 1 else row
        for row in every
    ]


def row_of(results: TaskResults, comparison: Comparison, pair: Pair, family: Family) -> Row:
    average_weights = averaged(comparison.pairs)
    by_set = {name: family.measured(name, pair) for name in results.sets}
    return Row(
        intervention=comparison.intervention,
        label=label_of(results, comparison),
        pair=pair,
        context=context_label(results, pair, comparison),
        by_set=by_set,
        described={name: difference(results, name, pair) for name in results.sets},
        collapsed=max(by_set.values(), key=lambda found: found.look or 0).collapsed,
        contexts=tuple(context_of(results, comparison, each, pair) for each in comparison.pairs if each != pair),
        average={name: combined(results, results.psnr(name), average_weights) for name in results.sets},
        pictures={
            name: found for name in results.sets if (found := picture_difference(results, name, pair)) is not None
        },
        ops_g=cost_change(results, pair, "ops_g"),
        params_k=cost_change(results, pair, "params_k"),
    )


def label_of(results: TaskResults, comparison: Comparison) -> str:
    """Name what changes as a sweep does, and data by their name."""
    named = Intervention(tuple(with_names(results, change) for change in comparison.intervention.changes))
    return in_words(dataclasses.replace(comparison, intervention=named), results.study_cells)


def with_names(results: TaskResults, change: Change) -> Change:
    """Call data by their name."""
    return change if change.key != DATA else Change(DATA, *map(results.data_word, (change.before, change.after)))


def averaged(pairs: Sequence[Pair]) -> dict[str, float]:
    """The weight of each cell in the average difference over pairs."""
    found: dict[str, float] = {}
    for before, after in pairs:
        found[before] = found.get(before, 0.0) - 1 / len(pairs)
        found[after] = found.get(after, 0.0) + 1 / len(pairs)
    return found


def context_of(results: TaskResults, comparison: Comparison, pair: Pair, at: Pair) -> Context:
    """Describe an intervention at ``pair``, and how its effect differs from that at the pair ``at``."""
    weights = {pair[1]: 1.0, pair[0]: -1.0}
    against = dict(weights)
    for cell, weight in ((at[1], -1.0), (at[0], 1.0)):
        against[cell] = against.get(cell, 0.0) + weight
    against = {cell: weight for cell, weight in against.items() if weight}
    return Context(
        pair=pair,
        label=context_label(results, pair, comparison),
        by_set={name: combined(results, results.psnr(name), weights) for name in results.sets},
        change={name: combined(results, results.psnr(name), against) for name in results.sets},
        floor=any(map(results.is_down, (*pair, *at))),
    )


def context_label(results: TaskResults, pair: Pair, comparison: Comparison) -> str:
    """What both cells of a pair have and the reference cell has not: ``bn=post align=1``; empty at the reference."""
    if results.reference in pair or results.methods:
        return ""
    changed = {change.key for change in comparison.intervention.changes}
    own, centre = (results.levels[cell].recorded_parts for cell in (pair[0], results.reference))
    words: dict[str, None] = {}
    for key in {**own, **centre}:
        if key not in changed and own.get(key) != centre.get(key):
            if member := member_of(key):
                factor = member[0]
                parts = (f"{factor.name}.{part}" for part in factor.members)
                binary = (part for part in parts if own.get(part) == BINARY and part not in changed)
                words[f"{factor.name}=[{','.join(part.rpartition('.')[2] for part in binary)}]"] = None
            else:
                level = own.get(key, "none")
                words[f"{key}={results.data_word(level) if key == DATA else level}"] = None
    return " ".join(words)


def interactions(results: TaskResults, found: Sequence[Row]) -> list[Interaction]:
    """Return the interactions of interventions at the reference that four different cells show, in order."""
    every = []
    for first, second in itertools.combinations(found, 2):
        fours = quartets(first.intervention, second.intervention, results.trained)
        if not fours:
            continue
        weights: dict[str, float] = {}
        for four in fours:
            for cell, sign in zip(four, (1, -1, -1, 1), strict=True):
                weights[cell] = weights.get(cell, 0.0) + sign / len(fours)
        every.append(
            Interaction(
                first,
                second,
                {name: combined(results, results.psnr(name), weights) for name in results.sets},
                len(fours),
                sum(any(map(results.is_down, four)) for four in fours),
            )
        )
    return every


def most_different(row: Row, test_set: str) -> Context | None:
    """Return the context in which an effect differs most from that at the reference; None if no difference is sure.

    Sure is what stands after Holm's correction for all contexts of the row. A context at a floor does not count, since
    there the scores of dead networks bound the effect.
    """
    free = [context for context in row.contexts if not context.floor]
    found = [tested(context.change[test_set], MARGIN_DB)[0] for context in free]
    corrected = rounded(holm(found).tolist()) if free else []
    sure = [context for context, p in zip(free, corrected, strict=True) if p < ALPHA]
    return max(sure, key=lambda context: rounded(abs(context.change[test_set].mean)), default=None)


def cost_change(results: TaskResults, pair: Pair, name: str) -> float:
    """The change in a cost, which does not depend on the seed."""
    costs = results.cells[f"metric/cost/{name}"]
    return float(costs[pair[1]] - costs[pair[0]])


def picture_difference(results: TaskResults, test_set: str, pair: Pair) -> ImageEstimate | None:
    """The difference over pictures under the seeds that both cells have; None if scores by picture are missing."""
    seeds = [seed for seed in results.seeds_of(pair[0]) if seed in results.seeds_of(pair[1])]
    by_seed = {}
    for seed in seeds:
        before, after = (results.pictures(test_set, (cell, seed)) for cell in pair)
        if before.keys() != after.keys():
            return None
        by_seed[seed] = {picture: after[picture] - before[picture] for picture in sorted(after)}
    try:
        return over_images(by_seed)
    except IncompleteDataError:
        return None
