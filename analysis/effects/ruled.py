"""The family of a study that was trained by a stopping rule: its pairs are those of the plan, judged look by look.

Seeds were given by what earlier ones showed. A verdict and its estimate are therefore those of the look at which the
comparison was closed, as :mod:`analysis.statistics.sequential` has them, and everything that the rule does not judge is
estimated from the first look alone, whose seeds were fixed beforehand (:attr:`TaskResults.at_first_look`).
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

from ablations.space.interventions import Pair
from ablations.space.stopping_rule import StoppingRule
from analysis.effects.family import (
    Conclusion,
    Family,
    Measured,
    collapses,
    concluded,
    difference,
    learned_difference,
    reversed_verdict,
)
from analysis.statistics import sequential
from analysis.statistics.sequential import Boundary, Judged, Progress, Trials
from analysis.study.tasks import TaskResults

CLOSED_WITHOUT_VERDICT = {Progress.NOTHING: Conclusion.NOTHING, Progress.NO_RESULT: Conclusion.NO_RESULT}

State = dict[Pair, Judged]


def family_of(results: TaskResults, pairs: Iterable[Pair], margin: float) -> Family:
    """Return the family of a task: these pairs, or those of the plan if the study has a stopping rule."""
    rule = results.study.rule
    return Family(results, pairs, margin) if rule is None else RuledFamily(results, rule)


class RuledFamily(Family):
    """The pairs of a stopping rule that belong to a task, each with its verdict at the look at which it was closed.

    A pair of other cells has no verdict, and its difference is that of the first look.
    """

    def __init__(self, results: TaskResults, rule: StoppingRule) -> None:
        self.results, self.rule, self.margin = results, rule, rule.margin_db
        here = set(results.trials["cell"])
        families = [[pair for pair in family if here.issuperset(pair)] for family in rule.families]
        self._families = [family for family in families if family]
        self.pairs = tuple(pair for family in self._families for pair in family)
        self._asked = frozenset(map(frozenset, self.pairs))
        self._states = {name: [self._replayed(family, name) for family in self._families] for name in results.sets}

    def _replayed(self, family: list[Pair], test_set: str) -> list[State]:
        boundary = Boundary(self.rule.looks, self.rule.floor, self.rule.rise)
        trials, paired = self._trials(test_set), self.results.study.pairing
        return sequential.states(family, trials, boundary, self.rule.first_seed, self.margin, paired=paired)

    def _trials(self, test_set: str) -> Trials:
        scores = {
            cell: {seed: score for seed, score in table.items() if not math.isnan(score)}
            for cell, table in self.results.psnr(test_set).items()
        }
        collapsed = {cell: self.results.collapsed_seeds(cell) for cell in scores}
        return Trials(scores, self.results.ended, collapsed)

    @functools.cached_property
    def size(self) -> int:
        return max(map(len, self._families), default=0)

    def measured(self, test_set: str, pair: Pair) -> Measured:
        """Return the difference of a pair on a test set as the rule judges it, or as the first look shows it."""
        for states in self._states[test_set]:
            if (judged := self._judged_in(states[-1], pair)) is not None:
                return self._at(test_set, pair, judged)
        first = self.results.at_first_look
        collapsed = collapses(first, pair)
        found = difference(first, test_set, pair)
        learned = learned_difference(first, test_set, pair)
        return Measured(found, None, concluded(None, collapsed, found), learned, collapsed)

    def course(self, test_set: str, pair: Pair) -> Iterator[Measured]:
        """Yield what each look showed of a pair of the family, up to the one at which it was closed."""
        for states in self._states[test_set]:
            for state in states[1:]:
                if (judged := self._judged_in(state, pair)) is None:
                    break
                yield self._at(test_set, pair, judged)
                if judged.progress is not Progress.OPEN:
                    break

    def _judged_in(self, state: State, pair: Pair) -> Judged | None:
        """What a state says of a pair, whichever of its two cells comes first there."""
        reverse = state.get((pair[1], pair[0]))
        return state.get(pair) or (None if reverse is None else self._mirrored(reverse))

    def _mirrored(self, judged: Judged) -> Judged:
        turned = reversed_verdict(judged.verdict)
        if judged.look:
            reason = sequential.reason(turned, judged.progress, self.margin)
            turned = dataclasses.replace(turned, reason=reason)
        return dataclasses.replace(judged, verdict=turned)

    def _at(self, test_set: str, pair: Pair, judged: Judged) -> Measured:
        seeds = self.rule.seeds(judged.look or self.rule.first_look)
        collapsed = collapses(self.results, pair, seeds)
        if judged.progress is Progress.OPEN:
            conclusion: Conclusion | None = Conclusion.OPEN
        else:
            conclusion = CLOSED_WITHOUT_VERDICT.get(judged.progress) or concluded(
                judged.verdict, collapsed, judged.verdict.estimate
            )
        learned = learned_difference(self.results, test_set, pair, seeds)
        return Measured(judged.verdict.estimate, judged.verdict, conclusion, learned, collapsed, judged.look)
