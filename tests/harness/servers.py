"""PostgreSQL and MLflow servers on free ports, which end with their test, and what MLflow must hold of a study."""

import contextlib
import io
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablations.__main__ import main
from ablations.storage.folder import CurvePoint, TrialFolder, steps_of, trial_folders
from ablations.tracking.client import client_of, experiment_id, identity_of, search_runs
from ablations.tracking.notes import means_of
from ablations.tracking.runs import facts_of, final_metrics
from tests.harness.builders import NOBODY, open_folder
from tests.harness.support import STUDY, Workplace, wait_until

SECONDS = 60
ADDRESS = "127.0.0.1"
OWNER = "mlflow"
IN_STEPS = ("train.steps=6", "tracking.snapshot_s=0")
"""A training with a snapshot after each step, as long as those of a study with faults."""

PORTS = range(20_000, 32_000)
"""Below those that Linux gives to outgoing connections."""

POSTGRESQL = Path("/usr/lib/postgresql")
"""Debian's folder of PostgreSQL programs, one subfolder per version; they are not on the PATH."""


def free_port() -> int:
    """A port that no process listens on, and that no connection can take while a server starts."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind((ADDRESS, port))
            return port


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process that leads its group, and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def postgresql_programs() -> Path:
    """The programs of the newest PostgreSQL; without one the test is skipped, or fails if ``CI`` is set."""
    found = [path.parent for path in POSTGRESQL.glob("*/bin/initdb") if path.parts[-3].isdigit()]
    if not found:
        reason = f"PostgreSQL is not installed below {POSTGRESQL}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return max(found, key=lambda path: int(path.parent.name))


class PostgreSQL:
    """A PostgreSQL server with its data in ``folder``, without passwords."""

    def __init__(self, folder: Path) -> None:
        self._programs, self._port = postgresql_programs(), free_port()
        self.folder, self._data, self._log = folder, folder / "data", folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._data.mkdir()
        if os.geteuid() == 0:
            os.chown(self._data, NOBODY, NOBODY)
        options = (f"--pgdata={self._data}", f"--username={OWNER}", "--auth=trust", "--no-sync")
        subprocess.run(
            [self._programs / "initdb", *options], check=True, capture_output=True, cwd=folder, **not_as_root()
        )

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        settings = (f"listen_addresses={ADDRESS}", f"unix_socket_directories={self._data}", "fsync=off")
        with self._log.open("ab") as stream:
            process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self._data, "-p", str(self._port)),
                    *(f"--{setting}" for setting in settings),
                ],
                cwd=self.folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **not_as_root(),
            )
        self._process = process
        wait_until(lambda: self._accepts() or process.poll() is not None, f"PostgreSQL, see {self._log}", SECONDS)
        assert process.poll() is None, self._log.read_text(encoding="utf-8")

    def stop(self) -> None:
        """Stop the server at once and drop every connection; SIGKILL would leave its shared memory behind."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(SECONDS)
            self._process = None

    def create(self) -> str:
        """Create an empty database and return its tracking URI."""
        name = f"study_{uuid.uuid4().hex}"
        subprocess.run([self._programs / "createdb", *self._connection(), name], check=True, capture_output=True)
        return f"postgresql+psycopg2://{OWNER}@{ADDRESS}:{self._port}/{name}"

    def _accepts(self) -> bool:
        ready = subprocess.run([self._programs / "pg_isready", *self._connection()], capture_output=True, check=False)
        return ready.returncode == 0

    def _connection(self) -> list[str]:
        return [f"--host={ADDRESS}", f"--port={self._port}", f"--username={OWNER}"]


def not_as_root() -> dict[str, Any]:
    """Arguments of ``subprocess`` for a program that refuses to run as root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server that accepts connections, in a folder that another user may enter."""
    with open_folder() as folder:
        server = PostgreSQL(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()


# --- MLflow -----------------------------------------------------------------------------------------------------------


class MlflowServer:
    """An MLflow server on a database, with the files of its runs in ``folder``."""

    def __init__(self, database: str, folder: Path) -> None:
        self._database, self.folder, self._port = database, folder, free_port()
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{ADDRESS}:{self._port}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with self._log.open("ab") as stream:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--backend-store-uri", self._database, "--artifacts-destination", str(self.folder / "files")),
                    *("--host", ADDRESS, "--port", str(self._port)),
                ],
                cwd=self.folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            )
        self._process = process
        wait_until(lambda: self.answers() or process.poll() is not None, f"MLflow, see {self._log}", SECONDS)
        assert process.poll() is None, self._log.read_text(encoding="utf-8")

    def stop(self) -> None:
        """Kill the server, so that connections are refused."""
        if self._process is not None:
            kill_group(self._process)
            self._process = None

    def pause(self) -> None:
        """Stop the server's processes, so that connections stay open without an answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server does not run"
        os.killpg(self._process.pid, number)


@contextlib.contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[MlflowServer]:
    """A server that answers."""
    server = MlflowServer(database, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def mlflow_server_on_a_file(migrated_database: Path, folder: Path) -> Iterator[MlflowServer]:
    """A server that answers, on a new database in ``folder``."""
    database = folder / "mlflow.db"
    shutil.copyfile(migrated_database, database)
    with mlflow_server(f"sqlite:///{database}", folder) as server:
        yield server


# --- what MLflow holds of a study -------------------------------------------------------------------------------------

Points = dict[str, list[tuple[int, float]]]
"""Every (step, value) of each metric, sorted; a point that is there twice is listed twice."""


def points_on_disk(folder: TrialFolder) -> Points:
    """The curve of a trial, and its final metrics at its last step, with the mean of both over the test sets."""
    result = folder.result()
    assert result is not None
    points = defaultdict(list)
    curve, last = folder.curve(), [CurvePoint(steps_of(result), final_metrics(result))]
    for point in (*curve, *means_of(curve), *last, *means_of(last)):
        for name, value in point.metrics.items():
            points[name].append((point.step, value))
    return {name: sorted(found) for name, found in points.items()}


def recorded_points(uri: str, run_id: str) -> Points:
    client = client_of(uri)
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        for name in client.get_run(run_id).data.metrics
    }


def recorded_file(uri: str, run_id: str, name: str) -> bytes:
    """A file of a run, by the way in which other machines get it."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client_of(uri).download_artifacts(run_id, name, folder)).read_bytes()


def check_recorded(workplace: Workplace, study: str = STUDY, trials: int = 4, failed: int = 0) -> None:
    """Every trial but the failed has a result, and exactly one FINISHED run with all its metrics, params and bytes."""
    folders = {(folder.cell, folder.seed): folder for folder in trial_folders(workplace.outputs, study)}
    results = {identity: result for identity, folder in folders.items() if (result := folder.result()) is not None}
    assert (len(folders), len(results)) == (trials + failed, trials)
    experiment = experiment_id(workplace.uri, study)
    found = search_runs(workplace.uri, experiment, "attributes.status = 'FINISHED'")
    runs = [(identity, run) for run in found if (identity := identity_of(run)) is not None]
    assert sorted(identity for identity, _ in runs) == sorted(results)
    for identity, run in runs:
        folder = folders[identity]
        assert recorded_points(workplace.uri, run.info.run_id) == points_on_disk(folder)
        assert run.data.params == facts_of(results[identity]).params
        assert recorded_file(workplace.uri, run.info.run_id, "result.json") == folder.result_path.read_bytes()
    assert search_runs(workplace.uri, experiment, "attributes.status = 'RUNNING'") == []


def synchronise(workplace: Workplace, study: str = STUDY) -> str:
    """Log what MLflow missed by the command for it, and return the last line that it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["sync", study, "--outputs", str(workplace.outputs), "--tracking-uri", workplace.uri])
    return printed.getvalue().splitlines()[-1]


def warnings(folder: TrialFolder) -> int:
    """How many times the log of the trial says that MLflow does not accept its records."""
    return folder.log_path.read_text(encoding="utf-8").count("they wait on disk")
