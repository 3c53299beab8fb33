"""Flatten settings, select the keys that distinguish them, and turn settings and levels into text."""

from collections.abc import Mapping, Sequence
from typing import Any

from ablations.space.factors import level_text
from bbcu.errors import printable

TASK = "task."
"""The start of the keys of a setting that say what is restored; trials that differ in one are never compared."""

DATA = "data"
"""The key of the fingerprint of all pictures."""

LAST_SEED = 2**63 - 1
"""The largest seed that torch's generators take."""

DEFAULTS: Mapping[str, Any] = {
    "network.unit": "binary",
    "network.initial": "torch",
    "network.accumulate": False,
    "network.standardise": False,
    "network.groups": 10,
    "network.layers": 8,
    "network.tail": "full",
    "train.distil_weight": "auto",
    "evaluation.self_ensemble": False,
}
"""Values with which a key of the setting is left out of a cell's key.

A new key of the setting is added here with its earlier, implicit value, so that the keys of existing cells stay.
"""

ONLY_OF: Mapping[str, str] = {"network.groups": "rcan", "network.layers": "rdn"}
"""Keys that mean something in one of our networks only."""


def identifying(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a setting that enters a cell's key: its flat keys that differ from their default."""
    return {key: value for key, value in flatten(setting).items() if key not in DEFAULTS or value != DEFAULTS[key]}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"train": {"steps": 5}}`` as ``{"train.steps": 5}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def distinguishing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a small set of keys that distinguishes these flat settings: task, network, and the others by name.

    The sizes of a network often follow from its name. A key is left out if it distinguishes no settings
    beyond the keys before it.
    """

    def distinct(keys: Sequence[str]) -> int:
        return len({tuple(str(setting.get(key)) for key in keys) for setting in settings})

    chosen: list[str] = []
    first = ("task.name", "network.name")
    every = {key for setting in settings for key in setting}
    for key in sorted(every, key=lambda key: (first.index(key) if key in first else len(first), key)):
        if distinct([*chosen, key]) > distinct(chosen):
            chosen.append(key)
    return chosen


def task_of(setting: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of a flat setting that say what is restored."""
    return {key: value for key, value in setting.items() if key.startswith(TASK)}


def without_task(setting: Mapping[str, str]) -> dict[str, str]:
    """Return the other keys of a flat setting."""
    return {key: value for key, value in setting.items() if not key.startswith(TASK)}


def levels_as_text(levels: Mapping[str, object]) -> dict[str, str]:
    """Return levels the way a user types them: ``true``, ``130``, ``[body,up]``."""
    return {name: level_text(level) for name, level in levels.items()}


def setting_as_text(setting: Mapping[str, Any]) -> dict[str, str]:
    """Return a setting as flat text, as the params of an MLflow run have it."""
    return {name: str(value) for name, value in flatten(setting).items()}


def default_as_text(key: str) -> str:
    """Return the value, as text, that a key of the setting had before it was recorded; "" if it always was."""
    return str(DEFAULTS.get(key, ""))


def one_line(text: str) -> str:
    """Return a text on one line, without control characters."""
    return text if text.isprintable() else printable(" ".join(text.split()))
