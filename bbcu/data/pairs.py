"""Pairs of input and truth: made once from the pictures of a data set, and kept on disk for every later trial.

What is kept is one file of pixels, mapped into memory, and one that says what lies where. A data set that is larger
than memory is made picture by picture, and trained on through the map.
"""

import json
import logging
import math
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
from numpy.typing import NDArray

from bbcu.data.metrics import SSIM_WINDOW
from bbcu.data.sources import Catalogue, Facts, Picture, Pictures, by_role, fingerprint
from bbcu.data.tasks import Input, Score, Task
from bbcu.errors import DataError

# Raise this when the pairs or the baseline of a task come out differently: caches written before are then rebuilt.
CACHE_FORMAT = 2
INDEX_FILE = "index.json"
PIXELS_FILE = "pixels.bin"

ALIGNMENT = 64
"""Arrays begin at multiples of this many bytes."""

CHUNK = 1 << 22
"""Bytes that are read at once to be checked."""

logger = logging.getLogger(__name__)

Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Pair:
    """What a network is given and what it should answer, (height, width, channels) on the scale of 0 to 255.

    The truth is uint8, and the input too unless it lies between the levels: then it is float32. Where patches are
    spoilt as they are drawn, a training pair has the truth for its input.
    """

    name: str
    input: Input
    truth: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The pairs of one task; ``baseline`` maps set and picture to the score reached without a network.

    A task with several levels has a test set of its own for each, named by set and level.
    """

    task: Task
    train: tuple[Pair, ...]
    test: dict[str, tuple[Pair, ...]]
    baseline: dict[str, dict[str, Score]]
    fingerprint: str
    release: Callable[[], None] = field(default=lambda: None)
    """Lets go of the memory that mapped pixels take until they are next looked at."""


def prepare(pictures: Pictures, task: Task, patch: int, cache: Path | None = None) -> PreparedData:
    """Turn pictures into the pairs of a task, and score its baseline on the test sets.

    ``patch`` is the side of a training patch in pixels of the input. With ``cache``, a folder, pairs and scores are
    kept there for the next trial on the same data; a damaged cache is rebuilt, one that cannot be written is done
    without, and any number of processes may fill it at once. Without it everything stays in memory.
    Raises DataError for a picture that cannot be read, for a training picture smaller than a patch, for a test picture
    too small to be scored, and for a given input of the wrong size.
    """
    catalogue = Catalogue(cache)
    try:
        identity = fingerprint(pictures, catalogue)
    finally:
        catalogue.save()
    for role, _, picture in by_role(pictures):
        check_picture(picture, catalogue.facts, task, patch if role == "train" else None)
    if cache is not None:
        place = Path(cache) / f"{identity[:16]}-{task.identity}"
        data = _open(place, task, identity) or _fill(place, pictures, task, identity)
        if data is not None:
            return data
    return _make(pictures, task, identity, lambda values: values)


def check_picture(picture: Picture, facts: Callable[..., Facts], task: Task, patch: int | None) -> None:
    """Raise DataError for a picture too small for its role: training with ``patch``, or a test where that is None.

    SSIM needs a whole window inside the border that the score leaves out, of a truth cut to a multiple of the scale.
    """
    truth = facts(picture.truth)
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
    given = facts(picture.input)
    size = truth.width // task.scale, truth.height // task.scale
    if (given.width, given.height) != size:
        raise DataError(
            f"{picture.input.origin}: the input is {given.width} x {given.height} pixels; "
            f"{picture.truth.origin} shrunk by {task.scale} is {size[0]} x {size[1]}"
        )


# ---- making ----------------------------------------------------------------------------------------------------------

Keep = Callable[[Values], Any]
"""Takes an array over, and gives what stands for it: itself, or its place in a file."""


def _make(pictures: Pictures, task: Task, identity: str, keep: Keep) -> PreparedData:
    """Make every pair, one picture in memory at a time; what ``keep`` gives stands for the arrays."""
    train = tuple(_kept(picture.name, *task.pair(*_read(picture)), keep) for picture in pictures.train)
    test: dict[str, tuple[Pair, ...]] = {}
    baseline: dict[str, dict[str, Score]] = {}
    for set_name, level in _tests(pictures, task):
        pairs, scores = [], {}
        for picture in pictures.test[set_name]:
            truth, given = _read(picture)
            input, truth = task.test_pair(truth, level, given)
            scores[picture.name] = task.score(task.baseline(input), truth)
            pairs.append(_kept(picture.name, input, truth, keep))
        test[set_name + level], baseline[set_name + level] = tuple(pairs), scores
    return PreparedData(task, train, test, baseline, identity)


def _tests(pictures: Pictures, task: Task) -> list[tuple[str, str]]:
    """Every test set at every level; raises DataError where two of them would get one name."""
    tests = [(set_name, level) for set_name in pictures.test for level in task.levels]
    names = [set_name + level for set_name, level in tests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two test sets would be called {twice[0]}: give one of them another name")
    return tests


def _read(picture: Picture) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    return picture.truth.read(), None if picture.input is None else picture.input.read()


def _kept(name: str, input: Input, truth: NDArray[np.uint8], keep: Keep) -> Pair:
    kept = keep(truth)
    return Pair(name, kept if input is truth else keep(input), kept)


# ---- the cache -------------------------------------------------------------------------------------------------------


def _fill(place: Path, pictures: Pictures, task: Task, identity: str) -> PreparedData | None:
    """Make a task's cache, which appears whole or not at all, and open it; None, with a warning, where that fails."""
    temporary = place.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        try:
            with open(temporary / PIXELS_FILE, "xb") as stream:
                writer = _Writer(stream)
                made = _make(pictures, task, identity, writer.keep)
            (temporary / INDEX_FILE).write_text(_sealed(_index(made)), encoding="utf-8")
            return _put(temporary, place, task, identity)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        logger.warning("the prepared pictures cannot be kept in %s: %s", place, error)
        return None


def _put(temporary: Path, place: Path, task: Task, identity: str) -> PreparedData | None:
    """Give a finished cache its name, and open it; a whole one that another process has put there meanwhile stays.

    Whoever has mapped a damaged one keeps its pixels until it lets go of them.
    """
    with filelock.FileLock(place.with_suffix(".lock")):
        there = _open(place, task, identity, warn=False)
        if there is not None:
            return there
        if place.is_dir():
            old = temporary.with_suffix(".old")
            os.replace(place, old)
            shutil.rmtree(old, ignore_errors=True)
        os.rename(temporary, place)
        return _open(place, task, identity)


class _Writer:
    """Lays arrays end to end in a file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._end = stream, 0

    def keep(self, values: Values) -> dict[str, Any]:
        """Write an array; what describes it, for the index."""
        content = np.ascontiguousarray(values)
        padding = -self._end % ALIGNMENT
        self._stream.write(bytes(padding))
        self._stream.write(content.data)
        start, self._end = self._end + padding, self._end + padding + content.nbytes
        return {
            "start": start,
            "shape": list(content.shape),
            "type": str(content.dtype),
            "check": zlib.crc32(content.data),
        }


def _index(made: PreparedData) -> dict[str, Any]:
    """Describe everything, for JSON."""

    def describe(pair: Pair) -> dict[str, Any]:
        return {"name": pair.name, "input": pair.input, "truth": pair.truth}

    return {
        "format": CACHE_FORMAT,
        "task": made.task.identity,
        "fingerprint": made.fingerprint,
        "train": [describe(pair) for pair in made.train],
        "test": {set_name: [describe(pair) for pair in pairs] for set_name, pairs in made.test.items()},
        "baseline": {
            set_name: {name: [score.psnr_db, score.ssim] for name, score in scores.items()}
            for set_name, scores in made.baseline.items()
        },
    }


def _sealed(index: Mapping[str, Any]) -> str:
    """The text of an index behind a line with its checksum."""
    text = json.dumps(index)
    return f"{zlib.crc32(text.encode())}\n{text}"


def _unsealed(text: str) -> Any:
    check, _, content = text.partition("\n")
    if check != str(zlib.crc32(content.encode())):
        raise ValueError("the index is not the one that was written")
    return json.loads(content)


def _open(place: Path, task: Task, identity: str, *, warn: bool = True) -> PreparedData | None:
    """Map what ``_fill`` made; None where there is nothing or, with a warning, nothing that can be trusted."""
    if not os.path.lexists(place):
        return None
    try:
        index = _unsealed((place / INDEX_FILE).read_text(encoding="utf-8"))
        if [index["format"], index["task"], index["fingerprint"]] != [CACHE_FORMAT, task.identity, identity]:
            raise ValueError("it holds other data")
        return _decode(index, place / PIXELS_FILE, task)
    except Exception as error:
        # A damaged file makes the decoders raise nearly anything, and a cache must never be what stops a study.
        if warn:
            logger.warning("the prepared pictures in %s are made anew: %s", place, error)
        return None


def _decode(index: Mapping[str, Any], file: Path, task: Task) -> PreparedData:
    """Check all pixels and map them; raises ValueError where one differs from what was written."""
    entries = {entry["start"]: entry for entry in _entries(index)}
    with open(file, "rb") as stream:
        for entry in entries.values():
            _check(stream, entry)
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if entries else None
    arrays = {start: _view(mapped, entry) for start, entry in entries.items()}

    def pairs(described: list[dict[str, Any]]) -> tuple[Pair, ...]:
        return tuple(
            Pair(pair["name"], *(arrays[pair[role]["start"]] for role in ("input", "truth"))) for pair in described
        )

    return PreparedData(
        task,
        pairs(index["train"]),
        {set_name: pairs(described) for set_name, described in index["test"].items()},
        {
            set_name: {name: Score(*score) for name, score in scores.items()}
            for set_name, scores in index["baseline"].items()
        },
        index["fingerprint"],
        (lambda: None) if mapped is None else lambda: mapped.madvise(mmap.MADV_DONTNEED),
    )


def _entries(index: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for pairs in (index["train"], *index["test"].values()):
        for pair in pairs:
            yield from (pair["input"], pair["truth"])


def _size(entry: Mapping[str, Any]) -> int:
    size: int = math.prod(entry["shape"]) * np.dtype(entry["type"]).itemsize
    return size


def _check(stream: BinaryIO, entry: Mapping[str, Any]) -> None:
    """Read the bytes of an array, in pieces so that memory stays free, and compare their checksum."""
    stream.seek(entry["start"])
    left, check = _size(entry), 0
    while left:
        piece = stream.read(min(CHUNK, left))
        if not piece:
            raise ValueError("the pixels end too early")
        check, left = zlib.crc32(piece, check), left - len(piece)
    if check != entry["check"]:
        raise ValueError("the pixels are not those that were written")


def _view(mapped: mmap.mmap | None, entry: Mapping[str, Any]) -> Values:
    assert mapped is not None
    count = math.prod(entry["shape"])
    flat: Values = np.frombuffer(mapped, dtype=entry["type"], count=count, offset=entry["start"])
    return flat.reshape(entry["shape"])
