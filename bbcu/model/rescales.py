r"""Rescaling: factors :math:`g` for the result of a binary convolution, computed in full precision from its input.

The sign drops how large a value was. A rescale gives some of it back: :math:`z \leftarrow g \odot z`, one factor for
each pixel, each channel, or both. The gradient flows through :math:`g` into the input. A unit whose output has more
channels than its input repeats each channel's factor. Except for ``spatial`` and ``box``, the factors depend on the
whole picture: such a network has no receptive radius, and statistics of a patch in training differ from those of a
picture.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError, unknown
from bbcu.model.initialisation import Initialiser, fan_in, uniform


@dataclass(frozen=True)
class RescaleShape:
    """The channels of a unit's input and output, and the stride and the kernel's size of its convolution."""

    in_channels: int
    out_channels: int
    stride: int = 1
    kernel: int = 3


class Rescale(nn.Module):
    """Base: ``forward(x, u, v)`` returns the factors, which broadcast with the unit's output.

    ``x`` is the unit's input, ``u`` the same after a BatchNorm before the sign, ``v`` after the threshold too.
    ``is_local`` is whether the factor of a pixel depends on its neighbourhood alone.
    """

    is_local = False

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """Repeat each channel in turn until there are ``channels``; the first channels fill what is left at the end.

    3 channels become 64 as 21 copies of each and one more of the first, as in the residual of the released BBCU-H.
    """
    repeated = x.repeat_interleave(channels // x.shape[1], dim=1)
    return torch.cat([repeated, x[:, : channels - repeated.shape[1]]], dim=1)


def means(x: Tensor) -> Tensor:
    """Return the mean of each picture and channel, (batch, channels, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


class AcrossChannels(nn.Conv1d):
    """A convolution over the channels: (batch, in, channels) to (batch, 1, channels), zero padding, no bias."""

    initial_weight = staticmethod(uniform)

    def __init__(self, in_features: int, kernel: int) -> None:
        super().__init__(in_features, 1, kernel, padding=kernel // 2, bias=False)


class Spatial(Rescale):
    r""":math:`g = \sigma(w \cdot x + b)` at each pixel, over its channels.

    Source: SCALES (arXiv 2303.12270 v2), reconstructed from its abstract.
    """

    is_local = True

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__(shape)
        self.pixel = PixelFactor(shape)

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.sigmoid(self.pixel(x))


class PixelFactor(nn.Conv2d):
    """A 1x1 convolution to one channel."""

    initial_weight = initial_bias = staticmethod(uniform)

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__(shape.in_channels, 1, 1, stride=shape.stride)


class Channel(Rescale):
    r""":math:`g_c = \sigma(\operatorname{conv}_5(\bar x)_c)`: a convolution over the channels' means, of 5 weights.

    Source: SCALES (arXiv 2303.12270 v2), reconstructed from its abstract.
    """

    KERNEL = 5

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__(shape)
        self.channel = AcrossChannels(1, self.KERNEL)

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        across: Tensor = self.channel(means(x)[..., 0].transpose(1, 2))
        return repeat_channels(torch.sigmoid(across.transpose(1, 2).unsqueeze(-1)), self.shape.out_channels)


class Both(Rescale):
    """The product of ``spatial`` and ``channel``; it starts near a quarter.

    Source: SCALES (arXiv 2303.12270 v2), reconstructed from its abstract.
    """

    FACTOR = 1.0

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__(shape)
        self.spatial, self.channel = Spatial(shape), Channel(shape)

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        product: Tensor = self.FACTOR * self.spatial(x, u, v) * self.channel(x, u, v)
        return product


class Doubled(Both):
    """As ``both``, with twice each sigmoid: it starts near one.

    A control: if it does as well as ``both``, the smaller branch at the start was not what helped.
    """

    FACTOR = 4.0


class Squeeze(Rescale):
    r""":math:`g = \sigma(E \operatorname{relu}(D \bar u))`: a perceptron of the means, C to C/8 to C', no biases.

    Source: Martinez et al., Real-to-Binary Networks, ICLR 2020, after a third party's code.
    """

    REDUCTION = 8

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__(shape)
        hidden = max(1, shape.in_channels // self.REDUCTION)
        self.down, self.up = Excitation(shape.in_channels, hidden), Excitation(hidden, shape.out_channels)

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.sigmoid(self.up(F.relu(self.down(means(u)))))


@torch.no_grad()
def he_normal(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Fill from He's normal, of variance 2 / fan-in."""
    parameter.normal_(0, math.sqrt(2 / fan_in(weight)), generator=generator)


class Excitation(nn.Conv2d):
    """A 1x1 convolution of means without a bias."""

    initial_weight: Initialiser = staticmethod(he_normal)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)


class Statistics(Rescale):
    r""":math:`g_c = \sigma(\operatorname{conv}(S)_c)` of three statistics of each channel of :math:`v`.

    Over the picture: :math:`S` holds the mean of :math:`|v_c|`, the mean and the standard deviation of :math:`v_c`; the
    convolution over the channels has 3 weights for each up to 96 channels, and 5 from 128 to 256.
    Source: Zhang et al., Binarized Low-light Raw Video Enhancement (DABC), CVPR 2024, and its released code.
    """

    EPSILON = 1e-6

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__(shape)
        kernel = int(abs((math.log2(shape.in_channels) + 1) / 2))
        self.across = AcrossChannels(3, kernel + (kernel % 2 == 0))

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        # The variance of a picture of one pixel is zero, and not undefined.
        variance = v.var((2, 3), correction=int(v.shape[2] * v.shape[3] > 1), keepdim=True)
        deviation = (variance + self.EPSILON).sqrt()
        # In training in one pass, without the absolute values as a tensor; backends know only the plain form.
        in_one_pass = self.training and torch.is_grad_enabled()
        total = torch.linalg.vector_norm(v, 1, (2, 3), keepdim=True) if in_one_pass else None
        magnitude = means(v.abs()) if total is None else total / v[0, 0].numel()
        statistics = torch.cat([magnitude, means(v), deviation], dim=3)[:, :, 0].transpose(1, 2)
        across: Tensor = self.across(statistics)
        return repeat_channels(torch.sigmoid(across.transpose(1, 2).unsqueeze(-1)), self.shape.out_channels)


class Box(Rescale):
    r""":math:`g = w \star \operatorname{mean}_c |x|`: one learnt filter of the mean magnitude.

    The filter is as large as the convolution's kernel, and starts as a mean: from 1/9 for 3x3. Not a sigmoid: it has
    the size of the input. The cheapest rescale, and a local one.
    Source: Zheng et al., BiDM, NeurIPS 2024, in the form of BiMaCoSR's code; after the scaling of XNOR-Net.
    """

    is_local = True

    def __init__(self, shape: RescaleShape) -> None:
        super().__init__(shape)
        self.weight = nn.Parameter(torch.full((1, 1, shape.kernel, shape.kernel), 1 / shape.kernel**2))

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        magnitude = x.abs().mean(1, keepdim=True)
        return F.conv2d(magnitude, self.weight, padding=(self.shape.kernel - 1) // 2, stride=self.shape.stride)


RESCALES: dict[str, Callable[[RescaleShape], Rescale]] = {
    "spatial": Spatial,
    "channel": Channel,
    "both": Both,
    "doubled": Doubled,
    "squeeze": Squeeze,
    "statistics": Statistics,
    "box": Box,
}


def rescale_of(name: str, shape: RescaleShape) -> Rescale:
    """Return a new rescale; raises ConfigError for an unknown name."""
    if name not in RESCALES:
        raise ConfigError(f"rescale: {unknown('level', name, ['none', *RESCALES])}")
    return RESCALES[name](shape)
