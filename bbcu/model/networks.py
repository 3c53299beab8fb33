"""Image restoration networks, full precision and binary from the same code, in four parts: head, body, up, tail."""

import functools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError, unknown
from bbcu.model.initialisation import INITIALISERS, Initialiser, initialise, small_normal, uniform, zeros
from bbcu.model.registry import create, errors_of_own
from bbcu.model.specs import PARTS, UnitSpec
from bbcu.model.units import KERNEL, UNITS, BinaryUnit, BitMemory, UnitShape

NEGATIVE_SLOPE = 0.1
"""Of every leaky ReLU of an SRResNet."""


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
        if self.initial not in INITIALISERS:
            raise ConfigError(f"network.initial: {unknown('initialiser', self.initial, INITIALISERS)}")

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
    the middle of the range.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        middle = 0.5 * spec.align
        shape = UnitShape(spec.colours, spec.channels, initial_weight=small_normal, initial_threshold=-middle)
        self.unit = spec.binary_unit(shape)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(x, self.spec.single_residual(repeat_channels(x, self.spec.channels)))
        return out


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """Repeat each channel in turn until there are ``channels``; the first channels fill what is left at the end.

    3 channels become 64 as 21 copies of each and one more of the first, as in the residual of the released BBCU-H.
    """
    repeated = x.repeat_interleave(channels // x.shape[1], dim=1)
    return torch.cat([repeated, x[:, : channels - repeated.shape[1]]], dim=1)


class Body(nn.Module):
    """Binary units in a row, with an identity around each, around each pair, or none."""

    def __init__(self, spec: NetworkSpec, *, bias: bool = False) -> None:
        super().__init__()
        self.residual = spec.unit.residual
        shape = UnitShape(spec.channels, spec.channels, bias=bias, initial_weight=INITIALISERS[spec.initial])
        units = [spec.binary_unit(shape) for _ in range(2 * spec.blocks)]
        self.units = nn.ModuleList(units)
        self.memory = BitMemory(len(units)) if spec.accumulate else None
        for unit in units:
            unit.set_memory(self.memory)

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
            self.memory.reset()
        return x


class FullBlock(nn.Module):
    """``x + conv(relu(conv(x)))``: a block of a full-precision SRResNet, without BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(channels, channels), Convolution(channels, channels)

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


# --- networks ---------------------------------------------------------------------------------------------------------


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


class SRResNet(RestorationNetwork):
    """The super-resolution network of the paper: head, body, upsampler, tail, and a bilinear skip connection.

    Input (batch, colours, height, width) in [0, 1], output ``scale`` times that size. BBCU-L is ``channels=64,
    blocks=16, binarize=("body",)``, BBCU-M ``("body", "up")``.
    Source: Xia et al., Basic Binary Convolution Unit, ICLR 2023, and its released network.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        binary = {part: part in spec.binarize for part in PARTS}
        self.head = BinaryHead(spec) if binary["head"] else Convolution(spec.colours, spec.channels)
        full_blocks = (FullBlock(spec.channels) for _ in range(spec.blocks))
        self.body = Body(spec) if binary["body"] else nn.Sequential(*full_blocks)
        self.up = Upsampler(spec)
        tail_shape = UnitShape(spec.channels, spec.colours, initial_weight=small_normal)
        self.tail = spec.binary_unit(tail_shape) if binary["tail"] else Convolution(spec.channels, spec.colours)

    @property
    def radius(self) -> int:
        """The radius of the receptive field, in pixels of the input."""
        sizes, reach = 1, 1.0 + 2 * self.spec.blocks
        for ratio in self.up.ratios:
            reach += 1 / sizes
            sizes *= ratio
        # Two more convolutions at the size of the output: the last of the upsampler and the tail.
        return math.ceil(reach + 2 / sizes)

    def skip(self, x: Tensor) -> Tensor:
        """Return the skip connection: the output if the layers added nothing."""
        return F.interpolate(x, scale_factor=float(self.spec.scale), mode="bilinear", align_corners=False)

    def restore(self, aligned: Tensor) -> Tensor:
        features = self.head_features(aligned)
        if not isinstance(self.head, BinaryHead):
            features = F.leaky_relu(features, NEGATIVE_SLOPE)
        features = self.up(self.body(features))
        skip = self.skip(aligned)
        # The skip connection is the residual of BBCU-T; the network has it even if units have no residuals.
        if "tail" in self.spec.binarize and self.spec.unit.residual is not False:
            restored: Tensor = self.tail(features, skip)
        else:
            restored = self.tail(features) + skip
        return restored


class DnCNN(RestorationNetwork):
    """The denoising network of the paper: head, body and tail, whose output is subtracted from the input.

    Input and output (batch, colours, height, width) in [0, 1]. The paper's 20 layers are ``blocks=9``. As in the
    released networks, a binary one has biases for gray images and none for colour; full precision always has them.
    Raises ConfigError for a scale other than 1 and for binary upsampling.
    Source: Zhang et al., Beyond a Gaussian Denoiser, TIP 2017; the released DnCNN_b and DnCNN3_b of BBCU.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        if spec.scale != 1:
            raise ConfigError(
                f"network=dncnn: its output has the size of its input, and the task's scale is {spec.scale}"
            )
        if "up" in spec.binarize:
            raise ConfigError("binarize: a DnCNN has no upsampling; its parts are head, body and tail")
        super().__init__(spec)
        bias = spec.colours == 1 or not spec.binarize
        binary = {part: part in spec.binarize for part in PARTS}
        full = functools.partial(Convolution, bias=bias, initial_weight=uniform, initial_bias=uniform)
        self.head = BinaryHead(spec) if binary["head"] else full(spec.colours, spec.channels)
        full_layers = (FullDenoisingUnit(spec.channels) for _ in range(2 * spec.blocks))
        self.body = Body(spec, bias=bias) if binary["body"] else nn.Sequential(*full_layers)
        tail_shape = UnitShape(spec.channels, spec.colours, bias=bias)
        self.tail = spec.binary_unit(tail_shape) if binary["tail"] else full(spec.channels, spec.colours)

    @property
    def radius(self) -> int:
        """The radius of the receptive field, in pixels."""
        return 2 * self.spec.blocks + 2

    def skip(self, x: Tensor) -> Tensor:
        """Return the skip connection: the output if the layers subtracted nothing."""
        return x

    def restore(self, aligned: Tensor) -> Tensor:
        features = self.head_features(aligned)
        if not isinstance(self.head, BinaryHead):
            features = F.relu(features)
        noise: Tensor = self.tail(self.body(features))
        return aligned - noise


SIDE = 32
"""The side of the picture with which a network of the user's is checked, in pixels."""

NETWORKS: dict[str, type[nn.Module]] = {"srresnet": SRResNet, "dncnn": DnCNN}


def assemble(name: str, spec: NetworkSpec) -> nn.Module:
    """Return the network by its name or the dotted path of a class that takes a NetworkSpec, without initial values.

    Raises ConfigError for an unknown name, and for a user's class that raises an error.
    """
    network: nn.Module = create("network.name", name, NETWORKS, nn.Module, spec)
    return network


def check_shape(name: str, network: nn.Module, spec: NetworkSpec) -> None:
    """Raise ConfigError unless a network of the user's, on meta, has parameters and enlarges a picture by the scale."""
    if name in NETWORKS:
        return
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"network.name={name}: it has no parameters to train")
    with errors_of_own("network.name", name), torch.no_grad():
        made = tuple(network(torch.empty(2, spec.colours, SIDE, SIDE, device="meta")).shape)
    wanted = (2, spec.colours, spec.scale * SIDE, spec.scale * SIDE)
    if made != wanted:
        raise ConfigError(f"network.name={name}: its output for {SIDE} x {SIDE} pixels must be {wanted}, and is {made}")


def build(name: str, spec: NetworkSpec, seed: int) -> nn.Module:
    """Return the network by its name or the dotted path of its class, with the initial values of ``seed``.

    In a user's own network, modules with an ``initial_weight`` or ``initial_bias`` get initial values that depend on
    the seed and their name. Raises ConfigError for an unknown name.
    """
    network = assemble(name, spec)
    initialise(network, seed)
    return network


def binary_units(network: nn.Module) -> list[BinaryUnit]:
    """Return all binary units of a network, in the order of its parts."""
    return [module for module in network.modules() if isinstance(module, BinaryUnit)]
