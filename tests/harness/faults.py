"""Faults done to real studies: processes that halt at a chosen moment, and what a study must look like afterwards."""

import contextlib
import dataclasses
import hashlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.storage.attempts import Attempt, State, history_of
from ablations.storage.folder import CurvePoint, TrialFolder, steps_of
from ablations.storage.lease import leases
from ablations.tracking.client import client_of, identity_of
from ablations.tracking.runs import final_metrics
from tests.harness.servers import recorded_file
from tests.harness.support import REPOSITORY, STUDY, Outcome, Workplace, inherited, wait_until
from tests.harness.warm import WarmProcess

SECONDS = 600
"""How long anything may take on a machine that is busy with something else."""

TRIALS = (
    *("bn=pre,post", "hydra.sweeper.replicates=2"),
    *("train.steps=12", "train.lr=0.01", "train.precision=fp32", "train.compile=false"),
    *("tracking.snapshot_s=0", "tracking.evaluations=3"),
)
"""Two cells under two seeds, in the arithmetic that repeats itself bit for bit, with a snapshot after each step."""

BASIC = ("hydra/launcher=basic",)
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


# --- a command that halts at a chosen moment --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment in a process's life: the ``nth`` time that an audit event of Python has arguments like ``pattern``.

    The event "sql" stands for a statement that SQLite is about to run. ``processes`` of a command halt at theirs, or
    have their clocks changed by ``clock`` seconds instead where that is not 0.
    """

    event: str
    pattern: str
    nth: int = 1
    processes: int = 1
    clock: float = 0


PLAN = Moment("os.rename", r"/plan\.json ")
RUN_BEGINS = Moment("sql", "INSERT INTO params")
SNAPSHOT_BEGINS = Moment("open", r"/snapshots/\.step\S+ w", 5)
SNAPSHOT_ENDS = Moment("os.rename", r"/snapshots/step\S+\.pt ", 5)
LATER_SNAPSHOT = Moment("os.rename", r"/snapshots/step\S+\.pt ", 17)
CURVE_IS_LOGGED = Moment("sql", "INSERT INTO latest_metrics")
RESULT = Moment("os.rename", r"/seed\d+/result\.json ")
FILES_ARE_LOGGED = Moment("shutil.copyfile", r"/mlruns/\S+/result\.json ")
RUN_ENDS = Moment("sql", "UPDATE runs SET status='FINISHED'")
SNAPSHOTS_GO = Moment("os.remove", r"/snapshots/step")
LEASE_GOES = Moment("os.remove", r"/\.running/\w+-seed\d+\.json ")

HALT = '''
"""Halts the process at the moment that the environment tells, unless enough of the command's processes have.

Or it changes the process's clock then, which every module that is imported later has from here.
"""

import os
import re
import signal
import sqlite3
import sys
import time

EVENT, PATTERN, NTH, PROCESSES, CLOCK, NOTES = os.environ["BBCU_HALT"].split("\\n")
seen, shift = 0, 0.0
true_time, true_time_ns = time.time, time.time_ns
if float(CLOCK):
    time.time = lambda: true_time() + shift
    time.time_ns = lambda: true_time_ns() + int(1e9 * shift)


def look_at(text):
    global seen
    if re.search(PATTERN, text):
        seen += 1
        if seen == int(NTH):
            halt()


def halt():
    global shift
    for number in range(int(PROCESSES)):
        try:
            note = os.open(f"{NOTES}/{number}.halted", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            continue
        os.write(note, str(os.getpid()).encode())
        os.close(note)
        if float(CLOCK):
            shift = float(CLOCK)
        else:
            os.kill(os.getpid(), signal.SIGSTOP)
        return


def watch(event, arguments):
    if event == EVENT:
        look_at(" ".join(str(argument) for argument in arguments) + " ")


def connect(*arguments, **options):
    connection = plainly_connect(*arguments, **options)
    connection.set_trace_callback(look_at)
    return connection


plainly_connect = sqlite3.connect
if EVENT == "sql":
    sqlite3.connect = sqlite3.dbapi2.connect = connect
else:
    sys.addaudithook(watch)
'''


class Command:
    """The command in a process group of its own, as a shell gives it; ``notes`` gets its output and who has halted."""

    def __init__(
        self, workplace: Workplace, overrides: Iterable[str], environment: dict[str, str], notes: Path
    ) -> None:
        self._notes = notes
        arguments = ["-m", *workplace.overrides(*overrides)]
        streams = ("output", "output")
        self._process = WarmProcess(arguments, workplace.folder, {**inherited(), **environment}, notes, streams)

    @property
    def parent(self) -> int:
        """The process that sweeps."""
        return self._process.pid

    @property
    def text(self) -> str:
        return (self._notes / "output").read_text(encoding="utf-8")

    @property
    def is_over(self) -> bool:
        """Whether the process that sweeps has ended."""
        return self._process.poll() is not None

    def halted(self, processes: int = 1) -> list[int]:
        """Wait until so many of the command's processes have halted; which."""
        wait_until(lambda: len(self._halted()) == processes or self.is_over, "a process to halt", SECONDS)
        found = self._halted()
        assert len(found) == processes, f"{len(found)} processes have halted:\n{self.text}"
        return found

    def _halted(self) -> list[int]:
        numbers = [path.read_text(encoding="ascii") for path in self._notes.glob("*.halted")]
        return [int(number) for number in numbers if number and is_stopped(int(number))]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process of the command, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.parent, number)

    def end(self) -> Outcome:
        """Wait until the process that sweeps has ended; how it has."""
        wait_until(lambda: self.is_over, f"the command to end, see {self._notes / 'output'}", SECONDS)
        return Outcome(self._process.wait(SECONDS), self.text, "")

    def clear_away(self) -> None:
        """End every process of the command."""
        self._process.kill()
        self.send(signal.SIGKILL)
        self._process.wait()


def let_go(processes: Iterable[int]) -> None:
    """Let processes that have halted go on."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def is_stopped(process: int) -> bool:
    """Whether the process is there and stands still."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


@contextlib.contextmanager
def started(workplace: Workplace, *overrides: str, halt: Moment | None = None) -> Iterator[Command]:
    """Start a sweep whose processes stop themselves, or change their clocks, at ``halt``; none is left afterwards."""
    notes = workplace.folder / f"command{len(list(workplace.folder.glob('command*')))}"
    notes.mkdir()
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {}
    if halt is not None:
        (notes / "sitecustomize.py").write_text(HALT, encoding="utf-8")
        path.insert(0, str(notes))
        environment["BBCU_HALT"] = f"{halt.event}\n{halt.pattern}\n{halt.nth}\n{halt.processes}\n{halt.clock}\n{notes}"
    command = Command(workplace, overrides, {**environment, "PYTHONPATH": os.pathsep.join(path)}, notes)
    try:
        yield command
    finally:
        command.clear_away()


# --- what must hold whatever has happened -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a trial has come to, but for what depends on the clock and on where it ran; files by their SHA-256."""

    result: dict[str, Any]
    curve: list[tuple[int, dict[str, float]]]
    weights: dict[str, str]
    samples: dict[str, str]

    @classmethod
    def of(cls, folder: TrialFolder) -> "Ending":
        result = folder.result()
        assert result is not None
        weights = torch.load(folder.checkpoint_path, weights_only=True)
        return cls(
            {name: value for name, value in result.items() if name not in ("timing", "provenance")},
            [(point.step, dict(point.metrics)) for point in folder.curve()],
            {name: digest(value.numpy().tobytes()) for name, value in weights.items()},
            {
                str(path.relative_to(folder.samples)): digest(path.read_bytes())
                for path in folder.samples.rglob("*.png")
            },
        )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


Endings = dict[tuple[str, int], Ending]
"""What each trial that has a result has come to, by cell and seed."""


def endings(workplace: Workplace) -> Endings:
    return {
        (folder.cell, folder.seed): Ending.of(folder) for folder in workplace.trials() if folder.result() is not None
    }


def of_seed(seed: int, endings: Endings) -> Endings:
    return {identity: ending for identity, ending in endings.items() if identity[1] == seed}


@pytest.fixture(scope="module")
def undisturbed(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Endings:
    """What the study comes to where nothing happens."""
    workplace = Workplace.apart(tmp_path_factory.mktemp("undisturbed"), migrated_database)
    outcome = workplace.sweep(*TRIALS)
    assert outcome.status == 0, outcome.text
    found = endings(workplace)
    assert len(found) == 4
    return found


def check_nothing_lost(workplace: Workplace, undisturbed: Endings, failed: int = 0) -> None:
    """The study has come to its end as if nothing had happened to it, but for so many trials that have failed."""
    # Every trial is what it would have been, to the last bit, and there is none that nobody has asked for.
    assert endings(workplace) == undisturbed
    assert len(workplace.trials()) == len(undisturbed) + failed
    # MLflow has one finished run of each, and none that seems to go on.
    assert workplace.finished() == sorted(undisturbed)
    assert [run.info.run_id for run in workplace.runs("RUNNING")] == []
    # No metric is lost, none is there twice, and the files are there.
    by_identity = {(folder.cell, folder.seed): folder for folder in workplace.trials()}
    for run in workplace.runs("FINISHED"):
        folder = by_identity[identity_of(run) or ("", 0)]
        assert recorded_points(workplace, run.info.run_id) == points_of(folder)
        assert recorded_file(workplace.uri, run.info.run_id, "result.json") == folder.result_path.read_bytes()
    # Nothing lies about that somebody could take for work in hand.
    assert nobody_works(workplace)
    assert [str(folder.path) for folder in workplace.trials() if folder.snapshots.exists() and not failed] == []


def points_of(folder: TrialFolder) -> dict[str, list[tuple[int, float]]]:
    """Every point that a run of the trial has of each metric: its curve, and what it came to at its last step."""
    result = folder.result()
    assert result is not None
    points = defaultdict(list)
    for point in (*folder.curve(), CurvePoint(steps_of(result), final_metrics(result))):
        for name, value in point.metrics.items():
            points[name].append((point.step, value))
    return {name: sorted(found) for name, found in points.items()}


def recorded_points(workplace: Workplace, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every point that MLflow has of each metric of a run."""
    client = client_of(workplace.uri)
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        for name in client.get_run(run_id).data.metrics
    }


def nobody_works(workplace: Workplace) -> bool:
    return leases(workplace.outputs, STUDY) == []


def all_attempts(workplace: Workplace) -> list[Attempt]:
    """Every attempt at every trial."""
    return [attempt for folder in workplace.trials() for attempt in history_of(folder).attempts]


def attempts(workplace: Workplace) -> list[list[State]]:
    """How each attempt at each trial that was begun has ended."""
    histories = [history_of(folder).attempts for folder in workplace.trials()]
    return [[attempt.state for attempt in history] for history in histories if history]
