"""The prepared data that a config names."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.config import Config
from ablations.storage.leftovers import cache_folder
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from bbcu.data.pairs import PreparedData
    from bbcu.data.tasks import Task

from ablations.trial.identity import task_of
from bbcu.model.methods import BASELINE


@functools.lru_cache(maxsize=4)
def _prepared(
    train: str | None,
    test: tuple[tuple[str, str], ...] | None,
    scale: int | None,
    task: "Task",
    patch: int,
    cache: Path,
) -> "PreparedData":
    """Read and prepare data once a process, however many trials want it; without ``test`` the embedded photographs."""
    from bbcu.data.pairs import prepare
    from bbcu.data.sources import embedded, folder

    if test is None:
        pictures = embedded()
    else:
        pictures = folder(Path(train) if train else None, {name: Path(path) for name, path in test}, scale)
    return prepare(pictures, task, patch, cache)


def data_of(config: Config) -> "PreparedData":
    """The prepared data that ``config`` names; read and prepared once a process, kept on disk for the others.

    Raises ConfigError where the config lacks something, and DataError, which names the path, where data cannot be used.
    """
    task, cache = task_of(config), cache_folder(Path(config.outputs))
    if config.data.name == "embedded":
        return _prepared(None, None, None, task, config.train.patch, cache)
    trains = config.network.name != BASELINE
    if trains and not config.data.train:
        raise ConfigError("no value for data.train: set it on the command line, as in data.train=DIR")
    if config.data.inputs == "given" and task.degradation is not None:
        raise ConfigError(f"data.inputs=given: {task.name} makes its inputs from the pictures; use data.inputs=made")
    scale = task.scale if config.data.inputs == "given" else None
    # A method that trains nothing scores the same whatever others train on.
    train = config.data.train if trains else None
    return _prepared(train, tuple(config.data.test.items()), scale, task, config.train.patch, cache)
