"""The page that a study ends in, and the command that writes it."""

import dataclasses
import io
import itertools
import re
from pathlib import Path

import pandas as pd
import pytest

from ablations.storage.plans import write_plan
from analysis.__main__ import main
from analysis.effects.curves import MOST_POINTS, curve_table
from analysis.report.page import MOST_ROWS, compose, write
from analysis.study.loading import load, load_folder
from analysis.study.settings import sections
from tests.analysis.study.test_loading import REFERENCE, Trial, loaded, plan_of, start, trial, write_study


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


def test_the_opening_says_what_was_done(tracking_uri: str, tmp_path: Path) -> None:
    page = page_of(compose(loaded(tracking_uri, tmp_path, two_cells(2), planned=[trial(2)])))
    assert "2 cells under 3 seeds (0, 1, 2), 5 trials: 4 finished, 0 failed and 1 missing." in page
    assert "Task `sr_x2`, network `plain`, 20 training steps" in page
    assert "The baseline, bicubic interpolation, reaches 28.500 dB on Set5." in page


def test_a_component_gets_its_number_interval_and_verdict(tracking_uri: str, tmp_path: Path) -> None:
    files = compose(loaded(tracking_uri, tmp_path, two_cells(3)))
    effects = pd.read_csv(write(files, tmp_path / "page").with_name("effects.csv")).iloc[0]
    assert effects["psnr_difference_db"] == pytest.approx(-(0.5 + 0.51 + 0.52) / 3)
    shown = f"-0.510 [{effects['low_95_db']:+.3f}, {effects['high_95_db']:+.3f}]"
    assert shown in row_with(page_of(files), "`true` → `false`")
    assert row_with(page_of(files), "`true` → `false`").split(" | ")[1].endswith("] worse")
    assert "`residual=false` instead of `true`: **worse** by 0.510 dB on Set5 (-0.510 dB, 95 % interval" in page_of(
        files
    )


def test_one_seed_gets_no_verdict(tracking_uri: str, tmp_path: Path) -> None:
    page = page_of(compose(loaded(tracking_uri, tmp_path, two_cells(1))))
    assert "One seed cannot separate an effect from noise" in page
    assert "one seed, so no verdict on Set5 (-0.500 dB)" in page
    assert "-0.500 [one seed]" in row_with(page, "`true` → `false`")
    assert "| undecided |" not in page
    assert not re.search(r"\*\*(better|worse|equivalent)\*\*", page, re.IGNORECASE)


def test_a_difference_within_the_noise_is_undecided_and_says_how_many_seeds_it_takes(
    tracking_uri: str, tmp_path: Path
) -> None:
    finished = [trial(0, 30.0), trial(1, 30.0), trial(0, 30.2, residual=False), trial(1, 29.9, residual=False)]
    files = compose(loaded(tracking_uri, tmp_path, finished))
    assert "undecided on Set5 (+0.050 dB, 95 % interval -1.856 to +1.956, 2 seeds: 2 seeds rule out neither" in page_of(
        files
    )
    assert "would decide it with 80 % power" in page_of(files)
    effects = pd.read_csv(write(files, tmp_path / "page").with_name("effects.csv")).iloc[0]
    assert effects["verdict"] == "undecided"
    assert effects["seeds_needed_likely"] > 2


def test_the_margin_decides_what_is_equivalent(tracking_uri: str, tmp_path: Path) -> None:
    results = loaded(tracking_uri, tmp_path, two_cells(3))
    assert "**worse**" in page_of(compose(results))
    page = page_of(compose(results, margin=0.6))
    assert "] equivalent |" in row_with(page, "`true` → `false`")
    assert "surely smaller than 0.6 dB" in page
    with pytest.raises(ValueError, match="must be above 0"):
        compose(results, margin=0.0)


def test_the_margin_decides_what_a_claim_is_worth(tracking_uri: str, tmp_path: Path) -> None:
    results = loaded(tracking_uri, tmp_path, two_cells(3))
    assert "| **supported** |" in row_with(page_of(compose(results)), "The residual raises PSNR")
    page = page_of(compose(results, margin=0.6))
    assert "| **contradicted** |" in row_with(page, "The residual raises PSNR")
    assert "if the difference is surely smaller than 0.6 dB" in page


def test_the_margin_decides_how_many_seeds_are_needed(tracking_uri: str, tmp_path: Path) -> None:
    finished = [
        trial(seed, 30.0 + shift, residual=shift == 0) for seed in range(2) for shift in (0.0, 0.1 * seed + 0.01)
    ]
    results = loaded(tracking_uri, tmp_path, finished)
    needed = [
        pd.read_csv(io.BytesIO(compose(results, margin=margin)["effects.csv"]))["seeds_needed_likely"].iloc[0]
        for margin in (0.05, 0.2)
    ]
    assert needed[0] > needed[1]


def test_the_page_says_what_the_seeds_allow(tracking_uri: str, tmp_path: Path) -> None:
    page = page_of(compose(loaded(tracking_uri, tmp_path, two_cells(3))))
    assert "With 3 seeds the 95 % interval reaches 2.48 standard deviations" in page


def test_verdicts_are_corrected_for_the_family_and_the_page_says_so(tracking_uri: str, tmp_path: Path) -> None:
    effects = {"pre": [0.03, 0.04, 0.05], "post": [0.5, -0.4, 0.1], "out": [0.3, -0.2, 0.1]}
    finished = [
        trial(seed, 30.0 + shift[seed], bn=bn)
        for seed in range(3)
        for bn, shift in {"none": [0.0] * 3, **effects}.items()
    ]
    page = page_of(compose(loaded(tracking_uri, tmp_path, finished), margin=0.001))
    assert "corrected by Holm's method for the number of comparisons" in page
    assert "the interval excludes 0, but not after correction among 3 comparisons" in page


def test_the_second_reading_is_labelled_with_what_it_speaks_of(tracking_uri: str, tmp_path: Path) -> None:
    pictures = {True: {"baby": 30.0, "bird": 31.0, "head": 29.0}, False: {"baby": 29.4, "bird": 30.5, "head": 28.6}}
    finished = [
        dataclasses.replace(trial(seed, 30.0 - 0.5 * (not residual), residual=residual), images={"Set5": scores})
        for seed in range(2)
        for residual, scores in pictures.items()
    ]
    page = page_of(compose(loaded(tracking_uri, tmp_path, finished)))
    assert "**Second reading, over pictures** (over 3 pictures, for the networks trained under seeds 0, 1" in page
    assert "No verdict rests on it." in page
    assert "-0.500 [-0.748, -0.252] n = 3" in page


def test_no_second_reading_where_pictures_were_not_kept(tracking_uri: str, tmp_path: Path) -> None:
    assert "Second reading" not in page_of(compose(loaded(tracking_uri, tmp_path, two_cells(2))))


def test_a_collapsed_cell_is_listed_marked_and_named_where_it_counts(tracking_uri: str, tmp_path: Path) -> None:
    finished = [trial(0, 30.0), trial(1, 30.1), trial(0, 28.5004, residual=False), trial(1, 29.0, residual=False)]
    page = page_of(compose(loaded(tracking_uri, tmp_path, finished)))
    assert "| `residual=false` | 0 | its PSNR is the baseline's within 0.001 dB on every test set |" in page
    assert "| `residual=false` † | 2 |" in page
    assert "**Includes collapsed trials: `residual=false`.**" in page
    assert "**1 finished trial collapsed**" in page


def test_two_fingerprints_are_both_shown_and_never_mixed(tracking_uri: str, tmp_path: Path) -> None:
    other = [dataclasses.replace(each, others={"data": "f" * 64}) for each in two_cells(1)]
    page = page_of(compose(loaded(tracking_uri, tmp_path, [*two_cells(2), *other])))
    first = trial().setting["data"][:12]
    assert f"**The trials used 2 different data sets: `{first}` (4 trials) and `ffffffffffff` (2 trials).**" in page
    assert page.count("What each component is worth\n") == 2


def test_an_incomplete_design_says_which_cells_it_lacks(tracking_uri: str, tmp_path: Path) -> None:
    finished = [
        trial(seed, 30.0, residual=residual, bn=bn)
        for seed in range(2)
        for residual, bn in ((True, "none"), (True, "post"), (False, "none"))
    ]
    page = page_of(compose(loaded(tracking_uri, tmp_path, finished)))
    assert "Not estimated: the study has 3 of the 4 combinations of its levels" in page
    assert "Without a score: `residual=false bn=post`." in page
    assert "shares.png" not in page


def test_few_seeds_and_three_factors_get_a_half_normal_plot(tracking_uri: str, tmp_path: Path) -> None:
    finished = [
        trial(0, 30.0 - residual * 1.0 + 0.01 * index, residual=bool(residual), bn=bn, align=align)
        for index, (residual, bn, align) in enumerate(itertools.product((1, 0), ("none", "post"), ("auto", 10)))
    ]
    files = compose(loaded(tracking_uri, tmp_path, finished))
    assert {"half_normal.png", "half_normal.svg", "means.png", "interactions.png"} <= set(files)
    assert "Lenth's simultaneous margin" in page_of(files)


def test_the_cells_show_the_numbers_of_the_results(tracking_uri: str, tmp_path: Path) -> None:
    page = page_of(compose(loaded(tracking_uri, tmp_path, [trial(0, 30.0), trial(1, 30.5), trial(0, 29.0, bn="pre")])))
    row = row_with(page, "| `bn=none` | 2 |")
    runs = f"[2](#runs-{trial().cell[:12]})"
    assert row == f"| `bn=none` | 2 | 30.250 ± 0.354 | 0.7562 | +1.750 | reference | 2.000 | 40.0 | 13.0 | {runs} |"


def test_what_is_not_finished_or_left_out_is_shown_with_its_reason(tracking_uri: str, tmp_path: Path) -> None:
    left_out = {"levels": {**REFERENCE, "bn": "out"}, "setting": trial().setting, "reason": "no add to stand after"}
    write_study(tracking_uri, tmp_path, two_cells(1), planned=[trial(3)], left_out=[left_out])
    failed, folder = start(tracking_uri, tmp_path, trial(1))
    failed.leave(folder, "failed", "loss is not finite | step 7\nsecond line")
    interrupted, _ = start(tracking_uri, tmp_path, trial(2))
    interrupted.leave(folder, "interrupted", "stopped by the user")
    page = page_of(compose(load(tracking_uri, "components", tmp_path)))
    assert "| `residual=true` | 1 | failed | loss is not finite \\| step 7 second line |" in page
    assert "| `residual=true` | 2 | interrupted | stopped by the user |" in page
    assert "| `residual=true` | 3 | missing | planned, not started yet |" in page
    assert "| `residual=true bn=out` | no add to stand after |" in page


def test_a_study_without_a_finished_trial_still_has_a_page(tracking_uri: str, tmp_path: Path) -> None:
    run, folder = start(tracking_uri, tmp_path, trial())
    run.leave(folder, "failed", "out of memory")
    page = page_of(compose(load(tracking_uri, "components", tmp_path)))
    assert "No trial is finished yet" in page
    assert "out of memory" in page


def test_a_study_of_which_only_a_failure_is_known_still_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "components" / trial().cell / "seed0"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"state": "failed", "reason": "out of memory"}')
    page = page_of(compose(load_folder(tmp_path / "components")))
    assert "1 trial: 0 finished, 1 failed and 0 missing" in page
    assert "| 0 | failed | out of memory |" in page


def test_a_page_lists_so_many_rows_and_says_how_many_there_are(tmp_path: Path) -> None:
    write_plan(tmp_path, "components", plan_of([trial(seed) for seed in range(MOST_ROWS + 1)]))
    files = compose(load_folder(tmp_path / "components"))
    said = f"The first {MOST_ROWS} of {MOST_ROWS + 1} trials are listed;"
    assert f"Trials without a result: {said} trials.csv has all." in page_of(files)
    assert f"{said} the CSV has all." in page_of(files)
    assert page_of(files).count("planned, not started yet") == MOST_ROWS
    assert len(pd.read_csv(io.BytesIO(files["trials.csv"]))) == MOST_ROWS + 1


def test_settings_get_a_part_each(tracking_uri: str, tmp_path: Path) -> None:
    files = compose(loaded(tracking_uri, tmp_path, [*two_cells(1), trial(steps=40)]))
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


def test_the_appendix_holds_setting_runs_and_where_they_ran(tracking_uri: str, tmp_path: Path) -> None:
    results = loaded(tracking_uri, tmp_path, two_cells(3))
    page = page_of(compose(results))
    assert "**2 of 6 trials ran with uncommitted changes.**" in page
    assert "| `packages` | numpy 2.4.6, torch 2.13.0 |" in page
    assert "| `align` | auto (130) |" in page
    assert f"| `data` | {trial().setting['data']} |" in page
    assert all(run in page for run in results.trials["run_id"])


def test_every_link_leads_to_a_file_and_every_file_is_linked(tracking_uri: str, tmp_path: Path) -> None:
    files = compose(loaded(tracking_uri, tmp_path, two_cells(2), samples=True))
    links = {link for link in re.findall(r"\]\(([^)]+)\)", page_of(files)) if not link.startswith("#")}
    assert links == set(files) - {"report.md"}
    assert {"effects.png", "curves.png", "pictures-Set5-ring.png"} <= links


def test_the_same_results_give_the_same_bytes(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, two_cells(2), samples=True)
    first, second = (compose(load(tracking_uri, "components", tmp_path)) for _ in range(2))
    assert first == second
    pictures = [content for name, content in first.items() if name.endswith(".png")]
    drawings = [content for name, content in first.items() if name.endswith(".svg")]
    assert pictures
    assert drawings
    assert not any(b"<dc:date>" in content or b"Matplotlib" in content.partition(b"<defs>")[0] for content in drawings)
    assert not any(b"tEXt" in content or b"tIME" in content for content in pictures)


def test_a_new_page_takes_the_files_of_the_old_one_away_and_no_others(tracking_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    write(compose(loaded(tracking_uri, tmp_path, two_cells(1), samples=True)), folder)
    (folder / "notes.png").write_bytes(b"by hand")
    (folder / "report.md").write_text("![x](old.png) [as SVG](old.svg) [y](effects.csv)")
    for name in ("old.png", "old.svg"):
        (folder / name).write_bytes(b"old")
    write({"report.md": b"nothing\n"}, folder)
    names = {path.name for path in folder.iterdir()}
    assert {"notes.png", "report.md"} <= names
    assert not {"old.png", "old.svg", "effects.csv"} & names


def test_long_curves_are_averaged_over_windows(tracking_uri: str, tmp_path: Path) -> None:
    (section,) = sections(loaded(tracking_uri, tmp_path, [trial(0, steps=600), trial(1, steps=600)]))
    table = curve_table(section)
    loss = table[table["metric"] == "train/loss"]
    raw = section.curves().query("metric == 'train/loss' and step < 11")["value"]
    assert len(loss) <= MOST_POINTS + 1
    assert set(loss["n"]) == {2}
    assert loss["mean"].iloc[0] == pytest.approx(raw.mean(), rel=1e-9)
    assert list(table[table["metric"] == "Set5/psnr_db"]["step"]) == [300, 600]


def test_the_command_writes_the_page(tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tracking_uri, tmp_path / "outputs", two_cells(1))
    options = ["--tracking-uri", tracking_uri, "--outputs", f"{tmp_path}/outputs", "--reports", f"{tmp_path}/reports"]
    main(["components", *options])
    page = tmp_path / "reports" / "components" / "report.md"
    assert page.read_text().startswith("# Study `components`")
    assert capsys.readouterr().out == f"{page}\n"


def test_an_unknown_study_is_one_line_that_names_those_there(tracking_uri: str, tmp_path: Path) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    with pytest.raises(SystemExit) as stopped:
        main(["componets", "--tracking-uri", tracking_uri])
    assert str(stopped.value).startswith("analysis: no study 'componets' in")
    assert str(stopped.value).endswith("there: components")
    assert "\n" not in str(stopped.value)


def test_a_missing_database_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^analysis: no tracking database at") as stopped:
        main(["components", "--tracking-uri", f"sqlite:///{tmp_path}/absent.db"])
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "absent.db").exists()


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    with pytest.raises(SystemExit, match=r"^analysis: ") as stopped:
        main(["components", "--tracking-uri", f"sqlite:///{tmp_path}/notes.txt"])
    assert "\n" not in str(stopped.value)


def test_no_study_shows_the_usage_and_the_studies(
    tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tracking_uri, tmp_path, [trial()])
    with pytest.raises(SystemExit, match="2"):
        main(["--tracking-uri", tracking_uri])
    said = capsys.readouterr().err
    assert "usage: python -m analysis" in said
    assert "name a study; available: components" in said


def test_no_study_and_no_database_shows_the_usage_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--tracking-uri", f"sqlite:///{tmp_path}/absent.db"])
    assert "name a study; no tracking database at" in capsys.readouterr().err


def test_every_row_leads_to_the_runs_behind_it(tracking_uri: str, tmp_path: Path) -> None:
    results = loaded(tracking_uri, tmp_path, two_cells(2))
    page = page_of(compose(results))
    anchors = re.findall(r'<a id="([^"]+)"></a>', page)
    wanted = re.findall(r"\]\(#(runs-[^)]+)\)", page)
    assert wanted
    assert set(wanted) <= set(anchors)
    assert len(set(anchors)) == len(anchors)
    assert row_with(page, "`true` → `false` | -0.5").rstrip(" |").endswith("[4](#runs-effects-1)")
    listing = page.partition("The runs behind each cell")[2]
    assert all(f"`{run}`" in listing for run in results.trials["run_id"])


def test_the_summary_says_what_was_found_how_sure_and_what_became_of_the_claims(
    tracking_uri: str, tmp_path: Path
) -> None:
    page = page_of(compose(loaded(tracking_uri, tmp_path, two_cells(3))))
    short = page.partition("## Summary\n\n")[2].partition("\n\n## ")[0]
    lines = [line.strip().removeprefix("- ") for line in short.splitlines()]
    assert lines[0].startswith("Highest mean PSNR: `residual=true` with 30.100 ± 0.100 dB on Set5 (3 seeds), at 2.00 G")
    assert lines[1:3] == ["**Worse**:", lines[2]]
    assert lines[2].startswith("`residual`: `true` → `false` (-0.510 [")
    assert lines[3].endswith("3 seeds cannot reach a two-sided p below 0.25.")
    claims = lines.index("Claims of the paper that are **supported** here:")
    assert lines[claims + 1] == "The residual raises PSNR (+0.510 dB on Set5)"
    assert lines[-1].startswith("Claims of the paper that are **not tested** here: ")


def test_the_summary_names_the_cost_that_comes_with_a_change(tracking_uri: str, tmp_path: Path) -> None:
    cheap = [
        dataclasses.replace(each, ops_g=1.5, params_k=39.0) for each in two_cells(3) if not each.levels["residual"]
    ]
    page = page_of(compose(loaded(tracking_uri, tmp_path, [*two_cells(3)[::2], *cheap])))
    assert "; -0.50 G operations, -1.0 K parameters)" in page.partition("## How to read")[0]


def test_of_many_comparisons_the_summary_tells_the_largest_and_counts_the_rest(
    tracking_uri: str, tmp_path: Path
) -> None:
    finished = [
        trial(seed, 30.0 - 0.1 * place - 0.001 * seed * place, align="auto" if place == 0 else place + 1)
        for seed in range(3)
        for place in range(13)
    ]
    page = page_of(compose(loaded(tracking_uri, tmp_path, finished)))
    short = page.partition("## How to read")[0]
    assert "`auto` → `13`" in short
    assert "`auto` → `2`" not in short
    assert "\n  - and 4 more below\n" in short
    assert "<summary>Each row in words, with its p-value and what would decide it</summary>" in page


def test_cells_that_determine_no_effect_are_refused_in_one_sentence(tracking_uri: str, tmp_path: Path) -> None:
    finished = [
        trial(seed, 30.0 + 0.1 * seed, **levels)
        for seed in range(2)
        for levels in ({"residual": "block", "align": 1}, {"residual": "block", "bn": "post"}, {"residual": True})
    ]
    page = page_of(compose(loaded(tracking_uri, tmp_path, finished)))
    part = page.partition("## Main effects and interactions")[2].partition("\n## ")[0].strip()
    assert part.startswith("Not estimated: the study has 3 of the 8 combinations of its levels")
    assert "\n" not in part
