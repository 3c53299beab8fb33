"""Faults in real studies: processes that stop at a chosen moment, and what a study must be like afterwards."""

import contextlib
import dataclasses
import hashlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.storage.attempts import Attempt, State, history_of
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import leases
from tests.harness.halt import Moment
from tests.harness.processes import CommandProcess
from tests.harness.servers import check_recorded
from tests.harness.support import STUDY, Outcome, Workplace, inherited, wait_until

SECONDS = 600
"""The longest that anything may take on a busy machine."""

STEPS = 6
TRIALS = (
    *("bn=pre,post", "hydra.sweeper.replicates=2"),
    *(f"train.steps={STEPS}", "train.lr=0.01", "train.precision=fp32", "train.compile=false"),
    *("tracking.snapshot_s=0", "tracking.evaluations=3"),
)
"""Two cells under two seeds, in arithmetic that repeats bit for bit, with a snapshot after each step."""

ONE_SEED = (*TRIALS, "hydra.sweeper.replicates=1")
BASIC = ("hydra/launcher=basic",)
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


# --- a command that stops at a chosen moment --------------------------------------------------------------------------

SNAPSHOT_ENDS = Moment("os.rename", r"/snapshots/step\S+\.pt ", 3)
LATER_SNAPSHOT = dataclasses.replace(SNAPSHOT_ENDS, nth=STEPS + SNAPSHOT_ENDS.nth)


class Command(CommandProcess):
    """The command in a process group of its own; ``notes`` gets its output and which of its processes have stopped."""

    def __init__(
        self,
        workplace: Workplace,
        overrides: Iterable[str],
        halt: Moment | None,
        notes: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._notes = notes
        arguments, streams = ["-m", *workplace.overrides(*overrides)], ("output", "output")
        super().__init__(arguments, workplace.folder, environment or inherited(), notes, streams=streams, halt=halt)

    @property
    def text(self) -> str:
        return (self._notes / "output").read_text(encoding="utf-8")

    def halted(self, processes: int = 1) -> list[int]:
        """Wait until so many of the command's processes have stopped; their numbers."""
        found: list[int] = []

        def as_many_or_over() -> bool:
            found[:] = self._halted()
            return len(found) == processes or self.returncode is not None

        wait_until(as_many_or_over, "a process to stop", SECONDS)
        assert len(found) == processes, f"{len(found)} processes have stopped:\n{self.text}"
        return found

    def _halted(self) -> list[int]:
        numbers = [path.read_text(encoding="ascii") for path in self._notes.glob("*.halted")]
        return [int(number) for number in numbers if number and is_stopped(int(number))]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process of the command, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> Outcome:
        """Wait until the process that sweeps has ended."""
        return Outcome(self.wait(SECONDS), self.text, "")


def let_go(processes: Iterable[int]) -> None:
    """Let stopped processes continue."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def is_stopped(process: int) -> bool:
    """Whether the process exists and is stopped."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


@contextlib.contextmanager
def started(workplace: Workplace, *overrides: str, halt: Moment | None = None) -> Iterator[Command]:
    """Start a sweep whose processes stop, or change their clocks, at ``halt``; kill what is left of it afterwards."""
    command = Command(workplace, overrides, halt, workplace.notes())
    try:
        yield command
    finally:
        command.kill()
        command.send(signal.SIGKILL)
        command.wait()


def kill_sweep_at(moment: Moment, workplace: Workplace, *overrides: str) -> None:
    """Start a sweep that runs its trials itself, and kill it at this moment."""
    with started(workplace, *overrides, *BASIC, halt=moment) as command:
        command.halted()
        command.send(signal.SIGKILL)
        assert command.end().status == -signal.SIGKILL


# --- what must hold whatever has happened -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ending:
    """All that a trial has left except what depends on the clock or the place; files by their SHA-256."""

    result: dict[str, Any]
    curve: list[tuple[int, dict[str, float]]]
    weights: dict[str, str]
    samples: dict[str, str]


def ending_of(folder: TrialFolder) -> Ending:
    result = folder.result()
    assert result is not None
    weights = torch.load(folder.checkpoint_path, weights_only=True)
    pictures = folder.samples.rglob("*.png")
    return Ending(
        {name: value for name, value in result.items() if name not in ("timing", "provenance")},
        [(point.step, dict(point.metrics)) for point in folder.curve()],
        {name: digest(value.numpy().tobytes()) for name, value in weights.items()},
        {str(path.relative_to(folder.samples)): digest(path.read_bytes()) for path in pictures},
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


Endings = dict[tuple[str, int], Ending]
"""The trials that have a result, by cell and seed."""


def endings(workplace: Workplace) -> Endings:
    folders = [folder for folder in workplace.trials() if folder.result() is not None]
    return {(folder.cell, folder.seed): ending_of(folder) for folder in folders}


def of_seed(seed: int, endings: Endings) -> Endings:
    return {identity: ending for identity, ending in endings.items() if identity[1] == seed}


@pytest.fixture(scope="session")
def undisturbed(new_workplace: Callable[[], Workplace]) -> Endings:
    """The study without any fault."""
    workplace = new_workplace()
    outcome = workplace.sweep(*TRIALS)
    assert outcome.status == 0, outcome.text
    found = endings(workplace)
    assert len(found) == 4
    return found


def check_nothing_lost(workplace: Workplace, undisturbed: Endings, failed: int = 0) -> None:
    """The study has ended as if nothing had happened to it, except that so many trials have failed."""
    assert endings(workplace) == undisturbed
    check_recorded(workplace, trials=len(undisturbed), failed=failed)
    assert nobody_works(workplace)
    assert [str(folder.path) for folder in workplace.trials() if folder.snapshots.exists() and not failed] == []


def rerun(workplace: Workplace, undisturbed: Endings, trials: Sequence[str] = TRIALS) -> Outcome:
    """Run the command again in this process, and check that nothing was lost."""
    again = workplace.sweep(*trials)
    assert again.status == 0, again.text
    check_nothing_lost(workplace, undisturbed)
    return again


def nobody_works(workplace: Workplace) -> bool:
    return leases(workplace.outputs, STUDY) == []


def all_attempts(workplace: Workplace) -> list[Attempt]:
    """Every attempt at every trial."""
    return [attempt for folder in workplace.trials() for attempt in history_of(folder).attempts]


def attempts(workplace: Workplace) -> list[list[State]]:
    """How the attempts at each trial have ended."""
    histories = [history_of(folder).attempts for folder in workplace.trials()]
    return [[attempt.state for attempt in history] for history in histories if history]
