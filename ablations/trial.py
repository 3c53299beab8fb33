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

from ablations import store
from ablations.config import Config
from ablations.progress import TrialProgress
from ablations.provenance import provenance
from ablations.space import FACTORS, REFERENCE, UNIT_FACTORS, Cell, Frame, canonical_levels, cell_name
from bbcu.errors import BbcuError
from bbcu.methods import METHODS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bbcu.datasets import Pair, Pictures, PreparedData
    from bbcu.images import Pixels
    from bbcu.tasks import Score, Task
    from bbcu.training import StepReport

log = logging.getLogger(__name__)

SECONDS_BETWEEN_FLUSHES = 10.0
"""How long points of the curve may wait before MLflow gets them, so that its page follows a training."""

CROP = 96
"""Side of a sample picture, in pixels of the truth."""


class TrialFailed(BbcuError):
    """The trial ended without a result; the message is the reason."""


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
        """What tells the cell from the reference, the way a user would type it."""
        return cell_name(self.cell.asked, REFERENCE)

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
    return {
        "task": dataclasses.asdict(config.task),
        "network": dataclasses.asdict(config.network),
        "channels": config.channels,
        "blocks": config.blocks,
        "train": dataclasses.asdict(config.train),
        "data": fingerprint,
    }


def method_of(config: Config, cell: Cell) -> str:
    """The config's method where the cell is still that, "custom" where the user has typed something else over it."""
    method = METHODS.get(config.method.name)
    if method is None:
        return config.method.name
    levels = canonical_levels(method.all_levels, frame_of(config)).factors
    layout = cell.setting["network"]
    same_layout = all(layout[name] == value for name, value in method.network.items())
    same_width = method.channels in (None, config.channels)
    return config.method.name if levels == cell.factors and same_layout and same_width else "custom"


def trial_of(config: Config, fingerprint: str) -> Trial:
    """The trial that ``config`` describes on the data with ``fingerprint``.

    Raises ConfigError for a level that does not exist, and ImpossibleCell for a cell that cannot mean anything.
    """
    canonical = canonical_levels(levels_of(config), frame_of(config))
    setting = setting_of(config, fingerprint)
    cell = Cell(canonical.factors, setting, canonical.asked)
    return Trial(config.study.name, method_of(config, cell), cell, config.seed)


@functools.lru_cache(maxsize=4)
def _pictures(name: str, train: str, test: tuple[tuple[str, str], ...]) -> "Pictures":
    """Read the pictures once a process, however many trials want them."""
    from bbcu import datasets

    return datasets.embedded() if name == "embedded" else datasets.folder(Path(train), {k: Path(v) for k, v in test})


@functools.lru_cache(maxsize=4)
def _prepared(
    name: str, train: str, test: tuple[tuple[str, str], ...], task_name: str, patch: int, cache: Path
) -> "PreparedData":
    from bbcu import datasets
    from bbcu.tasks import task_from_name

    return datasets.prepare(_pictures(name, train, test), task_from_name(task_name), patch, cache)


def data_of(config: Config) -> "PreparedData":
    """The prepared data that ``config`` names; read and prepared once a process, kept on disk for the others.

    Raises DataError, which names the path, where it cannot be used.
    """
    test = tuple(sorted(config.data.test.items()))
    cache = Path(config.outputs) / ".cache"
    return _prepared(config.data.name, config.data.train, test, config.task.name, config.train.patch, cache)


def standardise(network: "nn.Module", pairs: "Sequence[Pair]") -> None:
    """Give a network that standardises its input the statistics of the training inputs; others are left alone."""
    import torch

    standardisation = getattr(network, "standardisation", None)
    if standardisation is None:
        return
    pixels = np.concatenate([pair.input.reshape(-1, pair.input.shape[-1]) for pair in pairs])
    mean, deviation = pixels.mean(axis=0) / 255, pixels.std(axis=0) / 255
    standardisation.set(torch.from_numpy(mean), torch.from_numpy(deviation))


def network_of(trial: Trial) -> "nn.Module":
    """The network of a trial, with the initial values of its seed."""
    from bbcu.networks import NetworkSpec, build
    from bbcu.tasks import task_from_name
    from bbcu.units import UnitSpec

    factors: dict[str, Any] = dict(trial.cell.factors)
    setting = trial.cell.setting
    layout = setting["network"]
    spec = NetworkSpec(
        scale=task_from_name(setting["task"]["name"]).scale,
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
    return build(layout["name"], spec, trial.seed)


# --- running ----------------------------------------------------------------------------------------------------------


def check_runnable(config: Config) -> None:
    """Raise BbcuError for a device that is not there and for a way to train that does not exist."""
    from bbcu.training import TrainSettings, resolve_device

    resolve_device(config.device)
    TrainSettings(**dataclasses.asdict(config.train))


def device_name(config: Config) -> str:
    """The device that "auto" stands for, with its model where it is no processor: ``cuda (NVIDIA H100 80GB HBM3)``."""
    import torch

    from bbcu.training import resolve_device

    device = resolve_device(config.device)
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def run_trial(config: Config, *, in_sweep: bool = False) -> float:
    """Train, evaluate and record the trial of ``config`` unless that is done already; its mean PSNR in dB.

    In a sweep the parent has prepared the tracking store, and prints the results. Raises TrialFailed with the reason
    when the training fails, TrialBusy when another process is at it, and BbcuError for what a user can mend.
    """
    check_runnable(config)
    data = data_of(config)
    trial = trial_of(config, data.fingerprint)
    folder = trial.folder(config.outputs)
    prepare = store.experiment_id if in_sweep else store.prepare_tracking
    experiment = prepare(config.tracking.uri, trial.study)
    with folder.held():
        result = folder.result()
        if result is None:
            result = _run_and_record(config, trial, data, folder, experiment)
        else:
            log.info("%s seed %d is done already, nothing is trained", trial.name, trial.seed)
            if not store.is_finished(config.tracking.uri, experiment, trial.cell.key, trial.seed):
                store.log_from_disk(folder, config.tracking.uri, experiment)
    if not in_sweep:
        log.info("%s", summary(result, folder))
    return statistics.fmean(scores["psnr_db"] for scores in result["metrics"].values())


def summary(result: Mapping[str, Any], folder: store.TrialFolder) -> str:
    """A result as lines for people: each test set beside its baseline, the cost, and where it lies."""
    lines = [f"{result['name']}, seed {result['seed']}"]
    for name, scores in result["metrics"].items():
        baseline = result["baseline"][name]
        gain = scores["psnr_db"] - baseline["psnr_db"]
        lines.append(
            f"  {name}: {scores['psnr_db']:.2f} dB / {scores['ssim']:.4f}, "
            f"bicubic {baseline['psnr_db']:.2f} dB / {baseline['ssim']:.4f}, {gain:+.2f} dB"
        )
    cost, timing = result["cost"], result["timing"]
    lines.append(f"  {cost['ops_g']:.2f} G operations, {cost['params_k']:.1f} K parameters")
    lines.append(f"  trained in {timing['train_s']:.0f} s, {timing['step_ms']:.0f} ms a step; in {folder.path}")
    return "\n".join(lines)


def _run_and_record(
    config: Config, trial: Trial, data: "PreparedData", folder: store.TrialFolder, experiment: str
) -> dict[str, Any]:
    """Run the trial with its log, its threads and its MLflow run, whatever way it ends."""
    with _threads(config.threads) as threads, _log_file(folder):
        origin = provenance(device_name(config), threads, trial.seed)
        run = store.TrialRun(config.tracking.uri, experiment, store.facts_of({**trial.facts(), "provenance": origin}))
        try:
            result = {**_run(config, trial, data, folder, run), "provenance": origin}
        except KeyboardInterrupt:
            run.interrupt("stopped from the keyboard")
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, BbcuError) else f"{type(error).__name__}: {error}"
            log.debug("the trial failed", exc_info=True)
            folder.write_failure(reason)
            run.fail(folder, reason)
            raise TrialFailed(f"{trial.name} seed {trial.seed} failed: {reason}; see {folder.log_path}") from error
        folder.write_result(result)
        run.finish(folder, store.final_metrics(result), config.train.steps)
        return result


def _run(
    config: Config, trial: Trial, data: "PreparedData", folder: store.TrialFolder, run: store.TrialRun
) -> dict[str, Any]:
    """Train and evaluate; the result without its provenance. Everything but ``result.json`` is on disk afterwards."""
    import torch

    from bbcu.cost import count
    from bbcu.datasets import PatchSampler
    from bbcu.tasks import task_from_name
    from bbcu.training import TrainSettings, resolve_device, train

    # --- what is trained, on what -------------------------------------------------------------------------------------
    store.write_atomically(folder.config_path, OmegaConf.to_yaml(OmegaConf.structured(config)))
    device, task = resolve_device(config.device), task_from_name(data.task_name)
    torch.manual_seed(trial.seed)
    network = network_of(trial)
    standardise(network, data.train)
    cost = count(network).total
    settings = TrainSettings(**dataclasses.asdict(config.train))
    sampler = PatchSampler(data.train, task.scale, settings.patch, settings.batch, trial.seed)
    log.info("%s seed %d: %d steps on %s", trial.name, trial.seed, settings.steps, device)

    # --- training -----------------------------------------------------------------------------------------------------
    recorder = Recorder(config, trial, data, network, device, run)
    with recorder.progress:
        step_seconds = train(network, sampler, settings, device, recorder)

    # --- what it is worth: the last step, not the best ----------------------------------------------------------------
    folder.write_curve(recorder.points)
    with store.replacing(folder.checkpoint_path) as temporary:
        torch.save({name: value.cpu() for name, value in network.state_dict().items()}, temporary)
    save_samples(folder.samples, data, recorder.samples, task)
    return {
        **trial.facts(),
        "metrics": {name: score_record(scores) for name, scores in recorder.scores.items()},
        "baseline": {name: _mean_record(scores) for name, scores in data.baseline.items()},
        "cost": {"ops_g": cost.ops_g, "params_k": cost.params_k},
        "timing": {
            "train_s": round(sum(step_seconds), 3),
            "step_ms": round(1e3 * statistics.median(step_seconds), 3),
            "evaluate_s": round(recorder.evaluate_seconds, 3),
        },
        "probes": {},
    }


def _mean_record(scores: Mapping[str, "Score"]) -> dict[str, float]:
    from bbcu.training import mean_score

    mean = mean_score(scores)
    return {"psnr_db": round(mean.psnr_db, 6), "ssim": round(mean.ssim, 8)}


def score_record(scores: Mapping[str, "Score"]) -> dict[str, Any]:
    """The scores of a test set as ``result.json`` keeps them: the mean, and each picture's."""
    images = {
        name: {"psnr_db": round(score.psnr_db, 6), "ssim": round(score.ssim, 8)} for name, score in scores.items()
    }
    return {**_mean_record(scores), "images": images}


class Recorder:
    """Watches a training: the progress bar, the learning curve, and the evaluations along it and at its end."""

    def __init__(
        self,
        config: Config,
        trial: Trial,
        data: "PreparedData",
        network: "nn.Module",
        device: "torch.device",
        run: store.TrialRun,
    ) -> None:
        self._tracking, self._steps = config.tracking, config.train.steps
        self._data, self._network, self._device, self._run = data, network, device, run
        self._window: list[StepReport] = []
        self._unsent: list[store.CurvePoint] = []
        self._sent_at = time.monotonic()
        self.progress = TrialProgress(f"{trial.name} seed {trial.seed}", self._steps, config.progress)
        self.points: list[store.CurvePoint] = []
        self.scores: dict[str, dict[str, Score]] = {}
        self.samples: dict[tuple[str, str], Pixels] = {}
        self.evaluate_seconds = 0.0

    def __call__(self, report: "StepReport") -> None:
        """Take in one step."""
        self.progress.update(report.step, report.loss, report.psnr_db)
        self._window.append(report)
        if self._is_due(report.step, self._tracking.curve_points):
            self._add(report.step, self._window_means())
        if self._is_due(report.step, self._tracking.evaluations):
            self._evaluate(report.step)
        if report.step == self._steps or time.monotonic() - self._sent_at > SECONDS_BETWEEN_FLUSHES:
            self._flush()

    def _is_due(self, step: int, times: int) -> bool:
        """Whether ``step`` is one of ``times`` evenly spaced ones, the last step among them."""
        return step * times // self._steps > (step - 1) * times // self._steps

    def _window_means(self) -> dict[str, float]:
        """The means since the last point: a single batch jumps too much to draw a curve from."""
        window, self._window = self._window, []
        return {
            "train/loss": statistics.fmean(report.loss for report in window),
            "train/psnr_db": statistics.fmean(report.psnr_db for report in window),
        }

    def _evaluate(self, step: int) -> None:
        from bbcu.tasks import task_from_name
        from bbcu.training import evaluate, mean_score

        def keep(set_name: str, pair: "Pair", output: "Pixels") -> None:
            if step == self._steps and len(self._sampled(set_name)) < self._tracking.samples:
                self.samples[set_name, pair.name] = output

        start = time.perf_counter()
        task = task_from_name(self._data.task_name)
        self.scores = evaluate(self._network, self._data.test, task, self._device, keep)
        self.evaluate_seconds += time.perf_counter() - start
        means = {name: mean_score(scores) for name, scores in self.scores.items()}
        self._add(step, {f"{name}/psnr_db": mean.psnr_db for name, mean in means.items()})

    def _sampled(self, set_name: str) -> list[str]:
        return [picture for name, picture in self.samples if name == set_name]

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        point = store.CurvePoint(step, metrics)
        self.points.append(point)
        self._unsent.append(point)

    def _flush(self) -> None:
        self._run.log_curve(self._unsent)
        self._unsent = []
        self._sent_at = time.monotonic()


# --- sample pictures --------------------------------------------------------------------------------------------------


def crop_place(truth: "Pixels", baseline: "Pixels", scale: int) -> tuple[slice, slice]:
    """The window of CROP x CROP pixels of the truth where the baseline errs most, on the grid of the input.

    It depends on the data alone, so every cell shows the same place.
    """
    error = np.abs(truth.astype(np.float64) - baseline).mean(axis=2)
    sums = np.pad(error.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    height, width = (min(CROP, size) // scale * scale for size in error.shape)
    window = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    window = window[::scale, ::scale]
    top, left = (int(place) * scale for place in np.unravel_index(window.argmax(), window.shape))
    return slice(top, top + height), slice(left, left + width)


def save_samples(folder: Path, data: "PreparedData", outputs: Mapping[tuple[str, str], "Pixels"], task: "Task") -> None:
    """Save a crop of each output beside the same place in the input, the baseline and the truth."""
    from PIL import Image

    for (set_name, picture), output in outputs.items():
        pair = next(pair for pair in data.test[set_name] if pair.name == picture)
        baseline = task.baseline(pair.input)
        rows, columns = crop_place(pair.truth, baseline, task.scale)
        small = tuple(slice(cut.start // task.scale, cut.stop // task.scale) for cut in (rows, columns))
        crops = {
            "input": pair.input[small],
            "baseline": baseline[rows, columns],
            "output": output[rows, columns],
            "truth": pair.truth[rows, columns],
        }
        place = folder / set_name / picture
        place.mkdir(parents=True, exist_ok=True)
        for name, crop in crops.items():
            Image.fromarray(crop).save(place / f"{name}.png")


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
