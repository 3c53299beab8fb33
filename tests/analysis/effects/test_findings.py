"""The paper's claims, put to synthetic studies whose truth is known: the report must recover it."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.effects.factors import FactorialAnalysis, factorial_analyses
from analysis.effects.findings import FINDINGS, Assessment, Status, assessed, comparable, is_level, status_of
from analysis.statistics.estimates import Outcome
from analysis.study.settings import SettingResults, split_by_setting
from tests.harness.studies import FULL_REFERENCE, TRUTH, Trial, components_study, full_trial, read_back


def settings_of(folder: Path, finished: Sequence[Trial], **others: Any) -> list[SettingResults]:
    return split_by_setting(read_back(folder, finished, **others))


def by_claim(rows: Sequence[Assessment]) -> dict[str, Assessment]:
    return {row.finding.claim: row for row in rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SettingResults:
    """A whole study under four seeds."""
    finished, left_out = components_study(range(4))
    (found,) = settings_of(tmp_path_factory.mktemp("whole"), finished, left_out=left_out)
    return found


@pytest.fixture(scope="module")
def claims(whole: SettingResults) -> dict[str, Assessment]:
    return by_claim(assessed([whole]))


class TestAWholeStudy:
    """Every claim on the components is true of it, but that alignment closes the gap as well as BatchNorm does."""

    @pytest.mark.parametrize(
        ("claim", "truth"),
        [
            ("The residual raises PSNR", TRUTH["residual"] + TRUTH["alignment"] * 0.5 / 3),
            ("BatchNorm after the convolution raises PSNR", TRUTH["bn"]),
            ("Residual alignment raises PSNR", TRUTH["alignment"]),
            ("Residual alignment is better than BatchNorm", TRUTH["alignment"] - TRUTH["bn"]),
            ("The activation inside the residual is better than after the add", TRUTH["inside"]),
        ],
    )
    def test_a_claim_that_is_true_is_supported_with_its_number(
        self, claims: dict[str, Assessment], claim: str, truth: float
    ) -> None:
        got = claims[claim]
        assert got.status is Status.SUPPORTED
        assert got.estimate.mean == pytest.approx(truth, abs=0.02)
        assert (got.where, got.seeds, got.dropped) == ("Set5", (0, 1, 2, 3), ())

    def test_the_residual_reduces_the_loss_that_the_probes_saw(self, claims: dict[str, Assessment]) -> None:
        got = claims["The residual reduces what a unit loses of its output"]
        assert (got.status, got.where) == (Status.SUPPORTED, "probes")
        assert got.estimate.mean == pytest.approx((0.3 - 0.8) * (1 + 0.02 * 3.5), abs=0.02)

    def test_batchnorm_closes_the_gap_of_the_ranges(self, claims: dict[str, Assessment]) -> None:
        got = claims["BatchNorm after the convolution closes the gap between the ranges of residual and branch"]
        beside = [1 + 0.1 * index for index in range(8)]
        gap = {branch: np.mean([max(math.log10(branch / value), 0) for value in beside]) for branch in (1.0, 15.0)}
        assert got.status is Status.SUPPORTED
        assert got.estimate.mean == pytest.approx(gap[1.0] - gap[15.0], abs=0.02)

    def test_a_claim_that_no_cell_tests_says_so(self, claims: dict[str, Assessment]) -> None:
        got = claims["BBCU is better than ReActNet"]
        assert (got.status, got.reason) == (Status.NOT_TESTED, "no finished cell with method=reactnet")
        assert got.estimate.n == 0

    def test_every_claim_has_a_row(self, claims: dict[str, Assessment]) -> None:
        assert list(claims) == [finding.claim for finding in FINDINGS]


@pytest.fixture(scope="module")
def analysis(whole: SettingResults) -> FactorialAnalysis:
    return factorial_analyses(whole)["Set5"]


class TestTheDesign:
    def test_cells_that_are_another_cell_complete_it(self, analysis: FactorialAnalysis) -> None:
        assert analysis.whole
        assert analysis.problems == ()
        assert len(analysis.responses.grid) == len(analysis.responses.scored) == 16

    def test_its_effects_are_the_true_ones(self, analysis: FactorialAnalysis) -> None:
        """Alignment is worth 0.5 with and 0.25 without a residual where there is no BN, and nothing where there is."""
        assert analysis.effects is not None
        got = {str(each.term): each.estimate.mean for each in analysis.effects.effects}
        assert got["act=after"] == pytest.approx(-TRUTH["inside"], abs=0.02)
        assert got["align=1"] == pytest.approx(-(0.5 + 0.25) / 4, abs=0.02)
        assert got["bn=post x align=1"] == pytest.approx((0.5 + 0.25) / 2, abs=0.02)
        assert got["residual=false x act=after"] == pytest.approx(0.0, abs=0.02)

    def test_effects_that_are_nothing_are_equivalent(self, analysis: FactorialAnalysis) -> None:
        assert analysis.effects is not None
        outcomes = {
            str(each.term): verdict.outcome
            for each, verdict in zip(analysis.effects.effects, analysis.verdicts, strict=True)
        }
        assert outcomes["residual=false x act=after"] is Outcome.EQUIVALENT
        assert outcomes["act=after"] is Outcome.WORSE
        assert {verdict.comparisons for verdict in analysis.verdicts} == {4 + 6}

    def test_shares_add_up_to_the_gain(self, analysis: FactorialAnalysis) -> None:
        assert analysis.shares is not None
        assert sum(share.gain.mean for share in analysis.shares.shares) == pytest.approx(analysis.shares.total.mean)


class TestIncompleteness:
    def test_a_missing_cell_is_named_and_effects_are_fitted(self, tmp_path: Path) -> None:
        finished, left_out = components_study([0, 1])
        kept = [each for each in finished if each.levels["residual"] or each.levels["act"] == "inside"]
        (found,) = settings_of(tmp_path, kept, left_out=left_out)
        analysis = factorial_analyses(found)["Set5"]
        assert not analysis.whole
        assert "without any score: residual=false bn=none align=auto act=after" in analysis.problems[0]
        assert "The gain cannot be shared" in analysis.problems[1]
        assert analysis.effects is not None
        assert [str(term) for term in analysis.effects.refused] == [
            "residual=false",
            "act=after",
            "residual=false x act=after",
        ]

    def test_a_claim_drops_a_seed_that_lacks_a_cell_and_counts_it(self, tmp_path: Path) -> None:
        finished = [full_trial(seed, residual=residual) for seed in range(3) for residual in (True, False)]
        (found,) = settings_of(tmp_path, finished[:-1], planned=finished[-1:])
        got = by_claim(assessed([found]))["The residual raises PSNR"]
        assert (got.status, got.seeds, got.dropped) == (Status.SUPPORTED, (0, 1), (2,))

    def test_one_seed_supports_nothing(self, tmp_path: Path) -> None:
        finished = [full_trial(0, residual=residual) for residual in (True, False)]
        (found,) = settings_of(tmp_path, finished)
        rows = by_claim(assessed([found]))
        assert rows["The residual raises PSNR"].status is Status.UNDECIDED
        assert rows["The residual reduces what a unit loses of its output"].status is Status.UNDECIDED


def method_trial(seed: int, method: str, psnr: float, levels: dict[str, Any], **others: Any) -> Trial:
    given = {**FULL_REFERENCE, **levels}
    return dataclasses.replace(
        full_trial(seed, **given), psnr_db={"Set5": psnr + 0.01 * seed}, method=method, others=others, probes={}
    )


class TestMethods:
    def test_methods_are_compared_with_what_they_bring_along(self, tmp_path: Path) -> None:
        finished = [
            each
            for seed, shift in ((0, 0.0), (1, 0.003), (2, -0.002))
            for each in (
                method_trial(seed, "bbcu", 32.0, {}),
                method_trial(seed, "reactnet", 31.8 + shift, {"bn": "post", "act": "after"}),
                method_trial(seed, "lite", 32.3 - shift, {"binarize": []}, channels=12),
                method_trial(seed, "bnn", 31.0 + shift, {"residual": "block"}, channels=16),
            )
        ]
        found = settings_of(tmp_path, finished)
        assert len(found) == 3
        (group,) = comparable(found)
        rows = by_claim(assessed(group))
        assert rows["BBCU is better than ReActNet"].status is Status.SUPPORTED
        assert rows["BBCU is better than the full-precision Lite network"].status is Status.CONTRADICTED
        assert rows["BBCU is better than BNN"].reason == "no cell of one method that goes with just one of the other"

    def test_factors_are_never_compared_across_settings(self, tmp_path: Path) -> None:
        apart = [dataclasses.replace(full_trial(seed, residual=False), steps=40) for seed in (0, 1)]
        found = settings_of(tmp_path, [*(full_trial(seed) for seed in (0, 1)), *apart])
        assert [len(group) for group in comparable(found)] == [1, 1]
        statuses = {row.status for group in comparable(found) for row in assessed(group)}
        assert statuses == {Status.NOT_TESTED}

    def test_another_width_is_not_the_same_setting_for_a_factor(self, tmp_path: Path) -> None:
        wide = [dataclasses.replace(full_trial(seed, residual=False), others={"channels": 64}) for seed in (0, 1)]
        (group,) = comparable(settings_of(tmp_path, [*(full_trial(seed) for seed in (0, 1)), *wide]))
        got = by_claim(assessed(group))["The residual raises PSNR"]
        assert got.status is Status.NOT_TESTED


class TestParts:
    def test_what_a_part_costs_and_saves_is_shown(self, tmp_path: Path) -> None:
        finished = [
            dataclasses.replace(full_trial(seed, binarize=parts), psnr_db={"Set5": psnr + shift * seed}, ops_g=ops)
            for seed in range(3)
            for parts, psnr, shift, ops in ((["body"], 32.0, 0.01, 18.0), (["body", "up"], 31.7, 0.012, 2.0))
        ]
        (found,) = settings_of(tmp_path, finished)
        got = by_claim(assessed([found]))["Binarising the upsampling costs PSNR"]
        assert (got.status, got.ops_g) == (Status.SUPPORTED, 2.0 - 18.0)


@pytest.mark.parametrize(
    ("recorded", "wanted", "expected"),
    [
        pytest.param("130", ">1", True, id="aligned"),
        pytest.param("1", ">1", False, id="not aligned"),
        pytest.param("", ">1", False, id="no such factor"),
        pytest.param("1.0", "1", True, id="the same number"),
        pytest.param("[body,up]", "[body,up]", True, id="the same list"),
        pytest.param("[body]", "[body,up]", False, id="another list"),
    ],
)
def test_levels_are_compared_as_numbers_or_as_text(recorded: str, wanted: str, expected: bool) -> None:
    assert is_level(recorded, wanted) is expected


@pytest.mark.parametrize(
    ("outcome", "sign", "status"),
    [
        (Outcome.BETTER, 1, Status.SUPPORTED),
        (Outcome.BETTER, -1, Status.CONTRADICTED),
        (Outcome.WORSE, -1, Status.SUPPORTED),
        (Outcome.EQUIVALENT, 1, Status.CONTRADICTED),
        (Outcome.UNDECIDED, 1, Status.UNDECIDED),
    ],
)
def test_a_verdict_speaks_for_or_against_a_direction(outcome: Outcome, sign: int, status: Status) -> None:
    assert status_of(outcome, sign) is status
