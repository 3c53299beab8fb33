"""The plan of a sweep: every trial once, with the config that asks for it, and what is left out with its reason.

Planning trains nothing and writes nothing. :mod:`ablations.planning.outline` sorts the rows of a design; here they get
their configs from Hydra and become trials.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ablations.config import Config, SweeperConfig, typed
from ablations.planning.outline import LeftOutRow, Outline, RowDefaults, check_complete, outline, split
from ablations.space.conditions import Value, value_of
from ablations.space.designs import Listing, rows_of
from ablations.space.factors import FACTORS, SHOWN, level_text
from ablations.space.rows import Row
from ablations.storage.folder import Identity, TrialFolder
from ablations.trial.data import data_of
from ablations.trial.identity import Trial, backbone_of, check_network, check_runnable, setting_of, trial_of
from bbcu.errors import ConfigError

WHERE_AND_HOW = {"outputs", "tracking", "device", "threads", "progress", "evaluation.tile", "on_change", "session"}
"""The keys that are no part of a cell."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its identity, the overrides that ask for it, its config, and what its network's cost depends on."""

    trial: Trial
    identity: Identity
    overrides: tuple[str, ...]
    config: Config
    structure: Hashable

    @property
    def folder(self) -> TrialFolder:
        return TrialFolder(Path(self.config.outputs), self.trial.study, *self.identity)


@dataclass(frozen=True)
class LeftOut:
    """A combination that is not trained, and why; ``same_as`` is the key of the cell whose network it is, if any."""

    levels: Mapping[str, Any]
    setting: Mapping[str, Any]
    name: str
    reason: str
    same_as: str | None = None


@dataclass
class Plan:
    """Every trial of a sweep, each once, what was left out, and the design in words.

    ``idle`` has the conditions that left nothing out.
    """

    study: str
    design: Mapping[str, Any]
    trials: list[PlannedTrial] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    idle: tuple[str, ...] = ()


def make_plan(
    arguments: Sequence[str], options: SweeperConfig, master: DictConfig, config_loader: ConfigLoader
) -> Plan:
    """List the rows of the design, leave out what is no cell of its own, and keep one trial for each cell and seed."""
    overrides = OverridesParser.create(config_loader=config_loader).parse_overrides(
        [*(f"{key}={value}" for key, value in options.params.items()), *arguments]
    )
    swept = values_by_key(overrides)
    listing = rows_of(options.design, swept, options.design_options)
    texts = {text for row in listing.rows for text in row}
    refuse_to_compare_places(texts, swept)
    composer, found = outline_of(listing, texts, options, Composer(master, config_loader))
    check_complete(listing, found)
    cells = {row: cell_of(row, composer) for row in found.kept}
    if not cells:
        reasons = "; ".join(sorted({row.reason for row in found.left_out}))
        raise ConfigError(f"no cell of this sweep can be trained: {reasons}")
    check_networks(cells.values())
    return Plan(
        study=composer.study,
        design=design_record(options, listing),
        trials=trials_of(cells, options.replicates),
        left_out=[left_out_of(row, composer, cells) for row in found.left_out],
        idle=found.unused_conditions,
    )


class RowPlanner:
    """Plans rows one at a time, for a design that chooses them as it goes; ``swept`` has the texts of each key."""

    def __init__(
        self, arguments: Sequence[str], options: SweeperConfig, master: DictConfig, config_loader: ConfigLoader
    ) -> None:
        overrides = OverridesParser.create(config_loader=config_loader).parse_overrides(
            [*(f"{key}={value}" for key, value in options.params.items()), *arguments]
        )
        self.options = options
        self.swept = values_by_key(overrides)
        texts = {f"{key}={value}" for key, values in self.swept.items() for value in values}
        self._composer = Composer(master, config_loader)
        self._composer.derives = not any(map(is_hydras, texts))
        self._checked: set[Hashable] = set()

    def base(self) -> Config:
        """The config of the first row, which says where and how the sweep runs."""
        row = tuple(f"{key}={values[0]}" for key, values in self.swept.items())
        config = typed(compose(self._composer.master, self._composer.config_loader, row))
        check_runnable(config)
        return config

    def plan(self, row: Row) -> Plan:
        """The plan of one row: its cell under each replicate, or why it is none."""
        listing = Listing((row,))
        _, found = outline_of(listing, row, self.options, self._composer)
        cells = {kept: cell_of(kept, self._composer) for kept in found.kept}
        new = [cell for cell in cells.values() if cell.structure not in self._checked]
        check_networks(new)
        self._checked |= {cell.structure for cell in new}
        return Plan(
            study=self._composer.study,
            design=design_record(self.options, listing),
            trials=trials_of(cells, self.options.replicates),
            left_out=[left_out_of(row, self._composer, cells) for row in found.left_out],
        )


def refuse_to_compare_places(texts: Iterable[str], swept: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError where the design itself, as the steps of a chain, sets where or how to run."""
    for key in sorted({split(text)[0] for text in texts} - set(swept)):
        if says_where_or_how(key):
            raise ConfigError(f"{key}: says where or how to run, so there is nothing to compare; set it for all cells")


def outline_of(
    listing: Listing, texts: Iterable[str], options: SweeperConfig, composer: "Composer"
) -> "tuple[Composer, Outline]":
    """The rows that are cells of their own, with a config composed for each combination of the other keys only.

    Where the meaning of a factor's text, or of another key's, is settled by Hydra alone, every row is composed.
    """
    composer.derives = not any(map(is_hydras, texts))
    try:
        return composer, outline(listing.rows, composer.base_of, options.exclude, reads_factors=composer.derives)
    except MadeOfFactors:
        composer.derives = False
        return composer, outline(listing.rows, composer.base_of, options.exclude, reads_factors=False)


def is_hydras(text: str) -> bool:
    """Whether an override can only be read by Hydra: an interpolation, or a factor that is added or taken away."""
    key, value = split(text)
    return "$" in value or (key not in FACTORS and key.lstrip("+~").partition("@")[0] in FACTORS)


@dataclass(frozen=True)
class Start:
    """What the rows with the same keys beside the factors share; ``network`` is all that decides their network."""

    config: Config
    setting: Mapping[str, Any]
    network: str


class MadeOfFactors(Exception):
    """A config makes something of a factor by an interpolation, so no row's config can be derived from it."""


class Composer:
    """Composes a config once for each combination of the keys that are no factors, and derives each row's from it.

    Factors stand at the root of the config and nothing else is made of them, so setting them afterwards is what Hydra
    does, a thousand times faster. A config that does make something of one, by an interpolation, raises MadeOfFactors;
    nothing may be derived then. Without ``derives`` every row is composed as it stands.
    """

    def __init__(self, master: DictConfig, config_loader: ConfigLoader) -> None:
        self.master = master
        self.config_loader = config_loader
        self.derives = True
        self.study = ""
        self.starts: dict[Row, Start] = {}

    def base_of(self, texts: Mapping[str, str]) -> RowDefaults:
        """What rows with these texts start from; checks all that does not depend on factors.

        Raises BbcuError for a config that cannot be run, for data that cannot be read, and for a second study.
        """
        row = tuple(f"{key}={text}" for key, text in texts.items())
        composed = compose(self.master, self.config_loader, row)
        if self.derives and refers_to_factors(composed):
            raise MadeOfFactors
        config = typed(composed)
        check_runnable(config)
        if self.study not in ("", config.study.name):
            raise ConfigError(
                f"study.name: one sweep belongs to one study, not to {self.study} and {config.study.name}"
            )
        self.study = config.study.name
        setting = setting_of(config, data_of(config).fingerprint)
        decides = {key: value for key, value in setting.items() if key not in ("train", "data", "evaluation")}
        self.starts[row] = Start(config, setting, json.dumps(decides, sort_keys=True))
        identity = (json.dumps(setting, sort_keys=True), config.seed)
        return RowDefaults(config.levels, backbone_of(config), identity, known_of(config))

    def config_of(self, row: Row) -> tuple[Config, Start]:
        """The config of a row whose base was asked for, and what it shares with others; to be changed by nobody."""
        factors = {}
        if self.derives:
            factors = {key: level_in_config(text) for key, text in map(split, row) if key in FACTORS}
        start = self.starts[tuple(text for text in row if split(text)[0] not in factors)]
        return dataclasses.replace(start.config, levels={**start.config.levels, **factors}), start


def level_in_config(text: str) -> Any:
    """The value that the text of a factor has in a composed config."""
    value = _read_value(text)
    return list(value) if isinstance(value, tuple) else value


_read_value = functools.lru_cache(maxsize=1024)(value_of)


def known_of(config: Config) -> dict[str, Value]:
    """What a condition may ask about beside the factors, wherever the sweep sets it or not."""
    return {
        "task": config.task.name,
        "method": config.method.name,
        "network": config.network.name,
        "channels": config.channels,
        "blocks": config.blocks,
        "seed": config.seed,
    }


def refers_to_factors(config: DictConfig) -> bool:
    """Whether a value of the config interpolates a factor, or may do so because its interpolation is nested."""
    names = "|".join(FACTORS)
    interpolation = re.compile(rf"\$\{{[^}}]*(?:\b(?:{names})\b|\$\{{)")
    return interpolation.search(str(OmegaConf.to_container(config, resolve=False))) is not None


@dataclass(frozen=True)
class PlannedCell:
    """A row that is a cell of its own: its trial under the first seed, and what that was made of."""

    row: Row
    config: Config
    trial: Trial
    structure: Hashable
    key: str


def cell_of(row: Row, composer: Composer) -> PlannedCell:
    """The cell of a row; its setting is worked out once a base."""
    config, start = composer.config_of(row)
    trial = trial_of(config, start.setting)
    return PlannedCell(row, config, trial, structure_of(trial, start), trial.cell.key)


def structure_of(trial: Trial, start: Start) -> Hashable:
    """What decides whether a network can be built and what it costs, so that each is built once and not in each cell.

    Of the factors that is the binary parts, and what a user has written; a network or unit of the user's may look at
    all of them.
    """
    factors = trial.cell.factors
    layout = trial.cell.setting["network"]
    if "." in layout["name"] + layout.get("unit", ""):
        return start.network, *factors.values()
    own = (level for level in factors.values() if isinstance(level, str) and "." in level)
    return start.network, factors["binarize"], *own


def check_networks(cells: Iterable[PlannedCell]) -> None:
    """Raise ConfigError where a network cannot be built; each structure is built once."""
    for cell in {cell.structure: cell for cell in cells}.values():
        check_network(cell.trial)


def trials_of(cells: Mapping[Row, PlannedCell], replicates: int) -> list[PlannedTrial]:
    """Every cell under each replicate: its seed is the one asked for plus the replicate's number. Each trial once."""
    trials: dict[Identity, PlannedTrial] = {}
    # A whole replicate comes before the next, so a sweep that is stopped leaves whole replicates.
    for replicate, (row, cell) in itertools.product(range(replicates), cells.items()):
        seed = cell.trial.seed + replicate
        identity = (cell.key, seed)
        if identity not in trials:
            trial = dataclasses.replace(cell.trial, seed=seed)
            own = (*row, f"seed={seed}", f"hydra.sweep.subdir={trial.study}/{cell.key}/seed{seed}")
            config = dataclasses.replace(cell.config, seed=seed)
            trials[identity] = PlannedTrial(trial, identity, own, config, cell.structure)
    return list(trials.values())


def left_out_of(entry: LeftOutRow, composer: Composer, cells: Mapping[Row, PlannedCell]) -> LeftOut:
    """A row that is left out as people and ``plan.json`` are told of it."""
    config, start = composer.config_of(entry.row)
    levels = config.levels
    name = " ".join(f"{name}={level_text(level)}" for name, level in levels.items())
    if entry.same_as is None:
        return LeftOut(levels, start.setting, name, entry.why)
    same = cells[entry.same_as]
    reason = f"the same network as {same.trial.name} ({same.key[:SHOWN]}): {entry.why}"
    return LeftOut(levels, start.setting, name, reason, same.key)


def design_record(options: SweeperConfig, listing: Listing) -> dict[str, Any]:
    """The design as ``plan.json`` keeps it: its name, the options that were given, the conditions, and its notes."""
    given = {name: value for name, value in options.design_options.items() if value is not None}
    return {"name": options.design, "options": given, "exclude": options.exclude, "notes": list(listing.notes)}


def values_by_key(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """Each key's values as texts, a single one where it is not swept; a later override of a key wins.

    Raises ConfigError for a sweep without a finite list of values.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [override.get_value_element_as_str()]
        elif says_where_or_how(key):
            raise ConfigError(f"{key}: says where or how to run, so there is nothing to compare; give it one value")
        elif not override.is_discrete_sweep():
            raise ConfigError(f"{key}: an interval has no list of levels; use choice(...) or range(...)")
        else:
            values[key] = [str(value) for value in override.sweep_string_iterator()]
            if not values[key]:
                raise ConfigError(f"{key}={override.value()}: a glob finds the options of a group; list the levels")
    return values


def says_where_or_how(key: str) -> bool:
    return bool({key, key.partition(".")[0]} & WHERE_AND_HOW)


def compose(master: DictConfig, config_loader: ConfigLoader, row: Sequence[str]) -> DictConfig:
    """The config of one combination as Hydra composes it, without Hydra's own part."""
    composed = config_loader.load_sweep_config(master, list(row))
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    return composed


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as ``plan.json`` keeps it."""
    return {
        "study": plan.study,
        "design": plan.design,
        "reference": plan.trials[0].trial.facts()["reference"],
        "trials": [entry.trial.facts() for entry in plan.trials],
        "left_out": [vars(entry) for entry in plan.left_out],
    }
