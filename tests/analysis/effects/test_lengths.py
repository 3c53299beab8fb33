"""What a study would have said after fewer steps, and how its report shows that."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ablations.space.stopping_rule import StoppingRule
from analysis.effects.lengths import MOST_STAGES, Stage, shortest, stages, thinned
from analysis.report.lengths import halvings
from analysis.report.page import compose
from analysis.statistics.estimates import Outcome
from analysis.study.loading import StudyResults
from analysis.study.tasks import TaskResults
from tests.harness.judging import judge, only_task
from tests.harness.pages import plain
from tests.harness.ruled import cell, rule_on_disk
from tests.harness.studies import Trial, read_back, trial

STEPS = (5, 10, 20)

CHANGES: tuple[dict[str, Any], ...] = ({"residual": False}, {"bn": "post"}, {"act": "after"})
REFERENCE = {"act": "inside"}

EFFECTS: Mapping[int, tuple[float, float, float]] = {
    5: (-0.2, -0.5, 0.3),  # in dB, of each change
    10: (-0.6, -0.4, 0.0),
    20: (-1.0, -0.5, -0.3),
}

SPREAD = (-0.01, 0.0, 0.01)  # of the seeds


def scored(levels: Mapping[str, Any], effects: Mapping[int, float], seeds: Sequence[int] = (0, 1, 2)) -> list[Trial]:
    """A cell whose scores rise with the steps, and are off the reference's by its effect at each."""
    course = {step: [30 + 0.1 * step + effects[step] + off for off in SPREAD] for step in STEPS}
    return [
        dataclasses.replace(
            trial(seed, course[20][seed], **{**REFERENCE, **levels}),
            earlier={step: course[step][seed] for step in STEPS[:-1]},
            reference={"residual": True, "bn": "none", "align": "auto", **REFERENCE},
        )
        for seed in seeds
    ]


def trials(effects: Mapping[int, tuple[float, float, float]] = EFFECTS) -> list[Trial]:
    every = [scored({}, dict.fromkeys(STEPS, 0.0))]
    every += [scored(change, {step: effects[step][at] for step in STEPS}) for at, change in enumerate(CHANGES)]
    return [each for cell in every for each in cell]


def found(results: TaskResults) -> list[Stage]:
    """The stages of the comparisons at the reference, in the order of :data:`CHANGES`, on Set5."""
    judged = judge(results)
    labels = {row.intervention.as_typed.split()[0]: row.pair for row in judged.rows if row.pair in judged.tested}
    pairs = [labels[name] for name in ("residual=false", "bn=post", "act=after")]
    return stages(results.at_first_look, pairs, judged.family).get("Set5", [])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return read_back(tmp_path_factory.mktemp("lengths"), trials())


@pytest.fixture(scope="module")
def course(study: StudyResults) -> list[Stage]:
    return found(only_task(study))


def test_the_effects_are_those_at_each_step_at_which_the_test_set_was_scored(course: list[Stage]) -> None:
    assert [stage.step for stage in course] == list(STEPS)
    for stage in course:
        assert [one.estimate.mean for one in stage.verdicts] == pytest.approx(EFFECTS[stage.step])
        assert all(one.estimate.n == 3 for one in stage.verdicts)


def test_the_rank_correlation_is_that_with_the_last_step(course: list[Stage]) -> None:
    """-1, -0.5, -0.3 at the end: two of three are swapped after 5 steps, and none after 10."""
    assert [stage.rank_correlation for stage in course] == pytest.approx([0.5, 1.0, 1.0])


def test_outcomes_are_counted_that_are_those_of_the_end_or_the_opposite(course: list[Stage]) -> None:
    better, worse, equivalent = Outcome.BETTER, Outcome.WORSE, Outcome.EQUIVALENT
    assert [[one.outcome for one in stage.verdicts] for stage in course] == [
        [worse, worse, better],
        [worse, worse, equivalent],
        [worse, worse, worse],
    ]
    assert [(stage.same, stage.opposite) for stage in course] == [(2, 1), (2, 0), (3, 0)]


def test_the_verdicts_of_the_last_step_are_those_of_the_report(study: StudyResults, course: list[Stage]) -> None:
    """They are corrected for the same number of comparisons, the pairs of the claims among them."""
    judged = judge(only_task(study))
    for row in judged.rows:
        if row.pair in judged.tested:
            verdict = row.by_set["Set5"].verdict
            assert verdict in course[-1].verdicts


@pytest.mark.parametrize(
    ("same", "step"),
    [
        pytest.param((3, 3, 3), 5, id="all the way"),
        pytest.param((2, 3, 3), 10, id="from the middle on"),
        pytest.param((3, 2, 3), 20, id="not the first time"),
    ],
)
def test_the_shortest_training_is_that_from_which_on_nothing_changes(
    course: list[Stage], same: tuple[int, ...], step: int
) -> None:
    own = [dataclasses.replace(stage, same=count) for stage, count in zip(course, same, strict=True)]
    assert shortest(own) == step


def test_a_step_0_is_none(tmp_path: Path) -> None:
    """A curve of somebody else may have it."""
    every = [dataclasses.replace(each, earlier={0: 20.0, **each.earlier}) for each in trials()]
    results = read_back(tmp_path, every)
    assert [stage.step for stage in found(only_task(results))] == list(STEPS)
    assert compose(results)["lengths.png"]


def test_without_the_curve_of_every_trial_there_are_no_stages(tmp_path: Path) -> None:
    """A curve with a score that is no number is not read."""
    every = trials()
    every[-1] = dataclasses.replace(every[-1], earlier={**every[-1].earlier, 5: math.nan})
    assert found(only_task(read_back(tmp_path, every))) == []


def test_a_step_that_some_trial_lacks_is_left_out(tmp_path: Path) -> None:
    every = trials()
    every[-1] = dataclasses.replace(every[-1], earlier={10: every[-1].earlier[10]})
    assert [stage.step for stage in found(only_task(read_back(tmp_path, every)))] == [10, 20]


def test_cells_that_train_for_different_steps_have_no_stages(tmp_path: Path) -> None:
    """Both have scores at 5, 10 and 20 steps, where one of them has ended."""
    short = scored({}, dict.fromkeys(STEPS, 0.0))
    longer = [
        dataclasses.replace(
            each, steps=40, earlier={**each.earlier, 20: each.psnr_db["Set5"]}, psnr_db={"Set5": 33 + 0.01 * each.seed}
        )
        for each in short
    ]
    results = only_task(read_back(tmp_path, [*short, *longer]))
    judged = judge(results)
    assert len(judged.tested) == 1
    assert not stages(results, judged.tested, judged.family)


def test_only_seeds_of_the_first_look_count_under_a_stopping_rule(tmp_path: Path) -> None:
    results = only_task(rule_on_disk(tmp_path, [cell(31.0), cell(31.0, bn="post")]))
    rule = results.study.rule
    assert isinstance(rule, StoppingRule)
    judged = judge(results)
    assert max(len(seeds) for seeds in results.seeds_by_cell.values()) > rule.first_look
    (stage, *_) = stages(results.at_first_look, judged.tested, judged.family)["Set5"]
    assert {one.estimate.n for one in stage.verdicts} == {rule.first_look}
    lines = compose(results.study)["lengths.csv"].decode().splitlines()
    assert float(lines[1].split(",")[3]) == pytest.approx(stage.verdicts[0].estimate.mean)


def test_the_page_says_from_which_step_on_the_outcomes_are_those_of_the_end(study: StudyResults) -> None:
    files = compose(study)
    part = plain(files["report.md"].decode().partition("## Fewer steps")[2].partition("</details>")[0])
    assert "before step 20 some outcome is not yet that of the last step" in part
    assert "| 5 | +0.50 | 2 of 3 | 1 |" in part
    assert "| 10 | +1.00 | 2 of 3 | 0 |" in part
    assert "| 20 | +1.00 | 3 of 3 | 0 |" in part
    assert files["lengths.svg"].decode().count("step 10") >= 3
    assert files["lengths.csv"].decode().count("\n") == 1 + 3 * 3
    assert "Set5,10,1.0,2,0,3" in files["agreement.csv"].decode()


@pytest.mark.parametrize(
    ("count", "kept"),
    [
        pytest.param(3, [1, 2, 3], id="few"),
        pytest.param(MOST_STAGES, list(range(1, MOST_STAGES + 1)), id="the most"),
        pytest.param(2 * MOST_STAGES + 1, list(range(1, 2 * MOST_STAGES + 2, 3)), id="a third of them"),
        pytest.param(2 * MOST_STAGES + 2, list(range(2, 2 * MOST_STAGES + 3, 3)), id="the last, not the first"),
    ],
)
def test_of_many_steps_those_at_even_distances_are_kept(count: int, kept: list[int]) -> None:
    assert thinned(range(1, count + 1)) == kept


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        pytest.param([250, 500, 750, 1000], [250, 500, 1000], id="even"),
        pytest.param([7, 11], [7, 11], id="two"),
        pytest.param([3, 90, 100], [3, 90, 100], id="uneven"),
    ],
)
def test_the_axis_names_the_last_step_and_its_halves(steps: list[int], named: list[int]) -> None:
    assert halvings(steps) == named
