"""MLflow's pages on a store, by a server that has no more processes than they need."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence

from ablations.tracking.client import TrackingError, database_of, one_line_errors
from bbcu.errors import ConfigError
from bbcu.passwords import masked
from bbcu.terminal import say

HOST = "127.0.0.1"
"""The server has no passwords, so only this machine reaches it."""

START_SECONDS = 120.0
"""How long a server may take to start; MLflow imports for ten seconds on a slow machine."""

END_SECONDS = 10.0
"""How long a server may take to end before it is killed."""

LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""What leaves out the processes that serve language models, and the report of usage to MLflow's developers."""

MOST_SHOWN = 20
"""The most studies whose addresses are printed."""


def serve(uri: str, port: int, study: str | None) -> None:
    """Serve MLflow's pages of the store at ``uri``, print the addresses of its studies, and wait until it is stopped.

    Ctrl-C and SIGTERM end the server with all its processes. Raises ConfigError for a store that is a server itself,
    for a study that does not exist and for a port that is taken, and TrackingError if the server does not start.
    """
    if uri.lower().startswith(("http:", "https:")):
        raise ConfigError(f"{uri} is a server: open its pages in a browser")
    with one_line_errors(uri):
        check_free(port)
    address = f"http://{HOST}:{port}"
    with stopped_by_signals(), server(uri, port) as process:
        wait_for(process, f"{address}/health")
        for line in addresses(address, study):
            say(line)
        say("If a run opens under GenAI, choose Model training at the top left once: the browser remembers it.")
        say("Ctrl-C ends the server.")
        process.wait()
    raise TrackingError(f"MLflow's server has ended with status {process.returncode}")


def check_free(port: int) -> None:
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another") from None


class Stopped(BaseException):
    """The command was told to end."""


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block, and nothing be said about it."""

    def stop(number: int, frame: object) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Stopped:
        sys.exit(0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def server(uri: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a server in a session of its own; end all its processes afterwards.

    The address of the store may hold a password, so it is passed in the environment, which other users cannot read.
    """
    database = database_of(uri)
    store = uri if database is None else f"sqlite:///{database}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port)]
    process = subprocess.Popen(
        command,
        env={**os.environ, **LEAN, "MLFLOW_BACKEND_STORE_URI": store},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_group(process)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process that leads its group and all that it has started; kill what does not end in time."""
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def wait_for(process: "subprocess.Popen[bytes]", address: str) -> None:
    """Wait until a server answers; raise TrackingError if it ends before, or takes too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise TrackingError(f"MLflow's server ended with status {process.returncode} before it answered")
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10):
            return
        time.sleep(0.1)
    raise TrackingError(f"MLflow's server has not answered for {START_SECONDS:.0f} seconds")


def addresses(address: str, study: str | None) -> list[str]:
    """Return the lines that say where each study's page is, or that of one.

    MLflow shows the page of an agent unless the address, or a button of its pages, says otherwise. Raises ConfigError
    if the study does not exist.
    """
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        json.dumps({"max_results": 1000, "order_by": ["last_update_time DESC"]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = {each["name"]: each["experiment_id"] for each in json.load(answer).get("experiments", [])}
    found.pop("Default", None)
    if study is not None and study not in found:
        raise ConfigError(f"no study {study!r}; available: {', '.join(sorted(found)) or 'none'}")
    chosen: Sequence[str] = [study] if study is not None else list(found)[:MOST_SHOWN]
    pages = [f"{name}: {address}/#/experiments/{found[name]}/runs?workflowType=machine_learning" for name in chosen]
    more = [f"and {len(found) - MOST_SHOWN} other studies"] if study is None and len(found) > MOST_SHOWN else []
    return [f"MLflow: {address}", *map(masked, pages), *more]
