"""The typed config: every key that a user can set, and how a wrong one is told.

Factors stand at the root and are checked against :mod:`ablations.space.factors`; all else is typed here, and Hydra
refuses a key or a type that does not fit.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbcu.errors import ConfigError, unknown


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
    """The layout around the units.

    ``name`` and ``unit`` are ours or the dotted path of the user's own; ``initial`` is how the latent weights of a
    binary body start; ``accumulate`` and ``standardise`` are the parts of BAM and BTM that are no factor.
    See :class:`bbcu.model.networks.NetworkSpec`.
    """

    name: str = MISSING
    unit: str = MISSING
    initial: str = MISSING
    accumulate: bool = MISSING
    standardise: bool = MISSING


@dataclass
class MethodConfig:
    """The preset that set the factors."""

    name: str = MISSING


@dataclass
class DataConfig:
    """Where the pictures are: those that come along ("embedded"), or folders of the user's.

    ``inputs`` says whether low resolution is "made" or "given": taken from the folders that lie beside the truth.
    """

    name: str = MISSING
    train: str = MISSING
    test: Any = MISSING
    inputs: str = MISSING


@dataclass
class EvaluationConfig:
    """How a trained network is run on whole pictures; see :class:`bbcu.training.evaluation.Evaluation`."""

    self_ensemble: bool = MISSING
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

    ``curve_points`` and ``evaluations`` are how many points the training curve and the test curve have, ``samples`` how
    many pictures of each test set leave a crop and are looked at inside the network. ``snapshot_s`` is how many seconds
    of training may be lost to a crash, and ``silence_s`` after how many without a sign a trial is given out again.
    """

    uri: str = MISSING
    curve_points: int = MISSING
    evaluations: int = MISSING
    samples: int = MISSING
    snapshot_s: float = MISSING
    silence_s: float = MISSING


@dataclass
class Config:
    """The root of the config; the factors come first."""

    residual: Any = MISSING
    bn: Any = MISSING
    act: Any = MISSING
    act_fn: Any = MISSING
    align: Any = MISSING
    binarize: Any = MISSING
    threshold: Any = MISSING
    surrogate: Any = MISSING
    weight: Any = MISSING

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
class SweeperConfig:
    """The keys of ``hydra.sweeper``.

    ``design`` says which combinations of the swept keys are cells, and those from ``reference`` to ``storage`` are
    options that one design or another takes, None where they are not given; see :mod:`ablations.space.designs`, and
    :class:`ablations.search.search.SearchOptions` for those of ``design=search``. ``exclude`` has conditions on cells
    to leave out; see :mod:`ablations.space.conditions`. ``retries`` is how often a trial that failed is tried again.
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
        """What a design may be given, by the names under which it takes them."""
        names = (
            *("reference", "steps", "fraction", "generators", "cells", "seed"),
            *("trials", "objectives", "sampler", "pruner", "storage"),
        )
        return {name: getattr(self, name) for name in names}


def register() -> None:
    """Tell Hydra of the schema; to be called before Hydra composes anything."""
    ConfigStore.instance().store(name="schema", node=Config)


def typed(config: DictConfig) -> Config:
    """The composed config as plain dataclasses, every interpolation resolved.

    Raises ConfigError for a key that is still missing and for a value outside its range.
    """
    check_keys(config, Config)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: set it on the command line, as in {missing[0]}=...")
    resolved = OmegaConf.to_object(config)
    assert isinstance(resolved, Config)
    check_ranges(resolved)
    return resolved


def check_keys(node: DictConfig, schema: type, prefix: str = "") -> None:
    """Raise ConfigError for a key that ``+key=...`` has added and for one that ``~key`` has taken away."""
    known = {entry.name for entry in dataclasses.fields(schema)}
    for name in node:
        if name not in known:
            raise ConfigError(unknown("key", f"{prefix}{name!s}", [f"{prefix}{valid}" for valid in sorted(known)]))
    for entry in dataclasses.fields(schema):
        if entry.name not in node:
            raise ConfigError(f"no value for {prefix}{entry.name}: it was taken away and has no default")
        if dataclasses.is_dataclass(entry.type) and isinstance(entry.type, type):
            check_keys(node[entry.name], entry.type, f"{prefix}{entry.name}.")


def check_ranges(config: Config) -> None:
    """Raise ConfigError for a value that no trial can be run with."""
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
    if data.inputs == "given" and data.name != "folder":
        raise ConfigError(f"data.inputs=given: data={data.name} brings no inputs along; use data=folder")
    if data.name == "folder" and not test:
        raise ConfigError("data.test={}: at least one test set is needed, as in data.test='{Set5: DIR}'")


ON_CHANGE = ("stop", "keep", "retrain")
"""What becomes of a result of the same config that other code, or the same pictures in another state, has made."""

SEEDS = 2**63
"""Seeds are below this, which is what torch's generators take."""

RESERVED_SETS = {"train", "baseline", "cost", "timing"}
"""Groups of metrics that MLflow shows beside the test sets."""

STUDY_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    return f"{group}={option}: {unknown('option', option, sorted(error.options or []))}"


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """What Hydra or OmegaConf refused, in one line that says what is valid."""
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
        if "is not in struct" in reason or "not in" in reason:
            prefix = full_key.rpartition(".")[0]
            valid = [f"{prefix}.{name!s}" if prefix else str(name) for name in parent if name != "hydra"]
            return unknown("key", full_key, valid)
        return f"{full_key}: {reason}"
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
