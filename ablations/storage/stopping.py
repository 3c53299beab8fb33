"""Stop trials so that they can be resumed: each finishes its current step and saves a snapshot.

The first Ctrl-C, or a SIGTERM as a cluster sends it, asks every trial of the sweep to stop; a second Ctrl-C stops at
once. Workers of the same terminal get the signal too; other workers poll for a file that the sweep creates.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ablations.storage.folder import study_folder

log = logging.getLogger(__name__)

SIGNALS: dict[int, str] = {
    signal.SIGINT: "stopped from the keyboard",
    signal.SIGTERM: "asked to stop (SIGTERM)",
    signal.SIGUSR2: "asked to stop (SIGUSR2)",
}
"""The signals that request a stop, with the reason to record; submitit sends the last before a job's time limit."""

POLL_SECONDS = 0.5
"""How often a worker checks for the file."""

STOPPING = "stopping after the current steps; Ctrl-C again stops at once"
RESUME = "run the same command again to resume"


class Interrupted(Exception):
    """The trial has stopped on request, for the reason in the message, and can be resumed."""


class _Process:
    """The state of this process: the signal that it received, and whether it handles signals and is a worker."""

    signal: int | None = None
    handles_signals = False
    is_worker = False


def received_signal() -> int | None:
    """Return the signal that requested this process to stop, or None."""
    return _Process.signal


def clear_request() -> None:
    """Withdraw a request to stop, as before the next command in the same process."""
    _Process.signal = None


def request_stop(number: int) -> None:
    """Ask this process's trials to stop, as the signal ``number`` does."""
    _Process.signal = number


def marker_of(outputs: Path, study: str, session: str) -> Path:
    """Return the file whose presence asks the trials of a sweep to stop, on any machine."""
    return study_folder(outputs, study) / ".running" / f"{session}.stop"


class StopSign:
    """Checks whether a signal or the sweep's file asks the trial to stop; cheap enough for every step."""

    def __init__(self, marker: Path | None) -> None:
        self._marker = marker
        self._checked_at = -POLL_SECONDS
        self._exists = False

    def reason(self) -> str | None:
        """Return the reason to stop, or None."""
        if _Process.signal is not None:
            return SIGNALS.get(_Process.signal, f"signal {_Process.signal}")
        now = time.monotonic()
        if self._marker is not None and now - self._checked_at >= POLL_SECONDS:
            self._checked_at = now
            self._exists = self._marker.exists()
        return "the sweep was stopped" if self._exists else None

    def check(self) -> None:
        """Raise Interrupted if there is a reason to stop."""
        reason = self.reason()
        if reason is not None:
            raise Interrupted(reason)


@contextlib.contextmanager
def handling_signals_for_trial(marker: Path | None, *, for_good: bool) -> Iterator[StopSign]:
    """Handle signals as requests to stop one trial, unless this process handles them already; drop an earlier request.

    ``for_good`` leaves the handlers in place: a signal between two trials must not end a worker, which would break its
    pool.
    """
    if _Process.handles_signals:
        if _Process.is_worker:
            clear_request()
        yield StopSign(marker)
        return
    clear_request()
    if for_good:
        _Process.is_worker = True
        _handle_signals(None, announce=False)
        yield StopSign(marker)
        return
    with handling_signals():
        yield StopSign(marker)


@contextlib.contextmanager
def handling_signals(marker: Path | None = None, *, announce: bool = True) -> Iterator[None]:
    """Handle signals as requests to stop; with ``marker``, pass a request on to workers by that file.

    ``announce`` prints a line on the terminal. A second Ctrl-C raises KeyboardInterrupt. Only a main thread can handle
    signals; in another thread this does nothing.
    """
    before = _handle_signals(marker, announce=announce)
    try:
        yield
    finally:
        if before:
            _Process.handles_signals = False
        for number, handler in before.items():
            signal.signal(number, handler)
        if marker is not None:
            # If the file cannot be removed, that does no harm: no other sweep checks for it.
            with contextlib.suppress(OSError):
                marker.unlink(missing_ok=True)


def _handle_signals(marker: Path | None, *, announce: bool) -> dict[int, Any]:
    """Install the handlers; return those that they replace, none if this is not the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def handle(number: int, frame: FrameType | None) -> None:
        if _Process.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        _Process.signal = number
        if marker is not None:
            with contextlib.suppress(OSError):
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
        if announce:
            # The handler may interrupt another write, so it bypasses Python's buffers. The terminal may be gone.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{STOPPING}\n".encode())

    _Process.handles_signals = True
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # A signal that nohup or a user set to be ignored stays ignored.
        if before[number] != signal.SIG_IGN:
            signal.signal(number, handle)
    return before
