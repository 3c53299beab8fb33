"""How trials are asked to stop: they finish the current step, save a snapshot, and can be resumed.

The first Ctrl-C, or a SIGTERM as a cluster sends it, asks every trial of the sweep to stop; a second Ctrl-C stops at
once. Workers of the same terminal get the signal too; workers elsewhere see a file that the sweep leaves in the study.
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
"""The signals that ask for a stop, with the reason to record; submitit sends the last before a job's time limit."""

POLL_SECONDS = 0.5
"""How often a worker looks for the file."""

STOPPING = "stopping after the current steps; Ctrl-C again stops at once"


class Interrupted(Exception):
    """The trial was asked to stop and has stopped; the message says by what. It can be resumed."""


class _Process:
    """The state of this process: the signal that has come, whether it listens, and whether it is a worker."""

    signal: int | None = None
    listens = False
    is_worker = False


def asked_by() -> int | None:
    """Return the signal that has asked this process to stop, or None."""
    return _Process.signal


def forget() -> None:
    """Withdraw a request, as for the next command in the same process."""
    _Process.signal = None


def request(number: int) -> None:
    """Ask this process's trials to stop, as the signal ``number`` does."""
    _Process.signal = number


def marker_of(outputs: Path, study: str, session: str) -> Path:
    """Return the file whose presence asks the trials of one sweep to stop, on whatever machine they run."""
    return study_folder(outputs, study) / ".running" / f"{session}.stop"


class StopSign:
    """Tells a trial whether to stop, by a signal or by its sweep's file; cheap enough to be asked at every step."""

    def __init__(self, marker: Path | None) -> None:
        self._marker = marker
        self._looked = -POLL_SECONDS
        self._is_there = False

    def reason(self) -> str | None:
        """Return why to stop, or None to continue."""
        if _Process.signal is not None:
            return SIGNALS.get(_Process.signal, f"signal {_Process.signal}")
        now = time.monotonic()
        if self._marker is not None and now - self._looked >= POLL_SECONDS:
            self._looked = now
            self._is_there = self._marker.exists()
        return "the sweep was stopped" if self._is_there else None

    def check(self) -> None:
        """Raise Interrupted if the trial is to stop."""
        reason = self.reason()
        if reason is not None:
            raise Interrupted(reason)


@contextlib.contextmanager
def listening_to(marker: Path | None, *, for_good: bool) -> Iterator[StopSign]:
    """Handle signals as requests to one trial, unless this process does so already; forget an earlier request then.

    ``for_good`` is for a worker: a signal between two trials must not end it, as that would break its pool.
    """
    if _Process.listens:
        if _Process.is_worker:
            forget()
        yield StopSign(marker)
        return
    forget()
    if for_good:
        _Process.is_worker = True
        _handle_signals(None, tell=False)
        yield StopSign(marker)
        return
    with listening():
        yield StopSign(marker)


@contextlib.contextmanager
def listening(marker: Path | None = None, *, tell: bool = True) -> Iterator[None]:
    """Handle signals as requests to stop; with ``marker``, pass a request on to others by that file.

    ``tell`` prints a line on the terminal. A second Ctrl-C raises KeyboardInterrupt. Only a main thread can handle
    signals; in another thread this does nothing.
    """
    before = _handle_signals(marker, tell=tell)
    try:
        yield
    finally:
        if before:
            _Process.listens = False
        for number, handler in before.items():
            signal.signal(number, handler)
        if marker is not None:
            # On a disk that cannot be written to it stays, which does no harm: no other sweep looks for it.
            with contextlib.suppress(OSError):
                marker.unlink(missing_ok=True)


def _handle_signals(marker: Path | None, *, tell: bool) -> dict[int, Any]:
    """Install the handlers; return those that they replace, none in a thread that cannot have any."""
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
        if tell:
            # The handler may interrupt another write, so it bypasses Python's buffers; a lost terminal does not matter.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{STOPPING}\n".encode())

    _Process.listens = True
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # A signal that is ignored, as nohup sets it, stays ignored.
        if before[number] != signal.SIG_IGN:
            signal.signal(number, handle)
    return before
