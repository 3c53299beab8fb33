"""The parts of restoration networks: head, body, up and tail, full precision and binary from the same code."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError, unknown
from bbcu.model.initialisation import INITIALISERS, Initialiser, small_normal, uniform, zeros
from bbcu.model.registry import create
from bbcu.model.rescales import repeat_channels
from bbcu.model.specs import PARTS, UnitSpec
from bbcu.model.units import KERNEL, UNITS, BinaryUnit, BitMemory, UnitShape

NEGATIVE_SLOPE = 0.1
"""Of every leaky ReLU of an SRResNet."""


TAILS = ("full", "light")
"""The tails of a network: convolutions and pixel shuffles up to the size of the output, or a single pair of them."""


@dataclass(frozen=True)
class NetworkSpec:
    """The layout of a network. Raises ConfigError for a part or an initialiser that does not exist.

    - ``scale``: size of the output over that of the input. ``colours``: channels of both.
    - ``channels``, ``blocks``: width of the body, and its number of pairs of convolutions.
    - ``unit``: the levels of the binary units. ``unit_class``: their class, "binary" or a dotted path.
    - ``align``: residual alignment k; the input is multiplied by it and the output divided. 1 is off.
    - ``binarize``: the parts that are binary.
    - ``initial``: how the latent weights of a binary body start, "torch" or "xavier".
    - ``accumulate``: whether a binary body has the :class:`BitMemory` of BAM.
    - ``standardise``: whether the network has the :class:`Standardisation` of BTM.
    - ``noise_level``: what a DRUNet is told about the degradation, from 0 (none) to 1.
    - ``groups``: the groups of an RCAN, each of ``blocks`` blocks. ``layers``: the convolutions of a dense block of an
      RDN. ``tail``: "full", or "light" for the tail of E2FIF, in EDSR, RCAN and RDN.
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
    groups: int = 10
    layers: int = 8
    tail: str = "full"
    noise_level: float = 0.0

    def __post_init__(self) -> None:
        for part in self.binarize:
            if part not in PARTS:
                raise ConfigError(f"binarize: {unknown('part', part, PARTS)}")
        if self.initial not in INITIALISERS:
            raise ConfigError(f"network.initial: {unknown('initialiser', self.initial, INITIALISERS)}")
        if self.tail not in TAILS:
            raise ConfigError(f"network.tail: {unknown('tail', self.tail, TAILS)}")

    def binary_unit(self, shape: UnitShape) -> BinaryUnit:
        """Return a new unit; raises ConfigError if its class or a level does not exist."""
        unit: BinaryUnit = create("network.unit", self.unit_class, UNITS, BinaryUnit, shape, self.unit)
        return unit

    def single_residual(self, x: Tensor) -> Tensor | None:
        """Return the residual of a unit outside the body: ``x``, or None without residuals.

        ``residual="block"`` counts as True there, as these units do not come in pairs.
        """
        return None if self.unit.residual is False else x


# --- parts ------------------------------------------------------------------------------------------------------------


class Convolution(nn.Conv2d):
    """A full-precision 3x3 convolution with its initialisers."""

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


class BinaryHead(nn.Module):
    """BBCU-H: a unit from the colours to the width, whose residual repeats the input's channels.

    An image has no negative values, so with a threshold of zero every sign would be +1; the threshold starts at minus
    the ``middle`` of the range.
    """

    def __init__(self, spec: NetworkSpec, *, initial_weight: Initialiser = small_normal, middle: float = 0.5) -> None:
        super().__init__()
        self.spec = spec
        start = -middle * spec.align
        shape = UnitShape(spec.colours, spec.channels, initial_weight=initial_weight, initial_threshold=start)
        self.unit = spec.binary_unit(shape)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(x, self.spec.single_residual(repeat_channels(x, self.spec.channels)))
        return out


class Body(nn.Module):
    """Binary units in a row, with an identity around each, around each pair, or none.

    There are ``units`` of them, or two for each block. A last one without a partner has an identity of its own, unless
    there are none, and is not the first of a pair.
    """

    def __init__(self, spec: NetworkSpec, *, bias: bool = False, units: int | None = None) -> None:
        super().__init__()
        self.spec, self.residual = spec, spec.unit.residual
        initial, count = INITIALISERS[spec.initial], 2 * spec.blocks if units is None else units
        shapes = [
            UnitShape(
                spec.channels,
                spec.channels,
                bias=bias,
                initial_weight=initial,
                first=place % 2 == 0 and place + 1 < count,
            )
            for place in range(count)
        ]
        built = [spec.binary_unit(shape) for shape in shapes]
        self.units = nn.ModuleList(built)
        self.memory = BitMemory(len(built)) if spec.accumulate else None
        for unit in built:
            unit.set_memory(self.memory)

    def forward(self, x: Tensor) -> Tensor:
        units = list(self.units)
        for first, second in zip(units[::2], units[1::2], strict=False):
            if self.residual == "block":
                x = second(first(x), x)
            elif self.residual:
                x = first(x, x)
                x = second(x, x)
            else:
                x = second(first(x))
        if len(units) % 2:
            x = units[-1](x, self.spec.single_residual(x))
        if self.memory is not None:
            self.memory.reset()
        return x


class FullBlock(nn.Module):
    """``x + conv(relu(conv(x)))``: a block of a full-precision SRResNet or EDSR, without BatchNorm."""

    def __init__(self, channels: int, convolution: Callable[[int, int], nn.Module] = Convolution) -> None:
        super().__init__()
        self.first, self.second = convolution(channels, channels), convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class FullDenoisingUnit(nn.Sequential):
    """Convolution, BatchNorm and ReLU: a layer of a full-precision DnCNN's body."""

    def __init__(self, channels: int) -> None:
        convolution = Convolution(channels, channels, initial_weight=uniform, initial_bias=uniform)
        super().__init__(convolution, nn.BatchNorm2d(channels, eps=1e-4, momentum=0.9), nn.ReLU())


class Upsampler(nn.Module):
    """Convolution and pixel shuffle, once for x2 and x3 and twice for x4, then one convolution at the new size.

    In full precision a leaky ReLU follows each. If binary (BBCU-U and a unit), the upsampling units use their own
    activation, and their residual is nearest-neighbour interpolation, written as repeated channels before the shuffle.
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
                x = F.pixel_shuffle(stage(x, self.spec.single_residual(x.repeat_interleave(ratio**2, dim=1))), ratio)
            else:
                x = F.leaky_relu(F.pixel_shuffle(stage(x), ratio), NEGATIVE_SLOPE)
        refined = self.refine(x, self.spec.single_residual(x)) if self.binary else self.refine(x)
        return F.leaky_relu(refined, NEGATIVE_SLOPE)


class Standardisation(nn.Module):
    """Subtract the mean of the training inputs and divide by their standard deviation; the identity until it is set.

    Both are numbers per colour in the state dict, so that a checkpoint restores them.
    Source: the data normalisation of BTM (Jiang et al., AAAI 2021).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, colours: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, colours, 1, 1))
        self.register_buffer("deviation", torch.ones(1, colours, 1, 1))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the statistics of the training inputs, (colours,) each, for values in [0, 1]."""
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.deviation.copy_(deviation.reshape(self.deviation.shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def inverse(self, x: Tensor) -> Tensor:
        """Undo :meth:`forward`."""
        return x * self.deviation + self.mean


class RestorationNetwork(nn.Module):
    """Base of the networks below: alignment, and standardisation if the spec asks for it, around :meth:`restore`."""

    head: nn.Module
    body: nn.Module
    tail: nn.Module

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.standardisation = Standardisation(spec.colours) if spec.standardise else None

    def forward(self, x: Tensor) -> Tensor:
        if self.standardisation is None:
            return self.restore(self.spec.align * x) / self.spec.align
        return self.standardisation.inverse(self.restore(self.spec.align * self.standardisation(x)) / self.spec.align)

    @property
    def radius(self) -> int | None:
        """The radius of the receptive field in pixels of the input; None if a unit or layer averages over the picture.

        Such a picture cannot be cut into tiles, and a patch has other averages than the whole picture.
        """
        return self.reach if all(unit.is_local for unit in binary_units(self)) else None

    @property
    def reach(self) -> int | None:
        """The radius if every unit is local; None if the network itself averages over the picture."""
        raise NotImplementedError

    @property
    def block_ends(self) -> list[nn.Module]:
        """The modules whose outputs are those of the body's blocks, in order: as many whether it is binary or not."""
        if isinstance(self.body, Body):
            return list(self.body.units[1::2])
        assert isinstance(self.body, nn.Sequential)
        blocks = list(self.body)
        return blocks[1::2] if isinstance(blocks[0], FullDenoisingUnit) else blocks

    def restore(self, aligned: Tensor) -> Tensor:
        """Return the output for an input that is multiplied by ``align``, on the same scale."""
        raise NotImplementedError

    def head_features(self, aligned: Tensor) -> Tensor:
        """Return the head's output, in full precision without autocast if the head is.

        It starts the sum that every unit adds to and takes the sign of. Multiplied by a large k it would have steps of
        half and more in bf16, and a surrogate's window is only two wide.
        """
        if isinstance(self.head, BinaryHead) or not torch.amp.is_autocast_available(aligned.device.type):
            features: Tensor = self.head(aligned)
        else:
            with torch.autocast(aligned.device.type, enabled=False):
                features = self.head(aligned)
        return features


def require_full_tail(name: str, spec: NetworkSpec) -> None:
    """Raise ConfigError for a tail that the network ``name`` does not have."""
    if spec.tail != "full":
        raise ConfigError(f"network.tail={spec.tail}: {name} has the full tail only; edsr, rcan and rdn have others")


def binary_units(network: nn.Module) -> list[BinaryUnit]:
    """Return all binary units of a network, in the order of its parts."""
    return [module for module in network.modules() if isinstance(module, BinaryUnit)]
