"""Load the checkpoints that the authors of BBCU released, and write networks in that format.

Released are BBCU-L and BBCU-M at scales 2, 3 and 4, the colour DnCNN_b and the gray DnCNN3_b; any width and depth is
accepted. A checkpoint contains the latent weights in full precision. Its names and shapes say which network it is, but
not the alignment k, which has to be given.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from bbcu.errors import BbcuError
from bbcu.files import read_bytes
from bbcu.model.networks import DnCNN, SRResNet
from bbcu.model.parts import Body, NetworkSpec, binary_units
from bbcu.model.units import KERNEL, BinaryUnit

RELEASED_ALIGN = 130.0
"""The residual alignment of the released networks, which have 64 channels."""

UNIT_NAMES = {
    "threshold": "move0.bias",
    "weight": "binary_conv.weight",
    "bias": "binary_conv.bias",
    "activation.shift_in": "relu.pr_bias0.bias",
    "activation.slope": "relu.pr_prelu.weight",
    "activation.shift_out": "relu.pr_bias1.bias",
}
"""Names of a unit's tensors here and in released checkpoints, in the order of the latter."""

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

LARGEST_FILE = 2**30
"""The most bytes of a checkpoint; the largest released network has 6 MB."""

MOST_TENSORS = 10_000
"""The most tensors of a state; the largest released network has 179."""

LONGEST_NAME = 100
"""How much of the name of a tensor a message quotes."""

LARGEST_TUPLE = 100
"""The most objects in a pickled tuple, those within its elements included; a tensor is made from about 15."""

CONVOLUTION_NAMES = {"weight": "weight", "bias": "bias"}


class CheckpointError(BbcuError):
    """A checkpoint that is not one of a released network, or a network that has no released form."""


class UnpairedBody(Body):
    """A body without its last unit, for a DnCNN with an odd number of units."""

    def __init__(self, spec: NetworkSpec, *, bias: bool) -> None:
        super().__init__(spec, bias=bias)
        del self.units[-1]

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x, x)
        return x


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path, align: float = RELEASED_ALIGN) -> SRResNet | DnCNN:
    """Load a released checkpoint as a network in evaluation mode; only tensors are unpickled.

    Raises CheckpointError, with the path, if the file cannot be read or is not a released checkpoint.
    """
    state = read_state(path)
    try:
        return from_released_state(state, align)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_state(path: str | Path) -> Any:
    """Return what torch has saved in a file; only tensors, and containers of them, are unpickled.

    Raises CheckpointError, with the path, if the file cannot be read or contains anything else.
    """
    try:
        content = read_bytes(Path(path), LARGEST_FILE)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings(action="ignore"):
            _check_container(content)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # For other kinds of file torch raises almost anything, KeyError and IndexError among them.
        raise CheckpointError(f"{path}: not a checkpoint, or one that contains more than tensors") from error


def _check_container(content: bytes) -> None:
    """Raise ValueError for a file that is damaged, or small and would take much memory or time; torch checks neither.

    torch writes a zip without compression, with one pickle, or several pickles in a row before the numbers.
    """
    if not content.startswith(b"PK\x03\x04"):
        stream = io.BytesIO(content)
        for _ in range(5):  # a magic number, a version, the machine, the state, and the names of its storages
            _check_pickle(stream)
        return
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = file.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its entries overlap")
        if file.testzip() is not None:
            raise ValueError("a checksum is wrong")
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):
                _check_pickle(io.BytesIO(file.read(entry)))


def _check_pickle(stream: BinaryIO) -> None:
    """Raise ValueError for a tuple that is large, counting what is shared as often as it occurs.

    A tuple can be a key, and hashing it visits all of it: 40 pairs of pairs take hours, and deep ones end the process.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for operation, argument, _ in pickletools.genops(stream):
        name, before = operation.name, operation.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        else:
            from_mark = pickletools.markobject in before
            start = marks.pop() - before.index(pickletools.markobject) if from_mark else len(stack) - len(before)
            size = 1 + (sum(stack[start:]) if "TUPLE" in name else 0)
            if size > LARGEST_TUPLE:
                raise ValueError("it holds a large tuple")
            stack[start:] = [size] * len(operation.stack_after)


def from_released_state(state: Mapping[str, Any], align: float = RELEASED_ALIGN) -> SRResNet | DnCNN:
    """Return a network in evaluation mode that computes what the released network does with ``state``.

    ``state`` maps names to tensors, or has such a mapping under ``params``. One thing differs: the sign of zero is 0 in
    the released network and +1 here. If a DnCNN has an odd number of units, ``blocks`` of its spec is rounded up.
    Raises CheckpointError if ``state`` does not fit a released network.
    """
    tensors = _tensors(state)
    try:
        # On the meta device a wrong shape takes no memory.
        with torch.device("meta"):
            network = _network_for(tensors, align)
        names = dict(_released_names(network))
        _check_shapes(network, names, tensors)
        check_numbers(tensors)
    except CheckpointError as error:
        found = f"{len(tensors)} tensors: {_listed(list(tensors))}" if tensors else "no tensors"
        raise CheckpointError(f"not a released network ({found}): {error}") from error
    network.to_empty(device="cpu")
    network.load_state_dict({ours: tensors[released] for released, ours in names.items()})
    return network.eval()


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = state.get("params", state) if isinstance(state, Mapping) else state
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"not a released network: a state maps names to tensors, and this is {_kind(inner)}")
    for name, value in inner.items():
        if not isinstance(name, str):
            raise CheckpointError(f"not a released network: a name is {_kind(name)}, not a text")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"not a released network: {_quoted(name)} is {_kind(value)}, not a tensor")
        if type(value) not in (Tensor, nn.Parameter) or value.is_nested or value.layout != torch.strided:
            raise CheckpointError(f"not a released network: {_quoted(name)} is not a dense tensor")
        if value.dtype not in FLOATS or value.is_meta:
            raise CheckpointError(f"not a released network: {_quoted(name)} has no floating-point numbers")
    if len(inner) > MOST_TENSORS:
        raise CheckpointError(f"not a released network: it has {len(inner)} tensors; the most is {MOST_TENSORS}")
    return dict(inner)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _quoted(name: str) -> str:
    return repr(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...")


def _network_for(state: Mapping[str, Tensor], align: float) -> SRResNet | DnCNN:
    """Return the network that the names and shapes of ``state`` belong to."""
    if "conv_first.weight" in state:
        channels, colours = _width_and_colours(state, "conv_first.weight")
        binarize = ("body", "up") if "upconv1.binary_conv.weight" in state else ("body",)
        blocks = len(_indices(state, "body"))
        spec = NetworkSpec(_scale(state, channels), channels, blocks, align=align, binarize=binarize, colours=colours)
        return SRResNet(spec)
    if "model.0.weight" in state:
        channels, colours = _width_and_colours(state, "model.0.weight")
        units = len(_indices(state, "model")) - 2  # without head and tail
        if units < 0:
            raise CheckpointError("it has only model.0")
        network = DnCNN(NetworkSpec(1, channels, (units + 1) // 2, align=align, colours=colours))
        if units % 2:
            network.body = UnpairedBody(network.spec, bias=colours == 1)
        return network
    raise CheckpointError("it has neither conv_first.weight nor model.0.weight")


def _width_and_colours(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    shape = tuple(state[name].shape)
    if len(shape) != 4 or shape[2:] != (KERNEL, KERNEL) or 0 in shape:
        raise CheckpointError(f"{name} is {shape}, not (channels, colours, {KERNEL}, {KERNEL})")
    return shape[0], shape[1]


def _scale(state: Mapping[str, Tensor], channels: int) -> int:
    """Return the scale of a super-resolution network, from its upsampling convolutions."""
    name = next((name for name in ("upconv1.binary_conv.weight", "upconv1.weight") if name in state), None)
    if name is None:
        raise CheckpointError("it has neither upconv1.weight nor upconv1.binary_conv.weight")
    shape = tuple(state[name].shape)
    if not shape or shape[0] not in (4 * channels, 9 * channels):
        raise CheckpointError(f"{name} is {shape}, not 4 or 9 times {channels} channels at its output")
    if shape[0] == 9 * channels:
        return 3
    return 4 if any(name.startswith("upconv2.") for name in state) else 2


def _indices(state: Mapping[str, Tensor], prefix: str) -> set[int]:
    """Return the numbers that follow ``prefix`` in the names."""
    matches = (re.match(rf"{prefix}\.(\d{{1,9}})\.", name, re.ASCII) for name in state)
    return {int(match[1]) for match in matches if match}


def _check_shapes(network: SRResNet | DnCNN, names: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if the names or shapes of ``state`` are not those of the network."""
    missing = [name for name in names if name not in state]
    unexpected = [name for name in state if name not in names]
    wrong = [f"it lacks {len(missing)} ({_listed(missing)})"] if missing else []
    wrong += [f"it has {len(unexpected)} too many ({_listed(unexpected)})"] if unexpected else []
    ours = network.state_dict()
    if not wrong:
        shapes = ((released, tuple(state[released].shape), tuple(ours[name].shape)) for released, name in names.items())
        wrong = [f"its {name} is {found}, not {expected}" for name, found, expected in shapes if found != expected][:1]
    if wrong:
        raise CheckpointError(f"as {_description(network)} {' and '.join(wrong)}")


def check_numbers(state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if the tensors are more than what is stored for them, or hold NaN or infinity."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > sum(stored.values()):
        raise CheckpointError("its tensors have more elements than are stored")
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"its {name} contains NaN or infinity")


def _description(network: SRResNet | DnCNN) -> str:
    spec = network.spec
    if isinstance(network, DnCNN):
        colour = "gray" if spec.colours == 1 else "colour"
        return f"a {colour} DnCNN of channels={spec.channels} units={len(binary_units(network.body))}"
    kind = "BBCU-M" if "up" in spec.binarize else "BBCU-L"
    return f"a {kind} x{spec.scale} of channels={spec.channels} blocks={spec.blocks}"


def _listed(names: list[str], shown: int = 4) -> str:
    return ", ".join(name[:LONGEST_NAME] for name in names[:shown]) + ", ..." * (len(names) > shown)


# --- writing ----------------------------------------------------------------------------------------------------------


def to_released_state(network: torch.nn.Module) -> dict[str, Tensor]:
    """Return the state of ``network`` under the released names, in their order, as a released checkpoint contains it.

    The tensors are shared with the network. The state does not include the alignment, and not the factors that only
    affect training. Raises CheckpointError if the network computes something that no released network does.
    """
    difference = _difference(network)
    if difference:
        raise CheckpointError(f"this network has no released form: {difference}")
    assert isinstance(network, SRResNet | DnCNN)
    state = network.state_dict()
    return {released: state[name] for released, name in _released_names(network)}


def _difference(network: torch.nn.Module) -> str:
    """Return in what a network differs from all released ones, or an empty text."""
    if type(network) not in (SRResNet, DnCNN):
        return f"it is {_kind(network)}, not an SRResNet or a DnCNN"
    assert isinstance(network, SRResNet | DnCNN)
    spec, reference = network.spec, NetworkSpec(1, 1, 1)
    if set(spec.binarize) not in ([{"body"}, {"body", "up"}] if isinstance(network, SRResNet) else [{"body"}]):
        return f"its binary parts are [{','.join(spec.binarize)}]"
    if isinstance(network, SRResNet) and spec.scale not in (2, 3, 4):
        return f"its scale is {spec.scale}"
    options: list[tuple[str, Any, Any]] = [
        (name, spec, reference) for name in ("unit_class", "accumulate", "standardise")
    ]
    levels = ("residual", "bn", "act", "act_fn", "threshold", "weight", "rescale")
    for name, holder, released in [*options, *((name, spec.unit, reference.unit) for name in levels)]:
        value, expected = getattr(holder, name), getattr(released, name)
        # Surrogates and l1mag differ from the reference only in the gradient.
        if value not in (expected, "l1mag"):
            return f"{name} is {value}, not {expected}"
    return ""


def _released_modules(network: SRResNet | DnCNN) -> Iterator[tuple[str, str]]:
    """Yield the released name and ours of every module that has parameters, in the released order."""
    units = range(len(binary_units(network.body)))
    if isinstance(network, DnCNN):
        yield "model.0", "head"  # model.1 is its ReLU
        yield from ((f"model.{2 + index}", f"body.units.{index}") for index in units)
        yield f"model.{2 + len(units)}", "tail"
        return
    yield "conv_first", "head"
    yield from ((f"body.{index // 2}.body.{index % 2}", f"body.units.{index}") for index in units)
    yield from ((f"upconv{1 + index}", f"up.stages.{index}") for index in range(len(network.up.stages)))
    yield "conv_hr", "up.refine"
    yield "conv_last", "tail"


def _released_names(network: SRResNet | DnCNN) -> Iterator[tuple[str, str]]:
    """Yield the released name and ours of every tensor, in the released order."""
    state = network.state_dict()
    for released, ours in _released_modules(network):
        names = UNIT_NAMES if isinstance(network.get_submodule(ours), BinaryUnit) else CONVOLUTION_NAMES
        for name, released_name in names.items():
            if f"{ours}.{name}" in state:
                yield f"{released}.{released_name}", f"{ours}.{name}"
