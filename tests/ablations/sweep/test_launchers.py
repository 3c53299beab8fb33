"""Every launcher of Hydra runs the same trials of a study with the same results."""

import contextlib
import dataclasses
import importlib.util
import ipaddress
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import pytest

from tests.harness.passwords import leaks, with_login
from tests.harness.servers import MlflowServer, mlflow_server_on_a_file
from tests.harness.support import REPOSITORY, Outcome, Workplace, ended, wait_until

STUDY = ("bn=pre,post", "train.lr=0.01", "train.precision=fp32", "train.compile=false", "hydra.output_subdir=.hydra")
"""Two cells, trained in arithmetic that repeats bit for bit; Hydra stores the config and the overrides of each."""

LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"),
}
"""The overrides that choose each launcher, by what its plugin is called."""

MARK = "BBCU_TEST_SWEEP"
"""A variable that every process of a sweep inherits from the command."""


def is_installed(launcher: str) -> bool:
    return importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is not None


def processes_with(mark: str) -> list[int]:
    """The running processes that have inherited ``mark``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            # It has ended, or belongs to another user.
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append(int(path.parent.name))
    return found


def addresses(mark: str) -> set[str]:
    """The addresses on which the processes that have inherited ``mark`` listen."""
    links = [link for number in processes_with(mark) for link in Path(f"/proc/{number}/fd").glob("*")]
    sockets = set()
    for link in links:
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(link))
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.add(address_of(local.partition(":")[0]))
    return found


def address_of(text: str) -> str:
    """An address as the kernel prints it: words of eight digits, each with its last byte first."""
    words = [text[start : start + 8] for start in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(bytes.fromhex(word)[::-1] for word in words))
    return str(getattr(address, "ipv4_mapped", None) or address)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that has ended: where it ran, how it ended, and the mark of its processes.

    It had ``listening`` addresses during its first trial, and afterwards these files were ``left`` in the temporary
    folder.
    """

    workplace: Workplace
    outcome: Outcome
    mark: str
    listening: Set[str] = frozenset()
    left: Sequence[str] = ()

    def measured(self) -> dict[tuple[str, int], dict[str, Any]]:
        """What each trial that has a result has measured, by cell and seed."""
        found = {(folder.cell, folder.seed): folder.result() for folder in self.workplace.trials()}
        return {key: {part: result[part] for part in ("metrics", "probes")} for key, result in found.items() if result}


@contextlib.contextmanager
def swept(launcher: Sequence[str], workplace: Workplace) -> Iterator[Sweep]:
    """Run the study as a user does, and yield it when it has ended; afterwards kill what it has left running.

    Workers find the program as if it were installed. Temporary files have a folder of their own, with a path short
    enough for Ray's sockets.
    """
    mark = uuid.uuid4().hex
    with (
        tempfile.TemporaryDirectory(prefix="", ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(MARK, mark)
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("TMPDIR", scratch)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            with ended(workplace.start_interpreter("-m", *workplace.overrides(*STUDY), *launcher)) as process:
                wait_until(lambda: process.pid in processes_with(mark), "the sweep to be among the processes")
                running = workplace.outputs / workplace.study / ".running"
                wait_until(lambda: any(running.glob("*.json")) or process.poll() is not None, "the first trial")
                listening = addresses(mark)
                out, message = process.communicate(timeout=600)
            outcome = Outcome(process.returncode, out, message)
            yield Sweep(workplace, outcome, mark, listening, os.listdir(scratch))
        finally:
            for number in processes_with(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def reference(new_workplace: Callable[[], Workplace]) -> Sweep:
    """The study by the basic launcher: one trial after the other, in this process."""
    workplace = new_workplace()
    return Sweep(workplace, workplace.sweep(*STUDY), "")


@pytest.fixture(scope="module")
def server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server_on_a_file(migrated_database, tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.skipif(not is_installed(name), reason=f"hydra-{name}-launcher is missing"))
        for name in LAUNCHERS
    ],
)
def sweep(
    request: pytest.FixtureRequest, server: MlflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sweep]:
    """The study by one of the launchers, under a name of its own, recorded by a server with a password."""
    made = Workplace.make(tmp_path_factory.mktemp("workplace"), with_login(server.uri))
    with swept(LAUNCHERS[request.param], dataclasses.replace(made, study=request.param)) as sweep:
        yield sweep


@pytest.mark.slow
def test_the_two_cells_of_the_study_measure_different_scores(reference: Sweep) -> None:
    one, other = reference.measured().values()
    assert one["metrics"] != other["metrics"]


@pytest.mark.slow
def test_every_trial_has_a_result_and_the_sweep_says_so(sweep: Sweep) -> None:
    assert sweep.outcome.status == 0, sweep.outcome.text
    assert len(sweep.workplace.results()) == 2
    assert sweep.outcome.out.count(" done ") >= 2
    assert "Traceback" not in sweep.outcome.text


@pytest.mark.slow
def test_every_cell_has_the_scores_of_the_basic_launcher_bit_for_bit(sweep: Sweep, reference: Sweep) -> None:
    assert sweep.measured() == reference.measured()


@pytest.mark.slow
def test_every_trial_is_in_mlflow_once_and_finished(sweep: Sweep) -> None:
    assert sweep.workplace.finished() == sweep.workplace.results()
    assert len(sweep.workplace.runs()) == 2


@pytest.mark.slow
def test_workers_use_a_password_that_no_launcher_stores(sweep: Sweep) -> None:
    assert list(sweep.workplace.folder.rglob(".hydra/overrides.yaml"))
    assert leaks(sweep.workplace.folder, sweep.outcome.text) == []


@pytest.mark.slow
def test_nobody_reaches_the_workers_from_another_machine(sweep: Sweep) -> None:
    assert {address for address in sweep.listening if not ipaddress.ip_address(address).is_loopback} == set()


@pytest.mark.slow
def test_nothing_is_left_in_the_temporary_folder(sweep: Sweep) -> None:
    assert sweep.left == []


@pytest.mark.slow
def test_no_process_outlives_the_sweep(sweep: Sweep) -> None:
    wait_until(lambda: not processes_with(sweep.mark), "the processes of the sweep to end")
