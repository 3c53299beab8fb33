"""A study that is killed again and again: how often something is lost, there twice, or not what it would have been.

    python -m benchmarks.kills                                 # 200 kills, one trial after the other
    python -m benchmarks.kills --kills 50 --launcher joblib    # with two workers, which are killed too

The study has four cells under two seeds, on pictures of noise that are made here, with a snapshot after each step. Its
command is given, killed with SIGKILL together with all its processes, and given again, until it comes to its end. Then
every trial is compared with what it came to in a study that nothing happened to, and a new study begins.

Every other kill comes at a moment drawn evenly from the time that the command would take for the trials that are left.
The one after that waits for a phase that is drawn first, each with the same chance, for one of its first occurrences,
and then for as long as a draw says that is of the order of the phase, so that short phases are met as well. The command
is stopped before it is killed, so what phase it was in is seen on a disk that stands still.

To be fast, everything is imported once, and each command is a fork of this process.
"""

import argparse
import contextlib
import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from PIL import Image

from ablations.storage.folder import CurvePoint, TrialFolder, steps_of, study_folder, trial_folders
from ablations.storage.lease import RUNNING, leases
from ablations.tracking.client import client_of, experiment_id, identity_of, quiet_mlflow, search_runs
from ablations.tracking.runs import final_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = "kills"
CELLS = ("residual=true,false", "bn=pre,post", "hydra.sweeper.replicates=2")
TRIALS = 8
SETTING = {
    "study.name": STUDY,
    "channels": "4",
    "blocks": "1",
    "train.steps": "8",
    "train.batch": "2",
    "train.patch": "8",
    "train.precision": "fp32",
    "train.compile": "false",
    "tracking.snapshot_s": "0",
    "tracking.evaluations": "2",
    "threads": "1",
    "device": "cpu",
    "progress": "false",
    "data": "folder",
}
LAUNCHERS = {
    "basic": ("hydra/launcher=basic",),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}

PHASES = {
    "planning": 0.5,
    "between trials": 0.005,
    "opening the run": 0.02,
    "training": 0.05,
    "snapshot": 0.005,
    "probing": 0.01,
    "result": 0.02,
    "closing the run": 0.05,
    "conclusion": 0.02,
}
"""The phases of a command as it comes to them, and for how many seconds at most a kill waits in each."""

OCCURRENCES = 3
"""A kill that waits for a phase waits for one of this many times that the command is in it."""

ONCE = ("planning", "conclusion")
"""The phases that a command comes to but once."""

PHASE_OF_LEASE = {
    "preparing": "opening the run",
    "training": "training",
    "evaluating": "training",
    "probing": "probing",
    "recording": "result",
}

LOOK_SECONDS = 0.0005

Identity = tuple[str, int]
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Place:
    """A study in a folder of its own, the launcher of its trials, and the pictures that they are trained on."""

    folder: Path
    launcher: str
    pictures: Path

    @classmethod
    def make(cls, folder: Path, launcher: str, pictures: Path, template: Path) -> "Place":
        """A new study with a copy of the store ``template``."""
        folder.mkdir()
        shutil.copyfile(template, folder / "mlflow.db")
        return cls(folder, launcher, pictures)

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def log(self) -> Path:
        """What its commands have printed."""
        return self.folder / "log"

    def arguments(self) -> list[str]:
        """What is typed behind ``run.py``."""
        places = {
            "data.train": self.pictures / "train",
            "data.test": f"{{Noise: {self.pictures / 'test'}}}",
            "outputs": self.outputs,
            "tracking.uri": self.uri,
        }
        overrides = [f"{key}={value}" for key, value in {**SETTING, **places}.items()]
        return ["-m", *CELLS, *overrides, *LAUNCHERS[self.launcher]]

    def run(self) -> None:
        """Run the command in this process, which gets a group of its own, as a shell gives one."""
        os.setpgrp()
        os.chdir(self.folder)
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [str(REPOSITORY / "run.py"), *self.arguments()]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            if self.launcher == "joblib":
                end_workers()


class Command:
    """The command of a study, begun but now in a fork of this process."""

    def __init__(self, place: Place) -> None:
        self.place, self.began = place, time.time()
        self._process = multiprocessing.get_context("fork").Process(target=place.run)
        self._process.start()
        # Whichever of the two is first: from here on there is a group to kill.
        with contextlib.suppress(OSError):
            os.setpgid(self._number, self._number)

    @property
    def is_over(self) -> bool:
        return not self._process.is_alive()

    @property
    def status(self) -> int | None:
        """Its exit status, less than 0 for the signal that has ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float) -> None:
        """Return after that long, or as soon as it is over."""
        self._process.join(seconds)

    def end(self) -> None:
        """Return when it is over."""
        self._process.join()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._number, number)

    @property
    def _number(self) -> int:
        assert self._process.pid is not None
        return self._process.pid


Wait = Callable[[Command], None]
"""Returns when it is time to kill the command, or when that is over."""


@dataclass
class Tally:
    """What has been seen: in which phases kills fell, how many studies came to their end, and what was wrong there."""

    phases: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    trials: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(self.phases.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill as often as asked, and print what came of it; leaves with status 1 where anything was wrong."""
    given = command_line().parse_args(arguments)
    torch.set_num_threads(1)
    import_everything()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        tally = kill_often(Path(scratch), given.kills, given.launcher, random.Random(given.seed))
    print_tally(tally, time.perf_counter() - start)
    if given.json:
        found = {"phases": dict(tally.phases), "studies": tally.studies, "trials": tally.trials, "wrong": tally.wrong}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if tally.wrong else 0)


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--launcher", choices=LAUNCHERS, default="basic")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    return parser


def import_everything() -> None:
    """Import what a command would, so that its forks need not; no thread and no connection comes of that."""
    quiet_mlflow()
    ours = ("ablations.sweep.sweeper", "bbcu.training.probes", "bbcu.training.loop")
    for name in ("mlflow.store.tracking.sqlalchemy_store", *ours):
        importlib.import_module(name)


# --- studies and kills ------------------------------------------------------------------------------------------------


def kill_often(scratch: Path, kills: int, launcher: str, draws: random.Random) -> Tally:
    """Kill commands until there are so many kills, and let the last study come to its end."""
    pictures, template = scratch / "pictures", scratch / "template.db"
    make_pictures(pictures)
    in_a_fork(make_store, template)
    places = (Place.make(scratch / f"study{number}", launcher, pictures, template) for number in itertools.count())
    tally = Tally()
    # The first one fills what later ones find full, such as compiled Python.
    undisturbed(next(places))
    expected, life = undisturbed(next(places))
    print(f"an undisturbed command takes {life:.1f} s for {len(expected)} trials", flush=True)
    while tally.kills < kills:
        place = next(places)
        status = None
        while status is None:
            left = (1 + TRIALS - done(place)) / (1 + TRIALS)
            wait = draw(draws, tally.kills, left * life) if tally.kills < kills else Command.end
            status = run_and_kill(place, wait, tally)
        tally.studies += 1
        tally.trials += len(expected)
        found = [f"its last command ended with status {status}"] if status else []
        found += in_a_fork(wrong_with, place, expected)
        tally.wrong += [f"study {tally.studies}: {what}" for what in found]
        if not found:
            shutil.rmtree(place.folder)
    return tally


def run_and_kill(place: Place, wait: Wait, tally: Tally) -> int | None:
    """Give the command, kill it when ``wait`` returns and count its phase then; its status where it was over before."""
    command = Command(place)
    wait(command)
    if not command.is_over:
        command.send(signal.SIGSTOP)
        phase = phase_of(place, command.began)
        command.send(signal.SIGKILL)
        command.end()
        if command.status == -signal.SIGKILL:
            tally.phases[phase] += 1
            return None
    return command.status


def undisturbed(place: Place) -> tuple[dict[Identity, str], float]:
    """What each trial comes to where nothing happens, and how many seconds the command takes."""
    command = Command(place)
    command.end()
    life = time.time() - command.began
    if command.status:
        sys.exit(f"the study failed:\n{place.log.read_text(encoding='utf-8')}")
    return endings(place), life


# --- moments ----------------------------------------------------------------------------------------------------------


def draw(draws: random.Random, number: int, left: float) -> Wait:
    """The moment of the kill of this number: any time of the seconds that are ``left``, and any phase, in turn."""
    if number % 2 == 0:
        seconds = draws.uniform(0, left)
        return lambda command: command.wait(seconds)
    phase = draws.choice(list(PHASES))
    occurrence, seconds = draws.randint(1, 1 if phase in ONCE else OCCURRENCES), draws.uniform(0, PHASES[phase])
    return lambda command: wait_for_phase(command, phase, occurrence, seconds)


def wait_for_phase(command: Command, phase: str, occurrence: int, seconds: float) -> None:
    """Return some ``seconds`` after the command has come to the phase for the ``occurrence``-th time, or is over."""
    before, seen = "", 0
    while not command.is_over:
        now = phase_of(command.place, command.began)
        seen += now == phase != before
        if seen == occurrence:
            command.wait(seconds)
            return
        before = now
        time.sleep(LOOK_SECONDS)


def phase_of(place: Place, began: float) -> str:
    """The phase that a command is in which began at ``began``, as the disk tells it; with workers, that of one."""
    folder = study_folder(place.outputs, STUDY)
    if not is_newer(folder / "plan.json", began):
        return "planning"
    held = leases(place.outputs, STUDY)
    if not held:
        return "conclusion" if done(place) == TRIALS else "between trials"
    lease = held[0]
    trial = TrialFolder(place.outputs, STUDY, lease.cell, lease.seed)
    if trial.result_path.exists():
        return "closing the run"
    if any(is_newer(path, lease.began) for path in trial.snapshots.glob(".step*")):
        return "snapshot"
    return PHASE_OF_LEASE[lease.phase]


def done(place: Place) -> int:
    """How many trials have a result."""
    return len(list(study_folder(place.outputs, STUDY).glob("*/seed*/result.json")))


def is_newer(path: Path, moment: float) -> bool:
    """Whether the file is there and was written since; file systems round down to a tick of the system."""
    try:
        return path.stat().st_mtime > moment - 0.01
    except OSError:
        return False


# --- what must hold at the end ----------------------------------------------------------------------------------------


def endings(place: Place) -> dict[Identity, str]:
    """What each trial that has a result has come to, but for what depends on the clock and on where it ran."""
    folders = [folder for folder in trial_folders(place.outputs, STUDY) if folder.result() is not None]
    return {(folder.cell, folder.seed): ending_of(folder) for folder in folders}


def ending_of(folder: TrialFolder) -> str:
    """A digest of a trial's result, its curve, its weights and its sample pictures."""
    result = folder.result() or {}
    facts = {name: value for name, value in result.items() if name not in ("timing", "provenance")}
    curve = [(point.step, dict(point.metrics)) for point in folder.curve()]
    digest = hashlib.sha256(json.dumps([facts, curve], sort_keys=True).encode())
    for name, value in torch.load(folder.checkpoint_path, weights_only=True).items():
        digest.update(name.encode() + value.numpy().tobytes())
    for path in sorted(folder.samples.rglob("*.png")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def wrong_with(place: Place, expected: dict[Identity, str]) -> list[str]:
    """Whatever is not as it would be had nothing happened to the study."""
    found = endings(place)
    runs = search_runs(place.uri, experiment_id(place.uri, STUDY))
    finished = Counter(identity_of(run) for run in runs if run.info.status == "FINISHED")
    wrong = [f"{identity} is lost" for identity in expected.keys() - found.keys()]
    wrong += [f"{identity} was not asked for" for identity in found.keys() - expected.keys()]
    wrong += [f"{key} differs" for key in expected.keys() & found.keys() if expected[key] != found[key]]
    wrong += [f"{identity} has {finished[identity]} finished runs" for identity in expected if finished[identity] != 1]
    wrong += [f"run {run.info.run_id} seems to go on" for run in runs if run.info.status == "RUNNING"]
    folders = {(folder.cell, folder.seed): folder for folder in trial_folders(place.outputs, STUDY)}
    for run in runs:
        identity = identity_of(run)
        if run.info.status == "FINISHED" and identity in found:
            wrong += [f"{identity}: {what}" for what in wrong_points(place, run.info.run_id, folders[identity])]
    wrong += [f"{path} is left" for path in (study_folder(place.outputs, STUDY) / RUNNING).glob("*.json")]
    wrong += [f"{folder.snapshots} is left" for folder in folders.values() if folder.snapshots.exists()]
    return wrong


def wrong_points(place: Place, run_id: str, folder: TrialFolder) -> list[str]:
    """The metrics of which MLflow has not each point once: those of the curve, and the result at the last step."""
    result = folder.result() or {}
    last = CurvePoint(steps_of(result), final_metrics(result))
    expected: dict[str, list[tuple[int, float]]] = {}
    for point in (*folder.curve(), last):
        for name, value in point.metrics.items():
            expected.setdefault(name, []).append((point.step, value))
    client = client_of(place.uri)
    return [
        f"MLflow has other points of {name}"
        for name, points in expected.items()
        if sorted(points) != sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
    ]


# --- surroundings -----------------------------------------------------------------------------------------------------


def in_a_fork(function: Callable[Parameters, Answer], *given: Parameters.args, **named: Parameters.kwargs) -> Answer:
    """What the function gives in a process of its own, so that no connection stays in this one, which is forked."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *given, **named).result()


def end_workers() -> None:
    """End joblib's workers; a fork does not at its end, as a process does, and would wait until they give up."""
    loky = importlib.import_module("joblib.externals.loky")
    loky.get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def make_pictures(folder: Path) -> None:
    """Save two pictures to train on, and two to test on."""
    for number, name in enumerate(("train/first", "train/second", "test/third", "test/fourth")):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def make_store(path: Path) -> None:
    """Make an MLflow database with its tables; that takes longer than a whole study."""
    client_of(f"sqlite:///{path}").search_experiments()


def print_tally(tally: Tally, seconds: float) -> None:
    print(f"{tally.kills} kills in {tally.studies} studies with {tally.trials} trials, in {seconds:.0f} s")
    for phase in PHASES:
        print(f"  {phase:16s} {tally.phases[phase]:4d}")
    print("nothing lost, nothing there twice, every result what it would have been" if not tally.wrong else "wrong:")
    for what in tally.wrong:
        print(f"  {what}")


if __name__ == "__main__":
    main()
