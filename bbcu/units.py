"""The binary convolution unit: one binary convolution with its threshold, BatchNorm, activation and residual.

One class for every combination of factors; what varies is a small named object in one of its places.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.binarisers import BINARISERS
from bbcu.initialisation import Initialiser, uniform
from bbcu.int8 import convolve_signs
from bbcu.registry import look_up
from bbcu.surrogates import SURROGATES

KERNEL = 3


@dataclass(frozen=True)
class UnitSpec:
    """The factors of a unit; the defaults are the reference, BBCU.

    ``residual`` is True (an identity around every unit), False, or "block" (one around each pair of units).
    ``bn`` is "none", "pre" (before the sign), "post" (after the convolution) or "out" (after the add).
    ``act`` is "inside" (before the add), "after" it, or "none", and ``act_fn`` which activation.
    ``threshold`` is whether a number per channel is learnt that is added before the sign.
    ``surrogate`` and ``weight`` name the gradient of the sign and the binariser of the weights.
    """

    residual: bool | str = True
    bn: str = "none"
    act: str = "inside"
    act_fn: str = "rprelu"
    threshold: bool = True
    surrogate: str = "quadratic"
    weight: str = "l1"


@dataclass(frozen=True)
class UnitShape:
    """A unit's channels, whether its convolution has a bias, and how its latent weights and threshold start."""

    in_channels: int
    out_channels: int
    bias: bool = False
    initial_weight: Initialiser = uniform
    first_threshold: float = 0.0


def channel_sum(values: Tensor) -> Tensor:
    """The sum over pictures and pixels, (1, channels, 1, 1); by pictures first, whose values fit into a cache."""
    return values.sum((2, 3), keepdim=True).sum(0, keepdim=True)


class Shift(torch.autograd.Function):
    """``x + shift`` with one number per channel, whose gradient the compiler sums picture by picture."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        return x + shift

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, channel_sum(gradient)


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """``x + shift``, one number per channel; uncompiled, torch's own sum of its gradient is the faster one."""
    if not torch.compiler.is_compiling():
        return x + shift
    y: Tensor = Shift.apply(x, shift)  # type: ignore[no-untyped-call]
    return y


class ShiftedPReLU(torch.autograd.Function):
    r"""RPReLU with all its gradients from one pass over gradient and input.

    With :math:`v = x + b`, where :math:`y = v` for :math:`v > 0` and :math:`s v` elsewhere, plus :math:`c`: the
    gradients of :math:`c` and :math:`s` are the sums of :math:`g` and :math:`g \min(v, 0)`. That of :math:`b`, the sum
    of the gradient of :math:`x`, is :math:`s \sum g + (1 - s) \sum_{v > 0} g`, so that the compiler need not write the
    former out to sum it up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> Tensor:
        ctx.save_for_backward(x, shift_in, slope)
        v = x + shift_in
        return torch.where(v > 0, v, v * slope.reshape(shift_in.shape)) + shift_out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, shift_in, slope = ctx.saved_tensors
        v, s = x + shift_in, slope.reshape(shift_in.shape)
        whole, above = channel_sum(gradient), channel_sum(torch.where(v > 0, gradient, 0.0))
        of_slope = channel_sum(gradient * v.clamp_max(0)).reshape(slope.shape)
        return torch.where(v > 0, gradient, gradient * s), s * whole + (1 - s) * above, of_slope, whole


class RPReLU(nn.Module):
    """A PReLU whose input and output are shifted, three learnable numbers per channel.

    Source: Liu et al., ReActNet, ECCV 2020, eq. 7, with the signs of the released BBCU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return F.prelu(x + self.shift_in, self.slope) + self.shift_out
        y: Tensor = ShiftedPReLU.apply(x, self.shift_in, self.slope, self.shift_out)  # type: ignore[no-untyped-call]
        return y


class ClampWithin(torch.autograd.Function):
    """A clamp, for the compiler, whose gradient is recomputed from its input, in floating point.

    Of torch's own clamps the compiler keeps a byte per value for the gradient, and a unit with them takes 1.8 times as
    long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        above, below = ((side.sign().clamp_min(0)) for side in (x - ctx.low, ctx.high - x))
        return gradient * (above * below), None, None


class ReLU(nn.ReLU):
    """torch's, and where it is compiled one whose gradient needs no bytes."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = ClampWithin.apply(x, 0.0, math.inf)  # type: ignore[no-untyped-call]
        return y


class Hardtanh(nn.Hardtanh):
    """torch's, and where it is compiled one whose gradient needs no bytes."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = ClampWithin.apply(x, self.min_val, self.max_val)  # type: ignore[no-untyped-call]
        return y


def prelu(channels: int) -> nn.Module:
    return nn.PReLU(channels)


def relu(channels: int) -> nn.Module:
    return ReLU()


def hardtanh(channels: int) -> nn.Module:
    return Hardtanh()


ACTIVATIONS = {"rprelu": RPReLU, "prelu": prelu, "relu": relu, "hardtanh": hardtanh}


class BitMemory(nn.Module):
    """The bits of the units before, summed and weighed by a learnt number: what a unit of BAM adds to its input.

    One memory serves the units of a body in their order. A reimplementation from the abstract of Xin et al., Binarized
    Neural Network for Single Image Super Resolution, ECCV 2020; the first weight, 1/16, is a choice of ours.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((units,), 1 / 16))
        self.forget()

    def forget(self) -> None:
        """Start a new pass through the body."""
        self._sum: Tensor | float = 0.0
        self._read = 0

    def recall(self, x: Tensor) -> Tensor:
        """``x`` with the weighed sum of all bits so far."""
        share = self.share[self._read]
        self._read += 1
        return x + share * self._sum

    def keep(self, bits: Tensor) -> None:
        self._sum = self._sum + bits


class BinaryUnit(nn.Module):
    """``u = bn_pre(x) + threshold``, ``z = bn_post(conv(sign(u), binarised weight))``, then by ``act``

        inside:  bn_out(activation(z) + residual)
        after:   bn_out(activation(z + residual))

    A ``memory`` adds to ``x`` what it recalls of the bits before. Zeros are padded after the sign, so a padded pixel
    counts nothing. Input (batch, in_channels, height, width), output (batch, out_channels, height, width).
    """

    memory: BitMemory | None

    def __init__(self, shape: UnitShape, spec: UnitSpec) -> None:
        super().__init__()
        self.spec, self.in_channels, self.out_channels = spec, shape.in_channels, shape.out_channels
        self.initial_weight = self.initial_bias = shape.initial_weight
        first = torch.full((1, shape.in_channels, 1, 1), shape.first_threshold)
        self.threshold = nn.Parameter(first) if spec.threshold else None
        self.weight = nn.Parameter(torch.zeros(shape.out_channels, shape.in_channels, KERNEL, KERNEL))
        self.bias = nn.Parameter(torch.zeros(shape.out_channels)) if shape.bias else None
        self.surrogate = look_up("surrogate", spec.surrogate, SURROGATES)()
        self.binariser = look_up("weight", spec.weight, BINARISERS)()
        self.bn_pre = nn.BatchNorm2d(shape.in_channels) if spec.bn == "pre" else nn.Identity()
        self.bn_post = nn.BatchNorm2d(shape.out_channels) if spec.bn == "post" else nn.Identity()
        self.bn_out = nn.BatchNorm2d(shape.out_channels) if spec.bn == "out" else nn.Identity()
        activation = look_up("act_fn", spec.act_fn, ACTIVATIONS)
        self.activation = activation(shape.out_channels) if spec.act != "none" else nn.Identity()
        self.in_bytes = False
        self.share_memory_of(None)

    def share_memory_of(self, memory: BitMemory | None) -> None:
        """Let the sign see the bits of the units before; the memory stays the body's, so it is no module of this."""
        self.__dict__["memory"] = memory

    def bits(self, x: Tensor) -> Tensor:
        """The signs that the convolution sees."""
        u = self.bn_pre(x if self.memory is None else self.memory.recall(x))
        signs: Tensor = self.surrogate(u if self.threshold is None else shifted(u, self.threshold))
        if self.memory is not None:
            self.memory.keep(signs)
        return signs

    def branch(self, x: Tensor) -> Tensor:
        """The binary convolution with what stands before it and its BatchNorm; no activation, no residual."""
        z: Tensor = self.bn_post(self.convolve(self.bits(x)))
        return z

    def convolve(self, bits: Tensor) -> Tensor:
        """The convolution of the signs with the binary weights; their scale is multiplied in afterwards."""
        binary, scale = self.binariser(self.weight), self.binariser.scale(self.weight)
        if scale is None:
            return F.conv2d(bits, binary, self.bias, padding=KERNEL // 2)
        # A scale divided by itself is one, exactly; its gradient takes the way of the weights that it came with.
        ones = binary / scale
        sums = convolve_signs(bits, ones) if self.in_bytes else F.conv2d(bits, ones, padding=KERNEL // 2)
        z: Tensor = sums * scale.reshape(1, -1, 1, 1)
        return z if self.bias is None else z + self.bias.reshape(1, -1, 1, 1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self.branch(x)
        if residual is None:
            y = self.activation(z)
        elif self.spec.act == "after":
            y = self.activation(z + residual)
        else:
            y = self.activation(z) + residual
        out: Tensor = self.bn_out(y)
        return out

    def set_progress(self, progress: float) -> None:
        """Tell the parts the share of the training that is done, 0 to 1."""
        self.surrogate.set_progress(progress)
        self.binariser.set_progress(progress)

    def after_step(self) -> None:
        """Let the binariser see the weights after a step of the optimiser."""
        self.binariser.after_step(self.weight)


UNITS: dict[str, type[BinaryUnit]] = {"binary": BinaryUnit}
