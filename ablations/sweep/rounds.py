"""Runs trials through a launcher of Hydra until each has ended, whatever happens to workers, launchers or machines.

A launcher takes a batch and may give up on all of it when one worker dies. So trials go out in rounds: after each, what
is on disk says what is left. Those that were at work when a batch broke go out alone in the next round, so that one
that kills its worker every time shows itself, and costs the others nothing but a step back to their snapshots. A trial
that another sweep works at is left to it, and taken up again where that one ends without a result.
"""

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from ablations.config import Config
from ablations.planning.plan import PlannedTrial
from ablations.storage import stopping
from ablations.storage.attempts import State, end_attempt, history_of
from ablations.storage.files import first_line
from ablations.storage.folder import Identity, counts, study_folder
from ablations.storage.lease import LeaseLost, TrialBusy, Watch, leases, take_away
from ablations.storage.pruning import Pruned
from ablations.storage.stopping import Interrupted
from ablations.trial.changes import code_of
from ablations.trial.execution import TrialFailed
from bbcu.errors import BbcuError

log = logging.getLogger(__name__)

BATCH = 32
"""How many trials a launcher of this machine gets at once at least: a sweep that is stopped has to see them all off."""

BATCHES_PER_WORKER = 8
"""How many trials a batch has for each worker, so that few workers wait for the last trial of a batch."""

BATCH_ELSEWHERE = 1000
"""How many trials a launcher gets that hands them on to other machines."""

LOOK_SECONDS = 0.5
"""How often the monitor looks at what is running, unless it is told otherwise."""

WAIT_SECONDS = 0.5
"""How long to wait where all that is left is in others' hands."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended in this sweep, and why."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class Workers:
    """Where trials run: Hydra's launcher, how many at once (None where it does not say), and what each job is told."""

    launcher: Launcher
    at_once: int | None
    overrides: tuple[str, ...]
    session: str = ""

    @classmethod
    def of(
        cls, launcher: Launcher, master: DictConfig, base: Config, session: str, *, silent: bool = False
    ) -> "Workers":
        """The workers of a sweep.

        Trials side by side share the cores: together they must not ask for more threads than there are, since waiting
        threads spin and hold the others up. And none of them draws a bar: the sweep shows them all. ``silent`` keeps
        other processes from writing to a terminal that the sweep draws on; their trials' logs have all of it.
        """
        at_once = workers_of(master)
        told = [f"session={session}", "progress=false"]
        if at_once not in (None, 1) and base.threads == "auto":
            told.append(f"threads={max(1, len(os.sched_getaffinity(0)) // at_once)}")
        if silent and at_once != 1:
            told.append("++hydra.job_logging.handlers.console.level=CRITICAL")
        return cls(launcher, at_once, tuple(told), session)

    @property
    def batch(self) -> int:
        """How many trials to hand over at once; a launcher with a process a job begins all of them at once."""
        if type(self.launcher).__name__ == "LocalLauncher":
            return self.at_once or 1
        return BATCH_ELSEWHERE if self.at_once is None else max(BATCH, BATCHES_PER_WORKER * self.at_once)


def workers_of(master: DictConfig) -> int | None:
    """How many trials the launcher runs at once: all cores where joblib says -1, None where it is not said."""
    name = str(OmegaConf.select(master, "hydra.launcher._target_") or "").rpartition(".")[2]
    cores = len(os.sched_getaffinity(0))
    if name == "BasicLauncher":
        return 1
    if name == "LocalLauncher":
        return cores
    if name == "RayLauncher" and OmegaConf.select(master, "hydra.launcher.ray.init.address") is None:
        return int(OmegaConf.select(master, "hydra.launcher.ray.init.num_cpus") or cores)
    jobs = OmegaConf.select(master, "hydra.launcher.n_jobs")
    if jobs is None:
        return None
    return cores if jobs < 1 else int(jobs)


@dataclass
class Rounds:
    """Sends trials out until each has ended; ``outcomes`` grows as they do.

    ``retries`` is how often a trial is tried again that has failed, or has died alone. ``look`` is called a few times a
    second from a thread of its own, as for a view.
    """

    workers: Workers
    outputs: Path
    study: str
    retries: int
    silence: float
    look: Callable[[], None] = lambda: None
    look_seconds: float = LOOK_SECONDS
    outcomes: dict[Identity, Outcome] = field(default_factory=dict)
    _failures: Counter[Identity] = field(default_factory=Counter)
    _suspects: set[Identity] = field(default_factory=set)

    def run(self, entries: Sequence[PlannedTrial]) -> dict[Identity, Outcome]:
        """Run these trials; gives what became of each, those among them that were never begun left out."""
        left = list(entries)
        with self._watched():
            while left and stopping.asked_by() is None:
                # Between two batches this process works at nothing, though a disk may not have let its leases go.
                found = leases(self.outputs, self.study)
                others = [lease for lease in found if not (lease.is_here and lease.pid == os.getpid())]
                busy = {(lease.cell, lease.seed) for lease in others}
                batch = self._next_batch([entry for entry in left if entry.identity not in busy])
                if not (batch and self._launch(batch)):
                    time.sleep(WAIT_SECONDS)
                    self._take_over_results(left)
                left = [entry for entry in left if entry.identity not in self.outcomes]
        return {entry.identity: self.outcomes[entry.identity] for entry in entries if entry.identity in self.outcomes}

    def _next_batch(self, ready: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        """A suspect alone, or as many others as a batch has."""
        suspects = [entry for entry in ready if entry.identity in self._suspects]
        return suspects[:1] or list(ready[: self.workers.batch])

    def _launch(self, batch: Sequence[PlannedTrial]) -> bool:
        """Send these out and take in what became of them; whether any was there to be worked at."""
        jobs = [[*entry.overrides, *self.workers.overrides] for entry in batch]
        try:
            returns = self.workers.launcher.launch(jobs, initial_job_idx=0)
        except Exception as error:
            log.debug("the launcher gave up", exc_info=True)
            self._after_a_break(batch, error)
            return True
        errors = [None if job.status == JobStatus.COMPLETED else error_of(job) for job in returns]
        for entry, why in zip(batch, errors, strict=True):
            self._suspects.discard(entry.identity)
            self._take(entry, why)
        return not all(isinstance(why, TrialBusy) for why in errors)

    def _take(self, entry: PlannedTrial, error: BaseException | None) -> None:
        """Take in how a job ended: by an error, or well."""
        if error is None:
            self.outcomes[entry.identity] = Outcome(State.FINISHED)
        elif isinstance(error, (TrialBusy, LeaseLost)):
            return
        elif isinstance(error, Interrupted):
            if stopping.asked_by() is not None:
                self.outcomes[entry.identity] = Outcome(State.INTERRUPTED, str(error))
        elif isinstance(error, Pruned):
            self.outcomes[entry.identity] = Outcome(State.PRUNED, str(error))
        else:
            can_mend = not isinstance(error, BbcuError) or type(error) is TrialFailed
            self._charge(entry, reason_of(error), again=can_mend)

    def _charge(self, entry: PlannedTrial, reason: str, *, again: bool) -> None:
        """Count a failure, and give the trial up where it has no try left."""
        self._failures[entry.identity] += 1
        if again and self._failures[entry.identity] <= self.retries:
            log.warning("%s; it is tried again", reason)
        else:
            self.outcomes[entry.identity] = Outcome(State.FAILED, reason)

    def _after_a_break(self, batch: Sequence[PlannedTrial], error: Exception) -> None:
        """Sort a batch that the launcher has given up: what is done, what was at work, and what has not begun."""
        if stopping.asked_by() is not None:
            return
        at_work = []
        for entry in batch:
            if is_done(entry):
                self.outcomes[entry.identity] = Outcome(State.FINISHED)
            elif history_of(entry.folder).state == State.RUNNING:
                at_work.append(entry)
        log.warning("a worker died (%s); %d trials were at work", first_line(error), len(at_work))
        reason = f"its worker died: {first_line(error)}"
        if len(batch) == 1 or not at_work:
            for entry in batch:
                if entry.identity not in self.outcomes:
                    self._died(entry, reason)
            return
        self._suspects.update(entry.identity for entry in at_work)

    def _died(self, entry: PlannedTrial, reason: str) -> None:
        """A trial whose worker died while it had the launcher to itself."""
        self._charge(entry, reason, again=True)
        # One that died before it began has nothing to be ended but what another attempt has left.
        if entry.identity in self.outcomes and history_of(entry.folder).state == State.RUNNING:
            with contextlib.suppress(OSError):
                end_attempt(entry.folder, State.FAILED, reason)

    def _take_over_results(self, left: Sequence[PlannedTrial]) -> None:
        """Take in what others have finished meanwhile."""
        for entry in left:
            if is_done(entry):
                self.outcomes[entry.identity] = Outcome(State.FINISHED)

    # --- what is watched meanwhile ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Look at what is running from a thread of its own during the body."""
        over = threading.Event()
        watch = Watch(self.silence)

        def look_on() -> None:
            while not over.wait(self.look_seconds):
                try:
                    for lease in watch.silent(self.outputs, self.study):
                        take_away(self.outputs, lease)
                    self.look()
                except Exception:
                    log.debug("the monitor stumbled", exc_info=True)

        thread = threading.Thread(target=look_on, name="monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def is_done(entry: PlannedTrial) -> bool:
    return counts(entry.folder.result(), code=code_of(entry.trial), on_change=entry.config.on_change)


def error_of(job: JobReturn) -> BaseException:
    """Why a job failed; looked at where it is kept, as the property raises it and writes to the terminal first."""
    error = job._return_value
    return error if isinstance(error, BaseException) else RuntimeError("unknown")


def reason_of(error: BaseException) -> str:
    """The line of an error that says most: the first, or where that only announces a trace of elsewhere, the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines and lines[0].endswith("trace:") else first_line(error)


def clear_signs(outputs: Path, study: str, session: str) -> None:
    """Remove what a sweep has left beside the leases."""
    for path in (study_folder(outputs, study) / ".running").glob(f"{session}.*"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
