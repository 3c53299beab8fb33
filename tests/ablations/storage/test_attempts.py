"""The state of a trial: every attempt at it, how each ended, and the present state."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ablations.storage.attempts import (
    PROCESS_DIED,
    RESULT_LOST,
    History,
    State,
    begin_attempt,
    end_attempt,
    history_of,
    present_state,
    progress_text,
    update_attempt,
)
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import trial_lock
from bbcu.files import write_atomically
from tests.ablations.storage.helpers import put_lease, result

ENDINGS = (State.FINISHED, State.FAILED, State.INTERRUPTED, State.PRUNED)


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    found = TrialFolder(tmp_path, "states", "c" * 64, 0)
    found.path.mkdir(parents=True)
    return found


def finish(folder: TrialFolder) -> None:
    """Leave a result."""
    folder.write_result(result(folder.seed, folder.cell))


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_a_trial_without_an_attempt_is_planned(folder: TrialFolder) -> None:
    assert history_of(folder) == History()
    assert (History().state, History().since) == (State.PLANNED, None)
    assert present_state(folder) == (State.PLANNED, "")


def test_an_attempt_whose_clock_was_set_back_ends_no_earlier_than_it_began(folder: TrialFolder) -> None:
    tomorrow = time.time() + 86_400
    begin_attempt(folder, began=tomorrow)
    end_attempt(folder, State.FINISHED)
    (attempt,) = history_of(folder).attempts
    assert (attempt.began, attempt.ended) == (tomorrow, tomorrow)


def test_an_attempt_that_begins_runs_in_this_process(folder: TrialFolder) -> None:
    attempt = begin_attempt(folder, began=100.0)
    assert history_of(folder).attempts == (attempt,)
    assert (attempt.number, attempt.state, attempt.began, attempt.ended) == (1, State.RUNNING, 100.0, None)
    assert (attempt.host, attempt.pid) == (os.uname().nodename, os.getpid())
    assert history_of(folder).since == 100.0


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_attempt_ends_in_its_state_and_stays_when_another_begins(folder: TrialFolder, ending: State) -> None:
    begin_attempt(folder, began=100.0)
    end_attempt(folder, ending, "for a reason", step=7)
    history = history_of(folder)
    (first,) = history.attempts
    assert (history.state, first.reason, first.step) == (ending, "for a reason", 7)
    assert first.ended is not None
    assert history.since == first.ended > first.began
    content = json.loads(folder.state_path.read_text(encoding="utf-8"))
    assert (content["state"], content["reason"]) == (ending, "for a reason")
    second = begin_attempt(folder)
    assert second.number == 2
    assert history_of(folder).attempts == (first, second)
    assert history_of(folder).state == State.RUNNING


def test_an_update_changes_only_the_latest_attempt(folder: TrialFolder) -> None:
    begin_attempt(folder)
    end_attempt(folder, State.INTERRUPTED, "stopped")
    begin_attempt(folder)
    update_attempt(folder, from_step=120)
    assert [attempt.from_step for attempt in history_of(folder).attempts] == [0, 120]
    assert history_of(folder).state == State.RUNNING


def test_ending_a_trial_without_an_attempt_writes_nothing(folder: TrialFolder) -> None:
    end_attempt(folder, State.FAILED, "its worker died")
    assert not folder.state_path.exists()


# --- an attempt whose process was killed ------------------------------------------------------------------------------


def test_an_attempt_without_an_end_was_interrupted_once_another_begins(folder: TrialFolder) -> None:
    begin_attempt(folder)
    begin_attempt(folder)
    first, second = history_of(folder).attempts
    assert (first.state, first.reason) == (State.INTERRUPTED, PROCESS_DIED)
    assert second.state == State.RUNNING


def test_a_killed_attempt_ended_when_it_last_wrote_a_file(folder: TrialFolder) -> None:
    begin_attempt(folder, began=100.0)
    for path, moment in ((folder.log_path, 130.0), (folder.snapshots / "step.pt", 150.0)):
        write_atomically(path, "")
        os.utime(path, (moment, moment))
    os.utime(folder.snapshots, (150.0, 150.0))
    begin_attempt(folder, began=400.0)
    assert history_of(folder).attempts[0].ended == 150.0


def test_a_killed_attempt_without_files_ended_when_it_began(folder: TrialFolder) -> None:
    begin_attempt(folder, began=100.0)
    begin_attempt(folder, began=400.0)
    assert history_of(folder).attempts[0].ended == 100.0


# --- the present state ------------------------------------------------------------------------------------------------


def test_a_trial_runs_while_its_process_does(folder: TrialFolder) -> None:
    with trial_lock(folder, "bbcu"):
        begin_attempt(folder)
        assert present_state(folder) == (State.RUNNING, "")


@pytest.mark.parametrize(
    "lease",
    [None, {"process_start": "0"}, {"host": f"{os.uname().nodename}/an earlier start"}],
    ids=["none", "of-a-process-that-ended", "from-before-a-restart"],
)
def test_a_trial_whose_process_is_gone_is_interrupted_whatever_it_wrote(
    folder: TrialFolder, lease: dict[str, Any] | None
) -> None:
    begin_attempt(folder)
    if lease is not None:
        put_lease(folder, **lease)
    assert history_of(folder).state == State.RUNNING
    assert present_state(folder) == (State.INTERRUPTED, PROCESS_DIED)


def test_a_trial_that_lost_its_result_is_interrupted(folder: TrialFolder) -> None:
    begin_attempt(folder)
    end_attempt(folder, State.FINISHED)
    assert present_state(folder) == (State.INTERRUPTED, RESULT_LOST)


@pytest.mark.parametrize("ending", [None, *ENDINGS])
def test_a_trial_whose_result_is_damaged_is_interrupted_for_that_reason(
    folder: TrialFolder, ending: State | None
) -> None:
    if ending is not None:
        begin_attempt(folder)
        end_attempt(folder, ending)
    folder.result_path.write_text("[]")
    assert present_state(folder) == (State.INTERRUPTED, "its result.json is damaged: it holds no JSON object")


def test_a_trial_of_another_machine_is_running(folder: TrialFolder) -> None:
    begin_attempt(folder)
    put_lease(folder, host="elsewhere/1")
    assert present_state(folder) == (State.RUNNING, "")


@pytest.mark.parametrize("ending", [State.FAILED, State.INTERRUPTED, State.PRUNED])
def test_a_trial_without_a_result_has_the_state_of_its_last_attempt(folder: TrialFolder, ending: State) -> None:
    begin_attempt(folder)
    end_attempt(folder, ending, "for a reason")
    assert present_state(folder) == (ending, "for a reason")


@pytest.mark.parametrize("ending", [None, *ENDINGS])
def test_a_result_makes_a_trial_finished_whatever_the_attempts_say(folder: TrialFolder, ending: State | None) -> None:
    begin_attempt(folder)
    if ending is not None:
        end_attempt(folder, ending, "for a reason")
    finish(folder)
    assert present_state(folder) == (State.FINISHED, "")


# --- a file that is damaged -------------------------------------------------------------------------------------------

ROW = '{"number": 1, "state": "running", "reason": "", "began": 1.0, "ended": null, "host": "h", "pid": 1'


def history(row: str, state: str = "running") -> str:
    """The text of a ``state.json`` without a checksum, as earlier versions wrote it."""
    return f'{{"state": "{state}", "reason": "", "attempts": [{row}]}}'


@pytest.mark.parametrize(
    "text",
    [
        *("", '{"attempts": [', "[]", "{}", '{"attempts": [{}]}', '{"attempts": [1]}', '{"attempts": null}'),
        history(f'{ROW}, "unknown": 1}}'),
        history(f"{ROW}}}").replace("running", "asleep"),
        history(f"{ROW}}}").replace("1.0", "1e300"),
        history(f"{ROW}}}").replace('"pid": 1', '"pid": -1'),
        history(f"{ROW}}}", state="failed"),
        "[" * 100_000,
    ],
    ids=lambda text: text[:60],
)
def test_a_damaged_history_is_named_and_attempts_count_from_one_again(
    folder: TrialFolder, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_atomically(folder.state_path, text)
    assert history_of(folder).attempts == ()
    state, reason = present_state(folder)
    assert state == State.INTERRUPTED
    assert reason.startswith("its state.json is damaged: ")
    assert begin_attempt(folder).number == 1
    (message,) = caplog.messages
    assert message.startswith(f"{folder.state_path} is damaged: ")
    assert message.endswith("; attempts count from 1")
    assert present_state(folder) == (State.INTERRUPTED, PROCESS_DIED)


def test_a_whole_row_is_a_history(folder: TrialFolder) -> None:
    write_atomically(folder.state_path, history(f"{ROW}}}"))
    assert history_of(folder).state == State.RUNNING


# --- in words ---------------------------------------------------------------------------------------------------------


def test_progress_is_a_phase_a_step_and_a_score(folder: TrialFolder) -> None:
    assert progress_text(put_lease(folder)) == "preparing, step 0/500"
    lease = put_lease(folder, phase="training", step=120, psnr_db=33.914)
    assert progress_text(lease) == "training, step 120/500, 33.91 dB"
