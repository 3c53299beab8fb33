"""The page that a study ends in, and the command that writes it."""

import dataclasses
import io
import itertools
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import write_plan
from analysis.__main__ import main
from analysis.effects.curves import MOST_POINTS, curve_table
from analysis.report.page import LIMITS, compose, write
from analysis.study.loading import StudyResults, load, load_folder
from analysis.study.settings import split_by_setting
from tests.harness.studies import REFERENCE, Trial, loaded, plan_of, read_back, start, trial, write_study

MOST_ROWS = LIMITS["MOST_ROWS"]


def two_cells(seeds: int, samples_psnr: float = 30.0) -> list[Trial]:
    return [
        trial(seed, samples_psnr + 0.1 * seed - drop, residual=residual)
        for seed in range(seeds)
        for residual, drop in ((True, 0.0), (False, 0.5 + 0.01 * seed))
    ]


def page_of(files: dict[str, bytes]) -> str:
    return files["report.md"].decode()


def row_with(page: str, text: str) -> str:
    tables = page.partition("## Runs behind each row")[0]
    (row,) = [line for line in tables.splitlines() if line.startswith("|") and text in line]
    return row


@pytest.fixture(scope="module")
def results(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """Two cells that differ in the residual, under three seeds, with sample pictures."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    return loaded(f"sqlite:///{folder}/mlflow.db", folder, two_cells(3), samples=True)


@pytest.fixture(scope="module")
def files(results: StudyResults) -> dict[str, bytes]:
    return compose(results)


@pytest.fixture(scope="module")
def page(files: dict[str, bytes]) -> str:
    return page_of(files)


def test_a_component_gets_its_number_interval_and_verdict(files: dict[str, bytes], page: str) -> None:
    effects = pd.read_csv(io.BytesIO(files["effects.csv"])).iloc[0]
    assert effects["psnr_difference_db"] == pytest.approx(-(0.5 + 0.51 + 0.52) / 3)
    shown = f"-0.510 [{effects['low_95_db']:+.3f}, {effects['high_95_db']:+.3f}] worse"
    assert row_with(page, "`true` → `false`").split(" | ")[1] == shown
    assert "`residual=false` instead of `true`: **worse** by 0.510 dB on Set5 (-0.510 dB, 95 % interval" in page
    assert "With 3 seeds the 95 % interval reaches 2.48 standard deviations" in page
    assert "corrected by Holm's method for the number of comparisons" in page
    assert "Second reading" not in page


def test_the_summary_says_what_was_found_how_sure_and_what_became_of_the_claims(page: str) -> None:
    short = page.partition("## Summary\n\n")[2].partition("\n\n## ")[0]
    lines = [line.strip().removeprefix("- ") for line in short.splitlines()]
    assert lines[0].startswith("Highest mean PSNR: `residual=true` with 30.100 ± 0.100 dB on Set5 (3 seeds), at 2.00 G")
    assert lines[1] == "**Worse**:"
    assert lines[2].startswith("`residual`: `true` → `false` (-0.510 [")
    assert lines[3].endswith("3 seeds cannot reach a two-sided p below 0.25.")
    claims = lines.index("Claims of the paper that are **supported** here:")
    assert lines[claims + 1] == "The residual raises PSNR (+0.510 dB on Set5)"
    assert lines[-1].startswith("Claims of the paper that are **not tested** here: ")
    row = row_with(page, "| The residual raises PSNR")
    assert "PSNR rises | Set5 | +0.510" in row
    assert row.endswith("| not given | **supported** | 3 | 1 | +0.000 | +0.0 | [6](#runs-claims-1) |")
    assert "- BBCU is better than BTM: no finished cell with method=btm." in page


def test_the_margin_decides_what_is_equivalent_and_what_a_claim_is_worth(results: StudyResults, page: str) -> None:
    assert "| **supported** |" in row_with(page, "The residual raises PSNR")
    wider = page_of(compose(results, margin=0.6))
    assert "] equivalent |" in row_with(wider, "`true` → `false`")
    assert "| **contradicted** |" in row_with(wider, "The residual raises PSNR")
    assert wider.count("surely smaller than 0.6 dB") == 2
    with pytest.raises(ValueError, match="must be above 0"):
        compose(results, margin=0.0)


def test_every_link_leads_to_a_file_and_every_file_is_linked(files: dict[str, bytes], page: str) -> None:
    links = {link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("#")}
    assert links == set(files) - {"report.md"}
    assert {"effects.png", "curves.png", "pictures-Set5-ring.png"} <= links


def test_figures_name_neither_software_nor_date(files: dict[str, bytes]) -> None:
    pictures = [content for name, content in files.items() if name.endswith(".png")]
    drawings = [content for name, content in files.items() if name.endswith(".svg")]
    assert pictures
    assert drawings
    assert not any(b"<dc:date>" in content or b"Matplotlib" in content.partition(b"<defs>")[0] for content in drawings)
    assert not any(b"tEXt" in content or b"tIME" in content for content in pictures)


def test_every_row_leads_to_the_runs_behind_it(results: StudyResults, page: str) -> None:
    anchors = re.findall(r'<a id="([^"]+)"></a>', page)
    wanted = re.findall(r"\]\(#(runs-[^)]+)\)", page)
    assert wanted
    assert set(wanted) <= set(anchors)
    assert len(set(anchors)) == len(anchors)
    assert row_with(page, "`true` → `false` | -0.5").rstrip(" |").endswith("[6](#runs-effects-1)")
    listing = page.partition("The runs behind each cell")[2]
    assert all(f"`{run}`" in listing for run in results.trials["run_id"])


def test_the_last_part_holds_the_setting_and_where_the_trials_ran(page: str) -> None:
    assert "**2 of 6 trials ran with uncommitted changes.**" in page
    assert "| `packages` | numpy 2.4.6, torch 2.13.0 |" in page
    assert "| `align` | auto (130) |" in page
    assert f"| `data` | {trial().setting['data']} |" in page


def test_a_difference_within_the_noise_is_undecided_and_says_how_many_seeds_it_takes(tmp_path: Path) -> None:
    files = compose(
        read_back(tmp_path, [trial(0, 30.0), trial(1, 30.5), trial(0, 30.2, bn="pre"), trial(1, 30.4, bn="pre")])
    )
    page = page_of(files)
    assert "undecided on Set5 (+0.050 dB, 95 % interval -1.856 to +1.956, 2 seeds: 2 seeds rule out neither" in page
    assert "would decide it with 80 % power" in page
    effects = pd.read_csv(io.BytesIO(files["effects.csv"])).iloc[0]
    assert effects["verdict"] == "undecided"
    assert effects["seeds_needed_likely"] > 2
    runs = f"[2](#runs-{trial().cell[:12]})"
    row = f"| `bn=none` | 2 | 30.250 ± 0.354 | 0.7562 | +1.750 | reference | 2.000 | 40.0 | 13.0 | {runs} |"
    assert row_with(page, "| `bn=none` | 2 |") == row


def test_the_page_shows_the_cost_of_a_change_and_the_second_reading_over_pictures(tmp_path: Path) -> None:
    pictures = {True: {"baby": 30.0, "bird": 31.0, "head": 29.0}, False: {"baby": 29.4, "bird": 30.5, "head": 28.6}}
    made = [(seed, residual) for seed in range(3) for residual in pictures]
    finished = [
        dataclasses.replace(
            trial(seed, 30.0 - (0.5 + 0.01 * seed) * (not residual), residual=residual),
            images={"Set5": pictures[residual]},
            ops_g=2.0 if residual else 1.5,
            params_k=40.0 if residual else 39.0,
        )
        for seed, residual in made
    ]
    page = page_of(compose(read_back(tmp_path, finished)))
    assert "; -0.50 G operations, -1.0 K parameters)" in page.partition("## How to read")[0]
    assert "**Second reading, over pictures** (over 3 pictures, for the networks trained under seeds 0, 1, 2" in page
    assert "No verdict rests on it." in page
    assert "-0.500 [-0.748, -0.252] n = 3" in page


def test_few_seeds_and_three_factors_get_a_half_normal_plot(tmp_path: Path) -> None:
    finished = [
        trial(0, 30.0 - residual * 1.0 + 0.01 * index, residual=bool(residual), bn=bn, align=align)
        for index, (residual, bn, align) in enumerate(itertools.product((1, 0), ("none", "post"), ("auto", 10)))
    ]
    files = compose(read_back(tmp_path, finished))
    assert {"half_normal.png", "half_normal.svg", "means.png", "interactions.png"} <= set(files)
    assert "Lenth's simultaneous margin" in page_of(files)


@pytest.fixture(scope="module")
def unfinished(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two cells under one seed; other seeds failed, were interrupted or never ran."""
    place = tmp_path_factory.mktemp("unfinished")
    shutil.copyfile(migrated_database, place / "mlflow.db")
    uri = f"sqlite:///{place}/mlflow.db"
    left_out = {"levels": {**REFERENCE, "bn": "out"}, "setting": trial().setting, "reason": "no add to stand after"}
    write_study(uri, place, two_cells(1), planned=[trial(3)], left_out=[left_out])
    failed, folder = start(uri, place, trial(1))
    failed.close_without_result(folder, "failed", "loss is not finite | step 7\nsecond line")
    interrupted, _ = start(uri, place, trial(2))
    interrupted.close_without_result(folder, "interrupted", "stopped by the user")
    return page_of(compose(load(uri, "components", place)))


def test_what_is_not_finished_or_left_out_is_shown_with_its_reason(unfinished: str) -> None:
    counted = "2 finished, 1 failed, 1 interrupted and 1 missing."
    assert f"2 cells under 4 seeds (0, 1, 2, 3), 5 trials: {counted}" in unfinished
    assert "Task `sr_x2`, network `plain`, 20 training steps" in unfinished
    assert "The baseline, bicubic interpolation, reaches 28.500 dB on Set5." in unfinished
    assert "| `residual=true` | 1 | failed | loss is not finite \\| step 7 second line |" in unfinished
    assert "| `residual=true` | 2 | interrupted | stopped by the user |" in unfinished
    assert "| `residual=true` | 3 | missing | planned, not started yet |" in unfinished
    assert "| `residual=true bn=out` | no add to stand after |" in unfinished


def test_one_seed_gets_no_verdict(unfinished: str) -> None:
    assert "One seed cannot separate an effect from noise" in unfinished
    assert "one seed, so no verdict on Set5 (-0.500 dB)" in unfinished
    assert "-0.500 [one seed]" in row_with(unfinished, "`true` → `false`")
    assert "| undecided |" not in unfinished
    assert not re.search(r"\*\*(better|worse|equivalent)\*\*", unfinished, re.IGNORECASE)


def test_a_study_of_which_only_a_failure_is_known_still_has_a_page(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "components", trial().cell, 0)
    begin_attempt(folder)
    end_attempt(folder, State.FAILED, "out of memory")
    page = page_of(compose(load_folder(tmp_path / "components")))
    assert "1 trial: 0 finished, 1 failed and 0 missing" in page
    assert "No trial is finished yet" in page
    assert "| 0 | failed | out of memory |" in page


def test_a_page_lists_so_many_rows_and_says_how_many_there_are(tmp_path: Path) -> None:
    write_plan(tmp_path, "components", plan_of([trial(seed) for seed in range(MOST_ROWS + 1)]))
    files = compose(load_folder(tmp_path / "components"))
    said = f"The first {MOST_ROWS} of {MOST_ROWS + 1} trials are listed;"
    assert f"Trials without a result: {said} trials.csv has all." in page_of(files)
    assert f"{said} the CSV has all." in page_of(files)
    assert page_of(files).count("planned, not started yet") == MOST_ROWS
    assert len(pd.read_csv(io.BytesIO(files["trials.csv"]))) == MOST_ROWS + 1


def test_settings_get_a_part_each(tmp_path: Path) -> None:
    files = compose(read_back(tmp_path, [*two_cells(1), trial(steps=40)]))
    assert re.findall(r"^## .*", page_of(files), re.MULTILINE) == [
        "## Summary",
        "## How to read the numbers",
        "## The paper's claims",
        "## Comparison with the paper: super-resolution, sr_x2, steps: 20",
        "## Comparison with the paper: super-resolution, sr_x2, steps: 40",
        "## Setting 1: `train.steps=20`",
        "## Setting 2: `train.steps=40`",
        "## Runs behind each row",
    ]
    assert {"setting1-cells.csv", "setting2-cells.csv"} <= set(files)


def test_a_new_page_removes_the_files_of_the_old_one_and_no_others(files: dict[str, bytes], tmp_path: Path) -> None:
    write(files, tmp_path)
    (tmp_path / "notes.png").write_bytes(b"by hand")
    (tmp_path / "report.md").write_text("![x](old.png) [as SVG](old.svg) [y](effects.csv)")
    for name in ("old.png", "old.svg"):
        (tmp_path / name).write_bytes(b"old")
    write({"report.md": b"nothing\n"}, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"notes.png", "report.md"} <= names
    assert not {"old.png", "old.svg", "effects.csv"} & names


def test_long_curves_are_averaged_over_windows(tmp_path: Path) -> None:
    (results,) = split_by_setting(read_back(tmp_path, [trial(0, steps=600), trial(1, steps=600)]))
    table = curve_table(results)
    loss = table[table["metric"] == "train/loss"]
    raw = results.curves().query("metric == 'train/loss' and step < 11")["value"]
    assert len(loss) <= MOST_POINTS + 1
    assert set(loss["n"]) == {2}
    assert loss["mean"].iloc[0] == pytest.approx(raw.mean(), rel=1e-9)
    assert list(table[table["metric"] == "Set5/psnr_db"]["step"]) == [300, 600]


@pytest.mark.parametrize(
    ("study", "database", "said"),
    [
        pytest.param(
            "componets", "mlflow.db", r"no study 'componets' in .*available: components", id="an unknown study"
        ),
        pytest.param("components", "absent.db", "no tracking database at", id="a missing database"),
        pytest.param("components", "notes.txt", "", id="a file that is not a database"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tracking_uri: str, tmp_path: Path, study: str, database: str, said: str
) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    uri = tracking_uri if database == "mlflow.db" else f"sqlite:///{tmp_path / database}"
    with pytest.raises(SystemExit, match=rf"\Aanalysis: {said}[^\n]*\Z"):
        main([study, "--tracking-uri", uri])
    assert not (tmp_path / "absent.db").exists()


def test_no_study_shows_the_usage_and_the_studies(
    tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    with pytest.raises(SystemExit, match="2"):
        main(["--tracking-uri", tracking_uri])
    said = capsys.readouterr().err
    assert "python -m analysis -h shows the usage" in said
    assert "name a study; available: components" in said
    with pytest.raises(SystemExit, match="2"):
        main(["--tracking-uri", f"sqlite:///{tmp_path}/absent.db"])
    assert "name a study; no tracking database at" in capsys.readouterr().err


def test_of_many_comparisons_the_summary_tells_the_largest_and_counts_the_rest(tmp_path: Path) -> None:
    finished = [
        trial(seed, 30.0 - 0.1 * place - 0.001 * seed * place, align="auto" if place == 0 else place + 1)
        for seed in range(3)
        for place in range(13)
    ]
    page = page_of(compose(read_back(tmp_path, finished)))
    short = page.partition("## How to read")[0]
    assert "`auto` → `13`" in short
    assert "`auto` → `2`" not in short
    assert "\n  - and 4 more below\n" in short
    assert "<summary>Each row in words, with its p-value and what would decide it</summary>" in page


def test_cells_that_determine_no_effect_are_refused_in_one_sentence(tmp_path: Path) -> None:
    finished = [
        trial(seed, 30.0 + 0.1 * seed, **levels)
        for seed in range(2)
        for levels in ({"residual": "block", "align": 1}, {"residual": "block", "bn": "post"}, {"residual": True})
    ]
    page = page_of(compose(read_back(tmp_path, finished)))
    part = page.partition("## Main effects and interactions")[2].partition("\n## ")[0].strip()
    assert part.startswith("Not estimated: the study has 3 of the 8 combinations of its levels")
    assert "Without a score: `residual=true bn=none align=1`, " in part
    assert "\n" not in part
    assert "shares.png" not in page
