"""The process that unpacks an archive for :func:`bbcu.data.archives.unpack`, which sets its limits.

It prints one JSON object: ``refused`` with the reason or null, or ``errno`` and ``file`` if the disk failed.
"""

import ctypes
import functools
import json
import os
import resource
import signal
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from bbcu.data.archives import CHUNK, SMALLEST_ENTRY, Kind, one_line
from bbcu.errors import DataError

LONGEST_NAME = 1000
"""The most characters that the name of an entry may have, its folders included."""

SHOWN_NAME = 120
"""How much of the name of an entry a message quotes."""

MOST_PARTS = 64
"""The most folders within each other, the file included; removing them again takes a file handle for each."""

PR_SET_PDEATHSIG = 1
"""From Linux's ``sys/prctl.h``."""


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive; ``kind`` is "file", "folder", "a link" or "a device"."""

    name: str
    kind: str
    size: int
    open: Callable[[], Any]


def main() -> None:
    """Unpack as the command line says, and print the outcome."""
    task, seconds, memory, parent = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the parent as well, which says so
    _end_with(int(parent))
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, int(seconds))
    _limit(resource.RLIMIT_AS, int(memory))
    print(json.dumps(_outcome(**json.loads(task))))


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, even while a parser keeps Python busy; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _outcome(archive: str, kind: Kind, member: str | None, folder: str, most: int) -> dict[str, Any]:
    try:
        extract(Path(archive), kind, member, Path(folder), most)
    except DataError as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"errno": error.errno, "file": error.filename}
    return {"refused": None}


def extract(archive: Path, kind: Kind, member: str | None, folder: Path, most: int) -> None:
    """Unpack at most ``most`` bytes within this process; everything else is as in :func:`bbcu.data.archives.unpack`."""
    inside = () if member is None else tuple(member.split("/"))
    left = most
    found = False
    try:
        for entry in _zip_entries(archive) if kind == "zip" else _tar_entries(archive, folder):
            parts = _parts_of(entry.name)
            if parts[: len(inside)] != inside or (len(parts) == len(inside) and entry.kind == "folder"):
                continue
            left -= max(entry.size, SMALLEST_ENTRY * len(parts))
            if left < 0:
                raise DataError("the archive unpacks to more than is allowed")
            _unpack_entry(entry, folder.joinpath(*parts[len(inside) :]))
            found = True
    except DataError:
        raise
    except MemoryError:
        raise DataError("the archive cannot be read: it takes more memory than is allowed") from None
    except Exception as error:
        # Damage raises nearly anything: BadZipFile, TarError, EOFError, zlib.error, RuntimeError. An error of the disk
        # has a number, which the OSError for a damaged gzip file does not have.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"the archive cannot be read: {one_line(error)}") from error
    if not found:
        raise DataError("the archive is empty" if member is None else f"the archive has no folder {member}")


def _parts_of(name: str) -> tuple[str, ...]:
    r"""Split the name of an entry at / and \; raises DataError for one that leads out of the archive or is too long."""
    path = PureWindowsPath(name[: LONGEST_NAME + 1])
    if path.anchor or ".." in path.parts or "\0" in name:
        raise DataError(f"the archive holds {_shown(name)}, which leads out of its folder")
    if len(name) > LONGEST_NAME or len(path.parts) > MOST_PARTS:
        raise DataError(f"the archive holds {_shown(name)}, whose name is too long")
    return path.parts


def _shown(name: str) -> str:
    text = ascii(name)
    return text if len(text) <= SHOWN_NAME else f"{text[:SHOWN_NAME]}..."


def _unpack_entry(entry: _Entry, place: Path) -> None:
    """Write one entry; refuse one whose length is not the stated size, which the limit was checked with."""
    if entry.kind not in ("file", "folder"):
        raise DataError(f"the archive holds {_shown(entry.name)}, which is {entry.kind}")
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
        raise DataError(f"the archive holds {_shown(entry.name)} twice") from None
    if size != entry.size:
        raise DataError(
            f"the archive cannot be read: {_shown(entry.name)} does not have the size that the archive states"
        )


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
                raise DataError(
                    f"the archive holds {_shown(member.name)}, which is refused: {one_line(error)}"
                ) from None
            kind = "file" if member.isreg() else kinds.get(member.type, "a device")
            yield _Entry(member.name, kind, member.size, functools.partial(file.extractfile, member))


if __name__ == "__main__":
    main()
