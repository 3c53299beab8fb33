"""The user's own metrics of a trained network, scored from its checkpoint once its result is written.

So a metric that fails costs no training, and a trial that finished without a metric, or with one whose module has
changed since, gets it in the same way. The task's baseline is scored too.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablations.config import Config
from ablations.storage.folder import TrialFolder
from ablations.trial.identity import Trial, network_of, trains
from ablations.trial.provenance import fingerprint_of_own

if TYPE_CHECKING:
    import torch

    from bbcu.data.images import Pixels
    from bbcu.data.pairs import Pair, PreparedData
    from bbcu.training.evaluation import Metric

DIGITS = 8
"""Decimals of a metric in a result."""


def lacks_metrics(result: Mapping[str, Any], config: Config) -> bool:
    """Return whether a metric was asked for that a result lacks, or has from other code of its module."""
    scored_with = result["provenance"].get("metrics", {})
    return any(scored_with.get(path) != fingerprint_of_own(path) for path in config.evaluation.metrics)


def scored(
    config: Config,
    trial: Trial,
    folder: TrialFolder,
    data: "PreparedData",
    result: Mapping[str, Any],
    on_picture: Callable[[], None],
) -> dict[str, Any]:
    """Return a result with the user's metrics of every test picture, their means, and those of the baseline.

    ``on_picture`` is called before each picture. Raises DamagedFile for a checkpoint that the result was not written
    with, and ConfigError for a metric that fails.
    """
    from bbcu.data.tasks import within
    from bbcu.training.evaluation import metric_name, own_metrics, own_score
    from bbcu.training.loop import resolve_device

    paths = config.evaluation.metrics
    by_name = own_metrics(paths, data.task.colours)
    own = dict(zip(paths, by_name.values(), strict=True))
    restored_by = _restorer(config, trial, folder, resolve_device(config.device)) if trains(config) else None
    found: dict[str, dict[str, Any]] = {group: dict(result[group]) for group in ("metrics", "baseline")}
    for name, pairs in data.test.items():
        of_network, of_baseline = {}, {}
        for pair in pairs:
            on_picture()
            truth, simple = within(pair.truth, data.task.border), data.task.baseline(pair.input)
            of_baseline[pair.name] = _scores(own, within(simple, data.task.border), truth, own_score)
            restored = simple if restored_by is None else restored_by(pair)
            of_network[pair.name] = _scores(own, within(restored, data.task.border), truth, own_score)
        images = result["metrics"][name]["images"]
        with_own = {picture: {**score, **of_network[picture]} for picture, score in images.items()}
        found["metrics"][name] = {**result["metrics"][name], **_means(of_network), "images": with_own}
        found["baseline"][name] = {**result["baseline"][name], **_means(of_baseline)}
    earlier = result["provenance"].get("metrics", {})
    kept = {path: code for path, code in earlier.items() if metric_name(path) not in by_name}
    scored_with = {**kept, **{path: fingerprint_of_own(path) for path in paths}}
    return {**result, **found, "provenance": {**result["provenance"], "metrics": scored_with}}


def _restorer(config: Config, trial: Trial, folder: TrialFolder, device: "torch.device") -> "Callable[[Pair], Pixels]":
    """Return a function that restores the input of a pair with the network in the trial's checkpoint."""
    import torch

    from bbcu.training.evaluation import Evaluation, restore

    folder.check_checkpoint()
    network = network_of(trial)
    network.load_state_dict(torch.load(folder.checkpoint_path, map_location="cpu", weights_only=True))
    network.to(device)
    how = Evaluation(config.evaluation.self_ensemble, config.evaluation.tile)
    return lambda pair: restore(network, pair.input, device, how)


def _scores(
    own: "Mapping[str, Metric]",
    restored: "Pixels",
    truth: "Pixels",
    score: "Callable[[str, Metric, Pixels, Pixels], float]",
) -> dict[str, float]:
    return {
        path.rpartition(".")[2]: round(score(path, metric, restored, truth), DIGITS) for path, metric in own.items()
    }


def _means(of_pictures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    scores: Sequence[Mapping[str, float]] = list(of_pictures.values())
    return {name: round(statistics.fmean(score[name] for score in scores), DIGITS) for name in scores[0]}
