"""The command: what a trial leaves, what a sweep trains, and what a wrong input is told."""

import dataclasses
import importlib.util
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Run
from PIL import Image

from ablations.storage.attempts import State, begin_attempt, end_attempt, history_of, present_state
from ablations.trial.data import data_of
from ablations.trial.identity import network_of
from bbcu.data.tasks import ArtifactReduction, Denoising, SuperResolution, Task
from bbcu.model.cost import count
from bbcu.training.evaluation import Evaluation, evaluate
from tests.harness.builders import save
from tests.harness.support import STUDY, Outcome, Workplace, contents, ended, photograph

TINY = SuperResolution(2)
CPU = torch.device("cpu")


def result_of(workplace: Workplace, *overrides: str) -> dict[str, Any]:
    result = workplace.folder_of(*overrides).result()
    assert result is not None
    return result


# --- what one trial leaves --------------------------------------------------------------------------------------------


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
def done(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> DoneTrial:
    workplace = Workplace.apart(tmp_path_factory.mktemp("done"), migrated_database)
    return DoneTrial(workplace, workplace.run())


def test_a_trial_ends_with_status_zero_and_says_what_it_reached(done: DoneTrial) -> None:
    score = done.result["metrics"]["Tiny"]
    assert done.outcome.status == 0
    assert f"Tiny: {score['psnr_db']:.2f} dB / {score['ssim']:.4f}" in done.outcome.out
    assert done.outcome.message == ""


def test_a_trial_leaves_its_files_in_the_folder_of_its_cell_and_seed(done: DoneTrial) -> None:
    cell = done.workplace.trial().cell.key
    pictures = {
        f"samples/Tiny/{image}/{picture}.png"
        for image in ("third", "fourth")
        for picture in ("input", "baseline", "output", "truth")
    }
    assert set(contents(done.workplace.outputs / STUDY / cell / "seed0")) == pictures | {
        "result.json",
        "state.json",
        "checkpoint.pt",
        "config.yaml",
        "trial.log",
        "curve.csv",
    }


def test_the_result_holds_every_fact_of_its_format(done: DoneTrial) -> None:
    result = done.result
    of_the_trial = {"study", "cell", "name", "factors", "levels", "reference", "setting", "method", "task", "seed"}
    assert set(result) == of_the_trial | {"metrics", "baseline", "cost", "timing", "dead", "probes", "provenance"}
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
    }
    assert set(result["metrics"]["Tiny"]) == {"psnr_db", "ssim", "images"}
    assert set(result["baseline"]["Tiny"]) == {"psnr_db", "ssim"}
    assert set(result["cost"]) == {"ops_g", "params_k"}
    assert {"train_s", "step_ms"} <= set(result["timing"])
    assert result["timing"].get("peak_mib", 200) > 100
    assert {"git", "dirty", "packages", "cpu", "seed"} <= set(result["provenance"])


def test_the_score_of_a_set_is_the_mean_of_its_images(done: DoneTrial) -> None:
    score = done.result["metrics"]["Tiny"]
    assert set(score["images"]) == {"third", "fourth"}
    for metric in ("psnr_db", "ssim"):
        mean = statistics.fmean(image[metric] for image in score["images"].values())
        assert score[metric] == pytest.approx(mean, abs=1e-6)


def test_the_baseline_is_what_the_task_reaches_without_a_network(done: DoneTrial) -> None:
    scores = []
    for seed in (2, 3):
        input_, truth = TINY.pair(photograph(seed))
        scores.append(TINY.score(TINY.baseline(input_), truth))
    baseline = done.result["baseline"]["Tiny"]
    assert baseline["psnr_db"] == pytest.approx(statistics.fmean(score.psnr_db for score in scores), abs=1e-6)
    assert baseline["ssim"] == pytest.approx(statistics.fmean(score.ssim for score in scores), abs=1e-8)


def test_the_cost_is_that_of_the_network(done: DoneTrial) -> None:
    cost = count(network_of(done.workplace.trial())).total
    assert done.result["cost"] == {"ops_g": cost.ops_g, "params_k": cost.params_k}


def test_the_checkpoint_restores_the_network_that_was_scored(done: DoneTrial) -> None:
    network = network_of(done.workplace.trial())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(torch.load(done.path / "checkpoint.pt", weights_only=True))
    scores = evaluate(network, data_of(done.workplace.config()).test, TINY, CPU)["Tiny"]
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for name, image in done.result["metrics"]["Tiny"]["images"].items():
        assert scores[name].psnr_db == pytest.approx(image["psnr_db"], abs=1e-6)
        assert scores[name].ssim == pytest.approx(image["ssim"], abs=1e-8)


def test_the_kept_config_composes_the_same_trial_again(done: DoneTrial) -> None:
    kept = (done.path / "config.yaml").read_text(encoding="utf-8")
    for line in ("steps: 2", "channels: 4", "name: sr_x2", f"outputs: {done.workplace.outputs}", "residual: true"):
        assert line in kept


def test_the_curve_ends_with_the_score_of_the_result(done: DoneTrial) -> None:
    curve = done.workplace.folder_of().curve()
    values = [point.metrics["Tiny/psnr_db"] for point in curve if "Tiny/psnr_db" in point.metrics]
    assert values[-1] == pytest.approx(done.result["metrics"]["Tiny"]["psnr_db"], abs=1e-6)
    assert {point.step for point in curve if "train/loss" in point.metrics} == {1, 2}


def test_the_log_tells_what_was_trained(done: DoneTrial) -> None:
    assert "reference seed 0: 2 steps on cpu" in (done.path / "trial.log").read_text(encoding="utf-8")


def test_a_sample_shows_the_pictures_that_were_scored(done: DoneTrial) -> None:
    place = done.path / "samples" / "Tiny" / "third"
    pictures = {
        name: np.asarray(Image.open(place / f"{name}.png")) for name in ("input", "baseline", "output", "truth")
    }
    input_, truth = TINY.pair(photograph(2))
    assert np.array_equal(pictures["truth"], truth)
    assert np.array_equal(pictures["input"], input_)
    assert np.array_equal(pictures["baseline"], TINY.baseline(input_))
    score = TINY.score(pictures["output"], truth)
    assert score.psnr_db == pytest.approx(done.result["metrics"]["Tiny"]["images"]["third"]["psnr_db"], abs=1e-6)


def test_mlflow_holds_one_finished_run_that_names_the_trial(done: DoneTrial) -> None:
    run = done.run
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "reference"
    assert (run.data.tags["cell"], run.data.tags["seed"]) == (done.result["cell"], "0")
    assert (run.data.tags["study"], run.data.tags["method"], run.data.tags["task"]) == (STUDY, "bbcu", "sr_x2")
    assert run.data.tags["git"] == done.result["provenance"]["git"]


def test_mlflow_holds_the_factors_and_the_setting_as_parameters(done: DoneTrial) -> None:
    expected = {
        "residual": "true",
        "bn": "none",
        "act": "inside",
        "act_fn": "rprelu",
        "align": "8.125",
        "channels": "4",
        "blocks": "1",
        "train.steps": "2",
        "train.batch": "2",
        "train.patch": "8",
        "seed": "0",
    }
    params = done.run.data.params
    assert {name: params.get(name) for name in expected} == expected


def test_mlflow_holds_the_numbers_of_the_result(done: DoneTrial) -> None:
    result, metrics = done.result, done.run.data.metrics
    for metric in ("psnr_db", "ssim"):
        assert metrics[f"Tiny/{metric}"] == result["metrics"]["Tiny"][metric]
        assert metrics[f"baseline/Tiny/{metric}"] == result["baseline"]["Tiny"][metric]
    for group in ("cost", "timing"):
        for name, value in result[group].items():
            assert metrics[f"{group}/{name}"] == value
    assert "train/loss" in metrics


def test_mlflow_holds_the_files_of_the_folder(done: DoneTrial) -> None:
    artifacts = contents(Path(done.run.info.artifact_uri.removeprefix("file://")))
    kept = {name: data for name, (data, _) in contents(done.path).items() if name != "checkpoint.pt"}
    assert set(artifacts) == set(kept)
    for name in set(kept) - {"trial.log"}:
        assert artifacts[name][0] == kept[name]


def test_the_score_is_that_of_the_last_step_and_not_of_the_best(workplace: Workplace) -> None:
    setting = (
        "train.steps=3",
        "train.lr=0.3",
        "train.schedule=constant",
        "train.precision=fp32",
        "tracking.evaluations=3",
    )
    workplace.run(*setting)
    curve = workplace.folder_of(*setting).curve()
    scores = [point.metrics["Tiny/psnr_db"] for point in curve if "Tiny/psnr_db" in point.metrics]
    assert len(scores) == 3
    assert max(scores) > scores[-1] + 0.1
    assert result_of(workplace, *setting)["metrics"]["Tiny"]["psnr_db"] == pytest.approx(scores[-1], abs=1e-6)


def test_a_trial_that_is_done_is_not_trained_again(workplace: Workplace) -> None:
    workplace.run()
    before = contents(workplace.outputs / STUDY)
    again = workplace.run()
    assert again.status == 0
    assert "done already" in again.out
    assert contents(workplace.outputs / STUDY) == before
    assert len(workplace.runs()) == 1


# --- the same conditions for every cell -------------------------------------------------------------------------------


def test_the_same_config_gives_the_same_metrics_and_weights_in_another_place(
    workplace: Workplace, migrated_database: Path, tmp_path: Path
) -> None:
    other = Workplace.apart(tmp_path / "elsewhere", migrated_database)
    workplace.run()
    other.run()
    assert workplace.trial().cell.key == other.trial().cell.key
    assert result_of(workplace)["metrics"] == result_of(other)["metrics"]
    first, second = (torch.load(place.folder_of().checkpoint_path, weights_only=True) for place in (workplace, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def losses(workplace: Workplace, *overrides: str) -> list[float]:
    curve = workplace.folder_of(*overrides).curve()
    return [point.metrics["train/loss"] for point in curve if "train/loss" in point.metrics]


def test_two_cells_of_a_seed_start_from_the_same_weights_on_the_same_patches(workplace: Workplace) -> None:
    workplace.sweep("train.lr=1e-3,5e-2")
    slow, fast = (losses(workplace, f"train.lr={rate}") for rate in ("1e-3", "5e-2"))
    assert slow[0] == fast[0]
    assert slow[1] != fast[1]


def test_another_seed_starts_elsewhere(workplace: Workplace) -> None:
    workplace.sweep("hydra.sweeper.replicates=2")
    assert losses(workplace, "seed=0")[0] != losses(workplace, "seed=1")[0]


@pytest.mark.parametrize("other", ["bn=pre", "bn=out", "residual=false", "residual=block", "act_fn=prelu", "act=after"])
def test_two_cells_share_the_initial_values_of_every_parameter_that_both_have(done: DoneTrial, other: str) -> None:
    reference, changed = (network_of(done.workplace.trial(*levels)).state_dict() for levels in ((), (other,)))
    shared = reference.keys() & changed.keys()
    assert {"head.weight", "body.units.0.weight", "body.units.1.weight", "tail.weight"} <= shared
    assert all(torch.equal(reference[name], changed[name]) for name in shared)


# --- tasks, baselines and the ways to evaluate ------------------------------------------------------------------------


def mean_baseline(task: Task, level: str = "") -> float:
    """The PSNR that the inputs of the test set have, spelt out."""
    pairs = [task.test_pair(photograph(seed), level) for seed in (2, 3)]
    return statistics.fmean(task.score(task.baseline(input_), truth).psnr_db for input_, truth in pairs)


@pytest.mark.parametrize(
    ("overrides", "task", "label"),
    [
        pytest.param(("method=bicubic",), TINY, "sr_x2, bicubic", id="bicubic"),
        pytest.param(("method=identity", "task=jpeg"), ArtifactReduction((10,), (1, 50)), "jpeg, input", id="jpeg"),
        pytest.param(
            ("method=identity", "task=denoise"), Denoising((25.0,), (0.0, 75.0)), "denoise, input", id="denoise"
        ),
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


def test_what_is_trained_on_does_not_matter_to_a_method_that_trains_nothing(workplace: Workplace) -> None:
    one, other = (
        workplace.trial("method=bicubic", f"data.train={train}") for train in (workplace.folder / "train", "''")
    )
    assert one.cell.key == other.cell.key


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        pytest.param("denoise", Denoising((25.0,), (0.0, 75.0)), id="denoise"),
        pytest.param("jpeg", ArtifactReduction((10,), (1, 50)), id="jpeg"),
    ],
)
def test_a_task_without_enlarging_trains_a_dncnn(workplace: Workplace, task: str, expected: Task) -> None:
    outcome = workplace.run(f"task={task}")
    assert outcome.status == 0, outcome.message
    result = result_of(workplace, f"task={task}")
    assert (result["task"], result["setting"]["network"]["name"]) == (task, "dncnn")
    assert result["setting"]["task"] == expected.parameters()
    assert result["baseline"]["Tiny"]["psnr_db"] == pytest.approx(mean_baseline(expected), abs=1e-6)
    assert f"input {result['baseline']['Tiny']['psnr_db']:.2f} dB" in outcome.out


def test_several_levels_are_scored_by_one_training(workplace: Workplace) -> None:
    setting = ("task=denoise", "task.sigma=[15,50]")
    outcome = workplace.run(*setting)
    assert outcome.status == 0, outcome.message
    result = result_of(workplace, *setting)
    assert list(result["metrics"]) == list(result["baseline"]) == ["Tiny-sigma15", "Tiny-sigma50"]
    assert result["baseline"]["Tiny-sigma50"]["psnr_db"] < result["baseline"]["Tiny-sigma15"]["psnr_db"]
    assert len(workplace.runs()) == 1


def test_spellings_of_a_strength_are_one_cell(workplace: Workplace) -> None:
    keys = {workplace.trial("task=denoise", f"task.sigma={sigma}").cell.key for sigma in ("25", "25.0", "[25]")}
    assert len(keys) == 1
    assert workplace.trial("task=denoise", "task.sigma=24").cell.key not in keys


def test_a_network_that_is_typed_takes_the_place_of_the_tasks(workplace: Workplace) -> None:
    setting = ("network=srresnet", "task=denoise")
    outcome = workplace.run(*setting)
    assert outcome.status == 0, outcome.message
    assert result_of(workplace, *setting)["setting"]["network"]["name"] == "srresnet"


def test_given_inputs_are_other_data(workplace: Workplace) -> None:
    for name, seeds in (("train", (0, 1)), ("test", (2, 3))):
        for seed in seeds:
            save(photograph(seed), workplace.folder / "given" / name / "HR" / f"{seed}.png")
            save(photograph(seed, 24), workplace.folder / "given" / name / "LR_bicubic" / "X2" / f"{seed}x2.png")
    place = workplace.folder / "given"
    setting = (f"data.train={place}/train", f"data.test={{Tiny: {place}/test}}")
    assert workplace.run(*setting, "data.inputs=given").status == 0
    made, given = (workplace.trial(*setting, f"data.inputs={inputs}").cell.key for inputs in ("made", "given"))
    assert made != given
    pair = data_of(workplace.config(*setting, "data.inputs=given")).test["Tiny"][0]
    assert np.array_equal(pair.input, photograph(2, 24))


def test_self_ensemble_is_part_of_a_cell_and_of_its_score(workplace: Workplace) -> None:
    outcome = workplace.sweep("evaluation.self_ensemble=false,true")
    assert outcome.status == 0, outcome.message
    plain, ensemble = (workplace.folder_of(f"evaluation.self_ensemble={value}") for value in ("false", "true"))
    assert plain.cell != ensemble.cell
    assert plain.cell == workplace.trial().cell.key
    network = network_of(workplace.trial())
    network.load_state_dict(torch.load(ensemble.checkpoint_path, weights_only=True))
    expected = evaluate(network, data_of(workplace.config()).test, TINY, CPU, Evaluation(self_ensemble=True))["Tiny"]
    result = ensemble.result()
    assert result is not None
    for name, image in result["metrics"]["Tiny"]["images"].items():
        assert image["psnr_db"] == pytest.approx(expected[name].psnr_db, abs=1e-6)
    assert result["metrics"] != result_of(workplace)["metrics"]


@pytest.mark.parametrize(
    ("key", "is_part"),
    [
        ("train.compile=true", False),
        ("train.cuda_graph=true", False),
        ("train.int8=false", False),
        ("train.precision=bf16", True),
    ],
)
def test_how_a_step_is_run_is_no_part_of_a_cell_but_its_precision_is(
    workplace: Workplace, key: str, is_part: bool
) -> None:
    plain = workplace.trial("train.precision=fp32").cell
    changed = workplace.trial("train.precision=fp32", key).cell
    assert (changed.key != plain.key) == is_part


def test_a_tile_is_no_part_of_a_cell(workplace: Workplace) -> None:
    assert workplace.trial("evaluation.tile=16").cell.key == workplace.trial().cell.key


def test_tiles_are_used_and_change_no_score(workplace: Workplace, migrated_database: Path, tmp_path: Path) -> None:
    other = Workplace.apart(tmp_path / "elsewhere", migrated_database)
    assert workplace.run("method=full_precision").status == 0
    assert other.run("method=full_precision", "evaluation.tile=16").status == 0
    for name, image in result_of(workplace, "method=full_precision")["metrics"]["Tiny"]["images"].items():
        tiled = result_of(other, "method=full_precision")["metrics"]["Tiny"]["images"][name]
        assert tiled["psnr_db"] == pytest.approx(image["psnr_db"], abs=1e-3)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_trains_and_records_every_combination(workplace: Workplace) -> None:
    outcome = workplace.sweep("residual=true,false", "bn=pre,post")
    assert outcome.status == 0
    assert workplace.names() == {"bn=pre", "bn=post", "residual=false bn=pre", "residual=false bn=post"}
    assert workplace.finished() == workplace.results()
    assert len(workplace.runs()) == 4
    assert "4 cells, 4 trials, 0 done already, 4 to train" in outcome.out


def test_a_sweep_lists_what_every_trial_reached(workplace: Workplace) -> None:
    outcome = workplace.sweep("bn=pre,post")
    for level in ("pre", "post"):
        score = result_of(workplace, f"bn={level}")["metrics"]["Tiny"]["psnr_db"]
        (row,) = [line for line in outcome.out.splitlines() if line.startswith(f"bn={level} ") and " done " in line]
        assert row.split() == [f"bn={level}", "0", "done", f"{score:.2f}", "dB"]


def test_the_same_sweep_again_trains_nothing_and_touches_nothing(workplace: Workplace) -> None:
    sweep = ("residual=true,false", "bn=pre,post")
    workplace.sweep(*sweep)
    before = {folder.path: contents(folder.path) for folder in workplace.trials()}
    again = workplace.sweep(*sweep)
    assert again.status == 0
    assert "nothing to train" in again.out
    assert {folder.path: contents(folder.path) for folder in workplace.trials()} == before
    assert len(workplace.runs()) == 4


def test_a_level_that_is_added_trains_the_new_cells_alone(workplace: Workplace) -> None:
    workplace.sweep("bn=pre,post")
    before = {folder.path: contents(folder.path) for folder in workplace.trials()}
    more = workplace.sweep("bn=pre,post,out")
    assert "3 trials, 2 done already, 1 to train" in more.out
    assert workplace.names() == {"bn=pre", "bn=post", "bn=out"}
    assert {path: contents(path) for path in before} == before
    assert len(workplace.runs()) == 3


def test_replicates_are_the_cell_under_the_next_seeds(workplace: Workplace) -> None:
    workplace.sweep("bn=pre,post", "hydra.sweeper.replicates=3")
    seeds = [(level, seed) for level in ("pre", "post") for seed in range(3)]
    expected = sorted((workplace.trial(f"bn={level}").cell.key, seed) for level, seed in seeds)
    assert workplace.finished() == workplace.results() == expected


def test_replicates_count_from_the_seed_that_is_asked_for(workplace: Workplace) -> None:
    workplace.sweep("seed=5", "hydra.sweeper.replicates=2")
    assert [seed for _, seed in workplace.results()] == [5, 6]


def left_out(outcome: Outcome) -> list[str]:
    return [line for line in outcome.out.splitlines() if line.startswith("left out: ")]


def test_levels_spelled_differently_are_one_cell(workplace: Workplace) -> None:
    outcome = workplace.sweep("residual=True,true,TRUE")
    assert workplace.names() == {"reference"}
    assert len(workplace.runs()) == 1
    assert "1 cells, 1 trials" in outcome.out
    workplace.sweep("residual=true")
    assert len(workplace.runs()) == 1


@pytest.mark.parametrize(
    ("sweep", "name", "reason"),
    [
        pytest.param(("residual=true,true",), "reference", "asked for twice", id="asked-for-twice"),
        pytest.param(
            ("residual=false", "act=inside,after"),
            "residual=false",
            "no residual: there is no add",
            id="no-add-for-the-activation",
        ),
        pytest.param(("align=auto,8.125",), "reference", "asked for twice", id="the-number-that-auto-gives"),
    ],
)
def test_a_network_that_is_asked_for_twice_is_trained_once_and_named_with_the_reason(
    workplace: Workplace, sweep: tuple[str, ...], name: str, reason: str
) -> None:
    outcome = workplace.sweep(*sweep)
    (line,) = left_out(outcome)
    assert f"the same network as {name} (" in line
    assert reason in line
    assert workplace.names() == {name}
    assert len(workplace.runs()) == 1


def test_an_impossible_cell_is_left_out_with_its_reason_while_the_others_run(workplace: Workplace) -> None:
    outcome = workplace.sweep("act=after", "act_fn=hardtanh,relu")
    (line,) = left_out(outcome)
    assert "act_fn=hardtanh" in line
    assert "impossible: hardtanh after the add" in line
    assert workplace.names() == {"act=after act_fn=relu"}
    assert outcome.status == 0


def test_the_plan_keeps_what_was_left_out_and_why(workplace: Workplace) -> None:
    workplace.sweep("act=after", "act_fn=hardtanh,relu")
    plan = json.loads((workplace.outputs / STUDY / "plan.json").read_text(encoding="utf-8"))
    (entry,) = plan["left_out"]
    assert entry["levels"]["act_fn"] == "hardtanh"
    assert entry["reason"].startswith("impossible: hardtanh after the add")
    assert [trial["name"] for trial in plan["trials"]] == ["act=after act_fn=relu"]


def test_paths_with_spaces_and_commas_reach_the_trials_of_a_sweep(workplace: Workplace) -> None:
    folder = workplace.folder / "my photos, x=1"
    shutil.copytree(workplace.folder / "train", folder)
    assert workplace.sweep(f"data.train='{folder}'").status == 0
    assert workplace.names() == {"reference"}


# --- a dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_cell_with_its_cost(workplace: Workplace) -> None:
    outcome = workplace.sweep("residual=true,false", "bn=pre,post", "hydra.sweeper.dry_run=true")
    assert outcome.status == 0
    for overrides in (("bn=pre",), ("bn=post",), ("residual=false", "bn=pre"), ("residual=false", "bn=post")):
        trial = workplace.trial(*overrides)
        cost = count(network_of(trial)).total
        (row,) = [line for line in outcome.out.splitlines() if line.startswith(trial.cell.key[:12])]
        assert row.split()[1:] == [*overrides, "0", "to", "train", f"{cost.ops_g:.2f}", f"{cost.params_k:.1f}"]


def test_a_dry_run_trains_and_records_nothing(workplace: Workplace) -> None:
    database = workplace.folder / "fresh.db"
    workplace.sweep("bn=pre,post", "hydra.sweeper.dry_run=true", f"tracking.uri=sqlite:///{database}")
    assert not database.exists()
    assert not (workplace.outputs / STUDY).exists()
    assert workplace.is_untouched()


def test_a_dry_run_tells_what_is_done_already(workplace: Workplace) -> None:
    workplace.sweep("bn=pre")
    outcome = workplace.sweep("bn=pre,post", "hydra.sweeper.dry_run=true")
    assert "1 done already, 1 to train" in outcome.out


def test_a_dry_run_of_a_single_trial_trains_nothing(workplace: Workplace) -> None:
    workplace.run("hydra.sweeper.dry_run=true")
    assert workplace.is_untouched()


# --- a trial that fails -----------------------------------------------------------------------------------------------

LAST_STEP_ONLY = "tracking.evaluations=1"
DIVERGES = ("train.lr=1e30", LAST_STEP_ONLY)
ONE_DIVERGES = ("train.lr=1e30,1e-3", LAST_STEP_ONLY)
REASON = "the loss is nan at step 2 of 2"


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> tuple[Workplace, Outcome]:
    """A sweep whose first trial diverged, for tests that only look at it."""
    workplace = Workplace.apart(tmp_path_factory.mktemp("diverged"), migrated_database)
    return workplace, workplace.sweep(*ONE_DIVERGES)


def test_a_failed_trial_leaves_its_reason_and_the_others_go_on(diverged: tuple[Workplace, Outcome]) -> None:
    workplace, outcome = diverged
    failed, good = workplace.folder_of(*DIVERGES), workplace.folder_of("train.lr=1e-3")
    assert present_state(failed) == (State.FAILED, REASON)
    assert failed.result() is None
    assert good.result() is not None
    assert REASON in outcome.out


def test_a_sweep_with_a_failed_trial_ends_with_status_one_and_says_how_many_failed(
    diverged: tuple[Workplace, Outcome],
) -> None:
    _, outcome = diverged
    assert outcome.status == 1
    assert "1 of 2 trials have no result" in outcome.message.splitlines()[-1]
    assert "Traceback" not in outcome.text


def test_mlflow_holds_the_failed_trial_with_its_reason(diverged: tuple[Workplace, Outcome]) -> None:
    workplace, _ = diverged
    (run,) = workplace.runs("FAILED")
    assert run.data.tags["reason"] == REASON
    assert run.data.tags["cell"] == workplace.trial(*DIVERGES).cell.key
    assert len(workplace.runs("FINISHED")) == 1


def test_two_trials_that_differ_in_their_setting_can_be_told_apart_in_the_summary(
    diverged: tuple[Workplace, Outcome],
) -> None:
    _, outcome = diverged
    (done,) = [line for line in outcome.out.splitlines() if " done " in line and " dB" in line]
    (failed,) = [line for line in outcome.out.splitlines() if " failed " in line]
    assert done.split(" done ")[0].strip() != failed.split(" failed ")[0].strip()


def test_a_failed_trial_alone_is_tried_again(workplace: Workplace) -> None:
    workplace.sweep(*ONE_DIVERGES)
    good = workplace.folder_of("train.lr=1e-3").path
    before = contents(good)
    again = workplace.sweep(*ONE_DIVERGES)
    assert "2 trials, 1 done already, 1 to train" in again.out
    assert again.status == 1
    assert contents(good) == before
    assert (len(workplace.runs("FINISHED")), len(workplace.runs("FAILED"))) == (1, 2)


def test_a_failure_is_forgotten_once_the_trial_has_a_result(workplace: Workplace) -> None:
    folder = workplace.folder_of()
    begin_attempt(folder)
    end_attempt(folder, State.FAILED, "the machine was on fire")
    workplace.sweep()
    first, second = history_of(folder).attempts
    assert (first.state, first.reason, second.state) == ("failed", "the machine was on fire", "finished")
    assert folder.result() is not None


def test_a_single_trial_that_fails_says_why_in_one_line(workplace: Workplace) -> None:
    outcome = workplace.run(*DIVERGES)
    (line,) = outcome.message.splitlines()
    assert outcome.status == 1
    assert REASON in line
    assert workplace.runs("FAILED")


def test_weights_that_are_no_numbers_are_a_divergence_wherever_they_are_noticed(workplace: Workplace) -> None:
    outcome = workplace.run("train.lr=1e30", "tracking.evaluations=2")
    assert "ValueError" not in outcome.message
    assert "nan" in outcome.message.lower()


# --- wrong input ------------------------------------------------------------------------------------------------------


def spoil(workplace: Workplace) -> None:
    """Put every kind of folder that cannot be used beside the photographs."""
    folder = workplace.folder
    (folder / "empty").mkdir()
    (folder / "file").write_text("no database, no folder, no picture\n" * 100, encoding="utf-8")
    save(photograph(0, 12), folder / "small" / "speck.png")
    whole = (folder / "train" / "first.png").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("text", b"not a picture")):
        (folder / name).mkdir()
        (folder / name / "broken.png").write_bytes(data)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Overrides that cannot be run, and what the message must name; FOLDER stands for the workplace."""

    overrides: str
    names: tuple[str, ...]
    sweep: bool = False
    without: tuple[str, ...] = ()

    def outcome(self, workplace: Workplace) -> Outcome:
        overrides = self.overrides.replace("FOLDER", str(workplace.folder)).split(" ") if self.overrides else []
        return workplace.sweep(*overrides) if self.sweep else workplace.run(*overrides, without=self.without)


WRONG = {
    "level": Wrong("residual=maybe", ("residual=maybe", "true, false, block")),
    "level-in-a-sweep": Wrong("bn=pre,typo", ("bn=typo", "none, pre, post, out"), sweep=True),
    "no-value": Wrong("residual", ("residual", "EQUAL")),
    "key": Wrong("bogus=1", ("'bogus'", "residual, bn, act")),
    "key-in-a-group": Wrong("train.bogus=1", ("'train.bogus'", "train.steps")),
    "key-that-is-added": Wrong("+bogus=1", ("bogus",)),
    "key-that-is-added-in-a-sweep": Wrong("+bogus=1,2", ("bogus",), sweep=True),
    "key-that-is-added-to-a-group": Wrong("+train.bogus=1", ("train.bogus",)),
    "key-that-is-taken-away": Wrong("~residual", ("no value for residual",)),
    "key-of-the-sweeper": Wrong("hydra.sweeper.bogus=1", ("'hydra.sweeper.bogus'", "hydra.sweeper.replicates"), True),
    "no-number": Wrong("train.steps=abc", ("train.steps", "abc")),
    "number-out-of-range": Wrong("train.steps=0", ("train.steps=0", "at least 1")),
    "learning-rate-without-end": Wrong("train.lr=inf", ("train.lr=inf",)),
    "seed-beyond-what-a-generator-takes": Wrong(f"seed={10**23}", (f"seed={10**23}",)),
    "precision": Wrong("train.precision=fp16", ("train.precision=fp16", "fp32, bf16")),
    "threads": Wrong("threads=0", ("threads=0", "at least 1")),
    "option-of-train": Wrong("train=typo", ("train=typo", "valid: quick, released")),
    "option-of-task": Wrong("task=typo", ("task=typo", "valid:", "sr_x2")),
    "option-of-method": Wrong("method=typo", ("method=typo", "valid:", "bbcu")),
    "launcher": Wrong("hydra/launcher=typo", ("hydra/launcher=typo", "valid:", "basic"), sweep=True),
    "several-values-without-m": Wrong("bn=pre,post", ("bn=pre,post", "-m")),
    "replicates-without-m": Wrong("hydra.sweeper.replicates=3", ("hydra.sweeper.replicates", "-m")),
    "no-replicate": Wrong("hydra.sweeper.replicates=0", ("hydra.sweeper.replicates=0", "at least 1"), sweep=True),
    "interval": Wrong("align=interval(1,2)", ("align", "interval"), sweep=True),
    "glob-that-matches-nothing": Wrong("bn=glob(*)", ("bn", "glob"), sweep=True),
    "swept-threads": Wrong("threads=1,2", ("threads",), sweep=True),
    "swept-outputs": Wrong("outputs=FOLDER/a,FOLDER/b", ("outputs",), sweep=True),
    "swept-study": Wrong("study.name=a,b", ("study.name", "a", "b"), sweep=True),
    "alignment-below-zero": Wrong("align=-1", ("align=-1", "auto, a positive number")),
    "alignment-that-is-no-number": Wrong("align=abc", ("align=abc", "auto, a positive number")),
    "impossible-cell": Wrong("act=after act_fn=hardtanh", ("hardtanh after the add",)),
    "impossible-cells-alone": Wrong("act=after act_fn=hardtanh", ("hardtanh after the add",), sweep=True),
    "data-without-test": Wrong("", ("data.test",), without=("data.test",)),
    "missing-folder": Wrong("data.train=FOLDER/nowhere", ("FOLDER/nowhere", "does not exist")),
    "missing-folder-in-a-sweep": Wrong("data.train=FOLDER/train,FOLDER/nowhere", ("FOLDER/nowhere",), sweep=True),
    "empty-folder": Wrong("data.train=FOLDER/empty", ("FOLDER/empty", "no image")),
    "cut-picture": Wrong("data.train=FOLDER/cut", ("FOLDER/cut/broken.png", "truncated")),
    "text-named-png": Wrong("data.train=FOLDER/text", ("FOLDER/text/broken.png", "PNG")),
    "picture-smaller-than-a-patch": Wrong("data.train=FOLDER/small", ("FOLDER/small/speck.png", "12 x 12", "16 x 16")),
    "test-set-named-like-a-group-of-metrics": Wrong("data.test={train:FOLDER/test}", ("train",)),
    "data-without-training-pictures": Wrong("", ("no value for data.train", "data.train=DIR"), without=("data.train",)),
    "bicubic-in-denoising": Wrong("method=bicubic task=denoise", ("method=bicubic", "denoise", "method=identity")),
    "identity-in-super-resolution": Wrong("method=identity", ("method=identity", "sr_x2", "method=bicubic")),
    "strength-of-another-task": Wrong("task.sigma=25 task=sr_x2", ("task.sigma=25", "sr_x2")),
    "strength-in-a-sweep": Wrong("task.sigma=15,25", ("task.sigma=15", "sr_x2"), sweep=True),
    "strength-out-of-range": Wrong("task=denoise task.sigma=300", ("task.sigma=300", "at most 255")),
    "strength-that-is-no-number": Wrong("task=denoise task.sigma=strong", ("task.sigma=strong", "a number")),
    "quality-out-of-range": Wrong("task=jpeg task.quality=0", ("task.quality=0", "1 to 100")),
    "network-that-enlarges-nothing": Wrong("task=sr_x2 network=dncnn", ("network=dncnn", "enlarges by 2")),
    "range-that-is-upside-down": Wrong(
        "task=jpeg task.train_quality=[50,1]", ("task.train_quality=[50, 1]", "must be a range")
    ),
    "inputs": Wrong("data.inputs=found", ("data.inputs=found", "made, given")),
    "given-inputs-of-a-plain-folder": Wrong("data.inputs=given", ("FOLDER/train", "plain folder", "X2")),
    "given-inputs-of-denoising": Wrong("data.inputs=given task=denoise", ("data.inputs=given", "denoise", "made")),
    "given-inputs-of-the-photographs": Wrong(
        "data=embedded data.inputs=given",
        ("data.inputs=given", "data=embedded", "data=folder"),
        without=("data.train", "data.test"),
    ),
    "tile-below-zero": Wrong("evaluation.tile=-1", ("evaluation.tile=-1", "at least 0")),
    "swept-tile": Wrong("evaluation.tile=0,16", ("evaluation.tile",), sweep=True),
    "study-outside-the-outputs": Wrong("study.name=../x", ("study.name", "../x")),
    "database-in-no-folder": Wrong("tracking.uri=sqlite:////proc/x/mlflow.db", ("tracking.uri=", "/proc/x")),
    "database-that-is-none": Wrong("tracking.uri=sqlite:///FOLDER/file", ("tracking.uri=", "FOLDER/file")),
    "tracking-of-an-unknown-kind": Wrong("tracking.uri=foo://x", ("tracking.uri=foo://x", "sqlite")),
    "outputs-in-a-file": Wrong("outputs=FOLDER/file", ("FOLDER/file",)),
    "outputs-in-a-file-in-a-sweep": Wrong("outputs=FOLDER/file", ("FOLDER/file",), sweep=True),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_is_told_in_two_lines_at_most_and_nothing_runs(workplace: Workplace, wrong: Wrong) -> None:
    spoil(workplace)
    outcome = wrong.outcome(workplace)
    assert outcome.status != 0
    assert 1 <= len(outcome.message.splitlines()) <= 2
    for name in wrong.names:
        assert name.replace("FOLDER", str(workplace.folder)) in outcome.message
    assert "Traceback" not in outcome.text
    assert workplace.is_untouched()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", [Workplace.run, Workplace.sweep], ids=["trial", "sweep"])
def test_a_device_that_is_not_there_is_told_and_nothing_runs(
    workplace: Workplace, command: Callable[..., Outcome]
) -> None:
    outcome = command(workplace, "device=cuda")
    assert outcome.status != 0
    assert "device=cuda" in outcome.message
    assert len(outcome.message.splitlines()) == 1
    assert workplace.is_untouched()


def test_a_shell_sees_status_one_and_one_line_for_a_wrong_input(workplace: Workplace) -> None:
    with ended(workplace.start_interpreter("-m", *workplace.overrides("residual=true,maybe"))) as process:
        out, message = process.communicate(timeout=600)
    assert process.returncode == 1
    assert message == "run.py: residual=maybe: unknown level 'maybe'; valid: true, false, block\n"
    assert out == ""


@pytest.mark.slow
def test_a_shell_sees_status_one_for_a_sweep_with_a_failed_trial(workplace: Workplace) -> None:
    with ended(workplace.start_interpreter("-m", *workplace.overrides(*ONE_DIVERGES))) as process:
        out, message = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "1 of 2 trials have no result" in message
    assert "Traceback" not in out + message


# --- launchers --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher is not installed",
)
def test_the_joblib_launcher_trains_side_by_side_what_a_sweep_lists(workplace: Workplace) -> None:
    overrides = workplace.overrides("residual=true,false", "bn=pre,post", "hydra/launcher=joblib")
    with ended(workplace.start("-m", *overrides, "hydra.launcher.n_jobs=2")) as process:
        _, message = process.communicate(timeout=600)
    assert process.returncode == 0, message
    assert workplace.finished() == workplace.results()
    assert len(workplace.runs()) == 4
