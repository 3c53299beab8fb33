"""Public data sets by name: downloaded, checked against a published SHA-256, and unpacked.

A broken download resumes where it stopped, also in the next run of the program. A set appears under its name only when
it is complete.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import filelock
import requests
from urllib3.exceptions import HTTPError

from bbcu.data.archives import CHUNK, LARGEST, Kind, one_line, unpack
from bbcu.errors import DataError, printable
from bbcu.files import read_text, write_atomically

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes that are here, and the total if the server states it."""

ARCHIVES: dict[str, Kind] = {
    ".zip": "zip",
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), "tar"),
}

DOWNLOADS_FOLDER = ".downloads"
"""A folder beside the sets for archives that are not complete or not unpacked yet."""

TEMPORARY_FAULTS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Status codes below 500 after which it is worth trying again."""

ATTEMPTS = 5
"""How many attempts in a row without a new byte end a download."""

TIMEOUT_SECONDS = 30.0
"""How long a server may send nothing until the attempt has failed."""

NUMBER = re.compile("[0-9]{1,18}")
"""A number of bytes in a header."""

logger = logging.getLogger(__name__)


# ---- the sets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Download:
    """A file that can be fetched, with one or more data sets in it.

    ``folder`` is its place below the target folder. Of an archive only the folder ``member`` is unpacked, or everything
    if that is None. ``sets`` names the data sets that are subfolders of ``folder``, if it is not a set itself.
    ``sha256`` is None only for a user's URL without a checksum. ``usage`` are the overrides of a study on a download
    that is a set itself, with DIR for the target folder. ``source`` is the GitHub repository and the file that publish
    checksum and size.
    """

    name: str
    url: str
    sha256: str | None
    bytes: int | None
    unpack: Kind | Literal["none"]
    folder: str
    member: str | None
    licence: str = ""
    source: str = ""
    usage: str = ""
    sets: tuple[str, ...] = ()

    def usage_of(self, name: str) -> str:
        """The overrides of a study on ``name``: one of ``sets``, or the download as a whole."""
        if not self.sets:
            return self.usage
        sets = (name,) if name in self.sets else self.sets
        tests = ", ".join(f"{each}: DIR/{self.folder}/{each}" for each in sets)
        return f"data=folder data.train=FOLDER data.test='{{{tests}}}'"


DIV2K_ARCHIVES = (
    ("DIV2K_train_HR", 3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
    ("DIV2K_valid_HR", 448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
    ("DIV2K_train_LR_bicubic_X2", 925390592, "a53a424317575838dadce4bcd97cf7b744d6855f43740ed5f0245af3cf4bd850"),
    ("DIV2K_train_LR_bicubic_X3", 427847282, "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a"),
    ("DIV2K_train_LR_bicubic_X4", 246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
    ("DIV2K_valid_LR_bicubic_X2", 117763600, "60eed9875c697df51204aa579e2a699e1d5215095788a097ff54dd17e2664d57"),
    ("DIV2K_valid_LR_bicubic_X3", 54513392, "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3"),
    ("DIV2K_valid_LR_bicubic_X4", 31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"),
)
"""Name, bytes and SHA-256 of each archive of DIV2K, as TensorFlow Datasets records them for its own downloads."""


def _div2k(archive: str, size: int, sha256: str) -> Download:
    """Describe one archive of DIV2K; all are unpacked side by side, those of inputs into a folder for each scale."""
    folder = re.sub(r"_(X\d)$", r"/\1", archive)
    is_truth = folder.endswith("_HR")
    usage = "data=folder data.train=DIR/DIV2K data.test='{DIV2K: DIR/DIV2K}'"
    return Download(
        name=archive,
        url=f"https://data.vision.ee.ethz.ch/cvl/DIV2K/{archive}.zip",
        sha256=sha256,
        bytes=size,
        unpack="zip",
        folder=f"DIV2K/{folder}",
        member=folder,
        licence="academic research only",
        source="tensorflow/datasets: url_checksums/div2k.txt",
        usage=usage if is_truth else f"{usage} (with DIV2K_train_HR and DIV2K_valid_HR)",
    )


DOWNLOADS: Mapping[str, Download] = {
    download.name: download
    for download in (
        *(_div2k(*archive) for archive in DIV2K_ARCHIVES),
        Download(
            name="benchmark",
            url="https://cv.snu.ac.kr/research/EDSR/benchmark.tar",
            sha256="80c21c333bbf6ceb5308b7243761f8284478274413a97b96f1d63e9045fd93e8",
            bytes=250112000,
            unpack="tar",
            folder="benchmark",
            member="benchmark",
            licence="none stated; research benchmarks",
            source="YeapJieShen/single-image-super-resolution: tests/utils/test_imresize.py",
            sets=("Set5", "Set14", "B100", "Urban100"),
        ),
        # An unrelated project, github.com/hasslelee/flipguard, records the same checksum and size.
        Download(
            name="BSDS500",
            url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
            sha256="97e49d31764f3912f0c4122707d53062ac9e783ba0f095e447a4d53c1a41af8e",
            bytes=70763455,
            unpack="tar",
            folder="BSDS500",
            member="BSR/BSDS500/data/images",
            licence="non-commercial research and education",
            source="SharoonSharif/conv3x3-engine-zynq: eval/README.md",
            usage="data=folder data.train=DIR/BSDS500/train data.test='{BSDS500: DIR/BSDS500/test}'",
        ),
    )
}


DOWNLOAD_OF_SET: dict[str, Download] = {
    name: download for download in DOWNLOADS.values() for name in (download.name, *download.sets)
}
"""The download that has a set, by the name of the set; a download counts as a set of its own name."""


def download_of(url: str, sha256: str | None) -> Download:
    """Describe the file at a user's URL; the ending of its name says whether it is an archive.

    Raises DataError for anything but an http or https URL, and for a URL without a usable file name at its end.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DataError(f"{shown(url)}: {one_line(error)}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc or not url.isprintable():
        raise DataError(f"{shown(url)}: not an http or https URL")
    file_name = unquote(parts.path).rpartition("/")[2]
    if not re.fullmatch(r"[^\W_][\w .()+-]*", file_name, flags=re.ASCII):
        raise DataError(f"{shown(url)}: does not end in a file name")
    ending = max((ending for ending in ARCHIVES if file_name.lower().endswith(ending)), key=len, default="")
    folder = file_name[: len(file_name) - len(ending)]
    return Download(
        name=file_name,
        url=url,
        sha256=sha256,
        bytes=None,
        unpack=ARCHIVES.get(ending, "none"),
        folder=folder,
        member=None,
        usage=f"data=folder data.train=DIR/{folder}",
    )


def shown(text: object) -> str:
    """Show a URL, or a message that quotes one, without a user's password and without a query, which may be a key."""
    without_user = re.sub(r"(?<=://)[^/?#\s]*@", "", str(text))
    return printable(re.sub(r"(?<=\?)[^\s'\")]+", "...", without_user))


# ---- fetching --------------------------------------------------------------------------------------------------------


def fetch(download: Download, target: Path, *, progress: Progress, pause_seconds: float = 1.0) -> Path:
    """Download and unpack below ``target`` unless it is there already, and return its path.

    A download is given up after five attempts in a row without a new byte; the pause before an attempt is
    ``pause_seconds`` times the failures so far. Without a checksum to compare, the SHA-256 of the file is logged.
    Raises DataError, which names the URL or the file, if the server refuses, the connection breaks too often, the size
    or the checksum is wrong, the archive is damaged, too large or unsafe, the disk cannot be written, or another
    process is fetching the same.
    """
    place = Path(target) / download.folder
    downloads = Path(target) / DOWNLOADS_FOLDER
    try:
        if not _exists(place):
            downloads.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(downloads / f"{download.folder.replace('/', '-')}.lock", timeout=0):
                if not _exists(place):
                    part = _Part(downloads / f"{hashlib.sha256(download.url.encode()).hexdigest()}.part")
                    _complete(part, download, progress, pause_seconds)
                    _check_sha256(part, download)
                    _install(part, download, place)
    except filelock.Timeout:
        raise DataError(f"{printable(place)}: another process is fetching it") from None
    except OSError as error:
        raise DataError(f"{printable(error.filename or place)}: {error.strerror or one_line(error)}") from error
    return place


def _exists(place: Path) -> bool:
    """Whether a set is at ``place``; an empty folder does not count, as people create those in advance."""
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


class _Part:
    """The beginning of a file, and a record of the whole file beside it; both survive the program.

    ``validator`` is the server's name for this version of the file; without one the part cannot be resumed. ``total``
    is the size of the whole file in bytes.
    """

    def __init__(self, file: Path) -> None:
        """Read the record of an earlier run of this user, if there is one.

        Whatever else is there, such as a link or the file of another user, is removed.
        """
        self.file, self._record = file, file.with_name(f"{file.name}.json")
        self.validator: str | None = None
        self.total: int | None = None
        for path in (self.file, self._record):
            if not _is_own(path):
                path.unlink()
        # Without a readable record the download starts over, which is always right.
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            record = json.loads(read_text(self._record))
            if isinstance(record["validator"], str | None) and isinstance(record["total"], int | None):
                self.validator, self.total = record["validator"], record["total"]

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def resumable(self) -> bool:
        return self.validator is not None and self.size > 0

    def start(self, validator: str | None, total: int | None) -> None:
        """Start over with an empty file, which is a new one, so that no link is followed."""
        self.file.unlink(missing_ok=True)
        self.file.touch(exist_ok=False)
        self.describe(validator, total)

    def describe(self, validator: str | None, total: int | None) -> None:
        self.validator, self.total = validator, total
        write_atomically(self._record, json.dumps({"validator": validator, "total": total}), durable=False)

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        self.validator = self.total = None


def _is_own(path: Path) -> bool:
    """Whether nothing is at ``path``, or a regular file of this user that has no other name."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1


def _check_sha256(part: _Part, download: Download) -> None:
    """Raise DataError and delete the file if its checksum is wrong; log the checksum if none is known."""
    with open(part.file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if download.sha256 is None:
        logger.warning("%s: no checksum was given to compare; the SHA-256 is %s", shown(download.url), found)
    elif found != download.sha256.lower():
        part.remove()
        raise DataError(f"{shown(download.url)}: the SHA-256 is {found}, not {download.sha256.lower()}")


def _install(part: _Part, download: Download, place: Path) -> None:
    """Unpack a file, move the result to its place in one step, and delete the file unless the disk failed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    # On the same disk as the place, so that it can be renamed.
    unpacking = place.with_name(f".{place.name}.unpacking")
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        if download.unpack == "none":
            os.replace(part.file, place)
        else:
            unpacking.mkdir()
            unpack(part.file, download.unpack, download.member, unpacking)
            os.rename(_content_of(unpacking) if download.member is None else unpacking, place)
    except DataError as error:
        part.remove()
        raise DataError(f"{shown(download.url)}: {error}") from None
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
    part.remove()


def _content_of(folder: Path) -> Path:
    """Step into a folder that holds only another folder: many archives wrap their pictures in one."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


# ---- downloading -----------------------------------------------------------------------------------------------------


class _TemporaryFault(Exception):
    """An attempt failed in a way that may not happen again."""


def _complete(part: _Part, download: Download, progress: Progress, pause_seconds: float) -> None:
    """Download what is missing of a file, in several attempts if need be; raises DataError, which names the URL.

    The rest is requested with Range and If-Range. A server that does not support ranges, does not say which version of
    the file it has, or has another version by now makes the download start over.
    """
    most, failures = part.size, 0
    while part.total is None or part.size != part.total:
        try:
            _attempt(part, download, progress)
            part.describe(part.validator, part.size)
        except _TemporaryFault as error:
            failures = 1 if part.size > most else failures + 1
            most = max(most, part.size)
            if failures >= ATTEMPTS:
                outlook = f"; the same command resumes at byte {part.size}" if part.resumable else ""
                raise DataError(
                    f"{shown(download.url)}: given up after {failures} attempts without progress: {error}{outlook}"
                ) from None
            time.sleep(failures * pause_seconds)


def _attempt(part: _Part, download: Download, progress: Progress) -> None:
    """Request what is missing and append it; raises _TemporaryFault if another attempt may succeed."""
    start = part.size if part.resumable else 0
    # Without an encoding: decoding would change a .tgz that the server calls a gzip encoding of a .tar.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": str(part.validator)}
    try:
        with requests.get(download.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            _check_answer(part, download, start, response)
            _append(part, download, response, progress)
    except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
        raise _TemporaryFault(one_line(shown(error))) from error
    except (requests.RequestException, ValueError) as error:  # requests lets a malformed redirect through as ValueError
        raise DataError(f"{shown(download.url)}: {one_line(shown(error))}") from error


def _check_answer(part: _Part, download: Download, start: int, response: requests.Response) -> None:
    """Let the part start over unless the answer continues it; raises if the answer cannot be used."""
    status = response.status_code
    if status == HTTPStatus.PARTIAL_CONTENT and start:
        if not _continues(response, start, part):
            part.remove()
            raise _TemporaryFault("the server answered with another part of the file, or of another file")
    elif status == HTTPStatus.OK:
        length = response.headers.get("Content-Length", "")
        part.start(_validator_of(response), int(length) if NUMBER.fullmatch(length) else None)
    elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        part.remove()
        raise _TemporaryFault("the server has less of the file than is here")
    else:
        answer = f"the server answered {status} {one_line(response.reason or ' ')}".rstrip()
        if status in TEMPORARY_FAULTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _TemporaryFault(answer)
        raise DataError(f"{shown(download.url)}: {answer}")
    if download.bytes is not None and part.total not in (None, download.bytes):
        total = part.total
        part.remove()
        raise DataError(f"{shown(download.url)}: the server has {total} bytes, not the expected {download.bytes}")


def _append(part: _Part, download: Download, response: requests.Response, progress: Progress) -> None:
    """Append what arrives; raises _TemporaryFault if it ends too early, and DataError if there is too much."""
    expected = part.total if download.bytes is None else download.bytes
    most = LARGEST if expected is None else expected
    size = part.size
    with open(part.file, "ab") as stream:
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            size += len(chunk)
            if size > most:
                break
            stream.write(chunk)
            progress(size, expected)
    if size > most:
        part.remove()
        raise DataError(f"{shown(download.url)}: the server sends more than the {most} bytes that are expected")
    if expected is not None and size < expected:
        raise _TemporaryFault(f"it ended after {size} of {expected} bytes")


def _continues(response: requests.Response, start: int, part: _Part) -> bool:
    """Whether a partial answer begins where the part ends, and belongs to the same file."""
    content_range = response.headers.get("Content-Range", "").strip()
    match = re.fullmatch(rf"bytes ({NUMBER.pattern})-\d+/({NUMBER.pattern}|\*)", content_range)
    if match is None or int(match[1]) != start:
        return False
    same_size = part.total is None or match[2] in ("*", str(part.total))
    return same_size and _validator_of(response) in (None, part.validator)


def _validator_of(response: requests.Response) -> str | None:
    """The server's name for the version of the file; a weak ETag does not promise equal bytes."""
    tag = response.headers.get("ETag")
    return tag if tag is not None and not tag.startswith("W/") else response.headers.get("Last-Modified")
