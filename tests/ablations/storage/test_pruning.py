"""A search ends a trial early: the trial asks after an evaluation, and goes on unless the answer is to end."""

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ablations.storage import pruning
from ablations.storage.attempts import State, history_of, present_state
from ablations.storage.files import write_atomically
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import lease_path
from ablations.storage.pruning import (
    PruningClient,
    PruningRequest,
    TrialPruned,
    answer_path,
    open_request,
    request_path,
    search_marker,
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
    write_atomically(search_marker(found, SESSION), "")
    return found


@contextlib.contextmanager
def search(folder: TrialFolder, answer: Callable[[PruningRequest], None]) -> Iterator[list[PruningRequest]]:
    """A search that answers requests; yields those that it has got so far."""
    asked: list[PruningRequest] = []
    over = threading.Event()

    def look_on() -> None:
        while not over.wait(0.005):
            request = open_request(folder)
            if request is not None:
                asked.append(request)
                answer(request)

    thread = threading.Thread(target=look_on)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def go_on(request: PruningRequest) -> None:
    request.answer(prune=False)


def prune(request: PruningRequest) -> None:
    request.answer(prune=True)


def is_clean(folder: TrialFolder) -> bool:
    """Whether no request and no answer is left."""
    return not request_path(folder).exists() and not answer_path(folder).exists()


# --- requests and answers ---------------------------------------------------------------------------------------------


def test_each_request_gets_its_own_answer(folder: TrialFolder) -> None:
    client = PruningClient(folder, SESSION)
    assert open_request(folder) is None
    with search(folder, lambda request: request.answer(prune=request.step == 30)) as asked:
        client.check(10, 30.0)
        client.check(20, 30.5)
        with pytest.raises(TrialPruned, match=r"pruned at step 30 with 30\.20 dB") as ended:
            client.check(30, 30.2)
    assert [(request.folder, request.step, request.psnr_db) for request in asked] == [
        (folder, 10, 30.0),
        (folder, 20, 30.5),
        (folder, 30, 30.2),
    ]
    assert (ended.value.step, ended.value.psnr_db) == (30, 30.2)
    assert is_clean(folder)


def test_a_pruned_trial_reaches_the_sweep_from_another_process_with_its_step() -> None:
    arrived = pickle.loads(pickle.dumps(TrialPruned(20, 31.5)))
    assert (type(arrived), arrived.step, str(arrived)) == (TrialPruned, 20, "pruned at step 20 with 31.50 dB")


@pytest.mark.parametrize("session", ["", "another"], ids=["no sweep", "a sweep that is not a search"])
def test_a_trial_outside_a_search_asks_nobody(folder: TrialFolder, session: str) -> None:
    with search(folder, prune) as asked:
        PruningClient(folder, session).check(20, 31.5)
    assert asked == []


def test_without_an_answer_the_trial_withdraws_its_request_and_goes_on(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WAIT_SECONDS", 0.05)
    PruningClient(folder, SESSION).check(20, 31.5)
    assert is_clean(folder)


def test_a_late_answer_does_not_count_for_a_later_attempt(folder: TrialFolder) -> None:
    PruningRequest(folder, 20, 31.5).answer(prune=True)
    with search(folder, go_on) as asked:
        PruningClient(folder, SESSION).check(20, 31.5)
    assert len(asked) == 1


def test_an_answer_to_another_request_does_not_count(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "WAIT_SECONDS", 0.2)
    with search(folder, lambda _: PruningRequest(folder, 10, 0.0).answer(prune=True)) as asked:
        PruningClient(folder, SESSION).check(20, 31.5)
    assert len(asked) == 1


def test_requests_are_not_taken_for_leases(folder: TrialFolder) -> None:
    assert request_path(folder).parent == answer_path(folder).parent == lease_path(folder).parent
    assert ".json" not in {request_path(folder).suffix, answer_path(folder).suffix, ".search"}


def test_a_disk_that_cannot_be_written_to_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with open_folder() as outputs:
        client = PruningClient(searched(outputs), SESSION)
        with without_root_rights():
            client.check(20, 31.5)
    assert "the search cannot be asked at step 20: Permission denied; training continues" in caplog.text


# --- a whole trial ----------------------------------------------------------------------------------------------------


def test_a_pruned_trial_is_recorded_as_such_with_its_step_and_score(workplace: Workplace) -> None:
    overrides = ("train.steps=4", "tracking.evaluations=2")
    folder = workplace.folder_of(*overrides)
    write_atomically(search_marker(folder, SESSION), "")
    config = workplace.config(*overrides, f"session={SESSION}")
    with search(folder, prune) as asked, pytest.raises(TrialPruned, match="pruned at step 2 with"):
        run_trial(config)
    assert [request.step for request in asked] == [2]
    state, reason = present_state(folder)
    assert state == State.PRUNED
    assert reason == f"pruned at step 2 with {asked[0].psnr_db:.2f} dB"
    (attempt,) = history_of(folder).attempts
    assert (attempt.step, attempt.psnr_db) == (2, asked[0].psnr_db)
    assert folder.result() is None
    (run,) = workplace.runs()
    assert (run.info.status, run.data.tags["state"], run.data.tags["reason"]) == ("KILLED", "pruned", reason)
    assert not lease_path(folder).exists()
