"""Where the time of a sweep goes, and whether trials side by side are faster than one after the other.

    python -m benchmarks.sweep                                        # four small cells, on photographs that come along
    python -m benchmarks.sweep --ways joblib -- OVERRIDE OVERRIDE ... # any sweep, as it is typed behind run.py -m

Each way runs the same sweep in a folder of its own, through ``run.py`` as a user starts it. Seconds of all workers
together are shared out over what the results say that they were spent on.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = ("residual=true,false", "bn=none,post", "train.steps=100", "tracking.evaluations=1")
WAYS = {
    "basic": ("hydra/launcher=basic", 1),
    "joblib": ("hydra/launcher=joblib", len(os.sched_getaffinity(0))),
}
"""One trial after the other with all cores, the reference; and as many at once as there are cores, one each."""

PARTS: dict[str, Callable[[dict[str, float]], float]] = {
    "training": lambda timing: timing["train_s"] - timing["start_s"],
    "first steps": lambda timing: timing["start_s"],
    "evaluation": lambda timing: timing["evaluate_s"],
    "probes": lambda timing: timing["probe_s"],
    "MLflow": lambda timing: timing["record_s"],
}
"""What the results tell of; the first steps are compilation, mostly."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweep each way, and print where its time went."""
    given = command_line().parse_args(arguments)
    overrides = given.overrides or SMALL
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        for way in given.ways:
            figures[way] = run_sweep(way, overrides, Path(scratch) / way)
            print_way(way, figures[way], figures[given.ways[0]])
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the first is the reference")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="the sweep, as behind run.py -m; -- before them")
    return parser


def run_sweep(way: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run one sweep; the seconds that its workers had, and what they spent them on."""
    launcher, workers = WAYS[way]
    folder.mkdir()
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "run.py"), "-m", *overrides, launcher],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"the sweep failed:\n{done.stdout}{done.stderr}")
    timings = [json.loads(path.read_text())["timing"] for path in sorted(folder.glob("outputs/*/*/seed*/result.json"))]
    spent = {part: sum((seconds(timing) for timing in timings), 0.0) for part, seconds in PARTS.items()}
    spent["other"] = wall * workers - sum(spent.values())
    return {
        "workers": workers,
        "trials": len(timings),
        "wall_s": wall,
        "step_ms": sorted(timing["step_ms"] for timing in timings),
        "spent_s": spent,
        "largest_process_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "trial_mib": max((timing["peak_mib"] for timing in timings if "peak_mib" in timing), default=float("nan")),
    }


def print_way(way: str, found: dict[str, Any], reference: dict[str, Any]) -> None:
    """Print the break-down of one way beside the reference's wall time."""
    total, steps = found["wall_s"] * found["workers"], found["step_ms"]
    print(f"{way}: {found['trials']} trials in {found['wall_s']:.0f} s, {found['workers']} at once", end="")
    print(f", {found['wall_s'] / reference['wall_s']:.2f} times the first way's wall time")
    print(f"  step {steps[len(steps) // 2]:.0f} ms ({steps[0]:.0f} to {steps[-1]:.0f}), medians of each trial")
    print(
        f"  largest process so far {found['largest_process_mib']:.0f} MiB, largest trial {found['trial_mib']:.0f} MiB"
    )
    for part, seconds in found["spent_s"].items():
        print(f"  {part:12s} {seconds:8.1f} s of workers' time, {100 * seconds / total:5.1f} %")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
