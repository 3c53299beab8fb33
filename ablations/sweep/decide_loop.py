"""Run a sweep that trains only what is undecided, by :class:`ablations.decide.decider.Decider`.

Each round asks which trials the stopping rule needs next and trains them like any other sweep. A result on disk counts
whoever has trained it, so two sweeps share the work, and one that was killed continues where it was.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.decide.decider import FAILED, Comparison, Decider, Ended
from ablations.decide.decisions import Decisions
from ablations.decide.progress import first_rows, statuses
from ablations.decide.results import ResultReader
from ablations.planning.plan import Plan, plan_record
from ablations.storage import stopping
from ablations.storage.attempts import State
from ablations.storage.folder import Identity
from ablations.storage.plans import write_plan
from ablations.sweep.rounds import Rounds, TrialOutcome
from ablations.trial.changes import counts


class DecideLoop:
    """Trains what a plan's stopping rule asks for.

    ``plan`` has the trials that it has asked for so far, and ``decisions`` what was decided when it last asked.
    """

    def __init__(self, planned: Plan) -> None:
        assert planned.rule is not None
        self._trials = {entry.identity: entry for entry in planned.trials}
        self._outputs = Path(planned.trials[0].config.outputs)
        cells = tuple(dict.fromkeys(entry.identity[0] for entry in planned.listed))
        self._decider = Decider(planned.rule, cells, planned.pairing)
        self._results = ResultReader(self._outputs, planned.study, self._counts)
        self._outcomes: Mapping[Identity, TrialOutcome] = {}
        self.plan = dataclasses.replace(planned, trials=[])
        self.ask()

    def ask(self) -> list[Identity]:
        """Return the trials to run next, and add what the rule needs to the plan."""
        ended = self._ended()
        comparisons = self._decider.comparisons(ended)
        needed = self._with_teachers(self._decider.needed_for(comparisons))
        self.decisions = self._decisions(comparisons, ended)
        self.plan.trials[:] = [self._trials[identity] for identity in needed]
        return [identity for identity in needed if identity not in ended]

    def _with_teachers(self, needed: Sequence[Identity]) -> list[Identity]:
        """Return these trials, each once and after its teacher."""
        pairs = ((self._trials[identity].teacher, identity) for identity in needed)
        return list(dict.fromkeys(one for pair in pairs for one in pair if one is not None))

    def run(self, rounds: Rounds, on_new: Callable[[Sequence[Identity]], object]) -> dict[Identity, TrialOutcome]:
        """Run trials by ``rounds`` until all is decided; return all outcomes.

        ``on_new`` is called with the trials that are run next, whenever the plan has grown. A trial that fails in this
        sweep, after its retries, has ended without a score. The next sweep retries it.
        """
        self._outcomes = rounds.outcomes
        while stopping.received_signal() is None and (new := self.ask()):
            write_plan(self._outputs, self.plan.study, plan_record(self.plan))
            on_new(new)
            rounds.run([self._trials[identity] for identity in new])
        return rounds.outcomes

    def decided(self) -> Decisions:
        """Return what is decided by now: a sweep may have stopped since it last asked."""
        ended = self._ended()
        return self._decisions(self._decider.comparisons(ended), ended)

    def _decisions(self, comparisons: Sequence[Comparison], ended: Ended) -> Decisions:
        rows = first_rows(entry.trial.facts() for entry in self._trials.values())
        return Decisions(self._decider.rule, statuses(comparisons, ended, rows, self.plan.design))

    def _ended(self) -> Ended:
        """Return the trials that have ended: those with a result, and those of this sweep without one."""
        over = (identity for identity, outcome in self._outcomes.items() if outcome.state != State.INTERRUPTED)
        return {**dict.fromkeys(over, FAILED), **self._results.read(self._trials)}

    def _counts(self, identity: Identity, result: Mapping[str, Any]) -> bool:
        """Return whether a result is of the present code, or may be kept."""
        entry = self._trials[identity]
        return counts(result, entry.trial, entry.config)
