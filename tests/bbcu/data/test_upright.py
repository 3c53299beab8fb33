"""A user's own picture as a viewer shows it: upright, gray or colour, with its transparency and its profile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from bbcu.data.images import Pixels, UprightPicture, brightness, gray, luma, read_upright, rounded, save_png
from bbcu.errors import DataError
from tests.bbcu.data.test_images import deep_png, deep_tiff
from tests.harness.builders import noise

COLOUR = noise(5, 7)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112


def with_orientation(value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: np.rot90(stored, 2)),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.swapaxes(0, 1)),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: np.rot90(stored, 2).swapaxes(0, 1)),
        (8, lambda stored: np.rot90(stored, 1)),
        (9, lambda stored: stored),
    ],
)
def test_a_picture_is_turned_as_its_camera_says(
    orientation: int, shown: Callable[[NDArray[Any]], NDArray[Any]], ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{ending}"
    Image.fromarray(COLOUR).save(path, exif=with_orientation(orientation))
    np.testing.assert_array_equal(read_upright(path).colours, shown(COLOUR))


def test_a_jpeg_of_a_camera_is_turned(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "stored.jpg")
    Image.fromarray(COLOUR).save(tmp_path / "turned.jpg", exif=with_orientation(6))
    stored, turned = (read_upright(tmp_path / name).colours for name in ("stored.jpg", "turned.jpg"))
    np.testing.assert_array_equal(turned, np.rot90(stored, -1))


PALETTE = Image.fromarray(COLOUR).quantize(4)
GRAY, ALPHA = COLOUR[..., :1], COLOUR[..., 1:2]


@pytest.mark.parametrize(
    ("image", "colours", "alpha"),
    [
        pytest.param(Image.fromarray(COLOUR), COLOUR, None, id="colour"),
        pytest.param(Image.fromarray(GRAY[..., 0]), GRAY, None, id="gray"),
        pytest.param(Image.fromarray(GRAY.repeat(3, axis=2)), GRAY, None, id="gray in three channels"),
        pytest.param(Image.fromarray(np.concatenate([GRAY, ALPHA], axis=2)), GRAY, ALPHA, id="gray, alpha"),
        pytest.param(Image.fromarray(np.concatenate([COLOUR, ALPHA], axis=2)), COLOUR, ALPHA, id="colour, alpha"),
        pytest.param(Image.fromarray(GRAY[..., 0] > 99), np.where(GRAY > 99, 255, 0), None, id="black and white"),
        pytest.param(
            Image.fromarray(COLOUR).quantize(4),
            np.array(Image.fromarray(COLOUR).quantize(4).convert("RGB")),
            None,
            id="palette",
        ),
    ],
)
def test_colours_and_transparency_are_those_of_the_file(
    image: Image.Image, colours: Pixels, alpha: Pixels | None, tmp_path: Path
) -> None:
    image.save(tmp_path / "x.png")
    found = read_upright(tmp_path / "x.png")
    np.testing.assert_array_equal(found.colours, colours)
    assert (found.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(alpha, found.alpha)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "clear"),
    [
        (Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)), (1, 2, 3)),
        (Image.fromarray(np.array([[1, 2]], dtype=np.uint8)), 1),
        (Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)).quantize(2), 1),
    ],
    ids=["colour", "gray", "palette"],
)
def test_a_transparent_colour_becomes_alpha(image: Image.Image, clear: object, tmp_path: Path) -> None:
    image.save(tmp_path / "x.png", transparency=clear)
    found = read_upright(tmp_path / "x.png")
    expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(found.colours, expected if image.mode != "L" else expected[..., :1])
    assert found.alpha is not None
    assert sorted(found.alpha.ravel().tolist()) == [0, 255]


def test_a_profile_is_kept_where_it_is_of_the_colours(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "colour.png", icc_profile=SRGB)
    Image.fromarray(GRAY.repeat(3, axis=2)).save(tmp_path / "gray.png", icc_profile=SRGB)
    Image.fromarray(COLOUR).save(tmp_path / "damaged.png", icc_profile=b"no profile")
    profiles = [read_upright(tmp_path / f"{name}.png").profile for name in ("colour", "gray", "damaged")]
    assert profiles == [SRGB, None, None]


@pytest.mark.parametrize(
    ("name", "write", "advice"),
    [
        ("x.png", deep_png, "holds 16 or more bits a channel (mode RGB); save it with 8 bits a channel"),
        ("x.tif", deep_tiff, "holds 16 or more bits a channel (mode RGB); save it with 8 bits a channel"),
        ("x.jpg", lambda path: Image.new("CMYK", (4, 4)).save(path), "has the colour mode CMYK; convert it to RGB"),
        ("x.png", lambda path: path.touch(), "is an empty file"),
    ],
    ids=["16-bit png", "16-bit tiff", "cmyk", "empty"],
)
def test_a_picture_that_cannot_be_restored_is_refused_with_what_to_do(
    name: str, write: Callable[[Path], object], advice: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError) as error:
        read_upright(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: {advice}"


@pytest.mark.parametrize("alpha", [None, ALPHA], ids=["opaque", "alpha"])
@pytest.mark.parametrize(("colours", "profile"), [(GRAY, None), (COLOUR, SRGB)], ids=["gray", "colour"])
def test_a_picture_that_is_saved_is_read_again(
    colours: Pixels, profile: bytes | None, alpha: Pixels | None, tmp_path: Path
) -> None:
    save_png(UprightPicture(colours, alpha, profile), tmp_path / "x.tmp")
    (tmp_path / "x.tmp").rename(tmp_path / "x.png")
    found = read_upright(tmp_path / "x.png")
    np.testing.assert_array_equal(found.colours, colours)
    assert found.profile == profile
    assert found.alpha is None if alpha is None else np.array_equal(found.alpha, alpha)  # type: ignore[arg-type]


def test_brightness_keeps_gray_and_has_the_luma_of_matlab() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(rounded(brightness(levels.repeat(3, axis=2))), levels)
    np.testing.assert_allclose(luma(COLOUR), 16 + brightness(COLOUR)[..., 0] * 219 / 255, rtol=0, atol=1e-9)
    assert np.abs(luma(rounded(brightness(COLOUR)).repeat(3, axis=2)) - gray(COLOUR)[..., 0]).max() <= 1
