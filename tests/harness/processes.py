"""``python run.py`` in another process that starts with its imports done; they take longer than a small study.

A fork server of the standard library imports what the command needs, and each command is a fork of it: with its own
arguments, environment, folder, streams and process group, as if a shell had started it.
"""

import atexit
import contextlib
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
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from tests.harness.composing import compose_faster
from tests.harness.halt import Moment, halt_at
from tests.harness.paths import REPOSITORY

IMPORTED = (
    *("hydra", "torch", "torch._dynamo", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "rich.live"),
    *("ablations.sweep.sweeper", "ablations.tracking.sync", "ablations.trial.execution", "bbcu.training.loop"),
    *("ablations.command", "ablations.trial.samples", "bbcu.training.evaluation", "bbcu.training.probes"),
    *("hydra_plugins.ablation_sweeper", "hydra_plugins.hydra_joblib_launcher._core", "antlr4.LL1Analyzer"),
    *("hydra._internal.core_plugins.basic_launcher", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"),
    "tests.harness.processes",
)
"""What a sweep has imported by the end of its first trial, or most of it."""

FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(list(IMPORTED))

SPARE_WORKERS = 8
"""More than a command of the tests starts; if it starts more, they import for themselves."""


class CommandProcess:
    """``python run.py`` with these arguments, handled like a ``Popen`` whose streams are files in ``notes``.

    With ``program`` it is another one, as ``python -m PROGRAM``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        notes: Path,
        *,
        streams: tuple[str, str] = ("out", "message"),
        halt: Moment | None = None,
        program: str = "run.py",
    ) -> None:
        self._streams = [notes / name for name in streams]
        start = functools.partial(
            _run, [program, *arguments], folder, dict(environment), self._streams, (halt, notes) if halt else None
        )
        self._process = FORKSERVER.Process(target=start)
        # The server starts with the first command, and imports from its working directory.
        with contextlib.chdir(REPOSITORY):
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative if a signal has killed it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended or the time is over."""
        self._process.join(timeout)

    def wait(self, timeout: float | None = None) -> int:
        self.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("run.py", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, message = (path.read_text(encoding="utf-8") for path in self._streams)
        return out, message

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _run(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    streams: list[Path],
    halt: tuple[Moment, Path] | None,
) -> None:
    """Run the command in this process, a fork of the server, from the state in which a shell would start it."""
    # What was imported is never garbage, and memory that the collector does not touch stays shared.
    gc.freeze()
    compose_faster()
    os.setsid()
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _enter(arguments, folder, environment)
    if halt is not None:
        halt_at(*halt)
    if "hydra/launcher=joblib" in arguments and is_worker():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    try:
        if arguments[0] == "run.py":
            runpy.run_path(str(REPOSITORY / "run.py"), run_name="__main__")
        else:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    finally:
        # The order of an interpreter. That of multiprocessing waits for joblib's workers before it ends them.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def _enter(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Otherwise the folder that the fork server has found stays.
    tempfile.tempdir = None
    sys.argv = arguments
    sys.path[:0] = [str(REPOSITORY), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]


# --- workers ----------------------------------------------------------------------------------------------------------


def is_worker() -> bool:
    """Fork workers before the command begins, and let joblib take them where it would start interpreters.

    Returns False in the command, and True in each worker that joblib has taken. The imports of an interpreter would
    cost four seconds of a core. There is no option for that: Hydra's launcher fixes joblib's backend, which can only
    start interpreters, or fork a process that has connections and threads by then. So the function of the backend that
    starts an interpreter is replaced.
    """
    spares: list[tuple[int, socket.socket]] = []
    for _ in range(SPARE_WORKERS):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            for channel in (ours, *(channel for _, channel in spares)):
                channel.close()
            _wait_for_work(theirs)
            return True
        theirs.close()
        spares.append((pid, ours))
    module = import_module("joblib.externals.loky.backend.fork_exec")
    start_interpreter = module.fork_exec

    def take(command: Sequence[str], keep_fds: Iterable[int], env: Mapping[str, str] | None = None) -> int:
        """Take a worker for ``python -m MODULE ...`` with these files open; the process's number."""
        if not spares:
            return int(start_interpreter(command, keep_fds, env))
        pid, channel = spares.pop()
        fds = sorted(map(int, keep_fds))
        work = (list(command[2:]), os.getcwd(), {**os.environ, **(env or {})}, fds)
        socket.send_fds(channel, [json.dumps(work).encode()], fds)
        channel.close()
        return pid

    module.fork_exec = take  # type: ignore[attr-defined]
    return False


def _wait_for_work(channel: socket.socket) -> None:
    """Return as soon as joblib takes this process; end it with the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    text, received, _, _ = socket.recv_fds(channel, 2**20, 64)
    channel.close()
    if not text:
        os._exit(0)
    arguments, folder, environment, wanted = json.loads(text)
    # A wanted number may be one that another file was received under.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, 512) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(moved, wanted, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _enter(arguments, Path(folder), environment)
