"""The typed config: every key that a user can set, and the message for a wrong one.

Factors are keys at the root; :mod:`ablations.space.factors` declares them and their levels, and
:mod:`bbcu.model.methods` the presets of ``method=NAME``. All other keys are typed here, and Hydra refuses a key or a
type that does not fit. The bounds of a number and the values of a choice are declared with its key, see :func:`number`
and :func:`choice`.
"""

import contextlib
import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablations.passwords import shown_address
from ablations.space.conditions import LONGEST_NUMBER
from ablations.space.factors import FACTORS, level_text, load_declarations
from ablations.space.price import MEASURED, PAPER, price_of
from ablations.space.rows import MAX_ROWS
from ablations.space.rules import MAX_CHANNELS
from ablations.space.settings import DEFAULTS, LAST_SEED
from bbcu.errors import ConfigError, first_line, printable, shown, unknown
from bbcu.model.methods import METHODS
from bbcu.passwords import remember

ON_CHANGE = ("stop", "keep", "retrain")
"""What to do with a result of the same config that was made by other code, or on pictures that have changed since."""

JOBLIB = "joblib"

AUTO = "auto"
"""The ``n_jobs`` of joblib that means one trial for each core, and on GPUs as many as their memory holds."""

MAX_THREADS = 1024
"""The most threads of a trial. OpenMP crashes the process if it cannot start as many as it is asked for."""

DECIDED = "decided"
"""The value of ``hydra.sweeper.until`` for a sweep that ends when every comparison is decided."""

MOST_REPLICATES = 100
"""The most seeds of a cell in such a sweep. The time to compute its boundary grows with the number of looks."""

LONGEST_TEXT = 4096
"""The most characters of a text: those of a path on Linux."""

FILE_NAME = r"[A-Za-z0-9_-]{1,100}"
A_FILE_NAME = "1 to 100 letters of ASCII, digits, - and _"
"""What names a study and a test set. A name of a file has at most 255 bytes, and more may be added to this one."""


def number(default: Any = MISSING, *, least: float, most: float, above: bool = False) -> Any:
    """A key for a number from ``least`` to ``most``, without ``least`` itself if ``above``.

    The largest value is far beyond any use: it keeps a slip of the finger from filling the memory.
    """
    return field(default=default, metadata={"least": least, "most": most, "above": above})


def choice(*valid: Any, default: Any = MISSING) -> Any:
    """A key for one of these values."""
    return field(default=default, metadata={"valid": valid})


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
    groups: int = number(DEFAULTS["network.groups"], least=1, most=1000)
    layers: int = number(DEFAULTS["network.layers"], least=1, most=1000)
    tail: str = DEFAULTS["network.tail"]


@dataclass
class MethodConfig:
    """The preset that set the factors."""

    name: str = MISSING


@dataclass
class DataConfig:
    """Where the pictures are: the bundled photographs ("embedded"), or folders of the user's.

    ``inputs`` says whether low resolution is "made" or "given": taken from the folders that lie beside the truth.
    """

    name: str = choice("embedded", "folder")
    train: str = MISSING
    test: Any = MISSING
    inputs: str = choice("made", "given")


@dataclass
class EvaluationConfig:
    """How a trained network is run on whole pictures; see :class:`bbcu.training.evaluation.Evaluation`.

    ``metrics`` are the dotted paths of the user's own metrics, which are scored beside PSNR and SSIM; see
    :mod:`ablations.trial.own_metrics`. They are part of no cell.
    """

    self_ensemble: bool = DEFAULTS["evaluation.self_ensemble"]
    tile: int = number(least=0, most=10**6)
    metrics: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    """How a trial trains; see :class:`bbcu.training.settings.TrainSettings`.

    ``distil_weight`` is part of a cell with ``distil``. All else is part of every cell but ``compile``, which moves
    results by no more than rounding, and ``cuda_graph``, ``int8`` and ``native``, which do not move them.
    """

    steps: int = number(least=1, most=10**9)
    batch: int = number(least=1, most=2**16)
    patch: int = number(least=1, most=2**14)
    lr: float = number(least=0, most=1e38, above=True)
    schedule: str = MISSING
    precision: str = MISSING
    compile: Any = MISSING
    cuda_graph: Any = MISSING
    int8: Any = MISSING
    native: Any = "auto"
    distil_weight: Any = DEFAULTS["train.distil_weight"]


@dataclass
class StudyConfig:
    """The study that the trials belong to: a folder under ``outputs`` and an experiment in MLflow.

    ``pairing`` says that its report compares cells seed by seed. It is part of no cell, and the first sweep fixes it.
    """

    name: str = MISSING
    pairing: bool = False


@dataclass
class TrackingConfig:
    """Where and how densely a trial is recorded.

    ``curve_points`` and ``evaluations`` are the numbers of points of the training curve and the test curve, ``samples``
    is the number of pictures of each test set that are saved as crops and probed. ``snapshot_s`` is the time between
    two snapshots, and ``silence_s`` the time without a heartbeat after which a trial is given to another process, both
    in seconds. With ``model`` the trained network is logged as a model of MLflow; see :mod:`ablations.tracking.model`.
    """

    uri: str = MISSING
    curve_points: int = number(least=1, most=10**6)
    evaluations: int = number(least=1, most=10**6)
    samples: int = number(least=0, most=10**6)
    snapshot_s: float = number(least=0, most=10**9)
    silence_s: float = number(least=1, most=10**9)
    model: bool = False


@dataclass
class MeasureConfig:
    """What is measured of a trained network beside its scores.

    With ``latency`` each trained network is packed and timed beside its full-precision twin, on one thread of the CPU;
    see :mod:`ablations.trial.latency`. It is part of no cell: a finished trial that lacks it is measured from its
    checkpoint by the next run of the same command, and nothing is trained again. A search measures what it trains, and
    what lacks the ratio that is its objective.
    """

    latency: bool = False


@dataclass
class CostConfig:
    """How costs are compared.

    ``binary`` is the price of a binary multiply-add, as :func:`ablations.space.price.price_of` reads it: for a search's
    ``ops_g``, in a dry run, and by default in the study's report. ``ops_g`` in a result is always as the paper counts.
    It is part of no cell.
    """

    binary: str = PAPER


@dataclass
class Keys:
    """The root of the config without the factors.

    ``session`` is the sweep that a trial belongs to, and ``trainings`` how many of that sweep share the code of
    compiled units; a sweep sets both.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    channels: int = number(least=1, most=MAX_CHANNELS)
    blocks: int = number(least=1, most=1000)
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    seed: int = number(least=0, most=LAST_SEED)

    outputs: str = MISSING
    device: str = MISSING
    threads: Any = MISSING
    progress: Any = field(default=MISSING, metadata={"valid": ("auto", True, False)})
    on_change: str = choice(*ON_CHANGE)
    session: str = MISSING
    trainings: int = number(1, least=1, most=MAX_ROWS)


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
    to leave out; see :mod:`ablations.space.conditions`. Every cell gets ``replicates`` seeds. With ``until=decided``
    the cells of undecided comparisons get more, up to ``most_replicates``; ``looks`` are the numbers of seeds at which
    a verdict may fall, every one if None, and differences below ``margin_db`` do not matter. ``retries`` is how often a
    failed trial is retried. A dry run says what to expect if cells spread by ``spread_db`` between seeds, or as in the
    study ``spread_from``.
    """

    _target_: str = "hydra_plugins.ablation_sweeper.AblationSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    design: str = "full"
    reference: Any = None
    steps: list[Any] | None = None
    fraction: Any = None
    generators: list[str] | None = None
    cells: int | None = number(None, least=1, most=MAX_ROWS)
    seed: int | None = number(None, least=0, most=2**32 - 1)
    trials: int | None = number(None, least=1, most=MAX_ROWS)
    objectives: list[str] | None = None
    sampler: str | None = None
    pruner: str | None = None
    storage: str | None = None
    exclude: list[str] = field(default_factory=list)
    replicates: int = number(1, least=1, most=MAX_ROWS)
    until: str | None = choice(None, DECIDED, default=None)
    most_replicates: int | None = number(None, least=1, most=MOST_REPLICATES)
    looks: list[int] | None = None
    margin_db: float = number(0.05, least=0, most=100, above=True)
    retries: int = number(1, least=0, most=1000)
    dry_run: bool = False
    spread_db: float | None = number(None, least=0, most=100, above=True)
    spread_from: str | None = None

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
    _store(tuple((name, level_text(factor.reference)) for name, factor in FACTORS.items()))


@functools.lru_cache(maxsize=1)
def _store(factors: tuple[tuple[str, str], ...]) -> None:
    """Put the schema with these factors into Hydra's store, which keeps it as long as the process lives."""
    store = ConfigStore.instance()
    store.store(name="schema", node=schema())
    for name, method in METHODS.items():
        preset = {"method": {"name": name}, **method.all_levels}
        if method.network:
            preset["network"] = dict(method.network)
        if method.channels is not None:
            preset["channels"] = method.channels
        store.store(group="method", name=name, node=preset, package="_global_")
    _store_joblib(store)


def _store_joblib(store: ConfigStore) -> None:
    """Let joblib's ``n_jobs`` be ``auto``, which is its default here; its launcher allows numbers alone."""
    # Hydra's search for plugins stores the configs of all launchers, and would replace this one.
    Plugins.instance()
    if f"{JOBLIB}.yaml" not in store.list("hydra/launcher"):
        return
    declared: Any = OmegaConf.get_type(store.load(f"hydra/launcher/{JOBLIB}.yaml").node)
    node = dataclasses.make_dataclass("JoblibConfig", [("n_jobs", Any, AUTO)], bases=(declared,))
    store.store(group="hydra/launcher", name=JOBLIB, node=node, provider="bbcu")


def typed(config: DictConfig) -> Config:
    """The composed config as plain dataclasses, with every interpolation resolved.

    Raises ConfigError for a key that is still missing, for a value outside its range, and for text with characters that
    no file and no terminal takes.
    """
    load_declarations()
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(REQUIRED.get(missing[0]) or f"{missing[0]} is required: set it, as in {missing[0]}=...")
        check_keys(config, schema())
        with reading():
            resolved = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
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


def refuse_long_numbers(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a number of so many digits that neither Python nor a file name can have it."""
    for text in arguments:
        if re.search(rf"[0-9][0-9_]{{{LONGEST_NUMBER}}}", text):
            raise ConfigError(f"{shown(text.partition('=')[0])}: a number has at most {LONGEST_NUMBER} digits")


def check_ranges(config: Config) -> None:
    """Raise ConfigError for a value out of range."""
    check_bounds(config)
    for key, value, _ in entries(config):
        check_text(key, value)
    check_data(config.data)
    if price_of(config.cost.binary) is None and not config.measure.latency:
        raise ConfigError(f"cost.binary={MEASURED}: needs measure.latency=true, which also measures what is trained")
    if config.threads != "auto" and not (type(config.threads) is int and 1 <= config.threads <= MAX_THREADS):
        raise ConfigError(f"threads={shown(config.threads)}: must be auto or a whole number from 1 to {MAX_THREADS}")
    for key, text in {"study.name": config.study.name, "session": config.session or "none"}.items():
        if not re.fullmatch(FILE_NAME, text):
            raise ConfigError(f"{key}={shown(text)!r}: must be {A_FILE_NAME}, as it names a folder")


def entries(keys: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Each key of a dataclass and of those in it, with its value and what its declaration says of valid ones."""
    for entry in dataclasses.fields(keys):
        value = getattr(keys, entry.name)
        if dataclasses.is_dataclass(value):
            yield from entries(value, f"{prefix}{entry.name}.")
        elif entry.name == "levels":
            yield from ((name, level, {}) for name, level in value.items())
        else:
            yield f"{prefix}{entry.name}", value, entry.metadata


def check_bounds(keys: Any, prefix: str = "") -> None:
    """Raise ConfigError for a value that its declaration in a dataclass of keys does not allow."""
    for key, value, declared in entries(keys, prefix):
        if "most" in declared and value is not None:
            check_number(key, value, **declared)
        # In Python 1 equals True.
        if "valid" in declared and not any(type(value) is type(one) and value == one for one in declared["valid"]):
            raise ConfigError(f"{key}={shown(value)}: {unknown('value', value, declared['valid'])}")


def check_number(key: str, value: float, *, least: float, most: float, above: bool) -> None:
    """Raise ConfigError unless a number is within its bounds; nan never is."""
    if above and not value > least:
        raise ConfigError(f"{key}={shown(value)}: must be a number above {least}")
    if not value >= least:
        raise ConfigError(f"{key}={shown(value)}: must be at least {least}")
    if not value <= most:
        raise ConfigError(f"{key}={shown(value)}: must be at most {most}")


def check_text(key: str, value: Any) -> None:
    """Raise ConfigError for text, in a list or mapping too, that is too long or has control characters."""
    if isinstance(value, str):
        # Cc are control characters, as a line feed or NUL; Cs stand for bytes of a file name that are no UTF-8.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
            raise ConfigError(f"{key}={shown(value)}: must not contain control characters or bytes that are not UTF-8")
        if len(value) > LONGEST_TEXT:
            raise ConfigError(f"{key}={shown(value)}: must have at most {LONGEST_TEXT} characters")
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            check_text(key, name)
            check_text(key, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_text(key, inner)


def check_data(data: DataConfig) -> None:
    """Raise ConfigError unless ``data.test`` names folders."""
    test = data.test
    if not isinstance(test, dict) or not all(isinstance(path, str) and path for path in test.values()):
        raise ConfigError(
            f"data.test={shown(test)}: must name a folder for each test set, as in data.test='{{Set5: DIR}}'"
        )
    for name in test:
        if not (isinstance(name, str) and re.fullmatch(FILE_NAME, name)):
            raise ConfigError(
                f"data.test: the name of a test set must be {A_FILE_NAME}, and {shown(name)} is not; as in Set14"
            )
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

RESERVED_SETS = {"train", "baseline", "cost", "timing"}
"""Groups of metrics that MLflow shows beside the test sets."""


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    return f"{group}={option}: {unknown('option', option, sorted(error.options or []))}"


@contextlib.contextmanager
def reading(what: str = "the config") -> Iterator[None]:
    """Turn any error of Hydra, OmegaConf or PyYAML while they read what a user wrote into a ConfigError."""
    try:
        yield
    except (ConfigError, HydraException, OmegaConfBaseException):
        raise
    # They raise almost anything for text that they cannot read: a number of 5,000 digits, lists within lists within
    # a thousand others, bytes that are no text, a folder that cannot be read.
    except Exception as error:
        raise ConfigError(f"{what} cannot be read: {type(error).__name__}: {shown(first_line(error))}") from error


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """An error of Hydra or OmegaConf as one line that says what is valid."""
    return printable(_explanation(error))


def _explanation(error: HydraException | OmegaConfBaseException) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_option(error)
    text = " ".join(str(error).split())
    if text.startswith("Ambiguous value for argument"):
        return f"{text.split(chr(39))[1]}: several values; add -m to sweep over them, or write [a,b] for a list"
    if text.startswith("LexerNoViableAltException"):
        override = shown(text.partition(": ")[2].partition(" ^")[0])
        return f"{override}: has a character that must be in quotes, as in KEY=\"'value'\""
    parent = getattr(cause, "parent_node", None)
    full_key = getattr(cause, "full_key", None)
    if isinstance(error, ConfigCompositionException) and full_key and isinstance(parent, DictConfig | ListConfig):
        reason = str(cause).splitlines()[0]
        if full_key.startswith("data.test."):
            return NO_EFFECT.format(key="data.test")
        if isinstance(parent, DictConfig) and "not in" in reason:
            prefix = full_key.rpartition(".")[0]
            valid = [f"{prefix}.{name!s}" if prefix else str(name) for name in parent if name != "hydra"]
            return unknown("key", full_key, valid)
        if "is not a ListConfig" in reason:
            return f"{full_key}: must be a list in brackets, as in {full_key}=[...]"
        return f"{full_key}: {shown(reason)}"
    if isinstance(error, OmegaConfBaseException) and full_key:
        return f"{full_key}: {shown(str(error).strip().splitlines()[0])}"
    return shown(" ".join(line.strip() for line in str(error).splitlines()[:2]), 500)
