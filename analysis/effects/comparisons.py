"""Compare cells: each intervention at the reference with its one verdict, and in its other contexts.

The pairs of cells that :mod:`ablations.space.family` finds are one family on each test set: :class:`Family` gives each
its verdict, corrected for how many there are.
Whatever else is estimated, such as an average over contexts or an interaction, describes and has no verdict.
"""

import dataclasses
import enum
import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ablations.space.family import METHOD, is_chain
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
from analysis.statistics.estimates import (
    ALPHA,
    MARGIN_DB,
    Estimate,
    ImageEstimate,
    IncompleteDataError,
    Outcome,
    Summary,
    Verdict,
    combination,
    holm,
    over_images,
    p_text,
    reason,
    summary,
    tested,
    verdicts,
)
from analysis.statistics.rounding import rounded
from analysis.study.tasks import TaskResults


class Conclusion(enum.StrEnum):
    """What a report says of a difference: an :class:`Outcome`, or why there is none."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    RISK = "risk of collapse"
    NOTHING = "nothing learned"
    ONE_SEED = "one seed"


DECIDED = (Conclusion.BETTER, Conclusion.WORSE, Conclusion.EQUIVALENT)


@dataclasses.dataclass(frozen=True)
class Collapses:
    """How many of a cell's finished trials collapsed."""

    count: int
    total: int

    @property
    def all(self) -> bool:
        return self.count == self.total > 0


@dataclasses.dataclass(frozen=True)
class Measured:
    """The difference between two cells on one test set, in dB; ``verdict`` is None if it is in no family.

    ``learned`` is the difference of the means of the trials that did not collapse; NaN if a cell has none.
    """

    estimate: Estimate
    verdict: Verdict | None
    conclusion: Conclusion | None
    learned: float


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
    ``collapsed`` counts for the cell before and the one after. ``average`` is over all contexts, those at a floor
    included. ``ops_g`` and ``params_k`` are the change in cost at the reference.
    """

    intervention: Intervention
    label: str
    pair: Pair
    context: str
    by_set: Mapping[str, Measured]
    collapsed: tuple[Collapses, Collapses]
    contexts: tuple[Context, ...]
    average: Mapping[str, Estimate]
    pictures: Mapping[str, ImageEstimate]
    ops_g: float
    params_k: float


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


class Family:
    """Pairs of cells, each once, whose verdicts are corrected together on each test set."""

    def __init__(self, results: TaskResults, pairs: Iterable[Pair], margin: float = MARGIN_DB) -> None:
        self.results, self.margin = results, margin
        # Two networks of which neither has learned anything show nothing about what differs between them.
        self.pairs = tuple(pair for pair in pairs if not all(map(results.is_down, pair)))
        self._verdicts = {name: self._judged(name) for name in results.sets}

    def _judged(self, test_set: str) -> dict[Pair, Verdict]:
        found = [difference(self.results, test_set, pair) for pair in self.pairs]
        return dict(zip(self.pairs, verdicts(found, self.margin), strict=True))

    @functools.cached_property
    def size(self) -> int:
        """The most comparisons that are corrected together on a test set."""
        return max((each.comparisons for found in self._verdicts.values() for each in found.values()), default=0)

    def measured(self, test_set: str, pair: Pair) -> Measured:
        """Return the difference of a pair on a test set, with its verdict if the pair is in the family."""
        verdict = self._verdicts[test_set].get(pair)
        if verdict is None and (reverse := self._verdicts[test_set].get((pair[1], pair[0]))) is not None:
            verdict = mirrored(reverse, self.margin)
        found = verdict.estimate if verdict else difference(self.results, test_set, pair)
        conclusion = concluded(verdict, collapses(self.results, pair), found)
        return Measured(found, verdict, conclusion, learned_difference(self.results, test_set, pair))


OPPOSITE = {Outcome.BETTER: Outcome.WORSE, Outcome.WORSE: Outcome.BETTER}


def mirrored(verdict: Verdict, margin: float) -> Verdict:
    """Return the verdict on the same two cells with the second one as the base."""
    found = verdict.estimate
    # Not the minus of Python, which makes -0.0 of 0.
    turned = dataclasses.replace(found, mean=0.0 - found.mean, low=0.0 - found.high, high=0.0 - found.low)
    bare = dataclasses.replace(verdict, outcome=OPPOSITE.get(verdict.outcome, verdict.outcome), estimate=turned)
    return dataclasses.replace(bare, reason=reason(bare, margin))


def concluded(verdict: Verdict | None, collapsed: tuple[Collapses, Collapses], found: Estimate) -> Conclusion | None:
    """Return what may be said of a difference; a decided one stands, unless neither side has learned anything."""
    if all(side.all for side in collapsed):
        return Conclusion.NOTHING
    if verdict is None:
        return None
    if any(side.count for side in collapsed) and verdict.outcome in (Outcome.UNDECIDED, Outcome.EQUIVALENT):
        return Conclusion.RISK
    if verdict.outcome is Outcome.UNDECIDED and found.n == 1:
        return Conclusion.ONE_SEED
    return Conclusion(str(verdict.outcome))


def undecided_by_collapse(verdict: Verdict) -> str:
    """Say why there is a risk of collapse in place of a verdict."""
    p = "" if math.isnan(verdict.p_difference) else f": {p_text(verdict.p_difference, verdict.comparisons)}"
    return f"some trials collapsed, and all trials together show no sure difference{p}"


def difference(results: TaskResults, test_set: str, pair: Pair) -> Estimate:
    """Return the second cell's mean PSNR minus the first's."""
    return combined(results, results.psnr(test_set), {pair[1]: 1.0, pair[0]: -1.0})


def combined(results: TaskResults, scores: Mapping[str, Mapping[int, float]], weights: Mapping[str, float]) -> Estimate:
    """Return a sum of weighted means of cells; paired within the seeds only if the study was planned so."""
    own = {cell: scores.get(cell, {}) for cell in weights}
    return combination(weights, own, paired=results.study.pairing, exact=results.untrained)


def collapses(results: TaskResults, pair: Pair) -> tuple[Collapses, Collapses]:
    before, after = (Collapses(len(results.collapsed_seeds(cell)), len(results.seeds_of(cell))) for cell in pair)
    return before, after


def learned_difference(results: TaskResults, test_set: str, pair: Pair) -> float:
    scores = results.psnr(test_set)
    sides = []
    for cell in pair:
        down = results.collapsed_seeds(cell)
        kept = [score for seed, score in scores.get(cell, {}).items() if seed not in down]
        if not kept:
            return math.nan
        sides.append(math.fsum(kept) / len(kept))
    return sides[1] - sides[0]


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
    return Row(
        intervention=comparison.intervention,
        label=in_words(results, comparison),
        pair=pair,
        context=context_label(results, pair, comparison),
        by_set={name: family.measured(name, pair) for name in results.sets},
        collapsed=collapses(results, pair),
        contexts=tuple(context_of(results, comparison, each, pair) for each in comparison.pairs if each != pair),
        average={name: combined(results, results.psnr(name), average_weights) for name in results.sets},
        pictures={
            name: found for name in results.sets if (found := picture_difference(results, name, pair)) is not None
        },
        ops_g=cost_change(results, pair, "ops_g"),
        params_k=cost_change(results, pair, "params_k"),
    )


def in_words(results: TaskResults, comparison: Comparison) -> str:
    """Name an intervention: a method by its name, and what a chain adds up to as that."""
    first = comparison.intervention.changes[0]
    if first.key == METHOD:
        return first.after
    ends = (next(iter(results.trained)), list(results.trained)[-1])
    text = Intervention(tuple(with_names(results, change) for change in comparison.intervention.changes)).in_words
    return (
        f"All steps together: {text[:1].lower()}{text[1:]}"
        if comparison.pairs == (ends,) and is_chain(results.study_cells)
        else text
    )


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


@dataclasses.dataclass(frozen=True)
class CellSummary:
    """The scores of one cell over the seeds under which it is finished.

    By test set: ``psnr`` (dB), ``ssim``, ``over_baseline`` (dB, the mean over seeds) and ``to_reference`` (dB; empty
    for the reference cell). ``train_s`` is the mean over seeds.
    """

    cell: str
    label: str
    is_reference: bool
    seeds: tuple[int, ...]
    collapsed: tuple[int, ...]
    psnr: Mapping[str, Summary]
    ssim: Mapping[str, Summary]
    over_baseline: Mapping[str, float]
    to_reference: Mapping[str, Estimate]
    ops_g: float
    params_k: float
    train_s: float


def cell_summaries(results: TaskResults) -> list[CellSummary]:
    """Every finished cell, the highest mean PSNR over all test sets first, then by key."""
    if results.cells.empty:
        return []
    scored = [f"{kind}{name}/{metric}" for name in results.sets for kind, metric in SCORES]
    metrics = {name: results.by_cell(name) for name in [*scored, *COSTS]}
    return sorted((cell_summary(results, cell, metrics) for cell in results.levels), key=descending_psnr)


SCORES = (("", "psnr_db"), ("", "ssim"), ("baseline/", "psnr_db"))
COSTS = ("cost/ops_g", "cost/params_k", "timing/train_s")


def descending_psnr(cell: CellSummary) -> tuple[bool, float, str]:
    """A sort key; a PSNR that is not a number comes last, and equal ones are ordered by the cell's key."""
    means = [score.mean for score in cell.psnr.values()]
    mean = rounded(math.fsum(means) / len(means)) if means else math.nan
    return (math.isnan(mean), -mean if mean == mean else 0.0, cell.cell)


def cell_summary(
    results: TaskResults, cell: str, metrics: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> CellSummary:
    def values(metric: str) -> list[float]:
        return list(metrics[metric][cell].values())

    psnr = {name: values(f"{name}/psnr_db") for name in results.sets}
    baseline = {name: values(f"baseline/{name}/psnr_db") for name in results.sets}
    gains = {name: [a - b for a, b in zip(psnr[name], baseline[name], strict=True)] for name in results.sets}
    return CellSummary(
        cell=cell,
        label=results.labels[cell],
        is_reference=cell == results.reference,
        seeds=tuple(results.seeds_of(cell)),
        collapsed=results.collapsed_seeds(cell),
        psnr={name: summary(found) for name, found in psnr.items()},
        ssim={name: summary(values(f"{name}/ssim")) for name in results.sets},
        over_baseline={name: summary(found).mean for name, found in gains.items()},
        to_reference={
            name: difference(results, name, (results.reference, cell))
            for name in results.sets
            if cell != results.reference
        },
        ops_g=values("cost/ops_g")[0],
        params_k=values("cost/params_k")[0],
        train_s=summary(values("timing/train_s")).mean,
    )
