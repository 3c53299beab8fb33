"""Stop a process, or change its clock, at a chosen moment of its life."""

import dataclasses
import os
import re
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Moment:
    """The ``nth`` time that an audit event of Python has arguments like ``pattern``.

    The event "sql" is a statement that SQLite is about to run. At most ``processes`` of a command's processes stop
    there; if ``clock`` is not 0, their clocks change by that many seconds instead.
    """

    event: str
    pattern: str
    nth: int = 1
    processes: int = 1
    clock: float = 0


def halt_at(moment: Moment, notes: Path) -> None:
    """Stop this process at the moment, unless enough others have; ``notes`` gets a file for each that has."""
    seen, shift = 0, 0.0
    connect, true_time, true_time_ns = sqlite3.connect, time.time, time.time_ns

    def look_at(text: str) -> None:
        nonlocal seen
        if re.search(moment.pattern, text):
            seen += 1
            if seen == moment.nth and any(claim(number) for number in range(moment.processes)):
                halt()

    def claim(number: int) -> bool:
        try:
            note = os.open(notes / f"{number}.halted", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        os.write(note, str(os.getpid()).encode())
        os.close(note)
        return True

    def halt() -> None:
        nonlocal shift
        shift = moment.clock
        if not shift:
            os.kill(os.getpid(), signal.SIGSTOP)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == moment.event:
            look_at(" ".join(map(str, arguments)) + " ")

    def watched_connection(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(look_at)
        return connection

    if moment.clock:
        time.time = lambda: true_time() + shift
        time.time_ns = lambda: true_time_ns() + int(1e9 * shift)
    if moment.event == "sql":
        sqlite3.connect = sqlite3.dbapi2.connect = watched_connection  # type: ignore[assignment]
    else:
        sys.addaudithook(watch)
