"""The native backend: ``kernel.cpp``, compiled at first use for this machine's instructions, and what calls it.

The library is compiled once for each user, kind of machine and version of the source, in a few seconds, into the user's
cache folder; processes that need it at the same time wait for one of them to build it. Its threads are its own and
start when they are first needed, so that a process may fork before or after.

The packed units that :func:`why_not_native` allows run in the kernel, a body's and an upsampler's units one after the
other without torch in between; everything else runs in torch. The order of operations is that of the float network, and
nothing is contracted to fused multiply-adds unless torch does so too, so that the result is the same bit for bit.

With several threads, start Python with ``OMP_WAIT_POLICY=passive``, as the commands do: torch's threads otherwise wait
busily after each operation, on the cores that the kernel's need.
"""

import atexit
import contextlib
import copy
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.compiled import NO_COMPILER, cpp_compiler, make_private, own_cache
from bbcu.deploy.backends import Runner
from bbcu.deploy.packed import DeployError, PackedUnit, named_units
from bbcu.errors import first_line, shown
from bbcu.files import replacing, why_untrusted
from bbcu.model.activations import LeakyReLU, RPReLU
from bbcu.model.checkpoints import UnpairedBody
from bbcu.model.int8 import SignConv2d, type_on_cpu
from bbcu.model.parts import NEGATIVE_SLOPE, Body, Upsampler
from bbcu.model.thresholds import Affine, Elastic, Threshold
from bbcu.model.units import KERNEL, BinaryUnit

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "avx512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vpopcntdq"),
    "avx2": ("-mavx2", "-mfma"),
    "plain": (),
}
"""The sets of instructions that the kernel is compiled for, the best first, and the compiler's options for each."""

NEEDED = {
    "avx512": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vpopcntdq"),
    "avx2": ("avx2", "fma3"),
}
"""The capabilities that torch reports of a CPU which has them."""

CHOICE = "BBCU_INSTRUCTIONS"
"""The environment variable that chooses a set of instructions; by default, the best that the CPU has."""

OPTIONS = ("-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-Wno-psabi")

PADDED_TO, LANES = 32, 8
"""Numbers for each output channel are padded to a multiple of the first, and lie together for as many as the second."""

NUMBERS = (
    *("scale", "bias", "post_factor", "post_shift", "shift_in", "slope", "shift_out"),
    *("out_factor", "out_shift"),
)
"""The numbers that a unit may have for each output channel, in the kernel's order."""

MOST_CHANNELS = (2**16 - 1) // 9
"""The most input channels of a unit."""

NONE, PRELU, HARDTANH = range(3)
"""The kernel's activations."""

NEUTRAL = {"gain": 1.0, "residual_scale": 1.0, "leaky": 1.0}
"""The factors of a unit that change nothing."""


# --- the library ------------------------------------------------------------------------------------------------------


class UnitStruct(ctypes.Structure):
    """``Unit`` of ``kernel.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("in_channels", "out_channels", "ratio")),
        *((name, ctypes.c_void_p) for name in ("weights", "numbers")),
        *((name, ctypes.c_int32) for name in ("has", "post_fused", "out_fused", "activation", "activation_after")),
        *((name, ctypes.c_float) for name in ("gain", "residual_scale", "leaky")),
    )


class SignsStruct(ctypes.Structure):
    """``Signs`` of ``kernel.cpp``."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("threshold", "flip", "bits"))


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "bbcu_weight_bytes": (ctypes.c_int64,) * 3,
    "bbcu_pack_weights": (ctypes.c_void_p, *(ctypes.c_int64,) * 3, ctypes.c_void_p),
    "bbcu_signs": (ctypes.c_void_p, *(ctypes.c_int64,) * 2, ctypes.POINTER(SignsStruct), ctypes.c_int),
    "bbcu_signs_of_bytes": (ctypes.c_void_p, *(ctypes.c_int64,) * 2, ctypes.c_void_p, ctypes.c_int),
    "bbcu_convolve": (
        *(ctypes.c_void_p, *(ctypes.c_int64,) * 4, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int),
    ),
    "bbcu_unit": (
        *(ctypes.POINTER(UnitStruct), ctypes.c_void_p, *(ctypes.c_int64,) * 3),
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(SignsStruct), ctypes.c_int),
    ),
}


def instructions() -> str:
    """Return the set of instructions that is used.

    Raises DeployError for one that ``BBCU_INSTRUCTIONS`` invents, and for one that the CPU lacks.
    """
    has, chosen = torch.cpu.get_capabilities(), os.environ.get(CHOICE)
    here = [name for name in INSTRUCTIONS if all(map(has.get, NEEDED.get(name, ())))]
    if not chosen:
        return here[0]
    if chosen not in here:
        known = chosen in INSTRUCTIONS
        wrong = "this CPU does not have them, only" if known else "must be one of"
        raise DeployError(f"{CHOICE}={shown(chosen)}: {wrong} {', '.join(here if known else INSTRUCTIONS)}")
    return chosen


def has_vectors(kind: str) -> bool:
    """Return whether a set of instructions has the byte shuffle; without, the kernel is right and slow."""
    return kind != "plain" or platform.machine() in ("aarch64", "arm64")


@functools.cache
def library(kind: str) -> ctypes.CDLL:
    """Return the library for a set of instructions, which is built if it is not in the cache.

    Raises DeployError if it cannot be built or loaded.
    """
    source = resources.files("bbcu.deploy").joinpath("kernel.cpp").read_bytes()
    # Without vectors there is nothing to optimise, and the compiler would try for long.
    options = (*OPTIONS, "-O3" if has_vectors(kind) else "-O1", *INSTRUCTIONS[kind])
    try:
        found = ctypes.CDLL(str(_built(source, options, kind)))
    except OSError as error:
        raise DeployError(f"the kernel cannot be loaded: {first_line(error)}") from error
    for name, arguments in ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, ctypes.c_int64 if name == "bbcu_weight_bytes" else None
    return found


def _built(source: bytes, options: Sequence[str], kind: str) -> Path:
    """Return the path of the compiled library."""
    digest = hashlib.sha256(b"\0".join([source, *map(str.encode, options)])).hexdigest()[:16]
    folder = own_cache()
    if folder is None or not make_private(folder) or why_untrusted(folder) is not None:
        # As on a machine without a home: built again by each process, in a folder that only it can write to.
        folder = Path(tempfile.mkdtemp(prefix="bbcu-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"kernel-{platform.machine()}-{kind}-{digest}.so"
    if not path.exists():
        with _lock(path):
            if not path.exists():
                _compile(source, options, path)
    return path


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process build at a time; on a file system without locks, the last one to finish wins."""
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire()
    except (NotImplementedError, OSError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _compile(source: bytes, options: Sequence[str], path: Path) -> None:
    compiler = cpp_compiler()
    if compiler is None:
        raise DeployError(NO_COMPILER)
    with replacing(path) as temporary:
        command = [compiler, *options, "-x", "c++", "-", "-o", str(temporary)]
        done = subprocess.run(command, input=source, capture_output=True)
        if done.returncode:
            wrong = next((line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line), "")
            raise DeployError(f"{compiler} cannot compile the kernel: {wrong.strip() or f'status {done.returncode}'}")


@functools.cache
def _missing(kind: str) -> str | None:
    generator = torch.Generator().manual_seed(0)
    signs, weight = (torch.randn(shape, generator=generator).sign() for shape in ((2, 16, 5, 6), (32, 16, 3, 3)))
    try:
        sums = sign_sums(signs.to(torch.int8), weight.to(torch.int8))
    except DeployError as error:
        return str(error)
    return None if torch.equal(sums, F.conv2d(signs, weight, padding=1)) else "the kernel returns wrong numbers"


def missing() -> str | None:
    """Return why this machine cannot run the kernel, or None; builds it if it is not in the cache."""
    try:
        return _missing(instructions())
    except DeployError as error:
        return str(error)


NO_SIGNS = SignsStruct()


# --- the convolution of a training ------------------------------------------------------------------------------------


def packed_weights(signs: Tensor, parts: int = 1) -> Tensor:
    """Return the kernel's form of the signs of weights, int8 (parts * out_channels, in_channels, 3, 3)."""
    kernel = library(instructions())
    filters, in_channels = signs.shape[:2]
    shape = (in_channels, filters // parts, parts)
    weights = torch.empty(kernel.bbcu_weight_bytes(*shape), dtype=torch.uint8)
    signs = signs.contiguous()  # a name keeps its memory until the kernel has read it
    kernel.bbcu_pack_weights(signs.data_ptr(), *shape, weights.data_ptr())
    return weights


def sign_sums(signs: Tensor, weight: Tensor) -> Tensor:
    """Convolve ones and minus ones, padded with zeros: int8 (batch, in, height, width) and (out, in, 3, 3).

    Returns (batch, out, height, width) of float32 in channels-last memory format.
    """
    kernel, threads = library(instructions()), torch.get_num_threads()
    signs = signs.contiguous(memory_format=torch.channels_last)
    batch, in_channels, height, width = signs.shape
    bits = torch.empty((batch * height * width, -(-in_channels // 8)), dtype=torch.uint8)
    kernel.bbcu_signs_of_bytes(signs.data_ptr(), len(bits), in_channels, bits.data_ptr(), threads)
    weights = packed_weights(weight)
    unit = UnitStruct(in_channels=in_channels, out_channels=len(weight), ratio=1, weights=weights.data_ptr(), **NEUTRAL)
    out = torch.empty((batch, len(weight), height, width), dtype=torch.float32, memory_format=torch.channels_last)
    kernel.bbcu_unit(unit, bits.data_ptr(), batch, height, width, None, out.data_ptr(), NO_SIGNS, threads)
    return out


@torch.library.custom_op("bbcu::packed_conv2d", mutates_args=())
def packed_conv2d(signs: Tensor, weight: Tensor) -> Tensor:
    """:func:`sign_sums` for torch's compiler; the sums of a filter of zeros are zero."""
    sums = sign_sums(signs, weight)
    zero = (weight == 0).flatten(1).all(1)
    if zero.any():
        sums[:, zero] = 0
    return sums


@packed_conv2d.register_fake
def _(signs: Tensor, weight: Tensor) -> Tensor:
    batch, _, height, width = signs.shape
    shape = (batch, len(weight), height, width)
    return torch.empty(shape, dtype=torch.float32, device=signs.device, memory_format=torch.channels_last)


def sign_conv2d(signs: Tensor, weight: Tensor) -> Tensor:
    """Compute ``F.conv2d(signs, weight, padding=1)`` of ones and minus ones in the kernel; filters may be zero.

    The result and the gradients equal those of ``F.conv2d``. Falls back to it for types other than float32, also under
    autocast, and for devices other than a CPU.
    """
    if type_on_cpu(signs) != torch.float32:
        return F.conv2d(signs, weight, padding=1)
    sums: Tensor = SignConv2d.apply(signs, weight, packed_conv2d)  # type: ignore[no-untyped-call]
    return sums


# --- a unit -----------------------------------------------------------------------------------------------------------


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, bool]:
    """Return what torch multiplies by and adds in evaluation, (channels,) each, and whether it rounds once or twice.

    They are read off its outputs, so that they have its bits. Raises DeployError if neither explains them.
    """
    channels = norm.num_features
    zeros, ones = torch.zeros(channels), torch.ones(channels)
    weight, bias = norm.weight.detach(), norm.bias.detach()
    mean, variance = norm.running_mean, norm.running_var

    def normalise(x: Tensor, mean: Tensor | None, bias: Tensor) -> Tensor:
        x = x.reshape(-1, channels, 1, 1).contiguous(memory_format=torch.channels_last)
        return F.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)[:, :, 0, 0]

    factor, shift = normalise(ones, zeros, zeros)[0], normalise(zeros, mean, bias)[0]
    x = torch.linspace(-40, 40, 257).reshape(-1, 1) * (1 + torch.arange(channels) / 64)
    expected = normalise(x, mean, bias)
    once = fused(x, factor, shift)
    for guess, is_fused in ((once, True), (x * factor + shift, False)):
        if torch.equal(guess, expected):
            return factor, shift, is_fused
    raise DeployError("torch's BatchNorm rounds in an unknown way")


def fused(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Return ``x * factor + shift`` of float32, rounded once: the sum in float64 is rounded to odd before."""
    product, shift = x.double() * factor.double(), shift.double()
    total = product + shift
    of_shift = total - product
    error = (product - (total - of_shift)) + (shift - of_shift)
    is_even = (total.view(torch.int64) & 1) == 0
    towards = torch.where(error > 0, torch.inf, -torch.inf).double()
    return torch.where((error != 0) & is_even, torch.nextafter(total, towards), total).float()


def limits_of(unit: PackedUnit) -> tuple[Tensor, Tensor]:
    """Return the thresholds, (in_channels,), at which a unit's signs change, and their directions.

    A sign is positive where the input is at least its threshold; the bits of the directions, one for each channel, say
    where it is the opposite, behind a BatchNorm or an affine threshold with a negative factor. Thresholds are found by
    bisection over all floats with torch's own functions, so that a value exactly at one has the sign that it has there.
    """
    channels = unit.in_channels

    def positive(keys: Tensor) -> Tensor:
        x = _float_of(keys).reshape(1, channels, 1, 1).contiguous(memory_format=torch.channels_last)
        return (unit.sign_input(x)[1] >= 0).flatten()

    with torch.inference_mode():
        largest = torch.full((channels,), _LARGEST_KEY)
        low, high = -largest, largest
        at_low, at_high = positive(low), positive(high)
        while bool((high - low > 1).any()):
            middle = (low + high) // 2
            same = positive(middle) == at_low
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    always = torch.where(at_low, -torch.inf, torch.inf)
    threshold = torch.where(at_low == at_high, always, _float_of(high))
    flip = (at_low & ~at_high).to(torch.uint8)
    return threshold, torch.from_numpy(np.packbits(flip.numpy(), bitorder="little"))


_LARGEST_KEY = int(np.float32(np.finfo(np.float32).max).view(np.int32))


def _float_of(keys: Tensor) -> Tensor:
    """Return the floats whose order is that of the int64 keys; 0 is zero, and 1 the smallest number above it."""
    size = keys.abs().to(torch.int32).view(torch.float32)
    return torch.where(keys < 0, -size, size)


FOLDED_THRESHOLDS = (nn.Parameter, Affine, Elastic, type(None))
"""The thresholds that are one comparison for each channel, with the values +1 and -1 up to a factor."""

ACTIVATIONS = (nn.Identity, nn.Hardtanh, RPReLU, nn.PReLU, nn.ReLU, LeakyReLU)


def why_not_native(unit: PackedUnit) -> str | None:
    """Return why the kernel cannot run a unit, or None. Such a unit runs in torch."""
    if unit.memory is not None:
        return "it has a bit memory"
    if (unit.kernel, unit.stride, unit.groups) != (KERNEL, 1, 1):
        size = f"kernel={unit.kernel} stride={unit.stride} groups={unit.groups}"
        return f"the kernel convolves with {KERNEL}x{KERNEL}, stride 1 and one group, not {size}"
    if unit.in_channels > MOST_CHANNELS:
        return f"the kernel counts in 16 bits, which {unit.in_channels} input channels exceed"
    if not isinstance(unit.threshold, FOLDED_THRESHOLDS):
        return f"threshold={unit.spec.threshold} is no comparison of +1 and -1 with a number"
    if unit.has_factors:
        return f"rescale={unit.spec.rescale} is computed from the unit's input"
    if not unit.form.is_scaled_after:
        return "a filter's weights are not one number with two signs"
    if isinstance(unit.bn_branch, nn.BatchNorm2d):
        return "bn=branch is not in the kernel"
    if not isinstance(unit.activation, ACTIVATIONS):
        return f"the kernel has no {type(unit.activation).__name__}"
    return None


def activation_of(unit: PackedUnit) -> tuple[int, dict[str, Tensor]]:
    """Return the kernel's kind of a unit's activation, and its numbers for each output channel by their name."""
    activation = unit.activation
    if isinstance(activation, nn.Identity):
        return NONE, {}
    if isinstance(activation, nn.Hardtanh):
        return HARDTANH, {}
    if isinstance(activation, RPReLU):
        names = ("shift_in", "slope", "shift_out")
        return PRELU, {name: getattr(activation, name) for name in names}
    if isinstance(activation, nn.PReLU):
        return PRELU, {"slope": activation.weight}
    if isinstance(activation, nn.ReLU):
        return PRELU, {"slope": torch.zeros(unit.out_channels)}
    if isinstance(activation, LeakyReLU):
        return PRELU, {"slope": torch.full((unit.out_channels,), activation.SLOPE)}
    raise DeployError(f"the kernel has no {type(activation).__name__}")


def together(numbers: Sequence[Tensor | None], channels: int, parts: int) -> Tensor:
    """Return numbers for each output channel, (parts * channels,) each, as the kernel has them; None as zeros."""
    zeros = torch.zeros(channels * parts)
    stacked = torch.stack([zeros if value is None else value.detach().float().flatten() for value in numbers])
    by_part = stacked.reshape(len(numbers), channels, parts).permute(2, 0, 1)
    padded = F.pad(by_part, (0, -channels % PADDED_TO))
    return padded.reshape(parts, len(numbers), -1, LANES).transpose(1, 2).contiguous()


class NativeUnit(BinaryUnit):
    """A packed unit in the kernel's form. ``ratio`` above 1 is an upsampling unit, with its pixel shuffle.

    ``leaky`` is the slope of a leaky ReLU after the unit; 1 is none. It is a BinaryUnit for those who call it, who give
    only a unit a residual and look into its ``spec``; it has nothing else of one.
    """

    def __init__(self, unit: PackedUnit, *, ratio: int = 1, leaky: float = 1.0) -> None:
        nn.Module.__init__(self)
        reason = why_not_native(unit)
        if reason is not None:
            raise DeployError(reason)
        parts, self.kind, self.spec = ratio**2, instructions(), unit.spec
        self.in_channels, self.out_channels, self.ratio = unit.in_channels, unit.out_channels // parts, ratio
        limits, self.flip = limits_of(unit)
        self.limits = F.pad(limits, (0, -self.in_channels % LANES))
        # A pixel shuffle gives pixel k of a channel its output number channel * parts + k.
        weights = unit.signs().to(torch.int8)
        by_part = weights.reshape(self.out_channels, parts, *weights.shape[1:]).transpose(0, 1).flatten(0, 1)
        self.weights = packed_weights(by_part, parts)
        numbers: dict[str, Tensor | None] = {"scale": unit.scale, "bias": unit.bias}
        flags: dict[str, Any] = {**NEUTRAL, "activation_after": unit.act == "after", "leaky": leaky}
        gain = unit.threshold.gain() if isinstance(unit.threshold, Threshold) else None
        if gain is not None:
            flags["gain"] = float(gain.detach())
        if unit.residual_scale is not None:
            flags["residual_scale"] = float(unit.residual_scale.detach().abs())
        for place, norm in (("post", unit.bn_post), ("out", unit.bn_out)):
            if isinstance(norm, nn.BatchNorm2d):
                numbers[f"{place}_factor"], numbers[f"{place}_shift"], flags[f"{place}_fused"] = affine_of(norm)
        flags["activation"], of_activation = activation_of(unit)
        numbers.update(of_activation)
        self.numbers = together([numbers.get(name) for name in NUMBERS], self.out_channels, parts)
        flags["has"] = sum(1 << place for place, name in enumerate(NUMBERS) if numbers.get(name) is not None)
        sizes = {"in_channels": self.in_channels, "out_channels": self.out_channels, "ratio": ratio}
        self.fields = {**sizes, **flags}

    def struct(self) -> UnitStruct:
        """Return what the kernel knows of this unit."""
        return UnitStruct(weights=self.weights.data_ptr(), numbers=self.numbers.data_ptr(), **self.fields)

    def signs(self, bits: Tensor) -> SignsStruct:
        """Return where the kernel finds the thresholds of this unit's input and writes its signs."""
        return SignsStruct(self.limits.data_ptr(), self.flip.data_ptr(), bits.data_ptr())

    def memory_for_bits(self, shape: Sequence[int]) -> Tensor:
        """Return memory for the signs of an input of the shape (batch, channels, height, width)."""
        batch, _, height, width = shape
        return torch.empty((batch * height * width, -(-self.in_channels // 8)), dtype=torch.uint8)

    def find_signs(self, x: Tensor) -> Tensor:
        """Return the packed signs of ``x``, which is channels-last.

        Raises DeployError for another type or number of channels: the kernel would read what lies beside it.
        """
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[1] != self.in_channels:
            given = f"{tuple(x.shape)} of {x.dtype} on {x.device}"
            raise DeployError(f"a unit of {self.in_channels} channels cannot take {given}")
        bits = self.memory_for_bits(x.shape)
        kernel = library(self.kind)
        kernel.bbcu_signs(x.data_ptr(), len(bits), self.in_channels, self.signs(bits), torch.get_num_threads())
        return bits

    def run(self, bits: Tensor, residual: Tensor | None, out: Tensor, following: "NativeUnit | None") -> Tensor | None:
        """Write the output for packed signs to ``out``; return the signs of the ``following`` unit's input, if any.

        ``residual`` has the size of the input and the channels of ``out``; it may be ``out`` itself.
        """
        batch, _, height, width = out.shape
        size = (batch, height // self.ratio, width // self.ratio)
        next_bits = None if following is None else following.memory_for_bits(out.shape)
        signs = NO_SIGNS if following is None or next_bits is None else following.signs(next_bits)
        arguments = (None if residual is None else residual.data_ptr(), out.data_ptr(), signs, torch.get_num_threads())
        library(self.kind).bbcu_unit(self.struct(), bits.data_ptr(), *size, *arguments)
        return next_bits

    def output_for(self, x: Tensor) -> Tensor:
        """Return memory for the output of an input ``x``."""
        batch, _, height, width = x.shape
        shape = (batch, self.out_channels, height * self.ratio, width * self.ratio)
        return torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        given, x = x, channels_last(x)
        out = self.output_for(x)
        self.run(self.find_signs(x), None if residual is None else channels_last(residual), out, None)
        return laid_out_as(out, given)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def laid_out_as(out: Tensor, x: Tensor) -> Tensor:
    """Return ``out`` in the memory format of ``x``, on which the bits of a full-precision convolution depend."""
    return out if x.is_contiguous(memory_format=torch.channels_last) else out.contiguous()


# --- a network --------------------------------------------------------------------------------------------------------


class NativeBody(nn.Module):
    """A :class:`Body` whose units pass their signs on within the kernel."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.residual = body.residual
        self.units = nn.ModuleList(NativeUnit(unit) for unit in body.units)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        units: list[NativeUnit] = list(self.units)  # type: ignore[arg-type]
        if not units:
            return x
        given, x = x, channels_last(x)
        bits: Tensor | None = units[0].find_signs(x)
        features, out, between = x, torch.empty_like(x), torch.empty_like(x) if self.residual == "block" else None
        for index, unit in enumerate(units):
            following = units[index + 1] if index + 1 < len(units) else None
            assert bits is not None
            if between is not None and index % 2 == 0 and following is not None:
                bits = unit.run(bits, None, between, following)
                continue
            # In place from the second unit on: each pixel of the residual is read before it is overwritten.
            bits = unit.run(bits, features if self.residual else None, out, following)
            features = out
        return laid_out_as(features, given)


class NativeUpsampler(nn.Module):
    """A binary :class:`Upsampler` whose units write pixels where the pixel shuffle puts them."""

    def __init__(self, up: Upsampler) -> None:
        super().__init__()
        stages = zip(up.stages, up.ratios, strict=True)
        units = [NativeUnit(stage, ratio=ratio) for stage, ratio in stages]  # type: ignore[arg-type]
        units.append(NativeUnit(up.refine, leaky=NEGATIVE_SLOPE))  # type: ignore[arg-type]
        self.units = nn.ModuleList(units)
        self.residual = up.spec.unit.residual is not False

    def forward(self, x: Tensor) -> Tensor:
        given, x = x, channels_last(x)
        units: list[NativeUnit] = list(self.units)  # type: ignore[arg-type]
        bits: Tensor | None = units[0].find_signs(x)
        for unit, following in zip(units, [*units[1:], None], strict=True):
            assert bits is not None
            # The last unit does not change the size, and works in place.
            out = unit.output_for(x) if following is not None else x
            bits = unit.run(bits, x if self.residual else None, out, following)
            x = out
        return laid_out_as(x, given)


class NarrowConvolution(nn.Module):
    """A full-precision convolution with one or three filters, such as a tail: torch's computes eight or sixteen.

    The kernel adds in oneDNN's order. Where torch has another algorithm, as for small images, the bits differ. So noise
    of each shape is convolved by both, and torch convolves the images of that shape if the outputs are not equal.
    """

    FILTERS = (1, 3)

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.weight = convolution.weight.detach().permute(2, 3, 1, 0).contiguous()
        self.is_same: dict[tuple[Any, ...], bool] = {}

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Return whether ``module`` is a convolution that the kernel can compute."""
        if not isinstance(module, nn.Conv2d) or module.out_channels not in cls.FILTERS:
            return False
        layout = (module.kernel_size, module.stride, module.dilation, module.padding, module.padding_mode)
        return layout == ((3, 3), (1, 1), (1, 1), (1, 1), "zeros") and module.groups == 1

    def forward(self, x: Tensor) -> Tensor:
        # What torch's choice of an algorithm may depend on.
        case = (*x.shape, *x.stride(), torch.get_num_threads())
        if case not in self.is_same:
            noise = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(0))
            self.is_same[case] = torch.equal(self._by_kernel(channels_last(noise)), self._by_torch(noise))
        return self._by_kernel(channels_last(x)) if self.is_same[case] else self._by_torch(x)

    def _by_torch(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(x)
        return out

    def _by_kernel(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        filters, bias = self.convolution.out_channels, self.convolution.bias
        out = torch.empty((batch, filters, height, width), dtype=torch.float32, memory_format=torch.channels_last)
        operands = (self.weight.data_ptr(), None if bias is None else bias.data_ptr(), filters, out.data_ptr())
        size = (batch, height, width, channels)
        library(instructions()).bbcu_convolve(x.data_ptr(), *size, *operands, torch.get_num_threads())
        return out


def native(packed: nn.Module) -> nn.Module:
    """Return a copy of a packed network whose units run in the kernel, and those that it cannot run in torch."""
    network = copy.deepcopy(packed).eval()
    for name, module in list(network.named_modules()):
        if type(module) in (Body, UnpairedBody) and _all_native(module):
            network.set_submodule(name, NativeBody(module))
        elif type(module) is Upsampler and module.binary and _all_native(module):
            network.set_submodule(name, NativeUpsampler(module))
    for name, module in list(network.named_modules()):
        if isinstance(module, PackedUnit) and why_not_native(module) is None:
            network.set_submodule(name, NativeUnit(module))
        elif NarrowConvolution.fits(module):
            network.set_submodule(name, NarrowConvolution(module))
    return network


def _all_native(module: nn.Module) -> bool:
    return all(isinstance(unit, PackedUnit) and why_not_native(unit) is None for _, unit in named_units(module))


def prepare(packed: nn.Module) -> Runner:
    """Return what runs ``packed`` with its units in the kernel."""
    if torch.get_default_dtype() != torch.float32:
        kind = str(torch.get_default_dtype()).removeprefix("torch.")
        raise DeployError(f"the kernel computes in float32, and torch's default type is {kind}")
    network = native(packed)

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            output: Tensor = network(x.contiguous(memory_format=torch.channels_last))
        return output

    return run
