"""The networks that the authors of BBCU released: their checkpoints read as our networks, and ours written as theirs.

Released are BBCU-L and BBCU-M at scales 2, 3 and 4, the colour DnCNN_b and the gray DnCNN3_b, of any width and depth. A
checkpoint holds latent weights in full precision; which network it is shows in its names and shapes. The alignment k is
no part of it and has to be known.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.errors import BbcuError
from bbcu.model.networks import Body, DnCNN, NetworkSpec, SRResNet
from bbcu.model.specs import UnitSpec
from bbcu.model.units import KERNEL, BinaryUnit

RELEASED_ALIGN = 130.0
"""The residual alignment of the released networks, which are 64 channels wide."""

UNIT_NAMES = {
    "threshold": "move0.bias",
    "weight": "binary_conv.weight",
    "bias": "binary_conv.bias",
    "activation.shift_in": "relu.pr_bias0.bias",
    "activation.slope": "relu.pr_prelu.weight",
    "activation.shift_out": "relu.pr_bias1.bias",
}
"""Our names of what a unit holds, and the released ones in their order."""

CONVOLUTION_NAMES = {"weight": "weight", "bias": "bias"}

SHOWN_NAMES = 4
"""How many names an error message lists of each kind."""

SAME_FUNCTION = {"weight": ("l1", "l1mag")}
"""Levels of a unit beside the reference's that differ from it in the gradient alone; every surrogate does."""


class CheckpointError(BbcuError):
    """A checkpoint that is none of a released network, or a network that has no released form."""


class UnpairedBody(Body):
    """A body without its last unit: a DnCNN of an odd number of layers, which is not made of pairs."""

    def __init__(self, spec: NetworkSpec, *, bias: bool) -> None:
        super().__init__(spec, bias=bias)
        del self.units[-1]

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x, x)
        return x


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path, align: float = RELEASED_ALIGN) -> nn.Module:
    """The network of a checkpoint file, in evaluation mode; nothing but tensors is unpickled.

    Raises CheckpointError, which names the path, for a file that cannot be read or is no released checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # Over a file of another kind torch stumbles in every way, a KeyError and an IndexError among them.
        raise CheckpointError(f"{path}: no checkpoint, or one that holds more than tensors") from error
    try:
        return from_released_state(state, align)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def from_released_state(state: Mapping[str, Any], align: float = RELEASED_ALIGN) -> nn.Module:
    """Our network, in evaluation mode, that computes what the released one does under ``state``.

    ``state`` has the tensors by name, or has such a mapping under ``params``. The two networks differ in one point: the
    released sign of a zero is 0, ours is +1. A ``blocks`` of the network's spec is rounded up where a DnCNN has an odd
    number of units. Raises CheckpointError for a state that fits no released network.
    """
    tensors = _tensors(state)
    try:
        # On meta, a shape that is wrong takes no memory.
        with torch.device("meta"):
            network = _network_for(tensors, align)
        names = _checked_names(network, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"no released network ({_in_words(tensors)}): {error}") from error
    network.to_empty(device="cpu")
    network.load_state_dict({ours: tensors[released] for released, ours in names.items()})
    return network.eval()


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a flat or nested state."""
    inner = state.get("params", state) if isinstance(state, Mapping) else state
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"no released network: a state is a mapping of names to tensors, this is {_kind(inner)}")
    for name, value in inner.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"no released network: {name!r} holds {_kind(value)}, not a tensor")
    return dict(inner)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _network_for(state: Mapping[str, Tensor], align: float) -> nn.Module:
    """The network whose size and kind the names and shapes of ``state`` tell."""
    if "conv_first.weight" in state:
        return _srresnet_for(state, align)
    if "model.0.weight" in state:
        return _dncnn_for(state, align)
    raise CheckpointError("neither conv_first.weight nor model.0.weight is there")


def _width_and_colours(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    shape = tuple(state[name].shape)
    if len(shape) != 4 or shape[2:] != (KERNEL, KERNEL) or 0 in shape:
        raise CheckpointError(f"{name} is {shape}, not (channels, colours, {KERNEL}, {KERNEL})")
    return shape[0], shape[1]


def _srresnet_for(state: Mapping[str, Tensor], align: float) -> SRResNet:
    channels, colours = _width_and_colours(state, "conv_first.weight")
    binarize = ("body", "up") if "upconv1.binary_conv.weight" in state else ("body",)
    upsampling = "upconv1.binary_conv.weight" if "up" in binarize else "upconv1.weight"
    if upsampling not in state:
        raise CheckpointError("neither upconv1.weight nor upconv1.binary_conv.weight is there")
    copies = state[upsampling].shape[0] / channels if state[upsampling].ndim else 0
    if copies not in (4, 9):
        raise CheckpointError(
            f"{upsampling} is {tuple(state[upsampling].shape)}, not 4 or 9 times {channels} channels at its output"
        )
    twice = any(name.startswith("upconv2.") for name in state)
    scale = 3 if copies == 9 else 4 if twice else 2
    blocks = len(_indices(state, "body"))
    return SRResNet(NetworkSpec(scale, channels, blocks, align=align, binarize=binarize, colours=colours))


def _dncnn_for(state: Mapping[str, Tensor], align: float) -> DnCNN:
    channels, colours = _width_and_colours(state, "model.0.weight")
    units = len(_indices(state, "model") - {0}) - 1
    if units < 0:
        raise CheckpointError("model.0 stands alone")
    network = DnCNN(NetworkSpec(1, channels, (units + 1) // 2, align=align, colours=colours))
    if units % 2:
        network.body = UnpairedBody(network.spec, bias=colours == 1)
    return network


def _indices(state: Mapping[str, Tensor], prefix: str) -> set[int]:
    """The numbers that follow ``prefix`` in the names."""
    matches = (re.match(rf"{prefix}\.(\d+)\.", name) for name in state)
    return {int(match[1]) for match in matches if match}


def _checked_names(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names by the released ones; raises CheckpointError where those or the shapes are not the network's."""
    names = dict(_released_names(network))
    missing = [name for name in names if name not in state]
    unexpected = [name for name in state if name not in names]
    wrong = [f"lacks {len(missing)} ({_listed(missing)})"] if missing else []
    wrong += [f"has {len(unexpected)} too many ({_listed(unexpected)})"] if unexpected else []
    if wrong:
        raise CheckpointError(f"as {_description(network)} it {' and '.join(wrong)}")
    ours = network.state_dict()
    for released, name in names.items():
        found, expected = tuple(state[released].shape), tuple(ours[name].shape)
        if found != expected:
            raise CheckpointError(f"as {_description(network)} its {released} is {found}, not {expected}")
    return names


def _description(network: nn.Module) -> str:
    """The network that a state was taken for."""
    assert isinstance(network, SRResNet | DnCNN)
    spec = network.spec
    if isinstance(network, DnCNN):
        colour = "gray" if spec.colours == 1 else "colour"
        return f"a {colour} DnCNN of channels={spec.channels} units={len(_units(network))}"
    kind = "BBCU-M" if "up" in spec.binarize else "BBCU-L"
    return f"a {kind} x{spec.scale} of channels={spec.channels} blocks={spec.blocks}"


def _in_words(state: Mapping[str, Tensor]) -> str:
    return f"{len(state)} tensors: {_listed(list(state))}" if state else "no tensors"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + ", ..." * (len(names) > SHOWN_NAMES)


# --- writing ----------------------------------------------------------------------------------------------------------


def to_released_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of ``network`` under the released names, in their order, as a released checkpoint holds it.

    The tensors are the network's own. How it was trained, and its alignment, are not told. Raises CheckpointError for a
    network that computes what no released one does.
    """
    reason = _why_not_released(network)
    if reason:
        raise CheckpointError(f"this network has no released form: {reason}")
    state = network.state_dict()
    return {released: state[name] for released, name in _released_names(network)}


def _why_not_released(network: nn.Module) -> str:
    """What a network has that no released one has; nothing where it is one."""
    if type(network) not in (SRResNet, DnCNN):
        return f"it is {_kind(network)}, not an SRResNet or a DnCNN"
    assert isinstance(network, SRResNet | DnCNN)
    spec = network.spec
    binary = [("body",), ("body", "up")] if isinstance(network, SRResNet) else [("body",)]
    if tuple(sorted(spec.binarize)) not in binary:
        return f"its binary parts are [{','.join(spec.binarize)}]"
    if isinstance(network, SRResNet) and spec.scale not in (2, 3, 4):
        return f"its scale is {spec.scale}"
    for name in ("unit_class", "accumulate", "standardise"):
        value, released = getattr(spec, name), NetworkSpec.__dataclass_fields__[name].default
        if value != released:
            return f"{name} is {value}, not {released}"
    reference = UnitSpec()
    for name in ("residual", "bn", "act", "act_fn", "threshold", "weight"):
        value = getattr(spec.unit, name)
        if value not in SAME_FUNCTION.get(name, (getattr(reference, name),)):
            return f"{name} is {value}, not {getattr(reference, name)}"
    return ""


def _units(network: SRResNet | DnCNN) -> list[BinaryUnit]:
    """The binary units of the body."""
    return [module for module in network.body.modules() if isinstance(module, BinaryUnit)]


def _released_modules(network: nn.Module) -> Iterator[tuple[str, str]]:
    """The released name and ours of everything that holds parameters, in the released order."""
    assert isinstance(network, SRResNet | DnCNN)
    units = range(len(_units(network)))
    if isinstance(network, DnCNN):
        # The ReLU of the head is number 1.
        yield "model.0", "head"
        yield from ((f"model.{2 + index}", f"body.units.{index}") for index in units)
        yield f"model.{2 + len(units)}", "tail"
        return
    yield "conv_first", "head"
    yield from ((f"body.{index // 2}.body.{index % 2}", f"body.units.{index}") for index in units)
    yield from ((f"upconv{1 + index}", f"up.stages.{index}") for index in range(len(network.up.stages)))
    yield "conv_hr", "up.refine"
    yield "conv_last", "tail"


def _released_names(network: nn.Module) -> Iterator[tuple[str, str]]:
    """The released name and ours of every tensor, in the released order."""
    held = network.state_dict()
    for released, ours in _released_modules(network):
        kinds = UNIT_NAMES if isinstance(network.get_submodule(ours), BinaryUnit) else CONVOLUTION_NAMES
        for our_kind, released_kind in kinds.items():
            if f"{ours}.{our_kind}" in held:
                yield f"{released}.{released_kind}", f"{ours}.{our_kind}"
