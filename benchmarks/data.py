"""The patch pipeline: how many patches a second it draws, what opening a data set costs, and how much memory it takes.

    python -m benchmarks.data                                    # the photographs that come along
    python -m benchmarks.data --train DIR                        # pictures of your own
    python -m benchmarks.data --generate 800 --size 2040x1356    # as many generated pictures, in a temporary folder

Each figure comes from a process of its own: the first opens the data set cold, the second finds it prepared.
"""

import argparse
import json
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

ROUNDS, BATCHES = 7, 100
WAVES = 6
MEBIBYTE = 2**20
TASKS: dict[str, dict[str, Any]] = {
    "sr_x2": {"name": "sr_x2"},
    "denoise": {"name": "denoise", "sigma": 25, "train_sigma": [0, 75]},
    "jpeg": {"name": "jpeg", "quality": 10, "train_quality": [1, 50]},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; with ``--json`` write the same for machines."""
    given = command_line().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        train = given.train
        if given.generate:
            train = Path(scratch) / "generated"
            generate(train, given.generate, *map(int, given.size.split("x")))
        figures = {
            task: measure_task(task, train, Path(scratch) / "cache", given.patch, given.batch) for task in given.tasks
        }
    print_figures(figures, given)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="a folder of pictures, in any layout that data.train takes")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="generate N pictures instead")
    parser.add_argument("--size", default="2040x1356", metavar="WIDTHxHEIGHT", help="of those (%(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--patch", type=int, default=32, help="side of an input patch in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="patches a step (%(default)s)")
    parser.add_argument("--scratch", type=Path, help="where temporary files go; they may be large")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


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
    """What two processes, one after the other, say of one task."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        cold, warm = (pool.apply(open_and_draw, (task, train, cache, patch, batch)) for _ in range(2))
    return {"cold": cold, "warm": warm}


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
    rates = []
    for first in range(0, ROUNDS * BATCHES, BATCHES):
        start = time.perf_counter()
        for step in range(first, first + BATCHES):
            sampler.batch_at(step)
        rates.append(BATCHES * batch / (time.perf_counter() - start))
    return {
        "pictures": len(data.train),
        "open_s": opened,
        "patches_per_s": statistics.median(rates),
        "patches_per_s_range": [min(rates), max(rates)],
        "milliseconds_per_batch": 1e3 * batch / statistics.median(rates),
        "memory_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "memory_before_mib": before,
        "memory_after_mib": memory(),
    }


def memory() -> dict[str, float]:
    """What this process holds, in MiB: memory of its own, and mapped files, which the system takes back if need be."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name}
    return {"anonymous": kib["RssAnon"] / 1024, "files": kib["RssFile"] / 1024}


def print_figures(figures: dict[str, Any], given: argparse.Namespace) -> None:
    """Print one line for each task and process."""
    print(
        f"batches of {given.batch} patches of {given.patch} x {given.patch} input pixels, one process, one thread of it"
    )
    print("task     pictures        open s   patches/s (lowest to highest)    ms/batch   peak MiB   own MiB after")
    for task, processes in figures.items():
        for name, found in processes.items():
            low, high = found["patches_per_s_range"]
            print(
                f"{task:8s} {found['pictures']:5d} {name:5s} {found['open_s']:10.2f}   {found['patches_per_s']:9.0f} "
                f"({low:7.0f} to {high:7.0f})       {found['milliseconds_per_batch']:8.2f}   "
                f"{found['memory_peak_mib']:8.0f}   {found['memory_after_mib']['anonymous']:8.0f}"
            )


if __name__ == "__main__":
    main()
