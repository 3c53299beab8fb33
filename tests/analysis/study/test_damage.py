"""Damaged files of a study on disk: each is named, none is believed, and the report of the rest is written."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from ablations.storage.folder import TrialFolder
from ablations.tracking.client import client_of, experiment_id, search_runs
from analysis.study.loading import CURVE_COLUMNS, curve_frame, load, load_folder
from analysis.study.schema import read_record
from tests.harness.studies import Trial, result_of, start, trial, write_folder

CURVE = "step,metric,value,time\n10,train/loss,0.02,0.0\n20,Set5/psnr_db,30.0,0.0\n"


def folder_of(outputs: Path, each: Trial) -> TrialFolder:
    return TrialFolder(outputs, "components", each.cell, each.seed)


DAMAGED_CURVES = {
    "empty": b"",
    "a header alone": b"step,metric,value,time\n",
    "another header": CURVE.replace("step", "epoch").encode(),
    "no header": CURVE.partition("\n")[2].encode(),
    "NUL bytes": bytes(len(CURVE)),
    "a NUL byte": CURVE.replace("0.02", "0.0\0").encode(),
    "no text": b"\xff\xfe" + CURVE.encode(),
    "cut in a line": CURVE.encode()[:-8],
    "cut after a line": CURVE.encode()[: CURVE.index("20,Set5")],
    "a field too few": CURVE.replace(",0.02", "").encode(),
    "a field too many": CURVE.replace(",0.02", ",0.02,1,2").encode(),
    "a blank line": CURVE.replace("\n10", "\n\n10").encode(),
    "a line end of another system": CURVE.replace("0.0\n20", "0.0\r20").encode(),
    "an open quote": CURVE.replace("train/loss", '"train/loss').encode(),
    "a word": CURVE.replace("0.02", "much").encode(),
    "a number with an underscore": CURVE.replace("0.02", "0_2").encode(),
    "no number": CURVE.replace("0.02", "nan").encode(),
    "infinity": CURVE.replace("0.02", "1e999").encode(),
    "a step that is a fraction": CURVE.replace("10,", "1.5,").encode(),
    "a negative step": CURVE.replace("10,", "-10,").encode(),
    "a step of many digits": CURVE.replace("10,", f"{'9' * 5000},").encode(),
    "a long metric": CURVE.replace("train/loss", "x" * 5000).encode(),
    "another score at the end": CURVE.replace("30.0", "31.0").encode(),
}


@pytest.mark.parametrize("case", DAMAGED_CURVES)
def test_a_damaged_curve_is_left_out_and_named(tmp_path: Path, case: str) -> None:
    write_folder(tmp_path, [trial(0), trial(1)])
    # Files are read when a report asks for them; a curve that is damaged before is named by the study's folder.
    results = load_folder(tmp_path / "components")
    folder_of(tmp_path, trial(0)).curve_path.write_bytes(DAMAGED_CURVES[case])
    assert results.damaged_curves == {(trial(0).cell, 0)}
    assert set(results.curves["seed"]) == {1}


def test_damage_in_two_curves_does_not_make_one_of_the_other(tmp_path: Path) -> None:
    write_folder(tmp_path, [trial(0), trial(1), trial(2)])
    results = load_folder(tmp_path / "components")
    more, fewer = CURVE.replace("0.0\n20", "0.0\r15,train/loss,0.01,0.0\n20"), CURVE.replace("\n20", "\n\n20")
    folder_of(tmp_path, trial(0)).curve_path.write_bytes(more.encode())
    folder_of(tmp_path, trial(1)).curve_path.write_bytes(fewer.encode())
    assert results.damaged_curves == {(trial(0).cell, 0), (trial(1).cell, 1)}
    assert set(results.curves["seed"]) == {2}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["a FIFO", "a folder"])
def test_what_is_no_file_is_a_damaged_curve(tmp_path: Path, make: Callable[[Path], object]) -> None:
    write_folder(tmp_path, [trial(0), trial(1)])
    results = load_folder(tmp_path / "components")
    path = folder_of(tmp_path, trial(0)).curve_path
    path.unlink()
    make(path)
    assert results.damaged_curves == {(trial(0).cell, 0)}
    assert set(results.curves["seed"]) == {1}


@hypothesis.given(
    content=st.binary(max_size=100) | st.text(max_size=100).map(lambda text: CURVE.encode() + text.encode())
)
def test_any_bytes_are_a_curve_or_a_damaged_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sound.csv").write_text(CURVE)
    (tmp_path / "curve.csv").write_bytes(content)
    paths = {("sound", 0): tmp_path / "sound.csv", ("any", 0): tmp_path / "curve.csv"}
    frame, damaged = curve_frame(paths)
    assert tuple(frame.columns) == CURVE_COLUMNS
    assert set(frame["cell"]) | {cell for cell, _ in damaged} == {"sound", "any"}
    assert (frame["cell"] == "sound").sum() == 2


def with_value(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set what stands under these keys of a result."""

    def change(result: dict[str, Any]) -> None:
        for key in path[:-1]:
            result = result[key]
        result[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_value("metrics", "Set5", "psnr_db", value=float("inf")), "its Set5/psnr_db is inf, which cannot be"),
        (with_value("metrics", "Set5", "psnr_db", value=1e6), "its Set5/psnr_db is 1e+06, which cannot be"),
        (with_value("metrics", "Set5", "psnr_db", value="30"), "its Set5/psnr_db is '30', which cannot be"),
        (with_value("metrics", "Set5", "ssim", value=40.0), "its Set5/ssim is 40, which cannot be"),
        (with_value("cost", "ops_g", value=-1.0), "its cost/ops_g is -1, which cannot be"),
        (with_value("cost", value={}), "it has no cost/ops_g"),
        (with_value("metrics", value={}), "it has no score on a test set"),
        (with_value("provenance", "packages", value=[]), "its provenance is damaged: packages: Input should be"),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_true_is_no_result(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    write_folder(tmp_path, [trial(0), trial(1)])
    result = result_of(trial(0))
    change(result)
    folder_of(tmp_path, trial(0)).write_result(result)
    row = load_folder(tmp_path / "components").trials.iloc[0]
    assert row["state"] == "interrupted"
    # The schema of the storage may refuse it first.
    assert reason in row["reason"] or "damaged" in row["reason"]


def test_a_run_without_its_tags_is_no_result(tracking_uri: str, tmp_path: Path) -> None:
    run, folder = start(tracking_uri, tmp_path, trial(0))
    run.close_without_result(folder, "failed", "why")
    client = client_of(tracking_uri)
    (found,) = search_runs(tracking_uri, experiment_id(tracking_uri, "components"))
    client.set_tag(found.info.run_id, "levels", "[" * 4000)
    (row,) = load(tracking_uri, "components", tmp_path / "none").trials.to_dict("records")
    assert (row["state"], row["reason"]) == ("interrupted", "the tags of its MLflow run are missing or damaged")


@hypothesis.given(content=st.binary(max_size=200) | st.text(max_size=50).map(lambda text: json.dumps(text).encode()))
def test_any_bytes_are_a_record_or_one_line(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert set(read_record(content)) <= {"cell", "seed", "metrics", "baseline", "cost", "timing", "probes", "dead"}
