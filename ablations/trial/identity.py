"""From a config to the trial that it describes: the cell, the setting, the data and the network."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.config import Config
from ablations.space.cells import Cell, canonical_levels, cell_name
from ablations.space.factors import FACTORS, REFERENCE, UNIT_FACTORS
from ablations.space.rules import Frame
from ablations.storage.files import check_writable
from ablations.storage.folder import TrialFolder
from bbcu.errors import ConfigError
from bbcu.model.methods import METHODS, REIMPLEMENTATION

if TYPE_CHECKING:
    from torch import nn

    from bbcu.data.tasks import Task


BASELINE = "baseline"
"""The network of a method that trains nothing: what the task's baseline makes of the input."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One cell with one seed, in a study."""

    study: str
    method: str
    cell: Cell
    seed: int

    @property
    def identity(self) -> tuple[str, int]:
        """The cell's key and the seed: what no two trials of a study share."""
        return self.cell.key, self.seed

    @property
    def name(self) -> str:
        """The published method that the cell is, or what tells it from BBCU, the way a user would type it."""
        method = METHODS.get(self.method)
        if method is None or self.method == "bbcu":
            return cell_name(self.cell.asked, REFERENCE)
        return f"{self.method} ({REIMPLEMENTATION})" if method.remark else self.method

    def folder(self, outputs: str | Path) -> TrialFolder:
        return TrialFolder(Path(outputs), self.study, self.cell.key, self.seed)

    def facts(self) -> dict[str, Any]:
        """The part of ``result.json`` that is known before the trial runs."""
        return {
            "study": self.study,
            "cell": self.cell.key,
            "name": self.name,
            "factors": dict(self.cell.factors),
            "levels": dict(self.cell.asked),
            "reference": REFERENCE,
            "setting": dict(self.cell.setting),
            "method": self.method,
            "task": self.cell.setting["task"]["name"],
            "seed": self.seed,
        }


def levels_of(config: Config) -> dict[str, Any]:
    """The factors as they stand in the config."""
    return {name: getattr(config, name) for name in FACTORS}


def frame_of(config: Config) -> Frame:
    """What the rules of the factor space must know of the setting."""
    return Frame(config.network.name, config.channels)


def setting_of(config: Config, fingerprint: str) -> dict[str, Any]:
    """Everything but the factors and the seed that decides the trained network."""
    task = task_of(config)
    if config.network.name == BASELINE:
        return {"task": task.parameters(), "network": {"name": BASELINE}, "data": fingerprint}
    setting = {
        "task": task.parameters(),
        "network": dataclasses.asdict(config.network),
        "channels": config.channels,
        "blocks": config.blocks,
        "train": training_of(config),
        "data": fingerprint,
    }
    # A key that came later: a cell that does without it is the cell that it was before.
    return setting | ({"evaluation": {"self_ensemble": True}} if config.evaluation.self_ensemble else {})


def training_of(config: Config) -> dict[str, Any]:
    """The settings of the training that decide the trained network, with the precision that "auto" stands for here."""
    settings = dataclasses.asdict(config.train)
    del settings["compile"], settings["cuda_graph"], settings["int8"]
    if settings["precision"] == "auto":
        from bbcu.training.acceleration import resolve_precision
        from bbcu.training.loop import resolve_device

        settings["precision"], _ = resolve_precision("auto", resolve_device(config.device))
    return settings


def method_of(config: Config, cell: Cell) -> str:
    """The config's method where the cell is still that, "custom" where the user has typed something else over it."""
    method = METHODS.get(config.method.name)
    if method is None:
        return config.method.name
    levels = canonical_levels(method.all_levels, frame_of(config)).factors
    layout = cell.setting["network"]
    same_layout = all(layout.get(name) == value for name, value in method.network.items())
    same_width = method.channels in (None, config.channels)
    return config.method.name if levels == cell.factors and same_layout and same_width else "custom"


def trial_of(config: Config, setting: Mapping[str, Any]) -> Trial:
    """The trial that ``config`` describes in the ``setting`` that :func:`setting_of` gives for it.

    Raises ConfigError for a level that does not exist, and ImpossibleCell for a cell that cannot mean anything.
    """
    canonical = canonical_levels(levels_of(config), frame_of(config))
    cell = Cell(canonical.factors, setting, canonical.asked)
    return Trial(config.study.name, method_of(config, cell), cell, config.seed)


def task_of(config: Config) -> "Task":
    """The task of a config; raises ConfigError for one that does not exist or whose strengths are out of range."""
    from bbcu.data.tasks import make_task

    return make_task(dataclasses.asdict(config.task))


def network_of(trial: Trial, *, drawn: bool = True) -> "nn.Module":
    """The network of a trial, with the initial values of its seed unless these need not be ``drawn``."""
    from bbcu.data.tasks import make_task
    from bbcu.model.networks import NetworkSpec, assemble, build
    from bbcu.model.units import UnitSpec

    factors: dict[str, Any] = dict(trial.cell.factors)
    setting = trial.cell.setting
    layout, task = setting["network"], make_task(setting["task"])
    spec = NetworkSpec(
        scale=task.scale,
        colours=task.colours,
        channels=setting["channels"],
        blocks=setting["blocks"],
        unit=UnitSpec(**{name: factors[name] for name in UNIT_FACTORS}),
        align=factors["align"],
        binarize=factors["binarize"],
        unit_class=layout["unit"],
        initial=layout["initial"],
        accumulate=layout["accumulate"],
        standardise=layout["standardise"],
    )
    return build(layout["name"], spec, trial.seed) if drawn else assemble(layout["name"], spec)


def check_runnable(config: Config) -> None:
    """Raise BbcuError for outputs that cannot be written, a device that is not there, an unknown way to train."""
    from bbcu.training.loop import resolve_device
    from bbcu.training.settings import TrainSettings

    check_writable(Path(config.outputs), f"outputs={config.outputs}")
    resolve_device(config.device)
    task = task_of(config)
    if config.network.name == BASELINE and config.method.name != task.baseline_name:
        raise ConfigError(f"method={config.method.name}: the baseline of {task.name} is method={task.baseline_name}")
    TrainSettings(**dataclasses.asdict(config.train))


def check_network(trial: Trial) -> None:
    """Raise ConfigError where the trial's network cannot be built; no memory is taken for it."""
    import torch

    if trial.cell.setting["network"]["name"] != BASELINE:
        with torch.device("meta"):
            network_of(trial, drawn=False)


def trains(config: Config) -> bool:
    """Whether the trial has a network at all."""
    return config.network.name != BASELINE


def baseline_label(result: Mapping[str, Any]) -> str:
    """What the baseline of a result's task is called beside a score: bicubic, or input."""
    from bbcu.data.tasks import make_task

    name = make_task(result["setting"]["task"]).baseline_name
    return "input" if name == "identity" else name
