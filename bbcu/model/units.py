"""The binary convolution unit: one binary convolution with its threshold, BatchNorm, activation and residual.

One class covers all combinations of factors; each factor selects one of its members.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.model.activations import activation_of, channel_sum
from bbcu.model.binarisers import binariser_of
from bbcu.model.initialisation import Initialiser, uniform
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import surrogate_of

KERNEL = 3
"""Height and width of every convolution's kernel."""


@dataclass(frozen=True)
class UnitShape:
    """A unit's channels, whether its convolution has a bias, and the initial values of its weights and threshold."""

    in_channels: int
    out_channels: int
    bias: bool = False
    initial_weight: Initialiser = uniform
    initial_threshold: float = 0.0


class AddPerChannel(torch.autograd.Function):
    """``x + shift``, one number per channel, with a gradient that the compiler sums image by image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        return x + shift

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, channel_sum(gradient)


def add_per_channel(x: Tensor, shift: Tensor) -> Tensor:
    """Return ``x + shift``, one number per channel; without compilation, torch's own gradient is faster."""
    if not torch.compiler.is_compiling():
        return x + shift
    y: Tensor = AddPerChannel.apply(x, shift)  # type: ignore[no-untyped-call]
    return y


class BitMemory(nn.Module):
    """The sum of the signs of all earlier units of a body, which each unit adds to its input with a learnable weight.

    The units of a body share one memory and use it in their order. A reimplementation from the abstract of Xin et al.,
    Binarized Neural Network for Single Image Super Resolution, ECCV 2020 (bit accumulation mechanism, BAM); the paper
    does not state the initial weight; 1/16 is our choice.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((units,), 1 / 16))
        self.reset()

    def reset(self) -> None:
        """Drop the signs of the last forward pass."""
        self._sum: Tensor | float = 0.0
        self._next_unit = 0

    def add_to(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the weighted sum of the signs so far; each call is that of the next unit."""
        share = self.share[self._next_unit]
        self._next_unit += 1
        return x + share * self._sum

    def accumulate(self, signs: Tensor) -> None:
        """Add a unit's signs to the sum."""
        self._sum = self._sum + signs


class BinaryUnit(nn.Module):
    """``u = bn_pre(x) + threshold``, ``z = bn_post(conv(sign(u), binarised weight))``, then depending on ``act``

        inside:  bn_out(activation(z) + residual)
        after:   bn_out(activation(z + residual))

    A ``memory`` first adds the earlier units' signs to ``x``. The convolution pads with zeros after the sign, so that a
    padded pixel adds nothing. Input (batch, in_channels, height, width), output (batch, out_channels, height, width).
    Raises ConfigError for levels of ``spec`` that do not exist.

    ``sign_convolution`` replaces the convolution of ones and minus ones, if it is set, by a function with the same
    result and gradients, such as :func:`bbcu.model.int8.sign_conv2d`. It is no part of the state.
    """

    memory: BitMemory | None
    sign_convolution: Callable[[Tensor, Tensor], Tensor] | None

    def __init__(self, shape: UnitShape, spec: UnitSpec) -> None:
        super().__init__()
        self.spec, self.in_channels, self.out_channels = spec, shape.in_channels, shape.out_channels
        self.initial_weight = self.initial_bias = shape.initial_weight
        initial_threshold = torch.full((1, shape.in_channels, 1, 1), shape.initial_threshold)
        self.threshold = nn.Parameter(initial_threshold) if spec.threshold else None
        self.weight = nn.Parameter(torch.zeros(shape.out_channels, shape.in_channels, KERNEL, KERNEL))
        self.bias = nn.Parameter(torch.zeros(shape.out_channels)) if shape.bias else None
        self.surrogate, self.binariser = surrogate_of(spec.surrogate), binariser_of(spec.weight)
        self.bn_pre = nn.BatchNorm2d(shape.in_channels) if spec.bn == "pre" else nn.Identity()
        self.bn_post = nn.BatchNorm2d(shape.out_channels) if spec.bn == "post" else nn.Identity()
        self.bn_out = nn.BatchNorm2d(shape.out_channels) if spec.bn == "out" else nn.Identity()
        activation = activation_of(spec.act_fn, shape.out_channels)
        self.activation = activation if spec.act != "none" else nn.Identity()
        self.sign_convolution = None
        self.set_memory(None)

    def set_memory(self, memory: BitMemory | None) -> None:
        """Add the signs of earlier units to the input; the memory stays the body's submodule, not this unit's."""
        self.__dict__["memory"] = memory

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

    def branch(self, x: Tensor) -> Tensor:
        """Return ``z``: sign, binary convolution and its BatchNorm, without activation and residual."""
        z: Tensor = self.bn_post(self.convolve(self.bits(x)))
        return z

    def bits(self, x: Tensor) -> Tensor:
        """Return the signs that are convolved."""
        u = self.bn_pre(x if self.memory is None else self.memory.add_to(x))
        signs: Tensor = self.surrogate(u if self.threshold is None else add_per_channel(u, self.threshold))
        if self.memory is not None:
            self.memory.accumulate(signs)
        return signs

    def convolve(self, bits: Tensor) -> Tensor:
        """Convolve the signs with the binary weights; a scale multiplies the result."""
        binary, scale = self.binariser(self.weight), self.binariser.scale(self.weight)
        if scale is None:
            z = F.conv2d(bits, binary, padding=KERNEL // 2)
        else:
            # The magnitude of a binary weight over itself is exactly one. The gradient of the weights flows through it.
            ones = binary / scale
            convolve = self.sign_convolution
            sums = F.conv2d(bits, ones, padding=KERNEL // 2) if convolve is None else convolve(bits, ones)
            z = sums * scale.reshape(1, -1, 1, 1)
        # Outside of the convolution, whose sums of ones are exact in any order; with a bias inside they would not be.
        return z if self.bias is None else z + self.bias.reshape(1, -1, 1, 1)

    def own_operations(self, x: Tensor, output: Tensor) -> int:
        """Return the operations of one forward pass that a subclass adds to those of its spec.

        Used by ``bbcu.count(everything=True)``, which refuses a subclass that does not define this method; return 0 if
        the subclass adds none.
        """
        return 0

    def set_progress(self, progress: float) -> None:
        """Pass the share of the training that is done, 0 to 1, to the surrogate and the binariser."""
        self.surrogate.set_progress(progress)
        self.binariser.set_progress(progress)

    def after_step(self) -> None:
        """Let the binariser change the latent weights after a step of the optimiser."""
        self.binariser.after_step(self.weight)


UNITS: dict[str, type[BinaryUnit]] = {"binary": BinaryUnit}
