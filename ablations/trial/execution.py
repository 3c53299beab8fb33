"""From a trial to its result: train, evaluate and record one cell under one seed, however that ends."""

import contextlib
import dataclasses
import functools
import io
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.config import Config, as_yaml
from ablations.space.cells import canonical_levels
from ablations.space.factors import SHOWN
from ablations.storage import stopping
from ablations.storage.attempts import State, begin_attempt, end_attempt, record_failure, update_attempt
from ablations.storage.folder import TrialFolder, mean_psnr
from ablations.storage.lease import HeldLease, LeaseLost, TrialBusy, trial_lock
from ablations.storage.leftovers import cache_folder, remove_leftovers, remove_leftovers_of
from ablations.storage.pruning import PruningClient, TrialPruned
from ablations.storage.snapshots import Snapshots
from ablations.tracking.client import experiment_id, is_finished, prepare_tracking
from ablations.tracking.runs import TrialRun, facts_of
from ablations.tracking.sync import log_from_disk
from ablations.trial.changes import is_reusable, own_parts_of
from ablations.trial.data import data_of
from ablations.trial.devices import device_for
from ablations.trial.energy import EnergyMeter, counters
from ablations.trial.footprint import check_fits, forget_peaks, peaks, release
from ablations.trial.identity import (
    Trial,
    backbone_of,
    baseline_label,
    check_network,
    check_runnable,
    meta_network,
    network_of,
    setting_of,
    trains,
    trial_of,
)
from ablations.trial.latency import lacks_latency, measured
from ablations.trial.own_metrics import lacks_metrics, scored
from ablations.trial.provenance import provenance
from ablations.trial.teachers import config_of_teacher, setting_of_teacher
from bbcu.errors import BbcuError, ConfigError, first_line
from bbcu.files import replacing, write_atomically
from bbcu.passwords import masked

if TYPE_CHECKING:
    from torch import nn

    from bbcu.data.pairs import PreparedData
    from bbcu.model.cost import Cost
    from bbcu.training.loop import StepReport

log = logging.getLogger(__name__)

TIMINGS = ("train_s", "step_ms", "start_s", "evaluate_s", "probe_s", "record_s", "total_s")
"""The keys of ``timing``, in seconds except for the median step, which is in milliseconds.

``start_s``, a part of ``train_s``, is the time of the first step above the median: compilation, mostly. ``record_s`` is
spent on MLflow before the result is written; ``total_s`` starts with the building of the network and ends there.
Optional keys: ``teacher_s``, the ``train_s`` of the trial's teacher, which is in none of the others; ``energy_j``, the
energy of the processors during an uninterrupted training, in joules, if they count it;
``peak_mib``, the peak memory of the process, if the system reports it; ``gpu_peak_mib``, ``gpu_reserved_mib`` and
``gpu_mib``, the memory of the GPU that tensors took, that PyTorch reserved for them, and that the GPU has;
``measure_s``, spent on measuring the latency afterwards.
"""


WAIT_SECONDS = 0.5
"""How often a single run looks whether a teacher that another process trains is free."""


class TrialFailed(BbcuError):
    """The trial ended without a result; the message is the reason."""


class TrialOutOfMemory(TrialFailed):
    """The GPU had too little memory left; the trial may succeed where fewer run at once."""


class TrialHopeless(TrialFailed):
    """The trial would fail in the same way at every retry, for instance because its loss diverges."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """A trial that this process runs: its config, data, folder and lease, and the signal to stop."""

    config: Config
    trial: Trial
    data: "PreparedData"
    folder: TrialFolder
    lease: HeldLease
    stop: stopping.StopSign

    @property
    def title(self) -> str:
        return f"{self.trial.name} seed {self.trial.seed}"


def run_trial(config: Config, *, in_sweep: bool = False) -> float:
    """Train, evaluate and record the trial of ``config`` unless it has a result; return its mean PSNR in dB.

    A teacher without a result is trained before it, as a trial of its own.
    A trial that was interrupted resumes from its newest snapshot. One that finished without the latency that the config
    asks for is measured from its checkpoint, and nothing is trained. In a sweep the parent has prepared the tracking
    store and reports the results. Raises TrialFailed if the training fails, TrialBusy if another process runs the
    trial, Interrupted if it was asked to stop, TrialPruned if its search ended it, and BbcuError for a mistake of the
    user.
    """
    # Torch and MLflow take seconds to import, and a single trial prepares its tracking store: not for a mistyped level.
    canonical_levels(config.levels, backbone_of(config))

    from bbcu.compiled import use_cache

    marker = stopping.marker_of(Path(config.outputs), config.study.name, config.session) if config.session else None
    with stopping.handling_signals_for_trial(marker, for_good=in_sweep) as stop:
        stop.check()
        # First of all: torch chooses its cache folder as soon as any part of its compiler is imported.
        use_cache(cache_folder(Path(config.outputs)) / "compiled")
        if not in_sweep:
            remove_leftovers(Path(config.outputs), config.study.name)
        return mean_psnr(_result_of(config, experiment_of(config, in_sweep=in_sweep), stop, in_sweep=in_sweep))


def _result_of(config: Config, experiment: str | None, stop: stopping.StopSign, *, in_sweep: bool) -> dict[str, Any]:
    """Return the result of the trial of ``config``, which is trained unless it has one, after its teacher."""
    from bbcu.training.loop import resolve_device

    check_runnable(config)
    data = data_of(config)
    trial = trial_of(config, setting_of(config, data.fingerprint))
    network = check_network(trial)
    if network is not None:
        check_fits(config, network, resolve_device(config.device))
    folder = trial.folder(config.outputs)
    present = folder.result()
    is_done = present is not None and is_reusable(present, config, trial)
    if network is not None and not is_done:
        _check_tiles(config, trial, network, data)
    if trial.teacher is not None and not is_done:
        _train_teacher(config, trial, experiment, stop, in_sweep=in_sweep)
    steps = config.train.steps if trains(config) else 0
    with trial_lock(folder, trial.name, session=config.session, steps=steps) as lease:
        # Another process may have finished the trial while this one waited for the lease.
        result = folder.result()
        execution = Execution(config, trial, data, folder, lease, stop)
        if result is not None and is_reusable(result, config, trial):
            log.info("%s has a result already; nothing is trained", execution.title)
            before = result
            if lacks_latency(result, config) or lacks_metrics(result, config):
                with _log_file(folder):
                    result = _completed(execution, result)
            is_new = result is not before
            if experiment and (is_new or not is_finished(config.tracking.uri, experiment, *trial.identity)):
                log_from_disk(folder, config.tracking.uri, experiment)
        else:
            result = _execute(execution, experiment, in_sweep=in_sweep)
    if in_sweep:
        seconds = result["timing"]["total_s"]
        log.info("%s seed %d: %.2f dB after %.0f s", trial.name, trial.seed, mean_psnr(result), seconds)
    else:
        log.info("%s", summary(result, folder))
    return result


def _check_tiles(config: Config, trial: Trial, network: "nn.Module", data: "PreparedData") -> None:
    """Raise TrialHopeless if a test picture would be cut into tiles and the network cannot be run on one.

    Before, it records that the trial has failed for this reason.
    """
    from bbcu.training.evaluation import radius_of

    tile, inputs = config.evaluation.tile, (pair.input for pairs in data.test.values() for pair in pairs)
    if not tile or all(max(picture.shape[:2]) <= tile for picture in inputs):
        return
    try:
        radius_of(network)
    except ConfigError as error:
        record_failure(trial.folder(config.outputs), trial.name, str(error))
        raise TrialHopeless(f"{trial.name} seed {trial.seed} failed: {error}") from error


def _train_teacher(
    config: Config, trial: Trial, experiment: str | None, stop: stopping.StopSign, *, in_sweep: bool
) -> None:
    """Train the teacher of a trial unless it has a result.

    A single run waits for a teacher that another process trains; a sweep tries again later. Raises TrialFailed if there
    is no teacher in the end, after recording that the trial has failed for this reason.
    """
    waits = False
    while True:
        try:
            _result_of(config_of_teacher(config), experiment, stop, in_sweep=in_sweep)
        except TrialBusy as error:
            if in_sweep:
                raise
            if not waits:
                log.info("%s seed %d waits for its teacher: %s", trial.name, trial.seed, error)
            waits = True
            stop.check()
            time.sleep(WAIT_SECONDS)
        except TrialFailed as error:
            reason = f"its teacher failed: {error}"
            record_failure(trial.folder(config.outputs), trial.name, reason)
            raise type(error)(f"{trial.name} seed {trial.seed} failed: {reason}") from error
        else:
            return


def experiment_of(config: Config, *, in_sweep: bool) -> str | None:
    """The id of the study's MLflow experiment, which is created unless a sweep has done so.

    None, with a warning, if the server stopped answering after the sweep began.
    """
    uri, study = config.tracking.uri, config.study.name
    if not in_sweep:
        return prepare_tracking(uri, study)
    try:
        return experiment_id(uri, study)
    except Exception as error:
        log.warning("%s; the records wait on disk", first_line(error))
        return None


def summary(result: Mapping[str, Any], folder: TrialFolder) -> str:
    """A result in a few lines: each test set beside its baseline, cost, time and folder.

    The folder is a pattern that a shell expands, since a key of 64 digits says no more than its beginning.
    """
    lines = [f"{result['name']}, seed {result['seed']}, evaluated after the last step:"]
    for name, scores in result["metrics"].items():
        baseline = result["baseline"][name]
        gain = scores["psnr_db"] - baseline["psnr_db"]
        lines.append(
            f"  {name}: PSNR {scores['psnr_db']:.2f} dB, SSIM {scores['ssim']:.4f}; "
            f"{baseline_label(result)} {baseline['psnr_db']:.2f} dB, {baseline['ssim']:.4f}; gain {gain:+.2f} dB"
        )
    cost, timing = result["cost"], result["timing"]
    counted = f"{cost['ops_g']:.2f} G operations, {cost['params_k']:.1f} K parameters"
    clock = ""
    if "latency_ms" in cost:
        ratio = f", {cost['latency_ratio']:.2g} of the full-precision twin" if "latency_ratio" in cost else ""
        packed = f", packed {cost['packed_kb']:.0f} kB" if "packed_kb" in cost else ""
        clock = f"; {cost['latency_ms']:.3g} ms{ratio}{packed}"
    lines.append(f"  cost: {counted}{clock}")
    memory = f", peak memory {timing['peak_mib']:.0f} MiB" if "peak_mib" in timing else ""
    training = f"{timing['train_s']:.1f} s of training ({timing['step_ms']:.0f} ms a step)"
    if "teacher_s" in timing:
        training += f" after {timing['teacher_s']:.1f} s of its teacher's"
    lines.append(f"  time: {timing['total_s']:.1f} s, {training}{memory}")
    lines.append(f"  folder: {folder.path.parent.parent}/{folder.cell[:SHOWN]}*/{folder.path.name}")
    return "\n".join(lines)


# --- one attempt ------------------------------------------------------------------------------------------------------


def _execute(execution: Execution, experiment: str | None, *, in_sweep: bool) -> dict[str, Any]:
    """Claim a device, run the trial once, and record how it ended, on disk and in MLflow."""
    claims = cache_folder(Path(execution.config.outputs)) / "devices"
    with (
        device_for(execution.config.device, claims) as device,
        _threads(execution.config.threads) as threads,
        _log_file(execution.folder),
    ):
        execution = dataclasses.replace(execution, config=dataclasses.replace(execution.config, device=device))
        try:
            return _attempt(execution, experiment, threads, in_sweep=in_sweep)
        finally:
            release(device)


def _attempt(execution: Execution, experiment: str | None, threads: int, *, in_sweep: bool) -> dict[str, Any]:
    config, trial, folder = execution.config, execution.trial, execution.folder
    remove_leftovers_of(folder)
    begin_attempt(folder)
    execution.lease.heartbeat(now=True)
    origin = provenance(device_name(config), threads, trial.seed, own_parts_of(trial))
    facts = facts_of({**trial.facts(), "provenance": origin}, folder, dataclasses.asdict(config.data))
    run = TrialRun(config.tracking.uri, experiment, facts)

    def end(state: State, reason: str, **reached: Any) -> None:
        # On a full disk even this may fail; the next process to look sees that nobody holds the lease.
        with contextlib.suppress(OSError):
            end_attempt(folder, state, reason, **reached)
        run.close_without_result(folder, state, reason)

    try:
        write_atomically(folder.config_path, as_yaml(config))
        train = functools.partial(_train, execution, run, origin, in_sweep=in_sweep)
        found = train() if trains(config) else _score_baseline(execution)
        result = {**found, "provenance": {**origin, **found.get("provenance", {})}}
        execution.lease.check()
        folder.write_result(result)
        end_attempt(folder, State.FINISHED)
    except KeyboardInterrupt:
        end(State.INTERRUPTED, "stopped at once from the keyboard")
        raise
    except LeaseLost:
        # Another process has the trial now, and its folder with it.
        raise
    except stopping.Interrupted as error:
        end(State.INTERRUPTED, str(error))
        raise
    except TrialPruned as error:
        end(State.PRUNED, str(error), step=error.step, psnr_db=error.psnr_db)
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, BbcuError) else masked(f"{type(error).__name__}: {error}")
        log.debug("the trial failed", exc_info=True)
        end(State.FAILED, reason)
        raise failure_of(error)(f"{execution.title} failed: {reason}; see {folder.log_path}") from error
    # Before the run is closed: nobody looks at a trial again once MLflow has it as finished.
    Snapshots(folder.snapshots, {}).clear()
    result = _completed(execution, result)
    run.finish(folder, result)
    return result


def failure_of(error: Exception) -> type[TrialFailed]:
    """The kind of failure that an error during a trial is."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return TrialOutOfMemory
    return TrialHopeless if isinstance(error, BbcuError) else TrialFailed


def _train(execution: Execution, run: TrialRun, origin: Mapping[str, Any], *, in_sweep: bool) -> dict[str, Any]:
    """Train and evaluate; the result without its provenance. Everything but ``result.json`` is on disk afterwards."""
    import torch

    from ablations.trial.recorder import Links, Recorder
    from ablations.trial.samples import save_samples
    from bbcu.model.cost import count
    from bbcu.model.records import OF_TRAINING
    from bbcu.training.evaluation import mean_record, score_record
    from bbcu.training.loop import resolve_device
    from bbcu.training.preparation import prepare_training
    from bbcu.training.probes import dead_body, probe, probed_inputs
    from bbcu.training.settings import TrainSettings

    config, trial, data, folder = execution.config, execution.trial, execution.data, execution.folder

    # --- the network and its training ---------------------------------------------------------------------------------
    began = time.perf_counter()
    device = resolve_device(config.device)
    forget_peaks(device)
    cost = count(meta_network(trial)).total
    given = {**dataclasses.asdict(config.train), **{name: trial.cell.factors[name] for name in OF_TRAINING}}
    settings = TrainSettings(**given, trainings=config.trainings)
    teacher = None if trial.teacher is None else load_teacher(execution)
    training = prepare_training(
        lambda: network_of(trial), data, settings, trial.seed, device, None if teacher is None else teacher.network
    )
    network = training.network
    start = {name: value.to("cpu", copy=True) for name, value in network.state_dict().items()}
    # In a sweep every trial would print the same lines; they are in its log.
    level = logging.DEBUG if in_sweep else logging.INFO
    log.log(level, "%s: %d steps on %s", execution.title, settings.steps, device)
    for reason in training.plan.reasons:
        log.log(level, "%s", reason)

    # --- training, from the first step or from a snapshot -------------------------------------------------------------
    lesson = {} if teacher is None else {"teacher": teacher.record}
    snapshots = Snapshots(folder.snapshots, {"cell": trial.cell.key, "seed": trial.seed, **lesson, **resumable(origin)})
    links = Links(execution.lease, run, snapshots, execution.stop, PruningClient(folder, config.session))
    recorder = Recorder(config, execution.title, data, training, links)
    earlier = snapshots.newest(device)
    if earlier is not None:
        training.load_state_dict(earlier["training"])
        recorder.resume(earlier["recorder"])
        update_attempt(folder, from_step=training.step)
        log.info("%s: resumed after step %d", execution.title, training.step)
    # The energy of an earlier attempt is unknown, and that of a GPU is not counted.
    meter = EnergyMeter(counters() if device.type == "cpu" and earlier is None else [])

    def on_step(report: "StepReport") -> None:
        meter.look()
        recorder(report)

    with recorder.progress:
        training.run(on_step)
    joules = meter.joules()

    # --- the result is that of the last step, not of the best ---------------------------------------------------------
    execution.lease.heartbeat(now=True, phase="probing")
    probing = time.perf_counter()
    probes = probe(network, probed_inputs(data.test, config.tracking.samples), start, device)
    dead = dead_body(network, probed_inputs(data.test, config.tracking.samples), device)
    if dead is not None:
        log.warning("%s: %s", execution.title, dead)
    probe_seconds = time.perf_counter() - probing
    execution.lease.heartbeat(now=True, phase="recording")
    folder.write_curve(recorder.points)
    # Into memory first: torch writes the name of a file into it, and equal networks should make equal files.
    content = io.BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, content)
    with replacing(folder.checkpoint_path) as temporary:
        temporary.write_bytes(content.getvalue())
    save_samples(folder.samples, data, recorder.samples)
    return {
        **trial.facts(),
        **lesson,
        "metrics": {name: score_record(scores) for name, scores in recorder.scores.items()},
        "baseline": {name: mean_record(scores) for name, scores in data.baseline.items()},
        "cost": _cost_record(cost),
        "timing": {
            "train_s": round(sum(training.seconds), 3),
            "step_ms": round(1e3 * statistics.median(training.seconds), 3),
            "start_s": round(training.starting_seconds, 3),
            "evaluate_s": round(recorder.evaluate_seconds, 3),
            "probe_s": round(probe_seconds, 3),
            "record_s": round(run.seconds, 3),
            "total_s": round(time.perf_counter() - began, 3),
            **({} if joules is None else {"energy_j": round(joules, 1)}),
            **({} if teacher is None else {"teacher_s": teacher.seconds}),
            **peaks(device),
        },
        "dead": dead,
        "probes": probes,
        "provenance": {
            "compiled": training.plan.compiles,
            "cuda_graph": training.plan.replays,
            "int8": training.plan.signs == "int8",
            "native": training.plan.signs == "native",
        },
    }


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The trained network that teaches a trial, in evaluation mode, and the seconds that its training took.

    ``record`` identifies it: the cell, the seed and the SHA-256 of its checkpoint.
    """

    network: "nn.Module"
    record: Mapping[str, Any]
    seconds: float


def load_teacher(execution: Execution) -> Teacher:
    """Load the teacher of a trial from its folder, onto the trial's device.

    Raises DamagedFile for a checkpoint that its result was not written with, and TrialFailed without a result.
    """
    import torch

    from bbcu.training.loop import resolve_device

    config, trial = execution.config, execution.trial
    folder = trial.teacher_folder(config.outputs)
    assert folder is not None
    result = folder.result()
    if result is None:
        raise TrialFailed(f"its teacher has lost its result: {folder.result_path}")
    folder.check_checkpoint()
    taught_by = trial_of(config_of_teacher(config), setting_of_teacher(trial.cell.setting))
    network = network_of(taught_by)
    network.load_state_dict(torch.load(folder.checkpoint_path, map_location="cpu", weights_only=True))
    record = {"cell": folder.cell, "seed": folder.seed, "checkpoint": folder.checkpoint_checksum()}
    return Teacher(network.to(resolve_device(config.device)).eval(), record, result["timing"]["train_s"])


def resumable(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What must not have changed for a training to resume and still end with the result of an undisturbed one."""
    same = {name: origin[name] for name in ("code", "device", "threads")}
    return {**same, "torch": origin["packages"]["torch"]}


def _score_baseline(execution: Execution) -> dict[str, Any]:
    """The result of a method that trains nothing; it costs nothing that the paper counts."""
    from ablations.trial.samples import save_samples
    from bbcu.model.cost import Cost
    from bbcu.training.evaluation import mean_record, score_record

    data, most = execution.data, execution.config.tracking.samples
    sampled = {(name, pair.name): pair.input for name, pairs in data.test.items() for pair in pairs[:most]}
    save_samples(execution.folder.samples, data, {key: data.task.baseline(low) for key, low in sampled.items()})
    return {
        **execution.trial.facts(),
        "metrics": {name: score_record(scores) for name, scores in data.baseline.items()},
        "baseline": {name: mean_record(scores) for name, scores in data.baseline.items()},
        "cost": _cost_record(Cost(0, 0)),
        "timing": dict.fromkeys(TIMINGS, 0.0),
        "dead": None,
        "probes": {},
    }


def _cost_record(cost: "Cost") -> dict[str, float]:
    """The counted cost of a network, with its multiply-adds by kind so that a binary one can get another price."""
    by_kind = {"full_macs_g": round(cost.full_macs / 1e9, 6), "binary_macs_g": round(cost.binary_macs / 1e9, 6)}
    return {"ops_g": cost.ops_g, "params_k": cost.params_k, **by_kind}


def _completed(execution: Execution, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with the latency and the user's own metrics that were asked for, after writing it.

    A failure is a warning: the result counts without them, and the next run of the same command tries again.
    """
    config, trial, folder, data = execution.config, execution.trial, execution.folder, execution.data
    if lacks_latency(result, config):
        result = _with(execution, result, "latency", "measured", lambda on: _with_latency(trial, folder, result, on))
    if lacks_metrics(result, config):
        before, what = result, "own metrics"
        result = _with(execution, result, what, "scored", lambda on: scored(config, trial, folder, data, before, on))
    return result


def _with_latency(
    trial: Trial, folder: TrialFolder, result: Mapping[str, Any], on_run: Callable[[], None]
) -> dict[str, Any]:
    more = measured(trial, folder, on_run)
    return {**result, **{group: {**result[group], **facts} for group, facts in more.items()}}


def _with(
    execution: Execution,
    result: dict[str, Any],
    what: str,
    done: str,
    complete: Callable[[Callable[[], None]], dict[str, Any]],
) -> dict[str, Any]:
    """Return what ``complete`` makes of a result, after writing it; the same result if it fails.

    ``complete`` takes a function to call before each run; ``done`` is what is done to ``what``, for a warning.
    """

    def on_run() -> None:
        execution.lease.heartbeat()
        execution.stop.check()

    execution.lease.heartbeat(now=True, phase="measuring")
    try:
        found = complete(on_run)
    except LeaseLost:
        raise
    except Exception as error:
        verb = "was" if what == "latency" else "were"
        log.debug("the %s %s not %s", what, verb, done, exc_info=True)
        log.warning("%s: its %s %s not %s: %s", execution.title, what, verb, done, first_line(error))
        return result
    execution.lease.check()
    execution.folder.write_result(found)
    return found


# --- what surrounds an attempt ----------------------------------------------------------------------------------------


def device_name(config: Config) -> str:
    """The kind of device that a trial runs on, with the model of a GPU: ``cuda (NVIDIA H100)``.

    The number of the GPU is left out: a trial may resume on another one of the same model.
    """
    import torch

    from bbcu.training.loop import resolve_device

    device = resolve_device(config.device)
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


@contextlib.contextmanager
def _threads(threads: int | str) -> Iterator[int]:
    """Set torch's number of threads ("auto" leaves it) and yield it; restore the earlier number afterwards."""
    import torch

    before = torch.get_num_threads()
    if threads != "auto":
        torch.set_num_threads(int(threads))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _log_file(folder: TrialFolder) -> Iterator[None]:
    """Append everything that is logged to the trial's log too, with debug messages that the terminal does not show."""
    handler = logging.FileHandler(folder.log_path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    own, root = logging.getLogger("ablations"), logging.getLogger()
    level = own.level
    own.setLevel(logging.DEBUG)
    handlers = [(existing, existing.level) for existing in root.handlers]
    for existing, existing_level in handlers:
        existing.setLevel(max(existing_level, logging.INFO))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        own.setLevel(level)
        for existing, existing_level in handlers:
            existing.setLevel(existing_level)
