"""Pictures that are not as they should be: what a trial does about each kind, as docs/pictures.md promises."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from bbcu.data import images
from bbcu.data.images import Pixels, luma, read_rgb, read_upright
from bbcu.data.pairs import PreparedData, prepare
from bbcu.data.sources import folder
from bbcu.data.tasks import ArtifactReduction, SuperResolution, Task
from bbcu.errors import DataError
from tests.harness.builders import noise, open_folder, save, soft_blobs, without_root_rights
from tests.harness.paths import DOCS

PAGE = DOCS / "pictures.md"
X2 = SuperResolution(2)
JPEG = ArtifactReduction((10,), (1, 50))


@dataclass(frozen=True)
class Kind:
    """A kind of picture, how to make it in a folder, and what becomes of it.

    ``refused`` is the message, DIR being the folder; where it is None, ``used`` fails unless the pictures are treated
    as the page says. ``scale`` is that of the inputs that are asked for.
    """

    make: Callable[[Path], object]
    refused: str | None = None
    used: Callable[[Path], object] | None = None
    scale: int | None = None


def prepared(path: Path, task: Task = X2, scale: int | None = None) -> PreparedData:
    """What a trial trains and tests on."""
    return prepare(folder(path, {"set": path}, scale), task, patch=8)


def shown(path: Path) -> np.ndarray:
    """The truth of the only picture of a folder."""
    (pair,) = prepared(path).train
    return pair.truth


# ---- how each is made ------------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    save(noise(40, 40), path / "x.png")
    os.truncate(path / "x.png", (path / "x.png").stat().st_size // 2)


def palette(path: Path) -> None:
    Image.fromarray(noise(24, 24) // 86 * 86).quantize(256).save(path / "x.png")
    assert Image.open(path / "x.png").mode == "P"


def of_two_kinds(path: Path) -> None:
    for name in ("x.bmp", "x.png"):
        save(noise(24, 24), path / name)


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png_that_states(width: int, height: int) -> bytes:
    """A PNG of a few bytes that states a size."""
    header = chunk(b"IHDR", struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def of_many_scans(path: Path) -> None:
    """A progressive JPEG whose last scan is repeated: each of these few bytes costs the time of a whole picture."""
    file = io.BytesIO()
    Image.fromarray(noise(24, 24)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(images.START_OF_SCAN) : -2]
    (path / "x.jpg").write_bytes(content[:-2] + last * images.MOST_SCANS + content[-2:])


def input_of_wrong_size(path: Path) -> None:
    save(noise(24, 30), path / "HR" / "x.png")
    save(noise(12, 14), path / "LR_bicubic" / "X2" / "xx2.png")


def gray_and_colour(path: Path) -> None:
    save(soft_blobs(0, 24, 24)[..., 0], path / "gray.png")
    save(soft_blobs(1, 24, 24), path / "colour.png")


def without_permission(path: Path) -> None:
    save(noise(24, 24), path / "x.png")
    (path / "x.png").chmod(0)


def not_utf8(path: Path) -> None:
    save(noise(24, 24), path / "x.png")
    os.rename(os.fsencode(path / "x.png"), os.fsencode(path) + b"/\xff.png")


# ---- what is done with those that are used ---------------------------------------------------------------------------


def is_looked_up(path: Path) -> None:
    np.testing.assert_array_equal(shown(path), noise(24, 24) // 86 * 86)


def is_cut(path: Path) -> None:
    (pair,) = prepared(path).test["set"]
    np.testing.assert_array_equal(pair.truth, noise(25, 31)[:24, :30])
    assert pair.input.shape == (12, 15, 3)


def suits_the_task(path: Path) -> None:
    gray, colour = soft_blobs(0, 24, 24)[..., :1], soft_blobs(1, 24, 24)
    of_colour, of_gray = prepared(path).train
    assert (of_colour.name, of_gray.name) == ("colour", "gray")
    np.testing.assert_array_equal(of_gray.truth, gray.repeat(3, axis=2))
    of_colour, of_gray = prepared(path, JPEG).train
    np.testing.assert_array_equal(of_gray.truth, gray)
    np.testing.assert_array_equal(of_colour.truth[..., 0], np.floor(luma(colour) + 0.5))


# ---- the kinds -------------------------------------------------------------------------------------------------------

KINDS = {
    "a truncated PNG": Kind(truncated, "DIR/x.png: cannot be decoded: "),
    "a file of zero bytes": Kind(lambda path: (path / "x.png").touch(), "DIR/x.png: is an empty file"),
    "text with the name of a PNG": Kind(
        lambda path: (path / "x.png").write_text("no picture"),
        "DIR/x.png: is not a picture in one of the formats PNG, JPEG, BMP, TIFF",
    ),
    "16 bits a channel": Kind(
        lambda path: Image.new("I;16", (24, 24), 40_000).save(path / "x.png"),
        "DIR/x.png: holds 16 or more bits a channel (mode I;16); needed: 8-bit RGB, gray or palette, without "
        "transparency",
    ),
    "transparency": Kind(
        lambda path: Image.new("RGBA", (24, 24)).save(path / "x.png"),
        "DIR/x.png: has an alpha channel or a transparent colour (mode RGBA); needed: 8-bit RGB, gray or palette, "
        "without transparency",
    ),
    "a palette": Kind(palette, used=is_looked_up),
    "a JPEG in CMYK": Kind(
        lambda path: Image.new("CMYK", (24, 24)).save(path / "x.jpg"),
        "DIR/x.jpg: has the colour mode CMYK; needed: 8-bit RGB, gray or palette, without transparency",
    ),
    "a single pixel": Kind(
        lambda path: save(noise(1, 1), path / "x.png"),
        "DIR/x.png: the picture is 1 x 1 pixels; a training patch of 8 x 8 input pixels in sr_x2 needs at least "
        "16 x 16",
    ),
    "odd sizes": Kind(lambda path: save(noise(25, 31), path / "x.png"), used=is_cut),
    "a folder named like a picture": Kind(
        lambda path: (path / "x.png").mkdir(), "DIR/x.png: is a folder, not a picture"
    ),
    "a dangling link": Kind(
        lambda path: (path / "x.png").symlink_to("gone.png"), "DIR/x.png: is a link to a file that does not exist"
    ),
    "a link to itself": Kind(
        lambda path: (path / "x.png").symlink_to("x.png"),
        "DIR/x.png: cannot be read: Too many levels of symbolic links",
    ),
    "a pipe or a device": Kind(lambda path: os.mkfifo(path / "x.png"), "DIR/x.png: is not a regular file"),
    "a file of more than 1 GiB": Kind(
        lambda path: ((path / "x.png").touch(), os.truncate(path / "x.png", 2**40)),
        "DIR/x.png: has 1099511627776 bytes; the most is 1073741824",
    ),
    "more pixels than memory can hold": Kind(
        lambda path: (path / "x.png").write_bytes(png_that_states(12_000, 12_000)),
        "DIR/x.png: has more than 134217728 pixels",
    ),
    "a JPEG whose decoding would take hours": Kind(of_many_scans, "DIR/x.jpg: has 1010 scans; the most is 1000"),
    "no permission to read": Kind(without_permission, "DIR/x.png: cannot be read: Permission denied"),
    "a name twice": Kind(of_two_kinds, "images with the same name before the ending: DIR/x.bmp, DIR/x.png"),
    "a low resolution of the wrong size": Kind(
        input_of_wrong_size,
        "DIR/LR_bicubic/X2/xx2.png: the input is 14 x 12 pixels; DIR/HR/x.png shrunk by 2 is 15 x 12",
        scale=2,
    ),
    "gray where colour is needed, colour where gray is": Kind(gray_and_colour, used=suits_the_task),
    "a name that is not UTF-8": Kind(not_utf8, "DIR/\\udcff.png: the name of the file is not UTF-8; rename it"),
}
REFUSED = [pytest.param(kind, id=name) for name, kind in KINDS.items() if kind.refused is not None]
USED = [pytest.param(kind, id=name) for name, kind in KINDS.items() if kind.refused is None]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that can be entered whatever the rights."""
    with open_folder() as path:
        (path / "pictures").mkdir()
        yield path / "pictures"


@pytest.mark.parametrize("among_good", [False, True], ids=["alone", "among good ones"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_picture_that_cannot_be_used_is_refused_in_one_line_that_names_it(
    kind: Kind, among_good: bool, place: Path
) -> None:
    kind.make(place)
    if among_good:
        save(noise(24, 30), place / ("HR" if kind.scale else "") / "good.png")
    if among_good and kind.scale:
        save(noise(12, 15), place / "LR_bicubic" / "X2" / "goodx2.png")
    with without_root_rights(), pytest.raises(DataError) as error:
        prepared(place, scale=kind.scale)
    message = str(error.value)
    assert kind.refused is not None
    expected = kind.refused.replace("DIR", str(place))
    # What a decoder says of a damaged file is its own, and changes with its version.
    assert message.startswith(expected) if expected.endswith(": ") else message == expected
    assert message.isprintable()


@pytest.mark.parametrize("kind", USED)
def test_a_picture_that_can_be_used_is_treated_as_the_page_says(kind: Kind, place: Path) -> None:
    kind.make(place)
    assert kind.used is not None
    kind.used(place)


def test_pictures_of_two_folders_may_share_a_name(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "A", "B")):
        save(noise(24, 24, seed), tmp_path / name / "x.png")
    data = prepare(folder(tmp_path / "train", {"A": tmp_path / "A", "B": tmp_path / "B"}), X2, patch=8)
    assert [pair.name for pair in data.train] == ["x"]
    for seed, name in ((1, "A"), (2, "B")):
        (pair,) = data.test[name]
        assert pair.name == "x"
        np.testing.assert_array_equal(pair.truth, noise(24, 24, seed))


# ---- any bytes at all ------------------------------------------------------------------------------------------------


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(noise(24, 30) // 86 * 86)
    (picture.quantize(16) if kind in ("GIF", "BMP") else picture).save(file, kind, **options)
    return file.getvalue()


ENCODED = {
    ".png": encoded("PNG"),
    ".apng.png": encoded("PNG", save_all=True, append_images=[Image.new("RGB", (24, 30))]),
    ".bmp": encoded("BMP"),
    ".jpg": encoded("JPEG"),
    ".progressive.jpg": encoded("JPEG", progressive=True, exif=Image.Exif().tobytes() + bytes(20)),
    **{f".{how}.tif": encoded("TIFF", compression=how) for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")},
    ".turned.jpg": encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    ".clear.png": encoded("PNG", transparency=(1, 2, 3), icc_profile=b"\0" * 16 + b"RGB "),
    ".gif.png": encoded("GIF"),
    ".webp.jpg": encoded("WEBP"),
}


@st.composite
def pictures(draw: st.DrawFn) -> tuple[str, bytes]:
    """Random bytes with an ending, or a valid picture that was cut, or has some bytes replaced, removed or put in."""
    ending = draw(st.sampled_from(sorted(ENCODED)))
    content = ENCODED[ending]
    if draw(st.integers(0, 9)) == 0:
        return ending, draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 5))):
        # Most of what a decoder believes is in the first bytes, and of a TIFF in the last.
        place = draw(st.integers(0, len(content)) | st.integers(0, 60) | st.integers(len(content) - 200, len(content)))
        place = max(0, min(place, len(content)))
        removed = draw(st.sampled_from([0, 1, 1, 2, 4, 4, len(content)]))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place + removed :]
    return ending, content


@pytest.mark.parametrize("read", [read_rgb, lambda path: read_upright(path).colours], ids=["rgb", "upright"])
@hypothesis.given(picture=pictures())
def test_a_changed_picture_is_read_or_refused_in_one_line_and_nothing_else_is_printed(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    read: Callable[[Path], Pixels],
    picture: tuple[str, bytes],
) -> None:
    ending, content = picture
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    message = str(path)
    with warnings.catch_warnings(action="error"):
        try:
            pixels = read(path)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3 or read is not read_rgb
            assert pixels.size
        except DataError as error:
            message = str(error)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 500
    assert capfd.readouterr() == ("", "")


def test_libtiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The tables of its JPEG blocks, tag 347, are missing."""
    (tmp_path / "x.tif").write_bytes(ENCODED[".jpeg.tif"].replace(b"\x5b\x01\x07\x00", b"\x5c\x01\x07\x00"))
    with pytest.raises(DataError, match="cannot be decoded: "):
        read_rgb(tmp_path / "x.tif")
    assert capfd.readouterr() == ("", "")


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_table_of_the_page_has_the_kinds_that_are_tested_and_what_becomes_of_each() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][1:]
    assert [name for name, _, _ in rows] == list(KINDS)
    for name, happens, text in rows:
        refused = KINDS[name].refused
        assert happens == ("used" if refused is None else "refused"), name
        assert refused is None or f"`{refused.removesuffix(': ')}`" in text, name
