"""Whichever launcher of Hydra runs the trials of a study, they are the same trials with the same results."""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import re
import secrets
import shlex
import signal
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness.support import REPOSITORY, Outcome, Workplace, ended, wait_until

STUDY = ("residual=true,false", "bn=pre,post", "train.lr=0.01", "train.precision=fp32", "train.compile=false")
"""Four cells, trained in the arithmetic that repeats itself bit for bit."""

LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ),
}
"""The overrides that choose each launcher, by what its plugin is called."""

MARK = "BBCU_TEST_SWEEP"
"""A variable that every process of a sweep inherits, wherever a launcher starts it."""


def is_installed(launcher: str) -> bool:
    return importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is not None


def processes_with(mark: str) -> list[int]:
    """The running processes that have inherited ``mark``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            # It has ended since, or belongs to somebody else.
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append(int(path.parent.name))
    return found


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that has ended: where it ran, how it ended, and the mark of its processes."""

    workplace: Workplace
    outcome: Outcome
    mark: str

    def measured(self) -> dict[tuple[str, int], dict[str, Any]]:
        """What each trial that has a result has measured, by cell and seed."""
        found = {(folder.cell, folder.seed): folder.result() for folder in self.workplace.trials()}
        return {key: {part: result[part] for part in ("metrics", "probes")} for key, result in found.items() if result}


@contextlib.contextmanager
def swept(launcher: Sequence[str], workplace: Workplace) -> Iterator[Sweep]:
    """Run the study as a user does, and give it when it has ended; what it leaves running ends with the body.

    Workers find the program as if it were installed, and Ray gets what keeps it from the user's home and from a path
    that is too long for its sockets.
    """
    mark = uuid.uuid4().hex
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(MARK, mark)
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("RAY_TMPDIR", scratch)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            with ended(workplace.start_interpreter("-m", *workplace.overrides(*STUDY), *launcher)) as process:
                wait_until(lambda: process.pid in processes_with(mark), "the sweep to be among the processes")
                out, message = process.communicate(timeout=600)
            yield Sweep(workplace, Outcome(process.returncode, out, message), mark)
        finally:
            for number in processes_with(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Sweep]:
    """The study by the basic launcher: one trial after the other, in the process of the sweep."""
    with swept(["hydra/launcher=basic"], Workplace.apart(tmp_path_factory.mktemp("basic"), migrated_database)) as sweep:
        yield sweep


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.skipif(not is_installed(name), reason=f"hydra-{name}-launcher is missing"))
        for name in LAUNCHERS
    ],
)
def sweep(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Iterator[Sweep]:
    """The study by one of the launchers."""
    with swept(
        LAUNCHERS[request.param], Workplace.apart(tmp_path_factory.mktemp(request.param), migrated_database)
    ) as sweep:
        yield sweep


@pytest.mark.slow
def test_no_two_cells_of_the_study_measure_the_same(reference: Sweep) -> None:
    measured = reference.measured().values()
    assert len(measured) == 4
    assert all(one["metrics"] != other["metrics"] for one, other in itertools.combinations(measured, 2))


@pytest.mark.slow
def test_every_trial_has_a_result_and_the_sweep_says_so(sweep: Sweep) -> None:
    assert sweep.outcome.status == 0, sweep.outcome.text
    assert len(sweep.workplace.results()) == 4
    assert sweep.outcome.out.count(" done ") >= 4
    assert "Traceback" not in sweep.outcome.text


@pytest.mark.slow
def test_every_cell_measures_what_it_does_by_the_basic_launcher_bit_for_bit(sweep: Sweep, reference: Sweep) -> None:
    assert sweep.measured() == reference.measured()


@pytest.mark.slow
def test_every_trial_is_in_mlflow_once_and_finished(sweep: Sweep) -> None:
    assert sweep.workplace.finished() == sweep.workplace.results()
    assert len(sweep.workplace.runs()) == 4


@pytest.mark.slow
def test_no_process_outlives_the_sweep(sweep: Sweep) -> None:
    wait_until(lambda: not processes_with(sweep.mark), "the processes of the sweep to end")


# --- the page ---------------------------------------------------------------------------------------------------------

COMMANDS = [
    line.strip()
    for line in (REPOSITORY / "docs" / "launchers.md").read_text().splitlines()
    if line.startswith("    python run.py")
]


def without_places(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command but those that name a machine or a folder of the reader's."""
    return [text for text in overrides if text.partition("=")[0] not in ("outputs", "tracking.uri")]


def test_the_page_has_a_command_for_every_launcher_but_the_basic_one() -> None:
    named = set(re.findall(r"hydra/launcher=(\w+)", "\n".join(COMMANDS)))
    assert named == {"joblib", "submitit_local", "submitit_slurm", "ray"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_can_be_planned(command: str, workplace: Workplace) -> None:
    _, program, multirun, *overrides = shlex.split(command)
    assert (program, multirun) == ("run.py", "-m")
    (launcher,) = re.findall(r"hydra/launcher=([a-z]+)", command)
    if not is_installed(launcher):
        pytest.skip(f"hydra-{launcher}-launcher is missing")
    outcome = workplace.sweep(*without_places(overrides), "hydra.sweeper.dry_run=true")
    assert outcome.status == 0, outcome.message
    assert "dry run: nothing was trained or recorded" in outcome.out
