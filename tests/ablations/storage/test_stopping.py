"""A trial that is asked to stop: how it hears of it, and what it leaves so that the same command goes on from there."""

import contextlib
import csv
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ablations.storage import stopping
from ablations.storage.attempts import PROCESS_DIED, State, history_of, present_state
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import leases
from ablations.storage.stopping import Interrupted, StopSign, handling_signals, handling_signals_for_trial, marker_of
from ablations.tracking.client import client_of
from tests.harness.builders import in_another_process, open_folder, without_root_rights
from tests.harness.support import STUDY, Workplace, ended, wait_until

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


def test_a_trial_goes_on_while_nobody_asks() -> None:
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


def test_signals_are_as_they_were_afterwards() -> None:
    before = handlers()
    with handling_signals():
        assert handlers() != before
    assert handlers() == before


def listen_while_ignoring(number: signal.Signals) -> tuple[bool, bool]:
    """Whether a signal that is ignored asks for something, and whether it is still ignored afterwards."""
    signal.signal(number, signal.SIG_IGN)
    with handling_signals_for_trial(None, for_good=False) as stop:
        signal.raise_signal(number)
        asks = stop.reason() is not None
    return asks, signal.getsignal(number) == signal.SIG_IGN


@EACH
def test_a_signal_that_somebody_has_set_to_be_ignored_stays_so(number: signal.Signals) -> None:
    assert in_another_process(listen_while_ignoring, number) == (False, True)


def test_a_request_of_before_is_forgotten() -> None:
    stopping.request_stop(signal.SIGINT)
    with handling_signals_for_trial(None, for_good=False) as stop:
        assert stop.reason() is None


def test_a_trial_in_the_process_of_its_sweep_hears_what_the_sweep_was_asked() -> None:
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


def test_a_terminal_that_is_gone_is_no_reason_to_break_off() -> None:
    assert in_another_process(stop_without_a_terminal) == WORDS[signal.SIGINT]


def test_in_another_thread_the_work_is_done_and_no_signal_is_touched() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with handling_signals_for_trial(None, for_good=True) as stop:
            seen.append((stop.reason(), handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


# --- the file of the sweep --------------------------------------------------------------------------------------------


def test_a_sweep_passes_a_signal_on_by_its_file_and_takes_that_away_when_it_leaves(marker: Path) -> None:
    with handling_signals(marker):
        assert not marker.exists()
        signal.raise_signal(signal.SIGTERM)
        assert marker.exists()
    assert not marker.exists()


def test_a_trial_elsewhere_stops_by_the_file(marker: Path) -> None:
    stop = StopSign(marker)
    assert stop.reason() is None
    marker.parent.mkdir(parents=True)
    marker.touch()
    wait_until(lambda: stop.reason() == "the sweep was stopped", "the trial to see the file")


def test_the_file_of_another_sweep_stops_nothing(marker: Path, tmp_path: Path) -> None:
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert StopSign(marker_of(tmp_path, "study", "another")).reason() is None


def test_a_sweep_that_cannot_leave_its_file_is_asked_all_the_same() -> None:
    with open_folder() as outputs, without_root_rights():
        with handling_signals(marker_of(outputs, "study", "session")):
            signal.raise_signal(signal.SIGTERM)
        assert stopping.received_signal() == signal.SIGTERM


# --- workers ----------------------------------------------------------------------------------------------------------


def work_on(number: signal.Signals) -> list[str | None]:
    """What a worker hears: in its first trial, which is told to stop, and in the one after a signal between the two."""
    heard = []
    # A signal that ends the worker is not to end the tests.
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
def test_a_worker_hears_of_signals_in_its_trials_and_outlives_those_between_them(number: signal.Signals) -> None:
    assert in_another_process(work_on, number) == [None, WORDS[number], None, WORDS[number]]


def work_quietly(out: int) -> None:
    os.dup2(out, 2)
    with handling_signals_for_trial(None, for_good=True):
        signal.raise_signal(signal.SIGINT)


def test_a_worker_leaves_the_terminal_to_its_sweep(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("wb") as terminal:
        in_another_process(work_quietly, terminal.fileno())
    assert (tmp_path / "terminal").read_bytes() == b""


# --- a whole trial ----------------------------------------------------------------------------------------------------

LONG = (
    *("train.steps=160", "train.precision=fp32", "train.compile=false", "bn=post", "surrogate=ede"),
    *("tracking.snapshot_s=0", "tracking.curve_points=16", "tracking.evaluations=4"),
)
"""A few seconds of training, with a snapshot after each step, in arithmetic that repeats itself bit for bit."""


def run(workplace: Workplace) -> None:
    """Run the long trial, and leave with its status."""
    sys.exit(workplace.run(*LONG).status)


def stopped(workplace: Workplace, number: signal.Signals, step: int) -> int | None:
    """Run the long trial in another process, send it a signal once it is past ``step``, and give its exit status."""
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


class Left(NamedTuple):
    """What a finished trial has left that does not depend on when and how fast it ran."""

    result: dict[str, Any]
    curve: list[tuple[str, str, str]]
    checkpoint: dict[str, torch.Tensor]


def left_in(folder: TrialFolder) -> Left:
    result = folder.result()
    assert result is not None
    with folder.curve_path.open(newline="", encoding="utf-8") as file:
        curve = [(str(row["step"]), str(row["metric"]), str(row["value"])) for row in csv.DictReader(file)]
    network = torch.load(folder.checkpoint_path, weights_only=True)
    return Left({name: part for name, part in result.items() if name not in ("timing", "provenance")}, curve, network)


def curve_in_mlflow(workplace: Workplace, run_id: str) -> set[tuple[str, str, str]]:
    """The curve that a run holds, as the rows of ``curve.csv``."""
    client = client_of(workplace.uri)
    names = ("train/loss", "train/psnr_db", "Tiny/psnr_db")
    points = [point for name in names for point in client.get_metric_history(run_id, name)]
    return {(str(point.step), point.key, repr(point.value)) for point in points}


@pytest.mark.slow
def test_a_trial_that_was_stopped_twice_ends_as_if_nothing_had_happened(
    tmp_path: Path, migrated_database: Path
) -> None:
    place, other = (Workplace.apart(tmp_path / name, migrated_database) for name in ("stopped", "undisturbed"))
    folder = place.folder_of(*LONG)
    assert other.run(*LONG).status == 0

    assert stopped(place, signal.SIGTERM, step=20) == 128 + signal.SIGTERM
    assert (folder.result(), present_state(folder)) == (None, (State.INTERRUPTED, WORDS[signal.SIGTERM]))
    assert stopped(place, signal.SIGINT, step=60) == 128 + signal.SIGINT
    assert (folder.result(), present_state(folder)) == (None, (State.INTERRUPTED, WORDS[signal.SIGINT]))
    assert place.run(*LONG).status == 0

    ours, theirs = left_in(folder), left_in(other.folder_of(*LONG))
    assert ours.result == theirs.result
    assert ours.curve == theirs.curve
    assert len(ours.curve) == 16 * 2 + 4
    assert ours.checkpoint.keys() == theirs.checkpoint.keys()
    assert all(torch.equal(value, theirs.checkpoint[name]) for name, value in ours.checkpoint.items())

    first, second, third = history_of(folder).attempts
    assert [attempt.state for attempt in (first, second, third)] == ["interrupted", "interrupted", "finished"]
    assert 0 == first.from_step < 20 <= second.from_step < 60 <= third.from_step < 160
    assert not folder.snapshots.exists()
    assert leases(place.outputs, folder.study) == []

    runs = place.runs()
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED", "KILLED"]
    reasons = {run.data.tags["reason"] for run in runs if run.info.status == "KILLED"}
    assert reasons == {WORDS[signal.SIGTERM], WORDS[signal.SIGINT]}
    (finished,) = place.runs("FINISHED")
    assert set(ours.curve) <= curve_in_mlflow(place, finished.info.run_id)


def steps_in(folder: TrialFolder) -> list[int]:
    return sorted(int(path.name[4:13]) for path in folder.snapshots.glob("step*.pt"))


def leave_all(folder: TrialFolder) -> int:
    """Leave the snapshots as they are; the step to go on from."""
    return steps_in(folder)[-1]


def cut_the_newest(folder: TrialFolder) -> int:
    """Cut the newest snapshot; the step to go on from."""
    newest = max(folder.snapshots.glob("step*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    return steps_in(folder)[-2]


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [leave_all, cut_the_newest])
def test_a_trial_that_was_killed_goes_on_from_its_newest_whole_snapshot(
    workplace: Workplace, spoil: Callable[[TrialFolder], int]
) -> None:
    folder = workplace.folder_of(*LONG)
    assert stopped(workplace, signal.SIGKILL, step=20) == -signal.SIGKILL
    assert present_state(folder) == (State.INTERRUPTED, PROCESS_DIED)
    step = spoil(folder)
    assert workplace.run(*LONG).status == 0
    first, second = history_of(folder).attempts
    assert (first.state, second.state) == (State.INTERRUPTED, State.FINISHED)
    assert first.ended is not None
    assert second.from_step == step
    (killed,) = workplace.runs("KILLED")
    assert killed.data.tags["state"] == "interrupted"
    assert len(workplace.finished()) == 1


# --- workers of a sweep -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"), reason="no joblib launcher")
def test_workers_that_get_the_signal_of_their_terminal_too_leave_a_snapshot_each(workplace: Workplace) -> None:
    side_by_side = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "bn=none,post", "train.steps=1000000")

    def workers() -> set[int]:
        return {lease.pid for lease in leases(workplace.outputs, STUDY) if lease.step > 0}

    with ended(workplace.start("-m", *workplace.overrides(*side_by_side, "tracking.snapshot_s=600"))) as process:
        wait_until(lambda: len(workers()) == 2 or process.poll() is not None, "both trials to be trained")
        for number in (process.pid, *workers()):
            os.kill(number, signal.SIGINT)
        _, message = process.communicate(timeout=600)

    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in message
    folders = workplace.trials()
    assert [present_state(folder) for folder in folders] == [(State.INTERRUPTED, WORDS[signal.SIGINT])] * 2
    assert [len(steps_in(folder)) for folder in folders] == [1, 1]
    assert [run.data.tags["reason"] for run in workplace.runs("KILLED")] == [WORDS[signal.SIGINT]] * 2
