"""The most memory that a trial took: of its process, where Linux tells it, and of its GPU."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

PEAK_ALONE = "5"
"""What the kernel takes for: forget the largest size that this process has had, and nothing else. Source: proc(5)."""


def forget_peaks(device: "torch.device") -> None:
    """Begin anew, so that a worker's next trial is not given the size of an earlier one."""
    # Where that is not allowed the peak is that since the process began.
    with contextlib.suppress(OSError):
        CLEAR.write_text(PEAK_ALONE)
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: "torch.device") -> dict[str, float]:
    """The most MiB since then: ``peak_mib`` of the process and ``gpu_peak_mib``, each where it is told."""
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
