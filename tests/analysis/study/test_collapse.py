"""Which finished trials count as collapsed, and what a report may still say of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis.effects.claims import Status
from analysis.effects.family import Collapses, Conclusion
from analysis.statistics.estimates import Outcome
from analysis.study.tasks import TaskResults, split_by_task
from tests.harness.judging import Judged, judge, only_task
from tests.harness.studies import Trial, in_memory, read_back, trial

SR = {"name": "sr_x2", "scale": 2}
DENOISE = {"name": "denoise", "sigma": [15, 25]}
JPEG = {"name": "jpeg", "quality": [10]}


def on_task(task: dict[str, Any], baseline_db: float, **psnr_db: float) -> Trial:
    return dataclasses.replace(
        trial(), others={"task": task}, psnr_db=psnr_db, baseline_db=baseline_db, method="custom"
    )


# ---- by score --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "psnr_db", "evidence"),
    [
        pytest.param(SR, 29.9, "its PSNR is 0.100 dB below the baseline's", id="below interpolation"),
        pytest.param(SR, 28.3, "its PSNR is 1.700 dB below the baseline's", id="what the bilinear skip gives"),
        pytest.param(SR, 30.0, "", id="as good as interpolation"),
        pytest.param(SR, 30.01, "", id="just above interpolation, far above the skip"),
        pytest.param(DENOISE, 29.0, "its PSNR is 1.000 dB below the baseline's", id="worse than the noisy input"),
        pytest.param(DENOISE, 30.0, "its PSNR is only 0.000 dB above that of the input", id="the noisy input"),
        pytest.param(DENOISE, 30.05, "its PSNR is only 0.050 dB above that of the input", id="at the skip's reach"),
        pytest.param(DENOISE, 30.06, "", id="beyond the skip's reach"),
        pytest.param(JPEG, 30.02, "its PSNR is only 0.020 dB above that of the input", id="the compressed input"),
        pytest.param(JPEG, 30.4, "", id="deblocked"),
    ],
)
def test_a_score_shows_that_a_network_restores_nothing(task: dict[str, Any], psnr_db: float, evidence: str) -> None:
    one = on_task(task, 30.0, Kodak=psnr_db)
    found = only_task(in_memory([one])).collapsed
    assert list(found) == ([(one.cell, 0)] if evidence else [])
    assert evidence in "".join(found.values())


@pytest.mark.parametrize(("five", "has_collapsed"), [(29.9, True), (30.1, False)])
def test_scores_are_averaged_over_the_test_sets(five: float, has_collapsed: bool) -> None:
    """0.05 dB below the baseline on Set14."""
    one = on_task(SR, 30.0, Set5=five, Set14=29.95)
    assert bool(only_task(in_memory([one])).collapsed) == has_collapsed


@pytest.mark.parametrize("method", ["bicubic", "identity"])
def test_a_baseline_has_not_collapsed(method: str) -> None:
    interpolated = dataclasses.replace(on_task(DENOISE, 30.0, Kodak=30.0), method=method)
    trained = dataclasses.replace(trial(residual=False), others={"task": DENOISE}, psnr_db={"Kodak": 31.0})
    assert only_task(in_memory([interpolated, trained])).collapsed == {}


# ---- by the record ---------------------------------------------------------------------------------------------------


def units(**measured: Any) -> dict[str, Any]:
    return {"pictures": 1, "units": {"body.0": measured, "body.1": measured}}


@pytest.mark.parametrize(
    ("probes", "dead", "evidence"),
    [
        pytest.param(units(entropy=0.0, branch_ratio=0.5), None, "bits of every channel", id="no bit differs"),
        pytest.param(units(entropy=0.9, branch_ratio=0.0), None, "adds anything to its residual", id="no branch"),
        pytest.param(units(entropy=0.9, branch_ratio=0.5), None, "", id="alive"),
        pytest.param(units(), None, "", id="nothing measured"),
        pytest.param({}, True, "recorded as dead by the trial itself", id="recorded"),
        pytest.param({}, "its output is one colour", "its output is one colour", id="recorded with a reason"),
    ],
)
def test_the_record_shows_it_whatever_the_score(
    tmp_path: Path, probes: dict[str, Any], dead: bool | str | None, evidence: str
) -> None:
    one = dataclasses.replace(trial(0, 31.0), probes=probes, dead=dead)
    found = only_task(read_back(tmp_path, [one])).collapsed
    assert list(found) == ([(one.cell, 0)] if evidence else [])
    assert evidence in "".join(found.values())


# ---- what is concluded -----------------------------------------------------------------------------------------------


def scored(psnr_db: Sequence[float], **levels: Any) -> list[Trial]:
    """A trial under each seed; the baseline scores 28.5 dB."""
    return [trial(seed, score, **levels) for seed, score in enumerate(psnr_db)]


SOUND = scored([31.0, 31.02, 30.99])


def against_sound(psnr_db: Sequence[float]) -> Judged:
    return judge(only_task(in_memory([*SOUND, *scored(psnr_db, residual=False)])))


@pytest.mark.parametrize(
    ("psnr_db", "conclusion", "collapsed"),
    [
        pytest.param([30.0, 30.01, 29.98], Conclusion.WORSE, 0, id="none collapsed"),
        pytest.param([31.01, 31.0, 30.995], Conclusion.EQUIVALENT, 0, id="none collapsed, equivalent"),
        pytest.param([31.4, 28.0, 31.2], Conclusion.RISK, 1, id="one collapsed and a wide interval"),
        pytest.param([25.0, 24.8, 25.1], Conclusion.WORSE, 3, id="all collapsed and decided"),
        pytest.param([28.4, 28.0, 28.8], Conclusion.WORSE, 2, id="two collapsed and decided"),
        pytest.param([31.0, 31.01, 28.4], Conclusion.RISK, 1, id="one collapsed beside equal ones"),
    ],
)
def test_a_collapse_is_a_risk_unless_the_difference_is_decided(
    psnr_db: list[float], conclusion: Conclusion, collapsed: int
) -> None:
    judged = against_sound(psnr_db)
    row = judged.row("Without the residual")
    found = row.by_set["Set5"]
    assert row.collapsed == (Collapses(0, 3), Collapses(collapsed, 3))
    assert found.conclusion is conclusion


def test_equivalence_with_a_collapsed_trial_is_a_risk_too() -> None:
    """The baseline is at 28.5 dB, and networks that hardly learn are equivalent to one that has collapsed."""
    finished = [*scored([28.51, 28.512, 28.508]), *scored([28.509, 28.498, 28.511], residual=False)]
    found = judge(only_task(in_memory(finished))).row("Without the residual").by_set["Set5"]
    assert found.verdict is not None
    assert found.verdict.outcome is Outcome.EQUIVALENT
    assert found.conclusion is Conclusion.RISK


def test_the_difference_of_what_learned_stands_beside_a_risk() -> None:
    found = against_sound([31.4, 28.0, 31.2]).row("Without the residual").by_set["Set5"]
    assert found.learned == pytest.approx(31.3 - 31.003333, abs=1e-5)
    assert found.estimate.mean == pytest.approx((31.4 + 28.0 + 31.2) / 3 - 31.003333, abs=1e-5)


def test_two_dead_cells_show_nothing_and_do_not_count_in_the_family() -> None:
    alive, dead = [30.8, 30.9, 30.7], [28.0, 28.1, 28.2]
    both_down = judge(only_task(in_memory([*scored(dead), *scored(dead, residual=False), *scored(alive, bn="post")])))
    dead_row, alive_row = both_down.row("Without the residual"), both_down.rows[1]
    assert dead_row.by_set["Set5"].conclusion is Conclusion.NOTHING
    assert dead_row.by_set["Set5"].verdict is None
    assert alive_row.by_set["Set5"].conclusion is Conclusion.BETTER
    assert both_down.family.size == 1


def short_study() -> Judged:
    """Twenty steps, after which every network is still worse than interpolation, each by its own amount."""
    cells: list[dict[str, Any]] = [{}, {"residual": False}, {"bn": "post"}, {"align": 1}]
    found = [
        each
        for place, levels in enumerate(cells)
        for each in scored([20.0 + place + 0.01 * seed * (1 + place) for seed in range(3)], **levels)
    ]
    return judge(only_task(in_memory(found)))


def test_a_study_in_which_nothing_was_learned_says_so_of_every_effect() -> None:
    judged = short_study()
    assert {row.by_set["Set5"].conclusion for row in judged.rows} == {Conclusion.NOTHING}
    assert judged.family.size == 0


def test_a_study_in_which_nothing_was_learned_contradicts_no_claim() -> None:
    found = [claim for claim in short_study().claims if claim.pair]
    assert len(found) == 4
    assert {claim.status for claim in found} == {Status.NOT_TESTED}
    assert {claim.reason for claim in found} == {"every trial of both cells collapsed: nothing was learned"}


@pytest.mark.parametrize("unaligned_db", [pytest.param(28.1, id="most are down"), pytest.param(30.0, id="half are")])
def test_a_study_whose_networks_are_down_contradicts_no_claim(unaligned_db: float) -> None:
    """BatchNorm alone restores something, where alignment does not yet."""
    cells: list[tuple[dict[str, Any], float]] = [
        ({}, 28.0),
        ({"residual": False}, 27.0),
        ({"align": 1}, unaligned_db),
        ({"bn": "post"}, 31.0),
    ]
    finished = [each for levels, psnr in cells for each in scored([psnr, psnr + 0.02, psnr - 0.01], **levels)]
    judged = judge(only_task(in_memory(finished)))
    claim = judged.claim("Residual alignment is better than BatchNorm")
    assert claim.status is Status.UNDECIDED
    assert claim.reason.startswith("a cell of the two collapsed under every seed, so it contradicts no claim: ")
    assert judged.claim("The residual raises PSNR").status is Status.NOT_TESTED
    assert judged.row("BatchNorm after the convolution in place of alignment 130").by_set["Set5"].conclusion == "better"


def test_two_living_networks_of_a_study_that_is_mostly_down_contradict_no_claim() -> None:
    cells = [({}, 30.0), ({"residual": False}, 31.0), *(({"align": align}, 28.0) for align in (1, 10, 20))]
    finished = [each for levels, psnr in cells for each in scored([psnr, psnr + 0.02, psnr - 0.01], **levels)]
    claim = judge(only_task(in_memory(finished))).claim("The residual raises PSNR")
    assert claim.status is Status.UNDECIDED
    assert claim.reason.startswith("most networks of this study learned nothing, so it contradicts no claim: ")


def test_an_effect_in_a_context_with_a_dead_cell_is_bounded_by_a_floor() -> None:
    finished = [
        *SOUND,
        *scored([30.5, 30.6, 30.55], residual=False),
        *scored([30.9, 30.8, 30.85], align=1),
        *scored([28.0, 28.1, 28.2], residual=False, align=1),
    ]
    (unaligned,) = judge(only_task(in_memory(finished))).row("Without the residual").contexts
    assert (unaligned.label, unaligned.floor) == ("align=1", True)


def parts_of(results: TaskResults) -> tuple[list[int], bool]:
    (cell,) = results.levels
    return list(results.collapsed_seeds(cell)), results.is_down(cell)


@pytest.mark.parametrize(
    ("psnr_db", "down"), [([28.0, 31.0], ([0], False)), ([28.0, 27.0], ([0, 1], True)), ([30.0, 31.0], ([], False))]
)
def test_a_cell_is_down_if_every_finished_trial_collapsed(psnr_db: list[float], down: tuple[list[int], bool]) -> None:
    (results,) = split_by_task(in_memory(scored(psnr_db)))
    assert parts_of(results) == down
