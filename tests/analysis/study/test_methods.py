"""A study of published methods is read as one comparison, under the names that the paper has for them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest

from ablations.space.family import METHOD, is_chain
from analysis.effects.claims import Status
from analysis.effects.curves import cost_table
from analysis.effects.depth import EVERY, shown
from analysis.effects.fractions import fitted, half_normals
from analysis.study.methods import group_key, groups_of, names_of
from analysis.study.tasks import TaskResults, split_by_task
from tests.harness.judging import Judged, judge, only_task, summaries
from tests.harness.studies import Ours, of_results

METHODS = {"bicubic": 28.5, "full_precision": 35.0, "lite": 34.2, "bnn": 34.0, "btm": 34.4, "bam": 34.3, "bbcu": 34.9}


def table_one(**changed: Any) -> list[Ours]:
    """Two seeds of each method; the second is a little better, and each network by its own amount."""
    return [
        Ours(method, psnr + (method != "bicubic") * (0.1 * seed + 0.001 * place * seed), seed, **changed)
        for place, (method, psnr) in enumerate(METHODS.items())
        for seed in (0, 1)
    ]


def tasks_of(trials: Sequence[Ours]) -> list[TaskResults]:
    documents = [each.result() for each in trials]
    for document in documents:
        if document["method"] == "bicubic":
            document["cost"] = {"ops_g": 0.0, "params_k": 0.0}
    return split_by_task(of_results(documents))


@pytest.fixture(scope="module")
def found() -> Judged:
    (results,) = tasks_of(table_one())
    return judge(results)


def test_methods_that_bring_settings_along_are_one_part_under_the_papers_names(found: Judged) -> None:
    names = [found.results.labels[cell] for cell in found.results.levels]
    assert names == [
        "Bicubic",
        "SRResNet",
        "SRResNet-Lite",
        "BNN",
        "BTM (reimplementation)",
        "BAM (reimplementation)",
        "BBCU-L",
    ]
    assert found.results.title == ""
    assert found.results.setting["channels"] == "64"


def test_bbcu_with_a_binary_upsampling_goes_by_its_name() -> None:
    medium = [Ours("custom", 34.8, seed, levels={"binarize": ["body", "up"]}) for seed in (0, 1)]
    (results,) = tasks_of([*table_one(), *medium])
    assert "BBCU-M" in results.labels.values()


def test_every_trained_method_is_compared_with_bbcu_and_interpolation_is_not(found: Judged) -> None:
    assert found.results.labels[found.results.reference] == "BBCU-L"
    assert [row.label for row in found.rows] == [
        "SRResNet",
        "SRResNet-Lite",
        "BNN",
        "BTM (reimplementation)",
        "BAM (reimplementation)",
    ]
    assert {change.key for row in found.rows for change in row.intervention.changes} == {METHOD}
    assert found.rows[2].by_set["Set5"].estimate.mean == pytest.approx(34.0515 - 34.953)
    assert found.family.size == 5


def test_without_bbcu_the_first_trained_method_is_the_reference() -> None:
    (results,) = tasks_of([each for each in table_one() if each.method not in ("bbcu", "full_precision")])
    assert results.labels[results.reference] == "SRResNet-Lite"
    assert [row.label for row in judge(results).rows] == ["BNN", "BTM (reimplementation)", "BAM (reimplementation)"]


def test_methods_are_no_design_and_no_chain_and_are_drawn_by_name(found: Judged) -> None:
    assert not is_chain(found.results.study_cells)
    assert (fitted(found.results, ()), half_normals(found.results)) == (None, {})
    assert set(shown(found.results)) == {EVERY}


def test_a_method_without_any_run_keeps_its_name() -> None:
    results = of_results([each.result() for each in [*table_one(), Ours("reactnet", 34.0)]])
    state = ["missing" if method == "reactnet" else "finished" for method in results.trials["method"]]
    task = only_task(dataclasses.replace(results, trials=results.trials.assign(state=state)))
    assert "ReActNet" in task.labels.values()
    assert len(task.levels) == len(METHODS)


def test_another_task_is_another_part() -> None:
    found = tasks_of([*table_one(), *table_one(task="sr_x4")])
    assert [found.title for found in found] == ["sr_x2", "sr_x4"]
    assert all(len(found.methods) == len(METHODS) for found in found)


def test_methods_of_two_budgets_are_compared_key_by_key() -> None:
    (results,) = tasks_of([*table_one()[2:], *table_one(steps=1000)[2:]])
    assert results.methods == {}
    assert "1000 steps in place of 500" in [row.label for row in judge(results).rows]


def test_interpolation_goes_with_what_is_scored_on_the_same_pictures() -> None:
    """It has no training data, so that the fingerprint of its data is another one."""
    study = of_results([each.result() for each in table_one()])
    data = ["e" * 64 if method == "bicubic" else "d" * 64 for method in study.trials["method"]]
    results = only_task(dataclasses.replace(study, trials=study.trials.assign(**{"setting/data": data})))
    assert "Bicubic" in results.labels.values()


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_interpolation_is_known_exactly_from_one_run(seeds: tuple[int, ...]) -> None:
    (results,) = tasks_of([each for each in table_one() if each.method != "bicubic" or each.seed in seeds])
    interpolated = next(cell for cell in summaries(results) if cell.label == "Bicubic")
    estimate = interpolated.to_reference["Set5"]
    assert (estimate.n, estimate.freedom) == (2, 1)
    assert estimate.mean == pytest.approx(28.5 - 34.953)


def test_a_study_of_bbcus_own_parts_is_none_of_methods() -> None:
    parts = [
        Ours("full_precision", 35.0),
        Ours("bbcu", 34.0),
        Ours("custom", 33.9, levels={"binarize": ["body", "up"]}),
    ]
    (results,) = tasks_of(parts)
    assert results.methods == {}
    assert [row.label for row in judge(results).rows] == ["A binary body", "Binary upsampling"]


def test_a_method_under_other_levels_makes_it_a_study_of_factors() -> None:
    mixed = [Ours("bnn", 34.0), Ours("bbcu", 35.0), Ours("custom", 34.5, levels={"bn": "post", "act": "after"})]
    (results,) = tasks_of(mixed)
    assert results.methods == {}


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


def test_a_network_in_full_precision_that_the_paper_does_not_have_is_not_called_by_the_name_of_its_own() -> None:
    found = names_of("sr_x2", ["edsr"])
    assert (found["bbcu"], found["full_precision"], found["lite"]) == ("BBCU-L", "Full precision", "Lite")
    assert names_of("sr_x2", ["srresnet"]) == names_of("sr_x2")


# ---- claims and costs ------------------------------------------------------------------------------------------------


def test_a_claim_on_levels_never_pairs_networks_of_other_widths(found: Judged) -> None:
    """The Lite network has the full-precision one's levels; only its width tells it from what BBCU binarises."""
    row = found.claim("Binarising the body costs PSNR")
    assert row.others == ()
    assert row.estimate.mean == pytest.approx(34.953 - 35.0505)


def test_a_claim_on_methods_stands_beside_what_the_paper_prints(found: Judged) -> None:
    row = found.claim("BBCU is better than BNN")
    assert (row.status, row.printed) == (Status.SUPPORTED, round(37.58 - 32.25, 2))


def test_a_claim_on_a_network_that_the_paper_does_not_have_has_no_printed_number() -> None:
    scores = {"bnn": 34.0, "bbcu": 35.0}
    parts = [Ours(name, psnr + 0.1 * seed, seed, network="edsr") for name, psnr in scores.items() for seed in (0, 1)]
    (results,) = tasks_of(parts)
    assert math.isnan(judge(results).claim("BBCU is better than BNN").printed)
    assert set(results.methods.values()) == {"BNN", "BBCU-L"}


def test_a_claim_shares_its_verdict_with_the_row_of_the_method(found: Judged) -> None:
    claim, row = found.claim("BBCU is better than BNN"), found.rows[2]
    assert claim.pair == (row.pair[1], row.pair[0])
    assert claim.estimate.mean == -row.by_set["Set5"].estimate.mean
    assert row.by_set["Set5"].conclusion == "worse"


def test_interpolation_is_no_point_of_quality_against_cost(found: Judged) -> None:
    drawn = cost_table(found.results, summaries(found.results)).query("source == 'here'")
    assert "Bicubic" not in set(drawn["label"])
    assert {"BBCU-L", "BNN"} <= set(drawn["label"])


# ---- tables beside the paper -----------------------------------------------------------------------------------------


def setting(**changed: str) -> dict[str, str]:
    return {"task.name": "sr_x2", "channels": "64", "train.steps": "5", "data": "d", **changed}


BASELINE = {"task.name": "sr_x2", "network.name": "baseline", "data": "of the test alone"}


def test_methods_share_a_table_with_what_they_bring() -> None:
    keys = [
        group_key(setting(), "bbcu"),
        group_key(setting(channels="12"), "lite"),
        group_key(setting(**{"network.initial": "xavier"}), "btm"),
    ]
    assert groups_of(keys) == [[0, 1, 2]]


def test_two_widths_have_a_table_each_and_the_lite_network_is_in_both() -> None:
    keys = [group_key(setting(), "bbcu"), group_key(setting(channels="32"), "bbcu"), group_key(setting(), "lite")]
    assert groups_of(keys) == [[0, 2], [1, 2]]


@pytest.mark.parametrize(
    ("tested", "other", "groups"),
    [
        pytest.param("33.98", "33.98", [[0, 1]], id="the same test pictures"),
        pytest.param("33.98", "32.72", [[0], [1]], id="other test pictures"),
        pytest.param("", "", [[0], [1]], id="unknown test pictures"),
    ],
)
def test_interpolation_stands_with_what_is_scored_on_its_pictures(
    tested: str, other: str, groups: list[list[int]]
) -> None:
    assert groups_of([group_key(setting(), "bbcu", tested), group_key(BASELINE, "bicubic", other)]) == groups
