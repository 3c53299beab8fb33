"""Super-resolution networks of other authors: EDSR, RCAN and RDN in full precision, and those of E2FIF.

The sizes follow from the names and shapes in the state. A released state also has the shift by the colours' means, as a
1x1 convolution at each end; it must have the numbers that ours has.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bbcu.errors import ConfigError
from bbcu.model.authors.state import Kind, State
from bbcu.model.parts import NetworkSpec
from bbcu.model.specs import UnitSpec
from bbcu.model.super_resolution import EDSR, RCAN, RDN, MeanShift, ShuffleUpsampler, Trunk

Constants = Mapping[str, Any]
Names = dict[str, str]

CONSTANTS = ("align", "scale")
"""``align`` is the range of the images of the authors' network. ``scale`` follows from the state, and is compared."""

RANGE = 255.0
"""The range of the images if ``align`` is not given."""

E2FIF = UnitSpec(
    residual=True,
    bn="post",
    act="first",
    act_fn="leaky",
    threshold=False,
    surrogate="quadratic",
    weight="sign",
)

SHIFTS = {"sub_mean": -1, "add_mean": 1}
"""The convolutions of a released state that shift by the colours' means, and the signs of their biases."""

UNUSED = tuple(f"{name}.*" for name in SHIFTS)
"""The tensors that are compared and take no part in the computation."""

NORM = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"

# --- sizes ------------------------------------------------------------------------------------------------------------


def number_of(state: State, pattern: str) -> int:
    """Return one more than the largest index of the names that match; the pattern's group is the index."""
    found = (re.match(pattern, name) for name in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def ratio(larger: int, smaller: int) -> int:
    """Return by how much a pixel shuffle enlarges ``larger`` channels to ``smaller``; raises ConfigError for none."""
    root = math.isqrt(larger // smaller)
    if root**2 * smaller != larger:
        raise ConfigError(f"a pixel shuffle cannot turn {larger} channels into {smaller}")
    return root


def spec_of(state: State, constants: Constants, head: str, scale: int, **sizes: Any) -> NetworkSpec:
    """Return the spec of a network with this head and scale; raises ConfigError if the constant is another scale."""
    if constants.get("scale", scale) != scale:
        raise ConfigError(f"scale={constants['scale']}: the state is that of a network of scale {scale}")
    channels, colours = state[f"{head}.weight"].shape[:2]
    align = float(constants.get("align", RANGE))
    check_shifts(state, colours, align)
    return NetworkSpec(scale=scale, channels=channels, colours=colours, align=align, **sizes)


def check_shifts(state: State, colours: int, align: float) -> None:
    """Raise ConfigError if the shifts by the colours' means were trained, as a released RCAN's may be."""
    for name, sign in SHIFTS.items():
        if f"{name}.weight" not in state:
            continue
        weight, bias = state[f"{name}.weight"].double().flatten(1), state[f"{name}.bias"].double()
        expected = sign * align * MeanShift(colours).mean.double().flatten()
        is_fixed = torch.allclose(weight, torch.eye(colours, dtype=torch.float64), atol=1e-5)
        if not is_fixed or not torch.allclose(bias, expected, rtol=1e-5):
            raise ConfigError(f"{name}: it has other numbers than the means of DIV2K times align={align:g}")


def light_scale(state: State, head: str, tail: str) -> int:
    """Return the scale of a light tail."""
    return ratio(state[f"{tail}.weight"].shape[0], state[f"{head}.weight"].shape[1])


def stages_of(state: State, head: str, stages: str) -> tuple[int, list[str]]:
    """Return the scale, and the prefixes of the upsampling convolutions: every second module of ``stages``."""
    channels = state[f"{head}.weight"].shape[0]
    prefixes = [f"{stages}.{index}" for index in range(0, number_of(state, re.escape(stages) + r"\.(\d+)\."), 2)]
    wide = [prefix for prefix in prefixes if state[f"{prefix}.weight"].shape[0] > channels]
    return math.prod(ratio(state[f"{prefix}.weight"].shape[0], channels) for prefix in wide), wide


# --- names ------------------------------------------------------------------------------------------------------------


def layer(ours: str, theirs: str, *, bias: bool = True) -> Names:
    """Return the names of a convolution's weight and bias."""
    return {f"{ours}.{name}": f"{theirs}.{name}" for name in ("weight", "bias")[: 1 + bias]}


def norm(state: State, ours: str, theirs: str) -> Names:
    """Return the names of a BatchNorm after the convolution of the unit ``ours``."""
    present = (*NORM, COUNTER) if f"{theirs}.{COUNTER}" in state else NORM
    return {f"{ours}.bn_post.{name}": f"{theirs}.{name}" for name in present}


def unit(state: State, ours: str, theirs: str, *, bias: bool = False) -> Names:
    """Return the names of a unit of E2FIF's: its convolution is ``theirs.0`` and its BatchNorm ``theirs.1``."""
    return {**layer(ours, f"{theirs}.0", bias=bias), **norm(state, ours, f"{theirs}.1")}


def joined(parts: Iterable[Names]) -> Names:
    return {ours: theirs for part in parts for ours, theirs in part.items()}


def stages(prefixes: Iterable[str]) -> Names:
    """Return the names of the upsampling convolutions."""
    return joined(layer(f"up.stages.{stage}", prefix) for stage, prefix in enumerate(prefixes))


# --- EDSR -------------------------------------------------------------------------------------------------------------


def edsr(state: State, constants: Constants) -> nn.Module:
    blocks = number_of(state, r"body\.(\d+)\.body\.")
    scale, _ = stages_of(state, "head.0", "tail.0")
    return EDSR(spec_of(state, constants, "head.0", scale, blocks=blocks, binarize=()))


def edsr_names(state: State, constants: Constants) -> Names:
    blocks = number_of(state, r"body\.(\d+)\.body\.")
    _, prefixes = stages_of(state, "head.0", "tail.0")
    body = (
        layer(f"body.blocks.{index}.{ours}", f"body.{index}.body.{theirs}")
        for index in range(blocks)
        for ours, theirs in (("first", 0), ("second", 2))
    )
    ends = layer("body.end", f"body.{blocks}"), layer("tail", "tail.1")
    return joined((layer("head", "head.0"), *body, stages(prefixes), *ends))


def e2fif_blocks(state: State) -> int:
    return number_of(state, r"body\.(\d+)\.conv1\.")


def edsr_e2fif(state: State, constants: Constants) -> nn.Module:
    head = "head.0.conv1.0"
    scale, blocks = light_scale(state, head, "tail.0"), e2fif_blocks(state)
    return EDSR(spec_of(state, constants, head, scale, blocks=blocks, unit=E2FIF, tail="light"), bias=True)


def edsr_pairs(state: State) -> Names:
    """Return the names of the head and of the pairs of units of E2FIF's EDSR."""
    pairs = (
        unit(state, f"body.blocks.units.{2 * index + place}", f"body.{index}.conv{place + 1}", bias=True)
        for index in range(e2fif_blocks(state))
        for place in range(2)
    )
    return joined((layer("head", "head.0.conv1.0"), *pairs))


def edsr_e2fif_names(state: State, constants: Constants) -> Names:
    return {**edsr_pairs(state), **layer("tail", "tail.0")}


def edsr_up(*, residual: bool) -> Callable[[State, Constants], nn.Module]:
    """Return the builder of E2FIF's EDSR with a binary upsampling unit, with its residual or without.

    It is for one stage of upsampling, x2 and x3. The release has no convolution at the end of the body.
    """

    def build(state: State, constants: Constants) -> nn.Module:
        head = "head.0.conv1.0"
        channels, colours = state[f"{head}.weight"].shape[:2]
        if tuple(state["tail.0.conv2.weight"].shape[:2]) != (colours, channels):
            raise ConfigError("tail.0.conv2 is not the last convolution: the tail has more than one stage")
        scale = ratio(state["tail.0.conv1.weight"].shape[0], channels)
        sizes = {"blocks": e2fif_blocks(state), "unit": E2FIF, "binarize": ("body", "up")}
        spec = spec_of(state, constants, head, scale, **sizes)
        network = EDSR(spec, bias=True)
        assert isinstance(network.body, Trunk)
        network.body.end = None
        network.up = ShuffleUpsampler(spec, bias=True, residual=residual)
        return network

    return build


def edsr_up_names(state: State, constants: Constants) -> Names:
    up = {**layer("up.stages.0", "tail.0.conv1"), **norm(state, "up.stages.0", "tail.0.bn1")}
    return {**edsr_pairs(state), **up, **layer("tail", "tail.0.conv2")}


# --- RCAN -------------------------------------------------------------------------------------------------------------


def rcan_sizes(state: State) -> dict[str, int]:
    """Return the groups, and the blocks of each."""
    groups = number_of(state, r"body\.(\d+)\.body\.")
    return {"groups": groups, "blocks": number_of(state, r"body\.\d+\.body\.(\d+)\.") - 1}


def reduction(state: State, attention: str) -> int:
    hidden, channels = state[f"{attention}.conv_du.0.weight"].shape[:2]
    return int(channels // hidden)


def rcan(state: State, constants: Constants) -> nn.Module:
    scale, _ = stages_of(state, "head.0", "tail.0")
    spec = spec_of(state, constants, "head.0", scale, binarize=(), **rcan_sizes(state))
    return RCAN(spec, reduction=reduction(state, "body.0.body.0.body.3"))


def rcan_e2fif(state: State, constants: Constants) -> nn.Module:
    scale = light_scale(state, "head.0", "tail.0")
    spec = spec_of(state, constants, "head.0", scale, unit=E2FIF, tail="light", **rcan_sizes(state))
    return RCAN(spec, reduction=reduction(state, "body.0.body.0.ca"), bias=True, parallel=True)


def rcan_blocks(state: State) -> Iterable[tuple[str, str]]:
    """Yield our prefix and theirs for each block."""
    sizes = rcan_sizes(state)
    for group in range(sizes["groups"]):
        for block in range(sizes["blocks"]):
            yield f"body.blocks.{group}.blocks.{block}", f"body.{group}.body.{block}"


def group_ends(state: State) -> Iterable[tuple[str, str]]:
    """Yield our prefix and theirs for the last layer of each group."""
    sizes = rcan_sizes(state)
    for group in range(sizes["groups"]):
        yield f"body.blocks.{group}.end", f"body.{group}.body.{sizes['blocks']}"


def attention(ours: str, theirs: str) -> Names:
    layers = (("down", 0), ("up", 2))
    return joined(layer(f"{ours}.attention.{name}", f"{theirs}.conv_du.{index}") for name, index in layers)


def rcan_names(state: State, constants: Constants) -> Names:
    _, prefixes = stages_of(state, "head.0", "tail.0")
    blocks = (
        {
            **layer(f"{ours}.first", f"{theirs}.body.0"),
            **layer(f"{ours}.second", f"{theirs}.body.2"),
            **attention(ours, f"{theirs}.body.3"),
        }
        for ours, theirs in rcan_blocks(state)
    )
    ends = (layer(ours, theirs) for ours, theirs in group_ends(state))
    last = layer("body.end", f"body.{rcan_sizes(state)['groups']}"), layer("tail", "tail.1")
    return joined((layer("head", "head.0"), *blocks, *ends, stages(prefixes), *last))


def rcan_e2fif_names(state: State, constants: Constants) -> Names:
    blocks = (
        {
            **unit(state, f"{ours}.pair.units.0", f"{theirs}.conv1", bias=True),
            **unit(state, f"{ours}.pair.units.1", f"{theirs}.conv2", bias=True),
            **attention(ours, f"{theirs}.ca"),
        }
        for ours, theirs in rcan_blocks(state)
    )
    ends = (unit(state, ours, f"{theirs}.conv1") for ours, theirs in group_ends(state))
    return joined((layer("head", "head.0"), *blocks, *ends, layer("tail", "tail.0")))


# --- RDN --------------------------------------------------------------------------------------------------------------


def rdn_sizes(state: State) -> dict[str, int]:
    """Return the dense blocks, and the convolutions of each."""
    return {
        "blocks": number_of(state, r"RDBs\.(\d+)\."),
        "layers": number_of(state, r"RDBs\.\d+\.convs\.(\d+)\."),
    }


def rdn(state: State, constants: Constants) -> nn.Module:
    scale, _ = stages_of(state, "SFENet1", "UPNet")
    constants = {"align": 1.0, **constants}
    return RDN(spec_of(state, constants, "SFENet1", scale, binarize=(), **rdn_sizes(state)))


def rdn_e2fif(state: State, constants: Constants) -> nn.Module:
    scale = light_scale(state, "SFENet1", "UPNet.0")
    return RDN(spec_of(state, constants, "SFENet1", scale, unit=E2FIF, tail="light", **rdn_sizes(state)))


def dense_layers(state: State) -> Iterable[tuple[str, str]]:
    """Yield our prefix and theirs for each convolution of the body but the 3x3 ones of dense blocks."""
    yield "body.start", "SFENet2"
    for block in range(rdn_sizes(state)["blocks"]):
        yield f"body.blocks.{block}.fuse", f"RDBs.{block}.LFF"
    yield from (("body.fuse", "GFF.0"), ("body.end", "GFF.1"))


def dense_convolutions(state: State) -> Iterable[tuple[str, str]]:
    """Yield our prefix and theirs for each 3x3 convolution of the dense blocks."""
    sizes = rdn_sizes(state)
    for block in range(sizes["blocks"]):
        for place in range(sizes["layers"]):
            yield f"body.blocks.{block}.layers.{place}", f"RDBs.{block}.convs.{place}.conv.0"


def rdn_names(state: State, constants: Constants) -> Names:
    _, prefixes = stages_of(state, "SFENet1", "UPNet")
    body = (layer(ours, theirs) for ours, theirs in (*dense_layers(state), *dense_convolutions(state)))
    last = number_of(state, r"UPNet\.(\d+)\.") - 1
    return joined((layer("head", "SFENet1"), *body, stages(prefixes), layer("tail", f"UPNet.{last}")))


def rdn_e2fif_names(state: State, constants: Constants) -> Names:
    pairs = (*dense_layers(state), *dense_convolutions(state))
    body = (unit(state, ours, f"{theirs}.conv1") for ours, theirs in pairs)
    return joined((layer("head", "SFENet1"), *body, layer("tail", "UPNet.0")))


KINDS: dict[str, Kind] = {
    "edsr": Kind(edsr, edsr_names, CONSTANTS, UNUSED),
    "edsr_e2fif": Kind(edsr_e2fif, edsr_e2fif_names, CONSTANTS, UNUSED),
    "edsr_binary_up": Kind(edsr_up(residual=False), edsr_up_names, CONSTANTS, UNUSED),
    "edsr_repeat_up": Kind(edsr_up(residual=True), edsr_up_names, CONSTANTS, UNUSED),
    "rcan": Kind(rcan, rcan_names, CONSTANTS, UNUSED),
    "rcan_e2fif": Kind(rcan_e2fif, rcan_e2fif_names, CONSTANTS, UNUSED),
    "rdn": Kind(rdn, rdn_names, CONSTANTS),
    "rdn_e2fif": Kind(rdn_e2fif, rdn_e2fif_names, CONSTANTS),
}
