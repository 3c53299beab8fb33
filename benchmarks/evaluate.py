"""Measure how long a network takes to restore pictures: packed, as it trains, in tiles.

python -m benchmarks.evaluate
python -m benchmarks.evaluate --network dncnn --blocks 9 --size 480x320
"""

import argparse
import resource
from collections.abc import Callable, Sequence

import numpy as np
import torch

from bbcu.data.tasks import Denoising, SuperResolution, Task
from bbcu.deploy.backends import exact_runner
from bbcu.model.int8 import missing_for_int8
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.training.acceleration import convolve_signs
from bbcu.training.evaluation import Evaluation, restore
from bbcu.training.loop import resolve_device
from benchmarks.common import interleaved, parse_arguments, parser_of, print_times, write_figures
from benchmarks.references import WrittenOut, rebuilt

SCALE, SIGMA = 2, 25
TILE = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--network", choices=["srresnet", "dncnn"], default="srresnet", help="for x2, or for noise")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--size", default="512x512", metavar="WIDTHxHEIGHT", help="of the truth (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    options = parse_arguments(parser, arguments)
    torch.set_num_threads(options.threads)
    shape = f"{options.channels} channels, {options.blocks} blocks"
    print(f"{options.network} to {options.size}, {shape}, {options.threads} threads")
    times = measure(options)
    print_times(times)
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    write_figures(options.json, times)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the milliseconds per picture of each variant."""
    width, height = map(int, options.size.split("x"))
    truth = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    task: Task = SuperResolution(SCALE) if options.network == "srresnet" else Denoising((SIGMA,), (0, 75))
    device = resolve_device(options.device)
    picture, truth = task.test_pair(truth, next(iter(task.levels), ""))
    spec = NetworkSpec(task.scale, options.channels, options.blocks, align=130 * options.channels / 64)
    network, floats = (build(options.network, spec, 0).to(device) for _ in range(2))
    if missing_for_int8(device) is None:
        convolve_signs(network, "int8")
    released = rebuilt(options.network, spec, WrittenOut).to(device)
    packed = exact_runner(network, device)
    output = restore(network, picture, device)
    ways: dict[str, Callable[[], object]] = {
        "as it trains": lambda: restore(network, picture, device),
        "signs in floats": lambda: restore(floats, picture, device),
        "released arithmetic": lambda: restore(released, picture, device),
        f"tiles of {TILE}": lambda: restore(network, picture, device, Evaluation(tile=TILE)),
        "self-ensemble": lambda: restore(network, picture, device, Evaluation(self_ensemble=True)),
        "PSNR and SSIM": lambda: task.score(output, truth),
    }
    if packed is not None:  # it is None on a GPU and without a compiler
        ways = {"packed": lambda: restore(network, picture, device, run=packed), **ways}
    return interleaved(ways, options.rounds)


if __name__ == "__main__":
    main()
