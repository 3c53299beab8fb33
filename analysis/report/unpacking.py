"""Unpack a ``results.zip`` that is not trusted: only the files that a report writes, of bounded number and size."""

import functools
import io
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bbcu.errors import ConfigError, first_line
from bbcu.files import read_bytes

FILES = ("study.json", "trials.csv", "pictures.json")
"""The files that every archive has."""

TRIAL_FILES = ("result.json", "curve.csv")
"""The files of a trial that an archive may have, in a folder with the trial's number."""

MEMBER = re.compile(
    rf"{'|'.join(map(re.escape, FILES))}|(0|[1-9][0-9]{{0,5}})/({'|'.join(map(re.escape, TRIAL_FILES))})"
    r"|pictures/[0-9a-f]{64}\.png"
)
"""The names that an archive may hold."""

LARGEST_ARCHIVE = 256 * 2**20
"""The most bytes of an archive; one of 10,000 trials has a quarter of that."""

LARGEST_MEMBER = 32 * 2**20
"""The most bytes that a file of the archive may unpack to; the table of 10,000 trials has a third of that."""

LARGEST_SUM, SMALLEST_LIMIT, MOST_EXPANSION = 2**30, 64 * 2**20, 20
"""An archive may unpack to 20 times its size or 64 MiB, whichever is more, but never to more than 1 GiB."""

LARGEST_TABLE = 16 * 2**20
"""The most bytes of the table of contents, with up to 120 for a file."""

CHUNK = 2**18
ENCRYPTED = 0x1  # the bit of a member's flags


class _Archive(io.BytesIO):
    """The bytes of an archive; :mod:`zipfile` reads its table of contents at once, however long that says it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LARGEST_TABLE:
            raise ValueError("its table of contents is too large")
        return super().read(size)


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of every file of an archive, one at a time.

    Raises ConfigError for an archive that is damaged, or that holds what no report writes.
    """
    try:
        content = read_bytes(path, LARGEST_ARCHIVE)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with zipfile.ZipFile(_Archive(content)) as file:
            for info in checked(file.infolist(), len(content)):
                with file.open(info) as member:
                    yield info.filename, b"".join(iter(functools.partial(member.read, CHUNK), b""))
    # Damage raises nearly anything in zipfile: BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error.
    except Exception as error:
        raise ConfigError(f"{path} does not hold the results of a study: {first_line(error)}") from error


def checked(infos: list[zipfile.ZipInfo], size: int) -> list[zipfile.ZipInfo]:
    """Return the files of an archive of so many bytes; raise ValueError if a report writes no such archive."""
    names = {info.orig_filename for info in infos}
    problem = next(filter(None, map(_problem, infos)), "")
    if len(names) < len(infos):
        problem = "a file is there twice"
    elif sum(info.file_size for info in infos) > min(LARGEST_SUM, max(SMALLEST_LIMIT, MOST_EXPANSION * size)):
        problem = "it unpacks to more than is allowed"
    elif not problem and (missing := [name for name in FILES if name not in names]):
        problem = f"{missing[0]} is missing"
    if problem:
        raise ValueError(problem)
    return infos


def _problem(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename[:100]
    kind = stat.S_IFMT(info.external_attr >> 16)
    if MEMBER.fullmatch(info.orig_filename) is None:
        return f"{name!a} is no file of a report"
    if kind not in (0, stat.S_IFREG):
        return f"{name!a} is no regular file"
    if info.flag_bits & ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"{name!a} is encrypted, or compressed in an unknown way"
    return f"{name!a} is too large" if info.file_size > LARGEST_MEMBER else ""
