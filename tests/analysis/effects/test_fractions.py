"""Effects of designs without a pair of cells for each, and half-normal plots."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ablations.space.family import compared
from analysis.effects.fractions import Fit, fitted, half_normals, varied
from analysis.study.tasks import TaskResults
from tests.harness.judging import only_task
from tests.harness.studies import Trial, in_memory

FACTORS: dict[str, tuple[Any, Any]] = {
    "residual": (True, False),
    "act": ("inside", "after"),
    "threshold": (True, False),
    "weight": ("l1", "plain"),
}
EFFECTS = {"residual": -1.0, "act": -0.3, "threshold": -0.2, "weight": 0.1}
"""What the other level of each factor adds, in dB."""

REFERENCE = {"bn": "none", "align": "auto", **{name: levels[0] for name, levels in FACTORS.items()}}


def cell(moved: Sequence[str], seed: int, interaction: float = 0.0, scores: Mapping[str, float] | None = None) -> Trial:
    """The cell in which these factors are at their other level."""
    both = interaction * ({"act", "weight"} <= set(moved))
    psnr = 32.0 + sum(EFFECTS[name] for name in moved) + both
    levels = {**REFERENCE, **{name: FACTORS[name][1] for name in moved}}
    return Trial(levels, seed, scores or {"Set5": psnr}, reference=REFERENCE)


def subsets(names: Sequence[str] = tuple(FACTORS)) -> list[tuple[str, ...]]:
    return [chosen for size in range(len(names) + 1) for chosen in itertools.combinations(names, size)]


HALF = [moved for moved in subsets() if len(moved) % 2 == 0]
"""Half of all combinations: those in which the product of the four factors is 1."""


def results_of(chosen: Sequence[Sequence[str]], seeds: int = 2, **others: Any) -> TaskResults:
    return only_task(in_memory([cell(moved, seed, **others) for seed in range(seeds) for moved in chosen]))


def fit_of(results: TaskResults) -> Fit:
    found = fitted(results, compared(results.study_cells))
    assert found is not None
    return found


def effects_of(fit: Fit) -> dict[str, float]:
    return {str(effect.term): effect.by_set["Set5"].mean for effect in fit.effects}


# ---- fractions -------------------------------------------------------------------------------------------------------


def test_the_effects_of_half_a_design_are_the_true_ones() -> None:
    fit = fit_of(results_of(HALF))
    assert effects_of(fit) == pytest.approx(
        {"residual=false": -1.0, "act=after": -0.3, "threshold=false": -0.2, "weight=plain": 0.1}
    )


def test_half_a_design_has_no_pairs_of_cells() -> None:
    results = results_of(HALF)
    assert compared(results.study_cells) == ()
    assert fit_of(results).without_pairs == tuple(FACTORS)


def test_interactions_that_the_cells_confound_are_refused() -> None:
    """In this half, act x weight cannot be told from residual x threshold."""
    refused = {str(term) for term in fit_of(results_of(HALF)).refused}
    assert {"act=after x weight=plain", "residual=false x threshold=false"} <= refused
    assert len(refused) == 6


def test_an_interaction_that_the_cells_determine_is_found() -> None:
    """Five factors in half of their combinations: interactions of two are clear of each other."""
    sizes = [
        dataclasses.replace(cell(moved, seed, interaction=0.4), others={"channels": 8 if len(moved) % 2 == 0 else 16})
        for seed in range(2)
        for moved in subsets()
    ]
    found = effects_of(fit_of(only_task(in_memory(sizes))))
    assert found["act=after x weight=plain"] == pytest.approx(0.4)
    assert found["act=after"] == pytest.approx(-0.3 + 0.4 / 2)
    assert found["channels=16"] == pytest.approx(0.0, abs=1e-9)
    assert found["residual=false x channels=16"] == pytest.approx(0.0, abs=1e-9)


def test_a_design_with_a_pair_for_every_key_is_not_fitted() -> None:
    results = results_of(subsets())
    assert fitted(results, compared(results.study_cells)) is None


def test_a_fit_has_an_interval_from_the_seeds() -> None:
    noisy = [
        cell(moved, seed, scores={"Set5": 32.0 + sum(EFFECTS[name] for name in moved) + 0.01 * seed * (place % 3)})
        for seed in range(3)
        for place, moved in enumerate(HALF)
    ]
    for effect in fit_of(only_task(in_memory(noisy))).effects:
        estimate = effect.by_set["Set5"]
        assert estimate.n == 3
        assert estimate.low < EFFECTS[str(effect.term).partition("=")[0]] < estimate.high


def test_the_levels_are_those_that_the_user_gave_with_the_reference_first() -> None:
    results = results_of([("act", "weight"), (), ("act",)])
    assert varied(results) == {"act": ("inside", "after"), "weight": ("l1", "plain")}


# ---- half-normal plots -----------------------------------------------------------------------------------------------

THREE = ("residual", "act", "threshold")


def noisy_cells(names: Sequence[str], seeds: int) -> list[Trial]:
    return [
        cell(moved, seed, scores={"Set5": 32.0 - 2 * ("residual" in moved) + 0.01 * (place * 7 % 5)})
        for seed in range(seeds)
        for place, moved in enumerate(subsets(names))
    ]


def test_an_effect_far_beyond_the_others_stands_out() -> None:
    plot = half_normals(only_task(in_memory(noisy_cells(tuple(FACTORS), 1))))["Set5"]
    assert [point.factors for point in plot.points if point.stands_out] == [("residual",)]
    assert len(plot.points) == 15


@pytest.mark.parametrize(
    ("finished", "is_drawn"),
    [
        pytest.param(noisy_cells(THREE, 1), True, id="three factors, one seed"),
        pytest.param(noisy_cells(THREE, 2), True, id="three factors, two seeds"),
        pytest.param(noisy_cells(THREE, 3), False, id="three seeds, which measure noise"),
        pytest.param(noisy_cells(THREE[:2], 1), False, id="two factors"),
        pytest.param(noisy_cells(THREE, 1)[1:], False, id="a cell is missing"),
        pytest.param(
            [*noisy_cells(THREE, 1), dataclasses.replace(cell((), 0), others={"channels": 16})],
            False,
            id="a cell beside the design",
        ),
        pytest.param([*noisy_cells(THREE, 1)[1:], cell((), 0, scores={"Set5": 20.0})], False, id="a cell that is down"),
        pytest.param([*noisy_cells(THREE, 2)[1:]], True, id="a seed that lacks a cell, beside one that has all"),
    ],
)
def test_a_half_normal_plot_is_for_complete_designs_of_two_levels_and_few_seeds(
    finished: list[Trial], is_drawn: bool
) -> None:
    assert bool(half_normals(only_task(in_memory(finished)))) == is_drawn


def test_a_test_set_on_which_a_cell_was_not_scored_has_no_plot() -> None:
    finished = [
        dataclasses.replace(each, psnr_db={**each.psnr_db, **({"Set14": 30.0} if place else {})})
        for place, each in enumerate(noisy_cells(THREE, 1))
    ]
    assert set(half_normals(only_task(in_memory(finished)))) == {"Set5"}
