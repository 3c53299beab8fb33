"""Measure how a sweep spends its time, and whether parallel trials are faster than sequential ones.

    python -m benchmarks.sweep                                             # four small cells on bundled photographs
    python -m benchmarks.sweep --launchers joblib -- OVERRIDE OVERRIDE ... # any sweep, as it is typed behind run.py -m

Each launcher runs the same sweep in a new folder, by the command. The workers' time is divided by the timings in the
results.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import LAUNCHERS, parse_arguments, parser_of, results_in, run_command, write_figures

SMALL = ("residual=true,false", "bn=none,post", "train.steps=100", "tracking.evaluations=1")

PARTS: dict[str, Callable[[dict[str, float]], float]] = {
    "training": lambda timing: timing["train_s"] - timing["start_s"],
    "first steps": lambda timing: timing["start_s"],
    "evaluation": lambda timing: timing["evaluate_s"],
    "probes": lambda timing: timing["probe_s"],
    "MLflow": lambda timing: timing["record_s"],
}
"""Seconds of a trial from the timing in its result; the first steps are mostly compilation."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS), help="the first is the reference"
    )
    parser.add_argument("overrides", nargs="*", help="the sweep, as behind run.py -m; -- before them")
    options = parse_arguments(parser, arguments)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for launcher in options.launchers:
            figures[launcher] = run_sweep(launcher, options.overrides or SMALL, Path(scratch) / launcher)
            print_sweep(launcher, figures[launcher], figures[options.launchers[0]])
    write_figures(options.json, figures)


def run_sweep(launcher: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run one sweep; its wall time, and the seconds that its workers spent on each part."""
    folder.mkdir()
    ended = run_command(["-m", *overrides, *LAUNCHERS[launcher]], folder)
    timings = [result["timing"] for result in results_in(folder)]
    workers = 1 if launcher == "basic" else len(os.sched_getaffinity(0))
    spent = {part: sum((seconds(timing) for timing in timings), 0.0) for part, seconds in PARTS.items()}
    spent["other"] = ended.seconds * workers - sum(spent.values())
    return {
        "workers": workers,
        "wall_s": ended.seconds,
        "step_ms": [timing["step_ms"] for timing in timings],
        "spent_s": spent,
        "trial_mib": max((timing["peak_mib"] for timing in timings if "peak_mib" in timing), default=float("nan")),
    }


def print_sweep(launcher: str, figures: dict[str, Any], reference: dict[str, Any]) -> None:
    steps, ratio = figures["step_ms"], figures["wall_s"] / reference["wall_s"]
    print(f"{launcher}: {len(steps)} trials in {figures['wall_s']:.0f} s, {figures['workers']} at once, x{ratio:.2f}")
    print(f"  step {statistics.median(steps):.0f} ms ({min(steps):.0f} to {max(steps):.0f}), medians of each trial")
    print(f"  largest trial {figures['trial_mib']:.0f} MiB")
    for part, seconds in figures["spent_s"].items():
        share = 100 * seconds / (figures["wall_s"] * figures["workers"])
        print(f"  {part:12s} {seconds:8.1f} s of the workers' time, {share:5.1f} %", flush=True)


if __name__ == "__main__":
    main()
