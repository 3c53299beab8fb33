"""Run a trained network on whole pictures, and score its outputs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


Run = Callable[[Tensor], Tensor]
"""Maps (batch, colours, height, width) to ``scale`` times that size."""


def restore(
    network: nn.Module,
    picture: Input,
    device: torch.device,
    how: Evaluation | None = None,
    *,
    run: Run | None = None,
    on_piece: Callable[[int], None] = lambda pixels: None,
) -> Pixels:
    """Run ``network`` in evaluation mode and fp32 on one picture, and round its output.

    Takes (height, width, channels) on the scale of 0 to 255, returns uint8 of ``scale`` times that size. ``run`` is
    what runs the network, if not itself, and ``on_piece`` is called with the number of input pixels of each tile that
    is done, or of the whole picture. Raises TrainingDiverged if the output is not finite.
    """
    how, run = how or Evaluation(), run or network
    network.eval()
    with torch.inference_mode(), deterministic_fp32():
        batch = to_tensor(picture).unsqueeze(0).to(device)
        if how.self_ensemble:
            outputs = (
                _turned_back(_joined(_pieces(network, run, _turned(batch, turn), how.tile)), turn) for turn in range(8)
            )
            # A generator, so that only the sum and one output are in memory.
            restored = _rounded(sum(outputs, next(outputs)) / 8)
            on_piece(picture.shape[0] * picture.shape[1])
            return restored
        # Rounded piece by piece: in floating point a large picture takes several times the memory.
        rows = _pieces(network, run, batch, how.tile, on_piece)
        return np.concatenate([np.concatenate([_rounded(piece) for piece in row], axis=1) for row in rows])


def _rounded(output: Tensor) -> Pixels:
    """Round (1, channels, height, width) to a picture; raises TrainingDiverged if it is not finite."""
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
    return _joined(_pieces(network, network, batch, tile))


def _joined(rows: Iterable[Iterable[Tensor]]) -> Tensor:
    return torch.cat([torch.cat(list(row), dim=3) for row in rows], dim=2)


def _pieces(
    network: nn.Module, run: Run, batch: Tensor, tile: int, on_piece: Callable[[int], None] = lambda pixels: None
) -> Iterator[Iterator[Tensor]]:
    """Run (1, channels, height, width) in tiles if it is larger than ``tile``: yield the rows of the outputs."""
    height, width = batch.shape[2:]
    if not tile or max(height, width) <= tile:
        spans = [(0, height, 0, height)], [(0, width, 0, width)]
    else:
        radius, grid = radius_of(network), getattr(network, "grid", 1)
        spans = list(_spans(height, tile, radius, grid)), list(_spans(width, tile, radius, grid))

    def piece(rows: Span, columns: Span) -> Tensor:
        (top, bottom, first_row, last_row), (left, right, first_column, last_column) = rows, columns
        part = batch[:, :, top:bottom, left:right]
        restored = run(part.contiguous(memory_format=torch.channels_last))
        on_piece((last_row - first_row) * (last_column - first_column))
        scale = restored.shape[2] // part.shape[2]
        used_rows = slice((first_row - top) * scale, (last_row - top) * scale)
        return restored[:, :, used_rows, slice((first_column - left) * scale, (last_column - left) * scale)]

    for rows in spans[0]:
        yield (piece(rows, columns) for columns in spans[1])


def radius_of(network: nn.Module, key: str = "evaluation.tile") -> int:
    """Return the radius of the receptive field in input pixels.

    Raises ConfigError for a network without the property ``radius``, and for one whose radius is None, since a part of
    it averages over the picture; ``key`` is what asked for tiles.
    """
    radius = getattr(network, "radius", 0)
    if radius is None:
        raise ConfigError(f"{key}: a part of this network averages over the whole picture, so it has no tiles")
    if not isinstance(radius, int) or not hasattr(network, "radius"):
        raise ConfigError(
            f"{key}: {type(network).__name__} must have a property radius, "
            "the radius of its receptive field in input pixels"
        )
    return radius


Span = tuple[int, int, int, int]
"""The (start, end) of the input of a tile along an axis, and the (first, last) of it that is used of the output."""


def _spans(size: int, tile: int, radius: int, grid: int) -> Iterator[Span]:
    """Divide an axis into tiles.

    Each starts at a multiple of ``grid``, so that a network that halves the size halves the same pairs of pixels.
    """
    for first in range(0, size, tile):
        last = min(first + tile, size)
        yield max(0, first - radius) // grid * grid, min(size, last + radius), first, last


def evaluate(
    network: nn.Module,
    sets: Mapping[str, Iterable[Pair]],
    task: Task,
    device: torch.device,
    how: Evaluation | None = None,
    on_picture: Callable[[str, Pair, Pixels], None] | None = None,
    run: Run | None = None,
) -> dict[str, dict[str, Score]]:
    """Score ``network`` on every picture of every set, in the task's metrics: set name -> picture name -> score.

    ``on_picture(set name, pair, output)`` is called for every output. ``run`` is what runs the network, if not itself.
    """
    scores: dict[str, dict[str, Score]] = {}
    for set_name, pairs in sets.items():
        scores[set_name] = {}
        for pair in pairs:
            output = restore(network, pair.input, device, how, run=run)
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


def picture_record(score: Score) -> dict[str, float]:
    """The score of a picture as it is recorded: dB to six decimals, others to eight."""
    others = {name: round(value, 6 if name.endswith("_db") else 8) for name, value in score.others.items()}
    return {"psnr_db": round(score.psnr_db, 6), "ssim": round(score.ssim, 8), **others}


def mean_record(scores: Mapping[str, Score]) -> dict[str, float]:
    """The mean over the pictures of a set as it is recorded."""
    return picture_record(mean_score(scores))


def score_record(scores: Mapping[str, Score]) -> dict[str, Any]:
    """The scores of a test set in ``result.json``: the mean and each picture's."""
    return {**mean_record(scores), "images": {name: picture_record(score) for name, score in scores.items()}}


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
