"""The sweep: plan every trial, train what is not done yet, and say what came of it.

The sweeper owns the loop; a launcher of Hydra runs the jobs, and each job is
:func:`ablations.trial.execution.run_trial`. What is planned, done and failed is read from disk and from MLflow, never
kept in a counter, so the same command can be given again at any time, and by several people at once.
"""

import contextlib
import logging
import math
import statistics
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from ablations.config import Config, SweeperConfig
from ablations.planning.plan import Plan, RowPlanner, make_plan, plan_record
from ablations.space.factors import SHOWN
from ablations.storage import stopping
from ablations.storage.attempts import State, present_state
from ablations.storage.files import first_line
from ablations.storage.folder import Identity, mean_psnr, study_folder, trial_folders
from ablations.storage.memory import without_collecting
from ablations.storage.plans import trial_names, write_plan
from ablations.sweep.rounds import Outcome, Rounds, Workers, clear_signs
from ablations.tracking.client import finished_runs, prepare_tracking
from ablations.tracking.sync import end_abandoned, log_states, synchronise
from ablations.trial.changes import HOW_TO_CHOOSE, EarlierPictures, is_of_other_code, made_by_other_code
from ablations.trial.identity import BASELINE, Trial, baseline_label, network_of, trains
from ablations.watching.live import LiveView, WatchedTrial
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from bbcu.model.cost import Cost

log = logging.getLogger(__name__)

DONE, TO_LOG, TO_TRAIN = "done", "to be logged", "to train"


def sweep(
    arguments: Sequence[str],
    options: SweeperConfig,
    master: DictConfig,
    config_loader: ConfigLoader,
    launcher: Launcher,
) -> float | None:
    """Run a sweep; the mean PSNR over its trials in dB, or None where nothing was to be trained in a dry run.

    Raises SystemExit with status 1, after everything else has run, when a trial has no result, and BbcuError before
    anything runs for what a user can mend. A sweep that is asked to stop leaves with the status of the signal.
    """
    if options.replicates < 1:
        raise ConfigError(f"hydra.sweeper.replicates={options.replicates}: must be at least 1")
    if options.retries < 0:
        raise ConfigError(f"hydra.sweeper.retries={options.retries}: must be at least 0")
    if options.design == "search":
        return search(arguments, options, master, config_loader, launcher)
    with without_collecting():
        plan = make_plan(arguments, options, master, config_loader)
        base = plan.trials[0].config
        found = on_disk(plan)
        if options.dry_run:
            print_plan(plan, found)
            return None
    outputs, uri = Path(base.outputs), base.tracking.uri
    if base.on_change != "retrain":
        EarlierPictures(outputs, plan.study).refuse_others(entry.trial for entry in plan.trials)
    experiment = prepare_tracking(uri, plan.study)
    write_plan(outputs, plan.study, plan_record(plan))
    left = with_records(found, uri, experiment)
    print_left_out(plan)
    print_design(plan)
    announce(plan, left)
    if any(state == TO_LOG for state in left.values()):
        synchronise(outputs, plan.study, uri)
    pending = [entry for entry in plan.trials if left[entry.identity] == TO_TRAIN]
    outcomes: Mapping[Identity, Outcome] = {}
    if pending:
        done = {identity for identity, state in left.items() if state != TO_TRAIN}
        with running(launcher, master, options, base, Shown(watched(plan), done), experiment) as rounds:
            outcomes = rounds.run(pending)
    return conclude(plan, outcomes)


def search(
    arguments: Sequence[str],
    options: SweeperConfig,
    master: DictConfig,
    config_loader: ConfigLoader,
    launcher: Launcher,
) -> float | None:
    """Run a sweep whose cells a search chooses; as :func:`sweep` otherwise."""
    from ablations.sweep.search_loop import SearchLoop

    planner = RowPlanner(arguments, options, master, config_loader)
    base = planner.base()
    if options.dry_run:
        rows = math.prod(len(values) for values in planner.swept.values())
        print(f"search over {rows} rows, at most {options.trials} cells; dry run: nothing was trained or recorded")
        return None
    experiment = prepare_tracking(base.tracking.uri, base.study.name)
    loop = SearchLoop(planner, options, base)
    shown: dict[Identity, WatchedTrial] = {}
    with running(launcher, master, options, base, Shown(shown), experiment) as rounds:
        outcomes = loop.run(rounds, lambda: shown.update(watched(loop.plan)))
    print_left_out(loop.plan)
    print_found(loop.found())
    return conclude(loop.plan, outcomes) if loop.plan.trials else None


def names_in(plan: Plan) -> dict[Identity, str]:
    """Name each trial of a plan as ``python -m ablations status`` does."""
    return trial_names((entry.identity, entry.trial.name, entry.trial.cell.setting) for entry in plan.trials)


def watched(plan: Plan) -> dict[Identity, WatchedTrial]:
    """The trials of a plan as a view shows them."""
    names = names_in(plan)
    return {
        entry.identity: WatchedTrial(
            names[entry.identity], entry.config.train.steps if trains(entry.config) else 0, entry.folder
        )
        for entry in plan.trials
    }


@dataclass(frozen=True)
class Shown:
    """What a view of the sweep shows: its trials, which may become more, and those that were done before."""

    trials: Mapping[Identity, WatchedTrial]
    done: Set[Identity] = frozenset()


@contextlib.contextmanager
def running(
    launcher: Launcher, master: DictConfig, options: SweeperConfig, base: Config, shown: Shown, experiment: str
) -> Iterator[Rounds]:
    """Give the rounds to run trials in, with all that goes on beside them: signals, the view, and MLflow's overview."""
    outputs, study, session = Path(base.outputs), base.study.name, uuid.uuid4().hex[:12]
    view = LiveView(outputs, study, shown.trials, shown.done, base.progress, session=session)
    workers = Workers.of(launcher, master, base, session, silent=view.is_display)
    rounds = Rounds(workers, outputs, study, options.retries, base.tracking.silence_s)
    stopping.forget()
    record_states(outputs, study, base, experiment)
    try:
        with (
            stopping.listening(stopping.marker_of(outputs, study, session), tell=not view.is_display),
            view,
        ):
            rounds.look = view.update
            yield rounds
    finally:
        clear_signs(outputs, study, session)
        catch_up(outputs, study, base.tracking.uri, experiment)
        record_states(outputs, study, base, experiment)


def record_states(outputs: Path, study: str, base: Config, experiment: str) -> None:
    """Tell MLflow of every trial's state; that it does not answer is said elsewhere."""
    try:
        log_states(outputs, study, base.tracking.uri, experiment)
    except Exception as error:
        log.debug("the states are not in MLflow: %s", first_line(error))


def catch_up(outputs: Path, study: str, uri: str, experiment: str) -> None:
    """Log what MLflow missed while it was away, and end the runs of killed workers; or say how to do that later."""
    try:
        known = finished_runs(uri, experiment)
        missing = [
            folder
            for folder in trial_folders(outputs, study)
            if (folder.cell, folder.seed) not in known and folder.result_path.exists()
        ]
        if missing:
            synchronise(outputs, study, uri)
        else:
            end_abandoned(outputs, study, uri, experiment)
    except Exception as error:
        log.warning("MLflow at %s does not answer (%s)", uri, first_line(error))
        log.warning("when it is back: python -m ablations sync %s --outputs %s --tracking-uri %s", study, outputs, uri)


# --- what is done already ---------------------------------------------------------------------------------------------


def on_disk(plan: Plan) -> dict[Identity, str]:
    """Whether each trial has a result that counts; only cells that have a folder are looked into.

    Raises ConfigError where other code has made results of these very configs and the user has not said what to do.
    """
    config = plan.trials[0].config
    folder = study_folder(Path(config.outputs), plan.study)
    begun = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found, changed = {}, []
    for entry in plan.trials:
        result = entry.folder.result() if entry.identity[0] in begun else None
        found[entry.identity] = TO_TRAIN if result is None else DONE
        if result is not None and is_of_other_code(result, entry.trial):
            changed.append((entry, result))
    if changed and config.on_change == "stop":
        entry, result = changed[0]
        raise ConfigError(
            f"{len(changed)} of {len(plan.trials)} trials have a result of other code, as {entry.trial.name} seed "
            f"{entry.trial.seed}: {made_by_other_code(result, entry.trial)}; {HOW_TO_CHOOSE}"
        )
    if config.on_change == "retrain":
        found |= {entry.identity: TO_TRAIN for entry, _ in changed}
    return found


def with_records(found: Mapping[Identity, str], uri: str, experiment: str) -> dict[Identity, str]:
    """What is left to do for each trial: nothing, its records, or all of it."""
    recorded = finished_runs(uri, experiment)
    return {
        identity: TO_LOG if state == DONE and identity not in recorded else state for identity, state in found.items()
    }


# --- what came of it --------------------------------------------------------------------------------------------------


def conclude(plan: Plan, outcomes: Mapping[Identity, Outcome]) -> float:
    """Print every trial's outcome and the way to the report; leave with status 1 where one has no result."""
    values, without = [], 0
    rows, baselines = [], set()
    names = names_in(plan)
    for entry in plan.trials:
        name = names[entry.identity]
        result = entry.folder.result()
        if result is None:
            outcome = outcomes.get(entry.identity) or Outcome(*present_state(entry.folder))
            # A search has ended those that it prunes.
            without += outcome.state != State.PRUNED
            rows.append([name, str(entry.trial.seed), str(outcome.state), outcome.reason])
            continue
        psnr = mean_psnr(result)
        values.append(psnr)
        baselines.add(baseline_line(result))
        rows.append([name, str(entry.trial.seed), "done", f"{psnr:.2f} dB" + ", dead" * bool(result.get("dead"))])
    print_table(["cell", "seed", "state", "mean PSNR"], rows)
    for line in sorted(baselines):
        print(line)
    print(f"report: python -m analysis {plan.study}", flush=True)
    number = stopping.asked_by()
    if number is not None and without:
        print(
            f"run.py: stopped; {without} of {len(plan.trials)} trials are left, and the same command goes on from there"
        )
        raise SystemExit(128 + number)
    if without:
        raise SystemExit(f"run.py: {without} of {len(plan.trials)} trials have no result; the others are kept")
    return statistics.fmean(values) if values else math.nan


# --- what a user sees -------------------------------------------------------------------------------------------------


def announce(plan: Plan, states: Mapping[Identity, str]) -> None:
    """Say how much there is and how much of it is to be done."""
    to_train = sum(state == TO_TRAIN for state in states.values())
    done = len(states) - to_train
    cells = len({entry.identity[0] for entry in plan.trials})
    what = f"{to_train} to train" if to_train else "nothing to train"
    print(f"study {plan.study}: {cells} cells, {len(plan.trials)} trials, {done} done already, {what}", flush=True)


def print_left_out(plan: Plan) -> None:
    for entry in plan.left_out:
        print(f"left out: {entry.name}: {entry.reason}")


def print_design(plan: Plan) -> None:
    """Say what the design cannot tell, and which conditions may be mistyped; nothing for a plain full factorial."""
    for note in plan.design["notes"]:
        print(f"design {plan.design['name']}: {note}")
    for condition in plan.idle:
        print(f'hydra.sweeper.exclude: "{condition}" left nothing out')


def print_plan(plan: Plan, states: Mapping[Identity, str]) -> None:
    """List the trials of a dry run with their cost; nothing is trained or recorded."""
    costs: dict[Hashable, Cost] = {}
    names = names_in(plan)
    rows = []
    for entry in plan.trials:
        if entry.structure not in costs:
            costs[entry.structure] = cost_of(entry.trial)
        cost = costs[entry.structure]
        key, seed = entry.identity
        price = (cost.printed_ops_g, f"{cost.params_k:.1f}")
        rows.append([key[:SHOWN], names[entry.identity], str(seed), states[entry.identity], *price])
    print_table(["cell", "levels", "seed", "state", "OPs (G)", "params (K)"], rows)
    print_left_out(plan)
    print_design(plan)
    announce(plan, states)
    print("dry run: nothing was trained or recorded", flush=True)


def cost_of(trial: Trial) -> "Cost":
    from bbcu.model.cost import Cost, count

    if trial.cell.setting["network"]["name"] == BASELINE:
        return Cost(0, 0)
    return count(network_of(trial, drawn=False)).total


def baseline_line(result: Mapping[str, Any]) -> str:
    """What each test set of a result scores without a network."""
    scores = result["baseline"].items()
    sets = (f"{name} {score['psnr_db']:.2f} dB / {score['ssim']:.4f}" for name, score in scores)
    return f"{result['task']}, {baseline_label(result)}: {', '.join(sets)}"


def print_found(found: Mapping[str, Any]) -> None:
    """Print the best cell of a search, or its front."""
    records = found["front"] if "front" in found else [found["best"]] if found["best"] else []
    rows = [
        [
            " ".join(text for text in record["row"] if text.partition("=")[0] in found["keys"]),
            *(f"{record['values'][name]:.4g}" for name in found["objectives"]),
        ]
        for record in records
    ]
    print_table(["front" if "front" in found else "best cell", *found["objectives"]], rows)
    print("its score is flattered by the choice: train it again under new seeds before anything is said of it")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
