"""What is read back of a study, and the synthetic studies that the other tests of the analysis use."""

import json
from pathlib import Path

import pytest

from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.folder import TrialFolder
from ablations.tracking.client import prepare_tracking
from analysis.study.loading import load, load_folder
from bbcu.errors import ConfigError
from tests.harness.studies import REFERENCE, curve_of, loaded, result_of, start, trial, write_study


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
