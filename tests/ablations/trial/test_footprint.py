"""The peak memory of a trial does not include that of earlier trials."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

from ablations.trial import footprint
from ablations.trial.footprint import forget_peaks, peaks, release

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")
BLOCK_MIB = 256


@linux
def test_memory_that_was_freed_counts_until_the_peak_is_reset() -> None:
    forget_peaks(CPU)
    before = peaks(CPU)["peak_mib"]
    # Mapped directly, since an allocator may keep freed memory.
    with mmap.mmap(-1, BLOCK_MIB * 2**20) as block:
        block.write(b"x" * len(block))
        held = peaks(CPU)["peak_mib"]
    assert held >= before + 0.9 * BLOCK_MIB
    assert peaks(CPU)["peak_mib"] == pytest.approx(held, abs=16)
    forget_peaks(CPU)
    assert peaks(CPU)["peak_mib"] < held - 0.5 * BLOCK_MIB


def test_a_machine_that_does_not_report_peaks_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footprint, "STATUS", tmp_path / "nowhere")
    monkeypatch.setattr(footprint, "CLEAR", tmp_path / "no" / "where")
    forget_peaks(CPU)
    assert peaks(CPU) == {}


@pytest.mark.cuda
def test_the_memory_of_a_gpu_counts_separately() -> None:
    gpu = torch.device("cuda")
    forget_peaks(gpu)
    before = peaks(gpu)["gpu_peak_mib"]
    block = torch.ones(BLOCK_MIB * 2**20, dtype=torch.uint8, device=gpu)
    del block
    assert peaks(gpu)["gpu_peak_mib"] == pytest.approx(before + BLOCK_MIB, abs=2)


@pytest.mark.cuda
def test_what_pytorch_keeps_counts_until_it_is_released() -> None:
    gpu = torch.device("cuda")
    release("cuda")
    forget_peaks(gpu)
    before = peaks(gpu)["gpu_reserved_mib"]
    block = torch.ones(BLOCK_MIB * 2**20, dtype=torch.uint8, device=gpu)
    del block
    found = peaks(gpu)
    assert found["gpu_mib"] > found["gpu_reserved_mib"] >= before + BLOCK_MIB
    release("cuda")
    forget_peaks(gpu)
    assert peaks(gpu)["gpu_reserved_mib"] <= before
