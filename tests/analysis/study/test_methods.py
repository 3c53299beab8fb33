"""A study of published methods is read as one comparison, under the names that the paper has for them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.storage.folder import TrialFolder
from ablations.storage.plans import write_plan
from analysis.effects.contrasts import METHOD, contrasts, reference_cell
from analysis.effects.depth import EVERY, shown
from analysis.effects.factors import factorial_analyses
from analysis.effects.findings import Assessment, Status, assessed, comparable
from analysis.report.page import compose
from analysis.report.paper_table import paper_tables
from analysis.study.loading import StudyResults, load_folder
from analysis.study.methods import names_of, settings_of_methods
from analysis.study.settings import SettingResults, split_by_setting
from tests.harness.studies import Ours


def read(folder: Path, trials: Sequence[Ours], missing: Sequence[Ours] = ()) -> StudyResults:
    """Leave finished trials in a folder and read them back."""
    documents = [
        {**each.result(), "name": each.method, "cost": {"ops_g": OPERATIONS.get(each.method, 18.55), "params_k": 1.0}}
        for each in [*trials, *missing]
    ]
    for document in documents[: len(trials)]:
        place = TrialFolder(folder, "methods", document["cell"], document["seed"])
        place.path.mkdir(parents=True)
        place.write_result(document)
    planned = ("cell", "seed", "name", "method", "factors", "levels", "setting")
    rows = [{name: document[name] for name in planned} for document in documents]
    write_plan(folder, "methods", {"trials": rows, "left_out": []})
    return load_folder(folder / "methods")


OPERATIONS = {"bicubic": 0.0, "full_precision": 85.43}

METHODS = {"bicubic": 28.5, "full_precision": 31.0, "lite": 29.0, "bnn": 28.0, "btm": 29.4, "bam": 29.3, "bbcu": 30.0}


def table_one(**changed: Any) -> list[Ours]:
    """Two seeds of each method; the second is a little better, and each method by its own amount."""
    return [
        Ours(method, psnr + 0.1 * seed + 0.001 * place * seed, seed, **changed)
        for place, (method, psnr) in enumerate(METHODS.items())
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return read(tmp_path_factory.mktemp("table"), table_one())


@pytest.fixture(scope="module")
def found(study: StudyResults) -> SettingResults:
    return setting_of(study)


def setting_of(results: StudyResults) -> SettingResults:
    (found,) = split_by_setting(results)
    return found


def test_methods_that_bring_settings_along_are_one_section_under_the_papers_names(found: SettingResults) -> None:
    names = [found.labels[str(cell)] for cell in found.cells.index]
    assert names == ["Bicubic", "SRResNet", "SRResNet-Lite", "BNN", "BTM", "BAM", "BBCU-L"]
    assert found.title == ""
    assert found.setting["channels"] == "64"


def test_bbcu_with_a_binary_upsampling_goes_by_its_name(tmp_path: Path) -> None:
    medium = [Ours("custom", 29.9, seed, levels={"binarize": ["body", "up"]}) for seed in (0, 1)]
    found = setting_of(read(tmp_path, [*table_one(), *medium]))
    assert "BBCU-M" in found.labels.values()


def test_every_trained_method_is_compared_with_bbcu_and_interpolation_is_not(found: SettingResults) -> None:
    compared = contrasts(found)
    assert found.labels[reference_cell(found)] == "BBCU-L"
    assert [(each.factor, each.base, each.level) for each in compared] == [
        (METHOD, "BBCU-L", name) for name in ("SRResNet", "SRResNet-Lite", "BNN", "BTM", "BAM")
    ]
    assert compared[1].psnr["Set5"].mean == pytest.approx(-1.002)
    assert {verdict.comparisons for each in compared for verdict in each.verdicts.values()} == {5}


def test_methods_are_no_factorial_design_and_are_drawn_by_name(found: SettingResults) -> None:
    assert factorial_analyses(found) == {}
    assert set(shown(found)) == {EVERY}


def test_a_method_without_any_run_keeps_its_name_among_the_missing(tmp_path: Path) -> None:
    results = read(tmp_path, table_one(), missing=[Ours("reactnet", 0.0, seed) for seed in (0, 1)])
    page = compose(results)["report.md"].decode()
    assert "| `ReActNet` | 0 | missing |" in page
    assert "## Setting 2" not in page


def test_another_task_is_another_section(tmp_path: Path) -> None:
    found = split_by_setting(read(tmp_path, [*table_one(), *table_one(task="sr_x4")]))
    assert [found.title for found in found] == ["task.name=sr_x2", "task.name=sr_x4"]
    assert all(len(found.methods) == len(METHODS) for found in found)


def test_methods_of_another_budget_are_not_mixed_in(tmp_path: Path) -> None:
    found = split_by_setting(read(tmp_path, [*table_one()[2:], *table_one(steps=1000)[2:]]))
    assert [found.setting["train.steps"] for found in found] == ["500", "1000"]


def test_a_study_of_bbcus_own_parts_is_none_of_methods(tmp_path: Path) -> None:
    parts = [
        Ours("full_precision", 31.0),
        Ours("bbcu", 30.0),
        Ours("custom", 29.9, levels={"binarize": ["body", "up"]}),
    ]
    found = setting_of(read(tmp_path, parts))
    assert found.methods == {}
    assert "binarize=[body]" in found.labels.values()


def test_a_method_under_other_levels_makes_it_a_study_of_factors(tmp_path: Path) -> None:
    mixed = [Ours("bnn", 28.0), Ours("bbcu", 30.0), Ours("custom", 29.0, levels={"bn": "post", "act": "after"})]
    assert setting_of(read(tmp_path, mixed)).methods == {}


def test_a_setting_that_goes_with_two_widths_stays_alone() -> None:
    def setting(channels: int) -> dict[str, str]:
        return {"channels": str(channels), "train.steps": "5", "data": "d"}

    narrow, wide, lite = setting(32), setting(64), setting(12)
    methods = [frozenset({"bbcu", "bnn"}), frozenset({"bbcu", "bnn"}), frozenset({"lite"})]
    assert settings_of_methods([narrow, wide, lite], methods, [""] * 3) == [[0], [1], [2]]
    assert settings_of_methods([narrow, lite], [methods[0], methods[2]], [""] * 2) == [[0, 1]]


def test_interpolation_goes_with_what_is_tested_on_the_same_pictures_whatever_that_was_trained_on() -> None:
    trained = {"channels": "32", "train.steps": "5", "data": "of training and test", "task.name": "sr_x2"}
    interpolated = {"network.name": "baseline", "data": "of the test alone", "task.name": "sr_x2"}
    settings, methods = [trained, interpolated], [frozenset({"bbcu", "bnn"}), frozenset({"bicubic"})]
    assert settings_of_methods(settings, methods, ["33.98", "33.98"]) == [[0, 1]]
    assert settings_of_methods(settings, methods, ["33.98", "32.72"]) == [[0], [1]]
    assert settings_of_methods(settings, methods, ["", ""]) == [[0], [1]]
    elsewhere = {**trained, "data": "of other training"}
    three = settings_of_methods([*settings, elsewhere], [*methods, methods[0]], ["33.98"] * 3)
    assert three == [[0], [1], [2]]


def test_interpolation_stands_in_the_table_beside_the_paper_whatever_others_were_trained_on(
    tmp_path: Path,
) -> None:
    results = read(tmp_path, [Ours("bicubic", 25.0), Ours("bbcu", 30.0), Ours("bnn", 28.0)])
    results.trials.loc[results.trials["method"] == "bicubic", "setting/data"] = "e" * 64
    (table,) = paper_tables(results)
    assert table.title == "super-resolution, sr_x2"
    assert [row[0] for row in table.rows if "ours" in row[1]] == ["Bicubic", "BNN", "BBCU-L"]
    assert "data `dddddddddddd`" in table.caption


@pytest.mark.parametrize(
    ("task", "names"),
    [
        pytest.param("sr_x4", ("BBCU-L", "SRResNet"), id="a scale of the paper"),
        pytest.param("sr_x3", ("BBCU-L", "SRResNet"), id="a scale that it has no table of"),
        pytest.param("denoise", ("BBCU", "DnCNN"), id="denoising"),
        pytest.param("jpeg", ("BBCU", "DnCNN-3"), id="JPEG artifacts"),
    ],
)
def test_names_are_those_of_the_tasks_table(task: str, names: tuple[str, str]) -> None:
    found = names_of(task)
    assert (found["bbcu"], found["full_precision"]) == names


def claim(results: StudyResults, text: str) -> Assessment:
    (group,) = comparable(split_by_setting(results))
    (row,) = [row for row in assessed(group) if row.finding.claim == text and row.where in ("", "Set5")]
    return row


def test_a_claim_on_levels_never_pairs_networks_of_other_widths(study: StudyResults) -> None:
    """The Lite network has the full-precision one's levels; only its width tells it from what BBCU binarises."""
    row = claim(study, "Binarising the body costs PSNR")
    assert len(row.pairs.cells) == 1
    assert row.estimate.mean == pytest.approx(-0.9975, abs=0.002)


def test_a_claim_on_methods_stands_beside_what_the_paper_prints(study: StudyResults) -> None:
    row = claim(study, "BBCU is better than BNN")
    assert row.status is Status.SUPPORTED
    assert row.published == f"{37.58 - 32.25:+.2f} dB"


def test_interpolation_is_no_point_of_quality_against_cost(study: StudyResults) -> None:
    files = compose(study)
    drawn = pd.read_csv(io.BytesIO(files["pareto.csv"])).query("source == 'here'")
    assert "Bicubic" not in set(drawn["label"])
    assert {"BBCU-L", "BNN"} <= set(drawn["label"])
