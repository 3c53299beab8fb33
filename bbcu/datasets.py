"""Where pictures come from, how they become pairs of input and truth, and how a training draws patches from those."""

import hashlib
import importlib.util
import json
import logging
import os
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bbcu.errors import DataError
from bbcu.images import Pixels, crop_to_multiple, downscale, read_rgb
from bbcu.metrics import SSIM_WINDOW
from bbcu.tasks import Score, Task

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SET_NAME = re.compile(r"[A-Za-z0-9_-]+")
EMBEDDED_SET = "embedded"

# Raise this when the pairs or the baseline of a task come out differently: caches written before are then rebuilt.
CACHE_FORMAT = 1
CACHE_FILE = "pairs.npz"

logger = logging.getLogger(__name__)


# ---- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Picture:
    """One photograph: pixels (height, width, 3), and the path or package that error messages name."""

    name: str
    pixels: Pixels
    origin: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """What to train on, and the named sets to test on."""

    train: tuple[Picture, ...]
    test: dict[str, tuple[Picture, ...]]


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
    """Read the photographs that scikit-image, scikit-learn and matplotlib bring along: 6 to train on, 3 to test on.

    They make the program run anywhere without a download; a network trained on six pictures is no published result.
    Raises DataError, which names the file, where a package or its photograph is missing.
    """
    train = tuple(read_photograph(photograph) for photograph in EMBEDDED_TRAIN)
    return Pictures(train, {EMBEDDED_SET: tuple(read_photograph(photograph) for photograph in EMBEDDED_TEST)})


def read_photograph(photograph: Photograph) -> Picture:
    """Read a photograph out of an installed package without importing it; raises DataError, which names the file."""
    origin = f"{photograph.package}/{photograph.file}"
    package = importlib.util.find_spec(photograph.package)
    if package is None or not package.submodule_search_locations:
        raise DataError(f"{origin}: the package {photograph.package}, which brings this photograph, is not installed")
    pixels = read_rgb(Path(package.submodule_search_locations[0]) / photograph.file)
    if photograph.halve:
        pixels = downscale(crop_to_multiple(pixels, 2), 2)
    return Picture(photograph.name, pixels, origin)


def folder(train: Path, test: Mapping[str, Path]) -> Pictures:
    """Read all images that lie directly in a folder to train on, and in one folder for each test set.

    Images are told by their ending; files with another ending and hidden files are ignored. They are named by their
    stem and sorted by it, so that the same pictures in another file format are the same data.
    Raises DataError, which names the path, for a folder that is missing or without images and for an image that cannot
    be read or shares its stem; and for the names of test sets that are not letters, digits, hyphens and underscores.
    """
    refused = [name for name in test if not SET_NAME.fullmatch(name)]
    if refused:
        raise DataError(
            f"test set names may hold only letters, digits, hyphens and underscores: {', '.join(map(repr, refused))}"
        )
    return Pictures(_read_folder(Path(train)), {name: _read_folder(Path(path)) for name, path in test.items()})


def _read_folder(path: Path) -> tuple[Picture, ...]:
    files = sorted(_list_images(path), key=lambda file: file.stem)
    if not files:
        raise DataError(f"{path}: holds no image; an image ends in {', '.join(IMAGE_ENDINGS)}")
    by_stem = defaultdict(list)
    for file in files:
        by_stem[file.stem].append(file)
    for same in by_stem.values():
        if len(same) > 1:
            raise DataError(f"images with the same name before the ending: {', '.join(sorted(map(str, same)))}")
    return tuple(Picture(file.stem, read_rgb(file), str(file)) for file in files)


def _list_images(path: Path) -> list[Path]:
    """List the images in a folder, in no order; raises DataError where it cannot be listed."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise DataError(f"{path}: the folder does not exist") from None
    except NotADirectoryError:
        raise DataError(f"{path}: is not a folder") from None
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be listed: {error.strerror}") from error
    return [path / name for name in names if not name.startswith(".") and name.lower().endswith(IMAGE_ENDINGS)]


def fingerprint(pictures: Pictures) -> str:
    """Identify data by the SHA-256 of what a training sees: roles, names of sets and pictures, shapes and pixels.

    Where the files lie, their format and the order in which the test sets are named change nothing; the order of the
    pictures does, as patches are drawn by it.
    """
    digest = hashlib.sha256()
    for role, set_name, picture in _by_role(pictures):
        # The shape tells how many bytes of pixels follow, so no two data sets can feed the same bytes.
        header = json.dumps([role, set_name, picture.name, picture.pixels.shape])
        digest.update(f"{header}\n".encode())
        digest.update(np.ascontiguousarray(picture.pixels).data)
    return digest.hexdigest()


def _by_role(pictures: Pictures) -> Iterator[tuple[str, str, Picture]]:
    """Yield (role, set name, picture): training first, then the test sets by name."""
    for picture in pictures.train:
        yield "train", "", picture
    for set_name in sorted(pictures.test):
        for picture in pictures.test[set_name]:
            yield "test", set_name, picture


# ---- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pair:
    """What a network is given and what it should answer; both uint8 (height, width, channels)."""

    name: str
    input: Pixels
    truth: Pixels


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The pairs of one task; ``baseline`` maps set and picture to the score reached without a network."""

    task_name: str
    train: tuple[Pair, ...]
    test: dict[str, tuple[Pair, ...]]
    baseline: dict[str, dict[str, Score]]
    fingerprint: str


def prepare(pictures: Pictures, task: Task, patch: int, cache: Path | None = None) -> PreparedData:
    """Turn pictures into the pairs of a task, and score its baseline on the test sets.

    ``patch`` is the side of a training patch in pixels of the input. With ``cache``, a folder, pairs and scores are
    kept there for the next trial on the same data; a damaged cache is rebuilt, one that cannot be written is done
    without, and any number of processes may fill it at once.
    Raises DataError for a training picture smaller than a patch, and for a test picture too small to be scored.
    """
    _check_sizes(pictures, task, patch)
    identity = fingerprint(pictures)
    if cache is None:
        return _make(pictures, task, identity)
    file = Path(cache) / f"{identity[:16]}-{task.name}" / CACHE_FILE
    data = _load(file, task.name, identity)
    if data is None:
        data = _make(pictures, task, identity)
        _save(file, data)
    return data


def _check_sizes(pictures: Pictures, task: Task, patch: int) -> None:
    """Raise DataError for the first picture that is too small for its role."""
    for picture in pictures.train:
        _check_size(picture, patch * task.scale, f"a training patch of {patch} x {patch} input pixels in {task.name}")
    # SSIM needs a whole window inside the border that the score leaves out, of a truth cut to a multiple of the scale.
    least = SSIM_WINDOW + 2 * task.scale
    least += -least % task.scale
    for set_pictures in pictures.test.values():
        for picture in set_pictures:
            _check_size(picture, least, f"the score of {task.name}")


def _check_size(picture: Picture, least: int, purpose: str) -> None:
    height, width = picture.pixels.shape[:2]
    if min(height, width) < least:
        raise DataError(
            f"{picture.origin}: the picture is {width} x {height} pixels; {purpose} needs at least {least} x {least}"
        )


def _make(pictures: Pictures, task: Task, identity: str) -> PreparedData:
    train = tuple(Pair(picture.name, *task.pair(picture.pixels)) for picture in pictures.train)
    test = {
        set_name: tuple(Pair(picture.name, *task.pair(picture.pixels)) for picture in set_pictures)
        for set_name, set_pictures in pictures.test.items()
    }
    baseline = {
        set_name: {pair.name: task.score(task.baseline(pair.input), pair.truth) for pair in pairs}
        for set_name, pairs in test.items()
    }
    return PreparedData(task.name, train, test, baseline, identity)


# ---- the cache of pairs ----------------------------------------------------------------------------------------------


def _save(file: Path, data: PreparedData) -> None:
    """Write pairs and scores as one file that appears whole or not at all; a warning is logged where that fails."""
    temporary = file.with_name(f".{uuid.uuid4().hex}.tmp")
    index = _index(data)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as stream:
                text = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
                np.savez(stream, index=text, pixels=_join(data, index))
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the prepared pictures cannot be kept in %s: %s", file, error)


def _index(data: PreparedData) -> dict[str, Any]:
    """Describe everything but the pixels, for JSON."""
    return {
        "format": CACHE_FORMAT,
        "task": data.task_name,
        "fingerprint": data.fingerprint,
        "train": [_describe(pair) for pair in data.train],
        "test": {set_name: [_describe(pair) for pair in pairs] for set_name, pairs in data.test.items()},
        "baseline": {
            set_name: {name: [score.psnr_db, score.ssim] for name, score in scores.items()}
            for set_name, scores in data.baseline.items()
        },
    }


def _describe(pair: Pair) -> dict[str, Any]:
    return {"name": pair.name, "input": pair.input.shape, "truth": pair.truth.shape}


def _join(data: PreparedData, index: dict[str, Any]) -> NDArray[np.uint8]:
    """Lay all pixels end to end in the order of the index: thousands of small arrays would open slowly."""
    pairs = [*data.train, *(pair for set_pairs in data.test.values() for pair in set_pairs)]
    images = [image for pair in pairs for image in (pair.input, pair.truth)]
    pixels = np.empty(sum(image.size for image in images), dtype=np.uint8)
    for place, image in zip(_cut(pixels, index), images, strict=True):
        place[...] = image
    return pixels


def _load(file: Path, task_name: str, identity: str) -> PreparedData | None:
    """Read what ``_save`` wrote; None where there is nothing, or nothing that can be trusted."""
    if not os.path.exists(file):
        return None
    try:
        with np.load(file, allow_pickle=False) as archive:
            return _decode(json.loads(archive["index"].tobytes()), archive["pixels"], task_name, identity)
    except Exception as error:
        # A damaged file makes the decoders raise nearly anything, and a cache must never be what stops a study.
        logger.warning("the prepared pictures in %s are made anew: %s", file, error)
        return None


def _decode(index: dict[str, Any], pixels: Pixels, task_name: str, identity: str) -> PreparedData:
    """Rebuild the pairs as views of ``pixels``; raises ValueError for a cache of something else."""
    if [index["format"], index["task"], index["fingerprint"]] != [CACHE_FORMAT, task_name, identity]:
        raise ValueError("it holds other data")
    images = _cut(pixels, index)
    train = tuple(Pair(entry["name"], next(images), next(images)) for entry in index["train"])
    test = {
        set_name: tuple(Pair(entry["name"], next(images), next(images)) for entry in entries)
        for set_name, entries in index["test"].items()
    }
    baseline = {
        set_name: {name: Score(*score) for name, score in scores.items()}
        for set_name, scores in index["baseline"].items()
    }
    return PreparedData(task_name, train, test, baseline, identity)


def _cut(pixels: Pixels, index: dict[str, Any]) -> Iterator[Pixels]:
    """Yield the pictures that lie end to end in ``pixels``: of each pair the input, then the truth."""
    start = 0
    for entry in [*index["train"], *(entry for entries in index["test"].values() for entry in entries)]:
        for role in ("input", "truth"):
            end = start + int(np.prod(entry[role]))
            yield pixels[start:end].reshape(entry[role])
            start = end


# ---- patches ---------------------------------------------------------------------------------------------------------


class PatchSampler:
    """Draws the batches of a training: patches of random pictures, at random places, in one of the 8 symmetries.

    Every picture is as likely as any other, whatever its size, as is usual in the field. A batch depends on the seed
    and the step alone: a resumed training goes on with the batches it would have had, and all cells see the same ones.
    """

    def __init__(self, pairs: Sequence[Pair], scale: int, patch: int, batch: int, seed: int) -> None:
        """Draw ``batch`` patches a step, ``patch`` pixels square in the input and ``patch * scale`` in the truth.

        Raises ValueError when there are no pairs, when a picture is smaller than a patch, or when a truth is not
        ``scale`` times its input.
        """
        if not pairs:
            raise ValueError("there are no pairs to draw patches from")
        for pair in pairs:
            _check_pair(pair, scale, patch)
        self._pairs = tuple(pairs)
        self._scale = scale
        self._patch = patch
        self._batch = batch
        self._seed = seed
        self._places = np.array([pair.input.shape[:2] for pair in pairs]) - patch + 1

    def batch_at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the batch of a step, counted from 0.

        Returns float32 in [0, 1]: inputs (batch, channels, patch, patch) and truths (batch, channels, patch * scale,
        patch * scale). An input patch and its truth show the same place in the same symmetry.
        """
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, step])))
        chosen = generator.integers(len(self._pairs), size=self._batch)
        places = generator.integers(self._places[chosen])
        symmetries = generator.integers(8, size=self._batch)
        inputs = np.empty(self._batch_shape(self._pairs[0].input, 1), dtype=np.uint8)
        truths = np.empty(self._batch_shape(self._pairs[0].truth, self._scale), dtype=np.uint8)
        for slot in range(self._batch):
            pair, place, symmetry = self._pairs[chosen[slot]], places[slot], int(symmetries[slot])
            inputs[slot] = _view(_patch_at(pair.input, place, self._patch, 1), symmetry)
            truths[slot] = _view(_patch_at(pair.truth, place, self._patch, self._scale), symmetry)
        return _to_unit_range(inputs), _to_unit_range(truths)

    def _batch_shape(self, image: Pixels, scale: int) -> tuple[int, int, int, int]:
        side = self._patch * scale
        return self._batch, image.shape[2], side, side


def _check_pair(pair: Pair, scale: int, patch: int) -> None:
    height, width = pair.input.shape[:2]
    if pair.truth.shape[:2] != (height * scale, width * scale):
        raise ValueError(f"{pair.name}: the truth {pair.truth.shape} is not {scale} times the input {pair.input.shape}")
    if min(height, width) < patch:
        raise ValueError(f"{pair.name}: the input {pair.input.shape} is smaller than a patch of {patch} x {patch}")


def _patch_at(image: Pixels, place: NDArray[np.int64], patch: int, scale: int) -> Pixels:
    """Cut a patch, given in pixels of the input, out of a picture ``scale`` times as large; (channels, side, side)."""
    top, left = place * scale
    side = patch * scale
    return image[top : top + side, left : left + side].transpose(2, 0, 1)


def _view(patch: Pixels, symmetry: int) -> Pixels:
    """Show (channels, side, side) in one of the 8 symmetries of a square; a transpose and a flip are a quarter turn."""
    if symmetry & 1:
        patch = patch[:, ::-1]
    if symmetry & 2:
        patch = patch[:, :, ::-1]
    if symmetry & 4:
        patch = patch.transpose(0, 2, 1)
    return patch


def _to_unit_range(values: NDArray[np.uint8]) -> torch.Tensor:
    """Turn 0..255 into float32 in [0, 1]."""
    return torch.from_numpy(values).to(torch.float32).div_(255)
