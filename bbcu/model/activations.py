"""The activations of a unit, each with a gradient that the compiler turns into fast code."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def channel_sum(values: Tensor) -> Tensor:
    """The sum over pictures and pixels, (1, channels, 1, 1); by pictures first, whose values fit into a cache."""
    return values.sum((2, 3), keepdim=True).sum(0, keepdim=True)


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
