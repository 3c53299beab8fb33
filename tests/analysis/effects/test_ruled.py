"""Verdicts of a study with a stopping rule: each is that of its own look, and nothing else looks beyond the first."""

import dataclasses

import pytest

from ablations.decide.decider import Decider
from analysis.effects.claims import Status
from analysis.effects.comparisons import interactions
from analysis.effects.family import Collapses, Conclusion, difference
from analysis.effects.ruled import RuledFamily
from analysis.statistics.sequential import Progress
from analysis.study.loading import StudyResults
from tests.harness.judging import Judged, judge, only_task, summaries
from tests.harness.ruled import LOOKS, Levels, cell, ruled, swept

REFERENCE = cell(31.0)
SURE = cell(29.0, residual=False)
SMALL = cell(31.06, bn="post")
NONE = cell(31.0, bn="pre")

NO_RESIDUAL = "Without the residual"
POST = "BatchNorm after the convolution in place of alignment 130"
PRE = "BatchNorm before the sign in place of alignment 130"


def judged(study: StudyResults) -> Judged:
    return judge(only_task(study))


@pytest.fixture(scope="module")
def found() -> Judged:
    return judged(ruled([REFERENCE, SURE, SMALL, NONE]))


def test_a_large_effect_is_decided_at_the_first_look_and_a_small_one_at_a_later(found: Judged) -> None:
    large, small = (found.row(label).by_set["Set5"] for label in (NO_RESIDUAL, POST))
    assert (large.conclusion, large.look, large.estimate.n) == (Conclusion.WORSE, 3, 3)
    assert (small.conclusion, small.look, small.estimate.n) == (Conclusion.BETTER, 6, 6)


def test_further_seeds_of_the_reference_do_not_move_what_was_decided(found: Judged) -> None:
    reference, other = found.row(NO_RESIDUAL).pair
    assert len(found.results.seeds_of(reference)) > len(found.results.seeds_of(other)) == LOOKS[0]
    first = difference(found.results.at_first_look, "Set5", found.row(NO_RESIDUAL).pair)
    assert found.row(NO_RESIDUAL).by_set["Set5"].estimate.mean == first.mean


def test_the_interval_is_the_repeated_one_and_wider(found: Judged) -> None:
    row = found.row(NO_RESIDUAL)
    assert row.by_set["Set5"].estimate.low < row.described["Set5"].low
    assert "repeated 95 % interval" in row.by_set["Set5"].verdict.reason  # type: ignore[union-attr]


def test_a_cell_and_the_row_about_it_have_one_difference(found: Judged) -> None:
    cells = {each.cell: each for each in summaries(found.results)}
    for row in found.rows:
        assert cells[row.pair[1]].to_reference["Set5"] == row.by_set["Set5"].estimate


def test_a_claim_about_the_cells_of_a_row_has_the_verdict_of_its_look(found: Judged) -> None:
    claim, row = found.claim("The residual raises PSNR"), found.row(NO_RESIDUAL)
    assert (claim.status, claim.look) == (Status.SUPPORTED, 3)
    assert claim.estimate.mean == -row.by_set["Set5"].estimate.mean
    assert "+2." in claim.reason


def test_what_is_not_in_the_family_of_the_plan_has_no_verdict() -> None:
    study = ruled([REFERENCE, SURE, SMALL])
    rule = study.rule
    assert rule is not None
    kept = tuple(pair for pair in rule.families[0] if pair[1] == SURE.trial(0).cell)
    fewer = judged(dataclasses.replace(study, rule=dataclasses.replace(rule, families=(kept,))))
    assert fewer.row(POST).by_set["Set5"].verdict is None
    assert fewer.row(NO_RESIDUAL).by_set["Set5"].verdict.comparisons == 1  # type: ignore[union-attr]
    assert fewer.claim("Residual alignment is better than BatchNorm").status is Status.NOT_TESTED


def test_everything_without_a_verdict_is_estimated_from_the_first_look() -> None:
    levels = [{"residual": residual, "bn": bn} for residual in (True, False) for bn in ("none", "post")]
    cells = [cell(31.0 - (not own["residual"]) + 0.06 * (own["bn"] == "post"), **own) for own in levels]
    full = judged(ruled(cells, "full"))
    assert max(map(len, full.results.seeds_by_cell.values())) == LOOKS[-1]
    row = full.row(POST)
    assert row.by_set["Set5"].look == LOOKS[-1]
    assert {each.by_set["Set5"].n for each in row.contexts} == {LOOKS[0]}
    assert row.average["Set5"].n == row.described["Set5"].n == LOOKS[0]
    first = full.results.at_first_look
    (interaction,) = interactions(first, full.rows)
    assert interaction.by_set["Set5"].n == LOOKS[0]


def test_collapsed_trials_are_counted_at_the_look_of_a_row() -> None:
    """The reference collapses under a seed that only the comparisons of later looks have."""
    some = judged(ruled([dataclasses.replace(REFERENCE, collapsed=(4,)), SURE, NONE]))
    assert some.row(NO_RESIDUAL).collapsed == (Collapses(0, 3), Collapses(0, 3))
    assert some.row(PRE).by_set["Set5"].conclusion is Conclusion.RISK
    assert some.row(PRE).collapsed[0] == Collapses(1, 6)


def test_a_comparison_of_two_dead_cells_is_closed_at_the_first_look() -> None:
    down = tuple(range(LOOKS[-1]))
    dead = judged(ruled([dataclasses.replace(each, collapsed=down) for each in (REFERENCE, NONE)] + [SMALL]))
    measured = dead.row(PRE).by_set["Set5"]
    assert (measured.conclusion, measured.look) == (Conclusion.NOTHING, LOOKS[0])


def test_a_failed_trial_counts_as_one_that_has_ended() -> None:
    failed = judged(ruled([REFERENCE, dataclasses.replace(SURE, failed=(1,))]))
    assert failed.row(NO_RESIDUAL).by_set["Set5"].estimate.n == 2
    assert failed.row(NO_RESIDUAL).by_set["Set5"].conclusion is Conclusion.WORSE


def test_a_cell_that_only_failed_closes_its_comparison_without_a_result() -> None:
    never = ruled([REFERENCE, SURE, dataclasses.replace(NONE, failed=tuple(range(LOOKS[-1])))])
    family = judged(never).family
    assert isinstance(family, RuledFamily)
    (pair,) = [pair for pair in family.pairs if pair[1] == NONE.trial(0).cell]
    assert family.measured("Set5", pair).conclusion is Conclusion.NO_RESULT


def test_a_study_that_was_stopped_has_open_comparisons_at_the_last_complete_look() -> None:
    half = judged(ruled([REFERENCE, SURE, SMALL, NONE], most=14))
    assert half.row(NO_RESIDUAL).by_set["Set5"].conclusion is Conclusion.WORSE
    still = half.row(PRE).by_set["Set5"]
    assert (still.conclusion, still.look) == (Conclusion.OPEN, LOOKS[0])


def test_before_the_first_look_there_is_no_verdict() -> None:
    begun = judged(ruled([REFERENCE, SURE, SMALL], most=8))
    measured = begun.row(NO_RESIDUAL).by_set["Set5"]
    assert (measured.conclusion, measured.look) == (Conclusion.OPEN, 0)


def test_results_from_before_the_rule_count_in_nothing() -> None:
    later = judged(ruled([REFERENCE, SURE, NONE], earlier=2))
    assert later.results.seeds_of(later.results.reference)[:2] == [0, 1]
    assert later.results.at_first_look.seeds == (2, 3, 4)
    assert later.row(NO_RESIDUAL).by_set["Set5"].estimate.n == 3


def test_the_report_says_of_every_comparison_what_the_sweep_says() -> None:
    cells = {each.trial(0).cell: each for each in (REFERENCE, SURE, SMALL, dataclasses.replace(NONE, failed=(1,)))}
    design = {"name": "one_at_a_time", "options": {}}
    sweep = swept(cells, design, LOOKS, 0, float("inf"))
    family = judged(ruled(list(cells.values()))).family
    for comparison in Decider(sweep.rule, tuple(cells)).comparisons(sweep.ended):
        said, ours = comparison.judged["Set5"], family.measured("Set5", comparison.pair)
        assert (ours.look, ours.verdict) == (said.look, said.verdict)


def test_the_family_passes_its_looks_in_order(found: Judged) -> None:
    assert isinstance(found.family, RuledFamily)
    course = list(found.family.course("Set5", found.row(POST).pair))
    assert [each.look for each in course] == list(LOOKS)
    assert [each.conclusion for each in course] == [Conclusion.OPEN, Conclusion.OPEN, Conclusion.BETTER]


def test_a_cell_can_be_judged_differently_on_two_test_sets() -> None:
    twice = Levels({"bn": "post"}, {"Set5": 33.0, "Set14": 31.0})
    both = judged(ruled([Levels({}, {"Set5": 31.0, "Set14": 31.0}), twice]))
    looks = {name: found.look for name, found in both.row(POST).by_set.items()}
    assert looks["Set5"] == 3 < (looks["Set14"] or 0)
    assert str(Conclusion.OPEN) == Progress.OPEN
