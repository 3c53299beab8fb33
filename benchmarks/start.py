"""How long a user waits: imports, and from the command to the first training step.

    python -m benchmarks.start                    # the default trial
    python -m benchmarks.start -- train.compile=true channels=64 blocks=16

The first run fills the caches of prepared data and of compiled code and does not count; the others find them full.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 5
"""A trial prints a line five times, so that of five steps each one is seen."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; with ``--json`` write the same for machines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="what is typed behind run.py; -- before them")
    given = parser.parse_args(arguments)
    figures = {"import of bbcu": [import_seconds("bbcu") for _ in range(given.rounds)]}
    figures["import of bbcu.training.loop"] = [import_seconds("bbcu.training.loop") for _ in range(given.rounds)]
    with tempfile.TemporaryDirectory() as folder:
        cold = first_step_seconds(given.overrides, 0, folder)
        figures["first step, warm"] = [
            first_step_seconds(given.overrides, seed, folder) for seed in range(1, given.rounds + 1)
        ]
        figures["first step, cold"] = [cold]
    for name, seconds in figures.items():
        print(f"{name:24s} {statistics.median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def import_seconds(module: str) -> float:
    """The seconds that a fresh interpreter takes to import a module, less what it takes to import nothing."""
    return _run_seconds(f"import {module}") - _run_seconds("pass")


def _run_seconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
    return time.perf_counter() - start


def first_step_seconds(overrides: Sequence[str], seed: int, folder: str) -> float:
    """The seconds from the command until its trial says that the first step is done."""
    command = [sys.executable, str(REPOSITORY / "run.py"), f"train.steps={STEPS}", f"seed={seed}", *overrides]
    start, first = time.perf_counter(), None
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if first is None and f"step 1/{STEPS}" in line:
                first = time.perf_counter() - start
    if process.returncode or first is None:
        sys.exit(f"the trial failed:\n{''.join(lines)}")
    return first


if __name__ == "__main__":
    main()
