"""Restoration tasks: how the input is made from a picture, and how the output is scored.

Super-resolution makes the input from the whole picture, in training and in tests. Denoising and JPEG artifact reduction
degrade training patches as they are drawn, each with a strength of its own from a range, and are tested at one strength
or at several.
"""

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bbcu.data.images import Pixels, compress, crop_to_multiple, downscale, gray, luma, rounded, upscale
from bbcu.data.metrics import psnr, ssim
from bbcu.errors import ConfigError, shown, unknown

SUPER_RESOLUTION_SCALES = (2, 3, 4)
QUALITIES = (1, 100)
NOISE_SEED = 0

Input = NDArray[np.uint8] | NDArray[np.float32]
"""The input of a network, (height, width, channels) on the scale of 0 to 255; float32 is not rounded or clipped."""

PSNR_RGB = "psnr_rgb_db"
"""The name of PSNR over all three channels, in dB, where a task's PSNR is that of the luma."""

Degradation = Callable[[Pixels, np.random.Generator], Input]
"""Degrades patches (batch, height, width, channels), each on its own."""


@dataclass(frozen=True)
class Score:
    """The quality of one restored picture: PSNR in dB, SSIM, and ``others`` by the names that a result has them under.

    Statistics are about PSNR; others are recorded beside it.
    """

    psnr_db: float
    ssim: float
    others: Mapping[str, float] = field(default_factory=dict, hash=False)


class Task(Hashable, Protocol):
    """One restoration task."""

    @property
    def name(self) -> str:
        """The name that ``make_task`` takes."""

    @property
    def identity(self) -> str:
        """A name for the task's pairs that no task with other pairs has; valid in a file name."""

    @property
    def scale(self) -> int:
        """The size of the truth over that of the input."""

    @property
    def colours(self) -> int:
        """The channels of input and truth: 3 or 1."""

    @property
    def border(self) -> int:
        """The width of the border of the truth that is not scored, in pixels."""

    @property
    def levels(self) -> tuple[str, ...]:
        """The strengths that it is tested at, as suffixes to the name of a test set; ("",) if there is only one."""

    @property
    def baseline_name(self) -> str:
        """The method that is the baseline: bicubic or identity."""

    @property
    def degradation(self) -> Degradation | None:
        """How training patches are degraded as they are drawn; None if inputs are made from whole pictures."""

    def parameters(self) -> dict[str, Any]:
        """The canonical argument of ``make_task`` for this task."""

    def pair(self, picture: Pixels, given: Pixels | None = None) -> tuple[Pixels, Pixels]:
        """The (input, truth) that training patches are cut from; the truth twice if there is a ``degradation``.

        ``given`` is the user's own input, which is taken as it is.
        """

    def test_pair(self, picture: Pixels, level: str, given: Pixels | None = None) -> tuple[Input, Pixels]:
        """The (input, truth) of a test picture at one of the ``levels``."""

    def baseline(self, input: Input) -> Pixels:
        """Restore an input without a network: the result that every network has to beat."""

    def score(self, output: Pixels, truth: Pixels) -> Score:
        """Compare a restored picture with the truth, as the papers on this task do."""


def within(image: NDArray[Any], border: int) -> NDArray[Any]:
    """Return (height, width, ...) without ``border`` pixels at each side."""
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


@dataclass(frozen=True)
class SuperResolution:
    """Enlarge a picture that MATLAB's bicubic has shrunk by ``scale``; scored on the luma."""

    scale: int

    colours = 3
    levels = ("",)
    baseline_name = "bicubic"
    degradation = None

    @property
    def name(self) -> str:
        return f"sr_x{self.scale}"

    @property
    def identity(self) -> str:
        return self.name

    @property
    def border(self) -> int:
        return self.scale

    def parameters(self) -> dict[str, Any]:
        return {"name": self.name}

    def pair(self, picture: Pixels, given: Pixels | None = None) -> tuple[Pixels, Pixels]:
        """Crop a picture (height, width, 3) to a multiple of the scale, and shrink it: (input, truth).

        Raises ValueError for a picture smaller than the scale.
        """
        cropped = crop_to_multiple(picture, self.scale)
        return downscale(cropped, self.scale) if given is None else given, cropped

    def test_pair(self, picture: Pixels, level: str, given: Pixels | None = None) -> tuple[Input, Pixels]:
        return self.pair(picture, given)

    def baseline(self, input: Input) -> Pixels:
        """Enlarge (height, width, 3) ``scale`` times by bicubic interpolation with a = -0.75."""
        return upscale(rounded(input), self.scale)

    def score(self, output: Pixels, truth: Pixels) -> Score:
        """Measure PSNR and SSIM on the luma of (height, width, 3), and PSNR over all three channels beside them.

        All without ``scale`` pixels at each border. Raises ValueError if the shapes differ, or for less than 11 pixels
        inside the border.
        """
        output_luma, truth_luma = (within(luma(image), self.border) for image in (output, truth))
        of_colours = psnr(within(output, self.border), within(truth, self.border))
        return Score(psnr(output_luma, truth_luma), ssim(output_luma, truth_luma), {PSNR_RGB: of_colours})


@dataclass(frozen=True)
class Denoising:
    """Remove Gaussian noise from colour pictures; scored on RGB.

    ``sigma`` are the standard deviations of the tests, and ``train_sigma`` the range that each training patch draws its
    own from, uniformly; all on the scale of 0 to 255. Noisy values are neither rounded nor clipped.
    """

    sigma: tuple[float, ...]
    train_sigma: tuple[float, float]

    name = "denoise"
    scale = 1
    colours = 3
    border = 0
    baseline_name = "identity"

    @property
    def identity(self) -> str:
        return "-".join([self.name, *map(_text, self.sigma)])

    @property
    def levels(self) -> tuple[str, ...]:
        return _levels("sigma", self.sigma)

    def parameters(self) -> dict[str, Any]:
        return {"name": self.name, "sigma": list(self.sigma), "train_sigma": list(self.train_sigma)}

    def degradation(self, patches: Pixels, generator: np.random.Generator) -> Input:
        """Add noise to each patch of a batch, with a standard deviation of its own from ``train_sigma``."""
        strengths = generator.uniform(*self.train_sigma, size=(len(patches), 1, 1, 1)).astype(np.float32)
        return patches + strengths * generator.standard_normal(patches.shape, dtype=np.float32)

    def pair(self, picture: Pixels, given: Pixels | None = None) -> tuple[Pixels, Pixels]:
        _refuse_given(self.name, given)
        return picture, picture

    def test_pair(self, picture: Pixels, level: str, given: Pixels | None = None) -> tuple[Input, Pixels]:
        """Add the noise of seed 0, equal for all pictures of one size, in float32: (input, truth).

        numpy guarantees that the stream of RandomState stays the same in every version.
        """
        self.pair(picture, given)
        sigma = self.sigma[self.levels.index(level)]
        noise = np.random.RandomState(NOISE_SEED).normal(0, sigma, picture.shape)
        return (picture + noise).astype(np.float32), picture

    def baseline(self, input: Input) -> Pixels:
        """The noisy picture itself, rounded and clipped like every output."""
        return rounded(input)

    def score(self, output: Pixels, truth: Pixels) -> Score:
        """Measure PSNR over all three channels, and SSIM as the mean over the channels."""
        channels = zip(np.moveaxis(output, 2, 0), np.moveaxis(truth, 2, 0), strict=True)
        similarity = float(np.mean([ssim(one, other) for one, other in channels]))
        return Score(psnr(output, truth), similarity)


@dataclass(frozen=True)
class ArtifactReduction:
    """Remove the artifacts of JPEG compression from gray pictures, MATLAB's Y rounded; scored on the gray picture.

    ``quality`` are the codec's qualities of the tests, and ``train_quality`` the range, ends included, that each
    training patch draws its own from.
    """

    quality: tuple[int, ...]
    train_quality: tuple[int, int]

    name = "jpeg"
    scale = 1
    colours = 1
    border = 0
    baseline_name = "identity"

    @property
    def identity(self) -> str:
        return "-".join([self.name, *map(_text, self.quality)])

    @property
    def levels(self) -> tuple[str, ...]:
        return _levels("q", self.quality)

    def parameters(self) -> dict[str, Any]:
        return {"name": self.name, "quality": list(self.quality), "train_quality": list(self.train_quality)}

    def degradation(self, patches: Pixels, generator: np.random.Generator) -> Input:
        """Compress each patch of a batch on its own, so that the codec's blocks begin at its corner."""
        low, high = self.train_quality
        qualities = generator.integers(low, high + 1, size=len(patches))
        return np.stack([compress(patch, int(quality)) for patch, quality in zip(patches, qualities, strict=True)])

    def pair(self, picture: Pixels, given: Pixels | None = None) -> tuple[Pixels, Pixels]:
        _refuse_given(self.name, given)
        truth = gray(picture)
        return truth, truth

    def test_pair(self, picture: Pixels, level: str, given: Pixels | None = None) -> tuple[Input, Pixels]:
        """Convert the picture to gray and compress it: (input, truth), both (height, width, 1)."""
        truth, _ = self.pair(picture, given)
        return compress(truth, self.quality[self.levels.index(level)]), truth

    def baseline(self, input: Input) -> Pixels:
        """The compressed picture itself."""
        return rounded(input)

    def score(self, output: Pixels, truth: Pixels) -> Score:
        """Measure PSNR and SSIM over the whole gray picture."""
        return Score(psnr(output, truth), ssim(output[..., 0], truth[..., 0]))


def noise_level(task: Task) -> float:
    """Return how strong the degradation of training patches is, 0 (none) to 1: the middle of its range.

    It is the standard deviation over 255, or 1 - quality / 100; 0 for super-resolution. One number for every picture:
    a network that takes it is told no more about a picture than one that does not, so their scores can be compared.
    """
    if isinstance(task, Denoising):
        return sum(task.train_sigma) / 2 / 255
    if isinstance(task, ArtifactReduction):
        return 1 - sum(task.train_quality) / 2 / 100
    return 0.0


def _levels(prefix: str, strengths: Sequence[float]) -> tuple[str, ...]:
    """The suffixes to the name of a test set, which may not contain a dot: 12.5 is 12_5."""
    if len(strengths) == 1:
        return ("",)
    return tuple(f"-{prefix}{_text(strength)}".replace(".", "_") for strength in strengths)


def _text(strength: float) -> str:
    """A strength with all its digits, so that two that differ never look the same."""
    return repr(float(strength)).removesuffix(".0")


def _refuse_given(name: str, given: Pixels | None) -> None:
    if given is not None:
        raise ValueError(f"{name} makes its inputs itself")


# ---- tasks by name ---------------------------------------------------------------------------------------------------

TASKS: tuple[str, ...] = (
    *(f"sr_x{scale}" for scale in SUPER_RESOLUTION_SCALES),
    Denoising.name,
    ArtifactReduction.name,
)
LONGEST_IDENTITY = 200
"""The most characters of a task's identity; the name of a folder has it, and at most 255 bytes."""
STRENGTHS = {Denoising.name: ("sigma", "train_sigma"), ArtifactReduction.name: ("quality", "train_quality")}
"""The keys that only one task has: its strengths in tests, and their range in training."""


def make_task(parameters: Mapping[str, Any]) -> Task:
    """Make the task with these ``parameters``: its ``name``, and the keys that this task has.

    ``{"name": "denoise", "sigma": [15, 25], "train_sigma": [0, 75]}``: strengths are a number or a list, and a range is
    a pair, or a number for a single strength. Keys that are None count as absent.
    Raises ConfigError for an unknown name, a key that the task does not have, and values out of range.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    name = given.pop("name", None)
    if name not in TASKS:
        raise ConfigError(unknown("task", name, TASKS))
    keys = STRENGTHS.get(name, ())
    for key in given:
        if key not in keys:
            raise ConfigError(f"task.{key}={shown(given[key])}: the task {name} has no such key")
    for key in keys:
        if key not in given:
            raise ConfigError(f"no value for task.{key}: the task {name} needs one")
    if not keys:
        return SuperResolution(int(name.removeprefix("sr_x")))
    tested, trained = (f"task.{key}={shown(given[key])}" for key in keys)
    strengths, train = _numbers(tested, given[keys[0]]), _numbers(trained, given[keys[1]])
    if len(set(strengths)) < len(strengths):
        raise ConfigError(f"{tested}: names a number twice")
    low, high = train[0], train[-1]
    if len("-".join([name, *map(_text, strengths)])) > LONGEST_IDENTITY:
        raise ConfigError(f"{tested}: the numbers must have at most {LONGEST_IDENTITY} characters together")
    if len(train) > 2:
        raise ConfigError(f"{trained}: must be a range, as in [10,50], or one number")
    if name == Denoising.name:
        if not all(0 < value <= 255 for value in strengths):
            raise ConfigError(f"{tested}: must be above 0, and at most 255")
        if not 0 <= low <= high <= 255:
            raise ConfigError(f"{trained}: must be a range within 0 to 255, as in [0,75]")
        return Denoising(strengths, (low, high))
    least, most = QUALITIES
    for text, values in ((tested, strengths), (trained, train)):
        if not all(value.is_integer() and least <= value <= most for value in values):
            raise ConfigError(f"{text}: must be whole numbers from {least} to {most}")
    if low > high:
        raise ConfigError(f"{trained}: must be a range, as in [10,50]")
    return ArtifactReduction(tuple(map(int, strengths)), (int(low), int(high)))


def _numbers(text: str, value: object) -> tuple[float, ...]:
    """One number or a list of them, as floats; ``text`` is how the user wrote it."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers:
        raise ConfigError(f"{text}: must name at least one number")
    for number in numbers:
        # An integer may be larger than any floating-point number.
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
            raise ConfigError(f"{text}: must be a number, or a list of numbers")
    return tuple(map(float, numbers))
