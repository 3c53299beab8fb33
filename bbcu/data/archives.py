"""Unpack archives that are not trusted: nothing outside the folder, no links, no devices, no decompression bombs."""

import functools
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from bbcu.errors import DataError, printable

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
    open: Callable[[], Any]


def unpack(archive: Path, kind: Kind, member: str | None, folder: Path) -> None:
    """Unpack an archive, or only its folder ``member``, into an empty folder.

    Links and devices are refused, since pictures need none, and so are absolute names and names with ``..``. Outside
    ``member`` only such names and links that lead out of the archive are refused. The content may be 20 times the size
    of the archive or 64 MiB, whichever is more, and never more than 64 GiB.
    Raises DataError for what is refused, and for an archive that is damaged or does not hold ``member``; the caller
    removes what was unpacked until then. Raises OSError if the disk cannot be written.
    """
    inside = () if member is None else tuple(member.split("/"))
    left = min(LARGEST, max(SMALLEST_LIMIT, MOST_EXPANSION * archive.stat().st_size))
    found = False
    try:
        for entry in _zip_entries(archive) if kind == "zip" else _tar_entries(archive, folder):
            parts = _parts_of(entry.name)
            if parts[: len(inside)] != inside or (len(parts) == len(inside) and entry.kind == "folder"):
                continue
            left -= max(entry.size, SMALLEST_ENTRY)
            if left < 0:
                raise DataError("the archive unpacks to more than is allowed")
            _unpack_entry(entry, folder.joinpath(*parts[len(inside) :]))
            found = True
    except DataError:
        raise
    except Exception as error:
        # Damage raises nearly anything: BadZipFile, TarError, EOFError, zlib.error, RuntimeError. An error of the disk
        # has a number, which the OSError for a damaged gzip file does not have.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"the archive cannot be read: {one_line(error)}") from error
    if not found:
        raise DataError("the archive is empty" if member is None else f"the archive has no folder {member}")


def _parts_of(name: str) -> tuple[str, ...]:
    r"""Split the name of an entry at / and \; raises DataError for a name that leads out of the archive."""
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts or "\0" in name:
        raise DataError(f"the archive holds {name!a}, which leads out of its folder")
    return path.parts


def _unpack_entry(entry: _Entry, place: Path) -> None:
    """Write one entry; refuse one whose length is not the stated size, which the limit was checked with."""
    if entry.kind not in ("file", "folder"):
        raise DataError(f"the archive holds {entry.name!a}, which is {entry.kind}")
    try:
        if entry.kind == "folder":
            place.mkdir(parents=True, exist_ok=True)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with open(place, "xb") as target, entry.open() as source:
            while size <= entry.size and (chunk := source.read(CHUNK)):
                size += len(chunk)
                target.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise DataError(f"the archive holds {entry.name!a} twice") from None
    if size != entry.size:
        raise DataError(f"the archive cannot be read: {entry.name!a} does not have the size that the archive states")


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    # The UNIX mode of an entry; archives made on other systems have none.
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            mode = stat.S_IFMT(member.external_attr >> 16) or (stat.S_IFDIR if member.is_dir() else stat.S_IFREG)
            yield _Entry(
                member.filename, kinds.get(mode, "a device"), member.file_size, functools.partial(file.open, member)
            )


def _tar_entries(archive: Path, folder: Path) -> Iterator[_Entry]:
    kinds = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a link"}
    with tarfile.open(archive) as file:
        for member in file:
            # All links are refused where they would be unpacked; Python's filter also checks those that would not be.
            try:
                tarfile.data_filter(member, str(folder))
            except tarfile.FilterError as error:
                raise DataError(f"the archive holds {member.name!a}, which is refused: {one_line(error)}") from None
            kind = "file" if member.isreg() else kinds.get(member.type, "a device")
            yield _Entry(member.name, kind, member.size, functools.partial(file.extractfile, member))


def one_line(error: Exception) -> str:
    """Show the message of an error on one line; without a message, its type."""
    return printable(" ".join(str(error).split()) or type(error).__name__)
