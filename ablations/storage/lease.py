"""Who works at which trial: one process at a time, with a sign of life that others can see.

A trial is held by a lock of the operating system, which is let go of however its process ends, and by a lease, a file
of the study that says who works there and how far the work is. The holder renews it as it goes. A holder that is
alive and does nothing is found by :class:`Watch`: its lease stays the same for longer than the study allows. Then
:func:`take_away` ends it where it can be reached, and elsewhere takes its lease, which it notices at its next beat.

Silence is measured by the watcher's own monotonic clock from the moment at which it saw the lease change, so clocks
that differ or are set back between machines or meanwhile do not matter.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import platform
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from ablations.storage.files import read_json, write_atomically
from ablations.storage.folder import TrialFolder, study_folder
from bbcu.errors import BbcuError

log = logging.getLogger(__name__)

RUNNING = ".running"
"""The folder of a study's leases: few files however many trials there are, so that a view can read it every second."""

MOST_BETWEEN_LOOKS = 5.0
"""How many seconds between two looks of a watcher count at most."""

BEAT_SECONDS = 1.0
"""How often a lease is renewed at most; it is a small file, written without waiting for the disk."""


class TrialBusy(BbcuError):
    """Another process holds the trial at this moment."""


class LeaseLost(BbcuError):
    """The trial was taken away from this process, which had been silent too long; somebody else works at it."""


@dataclass(frozen=True)
class Lease:
    """What a lease says: who works at a trial, since when, and how far it is.

    ``token`` is new whenever a trial is taken up. ``born`` tells a process from a later one of the same ``pid``.
    ``session`` is the sweep that gave the trial out, empty for a trial alone. ``psnr_db`` is the mean over the test
    sets after step ``scored_at``, the latest that was scored; None before the first. ``began`` is in seconds since the
    epoch.
    """

    study: str
    cell: str
    seed: int
    name: str
    session: str
    attempt: int
    steps: int
    token: str
    host: str
    pid: int
    born: str
    began: float
    beat: int = 0
    phase: str = "preparing"
    step: int = 0
    scored_at: int = 0
    psnr_db: float | None = None

    @property
    def is_here(self) -> bool:
        """Whether its process runs, or ran, on this machine since it was started."""
        return self.host == this_host()

    @property
    def is_alive(self) -> bool:
        """Whether its process exists; one on another machine is taken to be alive, as nobody here can tell."""
        if self.is_here:
            return birth_of(self.pid) == self.born
        # What ran on this machine before it was started anew has ended.
        return self.host.partition("/")[0] != this_host().partition("/")[0]

    @property
    def place(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


def lease_path(folder: TrialFolder) -> Path:
    return study_folder(folder.outputs, folder.study) / RUNNING / f"{folder.cell}-seed{folder.seed}.json"


def read_lease(path: Path) -> Lease | None:
    """The lease in ``path``, or None where there is none that is whole."""
    content = read_json(path)
    try:
        return None if content is None else Lease(**content)
    except TypeError:
        return None


def leases(outputs: Path, study: str) -> list[Lease]:
    """The leases of a study whose process lives, as far as one can tell from here, by cell and seed."""
    paths = sorted((study_folder(outputs, study) / RUNNING).glob("*.json"))
    return [lease for path in paths if (lease := read_lease(path)) is not None and lease.is_alive]


def living_lease(folder: TrialFolder) -> Lease | None:
    """Return the lease of the process that works at a trial, as far as can be known from this machine."""
    lease = read_lease(lease_path(folder))
    return lease if lease is not None and lease.is_alive else None


@functools.cache
def this_host() -> str:
    """The machine's name, and what tells one start of it from another where the system says that."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        start = ""
    return f"{platform.node()}/{start}"


def birth_of(pid: int) -> str | None:
    """When the process ``pid`` was started, as the system counts; None where it has ended, "" where nobody tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self").exists():
            return None
        return "" if _exists(pid) else None
    # The third field of all is the state, and the twenty-second the time of the start.
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class HeldTrial:
    """A trial that this process holds; it beats to show that it goes on."""

    def __init__(self, folder: TrialFolder, lease: Lease) -> None:
        self._path, self._lease = lease_path(folder), lease
        self._written_at = 0.0
        self._is_written = False
        self._has_warned = False

    @property
    def lease(self) -> Lease:
        return self._lease

    def show(self) -> None:
        """Put the lease where others see it, for the first time."""
        self._write()

    def beat(self, *, now: bool = False, **news: Any) -> None:
        """Show that the work goes on, with ``news`` of it, as ``step=120``; at most once a second, unless ``now``.

        Raises LeaseLost where the trial was taken away meanwhile.
        """
        self._lease = dataclasses.replace(self._lease, beat=self._lease.beat + 1, **news)
        if now or time.monotonic() - self._written_at >= BEAT_SECONDS:
            self.check()
            self._write()

    def check(self) -> None:
        """Raise LeaseLost where the trial was taken away; to be called before anything of it is written."""
        on_disk = read_lease(self._path)
        # A disk that does not answer takes nothing away.
        is_gone = on_disk is None and self._is_written and _is_gone(self._path)
        if is_gone or (on_disk is not None and on_disk.token != self._lease.token):
            own = self._lease
            raise LeaseLost(f"{own.name} seed {own.seed} was given to another process, as this one was silent")

    def _write(self) -> None:
        self._written_at = time.monotonic()
        try:
            write_atomically(self._path, json.dumps(dataclasses.asdict(self._lease)) + "\n", durable=False)
            self._is_written = True
        except OSError as error:
            if not self._has_warned:
                log.warning("%s cannot be written (%s); the work goes on", self._path, error.strerror)
                self._has_warned = True
            # A full disk still takes a date, and a watcher looks at that too.
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def held(folder: TrialFolder, name: str, *, session: str = "", attempt: int = 1, steps: int = 0) -> Iterator[HeldTrial]:
    """Hold a trial against other processes for the body; the system lets go of it however this process ends.

    Raises TrialBusy where another process holds it, and BbcuError where its folder cannot be written to.
    """
    lock = filelock.FileLock(folder.path / ".lock", timeout=0)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise TrialBusy(f"{folder.path} is being trained by another process") from None
    except OSError as error:
        raise BbcuError(f"{folder.path}: cannot be written to: {error.strerror}") from error
    try:
        own = _lease_of(folder, name, session, attempt, steps)
        trial = HeldTrial(folder, own)
        trial.show()
        try:
            yield trial
        finally:
            _drop(folder, own)
    finally:
        lock.release()


def _lease_of(folder: TrialFolder, name: str, session: str, attempt: int, steps: int) -> Lease:
    """A new lease of this process; raises TrialBusy where one of another machine is there."""
    path = lease_path(folder)
    before = read_lease(path)
    # A lock may not reach from machine to machine; a lease in a folder that they share does.
    if before is not None and not before.is_here and before.is_alive:
        raise TrialBusy(f"{folder.path} is being trained by {before.place}; if that is gone, remove {path}")
    return Lease(
        *(folder.study, folder.cell, folder.seed, name, session, attempt, steps),
        token=uuid.uuid4().hex,
        host=this_host(),
        pid=os.getpid(),
        born=birth_of(os.getpid()) or "",
        began=time.time(),
    )


def _drop(folder: TrialFolder, own: Lease) -> bool:
    """Take the lease away, unless it is somebody else's by now; whether it was there."""
    path = lease_path(folder)
    found = read_lease(path)
    if found is None or found.token != own.token:
        return False
    # On a disk that takes nothing it stays; that its process has gone, or holds no lock, tells the others.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return True


class Watch:
    """Tells which leases have not been renewed for ``silence`` seconds while it looked.

    A watcher that did not look for a while, as it was stopped with its workers or the machine slept, has seen no
    silence meanwhile: between two looks no more than a few seconds count.
    """

    def __init__(self, silence: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silence, self._clock = silence, clock
        self._looked_at = clock()
        self._seen: dict[Path, tuple[object, float]] = {}

    def silent(self, outputs: Path, study: str) -> list[Lease]:
        """The leases that stayed the same for too long, of processes that are there or may be."""
        now = self._clock()
        passed = min(now - self._looked_at, MOST_BETWEEN_LOOKS)
        self._looked_at = now
        found, seen = [], {}
        for path in sorted((study_folder(outputs, study) / RUNNING).glob("*.json")):
            try:
                state: object = (path.read_bytes(), path.stat().st_mtime_ns)
            except OSError:
                continue
            before = self._seen.get(path)
            quiet = before[1] + passed if before is not None and before[0] == state else 0.0
            seen[path] = (state, quiet)
            lease = read_lease(path)
            if lease is not None and lease.is_alive and quiet > self._silence:
                found.append(lease)
        self._seen = seen
        return found


def take_away(outputs: Path, lease: Lease) -> None:
    """Take a trial from a process that does not answer, so that it can be given out again.

    A process of this machine is killed, which frees the trial at once; this process itself is left alone. Elsewhere the
    lease and the lock are taken away: a process that wakes up there finds that its lease is gone and stops.
    """
    folder = TrialFolder(outputs, lease.study, lease.cell, lease.seed)
    if lease.is_here:
        if lease.pid != os.getpid() and birth_of(lease.pid) == lease.born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(lease.pid, signal.SIGKILL)
            log.warning("%s seed %d: %s was silent and was ended", lease.name, lease.seed, lease.place)
        return
    # Of two that watch, only one takes it: the other's lock would be that of whoever works there by now.
    if _drop(folder, lease):
        (folder.path / ".lock").unlink(missing_ok=True)
        log.warning("%s seed %d was taken from %s, which was silent", lease.name, lease.seed, lease.place)
