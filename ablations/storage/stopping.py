"""How trials are asked to stop: they finish the step in hand, keep a snapshot, and leave a study that can be resumed.

The first Ctrl-C, or a SIGTERM as a cluster sends it, asks every trial of the sweep to stop; the second Ctrl-C stops at
once. Workers of the same terminal get the signal too; those elsewhere see a file that the sweep leaves in the study.
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
    signal.SIGTERM: "told to end (SIGTERM)",
    signal.SIGUSR2: "told to end (SIGUSR2)",
}
"""What each signal means that asks for a stop; the last is what submitit sends before a job's time is over."""

LOOK_SECONDS = 0.5
"""How often a worker looks for the file."""


class Interrupted(Exception):
    """The trial was asked to stop and has; the message says by whom. It can be resumed."""


class _Request:
    """The process's own: which signal has come, if any; whether it listens, and whether it does so for good."""

    signal: int | None = None
    listens = False
    is_worker = False


def asked_by() -> int | None:
    """The signal that has asked this process to stop, or None."""
    return _Request.signal


def forget() -> None:
    """Take back a request, as for a next command in the same process."""
    _Request.signal = None


def request(number: int) -> None:
    """Ask this process's trials to stop, as the signal ``number`` does."""
    _Request.signal = number


def marker_of(outputs: Path, study: str, session: str) -> Path:
    """The file whose presence asks the trials of one sweep to stop, wherever they run."""
    return study_folder(outputs, study) / ".running" / f"{session}.stop"


class StopSign:
    """Tells a trial whether it is to stop, by a signal or by its sweep's file; looking often costs nothing."""

    def __init__(self, marker: Path | None) -> None:
        self._marker = marker
        self._looked = -LOOK_SECONDS
        self._is_there = False

    def reason(self) -> str | None:
        """Why to stop, or None to go on."""
        if _Request.signal is not None:
            return SIGNALS.get(_Request.signal, f"signal {_Request.signal}")
        now = time.monotonic()
        if self._marker is not None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._is_there = self._marker.exists()
        return "the sweep was stopped" if self._is_there else None

    def check(self) -> None:
        """Raise Interrupted where it is time to stop."""
        reason = self.reason()
        if reason is not None:
            raise Interrupted(reason)


@contextlib.contextmanager
def listening_to(marker: Path | None, *, for_good: bool) -> Iterator[StopSign]:
    """Take signals as requests for a trial, unless this process listens already; a request of before is forgotten then.

    ``for_good`` is for a worker: between two trials a signal must not end it, as that would break its pool.
    """
    if _Request.listens:
        if _Request.is_worker:
            forget()
        yield StopSign(marker)
        return
    forget()
    if for_good:
        _Request.is_worker = True
        _take_signals(None, tell=False)
        yield StopSign(marker)
        return
    with listening():
        yield StopSign(marker)


@contextlib.contextmanager
def listening(marker: Path | None = None, *, tell: bool = True) -> Iterator[None]:
    """Take signals as requests for the body; with ``marker``, a request is passed on to others by that file.

    ``tell`` says so on the terminal. A second Ctrl-C raises KeyboardInterrupt, as the first does elsewhere. Only a main
    thread can listen; in others the body runs as it is.
    """
    before = _take_signals(marker, tell=tell)
    try:
        yield
    finally:
        if before:
            _Request.listens = False
        for number, handler in before.items():
            signal.signal(number, handler)
        if marker is not None:
            # A disk that takes nothing keeps it; no other sweep looks for it.
            with contextlib.suppress(OSError):
                marker.unlink(missing_ok=True)


def _take_signals(marker: Path | None, *, tell: bool) -> dict[int, Any]:
    """Take signals as requests from now on; the handlers that they had, none in a thread that cannot listen."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def handle(number: int, frame: FrameType | None) -> None:
        if _Request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        _Request.signal = number
        if marker is not None:
            with contextlib.suppress(OSError):
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
        if tell:
            # A handler may come in the middle of another write, so the text takes the shortest way; a terminal that is
            # gone is no reason to break off.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after the steps in hand, to go on later; Ctrl-C again stops at once\n")

    _Request.listens = True
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        # Where somebody has set a signal to be ignored, as nohup does, it stays so.
        if before[number] != signal.SIG_IGN:
            signal.signal(number, handle)
    return before
