"""Give a pair of cells its verdict, and say what may be concluded from a difference.

The interventions that start or end at the reference cell, and the pairs of cells that test a claim of the paper, are
one family on each test set: :class:`Family` gives each pair of cells its verdict, corrected for how many there are.
:mod:`analysis.effects.ruled` does so for a study that was trained by a stopping rule.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Collection, Iterable, Mapping

from ablations.space.interventions import Pair
from analysis.statistics.estimates import (
    MARGIN_DB,
    Estimate,
    Outcome,
    Verdict,
    combination,
    p_text,
    reason,
    verdicts,
)
from analysis.study.tasks import TaskResults


class Conclusion(enum.StrEnum):
    """What a report says of a difference: an :class:`Outcome`, or why there is none.

    ``OPEN`` and ``NO_RESULT`` are those of a study with a stopping rule: no look has closed the comparison yet, or one
    has because all trials of a cell failed.
    """

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    OPEN = "open"
    RISK = "risk of collapse"
    NOTHING = "nothing learned"
    NO_RESULT = "no result"
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
    ``collapsed`` counts for the cell before and the one after, among the trials that the estimate is of. ``look`` is
    the number of seeds at which a stopping rule closed the comparison, or of the last complete look if it is open, 0
    before the first; None without a rule, and outside of its family.
    """

    estimate: Estimate
    verdict: Verdict | None
    conclusion: Conclusion | None
    learned: float
    collapsed: tuple[Collapses, Collapses]
    look: int | None = None


class Family:
    """Pairs of cells, each once, whose verdicts are corrected together on each test set."""

    def __init__(self, results: TaskResults, pairs: Iterable[Pair], margin: float = MARGIN_DB) -> None:
        self.results, self.margin = results, margin
        every = tuple(pairs)
        self._asked = frozenset(map(frozenset, every))
        # Two networks of which neither has learned anything show nothing about what differs between them.
        self.pairs = tuple(pair for pair in every if not all(map(results.is_down, pair)))
        self._verdicts = {name: self._judged(name) for name in results.sets}

    def _judged(self, test_set: str) -> dict[Pair, Verdict]:
        found = [difference(self.results, test_set, pair) for pair in self.pairs]
        return dict(zip(self.pairs, verdicts(found, self.margin), strict=True))

    def __contains__(self, pair: Pair) -> bool:
        """Tell whether the pair was to be in the family, whichever of the two cells comes first."""
        return frozenset(pair) in self._asked

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
        collapsed = collapses(self.results, pair)
        conclusion = concluded(verdict, collapsed, found)
        return Measured(found, verdict, conclusion, learned_difference(self.results, test_set, pair), collapsed)


OPPOSITE = {Outcome.BETTER: Outcome.WORSE, Outcome.WORSE: Outcome.BETTER}


def mirrored(verdict: Verdict, margin: float) -> Verdict:
    """Return the verdict on the same two cells with the second one as the base."""
    turned = reversed_verdict(verdict)
    return dataclasses.replace(turned, reason=reason(turned, margin))


def reversed_verdict(verdict: Verdict) -> Verdict:
    """Return the numbers of a verdict with the second cell as the base; its reason stays."""
    found = verdict.estimate
    # Not the minus of Python, which makes -0.0 of 0.
    turned = dataclasses.replace(found, mean=0.0 - found.mean, low=0.0 - found.high, high=0.0 - found.low)
    return dataclasses.replace(verdict, outcome=OPPOSITE.get(verdict.outcome, verdict.outcome), estimate=turned)


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


def collapses(results: TaskResults, pair: Pair, seeds: Collection[int] | None = None) -> tuple[Collapses, Collapses]:
    """Count the collapsed trials of both cells; among these seeds if they are given."""

    def counted(cell: str) -> Collapses:
        own = [seed for seed in results.seeds_of(cell) if seeds is None or seed in seeds]
        return Collapses(sum((cell, seed) in results.collapsed for seed in own), len(own))

    return counted(pair[0]), counted(pair[1])


def learned_difference(results: TaskResults, test_set: str, pair: Pair, seeds: Collection[int] | None = None) -> float:
    scores = results.psnr(test_set)
    sides = []
    for cell in pair:
        kept = [
            score
            for seed, score in scores.get(cell, {}).items()
            if (cell, seed) not in results.collapsed and (seeds is None or seed in seeds)
        ]
        if not kept:
            return math.nan
        sides.append(math.fsum(kept) / len(kept))
    return sides[1] - sides[0]
