"""The memory of a trial: whether it can fit, and the peak of its process, if Linux reports it, and of its GPU."""

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.config import Config
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

MIB, GIB = 2**20, 2**30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

PEAK_ALONE = "5"
"""Resets the peak size of the process and nothing else. Source: proc(5), clear_refs."""

GPU_RESERVED_MIB, GPU_MIB = "gpu_reserved_mib", "gpu_mib"
"""The keys of the most memory that PyTorch reserved on the GPU, and of all memory that the GPU has."""

LIMIT_OF_CONTAINER = Path("/sys/fs/cgroup/memory.max")

BYTES_PER_PARAMETER = 16
"""The parameter, its gradient and the two moments of Adam, 4 bytes each."""


def check_fits(config: Config, network: "nn.Module", device: "torch.device") -> None:
    """Raise ConfigError if a training needs more memory than the device has, by an estimate that is far too low.

    It counts the parameters, the batch, and one byte for each value that a unit of the body keeps for its gradient.
    """
    train = config.train
    parameters = sum(parameter.numel() for parameter in network.parameters())
    pixels = train.batch * train.patch**2
    needed = BYTES_PER_PARAMETER * parameters + pixels * (4 + 2 * config.blocks * config.channels)
    present = memory_of(device)
    if needed > present:
        raise ConfigError(
            f"channels={config.channels} blocks={config.blocks} train.batch={train.batch} train.patch={train.patch}: "
            f"a training needs more than {needed / GIB:.0f} GiB of memory, and {device} has {present / GIB:.0f} GiB"
        )


def memory_of(device: "torch.device") -> int:
    """The memory of a GPU, or of this machine or container, in bytes."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A container without a limit has the word "max" there, and another system no such file.
    with contextlib.suppress(OSError, ValueError):
        present = min(present, int(LIMIT_OF_CONTAINER.read_text()))
    return present


def forget_peaks(device: "torch.device") -> None:
    """Reset the peaks, so that a worker's next trial does not report those of an earlier one."""
    # If that is not allowed, the peak is that since the process began.
    with contextlib.suppress(OSError):
        CLEAR.write_text(PEAK_ALONE)
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def release(device: str) -> None:
    """Give the memory that PyTorch keeps for later tensors back to the GPU, where other trials may need it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def peaks(device: "torch.device") -> dict[str, float]:
    """The memory in MiB, each if it is known: the peak of the process since the reset, and of its GPU.

    ``gpu_peak_mib`` is the memory of tensors; PyTorch reserves ``gpu_reserved_mib`` for them, of ``gpu_mib`` in all.
    """
    found = {}
    try:
        size = re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        size = None
    if size is not None:
        found["peak_mib"] = round(int(size[1]) * 1024 / MIB, 1)
    if device.type == "cuda":
        import torch

        found["gpu_peak_mib"] = round(torch.cuda.max_memory_allocated(device) / MIB, 1)
        found[GPU_RESERVED_MIB] = round(torch.cuda.max_memory_reserved(device) / MIB, 1)
        found[GPU_MIB] = round(memory_of(device) / MIB, 1)
    return found
