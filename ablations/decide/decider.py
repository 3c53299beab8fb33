"""Which trials a study needs by its stopping rule, and what it has decided: pure functions of the rule and the results.

Nothing else is remembered, so a sweep that was killed comes to the same end as one that was not.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ablations.space.interventions import Pair
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.folder import Identity
from analysis.statistics.sequential import Boundary, Judged, Progress, Trials, judged


@dataclass(frozen=True)
class EndedTrial:
    """What a trial that has ended says: its PSNR in dB by test set, none if it failed, and whether it collapsed."""

    psnr_db: Mapping[str, float]
    collapsed: bool = False


FROM_DECIDED_TO_OPEN = (
    *(Progress.DECIDED, Progress.LAST_LOOK, Progress.RISK, Progress.NOTHING, Progress.NO_RESULT, Progress.OPEN),
)

FAILED = EndedTrial({})
"""A trial that has failed. It is not replaced by another seed: to leave out what fails would be to select."""

Ended = Mapping[Identity, EndedTrial]


@dataclass(frozen=True)
class Comparison:
    """A pair of cells, with what has become of it by test set; ``family`` is the place of its family in the rule.

    ``judged`` is empty before the first result of the family. ``has_failed`` says that there will be none: every trial
    of the first look has failed.
    """

    family: int
    pair: Pair
    judged: Mapping[str, Judged]
    has_failed: bool = False

    @property
    def is_open(self) -> bool:
        return self.progress is Progress.OPEN

    @property
    def progress(self) -> Progress:
        """What has become of it as a whole: decided only if it is on every test set, open if it is on one."""
        found = (judged.progress for judged in self.judged.values())
        without = Progress.NO_RESULT if self.has_failed else Progress.OPEN
        return max(found, key=FROM_DECIDED_TO_OPEN.index, default=without)


@dataclass(frozen=True)
class Decider:
    """Decides by a rule which trials the ``cells`` of a study need.

    Every cell gets the seeds of the first look. Then the two cells of each open comparison get those of the next look,
    until none is open. ``paired`` says that the study compares its cells seed by seed.
    """

    rule: StoppingRule
    cells: tuple[str, ...]
    paired: bool = False

    def ask(self, ended: Ended) -> list[Identity]:
        """Return the trials to run next; none if everything is decided."""
        return [identity for identity in self.needed(ended) if identity not in ended]

    def needed(self, ended: Ended) -> list[Identity]:
        """Return every trial that the rule has asked for so far, whether it has ended or not, seed by seed."""
        return self.needed_for(self.comparisons(ended))

    def needed_for(self, comparisons: Iterable[Comparison]) -> list[Identity]:
        """Return the trials of :meth:`needed` if this has become of the comparisons."""
        seeds = dict.fromkeys(self.cells, self.rule.first_look)
        for comparison in comparisons:
            reached = max((self._seeds_for(found) for found in comparison.judged.values()), default=0)
            for cell in comparison.pair:
                seeds[cell] = max(seeds[cell], reached)
        return [
            (cell, seed)
            for place, seed in enumerate(self.rule.seeds(self.rule.last_look))
            for cell in self.cells
            if place < seeds[cell]
        ]

    def _seeds_for(self, found: Judged) -> int:
        """Return how many seeds a comparison needs: those of the next look if it is open."""
        following = self.rule.look_after(found.look) if found.progress is Progress.OPEN else None
        return found.look if following is None else following

    def comparisons(self, ended: Ended) -> list[Comparison]:
        """Return what has become of every comparison, family by family."""
        found = []
        for place, family in enumerate(self.rule.families):
            on = {name: self._judged(family, trials) for name, trials in trials_by_set(family, ended)}
            first = itertools.product({cell for pair in family for cell in pair}, self.rule.seeds(self.rule.first_look))
            has_failed = not on and all(identity in ended for identity in first)
            found += [
                Comparison(place, pair, {name: each[pair] for name, each in on.items()}, has_failed) for pair in family
            ]
        return found

    def _judged(self, family: tuple[Pair, ...], trials: Trials) -> Mapping[Pair, Judged]:
        rule = self.rule
        return judged(family, trials, boundary_of(rule), rule.first_seed, rule.margin_db, paired=self.paired)


@functools.lru_cache
def boundary_of(rule: StoppingRule) -> Boundary:
    return Boundary(rule.looks, rule.floor, rule.rise)


def trials_by_set(family: tuple[Pair, ...], ended: Ended) -> Iterator[tuple[str, Trials]]:
    """Yield the trials of a family's cells on each test set that one of them was scored on, sorted by its name."""
    cells = dict.fromkeys(cell for pair in family for cell in pair)
    of_cell: dict[str, dict[int, EndedTrial]] = {cell: {} for cell in cells}
    for (cell, seed), trial in ended.items():
        if cell in of_cell:
            of_cell[cell][seed] = trial
    seeds = {cell: frozenset(trials) for cell, trials in of_cell.items()}
    collapsed = {
        cell: frozenset(seed for seed, one in found.items() if one.collapsed) for cell, found in of_cell.items()
    }
    for name in sorted({name for found in of_cell.values() for one in found.values() for name in one.psnr_db}):
        scores = {
            cell: {seed: one.psnr_db[name] for seed, one in sorted(found.items()) if name in one.psnr_db}
            for cell, found in of_cell.items()
        }
        yield name, Trials(scores, seeds, collapsed)
