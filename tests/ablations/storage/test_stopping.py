"""A trial that is asked to stop: how it is asked, and what it saves so that the same command resumes it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from ablations.storage import stopping
from ablations.storage.attempts import State, history_of, present_state
from ablations.storage.stopping import Interrupted, StopSign, handling_signals, handling_signals_for_trial, marker_of
from tests.harness.builders import in_another_process, open_folder, without_root_rights
from tests.harness.faults import check_nothing_lost, endings
from tests.harness.support import Workplace, wait_until

FORK = get_context("fork")
WORDS = {
    signal.SIGINT: "stopped from the keyboard",
    signal.SIGTERM: "asked to stop (SIGTERM)",
    signal.SIGUSR2: "asked to stop (SIGUSR2)",
}
EACH = pytest.mark.parametrize("number", list(WORDS), ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def nobody_has_asked() -> Iterator[None]:
    stopping.clear_request()
    yield
    stopping.clear_request()


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return marker_of(tmp_path, "study", "session")


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in WORDS]


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_trial_continues_while_nobody_asks() -> None:
    with handling_signals_for_trial(None, for_good=False) as stop:
        stop.check()
        assert stop.reason() is None
    assert stopping.received_signal() is None


@EACH
def test_a_signal_asks_the_trial_to_stop(number: signal.Signals) -> None:
    with handling_signals_for_trial(None, for_good=False) as stop:
        signal.raise_signal(number)
        assert stop.reason() == WORDS[number]
        with pytest.raises(Interrupted) as told:
            stop.check()
    assert str(told.value) == WORDS[number]
    assert stopping.received_signal() == number


def test_the_first_signal_is_answered_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with handling_signals():
        signal.raise_signal(signal.SIGINT)
    assert "stopping after the current steps; Ctrl-C again stops at once" in capfd.readouterr().err


@EACH
def test_a_second_time_from_the_keyboard_stops_at_once(number: signal.Signals) -> None:
    with handling_signals():
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_cluster_may_ask_as_often_as_it_likes() -> None:
    with handling_signals_for_trial(None, for_good=False) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.reason() == WORDS[signal.SIGTERM]


def test_signal_handlers_are_restored() -> None:
    before = handlers()
    with handling_signals():
        assert handlers() != before
    assert handlers() == before


def listen_while_ignoring(number: signal.Signals) -> tuple[bool, bool]:
    """Whether an ignored signal asks the trial to stop, and whether it is still ignored afterwards."""
    signal.signal(number, signal.SIG_IGN)
    with handling_signals_for_trial(None, for_good=False) as stop:
        signal.raise_signal(number)
        asks = stop.reason() is not None
    return asks, signal.getsignal(number) == signal.SIG_IGN


@EACH
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    assert in_another_process(listen_while_ignoring, number) == (False, True)


def test_an_earlier_request_is_forgotten() -> None:
    stopping.request_stop(signal.SIGINT)
    with handling_signals_for_trial(None, for_good=False) as stop:
        assert stop.reason() is None


def test_a_trial_in_the_process_of_its_sweep_stops_with_it() -> None:
    with handling_signals():
        signal.raise_signal(signal.SIGINT)
        with handling_signals_for_trial(None, for_good=True) as stop:
            assert stop.reason() == WORDS[signal.SIGINT]
        assert stopping.received_signal() == signal.SIGINT


def stop_without_a_terminal() -> str | None:
    os.close(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    with handling_signals_for_trial(None, for_good=False) as stop:
        signal.raise_signal(signal.SIGINT)
        return stop.reason()


def test_a_trial_without_a_terminal_can_be_asked_too() -> None:
    assert in_another_process(stop_without_a_terminal) == WORDS[signal.SIGINT]


def test_in_another_thread_no_signal_handler_is_changed() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with handling_signals_for_trial(None, for_good=True) as stop:
            seen.append((stop.reason(), handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


# --- the file of the sweep --------------------------------------------------------------------------------------------


def test_a_sweep_passes_a_signal_on_by_a_marker_file_and_removes_it_at_the_end(marker: Path) -> None:
    with handling_signals(marker):
        assert not marker.exists()
        signal.raise_signal(signal.SIGTERM)
        assert marker.exists()
    assert not marker.exists()


def test_a_trial_in_another_process_stops_by_the_marker_file(marker: Path) -> None:
    stop = StopSign(marker)
    assert stop.reason() is None
    marker.parent.mkdir(parents=True)
    marker.touch()
    wait_until(lambda: stop.reason() == "the sweep was stopped", "the trial to see the file")


def test_the_marker_file_of_another_sweep_stops_nothing(marker: Path, tmp_path: Path) -> None:
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert StopSign(marker_of(tmp_path, "study", "another")).reason() is None


def test_a_sweep_that_cannot_write_its_marker_file_is_asked_too() -> None:
    with open_folder() as outputs, without_root_rights():
        with handling_signals(marker_of(outputs, "study", "session")):
            signal.raise_signal(signal.SIGTERM)
        assert stopping.received_signal() == signal.SIGTERM


# --- workers ----------------------------------------------------------------------------------------------------------


def work_on(number: signal.Signals) -> list[str | None]:
    """The reasons to stop in a worker's first trial, and in the next one after a signal between the two."""
    heard = []
    # A signal that ends the worker must not end the tests.
    with contextlib.suppress(KeyboardInterrupt):
        with handling_signals_for_trial(None, for_good=True) as stop:
            heard.append(stop.reason())
            signal.raise_signal(number)
            heard.append(stop.reason())
        stopping.clear_request()
        signal.raise_signal(number)
        with handling_signals_for_trial(None, for_good=True) as stop:
            heard.append(stop.reason())
            signal.raise_signal(number)
            heard.append(stop.reason())
    return heard


@EACH
def test_a_signal_stops_a_workers_trial_and_does_nothing_between_trials(number: signal.Signals) -> None:
    assert in_another_process(work_on, number) == [None, WORDS[number], None, WORDS[number]]


def work_quietly(out: int) -> None:
    os.dup2(out, 2)
    with handling_signals_for_trial(None, for_good=True):
        signal.raise_signal(signal.SIGINT)


def test_a_worker_prints_nothing_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("wb") as terminal:
        in_another_process(work_quietly, terminal.fileno())
    assert (tmp_path / "terminal").read_bytes() == b""


# --- a whole trial ----------------------------------------------------------------------------------------------------

LONG = (
    *("train.steps=100", "train.precision=fp32", "train.compile=false", "bn=post", "surrogate=ede"),
    *("tracking.snapshot_s=0", "tracking.curve_points=16", "tracking.evaluations=4"),
)
"""A few seconds of training, with a snapshot after each step, in arithmetic that repeats itself bit for bit."""


def run(workplace: Workplace) -> None:
    """Run the long trial, and exit with its status."""
    sys.exit(workplace.run(*LONG).status)


def stopped(workplace: Workplace, number: signal.Signals, step: int) -> int | None:
    """Run the long trial in another process, send it a signal after ``step``, and return its exit status."""
    snapshots = workplace.folder_of(*LONG).snapshots
    process = FORK.Process(target=run, args=(workplace,))
    process.start()
    try:
        wait_until(lambda: any(path.name >= f"step{step:09d}" for path in snapshots.glob("step*.pt")), "the training")
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(600)
        return process.exitcode
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_trial_that_was_stopped_twice_has_the_result_of_an_undisturbed_one(
    new_workplace: Callable[[], Workplace],
) -> None:
    place, other = (new_workplace() for _ in range(2))
    folder = place.folder_of(*LONG)
    assert other.run(*LONG).status == 0

    assert stopped(place, signal.SIGTERM, step=10) == 128 + signal.SIGTERM
    assert (folder.result(), present_state(folder)) == (None, (State.INTERRUPTED, WORDS[signal.SIGTERM]))
    assert stopped(place, signal.SIGINT, step=30) == 128 + signal.SIGINT
    assert (folder.result(), present_state(folder)) == (None, (State.INTERRUPTED, WORDS[signal.SIGINT]))
    assert place.run(*LONG).status == 0

    check_nothing_lost(place, endings(other))
    assert sum(len(point.metrics) for point in folder.curve()) == 16 * 2 + 4

    first, second, third = history_of(folder).attempts
    assert [attempt.state for attempt in (first, second, third)] == ["interrupted", "interrupted", "finished"]
    assert 0 == first.from_step < 10 <= second.from_step < 30 <= third.from_step < 100
    reasons = [run.data.tags["reason"] for run in place.runs("KILLED")]
    assert sorted(reasons) == [WORDS[signal.SIGTERM], WORDS[signal.SIGINT]]
