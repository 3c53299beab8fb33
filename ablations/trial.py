"""One trial: one cell with one seed, from its config to its result."""

import contextlib
import dataclasses
import functools
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from ablations import states, stopping, store, syncing
from ablations.changes import code_of, is_to_be_kept
from ablations.config import Config
from ablations.devices import device_for
from ablations.energy import EnergyMeter, counters
from ablations.footprint import forget_peaks, peaks
from ablations.lease import HeldTrial, LeaseLost, held
from ablations.provenance import provenance
from ablations.pruning import Pruned, Verdicts
from ablations.snapshots import Snapshots
from ablations.space import FACTORS, REFERENCE, UNIT_FACTORS, Cell, Frame, canonical_levels, cell_name
from ablations.states import State
from bbcu.errors import BbcuError, ConfigError
from bbcu.methods import METHODS, REIMPLEMENTATION

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bbcu.pairs import Pair, PreparedData
    from bbcu.tasks import Task
    from bbcu.training import StepReport

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

BASELINE = "baseline"
"""The network of a method that trains nothing: what the task's baseline makes of the input."""


class TrialFailed(BbcuError):
    """The trial ended without a result; the message is the reason."""


class TrialHopeless(TrialFailed):
    """The trial would end the same way however often it was tried, as one whose loss diverges."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One cell with one seed, in a study."""

    study: str
    method: str
    cell: Cell
    seed: int

    @property
    def identity(self) -> tuple[str, int]:
        """The cell's key and the seed: what no two trials of a study share."""
        return self.cell.key, self.seed

    @property
    def name(self) -> str:
        """The published method that the cell is, or what tells it from BBCU, the way a user would type it."""
        method = METHODS.get(self.method)
        if method is None or self.method == "bbcu":
            return cell_name(self.cell.asked, REFERENCE)
        return f"{self.method} ({REIMPLEMENTATION})" if method.remark else self.method

    def folder(self, outputs: str | Path) -> store.TrialFolder:
        return store.TrialFolder(Path(outputs), self.study, self.cell.key, self.seed)

    def facts(self) -> dict[str, Any]:
        """The part of ``result.json`` that is known before the trial runs."""
        return {
            "study": self.study,
            "cell": self.cell.key,
            "name": self.name,
            "factors": dict(self.cell.factors),
            "levels": dict(self.cell.asked),
            "reference": REFERENCE,
            "setting": dict(self.cell.setting),
            "method": self.method,
            "task": self.cell.setting["task"]["name"],
            "seed": self.seed,
        }


# --- from config to trial ---------------------------------------------------------------------------------------------


def levels_of(config: Config) -> dict[str, Any]:
    """The factors as they stand in the config."""
    return {name: getattr(config, name) for name in FACTORS}


def frame_of(config: Config) -> Frame:
    """What the rules of the factor space must know of the setting."""
    return Frame(config.network.name, config.channels)


def setting_of(config: Config, fingerprint: str) -> dict[str, Any]:
    """Everything but the factors and the seed that decides the trained network."""
    task = task_of(config)
    if config.network.name == BASELINE:
        return {"task": task.parameters(), "network": {"name": BASELINE}, "data": fingerprint}
    setting = {
        "task": task.parameters(),
        "network": dataclasses.asdict(config.network),
        "channels": config.channels,
        "blocks": config.blocks,
        "train": training_of(config),
        "data": fingerprint,
    }
    # A key that came later: a cell that does without it is the cell that it was before.
    return setting | ({"evaluation": {"self_ensemble": True}} if config.evaluation.self_ensemble else {})


def training_of(config: Config) -> dict[str, Any]:
    """The settings of the training that decide the trained network, with the precision that "auto" stands for here."""
    settings = dataclasses.asdict(config.train)
    del settings["compile"], settings["cuda_graph"], settings["int8"]
    if settings["precision"] == "auto":
        from bbcu.acceleration import resolve_precision
        from bbcu.training import resolve_device

        settings["precision"], _ = resolve_precision("auto", resolve_device(config.device))
    return settings


def method_of(config: Config, cell: Cell) -> str:
    """The config's method where the cell is still that, "custom" where the user has typed something else over it."""
    method = METHODS.get(config.method.name)
    if method is None:
        return config.method.name
    levels = canonical_levels(method.all_levels, frame_of(config)).factors
    layout = cell.setting["network"]
    same_layout = all(layout.get(name) == value for name, value in method.network.items())
    same_width = method.channels in (None, config.channels)
    return config.method.name if levels == cell.factors and same_layout and same_width else "custom"


def trial_of(config: Config, setting: Mapping[str, Any]) -> Trial:
    """The trial that ``config`` describes in the ``setting`` that :func:`setting_of` gives for it.

    Raises ConfigError for a level that does not exist, and ImpossibleCell for a cell that cannot mean anything.
    """
    canonical = canonical_levels(levels_of(config), frame_of(config))
    cell = Cell(canonical.factors, setting, canonical.asked)
    return Trial(config.study.name, method_of(config, cell), cell, config.seed)


def task_of(config: Config) -> "Task":
    """The task of a config; raises ConfigError for one that does not exist or whose strengths are out of range."""
    from bbcu.tasks import make_task

    return make_task(dataclasses.asdict(config.task))


@functools.lru_cache(maxsize=4)
def _prepared(
    train: str | None,
    test: tuple[tuple[str, str], ...] | None,
    inputs: str | None,
    task: "Task",
    patch: int,
    cache: Path,
) -> "PreparedData":
    """Read and prepare data once a process, however many trials want it; without ``test`` the embedded photographs."""
    from bbcu.datasets import embedded, folder
    from bbcu.pairs import prepare

    if test is None:
        pictures = embedded()
    else:
        pictures = folder(Path(train) if train else None, {name: Path(path) for name, path in test}, inputs)
    return prepare(pictures, task, patch, cache)


def data_of(config: Config) -> "PreparedData":
    """The prepared data that ``config`` names; read and prepared once a process, kept on disk for the others.

    Raises ConfigError where the config lacks something, and DataError, which names the path, where data cannot be used.
    """
    task, cache = task_of(config), Path(config.outputs) / ".cache"
    if config.data.name == "embedded":
        return _prepared(None, None, None, task, config.train.patch, cache)
    trains = config.network.name != BASELINE
    if trains and not config.data.train:
        raise ConfigError("no value for data.train: set it on the command line, as in data.train=DIR")
    if config.data.inputs == "given" and task.corruption is not None:
        raise ConfigError(f"data.inputs=given: {task.name} makes its inputs from the pictures; use data.inputs=made")
    inputs = f"X{task.scale}" if config.data.inputs == "given" else None
    # A method that trains nothing scores the same whatever others train on.
    train = config.data.train if trains else None
    return _prepared(train, tuple(config.data.test.items()), inputs, task, config.train.patch, cache)


def standardise(network: "nn.Module", pairs: "Sequence[Pair]") -> None:
    """Give a network that standardises its input the statistics of the training inputs; others are left alone."""
    import torch

    standardisation = getattr(network, "standardisation", None)
    if standardisation is None:
        return
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for pair in pairs:
        pixels = pair.input.reshape(-1, pair.input.shape[-1]) / 255
        count, total, squares = count + len(pixels), total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(squares / count - mean**2)
    standardisation.set(torch.from_numpy(mean), torch.from_numpy(deviation))


def network_of(trial: Trial, *, drawn: bool = True) -> "nn.Module":
    """The network of a trial, with the initial values of its seed unless these need not be ``drawn``."""
    from bbcu.networks import NetworkSpec, assemble, build
    from bbcu.tasks import make_task
    from bbcu.units import UnitSpec

    factors: dict[str, Any] = dict(trial.cell.factors)
    setting = trial.cell.setting
    layout, task = setting["network"], make_task(setting["task"])
    spec = NetworkSpec(
        scale=task.scale,
        colours=task.colours,
        channels=setting["channels"],
        blocks=setting["blocks"],
        unit=UnitSpec(**{name: factors[name] for name in UNIT_FACTORS}),
        align=factors["align"],
        binarize=factors["binarize"],
        unit_class=layout["unit"],
        initial=layout["initial"],
        accumulate=layout["accumulate"],
        standardise=layout["standardise"],
    )
    return build(layout["name"], spec, trial.seed) if drawn else assemble(layout["name"], spec)


# --- running ----------------------------------------------------------------------------------------------------------


def check_runnable(config: Config) -> None:
    """Raise BbcuError for outputs that cannot be written, a device that is not there, an unknown way to train."""
    from bbcu.training import TrainSettings, resolve_device

    store.check_writable(Path(config.outputs), f"outputs={config.outputs}")
    resolve_device(config.device)
    task = task_of(config)
    if config.network.name == BASELINE and config.method.name != task.baseline_name:
        raise ConfigError(f"method={config.method.name}: the baseline of {task.name} is method={task.baseline_name}")
    TrainSettings(**dataclasses.asdict(config.train))


def check_network(trial: Trial) -> None:
    """Raise ConfigError where the trial's network cannot be built; no memory is taken for it."""
    import torch

    if trial.cell.setting["network"]["name"] != BASELINE:
        with torch.device("meta"):
            network_of(trial, drawn=False)


def device_name(config: Config) -> str:
    """The kind of device that a trial runs on, with its model where it is no processor: ``cuda (NVIDIA H100)``.

    Which of several GPUs it is does not matter: a trial may go on on another one of the same model.
    """
    import torch

    from bbcu.training import resolve_device

    device = resolve_device(config.device)
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def run_trial(config: Config, *, in_sweep: bool = False) -> float:
    """Train, evaluate and record the trial of ``config`` unless that is done already; its mean PSNR in dB.

    A trial that was interrupted goes on from its newest snapshot. In a sweep the parent has prepared the tracking
    store, and prints the results. Raises TrialFailed with the reason when the training fails, TrialBusy when another
    process is at it, Interrupted when it was asked to stop, Pruned when its search has ended it, and BbcuError for what
    a user can mend.
    """
    from bbcu.acceleration import use_cache

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
                if experiment and not store.is_finished(config.tracking.uri, experiment, *trial.identity):
                    syncing.log_from_disk(folder, config.tracking.uri, experiment)
            else:
                result = _run_and_record(Desk(config, trial, data, folder, hold, stop), experiment)
    mean_psnr = statistics.fmean(scores["psnr_db"] for scores in result["metrics"].values())
    if in_sweep:
        log.info(
            "%s seed %d: %.2f dB, trained in %.0f s", trial.name, trial.seed, mean_psnr, result["timing"]["train_s"]
        )
    else:
        log.info("%s", summary(result, folder))
    return mean_psnr


def trains(config: Config) -> bool:
    """Whether the trial has a network at all."""
    return config.network.name != BASELINE


def experiment_of(config: Config, *, in_sweep: bool) -> str | None:
    """The id of the study's experiment; None, with a warning, for a server that has gone away since a sweep began."""
    uri, study = config.tracking.uri, config.study.name
    if not in_sweep:
        return store.prepare_tracking(uri, study)
    try:
        return store.experiment_id(uri, study)
    except Exception as error:
        log.warning("MLflow at %s does not answer (%s); the records wait on disk", uri, store.first_line(error))
        return None


def summary(result: Mapping[str, Any], folder: store.TrialFolder) -> str:
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


def baseline_label(result: Mapping[str, Any]) -> str:
    """What the baseline of a result's task is called beside a score: bicubic, or input."""
    from bbcu.tasks import make_task

    name = make_task(result["setting"]["task"]).baseline_name
    return "input" if name == "identity" else name


@dataclasses.dataclass(frozen=True)
class Desk:
    """Everything that lies before a process that works at a trial."""

    config: Config
    trial: Trial
    data: "PreparedData"
    folder: store.TrialFolder
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
        attempt = states.begin(folder)
        desk.hold.beat(now=True, attempt=attempt.number)
        origin = provenance(device_name(config), threads, trial.seed, code_of(trial))
        facts = store.facts_of({**trial.facts(), "provenance": origin}, folder)
        run = store.TrialRun(config.tracking.uri, experiment, facts)

        def leave(state: State, reason: str) -> None:
            # Where the disk is full even this may not be written; whoever comes next sees that nobody works here.
            with contextlib.suppress(OSError):
                states.end(folder, state, reason)
            run.leave(folder, state, reason)

        try:
            store.write_atomically(folder.config_path, OmegaConf.to_yaml(OmegaConf.structured(config)))
            how = _run if trains(config) else _score_baseline
            found = how(desk, run, origin)
            result = {**found, "provenance": {**origin, **found.get("provenance", {})}}
            desk.hold.check()
            folder.write_result(result)
            states.end(folder, State.FINISHED)
        except KeyboardInterrupt:
            leave(State.INTERRUPTED, "stopped at once from the keyboard")
            raise
        except LeaseLost:
            # The trial is another process's by now, and so is its folder.
            raise
        except stopping.Interrupted as error:
            leave(State.INTERRUPTED, str(error))
            raise
        except Pruned as error:
            leave(State.PRUNED, str(error))
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, BbcuError) else f"{type(error).__name__}: {error}"
            log.debug("the trial failed", exc_info=True)
            leave(State.FAILED, reason)
            failure = TrialHopeless if isinstance(error, BbcuError) else TrialFailed
            raise failure(f"{trial.name} seed {trial.seed} failed: {reason}; see {folder.log_path}") from error
        # Before the run is closed: a trial that MLflow holds as finished is never looked at again.
        Snapshots(folder.snapshots, {}).clear()
        run.finish(folder, store.final_metrics(result), store.steps_of(result))
        return result


def _run(desk: Desk, run: store.TrialRun, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Train and evaluate; the result without its provenance. Everything but ``result.json`` is on disk afterwards."""
    import torch

    from ablations.recorder import Recorder, Surroundings, mean_record, score_record
    from ablations.samples import save_samples
    from bbcu.cost import count
    from bbcu.patches import PatchSampler
    from bbcu.probes import dead_body, probe
    from bbcu.training import Training, TrainSettings, resolve_device

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
    surroundings = Surroundings(desk.hold, run, snapshots, desk.stop, Verdicts(folder, config.session))
    recorder = Recorder(config, f"{trial.name} seed {trial.seed}", data, training, surroundings)
    earlier = snapshots.newest(device)
    if earlier is not None:
        training.load_state_dict(earlier["training"])
        recorder.resume(earlier["recorder"])
        states.change(folder, from_step=training.step)
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
    desk.hold.beat(now=True, phase="probing")
    probing = time.perf_counter()
    probes = probe(network, probed_inputs(data, config.tracking.samples), start, device)
    dead = dead_body(network, probed_inputs(data, config.tracking.samples), device)
    if dead is not None:
        log.warning("%s seed %d: %s", trial.name, trial.seed, dead)
    probe_seconds = time.perf_counter() - probing
    desk.hold.beat(now=True, phase="recording")
    folder.write_curve(recorder.points)
    with store.replacing(folder.checkpoint_path) as temporary:
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
    from bbcu.images import to_tensor

    for pairs in data.test.values():
        for pair in pairs[:most]:
            top, left = (max(0, (size - PROBED) // 2) for size in pair.input.shape[:2])
            yield to_tensor(pair.input[top : top + PROBED, left : left + PROBED])[None]


def _score_baseline(desk: Desk, run: store.TrialRun, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a method that trains nothing; it costs nothing that the paper counts."""
    from ablations.recorder import mean_record, score_record
    from ablations.samples import save_samples

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
def _log_file(folder: store.TrialFolder) -> Iterator[None]:
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
