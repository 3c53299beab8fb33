"""From the facts that a trial has recorded to the spec of its network."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from bbcu.data.tasks import make_task, noise_level
from bbcu.errors import ConfigError, shown, unknown
from bbcu.model.activations import ACTIVATIONS
from bbcu.model.parts import NetworkSpec
from bbcu.model.rescales import RESCALES
from bbcu.model.specs import UnitSpec
from bbcu.model.thresholds import THRESHOLDS

LEVELS: Mapping[str, tuple[bool | str, ...]] = {
    "residual": (True, False, "block", "scaled"),
    "bn": ("none", "pre", "post", "branch", "out"),
    "act": ("inside", "after", "first", "none"),
    "act_fn": tuple(ACTIVATIONS),
    "threshold": (True, False, *THRESHOLDS),
    "rescale": ("none", *RESCALES),
}
"""The levels of the factors that decide what a unit computes at inference, besides the signs of its weights."""

OF_NETWORK = ("align", "binarize")
"""The factors that decide what the network around the units is."""

OF_TRAINING = ("start", "distil")
"""The factors that decide how a network is trained, and nothing of what it is."""

OPTIONS = ("groups", "layers", "tail")
"""The options of a network that results from before it had them leave out."""

BOUNDS: Mapping[str, tuple[int, int]] = {
    "scale": (1, 16),
    "channels": (1, 2**12),
    "blocks": (0, 1000),
    "groups": (1, 1000),
    "layers": (1, 1000),
    "colours": (1, 64),
}
"""The least and the most of each whole number of a spec; the largest are far beyond any use."""


def spec_of(factors: Mapping[str, Any], setting: Mapping[str, Any]) -> NetworkSpec:
    """Return the spec of a trial's network from the ``factors`` and the ``setting`` of its ``result.json``.

    A factor that a user's package declares is an extra level of the unit. Which class implements it is not recorded:
    ``unit_class`` is that of the setting's network. Raises ConfigError as :func:`checked`; a KeyError, TypeError or
    ValueError if these are not the facts of a trial that trains a network.
    """
    task, network = make_task(setting["task"]), setting["network"]
    for name in ("unit", "initial"):
        if not isinstance(network[name], str):
            raise ConfigError(f"network.{name}={shown(network[name])}: must be a name")
    spec = NetworkSpec(
        scale=task.scale,
        colours=task.colours,
        channels=setting["channels"],
        blocks=setting["blocks"],
        unit=UnitSpec.of({name: level for name, level in factors.items() if name not in (*OF_NETWORK, *OF_TRAINING)}),
        align=factors["align"],
        binarize=tuple(factors["binarize"]),
        unit_class=network["unit"],
        initial=network["initial"],
        accumulate=network["accumulate"],
        standardise=network["standardise"],
        noise_level=noise_level(task),
        **{name: network[name] for name in OPTIONS if name in network},
    )
    return checked(spec)


def checked(spec: NetworkSpec) -> NetworkSpec:
    """Return a spec whose values may have any type, with a float for its alignment.

    Raises ConfigError for a level that does not exist and for a number out of range.
    """
    for name, valid in LEVELS.items():
        value = getattr(spec.unit, name)
        if not any(value is level if isinstance(level, bool) else value == level for level in valid):
            raise ConfigError(f"{name}: {unknown('level', shown(value), [str(level).lower() for level in valid])}")
    for name, (least, most) in BOUNDS.items():
        value = getattr(spec, name)
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(f"{name}={shown(value)}: must be a whole number from {least} to {most}")
    for name in ("surrogate", "weight"):
        if not isinstance(getattr(spec.unit, name), str):
            raise ConfigError(f"{name}={shown(getattr(spec.unit, name))}: must be a name")
    for name in ("accumulate", "standardise"):
        if type(getattr(spec, name)) is not bool:
            raise ConfigError(f"network.{name}={shown(getattr(spec, name))}: must be true or false")
    return dataclasses.replace(spec, align=alignment(spec.align))


def alignment(value: object) -> float:
    """Return a residual alignment as a float; raises ConfigError unless it is a positive number."""
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
        raise ConfigError(f"align={shown(value)}: must be a positive number")
    return float(value)  # type: ignore[arg-type]
