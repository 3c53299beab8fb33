"""The state of a trial on disk, the reason for it, and every attempt at the trial.

``state.json`` in the trial's folder is written when an attempt begins and when it ends. A trial is finished if its
``result.json`` is complete; otherwise ``state.json`` has its state. Planned and excluded trials have no folder: the
study's ``plan.json`` lists them.
"""

import contextlib
import dataclasses
import enum
import logging
import os
import time
from dataclasses import dataclass
from typing import Any

from ablations.storage.files import DamagedFile, read_sealed, write_sealed
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import Lease, living_lease, this_host, trial_lock
from bbcu.errors import BbcuError

log = logging.getLogger(__name__)

PROCESS_DIED = "the process ended without recording a reason"
RESULT_LOST = "its result.json is missing"


class State(enum.StrEnum):
    """The states of a trial; ``pruned`` is a trial of a search that was ended early because it scored too low."""

    PLANNED = "planned"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"
    EXCLUDED = "excluded"


WITHOUT_RESULT = (State.FAILED, State.INTERRUPTED, State.PRUNED)
"""The states of a trial that has ended and has no result."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial; times are in seconds since the epoch, and ``ended`` is None while it runs.

    ``from_step`` is the step of the snapshot that it resumed from, 0 if it started from scratch. ``step`` and
    ``psnr_db`` say where a pruned attempt ended; they are None for others.
    """

    number: int
    state: State
    reason: str
    began: float
    ended: float | None
    host: str
    pid: int
    from_step: int = 0
    step: int | None = None
    psnr_db: float | None = None


@dataclass(frozen=True)
class History:
    """All attempts at a trial, oldest first; none are known if ``state.json`` is damaged."""

    attempts: tuple[Attempt, ...] = ()
    damage: DamagedFile | None = None

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def state(self) -> State:
        """The state that was recorded last, even if its process has died since."""
        return self.last.state if self.last else State.PLANNED

    @property
    def since(self) -> float | None:
        """When the state was entered."""
        if self.last is None:
            return None
        return self.last.began if self.last.ended is None else self.last.ended


def history_of(folder: TrialFolder) -> History:
    """Read ``state.json``; the history is empty if the file is missing or damaged."""
    from ablations.storage import formats

    try:
        content = read_sealed(folder.state_path, formats.History)
    except DamagedFile as error:
        return History(damage=error)
    rows = [] if content is None else content["attempts"]
    return History(tuple(Attempt(**{**row, "state": State(row["state"])}) for row in rows))


def present_state(folder: TrialFolder) -> tuple[State, str]:
    """Return the present state of a trial and the reason; it runs only if its process is alive."""
    if folder.result() is not None:
        return State.FINISHED, ""
    history = history_of(folder)
    if history.state == State.RUNNING and living_lease(folder) is not None:
        return State.RUNNING, ""
    # It may have finished since the result was read.
    if folder.result() is not None:
        return State.FINISHED, ""
    return state_without_process(folder, history)


def state_without_process(folder: TrialFolder, history: History) -> tuple[State, str]:
    """Return the state and reason of a trial without a valid result or a process."""
    damage = damage_of(folder, history)
    if damage is not None:
        return State.INTERRUPTED, damage.in_folder
    last = history.last
    if last is None:
        return State.PLANNED, ""
    if last.state == State.FINISHED:
        return State.INTERRUPTED, RESULT_LOST
    if last.state == State.RUNNING:
        return State.INTERRUPTED, PROCESS_DIED
    return last.state, last.reason


def damage_of(folder: TrialFolder, history: History) -> DamagedFile | None:
    """Return the damage because of which a trial has no valid result or no known state, or None."""
    return folder.damage() or history.damage


def begin_attempt(folder: TrialFolder, began: float | None = None) -> Attempt:
    """Record that an attempt begins, and close earlier ones whose process died; warn of damaged files."""
    history = history_of(folder)
    for damage, meaning in ((folder.damage(), "the trial is trained again"), (history.damage, "attempts count from 1")):
        if damage is not None:
            log.warning("%s; %s", damage, meaning)
    before = [closed_attempt(attempt, folder) for attempt in history.attempts]
    moment = time.time() if began is None else began
    attempt = Attempt(len(before) + 1, State.RUNNING, "", moment, None, this_host().partition("/")[0], os.getpid())
    _write(folder, (*before, attempt))
    return attempt


def update_attempt(folder: TrialFolder, **changes: Any) -> None:
    """Change fields of the latest attempt, as in ``from_step=120``."""
    attempts = history_of(folder).attempts
    if attempts:
        _write(folder, (*attempts[:-1], dataclasses.replace(attempts[-1], **changes)))


def end_attempt(folder: TrialFolder, state: State, reason: str = "", **changes: Any) -> None:
    """Record how the latest attempt ended, and change its other fields, as in ``step=120``.

    If the clock was set back since, the attempt ends when it began.
    """
    ended = max([time.time(), *(attempt.began for attempt in history_of(folder).attempts[-1:])])
    update_attempt(folder, state=state, reason=reason, ended=ended, **changes)


def record_failure(folder: TrialFolder, name: str, reason: str) -> None:
    """Record that the trial called ``name`` failed before it could begin, unless another process runs it."""
    # On a full disk even this may fail, and the trial then counts as one that has not begun.
    with contextlib.suppress(BbcuError, OSError), trial_lock(folder, name):
        begin_attempt(folder)
        end_attempt(folder, State.FAILED, reason)


def closed_attempt(attempt: Attempt, folder: TrialFolder) -> Attempt:
    """Return the attempt as ended; one whose process died ended when it last wrote to the trial's folder."""
    if attempt.state != State.RUNNING:
        return attempt
    ended = attempt.began
    for path in (folder.log_path, folder.snapshots, folder.result_path):
        if path.exists():
            ended = max(ended, path.stat().st_mtime)
    return dataclasses.replace(attempt, state=State.INTERRUPTED, reason=PROCESS_DIED, ended=ended)


def _write(folder: TrialFolder, attempts: tuple[Attempt, ...]) -> None:
    rows = [dataclasses.asdict(attempt) for attempt in attempts]
    content = {"state": attempts[-1].state, "reason": attempts[-1].reason, "attempts": rows}
    write_sealed(folder.state_path, content)


def progress_text(lease: Lease) -> str:
    """Return the progress of a running trial: ``training, step 120/500, 33.91 dB``."""
    psnr = "" if lease.psnr_db is None else f", {lease.psnr_db:.2f} dB"
    return f"{lease.phase}, step {lease.step}/{lease.steps}{psnr}"
