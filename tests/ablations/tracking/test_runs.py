"""The store: what a trial leaves on disk and in MLflow, and how the two are brought together."""

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ablations.storage import plans
from ablations.storage.files import replacing, write_atomically
from ablations.storage.folder import CurvePoint, TrialFolder, trial_folders
from ablations.storage.plans import read_plan, write_plan
from ablations.tracking.client import (
    TrackingError,
    client_of,
    experiment_id,
    finished_runs,
    prepare_tracking,
    search_runs,
)
from ablations.tracking.runs import TrialRun, facts_of
from ablations.tracking.sync import synchronise
from bbcu.errors import BbcuError, ConfigError

CELL = "a" * 64


def result(seed: int = 0, cell: str = CELL) -> dict[str, Any]:
    """A whole result with round numbers."""
    return {
        "study": "tiny",
        "cell": cell,
        "name": "bn=post",
        "factors": {"residual": True, "bn": "post", "align": 1.0},
        "levels": {"residual": True, "bn": "post", "align": "auto"},
        "reference": {"residual": True, "bn": "none", "align": "auto"},
        "setting": {"task": {"name": "sr_x2"}, "channels": 8, "train": {"steps": 20}, "data": "f" * 64},
        "method": "custom",
        "task": "sr_x2",
        "seed": seed,
        "metrics": {"Set5": {"psnr_db": 36.0, "ssim": 0.95, "images": {"baby": {"psnr_db": 36.0, "ssim": 0.95}}}},
        "baseline": {"Set5": {"psnr_db": 34.0, "ssim": 0.93}},
        "cost": {"ops_g": 18.55, "params_k": 224.6},
        "timing": {"train_s": 2.0, "step_ms": 100.0, "evaluate_s": 1.0},
        "probes": {},
        "provenance": {"git": "0" * 40, "dirty": False},
    }


def finished(outputs: Path, seed: int = 0) -> TrialFolder:
    """A folder with a whole result, a curve of two points, a log and a picture."""
    folder = TrialFolder(outputs, "tiny", CELL, seed)
    folder.write_result(result(seed))
    folder.write_curve([CurvePoint(10, {"train/loss": 0.5}, 1.0), CurvePoint(20, {"train/loss": 0.25}, 2.0)])
    folder.config_path.write_text("seed: 0\n")
    (folder.samples / "Set5" / "baby").mkdir(parents=True)
    (folder.samples / "Set5" / "baby" / "output.png").write_bytes(b"picture")
    return folder


# --- disk -------------------------------------------------------------------------------------------------------------


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert finished(tmp_path).result() == result()


def test_a_folder_is_named_by_study_cell_and_seed(tmp_path: Path) -> None:
    assert finished(tmp_path, 3).path == tmp_path / "tiny" / CELL / "seed3"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(json.dumps(result())[:100], id="cut short"),
        pytest.param("[1, 2]", id="no object"),
        pytest.param(json.dumps(result(seed=1)), id="of another seed"),
        pytest.param(json.dumps(result(cell="b" * 64)), id="of another cell"),
    ],
)
def test_a_result_that_is_not_whole_or_not_its_own_counts_as_none(tmp_path: Path, text: str) -> None:
    folder = finished(tmp_path)
    folder.result_path.write_text(text)
    assert folder.result() is None


def test_a_curve_is_read_back_point_for_point(tmp_path: Path) -> None:
    points = [CurvePoint(1, {"train/loss": 1 / 3}, 12.25), CurvePoint(2, {"train/loss": 1e-9}, 13.5)]
    folder = TrialFolder(tmp_path, "tiny", CELL, 0)
    folder.write_curve(points)
    assert folder.curve() == points


def test_a_curve_is_a_long_table(tmp_path: Path) -> None:
    with finished(tmp_path).curve_path.open(newline="") as file:
        assert list(csv.reader(file))[:2] == [["step", "metric", "value", "time"], ["10", "train/loss", "0.5", "1.0"]]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_trial_folders_are_found_in_order(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        finished(tmp_path, seed)
    assert [folder.seed for folder in trial_folders(tmp_path, "tiny")] == [0, 1, 2]
    assert trial_folders(tmp_path, "other") == []


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_a_plan_grows_and_names_each_trial_once(tmp_path: Path) -> None:
    one, two = ({"cell": CELL, "seed": seed, "name": "x"} for seed in (0, 1))
    write_plan(tmp_path, "tiny", {"trials": [one], "left_out": []})
    write_plan(tmp_path, "tiny", {"trials": [one, two], "left_out": []})
    assert [row["seed"] for row in read_plan(tmp_path, "tiny")["trials"]] == [0, 1]


def test_a_plan_keeps_what_was_left_out_once(tmp_path: Path) -> None:
    row = {"levels": {"bn": "out"}, "setting": {"channels": 8}, "reason": "impossible"}
    for _ in range(2):
        write_plan(tmp_path, "tiny", {"trials": [], "left_out": [row]})
    (kept,) = read_plan(tmp_path, "tiny")["left_out"]
    assert row.items() <= kept.items()


def test_what_is_planned_now_is_not_left_out_any_more(tmp_path: Path) -> None:
    asked = {"levels": {"bn": "out"}, "setting": {"channels": 8}}
    write_plan(tmp_path, "tiny", {"trials": [], "left_out": [{**asked, "reason": 'excluded by "bn=out"'}]})
    trial = {**asked, "cell": CELL, "seed": 0, "name": "x"}
    twice = {**asked, "reason": "the same network as x: asked for twice"}
    write_plan(tmp_path, "tiny", {"trials": [trial], "left_out": []})
    assert read_plan(tmp_path, "tiny")["left_out"] == []
    write_plan(tmp_path, "tiny", {"trials": [trial], "left_out": [twice]})
    assert [row["reason"] for row in read_plan(tmp_path, "tiny")["left_out"]] == [twice["reason"]]


def test_what_is_planned_again_was_planned_when_it_was_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ({"cell": CELL, "seed": seed, "name": "x"} for seed in (0, 1))
    row = {"levels": {"bn": "out"}, "setting": {"channels": 8}, "reason": "impossible"}
    for now, trials in ((1000.0, [one]), (2000.0, [one, two])):
        monkeypatch.setattr(plans.time, "time", lambda now=now: now)
        write_plan(tmp_path, "tiny", {"trials": trials, "left_out": [row]})
    plan = read_plan(tmp_path, "tiny")
    assert [entry["planned_at"] for entry in (*plan["trials"], *plan["left_out"])] == [1000.0, 2000.0, 1000.0]


def test_a_study_without_a_plan_has_an_empty_one(tmp_path: Path) -> None:
    assert read_plan(tmp_path, "tiny") == {"trials": [], "left_out": []}


# --- MLflow -----------------------------------------------------------------------------------------------------------


def runs(uri: str) -> list[Any]:
    return search_runs(uri, experiment_id(uri, "tiny"))


def test_a_result_becomes_one_finished_run_with_all_its_facts(tmp_path: Path, tracking_uri: str) -> None:
    finished(tmp_path)
    synchronise(tmp_path, "tiny", tracking_uri)
    (run,) = runs(tracking_uri)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "bn=post"
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


def test_synchronising_twice_logs_once(tmp_path: Path, tracking_uri: str) -> None:
    finished(tmp_path, 0)
    finished(tmp_path, 1)
    assert len(synchronise(tmp_path, "tiny", tracking_uri)) == 2
    assert synchronise(tmp_path, "tiny", tracking_uri) == []
    assert len(runs(tracking_uri)) == 2


def test_what_a_killed_process_left_running_is_closed_before_the_next_attempt(
    tmp_path: Path, tracking_uri: str
) -> None:
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
    run.leave(TrialFolder(tmp_path, "tiny", CELL, 0), "failed", "the loss is nan at step 7")
    (failed,) = runs(tracking_uri)
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "the loss is nan at step 7")
    assert finished_runs(tracking_uri, experiment_id(tracking_uri, "tiny")) == set()


def test_thousands_of_points_arrive(tmp_path: Path, tracking_uri: str) -> None:
    experiment = prepare_tracking(tracking_uri, "tiny")
    run = TrialRun(tracking_uri, experiment, facts_of(result()))
    run.log_curve([CurvePoint(step, {"train/loss": 1 / step}) for step in range(1, 2502)])
    (found,) = runs(tracking_uri)
    assert len(client_of(tracking_uri).get_metric_history(found.info.run_id, "train/loss")) == 2501


def test_a_store_that_goes_away_stops_nothing_and_is_told_once(
    tmp_path: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = prepare_tracking(tracking_uri, "tiny")
    run = TrialRun(tracking_uri, experiment, facts_of(result()))
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///")) as database:
        database.execute("DROP TABLE metrics")
    run.log_curve([CurvePoint(1, {"train/loss": 1.0})])
    run.finish(finished(tmp_path), {}, 20)
    assert not run.recorded
    assert len([record for record in caplog.records if "they wait on disk" in record.message]) == 1


def test_preparing_puts_sqlite_into_write_ahead_mode(tracking_uri: str) -> None:
    prepare_tracking(tracking_uri, "tiny")
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_preparing_twice_gives_one_experiment(tracking_uri: str) -> None:
    assert prepare_tracking(tracking_uri, "tiny") == prepare_tracking(tracking_uri, "tiny")


def test_a_deleted_experiment_is_named(tracking_uri: str) -> None:
    client_of(tracking_uri).delete_experiment(prepare_tracking(tracking_uri, "tiny"))
    with pytest.raises(TrackingError, match="'tiny' is deleted"):
        prepare_tracking(tracking_uri, "tiny")


def test_an_unknown_study_is_refused_with_those_there_are(tracking_uri: str) -> None:
    prepare_tracking(tracking_uri, "tiny")
    with pytest.raises(ConfigError, match=r"'huge'.*there: tiny"):
        experiment_id(tracking_uri, "huge")


@pytest.mark.parametrize("uri", ["sqlite:////proc/none/mlflow.db", "abacus://shelf"])
def test_a_store_that_cannot_be_used_is_refused_by_its_name(uri: str) -> None:
    with pytest.raises(BbcuError) as refused:
        prepare_tracking(uri, "tiny")
    assert uri in str(refused.value)
    assert "\n" not in str(refused.value)
