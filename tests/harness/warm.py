"""The command in processes that begin where its imports end, which take longer than the rest of a small study.

Each is a fork of a process that has imported what the command uses and has done nothing with it. From then on it is as
one that a shell has started: with an environment, a folder, streams and a group of its own, and Python's own way to
end. So are the workers that joblib starts for it. As a program, this file is the process that is forked.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.harness.paths import REPOSITORY

IMPORTED = (
    *("hydra", "torch", "torch._dynamo", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "rich.live"),
    *("ablations.sweep.sweeper", "ablations.tracking.sync", "ablations.trial.execution", "bbcu.training.loop"),
    *("hydra_plugins.hydra_joblib_launcher._core", "joblib.externals.loky.backend.fork_exec"),
)
"""What a sweep has imported by the end of its first trial, or most of it."""


class WarmProcess:
    """``python run.py`` with these arguments, handled as a ``Popen`` whose streams are files in ``notes``.

    As an interpreter that starts, it runs the ``sitecustomize`` that it finds along PYTHONPATH.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        notes: Path,
        streams: tuple[str, str] = ("out", "message"),
    ) -> None:
        self._notes, self._streams = notes, tuple(notes / name for name in streams)
        request = {
            "arguments": [str(REPOSITORY / "run.py"), *arguments],
            "folder": str(folder),
            "environment": dict(environment),
            "notes": str(notes),
            "streams": [str(path) for path in self._streams],
        }
        stdin = _server().stdin
        assert stdin is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        self.pid = self._number_in("pid", None)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        status = self._notes / "status"
        return int(status.read_text(encoding="ascii")) if status.exists() else None

    def wait(self, timeout: float | None = None) -> int:
        return self._number_in("status", timeout)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, message = (path.read_text(encoding="utf-8") for path in self._streams)
        return out, message

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _number_in(self, name: str, timeout: float | None) -> int:
        """What the parent notes of it, as soon as it has."""
        path, began = self._notes / name, time.monotonic()
        while not path.exists():
            if timeout is not None and time.monotonic() > began + timeout:
                raise subprocess.TimeoutExpired("run.py", timeout)
            assert _server().poll() is None, "the process that is forked has ended"
            time.sleep(0.005)
        return int(path.read_text(encoding="ascii"))


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """The process that is forked; it ends with this one."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.warm"],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    atexit.register(process.kill)
    return process


# --- the process that is forked ---------------------------------------------------------------------------------------


def _wait_for_requests() -> dict[str, Any]:
    """Fork for each request of the standard input, and give it in the fork, whose parent notes how it ends."""
    for line in sys.stdin:
        if os.fork() == 0:
            return _kept(json.loads(line))
    # The tests are over.
    os._exit(0)


def _kept(request: dict[str, Any]) -> dict[str, Any]:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        return request
    _note(request, "pid", pid)
    _, status = os.waitpid(pid, 0)
    _note(request, "status", os.waitstatus_to_exitcode(status))
    os._exit(0)


def _note(request: dict[str, Any], name: str, number: int) -> None:
    # A reader sees the whole number or none.
    written = Path(request["notes"]) / f".{name}"
    with contextlib.suppress(FileNotFoundError):
        written.write_text(str(number), encoding="ascii")
        written.replace(written.with_name(name))


def _become(request: dict[str, Any]) -> None:
    """Take on the group and the streams that a process of its own would be started with."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, path in enumerate(request["streams"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)


def _begin(request: dict[str, Any]) -> None:
    """Take on folder, environment and arguments, and do what an interpreter does first."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = request["arguments"]
    sys.path[:1] = [str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with contextlib.suppress(ImportError):
        import_module("sitecustomize")


# --- the workers of a command -----------------------------------------------------------------------------------------

PR_SET_CHILD_SUBREAPER = 36
"""From Linux's prctl.h: what descendants leave behind is the caller's."""

FREE = 512
"""File descriptors from here on are nobody's."""


class Nursery:
    """A child of the command, forked before it has begun, that forks its workers where loky would start interpreters.

    A worker is the command's own child all the same: whoever has forked it ends at once, and it falls to the command.
    """

    def __init__(self) -> None:
        self.is_worker = False
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._socket.close()
            self._wait_for_orders(other)
            self.is_worker = True
            return
        other.close()

    def fork_exec(self, command: Sequence[str], keep_fds: Iterable[int], env: Mapping[str, str] | None = None) -> int:
        """What loky calls to start ``python -m MODULE ...`` with these open files; the process's number."""
        fds = sorted(map(int, keep_fds))
        order = {
            "arguments": list(command[2:]),
            "folder": os.getcwd(),
            "environment": {**os.environ, **(env or {})},
            "fds": fds,
        }
        socket.send_fds(self._socket, [json.dumps(order).encode()], fds)
        return int(self._socket.recv(64))

    def _wait_for_orders(self, orders: socket.socket) -> None:
        """Fork a worker for each order; returns in a worker alone."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            text, fds, _, _ = socket.recv_fds(orders, 2**20, 64)
            if not text:
                # The command is over.
                os._exit(0)
            read, write = os.pipe()
            between = os.fork()
            if between == 0:
                worker = os.fork()
                if worker == 0:
                    for fd in (read, write, orders.detach()):
                        os.close(fd)
                    self._be_worker(json.loads(text), fds)
                    return
                os.write(write, str(worker).encode())
                os._exit(0)
            os.waitpid(between, 0)
            orders.send(os.read(read, 64))
            for fd in (read, write, *fds):
                os.close(fd)

    def _be_worker(self, order: dict[str, Any], fds: list[int]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The numbers that are wanted may be those that others of them came under.
        free = [fcntl.fcntl(fd, fcntl.F_DUPFD, FREE) for fd in fds]
        for fd in fds:
            os.close(fd)
        for fd, wanted in zip(free, order["fds"], strict=True):
            os.dup2(fd, wanted)
            os.close(fd)
        _begin(order)


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    # Of what is imported nothing is ever garbage, and memory that is not looked through stays shared.
    gc.freeze()
    # Nobody waits for those that note how others end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    request = _wait_for_requests()
    _become(request)
    nursery = Nursery()
    if nursery.is_worker:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        import_module("joblib.externals.loky.backend.fork_exec").fork_exec = nursery.fork_exec  # type: ignore[attr-defined]
        _begin(request)
        runpy.run_path(sys.argv[0], run_name="__main__")
