"""What a report becomes in MLflow: the description of its study, and the verdicts on the runs of each cell."""

import dataclasses
from pathlib import Path

import pytest
from mlflow.entities import Run

from ablations.tracking.client import client_of, experiment_id, recorded_runs, search_runs
from analysis.report.chapter import Chapter, chapter_of
from analysis.report.drawing import Palette
from analysis.report.tracked import MOST_VERDICTS, Said, log_report, opening_in, said_by, shortened
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.tasks import split_by_task
from tests.harness.studies import Trial, in_memory, trial, write_study

PAGE = """# Study `components`: what is `residual` worth?

One cell, 3 seeds.

![What each change does](effects.png)

[as SVG](effects.svg)

| Change | Set5 (dB) |
| --- | ---: |
| [a link](https://example.org) in a row | -1 |

## What each change is worth

Behind the opening.
"""


def trials() -> list[Trial]:
    """Four cells; without the residual one is a decibel below the reference, and of the last a seed collapsed."""
    cells = ({}, 31.0), ({"residual": False}, 30.0), ({"bn": "post"}, 30.9), ({"residual": False, "bn": "post"}, 29.9)
    found = [trial(seed, psnr_db + seed / 100, **levels) for levels, psnr_db in cells for seed in range(3)]
    return [*found[:-1], dataclasses.replace(found[-1], psnr_db={"Set5": 28.0})]


@pytest.fixture(scope="module")
def chapters() -> list[Chapter]:
    return [chapter_of(each, MARGIN_DB, "", "##", Palette(())) for each in split_by_task(in_memory(trials()))]


def test_each_cell_has_the_verdict_on_what_leads_to_it_and_the_reference_has_all(chapters: list[Chapter]) -> None:
    verdicts = said_by(PAGE, chapters).verdicts
    reference, without = trials()[0].cell, trials()[3].cell
    (told,) = verdicts[without]
    assert told.startswith("Without the residual: **worse** on Set5 (-1.000 dB, 95 % interval ")
    assert [line.startswith("from this cell: ") for line in verdicts[reference]] == [True, True]


def test_every_finished_trial_has_or_has_not_collapsed(chapters: list[Chapter]) -> None:
    collapsed = said_by(PAGE, chapters).collapsed
    assert len(collapsed) == 12
    assert [evidence for evidence in collapsed.values() if evidence] == ["its PSNR is 0.500 dB below the baseline's"]


def test_the_opening_is_without_pictures_and_files() -> None:
    assert opening_in(PAGE) == (
        "**Study `components`: what is `residual` worth?**\n\nOne cell, 3 seeds.\n\n"
        "| Change | Set5 (dB) |\n| --- | ---: |\n| [a link](https://example.org) in a row | -1 |"
    )


def test_many_verdicts_are_counted() -> None:
    lines = [str(number) for number in range(MOST_VERDICTS + 2)]
    assert shortened(lines)[-2:] == [str(MOST_VERDICTS - 1), "and 2 other verdicts"]


# --- in MLflow --------------------------------------------------------------------------------------------------------


def log(uri: str, told: str, collapsed: str = "") -> None:
    """Log a report without files that says this of the one trial."""
    cell = trial().cell
    log_report(uri, "components", {}, Said(f"**{told}**", {cell: [told]}, {(cell, 0): collapsed}))


def run_in(uri: str) -> Run:
    (run,) = search_runs(uri, experiment_id(uri, "components"), f"tags.cell = '{trial().cell}'")
    return run


def test_a_new_report_rewrites_what_an_earlier_one_said(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    log(tracking_uri, "first", "nothing learned")
    assert run_in(tracking_uri).data.tags["collapsed"] == "true"
    log(tracking_uri, "second")
    tags = run_in(tracking_uri).data.tags
    assert "\n\n- second\n\n" in tags["mlflow.note.content"]
    assert "first" not in tags["mlflow.note.content"]
    assert tags["collapsed"] == "false"
    study = client_of(tracking_uri).get_experiment(experiment_id(tracking_uri, "components"))
    assert study.tags["mlflow.note.content"] == "**second**"


def test_what_a_user_has_written_stays(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    client, run = client_of(tracking_uri), run_in(tracking_uri).info.run_id
    client.set_tag(run, "mlflow.note.content", "my own words")
    client.set_experiment_tag(experiment_id(tracking_uri, "components"), "mlflow.note.content", "my own words")
    log(tracking_uri, "first")
    assert run_in(tracking_uri).data.tags["mlflow.note.content"] == "my own words"
    study = client.get_experiment(experiment_id(tracking_uri, "components"))
    assert study.tags["mlflow.note.content"] == "my own words"


@pytest.mark.parametrize("levels", ["[" * 4000, "{", "1"])
def test_a_run_with_damaged_tags_keeps_its_description(tracking_uri: str, tmp_path: Path, levels: str) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    before = run_in(tracking_uri)
    client_of(tracking_uri).set_tag(before.info.run_id, "levels", levels)
    log(tracking_uri, "first")
    assert run_in(tracking_uri).data.tags["mlflow.note.content"] == before.data.tags["mlflow.note.content"]


def test_a_run_of_an_earlier_version_gets_its_seed_and_keeps_its_name_in_reports(
    tracking_uri: str, tmp_path: Path
) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    client, run = client_of(tracking_uri), run_in(tracking_uri)
    client.delete_tag(run.info.run_id, "name")
    client.update_run(run.info.run_id, name="bn=post")
    log(tracking_uri, "first")
    assert run_in(tracking_uri).info.run_name == "bn=post seed 0"
    assert [each.name for each in recorded_runs(tracking_uri, "components").values()] == ["bn=post"]
