"""Our numbers beside the paper's."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from ablations.storage.folder import TrialFolder
from analysis.published.tables import TABLES
from analysis.report.paper_table import ABSENT, Group, Table, budget_notes, paper_tables
from analysis.study.data_names import DataNames
from analysis.study.loading import load_folder
from bbcu.model.methods import METHODS
from tests.harness.studies import Ours, loaded, methods_study, timed, trial


def tables_of(folder: Path, *trials: Ours) -> list[Table]:
    return paper_tables(methods_study(folder, trials))


def table_of(folder: Path, *trials: Ours) -> Table:
    (table,) = tables_of(folder, *trials)
    return table


def rows_of(table: Table, method: str) -> list[dict[str, str]]:
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    return [row for row in rows if row["Method"] == method]


def notes_with(table: Table, text: str) -> list[str]:
    return [note for note in table.notes if text in note]


SEVERAL = [
    Ours(method, psnr + 0.1 * seed, seed)
    for seed in (0, 1)
    for method, psnr in (("bbcu", 37.0), ("reactnet", 36.5), ("bnn", 33.0))
]


def test_every_method_of_the_paper_has_its_line_and_ours_below(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 36.7))
    paper, ours = rows_of(table, "BBCU-L")
    assert (paper["Numbers"], paper["OPs (G)"], paper["Params (K)"]) == ("paper", "18.55", "225")
    assert paper["Set5 PSNR (dB) / SSIM"] == "**37.58** / **0.9590**"
    assert ours["Numbers"].startswith("[ours](#runs-")
    assert (ours["Seeds"], ours["Set5 PSNR (dB) / SSIM"]) == ("1", "36.70 / 0.9175")
    assert len({row[0] for row in table.rows}) == 11
    assert notes_with(table, "bicubic interpolation has its PSNR on Set5 and Set14")


def test_what_was_measured_has_columns_and_the_paper_none(tmp_path: Path) -> None:
    table = table_of(tmp_path, timed(Ours("bbcu", 36.7), 0.25), Ours("reactnet", 36.5))
    assert table.header[5:7] == ("Time / twin", "Packed (KB)")
    paper, ours = rows_of(table, "BBCU-L")
    assert [(row["Time / twin"], row["Packed (KB)"]) for row in (paper, ours)] == [(ABSENT, ABSENT), ("0.250", "100.0")]
    assert rows_of(table, "ReActNet")[1]["Time / twin"] == ABSENT
    assert table.frame["time_over_twin"].notna().sum() == 2
    assert notes_with(table, "on two fast cores, native beside onnxruntime")


def test_the_columns_are_the_test_sets_that_both_have(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 36.7, sets=("Set14", "mine", "Set5")))
    assert table.header[5:] == ("Set5 PSNR (dB) / SSIM", "Set14 PSNR (dB) / SSIM")
    assert "The paper also has B100, Urban100 and Manga109." in table.caption


def test_what_either_side_lacks_is_a_dash_or_a_note(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 36.7, sets=("Set5", "Manga109")))
    assert rows_of(table, "BAM")[0]["Manga109 PSNR (dB) / SSIM"] == ABSENT
    (absent,) = notes_with(table, "Not trained here: ")
    assert "IRNet" in absent
    assert "BBCU-L" not in absent


def test_best_and_second_best_are_those_of_the_binary_methods(tmp_path: Path) -> None:
    table = table_of(tmp_path, *SEVERAL, Ours("full_precision", 39.0), Ours("full_precision", 39.0, 1))
    column = "Set5 PSNR (dB) / SSIM"
    assert rows_of(table, "SRResNet")[0][column] == "38.00 / 0.9605"
    assert rows_of(table, "BBCU-M")[0][column] == "*37.44* / *0.9584*"
    assert rows_of(table, "BBCU-L")[1][column].startswith("**37.05** ± 0.07")
    assert rows_of(table, "ReActNet")[1][column].startswith("*36.55* ± 0.07")
    assert "*" not in rows_of(table, "SRResNet")[1][column]


def test_single_runs_are_not_ranked(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 37.0), Ours("bnn", 33.0))
    assert "*" not in rows_of(table, "BBCU-L")[1]["Set5 PSNR (dB) / SSIM"]
    assert notes_with(table, "one seed")


def test_bbcu_m_is_found_by_its_levels(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, Ours("custom", 36.0, levels={"binarize": ["body", "up"]}), Ours("custom", 35.0, levels={"bn": "post"})
    )
    assert rows_of(table, "BBCU-M")[1]["Set14 PSNR (dB) / SSIM"] == "36.00 / 0.9000"
    assert len(rows_of(table, "BBCU-L")) == 1
    assert notes_with(table, "1 cell of ours with other components is not in this table")


def test_methods_that_bring_their_own_setting_stand_in_one_table(tmp_path: Path) -> None:
    methods = ("bbcu", "btm", "bam", "lite", "full_precision")
    table = table_of(tmp_path, *(Ours(method, 36.0) for method in methods), Ours("bicubic", 33.9752))
    for name in ("BBCU-L", "BTM", "BAM", "SRResNet-Lite", "SRResNet"):
        assert rows_of(table, name)[1]["Set5 PSNR (dB) / SSIM"].startswith("36.00")
    assert rows_of(table, "Bicubic")[1]["Set5 PSNR (dB) / SSIM"] == "33.98 / 0.8000"


def test_a_reimplementation_has_a_note(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("btm", 36.0))
    assert notes_with(table, f"Our BTM is a {METHODS['btm'].remark}")


def test_budgets_are_not_mixed(tmp_path: Path) -> None:
    tables = tables_of(tmp_path, Ours("bbcu", 36.0), Ours("bbcu", 37.0, steps=300_000))
    assert [table.name for table in tables] == ["comparison-sr_x2-1", "comparison-sr_x2-2"]
    by_steps = {("500 steps" in table.caption): table for table in tables}
    assert notes_with(by_steps[True], "steps 500 (300,000), patch 24 (32), lr 0.001 (0.0001).")
    assert notes_with(by_steps[False], "parentheses: patch 24 (32), lr 0.001 (0.0001).")


def test_tables_are_numbered_within_their_task(tmp_path: Path) -> None:
    tables = tables_of(
        tmp_path, Ours("bbcu", 36.0), Ours("bbcu", 31.0, task="sr_x4"), Ours("bbcu", 32.0, task="sr_x4", steps=20)
    )
    assert sorted(table.name for table in tables) == ["comparison-sr_x2", "comparison-sr_x4-1", "comparison-sr_x4-2"]


def test_the_caption_states_budget_and_data(tmp_path: Path) -> None:
    caption = table_of(tmp_path, *SEVERAL).caption
    assert "500 steps, 64 channels, 16 blocks, data `dddddddddddd`, 2 seeds, mean ± standard deviation" in caption


def test_data_go_by_their_name_where_it_is_known(tmp_path: Path) -> None:
    results = methods_study(tmp_path, [Ours("bbcu", 36.0)])
    named = dataclasses.replace(results, data_names={"d" * 64: DataNames("BSDS400", ("Set5", "Set14"))})
    (table,) = paper_tables(named)
    assert "16 blocks, data `BSDS400`, 1 seed" in table.caption


@pytest.mark.parametrize(
    ("other", "titles"),
    [
        pytest.param("DIV2K", {"data BSDS400", "data DIV2K"}, id="two names"),
        pytest.param("BSDS400", {"data dddddddddddd", "data eeeeeeeeeeee"}, id="one name of two data sets"),
    ],
)
def test_tables_of_other_data_are_told_apart_by_name_or_else_by_fingerprint(
    tmp_path: Path, other: str, titles: set[str]
) -> None:
    results = methods_study(tmp_path, SEVERAL)
    results.trials.loc[results.trials["seed"] == 1, "setting/data"] = "e" * 64
    names = {"d" * 64: DataNames("BSDS400", ("Set5",)), "e" * 64: DataNames(other, ("Set5",))}
    tables = paper_tables(dataclasses.replace(results, data_names=names))
    assert {table.title for table in tables} == {f"super-resolution, sr_x2, {title}" for title in titles}


def test_doubtful_numbers_are_marked_and_explained(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 31.0, task="sr_x4"))
    assert rows_of(table, "Bicubic")[0]["Set5 PSNR (dB) / SSIM"] == "28.63 / 0.8128 ?"
    assert rows_of(table, "SRResNet")[0]["OPs (G)"] == "146.14 ?"
    assert notes_with(table, "0.8138")
    assert notes_with(table, "146.08 G")


def test_a_doubted_cost_is_marked_in_its_own_column(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 36.7))
    costs = [(row["OPs (G)"], row["Params (K)"]) for row in rows_of(table, "BAM") + rows_of(table, "SRResNet")]
    assert costs == [("20.52 ?", "226 ?"), ("85.43", "1367")]
    doubted_operations = rows_of(table_of(tmp_path / "x4", Ours("bbcu", 31.0, task="sr_x4")), "SRResNet")[0]
    assert (doubted_operations["OPs (G)"], doubted_operations["Params (K)"]) == ("146.14 ?", "1515")


def test_the_paper_bnn_is_doubted_on_the_sets_where_it_is_the_skip_connection(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bnn", 34.0, sets=("Set5", "B100")))
    row = rows_of(table, "BNN")[0]
    assert row["Set5 PSNR (dB) / SSIM"] == "32.25 / 0.9118 ?"
    assert row["B100 PSNR (dB) / SSIM"] == "28.68 / 0.8104"
    assert notes_with(table, "The paper's BNN on Set5, PSNR: the network's skip connection alone")


def test_a_mean_with_collapsed_seeds_is_marked_and_not_ranked(tmp_path: Path) -> None:
    column = "Set5 PSNR (dB) / SSIM"
    results = methods_study(tmp_path, SEVERAL)
    (collapsed,) = [identity for identity in results.files if identity == (Ours("bnn", 0.0).result()["cell"], 1)]
    (table,) = paper_tables(results, {collapsed})
    assert rows_of(table, "BNN")[1][column] == "33.05 ± 0.07 / 0.8263 †"
    assert notes_with(table, "† Collapsed seeds are in the mean, which is not ranked: 1 of 2 seeds of BNN.")
    assert rows_of(table, "ReActNet")[1][column].startswith("*36.55*")
    ours = table.frame.query("source == 'ours' and kind == 'binary'").set_index(["name", "test_set"])["collapsed"]
    assert (ours["BNN", "Set5"], ours["ReActNet", "Set5"]) == (1, 0)
    (sound,) = paper_tables(results)
    assert "†" not in str(sound.rows)
    assert not notes_with(sound, "Collapsed")


def test_a_collapsed_method_leaves_its_rank_to_the_next(tmp_path: Path) -> None:
    results = methods_study(tmp_path, SEVERAL)
    reactnet = Ours("reactnet", 0.0).result()["cell"]
    (table,) = paper_tables(results, {(reactnet, 0), (reactnet, 1)})
    ranks = [rows_of(table, name)[1]["Set14 PSNR (dB) / SSIM"][:2] for name in ("BBCU-L", "ReActNet", "BNN")]
    assert ranks == ["**", "36", "*3"]


def test_one_blind_training_fills_the_columns_of_its_strengths(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 30.0, task="denoise"))
    (_, ours) = rows_of(table, "BBCU")
    assert ours["CBSD68-sigma25 PSNR (dB) / SSIM"] == "30.00 / 0.7500"
    assert table.header[5:] == ("CBSD68-sigma15 PSNR (dB) / SSIM", "CBSD68-sigma25 PSNR (dB) / SSIM")
    assert not notes_with(table, "train_sigma")


def notes_on(**setting: str) -> list[str]:
    """What is said of a setting beside the paper's table of denoising."""
    named = {key.replace("__", "."): value for key, value in setting.items()}
    return budget_notes(Group(TABLES[1], "denoise", named, "", pd.DataFrame(), pd.DataFrame(), (), 0))


def test_a_self_ensemble_is_said_only_of_scores_that_used_one() -> None:
    assert notes_on(evaluation__self_ensemble="True") == ["Our scores use a self-ensemble; the paper's do not."]
    assert notes_on(evaluation__self_ensemble="False") == []


def test_the_same_numbers_in_another_spelling_are_no_difference() -> None:
    assert notes_on(task__train_sigma="[0.0, 75.0]", train__lr="0.0001") == []
    (note,) = notes_on(task__train_sigma="[0.0, 50.0]", train__steps="1000")
    assert note.endswith("steps 1,000 (500,000), train_sigma [0.0, 50.0] ([0, 75]).")


def test_a_single_strength_is_put_into_its_column(tmp_path: Path) -> None:
    table = table_of(tmp_path, Ours("bbcu", 29.5, task="jpeg"))
    (_, ours) = rows_of(table, "BBCU")
    assert ours["Classic5-q10 PSNR (dB) / SSIM"] == "29.50 / 0.7375"
    assert notes_with(table, r"train_quality \[10, 10\] (\[1, 50\])")


@pytest.mark.parametrize(("used", "said"), [("True", True), ("False", False)])
def test_a_self_ensemble_is_mentioned_only_where_one_was_used(tmp_path: Path, used: str, said: bool) -> None:
    results = methods_study(tmp_path, [Ours("bbcu", 30.0, task="denoise")])
    results.trials["setting/evaluation.self_ensemble"] = used
    (table,) = paper_tables(results)
    assert bool(notes_with(table, "self-ensemble")) is said


def test_a_number_that_is_written_in_another_way_is_no_difference_of_budget(tmp_path: Path) -> None:
    results = methods_study(tmp_path, [Ours("bbcu", 30.0, task="denoise")])
    results.trials["setting/task.train_sigma"] = "[0.0, 75.0]"
    (table,) = paper_tables(results)
    assert notes_with(table, "steps 500 (500,000)")
    assert not notes_with(table, "train_sigma")


def test_the_frame_has_every_number_with_its_source(tmp_path: Path) -> None:
    frame = table_of(tmp_path, *SEVERAL).frame
    ours = frame.query("source == 'ours' and name == 'BBCU-L' and test_set == 'Set5'").iloc[0]
    assert (ours["seeds"], ours["psnr_mean_db"]) == (2, pytest.approx(37.05))
    assert len(frame.query("source == 'paper'")) == 11 * 2


@pytest.mark.parametrize(
    "ours",
    [
        pytest.param(Ours("bbcu", 30.0, sets=("embedded",)), id="no test set of the paper"),
        pytest.param(Ours("bam", 30.0, sets=("Manga109",)), id="a test set on which the paper lacks the method"),
        pytest.param(Ours("custom", 30.0, levels={"bn": "post"}), id="no method of the paper"),
        pytest.param(Ours("bam", 30.0, task="denoise"), id="a method that is in another table"),
        pytest.param(Ours("bicubic", 33.9752), id="no network"),
        pytest.param(Ours("bbcu", 36.7, network="edsr"), id="a network that the paper does not have"),
    ],
)
def test_there_is_no_table_without_a_network_beside_a_number_of_the_paper(tmp_path: Path, ours: Ours) -> None:
    assert tables_of(tmp_path, ours) == []


def test_a_study_of_other_tasks_has_no_table(tmp_path: Path) -> None:
    trial = Ours("bbcu", 30.0)
    result = trial.result()
    result["setting"]["task"] = {"name": "sr_x3"}
    place = TrialFolder(tmp_path, "methods", result["cell"], 0)
    place.path.mkdir(parents=True)
    place.write_result(result)
    assert paper_tables(load_folder(tmp_path / "methods")) == []


def test_results_whose_data_are_not_recorded_stand_with_none_that_are(tracking_uri: str, tmp_path: Path) -> None:
    recorded, old = trial(0, 30.0), dataclasses.replace(trial(0, 35.0), others={"data": ""})
    tables = paper_tables(loaded(tracking_uri, tmp_path, [recorded, old]))
    assert ["data `not recorded`" in table.caption for table in tables] == [False, True]
    ours = [table.frame.query("source == 'ours' and kind != 'no network'") for table in tables]
    assert [frame["psnr_mean_db"].tolist() for frame in ours] == [[30.0], [35.0]]
