"""Write files atomically, and read files that may be damaged."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bbcu.errors import BbcuError


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace ``path`` by ``text``; readers see the old content or the new one, never a part, even after a crash."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, and move it to ``path`` unless an error is raised.

    ``durable`` waits until the content is on the disk, so that it survives a power cut; otherwise it survives only the
    end of this process.
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
    """Return the JSON object in ``path``, or None if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def first_line(message: BaseException | str) -> str:
    """Return the first line of a message; the type's name for an error without a message."""
    lines = str(message).strip().splitlines()
    return lines[0] if lines else type(message).__name__


def check_writable(folder: Path, what: str) -> None:
    """Make ``folder`` if needed; raise BbcuError, which begins with ``what``, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BbcuError(f"{what}: {folder} cannot be written to: {error.strerror}") from error
