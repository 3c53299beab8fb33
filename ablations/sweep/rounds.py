"""Run trials by a launcher of Hydra until each has ended, even if workers, launchers or machines fail.

A launcher gets a batch of trials and may fail as a whole when one worker dies. So trials are started in rounds, and
after each round the disk shows which trials remain. If a batch fails, the trials that were running are started one by
one in the next rounds: a trial that kills its worker every time is found, and the others resume from their snapshots. A
trial that another sweep runs is left to that sweep, and started here if it ends without a result. A trial that needs a
teacher waits for it, and fails with it.
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
from ablations.space.factors import SHOWN
from ablations.storage import stopping
from ablations.storage.attempts import State, end_attempt, history_of, record_failure
from ablations.storage.folder import Identity, study_folder
from ablations.storage.lease import LeaseLost, SilenceMonitor, TrialBusy, leases, revoke
from ablations.storage.pruning import TrialPruned
from ablations.storage.stopping import Interrupted
from ablations.sweep.launchers import Workers
from ablations.trial.changes import counts
from ablations.trial.execution import TrialFailed, TrialOutOfMemory
from ablations.trial.identity import trains
from bbcu.errors import BbcuError, first_line

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often the monitor polls the running trials by default."""

WAIT_SECONDS = 0.5
"""How long to wait while other sweeps run all remaining trials."""


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended in this sweep, and the reason; ``step`` is the step at which it was pruned."""

    state: State
    reason: str = ""
    step: int | None = None


FINISHED = TrialOutcome(State.FINISHED)


@dataclass
class Rounds:
    """Starts trials until each has ended, and records their ``outcomes``.

    ``retries`` is how often a trial is restarted if it fails, or if its worker dies while it runs alone. ``silence`` is
    the number of seconds without a heartbeat after which a trial is restarted. Another thread calls ``on_poll`` every
    ``poll_seconds``, to update a view.
    """

    workers: Workers
    outputs: Path
    study: str
    retries: int
    silence: float
    on_poll: Callable[[], None] = lambda: None
    poll_seconds: float = POLL_SECONDS
    outcomes: dict[Identity, TrialOutcome] = field(default_factory=dict)
    _failures: Counter[Identity] = field(default_factory=Counter)
    _suspects: set[Identity] = field(default_factory=set)

    def run(self, entries: Sequence[PlannedTrial]) -> dict[Identity, TrialOutcome]:
        """Run these trials; return the outcome of each that was started before the sweep was asked to stop."""
        left = list(entries)
        for entry in entries:
            self.outcomes.pop(entry.identity, None)
        with self._monitor():
            while (left := self._open(left)) and stopping.received_signal() is None:
                # Between two batches this process runs no trial, even if a full disk prevented the removal of its
                # leases.
                present = leases(self.outputs, self.study)
                others = [lease for lease in present if not (lease.is_here and lease.pid == os.getpid())]
                busy = {(lease.cell, lease.seed) for lease in others}
                waited_for = {*busy, *(entry.identity for entry in left)}
                ready = [entry for entry in left if entry.identity not in busy and entry.teacher not in waited_for]
                batch = self._next_batch(ready)
                if not (batch and self._launch(batch)):
                    time.sleep(WAIT_SECONDS)
                    self._record_results(left)
        return {entry.identity: self.outcomes[entry.identity] for entry in entries if entry.identity in self.outcomes}

    def _next_batch(self, ready: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        """Return one trial that may have killed its worker, alone, or a batch of other trials."""
        suspects = [entry for entry in ready if entry.identity in self._suspects]
        return suspects[:1] or list(ready[: self.workers.batch])

    def _launch(self, batch: Sequence[PlannedTrial]) -> bool:
        """Run these trials and record how they ended; return False if other sweeps run all of them."""
        try:
            returns = self.workers.launch([entry.overrides for entry in batch])
        except Exception as error:
            log.debug("the launcher failed", exc_info=True)
            self._recover_batch(batch, error)
            return True
        errors = [None if job.status == JobStatus.COMPLETED else error_of(job) for job in returns]
        for entry, cause in zip(batch, errors, strict=True):
            self._suspects.discard(entry.identity)
            self._record(entry, cause)
        self._share_gpus(batch, errors)
        return not all(isinstance(cause, TrialBusy) for cause in errors)

    def _share_gpus(self, batch: Sequence[PlannedTrial], errors: Sequence[BaseException | None]) -> None:
        """Let as many trials run at once as the GPUs hold of the largest so far."""
        share = self.workers.share
        if share is None:
            return
        for entry in batch:
            result = entry.folder.result() if trains(entry.config) else None
            share = share if result is None else share.after_trial(result["timing"])
        if any(isinstance(error, TrialOutOfMemory) for error in errors):
            share = share.after_out_of_memory()
        if share.at_once != self.workers.at_once:
            log.info("%d trials at once fit on the GPUs", share.at_once)
        self.workers = self.workers.with_share(share)

    def _record(self, entry: PlannedTrial, error: BaseException | None) -> None:
        """Record how a job ended."""
        if error is None:
            self.outcomes[entry.identity] = FINISHED
        elif isinstance(error, (TrialBusy, LeaseLost)):
            return
        elif isinstance(error, TrialOutOfMemory) and self.workers.shares_gpus:
            log.warning("%s; retrying beside fewer trials", first_line(error))
        elif isinstance(error, Interrupted):
            if stopping.received_signal() is not None:
                self.outcomes[entry.identity] = TrialOutcome(State.INTERRUPTED, str(error))
        elif isinstance(error, TrialPruned):
            self.outcomes[entry.identity] = TrialOutcome(State.PRUNED, str(error), error.step)
        else:
            # The next attempt would raise the same BbcuError, except a TrialFailed.
            may_succeed = not isinstance(error, BbcuError) or type(error) in (TrialFailed, TrialOutOfMemory)
            self._count_failure(entry, first_line(error), retry=may_succeed)

    def _count_failure(self, entry: PlannedTrial, reason: str, *, retry: bool) -> None:
        """Count a failure, and record it as the trial's outcome if no retry is left."""
        self._failures[entry.identity] += 1
        if retry and self._failures[entry.identity] <= self.retries:
            log.warning("%s; retrying", reason)
        else:
            self.outcomes[entry.identity] = TrialOutcome(State.FAILED, reason)

    def _recover_batch(self, batch: Sequence[PlannedTrial], error: Exception) -> None:
        """Decide for each trial of a failed batch whether it finished, runs alone next, is retried or has failed."""
        if stopping.received_signal() is not None:
            return
        self._record_results(batch)
        unfinished = [entry for entry in batch if entry.identity not in self.outcomes]
        running = [entry for entry in unfinished if history_of(entry.folder).state == State.RUNNING]
        log.warning("a worker died (%s); %d trials were running", first_line(error), len(running))
        if len(batch) > 1 and running:
            self._suspects.update(entry.identity for entry in running)
            return
        for entry in unfinished:
            self._count_failure(entry, reason := f"its worker died: {first_line(error)}", retry=True)
            # If the worker died before the attempt began, the latest attempt on disk is an earlier one.
            if entry.identity in self.outcomes and entry in running:
                with contextlib.suppress(OSError):
                    end_attempt(entry.folder, State.FAILED, reason)

    def _open(self, entries: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        """Return the trials without an outcome, after those whose teacher has ended without a result have failed."""
        for entry in entries:
            outcome = None if entry.teacher is None else self.outcomes.get(entry.teacher)
            if entry.teacher is None or outcome is None or outcome.state not in (State.FAILED, State.PRUNED):
                continue
            cell, seed = entry.teacher
            reason = f"its teacher, cell {cell[:SHOWN]} seed {seed}, {outcome.state}: {outcome.reason}"
            self.outcomes[entry.identity] = TrialOutcome(State.FAILED, reason)
            record_failure(entry.folder, entry.trial.name, reason)
        return [entry for entry in entries if entry.identity not in self.outcomes]

    def _record_results(self, entries: Sequence[PlannedTrial]) -> None:
        """Record the trials that have a result on disk, by this sweep or another."""
        for entry in entries:
            if counts(entry.folder.result(), entry.trial, entry.config):
                self.outcomes[entry.identity] = FINISHED

    @contextlib.contextmanager
    def _monitor(self) -> Iterator[None]:
        """Poll the running trials in another thread, and revoke the leases of those that send no heartbeat."""
        over = threading.Event()
        monitor = SilenceMonitor(self.silence)

        def poll() -> None:
            while not over.wait(self.poll_seconds):
                try:
                    for lease in monitor.silent(self.outputs, self.study):
                        revoke(self.outputs, lease)
                    self.on_poll()
                except Exception:
                    log.debug("the monitor failed", exc_info=True)

        thread = threading.Thread(target=poll, name="monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def error_of(job: JobReturn) -> BaseException:
    """Return the error of a job; the public property would print and raise it."""
    error = job._return_value
    return error if isinstance(error, BaseException) else RuntimeError("unknown")


def remove_markers(outputs: Path, study: str, session: str) -> None:
    """Remove a sweep's files next to the leases."""
    for path in (study_folder(outputs, study) / ".running").glob(f"{session}.*"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
