"""What a trial leaves in its folder and in MLflow, also if it fails."""

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Run
from PIL import Image
from torch import Tensor, nn

from ablations.storage.attempts import State, begin_attempt, end_attempt, history_of, present_state
from ablations.trial import recorder
from ablations.trial.data import data_of
from ablations.trial.execution import TrialFailed, TrialHopeless, TrialOutOfMemory, failure_of
from ablations.trial.identity import network_of, spec_of
from bbcu.data.tasks import ArtifactReduction, Denoising, SuperResolution, Task
from bbcu.deploy.sources import as_trained, find
from bbcu.errors import ConfigError
from bbcu.evaluate import main as evaluate_command
from bbcu.model.cost import count
from bbcu.model.networks import SRResNet
from bbcu.training.evaluation import Evaluation, evaluate
from tests.harness.faults import endings
from tests.harness.servers import check_recorded
from tests.harness.support import STUDY, Outcome, Workplace, contents, photograph, result_of

TINY = SuperResolution(2)
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class DoneTrial:
    """A trial that was run once, for tests that only look at it."""

    workplace: Workplace
    outcome: Outcome

    @property
    def path(self) -> Path:
        return self.workplace.folder_of().path

    @property
    def result(self) -> dict[str, Any]:
        return result_of(self.workplace)

    @property
    def run(self) -> Run:
        (run,) = self.workplace.runs()
        return run


@pytest.fixture(scope="module")
def done(new_workplace: Callable[[], Workplace]) -> DoneTrial:
    workplace = new_workplace()
    return DoneTrial(workplace, workplace.run())


def test_a_trial_ends_with_status_zero_and_prints_its_score(done: DoneTrial) -> None:
    score = done.result["metrics"]["Tiny"]
    assert done.outcome.status == 0
    assert f"Tiny: PSNR {score['psnr_db']:.2f} dB, SSIM {score['ssim']:.4f}" in done.outcome.out
    assert done.outcome.message == ""


# --- its folder -------------------------------------------------------------------------------------------------------


def test_a_trial_leaves_its_files_in_the_folder_of_its_cell_and_seed(done: DoneTrial) -> None:
    kinds = ("input", "baseline", "output", "truth")
    pictures = {f"samples/Tiny/{image}/{kind}.png" for image in ("third", "fourth") for kind in kinds}
    files = {"result.json", "state.json", "checkpoint.pt", "config.yaml", "trial.log", "curve.csv"}
    folder = done.workplace.outputs / STUDY / done.workplace.trial().cell.key / "seed0"
    assert set(contents(folder)) == pictures | files


def test_the_result_holds_every_fact_of_its_format(done: DoneTrial) -> None:
    result = done.result
    identity = {"study", "cell", "name", "factors", "levels", "reference", "setting", "method", "task", "seed"}
    assert set(result) == identity | {"metrics", "baseline", "cost", "timing", "dead", "probes", "provenance"}
    assert (result["study"], result["method"], result["task"], result["seed"]) == (STUDY, "bbcu", "sr_x2", 0)
    assert result["factors"] == {
        "residual": True,
        "bn": "none",
        "act": "inside",
        "act_fn": "rprelu",
        "align": 130 * 4 / 64,
        "binarize": ["body"],
        "threshold": True,
        "surrogate": "quadratic",
        "weight": "l1",
        "rescale": "none",
        "start": "scratch",
        "distil": "none",
    }
    assert set(result["metrics"]["Tiny"]) == {"psnr_db", "ssim", "psnr_rgb_db", "images"}
    assert set(result["baseline"]["Tiny"]) == {"psnr_db", "ssim", "psnr_rgb_db"}
    assert {"train_s", "step_ms"} <= set(result["timing"])
    assert result["timing"].get("peak_mib", 200) > 100
    assert {"git", "dirty", "packages", "cpu", "seed"} <= set(result["provenance"])
    cost = count(network_of(done.workplace.trial())).total
    by_kind = {"full_macs_g": round(cost.full_macs / 1e9, 6), "binary_macs_g": round(cost.binary_macs / 1e9, 6)}
    assert result["cost"] == {"ops_g": cost.ops_g, "params_k": cost.params_k, **by_kind}
    assert by_kind["full_macs_g"] + by_kind["binary_macs_g"] / 64 == pytest.approx(cost.ops_g, abs=1e-3)


@pytest.mark.parametrize("metric", ["psnr_db", "ssim"])
def test_the_score_of_a_set_is_the_mean_of_its_images(done: DoneTrial, metric: str) -> None:
    score = done.result["metrics"]["Tiny"]
    assert set(score["images"]) == {"third", "fourth"}
    mean = statistics.fmean(image[metric] for image in score["images"].values())
    assert score[metric] == pytest.approx(mean, abs=1e-6)


def test_the_packed_network_that_scores_a_trial_has_the_bits_of_the_float_one(
    done: DoneTrial, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same trial again, scored by its float network in the place of the packed one."""
    scored = []

    def float_runner(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
        def run(batch: Tensor) -> Tensor:
            scored.append(batch.shape)
            output: Tensor = network(batch)
            return output

        return run

    monkeypatch.setattr(recorder, "exact_runner", float_runner)
    assert workplace.run().status == 0
    evaluations = [point for point in workplace.folder_of().curve() if "Tiny/psnr_db" in point.metrics]
    assert len(scored) == 2 * len(evaluations) > 0
    assert result_of(workplace)["metrics"] == done.result["metrics"]


def mean_baseline(task: Task, level: str = "", metric: str = "psnr_db") -> float:
    """The mean score of the test inputs themselves."""
    pairs = [task.test_pair(photograph(seed), level) for seed in (2, 3)]
    return statistics.fmean(getattr(task.score(task.baseline(input_), truth), metric) for input_, truth in pairs)


@pytest.mark.parametrize("metric", ["psnr_db", "ssim"])
def test_the_baseline_is_the_score_of_the_task_without_a_network(done: DoneTrial, metric: str) -> None:
    assert done.result["baseline"]["Tiny"][metric] == pytest.approx(mean_baseline(TINY, metric=metric), abs=1e-6)


def test_the_checkpoint_restores_the_network_that_was_scored(done: DoneTrial) -> None:
    network = network_of(done.workplace.trial())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(torch.load(done.path / "checkpoint.pt", weights_only=True))
    scores = evaluate(network, data_of(done.workplace.config()).test, TINY, CPU)["Tiny"]
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for name, image in done.result["metrics"]["Tiny"]["images"].items():
        assert scores[name].psnr_db == pytest.approx(image["psnr_db"], abs=1e-6)
        assert scores[name].ssim == pytest.approx(image["ssim"], abs=1e-8)


def test_the_network_that_was_scored_is_rebuilt_from_the_folder_alone(done: DoneTrial) -> None:
    expected = network_of(done.workplace.trial())
    expected.load_state_dict(torch.load(done.path / "checkpoint.pt"))
    for name in (done.path, done.path.parent, f"{str(done.path.parent)[:-50]}*"):
        found = find(str(name)).network
        assert isinstance(found, SRResNet)
        assert found.spec == spec_of(done.workplace.trial())
        x = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))
        assert torch.equal(found(x), as_trained(expected)(x))


def test_the_network_scores_again_as_its_result_says(done: DoneTrial, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command([str(done.path), f"Tiny={done.workplace.folder / 'test'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == done.result["metrics"]
    assert found["baseline"] == done.result["baseline"]


def test_the_saved_config_has_the_values_that_were_set(done: DoneTrial) -> None:
    saved = (done.path / "config.yaml").read_text(encoding="utf-8")
    for line in ("steps: 2", "channels: 4", "name: sr_x2", f"outputs: {done.workplace.outputs}", "residual: true"):
        assert line in saved


def test_the_curve_ends_with_the_score_of_the_result(done: DoneTrial) -> None:
    curve = done.workplace.folder_of().curve()
    values = [point.metrics["Tiny/psnr_db"] for point in curve if "Tiny/psnr_db" in point.metrics]
    assert values[-1] == pytest.approx(done.result["metrics"]["Tiny"]["psnr_db"], abs=1e-6)
    assert {point.step for point in curve if "train/loss" in point.metrics} == {1, 2}


def test_the_log_says_what_was_trained(done: DoneTrial) -> None:
    assert "reference seed 0: 2 steps on cpu" in (done.path / "trial.log").read_text(encoding="utf-8")


def test_a_sample_shows_the_pictures_that_were_scored(done: DoneTrial) -> None:
    place = done.path / "samples" / "Tiny" / "third"
    pictures = {path.stem: np.asarray(Image.open(path)) for path in place.iterdir()}
    input_, truth = TINY.pair(photograph(2))
    for kind, expected in (("truth", truth), ("input", input_), ("baseline", TINY.baseline(input_))):
        assert np.array_equal(pictures[kind], expected), kind
    score = TINY.score(pictures["output"], truth)
    assert score.psnr_db == pytest.approx(done.result["metrics"]["Tiny"]["images"]["third"]["psnr_db"], abs=1e-6)


# --- its MLflow run ---------------------------------------------------------------------------------------------------


def test_mlflow_holds_one_finished_run_that_names_the_trial(done: DoneTrial) -> None:
    run, result = done.run, done.result
    assert (run.info.status, run.info.run_name) == ("FINISHED", "reference seed 0")
    expected = {"cell": result["cell"], "seed": "0", "study": STUDY, "method": "bbcu", "task": "sr_x2"}
    assert {name: run.data.tags[name] for name in expected} == expected
    assert run.data.tags["git"] == result["provenance"]["git"]


def test_mlflow_holds_the_parameters_and_numbers_of_the_result(done: DoneTrial) -> None:
    check_recorded(done.workplace, trials=1)
    assert {
        "act_fn": "rprelu",
        "align": "8.125",
        "train.steps": "2",
        "seed": "0",
    }.items() <= done.run.data.params.items()
    assert {"Tiny/psnr_db", "baseline/Tiny/ssim", "cost/ops_g", "timing/train_s", "train/loss"} <= set(
        done.run.data.metrics
    )


def test_mlflow_holds_the_files_of_the_folder(done: DoneTrial) -> None:
    artifacts = contents(Path(done.run.info.artifact_uri.removeprefix("file://")))
    files = {name: data for name, (data, _) in contents(done.path).items() if name != "checkpoint.pt"}
    assert set(artifacts) == set(files)
    # The log goes on after its copy is taken.
    assert all(artifacts[name][0] == files[name] for name in set(files) - {"trial.log"})


# --- how it is scored -------------------------------------------------------------------------------------------------


def test_the_score_is_that_of_the_last_step_and_not_of_the_best(workplace: Workplace) -> None:
    training = ("train.steps=3", "train.lr=0.3", "train.schedule=constant", "train.precision=fp32")
    setting = (*training, "tracking.evaluations=3")
    workplace.run(*setting)
    curve = workplace.folder_of(*setting).curve()
    scores = [point.metrics["Tiny/psnr_db"] for point in curve if "Tiny/psnr_db" in point.metrics]
    assert len(scores) == 3
    assert max(scores) > scores[-1] + 0.1
    assert result_of(workplace, *setting)["metrics"]["Tiny"]["psnr_db"] == pytest.approx(scores[-1], abs=1e-6)


DENOISING, JPEG = Denoising((25.0,), (0.0, 75.0)), ArtifactReduction((10,), (1, 50))


@pytest.mark.parametrize(
    ("overrides", "task", "label"),
    [
        pytest.param(("method=bicubic",), TINY, "sr_x2, bicubic", id="bicubic"),
        pytest.param(("method=identity", "task=jpeg"), JPEG, "jpeg, input", id="jpeg"),
    ],
)
def test_a_method_that_trains_nothing_needs_no_pictures_to_train_on(
    workplace: Workplace, overrides: tuple[str, ...], task: Task, label: str
) -> None:
    outcome = workplace.sweep(*overrides, "data.train=''")
    assert outcome.status == 0, outcome.message
    (folder,) = workplace.trials()
    result = folder.result()
    assert result is not None
    score = result["metrics"]["Tiny"]
    assert score["psnr_db"] == pytest.approx(mean_baseline(task), abs=1e-6)
    assert f"{label}: Tiny {score['psnr_db']:.2f} dB / {score['ssim']:.4f}" in outcome.out.splitlines()
    assert not folder.checkpoint_path.exists()


@pytest.mark.parametrize(
    ("name", "task"), [pytest.param("denoise", DENOISING, id="denoise"), pytest.param("jpeg", JPEG, id="jpeg")]
)
def test_a_task_without_enlarging_trains_a_dncnn(workplace: Workplace, name: str, task: Task) -> None:
    outcome = workplace.run(f"task={name}")
    assert outcome.status == 0, outcome.message
    result = result_of(workplace, f"task={name}")
    assert (result["task"], result["setting"]["network"]["name"]) == (name, "dncnn")
    assert result["setting"]["task"] == task.parameters()
    assert result["baseline"]["Tiny"]["psnr_db"] == pytest.approx(mean_baseline(task), abs=1e-6)
    assert f"input {result['baseline']['Tiny']['psnr_db']:.2f} dB" in outcome.out


def test_several_levels_are_scored_by_one_training(workplace: Workplace) -> None:
    setting = ("task=denoise", "task.sigma=[15,50]")
    outcome = workplace.run(*setting)
    assert outcome.status == 0, outcome.message
    result = result_of(workplace, *setting)
    assert list(result["metrics"]) == list(result["baseline"]) == ["Tiny-sigma15", "Tiny-sigma50"]
    assert result["baseline"]["Tiny-sigma50"]["psnr_db"] < result["baseline"]["Tiny-sigma15"]["psnr_db"]
    assert len(workplace.runs()) == 1


def test_self_ensemble_changes_the_score_of_the_same_network(done: DoneTrial, workplace: Workplace) -> None:
    setting = "evaluation.self_ensemble=true"
    assert workplace.run(setting).status == 0
    network = network_of(workplace.trial())
    network.load_state_dict(torch.load(workplace.folder_of(setting).checkpoint_path, weights_only=True))
    expected = evaluate(network, data_of(workplace.config()).test, TINY, CPU, Evaluation(self_ensemble=True))["Tiny"]
    metrics = result_of(workplace, setting)["metrics"]
    assert metrics != done.result["metrics"]
    for name, image in metrics["Tiny"]["images"].items():
        assert image["psnr_db"] == pytest.approx(expected[name].psnr_db, abs=1e-6)


def test_tiles_change_no_score(workplace: Workplace) -> None:
    method = "method=full_precision"
    assert workplace.run(method).status == 0
    assert workplace.run(method, "evaluation.tile=16", "study.name=tiled").status == 0
    whole, tiled = (
        result_of(workplace, method, study)["metrics"] for study in ("study.name=adhoc", "study.name=tiled")
    )
    for name, image in whole["Tiny"]["images"].items():
        assert tiled["Tiny"]["images"][name]["psnr_db"] == pytest.approx(image["psnr_db"], abs=1e-3)


# --- the same conditions for every cell -------------------------------------------------------------------------------


def test_the_same_config_has_the_same_metrics_curve_weights_and_samples_in_another_folder(
    done: DoneTrial, workplace: Workplace
) -> None:
    workplace.run()
    assert endings(workplace) == endings(done.workplace)


def losses(workplace: Workplace, *overrides: str) -> list[float]:
    curve = workplace.folder_of(*overrides).curve()
    return [point.metrics["train/loss"] for point in curve if "train/loss" in point.metrics]


def test_two_cells_of_a_seed_start_from_the_same_weights_on_the_same_patches(
    done: DoneTrial, workplace: Workplace
) -> None:
    workplace.run("train.lr=5e-2")
    slow, fast = losses(done.workplace), losses(workplace, "train.lr=5e-2")
    assert slow[0] == fast[0]
    assert slow[1] != fast[1]


def test_another_seed_starts_from_other_weights(done: DoneTrial, workplace: Workplace) -> None:
    workplace.run("seed=1")
    assert losses(done.workplace)[0] != losses(workplace, "seed=1")[0]


# --- a trial that fails -----------------------------------------------------------------------------------------------

DIVERGES = ("train.lr=1e30", "tracking.evaluations=1")
REASON = "the loss is nan at step 2 of 2"


def test_a_failed_trial_has_its_reason_in_one_line_in_its_state_and_in_mlflow(workplace: Workplace) -> None:
    outcome = workplace.run(*DIVERGES)
    assert REASON in outcome.refusal
    folder = workplace.folder_of(*DIVERGES)
    assert present_state(folder) == (State.FAILED, REASON)
    assert folder.result() is None
    (run,) = workplace.runs()
    assert (run.info.status, run.data.tags["reason"], run.data.tags["cell"]) == ("FAILED", REASON, folder.cell)


def test_weights_that_are_nan_are_a_divergence_wherever_they_are_noticed(workplace: Workplace) -> None:
    outcome = workplace.run("train.lr=1e30", "tracking.evaluations=2")
    assert "ValueError" not in outcome.message
    assert "nan" in outcome.message.lower()


def test_a_failed_trial_is_retried(workplace: Workplace) -> None:
    folder = workplace.folder_of()
    begin_attempt(folder)
    end_attempt(folder, State.FAILED, "the machine was on fire")
    workplace.run()
    first, second = history_of(folder).attempts
    assert (first.state, first.reason, second.state) == ("failed", "the machine was on fire", "finished")
    assert folder.result() is not None


def test_a_finished_trial_is_not_retrained(workplace: Workplace) -> None:
    workplace.run()
    before = contents(workplace.outputs / STUDY)
    again = workplace.run()
    assert again.status == 0
    assert "has a result already" in again.out
    assert contents(workplace.outputs / STUDY) == before
    assert len(workplace.runs()) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), TrialOutOfMemory, id="gpu-is-full"),
        pytest.param(ConfigError("no such level"), TrialHopeless, id="mistake-of-the-user"),
        pytest.param(RuntimeError("a hiccup"), TrialFailed, id="anything-else"),
    ],
)
def test_the_kind_of_a_failure_says_whether_a_retry_may_help(error: Exception, kind: type[TrialFailed]) -> None:
    assert failure_of(error) is kind
