"""Image restoration networks around binary units, part by part: head, body, up, tail."""

import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.initialisation import Initialiser, initialise, small_normal
from bbcu.units import KERNEL, BinaryUnit, UnitSpec

COLOURS = 3
NEGATIVE_SLOPE = 0.1


class Convolution(nn.Conv2d):
    """A full-precision 3x3 convolution with a bias that starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, initial_weight: Initialiser = small_normal) -> None:
        super().__init__(in_channels, out_channels, KERNEL, padding=KERNEL // 2)
        self.initial_weight = initial_weight
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class Body(nn.ModuleList):
    """Binary units in a row, with an identity around each, around each pair, or none."""

    def __init__(self, channels: int, blocks: int, spec: UnitSpec) -> None:
        super().__init__(BinaryUnit(channels, channels, spec) for _ in range(2 * blocks))
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        units = list(self)
        for first, second in zip(units[::2], units[1::2], strict=True):
            if self.residual == "block":
                x = second(first(x), x)
            elif self.residual:
                x = first(x, x)
                x = second(x, x)
            else:
                x = second(first(x))
        return x


class Upsampler(nn.Module):
    """Convolution and pixel shuffle, once for x2 and x3 and twice for x4, then one convolution at the new size."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        ratios = (2, 2) if scale == 4 else (scale,)
        self.stages = nn.ModuleList(Convolution(channels, channels * ratio**2) for ratio in ratios)
        self.ratios = ratios
        self.refine = Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        for stage, ratio in zip(self.stages, self.ratios, strict=True):
            x = F.leaky_relu(F.pixel_shuffle(stage(x), ratio), NEGATIVE_SLOPE)
        return F.leaky_relu(self.refine(x), NEGATIVE_SLOPE)


class SRResNet(nn.Module):
    """The super-resolution network of the paper: head, body, upsampling, tail, and a bilinear skip from the input.

    Input (batch, 3, height, width) in [0, 1], output (batch, 3, scale * height, scale * width). ``align`` is the
    residual alignment k: the input is multiplied by it and the output divided. A BBCU-L has ``channels=64, blocks=16``.
    Source: Xia et al., Basic Binary Convolution Unit, ICLR 2023, and its released network.
    """

    def __init__(
        self, scale: int, channels: int, blocks: int, spec: UnitSpec, align: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.scale, self.align = scale, align
        self.head = Convolution(COLOURS, channels)
        self.body = Body(channels, blocks, spec)
        self.up = Upsampler(channels, scale)
        self.tail = Convolution(channels, COLOURS)
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        aligned = self.align * x
        features = self.body(F.leaky_relu(self.head(aligned), NEGATIVE_SLOPE))
        skip = F.interpolate(aligned, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        restored: Tensor = (self.tail(self.up(features)) + skip) / self.align
        return restored
