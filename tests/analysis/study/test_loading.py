"""What is read back of a study, and the synthetic studies that the other tests of the analysis use."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave

from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.folder import CurvePoint, TrialFolder
from ablations.storage.plans import write_plan
from ablations.tracking.client import prepare_tracking
from ablations.tracking.runs import TrialRun, facts_of
from ablations.tracking.sync import synchronise
from analysis.study.loading import StudyResults, load, load_folder
from bbcu.errors import ConfigError

REFERENCE = {"residual": True, "bn": "none", "align": "auto"}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial of a synthetic study: its levels as asked for, and what it reached on each test set, in dB."""

    levels: Mapping[str, Any]
    seed: int
    psnr_db: Mapping[str, float]
    steps: int = 20
    ops_g: float = 2.0
    params_k: float = 40.0
    images: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    probes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: str = "bbcu"
    reference: Mapping[str, Any] = dataclasses.field(default_factory=lambda: REFERENCE)
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dead: bool | str | None = None

    @property
    def factors(self) -> dict[str, Any]:
        """The recorded levels: ``align=auto`` becomes the number that ``bn`` makes it."""
        number = 130 if self.levels["bn"] == "none" else 1
        return {**self.levels, "align": number if self.levels["align"] == "auto" else self.levels["align"]}

    @property
    def setting(self) -> dict[str, Any]:
        return {
            "task": {"name": "sr_x2", "scale": 2},
            "network": {"name": "plain"},
            "channels": 8,
            "train": {"steps": self.steps, "lr": 0.001},
            "data": hashlib.sha256(b"photographs").hexdigest(),
            **self.others,
        }

    @property
    def cell(self) -> str:
        form = json.dumps([self.factors, self.setting], sort_keys=True)
        return hashlib.sha256(form.encode()).hexdigest()

    @property
    def name(self) -> str:
        return " ".join(f"{factor}={level}" for factor, level in self.factors.items()) + f" seed={self.seed}"


def trial(seed: int = 0, psnr_db: float = 30.0, steps: int = 20, **levels: Any) -> Trial:
    """A trial on Set5 alone, at the reference levels but for those given."""
    return Trial({**REFERENCE, **levels}, seed, {"Set5": psnr_db}, steps)


def plan_of(trials: Iterable[Trial], left_out: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    rows = [
        {"cell": t.cell, "seed": t.seed, "name": t.name, "factors": t.factors, "levels": t.levels, "setting": t.setting}
        for t in trials
    ]
    return {"trials": rows, "left_out": list(left_out)}


def result_of(trial: Trial) -> dict[str, Any]:
    return {
        "study": "components",
        "cell": trial.cell,
        "seed": trial.seed,
        "name": trial.name,
        "factors": trial.factors,
        "levels": dict(trial.levels),
        "reference": dict(trial.reference),
        "method": trial.method,
        "task": "sr_x2",
        "setting": trial.setting,
        "metrics": {
            name: {"psnr_db": psnr, "ssim": psnr / 40, "images": images_of(trial, name)}
            for name, psnr in trial.psnr_db.items()
        },
        "baseline": {name: {"psnr_db": 28.5, "ssim": 0.8} for name in trial.psnr_db},
        "cost": {"ops_g": trial.ops_g, "params_k": trial.params_k},
        "timing": {"train_s": 12.5 + trial.seed, "step_ms": 3.0, **trial.timing},
        "probes": dict(trial.probes),
        "dead": trial.dead,
        "provenance": {
            "git": "0123456789abcdef",
            "dirty": trial.seed == 2,
            "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
            "cpu": "two cores",
            "device": "cpu",
            "seed": trial.seed,
            **trial.origin,
        },
    }


def images_of(trial: Trial, test_set: str) -> dict[str, dict[str, float]]:
    return {name: {"psnr_db": psnr, "ssim": 0.9} for name, psnr in trial.images.get(test_set, {}).items()}


def curve_of(trial: Trial) -> list[CurvePoint]:
    noise = np.random.default_rng([trial.seed, trial.steps])
    points = [
        CurvePoint(step, {"train/loss": 0.2 / (1 + step) ** 0.4 * float(np.exp(noise.normal(0, 0.1)))}, time=0.0)
        for step in range(1, trial.steps + 1)
    ]
    for step in (trial.steps // 2, trial.steps):
        psnr = {f"{name}/psnr_db": value - 1 + step / trial.steps for name, value in trial.psnr_db.items()}
        points.append(CurvePoint(step, psnr, time=0.0))
    return points


def write_samples(folder: Path, trial: Trial) -> None:
    """Crops of one test picture: a ring, the same for all, and an output that is the noisier the lower the PSNR."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    truth = np.stack([0.5 + 0.5 * np.sin(40 * (x**2 + y**2) * (1 + shift)) for shift in (0, 0.1, 0.2)], axis=-1)
    noise = np.random.default_rng(trial.seed).normal(0, 1, truth.shape)
    for test_set, psnr in trial.psnr_db.items():
        place = folder / test_set / "ring"
        place.mkdir(parents=True)
        output = truth + noise * 10 ** (-psnr / 20)
        pictures = {"input": truth[::2, ::2], "baseline": truth * 0.7 + 0.15, "output": output, "truth": truth}
        for kind, pixels in pictures.items():
            imsave(place / f"{kind}.png", np.clip(pixels, 0, 1))


def write_study(
    tracking_uri: str,
    outputs: Path,
    finished: Sequence[Trial],
    planned: Sequence[Trial] = (),
    left_out: Sequence[Mapping[str, Any]] = (),
    samples: bool = False,
) -> None:
    """Leave a study behind as finished trials leave it; ``planned`` are those that were not run."""
    write_plan(outputs, "components", plan_of([*finished, *planned], left_out))
    for each in finished:
        folder = TrialFolder(outputs, "components", each.cell, each.seed)
        folder.path.mkdir(parents=True)
        folder.write_curve(curve_of(each))
        if samples:
            write_samples(folder.samples, each)
        folder.write_result(result_of(each))
    synchronise(outputs, "components", tracking_uri)


def start(tracking_uri: str, outputs: Path, trial: Trial) -> tuple[TrialRun, TrialFolder]:
    """Open a trial's run as a training does."""
    experiment = prepare_tracking(tracking_uri, "components")
    run = TrialRun(tracking_uri, experiment, facts_of(result_of(trial)))
    return run, TrialFolder(outputs, "components", trial.cell, trial.seed)


def loaded(tracking_uri: str, outputs: Path, finished: Sequence[Trial], **others: Any) -> StudyResults:
    """Write a study and read it back."""
    write_study(tracking_uri, outputs, finished, **others)
    return load(tracking_uri, "components", outputs)


def test_a_finished_trial_is_read_back_whole(tracking_uri: str, tmp_path: Path) -> None:
    done = trial(psnr_db=31.25, bn="post")
    row = loaded(tracking_uri, tmp_path, [done]).trials.iloc[0]
    assert (row["cell"], row["seed"], row["state"], row["reason"]) == (done.cell, 0, "finished", "")
    assert (row["factor/bn"], row["factor/align"], row["level/align"]) == ("post", "1", "auto")
    assert (row["setting/train.steps"], row["setting/task.name"]) == ("20", "sr_x2")
    assert row["metric/Set5/psnr_db"] == 31.25
    assert row["metric/baseline/Set5/psnr_db"] == 28.5
    assert row["metric/cost/ops_g"] == 2.0


def test_curves_come_back_as_they_were_written(tracking_uri: str, tmp_path: Path) -> None:
    done = trial()
    curves = loaded(tracking_uri, tmp_path, [done]).curves
    written = [(point.step, name, value) for point in curve_of(done) for name, value in point.metrics.items()]
    assert list(curves[["step", "metric", "value"]].itertuples(index=False, name=None)) == written


def test_samples_are_found(tracking_uri: str, tmp_path: Path) -> None:
    done = trial()
    folder = loaded(tracking_uri, tmp_path, [done], samples=True).samples[done.cell, 0]()
    assert folder is not None
    assert (folder / "Set5" / "ring" / "truth.png").is_file()


def test_a_trial_without_samples_gives_none(tracking_uri: str, tmp_path: Path) -> None:
    done = trial()
    assert loaded(tracking_uri, tmp_path, [done]).samples[done.cell, 0]() is None


def test_a_planned_trial_without_a_run_is_missing_and_in_the_setting_of_the_others(
    tracking_uri: str, tmp_path: Path
) -> None:
    trials = loaded(tracking_uri, tmp_path, [trial(seed=0)], planned=[trial(seed=1)]).trials
    assert list(trials["state"]) == ["finished", "missing"]
    assert trials["reason"].iloc[1] == "planned, not started yet"
    assert trials["setting/train.lr"].nunique() == 1


def test_failed_interrupted_and_running_trials_have_their_reason(tracking_uri: str, tmp_path: Path) -> None:
    failed, folder = start(tracking_uri, tmp_path, trial(seed=0))
    failed.leave(folder, "failed", "loss is not finite at step 7")
    stopped, _ = start(tracking_uri, tmp_path, trial(seed=1))
    stopped.leave(folder, "interrupted", "stopped by the user")
    start(tracking_uri, tmp_path, trial(seed=2))
    trials = load(tracking_uri, "components", tmp_path).trials
    assert dict(zip(trials["state"], trials["reason"], strict=True)) == {
        "failed": "loss is not finite at step 7",
        "interrupted": "stopped by the user",
        "running": "still running, or stopped without a word",
    }


def test_a_trial_that_mlflow_did_not_take_says_how_to_log_it(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial(seed=0)], planned=[trial(seed=1)])
    TrialFolder(tmp_path, "components", trial().cell, 1).write_result(result_of(trial(seed=1)))
    assert "python -m ablations sync" in load(tracking_uri, "components", tmp_path).trials["reason"].iloc[1]


def test_the_finished_run_counts_among_several(tracking_uri: str, tmp_path: Path) -> None:
    done = trial(psnr_db=31.0)
    first, folder = start(tracking_uri, tmp_path, done)
    first.leave(folder, "failed", "out of memory")
    write_study(tracking_uri, tmp_path, [done])
    last, _ = start(tracking_uri, tmp_path, done)
    last.leave(folder, "interrupted", "a second run of what was finished")
    trials = load(tracking_uri, "components", tmp_path).trials
    assert list(trials["state"]) == ["finished"]
    assert list(trials["metric/Set5/psnr_db"]) == [31.0]


def test_left_out_cells_keep_their_reason(tracking_uri: str, tmp_path: Path) -> None:
    row = {"levels": {**REFERENCE, "bn": "out"}, "setting": trial().setting, "reason": "no add to stand after"}
    (left_out,) = loaded(tracking_uri, tmp_path, [trial()], left_out=[row]).left_out
    assert (left_out.levels["bn"], left_out.levels["residual"], left_out.reason) == (
        "out",
        "true",
        "no add to stand after",
    )
    assert left_out.setting["train.steps"] == "20"


def test_factors_and_reference_are_those_of_the_study(tracking_uri: str, tmp_path: Path) -> None:
    results = loaded(tracking_uri, tmp_path, [trial()])
    assert results.factors == ("residual", "bn", "align")
    assert results.reference == {"residual": "true", "bn": "none", "align": "auto"}


def test_a_missing_database_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tracking database at"):
        load(f"sqlite:///{tmp_path}/absent.db", "components", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_trials_is_an_error(tracking_uri: str, tmp_path: Path) -> None:
    prepare_tracking(tracking_uri, "components")
    with pytest.raises(ConfigError, match="has no trial yet"):
        load(tracking_uri, "components", tmp_path)


def test_only_the_curves_that_are_asked_for_are_read(tracking_uri: str, tmp_path: Path) -> None:
    results = loaded(tracking_uri, tmp_path, [trial(0), trial(1, steps=40)])
    one, other = results.files
    assert set(results.curves_of([one])["cell"]) == {one[0]}
    assert len(results.curves) == len(results.curves_of([one])) + len(results.curves_of([other]))


def test_files_come_from_mlflow_where_the_outputs_are_gone(tracking_uri: str, tmp_path: Path) -> None:
    done = trial()
    write_study(tracking_uri, tmp_path / "outputs", [done], samples=True)
    before = load(tracking_uri, "components", tmp_path / "outputs")
    after = load(tracking_uri, "components", tmp_path / "elsewhere")
    samples = after.samples[done.cell, 0]()
    assert samples is not None
    assert not samples.is_relative_to(tmp_path / "outputs")
    assert after.curves.equals(before.curves)
    assert after.record((done.cell, 0))["metrics"] == result_of(done)["metrics"]


def test_the_record_of_a_trial_without_files_is_empty(tracking_uri: str, tmp_path: Path) -> None:
    results = loaded(tracking_uri, tmp_path, [trial()], planned=[trial(1)])
    assert results.record((trial().cell, 1)) == {}


def test_a_study_on_disk_reads_as_it_does_from_mlflow(tracking_uri: str, tmp_path: Path) -> None:
    stored = loaded(tracking_uri, tmp_path, [trial(0), trial(1, bn="post")], planned=[trial(2)])
    found = load_folder(tmp_path / "components")
    # MLflow holds the last training loss as a metric too; on disk it is the end of the curve.
    only_mlflow = ["run_id", "metric/train/loss"]
    assert found.trials.drop(columns="run_id").equals(stored.trials.drop(columns=only_mlflow))
    assert found.curves.equals(stored.curves)
    assert (found.study, found.factors, found.reference) == (stored.study, stored.factors, stored.reference)


def told(folder: TrialFolder, name: str, **content: str) -> None:
    """Leave a file beside a trial that has no result."""
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / name).write_text(json.dumps(content))


@pytest.mark.parametrize("state", ["failed", "interrupted", "pruned", "running"])
def test_the_state_of_a_trial_that_mlflow_does_not_know_is_read_from_its_folder(
    tracking_uri: str, tmp_path: Path, state: str
) -> None:
    write_study(tracking_uri, tmp_path, [trial(0)], planned=[trial(1)])
    told(TrialFolder(tmp_path, "components", trial().cell, 1), "state.json", state=state, reason="why it is so")
    for found in (load(tracking_uri, "components", tmp_path), load_folder(tmp_path / "components")):
        assert list(found.trials["state"]) == ["finished", state]
        assert found.trials["reason"].iloc[1] == "why it is so"


def test_the_state_tells_more_than_a_failure_of_before(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial(0)], planned=[trial(1), trial(2)])
    first, second = (TrialFolder(tmp_path, "components", trial().cell, seed) for seed in (1, 2))
    told(first, "failure.json", reason="out of memory")
    told(second, "failure.json", reason="out of memory")
    told(second, "state.json", state="interrupted", reason="stopped by the user")
    trials = load(tracking_uri, "components", tmp_path).trials
    assert list(trials["state"]) == ["finished", "failed", "interrupted"]
    assert list(trials["reason"]) == ["", "out of memory", "stopped by the user"]


@pytest.mark.parametrize(
    ("in_mlflow", "on_disk", "shown"),
    [
        pytest.param(None, "failed", "failed", id="MLflow was away when it failed"),
        pytest.param("failed", "interrupted", "interrupted", id="stopped when MLflow was away"),
        pytest.param("failed", "running", "failed", id="a process that was killed did not say so"),
    ],
)
def test_the_folder_is_the_truth_but_of_what_still_runs(
    tracking_uri: str, tmp_path: Path, in_mlflow: str | None, on_disk: str, shown: str
) -> None:
    run, folder = start(tracking_uri, tmp_path, trial())
    if in_mlflow is not None:
        run.leave(folder, in_mlflow, "by MLflow")
    told(folder, "state.json", state=on_disk, reason="by the folder")
    (row,) = load(tracking_uri, "components", tmp_path).trials[["state", "reason"]].itertuples(index=False, name=None)
    assert row == (shown, "by MLflow" if shown == in_mlflow else "by the folder")


def test_a_pruned_run_is_not_called_interrupted(tracking_uri: str, tmp_path: Path) -> None:
    run, folder = start(tracking_uri, tmp_path, trial())
    run.leave(folder, "pruned", "pruned at step 7 with 28.10 dB")
    assert list(load(tracking_uri, "components", tmp_path / "elsewhere").trials["state"]) == ["pruned"]


def test_a_folder_that_says_finished_and_has_no_result_is_missing(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial(0)], planned=[trial(1)])
    told(TrialFolder(tmp_path, "components", trial().cell, 1), "state.json", state="finished", reason="")
    trials = load_folder(tmp_path / "components").trials
    assert list(trials["state"]) == ["finished", "missing"]
    assert "its result is gone or cut short" in trials["reason"].iloc[1]


def test_a_failed_trial_on_disk_has_its_reason(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial(0)], planned=[trial(1)])
    folder = TrialFolder(tmp_path, "components", trial().cell, 1)
    begin_attempt(folder)
    end_attempt(folder, State.FAILED, "out of memory")
    trials = load_folder(tmp_path / "components").trials
    assert list(trials["state"]) == ["finished", "failed"]
    assert trials["reason"].iloc[1] == "out of memory"


def test_a_folder_without_a_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trial of a study"):
        load_folder(tmp_path)


def test_text_is_text_and_numbers_are_numbers_whatever_is_missing(tracking_uri: str, tmp_path: Path) -> None:
    trials = loaded(tracking_uri, tmp_path, [trial(0)], planned=[trial(1, bn="post")]).trials
    kinds = {name: str(kind) for name, kind in trials.dtypes.items()}
    assert kinds.pop("seed") == "int64"
    assert {kind for name, kind in kinds.items() if name.startswith("metric/")} == {"float64"}
    assert {kind for name, kind in kinds.items() if not name.startswith("metric/")} == {"str"}
