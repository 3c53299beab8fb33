"""Restore a user's own pictures with a trained network: gray or colour, with transparency, of any size."""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bbcu.data.images import (
    Pixels,
    UprightPicture,
    brightness,
    crop_to_multiple,
    gray,
    read_upright,
    rounded,
    save_png,
    upscale,
)
from bbcu.data.layouts import list_images
from bbcu.data.pairs import check_picture
from bbcu.data.sources import ImageInfo, Picture, Source, measure
from bbcu.data.tasks import Score, Task
from bbcu.deploy.backends import exact_runner
from bbcu.deploy.packed import DeployError
from bbcu.deploy.scoring import device_for, difference, form_of, task_of
from bbcu.deploy.sources import as_trained, trained
from bbcu.errors import BbcuError, ConfigError, DataError
from bbcu.files import replacing
from bbcu.terminal import progress_bar, say
from bbcu.training.evaluation import Evaluation, mean_score, radius_of, restore

LARGEST_OUTPUT = 1024
"""The side in output pixels of the pieces that a picture is restored in, if it has more pixels than one of them.

A feature map of 64 channels and this size has 256 MiB, and a few of them are in memory at once. The side depends on
nothing of the machine, so that every machine restores the same pieces.
"""

STRIP = 256
"""Rows that are computed on at once in float64, so that a large picture takes no multiple of its memory."""


class Restorer:
    """Restores pictures with one network, on one device.

    A picture is uint8: (height, width), or (height, width, channels) with 1 channel for gray, 2 for gray and alpha, 3
    for colours or 4 for colours and alpha. What is returned has the same channels and ``scale`` times the size.

    - A gray picture stays gray: a network of colours restores it in three equal channels, of whose brightness the
      result is.
    - A colour picture keeps its colours in a network of gray pictures, which restores its brightness, the Y of JPEG's
      YCbCr; the other two channels stay.
    - Alpha is not restored; if the picture is enlarged, it is interpolated by the bicubic baseline.

    Packed networks run on the CPU only. On a CPU the binary units run in the kernel of :mod:`bbcu.deploy.native` if it
    can be compiled, with the same bits and faster.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str = "auto",
        tile: int | None = None,
        form: tuple[int, int] | None = None,
    ) -> None:
        """Prepare ``network``.

        ``tile`` is the largest side in input pixels that is run at once, 0 for the whole picture. By default a picture
        of more than 1024 x 1024 output pixels is run in tiles of that size. Tiles overlap by the receptive field, so
        that the result is that of the whole picture; a network of which a part averages over the picture has none and
        is always run whole. ``form`` is the scale and the channels of a network without a ``spec``.
        Raises ConfigError for tiles that the network cannot have, and BbcuError for a device that is not available.
        """
        self.scale, self.colours = form or form_of(network)
        if self.colours not in (1, 3):
            raise ConfigError(f"the network restores pictures of {self.colours} channels, which are not gray or RGB")
        if tile is not None and tile < 0:
            raise ConfigError(f"tile={tile}: must be 0 or more")
        self.device = device_for(network, device)
        self.network, self.tile = as_trained(network, self.device), tile
        self.has_tiles, self._run = _has_tiles(network), exact_runner(self.network, self.device)
        if tile:
            radius_of(network, f"tile={tile}")

    def tile_for(self, height: int, width: int) -> int:
        """Return the side of the tiles of a picture in input pixels; 0 if it is restored as a whole."""
        if self.tile is not None:
            return self.tile
        is_large = height * width * self.scale**2 > LARGEST_OUTPUT**2
        return LARGEST_OUTPUT // self.scale if is_large and self.has_tiles else 0

    def is_too_large(self, height: int, width: int) -> bool:
        """Return whether a picture would be restored in tiles by default, but the network has none."""
        return self.tile is None and not self.has_tiles and height * width * self.scale**2 > LARGEST_OUTPUT**2

    def __call__(self, picture: Pixels, on_piece: Callable[[int], None] = lambda pixels: None) -> Pixels:
        """Restore a picture; ``on_piece`` is called with the number of input pixels of each piece that is done.

        Raises DeployError for an array that is no picture, and if memory is short.
        """
        channels = picture[..., None] if picture.ndim == 2 else picture
        if picture.dtype != np.uint8 or channels.ndim != 3 or channels.shape[2] not in (1, 2, 3, 4) or not picture.size:
            shape = f"{picture.dtype} of shape {picture.shape}"
            raise DeployError(f"a picture is uint8 of (height, width) or (height, width, 1 to 4), not {shape}")
        has_alpha = channels.shape[2] in (2, 4)
        colours, alpha = (channels[..., :-1], channels[..., -1:]) if has_alpha else (channels, None)
        restored = self._restored(np.ascontiguousarray(colours), on_piece)
        if alpha is not None:
            alpha = alpha if self.scale == 1 else upscale(alpha, self.scale)
            restored = np.concatenate([restored, alpha], axis=2)
        return restored.reshape(restored.shape[:2] if picture.ndim == 2 else restored.shape)

    def _restored(self, colours: Pixels, on_piece: Callable[[int], None]) -> Pixels:
        """Restore (height, width, 1 or 3) without alpha."""
        if colours.shape[2] == self.colours:
            return self._output(colours, on_piece)
        if self.colours == 3:
            return _by_strips(lambda part: rounded(brightness(part)), self._output(colours.repeat(3, axis=2), on_piece))
        before = _by_strips(lambda part: rounded(brightness(part)), colours)
        after = self._output(before, on_piece)
        if self.scale > 1:
            colours, before = upscale(colours, self.scale), upscale(before, self.scale)
        # With Cb and Cr as they are, a change of Y changes red, green and blue alike.
        return _by_strips(lambda old, y, old_y: rounded(old.astype(np.int16) + y - old_y), colours, after, before)

    def _output(self, pixels: Pixels, on_piece: Callable[[int], None]) -> Pixels:
        how = Evaluation(tile=self.tile_for(*pixels.shape[:2]))
        try:
            return restore(self.network, pixels, self.device, how, run=self._run, on_piece=on_piece)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise DeployError("there is not enough memory; smaller tiles need less") from error
            raise


def _has_tiles(network: nn.Module) -> bool:
    try:
        radius_of(network)
    except ConfigError:
        return False
    return True


def _by_strips(function: Callable[..., Pixels], *pictures: Pixels) -> Pixels:
    """Return what a function of pixels makes of pictures of one size, (height, width, any)."""
    starts = range(0, pictures[0].shape[0], STRIP)
    return np.concatenate([function(*(picture[start : start + STRIP] for picture in pictures)) for start in starts])


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UprightFile:
    """A picture file as :func:`bbcu.data.images.read_upright` reads it, in RGB: a source of pixels to check."""

    path: Path
    stamp = None

    @property
    def origin(self) -> str:
        return str(self.path)

    def read(self) -> Pixels:
        return _as_rgb(read_upright(self.path).colours)


@dataclass(frozen=True)
class Job:
    """A picture to restore, the file to write, and the truth to score it with if there is one."""

    picture: Path
    output: Path
    truth: Path | None = None


def plan(
    pictures: Sequence[Path], folder: Path, truth: Path | None = None, *, scale: int = 1, overwrite: bool = False
) -> list[Job]:
    """List what is to be done for pictures and folders of pictures; ``NAME.png`` in ``folder`` is written for each.

    ``truth`` is a picture, or a folder with one of the same name for each, where the name of an input may end in the
    scale, such as x2. Raises DataError, with the paths, if two pictures would be written to one file, if a file exists
    already, unless ``overwrite`` is set, and if it is one that is read, in any case; ConfigError if there is one truth
    for several pictures.
    """
    found = [file for path in pictures for file in (list_images(path) if os.path.isdir(path) else (path,))]
    jobs = [
        Job(path, folder / f"{path.stem}.png", one)
        for path, one in zip(found, _truths(found, truth, scale), strict=True)
    ]
    by_output = defaultdict(list)
    for job in jobs:
        by_output[job.output].append(str(job.picture))
    for output, several in by_output.items():
        if len(several) > 1:
            raise DataError(f"{output}: {len(several)} pictures would be written to it: {', '.join(several)}")
    read = {os.path.realpath(path): path for job in jobs for path in (job.picture, job.truth) if path is not None}
    for job in jobs:
        # os.path, unlike pathlib, raises no error for a folder that is closed or a link to itself.
        original = read.get(os.path.realpath(job.output))
        if original is not None:
            raise DataError(f"{original}: would be overwritten; give another folder as --out")
        if os.path.lexists(job.output) and not overwrite:
            raise DataError(f"{job.output}: exists already; --overwrite replaces it")
    return jobs


def _truths(pictures: Sequence[Path], truth: Path | None, scale: int) -> list[Path | None]:
    """The truth of each picture; raises DataError for a picture without one."""
    if truth is None:
        return [None] * len(pictures)
    if not os.path.isdir(truth):
        if len(pictures) > 1:
            raise ConfigError(f"--truth {truth}: is one picture for {len(pictures)}; give a folder")
        return [truth]
    by_name = {path.stem: path for path in list_images(truth)}
    names = [(path.stem, path.stem.removesuffix(f"x{scale}")) for path in pictures]
    for path, possible in zip(pictures, names, strict=True):
        if not by_name.keys() & set(possible):
            raise DataError(f"{path}: has no truth; there is no {path.stem} in {truth}")
    return [next(by_name[name] for name in possible if name in by_name) for possible in names]


def check(jobs: Iterable[Job], task: Task | None) -> list[ImageInfo]:
    """Read every picture and truth, and return the sizes of the pictures.

    Raises DataError for one that cannot be used, and for a truth of the wrong size or too small to be scored.
    """
    infos = []
    for job in jobs:
        picture = UprightFile(job.picture)
        info = measure(picture.read())
        if task is not None and job.truth is not None:
            truth = UprightFile(job.truth)
            both: dict[Source, ImageInfo] = {picture: info, truth: measure(truth.read())}
            check_picture(Picture(job.picture.stem, truth, picture), both.__getitem__, task, None)
        infos.append(info)
    return infos


@dataclass(frozen=True)
class Restored:
    """The size in pixels of what a job has written, and with a truth the scores of the result and the baseline."""

    job: Job
    width: int
    height: int
    scores: tuple[Score, Score] | None = None


def restore_file(restorer: Restorer, job: Job, task: Task | None, on_piece: Callable[[int], None]) -> Restored:
    """Restore a picture and write the file, whole or not at all; raises DataError if it cannot be written."""
    picture = read_upright(job.picture)
    try:
        colours = restorer(picture.colours, on_piece)
    except BbcuError as error:
        raise type(error)(f"{job.picture}: {error}") from error
    alpha = picture.alpha if picture.alpha is None or restorer.scale == 1 else upscale(picture.alpha, restorer.scale)
    try:
        with replacing(job.output) as temporary:
            save_png(UprightPicture(colours, alpha, picture.profile), temporary)
    except OSError as error:
        raise DataError(f"{job.output}: cannot be written: {error.strerror or error}") from error
    height, width = colours.shape[:2]
    if task is None or job.truth is None:
        return Restored(job, width, height)
    return Restored(job, width, height, _scores(task, picture.colours, colours, read_upright(job.truth).colours))


def _scores(task: Task, input: Pixels, output: Pixels, truth: Pixels) -> tuple[Score, Score]:
    """Score the result and the baseline as the task does: on the luma, on RGB or on gray."""
    form = gray if task.colours == 1 else _as_rgb
    of_truth = form(crop_to_multiple(truth, task.scale))
    baseline = task.baseline(form(input))
    return task.score(form(output), of_truth), task.score(baseline, of_truth)


def _as_rgb(colours: Pixels) -> Pixels:
    return colours if colours.shape[2] == 3 else colours.repeat(3, axis=2)


# --- the command ------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Restore the pictures of ``python -m bbcu.restore``, and print a line for each."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    source = trained(options.source, options.align)
    task = None if options.truth is None else task_of(source)
    restorer = Restorer(source.network, options.device, options.tile, form_of(source.network, source.result))
    jobs = plan(options.pictures, options.out, options.truth, scale=restorer.scale, overwrite=options.overwrite)
    infos = check(jobs, task)
    for job, info in zip(jobs, infos, strict=True):
        if restorer.is_too_large(info.height, info.width):
            say(f"{job.picture}: restored in one piece, since the network has no finite radius, so memory may be short")
    _make_folder(options.out)
    done = []
    with progress_bar(source.name, sum(info.height * info.width for info in infos)) as advance:
        for job in jobs:
            done.append(restore_file(restorer, job, task, advance))
            say(line_of(done[-1], task))
    if task is not None and len(done) > 1:
        pairs = {str(one.job.picture): one.scores for one in done if one.scores is not None}
        ours, baseline = (mean_score({name: both[which] for name, both in pairs.items()}) for which in (0, 1))
        say(f"mean of {len(done)}: {_scored(ours, baseline, task)}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be written to")


def line_of(done: Restored, task: Task | None) -> str:
    """Return what is printed of a picture: its file, its size, and its score beside the baseline's."""
    text = f"{done.job.picture} -> {done.job.output}: {done.width} x {done.height} pixels"
    return text if task is None or done.scores is None else f"{text}; {_scored(*done.scores, task)}"


def _scored(score: Score, baseline: Score, task: Task) -> str:
    gain = difference(score.psnr_db, baseline.psnr_db)
    return (
        f"PSNR {score.psnr_db:.2f} dB, SSIM {score.ssim:.4f}; "
        f"{task.baseline_name} {baseline.psnr_db:.2f} dB, {baseline.ssim:.4f}; gain {gain:+.2f} dB"
    )
