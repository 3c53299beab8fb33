"""From a config to the trial that it describes: the cell, the setting, the data and the network."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.config import Config
from ablations.space.cells import Cell, canonical_levels, cell_name
from ablations.space.factors import FACTORS, REFERENCE, Level, level_text
from ablations.space.rules import Backbone
from ablations.space.settings import DEFAULTS, ONLY_OF
from ablations.storage.files import check_writable
from ablations.storage.folder import TrialFolder
from ablations.trial.teachers import canonical_weight, config_of_teacher, needs_teacher, setting_of_teacher
from bbcu.errors import ConfigError
from bbcu.model.methods import BASELINE, METHODS

if TYPE_CHECKING:
    from torch import nn

    from bbcu.data.tasks import Task
    from bbcu.model.parts import NetworkSpec


@dataclasses.dataclass(frozen=True)
class Trial:
    """One cell with one seed, in a study; ``teacher`` is the key of the cell that teaches it, under the same seed."""

    study: str
    method: str
    cell: Cell
    seed: int
    teacher: str | None = None

    @property
    def identity(self) -> tuple[str, int]:
        """The cell's key and the seed, which no two trials of a study share."""
        return self.cell.key, self.seed

    @property
    def name(self) -> str:
        """The name of the cell's published method, or how it differs from BBCU, as a user would type it."""
        method = METHODS.get(self.method)
        if method is None or self.method == "bbcu":
            return cell_name(self.cell.levels, REFERENCE)
        return f"{self.method} ({method.label})" if method.label else self.method

    def folder(self, outputs: str | Path) -> TrialFolder:
        return TrialFolder(Path(outputs), self.study, self.cell.key, self.seed)

    def teacher_folder(self, outputs: str | Path) -> TrialFolder | None:
        """The folder of the trial that teaches this one, None if none does."""
        return None if self.teacher is None else TrialFolder(Path(outputs), self.study, self.teacher, self.seed)

    def facts(self) -> dict[str, Any]:
        """The part of ``result.json`` that is known before the trial runs."""
        return {
            "study": self.study,
            "cell": self.cell.key,
            "name": self.name,
            "factors": dict(self.cell.factors),
            "levels": dict(self.cell.levels),
            "reference": dict(REFERENCE),
            "setting": dict(self.cell.setting),
            "method": self.method,
            "task": self.cell.setting["task"]["name"],
            "seed": self.seed,
            **({} if self.teacher is None else {"teacher": {"cell": self.teacher, "seed": self.seed}}),
        }


def backbone_of(config: Config) -> Backbone:
    """What the rules of the factor space depend on beside the levels."""
    return Backbone(config.network.name, config.channels, config.network.tail, config.task.name)


def setting_of(config: Config, fingerprint: str) -> dict[str, Any]:
    """Everything except the factors and the seed that decides the trained network."""
    task = task_of(config)
    if config.network.name == BASELINE:
        return {"task": task.parameters(), "network": {"name": BASELINE}, "data": fingerprint}
    return {
        "task": task.parameters(),
        "network": network_of_config(config),
        "channels": config.channels,
        "blocks": config.blocks,
        "train": training_of(config),
        "evaluation": {"self_ensemble": config.evaluation.self_ensemble},
        "data": fingerprint,
    }


def network_of_config(config: Config) -> dict[str, Any]:
    """The keys of the network; a size that ours does not have is at its default, whatever was asked for."""
    name = config.network.name
    unused = {key: DEFAULTS[key] for key, network in ONLY_OF.items() if "." not in name and name != network}
    return {**dataclasses.asdict(config.network), **{key.partition(".")[2]: size for key, size in unused.items()}}


def training_of(config: Config) -> dict[str, Any]:
    """The settings of the training that decide the trained network, with "auto" replaced by this device's precision."""
    settings = dataclasses.asdict(config.train)
    del settings["compile"], settings["cuda_graph"], settings["int8"], settings["native"]
    if settings["precision"] == "auto":
        from bbcu.training.acceleration import resolve_precision
        from bbcu.training.loop import resolve_device

        settings["precision"], _ = resolve_precision("auto", resolve_device(config.device))
    return settings


def method_of(config: Config, cell: Cell) -> str:
    """The config's method if the cell still is that method, and "custom" if the user has overridden a level of it."""
    method = METHODS.get(config.method.name)
    if method is None:
        return config.method.name
    levels = canonical_levels({**REFERENCE, **method.levels}, backbone_of(config)).factors
    network = cell.setting["network"]
    same_network = all(network.get(name) == value for name, value in method.network.items())
    same_width = method.channels in (None, config.channels)
    return config.method.name if levels == cell.factors and same_network and same_width else "custom"


def trial_of(config: Config, setting: Mapping[str, Any]) -> Trial:
    """The trial that ``config`` describes in the ``setting`` that :func:`setting_of` gives for it.

    Raises ConfigError for a level that does not exist, and ImpossibleCell for a cell that cannot mean anything.
    """
    canonical = canonical_levels(config.levels, backbone_of(config))
    cell = Cell(canonical.levels, canonical_weight(setting, canonical.factors), canonical.factors)
    teacher = None
    if needs_teacher(cell.factors):
        teacher = trial_of(config_of_teacher(config), setting_of_teacher(setting)).cell.key
    return Trial(config.study.name, method_of(config, cell), cell, config.seed, teacher)


def task_of(config: Config) -> "Task":
    """The task of a config; raises ConfigError for one that does not exist or whose strengths are out of range."""
    from bbcu.data.tasks import make_task

    return make_task(dataclasses.asdict(config.task))


def unit_class(levels: Mapping[str, Level], of_network: str) -> str:
    """The class of a cell's units: the network's, or that of a user's factor that is not at its reference.

    Raises ConfigError if two such units are asked for at once.
    """
    declared = {
        name: factor.unit for name, factor in FACTORS.items() if factor.unit and levels[name] != factor.reference
    }
    if len({*declared.values(), *({of_network} - {"binary"} if declared else ())}) > 1:
        asked = [f"{name}={level_text(levels[name])} needs {unit}" for name, unit in declared.items()]
        raise ConfigError(f"a network has one kind of unit: {', '.join(asked)}, and network.unit is {of_network}")
    return next(iter(declared.values()), of_network)


def network_of(trial: Trial) -> "nn.Module":
    """The network of a trial, initialised by its seed."""
    from bbcu.model.networks import build

    return build(trial.cell.setting["network"]["name"], spec_of(trial), trial.seed)


def meta_network(trial: Trial) -> "nn.Module":
    """The network of a trial without memory for its values, to check that it can be built and to count its cost."""
    import torch

    from bbcu.model.networks import assemble

    with torch.device("meta"):
        return assemble(trial.cell.setting["network"]["name"], spec_of(trial))


def spec_of(trial: Trial) -> "NetworkSpec":
    """The spec of a trial's network."""
    from bbcu.model.records import spec_of

    setting = trial.cell.setting
    kind = unit_class(trial.cell.levels, setting["network"]["unit"])
    return dataclasses.replace(spec_of(trial.cell.factors, setting), unit_class=kind)


def check_runnable(config: Config) -> None:
    """Raise BbcuError if outputs cannot be written, the device does not exist, or the training's settings are wrong.

    Also if a metric of the user's own does not work, and if a latency is to be measured and this machine cannot run the
    kernel that is timed.
    """
    from bbcu.training.loop import resolve_device
    from bbcu.training.settings import TrainSettings

    check_writable(Path(config.outputs), f"outputs={config.outputs}")
    resolve_device(config.device)
    task = task_of(config)
    if config.network.name == BASELINE and config.method.name != task.baseline_name:
        raise ConfigError(f"method={config.method.name}: the baseline of {task.name} is method={task.baseline_name}")
    TrainSettings(**dataclasses.asdict(config.train))
    if config.evaluation.metrics:
        from bbcu.training.evaluation import own_metrics

        own_metrics(config.evaluation.metrics, task.colours)
    if config.measure.latency:
        from bbcu.deploy.backends import missing_for

        reason = missing_for("native")
        if reason is not None:
            raise ConfigError(f"measure.latency=true: this machine cannot run the native kernel: {reason}")


def check_network(trial: Trial) -> "nn.Module | None":
    """Raise ConfigError if the trial's network cannot be built; return it without memory, None for a baseline."""
    from bbcu.model.networks import check_shape

    name = trial.cell.setting["network"]["name"]
    if name == BASELINE:
        return None
    network = meta_network(trial)
    check_shape(name, network, spec_of(trial))
    return network


def trains(config: Config) -> bool:
    """Whether the trial trains a network; a baseline does not."""
    return config.network.name != BASELINE


def baseline_label(result: Mapping[str, Any]) -> str:
    """The label of the task's baseline beside a score: bicubic, or input."""
    from bbcu.data.tasks import make_task

    name = make_task(result["setting"]["task"]).baseline_name
    return "input" if name == "identity" else name
