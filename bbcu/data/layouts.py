"""The folder layouts in which people have their pictures, and which input belongs to which truth."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bbcu.errors import DataError, printable

Role = Literal["train", "test"]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

DIV2K_TRUTHS: dict[Role, str] = {"train": "DIV2K_train_HR", "test": "DIV2K_valid_HR"}

PAIRED_LAYOUTS = "DIR/HR with DIR/LR_bicubic/X2, DIR/DIV2K_train_HR with DIR/DIV2K_train_LR_bicubic/X2, "
PAIRED_LAYOUTS += "DIR/GTmod12 with DIR/LRbicx2"


@dataclass(frozen=True)
class Located:
    """One picture of a set: its name, the file of its truth and, if the user has one, the file of its input."""

    name: str
    truth: Path
    input: Path | None


Layout = tuple[Path, str]
"""The folder of the truths of a set, and that of its inputs up to the number of the scale."""


def locate(path: Path, role: Role, scale: int | None) -> tuple[Located, ...]:
    """Find the pictures of one set, sorted by name, and with a ``scale`` the user's inputs of that scale.

    With None for the scale, inputs are made from the truths.

    The first of these layouts that fits is used:

    1. ``DIR/HR/baby.png`` with ``DIR/LR_bicubic/X2/babyx2.png``: the benchmarks of EDSR.
    2. ``DIR/DIV2K_train_HR/0001.png`` with ``DIR/DIV2K_train_LR_bicubic/X2/0001x2.png``: DIV2K. The role train uses
       ``DIV2K_train_HR``, the role test ``DIV2K_valid_HR``. DIR may be either of the two itself, in any role; its
       inputs are then expected beside it.
    3. ``DIR/GTmod12/baby.png`` with ``DIR/LRbicx2/baby.png``: the benchmarks of BasicSR, cropped to a multiple of 12.
    4. ``DIR/baby.png``: a plain folder, which has no inputs.

    In layouts 1 to 3 an input has the name of its truth, with or without the suffix x2, the same in a whole
    folder. An image is recognised by its ending, in any case; an input may have another image format than its truth.
    Hidden files and subfolders are ignored. A folder named like an image is returned as an image, and refused when
    read.
    Raises DataError, which names the path, for a folder that is missing, unreadable or without images, for two images
    of one name, for a name that is not UTF-8 (names go into results), for a plain folder if inputs are asked for, and
    for a truth without its input or an input without its truth.
    """
    path = Path(path)
    truth_folder, input_folders = _benchmark(path) or _div2k(path, role) or _cropped(path) or (path, None)
    truths = list_images(truth_folder)
    if scale is None:
        return tuple(Located(truth.stem, truth, None) for truth in truths)
    if input_folders is None:
        raise DataError(
            f"{printable(path)}: is a plain folder of images, without inputs at X{scale}; the layouts with inputs are "
            f"{PAIRED_LAYOUTS}"
        )
    input_folder = Path(f"{input_folders}{scale}")
    return _pair(truths, list_images(input_folder), truth_folder, input_folder, f"x{scale}")


# ---- the layouts -----------------------------------------------------------------------------------------------------
# os.path.isdir returns False for a folder that cannot be looked into; listing it later says why.


def _benchmark(path: Path) -> Layout | None:
    """Recognise DIR/HR."""
    return (path / "HR", f"{path}/LR_bicubic/X") if os.path.isdir(path / "HR") else None


def _cropped(path: Path) -> Layout | None:
    """Recognise DIR/GTmod12."""
    return (path / "GTmod12", f"{path}/LRbicx") if os.path.isdir(path / "GTmod12") else None


def _div2k(path: Path, role: Role) -> Layout | None:
    """Recognise DIV2K, or one of its two folders of truths."""
    itself = Path(os.path.abspath(path))
    if itself.name in DIV2K_TRUTHS.values():
        path, truths = (itself.parent if path.name != itself.name else path.parent), itself.name
    elif any(os.path.isdir(path / name) for name in DIV2K_TRUTHS.values()):
        truths = DIV2K_TRUTHS[role]
    else:
        return None
    return (path / truths, f"{path / truths.removesuffix('_HR')}_LR_bicubic/X")


# ---- pairs -----------------------------------------------------------------------------------------------------------


def _pair(
    truths: Iterable[Path], inputs: Iterable[Path], truth_folder: Path, input_folder: Path, suffix: str
) -> tuple[Located, ...]:
    """Match every truth with its input; raises DataError for the first file without a partner.

    Whether inputs have the suffix is decided for the whole folder: a picture may itself be called ``catx2``, and the
    input of ``cat`` must not be taken for it.
    """
    by_truth = {truth.stem: truth for truth in truths}
    by_input = {file.stem: file for file in inputs}
    if sum(stem in by_input for stem in by_truth) > sum(stem + suffix in by_input for stem in by_truth):
        suffix = ""
    for stem, truth in by_truth.items():
        if stem + suffix not in by_input:
            wanted = input_folder / f"{stem}{suffix}{truth.suffix}"
            raise DataError(f"{printable(truth)}: has no input; looked for {printable(wanted)}")
    wanted_inputs = {stem + suffix for stem in by_truth}
    for stem, file in by_input.items():
        if stem not in wanted_inputs:
            wanted = truth_folder / f"{stem.removesuffix(suffix)}{file.suffix}"
            raise DataError(f"{printable(file)}: has no truth; looked for {printable(wanted)}")
    return tuple(Located(stem, truth, by_input[stem + suffix]) for stem, truth in by_truth.items())


# ---- one folder ------------------------------------------------------------------------------------------------------


def list_images(path: Path) -> tuple[Path, ...]:
    """List the images directly in a folder, sorted by stem.

    Raises DataError, which names the path, for a folder that cannot be listed or has no image, for two images with the
    same stem, and for a name that is not UTF-8.
    """
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise DataError(f"{printable(path)}: the folder does not exist") from None
    except NotADirectoryError:
        raise DataError(f"{printable(path)}: is not a folder") from None
    except OSError as error:
        raise DataError(f"{printable(path)}: the folder cannot be listed: {error.strerror}") from error
    by_stem: dict[str, list[Path]] = {}
    for name in names:
        if not name.startswith(".") and name.lower().endswith(IMAGE_ENDINGS):
            file = path / name
            if any("\udc80" <= character <= "\udcff" for character in name):  # bytes that Python could not decode
                raise DataError(f"{printable(file)}: the name of the file is not UTF-8; rename it")
            by_stem.setdefault(file.stem, []).append(file)
    if not by_stem:
        raise DataError(f"{printable(path)}: has no images; an image ends in {', '.join(IMAGE_ENDINGS)}")
    for same in by_stem.values():
        if len(same) > 1:
            raise DataError(f"images with the same name before the ending: {', '.join(sorted(map(printable, same)))}")
    return tuple(file for _, (file,) in sorted(by_stem.items()))
