"""PSNR against arithmetic, SSIM against scikit-image."""

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from bbcu.data.images import Plane
from bbcu.data.metrics import psnr, ssim


def plane(height: int, width: int, seed: int) -> Plane:
    """Draw a smooth picture with some noise, so that no term of SSIM is negligible."""
    generator = np.random.default_rng(seed)
    waves = 110 + 60 * np.sin(np.arange(width) / 5) + 40 * np.cos(np.arange(height) / 3)[:, None]
    noisy: Plane = waves + generator.normal(0, 15, (height, width))
    return noisy.clip(0, 255)


def distorted(truth: Plane) -> Plane:
    return (0.8 * truth + 12 + np.random.default_rng(9).normal(0, 10, truth.shape)).clip(0, 255)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([0, 0, 0], [1, 1, 1], 20 * math.log10(255), id="one level"),
        pytest.param([10, 10, 10], [20, 20, 20], 20 * math.log10(25.5), id="ten levels"),
        pytest.param([0, 0, 0], [255, 255, 255], 0.0, id="black for white"),
        pytest.param([0, 0, 0], [6, 0, 0], 10 * math.log10(255**2 / (6**2 / 3)), id="the mean over all values"),
        pytest.param([7, 8, 9], [7, 8, 9], math.inf, id="identical"),
    ],
)
def test_psnr_is_that_of_the_mean_squared_error(first: list[int], second: list[int], expected: float) -> None:
    one, other = (np.array([[pixel]], dtype=np.uint8) for pixel in (first, second))
    assert psnr(one, other) == psnr(other, one) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("height", "width"), [(11, 11), (11, 17), (24, 19), (70, 15)], ids=["one", "one row", "many", "strips"]
)
def test_ssim_is_that_of_scikit_image_with_gaussian_weights(height: int, width: int) -> None:
    truth = plane(height, width, 2)
    reference = structural_similarity(  # type: ignore[no-untyped-call]
        distorted(truth), truth, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(distorted(truth), truth) == pytest.approx(reference, abs=1e-12)


def test_ssim_takes_bytes() -> None:
    truth = plane(16, 16, 3).astype(np.uint8)
    output = distorted(plane(16, 16, 3)).astype(np.uint8)
    assert ssim(output, truth) == ssim(output.astype(np.float64), truth.astype(np.float64))


@pytest.mark.parametrize("shape", [(10, 16), (16, 10), (16, 16, 16)], ids=["low", "narrow", "many channels"])
def test_ssim_refuses_what_holds_no_window(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="SSIM needs one channel of at least 11 x 11"):
        ssim(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_of_different_shape_are_not_compared(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="differ in shape"):
        measure(np.zeros((16, 16)), np.zeros((1, 16)))
