"""Read files that may be damaged, and check that a folder can be written to."""

import json
import tempfile
from pathlib import Path
from typing import Any

from bbcu.errors import BbcuError
from bbcu.files import read_text


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in ``path``, or None if the file is missing or damaged."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def check_writable(folder: Path, what: str) -> None:
    """Make ``folder`` if needed; raise BbcuError, which begins with ``what``, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BbcuError(f"{what}: {folder} cannot be written to: {error.strerror}") from error
