"""A workplace for tests of the whole command: small pictures, a tracking store, and ways to run the command."""

import contextlib
import dataclasses
import functools
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from mlflow.entities import Run
from omegaconf import DictConfig

from ablations.config import Config, SweeperConfig, register, typed
from ablations.passwords import ADDRESSES
from ablations.planning.plan import Plan, make_plan
from ablations.storage.folder import TrialFolder, trial_folders
from ablations.tracking.client import client_of, identity_of, search_runs
from ablations.trial.data import data_of
from ablations.trial.identity import Trial, setting_of, trial_of
from bbcu.data.images import Pixels
from tests.harness.builders import save
from tests.harness.paths import REPOSITORY
from tests.harness.processes import CommandProcess

STUDY = "adhoc"
SIDE = 48

Process = TypeVar("Process", "subprocess.Popen[str]", CommandProcess)


def photograph(seed: int, side: int = SIDE) -> Pixels:
    """A slope with noise on it, the same for the same seed, which a network of one block does not learn fast."""
    slope = 2 * np.add.outer(np.arange(side), np.arange(side))[..., None]
    noise = np.random.default_rng(seed).integers(0, 60, (side, side, 3))
    pixels: Pixels = np.clip(slope + noise, 0, 255).astype(np.uint8)
    return pixels


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The exit status of a command, and what it wrote to stdout and stderr."""

    status: int
    out: str
    message: str

    @property
    def text(self) -> str:
        """Both streams together."""
        return self.out + self.message

    @property
    def refusal(self) -> str:
        """The one line with which the command has refused to run; it must have status 1."""
        (line,) = self.message.splitlines()
        assert self.status == 1
        return line


@dataclasses.dataclass(frozen=True)
class Workplace:
    """A folder with pictures and a tracking store, where every command has the same tiny setting.

    Overrides replace the setting's value for their key; ``without`` omits keys. A store that several workplaces share
    has a ``study`` for each.
    """

    folder: Path
    uri: str
    study: str = STUDY

    @classmethod
    def make(cls, folder: Path, uri: str) -> "Workplace":
        for name, seed in (("train/first", 0), ("train/second", 1), ("test/third", 2), ("test/fourth", 3)):
            save(photograph(seed), folder / f"{name}.png")
        return cls(folder, uri)

    @classmethod
    def apart(cls, folder: Path, migrated_database: Path) -> "Workplace":
        """A workplace with a tracking store of its own in ``folder``."""
        folder.mkdir(exist_ok=True)
        shutil.copyfile(migrated_database, folder / "mlflow.db")
        return cls.make(folder, f"sqlite:///{folder / 'mlflow.db'}")

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    def setting(self) -> dict[str, str]:
        return {
            "data": "folder",
            "data.train": str(self.folder / "train"),
            "data.test": f"{{Tiny: {self.folder / 'test'}}}",
            "channels": "4",
            "blocks": "1",
            "train.steps": "2",
            "train.batch": "2",
            "train.patch": "8",
            "threads": "1",
            "device": "cpu",
            "progress": "false",
            "outputs": str(self.outputs),
            "tracking.uri": self.uri,
            # A study of conf/study has a name of its own.
            **({} if self.study == STUDY else {"study.name": self.study}),
        }

    def overrides(self, *given: str, without: Sequence[str] = ()) -> list[str]:
        own = {key.partition("=")[0] for key in given} | set(without)
        return [f"{key}={value}" for key, value in self.setting().items() if key not in own] + list(given)

    def run(self, *overrides: str, without: Sequence[str] = ()) -> Outcome:
        """Run one trial in this process."""
        return call(self.overrides(*overrides, without=without), self.folder)

    def sweep(self, *overrides: str) -> Outcome:
        """Run a sweep, one trial after the other in this process unless a launcher is given."""
        return call(with_launcher(["-m", *self.overrides(*overrides)]), self.folder)

    def start(self, *arguments: str) -> CommandProcess:
        """Start the command in a process of its own; a sweep runs its trials in it unless a launcher is given."""
        return CommandProcess(with_launcher(arguments), self.folder, inherited(), self.notes())

    def start_interpreter(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the command in a new interpreter, as a shell does; it takes seconds to import.

        It listens to Ctrl-C even if this process ignores it, as one does that a shell has put in the background.
        """
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run.py"), *with_launcher(arguments)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def notes(self) -> Path:
        """A new folder for what a command writes."""
        folder = self.folder / f"command{len(list(self.folder.glob('command*')))}"
        folder.mkdir()
        return folder

    def config(self, *overrides: str, without: Sequence[str] = ()) -> Config:
        """The config that the command composes from these overrides."""
        return typed(composed(*self.overrides(*overrides, without=without)))

    def plan(self, *overrides: str, **options: Any) -> Plan:
        """The plan that a sweep with these overrides makes, without those of Hydra; ``options`` are the sweeper's."""
        return make_plan(self.overrides(*overrides), SweeperConfig(**options), *of_hydra())

    @functools.cache  # noqa: B019 - a workplace lives as long as the tests, and Hydra takes long to compose
    def trial(self, *overrides: str) -> Trial:
        """The trial that these overrides ask for."""
        config = self.config(*overrides)
        return trial_of(config, setting_of(config, data_of(config).fingerprint))

    def folder_of(self, *overrides: str) -> TrialFolder:
        """The folder of the trial that these overrides ask for."""
        return self.trial(*overrides).folder(self.outputs)

    def trials(self) -> list[TrialFolder]:
        return trial_folders(self.outputs, self.study)

    def runs(self, status: str = "") -> list[Run]:
        """The runs of trials in MLflow, or those with this status: of every experiment, or of a study with a name."""
        name = None if self.study == STUDY else f"name = '{self.study}'"
        experiments = client_of(self.uri).search_experiments(filter_string=name)
        condition = f"attributes.status = '{status}'" if status else ""
        runs = [run for found in experiments for run in search_runs(self.uri, found.experiment_id, condition)]
        return [run for run in runs if identity_of(run) is not None]

    def finished(self) -> list[tuple[str, int]]:
        """The cell and seed of every finished run, sorted; a trial with two runs is listed twice."""
        identities = [identity_of(run) for run in self.runs("FINISHED")]
        return sorted(identity for identity in identities if identity is not None)

    def results(self) -> list[tuple[str, int]]:
        """The cell and seed of every trial that has a result, sorted."""
        return sorted((folder.cell, folder.seed) for folder in self.trials() if folder.result() is not None)

    def names(self) -> set[str]:
        """The names of the trials that have a result."""
        return {result["name"] for folder in self.trials() if (result := folder.result()) is not None}

    def is_untouched(self) -> bool:
        """Whether nothing was trained or recorded here."""
        return (
            not self.runs()
            and not [*self.folder.rglob("trial.log"), *self.folder.rglob("result.json")]
            and not (self.outputs / self.study).exists()
        )


def composed(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The config that Hydra composes from these overrides, with its own part if asked for."""
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=with_hydra)


@functools.cache
def of_hydra() -> tuple[DictConfig, ConfigLoader]:
    """What Hydra gives to a sweeper: the config without any override, and the loader of others."""
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", return_hydra_config=True), GlobalHydra.instance().config_loader()


def result_of(workplace: Workplace, *overrides: str) -> dict[str, Any]:
    """The result of the trial that these overrides ask for."""
    result = workplace.folder_of(*overrides).result()
    assert result is not None
    return result


def with_launcher(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the basic launcher for a sweep that names none."""
    chosen = "-m" not in arguments or any(text.startswith("hydra/launcher") for text in arguments)
    return [*arguments, *([] if chosen else ["hydra/launcher=basic"])]


def inherited() -> dict[str, str]:
    """The environment that a shell would pass to the command."""
    return {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}


def call(arguments: list[str], folder: Path) -> Outcome:
    """Run the command in this process, in ``folder``, and restore the process afterwards."""
    out, message = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(REPOSITORY / "run.py"), *arguments])
        # The command sets these; monkeypatch restores the values before.
        patch.setenv("HYDRA_FULL_ERROR", "0")
        for variable in ADDRESSES.values():
            patch.setenv(variable, "")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(message):
            status = _status_of_main(message)
    return Outcome(status, out.getvalue(), message.getvalue())


def _status_of_main(stream: io.StringIO) -> int:
    try:
        runpy.run_path(str(REPOSITORY / "run.py"), run_name="__main__")
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            stream.write(leaving.code + "\n")
            return 1
        return leaving.code or 0
    return 0


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and the modification time in ns of every file below ``folder``, except hidden ones."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Wait until ``condition`` holds; fail the test if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


@contextlib.contextmanager
def ended(process: Process) -> Iterator[Process]:
    """Kill the process at the end of the ``with`` block."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
