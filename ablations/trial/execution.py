"""One trial: one cell with one seed, from its config to its result."""

import contextlib
import dataclasses
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ablations.config import Config
from ablations.storage import stopping
from ablations.storage.attempts import State, begin_attempt, end_attempt, update_attempt
from ablations.storage.files import first_line, replacing, write_atomically
from ablations.storage.folder import TrialFolder, mean_psnr, steps_of
from ablations.storage.lease import HeldTrial, LeaseLost, held
from ablations.storage.pruning import PruningClient, TrialPruned
from ablations.storage.snapshots import Snapshots
from ablations.tracking.client import experiment_id, is_finished, prepare_tracking
from ablations.tracking.runs import TrialRun, facts_of, final_metrics
from ablations.tracking.sync import log_from_disk
from ablations.trial.changes import code_of, is_to_be_kept
from ablations.trial.devices import device_for
from ablations.trial.energy import EnergyMeter, counters
from ablations.trial.footprint import forget_peaks, peaks
from ablations.trial.provenance import provenance
from bbcu.errors import BbcuError

if TYPE_CHECKING:
    import torch

    from bbcu.data.pairs import PreparedData
    from bbcu.training.loop import StepReport

from ablations.trial.data import data_of
from ablations.trial.identity import (
    Trial,
    baseline_label,
    check_network,
    check_runnable,
    network_of,
    setting_of,
    trains,
    trial_of,
)
from bbcu.training.preparation import standardise

log = logging.getLogger(__name__)

PROBED = 96
"""Largest side of what the probes look at, in pixels of the input."""

TIMINGS = ("train_s", "step_ms", "start_s", "evaluate_s", "probe_s", "record_s", "total_s")
"""What ``timing`` holds, in seconds but for the median step.

``start_s`` is what the first step took over the median, and part of ``train_s``; ``record_s`` is spent on MLflow before
the result is written, and ``total_s`` from the building of the network to that. Where the processors count it and the
training went through in one go there is ``energy_j`` besides, what they took meanwhile, in joules. ``peak_mib`` and
``gpu_peak_mib`` are the most memory that the trial's process and its part of a GPU took, where that is told.
"""


class TrialFailed(BbcuError):
    """The trial ended without a result; the message is the reason."""


class TrialHopeless(TrialFailed):
    """The trial would end the same way however often it was tried, as one whose loss diverges."""


def device_name(config: Config) -> str:
    """The kind of device that a trial runs on, with its model where it is no processor: ``cuda (NVIDIA H100)``.

    Which of several GPUs it is does not matter: a trial may go on on another one of the same model.
    """
    import torch

    from bbcu.training.loop import resolve_device

    device = resolve_device(config.device)
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def run_trial(config: Config, *, in_sweep: bool = False) -> float:
    """Train, evaluate and record the trial of ``config`` unless that is done already; its mean PSNR in dB.

    A trial that was interrupted goes on from its newest snapshot. In a sweep the parent has prepared the tracking
    store, and prints the results. Raises TrialFailed with the reason when the training fails, TrialBusy when another
    process is at it, Interrupted when it was asked to stop, TrialPruned when its search has ended it, and BbcuError
    for what a user can correct.
    """
    from bbcu.training.acceleration import use_cache

    marker = stopping.marker_of(Path(config.outputs), config.study.name, config.session) if config.session else None
    with stopping.listening_to(marker, for_good=in_sweep) as stop:
        stop.check()
        # First of all: torch settles on a folder of its own as soon as any part of its compiler is imported.
        use_cache(Path(config.outputs) / ".cache" / "compiled")
        check_runnable(config)
        data = data_of(config)
        trial = trial_of(config, setting_of(config, data.fingerprint))
        check_network(trial)
        folder = trial.folder(config.outputs)
        experiment = experiment_of(config, in_sweep=in_sweep)
        steps = config.train.steps if trains(config) else 0
        with held(folder, trial.name, session=config.session, steps=steps) as hold:
            # Whoever held it before may have finished it in between.
            result = folder.result()
            if result is not None and is_to_be_kept(result, config, trial):
                log.info("%s seed %d is done already, nothing is trained", trial.name, trial.seed)
                if experiment and not is_finished(config.tracking.uri, experiment, *trial.identity):
                    log_from_disk(folder, config.tracking.uri, experiment)
            else:
                result = _run_and_record(Desk(config, trial, data, folder, hold, stop), experiment)
    psnr_db = mean_psnr(result)
    if in_sweep:
        log.info("%s seed %d: %.2f dB, trained in %.0f s", trial.name, trial.seed, psnr_db, result["timing"]["train_s"])
    else:
        log.info("%s", summary(result, folder))
    return psnr_db


def experiment_of(config: Config, *, in_sweep: bool) -> str | None:
    """The id of the study's experiment; None, with a warning, for a server that has gone away since a sweep began."""
    uri, study = config.tracking.uri, config.study.name
    if not in_sweep:
        return prepare_tracking(uri, study)
    try:
        return experiment_id(uri, study)
    except Exception as error:
        log.warning("MLflow at %s does not answer (%s); the records wait on disk", uri, first_line(error))
        return None


def summary(result: Mapping[str, Any], folder: TrialFolder) -> str:
    """A result as lines for people: each test set beside its baseline, the cost, and where it lies."""
    lines = [f"{result['name']}, seed {result['seed']}"]
    for name, scores in result["metrics"].items():
        baseline = result["baseline"][name]
        gain = scores["psnr_db"] - baseline["psnr_db"]
        lines.append(
            f"  {name}: {scores['psnr_db']:.2f} dB / {scores['ssim']:.4f}, "
            f"{baseline_label(result)} {baseline['psnr_db']:.2f} dB / {baseline['ssim']:.4f}, {gain:+.2f} dB"
        )
    cost, timing = result["cost"], result["timing"]
    lines.append(f"  {cost['ops_g']:.2f} G operations, {cost['params_k']:.1f} K parameters")
    memory = f", {timing['peak_mib']:.0f} MiB at most" if "peak_mib" in timing else ""
    lines.append(f"  trained in {timing['train_s']:.0f} s, {timing['step_ms']:.0f} ms a step{memory}; in {folder.path}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Desk:
    """Everything that lies before a process that works at a trial."""

    config: Config
    trial: Trial
    data: "PreparedData"
    folder: TrialFolder
    hold: HeldTrial
    stop: stopping.StopSign


def _run_and_record(desk: Desk, experiment: str | None) -> dict[str, Any]:
    """Run the trial with its log, its threads and its MLflow run, whatever way it ends."""
    with device_for(desk.config.device, Path(desk.config.outputs) / ".cache" / "devices") as device:
        return _on_device(dataclasses.replace(desk, config=dataclasses.replace(desk.config, device=device)), experiment)


def _on_device(desk: Desk, experiment: str | None) -> dict[str, Any]:
    """As :func:`_run_and_record`, with a device that is this trial's."""
    config, trial, folder = desk.config, desk.trial, desk.folder
    with _threads(config.threads) as threads, _log_file(folder):
        attempt = begin_attempt(folder)
        desk.hold.heartbeat(now=True, attempt=attempt.number)
        origin = provenance(device_name(config), threads, trial.seed, code_of(trial))
        facts = facts_of({**trial.facts(), "provenance": origin}, folder)
        run = TrialRun(config.tracking.uri, experiment, facts)

        def leave(state: State, reason: str, **found: Any) -> None:
            # Where the disk is full even this may not be written; whoever comes next sees that nobody works here.
            with contextlib.suppress(OSError):
                end_attempt(folder, state, reason, **found)
            run.leave(folder, state, reason)

        try:
            write_atomically(folder.config_path, OmegaConf.to_yaml(OmegaConf.structured(config)))
            how = _run if trains(config) else _score_baseline
            found = how(desk, run, origin)
            result = {**found, "provenance": {**origin, **found.get("provenance", {})}}
            desk.hold.check()
            folder.write_result(result)
            end_attempt(folder, State.FINISHED)
        except KeyboardInterrupt:
            leave(State.INTERRUPTED, "stopped at once from the keyboard")
            raise
        except LeaseLost:
            # The trial is another process's by now, and so is its folder.
            raise
        except stopping.Interrupted as error:
            leave(State.INTERRUPTED, str(error))
            raise
        except TrialPruned as error:
            leave(State.PRUNED, str(error), step=error.step, psnr_db=error.psnr_db)
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, BbcuError) else f"{type(error).__name__}: {error}"
            log.debug("the trial failed", exc_info=True)
            leave(State.FAILED, reason)
            failure = TrialHopeless if isinstance(error, BbcuError) else TrialFailed
            raise failure(f"{trial.name} seed {trial.seed} failed: {reason}; see {folder.log_path}") from error
        # Before the run is closed: a trial that MLflow holds as finished is never looked at again.
        Snapshots(folder.snapshots, {}).clear()
        run.finish(folder, final_metrics(result), steps_of(result))
        return result


def _run(desk: Desk, run: TrialRun, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Train and evaluate; the result without its provenance. Everything but ``result.json`` is on disk afterwards."""
    import torch

    from ablations.trial.recorder import Recorder, Surroundings, mean_record, score_record
    from ablations.trial.samples import save_samples
    from bbcu.data.patches import PatchSampler
    from bbcu.model.cost import count
    from bbcu.training.loop import Training, TrainSettings, resolve_device
    from bbcu.training.probes import dead_body, probe

    config, trial, data, folder = desk.config, desk.trial, desk.data, desk.folder

    # --- what is trained, on what -------------------------------------------------------------------------------------
    began = time.perf_counter()
    device, task = resolve_device(config.device), data.task
    forget_peaks(device)
    torch.manual_seed(trial.seed)
    network = network_of(trial)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    standardise(network, data.train)
    cost = count(network).total
    settings = TrainSettings(**dataclasses.asdict(config.train))
    sampler = PatchSampler(
        data.train,
        task.scale,
        settings.patch,
        settings.batch,
        trial.seed,
        corruption=task.corruption,
        release=data.release,
    )
    log.info("%s seed %d: %d steps on %s", trial.name, trial.seed, settings.steps, device)
    training = Training(network, sampler, settings, device)
    for reason in training.plan.reasons:
        log.info("%s", reason)

    # --- training, from the beginning or from where an earlier attempt stopped ----------------------------------------
    snapshots = Snapshots(folder.snapshots, {"cell": trial.cell.key, "seed": trial.seed, **going_on(origin)})
    surroundings = Surroundings(desk.hold, run, snapshots, desk.stop, PruningClient(folder, config.session))
    recorder = Recorder(config, f"{trial.name} seed {trial.seed}", data, training, surroundings)
    earlier = snapshots.newest(device)
    if earlier is not None:
        training.load_state_dict(earlier["training"])
        recorder.resume(earlier["recorder"])
        update_attempt(folder, from_step=training.step)
        log.info("going on after step %d", training.step)
    # A training that was taken up has used energy that nobody counted here; a GPU's is counted nowhere.
    meter = EnergyMeter(counters() if device.type == "cpu" and earlier is None else [])

    def on_step(report: "StepReport") -> None:
        meter.look()
        recorder(report)

    with recorder.progress:
        training.run(on_step)
    joules = meter.joules()

    # --- what it is worth: the last step, not the best ----------------------------------------------------------------
    desk.hold.heartbeat(now=True, phase="probing")
    probing = time.perf_counter()
    probes = probe(network, probed_inputs(data, config.tracking.samples), start, device)
    dead = dead_body(network, probed_inputs(data, config.tracking.samples), device)
    if dead is not None:
        log.warning("%s seed %d: %s", trial.name, trial.seed, dead)
    probe_seconds = time.perf_counter() - probing
    desk.hold.heartbeat(now=True, phase="recording")
    folder.write_curve(recorder.points)
    with replacing(folder.checkpoint_path) as temporary:
        torch.save({name: value.cpu() for name, value in network.state_dict().items()}, temporary)
    save_samples(folder.samples, data, recorder.samples)
    return {
        **trial.facts(),
        "metrics": {name: score_record(scores) for name, scores in recorder.scores.items()},
        "baseline": {name: mean_record(scores) for name, scores in data.baseline.items()},
        "cost": {"ops_g": cost.ops_g, "params_k": cost.params_k},
        "timing": {
            "train_s": round(sum(training.seconds), 3),
            "step_ms": round(1e3 * statistics.median(training.seconds), 3),
            "start_s": round(starting_seconds(training.seconds), 3),
            "evaluate_s": round(recorder.evaluate_seconds, 3),
            "probe_s": round(probe_seconds, 3),
            "record_s": round(run.seconds, 3),
            "total_s": round(time.perf_counter() - began, 3),
            **({} if joules is None else {"energy_j": round(joules, 1)}),
            **peaks(device),
        },
        "dead": dead,
        "probes": probes,
        "provenance": {
            "compiled": training.plan.compiles,
            "cuda_graph": training.plan.replays,
            "int8": training.plan.in_bytes,
        },
    }


def going_on(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What must be as it was for a training to go on where an earlier one stopped and end where that would have."""
    same = {name: origin[name] for name in ("code", "device", "threads")}
    return {**same, "torch": origin["packages"]["torch"]}


def starting_seconds(step_seconds: "Sequence[float]") -> float:
    """What the first step took over the median: compilation, mostly."""
    return max(0.0, step_seconds[0] - statistics.median(step_seconds))


def probed_inputs(data: "PreparedData", most: int) -> "Iterator[torch.Tensor]":
    """The middle of the inputs of up to ``most`` pictures of each test set, one a batch, in [0, 1].

    Each is (1, colours, height, width) with sides of at most PROBED, which is plenty for shares and percentiles.
    """
    from bbcu.data.images import to_tensor

    for pairs in data.test.values():
        for pair in pairs[:most]:
            top, left = (max(0, (size - PROBED) // 2) for size in pair.input.shape[:2])
            yield to_tensor(pair.input[top : top + PROBED, left : left + PROBED])[None]


def _score_baseline(desk: Desk, run: TrialRun, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a method that trains nothing; it costs nothing that the paper counts."""
    from ablations.trial.recorder import mean_record, score_record
    from ablations.trial.samples import save_samples

    data = desk.data
    sampled = {name: pairs[: desk.config.tracking.samples] for name, pairs in data.test.items()}
    outputs = {(name, pair.name): data.task.baseline(pair.input) for name, pairs in sampled.items() for pair in pairs}
    save_samples(desk.folder.samples, data, outputs)
    return {
        **desk.trial.facts(),
        "metrics": {name: score_record(scores) for name, scores in data.baseline.items()},
        "baseline": {name: mean_record(scores) for name, scores in data.baseline.items()},
        "cost": {"ops_g": 0.0, "params_k": 0.0},
        "timing": dict.fromkeys(TIMINGS, 0.0),
        "dead": None,
        "probes": {},
    }


# --- surroundings of a trial ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _threads(threads: int | str) -> Iterator[int]:
    """Give torch this many threads for the body ("auto": as many as it has), and what it had afterwards."""
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
    """Send what the body logs to the trial's log as well, behind what earlier attempts left there."""
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
