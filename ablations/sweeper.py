"""The sweep: plan every trial, train what is not done yet, and say what came of it.

The sweeper owns the loop; a launcher of Hydra runs the jobs, and each job is :func:`ablations.trial.run_trial`. What is
planned, done and failed is read from disk and from MLflow, never kept in a counter, so the same command can be given
again at any time.
"""

import dataclasses
import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from ablations import store
from ablations.config import Config, SweeperConfig, typed
from ablations.designs import full, replicated
from ablations.space import SHOWN, ImpossibleCell, canonical_levels, level_text
from ablations.trial import (
    BASELINE,
    Trial,
    baseline_label,
    check_network,
    check_runnable,
    data_of,
    frame_of,
    levels_of,
    network_of,
    setting_of,
    trial_of,
)
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from bbcu.cost import Cost

log = logging.getLogger(__name__)

Identity = tuple[str, int]
WHERE_AND_HOW = {"outputs", "tracking", "device", "threads", "progress", "evaluation.tile"}
"""The keys that are no part of a cell."""

DONE, TO_LOG, TO_TRAIN = "done", "to be logged", "to train"


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, the overrides that ask for it, and its config."""

    trial: Trial
    overrides: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> store.TrialFolder:
        return self.trial.folder(self.config.outputs)


@dataclass(frozen=True)
class LeftOut:
    """A combination that is not trained, and why not."""

    levels: Mapping[str, Any]
    setting: Mapping[str, Any]
    name: str
    reason: str


@dataclass
class Plan:
    """Every trial of a sweep, each once, and what was left out."""

    study: str
    trials: list[PlannedTrial] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


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
        print_plan(plan, {entry.trial.identity: state_on_disk(entry) for entry in plan.trials})
        return None
    experiment = store.prepare_tracking(base.tracking.uri, plan.study)
    store.write_plan(Path(base.outputs), plan.study, plan_record(plan))
    states = states_of(plan, base.tracking.uri, experiment)
    print_left_out(plan)
    pending = [entry for entry in plan.trials if states[entry.trial.identity] == TO_TRAIN]
    announce(plan, states)
    if any(state == TO_LOG for state in states.values()):
        store.synchronise(Path(base.outputs), plan.study, base.tracking.uri)
    reasons = launch(pending, launcher, master, base)
    return conclude(plan, reasons)


# --- planning ---------------------------------------------------------------------------------------------------------


def make_plan(
    arguments: Sequence[str], options: SweeperConfig, master: DictConfig, config_loader: ConfigLoader
) -> Plan:
    """Compose every combination, read the data it names, and keep one trial for each cell and seed."""
    overrides = OverridesParser.create(config_loader=config_loader).parse_overrides(
        [*(f"{key}={value}" for key, value in options.params.items()), *arguments]
    )
    rows = full(values_by_key(overrides))
    plan = Plan(study="")
    first_with: dict[Identity, Trial] = {}
    for replicate, row in replicated(rows, options.replicates):
        config = compose(master, config_loader, row, replicate)
        check_runnable(config)
        fingerprint = data_of(config).fingerprint
        try:
            trial = trial_of(config, fingerprint)
        except ImpossibleCell as error:
            leave_out(plan, config, fingerprint, f"impossible: {error}", replicate)
            continue
        if plan.study not in ("", trial.study):
            raise ConfigError(f"study.name: one sweep belongs to one study, not to {plan.study} and {trial.study}")
        plan.study = trial.study
        check_network(trial)
        same = first_with.setdefault(trial.identity, trial)
        if same is not trial:
            leave_out(plan, config, fingerprint, same_network_reason(config, same), replicate)
            continue
        own = (*row, f"seed={trial.seed}", f"hydra.sweep.subdir={trial.study}/{trial.cell.key}/seed{trial.seed}")
        plan.trials.append(PlannedTrial(trial, own, config))
    if not plan.trials:
        reasons = "; ".join(sorted({entry.reason for entry in plan.left_out}))
        raise ConfigError(f"no cell of this sweep can be trained: {reasons}")
    return plan


def values_by_key(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """Each key's values as texts, a single one where it is not swept; a later override of a key wins.

    Raises ConfigError for a sweep without a finite list of values.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [override.get_value_element_as_str()]
        elif {key, key.partition(".")[0]} & WHERE_AND_HOW:
            raise ConfigError(f"{key}: says where or how to run, so there is nothing to compare; give it one value")
        elif not override.is_discrete_sweep():
            raise ConfigError(f"{key}: an interval has no list of levels; use choice(...) or range(...)")
        else:
            values[key] = [str(value) for value in override.sweep_string_iterator()]
            if not values[key]:
                raise ConfigError(f"{key}={override.value()}: a glob finds the options of a group; list the levels")
    return values


def compose(master: DictConfig, config_loader: ConfigLoader, row: Sequence[str], replicate: int) -> Config:
    """The config of one combination under one replicate: its seed is the one asked for plus the replicate's number."""
    composed = config_loader.load_sweep_config(master, list(row))
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    config = typed(composed)
    config.seed += replicate
    return config


def leave_out(plan: Plan, config: Config, fingerprint: str, reason: str, replicate: int) -> None:
    """Note a combination that is not trained; once, not again under every replicate."""
    if replicate == 0:
        levels = levels_of(config)
        name = " ".join(f"{name}={level_text(level)}" for name, level in levels.items())
        plan.left_out.append(LeftOut(levels, setting_of(config, fingerprint), name, reason))


def same_network_reason(config: Config, same: Trial) -> str:
    """Why a combination is the network of a trial that is planned already."""
    reasons = canonical_levels(levels_of(config), frame_of(config)).reasons
    why = "; ".join(reasons) if reasons else "asked for twice"
    return f"the same network as {same.name} ({same.cell.key[:SHOWN]}): {why}"


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as ``plan.json`` keeps it."""
    return {
        "study": plan.study,
        "reference": plan.trials[0].trial.facts()["reference"],
        "trials": [entry.trial.facts() for entry in plan.trials],
        "left_out": [dataclasses.asdict(entry) for entry in plan.left_out],
    }


# --- what is done already ---------------------------------------------------------------------------------------------


def state_on_disk(entry: PlannedTrial) -> str:
    return TO_TRAIN if entry.folder.result() is None else DONE


def states_of(plan: Plan, uri: str, experiment: str) -> dict[Identity, str]:
    """What is left to do for each trial: nothing, its records, or all of it."""
    recorded = store.finished_runs(uri, experiment)
    states = {}
    for entry in plan.trials:
        state = state_on_disk(entry)
        if state == DONE and entry.trial.identity not in recorded:
            state = TO_LOG
        states[entry.trial.identity] = state
    return states


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
        return {entry.trial.identity: f"the launcher gave up: {error}" for entry in pending}
    return {
        entry.trial.identity: failure_reason(job)
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
        name = names[entry.trial.identity]
        result = entry.folder.result()
        if result is None:
            failed += 1
            rows.append([name, str(entry.trial.seed), "failed", reasons.get(entry.trial.identity, "no result")])
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
    cells = len({entry.trial.cell.key for entry in plan.trials})
    what = f"{to_train} to train" if to_train else "nothing to train"
    print(f"study {plan.study}: {cells} cells, {len(plan.trials)} trials, {done} done already, {what}", flush=True)


def names_of(plan: Plan) -> dict[Identity, str]:
    """What each trial is called: its cell's name, and what tells the settings of the sweep apart, the task first."""
    settings = [store.flatten(entry.trial.cell.setting) for entry in plan.trials]
    keys = sorted({key for setting in settings for key in setting}, key=lambda key: (key != "task.name", key))
    told: list[str] = []
    for key in keys:
        if _kinds(settings, [*told, key]) > _kinds(settings, told):
            told.append(key)
    return {
        entry.trial.identity: " ".join(
            [entry.trial.name, *(f"{key}={level_text(setting[key])}" for key in told if key in setting)]
        )
        for entry, setting in zip(plan.trials, settings, strict=True)
    }


def _kinds(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    """How many settings these keys tell apart."""
    return len({tuple(str(setting.get(key)) for key in keys) for setting in settings})


def print_left_out(plan: Plan) -> None:
    for entry in plan.left_out:
        print(f"left out: {entry.name}: {entry.reason}")


def print_plan(plan: Plan, states: Mapping[Identity, str]) -> None:
    """List the trials of a dry run with their cost; nothing is trained or recorded."""
    costs: dict[str, Cost] = {}
    names = names_of(plan)
    rows = []
    for entry in plan.trials:
        trial = entry.trial
        cost = costs.setdefault(trial.cell.key, cost_of(trial))
        ops, params = cost.printed_ops_g, f"{cost.params_k:.1f}"
        rows.append(
            [trial.cell.key[:SHOWN], names[trial.identity], str(trial.seed), states[trial.identity], ops, params]
        )
    print_table(["cell", "levels", "seed", "state", "OPs (G)", "params (K)"], rows)
    print_left_out(plan)
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
