"""What makes a training step fast: bf16 convolutions where the machine has them, and compiled binary units.

The policy is pure: :func:`plan_for` says what is done and why. Only training is touched. Evaluation runs the same
parameters in full precision through the code as it is written.
"""

import ctypes
import functools
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.networks import Body, binary_units
from bbcu.units import BinaryUnit

log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]

PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", True, False)

COMPILE_SECONDS = 15.0
"""What a first compilation costs on two cores; one from the cache costs a tenth."""

SAVED_SECONDS_PER_VALUE = 5e-9
"""What a compiled unit saves per value of its output and step: (662 - 480) ms over 32 units of 2**20 values."""

GRAPHS = 256
"""How many different units a process may compile, so that a sweep over many cells does not run into torch's eight."""

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Names of glibc's options, from its malloc.h."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained on a device, each decision with its reason."""

    precision: str
    compiles: bool
    reasons: tuple[str, str]


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 in hardware; elsewhere bf16 is emulated, slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def cpp_compiler() -> str | None:
    """The C++ compiler that torch would call: ``CXX`` where it is set, else the first usual one; None without one."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def resolve_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The precision that ``wanted`` stands for on ``device``, "fp32" or "bf16", and why; it is part of a cell.

    There is no "tf32": a GPU that has it has bf16 too.
    """
    if wanted != "auto":
        return wanted, "as asked"
    if has_bf16(device):
        return "bf16", f"this {device.type} multiplies bf16 in hardware"
    return "fp32", f"this {device.type} has no bf16 hardware"


def resolve_compile(wanted: bool | str, units: int, values: int, compiler: str | None) -> tuple[bool, str]:
    """Whether ``units`` binary units compile, and why.

    ``values`` is the number of values that all units put out in all steps, which is what compilation has to earn.
    """
    if wanted is False:
        return False, "as asked"
    if units == 0:
        return False, "no binary units"
    if compiler is None:
        return False, "no C++ compiler found (g++, clang++ or CXX)"
    if wanted is True:
        return True, "as asked"
    saved = values * SAVED_SECONDS_PER_VALUE
    if saved < COMPILE_SECONDS:
        return False, f"too short a training: it would save about {saved:.1f} s, and cost {COMPILE_SECONDS:.0f} s once"
    return True, f"it saves about {saved:.0f} s"


def plan_for(network: nn.Module, device: torch.device, *, precision: str, compile: bool | str, pixels: int) -> Plan:
    """Decide how ``network`` is trained on ``device`` when all steps together show it ``pixels`` input pixels."""
    resolved, precision_reason = resolve_precision(precision, device)
    units = binary_units(network)
    values = pixels * sum(unit.out_channels for unit in units)
    compiles, compile_reason = resolve_compile(compile, len(units), values, cpp_compiler())
    reasons = (
        f"precision {resolved}: {precision_reason}",
        f"{'units compiled' if compiles else 'units not compiled'}: {compile_reason}",
    )
    return Plan(resolved, compiles, reasons)


def use_cache(folder: Path) -> None:
    """Keep what is compiled in ``folder``, for other processes and later runs; a cache that is set already stays.

    Each entry is found by the hash of its graph and written under torch's own locks, so processes may share it. To be
    called before the first compilation.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.resolve()))


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep the memory of a step for the next one, where the C library is glibc.

    A step frees a few hundred megabytes. Given back to the system, they come back page by page, zeroed, at every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 2**30)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def _compiled(forward: Forward, kind: object) -> Forward:
    """``forward`` compiled for the modules of one kind: parameters are its inputs, so equal modules share a graph."""
    compiled: Forward = torch.compile(  # type: ignore[call-overload]
        forward, fullgraph=True, dynamic=False, recompile_limit=GRAPHS, isolate_recompiles=True
    )
    return compiled


class CompiledForward:
    """Calls a module's compiled forward pass in training and the one as it is written everywhere else.

    Where the compiler refuses, a warning says so and the training goes on without it.
    """

    def __init__(self, written: Forward, kind: object) -> None:
        self.written, self.compiled, self.works = written, _compiled(written, kind), True

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if not (self.works and module.training and torch.is_grad_enabled()):
            return self.written(module, *args, **kwargs)
        try:
            return self.compiled(module, *args, **kwargs)
        except Exception as error:
            # A fault of the module itself shows again here, without the compiler's wrapping.
            output = self.written(module, *args, **kwargs)
            self.works = False
            log.warning("the units do not compile and train as they are: %s", str(error).strip().splitlines()[0])
            return output


def compile_units(network: nn.Module) -> None:
    """Let the binary units of ``network`` train compiled; its state, its evaluation and its copies stay as they are.

    Units that hand bits to one another through a memory compile together, as the body that they make up.
    """
    forwards: dict[object, CompiledForward] = {}
    bodies = [module for module in network.modules() if isinstance(module, Body) and module.memory is not None]
    inside = {unit for body in bodies for unit in binary_units(body)}
    regions: list[Body | BinaryUnit] = [*bodies, *(unit for unit in binary_units(network) if unit not in inside)]
    for region in regions:
        spec = region.units[0].spec if isinstance(region, Body) else region.spec
        kind = (type(region), spec)
        forward = forwards.setdefault(kind, CompiledForward(type(region).forward, kind))
        region.forward = MethodType(forward, region)  # type: ignore[method-assign]
