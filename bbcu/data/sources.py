"""Where pictures come from: packages that are installed anyway, or folders of the user's; and what identifies them."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np

from bbcu.data.images import Pixels, crop_to_multiple, downscale, read_rgb
from bbcu.data.layouts import Role, locate
from bbcu.errors import DataError

SET_NAME = re.compile(r"[A-Za-z0-9_-]+")
EMBEDDED_SET = "embedded"

FACTS_FILE = "pictures.json"

SETTLED_SECONDS = 2.0
"""A file that changed less than this before it was read may change again without its time telling so."""


# ---- pictures --------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Somewhere that pixels can be read from, again and again."""

    @property
    def origin(self) -> str:
        """What error messages call it: a path, mostly."""
        ...

    @property
    def stamp(self) -> tuple[str, ...] | None:
        """What changes when the pixels may have; None where nothing tells."""
        ...

    def read(self) -> Pixels:
        """Read (height, width, 3), RGB; raises DataError, which names the origin."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """An image file; it is read when it is needed, since a large data set does not fit into memory."""

    path: Path

    @property
    def origin(self) -> str:
        return str(self.path)

    @property
    def stamp(self) -> tuple[str, ...] | None:
        """Where the file lies, its size, its times and its inode; None where it can change without these telling."""
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
    """Pixels that are there already."""

    pixels: Pixels
    origin: str
    stamp = None

    def read(self) -> Pixels:
        return self.pixels


@dataclass(frozen=True)
class Photograph:
    """A photograph that an installed package brings along: ``file`` is relative to the folder of ``package``.

    ``halve`` is for JPEG files: shrunk by 2 they lose the artifacts that would otherwise serve as truth.
    """

    name: str
    package: str
    file: str
    halve: bool
    credit: str

    @property
    def origin(self) -> str:
        return f"{self.package}/{self.file}"

    @property
    def stamp(self) -> tuple[str, ...] | None:
        stamp = self._image().stamp
        return None if stamp is None else (*stamp, f"halve={self.halve}")

    def read(self) -> Pixels:
        """Read the photograph out of its package without importing that."""
        pixels = self._image().read()
        return downscale(crop_to_multiple(pixels, 2), 2) if self.halve else pixels

    def _image(self) -> ImageFile:
        package = importlib.util.find_spec(self.package)
        if package is None or not package.submodule_search_locations:
            raise DataError(f"{self.origin}: the package {self.package}, which brings it, is not installed")
        return ImageFile(Path(package.submodule_search_locations[0]) / self.file)


@dataclass(frozen=True, eq=False)
class Picture:
    """One photograph: where its pixels are, and the input that belongs to it where somebody else has made one."""

    name: str
    truth: Source
    input: Source | None = None


@dataclass(frozen=True, eq=False)
class Pictures:
    """What to train on, and the named sets to test on."""

    train: tuple[Picture, ...]
    test: dict[str, tuple[Picture, ...]]


EMBEDDED_TRAIN = (
    Photograph("china", "sklearn", "datasets/images/china.jpg", True, "danielbuechele, CC BY 2.0"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", True, "vultilion, CC BY 2.0"),
    Photograph("rocket", "skimage", "data/rocket.jpg", True, "SpaceX, public domain"),
    Photograph(
        "grace_hopper",
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        True,
        "James S. Davis for the United States Navy, public domain",
    ),
    Photograph("motorcycle_left", "skimage", "data/motorcycle_left.png", False, "Middlebury stereo data, GCPR 2014"),
    Photograph("motorcycle_right", "skimage", "data/motorcycle_right.png", False, "Middlebury stereo data, GCPR 2014"),
)
EMBEDDED_TEST = (
    Photograph("astronaut", "skimage", "data/astronaut.png", False, "NASA, public domain"),
    Photograph("chelsea", "skimage", "data/chelsea.png", False, "Stefan van der Walt, CC0"),
    Photograph("coffee", "skimage", "data/coffee.png", False, "Rachel Michetti, CC0"),
)


def embedded() -> Pictures:
    """The photographs that scikit-image, scikit-learn and matplotlib bring along: 6 to train on, 3 to test on.

    They make the program run anywhere without a download; a network trained on six pictures is no published result.
    """
    train, test = (
        tuple(Picture(photograph.name, photograph) for photograph in photographs)
        for photographs in (EMBEDDED_TRAIN, EMBEDDED_TEST)
    )
    return Pictures(train, {EMBEDDED_SET: test})


def folder(train: Path | None, test: Mapping[str, Path], inputs: str | None = None) -> Pictures:
    """Find the images in a folder to train on, and in one folder for each test set, in any of the known layouts.

    Images are named by their stem and sorted by it, so that the same pictures in another file format are the same data.
    Without ``train`` there is nothing to train on. ``inputs`` names the folder of the inputs that the user has, as in
    "X2"; without it they are made. Nothing is read yet. See :func:`bbcu.data.layouts.locate`.
    Raises DataError, which names the path, for a folder that is missing or without images and for images that share a
    stem; and for the names of test sets that are not letters, digits, hyphens and underscores.
    """
    refused = [name for name in test if not SET_NAME.fullmatch(name)]
    if refused:
        raise DataError(
            f"test set names may hold only letters, digits, hyphens and underscores: {', '.join(map(repr, refused))}"
        )
    return Pictures(
        () if train is None else find_pictures(train, "train", inputs),
        {name: find_pictures(path, "test", inputs) for name, path in test.items()},
    )


def find_pictures(path: Path, role: Role, inputs: str | None = None) -> tuple[Picture, ...]:
    """Find the pictures of one folder; see :func:`folder`."""
    return tuple(
        Picture(found.name, ImageFile(found.truth), ImageFile(found.input) if found.input else None)
        for found in locate(Path(path), role, inputs)
    )


# ---- what identifies pictures ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """The size of a picture in pixels, and the SHA-256 of these."""

    height: int
    width: int
    digest: str


def facts_of(pixels: Pixels) -> Facts:
    """Measure (height, width, 3)."""
    height, width = pixels.shape[:2]
    return Facts(height, width, hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest())


class Catalogue:
    """The facts of sources, kept in a file by their stamps: a large data set is decoded once, and not once a trial.

    Any number of processes may use one file; one that is damaged or cannot be written is done without.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open the catalogue in ``folder``; without one, every source is read every time."""
        self._file = None if folder is None else folder / FACTS_FILE
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}

    def facts(self, source: Source) -> Facts:
        """The facts of a source; raises DataError where it cannot be read."""
        stamp = source.stamp
        if stamp is None:
            return facts_of(source.read())
        place, *state = stamp
        known = self._known.get(place)
        if isinstance(known, list) and len(known) == 5 and known == _entry(place, state, known[1:4]):
            return Facts(*known[1:4])
        facts = facts_of(source.read())
        self._new[place] = self._known[place] = _entry(place, state, [facts.height, facts.width, facts.digest])
        return facts

    def save(self) -> None:
        """Add what is new to the file, beside what others have added meanwhile."""
        if self._file is None or not self._new:
            return
        temporary = self._file.with_name(f".{uuid.uuid4().hex}.tmp")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self._file.with_suffix(".lock")):
                try:
                    temporary.write_text(json.dumps({**self._read(), **self._new}), encoding="utf-8")
                    os.replace(temporary, self._file)
                finally:
                    temporary.unlink(missing_ok=True)
        self._new = {}

    def _read(self) -> dict[str, list[Any]]:
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


def _entry(place: str, state: list[str], facts: list[Any]) -> list[Any]:
    """What the catalogue keeps of a source, with a checksum of it all."""
    return [state, *facts, zlib.crc32(json.dumps([place, state, *facts]).encode())]


def fingerprint(pictures: Pictures, catalogue: Catalogue | None = None) -> str:
    """Identify data by the SHA-256 of what a training sees: roles, names of sets and pictures, shapes and pixels.

    Where the files lie, their format and the order in which the test sets are named change nothing; the order of the
    pictures does, as patches are drawn by it. Inputs that somebody else has made count like the pictures.
    Raises DataError for a picture that cannot be read.
    """
    catalogue = catalogue or Catalogue(None)
    digest = hashlib.sha256()
    for role, set_name, picture in by_role(pictures):
        sources = [picture.truth] if picture.input is None else [picture.truth, picture.input]
        facts = [catalogue.facts(source) for source in sources]
        content = [[fact.height, fact.width, fact.digest] for fact in facts]
        digest.update(f"{json.dumps([role, set_name, picture.name, *content])}\n".encode())
    return digest.hexdigest()


def by_role(pictures: Pictures) -> Iterator[tuple[str, str, Picture]]:
    """Yield (role, set name, picture): training first, then the test sets by name."""
    for picture in pictures.train:
        yield "train", "", picture
    for set_name in sorted(pictures.test):
        for picture in pictures.test[set_name]:
            yield "test", set_name, picture
