"""Teachers in the plan: each is trained once per seed, before what it teaches, and compared with nothing."""

import dataclasses
from collections.abc import Sequence

import pytest

from ablations.planning.plan import Plan, PlannedTrial, plan_record
from ablations.space.family import cells_of_plan
from ablations.storage.plans import read_plan, write_plan
from ablations.sweep.expected import families_of
from ablations.trial.identity import setting_of
from ablations.trial.teachers import config_of_teacher, setting_of_teacher
from tests.harness.support import Workplace

TAUGHT = "distil=none,output,attention"


def names(plan: Plan) -> list[tuple[str, int, bool]]:
    return [(entry.trial.name, entry.trial.seed, entry.only_teaches) for entry in plan.trials]


def of_name(plan: Plan, name: str) -> PlannedTrial:
    return next(entry for entry in plan.trials if entry.trial.name == name)


def test_a_teacher_is_planned_once_for_each_seed_before_what_it_teaches(dry_workplace: Workplace) -> None:
    assert names(dry_workplace.plan(TAUGHT, replicates=2)) == [
        (name, seed, name == "full_precision")
        for seed in (0, 1)
        for name in ("reference", "full_precision", "distil=output", "distil=attention")
    ]


def test_a_teacher_that_the_design_lists_is_one_trial_of_the_design(dry_workplace: Workplace) -> None:
    plan = dry_workplace.plan(TAUGHT, "binarize=[body],[]", replicates=2)
    assert sorted(names(plan)) == sorted(
        (name, seed, False)
        for seed in (0, 1)
        for name in ("reference", "binarize=[]", "distil=output", "distil=attention")
    )
    order = [entry.identity for entry in plan.trials]
    taught = [entry for entry in plan.trials if entry.teacher is not None]
    assert len(taught) == 4
    assert all(order.index(entry.teacher) < order.index(entry.identity) for entry in taught if entry.teacher)


@pytest.mark.parametrize(
    "arguments",
    [
        ["distil=output"],
        ["method=btm", "distil=attention", "align=auto"],
        ["distil=output", "train.distil_weight=0.3", "start=two_step", "binarize=[body,up]", "seed=4"],
        ["method=lite", "binarize=[body]", "distil=output"],
        ["task=denoise", "network=dncnn", "distil=output", "channels=8"],
    ],
    ids=" ".join,
)
def test_the_overrides_of_a_teacher_compose_to_the_trial_that_its_students_name(
    dry_workplace: Workplace, arguments: Sequence[str]
) -> None:
    plan = dry_workplace.plan(*arguments)
    teacher, student = plan.trials
    given = [text for text in teacher.overrides if not text.startswith("hydra.")]
    composed = dry_workplace.config(*given)
    assert dry_workplace.trial(*given) == teacher.trial
    assert composed == dataclasses.replace(config_of_teacher(student.config), shown_uri=composed.shown_uri)
    setting = student.trial.cell.setting
    assert setting_of(composed, setting["data"]) == setting_of_teacher(setting)
    assert student.teacher == teacher.identity
    assert teacher.trial.cell.factors["binarize"] == ()


def test_a_teacher_belongs_to_the_setting_and_seed_of_what_it_teaches(dry_workplace: Workplace) -> None:
    plan = dry_workplace.plan("distil=output", "train.steps=2,3", "seed=0,7", "start=scratch,full")
    every = {entry.identity: entry for entry in plan.trials}
    assert len(every) - len(plan.listed) == 4
    for entry in plan.listed:
        assert entry.teacher is not None
        teacher = every[entry.teacher]
        assert teacher.trial.seed == entry.trial.seed
        assert teacher.config.train.steps == entry.config.train.steps


def test_a_teacher_adds_no_comparison(dry_workplace: Workplace) -> None:
    plan = dry_workplace.plan("distil=none,output", "bn=none,pre", replicates=2)
    (family,) = families_of(plan)
    teacher = of_name(plan, "full_precision").identity[0]
    (cells,) = cells_of_plan(plan_record(plan)["trials"], plan.design)
    assert teacher not in {cell for pair in family for cell in pair} | cells.levels.keys()
    assert len(cells.levels) == 4
    listed = dry_workplace.plan("distil=none,output", "binarize=[body],[]", replicates=2)
    assert teacher in cells_of_plan(plan_record(listed)["trials"], listed.design)[0].levels


def test_what_was_listed_once_stays_listed(workplace: Workplace) -> None:
    listed, taught = workplace.plan("binarize=[]"), workplace.plan("distil=output")
    for first, second in ((listed, taught), (taught, listed)):
        for plan in (first, second):
            write_plan(workplace.outputs, f"of{first.trials[0].trial.name}", plan_record(plan))
        rows = read_plan(workplace.outputs, f"of{first.trials[0].trial.name}")["trials"]
        assert [row for row in rows if row.get("only_teaches")] == []
    only = workplace.plan("distil=output")
    write_plan(workplace.outputs, "only", plan_record(only))
    marks = {row["name"]: row.get("only_teaches", False) for row in read_plan(workplace.outputs, "only")["trials"]}
    assert marks == {"full_precision": True, "distil=output": False}


def test_a_weight_that_changes_nothing_makes_no_cell(dry_workplace: Workplace) -> None:
    """The weight of the reference has no use, and that of ``auto`` is 1 for the output."""
    plan = dry_workplace.plan("distil=none,output", "train.distil_weight=auto,1,0.5")
    weights = {entry.trial.name: [] for entry in plan.listed}  # type: dict[str, list[object]]
    for entry in plan.listed:
        weights[entry.trial.name].append(entry.trial.cell.setting["train"]["distil_weight"])
    assert weights == {"reference": ["auto"], "distil=output": ["auto", 0.5]}
    assert len([entry for entry in plan.trials if entry.only_teaches]) == 1
    reasons = [entry.reason for entry in plan.left_out]
    assert len(reasons) == 3
    assert all("train.distil_weight changes nothing here" in reason for reason in reasons)
    assert dry_workplace.trial("train.distil_weight=3").cell.key == dry_workplace.trial().cell.key
