"""How many cells the whole factor space has: exact counts, without listing its combinations.

A rule compares levels with constants, so that many combinations get the same answer from every rule. They are counted
together, as a :class:`Box`: a box that lies on both sides of a comparison is split in two, until each has one outcome.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablations.space.conditions import AllOf, AnyOf, Comparison, Condition, Not, keys_of
from ablations.space.factors import AUTO, FACTORS, Level
from ablations.space.rules import Backbone, CompiledRule, automatic_alignment, contradiction, rules


@dataclass(frozen=True)
class Census:
    """How many combinations there are, and what becomes of them; ``by_reason`` counts each rule's."""

    combinations: int
    impossible: int
    duplicates: int
    cells: int
    by_reason: dict[str, int]


def census(
    backbone: Backbone, aligns: Sequence[Level] = (AUTO, 1.0), levels: Mapping[str, Sequence[Level]] | None = None
) -> Census:
    """Count the whole factor space, with these alignments, since a number has infinitely many levels.

    ``levels`` has the levels to count of each factor, all by default; it must have those that rules lead to.
    """
    counted = {name: tuple((levels or {}).get(name, factor.levels)) for name, factor in FACTORS.items()}
    by_reason = {rule.reason: 0 for rule in (*rules().merging, *rules().impossible)}
    total = impossible = cells = 0
    counting = _Counting(backbone)
    for place, bn, binarize in itertools.product(range(len(aligns)), counted["bn"], counted["binarize"]):
        numbers = [number_of(align, bn, binarize, backbone) for align in aligns]
        fixed = {"bn": bn, "binarize": binarize, "align": numbers[place]}
        known = {name: (level,) for name, level in {**fixed, **backbone.facts}.items()}
        for outcome in counting.outcomes(Box({**counted, **known}, follows=aligns[place] == AUTO)):
            total += outcome.combinations
            for reason in outcome.reasons:
                by_reason[reason] += outcome.combinations
            if outcome.is_impossible:
                impossible += outcome.combinations
            elif not outcome.reasons and numbers[place] not in numbers[:place]:
                # A canonical form is one that no rule changes, so cells are counted where they stand.
                cells += outcome.combinations
    return Census(total, impossible, total - impossible - cells, cells, by_reason)


def number_of(align: Level, bn: Level, binarize: Level, backbone: Backbone) -> Level:
    """The number that an alignment stands for beside these levels."""
    return automatic_alignment({"bn": bn, "binarize": binarize}, backbone) if align == AUTO else align


@dataclass(frozen=True)
class Box:
    """Every choice of one of the ``levels`` of each key; each choice stands for ``times`` combinations.

    There is one level of bn, binarize and align, and ``follows`` is whether the alignment follows the other two.
    """

    levels: Mapping[str, tuple[Level, ...]]
    times: int = 1
    follows: bool = False

    @property
    def combinations(self) -> int:
        return self.times * math.prod(map(len, self.levels.values()))

    def halves(self, comparison: Comparison) -> Iterator["Box"]:
        """The part in which a comparison holds, and the part in which it does not."""
        own = self.levels[comparison.key]
        answers = [comparison.holds({comparison.key: level}) for level in own]
        for side in (True, False):
            half = tuple(level for level, answer in zip(own, answers, strict=True) if answer == side)
            yield dataclasses.replace(self, levels={**self.levels, comparison.key: half})

    def at(self, levels: Mapping[str, Level]) -> "Box":
        """The same number of combinations, all with these levels."""
        times = self.times * math.prod(len(self.levels[name]) for name in levels)
        fixed = {name: (level,) for name, level in levels.items()}
        return dataclasses.replace(self, levels={**self.levels, **fixed}, times=times)


@dataclass(frozen=True)
class Outcome:
    """What becomes of so many combinations: they are impossible for one reason, or merged for none or some."""

    combinations: int
    reasons: tuple[str, ...]
    is_impossible: bool = False


class _Counting:
    """The rules applied to boxes as :func:`ablations.space.cells.canonical_form` applies them to one combination.

    A rule splits a box that it changes in part, unless what it changes is counted under its reason already.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.merging = [_BoxRule(rule) for rule in rules().merging]
        self.impossible = [_BoxRule(rule) for rule in rules().impossible]

    def outcomes(self, box: Box, step: int = 0, unchanged: int = 0, reasons: tuple[str, ...] = ()) -> Iterator[Outcome]:
        """What becomes of the box: its parts, and the outcome of each.

        ``step`` is how many rules that merge were applied, ``unchanged`` how many of the last ones changed nothing.
        """
        count = len(self.merging)
        while unchanged < count:
            if step > count * (count + 1):
                raise contradiction(reasons)
            rule = self.merging[step % count]
            answer = rule.holds(box) if rule.reason in reasons else rule.changes(box)
            if isinstance(answer, Comparison):
                for half in box.halves(answer):
                    yield from self.outcomes(half, step, unchanged, reasons)
                return
            step, unchanged = step + 1, unchanged + 1
            if answer and (merged := self.merged(box, rule.becomes)) != box:
                box, unchanged = merged, 0
                reasons = tuple(dict.fromkeys((*reasons, rule.reason)))
        yield from self.judged(box, reasons)

    def merged(self, box: Box, becomes: Mapping[str, Level]) -> Box:
        box = box.at(becomes)
        if not box.follows:
            return box
        (bn,), (binarize,) = box.levels["bn"], box.levels["binarize"]
        return box.at({"align": number_of(AUTO, bn, binarize, self.backbone)})

    def judged(self, box: Box, reasons: tuple[str, ...], first: int = 0) -> Iterator[Outcome]:
        """What becomes of a box of canonical forms by the rules for impossible cells, from the ``first`` on."""
        for place, rule in enumerate(self.impossible[first:], first):
            answer = rule.holds(box)
            if isinstance(answer, Comparison):
                for half in box.halves(answer):
                    yield from self.judged(half, reasons, place)
                return
            if answer:
                yield Outcome(box.combinations, (rule.reason,), is_impossible=True)
                return
        yield Outcome(box.combinations, reasons)


class _BoxRule:
    """A rule that is asked of boxes. An answer is true or false of all combinations, or where to split the box."""

    def __init__(self, rule: CompiledRule) -> None:
        self.reason, self.becomes = rule.reason, rule.becomes or {}
        away = AnyOf(tuple(Comparison(name, "!=", level) for name, level in self.becomes.items()))
        self.holds = _cached(rule.condition)
        self.changes = _cached(AllOf((rule.condition, away)))


def _cached(condition: Condition) -> Callable[[Box], bool | Comparison]:
    """The verdict of a condition on boxes; most boxes have the levels that it reads in common."""
    keys, answers = keys_of(condition), dict[tuple[tuple[Level, ...], ...], bool | Comparison]()

    def answer(box: Box) -> bool | Comparison:
        levels = tuple(box.levels[key] for key in keys)
        if levels not in answers:
            answers[levels] = verdict(condition, box.levels)
        return answers[levels]

    return answer


def verdict(condition: Condition, levels: Mapping[str, tuple[Level, ...]]) -> bool | Comparison:
    """Whether a condition holds at each choice of levels or at none; otherwise a comparison that is not decided."""
    if isinstance(condition, Comparison):
        answers = {condition.holds({condition.key: level}) for level in levels[condition.key]}
        return condition if len(answers) > 1 else answers.pop()
    if isinstance(condition, Not):
        answer = verdict(condition.part, levels)
        return answer if isinstance(answer, Comparison) else not answer
    decisive = isinstance(condition, AnyOf)
    answers_of_parts = [verdict(part, levels) for part in condition.parts]
    if decisive in answers_of_parts:
        return decisive
    return next((answer for answer in answers_of_parts if isinstance(answer, Comparison)), not decisive)
