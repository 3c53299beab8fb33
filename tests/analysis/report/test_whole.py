"""One study with all that can go wrong in it, by the command: each thing is seen, and none is averaged away."""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.storage.attempts import State, begin_attempt, end_attempt
from analysis.__main__ import main
from analysis.report.page import compose
from tests.harness.pages import broken, contradictions, unlinked
from tests.harness.studies import REFERENCE, Trial, read_back, start, trial, write_study

NEW, OLD = "a" * 16, "b" * 16
"""Two fingerprints of code."""

OTHER_DATA = "f" * 64

PSNR = {("true", 0): 30.0, ("true", 1): 30.2, ("true", 2): 30.4, ("false", 0): 29.5, ("false", 1): 29.7}
"""What residual and seed reach in dB on the first data; the last seed of the second cell failed."""


def made(seed: int, psnr_db: float, code: str | None = NEW, **levels: Any) -> Trial:
    origin: Mapping[str, Any] = {} if code is None else {"code": code}
    energy = {"energy_j": 1000.0 + seed}
    return dataclasses.replace(trial(seed, psnr_db, **levels), origin=origin, timing=energy)


def study(tracking_uri: str, outputs: Path) -> None:
    """Four cells under three seeds on one data, and two of them on other pictures, five dB higher."""
    finished = [made(seed, psnr, residual=residual == "true") for (residual, seed), psnr in PSNR.items()]
    finished += [made(seed, 30.1 + 0.1 * seed, OLD, bn="post") for seed in (0, 2)]
    finished += [made(seed, 29.6, None, bn="pre") for seed in range(3)]
    finished[-1] = dataclasses.replace(finished[-1], dead=True)
    others = [
        made(seed, 35.0 - 0.5 * (not residual), residual=residual) for residual in (True, False) for seed in (0, 1)
    ]
    finished += [dataclasses.replace(each, others={"data": OTHER_DATA}, timing={}, baseline_db=33.0) for each in others]
    left_out = {"levels": {**REFERENCE, "bn": "out"}, "setting": trial().setting, "reason": "no add to stand after"}
    failed = made(2, 0.0, residual=False)
    write_study(tracking_uri, outputs, finished, planned=[failed, made(1, 0.0, bn="post")], left_out=[left_out])
    run, folder = start(tracking_uri, outputs, failed)
    begin_attempt(folder)
    end_attempt(folder, State.FAILED, "loss is not finite at step 7")
    run.close_without_result(folder, "failed", "loss is not finite at step 7")


@pytest.fixture(scope="module")
def report(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the study, as the command writes it."""
    place = tmp_path_factory.mktemp("whole")
    shutil.copyfile(migrated_database, place / "mlflow.db")
    uri = f"sqlite:///{place}/mlflow.db"
    study(uri, place / "outputs")
    places = ["--tracking-uri", uri, "--outputs", f"{place}/outputs", "--reports", f"{place}/reports"]
    main(["components", *places])
    return place / "reports" / "components"


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return (report / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def top(page: str) -> str:
    """What a reader sees before any number."""
    return page.partition("![What each change is worth]")[0]


def test_the_form_holds_and_nothing_is_denied(report: Path) -> None:
    shown = [path for path in report.iterdir() if path.suffix in (".md", ".csv", ".png", ".svg")]
    files = {path.name: path.read_bytes() for path in shown}
    assert broken(files) == []
    assert contradictions(files) == []


def test_two_kinds_of_test_pictures_have_a_part_each(page: str, top: str) -> None:
    first = trial().setting["data"][:12]
    trained = f"SRResNet of 8 channels for x2 super-resolution, trained on data {first} for 20 steps"
    assert f"**data={first}**: {trained}" in top
    assert "**data=ffffffffffff**: " in top
    assert f"\n## data={first}\n" in page
    assert "\n## data=ffffffffffff\n" in page


def test_no_mean_and_no_difference_mixes_pictures(report: Path) -> None:
    first, second = (pd.read_csv(report / f"part{number}-cells.csv") for number in (1, 2))
    assert sorted(first["psnr_mean_db"]) == pytest.approx([29.6, 29.6, 30.2, 30.2])
    assert sorted(second["psnr_mean_db"]) == pytest.approx([34.5, 35.0])
    effects = pd.read_csv(report / "part1-effects.csv").set_index("change")
    assert effects.loc["Without the residual", "psnr_difference_db"] == pytest.approx(29.6 - 30.2)
    assert effects.loc["Without the residual", "seeds"] == 2


def test_the_papers_table_is_written_for_each_data(report: Path) -> None:
    tables = {name: (report / f"comparison-sr_x2-{name}.csv").read_text() for name in ("1", "2")}
    assert "30.2" in tables["1"]
    assert "35.0" not in tables["1"]
    assert "35.0" in tables["2"]


def test_the_codes_are_counted_at_the_top_and_what_has_none_is_a_kind(top: str) -> None:
    assert (
        "**Different versions of the code made the results: `aaaaaaaaaaaa` (9 trials), `bbbbbbbbbbbb` (2 trials) and "
        "not recorded (3 trials).**"
    ) in top


def test_the_appendix_says_which_code_made_which_trial(report: Path, page: str) -> None:
    said = (
        "The code that made the results: `aaaaaaaaaaaa` (5 trials), `bbbbbbbbbbbb` (2 trials) and not recorded "
        "(3 trials). **Numbers above may mix them.**"
    )
    assert said in page
    assert "The code that made the results: `aaaaaaaaaaaa` (4 trials).\n" in page
    trials = pd.read_csv(report / "part1-trials.csv").query("state == 'finished'")
    codes = trials.groupby("level/bn")["code"].unique().map(list).to_dict()
    assert codes == {"none": ["a" * 12], "post": ["b" * 12], "pre": ["not recorded"]}


def test_a_failed_trial_and_a_missing_one_are_counted_at_the_top_and_listed_with_reasons(page: str, top: str) -> None:
    assert "**2 trials have no result: 1 failed and 1 missing.**" in top
    assert "| `residual=false bn=none` | 2 | failed | loss is not finite at step 7 |" in unlinked(page)
    assert "| `residual=true bn=post` | 1 | missing | planned, not started yet |" in unlinked(page)


def test_a_cell_that_lacks_a_seed_is_marked_where_it_is_ranked(page: str) -> None:
    assert "‡ marks cells that lack a seed" in page
    assert "| `residual=false bn=none` ‡ | [2](#runs-" in page
    assert "| `residual=true bn=post` ‡ | [2](#runs-" in page
    assert "| `residual=true bn=none` | [3](#runs-" in page


def test_a_collapsed_trial_is_counted_in_the_first_table_and_listed_with_its_evidence(page: str) -> None:
    rows = [line for line in unlinked(page).splitlines() if line.startswith("| BatchNorm before the sign in place")]
    (row,) = [line for line in rows if "1 of 3 [1, 91] %" in line]
    assert "risk of collapse" in row
    assert re.search(r"\| `residual=true bn=pre` \| \[3\]\(#runs-\w+\) \| 1 \|", page)
    assert "| `residual=true bn=pre` | 2 | recorded as dead by the trial itself |" in unlinked(page)


def test_energy_is_shown_where_every_trial_has_it_and_said_to_be_unknown_elsewhere(report: Path, page: str) -> None:
    first, _, second = page.partition("\n## data=ffffffffffff\n")
    total = 1000 * 10 + sum((0, 1, 2, 0, 1, 0, 2, 0, 1, 2))
    assert (
        f"The trainings took {total:,} J in total, 1,001 J each (1,000 to 1,002 J), as measured by the machine."
        in first
    )
    assert "is not known: the machine does not measure it" in second
    assert pd.read_csv(report / "part1-trials.csv")["timing/energy_j"].count() == 10


def test_energy_of_some_trials_is_not_added_up(tmp_path: Path) -> None:
    page = compose(read_back(tmp_path, [made(0, 30.0), trial(1, 30.0)]))["report.md"].decode()
    assert "is known for 1 of 2 only, on machines that measure it, so no sum is given" in page
    assert " J in total" not in page
