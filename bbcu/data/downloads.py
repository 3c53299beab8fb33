"""Public data sets by name: fetched, checked against a published SHA-256, and unpacked safely.

A download that breaks off goes on where it stopped, also in the next run of the program. What appears under the name
of a set is always the whole set.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path, PureWindowsPath
from typing import IO, Literal
from urllib.parse import unquote, urlsplit

import filelock
import pooch  # type: ignore[import-untyped]
import requests
from urllib3.exceptions import HTTPError

from bbcu.data.layouts import printable
from bbcu.errors import DataError

Progress = Callable[[int, int | None], None]
"""Is told how many bytes are here, and of how many where the server said so."""

Unpack = Literal["zip", "tar", "none"]

ARCHIVES: dict[str, Unpack] = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tar.xz": "tar",
}

GIBIBYTE = 2**30
MEBIBYTE = 2**20
CHUNK = MEBIBYTE // 4

LARGEST = 64 * GIBIBYTE
"""No download and no unpacked set may be larger."""

MOST_EXPANSION = 20
"""How many times its own size an archive may unpack to: pictures are compressed already, and come to about once."""

SMALLEST_LIMIT = 64 * MEBIBYTE
"""What any archive may unpack to: a small one may be mostly text, which shrinks a lot."""

SMALLEST_ENTRY = 1024
"""What a file or folder of an archive counts for at least: millions of empty ones fill a disk, too."""

DOWNLOADS_FOLDER = ".downloads"
"""Beside the sets: archives that are not whole or not unpacked yet."""

PASSING_FAULTS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Answers that ask to come again later; those from 500 on are taken as such too."""

logger = logging.getLogger(__name__)


# ---- the sets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Download:
    """A set that can be fetched.

    ``folder`` is where it comes to lie under the target. ``member`` is the folder of the archive that it is; None takes
    the whole archive. ``sha256`` is None only for a URL of the user's that came without one. ``usage`` says how to run
    a study on it, with DIR for the target.
    """

    name: str
    url: str
    sha256: str | None
    bytes: int | None
    unpack: Unpack
    folder: str
    member: str | None
    layout: str
    licence: str
    source: str
    usage: str


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
"""Name, bytes and SHA-256 of each archive of DIV2K, as TensorFlow Datasets records them for its own downloads:
github.com/tensorflow/datasets, tensorflow_datasets/url_checksums/div2k.txt."""


def _div2k(archive: str, size: int, sha256: str) -> Download:
    """One archive of DIV2K; all are unpacked side by side, those of the inputs into a folder for each scale."""
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
        layout="DIV2K, truths" if is_truth else "DIV2K, inputs",
        licence="academic research only",
        source="tensorflow/datasets: url_checksums/div2k.txt",
        usage=usage if is_truth else f"{usage} (with DIV2K_train_HR and DIV2K_valid_HR)",
    )


DOWNLOADS: Mapping[str, Download] = {
    download.name: download
    for download in (
        *(_div2k(*archive) for archive in DIV2K_ARCHIVES),
        # Checksum and size: github.com/YeapJieShen/single-image-super-resolution, tests/utils/test_imresize.py, which
        # compares its resizing with these very files.
        Download(
            name="benchmark",
            url="https://cv.snu.ac.kr/research/EDSR/benchmark.tar",
            sha256="80c21c333bbf6ceb5308b7243761f8284478274413a97b96f1d63e9045fd93e8",
            bytes=250112000,
            unpack="tar",
            folder="benchmark",
            member="benchmark",
            layout="Set5, Set14, B100 and Urban100, each HR and LR_bicubic",
            licence="none stated; research benchmarks",
            source="YeapJieShen/single-image-super-resolution: tests/utils/test_imresize.py",
            usage="data=folder data.train=FOLDER data.test='{Set5: DIR/benchmark/Set5, Set14: DIR/benchmark/Set14, "
            "B100: DIR/benchmark/B100, Urban100: DIR/benchmark/Urban100}'",
        ),
        # Checksum and size: github.com/SharoonSharif/conv3x3-engine-zynq, eval/README.md; an unrelated
        # project, github.com/hasslelee/flipguard, records the same two.
        Download(
            name="BSDS500",
            url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
            sha256="97e49d31764f3912f0c4122707d53062ac9e783ba0f095e447a4d53c1a41af8e",
            bytes=70763455,
            unpack="tar",
            folder="BSDS500",
            member="BSR/BSDS500/data/images",
            layout="plain folders train, val and test",
            licence="non-commercial research and education",
            source="SharoonSharif/conv3x3-engine-zynq: eval/README.md",
            usage="data=folder data.train=DIR/BSDS500/train data.test='{BSDS500: DIR/BSDS500/test}'",
        ),
    )
}


def download_of(url: str, sha256: str | None) -> Download:
    """Describe a file of the user's choice; whether it is an archive shows in the ending of its name.

    Raises DataError for what is no http or https URL and for a URL that ends in no usable file name.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DataError(f"{printable(url)}: {_one_line(error)}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError(f"{printable(url)}: is no http or https URL")
    file_name = unquote(parts.path).rpartition("/")[2]
    if not re.fullmatch(r"[^\W_][\w .()+-]*", file_name, flags=re.ASCII):
        raise DataError(f"{printable(url)}: does not end in the name of a file")
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
        layout="as the file has it",
        licence="unknown",
        source="the command line",
        usage=f"data=folder data.train=DIR/{folder}",
    )


# ---- fetching --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patience:
    """How often to try again: after ``failures`` attempts in a row that brought nothing new a download is given up.

    The pause before an attempt is ``pause_seconds`` times the failures so far. A server may keep silent for
    ``timeout_seconds``.
    """

    failures: int = 5
    pause_seconds: float = 1.0
    timeout_seconds: float = 30.0


PATIENCE = Patience()


def fetch(download: Download, target: Path, *, progress: Progress, patience: Patience = PATIENCE) -> Path:
    """Put a set under ``target`` and say where it lies; nothing is asked of the server for a set that is there.

    A file without a checksum is fetched too, and its SHA-256 is logged.
    Raises DataError, which names the URL or the file: for a server that refuses, a connection that breaks off too
    often, a wrong size or checksum, an archive that is damaged, too large, or holds what no set of pictures needs, a
    disk that cannot be written, and a set that another process is fetching.
    """
    place = Path(target) / download.folder
    downloads = Path(target) / DOWNLOADS_FOLDER
    try:
        if not _is_there(place):
            downloads.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(downloads / f"{download.folder.replace('/', '-')}.lock", timeout=0):
                if not _is_there(place):
                    _install(_retrieve(download, downloads, progress, patience), download, place)
    except filelock.Timeout:
        raise DataError(f"{printable(place)}: another process is fetching it") from None
    except OSError as error:
        raise DataError(f"{printable(error.filename or place)}: {error.strerror or _one_line(error)}") from error
    return place


def _is_there(place: Path) -> bool:
    """Tell whether a set lies at its place; an empty folder is none, as people make those beforehand."""
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


def _retrieve(download: Download, downloads: Path, progress: Progress, patience: Patience) -> Path:
    """Fetch the file of a set, or find it where an earlier run that could not unpack it left it."""
    known_hash = None if download.sha256 is None else f"sha256:{download.sha256.lower()}"
    downloader = ResumingDownloader(download.bytes, progress, patience)
    # Its note of every step is not for the user, who is shown the progress.
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        file = Path(pooch.retrieve(download.url, known_hash=known_hash, path=downloads, downloader=downloader))
    except ValueError as error:
        # pooch has compared the checksums and deleted the file; its message names both.
        raise DataError(f"{printable(download.url)}: {_one_line(error)}") from None
    if known_hash is None:
        logger.warning("%s: there is no checksum to compare; its SHA-256 is %s", download.url, pooch.file_hash(file))
    return file


def _install(file: Path, download: Download, place: Path) -> None:
    """Unpack a file and move the set to its place in one step; the file goes, unless the disk was the trouble."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if download.unpack == "none":
        os.replace(file, place)
        return
    # It lies beside the place, as only what is on the same disk can be moved in one step.
    unpacking = place.with_name(f".{place.name}.unpacking")
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        unpacking.mkdir()
        try:
            unpack(file, download.unpack, download.member, unpacking)
        except DataError as error:
            file.unlink()
            raise DataError(f"{printable(download.url)}: {error}") from None
        os.rename(_content_of(unpacking) if download.member is None else unpacking, place)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
    file.unlink()


def _content_of(folder: Path) -> Path:
    """Look through a folder that holds nothing but another folder: many archives wrap their pictures in one."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__)


# ---- downloading -----------------------------------------------------------------------------------------------------


class _BrokeOff(Exception):
    """An attempt that failed in a way that may pass."""


@dataclass
class _Part:
    """A file that is not whole yet, and beside it what is known of the whole: kept from one run to the next.

    ``validator`` is what the server calls this version of the file; with none it is not known what the bytes here are
    the beginning of. ``total`` is the size of the whole.
    """

    file: Path
    validator: str | None = None
    total: int | None = None

    @classmethod
    def resume(cls, file: Path) -> "_Part":
        """Take up what an earlier run left, if anything."""
        part = cls(file)
        # A record that cannot be read means starting over, which is always right.
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(part.record.read_text())
            part.validator, part.total = record["validator"], record["total"]
        return part

    @property
    def record(self) -> Path:
        return self.file.with_name(f"{self.file.name}.json")

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def can_go_on(self) -> bool:
        return self.validator is not None and self.size > 0

    @property
    def is_whole(self) -> bool:
        return self.total is not None and self.size == self.total

    def start_over(self, validator: str | None, total: int | None) -> None:
        self.file.write_bytes(b"")
        self.validator, self.total = validator, total
        self.record.write_text(json.dumps({"validator": validator, "total": total}))

    def move(self, place: Path) -> None:
        os.replace(self.file, place)
        self.record.unlink(missing_ok=True)


class ResumingDownloader:
    """Downloads a file for pooch, going on after a connection that broke off, in this run or an earlier one.

    The rest is asked for with a Range, on the condition that the file is still the same; a server that does not know
    Ranges, does not say which version it serves, or has another version by now makes the download start over.
    """

    def __init__(self, size: int | None, progress: Progress, patience: Patience) -> None:
        """Expect ``size`` bytes; None leaves it to the server to say how many there are."""
        self._size = size
        self._progress = progress
        self._patience = patience

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Write the file at ``url`` to ``output_file``; raises DataError, which names the URL.

        The part that is here is kept beside ``output_file``, which pooch deletes after a failure.
        """
        name = hashlib.sha256(url.encode()).hexdigest()
        part = _Part.resume(Path(output_file).with_name(f"{name}.part"))
        most, failures = part.size, 0
        while not part.is_whole:
            try:
                self._attempt(url, part)
                break
            except _BrokeOff as error:
                failures = 1 if part.size > most else failures + 1
                most = max(most, part.size)
                if failures >= self._patience.failures:
                    outlook = f"; the same command goes on from byte {part.size}" if part.can_go_on else ""
                    raise DataError(
                        f"{printable(url)}: given up after {failures} attempts that brought nothing new: "
                        f"{error}{outlook}"
                    ) from None
                time.sleep(failures * self._patience.pause_seconds)
        part.move(Path(output_file))

    def _attempt(self, url: str, part: _Part) -> None:
        """Ask for what is missing and write it; raises _BrokeOff where another attempt may do better."""
        here = part.size if part.can_go_on else 0
        headers = {"Accept-Encoding": "identity"}
        if part.can_go_on:
            headers |= {"Range": f"bytes={here}-", "If-Range": str(part.validator)}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=self._patience.timeout_seconds) as response:
                self._prepare(url, part, here, response)
                self._write(url, part, response)
        except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
            raise _BrokeOff(_one_line(error)) from error
        except requests.RequestException as error:
            raise DataError(f"{printable(url)}: {_one_line(error)}") from error

    def _prepare(self, url: str, part: _Part, here: int, response: requests.Response) -> None:
        """Bring the part into the state that the answer goes on from; raises where the answer cannot be used."""
        status = response.status_code
        if status == HTTPStatus.PARTIAL_CONTENT and here:
            if not _goes_on(response, here, part):
                part.start_over(None, None)
                raise _BrokeOff("the server answered with another part of the file, or of another file")
        elif status == HTTPStatus.OK:
            length = response.headers.get("Content-Length", "")
            part.start_over(_validator_of(response), int(length) if length.isdecimal() else None)
        elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and here:
            part.start_over(None, None)
            raise _BrokeOff("the server has less of the file than is here")
        else:
            answer = f"the server answered {status} {printable(response.reason or '')}".rstrip()
            if status in PASSING_FAULTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _BrokeOff(answer)
            raise DataError(f"{printable(url)}: {answer}")
        total = part.total
        if self._size is not None and total is not None and total != self._size:
            part.start_over(None, None)
            raise DataError(f"{printable(url)}: the server has {total} bytes; expected are {self._size}")

    def _write(self, url: str, part: _Part, response: requests.Response) -> None:
        """Append what arrives; raises _BrokeOff where it ends too early and DataError where there is too much."""
        expected = self._size if self._size is not None else part.total
        size = part.size
        with open(part.file, "ab") as stream:
            # Decoding would make other bytes of a .tgz that the server calls a gzip encoding of a .tar.
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                size += len(chunk)
                if size > (LARGEST if expected is None else expected):
                    break
                stream.write(chunk)
                self._progress(size, expected)
        if size > (LARGEST if expected is None else expected):
            part.start_over(None, None)
            limit = f"expected are {expected}" if expected is not None else f"at most {LARGEST} are taken"
            raise DataError(f"{printable(url)}: the server sends more bytes than there should be; {limit}")
        if expected is not None and size < expected:
            raise _BrokeOff(f"it ended after {size} of {expected} bytes")


def _goes_on(response: requests.Response, here: int, part: _Part) -> bool:
    """Tell whether a partial answer begins where the part ends, and is of the same file."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != here:
        return False
    if part.total is not None and match[2] not in ("*", str(part.total)):
        return False
    return _validator_of(response) in (None, part.validator)


def _validator_of(response: requests.Response) -> str | None:
    """What the server calls the version that it serves; a weak ETag promises no equal bytes."""
    tag = response.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


# ---- unpacking -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """What an archive holds under one name; ``kind`` is file, folder, or what else it is, in words."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, kind: Unpack, member: str | None, folder: Path) -> None:
    """Unpack an archive, or the one folder ``member`` of it, into an empty folder.

    Links and devices are refused, as pictures need none, and so is every name that is absolute or holds ``..``. Of what
    is outside ``member`` only such names are refused, and links that lead out of the archive. The contents may come to
    20 times the archive's size or 64 MiB, whichever is more, and never to more than 64 GiB.
    Raises DataError for what is refused and for an archive that is damaged or holds nothing of ``member``; what was
    unpacked until then is left to the caller to remove. Raises OSError where the disk cannot be written.
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
            raise DataError("the archive unpacks to more than it may")
        _unpack_entry(entry, folder.joinpath(*parts[len(inside) :]))
        found = True
    if not found:
        raise DataError("the archive holds nothing" if member is None else f"the archive holds no folder {member}")


def _parts_of(name: str) -> tuple[str, ...]:
    r"""Take a name in an archive apart, with / and \ between the parts; raises DataError for one that leads outside."""
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
    """Read an entry, which must be as long as the archive says: the limit was checked with that size."""
    read = 0
    with _damage_as_data_error(), entry.open() as source:
        while chunk := source.read(CHUNK):
            read += len(chunk)
            if read > entry.size:
                break
            yield chunk
    if read != entry.size:
        raise DataError(f"the archive cannot be read: {entry.name!a} is not of the size that it says")


def _readable(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    with _damage_as_data_error():
        yield from entries


@contextmanager
def _damage_as_data_error() -> Iterator[None]:
    """Turn what the readers of archives raise for a damaged one into DataError, and leave errors of the disk alone."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # An error of the disk has a number; a damaged gzip file is an OSError without one. Otherwise damage makes them
        # raise nearly anything: BadZipFile, TarError, EOFError, zlib.error, RuntimeError, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"the archive cannot be read: {_one_line(error)}") from error


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = _kind_of_mode(member.external_attr >> 16)
            if kind == "file" and member.is_dir():
                kind = "folder"
            yield _Entry(member.filename, kind, member.file_size, partial(file.open, member))


def _kind_of_mode(mode: int) -> str:
    """Name what a UNIX mode says; archives made elsewhere hold none, and their entries are files."""
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _tar_entries(archive: Path, folder: Path) -> Iterator[_Entry]:
    with tarfile.open(archive) as file:
        for member in file:
            # Links are refused altogether later on, where they would be unpacked; the filter of Python looks at those
            # that would not be, too, and is a second pair of eyes.
            try:
                tarfile.data_filter(member, str(folder))
            except tarfile.FilterError as error:
                raise DataError(f"the archive holds {member.name!a}, which is refused: {_one_line(error)}") from None
            yield _Entry(member.name, _kind_of_member(member), member.size, partial(_open_member, file, member))


def _open_member(file: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = file.extractfile(member)
    if stream is None:
        raise DataError(f"the archive holds {member.name!a}, which is no file")
    return stream


def _kind_of_member(member: tarfile.TarInfo) -> str:
    if member.isreg():
        return "file"
    if member.isdir():
        return "folder"
    return "a link" if member.issym() or member.islnk() else "a device"
