"""The machine that a process runs on, and how the process uses its memory."""

import ctypes
import functools
import os
import platform
from pathlib import Path

INSTRUCTIONS = ("avx", "amx", "neon", "sve", "sme")
"""How the names of vector instructions begin, as torch calls them."""

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Options of mallopt, from glibc's malloc.h."""


@functools.cache
def processor() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> tuple[str, ...]:
    """Return the sets of vector instructions that the processor has, such as "avx2" and "avx512_vnni"."""
    import torch

    has = torch.cpu.get_capabilities()
    return tuple(sorted(name for name, value in has.items() if value is True and name.startswith(INSTRUCTIONS)))


@functools.cache
def retain_freed_memory() -> None:
    """Make glibc retain freed memory in the process for the next step; do nothing with other C libraries.

    A step frees hundreds of megabytes. Without this, the system zeroes them and maps them page by page in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 2**30)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
