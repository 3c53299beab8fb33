"""Image restoration networks, full precision and binary from the same code, part by part: head, body, up, tail."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError, unknown
from bbcu.model.initialisation import Initialiser, initialise, small_normal, uniform, xavier, zeros
from bbcu.model.registry import look_up
from bbcu.model.specs import PARTS, UnitSpec
from bbcu.model.units import KERNEL, UNITS, BinaryUnit, BitMemory, UnitShape

NEGATIVE_SLOPE = 0.1

INITIALS: dict[str, Initialiser] = {"torch": uniform, "xavier": xavier}


@dataclass(frozen=True)
class NetworkSpec:
    """What decides a network's layout.

    ``scale`` is the size of the output over that of the input, ``colours`` the channels of both. The body has
    ``blocks`` pairs of convolutions, ``channels`` wide. ``binarize`` names the parts that are binary, made of units of
    ``unit``. ``align`` is the residual alignment k: the input is multiplied by it and the output divided, 1 is off.
    ``unit_class`` and ``initial`` name the class of the units and how the latent weights of a binary body start;
    ``accumulate`` gives a binary body the bit memory of BAM, and ``standardise`` the network the data normalisation of
    BTM.
    """

    scale: int
    channels: int
    blocks: int
    unit: UnitSpec = field(default_factory=UnitSpec)
    align: float = 1.0
    binarize: tuple[str, ...] = ("body",)
    colours: int = 3
    unit_class: str = "binary"
    initial: str = "torch"
    accumulate: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        for part in self.binarize:
            if part not in PARTS:
                raise ConfigError(f"binarize: {unknown('part', part, PARTS)}")
        if self.initial not in INITIALS:
            raise ConfigError(f"network.initial={self.initial}: {unknown('start', self.initial, INITIALS)}")

    def binary_unit(self, shape: UnitShape) -> BinaryUnit:
        unit: BinaryUnit = look_up("network.unit", self.unit_class, UNITS, BinaryUnit)(shape, self.unit)
        return unit

    def residual(self, x: Tensor) -> Tensor | None:
        """What a unit outside the body adds: ``x``, or nothing where there are no residuals.

        Such a unit stands alone, so an identity around a pair is one around it.
        """
        return None if self.unit.residual is False else x


class Convolution(nn.Conv2d):
    """A full-precision 3x3 convolution that says how it starts."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        initial_weight: Initialiser = small_normal,
        initial_bias: Initialiser = zeros,
    ) -> None:
        super().__init__(in_channels, out_channels, KERNEL, padding=KERNEL // 2, bias=bias)
        self.initial_weight, self.initial_bias = initial_weight, initial_bias


def in_full_precision(head: nn.Module, x: Tensor) -> Tensor:
    """``head(x)`` without mixed precision.

    Its output, times k, starts the stream that every unit adds to and takes the sign of. There bf16 has steps of half
    and more, where a unit's window is two wide.
    """
    if not torch.amp.is_autocast_available(x.device.type):
        features: Tensor = head(x)
    else:
        with torch.autocast(x.device.type, enabled=False):
            features = head(x)
    return features


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """``x`` with each channel repeated in a row until there are ``channels``; what is missing is filled from the first.

    Three channels become 64 as 22 copies of the first (the last of them at the very end) and 21 of the others, the
    residual of the released BBCU-H; the rule goes on to every width.
    """
    whole = channels // x.shape[1]
    repeated = x.repeat_interleave(whole, dim=1)
    return torch.cat([repeated, x[:, : channels - repeated.shape[1]]], dim=1)


class BinaryHead(nn.Module):
    """BBCU-H: a unit from the colours to the width, whose residual repeats the input's channels.

    An image is nowhere negative, so a threshold of zero would make every bit +1; it starts in the middle of the range.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        middle = -0.5 * spec.align
        shape = UnitShape(spec.colours, spec.channels, initial_weight=small_normal, first_threshold=middle)
        self.unit = spec.binary_unit(shape)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(x, self.spec.residual(repeat_channels(x, self.spec.channels)))
        return out


class Body(nn.Module):
    """Binary units in a row, with an identity around each, around each pair, or none."""

    def __init__(self, spec: NetworkSpec, *, bias: bool = False) -> None:
        super().__init__()
        self.residual = spec.unit.residual
        shape = UnitShape(spec.channels, spec.channels, bias=bias, initial_weight=INITIALS[spec.initial])
        units = [spec.binary_unit(shape) for _ in range(2 * spec.blocks)]
        self.units = nn.ModuleList(units)
        self.memory = BitMemory(len(units)) if spec.accumulate else None
        for unit in units:
            unit.share_memory_of(self.memory)

    def forward(self, x: Tensor) -> Tensor:
        units = list(self.units)
        for first, second in zip(units[::2], units[1::2], strict=True):
            if self.residual == "block":
                x = second(first(x), x)
            elif self.residual:
                x = first(x, x)
                x = second(x, x)
            else:
                x = second(first(x))
        if self.memory is not None:
            self.memory.forget()
        return x


class FullBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, the block of a full-precision SRResNet without BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(channels, channels), Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class Upsampler(nn.Module):
    """Convolution and pixel shuffle, once for x2 and x3 and twice for x4, then one convolution at the new size.

    Full precision: a leaky ReLU after each. Binary (BBCU-U and a unit): the upsampling units bring their activation
    along, and their residual is nearest-neighbour interpolation, written as repeated channels before the shuffle.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec, self.binary = spec, "up" in spec.binarize
        self.ratios = (2, 2) if spec.scale == 4 else (spec.scale,)
        self.stages = nn.ModuleList(self._convolution(spec.channels * ratio**2) for ratio in self.ratios)
        self.refine = self._convolution(spec.channels)

    def _convolution(self, out_channels: int) -> nn.Module:
        if self.binary:
            return self.spec.binary_unit(UnitShape(self.spec.channels, out_channels, initial_weight=small_normal))
        return Convolution(self.spec.channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for stage, ratio in zip(self.stages, self.ratios, strict=True):
            if self.binary:
                x = F.pixel_shuffle(stage(x, self.spec.residual(x.repeat_interleave(ratio**2, dim=1))), ratio)
            else:
                x = F.leaky_relu(F.pixel_shuffle(stage(x), ratio), NEGATIVE_SLOPE)
        refined = self.refine(x, self.spec.residual(x)) if self.binary else self.refine(x)
        return F.leaky_relu(refined, NEGATIVE_SLOPE)


class Standardisation(nn.Module):
    """``x`` less the mean of the training inputs and over their standard deviation, and back; neutral until set.

    Both are numbers per colour, kept in the state, so that a checkpoint restores them.
    Source: the data normalisation of BTM (Jiang et al., AAAI 2021).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, colours: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, colours, 1, 1))
        self.register_buffer("deviation", torch.ones(1, colours, 1, 1))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Take over statistics of the training inputs, (colours,) each, on [0, 1]."""
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.deviation.copy_(deviation.reshape(self.deviation.shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def back(self, x: Tensor) -> Tensor:
        return x * self.deviation + self.mean


class SRResNet(nn.Module):
    """The super-resolution network of the paper: head, body, upsampling, tail, and a bilinear skip from the input.

    Input (batch, colours, height, width) in [0, 1], output ``scale`` times that size. BBCU-L has ``channels=64,
    blocks=16, binarize=("body",)``, BBCU-M ``("body", "up")``.
    Source: Xia et al., Basic Binary Convolution Unit, ICLR 2023, and its released network.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.standardisation = Standardisation(spec.colours) if spec.standardise else None
        binary = {part: part in spec.binarize for part in PARTS}
        self.head = BinaryHead(spec) if binary["head"] else Convolution(spec.colours, spec.channels)
        self.body = (
            Body(spec) if binary["body"] else nn.Sequential(*(FullBlock(spec.channels) for _ in range(spec.blocks)))
        )
        self.up = Upsampler(spec)
        tail_shape = UnitShape(spec.channels, spec.colours, initial_weight=small_normal)
        self.tail = spec.binary_unit(tail_shape) if binary["tail"] else Convolution(spec.channels, spec.colours)

    @property
    def radius(self) -> int:
        """How many input pixels around a pixel its output depends on."""
        sizes, reach = 1, 1.0 + 2 * self.spec.blocks
        for ratio in self.up.ratios:
            reach += 1 / sizes
            sizes *= ratio
        # The refining convolution and the tail look around them at the size of the output; the skip looks no further.
        return math.ceil(reach + 2 / sizes)

    def skip(self, x: Tensor) -> Tensor:
        """What the network puts out where its layers add nothing."""
        return F.interpolate(x, scale_factor=float(self.spec.scale), mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.standardisation is not None:
            return self.standardisation.back(self._restore(self.standardisation(x)))
        return self._restore(x)

    def _restore(self, x: Tensor) -> Tensor:
        aligned = self.spec.align * x
        if isinstance(self.head, BinaryHead):
            features = self.head(aligned)
        else:
            features = F.leaky_relu(in_full_precision(self.head, aligned), NEGATIVE_SLOPE)
        features = self.up(self.body(features))
        skip = self.skip(aligned)
        # BBCU-T takes the network's skip for its residual; without residuals the skip still belongs to the network.
        if isinstance(self.tail, BinaryUnit) and self.spec.unit.residual is not False:
            restored: Tensor = self.tail(features, skip)
        else:
            restored = self.tail(features) + skip
        return restored / self.spec.align


class FullDenoisingUnit(nn.Sequential):
    """Convolution, BatchNorm and ReLU: a layer of a full-precision DnCNN's body."""

    def __init__(self, channels: int) -> None:
        convolution = Convolution(channels, channels, initial_weight=uniform, initial_bias=uniform)
        super().__init__(convolution, nn.BatchNorm2d(channels, eps=1e-4, momentum=0.9), nn.ReLU())


class DnCNN(nn.Module):
    """The denoising network of the paper: head, body, tail, and what comes out is taken from the input.

    Input and output (batch, colours, height, width) in [0, 1]. Twenty layers are ``blocks=9``. The released binary
    networks have biases for gray pictures and none for colour, and so have these; full precision always has them.
    Source: Zhang et al., Beyond a Gaussian Denoiser, TIP 2017; the released DnCNN_b and DnCNN3_b of BBCU.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        if spec.scale != 1:
            raise ConfigError(
                f"network=dncnn: its output is as large as its input, and the task enlarges by {spec.scale}"
            )
        if "up" in spec.binarize:
            raise ConfigError("binarize: a DnCNN has no upsampling; its parts are head, body and tail")
        self.spec = spec
        self.standardisation = Standardisation(spec.colours) if spec.standardise else None
        bias = spec.colours == 1 or not spec.binarize
        starts: dict[str, Initialiser] = {"initial_weight": uniform, "initial_bias": uniform}
        if "head" in spec.binarize:
            self.head: nn.Module = BinaryHead(spec)
        else:
            self.head = Convolution(spec.colours, spec.channels, bias=bias, **starts)
        if "body" in spec.binarize:
            self.body: nn.Module = Body(spec, bias=bias)
        else:
            self.body = nn.Sequential(*(FullDenoisingUnit(spec.channels) for _ in range(2 * spec.blocks)))
        if "tail" in spec.binarize:
            self.tail: nn.Module = spec.binary_unit(UnitShape(spec.channels, spec.colours, bias=bias))
        else:
            self.tail = Convolution(spec.channels, spec.colours, bias=bias, **starts)

    @property
    def radius(self) -> int:
        """How many input pixels around a pixel its output depends on."""
        return 2 * self.spec.blocks + 2

    def skip(self, x: Tensor) -> Tensor:
        """What the network puts out where its layers add nothing."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        if self.standardisation is not None:
            return self.standardisation.back(self._restore(self.standardisation(x)))
        return self._restore(x)

    def _restore(self, x: Tensor) -> Tensor:
        aligned = self.spec.align * x
        if isinstance(self.head, BinaryHead):
            features = self.head(aligned)
        else:
            features = F.relu(in_full_precision(self.head, aligned))
        noise: Tensor = self.tail(self.body(features))
        return (aligned - noise) / self.spec.align


NETWORKS: dict[str, type[nn.Module]] = {"srresnet": SRResNet, "dncnn": DnCNN}


def assemble(name: str, spec: NetworkSpec) -> nn.Module:
    """The network called ``name``, or at that dotted path, before anything is drawn.

    A network of the user's own takes a NetworkSpec. Raises ConfigError for a name that does not exist.
    """
    network: nn.Module = look_up("network.name", name, NETWORKS, nn.Module)(spec)
    return network


def build(name: str, spec: NetworkSpec, seed: int) -> nn.Module:
    """The network called ``name``, or at that dotted path, with the initial values of ``seed``.

    Those modules of a user's own network that have an ``initial_weight`` or ``initial_bias`` start by the seed and
    their name. Raises ConfigError for a name that does not exist.
    """
    network = assemble(name, spec)
    initialise(network, seed)
    return network


def binary_units(network: nn.Module) -> list[BinaryUnit]:
    """Every binary unit of a network, in the order of its parts."""
    return [module for module in network.modules() if isinstance(module, BinaryUnit)]
