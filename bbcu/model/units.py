"""The binary convolution unit: one binary convolution with its threshold, BatchNorm, rescale, activation and residual.

One class covers all combinations of factors; each factor selects one of its members.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.activations import activation_of, channel_sum
from bbcu.model.binarisers import Sign, binariser_of
from bbcu.model.initialisation import Initialiser, uniform
from bbcu.model.rescales import Rescale, RescaleShape, repeat_channels, rescale_of
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import surrogate_of
from bbcu.model.thresholds import Dynamic, Threshold, threshold_of

KERNEL = 3
"""Height and width of a convolution's kernel, unless another is given."""

INITIAL_RESIDUAL_SCALE = 0.3
"""Where the number of ``residual=scaled`` starts."""


@dataclass(frozen=True)
class UnitShape:
    """The shape of a unit's convolution, whether it has a bias, and the initial values of its weights and threshold.

    A kernel of odd size is padded by half of it, so that with ``stride=1`` the output has the size of the input; one
    of 2 is not padded, for a stride of 2.
    ``groups`` divides both numbers of channels. ``first`` is whether the unit is the first of a pair, the only one that
    has an activation if ``act=first``.
    """

    in_channels: int
    out_channels: int
    bias: bool = False
    initial_weight: Initialiser = uniform
    initial_threshold: float = 0.0
    kernel: int = KERNEL
    stride: int = 1
    groups: int = 1
    first: bool = False


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Compute without autocast."""
    if not torch.amp.is_autocast_available(x.device.type):
        yield
        return
    with torch.autocast(x.device.type, enabled=False):
        yield


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

    @property
    def place(self) -> tuple[Tensor | float, int]:
        """The sum so far and the number of the next unit; set it to repeat the pass of a unit."""
        return self._sum, self._next_unit

    @place.setter
    def place(self, place: tuple[Tensor | float, int]) -> None:
        self._sum, self._next_unit = place


class BinaryUnit(nn.Module):
    """``v = threshold(bn_pre(x))``, ``z = bn_post(rescale * conv(sign(v), binary weight))``, then depending on ``act``

        inside:  bn_out(bn_branch(activation(z)) + residual)
        after:   bn_out(activation(z + residual))

    A ``memory`` first adds the earlier units' signs to ``x``. The convolution pads with zeros after the sign, so that a
    padded pixel adds nothing. Input (batch, in_channels, height, width), output (batch, out_channels, height, width)
    for a stride of 1. Raises ConfigError for levels of ``spec`` that do not exist.

    ``act`` is where this unit has its activation: that of the spec, with "first" resolved. ``sign_convolution``
    replaces the convolution of ones and minus ones, if it is set, by a function with the same result and gradients,
    such as :func:`bbcu.model.int8.sign_conv2d`. ``binary_signs`` and ``binary_weights`` are False while a training
    starts in full precision; the unit then convolves ``v``, or with the latent weights. None of them is part of the
    state.
    """

    memory: BitMemory | None
    sign_convolution: Callable[[Tensor, Tensor], Tensor] | None
    threshold: nn.Parameter | Threshold | None

    def __init__(self, shape: UnitShape, spec: UnitSpec) -> None:
        super().__init__()
        self.spec, self.in_channels, self.out_channels = spec, shape.in_channels, shape.out_channels
        self.kernel, self.stride, self.groups = shape.kernel, shape.stride, shape.groups
        self.initial_weight = self.initial_bias = shape.initial_weight
        from_perceptron = spec.threshold == "dynamic" and spec.rescale in ("channel", "both")
        if isinstance(spec.threshold, str):
            start = shape.initial_threshold
            self.threshold = threshold_of(spec.threshold, shape.in_channels, start, has_factors=from_perceptron)
        else:
            initial_threshold = torch.full((1, shape.in_channels, 1, 1), shape.initial_threshold)
            self.threshold = nn.Parameter(initial_threshold) if spec.threshold else None
        size = (shape.out_channels, shape.in_channels // shape.groups, shape.kernel, shape.kernel)
        self.weight = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(shape.out_channels)) if shape.bias else None
        self.surrogate, self.binariser = surrogate_of(spec.surrogate), binariser_of(spec.weight, shape.out_channels)
        # The perceptron of a dynamic threshold has the factors of the channels, and that of the pixels is left.
        kind = {"channel": "none", "both": "spatial"}[spec.rescale] if from_perceptron else spec.rescale
        rescale_shape = RescaleShape(shape.in_channels, shape.out_channels, shape.stride, shape.kernel)
        self.rescale = None if kind == "none" else rescale_of(kind, rescale_shape)
        self.bn_pre = nn.BatchNorm2d(shape.in_channels) if spec.bn == "pre" else nn.Identity()
        self.bn_post = nn.BatchNorm2d(shape.out_channels) if spec.bn == "post" else nn.Identity()
        self.bn_branch = nn.BatchNorm2d(shape.out_channels) if spec.bn == "branch" else nn.Identity()
        self.bn_out = nn.BatchNorm2d(shape.out_channels) if spec.bn == "out" else nn.Identity()
        self.act = {"first": "after" if shape.first else "none"}.get(spec.act, spec.act)
        activation = activation_of(spec.act_fn, shape.out_channels)
        self.activation = activation if self.act != "none" else nn.Identity()
        is_scaled = spec.residual == "scaled"
        self.residual_scale = nn.Parameter(torch.full((), INITIAL_RESIDUAL_SCALE)) if is_scaled else None
        self.shares_perceptron, self.sign_convolution = from_perceptron, None
        self.binary_signs = self.binary_weights = True
        self.set_memory(None)
        if self.has_factors and type(self).bits is not BinaryUnit.bits:
            raise ConfigError(f"rescale={spec.rescale}: {type(self).__qualname__} defines `bits`, so it has none")

    def set_memory(self, memory: BitMemory | None) -> None:
        """Add the signs of earlier units to the input; the memory stays the body's submodule, not this unit's."""
        self.__dict__["memory"] = memory

    @property
    def is_local(self) -> bool:
        """Whether a pixel of the output depends on its neighbourhood alone, and on no mean over the picture."""
        parts = (self.threshold, self.rescale)
        return all(part.is_local for part in parts if isinstance(part, Threshold | Rescale))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self.branch(x)
        residual = self.scaled(residual)
        if residual is not None and self.act == "after":
            y = self.activation(z + residual)
        else:
            y = self.bn_branch(self.activation(z))
            y = y if residual is None else y + residual
        out: Tensor = self.bn_out(y)
        return out

    def scaled(self, residual: Tensor | None) -> Tensor | None:
        """Return what is added for a residual: itself, or its multiple."""
        return residual if residual is None or self.residual_scale is None else self.residual_scale.abs() * residual

    def branch(self, x: Tensor) -> Tensor:
        """Return ``z``: sign, binary convolution, rescale and BatchNorm, without activation and residual."""
        if not self.has_factors:
            z = self.convolve(self.bits(x))
        else:
            u, v = self.sign_input(x)
            z = self.factors(x, u, v) * self.convolve(self.signs_of(v))
        out: Tensor = self.bn_post(z)
        return out

    def bits(self, x: Tensor) -> Tensor:
        """Return the signs that are convolved."""
        return self.signs_of(self.sign_input(x)[1])

    def sign_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input after ``bn_pre``, and after the threshold, whose sign is taken."""
        u: Tensor = self.bn_pre(x if self.memory is None else self.memory.add_to(x))
        if self.threshold is None:
            return u, u
        if isinstance(self.threshold, Threshold):
            with full_precision(u):
                return u, self.threshold(self.wide(u))
        return u, add_per_channel(u, self.threshold)

    def signs_of(self, v: Tensor) -> Tensor:
        """Return the signs of what the threshold returns, and store them in the memory."""
        signs: Tensor = self.surrogate(v) if self.binary_signs else v
        if self.memory is not None:
            self.memory.accumulate(signs)
        return signs

    @property
    def has_factors(self) -> bool:
        """Whether the convolution's result is rescaled."""
        return self.rescale is not None or self.shares_perceptron

    def factors(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return the factors of the convolution's result, which broadcast with it."""
        with full_precision(x):
            x, u, v = self.wide(x), self.wide(u), self.wide(v)
            factors = torch.ones((), device=x.device) if self.rescale is None else self.rescale(x, u, v)
            if not self.shares_perceptron:
                return factors
            assert isinstance(self.threshold, Dynamic)
            product: Tensor = factors * repeat_channels(self.threshold.factors(u), self.out_channels)
            return product

    def wide(self, x: Tensor) -> Tensor:
        """Return ``x`` in the precision of the parameters, which is that of the input unless autocast lowered it."""
        wanted = torch.promote_types(x.dtype, self.weight.dtype)
        return x if x.dtype == wanted else x.to(wanted)

    def convolve(self, bits: Tensor) -> Tensor:
        """Convolve the signs with the binary weights; a scale multiplies the result."""
        threshold = self.threshold if isinstance(self.threshold, Threshold) else None
        values = bits if threshold is None else threshold.values(bits)
        z = self.sums(values, is_signed=threshold is None or threshold.is_signed)
        gain = None if threshold is None else threshold.gain()
        z = z if gain is None else gain * z
        # Outside of the convolution, whose sums of ones are exact in any order; with a bias inside they would not be.
        return z if self.bias is None else z + self.bias.reshape(1, -1, 1, 1)

    def sums(self, values: Tensor, *, is_signed: bool) -> Tensor:
        """Convolve with the binary weights; ``is_signed`` is whether all values are +1 or -1."""
        if not self.binary_weights:
            return self.convolution(values, self.weight)
        binary, scale = self.binariser(self.weight), self.binariser.scale(self.weight)
        if scale is None and not isinstance(self.binariser, Sign):
            return self.convolution(values, binary)
        # The magnitude of a binary weight over itself is exactly one. The gradient of the weights flows through it.
        ones, convolve = binary if scale is None else binary / scale, self.sign_convolution
        is_plain = (self.kernel, self.stride, self.groups) == (KERNEL, 1, 1)
        takes_signs = is_plain and is_signed and self.binary_signs
        z = convolve(values, ones) if convolve is not None and takes_signs else self.convolution(values, ones)
        return z if scale is None else z * scale.reshape(1, -1, 1, 1)

    def convolution(self, values: Tensor, weight: Tensor) -> Tensor:
        """Convolve with weights of the unit's shape."""
        return F.conv2d(values, weight, stride=self.stride, padding=(self.kernel - 1) // 2, groups=self.groups)

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
        """Let the binariser and the threshold change their parameters after a step of the optimiser.

        Latent weights are not changed while they are convolved as they are.
        """
        if self.binary_weights:
            self.binariser.after_step(self.weight)
        if isinstance(self.threshold, Threshold):
            self.threshold.after_step()


UNITS: dict[str, type[BinaryUnit]] = {"binary": BinaryUnit}
