"""A trial's folder and a study's plan: a file is read back as it was written, or counts as missing."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest

from ablations.storage import plans
from ablations.storage.folder import CurvePoint, TrialFolder, trial_folders
from ablations.storage.plans import plan_path, read_plan, refuse_other_pairing, write_plan
from bbcu.errors import ConfigError
from bbcu.files import replacing, write_atomically
from tests.ablations.storage.helpers import CELL, FORK, finished, result

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
        pytest.param("[1, 2]", id="not an object"),
        pytest.param(json.dumps(result(seed=1)), id="of another seed"),
        pytest.param(json.dumps(result(cell="b" * 64)), id="of another cell"),
        pytest.param(json.dumps(result()).replace('"metrics"', '"other"'), id="without metrics"),
    ],
)
def test_a_damaged_result_or_one_of_another_trial_counts_as_missing(tmp_path: Path, text: str) -> None:
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


def die_while_writing(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of the ne")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    writer = FORK.Process(target=die_while_writing, args=(path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_trial_folders_are_found_in_order(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        finished(tmp_path, seed)
    assert [folder.seed for folder in trial_folders(tmp_path, "tiny")] == [0, 1, 2]
    assert trial_folders(tmp_path, "other") == []


# --- the plan ---------------------------------------------------------------------------------------------------------

ASKED = {"factors": {"bn": "post"}, "levels": {"bn": "post"}, "setting": {"channels": 8, "data": "f" * 64}}


def test_a_plan_grows_and_names_each_trial_once(tmp_path: Path) -> None:
    one, two = ({"cell": CELL, "seed": seed, "name": "x", **ASKED} for seed in (0, 1))
    write_plan(tmp_path, "tiny", {"trials": [one], "left_out": []})
    write_plan(tmp_path, "tiny", {"trials": [one, two], "left_out": []})
    assert [row["seed"] for row in read_plan(tmp_path, "tiny")["trials"]] == [0, 1]


def test_a_plan_keeps_what_was_left_out_once(tmp_path: Path) -> None:
    row = {"levels": {"bn": "out"}, "setting": {"channels": 8}, "reason": "impossible"}
    for _ in range(2):
        write_plan(tmp_path, "tiny", {"trials": [], "left_out": [row]})
    (kept,) = read_plan(tmp_path, "tiny")["left_out"]
    assert row.items() <= kept.items()


def test_a_trial_that_is_planned_now_is_no_longer_left_out(tmp_path: Path) -> None:
    asked = {"levels": {"bn": "out"}, "setting": ASKED["setting"]}
    write_plan(tmp_path, "tiny", {"trials": [], "left_out": [{**asked, "reason": 'excluded by "bn=out"'}]})
    trial = {**ASKED, **asked, "cell": CELL, "seed": 0, "name": "x"}
    twice = {**asked, "reason": "the same network as x: asked for twice"}
    write_plan(tmp_path, "tiny", {"trials": [trial], "left_out": []})
    assert read_plan(tmp_path, "tiny")["left_out"] == []
    write_plan(tmp_path, "tiny", {"trials": [trial], "left_out": [twice]})
    assert [row["reason"] for row in read_plan(tmp_path, "tiny")["left_out"]] == [twice["reason"]]


def test_a_trial_that_is_planned_again_keeps_its_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ({"cell": CELL, "seed": seed, "name": "x", **ASKED} for seed in (0, 1))
    row = {"levels": {"bn": "out"}, "setting": {"channels": 8}, "reason": "impossible"}
    for now, trials in ((1000.0, [one]), (2000.0, [one, two])):
        monkeypatch.setattr(plans.time, "time", lambda now=now: now)
        write_plan(tmp_path, "tiny", {"trials": trials, "left_out": [row]})
    plan = read_plan(tmp_path, "tiny")
    assert [entry["planned_at"] for entry in (*plan["trials"], *plan["left_out"])] == [1000.0, 2000.0, 1000.0]


@pytest.mark.parametrize("pairing", [True, False])
def test_a_plan_keeps_its_pairing_through_later_sweeps(tmp_path: Path, pairing: bool) -> None:
    for seed in (0, 1):
        row = {"cell": CELL, "seed": seed, "name": "x", **ASKED}
        write_plan(tmp_path, "tiny", {"pairing": pairing, "trials": [row], "left_out": []})
    plan = read_plan(tmp_path, "tiny")
    assert (plan["pairing"], len(plan["trials"])) == (pairing, 2)


def test_of_two_sweeps_that_start_at_once_the_later_one_may_not_change_the_pairing(tmp_path: Path) -> None:
    """Both have seen no plan before they began to plan."""
    row = {"cell": CELL, "seed": 0, "name": "x", **ASKED}
    for pairing in (True, False):
        refuse_other_pairing(tmp_path, "tiny", pairing)
    write_plan(tmp_path, "tiny", {"pairing": True, "trials": [row], "left_out": []})
    before = plan_path(tmp_path, "tiny").read_bytes()
    with pytest.raises(ConfigError, match=r"study tiny was planned with study\.pairing=true"):
        write_plan(tmp_path, "tiny", {"pairing": False, "trials": [{**row, "seed": 1}], "left_out": []})
    assert plan_path(tmp_path, "tiny").read_bytes() == before


def test_a_plan_of_an_earlier_version_was_made_without_pairing(tmp_path: Path) -> None:
    row = {"cell": CELL, "seed": 0, "name": "x", **ASKED}
    write_plan(tmp_path, "tiny", {"trials": [row], "left_out": []})
    refuse_other_pairing(tmp_path, "tiny", False)
    with pytest.raises(ConfigError, match=r"study\.pairing=true: study tiny was planned with study\.pairing=false"):
        refuse_other_pairing(tmp_path, "tiny", True)


def test_a_damaged_plan_fixes_no_pairing(tmp_path: Path) -> None:
    """Nothing is raised."""
    write_plan(tmp_path, "tiny", {"trials": [{"cell": CELL, "seed": 0, "name": "x", **ASKED}], "left_out": []})
    plan_path(tmp_path, "tiny").write_text("{")
    refuse_other_pairing(tmp_path, "tiny", True)


def test_a_study_without_a_plan_has_an_empty_one(tmp_path: Path) -> None:
    assert read_plan(tmp_path, "tiny") == {"trials": [], "left_out": []}
