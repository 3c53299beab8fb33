"""Compare the PSNR after fast training with that after plain full precision: paired differences with their interval.

    python -m benchmarks.numerics --train DATA/BSDS400 --test DATA/Set5
    python -m benchmarks.numerics --seeds 8            # on the bundled photographs

Each seed trains one network three ways: fast (bf16 and compiled where the machine can), in plain full precision, and
in plain full precision from first weights moved by one part in a million. The third shows the effect of
rounding alone; only a larger difference is due to the fast path.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from analysis.statistics.estimates import estimate
from bbcu.data.pairs import PreparedData, prepare
from bbcu.data.patches import PatchSampler
from bbcu.data.sources import embedded, folder
from bbcu.data.tasks import SuperResolution
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.training.evaluation import evaluate, mean_score
from bbcu.training.loop import Training, resolve_device
from bbcu.training.settings import TrainSettings
from benchmarks.common import parse_arguments, parser_of, write_figures

SCALE = 2
MARGIN_DB = 0.05
MOVED = 1e-6


@dataclasses.dataclass(frozen=True)
class Way:
    """How a network is trained; ``moved`` multiplies its first weights."""

    settings: TrainSettings
    moved: float = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and print; exits with status 1 if the interval of the fast path exceeds the margin."""
    parser = parser_of(__doc__)
    parser.add_argument("--train", type=Path, help="a folder of training pictures; needs --test too")
    parser.add_argument("--test", type=Path, help="a folder of test pictures")
    parser.add_argument("--without-rounding", action="store_true", help="leave out the third way")
    parser.add_argument("--device", default="auto")
    for name, default in (("seeds", 3), ("first-seed", 0), ("steps", 600), ("patch", 24), ("channels", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parse_arguments(parser, arguments)
    torch.set_num_threads(options.threads)
    plain = TrainSettings(options.steps, 16, options.patch, 1e-3, "cosine", "fp32", compile=False)
    ways = {"plain": Way(plain), "fast": Way(dataclasses.replace(plain, precision="auto", compile=True))}
    if not options.without_rounding:
        ways["rounding"] = Way(plain, 1 + MOVED)
    scores: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=options.scratch) as cache:
        pictures = folder(options.train, {options.test.name: options.test}) if options.test else embedded()
        data = prepare(pictures, SuperResolution(SCALE), options.patch, Path(cache))
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for name, way in ways.items():
                scores[name].append(psnr_of(way, seed, data, options))
                print(f"seed {seed} {name:9s} {scores[name][-1]:.4f} dB", flush=True)
    base = scores["plain"]
    estimates = {
        name: estimate([score - other for score, other in zip(scores[name], base, strict=True)])
        for name in ways
        if name != "plain"
    }
    for name, difference in estimates.items():
        interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
        print(f"{name} - plain: {difference.mean:+.4f} dB {interval}, n = {difference.n}")
    differences = {name: dataclasses.asdict(difference) for name, difference in estimates.items()}
    write_figures(options.json, {"psnr_db": scores, "differences": differences})
    if not -MARGIN_DB <= estimates["fast"].low <= estimates["fast"].high <= MARGIN_DB:
        sys.exit(f"the interval of the fast path is not within {MARGIN_DB} dB")


def psnr_of(way: Way, seed: int, data: PreparedData, options: argparse.Namespace) -> float:
    """Return the mean PSNR in dB over the test sets after a training of ``seed`` this way."""
    device = resolve_device(options.device)
    spec = NetworkSpec(SCALE, options.channels, options.blocks, align=130 * options.channels / 64)
    network = build("srresnet", spec, seed)
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(way.moved)
    sampler = PatchSampler(data.train, SCALE, options.patch, way.settings.batch, seed, release=data.release)
    Training(network, sampler, way.settings, device).run(lambda report: None)
    sets = evaluate(network, data.test, data.task, device).values()
    return sum(mean_score(scores).psnr_db for scores in sets) / len(data.test)


if __name__ == "__main__":
    main()
