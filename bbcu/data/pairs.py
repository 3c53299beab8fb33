"""Pairs of input and truth: made once from the pictures of a data set, and cached on disk for every later trial.

The cache of a task is a file of pixels, mapped into memory, and an index of the arrays in it. So a data set that is
larger than memory is prepared picture by picture, and trained on through the map.
"""

import logging
import math
import mmap
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
from numpy.typing import NDArray

from bbcu.data.images import Pixels
from bbcu.data.metrics import SSIM_WINDOW
from bbcu.data.sources import (
    ImageInfo,
    ImageInfoCache,
    Picture,
    Pictures,
    Source,
    by_role,
    checked,
    fingerprint,
    open_cached,
    with_checksum,
)
from bbcu.data.tasks import Input, Score, Task
from bbcu.errors import DataError
from bbcu.files import temporary_folder

CACHE_FORMAT = 3
"""Raise this when the pairs or the baseline of a task change, so that earlier caches are rebuilt."""

INDEX_FILE = "index.json"
PIXELS_FILE = "pixels.bin"

ALIGNMENT = 64
"""Arrays begin at multiples of this many bytes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pair:
    """The input of a network and the truth that it should return, (height, width, channels) on the scale of 0 to 255.

    The truth is uint8, and so is the input unless it lies between the levels: then it is float32. If patches are
    degraded as they are drawn, the input of a training pair is its truth.
    """

    name: str
    input: Input
    truth: Pixels


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The pairs of one task; ``baseline`` maps set and picture to the score of the task's baseline.

    A task with several levels has a test set for each, named by set and level. ``release`` frees the memory of mapped
    pixels until they are read again.
    """

    task: Task
    train: tuple[Pair, ...]
    test: dict[str, tuple[Pair, ...]]
    baseline: dict[str, dict[str, Score]]
    fingerprint: str
    release: Callable[[], None] = field(default=lambda: None)


def prepare(pictures: Pictures, task: Task, patch: int, cache: Path | None = None) -> PreparedData:
    """Turn pictures into the pairs of a task, and score its baseline on the test sets.

    ``patch`` is the side of a training patch in input pixels. With a folder ``cache``, pairs and scores are cached
    there for later trials on the same data; any number of processes may fill it at once, a damaged cache is rebuilt,
    and one that cannot be written is not used. Without it everything stays in memory.
    Raises DataError for a picture that cannot be read, a training picture smaller than a patch, a test picture too
    small to be scored, and a user's input of the wrong size.
    """
    infos = ImageInfoCache(cache)
    try:
        identity = fingerprint(pictures, infos)
    finally:
        infos.save()
    for role, _, picture in by_role(pictures):
        check_picture(picture, infos.info, task, patch if role == "train" else None)
    if cache is not None:
        place = Path(cache) / f"{identity[:16]}-{task.identity}"
        data = _open(place, task, identity) or _fill(place, pictures, task, identity)
        if data is not None:
            return data
    return _make(pictures, task, identity, lambda values: values)


def check_picture(picture: Picture, info: Callable[[Source], ImageInfo], task: Task, patch: int | None) -> None:
    """Raise DataError for a picture too small for training with ``patch``, or for a test if that is None.

    SSIM needs a whole window inside the border that is not scored, of a truth cropped to a multiple of the scale.
    """
    truth = info(picture.truth)
    if patch is not None:
        least, purpose = patch * task.scale, f"a training patch of {patch} x {patch} input pixels in {task.name}"
    else:
        least, purpose = SSIM_WINDOW + 2 * task.border, f"the score of {task.name}"
        least += -least % task.scale
    if min(truth.height, truth.width) < least:
        raise DataError(
            f"{picture.truth.origin}: the picture is {truth.width} x {truth.height} pixels; "
            f"{purpose} needs at least {least} x {least}"
        )
    if picture.input is None:
        return
    given = info(picture.input)
    size = truth.width // task.scale, truth.height // task.scale
    if (given.width, given.height) != size:
        raise DataError(
            f"{picture.input.origin}: the input is {given.width} x {given.height} pixels; "
            f"{picture.truth.origin} shrunk by {task.scale} is {size[0]} x {size[1]}"
        )


# ---- making ----------------------------------------------------------------------------------------------------------

Store = Callable[[NDArray[Any]], Any]
"""Takes an array and returns what represents it: the array itself, or its entry in the index of the cache."""


def _make(pictures: Pictures, task: Task, identity: str, store: Store) -> PreparedData:
    """Make every pair, with one picture in memory at a time beside what ``store`` keeps."""

    def stored(name: str, input: Input, truth: Pixels) -> Pair:
        represented = store(truth)
        return Pair(name, represented if input is truth else store(input), represented)

    train = tuple(stored(picture.name, *task.pair(*_read(picture))) for picture in pictures.train)
    test: dict[str, tuple[Pair, ...]] = {}
    baseline: dict[str, dict[str, Score]] = {}
    for set_name, level in _tests(pictures, task):
        pairs, scores = [], {}
        for picture in pictures.test[set_name]:
            truth, given = _read(picture)
            input, truth = task.test_pair(truth, level, given)
            scores[picture.name] = task.score(task.baseline(input), truth)
            pairs.append(stored(picture.name, input, truth))
        test[set_name + level], baseline[set_name + level] = tuple(pairs), scores
    return PreparedData(task, train, test, baseline, identity)


def _tests(pictures: Pictures, task: Task) -> list[tuple[str, str]]:
    """Every test set at every level; raises DataError if two of them would have the same name."""
    tests = [(set_name, level) for set_name in pictures.test for level in task.levels]
    names = [set_name + level for set_name, level in tests]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DataError(f"two test sets would be called {duplicates[0]}: rename one of them")
    return tests


def _read(picture: Picture) -> tuple[Pixels, Pixels | None]:
    return picture.truth.read(), None if picture.input is None else picture.input.read()


# ---- the cache -------------------------------------------------------------------------------------------------------


def _fill(place: Path, pictures: Pictures, task: Task, identity: str) -> PreparedData | None:
    """Write the cache of a task, which appears complete or not at all, and open it; warn and return None on failure.

    Another process may have been faster: then its cache is opened. A process that has mapped a damaged cache keeps
    those pixels until it closes the map.
    """
    try:
        with temporary_folder(place) as temporary:
            with open(temporary / PIXELS_FILE, "xb") as stream:
                made = _make(pictures, task, identity, lambda values: _append(stream, values))
            (temporary / INDEX_FILE).write_text(with_checksum(_index(made)), encoding="utf-8")
            with filelock.FileLock(place.with_suffix(".lock")):
                present = _open(place, task, identity, warn=False)
                if present is not None:
                    return present
                if place.is_dir():
                    with temporary_folder(place) as old:
                        os.replace(place, old)
                os.rename(temporary, place)
                return _open(place, task, identity)
    except OSError as error:
        logger.warning("the prepared pictures cannot be cached in %s: %s", place, error)
        return None


def _append(stream: BinaryIO, values: NDArray[Any]) -> dict[str, Any]:
    """Append an array to the file of pixels, and return its entry in the index."""
    content = np.ascontiguousarray(values)
    stream.write(bytes(-stream.tell() % ALIGNMENT))
    start = stream.tell()
    stream.write(content.data)
    return {
        "start": start,
        "shape": list(content.shape),
        "type": str(content.dtype),
        "check": zlib.crc32(content.data),
    }


def _index(made: PreparedData) -> dict[str, Any]:
    """Everything but the pixels, for JSON."""
    return {
        "format": CACHE_FORMAT,
        "task": made.task.identity,
        "fingerprint": made.fingerprint,
        "train": list(map(asdict, made.train)),
        "test": {set_name: list(map(asdict, pairs)) for set_name, pairs in made.test.items()},
        "baseline": {
            set_name: {name: astuple(score) for name, score in scores.items()}
            for set_name, scores in made.baseline.items()
        },
    }


def _open(place: Path, task: Task, identity: str, *, warn: bool = True) -> PreparedData | None:
    """Map the cache of a task; None if there is none or, with a warning, if it is damaged."""
    if not os.path.lexists(place):
        return None
    try:
        index = checked(place / INDEX_FILE, place.parent)
        if [index["format"], index["task"], index["fingerprint"]] != [CACHE_FORMAT, task.identity, identity]:
            raise ValueError("it is the cache of other data")
        with open_cached(place / PIXELS_FILE, place.parent) as file:
            return _mapped(index, file, task)
    except Exception as error:
        # A damaged file makes the readers raise nearly anything, and a cache must never stop a study.
        if warn:
            logger.warning("the prepared pictures in %s are rebuilt: %s", place, error)
        return None


def _mapped(index: Mapping[str, Any], file: BinaryIO, task: Task) -> PreparedData:
    """Map the pixels, and compare the checksum of each array; raises ValueError if one is wrong or impossible."""
    pixels, release = _map(file) if os.fstat(file.fileno()).st_size else (np.empty(0, np.uint8), lambda: None)

    def view(entry: Mapping[str, Any], *types: str) -> NDArray[Any]:
        start, shape = entry["start"], entry["shape"]
        if start < 0 or entry["type"] not in types or len(shape) != 3 or min(shape) < 1:
            raise ValueError("it describes pixels that no picture has")
        size = math.prod(shape) * np.dtype(entry["type"]).itemsize
        content = pixels[start : start + size]
        if len(content) < size or zlib.crc32(content.data) != entry["check"]:
            raise ValueError("the checksum of the pixels is wrong")
        # What was checked may be larger than memory.
        release()
        values: NDArray[Any] = content.view(entry["type"]).reshape(shape)
        return values

    def pair(entry: Mapping[str, Any]) -> Pair:
        truth = view(entry["truth"], "uint8")
        same = entry["input"] == entry["truth"]
        return Pair(entry["name"], truth if same else view(entry["input"], "uint8", "float32"), truth)

    return PreparedData(
        task,
        tuple(map(pair, index["train"])),
        {set_name: tuple(map(pair, entries)) for set_name, entries in index["test"].items()},
        {
            set_name: {name: Score(*score) for name, score in scores.items()}
            for set_name, scores in index["baseline"].items()
        },
        index["fingerprint"],
        release,
    )


def _map(file: BinaryIO) -> tuple[NDArray[np.uint8], Callable[[], None]]:
    """Map a file into memory as read-only bytes; with a function that frees the memory until they are read again."""
    pixels = np.memmap(file, np.uint8, "r")
    mapped = pixels.base
    assert isinstance(mapped, mmap.mmap)
    # A plain view: slicing a memmap costs several times as much.
    return np.asarray(pixels), lambda: mapped.madvise(mmap.MADV_DONTNEED)
