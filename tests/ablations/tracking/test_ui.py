"""The command that shows MLflow's pages by a small server."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ablations.__main__ import main
from ablations.tracking.client import client_of, prepare_tracking
from tests.harness.paths import REPOSITORY
from tests.harness.servers import free_port


def refusal(*arguments: str) -> str:
    with pytest.raises(SystemExit) as refused:
        main(["ui", *arguments])
    return str(refused.value)


def test_a_store_that_is_a_server_is_refused() -> None:
    for address in ("http://127.0.0.1:5000", "HTTPS://127.0.0.1:5000"):
        assert "is a server: open its pages in a browser" in refusal("--tracking-uri", address)


def test_a_missing_database_is_refused_and_not_made(tmp_path: Path) -> None:
    assert "no tracking database at" in refusal("--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_refused(tracking_uri: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert refusal("--tracking-uri", tracking_uri, "--port", str(number)) == (
            f"ablations: --port {number}: Address already in use; choose another"
        )


@pytest.mark.parametrize("text", ["0", "65536", "http"])
def test_a_port_is_a_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    refusal("--port", text)
    assert "must be a whole number from 1 to 65535" in capsys.readouterr().err


@pytest.mark.slow
def test_it_prints_the_page_of_a_study_and_ends_with_all_its_processes(tracking_uri: str, tmp_path: Path) -> None:
    experiment = prepare_tracking(tracking_uri, "tiny")
    client_of(tracking_uri).create_experiment("other")
    port = free_port()
    command = [sys.executable, "-m", "ablations", "ui", "tiny", "--port", str(port), "--tracking-uri", tracking_uri]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == f"MLflow: http://127.0.0.1:{port}\n"
        assert lines[1] == (
            f"tiny: http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning\n"
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            assert answer.status == 200
        servers = processes_with(str(port)) - {process.pid}
        assert servers
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert not processes_with(str(port))


def processes_with(argument: str) -> set[int]:
    """The processes that have this argument, or one that ends with it."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(re.search(rf"\b{argument}$", word) for word in words):
            found.add(int(path.parent.name))
    return found
