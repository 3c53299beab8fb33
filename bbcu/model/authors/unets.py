"""Shape-changing units and U-Nets of other authors."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.model.activations import RPReLU
from bbcu.model.authors.state import Kind, State
from bbcu.model.initialisation import uniform
from bbcu.model.parts import NetworkSpec
from bbcu.model.resampling import (
    BiSRDown,
    BiSRUp,
    BRVEDown,
    BRVEUp,
    CPDown,
    CPUp,
    CSFusion,
    FusionDown,
    FusionUp,
    MakeUnit,
    halves,
    with_identity,
)
from bbcu.model.specs import ALIGN_PER_CHANNEL, UnitSpec
from bbcu.model.unets import DRUNet, UNet, UNetLayout, resampling
from bbcu.model.units import BinaryUnit, UnitShape

Build = Callable[[State, Mapping[str, Any]], nn.Module]
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns of this package's names with what stands for them in the authors'; each is applied in turn."""

BISR = UnitSpec(threshold="affine", surrogate="tanh")
"""The unit of BiSR-Conv."""

BRVE = UnitSpec(rescale="statistics")
"""The unit of BRVE, with its factors per channel."""


def unit_maker(spec: UnitSpec) -> MakeUnit:
    """Return what builds binary units of these levels."""
    return lambda shape: BinaryUnit(shape, spec)


def kind_of(build: Build, rules: Rules, constants: tuple[str, ...] = ()) -> Kind:
    """Return the kind whose authors' names follow from this package's by ``rules``."""

    def names(state: State, given: Mapping[str, Any]) -> dict[str, str]:
        return {name: renamed(name, rules) for name in build(state, given).state_dict()}

    return Kind(build, names, constants)


def renamed(name: str, rules: Rules) -> str:
    """Apply each rule in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def numbered(state: State, prefix: str) -> int:
    """Count the modules ``prefix0``, ``prefix1``, ... of a state."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


# --- names of units ---------------------------------------------------------------------------------------------------


def activation_rules(ours: str, theirs: str) -> Rules:
    """The names of an RPReLU."""
    return [
        (rf"{ours}\.shift_in$", rf"{theirs}.pr_bias0.bias"),
        (rf"{ours}\.slope$", rf"{theirs}.pr_prelu.weight"),
        (rf"{ours}\.shift_out$", rf"{theirs}.pr_bias1.bias"),
    ]


BISR_UNIT: Rules = [
    (r"threshold\.slope$", "move0.k"),
    (r"threshold\.shift$", "move0.b"),
    (r"surrogate\.sharpness$", "binary_activation.beta"),
    (r"(^|\.)weight$", r"\1binary_conv.weight"),
    *activation_rules("activation", "relu"),
]

BRVE_UNIT: Rules = [
    (r"threshold$", "move0.bias"),
    (r"rescale\.across\.", "daca.conv."),
    (r"projection\.", "conv_skip."),
    (r"(unit|units\.\d+)\.(weight|bias)$", r"\1.binary_conv.\2"),
    *activation_rules("activation", "relu"),
    (r"(^|\.)unit\.", r"\1"),
]

DIFFUSION_UNIT: Rules = [
    (r"threshold$", "TaR.dynamic_move_0.bias"),
    (r"\.weight$", ".binary_conv.weight"),
    *activation_rules("activation", "TaA.dynamic_relu_0"),
]

FUSION: Rules = [
    (r"(^|\.)fusion\.", r"\1"),
    (r"(^|\.)first\.", r"\1biconv_1."),
    (r"(^|\.)second\.", r"\1biconv_2."),
]

BISR_PAIR: Rules = [*BISR_UNIT, *FUSION]
CP_PAIR: Rules = [*DIFFUSION_UNIT, (r"first\.", "biconv1."), (r"second\.", "biconv2.")]


def width_of(state: State, name: str) -> int:
    """Return the input channels of a convolution."""
    return state[name].shape[1]


# --- BiSRNet ----------------------------------------------------------------------------------------------------------


class BiSRBlock(nn.Module):
    """``x + f(layer_norm(x))``: fusions widen C channels to 4C, a unit of C groups follows, fusions narrow again."""

    def __init__(self, make: MakeUnit, channels: int) -> None:
        super().__init__()
        c = channels
        self.norm = nn.LayerNorm(c)
        self.widen = nn.ModuleList([FusionUp(make, c, kernel=1), FusionUp(make, 2 * c, kernel=1)])
        self.before, self.after = RPReLU(4 * c), RPReLU(4 * c)
        self.unit = make(UnitShape(4 * c, 4 * c, groups=c))
        self.narrow = nn.ModuleList([FusionDown(make, 2 * c, kernel=1), FusionDown(make, c, kernel=1)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for fusion in self.widen:
            y = fusion(y)
        y = self.after(with_identity(self.unit, self.before(y)))
        for fusion in self.narrow:
            y = fusion(y)
        out: Tensor = x + y
        return out


class BiSRBody(nn.Module):
    """The U-Net of BiSRNet: three levels of ``channels``, twice and four times as many, with these numbers of blocks.

    No convolution changes a width, so every unit keeps its identity. Height and width are multiples of 4.
    Source: Cai et al., Binarized Spectral Compressive Imaging, NeurIPS 2023, and its released code.
    """

    def __init__(self, make: MakeUnit, channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels]

        def stage(level: int) -> nn.Sequential:
            return nn.Sequential(*(BiSRBlock(make, widths[level]) for _ in range(blocks[level])))

        self.embedding, self.mapping = (make(UnitShape(channels, channels)) for _ in range(2))
        self.encoder = nn.ModuleList([stage(0), stage(1)])
        self.down = nn.ModuleList([BiSRDown(make, widths[0]), BiSRDown(make, widths[1])])
        self.bottleneck = stage(2)
        self.up = nn.ModuleList([BiSRUp(make, widths[1]), BiSRUp(make, widths[0])])
        self.join = nn.ModuleList([FusionDown(make, width, kernel=1) for width in (widths[1], widths[0])])
        self.decoder = nn.ModuleList([stage(1), stage(0)])

    def forward(self, x: Tensor) -> Tensor:
        y = with_identity(self.embedding, x)
        skips = []
        for encode, down in zip(self.encoder, self.down, strict=True):
            skips.append(encode(y))
            y = down(skips[-1])
        y = self.bottleneck(y)
        for up, join, decode in zip(self.up, self.join, self.decoder, strict=True):
            y = decode(join(torch.cat([up(y), skips.pop()], dim=1)))
        return with_identity(self.mapping, y) + x


class BiSRNet(nn.Module):
    """BiSRNet for a measurement and a mask of ``channels`` spectral bands each, side by side as the input.

    Input (batch, 2 * channels, height, width), output (batch, channels, height, width). Sides are padded to multiples
    of 8 by reflection, and the output is cropped.
    """

    def __init__(self, make: MakeUnit, channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.head, self.tail = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        for convolution in (self.join, self.head, self.tail):
            convolution.initial_weight = convolution.initial_bias = uniform  # type: ignore[assignment]
        self.body = BiSRBody(make, channels, blocks)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="reflect")
        features = self.head(self.join(padded))
        restored: Tensor = self.tail(self.body(features)) + features
        return restored[:, :, :height, :width]


BISR_BODY: Rules = [
    *BISR_PAIR,
    (r"norm\.binary_conv\.", "norm."),
    (r"widen\.([01])", r"fn.net.\1"),
    *activation_rules("before", "fn.net.2"),
    (r"\.unit\.", ".fn.net.3."),
    *activation_rules("after", "fn.net.4"),
    (r"narrow\.0", "fn.net.5"),
    (r"narrow\.1", "fn.net.6"),
    (r"^encoder\.(\d)\.", r"encoder_layers.\1.0.blocks."),
    (r"^down\.(\d)\.", r"encoder_layers.\1.1."),
    (r"^bottleneck\.", "bottleneck.blocks."),
    (r"^up\.(\d)\.", r"decoder_layers.\1.0."),
    (r"^join\.(\d)\.", r"decoder_layers.\1.1."),
    (r"^decoder\.(\d)\.", r"decoder_layers.\1.2.blocks."),
]

EMBEDDING = "embedding.binary_conv.weight"
"""The first tensor of a BiSRNet's body that tells its width."""


def body_prefix(state: State) -> str:
    """Return what the names of the body begin with: nothing, if the state is that of the body alone."""
    for name in state:
        if name.endswith(EMBEDDING):
            return name.removesuffix(EMBEDDING)
    raise KeyError(EMBEDDING)


def around_body(state: State) -> dict[str, str]:
    """Return this package's names of the tensors around a body, and the authors', which are told by shape and order.

    One 1x1 convolution, and two of 3x3, of which the first is before the body and the second after it.
    """
    others = [name for name in state if not name.startswith(body_prefix(state))]
    found: dict[str, str] = {}
    for name in others:
        value = state[name]
        if value.dim() == 4 and value.shape[2:] == (1, 1):
            found |= {"join.weight": name, "join.bias": name.removesuffix("weight") + "bias"}
        elif value.dim() == 4:
            found["tail.weight" if "head.weight" in found else "head.weight"] = name
    return found


def build_bisrnet(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """Return the body of a BiSRNet, or the whole network if the state has convolutions around the body."""
    prefix = body_prefix(state)
    stages = ("encoder_layers.0.0.blocks.", "encoder_layers.1.0.blocks.", "bottleneck.blocks.")
    blocks = [numbered(state, prefix + stage) for stage in stages]
    network = BiSRNet if prefix else BiSRBody
    return network(unit_maker(BISR), width_of(state, prefix + EMBEDDING), blocks)


def bisrnet_names(state: State, constants: Mapping[str, Any]) -> dict[str, str]:
    """Return the authors' name of each tensor of a BiSRNet or its body."""
    network, prefix = build_bisrnet(state, constants), body_prefix(state)
    body = network.body if isinstance(network, BiSRNet) else network
    ours = "body." if isinstance(network, BiSRNet) else ""
    inside = {ours + name: prefix + renamed(name, BISR_BODY) for name in body.state_dict()}
    return inside | (around_body(state) if prefix else {})


# --- BRVE -------------------------------------------------------------------------------------------------------------

BRVE_NETWORK: Rules = [
    *BRVE_UNIT,
    (r"^head\.", "feat_extract.main.0."),
    (r"^tail\.", "conv_out."),
    (r"^body\.shallow\.units\.", "feat_extract.main.2."),
    (r"^body\.skip(\d)\.units\.0\.", r"unet.skip_conv\1."),
    (r"^body\.(en|de)code(\d)\.units\.", r"unet.\1coder_level\2."),
    (r"^up\.down1\.", "unet.down12."),
    (r"^up\.down2\.", "unet.down23."),
    (r"^up\.up2\.", "unet.up32.conv."),
    (r"^up\.up1\.", "unet.up21.conv."),
]


def build_brve_resampling(kind: type[BRVEDown] | type[BRVEUp], prefix: str) -> Build:
    """Return what builds one down or up unit from its state."""

    def build(state: State, constants: Mapping[str, Any]) -> nn.Module:
        outputs, inputs = state[f"{prefix}binary_conv.weight"].shape[:2]
        return kind(unit_maker(UnitSpec()), inputs, outputs)

    return build


def build_brve_unet(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """Return the image network; its down and up units have no factors per channel. ``align`` is 130 at 64 channels."""
    first, second, third = (width_of(state, f"unet.encoder_level{level}.0.binary_conv.weight") for level in (1, 2, 3))
    one, two, three = (numbered(state, f"unet.encoder_level{level}.") for level in (1, 2, 3))
    layout = UNetLayout((first, second, third), (one, two, three), numbered(state, "feat_extract.main.2."))
    colours = width_of(state, "feat_extract.main.0.weight")
    align = float(constants.get("align", ALIGN_PER_CHANNEL * first))
    spec = NetworkSpec(1, first, one, BRVE, align, ("body", "up"), colours)
    return brve_network(spec, layout)


def brve_network(spec: NetworkSpec, layout: UNetLayout) -> UNet:
    """Return a U-Net whose down and up units have no rescale, as in the release."""
    network = UNet(spec, layout)
    network.up = resampling(replace(spec, unit=replace(spec.unit, rescale="none")), layout.widths)
    return network


# --- BI-DiffSR --------------------------------------------------------------------------------------------------------


class FusionOfHalves(nn.Module):
    """A CS-Fusion of the first and the second half of its input's channels."""

    def __init__(self, make: MakeUnit, channels: int) -> None:
        super().__init__()
        self.fusion = CSFusion(make, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fusion(*halves(x))
        return out


def build_pair(kind: Callable[[MakeUnit, int], nn.Module], spec: UnitSpec, first: str, times: int = 1) -> Build:
    """Return what builds a pair of units for ``times`` the channels of the unit that the authors call ``first``."""

    def build(state: State, constants: Mapping[str, Any]) -> nn.Module:
        return kind(unit_maker(spec), times * width_of(state, f"{first}.binary_conv.weight"))

    return build


# --- DRUNet -----------------------------------------------------------------------------------------------------------


class WithNoiseLevel(nn.Module):
    """A DRUNet whose input has the channel of the noise level already; sides are multiples of 8."""

    def __init__(self, network: DRUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor) -> Tensor:
        restored: Tensor = self.network.tail(self.network.features(noisy))
        return restored


def build_drunet(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """Return the full-precision network, with the widths of the state."""
    widths = [width_of(state, f"{stage}.0.res.0.weight") for stage in ("m_down1", "m_down2", "m_down3", "m_body")]
    spec = NetworkSpec(1, widths[0], numbered(state, "m_body."), binarize=(), colours=state["m_tail.weight"].shape[0])
    return WithNoiseLevel(DRUNet(spec, widths))


def drunet_names(state: State, constants: Mapping[str, Any]) -> dict[str, str]:
    """Return the authors' name of each tensor; the last of a level on the way down halves, the first up doubles."""
    blocks = numbered(state, "m_body.")
    rules: Rules = [
        (r"^network\.", ""),
        (r"^(head|tail)\.", r"m_\1."),
        (r"^body\.encode(\d)\.", r"m_down\1."),
        (r"^body\.middle\.", "m_body."),
        (r"^body\.decode(\d)\.(\d+)", lambda match: f"m_up{match[1]}.{int(match[2]) + 1}"),
        (r"^up\.down(\d)\.", rf"m_down\g<1>.{blocks}."),
        (r"^up\.up(\d)\.", r"m_up\1.0."),
        (r"\.first\.", ".res.0."),
        (r"\.second\.", ".res.2."),
    ]
    return {name: renamed(name, rules) for name in build_drunet(state, constants).state_dict()}


KINDS: dict[str, Kind] = {
    "bisr_fuse_up": kind_of(build_pair(functools.partial(FusionUp, kernel=1), BISR, "biconv_1"), BISR_PAIR),
    "bisr_fuse_down": kind_of(build_pair(functools.partial(FusionDown, kernel=1), BISR, "biconv_1"), BISR_PAIR),
    "bisr_down": kind_of(build_pair(BiSRDown, BISR, "biconv_1"), BISR_PAIR),
    "bisr_up": kind_of(build_pair(BiSRUp, BISR, "biconv_1"), BISR_PAIR),
    "bisrnet": Kind(build_bisrnet, bisrnet_names),
    "brve_down": kind_of(build_brve_resampling(BRVEDown, ""), BRVE_UNIT),
    "brve_up": kind_of(build_brve_resampling(BRVEUp, "conv."), [*BRVE_UNIT, (r"^", "conv.")]),
    "brve_unet": kind_of(build_brve_unet, BRVE_NETWORK, ("align",)),
    "cp_down": kind_of(build_pair(CPDown, UnitSpec(), "biconv1", times=2), CP_PAIR),
    "cp_up": kind_of(build_pair(CPUp, UnitSpec(), "biconv1"), CP_PAIR),
    "cs_fusion": kind_of(build_pair(FusionOfHalves, UnitSpec(), "biconv_1"), [*DIFFUSION_UNIT, *FUSION]),
    "drunet": Kind(build_drunet, drunet_names),
}
"""Every kind of this module by its name."""
