"""Runs trials through a launcher of Hydra until each has ended, whatever happens to workers, launchers or machines.

A launcher gets a batch and may give up all of it when one worker dies. So trials are started in rounds, and after each
the disk says which are left. When a batch breaks, the trials that were running then are started alone in the next
rounds: one that kills its worker every time is found, and costs the others no more than a return to their snapshots. A
trial that another sweep works at is left to that sweep, and started here if it ends without a result.
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

from ablations.planning.plan import PlannedTrial
from ablations.storage import stopping
from ablations.storage.attempts import State, end_attempt, history_of
from ablations.storage.files import first_line
from ablations.storage.folder import Identity, counts, study_folder
from ablations.storage.lease import LeaseLost, SilenceMonitor, TrialBusy, leases, revoke
from ablations.storage.pruning import TrialPruned
from ablations.storage.stopping import Interrupted
from ablations.sweep.launchers import Workers
from ablations.trial.changes import code_of
from ablations.trial.execution import TrialFailed
from bbcu.errors import BbcuError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often the monitor looks at the running trials, unless ``look_seconds`` says otherwise."""

WAIT_SECONDS = 0.5
"""How long to wait while other sweeps work at all trials that are left."""


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended in this sweep, and why; ``step`` is where it was pruned."""

    state: State
    reason: str = ""
    step: int | None = None


FINISHED = TrialOutcome(State.FINISHED)


@dataclass
class Rounds:
    """Starts trials until each has ended; ``outcomes`` grows as they do.

    ``retries`` is how often a trial is started again that has failed, or whose worker has died while it ran alone.
    ``look`` is called every ``look_seconds`` from another thread, for a view.
    """

    workers: Workers
    outputs: Path
    study: str
    retries: int
    silence: float
    look: Callable[[], None] = lambda: None
    look_seconds: float = LOOK_SECONDS
    outcomes: dict[Identity, TrialOutcome] = field(default_factory=dict)
    _failures: Counter[Identity] = field(default_factory=Counter)
    _suspects: set[Identity] = field(default_factory=set)

    def run(self, entries: Sequence[PlannedTrial]) -> dict[Identity, TrialOutcome]:
        """Run these trials; return the outcome of each that was started before the sweep was asked to stop."""
        left = list(entries)
        with self._monitor():
            while left and stopping.asked_by() is None:
                # Between two batches this process itself runs no trial, even if a full disk kept its leases.
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
        """Return one suspect alone, or a whole batch of others."""
        suspects = [entry for entry in ready if entry.identity in self._suspects]
        return suspects[:1] or list(ready[: self.workers.batch])

    def _launch(self, batch: Sequence[PlannedTrial]) -> bool:
        """Run these trials and record how they ended; return False if other sweeps work at all of them."""
        jobs = [[*entry.overrides, *self.workers.overrides] for entry in batch]
        try:
            returns = self.workers.launcher.launch(jobs, initial_job_idx=0)
        except Exception as error:
            log.debug("the launcher gave up", exc_info=True)
            self._after_a_break(batch, error)
            return True
        errors = [None if job.status == JobStatus.COMPLETED else error_of(job) for job in returns]
        for entry, ended_by in zip(batch, errors, strict=True):
            self._suspects.discard(entry.identity)
            self._record(entry, ended_by)
        return not all(isinstance(ended_by, TrialBusy) for ended_by in errors)

    def _record(self, entry: PlannedTrial, error: BaseException | None) -> None:
        """Record how a job ended."""
        if error is None:
            self.outcomes[entry.identity] = FINISHED
        elif isinstance(error, (TrialBusy, LeaseLost)):
            return
        elif isinstance(error, Interrupted):
            if stopping.asked_by() is not None:
                self.outcomes[entry.identity] = TrialOutcome(State.INTERRUPTED, str(error))
        elif isinstance(error, TrialPruned):
            self.outcomes[entry.identity] = TrialOutcome(State.PRUNED, str(error), error.step)
        else:
            # A BbcuError will be raised again by the next attempt too, unless it is a trial that failed.
            can_succeed = not isinstance(error, BbcuError) or type(error) is TrialFailed
            self._count_failure(entry, reason_of(error), retry=can_succeed)

    def _count_failure(self, entry: PlannedTrial, reason: str, *, retry: bool) -> None:
        """Count a failure; the trial has failed for good if no retry is left."""
        self._failures[entry.identity] += 1
        if retry and self._failures[entry.identity] <= self.retries:
            log.warning("%s; retrying", reason)
        else:
            self.outcomes[entry.identity] = TrialOutcome(State.FAILED, reason)

    def _after_a_break(self, batch: Sequence[PlannedTrial], error: Exception) -> None:
        """Sort a batch that the launcher gave up: which trials finished, which were running, which never began."""
        if stopping.asked_by() is not None:
            return
        self._take_over_results(batch)
        unfinished = [entry for entry in batch if entry.identity not in self.outcomes]
        running = [entry for entry in unfinished if history_of(entry.folder).state == State.RUNNING]
        log.warning("a worker died (%s); %d trials were running", first_line(error), len(running))
        if len(batch) > 1 and running:
            self._suspects.update(entry.identity for entry in running)
            return
        for entry in unfinished:
            self._count_failure(entry, reason := f"its worker died: {first_line(error)}", retry=True)
            # If it died before it began, the latest attempt in its history is an earlier one.
            if entry.identity in self.outcomes and entry in running:
                with contextlib.suppress(OSError):
                    end_attempt(entry.folder, State.FAILED, reason)

    def _take_over_results(self, entries: Sequence[PlannedTrial]) -> None:
        """Record the trials that have a result on disk, whichever sweep made it."""
        for entry in entries:
            if counts(entry.folder.result(), code=code_of(entry.trial), on_change=entry.config.on_change):
                self.outcomes[entry.identity] = FINISHED

    @contextlib.contextmanager
    def _monitor(self) -> Iterator[None]:
        """Watch the running trials from another thread, and kill those that send no heartbeat."""
        over = threading.Event()
        monitor = SilenceMonitor(self.silence)

        def watch() -> None:
            while not over.wait(self.look_seconds):
                try:
                    for lease in monitor.silent(self.outputs, self.study):
                        revoke(self.outputs, lease)
                    self.look()
                except Exception:
                    log.debug("the monitor failed", exc_info=True)

        thread = threading.Thread(target=watch, name="monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def error_of(job: JobReturn) -> BaseException:
    """Return why a job failed, without the property that raises the error and first writes to the terminal."""
    error = job._return_value
    return error if isinstance(error, BaseException) else RuntimeError("unknown")


def reason_of(error: BaseException) -> str:
    """Return the most informative line of an error: the first, or the last if the first announces a remote trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines and lines[0].endswith("trace:") else first_line(error)


def remove_markers(outputs: Path, study: str, session: str) -> None:
    """Remove the files that a sweep has left beside the leases."""
    for path in (study_folder(outputs, study) / ".running").glob(f"{session}.*"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
