"""The command in processes that begin where its imports end, which take longer than the rest of a small study.

Each is a fork of a process that has imported what the command uses and has done nothing with it. From then on it is as
one that a shell has started: with an environment, a folder, streams and a group of its own, and Python's own way to
end. As a program, this file is the process that is forked.
"""

import atexit
import contextlib
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
IMPORTED = (
    *("hydra", "torch", "torch._dynamo", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "rich.live"),
    *("ablations.sweeper", "ablations.syncing", "ablations.trial", "bbcu.training"),
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
        [sys.executable, __file__],
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
    """Take on what the request says that a process of its own would be started with."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, path in enumerate(request["streams"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = request["arguments"]
    sys.path[:1] = [str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with contextlib.suppress(ImportError):
        import_module("sitecustomize")


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    # Nobody waits for those that note how others end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _become(_wait_for_requests())
    runpy.run_path(sys.argv[0], run_name="__main__")
