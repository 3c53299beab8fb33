"""What makes a training step fast: bf16 convolutions, compiled binary units, signs convolved in bytes, replayed steps.

The policy is pure: :func:`plan_for` says what is done and why. Only training is touched. Evaluation runs the same
parameters in full precision through the code as it is written; only bytes, which give the same numbers, stay.
"""

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.model.int8 import missing_for_bytes
from bbcu.model.networks import Body, binary_units
from bbcu.model.units import BinaryUnit

log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]

PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", True, False)
CUDA_GRAPH = ("auto", True, False)
INT8 = ("auto", True, False)

COMPILE_SECONDS = 15.0
"""What a first compilation costs on two cores; one from the cache costs a tenth."""

SAVED_SECONDS_PER_VALUE = {"cpu": 5e-9, "cuda": 1.3e-10}
"""What a compiled unit saves per value of its output and step, by the kind of device.

Over 32 units of 2**20 values, (662 - 480) ms on a CPU and (7.7 - 3.2) ms on an H100 that replays its steps.
"""

GRAPH_STEPS = 20
"""A training of fewer steps than this is over before the recording of one has paid."""

WRITTEN_STEPS = 3
"""How many steps run as they are written before one is recorded: libraries make their choices in the first ones."""

GRAPHS = 256
"""How many different units a process may compile, so that a sweep over many cells does not run into torch's eight."""

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Names of glibc's options, from its malloc.h."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained on a device, each decision with its reason."""

    precision: str
    compiles: bool
    replays: bool
    in_bytes: bool
    reasons: tuple[str, ...]


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


def missing_for_compilation(device: torch.device) -> str | None:
    """What torch lacks here to compile for ``device``, in words; None where it has everything."""
    if cpp_compiler() is None:
        return "no C++ compiler found (g++, clang++ or CXX)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def _settled(wanted: bool | str, units: int, missing: str | None) -> tuple[bool, str] | None:
    """What is decided about ``units`` binary units, and why, before it is asked what pays; None where that decides."""
    if wanted is False:
        return False, "as asked"
    if units == 0:
        return False, "no binary units"
    if missing is not None:
        return False, missing
    return (True, "as asked") if wanted is True else None


def resolve_compile(
    wanted: bool | str, units: int, values: int, missing: str | None, kind: str = "cpu"
) -> tuple[bool, str]:
    """Whether ``units`` binary units compile on a device of a ``kind``, and why.

    ``values`` is the number of values that all units put out in all steps, which is what compilation has to earn, and
    ``missing`` what :func:`missing_for_compilation` says.
    """
    settled = _settled(wanted, units, missing)
    if settled is not None:
        return settled
    if kind not in SAVED_SECONDS_PER_VALUE:
        return False, f"what it saves on {kind} is not known"
    saved = values * SAVED_SECONDS_PER_VALUE[kind]
    if saved < COMPILE_SECONDS:
        return False, f"too short a training: it would save about {saved:.1f} s, and cost {COMPILE_SECONDS:.0f} s once"
    return True, f"it saves about {saved:.0f} s"


def resolve_int8(
    wanted: bool | str, precision: str, units: int, own_parts: list[str], missing: str | None
) -> tuple[bool, str]:
    """Whether the forward convolutions of ``units`` binary units are done in bytes, and why.

    ``own_parts`` names the classes of a network that are not this package's, whose bits might be more than ones, and
    ``missing`` what :func:`bbcu.model.int8.missing_for_bytes` says.
    """
    settled = _settled(wanted, units, missing)
    if settled is not None:
        return settled
    if own_parts:
        return False, f"{', '.join(own_parts)} may give other bits than ones; train.int8=true if not"
    if precision == "bf16" and torch.cpu.get_capabilities().get("amx_bf16"):
        return False, "this cpu multiplies bf16 with AMX, and nobody has measured whether bytes are faster"
    return True, "exact, and this cpu multiplies bytes at several times the rate of floats"


def resolve_replay(wanted: bool | str, device: torch.device, own_parts: list[str], steps: int) -> tuple[bool, str]:
    """Whether a step is recorded as a CUDA graph and only replayed, and why.

    A replay does what the GPU did when the step was recorded and runs no Python, so a part that changes from step to
    step anywhere but in its tensors would stand still without a word. ``own_parts`` names the classes of a network that
    are not this package's, which might.
    """
    if device.type != "cuda":
        return False, "only a CUDA device can"
    if wanted != "auto":
        return bool(wanted), "as asked"
    if own_parts:
        return False, f"{', '.join(own_parts)} may change outside of tensors; train.cuda_graph=true if not"
    if steps < GRAPH_STEPS:
        return False, f"too short a training: fewer than {GRAPH_STEPS} steps"
    return True, "a step is many small launches, which cost more than what they launch"


def parts_of_users(network: nn.Module) -> list[str]:
    """The classes in ``network`` that neither this package nor torch has written, by name."""
    ours = {"bbcu", "torch"}
    kinds = {type(module) for module in network.modules()}
    return sorted(kind.__qualname__ for kind in kinds if kind.__module__.partition(".")[0] not in ours)


@dataclass(frozen=True)
class Wanted:
    """What a user asks for of the ways to be fast; each is "auto" or an answer."""

    precision: str
    compile: bool | str = "auto"
    cuda_graph: bool | str = "auto"
    int8: bool | str = "auto"


def plan_for(network: nn.Module, device: torch.device, wanted: Wanted, *, steps: int, pixels: int) -> Plan:
    """Decide how ``network`` is trained on ``device`` when ``steps`` steps together show it ``pixels`` input pixels."""
    precision, precision_reason = resolve_precision(wanted.precision, device)
    units = binary_units(network)
    values = pixels * sum(unit.out_channels for unit in units)
    missing = missing_for_compilation(device)
    compiles, compile_reason = resolve_compile(wanted.compile, len(units), values, missing, device.type)
    own_parts = parts_of_users(network)
    in_bytes, bytes_reason = resolve_int8(wanted.int8, precision, len(units), own_parts, missing_for_bytes(device))
    replays, replay_reason = resolve_replay(wanted.cuda_graph, device, own_parts, steps)
    reasons = [
        f"precision {precision}: {precision_reason}",
        f"{'units compiled' if compiles else 'units not compiled'}: {compile_reason}",
    ]
    if device.type == "cpu":
        reasons.append(f"{'signs convolved in bytes' if in_bytes else 'signs convolved in floats'}: {bytes_reason}")
    if device.type == "cuda":
        reasons.append(f"{'steps replayed as a CUDA graph' if replays else 'steps not replayed'}: {replay_reason}")
    return Plan(precision, compiles, replays, in_bytes, tuple(reasons))


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Let cuDNN's convolutions of float32 be in float32, and the same numbers every time; nothing changes on a CPU.

    Left alone it rounds their factors to the ten bits of TF32, and sums up some gradients in whatever order its threads
    come. Source: the reproducibility notes of PyTorch.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the body's work for a CUDA ``device`` on a stream of its own, the only kind that can be recorded."""
    if device.type != "cuda":
        yield
        return
    current = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(current)
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


class Replayed:
    """Calls a step as it is written for the first times, then records what it launches on the GPU and only replays it.

    The step takes tensors, whose shapes stay, and returns one, which each call writes anew. To be called on a stream of
    its own. Where a step cannot be recorded, a warning says so and it is called as it is written.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step, self.calls, self.works = step, 0, True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.calls == WRITTEN_STEPS and self.works and self.graph is None:
            self._record(inputs)
        if self.graph is None:
            self.calls += 1
            return self.step(*inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        graph = torch.cuda.CUDAGraph()
        self.inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.current_stream()
        try:
            # Other threads, as the one that draws the next batch, may go on with what they are at.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.output = self.step(*self.inputs)
        except Exception as error:
            self.works = False
            log.warning("the steps are not replayed but run as written: %s", str(error).strip().splitlines()[0])
        else:
            self.graph = graph


def convolve_in_bytes(network: nn.Module) -> None:
    """Let the binary units of ``network`` convolve their bits in bytes wherever they run on a CPU, evaluation too."""
    for unit in binary_units(network):
        unit.in_bytes = True


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
