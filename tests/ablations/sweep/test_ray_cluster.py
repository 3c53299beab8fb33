"""Sweeps that join a cluster of Ray, of two nodes on this machine, and what they say if they cannot."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ablations.sweep.test_launchers import MARK, is_installed, processes_with
from tests.harness.faults import SNAPSHOT_ENDS, is_stopped
from tests.harness.servers import free_port
from tests.harness.support import REPOSITORY, Outcome, Workplace, ended, wait_until

pytestmark = pytest.mark.skipif(not is_installed("ray"), reason="hydra-ray-launcher is missing")

SETTING = (
    *("train.steps=6", "train.lr=0.01", "tracking.snapshot_s=0"),
    *("train.precision=fp32", "train.compile=false"),
)
"""Arithmetic that repeats bit for bit, with a snapshot after each step."""

CELLS, ONE_CELL = "bn=none,pre,post", "bn=pre"

RAY = ("hydra/launcher=ray",)
ADDRESS = "hydra.launcher.ray.init.address"
HALT = f"""
from pathlib import Path
from tests.harness.halt import Moment, halt_at
halt_at(Moment({SNAPSHOT_ENDS.event!r}, {SNAPSHOT_ENDS.pattern!r}, {SNAPSHOT_ENDS.nth}), Path(__file__).parent)
"""
"""What every Python of the second node runs when it starts: the first trial there stops after three steps."""

CONNECT = """
import sys
from omegaconf import OmegaConf
from ablations.sweep.launchers import RAY, connect_to_ray, with_ray
from bbcu.errors import BbcuError
init = {"address": sys.argv[1], **({"num_cpus": 1} if sys.argv[1] == "local" else {})}
config = with_ray(OmegaConf.create({"hydra": {"launcher": {"_target_": RAY, "ray": {"init": init}}}}))
import ray
ray.__version__ = sys.argv[2] or ray.__version__
try:
    connect_to_ray(config.hydra.launcher)
    print(ray.get_runtime_context().gcs_address)
    print(ray.get(ray.remote(lambda: 3 + 4).remote()))
except BbcuError as error:
    print(error)
"""
"""Join a cluster as a sweep does, and print its address and what a job there returns, or why that is impossible."""


def connected(address: str, version: str = "") -> list[str]:
    command = [sys.executable, "-c", CONNECT, address, version]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()


@dataclass(frozen=True)
class Cluster:
    """A head and another node, with a core each, that ask for a token; the ``address`` of the head, and of its client.

    ``second`` is the mark of the processes of the second node, and ``notes`` gets a file when a trial stops there.
    """

    address: str
    client: str
    second: str
    notes: Path

    def start_second(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            (self.notes / "sitecustomize.py").write_text(HALT, encoding="utf-8")
            patch.setenv("PYTHONPATH", f"{self.notes}{os.pathsep}{REPOSITORY}")
            start_node(self.second, f"--address={self.address}")

    def lose_second(self) -> None:
        kill_all(self.second)


def start_node(mark: str, *options: str) -> None:
    """Start a node of Ray; its processes have inherited ``mark``."""
    small = ("--num-cpus=1", "--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *small]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, MARK: mark}, timeout=300)


def kill_all(mark: str) -> None:
    for number in processes_with(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The head of a cluster; variables of Ray in this process are as those of a user on that machine."""
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    with (
        # The paths of Ray's sockets are long.
        tempfile.TemporaryDirectory(prefix="", dir="/tmp", ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("RAY_TMPDIR", scratch)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        # A node that is lost is noticed after seconds.
        patch.setenv("RAY_health_check_period_ms", "500")
        # With gRPC's handlers of forks, the server of a Ray client dies at times before it has begun.
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
        notes = Path(scratch) / "notes"
        notes.mkdir()
        port, client_port = free_port(), free_port()
        try:
            ports = (f"--port={port}", f"--ray-client-server-port={client_port}")
            start_node(first, "--head", "--include-dashboard=false", *ports)
            address = (Path(scratch) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
            client = f"ray://{address.rpartition(':')[0]}:{client_port}"
            yield Cluster(address, client, second, notes)
        finally:
            kill_all(first)
            kill_all(second)


@pytest.fixture(scope="module")
def reference(new_workplace: Callable[[], Workplace]) -> Workplace:
    """The cells by the basic launcher."""
    workplace = new_workplace()
    workplace.sweep(*SETTING, CELLS)
    return workplace


def metrics(workplace: Workplace) -> dict[tuple[str, int], object]:
    results = {(folder.cell, folder.seed): folder.result() for folder in workplace.trials()}
    return {key: result["metrics"] for key, result in results.items() if result is not None}


def swept(workplace: Workplace, *overrides: str, meanwhile: Callable[[], None] = lambda: None) -> Outcome:
    """Run a sweep by Ray as a user does; call ``meanwhile`` while it runs."""
    with ended(workplace.start_interpreter("-m", *workplace.overrides(*SETTING, *RAY, *overrides))) as process:
        meanwhile()
        out, message = process.communicate(timeout=600)
    return Outcome(process.returncode, out, message)


@pytest.mark.slow
def test_a_sweep_joins_by_ray_client(
    cluster: Cluster, reference: Workplace, new_workplace: Callable[[], Workplace]
) -> None:
    workplace = new_workplace()
    outcome = swept(workplace, ONE_CELL, f"{ADDRESS}={cluster.client}")
    assert outcome.status == 0, outcome.text
    assert len(metrics(workplace)) == 1
    assert metrics(workplace).items() <= metrics(reference).items()


@pytest.mark.slow
def test_a_sweep_without_an_address_starts_its_own_cluster_while_another_runs(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep itself is that of the test of all launchers."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    own, returned = connected("local")
    assert own != cluster.address
    assert returned == "7"


@pytest.mark.slow
def test_a_sweep_that_joins_by_auto_finishes_though_a_node_is_lost(
    cluster: Cluster, reference: Workplace, new_workplace: Callable[[], Workplace]
) -> None:
    workplace = new_workplace()
    cluster.start_second()

    def lose_the_second_node() -> None:
        note = cluster.notes / "0.halted"
        wait_until(lambda: note.exists() and is_stopped(int(note.read_text() or 0)), "a trial on the second node")
        assert int(note.read_text()) in processes_with(cluster.second)
        assert len(metrics(workplace)) < 3
        cluster.lose_second()

    outcome = swept(workplace, CELLS, f"{ADDRESS}=auto", meanwhile=lose_the_second_node)
    assert outcome.status == 0, outcome.text
    assert metrics(workplace) == metrics(reference)
    assert workplace.finished() == workplace.results()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "version", "reason"),
    [
        pytest.param("wrong", "", "the token is refused", id="token"),
        pytest.param("", "2.0.0", "Version mismatch: The cluster was started with:", id="version"),
    ],
)
def test_why_a_cluster_cannot_be_joined_is_one_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, token: str, version: str, reason: str
) -> None:
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    (line,) = connected(cluster.address, version)
    assert line.startswith(f"{ADDRESS}={cluster.address}: cannot join a cluster: {reason}")


def test_a_cluster_that_is_not_there_is_refused_in_one_line(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "1")
    port = free_port()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        refusal = workplace.sweep(ONE_CELL, *RAY, f"{ADDRESS}={address}").refusal
        assert f"{ADDRESS}={address}: cannot join a cluster: nothing answers at 127.0.0.1:{port}" in refusal
    assert workplace.is_untouched()


@pytest.mark.parametrize("option", ["num_cpus", "object_store_memory"])
def test_an_option_of_a_new_cluster_is_refused_by_a_sweep_that_joins_one(workplace: Workplace, option: str) -> None:
    refusal = workplace.sweep(ONE_CELL, *RAY, f"{ADDRESS}=auto", f"+hydra.launcher.ray.init.{option}=2").refusal
    assert f"hydra.launcher.ray.init.{option}=2: is what `ray start` takes" in refusal
    assert workplace.is_untouched()
