"""What a study with a stopping rule has decided as a whole, and which trials the rule may still ask for."""

import itertools
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass

from ablations.decide.decider import FROM_DECIDED_TO_OPEN
from ablations.decide.progress import ComparisonStatus
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.folder import Identity
from analysis.statistics.sequential import Progress


@dataclass(frozen=True)
class Decisions:
    """A stopping rule and what has become of its comparisons, in the order of the rule."""

    rule: StoppingRule
    comparisons: Sequence[ComparisonStatus]

    @property
    def open(self) -> list[ComparisonStatus]:
        return [comparison for comparison in self.comparisons if comparison.is_open]

    @property
    def counts(self) -> dict[Progress, int]:
        """How many comparisons there are of each kind, the decided ones first and the open ones last."""
        counts = Counter(comparison.progress for comparison in self.comparisons)
        return {progress: counts[progress] for progress in FROM_DECIDED_TO_OPEN if counts[progress]}

    @property
    def next_look(self) -> int | None:
        """The next look at which a verdict may fall; None if nothing is open."""
        return min(filter(None, (self.rule.look_after(comparison.look) for comparison in self.open)), default=None)

    def title(self, comparison: ComparisonStatus) -> str:
        """Return a comparison in words, with its task if the study has several."""
        several = len({found.task for found in self.comparisons}) > 1
        return comparison.label + f", {comparison.task}" * several

    def possible(self, asked: Container[Identity]) -> list[list[Identity]]:
        """Return the trials, look by look, that the rule asks for beside ``asked`` if nothing more is decided."""
        cells = dict.fromkeys(cell for comparison in self.open for cell in comparison.pair)
        by_look = [
            [(cell, seed) for seed in self.rule.seeds(look)[before:] for cell in cells if (cell, seed) not in asked]
            for before, look in itertools.pairwise((0, *self.rule.looks))
        ]
        return [trials for trials in by_look if trials]
