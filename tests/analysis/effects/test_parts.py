"""What binarising each part of the network costs and saves, where every subset of some parts was trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from analysis.effects.contrasts import contrasts
from analysis.effects.factors import BINARY, FULL, design_factors, factorial_analyses, part_costs, separate_parts
from analysis.report.page import compose
from analysis.study.loading import StudyResults
from analysis.study.settings import SettingResults, split_by_setting
from tests.harness.studies import REFERENCE, Trial, read_back

PARTED = {**REFERENCE, "binarize": ["body"]}

COST_DB = {"body": 1.0, "up": 0.25}
TOGETHER_DB = 0.5
"""What binarising each part costs here, and what both cost beside that."""

SAVED_G = {"body": 4.0, "up": 2.0}


def psnr(parts: Sequence[str], seed: int) -> float:
    both = TOGETHER_DB * (len(parts) == 2)
    return 30.0 + 0.3 * seed - sum(COST_DB[part] for part in parts) * (1 + 0.01 * seed) - both


def parted(parts: Sequence[str], seed: int) -> Trial:
    made = Trial({**PARTED, "binarize": list(parts)}, seed, {"Set5": psnr(parts, seed)}, reference=PARTED)
    return dataclasses.replace(made, ops_g=10.0 - sum(SAVED_G[part] for part in parts), params_k=40.0 - len(parts))


SUBSETS: tuple[tuple[str, ...], ...] = (("body",), (), ("up",), ("body", "up"))


def read(folder: Path, subsets: Sequence[Sequence[str]]) -> StudyResults:
    return read_back(folder, [parted(parts, seed) for seed in range(3) for parts in subsets])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return read(tmp_path_factory.mktemp("parts"), SUBSETS)


@pytest.fixture(scope="module")
def found(study: StudyResults) -> SettingResults:
    (found,) = split_by_setting(study)
    return found


def effects_of(found: SettingResults) -> Mapping[str, float]:
    return {str(effect.term): effect.estimate.mean for effect, _ in factorial_analyses(found)["Set5"].judged}


def test_the_parts_are_the_factors_where_all_their_subsets_are_there(found: SettingResults) -> None:
    assert design_factors(found) == {"body": (FULL, BINARY), "up": (FULL, BINARY)}


def test_the_effect_of_a_part_is_what_binarising_it_costs_over_the_choices_of_the_other(found: SettingResults) -> None:
    assert effects_of(found) == pytest.approx(
        {
            "body=binary": -1.01 - TOGETHER_DB / 2,
            "up=binary": -0.2525 - TOGETHER_DB / 2,
            "body=binary x up=binary": -TOGETHER_DB,
        }
    )


def test_the_shares_add_up_to_what_making_all_parts_binary_costs(found: SettingResults) -> None:
    shares = factorial_analyses(found)["Set5"].shares
    assert shares is not None
    assert {share.factor: share.gain.mean for share in shares.shares} == pytest.approx({"body": 1.26, "up": 0.5025})
    assert shares.total.mean == pytest.approx(1.26 + 0.5025)


def test_a_part_saves_what_the_cells_with_it_cost_less(found: SettingResults) -> None:
    assert part_costs(found, design_factors(found)) == {"body": (-4.0, -1.0), "up": (-2.0, -1.0)}


def test_without_one_of_the_subsets_no_part_has_an_effect(tmp_path: Path) -> None:
    (found,) = split_by_setting(read(tmp_path, SUBSETS[:3]))
    assert design_factors(found) == {"binarize": ("[body]", "[]", "[up]")}
    assert factorial_analyses(found) == {}
    assert part_costs(found, design_factors(found)) == {}


@pytest.mark.parametrize(
    ("levels", "parts"),
    [
        pytest.param(["[]", "[body]"], (), id="one part is a factor as it is"),
        pytest.param(["[]", "[body]", "[up]", "[body,up]"], ("body", "up"), id="all subsets of two"),
        pytest.param(
            ["[tail]", "[body,tail]", "[up,tail]", "[body, up, tail]"], ("body", "up"), id="one is binary in all"
        ),
        pytest.param(["[]", "[body]", "[body,up]"], (), id="a subset is absent"),
    ],
)
def test_parts_are_told_from_the_levels(levels: list[str], parts: tuple[str, ...]) -> None:
    assert separate_parts(levels) == parts


def test_the_page_says_what_each_part_costs_and_saves(study: StudyResults) -> None:
    page = compose(study)["report.md"].decode()
    short = page.partition("## Summary")[2].partition("\n## ")[0]
    assert "**Binarising the upsampling**, averaged over the choices for the other parts: -0.502 [" in short
    assert "-2.00 G operations, -1.0 K parameters." in short
    (row,) = [line for line in page.splitlines() if line.startswith("| body | ")]
    assert " 71 % [" in row
    assert "| -4.000 | 67 % | -1.0 | 50 % |" in row


def test_single_changes_from_the_reference_stay_beside_the_parts(found: SettingResults) -> None:
    assert [(each.base, each.level) for each in contrasts(found)] == [
        ("[body]", "[]"),
        ("[body]", "[up]"),
        ("[body]", "[body,up]"),
    ]
