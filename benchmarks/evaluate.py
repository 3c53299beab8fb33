"""Measure how long a network takes to restore whole pictures, also with the released arithmetic and in tiles.

python -m benchmarks.evaluate
python -m benchmarks.evaluate --channels 64 --blocks 16 --size 512x512
"""

import argparse
import resource
from collections.abc import Callable, Sequence

import numpy as np
import torch

from bbcu.data.tasks import SuperResolution
from bbcu.model.int8 import missing_for_int8
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.training.acceleration import convolve_signs
from bbcu.training.evaluation import Evaluation, restore
from bbcu.training.loop import resolve_device
from benchmarks.common import interleaved, parse_arguments, parser_of, print_times, write_figures
from benchmarks.references import WrittenOut, rebuilt

SCALE = 2
TILE = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--size", default="512x512", metavar="WIDTHxHEIGHT", help="of the truth (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    options = parse_arguments(parser, arguments)
    torch.set_num_threads(options.threads)
    shape = f"{options.channels} channels, {options.blocks} blocks"
    print(f"x{SCALE} to {options.size}, {shape}, {options.threads} threads")
    times = measure(options)
    print_times(times)
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    write_figures(options.json, times)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the milliseconds per picture of each variant."""
    width, height = map(int, options.size.split("x"))
    truth = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    task, device = SuperResolution(SCALE), resolve_device(options.device)
    picture, truth = task.pair(truth)
    spec = NetworkSpec(SCALE, options.channels, options.blocks, align=130 * options.channels / 64)
    network, floats = (build("srresnet", spec, 0).to(device) for _ in range(2))
    if missing_for_int8(device) is None:
        convolve_signs(network, "int8")
    released = rebuilt("srresnet", spec, WrittenOut).to(device)
    output = restore(network, picture, device)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: restore(network, picture, device),
        "signs in floats": lambda: restore(floats, picture, device),
        "released arithmetic": lambda: restore(released, picture, device),
        f"tiles of {TILE}": lambda: restore(network, picture, device, Evaluation(tile=TILE)),
        "self-ensemble": lambda: restore(network, picture, device, Evaluation(self_ensemble=True)),
        "PSNR and SSIM": lambda: task.score(output, truth),
    }
    return interleaved(ways, options.rounds)


if __name__ == "__main__":
    main()
