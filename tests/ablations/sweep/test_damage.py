"""A study whose folder is damaged in any way: every command knows the same facts as before, or names the file."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations.__main__ import main
from ablations.storage.files import DamagedFile
from ablations.storage.plans import plan_path, read_plan
from ablations.tracking.sync import synchronise
from analysis.study.loading import load_folder
from tests.harness.support import STUDY, Outcome, Workplace

TRIALS = ("bn=pre,post",)


@pytest.fixture(scope="module")
def trained(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A study of two trials that have finished."""
    place = new_workplace()
    assert place.sweep(*TRIALS).status == 0
    return place


@pytest.fixture
def place(trained: Workplace, tmp_path: Path, migrated_database: Path) -> Workplace:
    """A copy of the study, to be damaged, beside an MLflow that holds nothing."""
    copy = Workplace.apart(tmp_path / "copy", migrated_database)
    shutil.copytree(trained.outputs, copy.outputs)
    return copy


def command(*arguments: str) -> Outcome:
    """Run ``python -m ablations`` in this process."""
    out, message = io.StringIO(), io.StringIO()
    status: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(message):
        try:
            main(arguments)
        except SystemExit as leaving:
            status = leaving.code
    if isinstance(status, str):
        message.write(f"{status}\n")
        status = 1
    assert isinstance(status, int)
    return Outcome(status, out.getvalue(), message.getvalue())


def status_of(place: Workplace, *more: str) -> Outcome:
    return command("status", STUDY, "--outputs", str(place.outputs), *more)


# --- results ----------------------------------------------------------------------------------------------------------


def better(path: Path) -> None:
    """Make a result better than it is."""
    content = json.loads(path.read_text())
    content["metrics"]["Tiny"]["psnr_db"] = 99.0
    path.write_text(json.dumps(content))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [better, fifo])
def test_a_damaged_result_is_named_by_every_command_and_its_trial_is_trained_again(
    place: Workplace, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = place.trials()[0]
    before = folder.result()
    assert before is not None
    damage(folder.result_path)

    status = status_of(place)
    assert "its result.json is damaged: " in status.out
    assert f"damaged: {folder.shortened(folder.result_path)}" in status.out
    (record,) = [row for row in json.loads(status_of(place, "--json").out)["trials"] if row["damaged"]]
    assert record["damaged"] == str(folder.result_path)

    report = load_folder(place.outputs / STUDY)
    (row,) = [row for _, row in report.trials.iterrows() if row["state"] != "finished"]
    assert (row["cell"], row["state"]) == (folder.cell, "interrupted")
    assert row["reason"].startswith("its result.json is damaged: ")

    assert [logged.cell for logged in synchronise(place.outputs, STUDY, place.uri)] == [place.trials()[1].cell]
    assert any(text.startswith(f"{folder.result_path} is damaged: ") for text in caplog.messages)

    again = place.sweep(*TRIALS)
    assert again.status == 0, again.text
    assert "1 done already, 1 to train" in again.out
    assert again.text.count(f"{folder.result_path} is damaged: ") == 1
    assert again.text.count("; the trial is trained again") == 1
    after = folder.result()
    assert after is not None
    assert after["metrics"] == before["metrics"]


def test_the_result_that_is_read_has_the_promised_keys_and_the_file_the_checksums(trained: Workplace) -> None:
    folder = trained.trials()[0]
    content = json.loads(folder.result_path.read_text())
    assert next(iter(content)) == "sha256"
    assert content["files"].keys() == {"curve.csv", "checkpoint.pt"}
    assert folder.result() == {name: value for name, value in content.items() if name not in ("sha256", "files")}


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_damaged_plan_is_one_line_in_each_command_and_the_next_sweep_begins_a_new_one(
    place: Workplace,
) -> None:
    path = plan_path(place.outputs, STUDY)
    before = read_plan(place.outputs, STUDY)
    os.truncate(path, path.stat().st_size // 2)

    status = status_of(place)
    assert "planned unknown" in status.out
    assert "finished 2" in status.out
    assert status.refusal.startswith(f"ablations: {path} is damaged: ")
    as_json = status_of(place, "--json")
    assert json.loads(as_json.out)["counts"]["planned"] is None
    assert as_json.status == 1
    with pytest.raises(DamagedFile, match="which trials are missing is not known"):
        load_folder(place.outputs / STUDY)

    again = place.sweep(*TRIALS)
    assert again.status == 0, again.text
    assert f"{path} is damaged: " in again.text
    assert path.with_name("plan.json.damaged").exists()
    rows = [{**row, "planned_at": 0} for row in read_plan(place.outputs, STUDY)["trials"]]
    assert rows == [{**row, "planned_at": 0} for row in before["trials"]]
    assert status_of(place).status == 0


def test_results_on_other_pictures_are_noticed_although_the_plan_is_damaged(place: Workplace) -> None:
    plan_path(place.outputs, STUDY).write_text("{")
    outcome = place.sweep(*TRIALS, "data.test={Tiny: " + str(place.folder / "train") + "}")
    assert "on other pictures" in outcome.refusal


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_of_other_names_break_no_command(place: Workplace) -> None:
    folder = place.trials()[0]
    shutil.copytree(folder.path, folder.path.with_name("seed0.bak"))
    shutil.copytree(folder.path, folder.path.with_name("seed01"))
    folder.path.with_name("seed7").symlink_to("nowhere")
    shutil.copytree(folder.path.parent, place.outputs / STUDY / "copy of a cell", symlinks=True)
    assert "2 trials" not in status_of(place).message
    assert len(load_folder(place.outputs / STUDY).finished) == 2
    assert len(synchronise(place.outputs, STUDY, place.uri)) == 2
    again = place.sweep(*TRIALS)
    assert again.status == 0
    assert "nothing to train" in again.out
