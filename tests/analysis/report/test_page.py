"""The page that a study ends in, and the command that writes it."""

import dataclasses
import io
import itertools
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import write_plan
from analysis.__main__ import main
from analysis.report import drawing
from analysis.report.chapter import LIMITS, chapter_of
from analysis.report.drawing import Palette
from analysis.report.opening import forest_cell
from analysis.report.page import compose, report_of, write
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.data_names import DataNames
from analysis.study.loading import StudyResults, load, load_folder
from analysis.study.tasks import split_by_task
from tests.harness.pages import Report, broken, contradictions, plain, unlinked
from tests.harness.studies import (
    REFERENCE,
    Ours,
    Trial,
    full_trial,
    in_memory,
    loaded,
    methods_study,
    plan_of,
    read_back,
    start,
    timed,
    trial,
    write_study,
)

MOST_ROWS = LIMITS["MOST_ROWS"]


class BlankCanvas:
    """Takes the place of a canvas and draws nothing.

    Drawing takes four fifths of the time of a report, and other files test what figures look like.
    """

    def __init__(self, figure: Figure) -> None:
        """Take any figure."""

    def print_png(self, file: io.BytesIO, **_: object) -> None:
        file.write(b"a picture")

    def print_svg(self, file: io.BytesIO, **_: object) -> None:
        file.write(b"<svg></svg>")


@pytest.fixture(scope="module", autouse=True)
def blank_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "FigureCanvasAgg", BlankCanvas)
        patch.setattr(drawing, "FigureCanvasSVG", BlankCanvas)
        yield


def two_cells(seeds: int, samples_psnr: float = 30.0) -> list[Trial]:
    return [
        trial(seed, samples_psnr + 0.1 * seed - drop, residual=residual)
        for seed in range(seeds)
        for residual, drop in ((True, 0.0), (False, 0.5 + 0.01 * seed))
    ]


def page_of(files: dict[str, bytes]) -> str:
    return files["report.md"].decode()


def opening_of(page: str) -> str:
    """What a page says before its first heading, without links to runs."""
    return unlinked(page.partition("\n## ")[0])


def sections(page: str) -> list[str]:
    return re.findall(r"^## (.*)$", page, re.MULTILINE)


def row_with(page: str, text: str) -> str:
    (row,) = [line for line in page.splitlines() if line.startswith("|") and text in line]
    return row


def first_row(files: dict[str, bytes], label: str) -> dict[str, str]:
    """The row of an intervention in the first table."""
    table = Report.of(files).first_table
    assert table is not None
    (row,) = [row for row in table.dicts() if plain(next(iter(row.values()))) == label]
    return {name: unlinked(text) for name, text in row.items()}


# ---- what a page says first ------------------------------------------------------------------------------------------


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


def test_the_opening_has_the_question_and_the_conditions(page: str) -> None:
    opening = opening_of(page)
    assert opening.startswith("# Study `components`: what is `residual` worth?\n")
    assert "for x2 super-resolution" in opening
    assert f"trained on data {trial().setting['data'][:12]} for 20 steps" in opening
    assert "(of the paper's training: 1/15,000 of its steps and 1/8 of its width)" in opening
    assert "tested on Set5 (bicubic 28.50 dB); 2 cells, 3 seeds, 6 finished." in opening
    assert "**2 of 6 trials ran with uncommitted changes.**" in opening


def test_an_intervention_has_its_number_interval_verdict_cost_and_collapsed_trials(files: dict[str, bytes]) -> None:
    effects = pd.read_csv(io.BytesIO(files["effects.csv"])).iloc[0]
    assert effects["psnr_difference_db"] == pytest.approx(-(0.5 + 0.51 + 0.52) / 3)
    assert first_row(files, "Without the residual") == {
        "Change": "Without the residual",
        "Set5 (dB)": f"-0.510 [{effects['low_95_db']:+.3f}, {effects['high_95_db']:+.3f}]",
        "Verdict": "**worse**",
        "Cost": "same",
        "Collapsed": "none",
    }


def test_the_opening_lists_what_is_decided_and_the_claims_in_three_counts(page: str) -> None:
    opening = opening_of(page)
    assert "- **Surely worse**: Without the residual.\n" in opening
    assert "- **Claims of the paper**: 1 supported, 0 contradicted, 0 undecided." in opening
    assert "Undecided" not in opening


def test_two_interventions_that_read_the_same_are_told_apart_by_their_keys() -> None:
    """No rule makes an activation function meaningless where a study of one's own declares no rule."""
    base = {"act": "inside", "act_fn": "rprelu"}
    cells = (base, {"act": "none", "act_fn": "prelu"}, {"act": "none", "act_fn": "relu"})
    made = [full_trial(seed, **levels) for levels in cells for seed in range(3)]
    files = compose(in_memory([dataclasses.replace(each, reference={**each.reference, **base}) for each in made]))
    assert first_row(files, "Without activation and RPReLU (act=none act_fn=prelu)")
    assert first_row(files, "Without activation and RPReLU (act=none act_fn=relu)")
    assert contradictions(files) == []


def test_the_cost_of_a_change_stands_in_its_row() -> None:
    cheap = [dataclasses.replace(each, ops_g=1.5, params_k=39.0) for each in two_cells(3)[1::2]]
    files = compose(in_memory([*two_cells(3)[::2], *cheap]))
    assert first_row(files, "Without the residual")["Cost"] == "-0.50 G OPs, -1.0 K params"


def test_what_is_undecided_says_the_smallest_effect_that_the_seeds_could_have_shown() -> None:
    noisy = [trial(seed, psnr, bn="pre") for seed, psnr in enumerate((30.2, 30.4, 29.9))]
    files = compose(in_memory([*two_cells(3)[::2], *noisy]))
    detectable = pd.read_csv(io.BytesIO(files["effects.csv"]))["detectable_db"].iloc[0]
    said = f"The smallest effect that these seeds could have shown, with 80 % power, is {detectable:.2f} dB."
    assert f"- **Undecided**: BatchNorm before the sign in place of alignment 130. {said}" in page_of(files)
    assert "would likely decide" not in page_of(files)


def test_the_margin_decides_what_is_equivalent_and_what_a_claim_is_worth(results: StudyResults) -> None:
    wider = page_of(compose(results, margin=0.8))
    assert "- **Surely less than 0.8 dB**: Without the residual." in wider
    assert "0 supported, 1 contradicted (The residual raises PSNR), 0 undecided" in wider
    with pytest.raises(ValueError, match="must be above 0"):
        compose(results, margin=0.0)


def test_of_many_interventions_the_opening_shows_the_first_and_counts_the_rest() -> None:
    cells = [({}, 30.0), *(({"align": place}, 29.0) for place in range(2, 22))]
    finished = [trial(seed, psnr + 0.01 * seed, **levels) for levels, psnr in cells for seed in range(3)]
    opening = opening_of(page_of(compose(in_memory(finished))))
    assert "Alignment 17 in place of 130 |" in opening
    assert "Alignment 18 in place of 130 |" not in opening
    assert "\n4 more are below.\n" in opening
    assert "; and 12 more." in opening


def test_one_seed_gets_no_verdict() -> None:
    files = compose(in_memory(two_cells(1)))
    assert first_row(files, "Without the residual")["Verdict"] == "one seed"
    assert "- **One seed, so no verdict**: Without the residual." in page_of(files)
    assert not re.search(r"\*\*(better|worse|equivalent)\*\*", page_of(files))


# ---- collapsed trainings ---------------------------------------------------------------------------------------------


def with_scores(scores: Sequence[float], **levels: Any) -> list[Trial]:
    return [trial(seed, psnr, **levels) for seed, psnr in enumerate(scores)]


def test_a_risk_of_collapse_is_counted_and_shown_without_the_collapsed() -> None:
    files = compose(in_memory([*with_scores((30.0, 30.1, 29.9)), *with_scores((29.8, 20.0, 29.9), bn="post")]))
    row = first_row(files, "BatchNorm after the convolution in place of alignment 130")
    assert row["Set5 (dB)"] == "-0.150 without the collapsed"
    assert row["Verdict"] == "risk of collapse"
    assert row["Collapsed"] == "1 of 3 [1, 91] %"
    reason = "some trials collapsed, and all trials together show no sure difference: p = 0.41"
    assert reason in row_with(page_of(files), "| `bn=post align=1` | risk of collapse |")
    assert "| `bn=post` | 1 | its PSNR is 8.500 dB below the baseline's |" in unlinked(page_of(files))
    assert "a finished trial that, averaged over the test sets, scores below the baseline" in page_of(files)


def test_where_nothing_was_learned_no_verdict_falls_and_no_claim_counts() -> None:
    dead = (20.0, 20.1, 20.2)
    page = page_of(compose(in_memory([*with_scores(dead), *with_scores(dead, residual=False)])))
    assert "**Nothing was learned: every trial collapsed.**" in opening_of(page)
    assert "- **No verdict, as nothing was learned**: Without the residual." in page
    assert "Claims of the paper" not in page
    assert "The paper's claims" not in sections(page)
    assert not re.search(r"\*\*(better|worse|equivalent|undecided|supported|contradicted)\*\*", page)


def test_a_collapsed_reference_is_said_before_what_is_measured_from_it() -> None:
    page = page_of(compose(in_memory([*with_scores((20.0, 20.1, 20.2)), *with_scores((31.0, 31.1, 31.2), bn="post")])))
    assert "**Every trial of the reference cell collapsed, so differences are measured from a network" in page
    assert "Nothing was learned" not in page


def test_a_study_whose_networks_mostly_collapsed_says_so_and_contradicts_no_claim() -> None:
    cells = {
        (True, "none"): (30.0, 30.1, 29.9),
        (False, "none"): (20.0, 20.1, 19.9),
        (True, "post"): (19.0, 19.1, 19.2),
    }
    finished = [
        each for (residual, bn), found in cells.items() for each in with_scores(found, residual=residual, bn=bn)
    ]
    page = page_of(compose(in_memory(finished)))
    told = "**2 of 3 networks collapsed under every seed, so no claim of the paper is called contradicted.**"
    assert told in opening_of(page)
    assert "0 contradicted" in page
    sound = page_of(compose(in_memory([each for each in finished if each.levels["bn"] == "none"])))
    assert "networks collapsed under every seed" not in sound


def test_an_effect_with_collapsed_trials_at_the_reference_is_not_said_to_depend_on_its_context() -> None:
    cells = {(True, "none"): (30.0, 20.0, 30.1), (True, "post"): (30.5, 30.6, 30.4)}
    cells |= {(False, "none"): (29.0, 29.1, 28.9), (False, "post"): (28.0, 28.1, 28.2)}
    finished = [
        each for (residual, bn), found in cells.items() for each in with_scores(found, residual=residual, bn=bn)
    ]
    page = page_of(compose(in_memory(finished)))
    assert "## In other contexts" in page
    assert "Depends on its context" not in page


@pytest.mark.parametrize(("lowest", "said"), [(28.65, True), (28.35, False)], ids=["sound", "a collapsed seed"])
def test_an_effect_depends_on_its_context_only_where_every_seed_learned(lowest: float, said: bool) -> None:
    cells = {(True, "none"): (32.0, 32.1, 31.9), (True, "post"): (31.5, 31.4, 31.6)}
    cells |= {(False, "none"): (31.0, 31.1, 30.9), (False, "post"): (28.7, 28.6, lowest)}
    finished = [
        each for (residual, bn), found in cells.items() for each in with_scores(found, residual=residual, bn=bn)
    ]
    assert ("Depends on its context" in page_of(compose(in_memory(finished)))) is said


def test_beside_several_test_sets_a_risk_of_collapse_stands_before_its_number() -> None:
    def on_two(scores: Sequence[float], **levels: Any) -> list[Trial]:
        return [dataclasses.replace(each, psnr_db={"Set5": score, "Set14": score - 1.0})
                for each, score in zip(with_scores(scores, **levels), scores, strict=True)]  # fmt: skip

    risky = on_two((29.8, 20.0, 29.9), bn="post")
    row = first_row(
        compose(in_memory([*on_two((30.0, 30.1, 29.9)), *risky])),
        "BatchNorm after the convolution in place of alignment 130",
    )
    assert row["Set5 (dB)"] == "risk of collapse (-0.150 without the collapsed)"


def test_the_figure_shows_the_verdict_the_interval_and_every_seed_of_the_table() -> None:
    cells = {"none": (30.0, 30.1, 29.9), "post": (29.8, 20.0, 29.9), "pre": (28.0, 28.1, 28.2)}
    (results,) = split_by_task(in_memory([each for bn, found in cells.items() for each in with_scores(found, bn=bn)]))
    chapter = chapter_of(results, MARGIN_DB, "", "##", Palette(tuple(results.labels.values())))
    drawn = {row.label: forest_cell(chapter, row, "Set5") for row in chapter.rows}
    effects = chapter.frames["effects"].set_index("change")
    assert {label: cell.outcome for label, cell in drawn.items()} == effects["conclusion"].to_dict()
    for label, cell in drawn.items():
        assert cell.estimate is not None
        assert cell.estimate.mean == effects.loc[label, "psnr_difference_db"]
    risky = drawn["BatchNorm after the convolution in place of alignment 130"]
    assert [dot.collapsed for dot in risky.dots] == [False, True, False]
    assert [dot.value for dot in risky.dots] == pytest.approx([-0.2, -10.0, -0.1])


# ---- kinds of studies ------------------------------------------------------------------------------------------------


def test_a_chain_is_told_step_by_step() -> None:
    levels: Sequence[dict[str, Any]] = ({"align": 1}, {"bn": "post"}, {})
    finished = [
        trial(seed, 30.0 + place + 0.01 * seed, **each) for place, each in enumerate(levels) for seed in range(3)
    ]
    files = compose(in_memory(finished, design={"name": "chain"}))
    page = page_of(files)
    assert "what does each step add to those before it?" in page
    table = Report.of(files).first_table
    assert table is not None
    assert [unlinked(row[0]) for row in table.rows] == [
        "BatchNorm after the convolution added",
        "Alignment 130 in place of BatchNorm after the convolution",
        "All steps together: alignment 130 added",
    ]
    assert table.header[0] == "Step"
    assert "**Verdicts** are those of the steps." in page
    assert "corrected for 3 comparisons on a test set: the steps and the claims of the paper below." in page


def test_methods_are_compared_under_their_names_task_by_task(tmp_path: Path) -> None:
    scores = {"bbcu": 35.0, "irnet": 34.0}
    finished = [
        Ours(method, psnr + 0.01 * seed, seed, task)
        for task in ("sr_x2", "sr_x4")
        for method, psnr in scores.items()
        for seed in range(3)
    ]
    files = compose(methods_study(tmp_path, finished))
    page = page_of(files)
    assert "how do the published methods compare with BBCU-L?" in page
    table = Report.of(files).first_table
    assert table is not None
    assert table.header[0] == "In place of BBCU-L"
    assert {"sr_x2 Set5 (dB)", "sr_x2 Set14 (dB)", "sr_x4 Set5 (dB)"} <= set(table.header)
    assert [unlinked(row[0]) for row in table.rows] == ["IRNet"]
    assert "- **Claims of the paper**: 1 supported, 0 contradicted, 0 undecided." in page
    assert sorted(sections(page)[:2]) == ["sr_x2", "sr_x4"]
    assert {"part1-cells.csv", "part2-cells.csv", "effects.png"} <= set(files)


def test_methods_with_another_name_in_each_task_are_compared_with_both(tmp_path: Path) -> None:
    finished = [
        Ours(method, 35.0 - (method != "bbcu") + 0.01 * seed, seed, task)
        for task in ("sr_x2", "denoise")
        for method in ("bbcu", "reactnet")
        for seed in range(3)
    ]
    page = page_of(compose(methods_study(tmp_path, finished)))
    assert "how do the published methods compare with BBCU-L or BBCU?" in page
    assert "| In place of BBCU-L or BBCU |" in page


def test_a_search_shows_its_front_first_and_says_that_its_scores_are_too_high(tmp_path: Path) -> None:
    sizes = ((8, 1, 30.0), (16, 2, 29.0), (32, 4, 31.0))
    finished = [
        dataclasses.replace(
            trial(0, psnr), others={"channels": channels, "blocks": blocks}, ops_g=channels * blocks / 10
        )
        for channels, blocks, psnr in sizes
    ]
    page = page_of(compose(in_memory(finished, design={"name": "search"})))
    opening = opening_of(page)
    assert "which cells give the most PSNR for their cost?" in opening
    assert "| `blocks=1 channels=8` | 30.000 | 0.80 |" in opening
    assert "| `blocks=4 channels=32` | 31.000 | 12.80 |" in opening
    assert "`blocks=2 channels=16`" not in opening
    assert "the scores of the front are too high" in opening
    assert not [title for title in sections(page) if title.startswith("Beside the paper")]


def test_the_front_of_a_search_comes_before_what_its_cells_compare_and_is_by_time_at_no_price() -> None:
    """The cell with the residual is better and, though both cost the same by count, slower."""
    cells = [timed(each, 0.5 if each.levels["residual"] else 0.25) for each in two_cells(3)]
    study = in_memory(cells, design={"name": "search"})
    opening = opening_of(page_of(compose(dataclasses.replace(study, price="measured"))))
    assert opening.index("The front: ") < opening.index("effects.png")
    assert "no cell has more PSNR on Set5 in the same or less time" in opening
    assert "| `residual=true` | 30.100 | 2.00 | 40.0 | 0.500 | 3 |" in opening
    assert "| `residual=false` | 29.590 | 2.00 | 40.0 | 0.250 | 3 |" in opening
    assert "; 0.0 % by count, -50.0 % by the clock" in opening
    assert "- **Savings by the clock**: not counted: Without the residual." in opening


def test_metrics_besides_psnr_and_ssim_have_a_table_if_some_trial_has_one() -> None:
    first, *others = two_cells(2)
    scored = dataclasses.replace(first, scores={"psnr_rgb_db": 28.25, "lpips": 0.125})
    again = dataclasses.replace(others[1], scores={"lpips": 0.375})
    files = compose(in_memory([scored, others[0], again, *others[2:]]))
    page = page_of(files)
    assert "<summary>2 metrics besides PSNR and SSIM</summary>" in page
    assert "| `residual=true` | Set5 | `lpips` | 0.25 ± 0.18 | 2 |" in unlinked(page)
    assert "| `residual=true` | Set5 | `psnr_rgb_db` | 28.25 | 1 |" in unlinked(page)
    table = pd.read_csv(io.BytesIO(files["metrics.csv"]))
    assert table["mean"].tolist() == [0.25, 28.25]
    without = compose(in_memory(two_cells(2)))
    assert "metrics.csv" not in without
    assert "besides PSNR and SSIM" not in page_of(without)


def test_a_study_of_one_cell_says_what_it_reaches() -> None:
    page = page_of(compose(in_memory([trial(seed, 31.0 + 0.1 * seed) for seed in range(3)])))
    assert "what does one cell reach?" in opening_of(page)
    assert "- The cell reaches 31.100 ± 0.100 dB on Set5, +2.600 dB over bicubic interpolation.\n" in opening_of(page)
    assert "No two cells" not in page


def test_a_fraction_gets_fitted_effects_and_no_verdict() -> None:
    """Half of the combinations of four components tells their main effects from interactions of two."""
    names = {"residual": (True, False), "bn": ("none", "post"), "act": ("inside", "after"), "threshold": (True, False)}
    rows = [row for row in itertools.product((0, 1), repeat=4) if sum(row) % 2 == 0]
    levels = [{name: names[name][place] for name, place in zip(names, row, strict=True)} for row in rows]
    page = page_of(compose(in_memory([full_trial(seed, **each) for each in levels for seed in range(3)])))
    assert "What the cells determine together is under “Fitted effects”." in opening_of(page)
    assert "Fitted effects" in sections(page)
    assert "What each change is worth" not in sections(page)
    assert row_with(page, "| `residual=false` |")
    assert not re.search(r"\b(better|worse|equivalent|undecided)\b", page.partition("## How to read")[0])


@pytest.mark.parametrize("dead", [1, 8], ids=["one", "all"])
def test_a_fit_says_how_many_trials_collapsed_and_there_is_none_if_all_did(dead: int) -> None:
    names = {"residual": (True, False), "bn": ("none", "post"), "act": ("inside", "after"), "threshold": (True, False)}
    rows = [row for row in itertools.product((0, 1), repeat=4) if sum(row) % 2 == 0]
    levels = [{name: names[name][place] for name, place in zip(names, row, strict=True)} for row in rows]
    made = [
        dataclasses.replace(full_trial(0, **own), **({"psnr_db": {"Set5": 20.0}} if place < dead else {}))
        for place, own in enumerate(levels)
    ]
    page = page_of(compose(in_memory(made)))
    assert ("Fitted effects" in sections(page)) == (dead == 1)
    said = "These effects have no verdict. Collapsed trials are among these cells, 1 of 8, and in every effect.\n"
    assert (said in page) == (dead == 1)


def test_a_fraction_that_determines_no_effect_says_so() -> None:
    rows = [(True, "none", "inside"), (True, "post", "after"), (False, "none", "after"), (False, "post", "inside")]
    finished = [full_trial(seed, residual=residual, bn=bn, act=act) for residual, bn, act in rows for seed in range(3)]
    files = compose(in_memory(finished))
    page = page_of(files)
    assert "No two cells show an intervention at the reference cell.\n" in opening_of(page)
    assert "alone, and 4 cells do not tell main effects from interactions of two factors." in page
    assert "These cells do not determine 6 effects: `residual=false`, `bn=post`, `act=after`, " in page
    assert broken(files) == []


def test_a_key_in_which_two_cells_differ_alone_is_not_said_to_have_no_such_cells() -> None:
    cells: Sequence[dict[str, Any]] = ({}, {"residual": False, "bn": "post"}, {"residual": False, "bn": "pre"})
    page = page_of(compose(in_memory([trial(seed, 30.0 + seed, **levels) for levels in cells for seed in range(3)])))
    assert "No two cells differ in `residual` alone" in page


def test_parts_are_compared_one_by_one() -> None:
    sets: Sequence[list[str]] = ([], ["body"], ["head", "body"], ["body", "up"])
    finished = [
        dataclasses.replace(full_trial(seed, binarize=parts), psnr_db={"Set5": 32 - len(parts) + 0.01 * seed})
        for parts in sets
        for seed in range(3)
    ]
    table = Report.of(compose(in_memory(finished))).first_table
    assert table is not None
    assert [unlinked(row[0]) for row in table.rows] == ["A binary head", "A binary body", "Binary upsampling"]


def test_few_seeds_and_three_factors_get_a_half_normal_plot() -> None:
    finished = [
        trial(0, 30.0 - (not residual) + 0.01 * place, residual=residual, bn=bn, align=align)
        for place, (residual, bn, align) in enumerate(
            (residual, bn, align) for residual in (True, False) for bn in ("none", "post") for align in ("auto", 10)
        )
    ]
    files = compose(in_memory(finished))
    assert {"half_normal.png", "half_normal.svg"} <= set(files)
    assert "Lenth's simultaneous margin" in page_of(files)


def test_data_are_a_comparison_if_the_test_pictures_are_the_same() -> None:
    other = [dataclasses.replace(each, others={"data": "f" * 64}) for each in with_scores((29.0, 29.1, 28.9))]
    page = page_of(compose(in_memory([*with_scores((30.0, 30.1, 29.9)), *other])))
    first = trial().setting["data"][:12]
    assert "what is `data` worth?" in page
    assert "trained on several data sets for 20 steps" in page
    assert row_with(opening_of(page), f"data ffffffffffff in place of {first} |")


def test_a_reader_filters_by_the_names_of_data() -> None:
    other = [dataclasses.replace(each, others={"data": "f" * 64}) for each in with_scores((29.0, 29.1, 28.9))]
    study = in_memory([*with_scores((30.0, 30.1, 29.9)), *other])
    named = dataclasses.replace(study, data_names={trial().setting["data"]: DataNames("BSDS400", ("Set5",))})
    assert {levels["data"] for levels in report_of(named).details.cells.values()} == {"BSDS400", "f" * 12}


def test_trials_that_differ_in_steps_are_compared() -> None:
    longer = [trial(seed, 31.0 + 0.01 * seed, steps=40) for seed in range(3)]
    page = page_of(compose(in_memory([*two_cells(3), *longer])))
    assert "40 steps in place of 20 |" in opening_of(page)


# ---- what is not there -----------------------------------------------------------------------------------------------


def test_a_part_that_has_nothing_to_say_is_not_there() -> None:
    widths = [
        dataclasses.replace(
            trial(seed, 30.0 + channels / 8 + 0.01 * seed), others={"channels": channels, "data": "f" * 64}
        )
        for channels in (8, 16)
        for seed in range(3)
    ]
    named = [dataclasses.replace(each, psnr_db={"Mine": each.psnr_db["Set5"]}) for each in widths]
    page = page_of(compose(in_memory(named)))
    assert sections(page) == ["What each change is worth", "Cells", "Trials and provenance", "How to read the numbers"]
    assert "not tested" not in page
    assert "paper" not in opening_of(page).replace("of the paper's training", "")


def test_the_sections_stand_in_their_order(page: str) -> None:
    assert sections(page) == [
        "What each change is worth",
        "The paper's claims",
        "Cells",
        "Learning curves",
        "Fewer steps",
        "Pictures",
        "Trials and provenance",
        "Beside the paper: super-resolution, sr_x2",
        "How to read the numbers",
    ]


# ---- what is behind --------------------------------------------------------------------------------------------------


def test_figures_name_neither_software_nor_date(results: StudyResults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FigureCanvasAgg", FigureCanvasAgg)
    monkeypatch.setattr(drawing, "FigureCanvasSVG", FigureCanvasSVG)
    files = compose(results)
    pictures = [content for name, content in files.items() if name.endswith(".png")]
    drawings = [content for name, content in files.items() if name.endswith(".svg")]
    assert pictures
    assert drawings
    assert not any(b"<dc:date>" in content or b"Matplotlib" in content.partition(b"<defs>")[0] for content in drawings)
    assert not any(b"tEXt" in content or b"tIME" in content for content in pictures)


def test_a_row_leads_to_its_cells_and_these_to_their_runs(results: StudyResults, page: str) -> None:
    cells = list(dict.fromkeys(results.trials["cell"]))
    links = " → ".join(f"[{cell[:12]}](#runs-{cell[:12]})" for cell in cells)
    assert row_with(page, "| `residual=false` | **worse** |").endswith(f"| {links} |")
    listing = page.partition("The runs behind each cell")[2]
    assert all(f"`{run}`" in listing for run in results.trials["run_id"])


def test_the_last_part_holds_the_setting_and_where_the_trials_ran(page: str) -> None:
    assert "**2 of 6 trials ran with uncommitted changes.**" in page.partition("## Trials and provenance")[2]
    assert "| `packages` | numpy 2.4.6, torch 2.13.0 |" in page
    assert "| `align` | auto (130) |" in page
    assert f"| `data` | {trial().setting['data']} |" in page


def test_pairing_is_said_where_it_was_planned_and_where_it_would_pay() -> None:
    apart, planned = (page_of(compose(in_memory(two_cells(3), pairing=pairing))) for pairing in (False, True))
    assert (
        "The correlation of cells within a seed is +1.00 on Set5. With 3 seeds pairing (`study.pairing=true`)" in apart
    )
    assert "narrows the intervals if it is above 0.58." in apart
    assert "by Welch's method" in apart
    assert "on Set5, and comparisons are paired within seeds, as planned." in planned
    assert "paired within the seeds, as the study planned before training" in planned


def test_the_correlation_within_seeds_says_which_cells_it_is_over() -> None:
    """The collapsed seed of a third cell goes against the two others, which rise and fall together."""
    with_collapse = [*two_cells(3), *with_scores([30.0, 27.0, 30.1], align=1)]
    page = page_of(compose(in_memory(with_collapse)))
    assert (
        "within a seed is +1.00 on Set5, over the 2 of 3 cells of which no trial collapsed. With 3 seeds pairing"
    ) in page
    assert "no trial collapsed" not in page_of(compose(in_memory(two_cells(3))))


def test_the_second_reading_over_pictures_is_folded_and_decides_nothing(tmp_path: Path) -> None:
    pictures = {True: {"baby": 30.0, "bird": 31.0, "head": 29.0}, False: {"baby": 29.4, "bird": 30.5, "head": 28.6}}
    finished = [
        dataclasses.replace(trial(seed, 30.0 - 0.5 * (not residual) + 0.01 * seed, residual=residual),
                            images={"Set5": pictures[residual]})
        for seed in range(3)
        for residual in pictures
    ]  # fmt: skip
    page = page_of(compose(read_back(tmp_path, finished)))
    assert "The intervals are over 3 pictures, for the networks trained under seeds 0, 1 and 2." in page
    assert "so no verdict rests on them" in page
    assert "| Without the residual | -0.500 [-0.748, -0.252] |" in unlinked(page)


# ---- what is missing -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two cells under one seed; other seeds failed, were interrupted or never ran."""
    place = tmp_path_factory.mktemp("unfinished")
    shutil.copyfile(migrated_database, place / "mlflow.db")
    uri = f"sqlite:///{place}/mlflow.db"
    left_out = {"levels": {**REFERENCE, "bn": "out"}, "setting": trial().setting, "reason": "no add to stand after"}
    planned = [trial(1), trial(2), trial(3)]
    write_study(uri, place, two_cells(1), planned=planned, left_out=[left_out])
    failed, folder = start(uri, place, trial(1))
    failed.close_without_result(folder, "failed", "loss is not finite | step 7\nsecond line")
    interrupted, _ = start(uri, place, trial(2))
    interrupted.close_without_result(folder, "interrupted", "stopped by the user")
    return page_of(compose(load(uri, "components", place)))


def test_what_is_not_finished_or_left_out_is_shown_with_its_reason(unfinished: str) -> None:
    opening = opening_of(unfinished)
    assert "2 cells, 4 seeds, 2 finished, 1 failed, 1 interrupted and 1 missing." in opening
    assert "**3 trials have no result: 1 failed, 1 interrupted and 1 missing.**" in opening
    assert "| `residual=true` | 1 | failed | loss is not finite \\| step 7 second line |" in unlinked(unfinished)
    assert "| `residual=true` | 2 | interrupted | stopped by the user |" in unlinked(unfinished)
    assert "| `residual=true` | 3 | missing | planned, not started yet |" in unlinked(unfinished)
    assert "| `residual=true bn=out` | no add to stand after |" in unfinished


def test_a_study_of_which_only_a_failure_is_known_still_has_a_page(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "components", trial().cell, 0)
    begin_attempt(folder)
    end_attempt(folder, State.FAILED, "out of memory")
    page = page_of(compose(load_folder(tmp_path / "components")))
    assert "**1 trial has no result: 1 failed.**" in opening_of(page)
    assert "No trial is finished yet, so there is nothing to compare." in opening_of(page)
    assert "| 0 | failed | out of memory |" in page
    assert sections(page) == ["Trials and provenance", "How to read the numbers"]


def test_a_single_run_outside_of_the_plan_changes_no_number(tmp_path: Path) -> None:
    stray = [dataclasses.replace(trial(0, 40.0), others={"channels": 64}), trial(7, 20.0)]
    with_it = compose(read_back(tmp_path / "a", two_cells(3), unplanned=stray))
    without = compose(read_back(tmp_path / "b", two_cells(3)))
    assert "2 trials outside of the plan are in no number here." in opening_of(page_of(with_it))
    assert "Outside of the plan" in sections(page_of(with_it))
    strays = page_of(with_it).partition("## Outside of the plan")[2]
    assert row_with(strays, "channels=64")
    assert row_with(strays, "channels=8")
    assert {name: content for name, content in with_it.items() if name != "report.md"} == {
        name: content for name, content in without.items() if name != "report.md"
    }


def test_a_page_lists_so_many_rows_and_says_how_many_there_are(tmp_path: Path) -> None:
    write_plan(tmp_path, "components", plan_of([trial(seed) for seed in range(MOST_ROWS + 1)]))
    files = compose(load_folder(tmp_path / "components"))
    said = f"The first {MOST_ROWS} of {MOST_ROWS + 1} trials are listed;"
    assert f"Trials without a result: {said} trials.csv has all." in page_of(files)
    assert page_of(files).count("planned, not started yet") == MOST_ROWS
    assert len(pd.read_csv(io.BytesIO(files["trials.csv"]))) == MOST_ROWS + 1


# ---- the command -----------------------------------------------------------------------------------------------------


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
