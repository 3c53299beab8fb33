"""What binarising each part of the network costs and saves, where every subset of some parts was trained."""

import dataclasses
from collections.abc import Sequence

import pytest

from analysis.effects.comparisons import interactions
from tests.harness.judging import Judged, judge, only_task
from tests.harness.studies import REFERENCE, Trial, in_memory

PARTED = {**REFERENCE, "binarize": ["body"]}

COST_DB = {"body": 1.0, "up": 0.25}
TOGETHER_DB = 0.5
"""What binarising each part costs here, and what both cost beside that."""

SAVED_G = {"body": 4.0, "up": 2.0}


def parted(parts: Sequence[str], seed: int) -> Trial:
    psnr = (
        31.0 + 0.01 * seed * (1 + len(parts)) - sum(COST_DB[part] for part in parts) - TOGETHER_DB * (len(parts) == 2)
    )
    made = Trial({**PARTED, "binarize": list(parts)}, seed, {"Set5": psnr}, reference=PARTED)
    return dataclasses.replace(made, ops_g=10.0 - sum(SAVED_G[part] for part in parts), params_k=40.0 - len(parts))


def judged(*subsets: Sequence[str]) -> Judged:
    return judge(only_task(in_memory([parted(parts, seed) for seed in range(3) for parts in subsets])))


@pytest.fixture(scope="module")
def found() -> Judged:
    return judged(("body",), (), ("up",), ("body", "up"))


BODY, UP = "A binary body", "Binary upsampling"


def test_a_part_is_one_intervention_whichever_others_are_binary(found: Judged) -> None:
    assert {row.label: row.by_set["Set5"].estimate.mean for row in found.rows} == pytest.approx(
        {BODY: -1.0 + 0.01, UP: -0.25 - TOGETHER_DB + 0.01}
    )
    assert {row.label: len(row.contexts) for row in found.rows} == {BODY: 1, UP: 1}


def test_its_average_is_over_the_choices_for_the_others(found: Judged) -> None:
    assert {row.label: row.average["Set5"].mean for row in found.rows} == pytest.approx(
        {BODY: -1.0 - TOGETHER_DB / 2 + 0.01, UP: -0.25 - TOGETHER_DB / 2 + 0.01}
    )


def test_what_two_parts_cost_together_is_their_interaction(found: Judged) -> None:
    (both,) = interactions(found.results, found.rows)
    assert both.by_set["Set5"].mean == pytest.approx(-TOGETHER_DB)
    assert both.contexts == 1


def test_a_part_saves_what_the_cell_with_it_costs_less(found: Judged) -> None:
    assert {row.label: (row.ops_g, row.params_k) for row in found.rows} == {BODY: (-4.0, -1.0), UP: (-2.0, -1.0)}


def test_without_a_subset_its_pairs_are_missing_and_nothing_else() -> None:
    found = judged(("body",), (), ("up",))
    assert {row.label: len(row.contexts) for row in found.rows} == {BODY: 0, UP: 0}
    assert [row.label for row in found.rows if row.pair in found.tested] == [BODY]
