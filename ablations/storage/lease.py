"""Locks and leases, so that only one process at a time runs a trial and others can see that it is alive.

A process that runs a trial holds a lock of the operating system, which is released however the process ends, and a
lease: a file in the study's folder that names the process and its progress. Each renewal of the lease is a heartbeat.
:class:`SilenceMonitor` finds processes that are alive but hang: their lease has not changed for longer than the study
allows. :func:`revoke` then kills such a process if it runs on this machine, and otherwise removes its lease, which the
process notices at its next heartbeat.

Silence is measured by the monitor's own monotonic clock, from the moment at which it saw the lease change. So clocks
that differ between machines, or are set back, do not matter.
"""

import contextlib
import dataclasses
import functools
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

from ablations.storage.files import read_intact, write_sealed
from ablations.storage.folder import TrialFolder, study_folder
from bbcu.errors import BbcuError
from bbcu.files import read_bytes

log = logging.getLogger(__name__)

RUNNING = ".running"
"""The folder of a study's leases: few files however many trials there are, so a view can read it every second."""

MAX_SECONDS_BETWEEN_POLLS = 5.0
"""How much silence a monitor adds at most between two polls."""

HEARTBEAT_SECONDS = 1.0
"""The shortest time between two renewals of a lease; it is a small file, written without waiting for the disk."""


class TrialBusy(BbcuError):
    """Another process runs the trial."""


class LeaseLost(BbcuError):
    """The trial was given to another process because this one sent no heartbeat."""


@dataclass(frozen=True)
class Lease:
    """The content of a lease: which process runs a trial, since when, and its progress.

    ``token`` is unique to each holder. ``process_start`` distinguishes a process from a later one with the same
    ``pid``. ``session`` is the sweep that started the trial, empty for a single run. ``psnr_db`` is the mean over the
    test sets at the latest evaluation, after step ``scored_at``; None before the first. ``began`` is in seconds since
    the epoch.
    """

    study: str
    cell: str
    seed: int
    name: str
    session: str
    steps: int
    token: str
    host: str
    pid: int
    process_start: str
    began: float
    heartbeats: int = 0
    phase: str = "preparing"
    step: int = 0
    scored_at: int = 0
    psnr_db: float | None = None

    @property
    def is_here(self) -> bool:
        """Whether its process was started on this machine since the machine's latest start."""
        return self.host == this_host()

    @property
    def is_alive(self) -> bool:
        """Whether its process exists; one on another machine counts as alive, since it cannot be seen from here."""
        if self.is_here:
            return process_start_of(self.pid) == self.process_start
        # What ran on this machine before it was restarted has ended.
        return self.host.partition("/")[0] != this_host().partition("/")[0]

    @property
    def place(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


def lease_path(folder: TrialFolder) -> Path:
    return study_folder(folder.outputs, folder.study) / RUNNING / lease_name(folder.cell, folder.seed)


def lease_name(cell: str, seed: int) -> str:
    return f"{cell}-seed{seed}.json"


def lease_files(outputs: Path, study: str) -> list[Path]:
    return sorted((study_folder(outputs, study) / RUNNING).glob("*.json"))


def read_lease(path: Path) -> Lease | None:
    """Return the lease in ``path``, or None if it is missing, damaged or another trial's.

    A damaged lease is ignored: its trial counts as one without a process, and the lock keeps a second process away.
    """
    from ablations.storage import formats

    content = read_intact(path, formats.Lease)
    lease = None if content is None else Lease(**content)
    return lease if lease is not None and path.name == lease_name(lease.cell, lease.seed) else None


def leases(outputs: Path, study: str) -> list[Lease]:
    """Return the leases of a study whose process is alive, as :attr:`Lease.is_alive` knows it, by cell and seed."""
    present = [read_lease(path) for path in lease_files(outputs, study)]
    return [lease for lease in present if lease is not None and lease.is_alive]


def living_lease(folder: TrialFolder) -> Lease | None:
    """Return the lease of the process that runs a trial, or None; a process on another machine counts as alive."""
    lease = read_lease(lease_path(folder))
    return lease if lease is not None and lease.is_alive else None


@functools.cache
def this_host() -> str:
    """Return the machine's name and, if the system provides it, the identifier of its latest start."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        start = ""
    return f"{platform.node()}/{start}"


def process_start_of(pid: int) -> str | None:
    """Return when the process ``pid`` was started, in the system's units; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # Field 3 of the file is the state, field 22 the time of the start.
    return None if fields[0] in "ZX" else fields[19]


class HeldLease:
    """The lease of a trial that this process has locked."""

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
        """Raise LeaseLost if the lease was revoked; call it before writing anything to the trial's folder."""
        on_disk = read_lease(self._path)
        # If the disk does not answer, the lease is not lost.
        is_gone = on_disk is None and self._is_written and _is_gone(self._path)
        if is_gone or (on_disk is not None and on_disk.token != self._lease.token):
            own = self._lease
            raise LeaseLost(
                f"{own.name} seed {own.seed} was given to another process because this one sent no heartbeat"
            )

    def _write(self) -> None:
        self._written_at = time.monotonic()
        try:
            write_sealed(self._path, dataclasses.asdict(self._lease), durable=False)
            self._is_written = True
        except OSError as error:
            if not self._has_warned:
                log.warning("%s cannot be written (%s); the trial continues", self._path, error.strerror)
                self._has_warned = True
            # A full disk still accepts a new date, which a monitor checks too.
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
def trial_lock(folder: TrialFolder, name: str, *, session: str = "", steps: int = 0) -> Iterator[HeldLease]:
    """Lock a trial against other processes; the system releases the lock however this process ends.

    Raises TrialBusy if another process runs it, and BbcuError if its folder cannot be written to.
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
        own = _new_lease(folder, name, session, steps)
        try:
            yield HeldLease(folder, own)
        finally:
            _remove(folder, own)
    finally:
        lock.release()


def _new_lease(folder: TrialFolder, name: str, session: str, steps: int) -> Lease:
    """Return a lease of this process; raise TrialBusy if a process on another machine has one."""
    path = lease_path(folder)
    before = read_lease(path)
    # A lock may not work across machines; a lease in a shared folder does.
    if before is not None and not before.is_here and before.is_alive:
        raise TrialBusy(f"{folder.path} is being trained by {before.place}; if that is gone, remove {path}")
    return Lease(
        *(folder.study, folder.cell, folder.seed, name, session, steps),
        token=uuid.uuid4().hex,
        host=this_host(),
        pid=os.getpid(),
        process_start=process_start_of(os.getpid()) or "",
        began=time.time(),
    )


def _remove(folder: TrialFolder, own: Lease) -> bool:
    """Remove a lease, unless another process has replaced it; return whether it was still in place."""
    path = lease_path(folder)
    present = read_lease(path)
    if present is None or present.token != own.token:
        return False
    # If the disk cannot be written to, the file stays; others see that its process has ended, or holds no lock.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return True


class SilenceMonitor:
    """Finds the leases that have not been renewed for ``silence`` seconds while it polled.

    Between two polls only a few seconds count: if the monitor was stopped together with its workers, or the machine was
    suspended, the time in between is not silence.
    """

    def __init__(self, silence: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silence, self._clock = silence, clock
        self._polled_at = clock()
        self._seen: dict[Path, tuple[object, float]] = {}

    def silent(self, outputs: Path, study: str) -> list[Lease]:
        """Return the leases that have not changed for too long and whose process is, or may be, alive."""
        now = self._clock()
        passed = min(now - self._polled_at, MAX_SECONDS_BETWEEN_POLLS)
        self._polled_at = now
        silent, seen = [], {}
        for path in lease_files(outputs, study):
            try:
                state: object = (read_bytes(path), path.stat().st_mtime_ns)
            except OSError:
                continue
            before = self._seen.get(path)
            quiet = before[1] + passed if before is not None and before[0] == state else 0.0
            seen[path] = (state, quiet)
            lease = read_lease(path)
            if lease is not None and lease.is_alive and quiet > self._silence:
                silent.append(lease)
        self._seen = seen
        return silent


def revoke(outputs: Path, lease: Lease) -> None:
    """Free a trial whose process sends no heartbeat, so that the trial can be started again.

    A process on this machine is killed, which releases the lock at once; this process itself is never killed. A process
    on another machine loses its lease and its lock file: if it wakes up, it notices and stops.
    """
    folder = TrialFolder(outputs, lease.study, lease.cell, lease.seed)
    if lease.is_here:
        if lease.pid != os.getpid() and process_start_of(lease.pid) == lease.process_start:
            with contextlib.suppress(ProcessLookupError):
                os.kill(lease.pid, signal.SIGKILL)
            log.warning("%s seed %d: %s sent no heartbeat and was killed", lease.name, lease.seed, lease.place)
        return
    # Of two monitors only one gets here, or the second would remove the lock file of the next holder.
    if _remove(folder, lease):
        (folder.path / ".lock").unlink(missing_ok=True)
        log.warning("%s seed %d was taken from %s, which sent no heartbeat", lease.name, lease.seed, lease.place)
