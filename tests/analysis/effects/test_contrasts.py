"""Which cells are compared with which, and what comes of it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from analysis.effects.contrasts import STEP, cell_summaries, contrasts, from_the_reference, reference_cell, steps
from analysis.statistics.estimates import verdicts
from analysis.study.settings import SettingResults, split_by_setting
from tests.harness.studies import REFERENCE, Trial, read_back, trial

ResultsOf = Callable[..., SettingResults]


@pytest.fixture
def results_of(tmp_path: Path) -> ResultsOf:
    """Write finished trials of one setting and read them back."""

    def build(finished: Sequence[Trial], **others: Any) -> SettingResults:
        (results,) = split_by_setting(read_back(tmp_path, finished, **others))
        return results

    return build


def four_cells(seed: int, *psnr_db: float) -> list[Trial]:
    """Residual against BN: (true, none), (true, post), (false, none), (false, post)."""
    levels = [(True, "none"), (True, "post"), (False, "none"), (False, "post")]
    return [trial(seed, psnr, residual=r, bn=b) for (r, b), psnr in zip(levels, psnr_db, strict=True)]


def test_pairs_are_averaged_within_a_seed_and_then_estimated_over_seeds(results_of: ResultsOf) -> None:
    results = results_of([*four_cells(0, 30.0, 31.0, 29.0, 29.5), *four_cells(1, 30.2, 31.2, 28.8, 29.2)])
    residual = contrasts(results)[0]
    with_residual, without = [(30.0 + 31.0) / 2, (30.2 + 31.2) / 2], [(29.0 + 29.5) / 2, (28.8 + 29.2) / 2]
    interval = stats.ttest_rel(without, with_residual).confidence_interval(0.95)
    assert (residual.factor, residual.base, residual.level) == ("residual", "true", "false")
    assert (len(residual.pairs.cells), residual.seeds, residual.dropped) == (2, (0, 1), ())
    estimate = residual.psnr["Set5"]
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == pytest.approx(
        ((-1.25 - 1.7) / 2, interval.low, interval.high, 2)
    )


def test_a_seed_that_lacks_a_cell_of_a_pair_is_dropped_and_counted(results_of: ResultsOf) -> None:
    incomplete = four_cells(1, 40.0, 40.0, 20.0, 20.0)
    results = results_of([*four_cells(0, 30.0, 31.0, 29.0, 29.5), *incomplete[:3]], planned=incomplete[3:])
    residual = contrasts(results)[0]
    assert (residual.seeds, residual.dropped) == ((0,), (1,))
    assert residual.psnr["Set5"].mean == pytest.approx(-1.25)


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        pytest.param([False, "block", True], [("true", "false"), ("true", "block")], id="the reference, listed last"),
        pytest.param(["block", False], [("block", "false")], id="the first level without the reference"),
    ],
)
def test_the_base_is_the_reference_or_else_the_first_level(
    results_of: ResultsOf, listed: list[object], found: list[tuple[str, str]]
) -> None:
    results = results_of([trial(residual=level) for level in listed])
    assert [(each.base, each.level) for each in contrasts(results)] == found


def test_an_alignment_that_follows_bn_does_not_keep_cells_apart(results_of: ResultsOf) -> None:
    results = results_of(four_cells(0, 30.0, 31.0, 29.0, 29.5))
    bn = contrasts(results)[1]
    assert (bn.factor, bn.pairs.moved_along, len(bn.pairs.cells)) == ("bn", ("align",), 2)
    assert bn.psnr["Set5"].mean == pytest.approx((1.0 + 0.5) / 2)


def test_cells_with_equal_recorded_levels_are_preferred(results_of: ResultsOf) -> None:
    aligned, unaligned, normalised = trial(0, 30.0), trial(0, 29.0, align=1), trial(0, 30.5, bn="post")
    results = results_of([aligned, unaligned, normalised])
    bn, align = contrasts(results)
    assert (bn.pairs.cells, bn.pairs.moved_along) == (((unaligned.cell, normalised.cell),), ())
    assert (align.base, align.level, align.pairs.cells) == ("auto", "1", ((aligned.cell, unaligned.cell),))


def test_cells_that_differ_in_two_factors_are_not_compared(results_of: ResultsOf) -> None:
    assert contrasts(results_of([trial(), trial(residual=False, bn="post")])) == []


def test_the_change_in_cost_is_that_of_the_pairs(results_of: ResultsOf) -> None:
    cheap, dear = trial(), dataclasses.replace(trial(residual=False), ops_g=2.5, params_k=39.0)
    (residual,) = contrasts(results_of([cheap, dear]))
    assert (residual.ops_g, residual.params_k) == (2.5 - 2.0, 39.0 - 40.0)


def test_test_sets_are_kept_apart(results_of: ResultsOf) -> None:
    def on_two_sets(five: float, fourteen: float, residual: bool) -> Trial:
        return Trial({**REFERENCE, "residual": residual}, 0, {"Set14": fourteen, "Set5": five})

    results = results_of([on_two_sets(33.0, 30.0, True), on_two_sets(32.5, 29.75, False)])
    assert results.sets == ("Set5", "Set14")
    assert {name: found.mean for name, found in contrasts(results)[0].psnr.items()} == {"Set5": -0.5, "Set14": -0.25}


@pytest.mark.parametrize(
    ("present", "nearest"),
    [pytest.param([3, 2, 1, 0], 0, id="at all base levels"), pytest.param([3, 2, 1], 2, id="the nearest without it")],
)
def test_the_reference_cell_is_the_one_at_most_base_levels(
    results_of: ResultsOf, present: list[int], nearest: int
) -> None:
    cells = four_cells(0, 30.0, 31.0, 29.0, 29.5)
    assert reference_cell(results_of([cells[place] for place in present])) == cells[nearest].cell


def test_cells_are_sorted_by_psnr_and_compared_with_the_reference_cell_on_shared_seeds(results_of: ResultsOf) -> None:
    better = [trial(seed, 31.0 + seed, residual=False) for seed in (0, 1, 2)]
    results = results_of([trial(0, 30.0), trial(1, 30.5), *better])
    first, second = cell_summaries(results)
    assert (first.label, second.label, second.is_reference) == ("residual=false", "residual=true", True)
    assert (first.psnr["Set5"].mean, first.over_baseline["Set5"]) == (32.0, 32.0 - 28.5)
    assert (first.to_reference["Set5"].mean, first.to_reference["Set5"].n) == (((31.0 - 30.0) + (32.0 - 30.5)) / 2, 2)
    assert first.train_s == 12.5 + (0 + 1 + 2) / 3


def test_verdicts_are_those_of_the_whole_family_on_a_test_set(results_of: ResultsOf) -> None:
    results = results_of([each for seed in range(3) for each in four_cells(seed, 30.0, 30.5 + 0.01 * seed, 29.0, 29.4)])
    found = contrasts(results)
    expected = verdicts([each.by_seed["Set5"] for each in found])
    assert [each.verdicts["Set5"] for each in found] == expected
    assert {each.verdicts["Set5"].comparisons for each in found} == {
        sum(not math.isnan(v.p_difference) for v in expected)
    }


def test_a_second_reading_averages_pictures_over_pairs_and_seeds(results_of: ResultsOf) -> None:
    def with_pictures(seed: int, residual: bool, bn: str, baby: float, bird: float) -> Trial:
        one = trial(seed, (baby + bird) / 2, residual=residual, bn=bn)
        return dataclasses.replace(one, images={"Set5": {"baby": baby, "bird": bird}})

    results = results_of(
        [
            with_pictures(0, True, "none", 30.0, 32.0),
            with_pictures(0, False, "none", 29.0, 31.5),
            with_pictures(0, True, "post", 30.0, 32.0),
            with_pictures(0, False, "post", 29.4, 31.7),
        ]
    )
    reading = contrasts(results)[0].images["Set5"]
    interval = stats.ttest_1samp([(-1.0 - 0.6) / 2, (-0.5 - 0.3) / 2], 0).confidence_interval(0.95)
    assert (reading.estimate.low, reading.estimate.high) == pytest.approx((interval.low, interval.high))
    assert reading.scope.startswith("over 2 pictures, for the networks trained under seed 0")


def units(**measured: Any) -> dict[str, Any]:
    return {"pictures": 1, "units": {"body.0": measured, "body.1": measured}}


@pytest.mark.parametrize(
    ("psnr", "probes", "reason"),
    [
        pytest.param(28.5009, {}, "its PSNR is the baseline's within 0.001 dB on every test set", id="baseline"),
        pytest.param(28.51, {}, "", id="near the baseline"),
        pytest.param(30.0, units(entropy=0.0, branch_ratio=0.5), "are all equal", id="no bit differs"),
        pytest.param(30.0, units(entropy=0.9, branch_ratio=0.0), "adds anything to its residual", id="no branch"),
        pytest.param(30.0, units(entropy=0.9, branch_ratio=0.5), "", id="alive"),
        pytest.param(30.0, units(), "", id="nothing measured"),
    ],
)
def test_a_body_that_contributes_nothing_has_collapsed(
    results_of: ResultsOf, psnr: float, probes: dict[str, Any], reason: str
) -> None:
    one = dataclasses.replace(trial(0, psnr), probes=probes)
    found = results_of([one]).collapsed
    assert list(found) == ([(one.cell, 0)] if reason else [])
    assert reason in "".join(found.values())


def test_contrasts_name_the_collapsed_cells_that_they_rest_on(results_of: ResultsOf) -> None:
    dead = trial(0, 28.5, residual=False)
    (residual,) = contrasts(results_of([trial(0, 30.0), dead]))
    assert residual.collapsed == (dead.cell,)


def chain_of(psnr: Sequence[float], seed: int = 0) -> list[Trial]:
    """Four units in a row: bare, with BN, aligned instead, and with another residual; the last is the reference."""
    levels: list[dict[str, Any]] = [
        {"residual": "block", "align": 1},
        {"residual": "block", "bn": "post"},
        {"residual": "block"},
        {},
    ]
    return [trial(seed, value + 0.1 * seed, **moved) for value, moved in zip(psnr, levels, strict=True)]


def test_each_step_of_a_chain_is_compared_with_the_one_before_it(results_of: ResultsOf) -> None:
    results = results_of([*chain_of([28.0, 28.5, 29.5, 29.6]), *chain_of([28.0, 28.6, 29.4, 29.7], seed=1)])
    found = steps(results)
    assert [each.change for each in found] == [
        "step 1 → step 2 (bn=post)",
        "step 2 → step 3 (bn=none align=auto)",
        "step 3 → step 4 (residual=true)",
        "step 1 → step 4",
    ]
    assert [each.psnr["Set5"].mean for each in found] == pytest.approx([0.55, 0.9, 0.2, 1.65])
    assert all(each.factor == STEP and each.seeds == (0, 1) for each in found)
    assert {each.verdicts["Set5"].comparisons for each in found} == {4}


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([trial(residual=r, align=a) for r in (True, False) for a in ("auto", 1)], id="a whole design"),
        pytest.param([trial(), trial(residual=False), trial(align=1), trial(align=10)], id="single changes"),
    ],
)
def test_what_is_not_a_chain_has_no_steps(results_of: ResultsOf, cells: list[Trial]) -> None:
    assert steps(results_of(cells)) == []


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param(chain_of([28.0, 28.5, 29.5, 29.6]), id="a chain"),
        pytest.param([trial(), trial(residual=False), trial(align=1)], id="single changes"),
    ],
)
def test_without_several_pairs_a_change_has_no_contrast_from_the_reference(
    results_of: ResultsOf, cells: list[Trial]
) -> None:
    assert from_the_reference(results_of(cells)) == []


def test_what_a_level_does_alone_is_its_pair_with_the_reference(results_of: ResultsOf) -> None:
    results = results_of([*four_cells(0, 30.0, 31.0, 29.0, 29.5), *four_cells(1, 30.2, 31.2, 28.8, 29.2)])
    alone, averaged = from_the_reference(results), contrasts(results)
    assert [(each.factor, each.level, len(each.pairs.cells)) for each in alone] == [
        ("residual", "false", 1),
        ("bn", "post", 1),
    ]
    assert alone[0].psnr["Set5"].mean == pytest.approx((-1.0 - 1.4) / 2)
    assert averaged[0].psnr["Set5"].mean == pytest.approx((-1.25 - 1.7) / 2)
    assert all(pair[0] == reference_cell(results) for each in alone for pair in each.pairs.cells)


def test_an_alignment_that_follows_bn_moves_along_with_it_alone(results_of: ResultsOf) -> None:
    """BN is compared at equal recorded alignment on average, and from the reference with the alignment that goes."""
    cells = [
        trial(0, 30.0 + shift, align=align, bn=bn)
        for bn in ("none", "post")
        for align, shift in (("auto", 0.0), (1, -0.5))
    ]
    results = results_of([each for each in cells if each.levels != {**REFERENCE, "bn": "post", "align": 1}])
    bn = next(each for each in from_the_reference(results) if each.factor == "bn")
    assert (bn.pairs.moved_along, bn.pairs.cells[0][0]) == (("align",), reference_cell(results))
