"""Settings as flat keys, and which of them tell settings apart."""

from collections.abc import Mapping, Sequence
from typing import Any

DEFAULTS: Mapping[str, Any] = {
    "network.unit": "binary",
    "network.initial": "torch",
    "network.accumulate": False,
    "network.standardise": False,
    "evaluation.self_ensemble": False,
}
"""The defaults of the setting's keys that have one; a cell's key leaves them out.

A new key of the setting stands here with what networks did before there was the key.
"""


def identifying(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a setting, flat, that are not at their default: what tells one setting from another."""
    flat = flatten(setting)
    return {key: value for key, value in flat.items() if key not in DEFAULTS or value != DEFAULTS[key]}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"steps": 5}}`` as ``{"train.steps": 5}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def telling_apart(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell flat settings apart, the task first; none that tells no more than those before it."""
    keys = sorted({key for setting in settings for key in setting}, key=lambda key: (key != "task.name", key))
    told: list[str] = []
    for key in keys:
        if _kinds(settings, [*told, key]) > _kinds(settings, told):
            told.append(key)
    return told


def _kinds(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    """How many settings these keys tell apart."""
    return len({tuple(str(setting.get(key)) for key in keys) for setting in settings})
