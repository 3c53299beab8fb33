"""Remove what processes that were killed left behind, and nothing that a living process uses.

A temporary file is locked by its process (:mod:`bbcu.files`), so one without a lock is abandoned. Joblib's workers
share semaphores, which are files in ``/dev/shm`` that they keep open; joblib removes these, unless all of its processes
are killed at once.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ablations.storage.folder import TrialFolder, study_folder
from ablations.storage.lease import RUNNING, lease_files, read_lease, trial_lock
from bbcu.errors import BbcuError
from bbcu.files import remove_abandoned, temporary_folder

SHARED_MEMORY = Path("/dev/shm")

SEMAPHORES = "sem.loky-*"
"""The names of the semaphores of loky, which joblib's processes are from."""


def cache_folder(outputs: Path) -> Path:
    """Return the folder of what any trial can make again."""
    return outputs / ".cache"


def remove_leftovers(outputs: Path, study: str) -> None:
    """Remove what killed processes left in the outputs and in shared memory; call it once, where a study starts."""
    for place in (cache_folder(outputs), study_folder(outputs, study), study_folder(outputs, study) / RUNNING):
        remove_abandoned(place)
    for path in lease_files(outputs, study):
        cell, _, seed = path.stem.rpartition("-seed")
        lease = read_lease(path)
        if lease is None or lease.is_alive or not seed.isdecimal():
            continue
        folder = TrialFolder(outputs, study, cell, int(seed))
        if folder.path.is_dir():
            # The lock ends with the removal of the lease.
            with contextlib.suppress(BbcuError), trial_lock(folder, lease.name):
                remove_leftovers_of(folder)
    remove_unused_semaphores(SHARED_MEMORY)


def remove_leftovers_of(folder: TrialFolder) -> None:
    """Remove what killed processes left in a trial's folder; call it while the trial is locked."""
    for place in (folder.path, folder.snapshots):
        remove_abandoned(place)


def remove_unused_semaphores(memory: Path) -> None:
    """Remove the semaphores of this user's joblib that no process has open, in whatever container it runs."""
    for path in memory.glob(SEMAPHORES):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(handle).st_uid == os.geteuid():
                    # Linux grants this lease only for a file that no process can write to, and mapping it for writing
                    # counts. A process that opens it now waits until the lease ends.
                    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                    path.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def joblib_folder(outputs: Path) -> Iterator[None]:
    """Let joblib pass arrays to its workers in a temporary folder of the outputs instead of ``/dev/shm``."""
    before = os.environ.get("JOBLIB_TEMP_FOLDER")
    with temporary_folder(cache_folder(outputs) / "joblib") as folder:
        os.environ["JOBLIB_TEMP_FOLDER"] = str(folder.absolute())
        try:
            yield
        finally:
            os.environ.pop("JOBLIB_TEMP_FOLDER")
            if before is not None:
                os.environ["JOBLIB_TEMP_FOLDER"] = before
