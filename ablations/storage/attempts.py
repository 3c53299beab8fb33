"""The state of a trial on disk: what it is, why, since when, and every attempt at it.

``state.json`` in the trial's folder is written when an attempt begins and when it ends. A valid ``result.json`` is what
makes a trial finished; the state tells of everything else. What is planned or excluded has no folder and stands in the
study's ``plan.json``.
"""

import dataclasses
import enum
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablations.storage.files import read_json, write_atomically
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import Lease, living_lease, this_host

WITHOUT_A_WORD = "the process ended without a word"
DAMAGED = "its result.json is damaged or gone"


class State(enum.StrEnum):
    """What can be said of a trial; ``pruned`` is a trial of a search that was ended early for want of promise."""

    PLANNED = "planned"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"
    EXCLUDED = "excluded"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial; times are in seconds since the epoch, ``ended`` None while it goes on.

    ``from_step`` is where it took up what an earlier attempt had trained, 0 for the beginning.
    """

    number: int
    state: State
    reason: str
    began: float
    ended: float | None
    host: str
    pid: int
    from_step: int = 0


@dataclass(frozen=True)
class History:
    """All attempts at a trial, the first one first."""

    attempts: tuple[Attempt, ...] = ()

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def state(self) -> State:
        return self.attempts[-1].state if self.attempts else State.PLANNED

    @property
    def reason(self) -> str:
        return self.attempts[-1].reason if self.attempts else ""

    @property
    def since(self) -> float | None:
        """When the state came about."""
        if not self.attempts:
            return None
        last = self.attempts[-1]
        return last.began if last.ended is None else last.ended


def history_of(folder: TrialFolder) -> History:
    """What ``state.json`` tells; an empty history where there is none or it is damaged."""
    content = read_json(folder.state_path)
    try:
        rows = [] if content is None else content["attempts"]
        return History(tuple(Attempt(**{**row, "state": State(row["state"])}) for row in rows))
    except (KeyError, TypeError, ValueError):
        return History()


def present_state(folder: TrialFolder) -> tuple[State, str]:
    """Return the state of a trial as it is now, and its reason; a process that is gone does not run."""
    if folder.result() is not None:
        return State.FINISHED, ""
    last = history_of(folder).last
    if last is not None and last.state == State.RUNNING and living_lease(folder) is not None:
        return State.RUNNING, ""
    # It may have finished since the result was looked for.
    if folder.result() is not None:
        return State.FINISHED, ""
    return state_at_rest(folder, last)


def state_at_rest(folder: TrialFolder, last: Attempt | None) -> tuple[State, str]:
    """Return the state and the reason of a trial that has no whole result and that no process works at.

    ``last`` is the latest attempt at it.
    """
    if last is None or last.state == State.FINISHED:
        is_lost = last is not None or folder.result_path.exists()
        return (State.INTERRUPTED, DAMAGED) if is_lost else (State.PLANNED, "")
    if last.state == State.RUNNING:
        return State.INTERRUPTED, WITHOUT_A_WORD
    return last.state, last.reason


def begin_attempt(folder: TrialFolder, began: float | None = None) -> Attempt:
    """Write down that an attempt begins, and what became of one that could not say so itself."""
    before = [closed_attempt(attempt, folder) for attempt in history_of(folder).attempts]
    moment = time.time() if began is None else began
    attempt = Attempt(len(before) + 1, State.RUNNING, "", moment, None, this_host().partition("/")[0], os.getpid())
    _write(folder, (*before, attempt))
    return attempt


def update_attempt(folder: TrialFolder, **changes: Any) -> None:
    """Write down what is new of the latest attempt, as ``from_step=120``."""
    attempts = history_of(folder).attempts
    if attempts:
        _write(folder, (*attempts[:-1], dataclasses.replace(attempts[-1], **changes)))


def end_attempt(folder: TrialFolder, state: State, reason: str = "") -> None:
    """Write down how the latest attempt ended; never before it began, though the clock be set back meanwhile."""
    attempts = history_of(folder).attempts
    ended = max([time.time(), *(attempt.began for attempt in attempts[-1:])])
    update_attempt(folder, state=state, reason=reason, ended=ended)


def closed_attempt(attempt: Attempt, folder: TrialFolder) -> Attempt:
    """The attempt as it is once nobody works at it any more; it ended when it last gave a sign, as far as is known."""
    if attempt.state != State.RUNNING:
        return attempt
    ended = attempt.began
    for path in (folder.log_path, folder.snapshots, folder.result_path):
        if path.exists():
            ended = max(ended, path.stat().st_mtime)
    return dataclasses.replace(attempt, state=State.INTERRUPTED, reason=WITHOUT_A_WORD, ended=ended)


def _write(folder: TrialFolder, attempts: tuple[Attempt, ...]) -> None:
    last = attempts[-1]
    content: Mapping[str, Any] = {
        "state": last.state,
        "reason": last.reason,
        "attempts": [dataclasses.asdict(attempt) for attempt in attempts],
    }
    write_atomically(folder.state_path, json.dumps(content, indent=1) + "\n")


def described(lease: Lease) -> str:
    """How far a running trial is, in words: ``step 120/500, 33.91 dB``."""
    psnr = "" if lease.psnr_db is None else f", {lease.psnr_db:.2f} dB"
    return f"{lease.phase}, step {lease.step}/{lease.steps}{psnr}"
