"""Accelerate training steps: bf16, compiled binary units, int8 binary convolutions, CUDA graphs.

:func:`plan_for` decides which of them are used, with the reasons; the other functions apply them. Only training is
affected: evaluation runs the same parameters in fp32 and uncompiled, except for int8, whose results are identical.
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

from bbcu.files import why_untrusted
from bbcu.model.int8 import missing_for_int8
from bbcu.model.networks import Body, binary_units
from bbcu.model.units import BinaryUnit
from bbcu.training.settings import TrainSettings

log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]
Decision = tuple[bool, str]
"""Whether something is done, and the reason."""

COMPILE_SECONDS = 15.0
"""The cost of a first compilation on two cores; one from the cache costs a tenth."""

SAVED_SECONDS_PER_VALUE = {"cpu": 5e-9, "cuda": 1.3e-10}
"""The time that compilation saves per value of a unit's output and step, by device type.

Over 32 units of 2**20 values: (662 - 480) ms on an AMD EPYC, and (7.7 - 3.2) ms on an H100 with CUDA graphs.
"""

GRAPH_STEPS = 20
"""In a training of fewer steps, recording a CUDA graph costs more than it saves."""

EAGER_STEPS = 3
"""Steps before the recorded one, in which libraries choose their algorithms."""

TORCH_CACHE, TRITON_CACHE = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
"""The environment variables that say where compiled code is cached."""

COMPILE_OPTIONS = {"cpp_cache_precompile_headers": False}
"""Options of torch's compiler.

It would keep 150 MB of precompiled headers in a folder of ``TMPDIR`` whose name anybody can guess, whatever
``TORCHINDUCTOR_CACHE_DIR`` says, and include in a training what another user has put there. They save two seconds of
each compilation after the first.
"""

COMPILED_KINDS = 256
"""The number of different units that a process may compile; torch's default of eight is too low for a sweep."""

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Options of mallopt, from glibc's malloc.h."""


# --- decisions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccelerationPlan:
    """How a network is trained on a device: its precision, which accelerations are used, and the reason for each."""

    precision: str
    compiles: bool
    replays: bool
    in_bytes: bool
    reasons: tuple[str, ...]


def plan_for(network: nn.Module, device: torch.device, settings: TrainSettings) -> AccelerationPlan:
    """Decide how ``network`` is trained on ``device`` with these settings."""
    precision, precision_reason = resolve_precision(settings.precision, device)
    units, own = binary_units(network), user_classes(network)
    pixels = settings.steps * settings.batch * settings.patch**2
    values = pixels * sum(unit.out_channels for unit in units)
    missing = missing_for_compilation(device)
    compiles, compile_reason = resolve_compile(settings.compile, len(units), values, missing, device.type)
    in_bytes, int8_reason = resolve_int8(settings.int8, precision, len(units), own, missing_for_int8(device))
    replays, replay_reason = resolve_cuda_graph(settings.cuda_graph, device, own, settings.steps)
    reasons = [
        f"precision {precision}: {precision_reason}",
        f"units {'compiled' if compiles else 'not compiled'}: {compile_reason}",
    ]
    if device.type == "cpu":
        reasons.append(f"binary convolutions in {'int8' if in_bytes else 'floating point'}: {int8_reason}")
    if device.type == "cuda":
        reasons.append(f"steps {'replayed as a CUDA graph' if replays else 'not replayed'}: {replay_reason}")
    return AccelerationPlan(precision, compiles, replays, in_bytes, tuple(reasons))


def has_bf16(device: torch.device) -> bool:
    """Return whether ``device`` multiplies bf16 in hardware; emulation is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Return the precision on ``device``, "fp32" or "bf16", and the reason; it is part of a cell.

    There is no "tf32", since every GPU that has it has bf16 too.
    """
    if wanted != "auto":
        return wanted, "as requested"
    if has_bf16(device):
        return "bf16", f"this {device.type} multiplies bf16 in hardware"
    return "fp32", f"this {device.type} has no bf16 hardware"


def cpp_compiler() -> str | None:
    """Return the path of the C++ compiler that torch would call: ``CXX`` if it is set, else the first usual one."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def missing_for_compilation(device: torch.device) -> str | None:
    """Return which requirement of compilation for ``device`` is missing, as text for a log, or None."""
    if cpp_compiler() is None:
        return "no C++ compiler found (g++, clang++ or CXX)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    caches = (TORCH_CACHE, TRITON_CACHE) if device.type == "cuda" else (TORCH_CACHE,)
    return next((reason for cache in caches if (reason := _untrusted_cache(cache))), None)


def _untrusted_cache(variable: str) -> str | None:
    """Return why code must not be compiled into, or loaded from, the folder that this variable names, or None."""
    if variable not in os.environ:
        return f"{variable} is not set, and torch would choose a folder that others can write to"
    return f"{variable}: {reason}" if (reason := why_untrusted(Path(os.environ[variable]))) else None


def _forced(wanted: bool | str, units: int, missing: str | None) -> Decision | None:
    """Return the decision about ``units`` binary units that the settings force, or None if it is open."""
    if wanted is False:
        return False, "as requested"
    if units == 0:
        return False, "no binary units"
    if missing is not None:
        return False, missing
    return (True, "as requested") if wanted is True else None


def resolve_compile(wanted: bool | str, units: int, values: int, missing: str | None, kind: str = "cpu") -> Decision:
    """Decide whether ``units`` binary units are compiled on a device of the type ``kind``.

    ``values`` is the number of output values of all units in all steps, in proportion to which compilation saves time;
    ``missing`` is the result of :func:`missing_for_compilation`.
    """
    forced = _forced(wanted, units, missing)
    if forced is not None:
        return forced
    if kind not in SAVED_SECONDS_PER_VALUE:
        return False, f"the time it saves on {kind} is not known"
    saved = values * SAVED_SECONDS_PER_VALUE[kind]
    if saved < COMPILE_SECONDS:
        return False, f"the training is too short: it would save about {saved:.1f} s, and cost {COMPILE_SECONDS:.0f} s"
    return True, f"it saves about {saved:.0f} s"


def resolve_int8(wanted: bool | str, precision: str, units: int, own: list[str], missing: str | None) -> Decision:
    """Decide whether the forward convolutions of ``units`` binary units run in int8.

    ``own`` names the user's classes in the network, whose signs may be other numbers than 1 and -1; ``missing`` is the
    result of :func:`bbcu.model.int8.missing_for_int8`.
    """
    forced = _forced(wanted, units, missing)
    if forced is not None:
        return forced
    if own:
        return False, f"{', '.join(own)} may return other signs than 1 and -1; train.int8=true if not"
    if precision == "bf16" and torch.cpu.get_capabilities().get("amx_bf16"):
        return False, "this cpu multiplies bf16 with AMX, and it has not been measured whether int8 is faster"
    return True, "exact, and this cpu multiplies int8 several times as fast as floats"


def resolve_cuda_graph(wanted: bool | str, device: torch.device, own: list[str], steps: int) -> Decision:
    """Decide whether a step is recorded as a CUDA graph and replayed.

    A replay repeats what the GPU did in the recorded step and runs no Python, so a change between steps that is not in
    a tensor would silently have no effect. ``own`` names the user's classes in the network, which may change like that.
    """
    if device.type != "cuda":
        return False, "only a CUDA device can"
    if wanted != "auto":
        return bool(wanted), "as requested"
    if own:
        return False, f"{', '.join(own)} may change outside of tensors; train.cuda_graph=true if not"
    if steps < GRAPH_STEPS:
        return False, f"the training is too short: fewer than {GRAPH_STEPS} steps"
    return True, "a step is many small launches, which cost more than the work they launch"


def user_classes(network: nn.Module) -> list[str]:
    """Return the names of the classes in ``network`` that are neither from this package nor from torch."""
    kinds = {type(module) for module in network.modules()}
    return sorted(kind.__qualname__ for kind in kinds if kind.__module__.partition(".")[0] not in ("bbcu", "torch"))


# --- numerics and memory ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deterministic_fp32() -> Iterator[None]:
    """Make cuDNN's convolutions of float32 full precision and deterministic; nothing changes on a CPU.

    By default cuDNN rounds their factors to the ten bits of TF32, and adds up some gradients in the order in which its
    threads finish. Source: the reproducibility notes of PyTorch.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
        yield


@functools.cache
def retain_freed_memory() -> None:
    """Make glibc retain freed memory in the process for the next step; do nothing with other C libraries.

    A step frees hundreds of megabytes. Without this, the system zeroes them and maps them page by page in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 2**30)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def enable_int8(network: nn.Module) -> None:
    """Let the binary units of ``network`` convolve in int8 whenever they run on a CPU, in evaluation too."""
    for unit in binary_units(network):
        unit.use_int8 = True


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run work on a CUDA stream other than the default, as recording a graph requires; nothing changes on a CPU."""
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


class CudaGraphStep:
    """Calls a step eagerly a few times, then records it as a CUDA graph and replays that.

    The step takes tensors of constant shapes and returns one, which the next call overwrites. It has to be called on a
    :func:`side_stream`. If it cannot be recorded, a warning says so and it stays eager.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step, self.calls, self.works = step, 0, True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.calls == EAGER_STEPS and self.works and self.graph is None:
            self._record(inputs)
        if self.graph is None:
            self.calls += 1
            return self.step(*inputs)
        for recorded, given in zip(self.inputs, inputs, strict=True):
            recorded.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        graph = torch.cuda.CUDAGraph()
        self.inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.current_stream()
        try:
            # Other threads, such as the one that draws the next batch, may continue.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.output = self.step(*self.inputs)
        except Exception as error:
            self.works = False
            log.warning("the step cannot be recorded and stays eager: %s", str(error).strip().splitlines()[0])
        else:
            self.graph = graph


# --- compilation ------------------------------------------------------------------------------------------------------


def use_cache(folder: Path) -> None:
    """Cache compiled code below ``folder`` for other processes and later runs, unless a cache is configured already.

    What is in the cache runs in this process, so nobody else may be able to write to it: each user has a folder of
    their own. Where others could replace it, as in the outputs of a shared study, the cache is in the user's cache
    folder instead. If that is no better, or a configured cache is not, :func:`missing_for_compilation` says why.

    Call it before torch's compiler is imported. torch locks the entries, so processes may share the folder. Each set of
    vector instructions has a folder inside it, because code that was compiled for AVX-512 crashes a machine without it.
    """
    if TORCH_CACHE not in os.environ:
        # Everybody who shares the outputs needs this folder, and nobody else those below it.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        instructions = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower()
        places = [place / instructions for place in (folder.resolve() / str(os.getuid()), _own_cache()) if place]
        trusted = (place for place in places if _make_private(place) and why_untrusted(place) is None)
        os.environ[TORCH_CACHE] = str(next(trusted, places[0]))
    os.environ.setdefault(TRITON_CACHE, str(Path(os.environ[TORCH_CACHE]) / "triton"))
    for variable in (TORCH_CACHE, TRITON_CACHE):
        _make_private(Path(os.environ[variable]))


def _own_cache() -> Path | None:
    """Return this user's folder for compiled code, as the XDG specification has it; None without a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "bbcu" / "compiled"
    except RuntimeError:
        return None


def _make_private(folder: Path) -> bool:
    """Make a folder, with those above it that are missing, for this user alone; return whether it is there."""
    with contextlib.suppress(OSError):
        for level in reversed([folder, *folder.parents]):
            level.mkdir(mode=0o700, exist_ok=True)
    return folder.is_dir()


@functools.cache
def _compiled(forward: Forward, kind: object) -> Forward:
    """Compile ``forward`` for modules of one kind: parameters are its inputs, so equal modules share the code."""
    compiled: Forward = torch.compile(  # type: ignore[call-overload]
        forward,
        fullgraph=True,
        dynamic=False,
        options=COMPILE_OPTIONS,
        recompile_limit=COMPILED_KINDS,
        isolate_recompiles=True,
    )
    return compiled


class CompiledForward:
    """Calls a module's compiled forward pass in training, and the eager one otherwise.

    If compilation fails, a warning says so and the training continues without it.
    """

    def __init__(self, eager: Forward, kind: object) -> None:
        self.eager, self.compiled, self.works = eager, _compiled(eager, kind), True

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if not (self.works and module.training and torch.is_grad_enabled()):
            return self.eager(module, *args, **kwargs)
        try:
            return self.compiled(module, *args, **kwargs)
        except Exception as error:
            # A fault of the module itself is raised again here, without the compiler's wrapping.
            output = self.eager(module, *args, **kwargs)
            self.works = False
            log.warning("the units do not compile and stay eager: %s", str(error).strip().splitlines()[0])
            return output


def compile_units(network: nn.Module) -> None:
    """Let the binary units of ``network`` train compiled; its state, its evaluation and its copies are not changed.

    The units of a body with a bit memory compile together, since they pass bits to one another.
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
