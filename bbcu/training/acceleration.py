"""Accelerate training steps: bf16, compiled binary units, binary convolutions in int8 or single bits, CUDA graphs.

:func:`plan_for` decides which of them are used, with the reasons; the other functions apply them. Only training is
affected: evaluation runs the same parameters in fp32 and uncompiled, except for binary convolutions, whose results are
identical in each way.
"""

import contextlib
import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.compiled import COMPILE_OPTIONS, NO_COMPILER, TORCH_CACHE, TRITON_CACHE, cpp_compiler, untrusted_cache
from bbcu.deploy import native
from bbcu.model import int8
from bbcu.model.binarisers import Sign
from bbcu.model.parts import Body, binary_units
from bbcu.model.thresholds import Threshold
from bbcu.model.units import KERNEL, BinaryUnit
from bbcu.training.distillation import watched
from bbcu.training.settings import TrainSettings

log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]
Decision = tuple[bool, str]
"""Whether something is done, and the reason."""

COMPILE_SECONDS, CACHED_SECONDS = 15.0, 1.5
"""The cost of compiling the units of one kind for the first time, and from the cache, in each phase of a training."""

SAVED_SECONDS_PER_VALUE = {"cpu": 7e-9, "cuda": 1.3e-10}
"""The time that compilation saves per value of a unit's output and step, by device type; on a CPU, of one thread.

Over 8 units of 294,912 values in fp32, (147 - 130) ms on one thread of an AMD EPYC with AVX2, and (72 - 63) ms on two;
over 32 units of 2**20 values, (7.7 - 3.2) ms on an H100 with CUDA graphs.
"""

SIGNS = {"float": "floating point", "int8": "int8", "native": "single bits by the native kernel"}
"""The ways to compute the forward convolutions of signs, with their names for a log."""

GRAPH_STEPS = 20
"""In a phase of fewer steps, recording a CUDA graph costs more than it saves."""

EAGER_STEPS = 3
"""Steps before the recorded one, in which libraries choose their algorithms."""

COMPILED_KINDS = 256
"""The number of different units that a process may compile; torch's default of eight is too low for a sweep."""


# --- decisions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccelerationPlan:
    """How a network is trained on a device: its precision, which accelerations are used, and the reason for each.

    ``signs`` is the key in ``SIGNS`` of how the forward convolutions of binary units are computed.
    """

    precision: str
    compiles: bool
    replays: bool
    signs: str
    reasons: tuple[str, ...]


def plan_for(network: nn.Module, device: torch.device, settings: TrainSettings) -> AccelerationPlan:
    """Decide how ``network`` is trained on ``device`` with these settings."""
    precision, precision_reason = resolve_precision(settings.precision, device)
    units, own, phases = binary_units(network), user_classes(network), len(settings.phases)
    compilable = [unit for region in regions(network, watched(network, settings)) for unit in binary_units(region)]
    pixels = settings.steps * settings.batch * settings.patch**2
    saved = seconds_saved(pixels * sum(unit.out_channels for unit in compilable), device)
    missing = missing_for_compilation(device) if compilable or not units else WATCHED_BODY
    compiles, compile_reason = resolve_compile(settings.compile, len(units), saved, settings.trainings, missing, phases)
    replays, replay_reason = resolve_cuda_graph(settings.cuda_graph, device, own, settings.steps // phases)
    reasons = [
        f"precision {precision}: {precision_reason}",
        f"units {'compiled' if compiles else 'not compiled'}: {compile_reason}",
    ]
    signs = "float"
    if device.type == "cpu":
        missing_for = functools.partial(missing_for_signs, precision=precision, own=own)
        able = sum(map(convolves_signs, units))
        signs, signs_reason = resolve_signs(settings, precision, able, own, missing_for)
        if able < len(units):
            signs_reason = f"{signs_reason}; in {able} of {len(units)} units" if able else NO_SIGNS
        reasons.append(f"binary convolutions in {SIGNS[signs]}: {signs_reason}")
    if device.type == "cuda":
        reasons.append(f"steps {'replayed as a CUDA graph' if replays else 'not replayed'}: {replay_reason}")
    return AccelerationPlan(precision, compiles, replays, signs, tuple(reasons))


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


def missing_for_compilation(device: torch.device) -> str | None:
    """Return which requirement of compilation for ``device`` is missing, as text for a log, or None."""
    if cpp_compiler() is None:
        return NO_COMPILER
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    caches = (TORCH_CACHE, TRITON_CACHE) if device.type == "cuda" else (TORCH_CACHE,)
    return next((reason for cache in caches if (reason := untrusted_cache(cache))), None)


def seconds_saved(values: int, device: torch.device) -> float | None:
    """Return about how long a training takes less if it is compiled; None if that is not known for ``device``.

    ``values`` is the number of output values of all units in all steps. On a CPU, torch's threads share the work.
    """
    if device.type not in SAVED_SECONDS_PER_VALUE:
        return None
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return values * SAVED_SECONDS_PER_VALUE[device.type] / threads


def resolve_compile(
    wanted: bool | str, units: int, saved: float | None, trainings: int, missing: str | None, phases: int = 1
) -> Decision:
    """Decide whether ``units`` binary units are compiled.

    ``saved`` is the result of :func:`seconds_saved`, and ``missing`` that of :func:`missing_for_compilation`. The first
    of ``trainings`` compiles the code, and the others get it from the cache. All of them decide alike. Each of the
    ``phases`` of a training has code of its own.
    """
    if wanted is False:
        return False, "as requested"
    if units == 0:
        return False, "no binary units"
    if missing is not None:
        return False, missing
    if wanted is True:
        return True, "as requested"
    if saved is None:
        return False, "the time it saves on this device is not known"
    cost = phases * (COMPILE_SECONDS + (trainings - 1) * CACHED_SECONDS)
    if trainings == 1:
        pays, each = f"it saves about {saved:.0f} s", f"it would save about {saved:.1f} s, and cost {cost:.0f} s"
    else:
        pays = f"it saves about {saved:.0f} s in each of {trainings} trainings that share the code"
        each = f"it would save about {saved:.1f} s in each of {trainings} that share the code, and cost {cost:.0f} s"
    return (True, pays) if trainings * saved > cost else (False, f"the training is too short: {each}")


def missing_for_signs(name: str, precision: str = "fp32", own: Sequence[str] = ()) -> str | None:
    """Return why a CPU cannot compute the convolutions of signs in a way of ``SIGNS``, as text for a log, or None.

    ``own`` is that of :func:`resolve_signs`. The first call for "native" compiles the kernel, unless it is cached.
    """
    if name == "int8":
        return int8.missing_for_int8(torch.device("cpu"))
    if precision != "fp32":
        return f"the native kernel adds up in fp32, and the precision is {precision}"
    if own:
        return f"the native kernel has no zero, and {', '.join(own)} may return one"
    return native.missing()


NO_SIGNS = "no unit is a 3x3 convolution of stride 1 of signs with one number and two signs for each filter"
"""Why nothing is gained for binary units that convolve other values, or in another shape."""


def convolves_signs(unit: BinaryUnit) -> bool:
    """Return whether the convolution of a unit can be computed in a way of ``SIGNS`` other than "float"."""
    is_plain = (unit.kernel, unit.stride, unit.groups) == (KERNEL, 1, 1)
    is_signed = not isinstance(unit.threshold, Threshold) or unit.threshold.is_signed
    binariser = unit.binariser
    return is_plain and is_signed and (isinstance(binariser, Sign) or binariser.scale(unit.weight.detach()) is not None)


def resolve_signs(
    settings: TrainSettings, precision: str, units: int, own: list[str], missing: Callable[[str], str | None]
) -> tuple[str, str]:
    """Decide how a CPU computes the forward convolutions of ``units`` binary units; return a key of ``SIGNS`` and why.

    ``own`` names the user's classes in the network, whose signs may be other numbers than 1 and -1; ``missing`` returns
    why a way other than "float" is impossible, or None, see :func:`missing_for_signs`.
    """
    if units == 0:
        return "float", "no binary units"
    for name in ("native", "int8"):
        if getattr(settings, name) is True:
            reason = missing(name)
            return (name, "as requested") if reason is None else ("float", reason)
    ways = [name for name in ("native", "int8") if getattr(settings, name) == "auto"]
    capabilities, vnni = torch.cpu.get_capabilities(), int8.has_vnni()
    if vnni:
        ways = [name for name in ways if name == "int8"]
    if not ways:
        return "float", "as requested"
    if own:
        return "float", f"{', '.join(own)} may return other signs than 1 and -1; train.int8=true if not"
    if vnni and precision == "bf16" and capabilities.get("amx_bf16"):
        return "float", "this cpu multiplies bf16 with AMX, and it has not been measured whether int8 is faster"
    if not vnni and not capabilities.get("avx2"):
        return "float", "this cpu has no AVX2, and it has not been measured whether another way is faster"
    why_not: list[str] = []
    for name in ways:
        reason = missing(name)
        if reason is None:
            return name, "; ".join(["exact, and " + FASTER[name, vnni], *why_not])
        why_not.append(reason)
    return "float", "; ".join(why_not)


FASTER = {
    ("int8", True): "this cpu multiplies int8 several times as fast as floats",
    ("int8", False): "faster than floats on a cpu without VNNI too",
    ("native", False): "this cpu has no VNNI, without which one bit is faster than eight",
}
"""Why a way to compute convolutions of signs is faster than floats, with and without VNNI."""


def resolve_cuda_graph(wanted: bool | str, device: torch.device, own: list[str], steps: int) -> Decision:
    """Decide whether a step is recorded as a CUDA graph and replayed, in phases of ``steps`` steps at least.

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


def convolve_signs(network: nn.Module, signs: str) -> None:
    """Let the binary units of ``network`` convolve in a way of ``SIGNS`` on a CPU, in evaluation too."""
    for unit in binary_units(network):
        unit.sign_convolution = {"float": None, "int8": int8.sign_conv2d, "native": native.sign_conv2d}[signs]


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


WATCHED_BODY = "distil=attention reads outputs inside the body, whose units would compile as one"
"""Why no unit of a network with a bit memory is compiled."""


def regions(network: nn.Module, watched: Sequence[nn.Module] = ()) -> list[Body | BinaryUnit]:
    """Return the modules that compile, each as one: the binary units, and bodies with a bit memory.

    The units of such a body compile together, since they pass bits to one another. If one of them is ``watched`` by a
    hook, which compiled code would not call, they are left out.
    """
    bodies = [module for module in network.modules() if isinstance(module, Body) and module.memory is not None]
    inside = {unit for body in bodies for unit in binary_units(body)}
    unwatched = [body for body in bodies if not any(module in watched for module in body.units)]
    return [*unwatched, *(unit for unit in binary_units(network) if unit not in inside)]


def compile_units(network: nn.Module, watched: Sequence[nn.Module] = ()) -> None:
    """Let the :func:`regions` of ``network`` train compiled; its state, its evaluation and its copies are not changed.

    Call it again when the units' ``binary_signs`` or ``binary_weights`` have changed: that is other code.
    """
    forwards: dict[object, CompiledForward] = {}
    for region in regions(network, watched):
        unit = region.units[0] if isinstance(region, Body) else region
        assert isinstance(unit, BinaryUnit)
        kind = (type(region), unit.spec, unit.binary_signs, unit.binary_weights)
        forward = forwards.setdefault(kind, CompiledForward(type(region).forward, kind))
        region.forward = MethodType(forward, region)  # type: ignore[method-assign]
