"""Where pictures come from, installed packages or the user's folders, and the fingerprint of a set of pictures."""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import filelock
import numpy as np

from bbcu.data.images import Pixels, crop_to_multiple, downscale, read_rgb
from bbcu.data.layouts import Role, locate
from bbcu.errors import DataError
from bbcu.files import LARGEST_TEXT, NotAFile, write_atomically

SET_NAME = re.compile(r"[A-Za-z0-9_-]+")
EMBEDDED_SET = "embedded"

INFO_FILE = "pictures.json"
DIGEST = re.compile("[0-9a-f]{64}")

ROOT = 0
"""The number of the user who can write everything anyway."""

SETTLED_SECONDS = 2.0
"""A file that changed less than this before it was read may change again without a new modification time."""


# ---- pictures --------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Something that pixels can be read from repeatedly."""

    @property
    def origin(self) -> str:
        """The name in error messages, usually a path."""

    @property
    def stamp(self) -> tuple[str, ...] | None:
        """The place of the pixels, then what changes when they change; None if nothing reliably does."""

    def read(self) -> Pixels:
        """Read (height, width, 3), RGB; raises DataError, which names the origin."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, read only when it is needed, since a large data set does not fit into memory."""

    path: Path

    @property
    def origin(self) -> str:
        return str(self.path)

    @property
    def stamp(self) -> tuple[str, ...] | None:
        """The file's path, size, times and inode; None if it can still change without these changing."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
            return None
        numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return (str(self.path.absolute()), *map(str, numbers))

    def read(self) -> Pixels:
        return read_rgb(self.path)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Pixels in memory."""

    pixels: Pixels
    origin: str
    stamp = None

    def read(self) -> Pixels:
        return self.pixels


@dataclass(frozen=True)
class Photograph:
    """A photograph in an installed package; ``file`` is relative to the folder of ``package``.

    JPEG files are shrunk by 2, which removes the artifacts that would otherwise be part of the truth.
    """

    package: str
    file: str

    @property
    def origin(self) -> str:
        return f"{self.package}/{self.file}"

    @property
    def stamp(self) -> tuple[str, ...] | None:
        stamp = self._image().stamp
        return None if stamp is None else (*stamp, "photograph")

    def read(self) -> Pixels:
        """Read the photograph without importing its package."""
        pixels = self._image().read()
        return downscale(crop_to_multiple(pixels, 2), 2) if self.file.endswith(".jpg") else pixels

    def _image(self) -> ImageFile:
        package = importlib.util.find_spec(self.package)
        if package is None or not package.submodule_search_locations:
            raise DataError(f"{self.origin}: the package {self.package}, which contains it, is not installed")
        return ImageFile(Path(package.submodule_search_locations[0]) / self.file)


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture: its truth, and its input if the user has one instead of letting it be made."""

    name: str
    truth: Source
    input: Source | None = None


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures to train on, and the named sets to test on."""

    train: tuple[Picture, ...]
    test: dict[str, tuple[Picture, ...]]


# docs/data.md names the authors and the licences.
EMBEDDED_TRAIN = (
    Photograph("sklearn", "datasets/images/china.jpg"),
    Photograph("sklearn", "datasets/images/flower.jpg"),
    Photograph("skimage", "data/rocket.jpg"),
    Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    Photograph("skimage", "data/motorcycle_left.png"),
    Photograph("skimage", "data/motorcycle_right.png"),
)
EMBEDDED_TEST = tuple(Photograph("skimage", f"data/{name}.png") for name in ("astronaut", "chelsea", "coffee"))


def embedded() -> Pictures:
    """The photographs bundled with scikit-image, scikit-learn and matplotlib: 6 to train on, 3 to test on.

    They let the program run anywhere without a download; six training pictures are too few for a published result.
    """
    train, test = (tuple(Picture(Path(one.file).stem, one) for one in some) for some in (EMBEDDED_TRAIN, EMBEDDED_TEST))
    return Pictures(train, {EMBEDDED_SET: test})


def folder(train: Path | None, test: Mapping[str, Path], scale: int | None = None) -> Pictures:
    """Find the images in a training folder and in one folder for each test set, in any of the known layouts.

    Images are named and sorted by their stem, so the same pictures in another file format are the same data. With a
    ``scale``, the user's inputs of that scale are used; with None they are made. Nothing is read yet; see
    :func:`bbcu.data.layouts.locate`.
    Raises DataError, which names the path, for a folder that is missing or without images, for images with the same
    stem, and for the name of a test set that has other characters than letters, digits, hyphens and underscores.
    """
    refused = [name for name in test if not SET_NAME.fullmatch(name)]
    if refused:
        raise DataError(
            f"test set names may hold only letters, digits, hyphens and underscores: {', '.join(map(repr, refused))}"
        )
    return Pictures(
        () if train is None else find_pictures(train, "train", scale),
        {name: find_pictures(path, "test", scale) for name, path in test.items()},
    )


def find_pictures(path: Path, role: Role, scale: int | None = None) -> tuple[Picture, ...]:
    """Find the pictures of one folder; see :func:`folder`."""
    return tuple(
        Picture(found.name, ImageFile(found.truth), ImageFile(found.input) if found.input else None)
        for found in locate(Path(path), role, scale)
    )


def by_role(pictures: Pictures) -> Iterator[tuple[str, str, Picture]]:
    """Yield (role, set name, picture): training pictures first, then the test sets sorted by name."""
    for picture in pictures.train:
        yield "train", "", picture
    for set_name in sorted(pictures.test):
        for picture in pictures.test[set_name]:
            yield "test", set_name, picture


# ---- the fingerprint of pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageInfo:
    """The size of a picture in pixels, and the SHA-256 of its pixels."""

    height: int
    width: int
    digest: str


def measure(pixels: Pixels) -> ImageInfo:
    """Measure (height, width, 3)."""
    height, width = pixels.shape[:2]
    return ImageInfo(height, width, hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest())


def with_checksum(content: Any) -> str:
    """The JSON of ``content`` after a line with its checksum, for :func:`checked`."""
    text = json.dumps(content)
    return f"{zlib.crc32(text.encode())}\n{text}"


def checked(file: Path, cache: Path) -> Any:
    """Read what :func:`with_checksum` wrote; raises ValueError for a damaged file, or as :func:`open_cached`."""
    with open_cached(file, cache) as stream:
        content = stream.read(LARGEST_TEXT)
    check, _, text = content.partition(b"\n")
    if check != str(zlib.crc32(text)).encode():
        raise ValueError(f"the checksum of {file.name} is wrong")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{file.name} is nested too deeply") from None


@contextlib.contextmanager
def open_cached(file: Path, cache: Path) -> Iterator[BinaryIO]:
    """Open a file in the folder ``cache``, or below it; a pipe does not block.

    A checksum finds damage, but whoever can write a file can write its checksum. So the file must belong to this user
    or to root, unless the folder is shared on purpose: a group of this user can write to it, and not everyone can.
    Raises OSError for a file of anyone else, and for anything but a regular file.
    """
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        found, folder = os.fstat(stream.fileno()), os.stat(cache)
        if not stat.S_ISREG(found.st_mode):
            raise NotAFile(errno.EINVAL, "not a regular file", str(file))
        groups = {os.getegid(), *os.getgroups()}
        is_shared = folder.st_mode & stat.S_IWGRP and not folder.st_mode & stat.S_IWOTH and folder.st_gid in groups
        if found.st_uid not in (os.geteuid(), ROOT) and not is_shared:
            raise PermissionError(errno.EPERM, "it belongs to another user", str(file))
        yield stream


class ImageInfoCache:
    """The infos of sources, cached in a file by their stamps, so that a large data set is not decoded for every trial.

    Any number of processes may share the file; a damaged one is ignored, and so is one that cannot be written or that
    belongs to someone else (:func:`open_cached`).
    """

    def __init__(self, folder: Path | None) -> None:
        """Open the cache in ``folder``; None keeps it in memory."""
        self._file = None if folder is None else folder / INFO_FILE
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}

    def info(self, source: Source) -> ImageInfo:
        """The info of a source; raises DataError if it cannot be read."""
        stamp = source.stamp
        if stamp is None:
            return measure(source.read())
        place, *state = stamp
        known_state, *known = self._known.get(place, [None])
        if known_state == state:
            return ImageInfo(*known)
        info = measure(source.read())
        self._new[place] = self._known[place] = [state, info.height, info.width, info.digest]
        return info

    def save(self) -> None:
        """Merge the new infos into the file, which other processes may have changed."""
        if self._file is None or not self._new:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self._file.with_suffix(".lock")):
                write_atomically(self._file, with_checksum({**self._read(), **self._new}), durable=False)
        self._new = {}

    def _read(self) -> dict[str, list[Any]]:
        found = None
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                found = checked(self._file, self._file.parent)
        return {place: entry for place, entry in found.items() if _is_info(entry)} if isinstance(found, dict) else {}


def _is_info(entry: object) -> bool:
    """Whether an entry of the file is a stamp, a height, a width and a digest."""
    match entry:
        case [list(), int(height), int(width), str(digest)]:
            return height > 0 and width > 0 and DIGEST.fullmatch(digest) is not None
    return False


def fingerprint(pictures: Pictures, cache: ImageInfoCache | None = None) -> str:
    """Hash what a training sees: the roles, names of sets and pictures, sizes and pixels, with the inputs if given.

    Paths, file formats and the order of the test sets do not count; the order of the pictures does, since patches are
    drawn by it. Returns the SHA-256 in hexadecimal. Raises DataError for a picture that cannot be read.
    """
    cache = cache or ImageInfoCache(None)
    digest = hashlib.sha256()
    for role, set_name, picture in by_role(pictures):
        sources = [picture.truth] if picture.input is None else [picture.truth, picture.input]
        content = [[info.height, info.width, info.digest] for info in map(cache.info, sources)]
        digest.update(f"{json.dumps([role, set_name, picture.name, *content])}\n".encode())
    return digest.hexdigest()
