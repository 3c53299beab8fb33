"""What a command does before it writes anything: no text that it prints or logs can fail, act on a terminal, or leak.

Names, paths and messages of other programs may contain control characters, which a terminal obeys; characters that the
encoding of a stream lacks; and passwords.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn

from bbcu.errors import BbcuError, ConfigError, printable, printable_lines
from bbcu.passwords import masked


class SafeRecord(logging.LogRecord):
    """A log record whose text is printable and has no passwords, whichever handler writes it."""

    _traceback: str | None = None

    def getMessage(self) -> str:
        return printable_lines(masked(super().getMessage()))

    @property
    def exc_text(self) -> str | None:
        return self._traceback

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._traceback = None if text is None else printable_lines(masked(text))


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors, which quote the arguments, are one printable line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(masked(message))}; {self.prog} -h shows the usage\n")


def protect_output() -> None:
    """Make the streams, the log and the tracebacks of this process accept any text; a second call changes nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(SafeRecord)
    sys.excepthook = _print_traceback


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(printable_lines(masked(text)), end="", file=sys.stderr)


def say(text: object = "") -> None:
    """Print lines, such as a table, at once, with control characters escaped."""
    print(printable_lines(str(text)), flush=True)


@contextlib.contextmanager
def progress_shown() -> Iterator[Callable[[str], None]]:
    """Show the last line of progress on stderr while it goes on, or every line where that is no terminal.

    On a terminal nothing may be printed meanwhile: it would end up on stderr. The imports are here because most
    commands show no progress.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: console.print(escape(printable(line)), soft_wrap=True, highlight=False)
        return
    with console.status("starting") as status:
        yield lambda line: status.update(escape(printable(line)))


@contextlib.contextmanager
def progress_bar(name: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar on stderr while the ``with`` block runs, if that is a terminal; yields what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    # Lines that are printed beside the bar would go to stderr, too.
    beside = sys.stdout.isatty()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=beside
    ) as bar:
        task = bar.add_task(printable(name), total=total)
        yield lambda amount: bar.advance(task, amount)


def discard_output() -> None:
    """Let further output go nowhere, since its reader, such as head, has read enough.

    At its end Python flushes again, which must not fail.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130


def exit_status(name: str, run: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Run a command and return its exit status: 1 if it failed, 2 for a name or value that does not exist.

    An error is printed as one line behind the command's name, and ``interrupted`` after Ctrl-C.
    """
    try:
        run()
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
    except BbcuError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return WRONG_USE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0
