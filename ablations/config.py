"""The typed config: every key that a user can set, and the message for a wrong one.

Factors are keys at the root; :mod:`ablations.space.factors` declares them and their levels, and
:mod:`bbcu.model.methods` the presets of ``method=NAME``. All other keys are typed here, and Hydra refuses a key or a
type that does not fit.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablations.passwords import shown_address
from ablations.space.factors import FACTORS, load_declarations
from ablations.space.settings import DEFAULTS
from bbcu.errors import ConfigError, unknown
from bbcu.model.methods import METHODS
from bbcu.passwords import remember


@dataclass
class TaskConfig:
    """What is restored: ``sr_x2`` is super-resolution by two; the other keys are those of one task each.

    See :func:`bbcu.data.tasks.make_task`.
    """

    name: str = MISSING
    sigma: Any = None
    train_sigma: Any = None
    quality: Any = None
    train_quality: Any = None


@dataclass
class NetworkConfig:
    """The network around the units.

    ``name`` and ``unit`` are ours or the dotted path of the user's own; ``initial`` says how the latent weights of a
    binary body are initialised; ``accumulate`` and ``standardise`` are the parts of BAM and BTM that are not factors.
    See :class:`bbcu.model.networks.NetworkSpec`.
    """

    name: str = MISSING
    unit: str = DEFAULTS["network.unit"]
    initial: str = DEFAULTS["network.initial"]
    accumulate: bool = DEFAULTS["network.accumulate"]
    standardise: bool = DEFAULTS["network.standardise"]


@dataclass
class MethodConfig:
    """The preset that set the factors."""

    name: str = MISSING


@dataclass
class DataConfig:
    """Where the pictures are: the bundled photographs ("embedded"), or folders of the user's.

    ``inputs`` says whether low resolution is "made" or "given": taken from the folders that lie beside the truth.
    """

    name: str = MISSING
    train: str = MISSING
    test: Any = MISSING
    inputs: str = MISSING


@dataclass
class EvaluationConfig:
    """How a trained network is run on whole pictures; see :class:`bbcu.training.evaluation.Evaluation`."""

    self_ensemble: bool = DEFAULTS["evaluation.self_ensemble"]
    tile: int = MISSING


@dataclass
class TrainConfig:
    """How a trial trains; see :class:`bbcu.training.settings.TrainSettings`.

    All of it is part of a cell but ``compile``, which moves results by no more than rounding, and ``cuda_graph`` and
    ``int8``, which do not move them.
    """

    steps: int = MISSING
    batch: int = MISSING
    patch: int = MISSING
    lr: float = MISSING
    schedule: str = MISSING
    precision: str = MISSING
    compile: Any = MISSING
    cuda_graph: Any = MISSING
    int8: Any = MISSING


@dataclass
class StudyConfig:
    """The study that the trials belong to: a folder under ``outputs`` and an experiment in MLflow."""

    name: str = MISSING


@dataclass
class TrackingConfig:
    """Where and how densely a trial is recorded.

    ``curve_points`` and ``evaluations`` are the numbers of points of the training curve and the test curve, ``samples``
    is the number of pictures of each test set that are saved as crops and probed. ``snapshot_s`` is the time between
    two snapshots, and ``silence_s`` the time without a heartbeat after which a trial is given to another process, both
    in seconds.
    """

    uri: str = MISSING
    curve_points: int = MISSING
    evaluations: int = MISSING
    samples: int = MISSING
    snapshot_s: float = MISSING
    silence_s: float = MISSING


@dataclass
class Keys:
    """The root of the config without the factors."""

    task: TaskConfig = field(default_factory=TaskConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    channels: int = MISSING
    blocks: int = MISSING
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = MISSING

    outputs: str = MISSING
    device: str = MISSING
    threads: Any = MISSING
    progress: Any = MISSING
    on_change: str = MISSING
    session: str = MISSING


@dataclass
class Config(Keys):
    """A composed config.

    ``levels`` has the level of every factor as the user typed it. ``shown_uri`` is ``tracking.uri`` without passwords,
    and with its references to the environment.
    """

    levels: dict[str, Any] = field(default_factory=dict)
    shown_uri: str = ""


def schema() -> Any:
    """The dataclass that Hydra checks the root of the config against: a key for each factor, then the other keys."""
    factors = [(name, Any, _default(factor.reference)) for name, factor in FACTORS.items()]
    clashes = sorted({entry.name for entry in dataclasses.fields(Keys)} & FACTORS.keys())
    if clashes:
        raise ConfigError(f"factor {clashes[0]}: a key of the config has this name already")
    keys = [(entry.name, entry.type, _same_default(entry)) for entry in dataclasses.fields(Keys)]
    return dataclasses.make_dataclass("Schema", [*factors, *keys])


def _default(level: Any) -> Any:
    value = list(level) if isinstance(level, tuple) else level
    return field(default_factory=lambda: value) if isinstance(value, list) else field(default=value)


def _same_default(entry: "dataclasses.Field[Any]") -> Any:
    if entry.default is not dataclasses.MISSING:
        return field(default=entry.default)
    assert entry.default_factory is not dataclasses.MISSING
    return field(default_factory=entry.default_factory)


def as_yaml(config: Config) -> str:
    """The config as ``config.yaml`` holds it, with the factors at the root, without passwords."""
    keys = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(Keys)}
    keys["tracking"] = dataclasses.replace(config.tracking, uri=config.shown_uri)
    return OmegaConf.to_yaml(OmegaConf.structured(schema()(**config.levels, **keys)))


@dataclass
class SweeperConfig:
    """The keys of ``hydra.sweeper``.

    ``design`` says which combinations of the swept keys are cells. The keys from ``reference`` to ``storage`` are
    options of one design or another, None if not given; see :mod:`ablations.space.designs`, and
    :class:`ablations.search.options.SearchOptions` for those of ``design=search``. ``exclude`` has conditions on cells
    to leave out; see :mod:`ablations.space.conditions`. ``retries`` is how often a failed trial is retried.
    """

    _target_: str = "hydra_plugins.ablation_sweeper.AblationSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    design: str = "full"
    reference: Any = None
    steps: list[Any] | None = None
    fraction: Any = None
    generators: list[str] | None = None
    cells: int | None = None
    seed: int | None = None
    trials: int | None = None
    objectives: list[str] | None = None
    sampler: str | None = None
    pruner: str | None = None
    storage: str | None = None
    exclude: list[str] = field(default_factory=list)
    replicates: int = 1
    retries: int = 1
    dry_run: bool = False

    @property
    def design_options(self) -> dict[str, Any]:
        """The options that a design may take, by name."""
        names = (
            *("reference", "steps", "fraction", "generators", "cells", "seed"),
            *("trials", "objectives", "sampler", "pruner", "storage"),
        )
        return {name: getattr(self, name) for name in names}


def register() -> None:
    """Register the schema and the presets of the methods with Hydra; must run before Hydra composes anything.

    Factors that a user's packages declare are loaded first. Raises ConfigError if one cannot be.
    """
    load_declarations()
    store = ConfigStore.instance()
    store.store(name="schema", node=schema())
    for name, method in METHODS.items():
        preset = {"method": {"name": name}, **method.all_levels}
        if method.network:
            preset["network"] = dict(method.network)
        if method.channels is not None:
            preset["channels"] = method.channels
        store.store(group="method", name=name, node=preset, package="_global_")


def typed(config: DictConfig) -> Config:
    """The composed config as plain dataclasses, with every interpolation resolved.

    Raises ConfigError for a key that is still missing and for a value outside its range.
    """
    load_declarations()
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(REQUIRED.get(missing[0]) or f"{missing[0]} is required: set it, as in {missing[0]}=...")
    check_keys(config, schema())
    resolved = OmegaConf.to_object(config)
    levels = {name: getattr(resolved, name) for name in FACTORS}
    keys = {entry.name: getattr(resolved, entry.name) for entry in dataclasses.fields(Keys)}
    found = Config(**keys, levels=levels, shown_uri=shown_address(config, "tracking.uri"))
    remember(found.tracking.uri)
    check_ranges(found)
    return found


def check_keys(node: DictConfig, schema: type, prefix: str = "") -> None:
    """Raise ConfigError for a key that ``+key=...`` adds and for one that ``~key`` removes."""
    known = {entry.name for entry in dataclasses.fields(schema)}
    for name in node:
        if name not in known:
            raise ConfigError(unknown("key", f"{prefix}{name!s}", [f"{prefix}{valid}" for valid in sorted(known)]))
    for entry in dataclasses.fields(schema):
        if entry.name not in node:
            raise ConfigError(f"no value for {prefix}{entry.name}: it was removed from the config and has no default")
        if dataclasses.is_dataclass(entry.type) and isinstance(entry.type, type):
            check_keys(node[entry.name], entry.type, f"{prefix}{entry.name}.")


def check_ranges(config: Config) -> None:
    """Raise ConfigError for a value out of range."""
    at_least: dict[str, tuple[float, float]] = {
        "channels": (config.channels, 1),
        "blocks": (config.blocks, 1),
        "seed": (config.seed, 0),
        "train.steps": (config.train.steps, 1),
        "train.batch": (config.train.batch, 1),
        "train.patch": (config.train.patch, 1),
        "tracking.curve_points": (config.tracking.curve_points, 1),
        "tracking.evaluations": (config.tracking.evaluations, 1),
        "tracking.samples": (config.tracking.samples, 0),
        "tracking.snapshot_s": (config.tracking.snapshot_s, 0),
        "tracking.silence_s": (config.tracking.silence_s, 1),
        "evaluation.tile": (config.evaluation.tile, 0),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"{key}={value}: must be at least {least}")
    if not 0 < config.train.lr < math.inf:
        raise ConfigError(f"train.lr={config.train.lr:g}: must be a number above 0")
    if config.seed >= SEEDS:
        raise ConfigError(f"seed={config.seed}: must be below 2**63")
    one_of = {
        "progress": (config.progress, ("auto", True, False)),
        "on_change": (config.on_change, ON_CHANGE),
        "data.name": (config.data.name, ("embedded", "folder")),
        "data.inputs": (config.data.inputs, ("made", "given")),
    }
    for key, (choice, valid) in one_of.items():
        if choice not in valid:
            raise ConfigError(f"{key}={choice}: {unknown('value', choice, valid)}")
    check_data(config.data)
    if config.threads != "auto" and not (isinstance(config.threads, int) and config.threads >= 1):
        raise ConfigError(f"threads={config.threads}: must be auto or a whole number of at least 1")
    if not config.study.name or not set(config.study.name) <= STUDY_NAME:
        raise ConfigError(f"study.name={config.study.name!r}: letters, digits, - and _ only, as it names a folder")


def check_data(data: DataConfig) -> None:
    """Raise ConfigError unless ``data.test`` names folders."""
    test = data.test
    if not isinstance(test, dict) or not all(isinstance(path, str) and path for path in test.values()):
        raise ConfigError(f"data.test={test}: must name a folder for each test set, as in data.test='{{Set5: DIR}}'")
    reserved = sorted(set(test) & RESERVED_SETS)
    if reserved:
        raise ConfigError(f"data.test: a test set cannot be called {reserved[0]}, as a group of metrics is")
    if data.name == "embedded":
        unused = {"data.train": data.train, "data.test": data.test, "data.inputs": data.inputs == "given"}
        for key, is_set in unused.items():
            if is_set:
                value = getattr(data, key.removeprefix("data."))
                raise ConfigError(NO_EFFECT.format(key=f"{key}={value}"))
    elif not test:
        raise ConfigError(REQUIRED["data.test"])


REQUIRED = {
    "data.test": "data.test is required with data=folder: name at least one test set, as in data.test='{Set5: DIR}'",
}
"""The message for a required key, where more is to be said than its name."""

NO_EFFECT = "{key} has no effect on the photographs of data=embedded; add data=folder"

ON_CHANGE = ("stop", "keep", "retrain")
"""What to do with a result of the same config that was made by other code, or on pictures that have changed since."""

SEEDS = 2**63
"""Seeds are below this, which is what torch's generators take."""

RESERVED_SETS = {"train", "baseline", "cost", "timing"}
"""Groups of metrics that MLflow shows beside the test sets."""

STUDY_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    return f"{group}={option}: {unknown('option', option, sorted(error.options or []))}"


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """An error of Hydra or OmegaConf as one line that says what is valid."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_option(error)
    text = " ".join(str(error).split())
    if text.startswith("Ambiguous value for argument"):
        return f"{text.split(chr(39))[1]}: several values; add -m to sweep over them, or write [a,b] for a list"
    parent = getattr(cause, "parent_node", None)
    full_key = getattr(cause, "full_key", None)
    if isinstance(error, ConfigCompositionException) and full_key and isinstance(parent, DictConfig):
        reason = str(cause).splitlines()[0]
        if full_key.startswith("data.test."):
            return NO_EFFECT.format(key="data.test")
        if "is not in struct" in reason or "not in" in reason:
            prefix = full_key.rpartition(".")[0]
            valid = [f"{prefix}.{name!s}" if prefix else str(name) for name in parent if name != "hydra"]
            return unknown("key", full_key, valid)
        return f"{full_key}: {reason}"
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
