"""What a network is asked to restore: how its input is made from a picture, and how its output is scored."""

from dataclasses import dataclass
from typing import Protocol

from bbcu.errors import ConfigError, unknown
from bbcu.images import Pixels, Plane, crop_to_multiple, downscale, luma, upscale
from bbcu.metrics import psnr, ssim

SUPER_RESOLUTION_SCALES = (2, 3, 4)


@dataclass(frozen=True)
class Score:
    """The quality of one restored picture: PSNR in dB and SSIM."""

    psnr_db: float
    ssim: float


class Task(Protocol):
    """One restoration task.

    ``name`` identifies it in configs, results and caches; ``scale`` is the size of the truth over that of the input.
    """

    @property
    def name(self) -> str:
        """The name that ``task_from_name`` takes."""
        ...

    @property
    def scale(self) -> int:
        """The size of the truth over that of the input; 1 where the two are equal."""
        ...

    def pair(self, truth: Pixels) -> tuple[Pixels, Pixels]:
        """Make the input from a picture, and cut the picture to what the input stands for: (input, truth)."""
        ...

    def baseline(self, input: Pixels) -> Pixels:
        """Restore an input without a network: what every network has to beat."""
        ...

    def score(self, output: Pixels, truth: Pixels) -> Score:
        """Compare a restored picture with the truth, as the papers on this task do."""
        ...


@dataclass(frozen=True)
class SuperResolution:
    """Enlarging a picture ``scale`` times that MATLAB's bicubic has shrunk; scored on the luma."""

    scale: int

    @property
    def name(self) -> str:
        """The name that ``task_from_name`` takes: sr_x2, sr_x3 or sr_x4."""
        return f"sr_x{self.scale}"

    def pair(self, truth: Pixels) -> tuple[Pixels, Pixels]:
        """Cut the picture to a multiple of the scale, and shrink that: (input, truth).

        Takes (height, width, 3). Raises ValueError for a picture smaller than the scale.
        """
        cropped = crop_to_multiple(truth, self.scale)
        return downscale(cropped, self.scale), cropped

    def baseline(self, input: Pixels) -> Pixels:
        """Enlarge by a = -0.75 bicubic interpolation: (height, width, 3) to ``scale`` times that."""
        return upscale(input, self.scale)

    def score(self, output: Pixels, truth: Pixels) -> Score:
        """Measure PSNR and SSIM on the luma, without ``scale`` pixels at each border.

        Takes (height, width, 3). Raises ValueError for shapes that differ, or less than 11 pixels inside the border.
        """
        output_luma, truth_luma = self._scored_region(output), self._scored_region(truth)
        return Score(psnr(output_luma, truth_luma), ssim(output_luma, truth_luma))

    def _scored_region(self, image: Pixels) -> Plane:
        return luma(image)[self.scale : -self.scale, self.scale : -self.scale]


TASKS: dict[str, Task] = {task.name: task for task in map(SuperResolution, SUPER_RESOLUTION_SCALES)}


def task_from_name(name: str) -> Task:
    """Find the task of a name; raises ConfigError, which lists the valid names."""
    if name not in TASKS:
        raise ConfigError(unknown("task", name, TASKS))
    return TASKS[name]
