"""Picture quality as the field measures it: PSNR, and SSIM with a Gaussian window over the valid region.

scikit-image's metrics agree to rounding, but not to the last bit of a score, and take longer.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bbcu.data.images import Plane

PEAK = 255.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_LUMINANCE_CONSTANT = (0.01 * PEAK) ** 2
SSIM_CONTRAST_CONSTANT = (0.03 * PEAK) ** 2

STRIP = 32
"""Rows of windows that are computed at once, so that they fit into a processor's cache."""


def _gaussian() -> Plane:
    distances = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(distances**2) / (2 * SSIM_SIGMA**2))
    normalised: Plane = weights / weights.sum()
    return normalised


WEIGHTS = _gaussian()


def psnr(output: NDArray[Any], truth: NDArray[Any]) -> float:
    """Measure the peak signal-to-noise ratio in dB over all pixels and channels; inf for identical pictures.

    Takes values on the scale of 0 to 255. Raises ValueError if the shapes differ.
    """
    _check_same_shape(output, truth)
    error = float(np.mean((output.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(output: NDArray[Any], truth: NDArray[Any]) -> float:
    """Measure the structural similarity of two single-channel pictures with values in 0..255; 1 if identical.

    Windows of 11 x 11, Gaussian weights of sigma 1.5, population variances; only windows that lie completely inside
    the picture count. This is MATLAB's ssim_index of Wang et al., "Image quality assessment: from error visibility to
    structural similarity", 2004; scikit-image's default, with flat 7 x 7 windows, gives other numbers.
    Takes (height, width). Raises ValueError for another rank, for shapes that differ, or below 11 pixels.
    """
    _check_same_shape(output, truth)
    if output.ndim != 2 or min(output.shape) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs one channel of at least {SSIM_WINDOW} x {SSIM_WINDOW}; got {output.shape}")
    height, width = (size - SSIM_WINDOW + 1 for size in output.shape)
    similarity: Plane = np.empty((height, width))
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        rows = slice(top, bottom + SSIM_WINDOW - 1)
        similarity[top:bottom] = _similarity(output[rows].astype(np.float64), truth[rows].astype(np.float64))
    return float(np.mean(similarity))


def _similarity(first: Plane, second: Plane) -> Plane:
    """The structural similarity of every window; height and width shrink by 10."""
    maps = np.stack([first, second, first * second, first**2 + second**2])
    mean_first, mean_second, mean_product, mean_squares = _blur(_blur(maps, axis=1), axis=2)
    product, squares = mean_first * mean_second, mean_first**2 + mean_second**2
    luminance = (2 * product + SSIM_LUMINANCE_CONSTANT) / (squares + SSIM_LUMINANCE_CONSTANT)
    covariance, variances = mean_product - product, mean_squares - squares
    structure = (2 * covariance + SSIM_CONTRAST_CONSTANT) / (variances + SSIM_CONTRAST_CONSTANT)
    similarity: Plane = luminance * structure
    return similarity


def _blur(maps: Plane, axis: int) -> Plane:
    """Filter with the Gaussian along one axis, over the valid region only: the axis shrinks by 10."""
    length = maps.shape[axis] - SSIM_WINDOW + 1
    before = (slice(None),) * axis
    blurred: Plane = WEIGHTS[0] * maps[(*before, slice(0, length))]
    weighted = np.empty_like(blurred)
    for start in range(1, SSIM_WINDOW):
        np.multiply(maps[(*before, slice(start, start + length))], WEIGHTS[start], out=weighted)
        blurred += weighted
    return blurred


def _check_same_shape(output: NDArray[Any], truth: NDArray[Any]) -> None:
    """Raise ValueError if the shapes differ, which numpy would broadcast."""
    if output.shape != truth.shape:
        raise ValueError(f"the pictures differ in shape: {output.shape} and {truth.shape}")
