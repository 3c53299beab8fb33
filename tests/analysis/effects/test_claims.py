"""The paper's claims: which cells test them, what is said of them, and how their size compares with print."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.space.claims import CLAIMS, pairs_to_test
from analysis.effects.claims import (
    Assessment,
    Status,
    compared_size,
    judged_by_probes,
    status_of,
)
from analysis.effects.family import Collapses, Conclusion
from analysis.statistics.estimates import Estimate
from tests.harness.judging import Judged, judge, only_task
from tests.harness.studies import FULL_REFERENCE, Trial, components_study, full_trial, in_memory, probes_of, read_back

RESIDUAL = "The residual raises PSNR"
LOSS = "The residual reduces what a unit loses of its output"
GAP = "BatchNorm after the convolution closes the gap between the ranges of residual and branch"
REACTNET = "BBCU is better than ReActNet"
BODY, UPSAMPLING = "Binarising the body costs PSNR", "Binarising the upsampling costs PSNR"


def judged(finished: Sequence[Trial], **others: Any) -> Judged:
    return judge(only_task(in_memory(finished, **others)))


def scored(psnr_db: float, seeds: int = 3, spread: float = 0.004, **given: Any) -> list[Trial]:
    """A cell at the reference levels except those given; other keys of a trial are given by their name."""
    fields = {field.name for field in dataclasses.fields(Trial)} - {"levels"}
    kept = {name: value for name, value in given.items() if name in fields}
    levels = {name: value for name, value in given.items() if name not in fields}
    return [
        Trial(
            {**FULL_REFERENCE, **levels},
            **{"seed": seed, "psnr_db": {"Set5": psnr_db + spread * seed}, "reference": FULL_REFERENCE, **kept},
        )
        for seed in range(seeds)
    ]


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_every_claim_has_a_row() -> None:
    assert [row.claim for row in judged(scored(31.0)).claims] == list(CLAIMS)


def test_a_claim_on_psnr_has_a_row_for_each_test_set() -> None:
    on_both = [
        dataclasses.replace(each, psnr_db={name: each.psnr_db["Set5"] for name in ("Set5", "Set14")})
        for each in (*scored(31.0), *scored(30.0, residual=False))
    ]
    rows = [row for row in judged(on_both).claims if row.claim.text == RESIDUAL]
    assert [(row.where, row.status) for row in rows] == [("Set5", Status.SUPPORTED), ("Set14", Status.SUPPORTED)]


@pytest.mark.parametrize(
    ("claim", "finished", "reason"),
    [
        pytest.param(REACTNET, scored(31.0), "no finished cell with method=reactnet", id="method"),
        pytest.param(RESIDUAL, scored(31.0), "no finished cell with residual=false", id="one side"),
        pytest.param(
            "The activation inside the residual is better than after the add",
            scored(31.0, residual=False),
            "no finished cell with residual=true; act=after and none with residual=true; act=inside",
            id="both sides",
        ),
        pytest.param(
            RESIDUAL,
            [*scored(31.0), *scored(30.0, residual=False, others={"channels": 16})],
            "no two finished cells that differ in nothing else",
            id="another width",
        ),
    ],
)
def test_a_claim_that_no_pair_tests_says_why(claim: str, finished: list[Trial], reason: str) -> None:
    row = judged(finished).claim(claim)
    assert (row.status, row.reason, row.pair, row.estimate.n) == (Status.NOT_TESTED, reason, None, 0)
    assert not row.is_tested


@pytest.mark.parametrize(
    ("conclusion", "sign", "status"),
    [
        (Conclusion.BETTER, 1, Status.SUPPORTED),
        (Conclusion.BETTER, -1, Status.CONTRADICTED),
        (Conclusion.WORSE, -1, Status.SUPPORTED),
        (Conclusion.WORSE, 1, Status.CONTRADICTED),
        (Conclusion.EQUIVALENT, 1, Status.CONTRADICTED),
        (Conclusion.EQUIVALENT, -1, Status.CONTRADICTED),
        (Conclusion.UNDECIDED, 1, Status.UNDECIDED),
        (Conclusion.RISK, 1, Status.UNDECIDED),
        (Conclusion.ONE_SEED, 1, Status.UNDECIDED),
        (Conclusion.NOTHING, 1, Status.NOT_TESTED),
    ],
)
def test_a_conclusion_speaks_for_or_against_a_direction(conclusion: Conclusion, sign: int, status: Status) -> None:
    assert status_of(conclusion, sign) is status


def test_one_seed_supports_nothing() -> None:
    row = judged([*scored(31.0, seeds=1), *scored(30.0, seeds=1, residual=False)]).claim(RESIDUAL)
    assert row.status is Status.UNDECIDED


# ---- pairs -----------------------------------------------------------------------------------------------------------


def contexts_of(row: Assessment, study: Judged) -> list[tuple[str, str]]:
    """The BatchNorm and the alignment of each pair that tests a claim, the nearest first."""
    pairs = next(pairs for claim, pairs in pairs_to_test(study.results.study_cells) if claim is row.claim)
    return [(study.results.levels[pair[1]].asked["bn"], study.results.levels[pair[1]].asked["align"]) for pair in pairs]


def test_pairs_nearer_to_the_papers_unit_come_first() -> None:
    contexts: list[dict[str, Any]] = [{"bn": "pre", "align": 2}, {"bn": "post"}, {}, {"align": 1}]
    sides = [{**levels, "residual": residual} for levels in contexts for residual in (True, False)]
    found = judged([each for levels in sides for each in scored(31.0, **levels)])
    row = found.claim(RESIDUAL)
    assert contexts_of(row, found) == [("none", "auto"), ("none", "1"), ("post", "auto"), ("pre", "2")]
    assert (row.context, len(row.others)) == ("", 3)


def test_a_unit_of_the_users_own_is_not_the_papers() -> None:
    own = {"network": {"name": "srresnet", "unit": "my_parts.ScaledUnit"}}
    row = judged([*scored(31.0, others=own), *scored(30.0, residual=False, others=own)]).claim(RESIDUAL)
    assert (row.status, row.context) == (Status.SUPPORTED, "network.unit=my_parts.ScaledUnit")


@pytest.mark.parametrize("claim", ["Residual alignment raises PSNR", RESIDUAL])
def test_alignment_is_tested_in_the_papers_steps_whose_activation_is_after_the_add(claim: str) -> None:
    """The other claims are about BBCU itself, in which it is inside."""
    cells: list[dict[str, Any]] = [{}, {"align": 1}, {"residual": False}]
    sides = [{**levels, "act": act} for act in ("inside", "after") for levels in cells]
    found = judged([each for levels in sides for each in scored(31.0, **levels)])
    row = found.claim(claim)
    assert row.pair is not None
    acts = {found.results.levels[cell].recorded["act"] for cell in row.pair}
    assert (acts, row.context) == ({"inside" if claim == RESIDUAL else "after"}, "")


def test_the_alignment_of_the_reference_is_tested_before_others() -> None:
    found = judged([each for align in (1, 10, "auto") for each in scored(31.0, align=align)])
    row = found.claim("Residual alignment raises PSNR")
    assert [each for _, each in contexts_of(row, found)] == ["auto", "10"]


def test_what_the_user_gave_is_compared_if_what_is_recorded_differs() -> None:
    """A network without a binary unit needs no alignment, so that ``align=auto`` becomes 1 there."""
    full = scored(32.0, binarize=[], recorded={"align": 1})
    row = judged([*scored(31.0), *full]).claim(BODY)
    assert row.status is Status.SUPPORTED
    assert row.estimate.mean == pytest.approx(-1.0)


def test_a_part_is_charged_with_what_it_costs_and_saves() -> None:
    row = judged([*scored(32.0, ops_g=18.0), *scored(31.7, binarize=["body", "up"], ops_g=2.0)]).claim(UPSAMPLING)
    assert (row.status, row.ops_g) == (Status.SUPPORTED, 2.0 - 18.0)


def test_a_risk_of_collapse_decides_no_claim() -> None:
    unreliable = [*scored(31.4, seeds=2, residual=False), *scored(28.0, seeds=3, residual=False)[2:]]
    row = judged([*scored(31.0), *unreliable]).claim(RESIDUAL)
    assert (row.status, row.has_collapsed) == (Status.UNDECIDED, True)
    assert row.reason.startswith("some trials collapsed, and all trials together show no sure difference: p = ")


def test_a_cell_that_collapsed_under_every_seed_contradicts_no_claim() -> None:
    """Its claim would hold of any network that learns, so the study is too short to deny it."""
    row = judged([*scored(28.0), *scored(31.0, residual=False), *scored(31.1, bn="post")]).claim(RESIDUAL)
    assert row.status is Status.UNDECIDED
    assert row.reason.startswith("a cell of the two collapsed under every seed, so it contradicts no claim: -")
    alive = judged([*scored(30.0), *scored(31.0, residual=False), *scored(31.1, bn="post")]).claim(RESIDUAL)
    assert alive.status is Status.CONTRADICTED


# ---- methods ---------------------------------------------------------------------------------------------------------


def method(name: str, psnr_db: float, levels: Mapping[str, Any], **others: Any) -> list[Trial]:
    return scored(psnr_db, method=name, others=others, **levels)


METHODS = [
    *method("bbcu", 32.0, {}),
    *method("reactnet", 31.68, {"bn": "post", "act": "after"}),
    *method("lite", 32.3, {"binarize": []}, channels=12),
]


@pytest.mark.parametrize(
    ("claim", "status", "size"),
    [
        pytest.param(REACTNET, Status.SUPPORTED, "agrees", id="0.32 dB in print"),
        pytest.param(
            "BBCU is better than the full-precision Lite network",
            Status.CONTRADICTED,
            "the other direction here",
            id="0.37 dB in print",
        ),
    ],
)
def test_methods_are_compared_with_what_they_bring_along(claim: str, status: Status, size: str) -> None:
    row = judged(METHODS).claim(claim)
    assert (row.status, row.size, row.context) == (status, size, "")


def test_a_method_in_two_widths_tests_no_claim() -> None:
    wide = method("reactnet", 31.9, {"bn": "post", "act": "after"}, channels=64)
    widths = [*METHODS, *wide, *method("bbcu", 33.0, {}, channels=64)]
    row = judged(widths).claim(REACTNET)
    assert row.reason == "no cell of one method that goes with just one of the other"


def test_a_printed_number_in_doubt_is_named() -> None:
    bnn = method("bnn", 31.0, {"residual": "block", "bn": "post"})
    row = judged([*METHODS, *bnn]).claim("BBCU is better than BNN")
    assert (row.status, row.printed, row.size) == (Status.SUPPORTED, round(37.58 - 32.25, 2), "smaller here")
    assert "skip connection alone" in row.doubt


# ---- the size in print -----------------------------------------------------------------------------------------------


def interval(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean, low, high, 3, 0.01, 0.1, 4.0)


@pytest.mark.parametrize(
    ("found", "printed", "size"),
    [
        pytest.param(interval(0.3, 0.2, 0.4), 0.35, "agrees", id="inside the interval"),
        pytest.param(interval(0.3, 0.2, 0.4), 0.41, "agrees", id="beyond it by less than rounding"),
        pytest.param(interval(0.3, 0.2, 0.4), 0.5, "smaller here", id="smaller"),
        pytest.param(interval(0.3, 0.2, 0.4), 0.1, "larger here", id="larger"),
        pytest.param(interval(-0.3, -0.4, -0.2), -0.5, "smaller here", id="a smaller loss"),
        pytest.param(interval(-0.3, -0.4, -0.2), -0.1, "larger here", id="a larger loss"),
        pytest.param(interval(-0.3, -0.4, -0.2), 0.1, "the other direction here", id="a loss in place of a gain"),
        pytest.param(interval(0.3, 0.2, 0.4), -0.1, "the other direction here", id="a gain in place of a loss"),
        pytest.param(
            interval(-0.1, -0.3, 0.1), 0.2, "smaller or in the other direction here", id="perhaps the other direction"
        ),
        pytest.param(interval(0.1, -0.1, 0.3), 0.2, "agrees, but so does 0", id="an interval that holds 0 too"),
        pytest.param(interval(0.3, 0.2, 0.4), math.nan, "", id="not printed"),
        pytest.param(interval(0.3, math.nan, math.nan), 0.3, "unknown: no interval", id="one seed"),
    ],
)
def test_a_size_agrees_with_the_printed_one_or_not(found: Estimate, printed: float, size: str) -> None:
    assert compared_size(found, printed, collapsed=False) == size


def test_a_size_with_collapsed_trials_is_not_compared() -> None:
    assert compared_size(interval(0.3, 0.2, 0.4), 0.3, collapsed=True) == "not comparable: collapsed trials"


def test_the_cost_of_a_part_stands_beside_the_papers_only_at_its_own_unit() -> None:
    """The paper prints -0.14 dB for the upsampling of BBCU, and nothing for a unit with BatchNorm."""
    at_bbcu = judged([*scored(32.0), *scored(31.86, binarize=["body", "up"])]).claim(UPSAMPLING)
    elsewhere = judged([*scored(32.0, bn="post"), *scored(31.86, bn="post", binarize=["body", "up"])]).claim(UPSAMPLING)
    assert (at_bbcu.printed, at_bbcu.size) == (-0.14, "agrees")
    assert (elsewhere.context, elsewhere.size) == ("bn=post", "")
    assert math.isnan(elsewhere.printed)


# ---- probes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    finished, left_out = components_study(range(3))
    kept = [each for each in finished if each.levels["act"] == "inside"]
    return judge(only_task(read_back(tmp_path_factory.mktemp("probed"), kept, left_out=left_out)))


def test_the_residual_reduces_the_loss_that_the_probes_saw(probed: Judged) -> None:
    row = probed.claim(LOSS)
    assert (row.status, row.where) == (Status.SUPPORTED, "probes")
    assert row.estimate.mean == pytest.approx((0.3 - 0.8) * (1 + 0.02 * 3.5), abs=0.02)


def test_batchnorm_closes_the_gap_of_the_ranges(probed: Judged) -> None:
    row = probed.claim(GAP)
    beside = [1 + 0.1 * index for index in range(8)]
    gap = {branch: np.mean([max(math.log10(branch / value), 0) for value in beside]) for branch in (1.0, 15.0)}
    assert row.status is Status.SUPPORTED
    assert row.estimate.mean == pytest.approx(gap[1.0] - gap[15.0], abs=0.02)


def test_probes_are_a_family_of_their_own(probed: Judged) -> None:
    tested = [row for row in probed.claims if row.where == "probes" and row.is_tested]
    assert len(tested) == 4
    assert probed.family.size == 4  # three interventions and BatchNorm where there was no alignment


def test_without_probes_a_claim_about_them_is_not_tested() -> None:
    row = judged([*scored(31.0), *scored(30.0, residual=False)]).claim(LOSS)
    assert (row.status, row.reason) == (Status.NOT_TESTED, "no output loss was measured in both cells of a pair")


def with_probes(residual: bool, noise_of: Sequence[int], psnr_db: float = 31.0) -> list[Trial]:
    """Trials with the probes of these seeds."""
    return [
        dataclasses.replace(each, probes=probes_of(dict(each.levels), noise))
        for each, noise in zip(scored(psnr_db, residual=residual), noise_of, strict=True)
    ]


def test_probes_that_are_all_alike_are_no_replicates(tmp_path: Path) -> None:
    finished = [*with_probes(True, [0, 0, 0]), *with_probes(False, [0, 0, 0])]
    row = judge(only_task(read_back(tmp_path, finished))).claim(LOSS)
    assert (row.status, row.reason) == (Status.UNDECIDED, "the seeds give one number, or none: no test")


def test_the_probes_of_dead_networks_show_nothing(tmp_path: Path) -> None:
    finished = [*with_probes(True, [0, 1, 2], 27.0), *with_probes(False, [3, 4, 5], 26.0)]
    row = judge(only_task(read_back(tmp_path, finished))).claim(LOSS)
    assert (row.status, row.reason) == (Status.NOT_TESTED, "every trial of both cells collapsed: nothing was learned")


@pytest.mark.parametrize(("collapsed", "status"), [(3, Status.SUPPORTED), (2, Status.UNDECIDED)])
def test_probes_of_dead_networks_do_not_count_in_the_family(collapsed: int, status: Status) -> None:
    """Of two claims with p = 0.03, each would have 0.06."""
    found = Estimate(-0.5, -0.9, -0.1, 3, 0.03, 0.1, 4.0)
    alive = Assessment(CLAIMS[0], "probes", Status.UNDECIDED, "", found)
    dead = dataclasses.replace(alive, collapsed=(Collapses(collapsed, 3), Collapses(collapsed, 3)))
    assert judged_by_probes([alive, dead])[0].status is status


def test_one_seed_of_a_probe_supports_nothing(tmp_path: Path) -> None:
    finished = [full_trial(0, residual=residual) for residual in (True, False)]
    row = judge(only_task(read_back(tmp_path, finished))).claim(LOSS)
    assert row.status is Status.UNDECIDED
