"""The sweep: plan every trial, train what is not done yet, and say what came of it.

The sweeper owns the loop; a launcher of Hydra runs the jobs, and each job is :func:`ablations.trial.run_trial`. What is
planned, done and failed is read from disk and from MLflow, never kept in a counter, so the same command can be given
again at any time.
"""

import logging
import os
import statistics
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from ablations import store
from ablations.config import Config, SweeperConfig
from ablations.plan import Identity, Plan, PlannedTrial, make_plan, names_of, plan_record
from ablations.space import SHOWN
from ablations.trial import BASELINE, Trial, baseline_label, network_of
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from bbcu.cost import Cost

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
    anything runs for what a user can mend.
    """
    if options.replicates < 1:
        raise ConfigError(f"hydra.sweeper.replicates={options.replicates}: must be at least 1")
    plan = make_plan(arguments, options, master, config_loader)
    base = plan.trials[0].config
    if options.dry_run:
        print_plan(plan, states_on_disk(plan))
        return None
    experiment = store.prepare_tracking(base.tracking.uri, plan.study)
    store.write_plan(Path(base.outputs), plan.study, plan_record(plan))
    states = states_of(plan, base.tracking.uri, experiment)
    print_left_out(plan)
    print_design(plan)
    pending = [entry for entry in plan.trials if states[entry.identity] == TO_TRAIN]
    announce(plan, states)
    if any(state == TO_LOG for state in states.values()):
        store.synchronise(Path(base.outputs), plan.study, base.tracking.uri)
    reasons = launch(pending, launcher, master, base)
    return conclude(plan, reasons)


# --- what is done already ---------------------------------------------------------------------------------------------


def states_on_disk(plan: Plan) -> dict[Identity, str]:
    """Whether each trial has a result; only cells that have a folder are looked into."""
    folder = store.study_folder(Path(plan.trials[0].config.outputs), plan.study)
    begun = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {
        entry.identity: DONE if entry.identity[0] in begun and entry.folder.result() is not None else TO_TRAIN
        for entry in plan.trials
    }


def states_of(plan: Plan, uri: str, experiment: str) -> dict[Identity, str]:
    """What is left to do for each trial: nothing, its records, or all of it."""
    recorded = store.finished_runs(uri, experiment)
    return {
        identity: TO_LOG if state == DONE and identity not in recorded else state
        for identity, state in states_on_disk(plan).items()
    }


# --- running ----------------------------------------------------------------------------------------------------------


def launch(
    pending: Sequence[PlannedTrial], launcher: Launcher, master: DictConfig, base: Config
) -> dict[Identity, str]:
    """Run the pending trials through the launcher; the reasons of those that failed.

    A launcher that gives up on the whole batch is no reason to lose the summary: what has a result has it on disk.
    """
    if not pending:
        return {}
    shared = side_by_side(master, base)
    try:
        returns = launcher.launch([[*entry.overrides, *shared] for entry in pending], initial_job_idx=0)
    except Exception as error:
        log.exception("the launcher gave up")
        return {entry.identity: f"the launcher gave up: {error}" for entry in pending}
    return {
        entry.identity: failure_reason(job)
        for entry, job in zip(pending, returns, strict=True)
        if job.status != JobStatus.COMPLETED
    }


def side_by_side(master: DictConfig, base: Config) -> list[str]:
    """What trials that run side by side are told: to share the cores, and not to draw their bars over one another.

    Together they must not ask for more threads than there are cores: waiting threads spin, and hold the others up.
    """
    jobs = OmegaConf.select(master, "hydra.launcher.n_jobs")
    if jobs is None or jobs == 1:
        return []
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // (cores if jobs < 1 else jobs))
    return [f"threads={threads}"] * (base.threads == "auto") + ["progress=false"] * (base.progress == "auto")


def failure_reason(job: JobReturn) -> str:
    """Why a job failed; its return value is looked at where it is kept, as asking for it raises it."""
    try:
        _ = job.return_value
    except Exception as error:
        return store.first_line(error)
    return "unknown"


def conclude(plan: Plan, reasons: Mapping[Identity, str]) -> float:
    """Print every trial's outcome and the way to the report; leave with status 1 where one has no result."""
    values, failed = [], 0
    rows = []
    names = names_of(plan)
    for entry in plan.trials:
        name = names[entry.identity]
        result = entry.folder.result()
        if result is None:
            failed += 1
            rows.append([name, str(entry.trial.seed), "failed", reasons.get(entry.identity, "no result")])
            continue
        psnr = statistics.fmean(scores["psnr_db"] for scores in result["metrics"].values())
        values.append(psnr)
        rows.append([name, str(entry.trial.seed), "done", f"{psnr:.2f} dB"])
    print_table(["cell", "seed", "state", "mean PSNR"], rows)
    print_baselines(plan)
    print(f"report: python -m analysis {plan.study}", flush=True)
    if failed:
        raise SystemExit(f"run.py: {failed} of {len(plan.trials)} trials have no result; the others are kept")
    return statistics.fmean(values)


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
    names = names_of(plan)
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
    from bbcu.cost import Cost, count

    if trial.cell.setting["network"]["name"] == BASELINE:
        return Cost(0, 0)
    return count(network_of(trial)).total


def print_baselines(plan: Plan) -> None:
    """Print what each test set scores without a network, for each task of the sweep."""
    printed = set()
    for entry in plan.trials:
        result = entry.folder.result()
        if result is not None:
            scores = result["baseline"].items()
            sets = (f"{name} {score['psnr_db']:.2f} dB / {score['ssim']:.4f}" for name, score in scores)
            printed.add(f"{result['task']}, {baseline_label(result)}: {', '.join(sets)}")
    for line in sorted(printed):
        print(line)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
