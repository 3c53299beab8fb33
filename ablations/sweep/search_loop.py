"""Run a sweep whose cells are chosen by :class:`ablations.search.search.Search`.

Each round asks the search for as many cells as run at once, trains them like any other sweep, and reports the outcomes
to the search. Cells with results on disk are not trained again. If the search prunes, it receives the learning curve of
a cell during its training.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.config import Config, SweeperConfig
from ablations.planning.plan import Plan, PlannedTrial, RowPlanner, design_record, each_once, plan_record
from ablations.search.options import LATENCY, OPS, OPTION_KEYS, QUALITY, SearchOptions
from ablations.search.records import CellOutcome, Failed, Finished, IdentifiedRow, Proposal, Pruned
from ablations.search.search import Search
from ablations.space.designs import Listing
from ablations.space.factors import SHOWN
from ablations.space.price import PAPER, price_of
from ablations.space.rows import Row
from ablations.storage import stopping
from ablations.storage.attempts import State
from ablations.storage.folder import Identity, TrialFolder, mean_psnr, study_folder
from ablations.storage.plans import write_plan
from ablations.storage.pruning import PruningRequest, open_request, search_marker
from ablations.sweep.printing import cost_of
from ablations.sweep.rounds import Rounds, TrialOutcome
from ablations.trial.changes import EarlierPictures, counts, is_reusable, own_parts, own_parts_of_sweep
from ablations.trial.identity import setting_of, trial_of
from ablations.trial.provenance import code_fingerprint
from bbcu.errors import BbcuError, ConfigError
from bbcu.files import write_atomically

if TYPE_CHECKING:
    from bbcu.model.cost import Cost

STORAGE = "search.log"
"""The default storage of a search: a journal in the study's folder."""

REPORT = "search.json"
"""The file in the study's folder with the best cell or the Pareto front, and every row that was drawn."""

AT_ONCE = 4
"""The number of cells to ask for if it is unknown how many the launcher runs at once."""

ANSWER_SECONDS = 0.1
"""How often the search polls for requests of its trials, which wait for the answer."""


def search_options(options: SweeperConfig, base: Config, code: str) -> SearchOptions:
    """Return the options of a search whose cells ``code`` trains; raise ConfigError for those that are not valid."""
    if options.trials is None:
        raise ConfigError("hydra.sweeper.design=search needs hydra.sweeper.trials")
    chosen = {name: value for name, value in options.design_options.items() if value is not None}
    for name in chosen:
        if name not in OPTION_KEYS:
            raise ConfigError(f"hydra.sweeper.{name}: design=search takes {', '.join(OPTION_KEYS)}")
    if "objectives" in chosen:
        chosen["objectives"] = tuple(chosen["objectives"])
    storage = str(study_folder(Path(base.outputs), base.study.name) / STORAGE)
    defaults = {"name": base.study.name, "storage": storage, "code": code, "on_change": base.on_change}
    costs = {"binary_price": base.cost.binary, "measures_latency": base.measure.latency}
    search = SearchOptions(**{**defaults, **costs, **chosen})
    if search.pruner != "none" and options.replicates > 1:
        raise ConfigError(
            f"hydra.sweeper.pruner={search.pruner}: ends single trials, so hydra.sweeper.replicates must be 1"
        )
    return search


class SearchLoop:
    """Runs a search to its end; ``plan`` collects the trials of every proposed cell."""

    def __init__(self, planner: RowPlanner, options: SweeperConfig, base: Config) -> None:
        self._planner = planner
        self._outputs, self._study = Path(base.outputs), base.study.name
        self._folder = study_folder(self._outputs, self._study)
        self._plans: dict[Row, Plan] = {}
        self._proposals: dict[Identity, Proposal] = {}
        self._teachers: set[Identity] = set()
        self._on_change = base.on_change
        self._pictures = EarlierPictures(self._outputs, self._study)
        parts = {*own_parts(base.levels, dataclasses.asdict(base.network)), *own_parts_of_sweep(planner.swept)}
        self._settings = search_options(options, base, code_fingerprint(tuple(sorted(parts))))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._layout = cost_of(trial_of(base, setting_of(base, fingerprint="")))
        self.plan = Plan(self._study, base.study.pairing, design_record(options, Listing(())))
        self.search = Search(self._settings, planner.swept, self._identify)
        try:
            self.search.check()
        except BbcuError:
            self.search.close()
            raise

    def run(self, rounds: Rounds, on_new: Callable[[], object]) -> dict[Identity, TrialOutcome]:
        """Search and run the trials by ``rounds``; call ``on_new`` whenever the plan grows; return all outcomes."""
        rounds.on_poll, rounds.poll_seconds = self._answering(rounds.on_poll), ANSWER_SECONDS
        marker = search_marker(TrialFolder(self._outputs, self._study, "", 0), rounds.workers.session)
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            # As in any other sweep, the same command retries what has failed.
            self.search.retry_failed()
            while stopping.received_signal() is None and (
                proposals := self.search.ask(rounds.workers.at_once or AT_ONCE)
            ):
                self._plan_for(proposals)
                on_new()
                self._train(proposals, rounds)
                write_atomically(self._folder / REPORT, json.dumps(self.report(), indent=1) + "\n")
        finally:
            self.search.close()
            marker.unlink(missing_ok=True)
        return rounds.outcomes

    def _plan_for(self, proposals: Sequence[Proposal]) -> None:
        """Add the trials of the proposed cells to the plan, and to that of the study."""
        known = {entry.identity: entry.only_teaches for entry in self.plan.trials}
        new = []
        for proposal in proposals:
            plan = self._plans[proposal.row]
            self._proposals |= dict.fromkeys([entry.identity for entry in plan.listed], proposal)
            self._teachers |= {entry.teacher for entry in plan.listed if entry.teacher is not None}
            new += [entry for entry in plan.trials if entry.identity not in known]
            # A cell that has only taught others so far may be proposed itself.
            new += [entry for entry in plan.listed if known.get(entry.identity)]
        self.plan.trials[:] = each_once([*self.plan.trials, *new])
        if new:
            trials = each_once(new)
            write_plan(self._outputs, self._study, plan_record(dataclasses.replace(self.plan, trials=trials)))

    def _train(self, proposals: Sequence[Proposal], rounds: Rounds) -> None:
        """Train the proposed cells and report the outcomes to the search."""
        every = each_once(entry for proposal in proposals for entry in self._plans[proposal.row].trials)
        taught = (entry for entry in every if entry.only_teaches)
        done = {entry.identity for entry in taught if counts(entry.folder.result(), entry.trial, entry.config)}
        rounds.run([entry for entry in every if entry.identity not in done])
        for proposal in proposals:
            trials = self._plans[proposal.row].listed
            ended = [rounds.outcomes.get(entry.identity) for entry in trials]
            known = [outcome for outcome in ended if outcome is not None and outcome.state != State.INTERRUPTED]
            # An interrupted cell stays open and is proposed first next time.
            if len(known) == len(trials):
                self.search.tell(proposal, cell_outcome(trials, known, self._settings, self._layout))

    def _identify(self, row: Row) -> IdentifiedRow:
        """Return which cell a row is, with its values if all its trials are finished.

        Raises ConfigError if its results were made by different code or on different pictures, and ``on_change=stop``.
        """
        plan = self._plans[row] = self._planner.plan(row)
        if self._on_change != "retrain":
            self._pictures.refuse_others(entry.trial for entry in plan.trials)
        if not plan.trials:
            self.plan.left_out.extend(plan.left_out)
            return IdentifiedRow(None, plan.left_out[0].reason)
        seeds = ",".join(str(entry.trial.seed) for entry in plan.listed)
        values = values_of(plan.listed, self._settings, self._layout)
        first = plan.listed[0]
        cell = first.identity[0]
        folder = str(first.folder.path.parent)
        notes = {"cell": first.trial.name, "cell key": cell[:SHOWN], "seeds": seeds, "folder": folder}
        return IdentifiedRow(f"{cell}/{seeds}", values=values, notes=notes)

    def _answering(self, on_poll: Callable[[], None]) -> Callable[[], None]:
        """Return a function that calls ``on_poll`` and then answers the requests of running trials."""

        def poll_and_answer() -> None:
            on_poll()
            for entry in list(self.plan.trials):
                request = open_request(entry.folder)
                if request is not None:
                    request.answer(prune=self._prunes(entry.identity, request))

        return poll_and_answer

    def _prunes(self, identity: Identity, request: PruningRequest) -> bool:
        """Return whether the search ends a trial; it ends none that others need as their teacher."""
        proposal = self._proposals.get(identity)
        if proposal is None or identity in self._teachers:
            return False
        return self.search.report(proposal, request.step, request.psnr_db)

    def report(self) -> dict[str, Any]:
        """Return the best cell or the Pareto front so far, and every row that was drawn."""
        front = [dataclasses.asdict(record) for record in self.search.front()]
        several = len(self._settings.objectives) > 1
        return {
            "keys": [key for key, values in self._planner.swept.items() if len(values) > 1],
            "objectives": list(self._settings.objectives),
            "cost": {"binary": self._settings.binary_price},
            "front" if several else "best": front if several else next(iter(front), None),
            "history": [dataclasses.asdict(record) for record in self.search.history()],
        }


def values_of(trials: Sequence[PlannedTrial], options: SearchOptions, layout: "Cost") -> dict[str, float] | None:
    """Return the objectives of a cell, those that seeds change as the mean over them; None if a result lacks one.

    Operations are counted at the price of the options. ``layout`` is the cost of a network whose twin measured times
    are divided by, see :func:`over_one_twin`. Raises ConfigError if a result was made by different code and
    ``on_change=stop``.
    """
    results = [entry.folder.result() for entry in trials]
    present = [
        result
        for entry, result in zip(trials, results, strict=True)
        if result is not None and is_reusable(result, entry.config, entry.trial)
    ]
    if len(present) < len(trials):
        return None
    values = {QUALITY: statistics.fmean(map(mean_psnr, present)), **present[0]["cost"]}
    price = price_of(options.binary_price)
    if OPS in options.objectives and price is not None and price != price_of(PAPER):
        values[OPS] = cost_of(trials[0].trial).ops_at(float(price)) / 1e9
    if LATENCY in options.objectives:
        ratios = [result["cost"].get(LATENCY) for result in present]
        if None in ratios:
            return None
        values[LATENCY] = over_one_twin(statistics.fmean(ratios), cost_of(trials[0].trial), layout)
    return values


def over_one_twin(ratio: float, own: "Cost", layout: "Cost") -> float:
    """Return the time of a network over the twin of ``layout``, from the ratio to its own twin.

    A narrow network has a fast twin, so ratios to the own ones would call it no faster than a wide one. The times of
    full-precision twins are taken to be in proportion to their multiply-adds.
    """
    twin, other = (cost.full_macs + cost.binary_macs for cost in (own, layout))
    return ratio * (twin / other) if other else ratio


def cell_outcome(
    trials: Sequence[PlannedTrial], ended: Sequence[TrialOutcome], options: SearchOptions, layout: "Cost"
) -> CellOutcome:
    """Return the outcome of a cell whose trials ended like this; for the arguments see :func:`values_of`."""
    values = values_of(trials, options, layout)
    if values is not None:
        return Finished(values)
    steps = [outcome.step for outcome in ended if outcome.step is not None]
    if steps:
        return Pruned(steps[0])
    without = "no result" if any(entry.folder.result() is None for entry in trials) else f"no {LATENCY}"
    return Failed(next((outcome.reason for outcome in ended if outcome.state == State.FAILED), without))
