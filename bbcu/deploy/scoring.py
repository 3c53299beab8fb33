"""Score a trained network on named sets of pictures by the protocol of its task, as a trial does after its training."""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bbcu.data.downloads import DOWNLOAD_OF_SET
from bbcu.data.images import Pixels
from bbcu.data.pairs import Pair, check_picture
from bbcu.data.sources import EMBEDDED_SET, ImageInfoCache, Pictures, embedded, folder
from bbcu.data.tasks import TASKS, ArtifactReduction, Denoising, Score, Task, make_task
from bbcu.deploy.backends import exact_runner
from bbcu.deploy.packed import DeployError, packed_units
from bbcu.deploy.sources import Source, as_trained, trained
from bbcu.errors import ConfigError, DataError, unknown
from bbcu.model.parts import NetworkSpec
from bbcu.terminal import progress_bar, say
from bbcu.training.evaluation import Evaluation, evaluate, mean_record, score_record
from bbcu.training.loop import resolve_device

CPU = torch.device("cpu")

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    Denoising.name: {"sigma": [15, 25, 50], "train_sigma": [0, 75]},
    ArtifactReduction.name: {"quality": [10, 20, 30, 40], "train_quality": [1, 50]},
}
"""The strengths of the paper's tests, and those of its training."""


# --- the task ---------------------------------------------------------------------------------------------------------


def task_of(source: Source, name: str | None = None, strengths: Mapping[str, Any] | None = None) -> Task:
    """Return the task that a network was trained for, with other ``strengths`` of its tests if they are given.

    That of a trial is recorded. Otherwise a network that enlarges is for super-resolution, one of colour pictures for
    denoising and one of gray pictures for JPEG artifacts; ``name`` is another task for pictures of these channels.
    Raises ConfigError for a task of another scale or of other channels, and for strengths that it does not have.
    """
    recorded: dict[str, Any] = dict(source.result["setting"]["task"]) if source.result else {"name": _implied(source)}
    name = name or recorded["name"]
    base = recorded if name == recorded["name"] else {"name": name}
    task = make_task({**PUBLISHED.get(name, {}), **base, **(strengths or {})})
    scale, colours = form_of(source.network, source.result)
    if (task.scale, task.colours) != (scale, colours):
        kind = "gray" if colours == 1 else "colour"
        size = f"enlarges {kind} pictures by {scale}" if scale > 1 else f"restores {kind} pictures of the same size"
        raise ConfigError(f"task {name}: {source.name} {size}; its task: {recorded['name']}")
    return task


def form_of(network: nn.Module, result: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Return the scale and the channels of a network, which the ``result`` of its trial says if it has no ``spec``.

    Raises ConfigError if it has neither.
    """
    if result:
        task = make_task(result["setting"]["task"])
        return task.scale, task.colours
    spec = getattr(network, "spec", None)
    if not isinstance(spec, NetworkSpec):
        raise ConfigError(f"{type(network).__name__}: a network of your own that has no spec")
    return spec.scale, spec.colours


def _implied(source: Source) -> str:
    scale, colours = form_of(source.network, source.result)
    name = f"sr_x{scale}" if scale > 1 else {1: ArtifactReduction.name, 3: Denoising.name}.get(colours, "")
    if name not in TASKS:
        raise ConfigError(f"{source.name}: no task enlarges pictures of {colours} channels by {scale}")
    return name


def device_for(network: nn.Module, name: str) -> torch.device:
    """Return the device called ``name``, where "auto" is the CPU for a packed network, which runs nowhere else.

    Raises ConfigError for another device for that, and BbcuError for a device that is not available.
    """
    if not packed_units(network):
        return resolve_device(name)
    if name not in ("auto", "cpu"):
        raise ConfigError(f"device={name}: a packed network runs on the CPU only")
    return CPU


# --- the sets ---------------------------------------------------------------------------------------------------------


def find_sets(given: Sequence[str], place: Path, scale: int | None = None) -> Pictures:
    """Find sets: ``NAME=DIR``, ``embedded``, or the name of one that ``python -m bbcu.data fetch`` put into ``place``.

    With a ``scale``, the user's inputs of that scale are used. Raises ConfigError for an unknown name and for one that
    is given twice, and DataError, with the path, for a folder that cannot be used.
    """
    folders: dict[str, Path] = {}
    with_embedded = False
    for text in given:
        name, equals, path = text.partition("=")
        if name in folders or (name == EMBEDDED_SET and with_embedded):
            raise ConfigError(f"{name}: the set is given twice")
        if equals:
            folders[name] = Path(path)
        elif name == EMBEDDED_SET:
            with_embedded = True
        else:
            folders[name] = _fetched(name, place)
    found = folder(None, folders, scale)
    if not with_embedded:
        return found
    if scale is not None:
        raise ConfigError(f"{EMBEDDED_SET}: has no inputs of its own")
    return Pictures((), {**embedded().test, **found.test})


def _fetched(name: str, place: Path) -> Path:
    """Return the folder of a public set below ``place``; raises ConfigError or DataError if it is not there."""
    if name not in DOWNLOAD_OF_SET:
        raise ConfigError(f"{unknown('set', name, [EMBEDDED_SET, *DOWNLOAD_OF_SET])}; or give {name}=DIR")
    download = DOWNLOAD_OF_SET[name]
    path = place / download.folder / (name if name in download.sets else "")
    if not os.path.isdir(path):
        raise DataError(f"{path}: does not exist; python -m bbcu.data fetch {name} fetches it, or give {name}=DIR")
    return path / "test" if os.path.isdir(path / "test") else path


# --- scoring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetScores:
    """The scores of a test set by picture: the network's and the baseline's."""

    network: Mapping[str, Score]
    baseline: Mapping[str, Score]


def score_sets(
    network: nn.Module,
    pictures: Pictures,
    task: Task,
    device: torch.device = CPU,
    how: Evaluation | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> dict[str, SetScores]:
    """Score a network on every test set, at every strength of the task, as the last step of a training does.

    All pictures are checked first, and then made, restored and scored one at a time. ``on_picture`` is called after
    each. Raises DataError for a picture that cannot be read or is too small to be scored.
    """
    infos = ImageInfoCache(None)
    for some in pictures.test.values():
        for picture in some:
            check_picture(picture, infos.info, task, None)
    baseline: dict[str, dict[str, Score]] = {}

    def pairs(name: str, level: str) -> Iterator[Pair]:
        baseline[name + level] = {}
        for picture in pictures.test[name]:
            given = None if picture.input is None else picture.input.read()
            input, truth = task.test_pair(picture.truth.read(), level, given)
            baseline[name + level][picture.name] = task.score(task.baseline(input), truth)
            yield Pair(picture.name, input, truth)

    def done(name: str, pair: Pair, restored: Pixels) -> None:
        on_picture()

    sets = {name + level: pairs(name, level) for name in pictures.test for level in task.levels}
    network = as_trained(network, device)
    scores = evaluate(network, sets, task, device, how, done, exact_runner(network, device))
    return {name: SetScores(scores[name], baseline[name]) for name in scores}


# --- the command ------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Print the table of ``python -m bbcu.evaluate``, or JSON."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    source = trained(options.source, options.align)
    strengths = {key: list(value) for key in ("sigma", "quality") if (value := getattr(options, key)) is not None}
    task = task_of(source, options.task, strengths)
    if options.inputs == "given" and task.degradation is not None:
        raise ConfigError(f"--inputs given: {task.name} makes its inputs from the pictures")
    device = device_for(source.network, options.device)
    given = options.sets or _own_sets(source)
    pictures = find_sets(given, options.data, task.scale if options.inputs == "given" else None)
    how = evaluation_of(source)
    total = len(task.levels) * sum(map(len, pictures.test.values()))
    with progress_bar(source.name, total) as advance:
        scores = score_sets(source.network, pictures, task, device, how, lambda: advance(1))
    if options.json:
        say(json.dumps(document(source.name, task, scores), indent=1))
    else:
        say(table(source.name, task, scores))


def _own_sets(source: Source) -> list[str]:
    """The names of the sets that a trial was scored on, without a strength; those of a checkpoint are the bundled."""
    if not source.result:
        return [EMBEDDED_SET]
    metrics, level = source.result.get("metrics"), make_task(source.result["setting"]["task"]).levels[0]
    if not isinstance(metrics, dict):
        raise DeployError(f"{source.name}: its result has no scores; name the sets")
    return [name.removesuffix(level) for name in metrics if name.endswith(level)]


def evaluation_of(source: Source) -> Evaluation:
    """How the trial was scored; tiles change nothing, so they are not recorded."""
    recorded = source.result["setting"].get("evaluation") if source.result else None
    return Evaluation(self_ensemble=isinstance(recorded, dict) and recorded.get("self_ensemble") is True)


def document(name: str, task: Task, scores: Mapping[str, SetScores]) -> dict[str, Any]:
    """The scores under the names, and with the digits, of a ``result.json``; null for what is not finite."""
    found = {
        "network": name,
        "task": task.parameters(),
        "metrics": {name: score_record(one.network) for name, one in scores.items()},
        "baseline": {name: mean_record(one.baseline) for name, one in scores.items()},
    }
    return {key: _finite(value) for key, value in found.items()}


def _finite(value: Any) -> Any:
    """Replace infinity, the PSNR of equal pictures, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def difference(score: float, other: float) -> float:
    """Return how much more a score is; two that are infinite, of pictures equal to the truth, differ by 0."""
    return 0.0 if score == other else score - other


COLUMNS = {"psnr_db": 2, "ssim": 4}
"""The columns of the table, with their decimals."""


def table(name: str, task: Task, scores: Mapping[str, SetScores]) -> str:
    """A line for each set: the scores of the network, those of the baseline, and the difference."""
    rows: list[tuple[str, ...]] = [
        ("set", "pictures", "PSNR (dB)", "SSIM", task.baseline_name, "SSIM", "gain (dB)", "SSIM")
    ]
    for set_name, one in scores.items():
        ours, simple = mean_record(one.network), mean_record(one.baseline)
        figures = [f"{record[key]:.{digits}f}" for record in (ours, simple) for key, digits in COLUMNS.items()]
        gains = [f"{difference(ours[key], simple[key]):+.{digits}f}" for key, digits in COLUMNS.items()]
        rows.append((set_name, str(len(one.network)), *figures, *gains))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{name}, {task.name}"]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
