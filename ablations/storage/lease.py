"""Who works at a trial: one process at a time, with a heartbeat that others can see.

A process that works at a trial holds a lock of the operating system, which is released however the process ends, and a
lease: a file of the study that says who works there and how far the work is. The holder renews it, which is its
heartbeat. :class:`SilenceMonitor` finds holders that are alive and hang: their lease has not changed for longer than
the study allows. :func:`revoke` then kills the holder if it runs on this machine, and otherwise removes its lease,
which the holder notices at its next heartbeat.

Silence is measured by the monitor's own monotonic clock, from the moment at which it saw the lease change. So clocks
that differ between machines, or are set back, do not matter.
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
"""The folder of a study's leases: few files however many trials there are, so a view can read it every second."""

MOST_BETWEEN_LOOKS = 5.0
"""How many seconds between two looks of a monitor count at most."""

HEARTBEAT_SECONDS = 1.0
"""How often a lease is renewed at most; it is a small file, written without waiting for the disk."""


class TrialBusy(BbcuError):
    """Another process works at the trial."""


class LeaseLost(BbcuError):
    """The trial was taken from this process, which had sent no heartbeat; another one works at it."""


@dataclass(frozen=True)
class Lease:
    """The content of a lease: who works at a trial, since when, and how far it is.

    ``token`` is new for every holder. ``born`` distinguishes a process from a later one with the same ``pid``.
    ``session`` is the sweep that started the trial, empty for a single run. ``psnr_db`` is the mean over the test sets
    at the latest evaluation, after step ``scored_at``; None before the first. ``began`` is in seconds since the epoch.
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
    heartbeats: int = 0
    phase: str = "preparing"
    step: int = 0
    scored_at: int = 0
    psnr_db: float | None = None

    @property
    def is_here(self) -> bool:
        """Whether its process was started on this machine since the machine was."""
        return self.host == this_host()

    @property
    def is_alive(self) -> bool:
        """Whether its process exists; one on another machine counts as alive, since it cannot be seen from here."""
        if self.is_here:
            return birth_of(self.pid) == self.born
        # What ran on this machine before it was restarted has ended.
        return self.host.partition("/")[0] != this_host().partition("/")[0]

    @property
    def place(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


def lease_path(folder: TrialFolder) -> Path:
    return study_folder(folder.outputs, folder.study) / RUNNING / f"{folder.cell}-seed{folder.seed}.json"


def lease_files(outputs: Path, study: str) -> list[Path]:
    return sorted((study_folder(outputs, study) / RUNNING).glob("*.json"))


def read_lease(path: Path) -> Lease | None:
    """Return the lease in ``path``, or None if it is missing or damaged."""
    content = read_json(path)
    try:
        return None if content is None else Lease(**content)
    except TypeError:
        return None


def leases(outputs: Path, study: str) -> list[Lease]:
    """Return the leases of a study whose process is alive as far as can be known from here, by cell and seed."""
    found = [read_lease(path) for path in lease_files(outputs, study)]
    return [lease for lease in found if lease is not None and lease.is_alive]


def living_lease(folder: TrialFolder) -> Lease | None:
    """Return the lease of the process that works at a trial, as far as can be known from here."""
    lease = read_lease(lease_path(folder))
    return lease if lease is not None and lease.is_alive else None


@functools.cache
def this_host() -> str:
    """Return the machine's name and, if the system has one, the identifier of its latest start."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        start = ""
    return f"{platform.node()}/{start}"


def birth_of(pid: int) -> str | None:
    """Return when the process ``pid`` was started, in the system's own units; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # The third field of all is the state, and the twenty-second the time of the start.
    return None if fields[0] in "ZX" else fields[19]


class HeldTrial:
    """A trial that this process holds."""

    def __init__(self, folder: TrialFolder, lease: Lease) -> None:
        self._path, self._lease = lease_path(folder), lease
        self._written_at = 0.0
        self._is_written = False
        self._has_warned = False
        self._write()

    @property
    def lease(self) -> Lease:
        return self._lease

    def heartbeat(self, *, now: bool = False, **news: Any) -> None:
        """Renew the lease with ``news``, as in ``step=120``; at most once a second, unless ``now``.

        Raises LeaseLost if the trial was taken from this process.
        """
        self._lease = dataclasses.replace(self._lease, heartbeats=self._lease.heartbeats + 1, **news)
        if now or time.monotonic() - self._written_at >= HEARTBEAT_SECONDS:
            self.check()
            self._write()

    def check(self) -> None:
        """Raise LeaseLost if the trial was taken away; call it before writing anything to the trial's folder."""
        on_disk = read_lease(self._path)
        # A disk that does not answer does not mean that the lease is lost.
        is_gone = on_disk is None and self._is_written and _is_gone(self._path)
        if is_gone or (on_disk is not None and on_disk.token != self._lease.token):
            own = self._lease
            raise LeaseLost(f"{own.name} seed {own.seed} was given to another process, as this one sent no heartbeat")

    def _write(self) -> None:
        self._written_at = time.monotonic()
        try:
            write_atomically(self._path, json.dumps(dataclasses.asdict(self._lease)) + "\n", durable=False)
            self._is_written = True
        except OSError as error:
            if not self._has_warned:
                log.warning("%s cannot be written (%s); the work goes on", self._path, error.strerror)
                self._has_warned = True
            # A full disk still takes a new date, and a monitor looks at that too.
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
    """Lock a trial against other processes; the system releases the lock however this process ends.

    Raises TrialBusy if another process works at it, and BbcuError if its folder cannot be written to.
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
        own = _new_lease(folder, name, session, attempt, steps)
        try:
            yield HeldTrial(folder, own)
        finally:
            _remove(folder, own)
    finally:
        lock.release()


def _new_lease(folder: TrialFolder, name: str, session: str, attempt: int, steps: int) -> Lease:
    """Return a lease of this process; raise TrialBusy if a process of another machine has one."""
    path = lease_path(folder)
    before = read_lease(path)
    # A lock may not work across machines; a lease in a folder that they share does.
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


def _remove(folder: TrialFolder, own: Lease) -> bool:
    """Remove a lease, unless another process has replaced it; return whether it was there."""
    path = lease_path(folder)
    found = read_lease(path)
    if found is None or found.token != own.token:
        return False
    # On a disk that cannot be written to it stays; others see that its process has gone, or holds no lock.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return True


class SilenceMonitor:
    """Finds the leases that have not been renewed for ``silence`` seconds while it looked.

    Between two looks only a few seconds count: a monitor that did not look for a while, because it was stopped together
    with its workers or because the machine slept, has not seen them silent.
    """

    def __init__(self, silence: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silence, self._clock = silence, clock
        self._looked_at = clock()
        self._seen: dict[Path, tuple[object, float]] = {}

    def silent(self, outputs: Path, study: str) -> list[Lease]:
        """Return the leases that have stayed the same for too long and whose process is, or may be, alive."""
        now = self._clock()
        passed = min(now - self._looked_at, MOST_BETWEEN_LOOKS)
        self._looked_at = now
        found, seen = [], {}
        for path in lease_files(outputs, study):
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


def revoke(outputs: Path, lease: Lease) -> None:
    """Take a trial from a process that sends no heartbeat, so that the trial can be started again.

    A process of this machine is killed, which releases the trial at once; this process itself is never killed. A
    process on another machine loses its lease and its lock file: if it wakes up, it sees that and stops.
    """
    folder = TrialFolder(outputs, lease.study, lease.cell, lease.seed)
    if lease.is_here:
        if lease.pid != os.getpid() and birth_of(lease.pid) == lease.born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(lease.pid, signal.SIGKILL)
            log.warning("%s seed %d: %s sent no heartbeat and was killed", lease.name, lease.seed, lease.place)
        return
    # Of two monitors only one succeeds: the lock file that the other would remove belongs to the next holder.
    if _remove(folder, lease):
        (folder.path / ".lock").unlink(missing_ok=True)
        log.warning("%s seed %d was taken from %s, which sent no heartbeat", lease.name, lease.seed, lease.place)
