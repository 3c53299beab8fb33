"""The GPU that a trial computes on: where there are several, the one that the fewest trials hold.

A claim is a lock on a file, which the system lets go of however a process ends: a trial that was killed keeps no GPU.
Only GPUs that this process may see are looked at, so what Ray or SLURM set in ``CUDA_VISIBLE_DEVICES`` holds. A claim
goes by the GPU's own identity, since its number may mean another GPU to the next process.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock

from bbcu.errors import BbcuError


def visible_gpus() -> int:
    """How many GPUs this process may compute on."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_identity(index: int) -> str:
    """The UUID of the visible GPU ``index``: the same in every process of the machine, and no other GPU's."""
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)


@contextlib.contextmanager
def device_for(
    wanted: str, claims: Path, count: int | None = None, identity: Callable[[int], str] = gpu_identity
) -> Iterator[str]:
    """Give the name of the device to compute on; it stays claimed as long as the body runs.

    "auto" is the GPU that the fewest bodies hold, in this process or another, as "cuda:1"; with one GPU or none it is
    what :func:`bbcu.training.loop.resolve_device` says. Any other device is handed through, and not claimed. ``claims``
    is the folder of the claims, which all processes that are to see one another's must share; ``count`` is how many
    GPUs are visible, and ``identity`` tells one from another. Raises BbcuError where ``claims`` cannot be written to.
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
    """Claim the GPU with the fewest claims, the first of several: its index, and the lock that is the claim.

    Each GPU has a folder with a file for each claim at a time. One process looks and takes at a time, or two would find
    the same GPU free.
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
    """The lock on a file, or None where somebody else holds it."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return None
    return lock
