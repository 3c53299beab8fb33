"""The activations of a unit: torch's, with gradients that ``torch.compile`` turns into fast code."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError, unknown


def channel_sum(values: Tensor) -> Tensor:
    """Sum (batch, channels, height, width) to (1, channels, 1, 1), image by image so that each fits into the cache."""
    return values.sum((2, 3), keepdim=True).sum(0, keepdim=True)


class FusedRPReLU(torch.autograd.Function):
    r"""RPReLU that computes all its gradients in one pass over the input and the output's gradient.

    Let :math:`v = x + b`, with the output :math:`v + c` for :math:`v > 0` and :math:`s v + c` otherwise, and :math:`g`
    the gradient of the output. The gradient of :math:`c` is :math:`\sum g` and that of :math:`s` is :math:`\sum g
    \min(v, 0)`. That of :math:`b` is the sum of the gradient of :math:`x`, written as :math:`s \sum g + (1 - s)
    \sum_{v > 0} g` so that the compiler need not store the gradient of :math:`x` to sum it.
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
        total, positive = channel_sum(gradient), channel_sum(torch.where(v > 0, gradient, 0.0))
        of_slope = channel_sum(gradient * v.clamp_max(0)).reshape(slope.shape)
        return torch.where(v > 0, gradient, gradient * s), s * total + (1 - s) * positive, of_slope, total


class RPReLU(nn.Module):
    r"""Forward :math:`\operatorname{prelu}(x + b) + c`; shifts start at 0, slopes at 0.25; 3 parameters a channel.

    Gradient: that of a PReLU at :math:`x + b`. The reference: the shifts let each channel choose where its kink is.
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
        y: Tensor = FusedRPReLU.apply(x, self.shift_in, self.slope, self.shift_out)  # type: ignore[no-untyped-call]
        return y


class PReLU(nn.PReLU):
    r"""Forward :math:`\max(0, x) + s \min(0, x)`, one slope :math:`s` per channel, which starts at 0.25.

    Gradient: 1 for positive inputs and :math:`s` for others. Like RPReLU without its shifts.
    Source: He et al., Delving Deep into Rectifiers, ICCV 2015.
    """


class Clamp(torch.autograd.Function):
    """A clamp for the compiler whose gradient is computed again from the input, in floating point.

    For torch's own clamps the compiler stores a byte per value, with which a unit takes 1.8 times as long on a CPU.
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
    r"""Forward :math:`\max(0, x)`; gradient 1 for :math:`x > 0`, else 0. No parameters.

    Not directly before a sign without a threshold: every sign would be +1.
    Source: Nair and Hinton, Rectified Linear Units, ICML 2010.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = Clamp.apply(x, 0.0, math.inf)  # type: ignore[no-untyped-call]
        return y


class Hardtanh(nn.Hardtanh):
    r"""Forward :math:`\max(-1, \min(1, x))`; gradient 1 for :math:`|x| < 1`, else 0. No parameters.

    The activation of the first binary networks. After the residual is added it bounds the features, so it cannot be
    combined with an alignment above 1.
    Source: Hubara et al., Binarized Neural Networks, NeurIPS 2016.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = Clamp.apply(x, self.min_val, self.max_val)  # type: ignore[no-untyped-call]
        return y


class Leaky(torch.autograd.Function):
    """A leaky ReLU for the compiler whose slope is computed again from the input, as :class:`Clamp` does.

    Of a comparison, the compiler would store the result.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return torch.where(x > 0, x, slope * x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        positive = x.sign().clamp_min(0)
        return positive * gradient + (1 - positive) * (ctx.slope * gradient), None


class LeakyReLU(nn.Module):
    r"""Forward :math:`\max(0, x) + 0.1 \min(0, x)`; gradient 1 for :math:`x > 0`, else 0.1. No parameters.

    Unlike a ReLU it keeps the sign of every value, so it is harmless right before a sign.
    Source: Song et al., E2FIF, TIP 2023, which uses this slope.
    """

    SLOPE = 0.1

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return F.leaky_relu(x, self.SLOPE)
        y: Tensor = Leaky.apply(x, self.SLOPE)  # type: ignore[no-untyped-call]
        return y


class TwoSlopes(torch.autograd.Function):
    """A slope per channel on each side, for the compiler, with all gradients from the input and the output's.

    As :class:`Clamp` it saves no masks. The gradient of a zero is that of the negative side.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        ctx.save_for_backward(x, positive, negative)
        return x * torch.where(x > 0, positive, negative)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, positive, negative = ctx.saved_tensors
        through = gradient * torch.where(x > 0, positive, negative)
        of_positive, of_negative = (channel_sum(gradient * side) for side in (x.clamp_min(0), x.clamp_max(0)))
        return through, of_positive.to(positive.dtype), of_negative.to(negative.dtype)


class Maxout(nn.Module):
    r"""Forward :math:`p_c \max(0, x) + n_c \min(0, x)`, a slope on each side, which start at 1 and 0.25.

    Gradient: the slope of the side, and of zero that of the negative side. With :math:`p = 1` it is a PReLU.
    Source: Tu et al., AdaBin, ECCV 2022, and its released code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.positive = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.negative = nn.Parameter(torch.full((1, channels, 1, 1), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            # A sum of signs is often zero, where the gradients of two clamps would add up.
            return self.positive * F.relu(x) + self.negative * x.clamp_max(0)
        y: Tensor = TwoSlopes.apply(x, self.positive, self.negative)  # type: ignore[no-untyped-call]
        return y


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "rprelu": RPReLU,
    "prelu": PReLU,
    "relu": lambda channels: ReLU(),
    "hardtanh": lambda channels: Hardtanh(),
    "leaky": lambda channels: LeakyReLU(),
    "maxout": Maxout,
}


def activation_of(name: str, channels: int) -> nn.Module:
    """Return a new activation for ``channels`` channels; raises ConfigError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"act_fn: {unknown('activation', name, ACTIVATIONS)}")
    return ACTIVATIONS[name](channels)
