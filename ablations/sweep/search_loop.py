"""A sweep whose cells are chosen as it goes: the loop around :class:`ablations.search.search.Search`.

Each round asks the search for as many cells as run at once, trains them as any other sweep does, and tells what came of
them. What is finished on disk is known before it is asked for. A cell's learning curve reaches the search while it is
trained, where that may end it early.
"""

import dataclasses
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.config import Config, SweeperConfig
from ablations.planning.plan import Plan, PlannedTrial, RowPlanner, design_record, plan_record
from ablations.search.options import SearchOptions
from ablations.search.search import Failed, Finished, Identified, Proposal, Pruned, Search
from ablations.space.designs import Listing
from ablations.space.rows import Row
from ablations.storage import stopping
from ablations.storage.attempts import State
from ablations.storage.files import write_atomically
from ablations.storage.folder import Identity, TrialFolder, mean_psnr, study_folder
from ablations.storage.plans import write_plan
from ablations.storage.pruning import open_question, searching_path
from ablations.sweep.rounds import Outcome, Rounds
from ablations.trial.changes import EarlierPictures, is_to_be_kept, own_parts, own_parts_of_sweep
from ablations.trial.identity import levels_of
from ablations.trial.provenance import code_fingerprint
from bbcu.errors import ConfigError

log = logging.getLogger(__name__)

STORAGE = "search.log"
"""The journal in the study's folder that a search is kept in where nothing else is typed."""

FOUND = "search.json"
"""The file in the study's folder that has the best cell or the front, and every row that was drawn."""

AT_ONCE = 4
"""How many cells to ask for where a launcher does not say how many it runs at once."""

ANSWER_SECONDS = 0.1
"""How often the search looks for questions of its trials, which wait for the answer."""

OPTIONS = ("trials", "objectives", "sampler", "pruner", "storage", "seed")


def search_options(options: SweeperConfig, base: Config, code: str) -> SearchOptions:
    """What is typed about the search, which ``code`` trains; raises ConfigError for what cannot be searched with."""
    if options.trials is None:
        raise ConfigError("hydra.sweeper.design=search needs hydra.sweeper.trials")
    typed = [name for name, value in options.design_options.items() if value is not None]
    strange = [name for name in typed if name not in OPTIONS]
    if strange:
        raise ConfigError(f"hydra.sweeper.{strange[0]}: design=search takes {', '.join(OPTIONS)}")
    given = {name: options.design_options[name] for name in typed}
    study = study_folder(Path(base.outputs), base.study.name)
    found = SearchOptions(
        **{
            "name": base.study.name,
            "storage": str(study / STORAGE),
            "code": code,
            "on_change": base.on_change,
            **given,
            **({"objectives": tuple(given["objectives"])} if "objectives" in given else {}),
        }
    )
    if found.pruner != "none" and options.replicates > 1:
        raise ConfigError(
            f"hydra.sweeper.pruner={found.pruner}: ends single trials, so hydra.sweeper.replicates must be 1"
        )
    return found


class SearchLoop:
    """Searches until the search has nothing more to ask for; ``plan`` grows by every cell that is proposed."""

    def __init__(self, planner: RowPlanner, options: SweeperConfig, base: Config) -> None:
        self._planner = planner
        self._outputs, self._study = Path(base.outputs), base.study.name
        self._plans: dict[Row, Plan] = {}
        self._by_trial: dict[Identity, Proposal] = {}
        self._on_change = base.on_change
        self._pictures = EarlierPictures(self._outputs, self._study)
        parts = {*own_parts(levels_of(base), dataclasses.asdict(base.network)), *own_parts_of_sweep(planner.swept)}
        code = code_fingerprint(tuple(sorted(parts)))
        settings = search_options(options, base, code)
        study_folder(self._outputs, self._study).mkdir(parents=True, exist_ok=True)
        self.plan = Plan(self._study, design_record(options, Listing(())))
        self._finished: dict[str, Mapping[str, float]] = {}
        self._keep: Callable[[str, Mapping[str, float]], object] = self._finished.__setitem__
        self.search = Search(settings, planner.swept, self._identify)
        # To make a search is to identify rows already, before there is anybody to tell.
        self._keep = self.search.known
        for identity, values in self._finished.items():
            self.search.known(identity, values)

    def run(self, rounds: Rounds, on_new: Callable[[], object]) -> dict[Identity, Outcome]:
        """Search with these rounds; what became of each trial. ``on_new`` is called when the plan has grown."""
        rounds.look, rounds.look_seconds = self._with_answers(rounds.look), ANSWER_SECONDS
        any_folder = TrialFolder(self._outputs, self._study, "", 0)
        searching = searching_path(any_folder, rounds.workers.session)
        try:
            searching.parent.mkdir(parents=True, exist_ok=True)
            searching.touch()
            # As in any other sweep, what has failed is tried again when the command is given again.
            self.search.retry_failed()
            at_once = rounds.workers.at_once or AT_ONCE
            while stopping.asked_by() is None and (proposals := self.search.ask(at_once)):
                self._plan_for(proposals)
                on_new()
                self._round(proposals, rounds)
                self.write_down()
        finally:
            self.search.close()
            searching.unlink(missing_ok=True)
        return rounds.outcomes

    def _plan_for(self, proposals: Sequence[Proposal]) -> None:
        """Take the trials of the proposed cells into the plan, and into the study's."""
        present = {entry.identity for entry in self.plan.trials}
        new = []
        for proposal in proposals:
            log.info("search: %s", " ".join(proposal.row))
            for entry in self._plans[proposal.row].trials:
                self._by_trial[entry.identity] = proposal
                if entry.identity not in present:
                    new.append(entry)
        self.plan.trials.extend(new)
        if new:
            write_plan(self._outputs, self._study, plan_record(dataclasses.replace(self.plan, trials=new)))

    def _round(self, proposals: Sequence[Proposal], rounds: Rounds) -> None:
        """Train the proposed cells and tell the search what came of them."""
        rounds.run([entry for proposal in proposals for entry in self._plans[proposal.row].trials])
        for proposal in proposals:
            trials = self._plans[proposal.row].trials
            ended = [rounds.outcomes.get(entry.identity) for entry in trials]
            known = [outcome for outcome in ended if outcome is not None and outcome.state != State.INTERRUPTED]
            # Of a cell that was interrupted the search is told nothing: it is the first to be proposed next time.
            if len(known) == len(trials):
                self.search.tell(proposal, outcome_of(trials, known))

    def _identify(self, row: Row) -> Identified:
        """Which cell a row is; one whose trials are all finished is known from then on.

        Raises ConfigError where other code, or other pictures, made what it has, and the user has not chosen.
        """
        plan = self._plans[row] = self._planner.plan(row)
        if self._on_change != "retrain":
            self._pictures.refuse_others(entry.trial for entry in plan.trials)
        if not plan.trials:
            self.plan.left_out.extend(plan.left_out)
            return Identified(None, plan.left_out[0].reason)
        seeds = ",".join(str(entry.trial.seed) for entry in plan.trials)
        identity = f"{plan.trials[0].identity[0]}/{seeds}"
        values = values_of(plan.trials)
        if values is not None:
            self._keep(identity, values)
        return Identified(identity)

    def _with_answers(self, look: Callable[[], None]) -> Callable[[], None]:
        def look_and_answer() -> None:
            look()
            for entry in list(self.plan.trials):
                question = open_question(entry.folder)
                if question is not None:
                    proposal = self._by_trial[entry.identity]
                    question.answer(prune=self.search.report(proposal, question.step, question.psnr_db))

        return look_and_answer

    def found(self) -> dict[str, Any]:
        """What was found so far: the best cell or the front, and every row that was drawn."""
        front = [dataclasses.asdict(record) for record in self.search.front()]
        several = len(self.search.options.objectives) > 1
        return {
            "keys": [key for key, values in self._planner.swept.items() if len(values) > 1],
            "objectives": list(self.search.options.objectives),
            "front" if several else "best": front if several else next(iter(front), None),
            "history": [dataclasses.asdict(record) for record in self.search.history()],
        }

    def write_down(self) -> None:
        """Keep what was found so far in the study's folder."""
        path = study_folder(self._outputs, self._study) / FOUND
        write_atomically(path, json.dumps(self.found(), indent=1) + "\n")


def values_of(trials: Sequence[PlannedTrial]) -> dict[str, float] | None:
    """What a cell is worth by its results, each the mean over the seeds; None where one has none that counts."""
    results = [result_that_counts(entry) for entry in trials]
    scores = [mean_psnr(result) for result in results if result is not None]
    if len(scores) < len(trials) or results[0] is None:
        return None
    return {"psnr_db": statistics.fmean(scores), **results[0]["cost"]}


def result_that_counts(entry: PlannedTrial) -> dict[str, Any] | None:
    """A trial's result, unless other code made it and it is to be made anew; raises ConfigError without a choice."""
    result = entry.folder.result()
    return result if result is not None and is_to_be_kept(result, entry.config, entry.trial) else None


def outcome_of(trials: Sequence[PlannedTrial], ended: Sequence[Outcome]) -> Finished | Failed | Pruned:
    """What to tell the search of a cell whose trials ended so."""
    values = values_of(trials)
    if values is not None:
        return Finished(values)
    pruned = next((outcome for outcome in ended if outcome.state == State.PRUNED), None)
    if pruned is not None:
        return Pruned(int(pruned.reason.split("step ")[1].split()[0]))
    return Failed(next((outcome.reason for outcome in ended if outcome.state == State.FAILED), "no result"))
