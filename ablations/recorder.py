"""What is kept of a training while it runs: the progress bar, the learning curve, and the evaluations along it."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ablations import store
from ablations.config import Config
from ablations.progress import TrialProgress
from bbcu.evaluation import Evaluation, evaluate, mean_score
from bbcu.images import Pixels
from bbcu.pairs import Pair, PreparedData
from bbcu.tasks import Score
from bbcu.training import StepReport

SECONDS_BETWEEN_FLUSHES = 10.0
"""How long points of the curve may wait before MLflow gets them, so that its page follows a training."""


def mean_record(scores: Mapping[str, Score]) -> dict[str, float]:
    mean = mean_score(scores)
    return {"psnr_db": round(mean.psnr_db, 6), "ssim": round(mean.ssim, 8)}


def score_record(scores: Mapping[str, Score]) -> dict[str, Any]:
    """The scores of a test set as ``result.json`` keeps them: the mean, and each picture's."""
    images = {
        name: {"psnr_db": round(score.psnr_db, 6), "ssim": round(score.ssim, 8)} for name, score in scores.items()
    }
    return {**mean_record(scores), "images": images}


class Recorder:
    """Watches a training: the progress bar, the learning curve, and the evaluations along it and at its end."""

    def __init__(
        self,
        config: Config,
        name: str,
        data: PreparedData,
        network: nn.Module,
        device: torch.device,
        run: store.TrialRun,
    ) -> None:
        self._tracking, self._steps = config.tracking, config.train.steps
        self._data, self._network, self._device, self._run = data, network, device, run
        self._how = Evaluation(config.evaluation.self_ensemble, config.evaluation.tile)
        self._window: list[StepReport] = []
        self._unsent: list[store.CurvePoint] = []
        self._sent_at = time.monotonic()
        self.progress = TrialProgress(name, self._steps, config.progress)
        self.points: list[store.CurvePoint] = []
        self.scores: dict[str, dict[str, Score]] = {}
        self.samples: dict[tuple[str, str], Pixels] = {}
        self.evaluate_seconds = 0.0

    def __call__(self, report: StepReport) -> None:
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
        def keep(set_name: str, pair: Pair, output: Pixels) -> None:
            if step == self._steps and len(self._sampled(set_name)) < self._tracking.samples:
                self.samples[set_name, pair.name] = output

        start = time.perf_counter()
        self.scores = evaluate(self._network, self._data.test, self._data.task, self._device, self._how, keep)
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
