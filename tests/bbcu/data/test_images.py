"""Reading pictures, and resizing them as MATLAB and OpenCV do."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bbcu.data.images import (
    Pixels,
    Plane,
    crop_to_multiple,
    downscale,
    gray,
    luma,
    read_rgb,
    rounded,
    to_image,
    to_tensor,
    upscale,
)
from bbcu.errors import DataError
from tests.harness.builders import noise

HALF_A_LEVEL = 0.5 + 1e-6


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_a_colour_file_gives_its_pixels(tmp_path: Path, ending: str) -> None:
    pixels = noise(5, 7)
    Image.fromarray(pixels).save(tmp_path / f"picture.{ending}")
    np.testing.assert_array_equal(read_rgb(tmp_path / f"picture.{ending}"), pixels)


def test_a_jpeg_file_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5), (200, 100, 50)).save(tmp_path / "picture.jpg", quality=100)
    pixels = read_rgb(tmp_path / "picture.jpg")
    assert pixels.shape == (5, 7, 3)
    np.testing.assert_allclose(pixels[2, 3].astype(int), (200, 100, 50), atol=2)


def test_gray_is_repeated_in_three_channels(tmp_path: Path) -> None:
    gray = noise(4, 6)[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "gray.png"), np.stack([gray] * 3, axis=-1))


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "fax.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "fax.png"), [[[255] * 3, [0] * 3]])


def deep_png(path: Path) -> None:
    """Write one pixel of 16-bit colour, which Pillow reads but cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 1000, 20000, 60000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b""))


def deep_tiff(path: Path) -> None:
    """Write one pixel of 16-bit colour: a header, a directory of 8 entries, then what the entries point to."""
    short, long = 3, 4
    directory_end = 8 + 2 + 8 * 12 + 4
    entries = [
        (256, short, 1, 1),
        (257, short, 1, 1),
        (258, short, 3, directory_end),
        (259, short, 1, 1),
        (262, short, 1, 2),
        (273, long, 1, directory_end + 6),
        (277, short, 1, 3),
        (279, long, 1, 6),
    ]
    directory = struct.pack("<H", 8) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    data = struct.pack("<HHH", 16, 16, 16) + struct.pack("<HHH", 1000, 20000, 60000)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + data)


def transparent_palette(path: Path) -> None:
    Image.fromarray(noise(4, 4)).quantize(4).save(path, transparency=0)


def transparent_colour(path: Path) -> None:
    Image.fromarray(noise(4, 4)).save(path, transparency=(1, 2, 3))


def saved(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (4, 4)).save(path)


def shortened(ending: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        whole = path.with_name(f"whole.{ending}")
        Image.fromarray(noise(40, 40)).save(whole)
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    return write


# test_bad_pictures.py has those that docs/pictures.md lists.
BAD_FILES = [
    pytest.param("x.png", saved("LA"), "alpha channel or a transparent colour (mode LA)", id="gray with alpha"),
    pytest.param("x.png", transparent_palette, "alpha channel or a transparent colour (mode P)", id="clear palette"),
    pytest.param("x.png", transparent_colour, "alpha channel or a transparent colour (mode RGB)", id="clear colour"),
    pytest.param("x.tif", saved("I;16"), "16 or more bits a channel (mode I;16)", id="16-bit gray tiff"),
    pytest.param("x.tif", saved("I"), "16 or more bits a channel (mode I)", id="32-bit gray tiff"),
    pytest.param("x.png", deep_png, "16 or more bits a channel (mode RGB)", id="16-bit colour png"),
    pytest.param("x.tif", deep_tiff, "16 or more bits a channel (mode RGB)", id="16-bit colour tiff"),
    pytest.param("x.tif", saved("CMYK"), "the colour mode CMYK", id="cmyk tiff"),
    pytest.param("x.tif", saved("LAB"), "the colour mode LAB", id="lab"),
    pytest.param("x.jpg", shortened("jpg"), "cannot be decoded", id="truncated jpeg"),
    pytest.param("x.bmp", shortened("bmp"), "cannot be decoded", id="truncated bmp"),
    pytest.param("x.tif", shortened("tif"), "cannot be decoded", id="truncated tiff"),
    pytest.param("x.png", lambda path: Image.new("L", (4, 4)).save(path, "GIF"), "is not a picture", id="gif"),
    pytest.param("x.png", lambda path: os.mkfifo(path), "is not a regular file", id="pipe"),
    pytest.param("x.png", lambda path: path.symlink_to(path), "cannot be read", id="link to itself"),
    pytest.param("x.png", lambda path: None, "does not exist", id="missing"),
]


@pytest.mark.parametrize(("name", "write", "cause"), BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_with_its_path_and_the_cause(
    tmp_path: Path, name: str, write: Callable[[Path], object], cause: str
) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(DataError) as error:
        read_rgb(path)
    assert str(error.value).startswith(f"{path}: ")
    assert cause in str(error.value)
    assert "\n" not in str(error.value)


# ---- resizing --------------------------------------------------------------------------------------------------------


def cubic(distance: NDArray[Any], a: float) -> Plane:
    """Keys' cubic convolution kernel."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def matlab_shrinking(length: int, scale: int) -> Plane:
    """Spell imresize out along one axis: the matrix (length / scale, length) that it multiplies a column with."""
    matrix = np.zeros((length // scale, length))
    for row in range(length // scale):
        centre = (row + 0.5) * scale - 0.5
        sources = np.arange(int(centre) - 2 * scale - 1, int(centre) + 2 * scale + 3)
        weights = cubic((centre - sources) / scale, a=-0.5)
        mirror = np.concatenate([np.arange(length), np.arange(length)[::-1]])
        np.add.at(matrix[row], mirror[sources % (2 * length)], weights / weights.sum())
    return matrix


def bicubic_enlarging(length: int, scale: int) -> Plane:
    """Spell a = -0.75 bicubic out along one axis: the matrix (length * scale, length), the border repeated."""
    matrix = np.zeros((length * scale, length))
    for row in range(length * scale):
        centre = (row + 0.5) / scale - 0.5
        sources = np.arange(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3)
        np.add.at(matrix[row], sources.clip(0, length - 1), cubic(centre - sources, a=-0.75))
    return matrix


def resized(image: Pixels, matrix: Callable[[int, int], Plane], scale: int) -> Plane:
    rows, columns = matrix(image.shape[0], scale), matrix(image.shape[1], scale)
    values: Plane = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns)
    return values.clip(0, 255)


@pytest.mark.parametrize(
    ("resize", "reference"), [(downscale, matlab_shrinking), (upscale, bicubic_enlarging)], ids=["shrink", "enlarge"]
)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(9, 14), (8, 5), (1, 2)], ids=["odd x even", "even x odd", "tiny"])
def test_resizing_is_its_formula(
    height: int,
    width: int,
    scale: int,
    resize: Callable[[Pixels, int], Pixels],
    reference: Callable[[int, int], Plane],
) -> None:
    image = noise(height * scale, width * scale)
    difference = resize(image, scale) - resized(image, reference, scale)
    assert np.abs(difference).max() <= HALF_A_LEVEL


@pytest.mark.parametrize("resize", [downscale, upscale])
def test_overshoot_at_an_edge_is_clipped_and_does_not_wrap(resize: Callable[[Pixels, int], Pixels]) -> None:
    edge = np.zeros((24, 24, 3), dtype=np.uint8)
    edge[:, 11:] = 255
    small = resize(edge, 2)
    assert small[:, :4].max() == 0
    assert small[:, -4:].min() == 255
    assert np.all(np.diff(small[6, :, 0].astype(int)) >= 0)


@pytest.mark.parametrize(("dark", "expected"), [(0, 1), (1, 2), (254, 255)])
def test_a_value_between_two_levels_goes_up(dark: int, expected: int) -> None:
    # By symmetry a mirrored step of one level shrinks to exactly its middle.
    step = np.array([[[dark] * 3, [dark + 1] * 3]] * 2, dtype=np.uint8)
    assert downscale(step, 2).tolist() == [[[expected] * 3]]


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 9), (0, 8), (1, 8)])
def test_downscale_refuses_a_size_that_is_no_multiple(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width} x {height} pixels cannot be shrunk by 2"):
        downscale(noise(height, width), 2)


@pytest.mark.parametrize(
    ("multiple", "height", "width"), [(1, 11, 14), (2, 10, 14), (3, 9, 12), (4, 8, 12)], ids=lambda value: str(value)
)
def test_crop_cuts_at_the_bottom_and_the_right(multiple: int, height: int, width: int) -> None:
    image = noise(11, 14)
    np.testing.assert_array_equal(crop_to_multiple(image, multiple), image[:height, :width])


# ---- luma and tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        pytest.param((0, 0, 0), 16, id="black"),
        pytest.param((255, 255, 255), 16 + 65.481 + 128.553 + 24.966, id="white"),
        pytest.param((255, 0, 0), 16 + 65.481, id="red"),
        pytest.param((0, 255, 0), 16 + 128.553, id="green"),
        pytest.param((0, 0, 255), 16 + 24.966, id="blue"),
        pytest.param((51, 102, 204), 16 + 0.2 * 65.481 + 0.4 * 128.553 + 0.8 * 24.966, id="mixed"),
    ],
)
def test_luma_is_the_y_of_matlab(colour: tuple[int, int, int], expected: float) -> None:
    plane = luma(np.full((2, 3, 3), colour, dtype=np.uint8))
    assert plane.shape == (2, 3)
    assert plane.dtype == np.float64
    np.testing.assert_allclose(plane, expected, atol=1e-12)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_picture_with_one_coloured_pixel_is_a_colour_picture(channel: int) -> None:
    pixels = np.full((4, 5, 3), 255, dtype=np.uint8)
    pixels[3, 4, channel] = 0
    assert gray(pixels)[0, 0, 0] == 235


def test_values_between_the_levels_are_rounded_and_clipped() -> None:
    values = np.array([-3.0, -0.4, 0.5, 1.49, 254.5, 300.0], dtype=np.float32)
    result = rounded(values)
    assert result.dtype == np.uint8
    assert result.tolist() == [0, 0, 1, 1, 255, 255]


def test_bytes_are_rounded_to_themselves() -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert rounded(levels) is levels


def test_a_tensor_holds_channels_first_in_0_to_1() -> None:
    tensor = to_tensor(noise(4, 6))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    expected: NDArray[np.float64] = noise(4, 6).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-7)


def test_a_tensor_keeps_values_between_and_beyond_the_levels() -> None:
    values = np.array([[[-51.0, 25.5, 306.0]]], dtype=np.float32)
    np.testing.assert_allclose(to_tensor(values)[:, 0, 0], [-0.2, 0.1, 1.2], atol=1e-7)


def test_every_level_survives_the_way_to_a_tensor_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(to_image(to_tensor(levels)), levels)


@pytest.mark.parametrize(
    ("value", "level"),
    [(100.4 / 255, 100), (100.6 / 255, 101), (-0.5, 0), (1.5, 255), (float("inf"), 255), (float("-inf"), 0)],
)
def test_an_output_is_rounded_and_clipped(value: float, level: int) -> None:
    output = torch.full((3, 2, 2), value, requires_grad=True)
    np.testing.assert_array_equal(to_image(output), np.full((2, 2, 3), level))


def test_an_output_with_nan_is_no_picture() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_image(torch.tensor([[[0.5, float("nan")]]]))
