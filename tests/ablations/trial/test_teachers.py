"""A trial that is taught: its teacher is trained once, before it, and its result names the network that taught it."""

from collections.abc import Callable

import pytest
import torch

from ablations.storage.attempts import State, history_of, present_state
from ablations.storage.files import file_checksum
from ablations.storage.lease import trial_lock
from tests.harness.faults import ending_of
from tests.harness.support import Workplace, result_of

EXACT = ("train.precision=fp32", "train.compile=false", "train.steps=4", "tracking.evaluations=1")
TAUGHT = ("distil=output", *EXACT)
TEACHER = ("binarize=[]", *EXACT)


@pytest.fixture(scope="module")
def school(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A workplace where one command has trained a taught trial, and so its teacher."""
    place = new_workplace()
    outcome = place.run(*TAUGHT)
    assert outcome.status == 0, outcome.text
    return place


def test_the_teacher_is_a_trial_of_its_own_that_later_trials_share(school: Workplace) -> None:
    teacher = school.folder_of(*TEACHER)
    before = teacher.result_path.read_bytes()
    assert school.names() == {"full_precision", "distil=output"}
    assert school.run(*TAUGHT, "start=full").status == 0
    assert teacher.result_path.read_bytes() == before
    assert [attempt.state for attempt in history_of(teacher).attempts] == [State.FINISHED]
    assert school.finished() == school.results()
    assert len(school.results()) == 3


def test_the_result_says_by_which_network_it_was_taught_and_how_long_that_trained(school: Workplace) -> None:
    teacher, student = school.folder_of(*TEACHER), result_of(school, *TAUGHT)
    checkpoint = file_checksum(teacher.checkpoint_path)
    assert student["teacher"] == {"cell": teacher.cell, "seed": 0, "checkpoint": checkpoint}
    own = teacher.result()
    assert own is not None
    assert student["timing"]["teacher_s"] == own["timing"]["train_s"]
    assert "teacher" not in own
    assert "teacher_s" not in own["timing"]


def test_a_taught_network_learns_something_else_than_one_without_a_teacher(school: Workplace) -> None:
    assert school.run(*EXACT).status == 0
    alone, taught = (school.folder_of(*overrides).checkpoint_path for overrides in (EXACT, TAUGHT))
    first, second = (torch.load(path, weights_only=True) for path in (alone, taught))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_sweep_comes_to_the_same_end_as_single_runs(school: Workplace, workplace: Workplace) -> None:
    """Its checkpoint has the same bytes, whatever temporary file it was written to first."""
    outcome = workplace.sweep("distil=output,none", *EXACT)
    assert outcome.status == 0, outcome.text
    assert "1 of these trials only teach others" in outcome.out
    assert "full_precision (teacher)" in outcome.out
    for overrides in (TAUGHT, TEACHER):
        ours, theirs = workplace.folder_of(*overrides), school.folder_of(*overrides)
        assert ending_of(ours) == ending_of(theirs)
        assert ours.checkpoint_path.read_bytes() == theirs.checkpoint_path.read_bytes()


def test_a_teacher_that_was_trained_anew_with_another_outcome_makes_its_students_stale(workplace: Workplace) -> None:
    assert workplace.run(*TAUGHT).status == 0
    teacher, student = workplace.folder_of(*TEACHER), workplace.folder_of(*TAUGHT)
    weights = torch.load(teacher.checkpoint_path, weights_only=True)
    torch.save({name: value + 1e-3 for name, value in weights.items()}, teacher.checkpoint_path)
    own = teacher.result()
    assert own is not None
    teacher.write_result(own)
    before = student.result_path.read_bytes()
    assert "its teacher was trained again since, with another outcome" in workplace.run(*TAUGHT).refusal
    assert "such as distil=output seed 0: its teacher was trained again" in workplace.sweep(*TAUGHT).message
    assert workplace.run(*TAUGHT, "on_change=keep").status == 0
    assert student.result_path.read_bytes() == before
    assert workplace.run(*TAUGHT, "on_change=retrain").status == 0
    assert result_of(workplace, *TAUGHT)["teacher"]["checkpoint"] == file_checksum(teacher.checkpoint_path)
    assert workplace.run(*TAUGHT).status == 0


def test_what_is_taught_fails_with_its_teacher(workplace: Workplace) -> None:
    outcome = workplace.run(*TAUGHT, "train.lr=1e30")
    teacher, student = (workplace.folder_of(*own, "train.lr=1e30") for own in (TEACHER, TAUGHT))
    state, reason = present_state(student)
    assert outcome.status == 1
    assert state == State.FAILED
    assert reason.startswith("its teacher failed: full_precision seed 0 failed: the loss is")
    assert reason in outcome.refusal
    assert present_state(teacher)[0] == State.FAILED


def test_a_single_run_waits_for_a_teacher_that_another_process_trains(
    school: Workplace, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, waits = workplace.folder_of(*TEACHER), []
    other = trial_lock(folder, "full_precision")
    other.__enter__()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            other.__exit__(None, None, None)

    monkeypatch.setattr("ablations.trial.execution.time.sleep", sleep)
    assert workplace.run(*TAUGHT).status == 0
    assert len(waits) == 2
    assert ending_of(workplace.folder_of(*TAUGHT)) == ending_of(school.folder_of(*TAUGHT))
