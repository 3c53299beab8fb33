"""A search ends a trial early: the trial asks after an evaluation, and goes on unless it is told not to."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ablations.storage import pruning
from ablations.storage.attempts import State, present_state
from ablations.storage.files import write_atomically
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import lease_path
from ablations.storage.pruning import (
    Pruned,
    Question,
    Verdicts,
    answer_path,
    open_question,
    question_path,
    searching_path,
)
from ablations.trial.execution import run_trial
from tests.harness.builders import open_folder, without_root_rights
from tests.harness.support import Workplace

SESSION = "search"


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return searched(tmp_path)


def searched(outputs: Path) -> TrialFolder:
    """A trial of a sweep that is a search."""
    found = TrialFolder(outputs, "pruning", "c" * 64, 0)
    write_atomically(searching_path(found, SESSION), "")
    return found


@contextlib.contextmanager
def search(folder: TrialFolder, answers: Callable[[Question], None]) -> Iterator[list[Question]]:
    """A search that looks for questions and answers them; gives what it was asked so far."""
    asked: list[Question] = []
    over = threading.Event()

    def look_on() -> None:
        while not over.wait(0.005):
            question = open_question(folder)
            if question is not None:
                asked.append(question)
                answers(question)

    thread = threading.Thread(target=look_on)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def go_on(question: Question) -> None:
    question.answer(prune=False)


def prune(question: Question) -> None:
    question.answer(prune=True)


def is_quiet(folder: TrialFolder) -> bool:
    """Whether no question and no answer lies there."""
    return not question_path(folder).exists() and not answer_path(folder).exists()


# --- questions and answers --------------------------------------------------------------------------------------------


def test_a_trial_goes_on_where_the_search_lets_it(folder: TrialFolder) -> None:
    with search(folder, go_on) as asked:
        Verdicts(folder, SESSION).check(20, 31.5)
    ((question,)) = asked
    assert (question.folder, question.step, question.psnr_db) == (folder, 20, 31.5)
    assert is_quiet(folder)


def test_a_trial_ends_where_the_search_says_so(folder: TrialFolder) -> None:
    with search(folder, prune), pytest.raises(Pruned, match=r"pruned at step 20 with 31\.50 dB"):
        Verdicts(folder, SESSION).check(20, 31.5)
    assert is_quiet(folder)


def test_each_question_gets_its_own_answer(folder: TrialFolder) -> None:
    verdicts = Verdicts(folder, SESSION)
    with search(folder, lambda question: question.answer(prune=question.step == 30)) as asked:
        verdicts.check(10, 30.0)
        verdicts.check(20, 30.5)
        with pytest.raises(Pruned):
            verdicts.check(30, 30.2)
    assert [question.step for question in asked] == [10, 20, 30]


def test_a_trial_that_belongs_to_no_sweep_asks_nobody(folder: TrialFolder) -> None:
    with search(folder, prune) as asked:
        Verdicts(folder, "").check(20, 31.5)
    assert asked == []


def test_a_trial_of_a_sweep_that_is_no_search_asks_nobody(folder: TrialFolder) -> None:
    with search(folder, prune) as asked:
        Verdicts(folder, "another").check(20, 31.5)
    assert asked == []


def test_where_nobody_answers_the_trial_takes_its_question_back_and_goes_on(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WAIT_SECONDS", 0.05)
    Verdicts(folder, SESSION).check(20, 31.5)
    assert is_quiet(folder)


def test_an_answer_that_came_too_late_is_none_to_a_later_attempt(folder: TrialFolder) -> None:
    Question(folder, 20, 31.5).answer(prune=True)
    with search(folder, go_on) as asked:
        Verdicts(folder, SESSION).check(20, 31.5)
    assert len(asked) == 1


def test_an_answer_to_another_question_counts_for_nothing(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "WAIT_SECONDS", 0.2)
    with search(folder, lambda _: Question(folder, 10, 0.0).answer(prune=True)) as asked:
        Verdicts(folder, SESSION).check(20, 31.5)
    assert len(asked) == 1


def test_nobody_asks_where_there_is_no_question(folder: TrialFolder) -> None:
    assert open_question(folder) is None


def test_questions_are_no_leases(folder: TrialFolder) -> None:
    assert question_path(folder).parent == answer_path(folder).parent == lease_path(folder).parent
    assert not {question_path(folder).suffix, answer_path(folder).suffix, ".search"} & {".json"}


def test_a_disk_that_takes_no_question_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with open_folder() as outputs:
        verdicts = Verdicts(searched(outputs), SESSION)
        with without_root_rights():
            verdicts.check(20, 31.5)
    assert "the search cannot be asked at step 20: Permission denied; the training goes on" in caplog.text


# --- a whole trial ----------------------------------------------------------------------------------------------------


def test_a_pruned_trial_is_left_as_such_with_its_reason(workplace: Workplace) -> None:
    overrides = ("train.steps=4", "tracking.evaluations=2")
    folder = workplace.folder_of(*overrides)
    write_atomically(searching_path(folder, SESSION), "")
    config = workplace.config(*overrides, f"session={SESSION}")
    with search(folder, prune) as asked, pytest.raises(Pruned, match="pruned at step 2 with"):
        run_trial(config)
    assert [question.step for question in asked] == [2]
    state, reason = present_state(folder)
    assert state == State.PRUNED
    assert reason == f"pruned at step 2 with {asked[0].psnr_db:.2f} dB"
    assert folder.result() is None
    (run,) = workplace.runs()
    assert (run.info.status, run.data.tags["state"], run.data.tags["reason"]) == ("KILLED", "pruned", reason)
    assert not lease_path(folder).exists()
