"""A sweep until all is decided: it gives seeds to what is undecided, and comes to the same end whatever happens."""

import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations.planning.plan import Plan
from ablations.storage import stopping
from ablations.storage.attempts import State
from ablations.storage.plans import plan_path, read_plan
from ablations.sweep.decide_loop import DecideLoop
from tests.harness.deciding import (
    BASELINE_DB,
    COLLAPSED_DB,
    STUDY,
    WORTH,
    MadeUpSweep,
    Score,
    drawn_score,
    leave_result,
    made_up_plan,
    planned,
)

SEEDS = {"quadratic": 8, "clip": 3, "identity": 6, "ede": 8}
"""How many seeds each surrogate takes until its comparison is decided; the first is in each of them."""

CONCLUSIONS = {"clip": "worse at 3", "identity": "better at 6", "ede": "equivalent at 8"}


@pytest.fixture(autouse=True)
def nobody_has_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping.clear_request()
    # Hundreds of results are written here, and no power fails.
    monkeypatch.setattr(os, "fsync", lambda file: None)


def all_seeds(counts: dict[str, int]) -> dict[str, list[int]]:
    return {surrogate: list(range(count)) for surrogate, count in counts.items()}


def without(surrogate: str, *seeds: int, gives: float | None = None) -> Score:
    """Scores as they are drawn, but for these seeds of a surrogate, all if none is given."""

    def score(name: str, seed: int) -> float | None:
        return gives if name == surrogate and (seed in seeds or not seeds) else drawn_score(name, seed)

    return score


# --- who gets seeds ---------------------------------------------------------------------------------------------------


def test_a_decided_cell_gets_no_more_seeds_and_the_reference_goes_on_while_one_is_open(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path))
    sweep.run()
    assert sweep.trained == all_seeds(SEEDS)
    assert sweep.conclusions == CONCLUSIONS


def test_the_plan_on_disk_gets_the_trials_of_a_look_when_they_are_asked_for(tmp_path: Path) -> None:
    sizes: list[int] = []
    sweep = MadeUpSweep(made_up_plan(tmp_path), on_new=lambda: sizes.append(len(read_plan(tmp_path, STUDY)["trials"])))
    sweep.run()
    assert sizes == [12, 15, 18, 21, 25]
    rule = made_up_plan(tmp_path).rule
    assert rule is not None
    assert read_plan(tmp_path, STUDY)["rule"] == rule.record()


def test_the_same_command_again_trains_nothing(tmp_path: Path) -> None:
    MadeUpSweep(made_up_plan(tmp_path)).run()
    before = plan_path(tmp_path, STUDY).read_bytes()
    again = MadeUpSweep(made_up_plan(tmp_path))
    again.run()
    assert again.trained == {}
    assert again.conclusions == CONCLUSIONS
    assert plan_path(tmp_path, STUDY).read_bytes() == before


def test_results_from_before_the_rule_count_in_no_verdict(tmp_path: Path) -> None:
    for entry in made_up_plan(tmp_path).trials[: 3 * len(WORTH)]:
        leave_result(entry, BASELINE_DB + 10)
    sweep = MadeUpSweep(made_up_plan(tmp_path, first_seed=3))
    sweep.run()
    assert sweep.trained["clip"] == [3, 4, 5]
    assert sweep.conclusions["clip"] == "worse at 3"


# --- trials that fail or collapse -------------------------------------------------------------------------------------


def test_a_failed_trial_is_not_replaced_by_another_seed_and_leaves_its_look_with_fewer_scores(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path), without("clip", 1))
    outcomes = sweep.run()
    assert sweep.trained["clip"] == [0, 1, 2]
    assert [outcome.state for outcome in outcomes.values()].count(State.FAILED) == 1
    assert sweep.conclusions["clip"] == "worse at 3"


def test_the_next_command_retries_what_has_failed_and_judges_anew(tmp_path: Path) -> None:
    MadeUpSweep(made_up_plan(tmp_path), without("identity", 2)).run()
    again = MadeUpSweep(made_up_plan(tmp_path))
    again.run()
    assert again.trainer.trained[0] == ("identity", 2)
    assert again.conclusions == CONCLUSIONS


def test_a_cell_whose_trials_all_fail_is_closed_after_the_first_look(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path), without("clip"))
    sweep.run()
    assert sweep.trained["clip"] == [0, 1, 2]
    assert sweep.conclusions["clip"] == "no result"


def test_a_collapsed_trial_has_a_score_and_is_never_called_equivalent(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path), without("ede", 4, gives=COLLAPSED_DB))
    sweep.run()
    assert sweep.trained["ede"] == list(range(8))
    assert sweep.conclusions["ede"] == "risk of collapse"


def test_nothing_is_learned_if_both_cells_collapse_under_every_seed(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path), lambda surrogate, seed: COLLAPSED_DB - seed / 8)
    sweep.run()
    assert sweep.trained == all_seeds(dict.fromkeys(WORTH, 3))
    assert set(sweep.conclusions.values()) == {"nothing learned"}


# --- whatever happens -------------------------------------------------------------------------------------------------

FAILS = without("identity", 3)
"""One trial fails whenever it is run."""


@pytest.mark.parametrize("score", [drawn_score, FAILS], ids=["all finish", "one fails"])
def test_a_sweep_killed_at_any_moments_comes_to_the_same_end(tmp_path: Path, score: Score) -> None:
    undisturbed = MadeUpSweep(made_up_plan(tmp_path / "undisturbed"), score)
    undisturbed.run()
    draw, deaths = random.Random(0), 0
    while deaths < 10:
        outputs = tmp_path / str(deaths)
        while not (sweep := MadeUpSweep(made_up_plan(outputs), score, draw.randint(1, 25))).run():
            deaths += 1
        assert finished(outputs) == finished(tmp_path / "undisturbed")
        assert sweep.conclusions == undisturbed.conclusions


def finished(outputs: Path) -> set[str]:
    return {str(path.relative_to(outputs)) for path in outputs.rglob("result.json")}


def test_a_sweep_that_another_has_overtaken_trains_nothing_more(tmp_path: Path) -> None:
    other = MadeUpSweep(made_up_plan(tmp_path))
    sweep = MadeUpSweep(made_up_plan(tmp_path), on_new=once(other.run))
    sweep.run()
    assert other.trained == all_seeds(SEEDS)
    assert sweep.trained == all_seeds(dict.fromkeys(WORTH, 3)), "the jobs of its first look, which find their results"
    assert sweep.conclusions == other.conclusions == CONCLUSIONS


def once(action: Callable[[], object]) -> Callable[[], None]:
    """Call an action at the first call only."""
    left = [action]

    def call() -> None:
        while left:
            left.pop()()

    return call


def test_a_sweep_that_is_asked_to_stop_ends_after_its_look(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path), on_new=lambda: stopping.request_stop(15))
    assert sweep.run() == {}
    assert sweep.trained == {}


def test_results_of_other_code_are_trained_again_if_the_user_says_so(tmp_path: Path) -> None:
    first = MadeUpSweep(made_up_plan(tmp_path))
    first.run()
    for entry in first.loop.plan.trials:
        leave_result(entry, BASELINE_DB + 3, code="other")
    again = MadeUpSweep(made_up_plan(tmp_path, on_change="retrain"))
    again.run()
    assert again.trained == all_seeds(SEEDS)
    kept = DecideLoop(made_up_plan(tmp_path, on_change="keep"))
    assert kept.ask() == []


def test_each_result_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUpSweep(made_up_plan(tmp_path)).run()
    loop = DecideLoop(made_up_plan(tmp_path))
    read: list[str] = []
    monkeypatch.setattr(json, "loads", lambda text: read.append(text))
    assert loop.ask() == []
    assert read == []


# --- teachers ---------------------------------------------------------------------------------------------------------

TEACHER = "ho"


def plan_with_a_teacher(outputs: Path) -> Plan:
    """The made-up plan with a teacher of the cell ``ede``, which nothing is compared with."""
    plan, trials = made_up_plan(outputs), []
    for entry in plan.trials:
        if entry.overrides[0] == "ede":
            teacher = dataclasses.replace(planned(outputs, TEACHER, entry.trial.seed), only_teaches=True)
            trial = dataclasses.replace(entry.trial, teacher=teacher.identity[0])
            trials += [teacher, dataclasses.replace(entry, trial=trial)]
        else:
            trials.append(entry)
    return dataclasses.replace(plan, trials=trials)


def taught_score(surrogate: str, seed: int) -> float | None:
    return 36.0 if surrogate == TEACHER else drawn_score(surrogate, seed)


def test_a_teacher_gets_the_seeds_of_what_it_teaches_before_it_and_no_verdict(tmp_path: Path) -> None:
    sweep = MadeUpSweep(plan_with_a_teacher(tmp_path), taught_score)
    sweep.run()
    assert sweep.trained == all_seeds({**SEEDS, TEACHER: SEEDS["ede"]})
    assert sweep.conclusions == CONCLUSIONS
    order = sweep.trainer.trained
    assert all(order.index((TEACHER, seed)) < order.index(("ede", seed)) for seed in range(SEEDS["ede"]))


def test_what_is_taught_by_a_teacher_that_fails_has_failed_too(tmp_path: Path) -> None:
    """Under that seed alone, as any trial that fails."""

    def score(surrogate: str, seed: int) -> float | None:
        return None if (surrogate, seed) == (TEACHER, 1) else taught_score(surrogate, seed)

    sweep = MadeUpSweep(plan_with_a_teacher(tmp_path), score)
    outcomes = sweep.run()
    assert ("ede", 1) not in sweep.trainer.trained
    (failed,) = [entry for entry in sweep.plan.trials if entry.overrides == ("ede", "1")]
    assert outcomes[failed.identity].state == State.FAILED
    assert outcomes[failed.identity].reason.endswith("failed: diverged")
