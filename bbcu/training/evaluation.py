"""Run a trained network on whole pictures, and score its outputs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bbcu.data.images import Pixels, to_image, to_tensor
from bbcu.data.pairs import Pair
from bbcu.data.tasks import PSNR_RGB, Input, Score, Task
from bbcu.errors import ConfigError, shown
from bbcu.model.registry import errors_of_own, imported, is_dotted
from bbcu.training.acceleration import deterministic_fp32
from bbcu.training.loop import TrainingDiverged


@dataclass(frozen=True)
class Evaluation:
    """How a network is run on whole pictures.

    ``self_ensemble`` averages the outputs for the 8 symmetries of the input, each turned back, before rounding: some
    tenths of a dB for 8 times the work (Timofte et al., Seven Ways to Improve Example-Based Single Image Super
    Resolution, CVPR 2016). ``tile`` is the largest side in input pixels that is run at once, 0 for the whole picture.
    Tiles overlap by the receptive field, and begin at multiples of the network's ``grid`` if it has one, so they change
    only the order in which numbers are added. That can flip the sign of a value exactly at a threshold, which is common
    without learnt thresholds, so tiles are off by default.
    """

    self_ensemble: bool = False
    tile: int = 0


def restore(network: nn.Module, picture: Input, device: torch.device, how: Evaluation | None = None) -> Pixels:
    """Run ``network`` in evaluation mode and fp32 on one picture, and round its output.

    Takes (height, width, channels) on the scale of 0 to 255, returns uint8 of ``scale`` times that size. Raises
    TrainingDiverged if the output is not finite.
    """
    how = how or Evaluation()
    network.eval()
    with torch.inference_mode(), deterministic_fp32():
        batch = to_tensor(picture).unsqueeze(0).to(device)
        symmetries = range(8) if how.self_ensemble else range(1)
        outputs = (_turned_back(_run(network, _turned(batch, turn), how.tile), turn) for turn in symmetries)
        # A generator, so that only the sum and one output are in memory.
        output = sum(outputs, next(outputs)) / len(symmetries)
        if not torch.isfinite(output).all():
            raise TrainingDiverged("the network's output holds nan or inf")
        return to_image(output[0])


def _turned(batch: Tensor, turn: int) -> Tensor:
    """Show (batch, channels, height, width) in one of the 8 symmetries: quarter turns, then a flip."""
    turned = torch.rot90(batch, turn % 4, (2, 3))
    return turned.flip(3) if turn >= 4 else turned


def _turned_back(batch: Tensor, turn: int) -> Tensor:
    upright = batch.flip(3) if turn >= 4 else batch
    return torch.rot90(upright, -(turn % 4), (2, 3))


def _run(network: nn.Module, batch: Tensor, tile: int) -> Tensor:
    """Run (1, channels, height, width), in tiles if it is larger than ``tile``."""
    height, width = batch.shape[2:]
    if not tile or max(height, width) <= tile:
        output: Tensor = network(batch.contiguous(memory_format=torch.channels_last))
        return output
    radius, grid = radius_of(network), getattr(network, "grid", 1)
    rows = []
    for top, bottom, first_row, last_row in _spans(height, tile, radius, grid):
        tiles = []
        for left, right, first_column, last_column in _spans(width, tile, radius, grid):
            part = batch[:, :, top:bottom, left:right]
            restored = network(part.contiguous(memory_format=torch.channels_last))
            scale = restored.shape[2] // part.shape[2]
            tiles.append(
                restored[
                    :,
                    :,
                    (first_row - top) * scale : (last_row - top) * scale,
                    (first_column - left) * scale : (last_column - left) * scale,
                ]
            )
        rows.append(torch.cat(tiles, dim=3))
    return torch.cat(rows, dim=2)


def radius_of(network: nn.Module) -> int:
    """Return the radius of the receptive field in input pixels.

    Raises ConfigError for a network without the property ``radius``, and for one whose radius is None, since a part of
    it averages over the picture.
    """
    radius = getattr(network, "radius", 0)
    if radius is None:
        raise ConfigError("evaluation.tile: a part of this network averages over the whole picture, so it has no tiles")
    if not isinstance(radius, int) or not hasattr(network, "radius"):
        raise ConfigError(
            f"evaluation.tile: {type(network).__name__} must have a property radius, "
            "the radius of its receptive field in input pixels"
        )
    return radius


def _spans(size: int, tile: int, radius: int, grid: int) -> Iterator[tuple[int, int, int, int]]:
    """Divide an axis into tiles: yield (start, end) of the input of each, and (first, last) of the output to use.

    Each starts at a multiple of ``grid``, so that a network that halves the size halves the same pairs of pixels.
    """
    for first in range(0, size, tile):
        last = min(first + tile, size)
        yield max(0, first - radius) // grid * grid, min(size, last + radius), first, last


def evaluate(
    network: nn.Module,
    sets: Mapping[str, Sequence[Pair]],
    task: Task,
    device: torch.device,
    how: Evaluation | None = None,
    on_picture: Callable[[str, Pair, Pixels], None] | None = None,
) -> dict[str, dict[str, Score]]:
    """Score ``network`` on every picture of every set, in the task's metrics: set name -> picture name -> score.

    ``on_picture(set name, pair, output)`` is called for every output.
    """
    scores: dict[str, dict[str, Score]] = {}
    for set_name, pairs in sets.items():
        scores[set_name] = {}
        for pair in pairs:
            output = restore(network, pair.input, device, how)
            scores[set_name][pair.name] = task.score(output, pair.truth)
            if on_picture is not None:
                on_picture(set_name, pair, output)
    return scores


def mean_score(scores: Mapping[str, Score]) -> Score:
    """Return the mean over the pictures of a set, as the field computes it: of the dB, not of the errors."""
    names = next(iter(scores.values())).others
    return Score(
        psnr_db=float(np.mean([score.psnr_db for score in scores.values()])),
        ssim=float(np.mean([score.ssim for score in scores.values()])),
        others={name: float(np.mean([score.others[name] for score in scores.values()])) for name in names},
    )


# --- metrics of the user's own ----------------------------------------------------------------------------------------

METRICS_KEY = "evaluation.metrics"

OUR_METRICS = ("psnr_db", "ssim", PSNR_RGB, "images")
"""Names in the scores of a result that no metric of the user's can have."""

Metric = Callable[[Pixels, Pixels], float]
"""Compares a restored picture with the truth, both uint8 (height, width, channels) without the task's border."""

PROBED_SIDE = 64
"""Height and width of the two pictures that a metric of the user's is tried on, in pixels."""


def metric_name(path: str) -> str:
    """Return the name that a metric is recorded under: the last part of its dotted path."""
    return path.rpartition(".")[2]


def own_metrics(paths: Sequence[str], colours: int) -> dict[str, Metric]:
    """Return the user's metrics by their names, each tried once on two pictures of ``colours`` channels.

    A path is that of a function of (restored, truth), or of a class whose instances are such functions. Raises
    ConfigError for a path that cannot be imported, for two metrics of one name or with the name of one of ours, and for
    a metric that raises an error or does not return a finite number.
    """
    found: dict[str, Metric] = {}
    for path in paths:
        wanted = f"{METRICS_KEY}={shown(path)}: must be a function of (restored, truth), or a class of such functions"
        if not is_dotted(path):
            raise ConfigError(f"{wanted}, by its dotted path")
        name = metric_name(path)
        if name in found or name in OUR_METRICS:
            raise ConfigError(f"{METRICS_KEY}={shown(path)}: there is a metric of the name {name} already")
        part = imported(METRICS_KEY, path, wanted)
        if isinstance(part, type):
            with errors_of_own(METRICS_KEY, path):
                part = part()
        if not callable(part):
            raise ConfigError(f"{wanted}, and {shown(name)} is a {type(part).__name__}")
        found[name] = part
        draw = np.random.default_rng(0)
        first, second = draw.integers(0, 256, (2, PROBED_SIDE, PROBED_SIDE, colours), dtype=np.uint8)
        own_score(path, part, first, second)
    return found


def own_score(path: str, metric: Metric, restored: Pixels, truth: Pixels) -> float:
    """Return what a user's metric measures; raises ConfigError if it raises an error or returns no finite number."""
    with errors_of_own(METRICS_KEY, path):
        value = metric(restored, truth)
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{METRICS_KEY}={shown(path)}: must return a finite number, and returned {shown(str(value))}")
    return number
