"""Shared by the benchmarks: options, interleaved measurements, ratios of medians, and running commands."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bbcu import machine

REPOSITORY = Path(__file__).resolve().parents[1]

TINY = (
    *("channels=4", "blocks=1", "train.batch=2", "train.patch=8", "train.precision=fp32", "train.compile=false"),
    *("threads=1", "device=cpu", "progress=false"),
)
"""A trial of a fraction of a second, with the same records as any other."""

LAUNCHERS = {
    "basic": ("hydra/launcher=basic",),
    "joblib": ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={len(os.sched_getaffinity(0))}"),
}
"""One trial after the other, and as many at once as there are cores."""


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--scratch", type=Path, help="where temporary files go")
    return parser


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Print the processor, and return the parsed arguments."""
    options = parser.parse_args(arguments)
    print(processor(), flush=True)
    return options


def processor() -> str:
    """Return the processor, its cores, and the widest instructions that torch uses on it."""
    return f"{machine.processor()}, {machine.cores()} cores, {torch.backends.cpu.get_cpu_capability()}"


def write_figures(path: Path | None, figures: Any) -> None:
    """Write the figures and the processor as JSON, if a path is given."""
    if path is not None:
        path.write_text(json.dumps({"processor": processor(), "figures": figures}, indent=1) + "\n", encoding="utf-8")


# --- times ------------------------------------------------------------------------------------------------------------


def interleaved(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    steps: int = 1,
    after_round: Callable[[int, Mapping[str, Sequence[float]]], None] = lambda number, times: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the milliseconds of each call; the ways take turns, so that disturbances affect all alike.

    ``after_round`` is called with the number of rounds and all times so far. ``clock`` returns seconds; on a busy
    machine, ``time.process_time`` leaves out the time that other processes had.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        for name, run in ways.items():
            times[name] += [milliseconds(run, clock) for _ in range(steps)]
        after_round(number, times)
    return times


def milliseconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return 1e3 * (clock() - start)


def print_times(times: Mapping[str, Sequence[float]], unit: str = "ms", reference: str | None = None) -> None:
    """Print the median of each way with its range, and its ratio to the reference's or the first way's."""
    base = statistics.median(times[reference or next(iter(times))])
    for name, values in times.items():
        median = statistics.median(values)
        span = f"({min(values):.2f} to {max(values):.2f})"
        print(f"  {name:28s} {median:10.2f} {unit}  {span:24s} x{median / base:.2f}", flush=True)


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompletedCommand:
    """A command that has ended: what it printed, its wall time in s, and its largest memory in MiB."""

    text: str
    seconds: float
    mib: float


def run_command(arguments: Sequence[str], folder: Path) -> CompletedCommand:
    """Run ``python run.py`` in ``folder`` as a user does; exits with its output if it fails."""
    output = folder / "output"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    start = time.perf_counter()
    with output.open("w") as stream:
        command = [sys.executable, str(REPOSITORY / "run.py"), *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    text = output.read_text(encoding="utf-8")
    if status:
        sys.exit(f"the command failed:\n{text[-4000:]}")
    return CompletedCommand(text, time.perf_counter() - start, used.ru_maxrss / 1024)


def results_in(folder: Path) -> list[dict[str, Any]]:
    """Return the results of every trial below ``folder``."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/*/*/seed*/result.json"))]


def noise_pictures(folder: Path) -> tuple[str, ...]:
    """Save two pictures of noise to train on and two to test on; the overrides that name them."""
    for number, name in enumerate(("train/first", "train/second", "test/third", "test/fourth")):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return ("data=folder", f"data.train={folder}/train", f"data.test={{Noise: {folder}/test}}")
