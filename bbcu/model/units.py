"""The binary convolution unit: one binary convolution with its threshold, BatchNorm, activation and residual.

One class for every combination of factors; what varies is a small named object in one of its places.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.model.activations import ACTIVATIONS, channel_sum
from bbcu.model.binarisers import BINARISERS, Binariser
from bbcu.model.initialisation import Initialiser, uniform
from bbcu.model.int8 import convolve_signs
from bbcu.model.registry import look_up
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import surrogate_of

KERNEL = 3


@dataclass(frozen=True)
class UnitShape:
    """A unit's channels, whether its convolution has a bias, and how its latent weights and threshold start."""

    in_channels: int
    out_channels: int
    bias: bool = False
    initial_weight: Initialiser = uniform
    first_threshold: float = 0.0


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
        self.surrogate = surrogate_of(spec.surrogate)
        self.binariser = look_up("weight", spec.weight, BINARISERS, Binariser)()
        self.bn_pre = nn.BatchNorm2d(shape.in_channels) if spec.bn == "pre" else nn.Identity()
        self.bn_post = nn.BatchNorm2d(shape.out_channels) if spec.bn == "post" else nn.Identity()
        self.bn_out = nn.BatchNorm2d(shape.out_channels) if spec.bn == "out" else nn.Identity()
        activation = ACTIVATIONS[spec.act_fn]
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

    def own_operations(self, x: Tensor, output: Tensor) -> int:
        """The operations of one forward pass that a subclass adds to those of its spec, for the cost of everything.

        A subclass must define it, and return 0 if it adds none: :func:`bbcu.count` refuses to guess.
        """
        return 0

    def set_progress(self, progress: float) -> None:
        """Tell the parts the share of the training that is done, 0 to 1."""
        self.surrogate.set_progress(progress)
        self.binariser.set_progress(progress)

    def after_step(self) -> None:
        """Let the binariser see the weights after a step of the optimiser."""
        self.binariser.after_step(self.weight)


UNITS: dict[str, type[BinaryUnit]] = {"binary": BinaryUnit}
