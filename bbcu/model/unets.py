"""U-Nets: networks that work at several resolutions, each half the size of the one before.

Their parts are head, body, up and tail; ``up`` holds the convolutions that change the size, down and up. If the sides
of a picture are no multiples of :attr:`UNetwork.grid`, its last column and row are repeated until they are, and the
output is cropped.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.initialisation import small_normal, zeros
from bbcu.model.parts import (
    NEGATIVE_SLOPE,
    BinaryHead,
    Body,
    Convolution,
    FullBlock,
    NetworkSpec,
    RestorationNetwork,
    require_full_tail,
)
from bbcu.model.resampling import BRVEDown, BRVEUp, CPDown, CPUp
from bbcu.model.units import UnitShape, full_precision

Reach = tuple[int, int]
"""The first and the last of the pixels of a row that something depends on."""

Step = Callable[[Reach], Reach]
"""From the pixels of a layer's output to those of its input that they depend on."""


def convolutions(count: int) -> Step:
    """``count`` convolutions of 3x3 in a row."""
    return lambda pixels: (pixels[0] - count, pixels[1] + count)


def halved(margin: int) -> Step:
    """To half the size: each pixel depends on two, and on ``margin`` more before them."""
    return lambda pixels: (2 * pixels[0] - margin, 2 * pixels[1] + 1)


def repeated(pixels: Reach) -> Reach:
    """To twice the size: each pixel depends on that at its place."""
    return pixels[0] // 2, pixels[1] // 2


def interpolated(pixels: Reach) -> Reach:
    """To twice the size by bilinear interpolation: each pixel depends on the two nearest."""
    return (pixels[0] - 1) // 2, (pixels[1] + 1) // 2


def radius_of_steps(steps: Sequence[Step], grid: int) -> int:
    """Return how far a pixel of the output sees, at the worst of the ``grid`` places that a pixel can have.

    ``steps`` run from the output to the input.
    """
    farthest = 0
    for place in range(grid):
        first = last = place
        for step in steps:
            first, last = step((first, last))
        farthest = max(farthest, place - first, last - place)
    return farthest


class UNetwork(RestorationNetwork):
    """Base: pads the sides to a multiple of ``grid`` and crops the output.

    ``grid`` is the side of a pixel of the coarsest resolution. A picture that is cut into tiles must be cut at its
    multiples, or the network would halve other pairs of pixels. Raises ConfigError for a scale other than 1, and for
    another tail than the full one.
    """

    grid: int
    name: str

    def __init__(self, spec: NetworkSpec) -> None:
        if spec.scale != 1:
            raise ConfigError(
                f"network={self.name}: its output has the size of its input, and the task's scale is {spec.scale}"
            )
        require_full_tail(self.name, spec)
        super().__init__(spec)

    @property
    def has_binary_head(self) -> bool:
        return isinstance(self.head, BinaryHead)

    def restore(self, aligned: Tensor) -> Tensor:
        height, width = aligned.shape[2:]
        padded = F.pad(aligned, (0, -width % self.grid, 0, -height % self.grid), mode="replicate")
        return self.restore_whole(padded)[:, :, :height, :width]

    def restore_whole(self, aligned: Tensor) -> Tensor:
        """As :meth:`restore`, for sides that are multiples of the grid."""
        raise NotImplementedError


# --- DRUNet -----------------------------------------------------------------------------------------------------------

GAIN = 0.2
"""The gain of the orthogonal initial weights of a DRUNet."""


@torch.no_grad()
def orthogonal(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Fill with orthogonal rows or columns of length 0.2, the tensor taken as a matrix of its first dimension."""
    nn.init.orthogonal_(parameter, GAIN, generator=generator)


class Halving(nn.Conv2d):
    """A full-precision 2x2 convolution of stride 2 without a bias."""

    initial_weight = staticmethod(orthogonal)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2, bias=False)


class Doubling(nn.ConvTranspose2d):
    """A full-precision transposed 2x2 convolution of stride 2 without a bias."""

    initial_weight = staticmethod(orthogonal)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2, bias=False)


def without_bias(in_channels: int, out_channels: int) -> Convolution:
    """A convolution of a full-precision DRUNet."""
    return Convolution(in_channels, out_channels, bias=False, initial_weight=orthogonal)


class DRUNet(UNetwork):
    """The denoising U-Net of four levels, from ``channels`` to 8 times as many channels, with ``blocks`` blocks each.

    Each level but the coarsest has as many blocks again on the way back. Input and output (batch, colours, height,
    width) in [0, 1]; the published network is ``channels=64, blocks=4``. The head's input has one more channel, the
    noise level, which is ``spec.noise_level`` at every pixel of every picture. No convolution has a bias, and the
    output is the picture itself, not what is added to the input.

    A binary body has a pair of units in the place of each block. Binary down and up convolutions are BI-DiffSR's,
    :class:`bbcu.model.resampling.CPDown` and :class:`~bbcu.model.resampling.CPUp`, which keep identities and have no
    weights in full precision; with them the number of channels must be even. A binary tail adds the input picture as
    its residual, if units have residuals: without an identity it could not make a picture.

    Raises ConfigError for a scale other than 1. ``widths`` are those of the four levels, if they are others.
    Source: Zhang et al., Plug-and-Play Image Restoration with Deep Denoiser Prior, TPAMI 2021, and its released code.
    """

    name, grid = "drunet", 8
    body: nn.ModuleDict

    def __init__(self, spec: NetworkSpec, widths: Sequence[int] | None = None) -> None:
        super().__init__(spec)
        widths = widths or [spec.channels * 2**level for level in range(4)]
        if "head" in spec.binarize:
            self.head = BinaryHead(dataclasses.replace(spec, colours=spec.colours + 1))
        else:
            self.head = without_bias(spec.colours + 1, widths[0])
        numbered = list(enumerate(widths, start=1))
        stages = {
            **{f"encode{level}": self._stage(width) for level, width in numbered[:-1]},
            "middle": self._stage(widths[-1]),
            **{f"decode{level}": self._stage(width) for level, width in reversed(numbered[:-1])},
        }
        self.body = nn.ModuleDict(stages)
        self.up = nn.ModuleDict()
        for level in (1, 2, 3):
            self.up[f"down{level}"] = self._down(*widths[level - 1 : level + 1])
        for level in (3, 2, 1):
            self.up[f"up{level}"] = self._up(*reversed(widths[level - 1 : level + 1]))
        if "tail" in spec.binarize:
            self.tail = spec.binary_unit(UnitShape(widths[0], spec.colours, initial_weight=small_normal))
        else:
            self.tail = without_bias(widths[0], spec.colours)

    def _stage(self, width: int) -> nn.Module:
        if "body" in self.spec.binarize:
            return Body(dataclasses.replace(self.spec, channels=width))
        return nn.Sequential(*(FullBlock(width, without_bias) for _ in range(self.spec.blocks)))

    def _down(self, fine: int, coarse: int) -> nn.Module:
        return CPDown(self.spec.binary_unit, fine) if "up" in self.spec.binarize else Halving(fine, coarse)

    def _up(self, coarse: int, fine: int) -> nn.Module:
        return CPUp(self.spec.binary_unit, coarse) if "up" in self.spec.binarize else Doubling(coarse, fine)

    @property
    def reach(self) -> int:
        stage, more = convolutions(2 * self.spec.blocks), convolutions(int("up" in self.spec.binarize))
        up: list[Step] = [stage, repeated, more]
        down: list[Step] = [halved(0), more, stage]
        return radius_of_steps([convolutions(1), *3 * up, stage, *3 * down, convolutions(1)], self.grid)

    @property
    def block_ends(self) -> list[nn.Module]:
        ends: list[nn.Module] = []
        for stage in self.body.values():
            ends += list(stage.units[1::2] if isinstance(stage, Body) else stage.children())
        return ends

    @property
    def has_skip(self) -> bool:
        """Whether the input picture is added to the output."""
        return "tail" in self.spec.binarize and self.spec.unit.residual is not False

    def skip(self, x: Tensor) -> Tensor:
        """Return the output if the layers added nothing: zero, or the input if it is added to the output."""
        return x if self.has_skip else torch.zeros_like(x)

    def restore_whole(self, aligned: Tensor) -> Tensor:
        features = self.features(self.with_noise_level(aligned))
        restored: Tensor = self.tail(features, aligned) if self.has_skip else self.tail(features)
        return restored

    def with_noise_level(self, aligned: Tensor) -> Tensor:
        """Append the channel of the noise level, on the scale of the picture."""
        level = torch.full_like(aligned[:, :1], self.spec.align * self.spec.noise_level)
        return torch.cat([aligned, level], dim=1)

    def features(self, noisy: Tensor) -> Tensor:
        """Return the input of the tail for a picture with its noise level, (batch, colours + 1, height, width)."""
        x = self.head_features(noisy)
        encoded = [x]
        for level in (1, 2, 3):
            x = self.resample(f"down{level}", self.body[f"encode{level}"](x))
            encoded.append(x)
        x = self.body["middle"](x)
        for level in (3, 2, 1):
            x = self.body[f"decode{level}"](self.resample(f"up{level}", x + encoded[level]))
        features: Tensor = x + encoded[0]
        return features

    def resample(self, name: str, x: Tensor) -> Tensor:
        """Change the size: in full precision without autocast before binary units, for the reason of the head."""
        exact = "body" in self.spec.binarize and "up" not in self.spec.binarize
        with full_precision(x) if exact else contextlib.nullcontext():
            out: Tensor = self.up[name](x)
            return out


# --- the U-Net of BRVE ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UNetLayout:
    """The sizes of a U-Net of three levels: the channels of each, its units each way, and the units before them."""

    widths: tuple[int, int, int]
    units: tuple[int, int, int]
    shallow: int

    @classmethod
    def of(cls, spec: NetworkSpec) -> "UNetLayout":
        """Return widths of 1, 2 and 4 times ``channels``; 1, 3 and 3 times ``blocks`` units, and as many before as 3.

        The published image network is that of 24 channels and one block.
        """
        c, n = spec.channels, spec.blocks
        return cls((c, 2 * c, 4 * c), (n, 3 * n, 3 * n), 3 * n)


class FullUnit(nn.Module):
    """``leaky_relu(conv(x)) + residual``: a unit in full precision."""

    def __init__(self, shape: UnitShape) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.kernel // 2, groups=shape.groups
        )
        self.convolution.initial_weight, self.convolution.initial_bias = small_normal, zeros  # type: ignore[assignment]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.leaky_relu(self.convolution(x), NEGATIVE_SLOPE)
        return y if residual is None else y + residual


class FullUnits(nn.Module):
    """Units in full precision in a row, with an identity around each."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(FullUnit(UnitShape(channels, channels)) for _ in range(units))

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x, x)
        return x


STAGES = ("shallow", "encode1", "encode2", "encode3", "decode3", "skip2", "decode2", "skip1", "decode1")
"""The stages of the body of a :class:`UNet`, in their order. ``skip1`` and ``skip2`` are one unit each."""

LEVEL_OF_STAGE = {stage: 0 if stage == "shallow" else int(stage[-1]) - 1 for stage in STAGES}


class UNet(UNetwork):
    """The binary U-Net of BRVE, for one picture: head, units at three resolutions, and tail, added to the input.

    Input and output (batch, colours, height, width) in [0, 1]. ``UNetLayout.of(spec)`` says how ``channels`` and
    ``blocks`` become widths and numbers of units; ``channels=24, blocks=1`` is the published one. The down and up
    convolutions are :class:`bbcu.model.resampling.BRVEDown` and :class:`~bbcu.model.resampling.BRVEUp`; binary ones
    keep a full-precision 1x1 convolution in the place of their identity, if units have residuals. In full precision
    each unit is ``leaky_relu(conv(x))`` and its identity. With ``rescale=statistics`` the units are the published ones.

    Raises ConfigError for a scale other than 1. ``layout`` is for other widths and numbers of units.
    Source: Zhang et al., Binarized Low-light Raw Video Enhancement, CVPR 2024, and its released code, whose network
    for video has two such U-Nets.
    """

    name, grid = "unet", 4
    body: nn.ModuleDict

    def __init__(self, spec: NetworkSpec, layout: UNetLayout | None = None) -> None:
        super().__init__(spec)
        self.layout = layout or UNetLayout.of(spec)
        widths = self.layout.widths
        binary = {part: part in spec.binarize for part in ("head", "body", "up", "tail")}
        of_width = dataclasses.replace(spec, channels=widths[0])
        self.head = BinaryHead(of_width) if binary["head"] else Convolution(spec.colours, widths[0])
        self.body = nn.ModuleDict({stage: self._stage(stage) for stage in STAGES})
        self.up = resampling(spec, widths)
        tail_shape = UnitShape(widths[0], spec.colours, initial_weight=small_normal)
        self.tail = spec.binary_unit(tail_shape) if binary["tail"] else Convolution(widths[0], spec.colours)

    def units_of(self, stage: str) -> int:
        """Return the number of units of a stage."""
        if stage.startswith("skip"):
            return 1
        return self.layout.shallow if stage == "shallow" else self.layout.units[LEVEL_OF_STAGE[stage]]

    def _stage(self, stage: str) -> nn.Module:
        width, units = self.layout.widths[LEVEL_OF_STAGE[stage]], self.units_of(stage)
        if "body" in self.spec.binarize:
            return Body(dataclasses.replace(self.spec, channels=width), units=units)
        return FullUnits(width, units)

    @property
    def reach(self) -> int:
        first, second, third = map(convolutions, self.layout.units)
        one, up, down = convolutions(1), interpolated, halved(1)
        decoder: list[Step] = [one, first, one, up, second, one, up, third]
        encoder: list[Step] = [third, down, second, down, first, convolutions(self.layout.shallow), one]
        return radius_of_steps([*decoder, *encoder], self.grid)

    @property
    def block_ends(self) -> list[nn.Module]:
        """The stages of units, without the single ones on the skip connections."""
        return [module for stage, module in self.body.items() if not stage.startswith("skip")]

    def skip(self, x: Tensor) -> Tensor:
        """Return the skip connection: the output if the layers added nothing."""
        return x

    def restore_whole(self, aligned: Tensor) -> Tensor:
        features = self.head_features(aligned)
        if not self.has_binary_head:
            features = F.leaky_relu(features, NEGATIVE_SLOPE)
        body, up = self.body, self.up
        x = body["shallow"](features)
        fine = body["encode1"](x)
        middle = body["encode2"](up["down1"](fine))
        coarse = body["decode3"](body["encode3"](up["down2"](middle)))
        middle = body["decode2"](up["up2"](coarse) + body["skip2"](middle))
        fine = body["decode1"](up["up1"](middle) + body["skip1"](fine)) + x
        # The skip connection is the residual of a binary tail, as in an SRResNet.
        if "tail" in self.spec.binarize and self.spec.unit.residual is not False:
            restored: Tensor = self.tail(fine, aligned)
        else:
            restored = self.tail(fine) + aligned
        return restored


def resampling(spec: NetworkSpec, widths: Sequence[int]) -> nn.ModuleDict:
    """Return the down and up convolutions of a :class:`UNet`."""
    make = spec.binary_unit if "up" in spec.binarize else FullUnit
    one, two, three = widths
    return nn.ModuleDict(
        {
            "down1": BRVEDown(make, one, two),
            "down2": BRVEDown(make, two, three),
            "up2": BRVEUp(make, three, two),
            "up1": BRVEUp(make, two, one),
        }
    )
