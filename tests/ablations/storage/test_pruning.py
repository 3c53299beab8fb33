"""A search prunes a trial: the trial asks after an evaluation, and continues unless the answer is to stop."""

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ablations.storage import pruning
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
from bbcu.files import write_atomically
from tests.harness.builders import open_folder, without_root_rights

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

    def answer_requests() -> None:
        while not over.wait(0.005):
            request = open_request(folder)
            if request is not None:
                asked.append(request)
                answer(request)

    thread = threading.Thread(target=answer_requests)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def continue_trial(request: PruningRequest) -> None:
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
def test_a_trial_outside_a_search_does_not_ask(folder: TrialFolder, session: str) -> None:
    with search(folder, prune) as asked:
        PruningClient(folder, session).check(20, 31.5)
    assert asked == []


def test_without_an_answer_the_trial_withdraws_its_request_and_continues(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WAIT_SECONDS", 0.05)
    PruningClient(folder, SESSION).check(20, 31.5)
    assert is_clean(folder)


def test_a_late_answer_does_not_count_for_a_later_attempt(folder: TrialFolder) -> None:
    PruningRequest(folder, 20, 31.5).answer(prune=True)
    with search(folder, continue_trial) as asked:
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
