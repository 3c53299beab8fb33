"""What is recorded while a training runs: its curve, its evaluations, and snapshots to resume from."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from ablations.config import Config
from ablations.storage.folder import CurvePoint
from ablations.storage.lease import HeldLease
from ablations.storage.pruning import PruningClient
from ablations.storage.snapshots import Snapshots
from ablations.storage.stopping import Interrupted, StopSign
from ablations.tracking.runs import TrialRun
from ablations.trial.progress import TrialProgress
from bbcu.data.images import Pixels
from bbcu.data.pairs import Pair, PreparedData
from bbcu.data.tasks import Score
from bbcu.deploy.backends import exact_runner
from bbcu.training.evaluation import Evaluation, evaluate, mean_score
from bbcu.training.loop import StepReport, Training

SECONDS_BETWEEN_FLUSHES = 10.0
"""How often points of the curve are sent to MLflow, so that its page follows a training."""


@dataclass(frozen=True)
class Links:
    """What a recorder writes to, and what may end its trial early: the signal to stop and the pruner of a search."""

    lease: HeldLease
    run: TrialRun
    snapshots: Snapshots
    stop: StopSign
    pruning: PruningClient


class Recorder:
    """A callback of the training loop: progress, learning curve, evaluations, heartbeats and snapshots.

    A snapshot holds the training and what the recorder has recorded. One is saved every ``tracking.snapshot_s``
    seconds, and when the trial is asked to stop.
    """

    def __init__(self, config: Config, name: str, data: PreparedData, training: Training, links: Links) -> None:
        self._tracking, self._steps = config.tracking, config.train.steps
        self._data, self._training, self._links = data, training, links
        self._how = Evaluation(config.evaluation.self_ensemble, config.evaluation.tile)
        self._window: list[StepReport] = []
        self._unsent: list[CurvePoint] = []
        self._sent_at = self._saved_at = time.monotonic()
        self.progress = TrialProgress(name, self._steps, config.progress)
        self.points: list[CurvePoint] = []
        self.scores: dict[str, dict[str, Score]] = {}
        self.samples: dict[tuple[str, str], Pixels] = {}
        self.evaluate_seconds = 0.0

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore what an earlier recorder had saved in a snapshot, and send its curve to MLflow again."""
        self.points = [CurvePoint(step, metrics, moment) for step, metrics, moment in state["points"]]
        self._window = [StepReport(*report) for report in state["window"]]
        self.evaluate_seconds = state["evaluate_seconds"]
        self._unsent = list(self.points)
        self._flush()

    def __call__(self, report: StepReport) -> None:
        """Record one step; raises Interrupted, with a snapshot on disk, if the trial was asked to stop."""
        self.progress.update(report.step, report.loss, report.psnr_db)
        self._links.lease.heartbeat(phase="training", step=report.step)
        self._window.append(report)
        if self._is_due(report.step, self._tracking.curve_points):
            self._add(report.step, self._window_means())
        if self._is_due(report.step, self._tracking.evaluations):
            self._evaluate(report.step)
        if report.step == self._steps or time.monotonic() - self._sent_at > SECONDS_BETWEEN_FLUSHES:
            self._flush()
        if report.step < self._steps:
            self._save_or_stop(report.step)

    def _save_or_stop(self, step: int) -> None:
        """Save a snapshot when one is due, and stop if the trial was asked to."""
        reason = self._links.stop.reason()
        if reason is not None or time.monotonic() - self._saved_at >= self._tracking.snapshot_s:
            self._links.lease.check()
            self._links.snapshots.save(step, {"training": self._training.state_dict(), "recorder": self._state()})
            self._saved_at = time.monotonic()
        if reason is not None:
            self._flush()
            raise Interrupted(reason)

    def _state(self) -> dict[str, Any]:
        return {
            "points": [(point.step, dict(point.metrics), point.time) for point in self.points],
            "window": [astuple(report) for report in self._window],
            "evaluate_seconds": self.evaluate_seconds,
        }

    def _is_due(self, step: int, times: int) -> bool:
        """Whether ``step`` is one of ``times`` evenly spaced steps, of which the last step of the training is one."""
        return step * times // self._steps > (step - 1) * times // self._steps

    def _window_means(self) -> dict[str, float]:
        """The means since the last point, because a single batch is too noisy for a curve."""
        window, self._window = self._window, []
        return {
            "train/loss": statistics.fmean(report.loss for report in window),
            "train/psnr_db": statistics.fmean(report.psnr_db for report in window),
        }

    def _evaluate(self, step: int) -> None:
        def keep(set_name: str, pair: Pair, output: Pixels) -> None:
            self._links.lease.heartbeat(phase="evaluating")
            self.progress.evaluated(set_name, len(self._data.test[set_name]))
            if step == self._steps and len(self._sampled(set_name)) < self._tracking.samples:
                self.samples[set_name, pair.name] = output

        start = time.perf_counter()
        network, device = self._training.network, self._training.device
        # A packed network gives the bits of the one that is trained, several times as fast at the published size.
        run = exact_runner(network, device)
        self.scores = evaluate(network, self._data.test, self._data.task, device, self._how, keep, run)
        self.evaluate_seconds += time.perf_counter() - start
        means = {name: mean_score(scores) for name, scores in self.scores.items()}
        self._add(step, {f"{name}/psnr_db": mean.psnr_db for name, mean in means.items()})
        psnr_db = statistics.fmean(mean.psnr_db for mean in means.values())
        self._links.lease.heartbeat(now=True, phase="training", scored_at=step, psnr_db=psnr_db)
        if step < self._steps:
            self._links.pruning.check(step, psnr_db)

    def _sampled(self, set_name: str) -> list[str]:
        return [picture for name, picture in self.samples if name == set_name]

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        point = CurvePoint(step, metrics)
        self.points.append(point)
        self._unsent.append(point)

    def _flush(self) -> None:
        self._links.run.log_curve(self._unsent)
        self._unsent = []
        self._sent_at = time.monotonic()
