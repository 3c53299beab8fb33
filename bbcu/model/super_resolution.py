"""EDSR, RCAN and RDN: super-resolution networks that later binary methods are compared on.

Each is full precision with ``binarize=()`` and binary in any of its parts, with two tails. ``tail="full"`` is that of
the published networks. ``tail="light"`` is that of E2FIF: one convolution at the size of the input and one pixel
shuffle, and no convolution at the end of the body of EDSR and RCAN. All start at torch's initial values, as released.
"""

import dataclasses
import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.initialisation import INITIALISERS, uniform
from bbcu.model.parts import BinaryHead, Body, Convolution, FullBlock, NetworkSpec, RestorationNetwork
from bbcu.model.units import KERNEL, BinaryUnit, UnitShape, full_precision

SCALES = (2, 3, 4)

MEANS = (0.4488, 0.4371, 0.4040)
"""Mean of each colour of DIV2K, in [0, 1]. Source: the released code of EDSR and RCAN."""

GREY_MEAN = 0.5
"""The same for pictures of another number of channels. Source: the released code of E2FIF."""

REDUCTION = 16
"""The channels of an RCAN over those inside its channel attention."""

GATE_SLOPE = 0.01
"""Of the leaky ReLU in the channel attention of a binary RCAN, as in the released code of E2FIF."""

# --- layers -----------------------------------------------------------------------------------------------------------

UniformConvolution = functools.partial(Convolution, initial_weight=uniform, initial_bias=uniform)
"""A full-precision 3x3 convolution with torch's initial values."""


class Pointwise(nn.Conv2d):
    """A full-precision 1x1 convolution with torch's initial values."""

    initial_weight = initial_bias = staticmethod(uniform)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)


def layer_of(
    spec: NetworkSpec, part: str, channels: tuple[int, int], *, kernel: int = KERNEL, first: bool = False
) -> nn.Module:
    """Return a unit if ``part`` is binary, else a convolution; ``channels`` are those of its input and output."""
    if part in spec.binarize:
        initial = INITIALISERS[spec.initial] if part == "body" else uniform
        return spec.binary_unit(UnitShape(*channels, initial_weight=initial, kernel=kernel, first=first))
    return Pointwise(*channels) if kernel == 1 else UniformConvolution(*channels)


def applied(layer: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
    """Return the output of a layer; a unit gets the residual, and a convolution has none."""
    out: Tensor = layer(x, residual) if isinstance(layer, BinaryUnit) else layer(x)
    return out


def without_residual(spec: NetworkSpec) -> NetworkSpec:
    """Return the spec of units that get no residual: without the learnt number of ``residual="scaled"``."""
    if spec.unit.residual != "scaled":
        return spec
    return dataclasses.replace(spec, unit=dataclasses.replace(spec.unit, residual=True))


class MeanShift(nn.Module):
    """Subtract the mean of each colour; it is fixed, and in the state dict."""

    mean: Tensor

    def __init__(self, colours: int) -> None:
        super().__init__()
        means = MEANS if colours == len(MEANS) else (GREY_MEAN,) * colours
        self.register_buffer("mean", torch.tensor(means).reshape(1, colours, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean

    def inverse(self, x: Tensor) -> Tensor:
        """Undo :meth:`forward`."""
        return x + self.mean


class ShuffleUpsampler(nn.Module):
    """Convolution and pixel shuffle, once for x2 and x3 and twice for x4, with no activation of the network's.

    If binary, the residual of a unit is nearest-neighbour interpolation, written as repeated channels before the
    shuffle, unless ``residual`` is False. ``bias`` is whether its convolution has one.
    """

    def __init__(self, spec: NetworkSpec, *, bias: bool = False, residual: bool = True) -> None:
        super().__init__()
        self.spec, self.residual = spec, residual
        self.ratios = (2, 2) if spec.scale == 4 else (spec.scale,)
        self.stages = nn.ModuleList(self._stage(spec.channels * ratio**2, bias=bias) for ratio in self.ratios)

    def _stage(self, out_channels: int, *, bias: bool) -> nn.Module:
        if "up" in self.spec.binarize:
            return self.spec.binary_unit(UnitShape(self.spec.channels, out_channels, bias=bias))
        return UniformConvolution(self.spec.channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for stage, ratio in zip(self.stages, self.ratios, strict=True):
            residual = self.spec.single_residual(x.repeat_interleave(ratio**2, dim=1)) if self.residual else None
            x = F.pixel_shuffle(applied(stage, x, residual), ratio)
        return x


# --- the network around a body ----------------------------------------------------------------------------------------


class SuperResolutionNetwork(RestorationNetwork):
    """Base of the networks below: head, a body with a skip around it, upsampler and tail.

    Input (batch, colours, height, width) in [0, 1], output ``scale`` times that size. The output is the picture itself:
    there is no skip from the input to the output. Unless BTM's standardisation does it, a network that is ``centred``
    subtracts the mean of each colour before the alignment and adds it to the output. Raises ConfigError for a scale
    other than 2, 3 and 4, and for binary upsampling with a light tail, which has none.
    """

    centred = True

    def __init__(self, spec: NetworkSpec, body: nn.Module) -> None:
        name = type(self).__name__.lower()
        if spec.scale not in SCALES:
            raise ConfigError(f"network={name}: it enlarges by 2, 3 or 4, and the task's scale is {spec.scale}")
        is_light = spec.tail == "light"
        if is_light and "up" in spec.binarize:
            raise ConfigError("binarize: a light tail has no upsampling; with network.tail=light, leave out up")
        super().__init__(spec)
        self.shift = MeanShift(spec.colours) if self.centred and not spec.standardise else None
        if "head" in spec.binarize:
            self.head = BinaryHead(spec, initial_weight=uniform, middle=0.0 if self.centred else 0.5)
        else:
            self.head = UniformConvolution(spec.colours, spec.channels)
        self.body = body
        self.up = None if is_light else ShuffleUpsampler(spec)
        out_channels = spec.colours * spec.scale**2 if is_light else spec.colours
        self.tail = layer_of(without_residual(spec), "tail", (spec.channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is None:
            return super().forward(x)
        return self.shift.inverse(super().forward(self.shift(x)))

    def restore(self, aligned: Tensor) -> Tensor:
        features = self.head_features(aligned)
        features = features + self.body(features)
        if self.up is None:
            return F.pixel_shuffle(self.tail(features), self.spec.scale)
        restored: Tensor = self.tail(self.up(features))
        return restored

    @property
    def tail_reach(self) -> float:
        """The radius of the layers after the body."""
        return 1.0 if self.up is None else 1.0 + 0.5 * (self.spec.scale == 4) + 1 / self.spec.scale


class Trunk(nn.Module):
    """Blocks in a row and a last layer, which is a unit with its residual if the body is binary.

    ``has_end`` is whether there is a last layer.
    """

    def __init__(self, spec: NetworkSpec, blocks: nn.Module, *, has_end: bool) -> None:
        super().__init__()
        self.spec, self.blocks = spec, blocks
        self.end = layer_of(spec, "body", (spec.channels, spec.channels)) if has_end else None

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(x)
        return features if self.end is None else applied(self.end, features, self.spec.single_residual(features))


def refuse_memory(spec: NetworkSpec, name: str) -> None:
    """Raise ConfigError if the spec asks for BAM's memory, which ``name`` cannot have."""
    if spec.accumulate:
        raise ConfigError(f"network.accumulate (method=bam): the units of an {name} are not in one row with one memory")


# --- EDSR -------------------------------------------------------------------------------------------------------------


class EDSR(SuperResolutionNetwork):
    """A head, ``blocks`` blocks, a convolution, a skip around both, an upsampler without activation, and a tail.

    EDSR-baseline is ``channels=64, blocks=16``. A binary body is :class:`Body` and a single unit. ``bias`` is whether
    the convolutions of the body's pairs have one, as those of E2FIF do, where a BatchNorm follows and it does nothing.
    Source: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017, and its released
    code; Song et al., E2FIF, TIP 2023.
    """

    def __init__(self, spec: NetworkSpec, *, bias: bool = False) -> None:
        if "body" in spec.binarize:
            blocks: nn.Module = Body(spec, bias=bias)
        else:
            blocks = nn.Sequential(*(FullBlock(spec.channels, UniformConvolution) for _ in range(spec.blocks)))
        super().__init__(spec, Trunk(spec, blocks, has_end=spec.tail == "full"))

    @property
    def reach(self) -> int:
        return math.ceil(1 + 2 * self.spec.blocks + (self.spec.tail == "full") + self.tail_reach)

    @property
    def block_ends(self) -> list[nn.Module]:
        assert isinstance(self.body, Trunk)
        blocks = self.body.blocks
        return list(blocks.units[1::2]) if isinstance(blocks, Body) else list(blocks.children())


# --- RCAN -------------------------------------------------------------------------------------------------------------


class ChannelAttention(nn.Module):
    """Multiply each channel by a number from 0 to 1 that depends on the means of all channels over the picture.

    Always in full precision. ``hidden`` are the channels between its two layers, and ``slope`` is that of the leaky
    ReLU between them.
    Source: Zhang et al., Image Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV 2018.
    """

    def __init__(self, channels: int, hidden: int, slope: float) -> None:
        super().__init__()
        self.down, self.up, self.slope = Pointwise(channels, hidden), Pointwise(hidden, channels), slope

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            means = x.mean((2, 3), keepdim=True, dtype=self.down.weight.dtype)
            gates = torch.sigmoid(self.up(F.leaky_relu(self.down(means), self.slope)))
        return x * gates


class AttentionBlock(nn.Module):
    """A block of an RCAN: ``x + attention(conv(relu(conv(x))))``, or ``attention(pair(x))`` if it is binary.

    A binary pair has its residuals inside, and none around the attention, as in E2FIF. With ``parallel`` its second
    unit reads the block's input instead of the first one's output, as in the release of E2FIF, maybe by mistake.
    """

    def __init__(self, spec: NetworkSpec, hidden: int, *, bias: bool, parallel: bool) -> None:
        super().__init__()
        channels, self.parallel = spec.channels, parallel
        if "body" in spec.binarize:
            self.pair: Body | None = Body(dataclasses.replace(spec, blocks=1), bias=bias)
            self.attention = ChannelAttention(channels, hidden, GATE_SLOPE)
        else:
            self.pair = None
            self.first, self.second = UniformConvolution(channels, channels), UniformConvolution(channels, channels)
            self.attention = ChannelAttention(channels, hidden, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.pair is None:
            added: Tensor = self.attention(self.second(F.relu(self.first(x))))
            return x + added
        if self.parallel:
            first, second = self.pair.units
            features: Tensor = second(x, first(x, x))
        else:
            features = self.pair(x)
        weighted: Tensor = self.attention(features)
        return weighted


class Group(Trunk):
    """A group of an RCAN: blocks, a last layer, and a skip around them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class RCAN(SuperResolutionNetwork):
    """EDSR with ``groups`` groups of ``blocks`` blocks that have channel attention.

    The published one is ``channels=64, groups=10, blocks=20``; E2FIF's has 5 blocks. ``reduction`` is the number of
    channels over that inside the attention, which has at least one. ``bias`` is as in :class:`EDSR`, ``parallel`` as in
    :class:`AttentionBlock`. Raises ConfigError for ``parallel`` unless units have an identity each, and for a bit
    memory.
    Source: Zhang et al., Image Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV 2018, and its
    released code; Song et al., E2FIF, TIP 2023.
    """

    def __init__(
        self, spec: NetworkSpec, *, reduction: int = REDUCTION, bias: bool = False, parallel: bool = False
    ) -> None:
        refuse_memory(spec, "RCAN")
        if parallel and spec.unit.residual not in (True, "scaled"):
            raise ConfigError("residual: the units of parallel pairs need an identity each")
        hidden = max(1, spec.channels // reduction)

        def group() -> Group:
            blocks = (AttentionBlock(spec, hidden, bias=bias, parallel=parallel) for _ in range(spec.blocks))
            return Group(spec, nn.Sequential(*blocks), has_end=True)

        groups = nn.Sequential(*(group() for _ in range(spec.groups)))
        super().__init__(spec, Trunk(spec, groups, has_end=spec.tail == "full"))

    @property
    def reach(self) -> None:
        return None

    @property
    def block_ends(self) -> list[nn.Module]:
        return [module for module in self.body.modules() if isinstance(module, AttentionBlock)]


# --- RDN --------------------------------------------------------------------------------------------------------------


class DenseBlock(nn.Module):
    """``layers`` convolutions, each of all outputs so far, and a 1x1 convolution of them all, which is added to ``x``.

    Each adds ``channels`` channels. A ReLU follows each in full precision. If binary, only the first convolution, which
    keeps the width, has its input as residual, and that of the 1x1 unit is the last convolution's output. For
    ``act="first"`` every unit but the 1x1 one is a first.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec, channels, plain = spec, spec.channels, without_residual(spec)
        layers = [
            layer_of(plain if place else spec, "body", (channels * (place + 1), channels), first=True)
            for place in range(spec.layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.fuse = layer_of(spec, "body", (channels * (spec.layers + 1), channels), kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        outputs, is_binary = [x], "body" in self.spec.binarize
        for place, layer in enumerate(self.layers):
            residual = None if place else self.spec.single_residual(x)
            y = applied(layer, torch.cat(outputs, dim=1), residual)
            outputs.append(y if is_binary else F.relu(y))
        return x + applied(self.fuse, torch.cat(outputs, dim=1), self.spec.single_residual(outputs[-1]))


class DenseBody(nn.Module):
    """A convolution, dense blocks in a row, and a 1x1 and a 3x3 convolution of the outputs of all.

    If binary, the last block's output is added at the end, as in E2FIF, unless units have no residuals.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec, channels = spec, spec.channels
        self.start = layer_of(spec, "body", (channels, channels))
        self.blocks = nn.ModuleList(DenseBlock(spec) for _ in range(spec.blocks))
        self.fuse = layer_of(without_residual(spec), "body", (channels * spec.blocks, channels), kernel=1)
        self.end = layer_of(spec, "body", (channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = applied(self.start, x, self.spec.single_residual(x))
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        fused = self.fuse(torch.cat(outputs, dim=1))
        y = applied(self.end, fused, self.spec.single_residual(fused))
        last = self.spec.single_residual(x) if "body" in self.spec.binarize else None
        return y if last is None else y + last


class RDN(SuperResolutionNetwork):
    """``blocks`` dense blocks of ``layers`` convolutions; the means of the colours are not subtracted.

    The published one is ``channels=64, blocks=16, layers=8``; E2FIF's has 8 blocks. In a binary one
    ``residual="block"`` is the same network as True. Raises ConfigError for a bit memory and without blocks.
    Source: Zhang et al., Residual Dense Network for Image Super-Resolution, CVPR 2018, and the code released with EDSR;
    Song et al., E2FIF, TIP 2023.
    """

    centred = False

    def __init__(self, spec: NetworkSpec) -> None:
        refuse_memory(spec, "RDN")
        if spec.blocks < 1:
            raise ConfigError(f"blocks={spec.blocks}: an RDN fuses the outputs of its blocks, so it has at least one")
        super().__init__(spec, DenseBody(spec))

    @property
    def reach(self) -> int:
        return math.ceil(3 + self.spec.blocks * self.spec.layers + self.tail_reach)

    @property
    def block_ends(self) -> list[nn.Module]:
        assert isinstance(self.body, DenseBody)
        return list(self.body.blocks)
