"""The folder layouts in which people already have their pictures, and which file in them belongs to which."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bbcu.errors import DataError

Role = Literal["train", "test"]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

BENCHMARK_TRUTH = "HR"
DIV2K_TRUTHS: dict[Role, str] = {"train": "DIV2K_train_HR", "test": "DIV2K_valid_HR"}
CROPPED_TRUTH = re.compile(r"GTmod([1-9][0-9]*)")
SCALE_FOLDER = re.compile(r"X([1-9][0-9]*)")

CROPPED_FOR_EVERY_SCALE = 12
"""The multiple that suits the scales 2, 3 and 4 alike."""

PAIRED_LAYOUTS = "DIR/HR with DIR/LR_bicubic/X2, DIR/DIV2K_train_HR with DIR/DIV2K_train_LR_bicubic/X2, "
PAIRED_LAYOUTS += "DIR/GTmod12 with DIR/LRbicx2"


@dataclass(frozen=True)
class Located:
    """One picture of a set: its name, the file of its truth and, where the user has one, the file of its input."""

    name: str
    truth: Path
    input: Path | None


@dataclass(frozen=True)
class _Set:
    """The folders of a set; ``inputs`` is None where its layout has none, or where none are asked for."""

    truths: Path
    inputs: Path | None


def locate(path: Path, role: Role, inputs: str | None) -> tuple[Located, ...]:
    """Find the pictures of one set, sorted by name, and their inputs where those are asked for.

    The first of these layouts that fits is taken:

    1. ``DIR/HR/baby.png`` with ``DIR/LR_bicubic/X2/babyx2.png``: the benchmarks of EDSR.
    2. ``DIR/DIV2K_train_HR/0001.png`` with ``DIR/DIV2K_train_LR_bicubic/X2/0001x2.png``: DIV2K. ``role`` train takes
       ``DIV2K_train_HR``, test takes ``DIV2K_valid_HR``. DIR may be either of them itself, whatever the role; its
       inputs are then looked for beside it.
    3. ``DIR/GTmod12/baby.png`` with ``DIR/LRbicx2/baby.png``: the benchmarks of BasicSR, cropped to a multiple of 12.
       Of several such folders the one of the scale is taken, then ``GTmod12``, then the smallest that the scale
       divides; with no inputs the scale is not known, and only ``GTmod12`` or a single one will do.
    4. ``DIR/baby.png``: a plain folder, which has no inputs.

    ``inputs`` names the folder of a scale, such as X2, to use the files that the user has; None says that the inputs
    are made from the truths. In layouts 1 to 3 an input bears the name of its truth with or without the ending x2, all
    of a folder alike. An image is told by its ending, in any case; the image format of an input may differ from that
    of its truth. Hidden files are ignored, and so is what lies deeper.

    A folder named like an image is given back as an image: reading it says what is wrong with it.
    Raises DataError, which names the path, for a folder that is missing, unreadable or without images, for two images
    of one name, for a name that is not UTF-8 (names go into results), for a plain folder where inputs are asked for,
    and for a truth without its input or an input without its truth.
    """
    path = Path(path)
    scale = None if inputs is None else _scale_of(inputs)
    found = _benchmark(path, scale) or _div2k(path, role, scale) or _cropped(path, scale) or _Set(path, None)
    truths = list_images(found.truths)
    if scale is None:
        return tuple(Located(truth.stem, truth, None) for truth in truths)
    if found.inputs is None:
        raise DataError(
            f"{printable(path)}: is a plain folder of images, without inputs at {inputs}; the layouts with inputs are "
            f"{PAIRED_LAYOUTS}"
        )
    return _pair(truths, list_images(found.inputs), found.truths, found.inputs, f"x{scale}")


def _scale_of(inputs: str) -> int:
    match = SCALE_FOLDER.fullmatch(inputs)
    if match is None:
        raise DataError(f"inputs {inputs!r}: is not the folder of a scale, such as X2")
    return int(match[1])


# ---- the layouts -----------------------------------------------------------------------------------------------------


def _benchmark(path: Path, scale: int | None) -> _Set | None:
    """Recognise DIR/HR."""
    # os.path.isdir answers False for a folder that cannot be looked into; listing it later says why.
    if not os.path.isdir(path / BENCHMARK_TRUTH):
        return None
    return _Set(path / BENCHMARK_TRUTH, None if scale is None else path / "LR_bicubic" / f"X{scale}")


def _div2k(path: Path, role: Role, scale: int | None) -> _Set | None:
    """Recognise DIV2K, or one of its two folders of truths."""
    itself = Path(os.path.abspath(path))
    if itself.name in DIV2K_TRUTHS.values():
        return _div2k_part(itself.parent if path.name != itself.name else path.parent, itself.name, scale)
    if any(os.path.isdir(path / name) for name in DIV2K_TRUTHS.values()):
        return _div2k_part(path, DIV2K_TRUTHS[role], scale)
    return None


def _div2k_part(path: Path, truths: str, scale: int | None) -> _Set:
    part = truths.removesuffix("_HR")
    return _Set(path / truths, None if scale is None else path / f"{part}_LR_bicubic" / f"X{scale}")


def _cropped(path: Path, scale: int | None) -> _Set | None:
    """Recognise DIR/GTmod12 and its like; raises DataError where none of them can be told to be meant."""
    multiples = sorted(
        int(match[1]) for name in _names_if_any(path) if (match := CROPPED_TRUTH.fullmatch(name)) is not None
    )
    multiples = [multiple for multiple in multiples if os.path.isdir(path / f"GTmod{multiple}")]
    if not multiples:
        return None
    multiple = _choose(multiples, scale)
    if multiple is None:
        names = ", ".join(f"GTmod{multiple}" for multiple in multiples)
        purpose = "as truths" if scale is None else f"as truths at scale {scale}"
        raise DataError(f"{printable(path)}: it is not clear which of its folders to take {purpose}: {names}")
    return _Set(path / f"GTmod{multiple}", None if scale is None else path / f"LRbicx{scale}")


def _choose(multiples: list[int], scale: int | None) -> int | None:
    if scale is None:
        if CROPPED_FOR_EVERY_SCALE in multiples:
            return CROPPED_FOR_EVERY_SCALE
        return multiples[0] if len(multiples) == 1 else None
    fitting = [multiple for multiple in multiples if multiple % scale == 0]
    for preferred in (scale, CROPPED_FOR_EVERY_SCALE):
        if preferred in fitting:
            return preferred
    return fitting[0] if fitting else None


def _names_if_any(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


# ---- pairs -----------------------------------------------------------------------------------------------------------


def _pair(
    truths: Iterable[Path], inputs: Iterable[Path], truth_folder: Path, input_folder: Path, ending: str
) -> tuple[Located, ...]:
    """Give every truth its input; raises DataError for the first file that is alone.

    Whether the inputs bear the ending is decided for the folder, not for each file: a picture may itself be named
    ``catx2``, and the input of ``cat`` must not be taken for it.
    """
    by_truth = {truth.stem: truth for truth in truths}
    by_input = {file.stem: file for file in inputs}
    if sum(stem in by_input for stem in by_truth) > sum(stem + ending in by_input for stem in by_truth):
        ending = ""
    for stem, truth in by_truth.items():
        if stem + ending not in by_input:
            wanted = input_folder / f"{stem}{ending}{truth.suffix}"
            raise DataError(f"{printable(truth)}: has no input; looked for {printable(wanted)}")
    wanted_inputs = {stem + ending for stem in by_truth}
    for stem, file in by_input.items():
        if stem not in wanted_inputs:
            wanted = truth_folder / f"{stem.removesuffix(ending)}{file.suffix}"
            raise DataError(f"{printable(file)}: has no truth; looked for {printable(wanted)}")
    return tuple(Located(stem, truth, by_input[stem + ending]) for stem, truth in by_truth.items())


# ---- one folder ------------------------------------------------------------------------------------------------------


def list_images(path: Path) -> tuple[Path, ...]:
    """List the images that lie directly in a folder, sorted by their names before the ending.

    Raises DataError, which names the path, for a folder that cannot be listed or holds no image, for two images of one
    name and for a name that is not UTF-8.
    """
    files = sorted(_images_in(path), key=lambda file: file.stem)
    if not files:
        raise DataError(f"{printable(path)}: holds no image; an image ends in {', '.join(IMAGE_ENDINGS)}")
    by_stem = defaultdict(list)
    for file in files:
        by_stem[file.stem].append(file)
    for same in by_stem.values():
        if len(same) > 1:
            names = ", ".join(sorted(map(printable, same)))
            raise DataError(f"images with the same name before the ending: {names}")
    return tuple(files)


def _images_in(path: Path) -> list[Path]:
    """List the images in a folder, in no order."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise DataError(f"{printable(path)}: the folder does not exist") from None
    except NotADirectoryError:
        raise DataError(f"{printable(path)}: is not a folder") from None
    except OSError as error:
        raise DataError(f"{printable(path)}: the folder cannot be listed: {error.strerror}") from error
    files = [path / name for name in names if not name.startswith(".") and name.lower().endswith(IMAGE_ENDINGS)]
    for file in files:
        if not _is_unicode(file.name):
            raise DataError(f"{printable(file)}: the name of the file is not UTF-8; rename it")
    return files


def _is_unicode(name: str) -> bool:
    """Tell whether a name is text; Python holds the bytes of one that is not as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: Path | str) -> str:
    r"""Show a path on one line of text that any terminal and file takes, with ``\n`` or ``\udcff`` for the rest."""
    shown = (
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(path)
    )
    return "".join(shown)
