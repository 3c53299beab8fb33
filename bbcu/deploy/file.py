"""The file of a packed network, from which nothing is imported, unpickled or executed.

It is a safetensors file: 8 bytes with the length of the header, little-endian; the header, a JSON object that gives the
``dtype``, ``shape`` and ``data_offsets`` of each tensor; and the tensors. The header's ``__metadata__`` maps texts to
texts:

    format    "bbcu-packed"
    version   "1"
    sha256    the SHA-256 of the whole file in hexadecimal, computed with 64 zeros in place of these digits
    network   JSON of the network, see below

    {"kind": "srresnet",      or "dncnn": the class in bbcu.model.networks
     "scale": 2,              size of the output over that of the input
     "channels": 64, "blocks": 16, "colours": 3,
     "layers": 32,            convolutions in the body: 2 * blocks, or one less in a dncnn
     "align": 130.0,          multiplies the input and divides the output
     "binarize": ["body"],    the parts that are binary: head, body, up, tail
     "accumulate": false,     whether the body has BAM's bit memory
     "standardise": false,    whether the network has BTM's standardisation
     "unit": {"residual": true, "bn": "none", "act": "inside", "act_fn": "rprelu", "threshold": true,
              "has_scale": true}}

``unit`` has the levels of :class:`bbcu.model.specs.UnitSpec`, and whether each filter has a scale (``weight=plain`` has
none). Networks and levels that this cannot say have the version "2", in which there are also

    {"groups": 10, "dense": 8, "tail": "full",       of a NetworkSpec; dense: its layers
     "noise_level": 0.0,                             of a NetworkSpec
     "unit": {..., "rescale": "none", "planes": 1,   the bits of a weight, each with a scale: two with weight=srb
              "has_offset": false}}                  whether each filter has an offset, as with weight=adabin

and ``layers`` is null for a network that is neither an srresnet nor a dncnn. Tensors have the names of the network's
state dict and no others, except that those of the body's units, as ``body.units.0.threshold`` and
``body.units.1.threshold``, are one tensor ``body.units.threshold``, whose first dimension is the place among the units
that have it, unless their shapes differ. ``weight_bits`` and ``second_bits`` (U8), ``scale``, ``second_scale`` and
``offset`` (F32) are those of :class:`bbcu.deploy.packed.PackedUnit`, a BatchNorm's ``num_batches_tracked`` is I64, and
all others are F32. Two equal networks make the same bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bbcu.deploy.layout import PAIRED, Layout, assembled, layout_of
from bbcu.deploy.packed import (
    BITS_PER_BYTE,
    DeployError,
    PackedUnit,
    WeightForm,
    for_inference,
    named_units,
    packed_units,
    shape_of,
    unpacked,
)
from bbcu.errors import BbcuError, shown
from bbcu.files import read_bytes, replacing
from bbcu.model.networks import NETWORKS
from bbcu.model.parts import NetworkSpec
from bbcu.model.records import LEVELS, checked
from bbcu.model.specs import UnitSpec
from bbcu.model.units import UnitShape

Form = tuple[tuple[int, ...], torch.dtype]
"""The shape and the type of a tensor."""

FORMAT = "bbcu-packed"
FIRST, SECOND = "1", "2"
VERSIONS = (FIRST, SECOND)
"""What is read; the second is written for a network that the first cannot say."""

FIRST_LEVELS: Mapping[str, tuple[bool | str, ...]] = {
    "residual": (True, False, "block"),
    "bn": ("none", "pre", "post", "out"),
    "act": ("inside", "after", "none"),
    "act_fn": ("rprelu", "prelu", "relu", "hardtanh"),
    "threshold": (True, False),
}
"""The levels that the first version has."""

MOST_CONVOLUTIONS = 4000
"""The most convolutions that the body of a file's network may seem to have; 1000 blocks of an SRResNet are half."""

LARGEST_FILE = 2**28
"""The most bytes of a file; that of BBCU-L has 0.9 MB, and that of its full-precision twin 5.5."""

LARGEST_HEADER = 2**20
"""The most bytes of its header; that of BBCU-L has 2 KB, and that of its full-precision twin 7."""

LENGTH = 8
"""Bytes at the start, which give the length of the header."""

NO_DIGEST = "0" * 64
"""What the file has in place of its checksum while that is computed."""

UNITS = "body.units."
"""The start of the names of tensors that the file stacks: each name costs a hundred bytes."""

PLAIN_FIELDS = ("scale", "channels", "blocks", "colours", "align", "accumulate", "standardise")
"""The fields of a spec that the file has as they are."""

OPTIONS = {"groups": "groups", "dense": "layers", "tail": "tail", "noise_level": "noise_level"}
"""The fields of a spec that the second version has too, by their names in the file."""


# --- writing ----------------------------------------------------------------------------------------------------------


def save(packed: nn.Module, path: str | Path) -> None:
    """Write a packed network to a file, which is replaced atomically; its folder is made.

    Raises DeployError as :func:`to_bytes`, and if the file cannot be written.
    """
    content = to_bytes(packed)
    try:
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DeployError(f"{path}: cannot be written: {error.strerror or error}") from error


def to_bytes(packed: nn.Module) -> bytes:
    """Return the content of a packed network's file.

    Raises DeployError for a network or a part of a user's own class, for a unit that is not packed, and for NaN.
    """
    try:
        for name, reason in unpacked(packed).items():
            raise DeployError(f"{name}: {reason}")
        layout, form = layout_of(packed), _form_of(packed)
        _check_parts(packed, _skeleton(layout, form))
        tensors = _stacked(packed.state_dict())
        _check_numbers(tensors)
    except BbcuError as error:
        raise DeployError(f"the network cannot be saved: {error}") from error
    bare = safetensors.torch.save(tensors)
    start = LENGTH + int.from_bytes(bare[:LENGTH], "little")
    version = _version_of(layout, form)
    text = json.dumps(_facts_of(layout, form, version))
    metadata = {"sha256": NO_DIGEST, "format": FORMAT, "version": version, "network": text}
    # safetensors itself writes the metadata in another order each time.
    header = json.dumps({"__metadata__": metadata, **json.loads(bare[LENGTH:start])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % LENGTH)
    content = len(header).to_bytes(LENGTH, "little") + header + bare[start:]
    return content.replace(NO_DIGEST.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def _form_of(packed: nn.Module) -> WeightForm:
    """Return the form of the weights of a network's units; without units, that without a scale."""
    units = packed_units(packed)
    return units[0].form if units else WeightForm(has_scale=False)


def _version_of(layout: Layout, form: WeightForm) -> str:
    """Return the first version of the format that can say what a network is."""
    unit = layout.spec.unit
    has_levels = all(getattr(unit, name) in levels for name, levels in FIRST_LEVELS.items())
    is_first = layout.kind in PAIRED and has_levels and unit.rescale == "none" and form.is_scaled_after
    return FIRST if is_first else SECOND


def _facts_of(layout: Layout, form: WeightForm, version: str) -> dict[str, Any]:
    """Return what the file says of a network."""
    spec = layout.spec
    plain = {name: getattr(spec, name) for name in PLAIN_FIELDS}
    facts = {"kind": layout.kind, "layers": layout.layers, **plain, "binarize": spec.binarize}
    unit = {**{name: getattr(spec.unit, name) for name in FIRST_LEVELS}, "has_scale": form.has_scale}
    if version == SECOND:
        facts |= {name: getattr(spec, field) for name, field in OPTIONS.items()}
        unit |= {"rescale": spec.unit.rescale, "planes": form.planes, "has_offset": form.has_offset}
    return {**facts, "unit": unit}


def _stacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network, with those of the same name in the body's units as one."""
    return {
        name: torch.stack([state[one] for one in group]) if name not in state else state[name].contiguous()
        for name, group in _groups(_forms(state)).items()
    }


def _groups(forms: Mapping[str, Form]) -> dict[str, list[str]]:
    """Return the names of tensors that are one in the file, by its name; those of other shapes stay alone."""
    groups: dict[str, list[str]] = {}
    for name in forms:
        groups.setdefault(_stacked_name(name), []).append(name)
    found: dict[str, list[str]] = {}
    for stacked, names in groups.items():
        found |= {stacked: names} if len({forms[name] for name in names}) == 1 else {name: [name] for name in names}
    return found


def _stacked_name(name: str) -> str:
    """Return ``body.units.threshold`` for ``body.units.3.threshold``, and other names as they are."""
    return UNITS + name.removeprefix(UNITS).partition(".")[2] if name.startswith(UNITS) else name


def _check_parts(packed: nn.Module, skeleton: nn.Module) -> None:
    """Raise DeployError if a network has other parts than the one that its file would be read as."""
    found, expected = (dict(network.named_modules()) for network in (packed, skeleton))
    for name in [*found, *expected]:
        part, own = found.get(name), expected.get(name)
        if type(part) is not type(own):
            classes = ("nothing" if module is None else type(module).__name__ for module in (part, own))
            raise DeployError("{} is {}, where the network's spec has {}".format(name, *classes))
        if isinstance(part, PackedUnit) and isinstance(own, PackedUnit) and _levels(part) != _levels(own):
            raise DeployError(f"{name} has other levels than the network's spec")
    _compare(_forms(packed.state_dict()), _forms(skeleton.state_dict()))


def _levels(unit: PackedUnit) -> tuple[UnitSpec, UnitShape, bool]:
    return unit.spec, shape_of(unit), unit.memory is not None


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> nn.Module:
    """Load the packed network in a file, in evaluation mode; it computes what the saved one did, bit for bit.

    Only classes of this package are created, and nothing larger than the file itself. Raises DeployError, with the
    path, if the file cannot be read, is damaged, is not a packed network, or is of another version.
    """
    try:
        return from_bytes(read_bytes(Path(path), LARGEST_FILE))
    except OSError as error:
        raise DeployError(f"{path}: cannot be read: {error.strerror or error}") from error
    except BbcuError as error:
        raise DeployError(f"{path}: {error}") from error


def from_bytes(content: bytes) -> nn.Module:
    """Return the packed network in the content of a file, as :func:`load`."""
    metadata = _checked_metadata(content)
    try:
        return _network_in(metadata, content)
    except BbcuError as error:
        raise DeployError(f"not a packed network: {error}") from error


def _network_in(metadata: Mapping[str, str], content: bytes) -> nn.Module:
    """Return the network of a file whose checksum is right, and whose writer may have written anything."""
    network = _skeleton(*_layout_in(metadata))
    try:
        tensors = safetensors.torch.load(content)
    # safetensors refuses a wrong header with an error of its own, and torch a type or shape that it lacks with others.
    except Exception as error:
        raise DeployError("its header does not describe its tensors") from error
    forms = _forms(network.state_dict())
    groups = _groups(forms)
    _compare(_forms(tensors), _stacked_forms(forms, groups))
    _check_numbers(tensors)
    state = {}
    for stacked, names in groups.items():
        for place, name in enumerate(names):
            state[name] = tensors[stacked] if stacked == name else tensors[stacked][place].clone()
    network.load_state_dict(state, assign=True)
    for unit in packed_units(network):
        used = unit.in_channels // unit.groups % BITS_PER_BYTE
        for bits in (unit.weight_bits, unit.second_bits):
            if bits is not None and used and int(bits[..., -1].max()) >> used:
                raise DeployError("it has weights of channels that do not exist")
    return network.eval()


def _checked_metadata(content: bytes) -> Mapping[str, str]:
    """Return the metadata; raises DeployError unless the file is whole, ours, and of the version that is read here."""
    length = int.from_bytes(content[:LENGTH], "little")
    if len(content) < LENGTH or length > min(LARGEST_HEADER, len(content) - LENGTH):
        raise DeployError("not a packed network: not a safetensors file, or only a part of one")
    try:
        header = json.loads(content[LENGTH : LENGTH + length])
        metadata = header.get("__metadata__", {})
    except (ValueError, RecursionError, AttributeError) as error:
        raise DeployError("not a packed network: not a safetensors file, or a damaged one") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise DeployError(f"not a packed network, but a safetensors file of another format than {FORMAT}")
    if metadata.get("version") not in VERSIONS:
        version = shown(metadata.get("version"))
        raise DeployError(f"a packed network of version {version}; this program reads version {' and '.join(VERSIONS)}")
    digest = str(metadata.get("sha256"))
    if hashlib.sha256(content.replace(digest.encode(errors="replace"), NO_DIGEST.encode(), 1)).hexdigest() != digest:
        raise DeployError("damaged: its content does not match its checksum")
    return metadata


def _layout_in(metadata: Mapping[str, str]) -> tuple[Layout, WeightForm]:
    """Return the layout and the form of the weights; raises BbcuError for values that no network has."""
    try:
        facts, is_second = json.loads(metadata["network"]), metadata["version"] == SECOND
        unit, kind, layers = facts["unit"], facts["kind"], facts["layers"]
        levels = UnitSpec(**{name: unit[name] for name in (LEVELS if is_second else FIRST_LEVELS)})
        plain = {name: facts[name] for name in PLAIN_FIELDS}
        options = {field: facts[name] for name, field in OPTIONS.items()} if is_second else {}
        spec = NetworkSpec(**plain, **options, binarize=tuple(facts["binarize"]), unit=levels)
        form = {name: unit[name] for name in (("has_scale", "planes", "has_offset") if is_second else ("has_scale",))}
        is_of_type = all(type(value) is (int if name == "planes" else bool) for name, value in form.items())
        level = options.get("noise_level", 0.0)
        is_of_type = is_of_type and type(level) in (int, float) and 0 <= level <= 1
        if kind not in NETWORKS or type(layers) is not (int if kind in PAIRED else type(None)) or not is_of_type:
            raise ValueError("a value of another type")
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise DeployError("its header does not describe one") from error
    return Layout(kind, spec, layers), WeightForm(**form)


def _skeleton(layout: Layout, form: WeightForm) -> nn.Module:
    """Return a packed network of a layout on the meta device, so that it takes no memory; raises BbcuError."""
    spec = checked(layout.spec)
    if layout.kind not in PAIRED and spec.blocks * max(spec.groups, spec.layers) > MOST_CONVOLUTIONS:
        raise DeployError(f"a {layout.kind} of {spec.blocks} blocks has more convolutions than a file may have")
    spec = dataclasses.replace(spec, unit=for_inference(spec.unit), unit_class="binary", initial="torch")
    with torch.device("meta"):
        network = assembled(dataclasses.replace(layout, spec=spec))
        for name, unit in named_units(network):
            packed = PackedUnit(shape_of(unit), unit.spec, form)
            packed.set_memory(unit.memory)
            network.set_submodule(name, packed)
    return network


# --- checks -----------------------------------------------------------------------------------------------------------


def _forms(state: Mapping[str, Tensor]) -> dict[str, Form]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def _stacked_forms(forms: Mapping[str, Form], groups: Mapping[str, list[str]]) -> dict[str, Form]:
    """Return the forms of the tensors that :func:`_stacked` makes; on the meta device it would take a second."""
    stacked = {}
    for name, names in groups.items():
        shape, dtype = forms[names[0]]
        stacked[name] = ((len(names), *shape) if name != names[0] else shape, dtype)
    return stacked


def _compare(found: Mapping[str, Form], expected: Mapping[str, Form]) -> None:
    """Raise DeployError if names, shapes or types of tensors are not the expected ones."""
    for what, some, others in (("lacks", expected, found), ("has also", found, expected)):
        names = sorted(some.keys() - others.keys())
        if names:
            raise DeployError(f"it {what} {shown(', '.join(names))}")
    for name, form in found.items():
        if form != expected[name]:
            raise DeployError(f"its {name} is {_described(form)}, not {_described(expected[name])}")


def _described(form: Form) -> str:
    shape, dtype = form
    return f"{shape} of {str(dtype).removeprefix('torch.')}"


def _check_numbers(tensors: Mapping[str, Any]) -> None:
    """Raise DeployError for NaN and infinity."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise DeployError(f"its {name} contains NaN or infinity")
