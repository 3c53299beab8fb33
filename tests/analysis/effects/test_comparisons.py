"""Which cells are compared with which, and what comes of it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from ablations.space.family import compared, is_chain
from analysis.effects.comparisons import interactions, most_different
from analysis.effects.family import Conclusion, Family, difference, mirrored
from analysis.statistics.estimates import Outcome, verdicts
from tests.harness.judging import Judged, judge, only_task, summaries
from tests.harness.studies import REFERENCE, Trial, in_memory, read_back, trial


def judged(finished: Sequence[Trial], **others: Any) -> Judged:
    return judge(only_task(in_memory(finished, **others)))


def four_cells(seed: int, *psnr_db: float) -> list[Trial]:
    """Residual against BN: (true, none), (true, post), (false, none), (false, post)."""
    levels = [(True, "none"), (True, "post"), (False, "none"), (False, "post")]
    return [trial(seed, psnr, residual=r, bn=b) for (r, b), psnr in zip(levels, psnr_db, strict=True)]


FOUR = [*four_cells(0, 30.0, 31.0, 29.0, 29.5), *four_cells(1, 30.2, 31.2, 28.8, 29.2)]

NO_RESIDUAL = "Without the residual"
IN_PLACE = "BatchNorm after the convolution in place of alignment 130"


# ---- the difference of two cells -------------------------------------------------------------------------------------


def test_each_cell_has_a_variance_of_its_own() -> None:
    found = judged(FOUR).row(NO_RESIDUAL).by_set["Set5"].estimate
    interval = stats.ttest_ind([29.0, 28.8], [30.0, 30.2], equal_var=False).confidence_interval(0.95)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((-1.2, interval.low, interval.high, 2))


def test_a_study_that_was_planned_so_is_compared_within_its_seeds() -> None:
    found = judged(FOUR, pairing=True).row(NO_RESIDUAL).by_set["Set5"].estimate
    interval = stats.ttest_rel([29.0, 28.8], [30.0, 30.2]).confidence_interval(0.95)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((-1.2, interval.low, interval.high, 2))


@pytest.mark.parametrize(("pairing", "mean", "n"), [(False, (29.0 + 20.0) / 2 - 30.0, 1), (True, -1.0, 1)])
def test_a_seed_that_a_cell_lacks_is_left_out_only_if_seeds_are_paired(pairing: bool, mean: float, n: int) -> None:
    finished = [trial(0, 30.0), trial(0, 29.0, residual=False), trial(1, 20.0, residual=False)]
    (row,) = judged(finished, pairing=pairing).rows
    assert (row.by_set["Set5"].estimate.mean, row.by_set["Set5"].estimate.n) == (mean, n)


def test_test_sets_are_kept_apart() -> None:
    def on_two_sets(five: float, fourteen: float, residual: bool) -> Trial:
        return Trial({**REFERENCE, "residual": residual}, 0, {"Set14": fourteen, "Set5": five})

    (row,) = judged([on_two_sets(33.0, 30.0, True), on_two_sets(32.5, 29.75, False)]).rows
    assert {name: found.estimate.mean for name, found in row.by_set.items()} == {"Set5": -0.5, "Set14": -0.25}


def test_the_change_in_cost_is_that_of_the_pair() -> None:
    (row,) = judged([trial(), dataclasses.replace(trial(residual=False), ops_g=2.5, params_k=39.0)]).rows
    assert (row.ops_g, row.params_k) == (2.5 - 2.0, 39.0 - 40.0)


# ---- which pairs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "labels"),
    [
        pytest.param(
            [False, "block", True],
            [NO_RESIDUAL, "A residual per block in place of one per convolution"],
            id="the reference, listed last",
        ),
        pytest.param(["block", False], [NO_RESIDUAL], id="the first level without the reference"),
    ],
)
def test_the_base_is_the_reference_or_else_the_first_level(listed: list[object], labels: list[str]) -> None:
    assert [row.label for row in judged([trial(residual=level) for level in listed]).rows] == labels


def test_batchnorm_in_place_of_alignment_is_not_batchnorm_added() -> None:
    """They were one row once: the alignment follows BatchNorm, so what the user typed is the same."""
    aligned, unaligned, normalised = trial(0, 30.0), trial(0, 29.0, align=1), trial(0, 29.5, bn="post")
    found = judged([aligned, unaligned, normalised])
    assert {row.label: (row.pair, row.by_set["Set5"].estimate.mean) for row in found.rows} == {
        IN_PLACE: ((aligned.cell, normalised.cell), -0.5),
        "Without alignment 130": ((aligned.cell, unaligned.cell), -1.0),
        "BatchNorm after the convolution added": ((unaligned.cell, normalised.cell), 0.5),
    }


def test_cells_that_differ_in_two_factors_are_not_compared() -> None:
    assert judged([trial(), trial(residual=False, bn="post")]).rows == []


def test_an_average_weighs_every_context_equally() -> None:
    row = judged(FOUR).row(NO_RESIDUAL)
    assert len(row.contexts) == 1
    assert row.average["Set5"].mean == pytest.approx(((28.9 - 30.1) + (29.35 - 31.1)) / 2)
    assert row.contexts[0].change["Set5"].mean == pytest.approx((29.35 - 31.1) - (28.9 - 30.1))


def test_an_interaction_is_the_difference_of_differences() -> None:
    found = judged(FOUR)
    (only,) = interactions(found.results, found.rows)
    assert {only.first.label, only.second.label} == {NO_RESIDUAL, IN_PLACE}
    assert only.by_set["Set5"].mean == pytest.approx(30.1 - 31.1 - 28.9 + 29.35)
    assert only.at_floor == 0


def test_an_interaction_of_networks_that_are_down_is_at_a_floor() -> None:
    found = judged([*four_cells(0, 30.0, 31.0, 28.0, 29.5), *four_cells(1, 30.2, 31.2, 28.1, 29.2)])
    (only,) = interactions(found.results, found.rows)
    assert (only.at_floor, only.contexts) == (1, 1)


def test_an_interaction_says_in_how_many_of_its_contexts_networks_are_down() -> None:
    """Two contexts, of which the one without activation has a network that is down."""
    finished = [
        found
        for seed in (0, 1)
        for found in (
            *four_cells(seed, 30.0, 31.0 + 0.1 * seed, 29.0, 29.5),
            *(
                dataclasses.replace(each, levels={**each.levels, "act": "none"})
                for each in four_cells(seed, 30.0, 31.0 + 0.1 * seed, 20.0, 29.5)
            ),
        )
    ]
    found = judged(finished)
    by_labels = {(each.first.label, each.second.label): each for each in interactions(found.results, found.rows)}
    both = by_labels[NO_RESIDUAL, IN_PLACE]
    assert (both.at_floor, both.contexts) == (1, 2)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def test_verdicts_are_those_of_the_whole_family_on_a_test_set() -> None:
    found = judged([*FOUR, *four_cells(2, 30.1, 30.9, 29.1, 29.6)])
    pairs = found.family.pairs
    expected = verdicts([difference(found.results, "Set5", pair) for pair in pairs])
    assert [found.family.measured("Set5", pair).verdict for pair in pairs] == expected
    assert {verdict.comparisons for verdict in expected} == {found.family.size} == {len(pairs)}


def test_a_comparison_that_cannot_be_tested_does_not_count() -> None:
    same = [each for seed in range(3) for each in four_cells(seed, 30.0, 30.5 + 0.01 * seed, 29.0, 29.4)]
    found = judged(same)
    assert (len(found.family.pairs), found.family.size) == (2, 1)
    verdict = found.row(NO_RESIDUAL).by_set["Set5"].verdict
    assert verdict is not None
    assert "without any spread" in verdict.reason


def test_the_mirror_image_of_a_verdict_has_its_own_reason() -> None:
    (verdict,) = verdicts([judged(FOUR).row(NO_RESIDUAL).by_set["Set5"].estimate])
    turned = mirrored(verdict, 0.05)
    assert (verdict.outcome, turned.outcome) == (Outcome.WORSE, Outcome.BETTER)
    assert turned.reason.startswith("+1.200 dB")
    assert mirrored(turned, 0.05) == verdict


def test_one_seed_is_no_verdict() -> None:
    (row,) = judged([trial(0, 30.0), trial(0, 29.0, residual=False)]).rows
    assert row.by_set["Set5"].conclusion is Conclusion.ONE_SEED


def test_what_is_in_no_family_has_no_verdict() -> None:
    row = judged(FOUR).row(NO_RESIDUAL)
    results = only_task(in_memory(FOUR))
    found = Family(results, []).measured("Set5", row.pair)
    assert (found.verdict, found.conclusion, found.estimate) == (None, None, row.by_set["Set5"].estimate)


# ---- contexts --------------------------------------------------------------------------------------------------------


def in_contexts(spread: float, unaligned_db: float, floor_db: float = 29.0) -> list[Trial]:
    """The residual is worth 1 dB at the reference, and another amount in an unaligned network."""
    levels: list[tuple[dict[str, Any], float]] = [
        ({}, 31.0),
        ({"residual": False}, 30.0),
        ({"align": 1}, floor_db + unaligned_db),
        ({"align": 1, "residual": False}, floor_db),
    ]
    return [
        trial(seed, psnr + spread * (seed + place % 2 * seed), **moved)
        for seed in range(3)
        for place, (moved, psnr) in enumerate(levels)
    ]


@pytest.mark.parametrize(
    ("finished", "label"),
    [
        pytest.param(in_contexts(0.01, 0.5), "align=1", id="another effect"),
        pytest.param(in_contexts(0.01, 1.01), None, id="about the same effect"),
        pytest.param(in_contexts(0.5, 0.5), None, id="not sure"),
        pytest.param(in_contexts(0.0, 0.5), None, id="seeds that are no replicates"),
        pytest.param(in_contexts(0.01, 1.5, floor_db=28.0), None, id="at a floor"),
    ],
)
def test_an_effect_depends_on_its_context_if_a_difference_is_sure(finished: list[Trial], label: str | None) -> None:
    found = most_different(judged(finished).row(NO_RESIDUAL), "Set5")
    assert (found.label if found else None) == label


# ---- chains ----------------------------------------------------------------------------------------------------------


def chain_of(psnr: Sequence[float], seed: int = 0) -> list[Trial]:
    """Four units in a row: bare, with BN, aligned instead, and with another residual; the last is the reference."""
    levels: list[dict[str, Any]] = [
        {"residual": "block", "align": 1},
        {"residual": "block", "bn": "post"},
        {"residual": "block"},
        {},
    ]
    return [trial(seed, value + 0.1 * seed, **moved) for value, moved in zip(psnr, levels, strict=True)]


CHAIN = [*chain_of([28.6, 29.1, 29.9, 30.0]), *chain_of([28.6, 29.2, 29.8, 30.1], seed=1)]


def test_each_step_of_a_chain_is_compared_with_the_one_before_it() -> None:
    found = judged(CHAIN)
    assert is_chain(found.results.study_cells)
    assert [row.label for row in found.rows] == [
        "BatchNorm after the convolution added",
        "Alignment 130 in place of BatchNorm after the convolution",
        "A residual per convolution in place of one per block",
        "All steps together: a residual per convolution in place of one per block, alignment 130 added",
    ]
    assert [row.by_set["Set5"].estimate.mean for row in found.rows] == pytest.approx([0.55, 0.7, 0.2, 1.45])
    assert found.tested == [row.pair for row in found.rows]


def test_a_study_without_a_finished_network_compares_nothing() -> None:
    baseline = dataclasses.replace(trial(), method="bicubic")
    assert compared(only_task(in_memory([baseline])).study_cells) == ()


# ---- over pictures ---------------------------------------------------------------------------------------------------


def with_pictures(seed: int, residual: bool, **pictures: float) -> Trial:
    one = trial(seed, sum(pictures.values()) / len(pictures), residual=residual)
    return dataclasses.replace(one, images={"Set5": pictures})


def test_a_second_reading_is_over_the_pictures(tmp_path: Path) -> None:
    finished = [
        with_pictures(0, True, baby=30.0, bird=32.0),
        with_pictures(0, False, baby=29.0, bird=31.5),
        with_pictures(1, True, baby=30.0, bird=32.0),
        with_pictures(1, False, baby=29.4, bird=31.7),
    ]
    (row,) = judge(only_task(read_back(tmp_path, finished))).rows
    reading = row.pictures["Set5"]
    interval = stats.ttest_1samp([(-1.0 - 0.6) / 2, (-0.5 - 0.3) / 2], 0).confidence_interval(0.95)
    assert (reading.estimate.low, reading.estimate.high) == pytest.approx((interval.low, interval.high))
    assert reading.scope == "over 2 pictures, for the networks trained under seeds 0 and 1"


@pytest.mark.parametrize(
    "finished",
    [
        pytest.param([trial(0), trial(0, residual=False)], id="no scores by picture"),
        pytest.param([with_pictures(0, True, baby=30.0), with_pictures(0, False, bird=30.0)], id="other pictures"),
        pytest.param([with_pictures(0, True, baby=30.0), with_pictures(1, False, baby=30.0)], id="no common seed"),
    ],
)
def test_without_the_same_pictures_there_is_no_second_reading(tmp_path: Path, finished: list[Trial]) -> None:
    (row,) = judge(only_task(read_back(tmp_path, finished))).rows
    assert row.pictures == {}


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_cells_are_sorted_by_psnr_and_compared_with_the_reference_cell() -> None:
    better = [trial(seed, 31.0 + seed, residual=False) for seed in (0, 1, 2)]
    first, second = summaries(only_task(in_memory([trial(0, 30.0), trial(1, 30.5), *better])))
    assert (first.label, second.label, second.is_reference) == ("residual=false", "residual=true", True)
    assert (first.psnr["Set5"].mean, first.over_baseline["Set5"]) == (32.0, 32.0 - 28.5)
    assert (first.to_reference["Set5"].mean, first.to_reference["Set5"].n) == (32.0 - 30.25, 2)
    assert (first.train_s, first.seeds, second.to_reference) == (12.5 + 1, (0, 1, 2), {})


def test_cells_of_equal_psnr_are_in_the_order_of_their_keys() -> None:
    finished = [trial(residual=level) for level in (True, False, "block")]
    found = [cell.cell for cell in summaries(only_task(in_memory(finished)))]
    assert found == sorted(found)


def test_a_cell_names_the_seeds_that_collapsed() -> None:
    (cell,) = summaries(only_task(in_memory([trial(0, 30.0), trial(1, 28.0), trial(2, 27.0)])))
    assert cell.collapsed == (1, 2)
