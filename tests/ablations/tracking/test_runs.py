"""A trial's run in MLflow, and the store that it is in."""

import gc
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from ablations.storage.folder import CurvePoint, TrialFolder
from ablations.tracking.client import (
    TrackingError,
    client_of,
    experiment_id,
    finished_runs,
    prepare_tracking,
    recorded_runs,
    search_runs,
    without_garbage_collection,
)
from ablations.tracking.runs import TrialRun, facts_of
from ablations.tracking.sync import synchronise
from bbcu.errors import BbcuError, ConfigError
from tests.ablations.storage.helpers import CELL, finished, result


def runs(uri: str) -> list[Any]:
    return search_runs(uri, experiment_id(uri, "tiny"))


def test_a_result_becomes_one_finished_run_with_all_its_facts(tmp_path: Path, tracking_uri: str) -> None:
    finished(tmp_path)
    synchronise(tmp_path, "tiny", tracking_uri)
    (run,) = runs(tracking_uri)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "bn=post seed 0"
    assert run.data.params == {
        "residual": "true",
        "bn": "post",
        "align": "1",
        "task.name": "sr_x2",
        "channels": "8",
        "train.steps": "20",
        "data": "f" * 64,
        "seed": "0",
    }
    expected = {"Set5/psnr_db": 36.0, "baseline/Set5/ssim": 0.93, "cost/ops_g": 18.55, "timing/train_s": 2.0}
    assert expected.items() <= run.data.metrics.items()
    assert {"cell": CELL, "seed": "0", "study": "tiny", "method": "custom", "state": "finished"}.items() <= (
        run.data.tags.items()
    )


def test_a_run_has_the_columns_that_mlflow_shows(tmp_path: Path, tracking_uri: str) -> None:
    finished(tmp_path).config_path.write_text("data: {name: folder, train: /some/DIV2K, test: {Set5: /some/Set5}}\n")
    synchronise(tmp_path, "tiny", tracking_uri)
    (run,) = runs(tracking_uri)
    tags = run.data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.source.git.commit"]) == ("run.py", "0" * 40)
    assert tags["mlflow.user"] == tmp_path.owner()
    assert tags["mlflow.note.content"].startswith("**BBCU with BatchNorm after the convolution**")
    assert tags["collapsed"] == "false"
    assert run.data.metrics["mean_psnr_db"] == 36.0
    inputs = [(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in run.inputs.dataset_inputs]
    assert sorted(inputs) == [("DIV2K", "f" * 36, "training"), ("Set5", "f" * 36, "test")]


def test_a_collapsed_trial_says_so(tmp_path: Path, tracking_uri: str) -> None:
    folder = finished(tmp_path)
    folder.write_result({**result(), "dead": "its output is the skip connection"})
    synchronise(tmp_path, "tiny", tracking_uri)
    (run,) = runs(tracking_uri)
    assert (run.data.tags["collapsed"], run.data.tags["collapsed_by"]) == ("true", "its output is the skip connection")
    assert "**collapsed**: its output is the skip connection" in run.data.tags["mlflow.note.content"]


def test_what_only_people_read_is_not_recorded_of_a_trial(tmp_path: Path, tracking_uri: str) -> None:
    finished(tmp_path)
    synchronise(tmp_path, "tiny", tracking_uri)
    (recorded,) = recorded_runs(tracking_uri, "tiny").values()
    assert recorded.name == "bn=post"
    assert "mean_psnr_db" not in recorded.metrics


def test_trials_that_list_the_same_data_at_the_same_moment_are_all_recorded(
    tmp_path: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two trials that start together, one adds the data between the moments in which the other looks and adds."""
    client = client_of(tracking_uri)
    first = client.create_run(prepare_tracking(tracking_uri, "tiny")).info.run_id
    waiting = [True]

    def overtake(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        if waiting and statement.startswith("INSERT INTO datasets"):
            waiting.clear()
            data = [Dataset(name, "f" * 36, "local", "{}") for name in ("DIV2K", "Set5")]
            client.log_inputs(first, [DatasetInput(each, []) for each in data])

    finished(tmp_path).config_path.write_text("data: {name: folder, train: /some/DIV2K, test: {Set5: /some/Set5}}\n")
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", overtake)
    try:
        synchronise(tmp_path, "tiny", tracking_uri)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", overtake)
    assert not waiting
    assert caplog.messages == []
    for run in runs(tracking_uri):
        assert sorted(each.dataset.name for each in run.inputs.dataset_inputs) == ["DIV2K", "Set5"]


def test_a_server_without_data_sets_gets_everything_else(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*given: object) -> None:
        raise MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "log_inputs", missing)
    finished(tmp_path).config_path.write_text("data: {name: embedded}\n")
    assert len(synchronise(tmp_path, "tiny", tracking_uri)) == 1
    (run,) = runs(tracking_uri)
    assert (run.info.status, run.inputs.dataset_inputs) == ("FINISHED", [])


def test_a_run_has_the_whole_curve_and_the_files(tmp_path: Path, tracking_uri: str) -> None:
    finished(tmp_path)
    synchronise(tmp_path, "tiny", tracking_uri)
    client, (run,) = client_of(tracking_uri), runs(tracking_uri)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value, point.timestamp) for point in history] == [(10, 0.5, 1000), (20, 0.25, 2000)]
    files = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert files == {"result.json", "config.yaml", "curve.csv", "samples"}
    pictures = client.list_artifacts(run.info.run_id, "samples/Set5/baby")
    assert [picture.path for picture in pictures] == ["samples/Set5/baby/output.png"]


def test_what_is_no_file_of_a_trial_is_not_logged(tmp_path: Path, tracking_uri: str) -> None:
    folder = finished(tmp_path)
    os.mkfifo(folder.log_path)
    folder.config_path.unlink(missing_ok=True)
    folder.config_path.symlink_to("/dev/zero")
    synchronise(tmp_path, "tiny", tracking_uri)
    (run,) = runs(tracking_uri)
    assert run.info.status == "FINISHED"
    files = {artifact.path for artifact in client_of(tracking_uri).list_artifacts(run.info.run_id)}
    assert "result.json" in files
    assert not files & {"trial.log", "config.yaml"}


def test_a_run_that_a_killed_process_left_open_is_closed(tmp_path: Path, tracking_uri: str) -> None:
    experiment = prepare_tracking(tracking_uri, "tiny")
    TrialRun(tracking_uri, experiment, facts_of(result()))
    TrialRun(tracking_uri, experiment, facts_of(result(seed=1)))
    finished(tmp_path)
    synchronise(tmp_path, "tiny", tracking_uri)
    by_seed = [(run.data.tags["seed"], run.info.status) for run in runs(tracking_uri)]
    assert sorted(by_seed) == [("0", "FINISHED"), ("0", "KILLED"), ("1", "RUNNING")]


def test_a_failed_run_carries_its_reason(tmp_path: Path, tracking_uri: str) -> None:
    experiment = prepare_tracking(tracking_uri, "tiny")
    run = TrialRun(tracking_uri, experiment, facts_of(result()))
    run.close_without_result(TrialFolder(tmp_path, "tiny", CELL, 0), "failed", "the loss is nan at step 7")
    (failed,) = runs(tracking_uri)
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "the loss is nan at step 7")
    assert "**failed**: the loss is nan at step 7" in failed.data.tags["mlflow.note.content"]
    assert finished_runs(tracking_uri, experiment_id(tracking_uri, "tiny")) == set()


def test_thousands_of_points_arrive(tmp_path: Path, tracking_uri: str) -> None:
    experiment = prepare_tracking(tracking_uri, "tiny")
    run = TrialRun(tracking_uri, experiment, facts_of(result()))
    run.log_curve([CurvePoint(step, {"train/loss": 1 / step}) for step in range(1, 2502)])
    (found,) = runs(tracking_uri)
    assert len(client_of(tracking_uri).get_metric_history(found.info.run_id, "train/loss")) == 2501


def test_a_store_that_fails_stops_nothing_and_causes_one_warning(
    tmp_path: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = prepare_tracking(tracking_uri, "tiny")
    run = TrialRun(tracking_uri, experiment, facts_of(result()))
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///")) as database:
        database.execute("DROP TABLE metrics")
    run.log_curve([CurvePoint(1, {"train/loss": 1.0})])
    run.finish(finished(tmp_path), result())
    assert not run.recorded
    assert len([record for record in caplog.records if "they wait on disk" in record.message]) == 1


def test_preparing_puts_sqlite_into_write_ahead_mode(tracking_uri: str) -> None:
    prepare_tracking(tracking_uri, "tiny")
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_preparing_twice_creates_one_experiment(tracking_uri: str) -> None:
    assert prepare_tracking(tracking_uri, "tiny") == prepare_tracking(tracking_uri, "tiny")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),
    ],
)
def test_an_experiment_opens_as_the_training_of_models_unless_a_user_says_otherwise(
    tracking_uri: str, before: str | None, after: str
) -> None:
    client = client_of(tracking_uri)
    tags = {} if before is None else {"mlflow.experimentKind": before}
    identifier = client.create_experiment("tiny", tags=tags)
    assert prepare_tracking(tracking_uri, "tiny") == identifier
    assert client.get_experiment(identifier).tags["mlflow.experimentKind"] == after


def test_a_new_experiment_opens_as_the_training_of_models(tracking_uri: str) -> None:
    made = client_of(tracking_uri).get_experiment(prepare_tracking(tracking_uri, "tiny"))
    assert made.tags == {"mlflow.experimentKind": "custom_model_development"}


def test_a_deleted_experiment_is_named(tracking_uri: str) -> None:
    client_of(tracking_uri).delete_experiment(prepare_tracking(tracking_uri, "tiny"))
    with pytest.raises(TrackingError, match="'tiny' is deleted"):
        prepare_tracking(tracking_uri, "tiny")


def test_an_unknown_study_is_refused_with_those_there_are(tracking_uri: str) -> None:
    prepare_tracking(tracking_uri, "tiny")
    with pytest.raises(ConfigError, match=r"'huge'.*available: tiny"):
        experiment_id(tracking_uri, "huge")


@pytest.mark.parametrize("uri", ["sqlite:////proc/none/mlflow.db", "abacus://x"])
def test_a_store_that_cannot_be_used_is_refused_by_its_name(uri: str) -> None:
    with pytest.raises(BbcuError) as refused:
        prepare_tracking(uri, "tiny")
    assert uri in str(refused.value)
    assert "\n" not in str(refused.value)


# --- garbage collection -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["enabled", "disabled"])
def enabled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether garbage collection is enabled before a test; it is afterwards."""
    if not request.param:
        gc.disable()
    yield request.param
    gc.enable()


def test_garbage_collection_is_off_in_the_block_and_restored_after_it(enabled: bool) -> None:
    with without_garbage_collection():
        with without_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() == enabled


def test_garbage_collection_is_restored_after_an_error(enabled: bool) -> None:
    with pytest.raises(RuntimeError), without_garbage_collection():
        raise RuntimeError
    assert gc.isenabled() == enabled
