"""The sweep: plan every trial, train those that are not done, and print the results.

A launcher of Hydra runs the jobs, each of which is :func:`ablations.trial.execution.run_trial`. The state of every
trial is read from the disk and MLflow, so the same command can be run again at any time, even by several users at once.
"""

import contextlib
import logging
import math
import statistics
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from ablations.config import Config, SweeperConfig, check_bounds
from ablations.planning.plan import Plan, RowPlanner, make_plan, plan_record
from ablations.planning.stopping import looks_of, seeds_with_result
from ablations.storage import stopping
from ablations.storage.attempts import State, present_state
from ablations.storage.files import check_writable
from ablations.storage.folder import Identity, mean_psnr, study_folder
from ablations.storage.leftovers import joblib_folder, remove_leftovers
from ablations.storage.plans import write_plan
from ablations.sweep import printing
from ablations.sweep.expected import given_spread, print_expected
from ablations.sweep.launchers import Workers, connect
from ablations.sweep.printing import DONE, TO_LOG, TO_MEASURE, TO_SCORE, TO_TRAIN, names_in
from ablations.sweep.rounds import Rounds, TrialOutcome, remove_markers
from ablations.tracking.client import finished_runs, prepare_tracking, without_garbage_collection
from ablations.tracking.sync import log_states, synchronise
from ablations.trial.changes import HOW_TO_CHOOSE, EarlierPictures, why_stale
from ablations.trial.identity import trains
from ablations.trial.latency import lacks_latency
from ablations.trial.own_metrics import lacks_metrics
from ablations.watching.live import LiveView
from ablations.watching.tracker import WatchedTrial
from bbcu.errors import ConfigError, first_line
from bbcu.terminal import say

if TYPE_CHECKING:
    from ablations.decide.decisions import Decisions
    from ablations.sweep.decide_loop import DecideLoop

log = logging.getLogger(__name__)


def sweep(
    arguments: Sequence[str],
    options: SweeperConfig,
    master: DictConfig,
    config_loader: ConfigLoader,
    launcher: Launcher,
) -> float | None:
    """Run a sweep; return the mean PSNR over its trials in dB, or None for a dry run.

    Raises SystemExit with status 1, after everything else has run, if a trial has no result, and BbcuError before
    anything runs for errors that the user can correct. A sweep that is stopped exits with the status of the signal.
    """
    check_bounds(options, "hydra.sweeper.")
    looks_of(options)
    if options.design == "search":
        return search(RowPlanner(arguments, options, master, config_loader), options, master, launcher)
    with without_garbage_collection():
        planned = make_plan(arguments, options, master, config_loader)
        base = planned.trials[0].config
        states = states_on_disk(planned)
        loop = deciding(planned)
        plan = planned if loop is None else loop.plan
        outputs, uri = Path(base.outputs), base.tracking.uri
        if options.dry_run:
            spread = given_spread(options, outputs)
            print_rule(plan, outputs)
            printing.print_dry_run(plan, states)
            print_expected(planned, spread)
            say("dry run: nothing was trained or recorded")
            return None
    check_folder(master)
    if base.on_change != "retrain":
        EarlierPictures(outputs, plan.study).refuse_others(entry.trial for entry in planned.trials)
    if not {TO_TRAIN, TO_MEASURE, TO_SCORE}.isdisjoint(states.values()):
        # A sweep whose workers cannot be reached leaves no plan behind.
        connect(master)
    remove_leftovers(outputs, plan.study)
    experiment = prepare_tracking(uri, plan.study)
    write_plan(outputs, plan.study, plan_record(plan))
    recorded = finished_runs(uri, experiment)
    states = {
        identity: TO_LOG if state == DONE and identity not in recorded else state for identity, state in states.items()
    }
    printing.print_left_out(plan)
    printing.print_design(plan)
    print_rule(plan, outputs)
    printing.print_counts(plan, states)
    if TO_LOG in states.values():
        synchronise(outputs, plan.study, uri)
    to_complete = [entry for entry in plan.trials if states[entry.identity] in (TO_MEASURE, TO_SCORE)]
    pending = [entry for entry in plan.trials if states[entry.identity] in (TO_TRAIN, TO_MEASURE, TO_SCORE)]
    outcomes: Mapping[Identity, TrialOutcome] = {}
    if pending:
        trials, done = watched_trials(plan), {identity for identity, state in states.items() if state in (DONE, TO_LOG)}
        decisions = None if loop is None else lambda: loop.decisions
        shown = ViewedTrials(trials, done, decisions)
        with running(launcher, master, options, base, shown, experiment) as rounds:
            if loop is None:
                outcomes = rounds.run(pending)
            else:
                rounds.run(to_complete)
                outcomes = loop.run(rounds, lambda new: show_new(new, plan, trials, done))
    if loop is not None and plan.rule is not None:
        printing.print_comparisons(loop.decided())
        printing.print_spent(plan, plan.rule)
    return summarise(plan, outcomes)


def deciding(plan: Plan) -> "DecideLoop | None":
    """Return the loop of a sweep that trains only what is undecided; None for any other sweep."""
    if plan.rule is None:
        return None
    from ablations.sweep.decide_loop import DecideLoop

    return DecideLoop(plan)


def print_rule(plan: Plan, outputs: Path) -> None:
    """Print the stopping rule of a plan, if it has one, and how many results it leaves out."""
    if plan.rule is not None:
        known = seeds_with_result(outputs, plan.study, {entry.identity[0] for entry in plan.listed})
        printing.print_rule(plan, plan.rule, sum(seed < plan.rule.first_seed for seed in known))


def show_new(new: Collection[Identity], plan: Plan, trials: dict[Identity, WatchedTrial], done: set[Identity]) -> None:
    """Add what a plan has got to the trials that a view shows; ``new`` are those that are run next."""
    # What another sweep has trained meanwhile is done before the view learns of it.
    done.update(entry.identity for entry in plan.trials if entry.identity not in {*new, *trials})
    trials.update(watched_trials(plan))


def search(planner: RowPlanner, options: SweeperConfig, master: DictConfig, launcher: Launcher) -> float | None:
    """Run a sweep whose cells a search chooses; otherwise like :func:`sweep`."""
    from ablations.sweep.search_loop import SearchLoop, search_options

    base = planner.base()
    if options.dry_run:
        search_options(options, base, code="")
        rows = math.prod(len(values) for values in planner.swept.values())
        say(f"search over {rows} rows, at most {options.trials} cells; dry run: nothing was trained or recorded")
        return None
    check_folder(master)
    remove_leftovers(Path(base.outputs), base.study.name)
    experiment = prepare_tracking(base.tracking.uri, base.study.name)
    loop = SearchLoop(planner, options, base)
    trials: dict[Identity, WatchedTrial] = {}
    with running(launcher, master, options, base, ViewedTrials(trials), experiment) as rounds:
        outcomes = loop.run(rounds, lambda: trials.update(watched_trials(loop.plan)))
    printing.print_left_out(loop.plan)
    printing.print_search(loop.report())
    return summarise(loop.plan, outcomes) if loop.plan.trials else None


def check_folder(master: DictConfig) -> None:
    """Raise BbcuError if launchers cannot make the folder that Hydra gives to a sweep."""
    folder = str(master.hydra.sweep.dir)
    check_writable(Path(folder), f"hydra.sweep.dir={folder}")


def watched_trials(plan: Plan) -> dict[Identity, WatchedTrial]:
    """Return the trials of a plan as a view shows them."""
    names = names_in(plan)
    return {
        entry.identity: WatchedTrial(
            *(names[entry.identity], entry.config.train.steps if trains(entry.config) else 0, entry.folder),
            teacher=entry.teacher,
        )
        for entry in plan.trials
    }


@dataclass(frozen=True)
class ViewedTrials:
    """The trials that a view shows, to which a loop adds, and those that were done before it saw them.

    ``decisions`` returns what a stopping rule has decided so far.
    """

    trials: Mapping[Identity, WatchedTrial]
    done: Set[Identity] = frozenset()
    decisions: Callable[[], "Decisions"] | None = None


@contextlib.contextmanager
def running(
    launcher: Launcher, master: DictConfig, options: SweeperConfig, base: Config, shown: ViewedTrials, experiment: str
) -> Iterator[Rounds]:
    """Yield the rounds that run trials; handle signals, show progress, and keep MLflow up to date until the end."""
    outputs, study, session = Path(base.outputs), base.study.name, uuid.uuid4().hex[:12]
    view = LiveView(
        *(outputs, study, shown.trials, shown.done, base.progress), session=session, decisions=shown.decisions
    )
    connect(master)
    workers = Workers.of(launcher, master, base, session, silent=view.is_display)
    rounds = Rounds(workers, outputs, study, options.retries, base.tracking.silence_s)
    stopping.clear_request()
    record_states(outputs, study, base, experiment)
    try:
        with (
            stopping.handling_signals(stopping.marker_of(outputs, study, session), announce=not view.is_display),
            view,
            joblib_folder(outputs),
        ):
            rounds.on_poll = view.update
            yield rounds
    finally:
        remove_markers(outputs, study, session)
        log_missing(outputs, study, base.tracking.uri)
        record_states(outputs, study, base, experiment)


def record_states(outputs: Path, study: str, base: Config, experiment: str) -> None:
    """Log every trial's state to MLflow; an error is reported elsewhere."""
    try:
        log_states(outputs, study, base.tracking.uri, experiment)
    except Exception as error:
        log.debug("the states are not in MLflow: %s", first_line(error))


def log_missing(outputs: Path, study: str, uri: str) -> None:
    """Log what MLflow missed while it was unavailable; if it still is, print the command that does this later."""
    try:
        synchronise(outputs, study, uri)
    except Exception as error:
        log.warning("not everything is in MLflow: %s", first_line(error))
        log.warning(
            "when it is available again: python -m ablations sync %s --outputs %s --tracking-uri %s",
            study,
            outputs,
            uri,
        )


def states_on_disk(plan: Plan) -> dict[Identity, str]:
    """Return DONE for each trial with a usable result, and TO_TRAIN for the others.

    A result that lacks a latency is TO_MEASURE, and one that only lacks a metric of the user's TO_SCORE.
    Only cells that have a folder are read. Raises ConfigError if different code made results of these configs and
    ``on_change=stop``.
    """
    config = plan.trials[0].config
    folder = study_folder(Path(config.outputs), plan.study)
    started = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    states, changed = {}, {}
    for entry in plan.trials:
        result = entry.folder.result() if entry.identity[0] in started else None
        states[entry.identity] = TO_TRAIN if result is None else DONE
        if result is not None and lacks_metrics(result, entry.config):
            states[entry.identity] = TO_SCORE
        if result is not None and lacks_latency(result, entry.config):
            states[entry.identity] = TO_MEASURE
        if result is not None and (reason := why_stale(result, entry.trial, config.outputs)):
            changed[entry.identity] = f"{entry.trial.name} seed {entry.trial.seed}: {reason}"
    if changed and config.on_change == "stop":
        raise ConfigError(
            f"{len(changed)} of {len(plan.trials)} trials have a result that is out of date, such as "
            f"{next(iter(changed.values()))}; {HOW_TO_CHOOSE}"
        )
    if config.on_change == "retrain":
        states |= dict.fromkeys(changed, TO_TRAIN)
    return states


def summarise(plan: Plan, outcomes: Mapping[Identity, TrialOutcome]) -> float:
    """Print every trial's outcome and how to make the report; exit with status 1 if a trial has no result."""
    values, without = [], 0
    rows, baselines = [], set()
    names = names_in(plan)
    for entry in plan.trials:
        start = [names[entry.identity], str(entry.trial.seed)]
        result = entry.folder.result()
        if result is None:
            outcome = outcomes.get(entry.identity) or TrialOutcome(*present_state(entry.folder))
            # A pruned trial is complete as far as its search is concerned.
            without += outcome.state != State.PRUNED
            rows.append([*start, str(outcome.state), outcome.reason])
            continue
        if not entry.only_teaches:
            values.append(mean_psnr(result))
        baselines.add(printing.baseline_line(result))
        rows.append([*start, "done", f"{mean_psnr(result):.2f} dB" + ", dead" * bool(result.get("dead"))])
    printing.print_table(["cell", "seed", "state", "mean PSNR over test sets"], rows)
    for line in sorted(baselines):
        say(line)
    say(f"report: python -m analysis {plan.study}")
    number = stopping.received_signal()
    if number is not None and without:
        say(f"run.py: stopped; {without} of {len(plan.trials)} trials are left; {stopping.RESUME}")
        raise SystemExit(128 + number)
    if without:
        raise SystemExit(
            f"run.py: {without} of {len(plan.trials)} trials have no result; the results of the others are saved"
        )
    return statistics.fmean(values) if values else math.nan
