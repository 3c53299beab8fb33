"""Processes of a study that are killed, asked to stop or hang: afterwards the study is as if nothing had happened.

No test waits by the clock: a process of the study stops itself at the chosen moment, and the test acts on it there.
"""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ablations.storage.attempts import PROCESS_DIED, State, history_of, present_state
from ablations.storage.files import read_object
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import lease_path
from bbcu.files import write_atomically
from tests.harness.faults import (
    BASIC,
    JOBLIB,
    LATER_SNAPSHOT,
    ONE_SEED,
    SECONDS,
    SNAPSHOT_ENDS,
    STEPS,
    TRIALS,
    Endings,
    Moment,
    all_attempts,
    attempts,
    check_nothing_lost,
    endings,
    kill_sweep_at,
    let_go,
    nobody_works,
    of_seed,
    rerun,
    started,
)
from tests.harness.support import STUDY, Workplace, wait_until

DAY = 86_400


# --- processes that are killed ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(
            [
                Moment("os.rename", r"/plan\.json "),
                Moment("sql", "INSERT INTO params"),
                Moment("open", r"/snapshots/\.step\S+ w", 3),
                Moment("sql", "INSERT INTO latest_metrics"),
            ],
            id="as-it-writes-the-plan, opens a run, begins a snapshot, within a transaction of metrics",
        ),
        pytest.param(
            [
                Moment("os.rename", r"/seed\d+/result\.json "),
                Moment("shutil.copyfile", r"/mlruns/\S+/result\.json "),
                Moment("sql", "UPDATE runs SET status='FINISHED'"),
            ],
            id="as-the-result-takes-its-place, is logged, its run is closed",
        ),
        pytest.param(
            [
                LATER_SNAPSHOT,
                Moment("os.remove", r"/snapshots/step"),
                Moment("os.remove", r"/\.running/\w+-seed\d+\.json "),
            ],
            id="in-its-second-trial, as it drops the snapshots, lets go of a trial",
        ),
    ],
)
def test_a_sweep_that_is_killed_at_one_moment_after_another_resumes(
    workplace: Workplace, undisturbed: Endings, moments: list[Moment]
) -> None:
    """Each kill is in the sweep that resumes the one before, and would not come if that had not begun as it should."""
    for moment in moments:
        kill_sweep_at(moment, workplace, *ONE_SEED)
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)


@pytest.mark.slow
def test_workers_whose_sweep_is_killed_finish_their_trials_and_a_new_sweep_waits_for_them(
    workplace: Workplace, undisturbed: Endings
) -> None:
    with started(workplace, *ONE_SEED, *JOBLIB, halt=SNAPSHOT_ENDS) as command:
        (worker,) = command.halted()
        os.kill(command.pid, signal.SIGKILL)
        assert command.end().status == -signal.SIGKILL
        os.kill(worker, signal.SIGCONT)
        again = workplace.sweep(*ONE_SEED)
        wait_until(lambda: nobody_works(workplace), "the workers to finish their trials")
    assert again.status == 0, again.text
    check_nothing_lost(workplace, of_seed(0, undisturbed))
    assert attempts(workplace) == 2 * [[State.FINISHED]]


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_is_launched_again(workplace: Workplace, undisturbed: Endings) -> None:
    with started(workplace, *ONE_SEED, *JOBLIB, halt=SNAPSHOT_ENDS) as command:
        (worker,) = command.halted()
        os.kill(worker, signal.SIGKILL)
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    assert "a worker died" in outcome.text
    check_nothing_lost(workplace, of_seed(0, undisturbed))


@pytest.mark.slow
def test_a_sweep_that_is_killed_with_its_workers_resumes(workplace: Workplace, undisturbed: Endings) -> None:
    with started(workplace, *ONE_SEED, *JOBLIB, halt=SNAPSHOT_ENDS) as command:
        command.halted()
        command.send(signal.SIGKILL)
        assert command.end().status == -signal.SIGKILL
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)


@pytest.mark.slow
def test_a_killed_trial_is_interrupted_and_resumes_from_its_last_whole_snapshot(
    workplace: Workplace, undisturbed: Endings
) -> None:
    kill_sweep_at(SNAPSHOT_ENDS, workplace, *ONE_SEED)
    (folder,) = workplace.trials()
    assert present_state(folder) == (State.INTERRUPTED, PROCESS_DIED)
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)
    killed, resumed = history_of(folder).attempts
    assert (killed.state, resumed.state) == (State.INTERRUPTED, State.FINISHED)
    assert resumed.from_step == SNAPSHOT_ENDS.nth - 1
    assert killed.ended is not None
    (run,) = workplace.runs("KILLED")
    assert run.data.tags["state"] == "interrupted"


# --- a teacher and what it teaches ------------------------------------------------------------------------------------

TAUGHT = ("distil=output", *ONE_SEED[1:])
"""One cell, and so two trainings: the teacher's is the first."""


@pytest.mark.slow
def test_a_sweep_that_is_killed_with_a_teacher_or_with_what_it_teaches_resumes(
    workplace: Workplace, new_workplace: Callable[[], Workplace]
) -> None:
    """The second kill is in the sweep that resumes the first: the teacher's whole training counts once."""
    alone = new_workplace()
    assert alone.sweep(*TAUGHT).status == 0
    kill_sweep_at(SNAPSHOT_ENDS, workplace, *TAUGHT)
    (teacher,) = workplace.trials()
    assert present_state(teacher) == (State.INTERRUPTED, PROCESS_DIED)
    left = STEPS - SNAPSHOT_ENDS.nth + 1
    kill_sweep_at(dataclasses.replace(SNAPSHOT_ENDS, nth=left + SNAPSHOT_ENDS.nth), workplace, *TAUGHT)
    assert present_state(teacher)[0] == State.FINISHED
    rerun(workplace, endings(alone), TAUGHT)
    histories = {folder.cell == teacher.cell: history_of(folder).attempts for folder in workplace.trials()}
    for attempts_at in histories.values():
        assert [attempt.state for attempt in attempts_at] == [State.INTERRUPTED, State.FINISHED]
        assert attempts_at[1].from_step >= SNAPSHOT_ENDS.nth - 1


# --- processes that are asked to stop ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGTERM, "asked to stop (SIGTERM)"), (signal.SIGINT, "stopped from the keyboard")],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_sweep_that_is_asked_to_stop_saves_a_snapshot_and_resumes_from_it(
    workplace: Workplace, undisturbed: Endings, number: signal.Signals, reason: str
) -> None:
    with started(workplace, *ONE_SEED, *BASIC, halt=SNAPSHOT_ENDS) as command:
        command.halted()
        os.kill(command.pid, number)
        os.kill(command.pid, signal.SIGCONT)
        outcome = command.end()
    assert outcome.status == 128 + number
    assert "2 of 2 trials are left; run the same command again to resume" in outcome.text
    assert "Traceback" not in outcome.text
    check_interrupted(workplace, reason, trials=1)
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)
    assert [State.INTERRUPTED, State.FINISHED] in attempts(workplace)


def check_interrupted(workplace: Workplace, reason: str, trials: int) -> None:
    """So many trials were interrupted for this reason, on disk and in MLflow, and each has left a snapshot."""
    begun = [folder for folder in workplace.trials() if history_of(folder).attempts]
    assert [present_state(folder) for folder in begun] == trials * [(State.INTERRUPTED, reason)]
    assert all(list(folder.snapshots.glob("step*.pt")) for folder in begun)
    assert [run.data.tags["reason"] for run in workplace.runs("KILLED")] == trials * [reason]


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_stops_its_workers(workplace: Workplace, undisturbed: Endings) -> None:
    with started(workplace, *TRIALS, *JOBLIB, halt=BOTH) as command:
        workers = command.halted(2)
        os.kill(command.pid, signal.SIGTERM)
        wait_until(lambda: has_asked(workplace), "the workers to be asked")
        let_go(workers)
        outcome = command.end()
    assert outcome.status == 128 + signal.SIGTERM
    assert "run the same command again to resume" in outcome.text
    rerun(workplace, undisturbed)


BOTH = Moment(SNAPSHOT_ENDS.event, SNAPSHOT_ENDS.pattern, SNAPSHOT_ENDS.nth, processes=2)
"""Both workers in their first trial."""


def has_asked(workplace: Workplace) -> bool:
    """Whether the sweep has left the file by which its trials stop."""
    return list((workplace.outputs / STUDY / ".running").glob("*.stop")) != []


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_returns_its_trial_and_trains_others(
    workplace: Workplace, undisturbed: Endings
) -> None:
    with started(workplace, *TRIALS, *JOBLIB, halt=SNAPSHOT_ENDS) as command:
        (worker,) = command.halted()
        os.kill(worker, signal.SIGTERM)
        let_go([worker])
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    assert "a worker died" not in outcome.text
    check_nothing_lost(workplace, undisturbed)
    assert sorted(attempts(workplace)) == [*3 * [[State.FINISHED]], [State.INTERRUPTED, State.FINISHED]]


@pytest.mark.slow
def test_ctrl_c_stops_a_sweep_and_its_workers_with_a_snapshot_each(workplace: Workplace, undisturbed: Endings) -> None:
    with started(workplace, *ONE_SEED, *JOBLIB, halt=BOTH) as command:
        workers = command.halted(2)
        command.send(signal.SIGINT)
        let_go(workers)
        outcome = command.end()
    assert outcome.status == 128 + signal.SIGINT
    assert "Traceback" not in outcome.text
    check_interrupted(workplace, "stopped from the keyboard", trials=2)
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_a_sweep_and_its_workers_at_once(workplace: Workplace, undisturbed: Endings) -> None:
    with started(workplace, *ONE_SEED, *JOBLIB, halt=BOTH) as command:
        workers = command.halted(2)
        command.send(signal.SIGINT)
        wait_until(lambda: has_asked(workplace), "the first to be heard")
        command.send(signal.SIGINT)
        outcome = command.end()
        let_go(workers)
    assert outcome.status == 128 + signal.SIGINT
    assert "Traceback" not in outcome.text
    assert "run.py: stopped; finished results are saved; run the same command again to resume" in outcome.text
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)


# --- processes that hang, and trials that kill their worker -----------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_its_trial_launched_again(workplace: Workplace, undisturbed: Endings) -> None:
    # On a busy machine a slow worker may seem to hang too, and no trial must fail for that.
    patient = ("tracking.silence_s=10", "hydra.sweeper.retries=20")
    with started(workplace, *ONE_SEED, *JOBLIB, *patient, halt=SNAPSHOT_ENDS) as command:
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    assert "sent no heartbeat and was killed" in outcome.text
    check_nothing_lost(workplace, of_seed(0, undisturbed))


PARTS = '''
import os
import signal

import torch

from bbcu.model.surrogates import Surrogate


class Killed(Surrogate):
    """Kills its process, as the kernel does if memory is short."""

    def derivative(self, u):
        os.kill(os.getpid(), signal.SIGKILL)


class Hungry(Surrogate):
    """Asks for more memory than there is."""

    def derivative(self, u):
        return torch.empty(2**48)
'''


@pytest.fixture
def parts(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A workplace with a module of the user's own surrogates."""
    folder = workplace.folder / "parts"
    folder.mkdir()
    (folder / "greedy.py").write_text(PARTS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return workplace


def with_surrogate(name: str) -> tuple[str, ...]:
    """The cells of seed 0, and one more with a surrogate of the user's own."""
    more = (f"surrogate=quadratic,greedy.{name}", 'hydra.sweeper.exclude=["surrogate!=quadratic and bn=post"]')
    return (*ONE_SEED, *more)


@pytest.mark.slow
def test_a_trial_that_kills_its_worker_each_time_fails_and_the_others_finish(
    parts: Workplace, undisturbed: Endings
) -> None:
    with started(parts, *with_surrogate("Killed"), *JOBLIB) as command:
        outcome = command.end()
    assert outcome.status == 1
    assert "1 of 3 trials have no result; the results of the others are saved" in outcome.text
    check_nothing_lost(parts, of_seed(0, undisturbed), failed=1)
    (failed,) = [folder for folder in parts.trials() if folder.result() is None]
    assert history_of(failed).state == State.FAILED
    assert history_of(failed).attempts[-1].reason.startswith("its worker died: ")
    # Once in a batch, and then alone, with one retry.
    assert len(history_of(failed).attempts) == 3


@pytest.mark.slow
def test_a_trial_that_runs_out_of_memory_is_retried_and_fails_with_its_reason(
    parts: Workplace, undisturbed: Endings
) -> None:
    outcome = parts.sweep(*with_surrogate("Hungry"))
    assert outcome.status == 1
    check_nothing_lost(parts, of_seed(0, undisturbed), failed=1)
    (failed,) = [folder for folder in parts.trials() if folder.result() is None]
    assert [attempt.state for attempt in history_of(failed).attempts] == [State.FAILED, State.FAILED]
    assert "can't allocate memory" in history_of(failed).attempts[-1].reason


# --- processes that share a study -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_sweeps_on_one_study_share_the_work(workplace: Workplace, undisturbed: Endings) -> None:
    with started(workplace, *ONE_SEED, *BASIC, halt=SNAPSHOT_ENDS) as command, ThreadPoolExecutor(1) as pool:
        halted = command.halted()

        def let_go_after_the_other() -> None:
            wait_until(lambda: len(workplace.results()) == 1, "the second sweep to finish the other trial")
            let_go(halted)

        watching = pool.submit(let_go_after_the_other)
        second = workplace.sweep(*ONE_SEED)
        watching.result()
        first = command.end()
    assert (first.status, second.status) == (0, 0), first.text + second.text
    check_nothing_lost(workplace, of_seed(0, undisturbed))
    assert attempts(workplace) == 2 * [[State.FINISHED]]


# --- clocks and names that cannot be trusted --------------------------------------------------------------------------


CLOCK_GOES_BACK = dataclasses.replace(SNAPSHOT_ENDS, clock=-DAY)
"""In the middle of the first trial."""


@pytest.mark.slow
@pytest.mark.parametrize("how", [BASIC, JOBLIB], ids=["alone", "with-workers"])
def test_a_clock_that_is_set_back_during_a_sweep_changes_nothing(
    workplace: Workplace, undisturbed: Endings, how: tuple[str, ...]
) -> None:
    with started(workplace, *TRIALS, *how, "progress=auto", halt=CLOCK_GOES_BACK) as command:
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    check_nothing_lost(workplace, undisturbed)
    assert attempts(workplace) == 4 * [[State.FINISHED]]
    began = sorted(history_of(folder).attempts[0].began for folder in workplace.trials())
    assert began[-1] - began[0] > DAY / 2, "the clock was not set back"
    assert " in -" not in outcome.text
    assert all(attempt.ended >= attempt.began for attempt in all_attempts(workplace))


@pytest.mark.slow
def test_a_sweep_that_is_killed_while_its_clock_is_wrong_resumes_when_it_is_right(
    workplace: Workplace, undisturbed: Endings
) -> None:
    with started(workplace, *ONE_SEED, *BASIC, halt=CLOCK_GOES_BACK) as command:
        wait_until(lambda: len(workplace.results()) >= 1, "a trial to finish", SECONDS)
        command.send(signal.SIGKILL)
        command.end()
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)


def of_tomorrow(folder: TrialFolder) -> None:
    """Leave what a process leaves that began before the clock was set back by a day."""
    state, lease = read_object(folder.state_path), read_object(lease_path(folder))
    assert state is not None
    assert lease is not None
    for attempt in state["attempts"]:
        attempt["began"] += DAY
    folder.state_path.write_text(json.dumps(state), encoding="utf-8")
    lease_path(folder).write_text(json.dumps({**lease, "began": lease["began"] + DAY}), encoding="utf-8")
    for path in (lease_path(folder), folder.state_path, *folder.path.rglob("*")):
        written = path.stat().st_mtime
        os.utime(path, (written + DAY, written + DAY))


def of_a_reused_pid(folder: TrialFolder) -> None:
    """Let this process have the pid of the one that held the trial."""
    rewrite(folder, pid=os.getpid())


def of_another_machine(folder: TrialFolder) -> None:
    """Let the trial be held by a machine that is gone."""
    rewrite(folder, host="elsewhere/another-start")


def rewrite(folder: TrialFolder, **changes: object) -> None:
    lease = read_object(lease_path(folder))
    assert lease is not None
    write_atomically(lease_path(folder), json.dumps({**lease, **changes}))


@pytest.mark.slow
@pytest.mark.parametrize("forge", [of_tomorrow, of_a_reused_pid, of_another_machine])
def test_a_trial_whose_process_is_gone_resumes_whatever_its_lease_says(
    workplace: Workplace, undisturbed: Endings, forge: Callable[[TrialFolder], None]
) -> None:
    kill_sweep_at(SNAPSHOT_ENDS, workplace, *ONE_SEED)
    (folder,) = workplace.trials()
    forge(folder)
    rerun(workplace, of_seed(0, undisturbed), (*ONE_SEED, "tracking.silence_s=1"))
