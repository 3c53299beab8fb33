"""Measure how long a user waits: imports, and from the command to the first training step.

    python -m benchmarks.start                    # the default trial
    python -m benchmarks.start -- train.compile=true channels=64 blocks=16

The first command starts with empty caches of prepared data and compiled code, the others with full ones.
"""

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.common import REPOSITORY, milliseconds, parse_arguments, parser_of, print_times, write_figures

STEPS = 5
"""A trial prints five lines of progress, so with five steps each one is printed."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="what is typed behind run.py; -- before them")
    options = parse_arguments(parser, arguments)
    figures: dict[str, list[float]] = {}
    for name, program in (
        ("nothing", "pass"),
        ("import of bbcu", "import bbcu"),
        ("import of bbcu.training.loop", "import bbcu.training.loop"),
    ):
        run = functools.partial(run_python, program)
        figures[name] = [milliseconds(run) / 1e3 for _ in range(options.rounds)]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        figures["first step, empty caches"] = [first_step_seconds(options.overrides, 0, folder)]
        seeds = range(1, options.rounds + 1)
        figures["first step, full caches"] = [first_step_seconds(options.overrides, seed, folder) for seed in seeds]
    print_times(figures, "s", "first step, full caches")
    write_figures(options.json, figures)


def run_python(program: str) -> None:
    """Run a program in a new interpreter."""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def first_step_seconds(overrides: Sequence[str], seed: int, folder: str) -> float:
    """Return the seconds from the command until its trial prints that the first step is done."""
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
