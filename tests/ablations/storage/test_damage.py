"""Damage in a study's folder is noticed: a file counts as it was written, or it is named."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import State, begin_attempt, end_attempt, history_of, present_state
from ablations.storage.files import DamagedFile, checksum_of
from ablations.storage.folder import CurvePoint, TrialFolder, trial_folders
from ablations.storage.lease import lease_path, read_lease
from ablations.storage.plans import plan_path, read_plan, write_plan
from ablations.storage.pruning import PruningRequest, answer_path, open_request, request_path
from ablations.storage.status import StatusReader, studies
from tests.ablations.storage.helpers import CELL, finished, put_lease, result

Change = Callable[[dict[str, Any]], object]


def rewrite(path: Path, change: Change, *, sealed: bool) -> None:
    """Change the JSON object in ``path``; then it has the right checksum, or none as earlier versions wrote it."""
    content = json.loads(path.read_text())
    del content["sha256"]
    if not sealed:
        content.pop("files", None)
    change(content)
    path.write_text(json.dumps({"sha256": checksum_of(content), **content} if sealed else content))


def put(*keys: str, value: object) -> Change:
    """A change of the value that lies below these keys."""

    def change(content: dict[str, Any]) -> None:
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def reason_of(folder: TrialFolder) -> str:
    damage = folder.damage()
    assert damage is not None
    assert folder.result() is None
    return damage.in_folder


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        put("metrics", "Set5", "psnr_db", value=36.01),
        put("seed", value=1),
        put("timing", "train_s", value=2),
        put("probes", "more", value=[]),
        put("unknown", value=None),
        lambda content: content.pop("dead", None) or content.pop("probes"),
    ],
    ids=["a score", "the seed", "a type", "a probe", "a key more", "a key less"],
)
def test_a_result_whose_content_was_changed_does_not_match_its_checksum(tmp_path: Path, change: Change) -> None:
    folder = finished(tmp_path)
    content = json.loads(folder.result_path.read_text())
    change(content)
    folder.result_path.write_text(json.dumps(content))
    assert reason_of(folder) == "its result.json is damaged: its content does not match its checksum"


def test_a_result_may_be_spaced_otherwise(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    content = json.loads(folder.result_path.read_text())
    folder.result_path.write_text(json.dumps(content, indent=8))
    assert folder.result() == result()


IMPOSSIBLE: Mapping[str, tuple[Change, str]] = {
    "nan": (put("metrics", "Set5", "psnr_db", value=float("nan")), "metrics.Set5.psnr_db: "),
    "below zero": (put("metrics", "Set5", "psnr_db", value=-3.0), "metrics.Set5.psnr_db: "),
    "too good": (put("metrics", "Set5", "images", "baby", "psnr_db", value=1e6), "metrics.Set5.images.baby.psnr_db: "),
    "an endless number": (put("metrics", "Set5", "psnr_db", value=10**400), "metrics.Set5.psnr_db: "),
    "ssim": (put("metrics", "Set5", "ssim", value=1.5), "metrics.Set5.ssim: "),
    "text": (put("metrics", "Set5", "psnr_db", value="36.0"), "metrics.Set5.psnr_db: "),
    "no score": (put("metrics", value={}), "metrics: "),
    "a list": (put("metrics", value=[]), "metrics: "),
    "no baseline": (put("baseline", value={}), "Value error, baseline: there is none for Set5"),
    "a seed below zero": (put("seed", value=-1), "seed: "),
    "a seed that is true": (put("seed", value=True), "seed: "),
    "a seed with a fraction": (put("seed", value=0.5), "seed: "),
    "a key in capitals": (put("cell", value=CELL.upper()), "cell: "),
    "a path as a key": (put("cell", value="../" * 21 + "a"), "cell: "),
    "an infinite cost": (put("cost", "ops_g", value=float("inf")), "cost.ops_g: "),
    "a ratio that is text": (put("cost", "latency_ratio", value="0.09"), "cost.latency_ratio: "),
    "a negative time": (put("timing", "train_s", value=-1.0), "timing.train_s: "),
    "no task": (put("setting", "task", value={}), "setting.task.name: "),
    "steps": (put("setting", "train", "steps", value="many"), "setting.train.steps: "),
    "no provenance": (put("provenance", value=None), "provenance: "),
    "a latency by a list": (put("provenance", "latency", value=["native"]), "provenance.latency: "),
    "a level": (put("levels", "bn", value={"a": 1}), "levels.bn"),
}


@pytest.mark.parametrize("sealed", [True, False], ids=["with its checksum", "of an earlier version"])
@pytest.mark.parametrize(("change", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_result_that_is_not_possible_is_refused_whatever_its_checksum(
    tmp_path: Path, change: Change, reason: str, sealed: bool
) -> None:
    folder = finished(tmp_path)
    rewrite(folder.result_path, change, sealed=sealed)
    assert reason_of(folder).startswith(f"its result.json is damaged: {reason}")


def test_the_psnr_of_identical_pictures_is_infinite_and_possible(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    rewrite(folder.result_path, put("metrics", "Set5", "images", "baby", "psnr_db", value=float("inf")), sealed=True)
    assert folder.result() is not None


class TestOfAnEarlierVersion:
    """Results without a checksum."""

    def test_it_counts(self, tmp_path: Path) -> None:
        folder = finished(tmp_path)
        rewrite(folder.result_path, lambda content: None, sealed=False)
        assert folder.result() == result()

    def test_a_mean_that_is_not_that_of_its_pictures_is_noticed(self, tmp_path: Path) -> None:
        folder = finished(tmp_path)
        rewrite(folder.result_path, put("metrics", "Set5", "psnr_db", value=99.0), sealed=False)
        assert reason_of(folder).endswith("metrics.Set5.psnr_db: it is not the mean of its pictures")

    def test_a_score_that_is_not_the_last_of_its_curve_is_noticed(self, tmp_path: Path) -> None:
        folder = finished(tmp_path)
        folder.write_curve([CurvePoint(20, {"Set5/psnr_db": 36.0}, 1.0)])
        rewrite(folder.result_path, lambda content: None, sealed=False)
        assert folder.result() == result()
        for keys in (("psnr_db",), ("images", "baby", "psnr_db")):
            rewrite_plain(folder.result_path, put("metrics", "Set5", *keys, value=99.0))
        assert reason_of(folder).endswith("metrics.Set5.psnr_db: curve.csv ends otherwise")

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            ('"probes"', '"prodes": {}, "probes"', "unknown key 'prodes'"),
            ('"seed": 0', '"seed": 5, "seed": 0', "the key 'seed' is there twice"),
            ('"probes"', '"files": {}, "probes"', "its checksum is missing"),
        ],
        ids=["unknown", "twice", "of a later version"],
    )
    def test_a_key_that_is_unknown_or_there_twice_is_noticed(
        self, tmp_path: Path, old: str, new: str, reason: str
    ) -> None:
        folder = finished(tmp_path)
        rewrite(folder.result_path, lambda content: None, sealed=False)
        folder.result_path.write_text(folder.result_path.read_text().replace(old, new))
        assert reason_of(folder) == f"its result.json is damaged: {reason}"


def rewrite_plain(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def replace_by_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


ODD: Mapping[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": truncate,
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "deep lists": lambda path: path.write_text("[" * 100_000),
    "deep objects": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "deep below a key": lambda path: path.write_text(
        path.read_text().rstrip("}\n") + ', "x": ' + "[" * 900 + "]" * 900 + "}"
    ),
    "a long number": lambda path: path.write_text('{"seed": ' + "9" * 10_000 + "}"),
    "a fifo": replace_by_fifo,
    "a folder": replace_by_folder,
    "a device": replace_by_device,
    "a link to itself": replace_by_loop,
}


@pytest.mark.parametrize("damage", ODD.values(), ids=ODD)
def test_a_result_that_is_something_else_is_named_and_its_trial_is_interrupted(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = finished(tmp_path)
    damage(folder.result_path)
    state, reason = present_state(folder)
    assert state == State.INTERRUPTED
    assert reason.startswith("its result.json is damaged: ")
    assert reason.isprintable()
    (trial,) = StatusReader(tmp_path, "tiny").read().trials
    assert (trial.state, trial.reason) == (state, reason)
    assert trial.damage is not None
    assert trial.damage.path == folder.result_path


def test_a_result_that_was_copied_from_another_trial_is_named(tmp_path: Path) -> None:
    folder, other = finished(tmp_path), finished(tmp_path, 1)
    folder.result_path.write_bytes(other.result_path.read_bytes())
    assert reason_of(folder) == "its result.json is damaged: it is the result of cell aaaaaaaaaaaa seed 1"


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ODD.values(), ids=ODD)
def test_a_trial_whose_curve_is_damaged_is_interrupted_for_that_reason(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = finished(tmp_path)
    damage(folder.curve_path)
    assert present_state(folder)[1].startswith("its curve.csv is damaged: ")


def test_a_curve_that_is_missing_or_of_another_trial_is_noticed(tmp_path: Path) -> None:
    folder, other = finished(tmp_path), finished(tmp_path, 1)
    other.write_curve([CurvePoint(10, {"train/loss": 0.4}, 1.0)])
    folder.curve_path.write_bytes(other.curve_path.read_bytes())
    assert reason_of(folder).endswith("its content does not match its checksum in result.json")
    folder.curve_path.unlink()
    assert reason_of(folder) == "its curve.csv is damaged: it is missing, and result.json has its checksum"


def test_a_curve_that_the_trial_did_not_write_is_noticed(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "tiny", CELL, 0)
    folder.write_result(result())
    folder.write_curve([CurvePoint(10, {"train/loss": 0.4}, 1.0)])
    assert reason_of(folder) == "its curve.csv is damaged: result.json does not know it"


@pytest.mark.parametrize(
    "text",
    ["", "step,metric,value\n1,train/loss,2\n", "{row}x", "{row}\n1,train/loss,nan,0.0\n", "{row}\n-1,a,1.0,0.0\n",
     "{row}\n1,a,1.0\n", '{row}\n1,"a,1.0,0.0\n', "{row}\n1,a,1.0,inf\n", "{row}\n\x00\n", "{row}\n" + "9" * 9999],
    ids=range(10),
)  # fmt: skip
def test_a_curve_of_an_earlier_version_must_be_a_table_of_numbers(tmp_path: Path, text: str) -> None:
    folder = finished(tmp_path)
    rewrite(folder.result_path, lambda content: None, sealed=False)
    folder.curve_path.write_text(text.replace("{row}", "step,metric,value,time"))
    assert reason_of(folder).startswith("its curve.csv is damaged: ")
    with pytest.raises(DamagedFile, match=r"curve.csv is damaged: "):
        folder.curve()


# --- plans ------------------------------------------------------------------------------------------------------------

RULE = StoppingRule((3, 4), 0, 0.05, (((CELL, "b" * 64),),)).record()
PLANNED = {"name": "x", "factors": {"bn": "post"}, "levels": {"bn": "post"}, "setting": {"data": "f" * 64}}


def planned(outputs: Path) -> Path:
    """The plan of a study of three trials, of which one has finished."""
    finished(outputs)
    rows = [{"cell": CELL, "seed": seed, **PLANNED} for seed in range(3)]
    write_plan(outputs, "tiny", {"study": "tiny", "trials": rows, "left_out": []})
    return plan_path(outputs, "tiny")


@pytest.mark.parametrize("damage", ODD.values(), ids=ODD)
def test_a_damaged_plan_is_named_and_what_was_planned_is_unknown(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = planned(tmp_path)
    damage(path)
    with pytest.raises(DamagedFile) as caught:
        read_plan(tmp_path, "tiny")
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert "which trials are missing is not known" in str(caught.value)
    status = StatusReader(tmp_path, "tiny").read()
    assert status.damage is not None
    assert (status.counts[State.PLANNED], status.counts[State.FINISHED]) == (None, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["trials"].pop(),
        lambda plan: plan["trials"][1].update(seed=7),
        lambda plan: plan.update(trials=[]),
    ],
    ids=["a row less", "another seed", "no rows"],
)
def test_a_plan_whose_rows_were_changed_does_not_match_its_checksum(tmp_path: Path, change: Change) -> None:
    path = planned(tmp_path)
    rewrite_plain(path, change)
    with pytest.raises(DamagedFile, match="does not match its checksum"):
        read_plan(tmp_path, "tiny")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda plan: plan.update(trials={}), "trials: "),
        (lambda plan: plan.update(cost={"binary": "64"}), "cost.binary: Value error, binary=64: must be"),
        (lambda plan: plan["trials"].append([]), "trials.3: "),
        (lambda plan: plan["trials"][2].update(seed="2"), "trials.2.seed: "),
        (lambda plan: plan["trials"][2].update(cell="../x"), "trials.2.cell: "),
        (lambda plan: plan["trials"][2].pop("setting"), "trials.2.setting: "),
        (lambda plan: plan["trials"][2].update(planned_at=1e300), "trials.2.planned_at: "),
        (lambda plan: plan.pop("left_out"), "left_out: "),
        (lambda plan: plan.update(pairing="yes"), "pairing: "),
        (lambda plan: plan["left_out"].append({"reason": None}), "left_out.0."),
        (lambda plan: plan.update(rule={**RULE, "looks": [3, 3]}), "rule: Value error, looks: they do not ascend"),
        (lambda plan: plan.update(rule={**RULE, "looks": [1, 3]}), "rule.looks.0: "),
        (lambda plan: plan.update(rule={**RULE, "families": [[[CELL]]]}), "rule.families.0.0: "),
        (lambda plan: plan.update(rule={**RULE, "error_rate": 2.0}), "rule.error_rate: "),
        (lambda plan: plan.update(rule={"looks": [3, 4]}), "rule.first_seed: "),
    ],
    ids=range(15),
)
def test_a_plan_of_a_wrong_shape_is_named_whatever_its_checksum(tmp_path: Path, change: Change, where: str) -> None:
    path = planned(tmp_path)
    rewrite(path, change, sealed=True)
    with pytest.raises(DamagedFile, match=where):
        read_plan(tmp_path, "tiny")


def test_a_plan_of_an_earlier_version_counts(tmp_path: Path) -> None:
    path = planned(tmp_path)
    before = read_plan(tmp_path, "tiny")
    rewrite(path, lambda plan: None, sealed=False)
    assert read_plan(tmp_path, "tiny") == before


def test_a_sweep_moves_a_damaged_plan_aside_and_begins_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = planned(tmp_path)
    truncate(path)
    cut = path.read_bytes()
    write_plan(tmp_path, "tiny", {"trials": [{"cell": CELL, "seed": 1, **PLANNED}], "left_out": []})
    assert [row["seed"] for row in read_plan(tmp_path, "tiny")["trials"]] == [1]
    assert path.with_name("plan.json.damaged").read_bytes() == cut
    (message,) = caplog.messages
    assert message.startswith(f"{path} is damaged: ")
    assert message.endswith("it is now plan.json.damaged, and a new plan begins")


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_an_attempt_that_was_changed_is_noticed(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "tiny", CELL, 0)
    begin_attempt(folder)
    end_attempt(folder, State.FAILED, "out of memory")
    folder.state_path.write_text(folder.state_path.read_text().replace("out of memory", "out of mercy"))
    assert history_of(folder).attempts == ()
    reason = "its state.json is damaged: its content does not match its checksum"
    assert present_state(folder) == (State.INTERRUPTED, reason)


def test_a_result_counts_although_the_attempts_are_damaged(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    folder.state_path.write_text("{")
    assert present_state(folder) == (State.FINISHED, "")


# --- leases and pruning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ODD.values(), ids=ODD)
def test_a_damaged_lease_is_ignored(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = TrialFolder(tmp_path, "tiny", CELL, 0)
    put_lease(folder)
    assert read_lease(lease_path(folder)) is not None
    damage(lease_path(folder))
    assert read_lease(lease_path(folder)) is None
    assert studies(tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": -1}, {"pid": 0}, {"pid": "1"}, {"pid": True}, {"seed": 1}, {"cell": "b" * 64}, {"cell": "../../x"},
        {"began": 1e300}, {"step": -1}, {"host": None}, {"psnr_db": "33"}, {"unknown": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_lease_of_a_wrong_shape_or_of_another_trial_is_ignored(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = TrialFolder(tmp_path, "tiny", CELL, 0)
    put_lease(folder)
    rewrite_plain(lease_path(folder), lambda lease: lease.update(changes))
    assert read_lease(lease_path(folder)) is None


@pytest.mark.parametrize(
    "text", ["{}", '{"step": 1}', '{"step": "1", "psnr_db": 30.0}', "[]", "null", "", "[" * 99_999]
)
def test_a_damaged_request_to_the_pruner_is_ignored(tmp_path: Path, text: str) -> None:
    folder = TrialFolder(tmp_path, "tiny", CELL, 0)
    request_path(folder).parent.mkdir(parents=True)
    request_path(folder).write_text(text)
    assert open_request(folder) is None


def test_an_answer_of_the_pruner_is_checksummed(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "tiny", CELL, 0)
    PruningRequest(folder, 5, 30.0).answer(prune=False)
    answer = json.loads(answer_path(folder).read_text())
    assert answer.pop("sha256") == checksum_of(answer)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "seed0.bak",
        "seed01",
        "seed-1",
        "seed",
        "seedx",
        "seed 0",
        "seed٣",
        "seed9223372036854775808",
        "seed" + "9" * 200,
    ],
)
def test_a_folder_of_another_name_is_no_trial(tmp_path: Path, name: str) -> None:
    folder = finished(tmp_path)
    (folder.path.parent / name).mkdir()
    assert [found.path for found in trial_folders(tmp_path, "tiny")] == [folder.path]
    assert len(StatusReader(tmp_path, "tiny").read().trials) == 1
    with pytest.raises(ValueError, match="not named as the folder of a trial"):
        TrialFolder.of(folder.path.parent / name)


@pytest.mark.parametrize("name", ["backup", ".running", "search.log", "résumé", "A" * 64])
def test_a_folder_beside_the_cells_is_no_cell(tmp_path: Path, name: str) -> None:
    folder = finished(tmp_path)
    (tmp_path / "tiny" / name / "seed0").mkdir(parents=True)
    assert [found.path for found in trial_folders(tmp_path, "tiny")] == [folder.path]
    assert len(StatusReader(tmp_path, "tiny").read().trials) == 1


def test_files_and_dangling_links_in_the_place_of_trials_are_no_results(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.path.parent / "seed1").write_text("file")
    (folder.path.parent / "seed2").symlink_to("nowhere")
    (tmp_path / "tiny" / ("b" * 64)).symlink_to("nowhere")
    (tmp_path / "tiny" / ("c" * 64)).write_text("file")
    assert [found.path for found in trial_folders(tmp_path, "tiny")] == [folder.path]
    states = [(trial.folder.seed, trial.state) for trial in StatusReader(tmp_path, "tiny").read().trials]
    assert states == [(0, State.FINISHED), (1, State.PLANNED), (2, State.PLANNED)]


def test_a_link_to_another_trial_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.path.parent / "seed1").symlink_to("seed0")
    linked = TrialFolder(tmp_path, "tiny", CELL, 1)
    assert present_state(linked)[1] == "its result.json is damaged: it is the result of cell aaaaaaaaaaaa seed 0"
