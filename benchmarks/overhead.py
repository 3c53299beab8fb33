"""What a trial takes beyond its own work: its config, its folder, its lease, its snapshots and its MLflow run.

    python -m benchmarks.overhead                    # 40 trials one after the other, and 40 by two workers
    python -m benchmarks.overhead --launchers basic --trials 100

A sweep of tiny trials is run. From when one trial of a process begins to when the next one does is what a trial takes
in all, and its own work is what ``result.json`` says of training, evaluation and probes. The difference is the
overhead; the first trial of each process, which imports and warms up, does not count. Medians, with the fifth and the
ninety-fifth percentile.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.kills import make_pictures

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = "overhead"
SETTING = (
    *(f"study.name={STUDY}", "channels=4", "blocks=1", "device=cpu", "threads=1", "progress=false", "data=folder"),
    *("train.steps=50", "train.batch=2", "train.patch=8", "train.precision=fp32", "train.compile=false"),
)
"""Trials of half a second; what is recorded of one is what is recorded of any."""

LAUNCHERS = {
    "basic": ("hydra/launcher=basic",),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}

OWN_WORK = ("train_s", "evaluate_s", "probe_s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweeps, measure and print; with ``--json`` write the same for machines."""
    given = command_line().parse_args(arguments)
    figures = {}
    for launcher in given.launchers:
        with tempfile.TemporaryDirectory(dir=given.scratch) as name:
            run_sweep(Path(name), launcher, given.trials)
            figures[launcher] = summary(measured(Path(name)))
        print(f"{launcher}: {figures[launcher]['trials']:.0f} trials")
        for what in ("in all", "own work", "overhead"):
            low, median, high = (figures[launcher][f"{what}, {share} (s)"] for share in SHARES)
            print(f"  {what:10s} {median:6.3f} s  ({low:.3f} to {high:.3f})", flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    parser.add_argument("--trials", type=int, default=40, help="of each launcher (%(default)s)")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def run_sweep(folder: Path, launcher: str, trials: int) -> None:
    """Run a sweep of so many trials, which are replicates of one cell; leaves where it fails."""
    make_pictures(folder / "pictures")
    data = (f"data.train={folder}/pictures/train", f"data.test={{Noise: {folder}/pictures/test}}")
    command = [sys.executable, str(REPOSITORY / "run.py"), "-m", *SETTING, *data, *LAUNCHERS[launcher]]
    done = subprocess.run(
        [*command, f"hydra.sweeper.replicates={trials}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    if done.returncode:
        sys.exit(f"the sweep failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def measured(folder: Path) -> list[tuple[float, float]]:
    """The seconds that each trial took in all, and those of its own work, but for the first and last of a process."""
    by_process: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for path in folder.glob(f"outputs/{STUDY}/*/seed*"):
        (attempt,) = json.loads((path / "state.json").read_text(encoding="utf-8"))["attempts"]
        timing = json.loads((path / "result.json").read_text(encoding="utf-8"))["timing"]
        by_process[attempt["pid"]].append((attempt["began"], sum(timing[part] for part in OWN_WORK)))
    found = []
    for trials in by_process.values():
        in_order = sorted(trials)[1:]
        found += [(after[0] - one[0], one[1]) for one, after in itertools.pairwise(in_order)]
    return found


SHARES = ("low", "median", "high")


def summary(found: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How many trials count, and the percentiles of each of the three times over them."""
    whole, own = np.array(found).T
    figures = {"trials": float(len(found))}
    for what, seconds in (("in all", whole), ("own work", own), ("overhead", whole - own)):
        for share, value in zip(SHARES, np.percentile(seconds, [5, 50, 95]), strict=True):
            figures[f"{what}, {share} (s)"] = round(float(value), 4)
    return figures


if __name__ == "__main__":
    main()
