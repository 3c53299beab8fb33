"""The journal of a search: Optuna's operations, one a line, each chained by a checksum to all lines before it.

A line is the operation in JSON, as Optuna's own file has it, with a last key ``chain``: the SHA-256 of the chain of the
line before and of the line without that key. So a line that is changed, lost, moved or there twice is noticed when the
journal is read; only the last lines can be lost unnoticed, and then the journal is what it was before them. Lines that
an earlier version wrote have no chain; the first line with one vouches for them.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
from optuna.storages.journal import BaseJournalBackend

from bbcu.errors import BbcuError
from bbcu.files import read_bytes

CHAIN = re.compile(rb'^(\{.+),"chain":"([0-9a-f]{64})"\}\n$')
BEGINNING = "0" * 64
LARGEST = 2**32
"""The most bytes of a journal that are read."""


class ChainedJournal(BaseJournalBackend):
    """A journal at ``path``, which ``lock`` protects against other threads and processes.

    ``refusal`` returns the error to raise if the journal is damaged, from what is wrong.
    """

    def __init__(self, path: Path, lock: filelock.BaseFileLock, refusal: Callable[[str], BbcuError]) -> None:
        self._path, self._lock, self._refusal = path, lock, refusal
        # Where each line that was read begins, the chain before it, and whether lines before it have one.
        self._starts: list[tuple[int, str, bool]] = [(0, BEGINNING, False)]
        with lock:
            path.touch()

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the operations from that line on; raise the refusal if the journal is damaged."""
        return list(self._lines_from(log_number_from))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, and wait until they are on the disk."""
        with self._lock:
            _truncate_partial_line(self._path)
            for _ in self._lines_from(len(self._starts) - 1):
                pass
            _, chain, _ = self._starts[-1]
            lines = []
            for operation in logs:
                body = json.dumps(operation, separators=(",", ":")).encode()[:-1]
                chain = _next(chain, body)
                lines.append(body + b',"chain":"' + chain.encode() + b'"}\n')
            with self._path.open("ab") as file:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())

    def _lines_from(self, number: int) -> Iterator[dict[str, Any]]:
        """Check and yield each whole line from that one on; all lines before it were read earlier."""
        start, chain, is_chained = self._starts[number]
        if self._path.stat().st_size < start:
            raise self._refusal(f"line {number} is gone")
        content = read_bytes(self._path, LARGEST, start)
        # A partial last line is still being written, or its process was killed.
        whole = content[: content.rfind(b"\n") + 1]
        for line in (part + b"\n" for part in whole.split(b"\n")[:-1]):
            number += 1
            match = CHAIN.fullmatch(line)
            body = match[1] if match is not None else line
            chain = _next(chain, body)
            if is_chained if match is None else match[2].decode() != chain:
                raise self._refusal(f"line {number} is damaged, or a line before it is or was removed")
            is_chained = match is not None
            start += len(line)
            if number == len(self._starts):
                self._starts.append((start, chain, is_chained))
            yield self._operation(line, number)

    def _operation(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            operation = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._refusal(f"line {number} is not JSON") from error
        if not isinstance(operation, dict):
            raise self._refusal(f"line {number} is no operation")
        operation.pop("chain", None)
        return operation


def _next(chain: str, body: bytes) -> str:
    return hashlib.sha256(chain.encode() + body).hexdigest()


def _truncate_partial_line(path: Path) -> None:
    """Truncate a partial last line, which a killed process may leave, before another line is appended to it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
