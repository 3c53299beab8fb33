"""The rules of the factor space, gathered from the factors' declarations, and how one is applied to a cell."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

from ablations.space.conditions import keys_of, parse
from ablations.space.factors import FACTORS, Factor, Level, Levels, Rule
from bbcu.errors import ConfigError
from bbcu.model import specs

MAX_CHANNELS = 2**12
"""The largest width of a network; the published ones have 64 channels."""

NO_UNIT = "nothing is binary: what a binary unit would be made of makes no difference"


@dataclass(frozen=True)
class Backbone:
    """What the rules must know of the network around the units.

    Its name, as in ``network=dncnn``, its width, its tail, as in ``network.tail=light``, and the name of the task, as
    in ``task=sr_x4``, which says how far the network enlarges.
    """

    network: str
    channels: int
    tail: str = "full"
    task: str = ""

    @property
    def facts(self) -> dict[str, Level]:
        """What conditions can compare beside the factors."""
        return {
            "network": self.network,
            "channels": float(self.channels),
            "network.tail": self.tail,
            "task": self.task,
        }


FACTS = tuple(Backbone("", 1).facts)
"""The keys of :attr:`Backbone.facts`."""


class ImpossibleCell(ConfigError):
    """The levels describe no meaningful network; the message is the reason."""


def contradiction(reasons: Iterable[str]) -> ConfigError:
    """The error of rules that change what the others have changed, without end."""
    return ConfigError(f"the rules of the factors contradict each other: {'; '.join(reasons)}")


def automatic_alignment(cell: Levels, backbone: Backbone) -> float:
    """The number that ``align=auto`` stands for in a cell; see :func:`bbcu.model.specs.automatic_alignment`."""
    bn, binarize = cell["bn"], cell["binarize"]
    assert isinstance(bn, str)
    assert isinstance(binarize, tuple)
    return specs.automatic_alignment(bn, binarize, backbone.channels)


class CompiledRule:
    """A rule that can be asked of thousands of cells: it reads few factors of few levels, so it caches its answers.

    A cell, here, has a level for every factor, and the facts of its backbone.
    """

    def __init__(self, rule: Rule) -> None:
        self.reason, self.becomes = rule.reason, rule.becomes
        self.condition = parse(rule.when, (*FACTORS, *FACTS))
        self._keys = keys_of(self.condition)
        self._levels_of = itemgetter(*self._keys)
        self._answers: dict[Level, bool] = {}

    def holds(self, cell: Levels) -> bool:
        levels = self._levels_of(cell)
        if levels not in self._answers:
            self._answers[levels] = self.condition.holds({key: cell[key] for key in self._keys})
        return self._answers[levels]

    def changes(self, cell: Levels) -> bool:
        """Whether the rule holds and the cell is not in the form that it asks for yet."""
        if self.becomes is None or not self.holds(cell):
            return False
        return any(cell[name] != level for name, level in self.becomes.items())


@dataclass(frozen=True)
class Rules:
    """All rules: those that merge a cell with another, and those that say that a cell is impossible."""

    merging: tuple[CompiledRule, ...]
    impossible: tuple[CompiledRule, ...]


def rules() -> Rules:
    """Every rule of the factors that are declared, compiled once."""
    return _compiled(tuple(FACTORS))


@functools.cache
def _compiled(names: tuple[str, ...]) -> Rules:
    compiled = [CompiledRule(rule) for name in names for rule in (*_scope_rules(FACTORS[name]), *FACTORS[name].rules)]
    return Rules(
        merging=tuple(rule for rule in compiled if rule.becomes is not None),
        impossible=tuple(rule for rule in compiled if rule.becomes is None),
    )


def _scope_rules(factor: Factor) -> Iterable[Rule]:
    """The rules that take a factor back to its reference wherever it has no effect."""
    back = {factor.name: factor.reference}
    if factor.of_unit:
        yield Rule("binarize=[]", NO_UNIT, back)
    if factor.applies:
        yield Rule(f"not ({factor.applies})", factor.otherwise, back)
