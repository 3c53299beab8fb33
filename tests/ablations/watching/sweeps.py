"""Trials as a sweep leaves them, and what a view of them shows."""

import errno
import hashlib
import io
import multiprocessing
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ablations.storage.attempts import State, begin_attempt, update_attempt
from ablations.storage.folder import Identity, TrialFolder
from ablations.storage.lease import HeldLease, trial_lock
from ablations.watching.live import LiveView
from ablations.watching.tracker import WatchedTrial
from tests.ablations.storage.helpers import result

STUDY = "tiny"
STEPS = 100
TOLD_TO_RICH = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE")
"""Environment variables that change what rich takes for a terminal."""

BEGAN = 1_700_000_000.0
SESSION = "ours"


# --- trials as a sweep leaves them ------------------------------------------------------------------------------------


def folder_of(outputs: Path, name: str, seed: int = 0) -> TrialFolder:
    return TrialFolder(outputs, STUDY, hashlib.sha256(name.encode()).hexdigest(), seed)


def result_of(folder: TrialFolder, psnr_db: float = 33.91) -> dict[str, Any]:
    """A whole result; the mean PSNR over its two test sets is ``psnr_db``."""
    sets = {"Set5": psnr_db + 1, "Set14": psnr_db - 1}
    return {
        **result(folder.seed, folder.cell),
        "metrics": {name: {"psnr_db": mean, "ssim": 0.9} for name, mean in sets.items()},
        "baseline": {name: {"psnr_db": 30.0, "ssim": 0.8} for name in sets},
    }


@contextmanager
def at_work(folder: TrialFolder, name: str, session: str = SESSION, steps: int = STEPS) -> Iterator[HeldLease]:
    """Hold a trial in this process, with an attempt that has begun."""
    with trial_lock(folder, name, session=session, steps=steps) as hold:
        begin_attempt(folder, BEGAN)
        hold.heartbeat(now=True, phase="training")
        yield hold


def finish(folder: TrialFolder, psnr_db: float = 33.91, seconds: float = 50.0) -> None:
    """Finish the current attempt, which has taken ``seconds``."""
    folder.write_result(result_of(folder, psnr_db))
    update_attempt(folder, state=State.FINISHED, ended=BEGAN + seconds)


def run(folder: TrialFolder, name: str, psnr_db: float = 33.91, seconds: float = 50.0) -> None:
    """Run a trial to its end."""
    with at_work(folder, name):
        finish(folder, psnr_db, seconds)


def hold_until_killed(folder: TrialFolder, name: str, begun: Any) -> None:
    with at_work(folder, name):
        begun.set()
        signal.pause()


@contextmanager
def worker(folder: TrialFolder, name: str) -> Iterator[Any]:
    """Another process that holds a trial; it is killed at the end."""
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=hold_until_killed, args=(folder, name, begun))
    process.start()
    try:
        assert begun.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


# --- a view, and what it shows ----------------------------------------------------------------------------------------


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """What a terminal shows of this text; it knows the commands of a display that redraws itself."""

    TOKENS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r?\n|\r|[^\x1b\r\n]+")

    def __init__(self, text: str) -> None:
        self.lines, self.row, self._column = [""], 0, 0
        position = 0
        for token in self.TOKENS.finditer(text):
            assert token.start() == position, text[position : token.start()]
            position = token.end()
            self._take(token)

    def _take(self, token: re.Match[str]) -> None:
        number, command = token[1], token[2]
        if command == "A":
            self.row -= int(number or 1)
            assert self.row >= 0, "above the first line"
        elif command == "K":
            assert number == "2"
            self.lines[self.row] = ""
        elif command is not None:
            assert command in "mhl", token[0]
        elif token[0] == "\r":
            self._column = 0
        elif token[0].endswith("\n"):
            self.row, self._column = self.row + 1, 0
            self.lines += [""] * (self.row == len(self.lines))
        else:
            line = self.lines[self.row].ljust(self._column)
            self.lines[self.row] = line[: self._column] + token[0] + line[self._column + len(token[0]) :]
            self._column += len(token[0])

    @property
    def written(self) -> list[str]:
        """The lines with something on them."""
        return [line.rstrip() for line in self.lines if line.strip()]


class Sweep:
    """A sweep over a few trials, watched in a file or on a terminal of ``width`` columns."""

    def __init__(self, outputs: Path, names: tuple[str, ...], *, width: int = 0, height: int = 20) -> None:
        self.outputs, self.clock, self._file = outputs, Clock(), io.StringIO()
        self.folders = {name: folder_of(outputs, name) for name in names}
        self.console = Console(file=self._file, width=160)
        if width:
            self.console = Console(file=self._file, force_terminal=True, width=width, height=height)

    @property
    def trials(self) -> dict[Identity, WatchedTrial]:
        return {(folder.cell, folder.seed): WatchedTrial(name, STEPS, folder) for name, folder in self.folders.items()}

    def view(self, *done: str, **options: Any) -> LiveView:
        finished = {(self.folders[name].cell, 0) for name in done}
        given = {"trials": self.trials, "session": SESSION, "console": self.console, "clock": self.clock, **options}
        return LiveView(self.outputs, STUDY, done=finished, **given)

    def at_work(self, name: str, session: str = SESSION) -> Any:
        return at_work(self.folders[name], name, session)

    def draw(self, view: LiveView) -> None:
        """Update the view half a second after it was last drawn."""
        self.clock.now += 0.5
        view.update()

    @contextmanager
    def all_at_work(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in self.folders:
                stack.enter_context(self.at_work(name))
            yield

    def run(self, name: str, **result: float) -> None:
        run(self.folders[name], name, **result)

    @property
    def lines(self) -> list[str]:
        """Every line that was written without a terminal."""
        return self._file.getvalue().splitlines()

    @property
    def screen(self) -> list[str]:
        """What the terminal shows."""
        return Screen(self._file.getvalue()).written

    @property
    def cursor(self) -> int:
        """The row of the terminal's cursor, which waits in the last line of the display."""
        return Screen(self._file.getvalue()).row
