"""Find the network that a command is about: a cell, a trial, a checkpoint, a packed file, or a method by its name."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.data.tasks import STRENGTHS, TASKS
from bbcu.deploy.file import LENGTH
from bbcu.deploy.file import load as load_packed
from bbcu.deploy.layout import assembled, layout_of
from bbcu.deploy.packed import DeployError
from bbcu.errors import ConfigError, first_line, shown, unknown
from bbcu.files import read_text
from bbcu.model import checkpoints
from bbcu.model.initialisation import initialise
from bbcu.model.methods import BASELINE, METHODS
from bbcu.model.networks import NETWORKS, assemble, build
from bbcu.model.parts import NetworkSpec
from bbcu.model.published import CHANNELS, LAYOUTS
from bbcu.model.records import LEVELS, OF_TRAINING, alignment, spec_of
from bbcu.model.records import OPTIONS as SHAPE_OPTIONS
from bbcu.model.specs import PARTS, automatic_alignment

RESULT, CHECKPOINT = "result.json", "checkpoint.pt"
"""The files of a trial's folder."""

SEED_FOLDER = re.compile(r"seed([0-9]{1,19})")

KINDS = "the folder of a cell or trial, a checkpoint, a packed file"

AUTO = "auto"

OURS = (*LEVELS, "surrogate", "weight", "align", "binarize", *OF_TRAINING)
"""The factors of this package."""

OPTIONS = {
    "network.unit": "binary",
    "network.initial": "torch",
    "network.accumulate": False,
    "network.standardise": False,
    **{f"network.{name}": getattr(NetworkSpec(1, 1, 1), name) for name in SHAPE_OPTIONS},
}
"""The options of a network that are not factors, and what a method has that does not set them."""

PUBLISHED_BLOCKS = {
    **{layout.network: layout.blocks for layout in LAYOUTS.values()},
    **{"edsr": 16, "rcan": 20, "rdn": 16, "drunet": 4, "unet": 1},
}
"""The blocks of each network as published."""

PUBLISHED_CHANNELS = {"unet": 24}
"""The channels of those that have other than :data:`bbcu.model.published.CHANNELS`."""


@dataclass(frozen=True)
class Source:
    """A network in evaluation mode on the CPU, packed or not, its name for messages, and its file if it has one.

    ``result`` is the ``result.json`` of the trial that trained it, empty if there was none.
    """

    name: str
    network: nn.Module
    is_packed: bool
    file: Path | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


def find(cell: str, overrides: Sequence[str] = ()) -> Source:
    """Return the network of ``cell``, which is one of

    - a method's name, such as ``bbcu``, with the initial values of seed 0; ``overrides`` are then those of
      :func:`of_method`. A folder of the same name is written ``./bbcu``;
    - the folder of a trial, or of a cell: its first finished seed. The start of a folder's name is enough where no
      other folder starts so;
    - a packed file;
    - a checkpoint, of a trial or released. A released one has no alignment: 130, or ``align=...`` among ``overrides``.

    Raises BbcuError if it is nothing of that kind, and ConfigError for an override that does not exist.
    """
    if cell in METHODS:
        return of_method(cell, overrides)
    try:
        return _in_path(cell, overrides, f"{KINDS}, or a method: {', '.join(METHODS)}")
    except OSError as error:
        raise DeployError(f"{cell}: cannot be read: {error.strerror or error}") from error


def load(path: str | Path, align: float | None = None) -> nn.Module:
    """Return a trained network in evaluation mode on the CPU; ``path`` and ``align`` are those of :func:`trained`."""
    return trained(path, align).network


def trained(path: str | Path, align: float | None = None) -> Source:
    """Return the network of a folder or file that :func:`find` takes, so not that of a method without a training.

    ``align`` is the alignment of a released checkpoint, by default 130; what a trial has trained and what is packed
    have theirs recorded. Raises BbcuError, with the path, if it is nothing of that kind.
    """
    try:
        return _in_path(str(path), [] if align is None else [f"align={align}"], KINDS)
    except OSError as error:
        raise DeployError(f"{path}: cannot be read: {error.strerror or error}") from error


def _in_path(cell: str, overrides: Sequence[str], kinds: str) -> Source:
    path = completed(Path(cell))
    if path is None:
        raise DeployError(f"{cell}: there is no such file or folder; it must be {kinds}")
    if path.is_dir():
        path = _trial_in(path)
    elif path.name == CHECKPOINT and (path.parent / RESULT).exists():
        path = path.parent
    elif _is_checkpoint(path):
        return _released(path, overrides)
    if overrides and overrides[0].startswith("align="):
        raise ConfigError(f"{overrides[0]}: {path} has its alignment recorded; only a released checkpoint has not")
    if overrides:
        raise ConfigError(f"{overrides[0]}: only a method can be changed, and {path} is not the name of one")
    return of_trial(path) if path.is_dir() else Source(str(path), load_packed(path), is_packed=True, file=path)


def completed(path: Path) -> Path | None:
    """Return the path that exists and whose parts start as those of ``path``, or None; a final ``*`` is ignored.

    Raises DeployError if there are several.
    """
    if path.exists():
        return path
    folder = None if path.parent == path else completed(path.parent)
    start = path.name.rstrip("*")
    if folder is None or not folder.is_dir() or not start:
        return None
    found = sorted(entry for entry in folder.iterdir() if entry.name.startswith(start))
    if len(found) > 1:
        raise DeployError(f"{path}: {len(found)} names start so: {shown(', '.join(entry.name for entry in found))}")
    return found[0] if found else None


def _is_checkpoint(path: Path) -> bool:
    """Whether a file starts as torch's do, with a zip or a pickle, and not as a packed one, with a length and JSON."""
    if not path.is_file():
        raise DeployError(f"{path}: neither a folder nor a regular file")
    with path.open("rb") as file:
        start = file.read(LENGTH + 1)
    return start.startswith((b"PK", b"\x80")) and start[LENGTH:] != b"{"


def _released(path: Path, overrides: Sequence[str]) -> Source:
    """Load a released checkpoint; the only override is its alignment."""
    align = alignment(_parsed(overrides, ("align",)).get("align", checkpoints.RELEASED_ALIGN))
    return Source(str(path), checkpoints.load(path, align), is_packed=False, file=path)


def twin_of(network: nn.Module) -> nn.Module:
    """Return the full-precision network of the same layout, in evaluation mode, with the initial values of seed 0.

    It has no alignment, no standardisation and no bit memory. Raises DeployError for a network of a user's own class.
    """
    layout = layout_of(network)
    kept = ("scale", "channels", "blocks", "colours", "noise_level", *SHAPE_OPTIONS)
    plain = NetworkSpec(**{name: getattr(layout.spec, name) for name in kept}, binarize=())
    twin = assembled(dataclasses.replace(layout, spec=plain))
    initialise(twin, 0)
    return twin.eval()


# --- trials -----------------------------------------------------------------------------------------------------------


def _trial_in(folder: Path) -> Path:
    """Return the folder of a trial: this one, or that of the first finished seed of a cell's folder."""
    if (folder / RESULT).exists():
        return folder
    seeds = {int(match[1]): entry for entry in folder.iterdir() if (match := SEED_FOLDER.fullmatch(entry.name))}
    finished = [seeds[seed] for seed in sorted(seeds) if (seeds[seed] / RESULT).exists()]
    if not finished:
        why = "none of its seeds is finished" if seeds else f"it has no {RESULT}, and no folder seed0, seed1, ..."
        raise DeployError(f"{folder}: not the folder of a finished trial or cell: {why}")
    return finished[0]


def of_trial(folder: Path) -> Source:
    """Return the trained network in the folder of a trial; raises BbcuError if it cannot be rebuilt.

    A network of the user's own is imported, as it was for the training.
    """
    result, checkpoint = folder / RESULT, folder / CHECKPOINT
    facts, name, spec = _network_in(result)
    state = checkpoints.read_state(checkpoint)
    try:
        # On the meta device a wrong size takes no memory.
        with torch.device("meta"):
            _check_state(state, assemble(name, spec))
        network = assemble(name, spec)
    except ConfigError as error:
        raise DeployError(f"{result}: {error}") from error
    except checkpoints.CheckpointError as error:
        raise DeployError(f"{checkpoint}: not the network of its {RESULT}: {error}") from error
    network.load_state_dict(state)
    return Source(str(folder), as_trained(network), is_packed=False, file=checkpoint, result=facts)


def as_trained(network: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Put a network into evaluation mode, with the memory layout that it had in its training, and onto a device.

    With another layout torch adds up in another order, also the magnitudes of a filter's weights, so that the last
    digits of a score differ from those of the trial.
    """
    moved: nn.Module = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved.eval()


def _network_in(path: Path) -> tuple[dict[str, Any], str, NetworkSpec]:
    """Return a result, and the name and the spec of its network; raises DeployError if it has none."""
    try:
        result = json.loads(read_text(path))
    except OSError as error:
        raise DeployError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DeployError(f"{path}: not JSON: {first_line(error)}") from error
    try:
        factors, setting = result["factors"], result["setting"]
        name = setting["network"]["name"]
        if name == BASELINE:
            raise DeployError(f"{path}: method={shown(result['method'])} has no network")
        for factor in factors.keys() - set(OURS):
            if factors[factor] != result["reference"][factor]:
                own = f"{factor}={shown(factors[factor])} is a level of your own factor"
                raise DeployError(f"{path}: {own}, and a result does not record its unit; bbcu.pack takes the network")
        return result, name, spec_of(factors, setting)
    except ConfigError as error:
        raise DeployError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DeployError(f"{path}: not the result of a trial") from error


def _check_state(state: object, network: nn.Module) -> None:
    """Raise CheckpointError if a state is not one of a network."""
    if not isinstance(state, Mapping):
        raise checkpoints.CheckpointError(f"it is a {type(state).__name__}, not names with tensors")
    expected = network.state_dict()
    for what, some, others in (("lacks", expected, state), ("has also", state, expected)):
        names = sorted(str(name) for name in some if name not in others)
        if names:
            raise checkpoints.CheckpointError(f"it {what} {shown(', '.join(names))}")
    for name, wanted in expected.items():
        value = state[name]
        is_dense = isinstance(value, Tensor) and value.layout == torch.strided
        if not is_dense or value.is_nested or value.is_meta or _form(value) != _form(wanted):
            raise checkpoints.CheckpointError(f"its {name} is not a tensor of {tuple(wanted.shape)}")
    checkpoints.check_numbers(state)


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


# --- methods ----------------------------------------------------------------------------------------------------------


def of_method(name: str, overrides: Sequence[str]) -> Source:
    """Return the network of a published method with the initial values of seed 0.

    ``overrides`` are ``KEY=VALUE``, as for ``python run.py``: a factor, ``task``, ``network``, ``network.initial``,
    ``network.accumulate``, ``network.standardise``, ``channels`` or ``blocks``. Without them the network is that of the
    paper: an SRResNet x2 of 64 channels and 16 blocks, or a DnCNN of 20 layers for the tasks of that network.
    Raises ConfigError for other keys and levels, and for a method without a network.
    """
    method = METHODS[name]
    if "name" in method.network:
        trained = [other for other in METHODS if "name" not in METHODS[other].network]
        raise ConfigError(f"{name} has no network; methods that have one: {', '.join(trained)}")
    given = _parsed(overrides, (*OURS, "task", "network", *OPTIONS, "channels", "blocks"))
    task = _one_of("task", given.get("task", "sr_x2"), TASKS)
    kind = _one_of("network", given.get("network", "dncnn" if task in STRENGTHS else "srresnet"), NETWORKS)
    layout = {
        key: given.get(key, method.network.get(key.partition(".")[2], default)) for key, default in OPTIONS.items()
    }
    setting = {
        # Which network a task has does not depend on its strengths.
        "task": {"name": task, **{key: 10 for key in STRENGTHS.get(task, ())}},
        "network": {key.partition(".")[2]: value for key, value in layout.items()},
        "channels": given.get("channels", method.channels or PUBLISHED_CHANNELS.get(kind, CHANNELS)),
        "blocks": given.get("blocks", PUBLISHED_BLOCKS[kind]),
    }
    factors = {factor: given.get(factor, level) for factor, level in method.all_levels.items()}
    parts = factors["binarize"]
    if not isinstance(parts, list) or any(part not in PARTS for part in parts):
        raise ConfigError(f"binarize={shown(parts)}: must be any of {', '.join(PARTS)}, as in [{','.join(PARTS[1:3])}]")
    factors["binarize"] = [part for part in PARTS if part in parts]
    if factors["align"] == AUTO and type(setting["channels"]) is int:
        factors["align"] = automatic_alignment(factors["bn"], parts, setting["channels"])
    network = build(kind, spec_of(factors, setting), 0).eval()
    return Source(" ".join([name, *overrides]), network, is_packed=False)


def _one_of(key: str, value: object, valid: Iterable[str]) -> str:
    """Return ``value``; raises ConfigError unless it is one of ``valid``."""
    if not isinstance(value, str) or value not in valid:
        raise ConfigError(unknown(key, shown(value), valid))
    return value


def _parsed(overrides: Sequence[str], keys: Collection[str]) -> dict[str, Any]:
    """Return the values of ``KEY=VALUE``; raises ConfigError for other keys and for what has no value."""
    found = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if key not in keys:
            raise ConfigError(unknown("key", key, keys))
        if not equals or not text.strip():
            raise ConfigError(f"{shown(override)}: a key has a value, as in {key}=...")
        found[key] = _value(key, text.strip())
    return found


def _value(key: str, text: str) -> Any:
    """Return the value that Hydra reads in ``text``: true, false, a number, a list in brackets, or a word."""
    if text.startswith("["):
        if not text.endswith("]"):
            raise ConfigError(f"{key}={shown(text)}: the list has no end")
        inner = text[1:-1].strip()
        return [_value(key, part.strip()) for part in inner.split(",")] if inner else []
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text.strip("\"'")
