"""Pictures as arrays: reading them, the two bicubic resizings of the field, MATLAB's luma, and the JPEG codec.

A picture is uint8 of shape (height, width, 3), RGB, unless a docstring says otherwise.
"""

import contextlib
import io
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch.nn.functional import interpolate

from bbcu.errors import DataError, first_line
from bbcu.files import read_bytes

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]
Decoded = TypeVar("Decoded")

READABLE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
READABLE_MODES = ("1", "L", "P", "RGB")
TRANSPARENT_MODES = ("LA", "PA", "RGBA")
BITS_PER_SAMPLE_TAG = 258

MOST_PIXELS = 2**27
"""The most pixels of a picture, 134 million: 0.4 GB as RGB. A file of a kilobyte can state any number."""

LARGEST_FILE = 2**30
"""The most bytes of a file, which is read whole; more than any picture of so many pixels needs."""

MOST_SCANS = 1000
"""The most scans of a JPEG file; a progressive one has about ten, and each costs as much time as a whole picture."""

START_OF_SCAN = b"\xff\xda"
"""The marker of a scan; in coded data 0 follows each 0xff."""

STDERR = 2

# What Pillow logs of damaged files is in the error too, and without a handler Python prints it.
logging.getLogger("PIL").addHandler(logging.NullHandler())

LUMA_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255
LUMA_OFFSET = 16.0
"""MATLAB's rgb2ycbcr, for RGB in 0..255."""

TIE_MARGIN = 1e-9
"""Makes results halfway between two grey levels round up on every machine, as in MATLAB; rounding error is far less."""


PROFILE_SPACE = slice(16, 20)
"""Where an ICC profile says of which colours it is."""


def read_rgb(path: str | Path) -> Pixels:
    """Read an 8-bit picture as RGB.

    Gray is repeated in three channels, a palette is looked up, the first of several frames is taken, and an orientation
    tag is ignored.
    Returns (height, width, 3). Raises DataError, which names the path and the cause, for a file that cannot be read and
    for pixels that would have to be changed: transparency, 16 bits, CMYK and the like.
    """
    return _decoded(Path(path), _refusal, lambda image: np.array(image.convert("RGB")))


@dataclass(frozen=True, eq=False)
class UprightPicture:
    """A picture as a viewer shows it: ``colours`` are (height, width, 3), or (height, width, 1) if all are gray.

    ``alpha`` is (height, width, 1), or None without transparency; ``profile`` is the ICC profile of the colours.
    """

    colours: Pixels
    alpha: Pixels | None = None
    profile: bytes | None = None


def read_upright(path: str | Path) -> UprightPicture:
    """Read an 8-bit picture of the user's own, turned as its orientation tag says, with its transparency.

    A palette is looked up, and the first of several frames is taken. Raises DataError, which names the path, the cause
    and what to do, for a file that cannot be read, and for 16 bits, CMYK and the like.
    """
    return _decoded(Path(path), _refusal_of_own, _upright)


def save_png(picture: UprightPicture, path: Path) -> None:
    """Write a picture as PNG, whatever the ending of ``path``; raises OSError if it cannot be written."""
    channels = picture.colours if picture.alpha is None else np.concatenate([picture.colours, picture.alpha], axis=2)
    Image.fromarray(channels.squeeze(2) if channels.shape[2] == 1 else channels).save(
        path, "PNG", icc_profile=picture.profile
    )


def _decoded(
    path: Path, refusal_of: Callable[[Image.Image], str | None], used: Callable[[Image.Image], Decoded]
) -> Decoded:
    """Return what ``used`` makes of an image that ``refusal_of`` has no reason to refuse; raises DataError."""
    content = _content_of(path)
    try:
        # Pillow warns of damage beside the pixels, and of sizes that it does not refuse yet.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=READABLE_FORMATS) as image,
            _libtiff_silenced(image),
        ):
            refusal = _excess(image, content) or refusal_of(image)
            if refusal is None:
                return used(image)
    except UnidentifiedImageError:
        raise DataError(f"{path}: is not a picture in one of the formats {', '.join(READABLE_FORMATS)}") from None
    except Image.DecompressionBombError:
        refusal = f"has more than {MOST_PIXELS} pixels"
    except Exception as error:
        # A damaged file makes the decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{path}: cannot be decoded: {first_line(error)}") from error
    raise DataError(f"{path}: {refusal}")


@contextlib.contextmanager
def _libtiff_silenced(image: Image.Image) -> Iterator[None]:
    """Let libtiff print nothing, if it decodes a picture: it writes its errors to the file descriptor of stderr.

    Pillow raises them as well. What another thread prints meanwhile is lost too.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        stderr = os.dup(STDERR)
        os.dup2(nowhere.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)


def _content_of(path: Path) -> bytes:
    """Read a file; raises DataError unless it is a regular one that is not empty and not too large."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            cause = "is a folder, not a picture"
        elif not stat.S_ISREG(status.st_mode):
            cause = "is not a regular file"
        elif status.st_size > LARGEST_FILE:
            cause = f"has {status.st_size} bytes; the most is {LARGEST_FILE}"
        elif content := read_bytes(path, LARGEST_FILE):
            return content
        else:
            cause = "is an empty file"
    except FileNotFoundError:
        cause = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    raise DataError(f"{path}: {cause}")


def _refusal(image: Image.Image) -> str | None:
    """Why a picture cannot be used as 8-bit RGB; None if it can."""
    needed = "needed: 8-bit RGB, gray or palette, without transparency"
    if _is_deep(image):
        return f"holds 16 or more bits a channel (mode {image.mode}); {needed}"
    if image.has_transparency_data:
        return f"has an alpha channel or a transparent colour (mode {image.mode}); {needed}"
    if image.mode not in READABLE_MODES:
        return f"has the colour mode {image.mode}; {needed}"
    return None


def _refusal_of_own(image: Image.Image) -> str | None:
    """Why a picture cannot be restored, and what to do about it; None if it can."""
    if _is_deep(image):
        return f"holds 16 or more bits a channel (mode {image.mode}); save it with 8 bits a channel"
    if image.mode not in (*READABLE_MODES, *TRANSPARENT_MODES):
        return f"has the colour mode {image.mode}; convert it to RGB"
    return None


def _upright(image: Image.Image) -> UprightPicture:
    has_alpha, profile = image.has_transparency_data, image.info.get("icc_profile")
    pixels = np.array(ImageOps.exif_transpose(image).convert("RGBA" if has_alpha else "RGB"))
    colours, alpha = pixels[..., :3], pixels[..., 3:] if has_alpha else None
    if is_gray(colours):
        colours = colours[..., :1]
    # A profile of other colours than the file's is an error to many viewers.
    space = b"GRAY" if colours.shape[2] == 1 else b"RGB "
    fits = isinstance(profile, bytes) and profile[PROFILE_SPACE] == space
    return UprightPicture(np.ascontiguousarray(colours), alpha, profile if fits else None)


def _excess(image: Image.Image, content: bytes) -> str | None:
    """Why decoding a picture would take too much memory or time; None if it would not."""
    if image.width * image.height > MOST_PIXELS:
        return f"has more than {MOST_PIXELS} pixels"
    if image.format in ("JPEG", "MPO") and (scans := content.count(START_OF_SCAN)) > MOST_SCANS:
        return f"has {scans} scans; the most is {MOST_SCANS}"
    return None


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel, which Pillow silently cuts to 8 for colour."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return bool(max(image.tag_v2.get(BITS_PER_SAMPLE_TAG, (1,))) > 8)
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def crop_to_multiple(image: Pixels, multiple: int) -> Pixels:
    """Crop rows at the bottom and columns at the right until both sizes are multiples of ``multiple``."""
    height, width = image.shape[:2]
    return image[: height - height % multiple, : width - width % multiple]


def downscale(image: Pixels, scale: int) -> Pixels:
    """Shrink a picture as MATLAB's imresize does: bicubic with a = -0.5, antialiased, the border mirrored.

    torch's antialiased bicubic has the same kernel, but truncates it at the border. On a picture that is mirrored by
    the kernel's radius and cropped afterwards, the two agree to 1e-11 of a grey level.
    Takes (height, width, channels), returns (height / scale, width / scale, channels).
    Raises ValueError unless both sizes are multiples of ``scale``.
    """
    height, width = image.shape[:2]
    if height % scale or width % scale or 0 in image.shape:
        raise ValueError(
            f"a picture of {width} x {height} pixels cannot be shrunk by {scale}: crop it to a multiple of that"
        )
    border = 2 * scale
    mirrored = np.pad(image, ((border, border), (border, border), (0, 0)), mode="symmetric")
    cut = border // scale
    size = (height // scale + 2 * cut, width // scale + 2 * cut)
    small = interpolate(_to_batch(mirrored), size=size, mode="bicubic", antialias=True, align_corners=False)
    return _from_batch(small[:, :, cut:-cut, cut:-cut])


def upscale(image: Pixels, scale: int) -> Pixels:
    """Enlarge a picture by bicubic interpolation with a = -0.75 and a repeated border, as OpenCV and torch do.

    This, not MATLAB's a = -0.5, is the Bicubic row in the papers on binary networks.
    Takes (height, width, channels), returns (height * scale, width * scale, channels).
    """
    height, width = image.shape[:2]
    size = (height * scale, width * scale)
    return _from_batch(interpolate(_to_batch(image), size=size, mode="bicubic", align_corners=False))


def luma(image: NDArray[Any]) -> Plane:
    """Compute the Y of MATLAB's YCbCr, not rounded: 16 for black, 235 for white.

    Takes (height, width, 3), RGB in 0..255 of any type; returns (height, width).
    """
    return image.astype(np.float64) @ LUMA_WEIGHTS + LUMA_OFFSET


def gray(image: Pixels) -> Pixels:
    """Convert a colour picture to its luma, rounded; a gray picture, with three equal channels, keeps its levels.

    Takes (height, width, 3), returns (height, width, 1). The levels of a gray picture go from 0 to 255, those of a luma
    from 16 to 235.
    """
    if is_gray(image):
        return np.ascontiguousarray(image[..., :1])
    return rounded(luma(image))[..., None]


def is_gray(image: Pixels) -> bool:
    """Return whether the channels of (height, width, channels) are equal."""
    return bool((image == image[..., :1]).all())


def brightness(image: NDArray[Any]) -> Plane:
    """Compute the Y of JPEG's YCbCr, not rounded: 0 for black, 255 for white.

    Takes (height, width, 3), RGB in 0..255 of any type; returns (height, width, 1). MATLAB's luma has the same weights
    on another range; here, gray keeps its level.
    """
    weights: Plane = LUMA_WEIGHTS / LUMA_WEIGHTS.sum()
    values: Plane = image.astype(np.float64) @ weights
    return values[..., None]


def compress(image: Pixels, quality: int) -> Pixels:
    """Pass a gray picture through the JPEG codec at one of its qualities, 1 to 100.

    Takes and returns (height, width, 1).
    """
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return np.array(decoded)[..., None]


def rounded(values: NDArray[Any]) -> Pixels:
    """Round and clip values on the scale of 0 to 255, of any shape, to uint8; uint8 is returned as it is."""
    if values.dtype == np.uint8:
        return values
    return np.floor(values + (0.5 + TIE_MARGIN)).clip(0, 255).astype(np.uint8)


def to_tensor(image: NDArray[Any]) -> torch.Tensor:
    """Turn (height, width, channels) on the scale of 0 to 255 into float32 (channels, height, width) in [0, 1]."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), dtype=np.float32, order="C")).div_(255)


def to_image(tensor: torch.Tensor) -> Pixels:
    """Turn a network's output (channels, height, width), nominally in [0, 1], into a picture, rounded and clipped.

    Raises ValueError for NaN, which would otherwise become a grey level and be scored.
    """
    values = tensor.detach().to("cpu", torch.float64).mul(255)
    if bool(values.isnan().any()):
        raise ValueError("the output of the network contains NaN")
    return _from_batch(values[None])


def _to_batch(image: Pixels) -> torch.Tensor:
    """Turn (height, width, channels) into float64 (1, channels, height, width), still in 0..255."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64, order="C"))[None]


def _from_batch(batch: torch.Tensor) -> Pixels:
    """Round and clip a batch of one, (1, channels, height, width) in 0..255, to uint8 (height, width, channels)."""
    return np.ascontiguousarray(rounded(batch[0].permute(1, 2, 0).numpy()))
