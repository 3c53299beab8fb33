"""Metrics of the user's own: checked before a trial trains, scored from its checkpoint, and part of no cell."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ablations.storage.attempts import history_of
from ablations.trial import own_metrics
from ablations.trial.data import data_of
from bbcu.data.images import Pixels
from bbcu.data.tasks import within
from bbcu.errors import ConfigError
from bbcu.training.evaluation import Metric
from bbcu.training.evaluation import own_metrics as find_metrics
from tests.harness.support import Outcome, Workplace, result_of

CELLS = ("method=bbcu,bicubic",)


def mean_error(restored: Pixels, truth: Pixels) -> float:
    """The mean absolute error of pictures (height, width, channels)."""
    return float(np.abs(restored.astype(float) - truth.astype(float)).mean())


class Height:
    """A metric with a state: the height of what is scored."""

    def __call__(self, restored: Pixels, truth: Pixels) -> int:
        return len(restored)


def broken(restored: Pixels, truth: Pixels) -> float:
    """A metric that only works on the two pictures that it is tried on."""
    if restored.shape[:2] != (64, 64):
        raise ValueError("too small")
    return 1.0


def silent(restored: Pixels, truth: Pixels) -> float:
    return float("nan")


def ssim(restored: Pixels, truth: Pixels) -> float:
    return 1.0


NUMBER = 3
PATHS = tuple(f"{__name__}.{name}" for name in ("mean_error", "Height"))
ASKED = f"evaluation.metrics=[{','.join(PATHS)}]"


@dataclasses.dataclass(frozen=True)
class Scored:
    """A sweep that was run again to score what it had trained."""

    workplace: Workplace
    before: dict[str, Any]
    again: Outcome


@pytest.fixture(scope="module")
def swept(new_workplace: Callable[[], Workplace]) -> Scored:
    workplace = new_workplace()
    assert workplace.sweep(*CELLS).status == 0
    before = result_of(workplace)
    return Scored(workplace, before, workplace.sweep(*CELLS, ASKED))


def test_a_finished_trial_is_scored_from_its_checkpoint_and_not_trained_again(swept: Scored) -> None:
    assert swept.again.status == 0, swept.again.text
    assert "2 trials, 2 done already, nothing to train, the metrics of 2 to score" in swept.again.out
    result = result_of(swept.workplace)
    assert len(history_of(swept.workplace.folder_of()).attempts) == 1
    assert set(result["provenance"]["metrics"]) == set(PATHS)
    assert without_own(result) == swept.before


def without_own(result: dict[str, Any]) -> dict[str, Any]:
    """A result as it was before the user's metrics were scored."""

    def kept(scores: dict[str, Any]) -> dict[str, Any]:
        left = {name: value for name, value in scores.items() if name not in ("mean_error", "Height")}
        return {
            name: {k: kept(v) for k, v in value.items()} if name == "images" else value for name, value in left.items()
        }

    groups = {
        group: {name: kept(scores) for name, scores in result[group].items()} for group in ("metrics", "baseline")
    }
    provenance = {name: value for name, value in result["provenance"].items() if name != "metrics"}
    return {**result, **groups, "provenance": provenance}


def test_every_picture_its_mean_and_the_baseline_are_scored_inside_the_border(swept: Scored) -> None:
    data = data_of(swept.workplace.config("method=bicubic"))
    task, pairs = data.task, data.test["Tiny"]
    simple = [within(task.baseline(pair.input), task.border) for pair in pairs]
    truths = [within(pair.truth, task.border) for pair in pairs]
    expected = statistics.fmean(map(mean_error, simple, truths))
    baseline, trained = result_of(swept.workplace, "method=bicubic"), result_of(swept.workplace)
    for scores in (baseline["metrics"]["Tiny"], baseline["baseline"]["Tiny"], trained["baseline"]["Tiny"]):
        assert scores["mean_error"] == pytest.approx(expected, abs=1e-7)
    scored = trained["metrics"]["Tiny"]
    assert scored["Height"] == statistics.fmean(len(truth) for truth in truths)
    images = [image["mean_error"] for image in scored["images"].values()]
    assert scored["mean_error"] == pytest.approx(statistics.fmean(images), abs=1e-7)
    assert scored["mean_error"] != pytest.approx(expected, abs=1e-6)


def test_mlflow_has_the_metrics_of_every_trial(swept: Scored) -> None:
    results = [result_of(swept.workplace, *overrides) for overrides in ((), ("method=bicubic",))]
    found = {run.data.tags["cell"]: run.data.metrics for run in swept.workplace.runs("FINISHED")}
    for result in results:
        logged = found[result["cell"]]
        assert logged["Tiny/mean_error"] == result["metrics"]["Tiny"]["mean_error"]
        assert logged["Tiny/psnr_rgb_db"] == result["metrics"]["Tiny"]["psnr_rgb_db"]
        assert logged["baseline/Tiny/mean_error"] == result["baseline"]["Tiny"]["mean_error"]


def test_a_metric_whose_module_has_changed_is_scored_again(swept: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    config, result = swept.workplace.config(ASKED), result_of(swept.workplace)
    assert not own_metrics.lacks_metrics(result, config)
    monkeypatch.setattr(own_metrics, "fingerprint_of_own", lambda path: "other")
    assert own_metrics.lacks_metrics(result, config)


def test_a_result_keeps_the_metrics_that_it_was_scored_with_before(workplace: Workplace) -> None:
    for path in PATHS:
        assert workplace.run("method=bicubic", f"evaluation.metrics=[{path}]").status == 0
    result = result_of(workplace, "method=bicubic")
    assert {"mean_error", "Height"} < set(result["metrics"]["Tiny"])
    assert not own_metrics.lacks_metrics(result, workplace.config("method=bicubic", ASKED))


def test_a_metric_that_fails_on_a_picture_costs_no_training(workplace: Workplace) -> None:
    done = workplace.run(f"evaluation.metrics=[{__name__}.broken]")
    assert done.status == 0
    assert f"its own metrics were not scored: evaluation.metrics={__name__}.broken: ValueError: too small" in done.text
    assert "broken" not in result_of(workplace)["metrics"]["Tiny"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("lpips", "must be a function of (restored, truth), or a class of such functions, by its dotted path"),
        ("math.sqrt", "must be a function of (restored, truth), or a class of such functions, and math is a module of"),
        ("nowhere.metric", "cannot be imported: No module named"),
        (f"{__name__}.missing", "cannot be imported: module"),
        (f"{__name__}.NUMBER", "and NUMBER is a int"),
        (f"{__name__}.silent", "must return a finite number, and returned nan"),
        (f"{__name__}.ssim", "there is a metric of the name ssim already"),
        (f"{__name__}.without_own", "TypeError: "),
    ],
)
def test_a_metric_that_cannot_work_is_refused_in_one_line(path: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        own(path)
    line = str(refused.value)
    assert line.startswith("evaluation.metrics")
    assert reason in line
    assert "\n" not in line


def own(*paths: str) -> dict[str, Metric]:
    return find_metrics(paths, 3)


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is a metric of the name Height already"):
        own(PATHS[1], PATHS[1])


def test_a_metric_is_tried_before_anything_is_trained(workplace: Workplace) -> None:
    line = workplace.run(f"evaluation.metrics=[{__name__}.silent]").refusal
    assert line.startswith(f"run.py: evaluation.metrics={__name__}.silent: must return a finite number")
    assert workplace.is_untouched()
