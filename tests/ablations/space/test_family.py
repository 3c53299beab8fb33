"""Which pairs of cells a study gives verdicts on, as its plan says it before anything is trained."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ablations.space.family import cells_of_plan, compared, family, is_chain
from ablations.space.interventions import Pair
from ablations.space.study_cells import StudyCells
from analysis.study.methods import names_of
from analysis.study.tasks import split_by_task
from bbcu.model.methods import METHODS
from tests.harness.studies import (
    Ours,
    Trial,
    components_study,
    full_trial,
    of_results,
    result_of,
    trial,
)

Documents = Sequence[Mapping[str, Any]]

FACTS = ("study", "cell", "name", "factors", "levels", "reference", "setting", "method", "task", "seed")
"""The keys of a result that are known before the trial runs, which are those of a row of the plan."""


def plan_rows(results: Documents) -> list[dict[str, Any]]:
    """The rows of the plan whose trials have these results, as they are read back."""
    rows: list[dict[str, Any]] = json.loads(json.dumps([{name: each[name] for name in FACTS} for each in results]))
    return rows


def planned(trials: Sequence[Trial], **design: Any) -> StudyCells:
    (found,) = cells_of_plan(plan_rows(list(map(result_of, trials))), design)
    return found


def in_words(cells: StudyCells, pairs: Sequence[Pair]) -> list[str]:
    """The levels that a user would type for the second cell of each pair, where they differ from the first's."""

    def moved(pair: Pair) -> str:
        before, after = (cells.levels[cell].asked for cell in pair)
        return " ".join(f"{key}={level}" for key, level in after.items() if before.get(key) != level)

    return list(map(moved, pairs))


# ---- the pairs -------------------------------------------------------------------------------------------------------


def test_a_cell_from_before_there_was_a_factor_or_a_key_is_compared_as_what_it_was_then() -> None:
    later = {"rescale": "none", "start": "scratch"}
    old = [trial(), trial(bn="post")]
    new = [
        dataclasses.replace(
            trial(**{**later, **levels}),
            reference={**trial().reference, **later},
            others={"network": {"name": "srresnet", "tail": "full", "groups": 10}},
        )
        for levels in ({"rescale": "both"}, {"start": "full"}, {"residual": False})
    ]
    cells = planned([*old, *new])
    assert in_words(cells, family(cells)) == ["residual=false", "bn=post", "rescale=both", "start=full"]
    (results,) = split_by_task(of_results(list(map(result_of, [*old, *new]))))
    assert results.study_cells.levels == cells.levels
    assert in_words(results.study_cells, family(results.study_cells)) == in_words(cells, family(cells))


def test_a_family_has_each_intervention_at_the_reference() -> None:
    cells = planned([trial(), trial(bn="post"), trial(residual="block"), trial(bn="post", residual="block")])
    assert in_words(cells, family(cells)) == ["residual=block", "bn=post"]


def test_a_family_has_the_pair_that_tests_a_claim_although_no_intervention_at_the_reference_is_about_it() -> None:
    """The claim on BatchNorm is about an unaligned network, whose alignment is not that of the reference."""
    cells = planned([trial(), trial(align=1), trial(bn="post")])
    assert in_words(cells, family(cells)) == ["bn=post", "align=1", "bn=post align=auto"]


def test_a_pair_is_in_a_family_once_although_a_claim_has_it_the_other_way_round() -> None:
    """The intervention is to leave the residual out, and the claim that it raises PSNR."""
    cells = planned([trial(), trial(residual=False)])
    assert in_words(cells, family(cells)) == ["residual=false"]


def test_without_a_second_cell_a_family_is_empty() -> None:
    assert family(planned([trial()])) == ()


def test_methods_are_each_compared_with_bbcu() -> None:
    (cells,) = cells_of_plan(plan_rows([Ours(name, 30.0).result() for name in ("bnn", "lite", "bbcu", "bicubic")]), {})
    bnn, lite, bbcu = cells.levels
    assert family(cells) == ((bbcu, bnn), (bbcu, lite))


MEDIUM = Ours("custom", 30.0, levels={"binarize": ["body", "up"]})


@pytest.mark.parametrize(
    ("trials", "published"),
    [
        pytest.param([Ours("bnn", 30.0), MEDIUM], ["bnn", "bbcu binarize=[body,up]"], id="BBCU-M"),
        pytest.param([Ours("full_precision", 30.0), Ours("bbcu", 30.0), MEDIUM], [], id="parts of BBCU"),
        pytest.param([Ours("bnn", 30.0), Ours("custom", 30.0, levels={"bn": "pre"})], [], id="a level of the user's"),
        pytest.param([Ours("bnn", 30.0), Ours("bnn", 30.0, steps=9)], [], id="one method under two budgets"),
    ],
)
def test_a_study_compares_methods_if_each_cell_is_another_published_one(
    trials: list[Ours], published: list[str]
) -> None:
    (cells,) = cells_of_plan(plan_rows([each.result() for each in trials]), {})
    assert list(cells.published.values()) == published


@pytest.mark.parametrize("task", ["sr_x2", "sr_x4", "denoise", "jpeg"])
def test_every_method_that_makes_a_study_one_of_methods_has_a_name_in_reports(task: str) -> None:
    assert names_of(task).keys() >= METHODS.keys()


# ---- chains ----------------------------------------------------------------------------------------------------------


CHAIN = [trial(residual="block", align=1), trial(residual="block", bn="post"), trial(residual="block"), trial()]


def test_a_chain_has_its_steps_and_the_last_cell_against_the_first() -> None:
    cells = planned(CHAIN)
    first, *_, last = cells.levels
    assert family(cells)[:4] == (*itertools.pairwise(cells.levels), (first, last))


@pytest.mark.parametrize(
    "trials",
    [
        pytest.param([trial(residual=r, align=a) for r in (True, False) for a in ("auto", 1)], id="a whole design"),
        pytest.param([trial(), trial(residual=False), trial(align=1), trial(align=10)], id="single changes"),
        pytest.param([trial(), trial(bn="post"), trial(align=1)], id="single changes, of which one brings another"),
    ],
)
def test_what_is_not_a_chain_has_no_steps(trials: list[Trial]) -> None:
    assert not is_chain(planned(trials))


@pytest.mark.parametrize(("name", "steps"), [("chain", True), ("random", False)])
def test_the_design_decides_what_is_a_chain(name: str, steps: bool) -> None:
    assert is_chain(planned(CHAIN, name=name)) == steps


STEPS = ["residual=block align=1", "bn=post align=auto", ["bn=none"], "residual=true"]


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        pytest.param(CHAIN, True, id="the steps that were planned"),
        pytest.param([each for each in CHAIN if each.levels["bn"] == "none"], True, id="one of them has no result"),
        pytest.param([*CHAIN[3:], *CHAIN[:3]], False, id="the last one was trained first"),
        pytest.param([trial(residual=False), *CHAIN], False, id="another cell before them"),
    ],
)
def test_cells_that_are_not_the_planned_steps_in_their_order_are_no_chain(trials: list[Trial], expected: bool) -> None:
    """A study may hold cells of an earlier sweep, which a later one plans as steps or not."""
    assert is_chain(planned(trials, name="chain", options={"steps": STEPS})) == expected


def test_a_step_may_keep_a_level_that_has_no_effect_there() -> None:
    """The cell of `bn=post` is recorded with `align=auto`, whatever the step before has set."""
    steps = ["residual=block align=1", "bn=post", "bn=none align=auto", "residual=true"]
    assert is_chain(planned(CHAIN, name="chain", options={"steps": steps}))


# ---- from the plan, and from the results -----------------------------------------------------------------------------


LEAVE_ONE_OUT = [full_trial(0), *(full_trial(0, **{name: level}) for name, level in
                                  (("residual", False), ("bn", "post"), ("align", 1), ("act", "after")))]  # fmt: skip
DENOISING = {"task": {"name": "denoise", "sigma": [15, 25]}}
TWO_TASKS = [dataclasses.replace(each, others=others) for others in ({}, DENOISING) for each in LEAVE_ONE_OUT]
METHODS_STUDY = [
    Ours(method, 30.0, seed)
    for seed in (0, 1)
    for method in ("bicubic", "full_precision", "lite", "bnn", "btm", "bam", "bbcu")
]


def at(lr: float = 0.001, unit: str = "binary", *, standardise: bool = False) -> Trial:
    network = {"name": "plain", "unit": unit, "standardise": standardise}
    return dataclasses.replace(trial(), others={"network": network, "train": {"steps": 20, "lr": lr}})


OTHER_SETTINGS = [at(), at(lr=1e-5), at(lr=0.01), at(unit="my.Unit"), at(standardise=True)]


@pytest.mark.parametrize(
    ("name", "results"),
    [
        pytest.param("full", [result_of(each) for each in components_study([0, 1])[0]], id="full"),
        pytest.param("one_at_a_time", [result_of(each) for each in OTHER_SETTINGS], id="one at a time, of settings"),
        pytest.param("leave_one_out", [result_of(each) for each in LEAVE_ONE_OUT], id="leave one out"),
        pytest.param("chain", [result_of(each) for each in CHAIN], id="chain"),
        pytest.param("full", [each.result() for each in METHODS_STUDY], id="methods"),
        pytest.param("leave_one_out", [result_of(each) for each in TWO_TASKS], id="two tasks"),
    ],
)
def test_the_cells_of_a_plan_are_those_of_the_report_of_its_results(name: str, results: Documents) -> None:
    design = {"name": name, "options": {}, "exclude": [], "notes": []}
    before = cells_of_plan(plan_rows(results), design)
    after = [each.study_cells for each in split_by_task(of_results(results, design=design))]
    assert list(map(family, before)) == list(map(family, after))
    assert sum(map(len, map(family, before))) >= 3
    for one, other in zip(before, after, strict=True):
        assert [(cell, *map(in_order, vars_of(one, cell))) for cell in one.levels] == [
            (cell, *map(in_order, vars_of(other, cell))) for cell in other.levels
        ]
        assert (one.methods, one.reference, one.design) == (other.methods, other.reference, other.design)
        assert one.published.keys() == other.published.keys()
        assert [each.pairs for each in compared(one)] == [each.pairs for each in compared(other)]


def vars_of(cells: StudyCells, cell: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    return cells.levels[cell].recorded, cells.levels[cell].asked


def in_order(levels: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(levels.items())


def trained_on(data: str, **levels: Any) -> Trial:
    return dataclasses.replace(trial(**levels), others={"data": data * 64})


def test_cells_of_other_training_pictures_are_compared_if_they_are_tested_on_the_same() -> None:
    rows = plan_rows([result_of(trained_on(data)) for data in "abc"])
    apart, same = cells_of_plan(rows, {}), cells_of_plan(rows, {}, {data * 64: "photographs" for data in "ab"})
    assert [len(cells.levels) for cells in apart] == [1, 1, 1]
    assert [len(cells.levels) for cells in same] == [2, 1]
    assert in_words(same[0], family(same[0])) == [f"data={'b' * 64}"]


def test_what_trains_nothing_is_in_no_family() -> None:
    untrained = dataclasses.replace(trial(), method="bicubic", others={"network": {"name": "baseline"}})
    cells = planned([untrained, trial(), trial(bn="post")])
    assert len(cells.levels) == 2
    assert untrained.cell not in itertools.chain.from_iterable(family(cells))
    assert cells_of_plan(plan_rows([result_of(untrained)]), {}) == []


def test_a_cell_under_several_seeds_is_one() -> None:
    cells = planned([trial(seed) for seed in range(3)])
    assert list(cells.levels) == [trial().cell]
