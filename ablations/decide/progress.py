"""What a study with a stopping rule has decided so far, read from its folder, for those who watch it."""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.decide.decider import FAILED, Comparison, Decider, Ended
from ablations.decide.results import ResultReader
from ablations.space.family import cells_of_plan, change_between, in_words
from ablations.space.interventions import Pair
from ablations.space.settings import DATA
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import State, history_of
from ablations.storage.folder import Identity, TrialFolder, identities_in, study_folder
from ablations.storage.plans import read_plan
from analysis.statistics.sequential import Judged, Progress


@dataclass(frozen=True)
class ComparisonStatus:
    """A comparison of a study: what it is in words, its task, what has become of it as a whole and on each test set.

    ``on`` is empty before the first result. ``seeds`` is the number of seeds under which both cells have ended.
    """

    label: str
    task: str
    pair: Pair
    on: Mapping[str, Judged]
    seeds: int
    progress: Progress

    @property
    def is_open(self) -> bool:
        return self.progress is Progress.OPEN

    @property
    def look(self) -> int:
        """The look at which it was closed on every test set; if it is open, the last one that is complete on all."""
        looks = [found.look for found in self.on.values() if not self.is_open or found.progress is Progress.OPEN]
        return (min if self.is_open else max)(looks, default=0)

    def outcome(self, test_set: str) -> str:
        """Return what has become of it on a test set: the verdict if it is decided, ``better``, or else the reason."""
        found = self.on[test_set]
        return str(found.verdict.outcome if found.progress is Progress.DECIDED else found.progress)

    def conclusion(self, test_set: str) -> str:
        """Return what has become of it on a test set in a few words, ``better at 4`` seeds; "" without a result."""
        if test_set not in self.on:
            return ""
        found = self.on[test_set]
        return self.outcome(test_set) + f" at {found.look}" * (found.progress is Progress.DECIDED)


def comparisons_of(outputs: Path, study: str) -> list[ComparisonStatus]:
    """Return the comparisons of a study in the order of its rule; none without a rule. Raises DamagedFile."""
    return ComparisonReader(outputs, study).read()


class ComparisonReader:
    """Reads the comparisons of a study again and again; each result is read once."""

    def __init__(self, outputs: Path, study: str) -> None:
        self._outputs, self._study = outputs, study
        self._results = ResultReader(outputs, study)

    def read(self) -> list[ComparisonStatus]:
        """Return the present state; see :func:`comparisons_of`."""
        plan = read_plan(self._outputs, self._study)
        if plan.get("rule") is None:
            return []
        rows = first_rows(plan["trials"])
        decider = Decider(StoppingRule.of(plan["rule"]), tuple(rows), plan.get("pairing", False))
        ended = self._ended(decider)
        return statuses(decider.comparisons(ended), ended, rows, plan["design"])

    def _ended(self, decider: Decider) -> Ended:
        """Return the trials that have ended; a failed one has, until a sweep retries it."""
        seeds = decider.rule.seeds(decider.rule.last_look)
        trials = {(cell, seed) for cell in decider.cells for seed in seeds}
        finished = self._results.read(sorted(trials))
        started = trials & identities_in(study_folder(self._outputs, self._study))
        failed = {identity: FAILED for identity in sorted(started - finished.keys()) if self._has_failed(identity)}
        return {**finished, **failed}

    def _has_failed(self, identity: Identity) -> bool:
        return history_of(TrialFolder(self._outputs, self._study, *identity)).state == State.FAILED


def statuses(
    comparisons: Sequence[Comparison], ended: Ended, rows: Mapping[str, Mapping[str, Any]], design: Mapping[str, Any]
) -> list[ComparisonStatus]:
    """Return what has become of comparisons, with their names; ``rows`` has a row of the plan for each cell."""
    labels = labels_of(list(rows.values()), design, {found.pair for found in comparisons})
    return [
        ComparisonStatus(
            labels[found.pair],
            rows[found.pair[0]]["setting"]["task"]["name"],
            found.pair,
            found.judged,
            seeds_so_far(found, ended),
            found.progress,
        )
        for found in comparisons
    ]


def first_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the first row of each cell of a plan."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        found.setdefault(row["cell"], row)
    return found


def labels_of(rows: Collection[Mapping[str, Any]], design: Mapping[str, Any], wanted: Set[Pair]) -> dict[Pair, str]:
    """Return in words what changes between the cells of each pair; ``rows`` has a row of each cell."""
    found: dict[Pair, str] = {}
    # Cells that were trained on different pictures may be compared, but the plan does not say so.
    for tested in ({}, dict.fromkeys((row["setting"][DATA] for row in rows), "")):
        for cells in cells_of_plan(rows, design, tested):
            for before, after in wanted - found.keys():
                if before in cells.levels and after in cells.levels:
                    found[before, after] = in_words(change_between(before, after, cells), cells)
    return found


def seeds_so_far(comparison: Comparison, ended: Ended) -> int:
    """Return under how many seeds both cells of a comparison have ended."""
    before, after = ({seed for cell, seed in ended if cell == own} for own in comparison.pair)
    return len(before & after)
