"""The peak memory of a trial: of its process, if Linux reports it, and of its GPU."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

PEAK_ALONE = "5"
"""Resets the peak size of the process and nothing else. Source: proc(5), clear_refs."""


def forget_peaks(device: "torch.device") -> None:
    """Reset the peaks, so that a worker's next trial does not report those of an earlier one."""
    # If that is not allowed, the peak is that since the process began.
    with contextlib.suppress(OSError):
        CLEAR.write_text(PEAK_ALONE)
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: "torch.device") -> dict[str, float]:
    """The peaks since the reset in MiB: ``peak_mib`` of the process and ``gpu_peak_mib``, each if it is known."""
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
    return found
