"""What a command does before it writes anything: no text that it prints or logs can fail, act on a terminal, or leak.

Names, paths and messages of other programs may contain control characters, which a terminal obeys; characters that the
encoding of a stream lacks; and passwords.
"""

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
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
        # The reader, such as head, has read enough. At its end Python flushes again, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except BbcuError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return WRONG_USE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0
