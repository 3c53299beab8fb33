"""A report writes the facts that an index shows, and an index believes none that cannot be."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.effects.claims import Status
from analysis.effects.family import Conclusion
from analysis.report.page import report_of
from analysis.report.summary import LARGEST_SUMMARY, SUMMARY, Summary, read_summary
from tests.harness.studies import Trial, in_memory, read_back, trial

GPU = "cuda (A fast | GPU)"


def on(device: str, each: Trial) -> Trial:
    return dataclasses.replace(each, origin={"device": device})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The report of two cells under three seeds, one trained on a GPU; one trial has not run, and one is a stray."""
    finished = [trial(seed, 30.0 + 0.01 * seed - drop, residual=not drop) for seed in (0, 1, 2) for drop in (0, 1)]
    finished[0] = on(GPU, finished[0])
    others = {"planned": [trial(3)], "unplanned": [trial(9)]}
    return report_of(read_back(tmp_path_factory.mktemp("outputs"), finished, **others)).files


@pytest.fixture(scope="module")
def summary(files: Mapping[str, bytes]) -> Summary:
    return Summary.model_validate_json(files[SUMMARY])


def test_a_summary_says_what_the_page_says(files: Mapping[str, bytes], summary: Summary) -> None:
    page = files["report.md"].decode()
    assert "what is `residual` worth?" in page
    assert summary.question == "what is residual worth?"
    assert re.search(r"\| \[Without the residual\]\(#runs-\w+\) \| -1\.000", page)
    assert (summary.changes, summary.verdicts) == (1, {Conclusion.WORSE: 1})
    assert "2 cells, 4 seeds, 6 finished and 1 missing." in page
    assert (summary.cells, summary.seeds, summary.trials) == (2, [3, 4], {"finished": 6, "missing": 1})
    (task,) = summary.tasks
    assert task.task == "x2 super-resolution"
    assert (task.steps, task.test_sets) == ("20", ["Set5"])


def test_claims_are_counted_as_on_the_page(files: Mapping[str, bytes], summary: Summary) -> None:
    counts = {status: summary.claims.get(status, 0) for status in (Status.SUPPORTED, Status.CONTRADICTED)}
    assert sum(summary.claims.values()) > 0
    said = f"{counts[Status.SUPPORTED]} supported, {counts[Status.CONTRADICTED]} contradicted"
    assert f"- **Claims of the paper**: {said}" in files["report.md"].decode()


def test_the_first_figure_is_the_first_one_of_the_page(files: Mapping[str, bytes], summary: Summary) -> None:
    assert summary.figure is not None
    assert summary.figure.file == "effects.png"
    assert summary.figure.file in files
    assert f"![{summary.figure.shows}](effects.png)" in files["report.md"].decode()


def test_times_are_added_up_for_each_processor_over_the_trainings_of_the_plan(summary: Summary) -> None:
    # A training takes 12.5 s and one more for each seed; the first is the one on the GPU.
    assert summary.train_s == {"A fast | GPU": 12.5, "two cores": 12.5 + 2 * 13.5 + 2 * 14.5}


def test_a_page_without_a_figure_has_none(tmp_path: Path) -> None:
    found = Summary.model_validate_json(report_of(in_memory([trial()])).files[SUMMARY])
    assert found.figure is None
    assert (found.changes, found.verdicts) == (0, {})
    assert found.question == "what does one cell reach?"


def spoilt(content: Mapping[str, Any], **others: Any) -> bytes:
    return json.dumps({**content, **others}).encode()


@pytest.mark.parametrize(
    "others",
    [
        pytest.param({"figure": {"file": "../../secret.png", "shows": "a figure"}}, id="a figure elsewhere"),
        pytest.param({"figure": {"file": "a.svg", "shows": "a figure"}}, id="another kind of file"),
        pytest.param({"question": "\x1b[31m"}, id="control characters"),
        pytest.param({"study": "a\u202eb"}, id="a direction"),
        pytest.param({"verdicts": {"best": 1}}, id="another verdict"),
        pytest.param({"trials": {"lost": 1}}, id="another state"),
        pytest.param({"cells": -1}, id="a negative count"),
        pytest.param({"cells": True}, id="no number"),
        pytest.param({"train_s": {"cpu": -1.0}}, id="a negative time"),
        pytest.param({"seeds": [3]}, id="one end"),
        pytest.param({"tasks": None}, id="no list"),
    ],
)
def test_a_summary_that_cannot_be_is_one_line(
    files: Mapping[str, bytes], tmp_path: Path, others: Mapping[str, Any]
) -> None:
    (tmp_path / SUMMARY).write_bytes(spoilt(json.loads(files[SUMMARY])))
    assert read_summary(tmp_path / SUMMARY).cells == 2
    (tmp_path / SUMMARY).write_bytes(spoilt(json.loads(files[SUMMARY]), **others))
    with pytest.raises(ValueError, match=f"^{SUMMARY}: ") as refused:
        read_summary(tmp_path / SUMMARY)
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_no_summary_does_not_block_or_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / SUMMARY
    path.write_bytes(b"[" * (LARGEST_SUMMARY + 1))
    with pytest.raises(OSError, match="larger than"):
        read_summary(path)
    path.write_bytes(b"[" * LARGEST_SUMMARY)
    with pytest.raises(ValueError, match=SUMMARY):
        read_summary(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        read_summary(path)
