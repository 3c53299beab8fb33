"""The patch pipeline: how many patches a second it draws, what opening a data set costs, and how much memory it takes.

    python -m benchmarks.data                                    # the bundled photographs
    python -m benchmarks.data --train DIR                        # pictures of your own
    python -m benchmarks.data --generate 800 --size 2040x1356    # as many generated pictures, in a temporary folder

Each figure is measured in a new process: the first starts with an empty cache of prepared data, the second with a full
one.
"""

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import interleaved, parse_arguments, parser_of, print_times, write_figures

ROUNDS, BATCHES = 7, 100
WAVES = 6
TASKS: dict[str, dict[str, Any]] = {
    "sr_x2": {"name": "sr_x2"},
    "denoise": {"name": "denoise", "sigma": 25, "train_sigma": [0, 75]},
    "jpeg": {"name": "jpeg", "quality": 10, "train_quality": [1, 50]},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--train", type=Path, help="a folder of pictures, in any layout that data.train takes")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="generate N pictures instead")
    parser.add_argument("--size", default="2040x1356", metavar="WIDTHxHEIGHT", help="of those (%(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--patch", type=int, default=32, help="side of an input patch in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="patches in a step (%(default)s)")
    options = parse_arguments(parser, arguments)
    print(f"batches of {options.batch} patches of {options.patch} x {options.patch} input pixels, one thread")
    figures = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        train = options.train
        if options.generate:
            train = Path(scratch) / "generated"
            generate(train, options.generate, *map(int, options.size.split("x")))
        for task in options.tasks:
            figures[task] = measure_task(task, train, Path(scratch) / "cache", options.patch, options.batch)
            print(task)
            print_times({cache: figure["batch_ms"] for cache, figure in figures[task].items()})
            for cache, figure in figures[task].items():
                print(
                    f"  {cache}: {figure['pictures']} pictures opened in {figure['open_s']:.2f} s,"
                    f" {figure['patches_per_s']:.0f} patches/s, largest memory {figure['memory_peak_mib']:.0f} MiB,"
                    f" {figure['memory_after_mib']['anonymous']:.0f} MiB of them its own afterwards",
                    flush=True,
                )
    write_figures(options.json, figures)


def generate(folder: Path, number: int, width: int, height: int) -> None:
    """Write pictures of a few waves, which compress like photographs: fast to make, and different from each other."""
    folder.mkdir(parents=True)
    rows, columns = np.ogrid[:height, :width]
    for index in range(number):
        generator = np.random.default_rng(index)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        for channel in range(3):
            down, across = (
                sum(np.sin(axis / length) for length in generator.uniform(2, 200, WAVES)) for axis in (rows, columns)
            )
            pixels[..., channel] = 127 + 10 * (down + across)
        Image.fromarray(pixels).save(folder / f"{index:04d}.png", compress_level=1)


def measure_task(task: str, train: Path | None, cache: Path, patch: int, batch: int) -> dict[str, Any]:
    """Open the data set in two processes, one after the other: the second finds the cache full."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        states = ("empty cache", "full cache")
        return {state: pool.apply(open_and_draw, (task, train, cache, patch, batch)) for state in states}


def open_and_draw(task_name: str, train: Path | None, cache: Path, patch: int, batch: int) -> dict[str, Any]:
    """Open the data set and draw batches from it, in this process: seconds, patches a second, memory in MiB."""
    from bbcu.data.pairs import prepare
    from bbcu.data.patches import PatchSampler
    from bbcu.data.sources import Pictures, embedded, find_pictures
    from bbcu.data.tasks import make_task

    task, before = make_task(TASKS[task_name]), memory()["anonymous"]
    start = time.perf_counter()
    pictures = embedded() if train is None else Pictures(find_pictures(train, "train"), {})
    data = prepare(pictures, task, patch, cache)
    opened = time.perf_counter() - start
    sampler = PatchSampler(
        data.train, task.scale, patch, batch, seed=0, degradation=task.degradation, release=data.release
    )
    steps = iter(range(ROUNDS * BATCHES))
    times = interleaved({"batch": lambda: [sampler.batch_at(next(steps)) for _ in range(BATCHES)]}, ROUNDS)
    batch_ms = [milliseconds / BATCHES for milliseconds in times["batch"]]
    return {
        "pictures": len(data.train),
        "open_s": opened,
        "patches_per_s": 1e3 * batch / statistics.median(batch_ms),
        "batch_ms": batch_ms,
        "memory_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "memory_before_mib": before,
        "memory_after_mib": memory(),
    }


def memory() -> dict[str, float]:
    """Return the memory of this process in MiB: its own, and mapped files, which the system can take back."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name}
    return {"anonymous": kib["RssAnon"] / 1024, "files": kib["RssFile"] / 1024}


if __name__ == "__main__":
    main()
