"""From rows to configs: Hydra composes one for each combination of the keys that are not factors.

Hydra needs about 50 ms for a config. Factors are keys at the root of the config, and usually nothing else depends on
them, so setting them in a config that Hydra has composed is what Hydra does, a thousand times faster.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from ablations.config import Config, StudyConfig, SweeperConfig, reading, typed
from ablations.planning.outline import Outline, RowDefaults, outline, split
from ablations.space.conditions import Value, value_of
from ablations.space.factors import FACTORS
from ablations.space.rows import MAX_ROWS, Row
from ablations.storage.plans import refuse_other_pairing
from ablations.trial.data import data_of
from ablations.trial.identity import backbone_of, check_runnable, setting_of
from bbcu.errors import ConfigError, shown

NOT_IN_A_CELL = {
    *(
        "outputs",
        "tracking",
        "device",
        "threads",
        "progress",
        "evaluation.tile",
        "evaluation.metrics",
        "on_change",
        "session",
    ),
    *("study.pairing", "measure", "cost", "trainings"),
}
"""The keys that say where and how to run, or how the results are compared, and are never part of a cell."""


@dataclass(frozen=True)
class SharedConfig:
    """What rows with the same keys other than factors share; ``network`` identifies what decides their network."""

    config: Config
    setting: Mapping[str, Any]
    network: str

    @classmethod
    def of(cls, config: Config, setting: Mapping[str, Any]) -> "SharedConfig":
        of_network = {key: value for key, value in setting.items() if key not in ("train", "data", "evaluation")}
        return cls(config, setting, json.dumps(of_network, sort_keys=True))


class FactorInterpolated(Exception):
    """A value of the config interpolates a factor, so the config of a row cannot be derived from a shared one."""


class Composer:
    """Composes the configs of a sweep's rows; ``derives`` is false if every row must be composed by Hydra itself.

    ``study`` is the study of all rows; its name is empty until a row has been composed.
    """

    def __init__(self, master: DictConfig, config_loader: ConfigLoader) -> None:
        self.master, self.config_loader = master, config_loader
        self.derives = True
        self.study = StudyConfig(name="")
        self._shared: dict[Row, SharedConfig] = {}

    def outline(self, rows: Sequence[Row], exclude: Sequence[str]) -> Outline:
        """Sort rows into those to train and those to leave out, as :func:`ablations.planning.outline.outline` does."""
        self.derives = not any(map(needs_hydra, {text for row in rows for text in row}))
        try:
            return outline(rows, self.defaults_of, exclude, reads_factors=self.derives)
        except FactorInterpolated:
            self.derives = False
            return outline(rows, self.defaults_of, exclude, reads_factors=False)

    def defaults_of(self, texts: Mapping[str, str]) -> RowDefaults:
        """Compose the config that rows with these texts share, and check all that does not depend on factors.

        Raises BbcuError for a config that cannot run, for data that cannot be read, for a second study, and for another
        ``study.pairing`` than the study was planned with.
        """
        row = tuple(f"{key}={text}" for key, text in texts.items())
        composed = self.compose(row)
        if self.derives and interpolates_factors(composed):
            raise FactorInterpolated
        config = typed(composed)
        check_runnable(config)
        if self.study.name not in ("", config.study.name):
            raise ConfigError(
                f"study.name: one sweep belongs to one study, not to {self.study.name} and {config.study.name}"
            )
        if not self.study.name:
            refuse_other_pairing(Path(config.outputs), config.study.name, config.study.pairing)
        elif self.study.pairing != config.study.pairing:
            raise ConfigError("study.pairing: one study compares its cells in one way; give it one value")
        self.study = config.study
        setting = setting_of(config, data_of(config).fingerprint)
        self._shared[row] = SharedConfig.of(config, setting)
        identity = (json.dumps(setting, sort_keys=True), config.seed)
        return RowDefaults(config.levels, backbone_of(config), identity, known_of(config))

    def config_of(self, row: Row) -> tuple[Config, SharedConfig]:
        """The config of a row that was outlined, and what it shares with others. Treat both as read-only."""
        levels: dict[str, Any] = {}
        if self.derives:
            levels = {key: level_in_config(text) for key, text in map(split, row) if key in FACTORS}
        shared = self._shared[tuple(text for text in row if split(text)[0] not in levels)]
        return dataclasses.replace(shared.config, levels={**shared.config.levels, **levels}), shared

    def compose(self, row: Sequence[str]) -> DictConfig:
        """Compose the config of one row by Hydra, without Hydra's own part."""
        with reading(shown(" ".join(row))):
            composed = self.config_loader.load_sweep_config(self.master, list(row))
        OmegaConf.set_struct(composed, False)
        composed.pop("hydra")
        return composed


def needs_hydra(text: str) -> bool:
    """Whether only Hydra can read an override: an interpolation in a cell, or a factor that is added or deleted."""
    key, value = split(text)
    is_interpolated = "$" in value and not is_not_in_a_cell(key)
    return is_interpolated or (key not in FACTORS and key.lstrip("+~").partition("@")[0] in FACTORS)


def interpolates_factors(config: DictConfig) -> bool:
    """Whether a value of the config interpolates a factor, or may do so because its interpolation is nested."""
    interpolation = re.compile(rf"\$\{{[^}}]*(?:\b(?:{'|'.join(FACTORS)})\b|\$\{{)")
    return interpolation.search(str(OmegaConf.to_container(config, resolve=False))) is not None


def level_in_config(text: str) -> Any:
    """The value that the text of a factor has in a composed config."""
    value = _value_of(text)
    return list(value) if isinstance(value, tuple) else value


_value_of = functools.lru_cache(maxsize=1024)(value_of)


def known_of(config: Config) -> dict[str, Value]:
    """What a condition may ask about besides the factors, whether the sweep sets it or not."""
    return {
        "task": config.task.name,
        "method": config.method.name,
        "network": config.network.name,
        "channels": config.channels,
        "blocks": config.blocks,
        "seed": config.seed,
    }


# --- the command line of a sweep --------------------------------------------------------------------------------------


def swept_values(arguments: Sequence[str], options: SweeperConfig, config_loader: ConfigLoader) -> dict[str, list[str]]:
    """The texts of each key of the study and the command line, one if the key is not swept; a later override wins.

    Raises ConfigError for a sweep without a finite list of values, and for one over a key that is not part of a cell.
    """
    with reading("the command line or the study"):
        overrides = OverridesParser.create(config_loader=config_loader).parse_overrides(
            [*(f"{key}={value}" for key, value in options.params.items()), *arguments]
        )
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [override.get_value_element_as_str()]
        elif is_not_in_a_cell(key):
            raise ConfigError(f"{key}: says where or how to run, so there is nothing to compare; give it one value")
        elif not override.is_discrete_sweep():
            raise ConfigError(f"{key}: an interval has no list of levels; use choice(...) or range(...)")
        else:
            values[key] = texts_of(override)
    return values


def texts_of(override: Override) -> list[str]:
    """The texts of the values that a key is swept over; raises ConfigError if there are none, or too many."""
    key, swept = override.get_key_element(), override.value()
    if isinstance(swept, RangeSweep):
        # Hydra lists a range before it shuffles it, and never ends one whose step does not move it.
        start, stop, step = (float(value) for value in (swept.start or 0, swept.stop or 0, swept.step))
        if not (math.isfinite(start) and math.isfinite(stop) and math.isfinite(step) and step != 0):
            raise ConfigError(f"{key}: a range has finite ends and a step that is not 0, as in range(1,10)")
        if (stop - start) / step > MAX_ROWS:
            raise ConfigError(f"{key}: the range has more than {MAX_ROWS} values, the most of a sweep")
    with reading(key):
        texts = [str(value) for value in override.sweep_string_iterator()]
    if not texts:
        is_range = isinstance(swept, RangeSweep)
        why = "the range is empty" if is_range else "a glob matches options of a group; list the levels"
        raise ConfigError(f"{key}: {why}")
    return texts


def check_compared_keys(texts: Iterable[str], swept: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError if the design itself, as the steps of a chain, sets a key that is not part of a cell."""
    for key in sorted({split(text)[0] for text in texts} - set(swept)):
        if is_not_in_a_cell(key):
            raise ConfigError(f"{key}: says where or how to run, so there is nothing to compare; set it for all cells")


def is_not_in_a_cell(key: str) -> bool:
    return bool({key, key.partition(".")[0]} & NOT_IN_A_CELL)
