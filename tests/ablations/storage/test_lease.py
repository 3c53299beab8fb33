"""Who works at a trial: one process at a time, until it ends, or until it has been silent for too long."""

import contextlib
import dataclasses
import os
import platform
import resource
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from ablations.storage.files import write_atomically
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import (
    Lease,
    LeaseLost,
    SilenceMonitor,
    TrialBusy,
    lease_path,
    leases,
    process_start_of,
    read_lease,
    revoke,
    trial_lock,
)
from bbcu.errors import BbcuError
from tests.ablations.storage.helpers import Warnings, put_lease
from tests.harness.builders import in_another_process, open_folder, without_root_rights
from tests.harness.support import wait_until

STUDY = "leases"
FORK = get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return trial(tmp_path)


def trial(outputs: Path, seed: int = 0) -> TrialFolder:
    return TrialFolder(outputs, STUDY, "c" * 64, seed)


def lease_of(folder: TrialFolder) -> Lease:
    """The lease that lies there now."""
    found = read_lease(lease_path(folder))
    assert found is not None
    return found


# --- other processes --------------------------------------------------------------------------------------------------


def hold(folder: TrialFolder, connection: Connection) -> None:
    with trial_lock(folder, "other"):
        connection.send("held")
        connection.recv()


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a trial until it is told to let go, or is killed."""

    process: ForkProcess
    connection: Connection

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def let_go(self) -> int | None:
        """Tell it to let go, and give its exit status."""
        self.connection.send("let go")
        self.process.join(60)
        return self.process.exitcode


@contextlib.contextmanager
def holder_of(folder: TrialFolder) -> Iterator[Holder]:
    """Another process that holds the trial; it is gone afterwards."""
    connection, its_own = FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, its_own))
    process.start()
    try:
        assert connection.recv() == "held"
        yield Holder(process, connection)
    finally:
        process.kill()
        process.join()


def is_gone(pid: int) -> bool:
    return process_start_of(pid) is None


def is_free(folder: TrialFolder) -> bool:
    try:
        with trial_lock(folder, "asking"):
            return True
    except TrialBusy:
        return False


# --- one holder -------------------------------------------------------------------------------------------------------


def test_a_trial_that_another_process_holds_is_busy(folder: TrialFolder) -> None:
    with holder_of(folder), pytest.raises(TrialBusy, match="another process"), trial_lock(folder, "bbcu"):
        pass


def test_the_other_replicates_of_a_cell_are_free(folder: TrialFolder) -> None:
    with holder_of(folder):
        assert is_free(trial(folder.outputs, seed=1))


def test_a_trial_is_free_again_when_its_holder_lets_go(folder: TrialFolder) -> None:
    with holder_of(folder) as holder:
        assert holder.let_go() == 0
        assert is_free(folder)


def test_a_trial_is_free_again_when_its_holder_is_killed(folder: TrialFolder) -> None:
    with holder_of(folder) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(holder.pid), "the holder to end")
        assert leases(folder.outputs, STUDY) == []
        with trial_lock(folder, "bbcu") as ours:
            assert lease_of(folder).token == ours.lease.token


def test_a_trial_is_free_again_when_the_work_fails(folder: TrialFolder) -> None:
    with pytest.raises(ZeroDivisionError), trial_lock(folder, "bbcu"):
        _ = 1 / 0
    assert not lease_path(folder).exists()
    assert is_free(folder)


def take_turns(folder: TrialFolder, turns: int) -> int:
    """Hold the trial so many times, and count how often somebody else was found inside."""
    inside, met = folder.path / "inside", 0
    while turns:
        with contextlib.suppress(TrialBusy), trial_lock(folder, "turn") as own:
            try:
                inside.touch(exist_ok=False)
            except FileExistsError:
                met += 1
            own.heartbeat(now=True)
            inside.unlink()
            turns -= 1
    return met


def test_of_processes_that_rush_for_a_trial_one_at_a_time_has_it(folder: TrialFolder) -> None:
    with FORK.Pool(3) as pool:
        assert pool.starmap(take_turns, [(folder, 30)] * 3) == [0, 0, 0]


def test_a_lease_tells_who_works_there_and_how_far_the_work_is(folder: TrialFolder) -> None:
    with trial_lock(folder, "bbcu", session="s", steps=100) as own:
        own.heartbeat(now=True, phase="training", step=7, scored_at=5, psnr_db=31.5)
        (lease,) = leases(folder.outputs, STUDY)
    assert (lease.study, lease.cell, lease.seed) == (STUDY, folder.cell, 0)
    assert (lease.name, lease.session, lease.steps) == ("bbcu", "s", 100)
    assert (lease.phase, lease.step, lease.scored_at, lease.psnr_db) == ("training", 7, 5, 31.5)
    assert lease.place == f"process {os.getpid()} on {platform.node()}"


def test_a_folder_that_cannot_be_written_to_is_told_by_its_path() -> None:
    with open_folder() as outputs, without_root_rights():
        folder = trial(outputs)
        with pytest.raises(BbcuError, match=f"{folder.path}: cannot be written to"), trial_lock(folder, "bbcu"):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"study": "leases"}', '{"unknown": 1}'])
def test_a_damaged_lease_is_none_and_holds_nobody_up(folder: TrialFolder, text: str) -> None:
    write_atomically(lease_path(folder), text)
    assert leases(folder.outputs, STUDY) == []
    assert is_free(folder)


# --- holders that are gone, or elsewhere ------------------------------------------------------------------------------


def test_a_lease_of_another_machine_is_respected(folder: TrialFolder) -> None:
    theirs = put_lease(folder, host="elsewhere/1", pid=7)
    with (
        pytest.raises(TrialBusy, match=f"by process 7 on elsewhere; if that is gone, remove {lease_path(folder)}"),
        trial_lock(folder, "bbcu"),
    ):
        pass
    assert leases(folder.outputs, STUDY) == [theirs]


def test_what_ran_before_this_machine_was_started_anew_is_gone(folder: TrialFolder) -> None:
    put_lease(folder, host=f"{platform.node()}/an earlier start")
    assert leases(folder.outputs, STUDY) == []
    assert is_free(folder)


def test_a_process_that_got_the_number_of_one_that_ended_is_not_the_holder(folder: TrialFolder) -> None:
    put_lease(folder, process_start="0")
    assert leases(folder.outputs, STUDY) == []
    assert is_free(folder)


def test_a_process_that_ended_has_no_birth_even_while_its_parent_has_not_looked() -> None:
    process = FORK.Process(target=time.sleep, args=(60,))
    process.start()
    assert process.pid is not None
    assert (process_start_of(process.pid) or "").isdigit()
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(process.pid or 0), "the process to end")
    process.join()
    assert is_gone(process.pid)


# --- taking a trial away ----------------------------------------------------------------------------------------------


def test_a_process_of_this_machine_that_stands_still_is_ended_and_its_trial_is_free(folder: TrialFolder) -> None:
    with holder_of(folder) as holder:
        os.kill(holder.pid, signal.SIGSTOP)
        assert not is_free(folder)
        revoke(folder.outputs, lease_of(folder))
        wait_until(lambda: is_gone(holder.pid), "the holder to end")
        assert is_free(folder)


def test_a_process_that_got_the_number_of_a_silent_one_is_left_alone(folder: TrialFolder) -> None:
    with holder_of(folder) as holder:
        revoke(folder.outputs, dataclasses.replace(lease_of(folder), process_start="0"))
        assert not is_free(folder)
        assert holder.let_go() == 0


def test_a_process_does_not_end_itself(folder: TrialFolder) -> None:
    """If it did, the tests would end here."""
    with trial_lock(folder, "bbcu") as own:
        revoke(folder.outputs, own.lease)
        own.heartbeat(now=True)


def test_a_holder_elsewhere_finds_at_its_next_beat_that_its_trial_was_taken_away(folder: TrialFolder) -> None:
    with trial_lock(folder, "bbcu") as own:
        revoke(folder.outputs, put_lease(folder, **{**vars(own.lease), "host": "elsewhere/1"}))
        with pytest.raises(LeaseLost, match="bbcu seed 0 was given to another process"):
            own.heartbeat(now=True)


def test_a_trial_that_was_taken_away_is_another_process_s_and_stays_so_when_the_first_one_leaves(
    folder: TrialFolder,
) -> None:
    with contextlib.ExitStack() as others:
        with trial_lock(folder, "bbcu") as own:
            revoke(folder.outputs, put_lease(folder, **{**vars(own.lease), "host": "elsewhere/1"}))
            others.enter_context(holder_of(folder))
            theirs = lease_of(folder)
            with pytest.raises(LeaseLost):
                own.check()
        assert lease_of(folder) == theirs
        assert not is_free(folder)


def test_of_two_that_take_a_trial_away_the_later_one_leaves_its_new_holder_alone(folder: TrialFolder) -> None:
    silent = put_lease(folder, host="elsewhere/1")
    revoke(folder.outputs, silent)
    with holder_of(folder):
        revoke(folder.outputs, silent)
        assert not is_free(folder)


# --- silence ----------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Watched:
    """A watch over a study, and its clock."""

    outputs: Path
    clock: Clock = dataclasses.field(default_factory=Clock)

    def __post_init__(self) -> None:
        self._watch = SilenceMonitor(60.0, self.clock)

    def after(self, seconds: int) -> list[Lease]:
        """What is silent so much later, after a look every second."""
        found = self.look()
        for _ in range(seconds):
            self.clock.now += 1
            found = self.look()
        return found

    def look(self) -> list[Lease]:
        """What is silent now."""
        return self._watch.silent(self.outputs, STUDY)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_lease_that_stays_the_same_for_too_long_is_silent(folder: TrialFolder, watched: Watched) -> None:
    lease = put_lease(folder)
    assert watched.after(0) == []
    assert watched.after(60) == []
    assert watched.after(1) == [lease]


def test_a_beat_ends_the_silence(folder: TrialFolder, watched: Watched) -> None:
    with trial_lock(folder, "bbcu") as own:
        watched.after(0)
        assert watched.after(61) == [own.lease]
        own.heartbeat(now=True)
        assert watched.after(1) == []
        assert watched.after(61) == [own.lease]


@pytest.mark.parametrize("moment", [0.0, 4e9], ids=["1970", "2096"])
def test_dates_that_are_wrong_neither_hasten_nor_hold_up_a_verdict(
    folder: TrialFolder, watched: Watched, moment: float
) -> None:
    lease = put_lease(folder, began=moment)
    os.utime(lease_path(folder), (moment, moment))
    assert watched.after(0) == []
    assert watched.after(60) == []
    assert watched.after(1) == [lease]


def test_a_clock_that_is_set_back_between_two_beats_does_not_matter(folder: TrialFolder, watched: Watched) -> None:
    with trial_lock(folder, "bbcu") as own:
        watched.after(40)
        own.heartbeat(now=True)
        os.utime(lease_path(folder), (0, 0))
        assert watched.after(60) == []
        assert watched.after(1) == [own.lease]


def test_a_date_that_is_renewed_alone_is_a_sign_of_life(folder: TrialFolder, watched: Watched) -> None:
    put_lease(folder)
    watched.after(40)
    os.utime(lease_path(folder), (0, 0))
    assert watched.after(60) == []


def test_a_process_that_is_gone_is_not_silent(folder: TrialFolder, watched: Watched) -> None:
    put_lease(folder, process_start="0")
    watched.after(0)
    assert watched.after(61) == []


def test_a_lease_that_another_machine_does_not_renew_is_silent(folder: TrialFolder, watched: Watched) -> None:
    lease = put_lease(folder, host="elsewhere/1")
    watched.after(0)
    assert watched.after(61) == [lease]


def test_a_watch_that_slept_takes_nobody_for_silent_who_slept_with_it(folder: TrialFolder, watched: Watched) -> None:
    lease = put_lease(folder)
    watched.after(0)
    watched.clock.now += 10_000
    assert watched.look() == []
    assert watched.after(50) == []
    assert watched.after(10) == [lease]


def test_a_lease_that_was_gone_for_a_while_has_the_whole_time_again(folder: TrialFolder, watched: Watched) -> None:
    lease = put_lease(folder)
    watched.after(30)
    lease_path(folder).unlink()
    watched.after(1)
    put_lease(folder, **vars(lease))
    assert watched.after(60) == []
    assert watched.after(1) == [lease]


# --- a lease that is gone, and one that cannot be written -------------------------------------------------------------


def test_a_lease_that_somebody_has_removed_is_lost(folder: TrialFolder) -> None:
    with trial_lock(folder, "bbcu") as own:
        lease_path(folder).unlink()
        with pytest.raises(LeaseLost):
            own.check()


def fill_the_disk() -> None:
    """Let this process write nothing to any file from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def beat_on_a_full_disk(folder: TrialFolder) -> tuple[list[str], Lease, float]:
    """What is said of three beats that cannot be written, and the lease that lies there with its date."""
    heard = Warnings()
    with trial_lock(folder, "bbcu") as own:
        os.utime(lease_path(folder), (0, 0))
        fill_the_disk()
        for step in (1, 2, 3):
            own.heartbeat(now=True, step=step)
        assert own.lease.step == 3
        return heard.texts, lease_of(folder), lease_path(folder).stat().st_mtime


def test_a_full_disk_at_a_beat_stops_nothing_is_told_once_and_leaves_a_sign_of_life(folder: TrialFolder) -> None:
    texts, lease, moment = in_another_process(beat_on_a_full_disk, folder)
    (text,) = texts
    assert text == f"{lease_path(folder)} cannot be written (File too large); the trial continues"
    assert lease.step == 0
    assert moment > 0


def hold_on_a_full_disk(folder: TrialFolder) -> bool:
    fill_the_disk()
    with trial_lock(folder, "bbcu") as own:
        own.heartbeat(now=True)
        return not lease_path(folder).exists()


def test_a_disk_that_was_full_from_the_beginning_takes_no_trial_away(folder: TrialFolder) -> None:
    assert in_another_process(hold_on_a_full_disk, folder)


def test_a_disk_that_does_not_answer_takes_no_trial_away() -> None:
    with open_folder() as outputs, trial_lock(trial(outputs), "bbcu") as own:
        outputs.chmod(0)
        try:
            with without_root_rights():
                own.heartbeat(now=True, step=1)
        finally:
            outputs.chmod(0o755)
        assert own.lease.step == 1
        own.check()
