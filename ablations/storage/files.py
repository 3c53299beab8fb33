"""Read and write the JSON files of a study so that damage is noticed, and check that a folder can be written to.

A file that :func:`write_sealed` has written has the SHA-256 of its own content under the key ``sha256``. What is read
is compared with it, and its types and ranges are checked as :mod:`ablations.storage.formats` states them. Files of
earlier versions have no checksum: they count if they pass the checks and have no key that is unknown or there twice.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbcu.errors import BbcuError, first_line
from bbcu.files import read_bytes, read_text, write_atomically

if TYPE_CHECKING:
    from ablations.storage.formats import Format

CHECKSUM = "sha256"
"""The key of a file's checksum."""


class DamagedFile(BbcuError):
    """A file is not what was written, or belongs elsewhere: the message names it, and ``reason`` says what is wrong."""

    def __init__(self, path: Path, reason: str, advice: str = "") -> None:
        super().__init__(f"{path} is damaged: {reason}{advice and '; '}{advice}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type["DamagedFile"], tuple[Path, str]]:
        # Errors of a worker are pickled.
        return type(self), (self.path, self.reason)

    @property
    def in_folder(self) -> str:
        """What is wrong with a file of a trial's folder: ``its result.json is damaged: not JSON``."""
        return f"its {self.path.name} is damaged: {self.reason}"


def write_sealed(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a JSON object with its checksum, as :func:`bbcu.files.write_atomically` does."""
    text = json.dumps({CHECKSUM: checksum_of(content), **content}, indent=1)
    write_atomically(path, f"{text}\n", durable=durable)


def read_sealed(path: Path, form: "type[Format]") -> dict[str, Any] | None:
    """Return the JSON object in ``path`` without its checksum, or None if there is no file; raise DamagedFile."""
    content = read_object(path)
    if content is None:
        return None
    stated = content.pop(CHECKSUM, None)
    try:
        if stated is not None and stated != checksum_of(content):
            raise DamagedFile(path, "its content does not match its checksum")
    except RecursionError:
        raise DamagedFile(path, "it is nested too deeply") from None
    check(path, content, form)
    if stated is None:
        _check_without_checksum(path, content, form)
    return content


def read_intact(path: Path, form: "type[Format]") -> dict[str, Any] | None:
    """Return the JSON object in ``path`` without its checksum, or None if the file is missing or damaged.

    It is for files on which no result depends, such as leases.
    """
    try:
        return read_sealed(path, form)
    except DamagedFile:
        return None


def check(path: Path, content: object, form: "type[Format]") -> None:
    """Raise DamagedFile unless ``content``, which ``path`` holds, has the keys, types and ranges of the format."""
    from pydantic import ValidationError

    from ablations.storage.formats import first_problem

    try:
        form.model_validate(content)
    except ValidationError as error:
        raise DamagedFile(path, first_problem(error)) from error
    except RecursionError:
        raise DamagedFile(path, "it is nested too deeply") from None


def _check_without_checksum(path: Path, content: Mapping[str, Any], form: "type[Format]") -> None:
    """Raise DamagedFile for a file without a checksum that has a later version's key, an unknown one or one twice."""
    if form.sealed_only & content.keys():
        raise DamagedFile(path, "its checksum is missing")
    unknown = sorted(content.keys() - form.keys())
    if unknown:
        raise DamagedFile(path, f"unknown key {unknown[0]!r}")
    try:
        json.loads(read_text(path), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError) as error:
        raise DamagedFile(path, first_line(error)) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in ``path``, or None if there is no file; raise DamagedFile for anything else."""
    try:
        content = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedFile(path, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DamagedFile(path, "it is not text") from error
    except ValueError as error:
        raise DamagedFile(path, f"it is not JSON: {first_line(error)}") from error
    except RecursionError:
        raise DamagedFile(path, "it is nested too deeply") from None
    if not isinstance(content, dict):
        raise DamagedFile(path, "it holds no JSON object")
    return content


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object with its keys in their order, however it is spaced."""
    # Sorting the keys would take as long again as all the rest.
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; raise OSError if it cannot be read or is not a regular file."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def check_writable(folder: Path, what: str) -> None:
    """Make ``folder`` if needed; raise BbcuError, which begins with ``what``, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BbcuError(f"{what}: {folder} cannot be written to: {error.strerror}") from error
