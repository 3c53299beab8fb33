"""Which trial teaches another: the full-precision network of the same layout, trained in the same setting and seed.

A cell with ``distil`` at its reference has no teacher. The teacher is a cell like any other: a sweep trains it once and
all that it teaches share it. It follows from the cell and its setting alone, so nothing of it is in a cell's key.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablations.config import Config, MethodConfig
from ablations.space.factors import REFERENCE, Levels, level_text
from ablations.space.rows import Row
from ablations.space.settings import DEFAULTS
from bbcu.training.settings import DISTIL_WEIGHTS

DISTIL = "distil"
"""The factor that asks for a teacher."""

AUTO_WEIGHT = DEFAULTS["train.distil_weight"]

METHOD = "full_precision"

TEACHER_LEVELS: Mapping[str, Any] = {"binarize": ()}
"""The levels of a teacher that are not at the reference."""

OF_UNITS: Mapping[str, Any] = {
    name: DEFAULTS[f"network.{name}"] for name in ("unit", "initial", "accumulate", "standardise")
}
"""The keys of the network that are about binary units, as a teacher has them: it has no such unit."""


def needs_teacher(factors: Levels) -> bool:
    """Whether a cell of these canonical levels is taught."""
    return factors[DISTIL] != REFERENCE[DISTIL]


def levels_of_teacher() -> dict[str, Any]:
    """The level of every factor of a teacher, as a config has it."""
    levels = {**REFERENCE, **TEACHER_LEVELS}
    return {name: list(level) if isinstance(level, tuple) else level for name, level in levels.items()}


def config_of_teacher(config: Config) -> Config:
    """The config of the trial that teaches the trial of ``config``."""
    return dataclasses.replace(
        config,
        levels=levels_of_teacher(),
        method=MethodConfig(METHOD),
        network=dataclasses.replace(config.network, **OF_UNITS),
        train=dataclasses.replace(config.train, distil_weight=AUTO_WEIGHT),
        trainings=1,
    )


def setting_of_teacher(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The setting of the trial that teaches one of this ``setting``."""
    train = {**setting["train"], "distil_weight": AUTO_WEIGHT}
    return {**setting, "network": {**setting["network"], **OF_UNITS}, "train": train}


def row_of_teacher(row: Row) -> Row:
    """The overrides of the trial that teaches the trial of these overrides."""
    own = {name: level_text(level) for name, level in levels_of_teacher().items()}
    own |= {f"network.{name}": level_text(value) for name, value in OF_UNITS.items()}
    own |= {"method.name": METHOD, "train.distil_weight": AUTO_WEIGHT}
    kept = [text for text in row if text.partition("=")[0] not in own]
    return (*kept, *(f"{key}={text}" for key, text in own.items()))


def canonical_weight(setting: Mapping[str, Any], factors: Levels) -> Mapping[str, Any]:
    """A setting whose ``train.distil_weight`` is "auto" where another value changes nothing.

    So a cell without a teacher has one key whatever the weight, and so has one whose weight is that of "auto".
    """
    weight = setting.get("train", {}).get("distil_weight", AUTO_WEIGHT)
    if weight == AUTO_WEIGHT or (needs_teacher(factors) and weight != DISTIL_WEIGHTS[str(factors[DISTIL])]):
        return setting
    return {**setting, "train": {**setting["train"], "distil_weight": AUTO_WEIGHT}}
