r"""Units that change the width or the size of what passes through them, for networks of several resolutions.

A binary convolution keeps few of its input's values, so a unit needs an identity around it, and an identity needs a
shape that stays. Each family below answers that in its own way, and works with any unit:

- BiSR: copies and averages halves of the channels, so that every unit keeps its shape; sizes change by average pooling
  and bilinear interpolation.
- CP: the same without averages; sizes change by moving pixels into channels and back.
- BRVE: one unit that changes both, with a full-precision 1x1 convolution in place of its identity.

``make`` builds a unit for a shape: ``NetworkSpec.binary_unit``, or a module in full precision that takes ``(x,
residual)`` as well. A unit whose spec has ``residual=False`` gets none.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.initialisation import uniform
from bbcu.model.units import KERNEL, BinaryUnit, UnitShape, full_precision

MakeUnit = Callable[[UnitShape], nn.Module]
"""Builds a unit, whose forward takes its input and its residual or None."""


def has_residual(unit: nn.Module) -> bool:
    """Return whether a unit adds a residual: all but a binary one with ``residual=False``."""
    return not (isinstance(unit, BinaryUnit) and unit.spec.residual is False)


def with_identity(unit: nn.Module, x: Tensor) -> Tensor:
    """Run a unit that keeps the shape of ``x``, with ``x`` as its residual if it has one."""
    out: Tensor = unit(x, x if has_residual(unit) else None)
    return out


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second half of the channels."""
    first, second = x.chunk(2, dim=1)
    return first, second


class Pair(nn.Module):
    """Base: two units of ``channels`` channels each, which keep shapes."""

    def __init__(self, make: MakeUnit, channels: int, kernel: int = KERNEL) -> None:
        super().__init__()
        self.first, self.second = (make(UnitShape(channels, channels, kernel=kernel)) for _ in range(2))

    def added(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the sum of both units, each of its own input."""
        return with_identity(self.first, first) + with_identity(self.second, second)

    def joined(self, x: Tensor) -> Tensor:
        """Return both units of one input, side by side: twice the channels."""
        return torch.cat([with_identity(self.first, x), with_identity(self.second, x)], dim=1)


# --- BiSR -------------------------------------------------------------------------------------------------------------


class FusionUp(Pair):
    """Widen C channels to 2C: two units of the same input, side by side.

    Source: Cai et al., BiSR-Conv (Binarized Spectral Compressive Imaging), NeurIPS 2023, and its released code.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(x)


class FusionDown(Pair):
    """Narrow 2C channels to C, the ``channels`` of its units: the mean of a unit of each half.

    Source: as :class:`FusionUp`, which it undoes if the units add nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.added(*halves(x)) / 2


class BiSRDown(nn.Module):
    """Halve the size and widen C channels to 2C: the mean of each 2 x 2 pixels, then :class:`FusionUp`."""

    def __init__(self, make: MakeUnit, channels: int) -> None:
        super().__init__()
        self.fusion = FusionUp(make, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fusion(F.avg_pool2d(x, 2))
        return out


class BiSRUp(nn.Module):
    """Double the size and narrow 2C channels to C, ``channels``: bilinear interpolation, then :class:`FusionDown`."""

    def __init__(self, make: MakeUnit, channels: int) -> None:
        super().__init__()
        self.fusion = FusionDown(make, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fusion(doubled(x))
        return out


# --- CP ---------------------------------------------------------------------------------------------------------------


class CPDown(Pair):
    """Halve the size and widen C channels to 2C: the sum of a unit of each half, then each 2 x 2 pixels to channels.

    Raises ConfigError for an odd number of channels.
    Source: Chen et al., BI-DiffSR (channel-shuffle and pixel-unshuffle downsampling), NeurIPS 2024, and its code.
    """

    def __init__(self, make: MakeUnit, channels: int) -> None:
        if channels % 2:
            raise ConfigError(f"channels={channels}: a binary downsampling unit needs an even number")
        super().__init__(make, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.added(*halves(x)), 2)


class CPUp(Pair):
    """Double the size and narrow C channels to C/2: two units side by side, then each 4 channels to 2 x 2 pixels.

    Raises ConfigError for an odd number of channels.
    Source: as :class:`CPDown`.
    """

    def __init__(self, make: MakeUnit, channels: int) -> None:
        if channels % 2:
            raise ConfigError(f"channels={channels}: a binary upsampling unit needs an even number")
        super().__init__(make, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.joined(x), 2)


class CSFusion(Pair):
    """Join two streams of C channels to one: units of the channels at odd and even places, crosswise, and their sum.

    If the units add nothing, each output is the sum of two neighbouring channels of the same stream.
    Source: as :class:`CPDown`.
    """

    def __init__(self, make: MakeUnit, channels: int) -> None:
        super().__init__(make, channels, kernel=1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        crosswise = torch.cat([one[:, 1::2], other[:, ::2]], dim=1), torch.cat([one[:, ::2], other[:, 1::2]], dim=1)
        return self.added(*crosswise)


# --- BRVE -------------------------------------------------------------------------------------------------------------


class Projection(nn.Conv2d):
    """A full-precision 1x1 convolution with a bias, in the place of an identity; computed without autocast.

    What passes through it is the stream that signs are taken of, so it is computed as the head of a network is.
    """

    initial_weight = initial_bias = staticmethod(uniform)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return super().forward(x.to(self.weight.dtype))


class BRVEDown(nn.Module):
    """Halve the size: a unit of stride 2, whose residual is a projection of the mean of each 2 x 2 pixels.

    Source: Zhang et al., Binarized Low-light Raw Video Enhancement, CVPR 2024, and its released code, whose strided
    convolution has a bias.
    """

    def __init__(self, make: MakeUnit, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.unit = make(UnitShape(in_channels, out_channels, bias=True, stride=2))
        self.projection = Projection(in_channels, out_channels) if has_residual(self.unit) else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(x, None if self.projection is None else self.projection(F.avg_pool2d(x, 2)))
        return out


class BRVEUp(nn.Module):
    """Double the size by bilinear interpolation, then a unit whose residual is a projection of its input.

    Source: as :class:`BRVEDown`.
    """

    def __init__(self, make: MakeUnit, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.unit = make(UnitShape(in_channels, out_channels))
        self.projection = Projection(in_channels, out_channels) if has_residual(self.unit) else None

    def forward(self, x: Tensor) -> Tensor:
        large = doubled(x)
        out: Tensor = self.unit(large, None if self.projection is None else self.projection(large))
        return out


def doubled(x: Tensor) -> Tensor:
    """Interpolate bilinearly to twice the size."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
