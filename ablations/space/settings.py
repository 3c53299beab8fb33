"""Settings as flat keys, and which keys distinguish one setting from another."""

from collections.abc import Mapping, Sequence
from typing import Any

DEFAULTS: Mapping[str, Any] = {
    "network.unit": "binary",
    "network.initial": "torch",
    "network.accumulate": False,
    "network.standardise": False,
    "evaluation.self_ensemble": False,
}
"""Keys that are left out of a cell's key while they have this value.

A key that is added to the setting goes here with the behaviour before there was the key, so that no cell's key changes.
"""


def identifying(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a setting that goes into a cell's key: its flat keys that are not at their default."""
    return {key: value for key, value in flatten(setting).items() if key not in DEFAULTS or value != DEFAULTS[key]}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"steps": 5}}`` as ``{"train.steps": 5}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def distinguishing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Few keys that together distinguish all these flat settings, the task first, then by name.

    A key that distinguishes no more settings than those before it is left out.
    """

    def distinct(keys: Sequence[str]) -> int:
        return len({tuple(str(setting.get(key)) for key in keys) for setting in settings})

    chosen: list[str] = []
    for key in sorted({key for setting in settings for key in setting}, key=lambda key: (key != "task.name", key)):
        if distinct([*chosen, key]) > distinct(chosen):
            chosen.append(key)
    return chosen
