"""Unpack archives that are not trusted: nothing outside the folder, no links, no devices, no decompression bombs."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Literal

from bbcu.data.layouts import printable
from bbcu.errors import DataError

Kind = Literal["zip", "tar"]

CHUNK = 2**18

LARGEST = 64 * 2**30
"""The most bytes that any archive may unpack to."""

MOST_EXPANSION = 20
"""How many times its own size an archive may unpack to; pictures are compressed already and come to about once."""

SMALLEST_LIMIT = 64 * 2**20
"""What even the smallest archive may unpack to: it may be mostly text, which compresses well."""

SMALLEST_ENTRY = 1024
"""The least that an entry counts for: millions of empty files fill a disk as well."""


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive; ``kind`` is "file", "folder", "a link" or "a device"."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, kind: Kind, member: str | None, folder: Path) -> None:
    """Unpack an archive, or only its folder ``member``, into an empty folder.

    Links and devices are refused, since pictures need none, and so are absolute names and names with ``..``. Outside
    ``member`` only such names and links that lead out of the archive are refused. The content may be 20 times the size
    of the archive or 64 MiB, whichever is more, and never more than 64 GiB.
    Raises DataError for what is refused, and for an archive that is damaged or does not hold ``member``; the caller
    removes what was unpacked until then. Raises OSError if the disk cannot be written.
    """
    entries = _zip_entries(archive) if kind == "zip" else _tar_entries(archive, folder)
    inside = () if member is None else tuple(member.split("/"))
    left = min(LARGEST, max(SMALLEST_LIMIT, MOST_EXPANSION * archive.stat().st_size))
    found = False
    for entry in _readable(entries):
        parts = _parts_of(entry.name)
        if parts[: len(inside)] != inside or (len(parts) == len(inside) and entry.kind == "folder"):
            continue
        left -= max(entry.size, SMALLEST_ENTRY)
        if left < 0:
            raise DataError("the archive unpacks to more than is allowed")
        _unpack_entry(entry, folder.joinpath(*parts[len(inside) :]))
        found = True
    if not found:
        raise DataError("the archive is empty" if member is None else f"the archive has no folder {member}")


def _parts_of(name: str) -> tuple[str, ...]:
    r"""Split the name of an entry at / and \; raises DataError for a name that leads out of the archive."""
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts or "\0" in name:
        raise DataError(f"the archive holds {name!a}, which leads out of its folder")
    return path.parts


def _unpack_entry(entry: _Entry, place: Path) -> None:
    try:
        if entry.kind == "folder":
            place.mkdir(parents=True, exist_ok=True)
            return
        if entry.kind != "file":
            raise DataError(f"the archive holds {entry.name!a}, which is {entry.kind}")
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "xb") as stream:
            for chunk in _chunks(entry):
                stream.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise DataError(f"the archive holds {entry.name!a} twice") from None


def _chunks(entry: _Entry) -> Iterator[bytes]:
    """Read an entry, and refuse one whose length is not the size in the directory, which the limit was checked with."""
    read = 0
    with _damage_as_data_error(), entry.open() as source:
        while chunk := source.read(CHUNK):
            read += len(chunk)
            if read > entry.size:
                break
            yield chunk
    if read != entry.size:
        raise DataError(f"the archive cannot be read: {entry.name!a} does not have the size that the archive states")


def _readable(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    with _damage_as_data_error():
        yield from entries


@contextmanager
def _damage_as_data_error() -> Iterator[None]:
    """Turn what the readers of archives raise for a damaged one into DataError; let errors of the disk through."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Damage raises nearly anything: BadZipFile, TarError, EOFError, zlib.error, RuntimeError. An error of the disk
        # has a number, which the OSError for a damaged gzip file does not have.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"the archive cannot be read: {one_line(error)}") from error


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    # The UNIX mode of an entry; archives made on other systems have none, and their entries are files.
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = kinds.get(stat.S_IFMT(member.external_attr >> 16), "a device")
            if kind == "file" and member.is_dir():
                kind = "folder"
            yield _Entry(member.filename, kind, member.file_size, partial(file.open, member))


def _tar_entries(archive: Path, folder: Path) -> Iterator[_Entry]:
    with tarfile.open(archive) as file:
        for member in file:
            # All links are refused where they would be unpacked; Python's filter also checks those that would not be.
            try:
                tarfile.data_filter(member, str(folder))
            except tarfile.FilterError as error:
                raise DataError(f"the archive holds {member.name!a}, which is refused: {one_line(error)}") from None
            yield _Entry(member.name, _kind_of(member), member.size, partial(_open, file, member))


def _kind_of(member: tarfile.TarInfo) -> str:
    if member.isreg():
        return "file"
    if member.isdir():
        return "folder"
    return "a link" if member.issym() or member.islnk() else "a device"


def _open(file: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = file.extractfile(member)
    if stream is None:
        raise DataError(f"the archive holds {member.name!a}, which is not a file")
    return stream


def one_line(error: Exception) -> str:
    """Show the message of an error on one line; without a message, its type."""
    return printable(" ".join(str(error).split()) or type(error).__name__)
