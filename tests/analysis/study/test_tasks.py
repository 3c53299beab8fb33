"""What of a study is compared, and what each cell is called."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from analysis.effects.comparisons import Row
from analysis.study.data_names import DataNames
from analysis.study.loading import StudyResults
from analysis.study.tasks import TaskResults, natural, split_by_task
from tests.harness.judging import judge, only_task
from tests.harness.studies import REFERENCE, Trial, in_memory, trial

SR_X4 = {"task": {"name": "sr_x4", "scale": 4}}
PHOTOGRAPHS, PAINTINGS = "a" * 64, "b" * 64


def tasks_of(finished: Sequence[Trial], **others: Any) -> list[TaskResults]:
    return split_by_task(in_memory(finished, **others))


def with_others(others: Mapping[str, Any], psnr_db: float = 30.0, seed: int = 0, **levels: Any) -> Trial:
    return dataclasses.replace(trial(seed, psnr_db, **levels), others=others)


# ---- what is compared ------------------------------------------------------------------------------------------------


def test_different_tasks_stay_apart() -> None:
    found = tasks_of([trial(), with_others(SR_X4), trial(residual=False)])
    assert [(each.title, len(each.trials)) for each in found] == [("sr_x2", 2), ("sr_x4", 1)]
    assert [each.task for each in found] == ["sr_x2", "sr_x4"]


def test_other_strengths_are_another_task() -> None:
    found = tasks_of([with_others({"task": {"name": "denoise", "sigma": [sigma]}}) for sigma in (15, 25)])
    assert [each.title for each in found] == ["sigma=[15]", "sigma=[25]"]


def test_data_with_the_same_test_pictures_are_compared() -> None:
    """The pictures are the same if the baseline scores the same on them."""
    found = tasks_of([with_others({"data": PHOTOGRAPHS}), with_others({"data": PAINTINGS}, 29.0)])
    assert [each.title for each in found] == [""]
    (row,) = judge(found[0]).rows
    assert row.by_set["Set5"].estimate.mean == -1.0


def test_data_are_named_in_a_comparison_as_far_as_their_names_are_known() -> None:
    study = in_memory([with_others({"data": PHOTOGRAPHS}), with_others({"data": PAINTINGS}, 29.0)])
    names = {data: DataNames(name, ("Set5",)) for data, name in ((PHOTOGRAPHS, "DIV2K"), (PAINTINGS, "BSDS400"))}
    (named,) = judge(only_task(dataclasses.replace(study, data_names=names))).rows
    (unnamed,) = judge(only_task(study)).rows
    assert (named.label, unnamed.label) == (
        "data BSDS400 in place of DIV2K",
        "data bbbbbbbbbbbb in place of aaaaaaaaaaaa",
    )


def test_data_of_one_name_are_told_apart_by_their_fingerprints() -> None:
    study = in_memory([with_others({"data": PHOTOGRAPHS}), with_others({"data": PAINTINGS}, 29.0)])
    names = dict.fromkeys((PHOTOGRAPHS, PAINTINGS), DataNames("DIV2K", ("Set5",)))
    (row,) = judge(only_task(dataclasses.replace(study, data_names=names))).rows
    assert row.label == "data DIV2K bbbbbbbbbbbb in place of DIV2K aaaaaaaaaaaa"


def test_data_are_called_the_same_in_labels_in_contexts_and_in_comparisons() -> None:
    """Two of three data sets share a name, so that name alone is never said."""
    sketches = "c" * 64
    names = dict(zip((PHOTOGRAPHS, PAINTINGS, sketches), ("train", "train", "DIV2K"), strict=True))
    made = [with_others({"data": data}, 30.0, bn=bn) for data in names for bn in ("none", "post")]
    study = dataclasses.replace(
        in_memory(made), data_names={data: DataNames(name, ("Set5",)) for data, name in names.items()}
    )
    task = only_task(study)
    assert list(task.labels.values())[1::2] == [
        "bn=post data=train aaaaaaaaaaaa",
        "bn=post data=train bbbbbbbbbbbb",
        "bn=post data=DIV2K",
    ]
    rows = judge(task).rows
    assert [row.label for row in rows[1:]] == [
        "data train bbbbbbbbbbbb in place of train aaaaaaaaaaaa",
        "data DIV2K in place of train aaaaaaaaaaaa",
    ]
    assert [context.label for context in rows[0].contexts] == ["data=train bbbbbbbbbbbb", "data=DIV2K"]


def test_the_name_of_data_is_not_cut() -> None:
    study = in_memory([with_others({"data": PHOTOGRAPHS}), with_others({"data": PAINTINGS}, 29.0)])
    names = {PHOTOGRAPHS: DataNames("bundled photographs", ("Set5",)), PAINTINGS: DataNames("DIV2K", ("Set5",))}
    (row,) = judge(only_task(dataclasses.replace(study, data_names=names))).rows
    assert row.label == "data DIV2K in place of bundled photographs"


def test_data_with_other_test_pictures_stay_apart() -> None:
    elsewhere = dataclasses.replace(with_others({"data": PAINTINGS}), baseline_db=27.0)
    study = in_memory([with_others({"data": PHOTOGRAPHS}), elsewhere])
    assert [each.title for each in split_by_task(study)] == ["data=aaaaaaaaaaaa", "data=bbbbbbbbbbbb"]
    named = dataclasses.replace(study, data_names={PAINTINGS: DataNames("BSDS400", ("Set5",))})
    assert [each.title for each in split_by_task(named)] == ["data=aaaaaaaaaaaa", "data=BSDS400"]


def test_where_data_are_not_recorded_the_scores_of_the_baseline_tell_the_pictures_apart() -> None:
    same, other = with_others({"data": ""}), dataclasses.replace(with_others({"data": ""}), baseline_db=27.0)
    found = tasks_of([same, dataclasses.replace(same, seed=1), dataclasses.replace(other, seed=2)])
    assert [(each.title, len(each.trials)) for each in found] == [("", 2), ("part 2", 1)]


def test_a_single_run_beside_a_sweep_changes_nothing() -> None:
    planned = [trial(seed, 30.0 + 0.01 * seed, residual=residual) for seed in (0, 1) for residual in (True, False)]
    stray = [with_others({"channels": 64}, 33.0), with_others(SR_X4), trial(2, bn="post")]
    (with_stray,), (alone,) = tasks_of(planned, unplanned=stray), tasks_of(planned)
    assert (with_stray.title, with_stray.labels, with_stray.seeds) == (alone.title, alone.labels, alone.seeds)
    assert with_stray.reference == alone.reference
    assert judge(with_stray).rows == judge(alone).rows


def left_out(others: Mapping[str, Any]) -> dict[str, Any]:
    asked = with_others(others, bn="post", align=1)
    return {"levels": dict(asked.levels), "setting": asked.setting, "reason": "BatchNorm needs no alignment"}


@pytest.mark.parametrize(
    ("others", "home"),
    [
        pytest.param({"data": PHOTOGRAPHS}, 0, id="its task and data"),
        pytest.param({"data": PAINTINGS}, 1, id="its task and other data"),
        pytest.param({"data": "c" * 64}, 0, id="data without a trial: the first of its task"),
        pytest.param({**SR_X4, "data": PHOTOGRAPHS}, 2, id="another task"),
        pytest.param({"task": {"name": "jpeg"}}, 0, id="a task without a trial"),
    ],
)
def test_a_combination_that_was_left_out_belongs_to_its_task_and_data(others: Mapping[str, Any], home: int) -> None:
    found = tasks_of(
        [
            with_others({"data": PHOTOGRAPHS}),
            dataclasses.replace(with_others({"data": PAINTINGS}), baseline_db=27.0),
            with_others({**SR_X4, "data": PHOTOGRAPHS}),
        ],
        left_out=[left_out(others)],
    )
    assert [len(each.left_out) for each in found] == [int(number == home) for number in range(3)]


def without_results(study: StudyResults) -> StudyResults:
    scores = [name for name in map(str, study.trials) if name.startswith("metric/")]
    missing: dict[str, Any] = {"state": "missing", **dict.fromkeys(scores, math.nan)}
    return dataclasses.replace(study, trials=study.trials.assign(**missing))


def test_a_study_without_a_finished_trial_has_one_task_and_no_cells() -> None:
    (found,) = split_by_task(without_results(in_memory([trial(), trial(residual=False)])))
    assert (found.task, found.sets, list(found.levels)) == ("sr_x2", (), [])
    assert judge(found).rows == []


# ---- every swept key -------------------------------------------------------------------------------------------------


def swept(*settings: Mapping[str, Any]) -> list[Row]:
    """The rows of cells with these settings, each 0.1 dB below the one before it, with a little noise."""
    finished = [
        with_others(others, 30.0 - 0.1 * place + 0.002 * seed * (1 + place % 2), seed)
        for place, others in enumerate(settings)
        for seed in range(3)
    ]
    return judge(only_task(in_memory(finished))).rows


def rates(*values: float) -> list[dict[str, Any]]:
    return [{"train": {"steps": 20, "lr": value}} for value in values]


def units(*names: str) -> list[dict[str, Any]]:
    return [{"network": {"name": "plain", "unit": name}} for name in names]


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        pytest.param(
            units("binary", "my_parts.ScaledUnit"),
            ["network.unit ScaledUnit in place of binary"],
            id="a unit of the user's own",
        ),
        pytest.param(
            rates(0.001, 0.0005, 0.0001),
            ["train.lr 0.0005 in place of 0.001", "train.lr 0.0001 in place of 0.001"],
            id="the learning rate",
        ),
        pytest.param(
            [{"channels": 8, "blocks": 2}, {"channels": 8, "blocks": 4}, {"channels": 16, "blocks": 2}],
            ["4 blocks in place of 2", "16 channels in place of 8"],
            id="width and depth",
        ),
        pytest.param(
            [{"network": {"name": "plain"}}, {"network": {"name": "srresnet"}}],
            ["network.name srresnet in place of plain"],
            id="the network",
        ),
    ],
)
def test_a_swept_key_is_a_comparison_named_by_its_levels(settings: list[Mapping[str, Any]], labels: list[str]) -> None:
    found = swept(*settings)
    assert [row.label for row in found] == labels
    assert [row.by_set["Set5"].estimate.mean for row in found] == [
        pytest.approx(-0.1 * place, abs=0.003) for place in range(1, len(settings))
    ]
    assert all(row.by_set["Set5"].verdict for row in found)


def test_interventions_in_the_same_words_are_told_apart_by_what_a_user_types() -> None:
    assert [row.label for row in swept(*units("binary", "mine.Scaled", "yours.Scaled"))] == [
        "network.unit Scaled in place of binary (network.unit=mine.Scaled)",
        "network.unit Scaled in place of binary (network.unit=yours.Scaled)",
    ]


def test_width_and_depth_are_crossed_as_two_interventions() -> None:
    found = swept(*[{"channels": width, "blocks": depth} for width in (8, 16) for depth in (2, 4)])
    assert [(row.label, [each.label for each in row.contexts]) for row in found] == [
        ("4 blocks in place of 2", ["channels=16"]),
        ("16 channels in place of 8", ["blocks=4"]),
    ]


def test_cells_of_a_search_over_two_keys_are_no_chain() -> None:
    """Any two of them differ in at most two keys, as the steps of a chain do."""
    sizes = ((8, 2), (16, 4), (32, 2), (32, 8))
    finished = [with_others({"channels": width, "blocks": depth}) for width, depth in sizes]
    (results,) = tasks_of(finished, design={"name": "search"})
    assert [row.label for row in judge(results).rows] == ["32 channels in place of 8", "8 blocks in place of 2"]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_cell_is_called_by_the_levels_that_vary() -> None:
    finished = [trial(), trial(residual=False), with_others({"channels": 16})]
    (found,) = tasks_of(finished)
    assert [found.labels[each.cell] for each in finished] == [
        "residual=true channels=8",
        "residual=false channels=8",
        "residual=true channels=16",
    ]


def test_the_levels_are_those_that_the_user_gave() -> None:
    finished = [trial(), trial(align=1)]
    (found,) = tasks_of(finished)
    assert [found.labels[each.cell] for each in finished] == ["align=auto", "align=1"]


def test_data_are_called_by_the_start_of_their_fingerprint() -> None:
    finished = [with_others({"data": PHOTOGRAPHS}), with_others({"data": PAINTINGS})]
    (found,) = tasks_of(finished)
    assert [found.labels[each.cell] for each in finished] == ["data=aaaaaaaaaaaa", "data=bbbbbbbbbbbb"]


def test_a_baseline_is_called_by_its_method_and_does_not_vary_anything() -> None:
    baseline = dataclasses.replace(with_others({"network": {"name": "baseline"}}, 28.5), method="bicubic")
    finished = [baseline, trial(), trial(residual=False)]
    (found,) = tasks_of(finished)
    assert [found.labels[each.cell] for each in finished] == ["bicubic", "residual=true", "residual=false"]
    assert found.untrained == {baseline.cell}


def test_a_cell_on_its_own_is_called_by_its_key() -> None:
    (found,) = tasks_of([trial()])
    assert found.labels == {trial().cell: f"cell {trial().cell[:12]}"}


# ---- what a task knows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "nearest"),
    [pytest.param([3, 2, 1, 0], 0, id="at all base levels"), pytest.param([3, 2, 1], 2, id="the nearest without it")],
)
def test_the_reference_cell_is_the_one_at_most_base_levels(present: list[int], nearest: int) -> None:
    cells = [trial(residual=residual, bn=bn) for residual in (True, False) for bn in ("none", "post")]
    (found,) = tasks_of([cells[place] for place in present])
    assert found.reference == cells[nearest].cell


def test_test_sets_are_in_natural_order() -> None:
    one = Trial(REFERENCE, 0, {"Set14": 30.0, "Urban100": 27.0, "Set5": 33.0})
    (found,) = tasks_of([one])
    assert found.sets == ("Set5", "Set14", "Urban100")
    assert found.psnr("Set14") == {one.cell: {0: 30.0}}


def test_digits_are_compared_as_numbers() -> None:
    assert sorted(["Set14", "Set5", "CBSD68-sigma50", "CBSD68-sigma5"], key=natural) == [
        *("CBSD68-sigma5", "CBSD68-sigma50", "Set5", "Set14")
    ]


def test_seeds_are_those_that_were_planned_and_a_cell_has_those_that_finished() -> None:
    study = in_memory([trial(2), trial(0), trial(1)])
    state = ["finished", "finished", "failed"]
    (found,) = split_by_task(dataclasses.replace(study, trials=study.trials.assign(state=state)))
    assert (found.seeds, found.seeds_of(trial().cell)) == ((0, 1, 2), [0, 2])
