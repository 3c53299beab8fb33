"""Files that are written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbcu.errors import BbcuError

if TYPE_CHECKING:
    pass


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Put ``text`` at ``path`` so that a reader, or a crash, sees the old file or the new one and nothing between."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to, and move it to ``path`` when the body ends without an error.

    ``durable`` waits until the disk has it, so that a machine that loses its power keeps the old file or the new one
    too; without it that holds for processes that end, however they do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is none or it was cut short."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_writable(folder: Path, what: str) -> None:
    """Make ``folder``, and raise BbcuError, which begins with ``what``, where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BbcuError(f"{what}: {folder} cannot be written to: {error.strerror}") from error
