"""The prepared data that a config names."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.config import Config
from ablations.storage.leftovers import cache_folder
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from bbcu.data.pairs import PreparedData
    from bbcu.data.sources import Pictures
    from bbcu.data.tasks import Task

from ablations.trial.identity import task_of
from bbcu.model.methods import BASELINE

Folders = tuple[tuple[str, str], ...]
"""The folder of each test set."""


def _found(train: str | None, test: Folders | None, scale: int | None) -> "Pictures":
    """Find the pictures in these folders; without ``test`` the embedded photographs."""
    from bbcu.data.sources import embedded, folder

    if test is None:
        return embedded()
    return folder(Path(train) if train else None, {name: Path(path) for name, path in test}, scale)


@functools.lru_cache(maxsize=4)
def _prepared(
    train: str | None, test: Folders | None, scale: int | None, task: "Task", patch: int, cache: Path
) -> "PreparedData":
    """Read and prepare data once a process, however many trials want it."""
    from bbcu.data.pairs import prepare

    return prepare(_found(train, test, scale), task, patch, cache)


@functools.lru_cache(maxsize=4)
def _tested(test: Folders | None, scale: int | None, cache: Path) -> str:
    from bbcu.data.sources import ImageInfoCache, Pictures, fingerprint

    infos = ImageInfoCache(cache)
    return fingerprint(Pictures((), _found(None, test, scale).test), infos)


def data_of(config: Config) -> "PreparedData":
    """The prepared data that ``config`` names; read and prepared once a process, kept on disk for the others.

    Raises ConfigError where the config lacks something, and DataError, which names the path, where data cannot be used.
    """
    task, cache = task_of(config), cache_folder(Path(config.outputs))
    test, scale = _test_folders(config)
    if test is None:
        return _prepared(None, None, None, task, config.train.patch, cache)
    trains = config.network.name != BASELINE
    if trains and not config.data.train:
        raise ConfigError("no value for data.train: set it on the command line, as in data.train=DIR")
    if config.data.inputs == "given" and task.degradation is not None:
        raise ConfigError(f"data.inputs=given: {task.name} makes its inputs from the pictures; use data.inputs=made")
    # A method that trains nothing scores the same whatever others train on.
    train = config.data.train if trains else None
    return _prepared(train, test, scale, task, config.train.patch, cache)


def fingerprint_of_tests(config: Config) -> str:
    """The fingerprint of the test pictures that ``config`` names, which data with other training pictures may share.

    :func:`data_of` has checked and measured the pictures before. Raises DataError if they cannot be read.
    """
    return _tested(*_test_folders(config), cache_folder(Path(config.outputs)))


def _test_folders(config: Config) -> tuple[Folders | None, int | None]:
    """The folders of the test sets, None for the embedded photographs, and the scale of given inputs."""
    if config.data.name == "embedded":
        return None, None
    scale = task_of(config).scale if config.data.inputs == "given" else None
    return tuple(config.data.test.items()), scale
