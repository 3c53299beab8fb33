"""The GPU of a trial: of several, the one with the fewest trials.

A claim is a lock on a file, which the system releases however a process ends, so a killed trial holds no GPU. Only GPUs
that are visible to this process are claimed, so ``CUDA_VISIBLE_DEVICES`` as Ray or SLURM set it is respected. Claims
name a GPU by its UUID, because its number may mean another GPU in the next process.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock

from bbcu.errors import BbcuError


def visible_gpus() -> int:
    """The number of GPUs that are visible to this process."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_identity(index: int) -> str:
    """The UUID of the visible GPU ``index``."""
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)


@contextlib.contextmanager
def device_for(
    wanted: str, claims: Path, count: int | None = None, identity: Callable[[int], str] = gpu_identity
) -> Iterator[str]:
    """Claim a device for the duration of the context and yield its name, as in "cuda:1".

    "auto" claims the GPU with the fewest claims, of this process and all others; with one GPU or none it yields what
    :func:`bbcu.training.loop.resolve_device` returns. Any other ``wanted`` is yielded unchanged and not claimed.
    ``claims`` is the folder of the claims, which all processes must share; ``count`` is the number of visible GPUs and
    ``identity`` returns the UUID of one. Raises BbcuError if ``claims`` cannot be written.
    """
    if wanted != "auto":
        yield wanted
        return
    gpus = visible_gpus() if count is None else count
    if gpus == 0:
        yield _without_choice()
        return
    try:
        index, claim = _claim_one([claims / _file_name(identity(index)) for index in range(gpus)])
    except OSError as error:
        raise BbcuError(f"{claims}: no GPU can be claimed here: {error.strerror or error}") from error
    try:
        yield f"cuda:{index}" if gpus > 1 else _without_choice()
    finally:
        claim.release()


def _without_choice() -> str:
    from bbcu.training.loop import resolve_device

    return str(resolve_device("auto"))


def _file_name(identity: str) -> str:
    return re.sub(r"[^\w-]", "-", identity)


def _claim_one(gpus: Sequence[Path]) -> tuple[int, filelock.BaseFileLock]:
    """Claim the GPU with the fewest claims, the first if several have as few; return its index and the lock.

    Each GPU has a folder with a lock file for each of its claims. A lock around all of them lets one process at a time
    count and claim, as two could find the same GPU free otherwise.
    """
    for gpu in gpus:
        gpu.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(gpus[0].parent / ".lock"):
        claimed = [sum(map(_is_held, gpu.iterdir())) for gpu in gpus]
        index = claimed.index(min(claimed))
        locks = (_held(gpus[index] / str(number)) for number in itertools.count())
        return index, next(lock for lock in locks if lock is not None)


def _is_held(path: Path) -> bool:
    lock = _held(path)
    if lock is not None:
        lock.release()
    return lock is None


def _held(path: Path) -> filelock.BaseFileLock | None:
    """The acquired lock on a file, or None if another process holds it."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return None
    return lock
