"""How long a study with thousands of finished runs takes to find out that nothing is left to do.

    python -m benchmarks.resume                # more than ten thousand cells
    python -m benchmarks.resume -- OVERRIDE OVERRIDE ...

The study is planned as the command plans it; every trial then gets a result and a run in MLflow that are copies of one
that was really trained, and the command is run again, as a user would. Each figure is of a whole command, with Python's
start and all imports.
"""

import argparse
import contextlib
import copy
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.storage.folder import TrialFolder, trial_folders
from ablations.storage.plans import write_plan
from benchmarks.report import copy_runs

if TYPE_CHECKING:
    from ablations.planning.plan import Plan

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = "benchmark"
TINY = ("channels=4", "blocks=1", "train.steps=2", "train.batch=2", "train.patch=8", "threads=1", "progress=false")
MANY = (
    *("residual=true,block", "bn=none,pre,post,out", "act=inside,after", "act_fn=rprelu,prelu,relu,hardtanh"),
    *("align=auto,1", "threshold=true,false", "surrogate=quadratic,clip,identity,ede,ho"),
    *("weight=l1,l1mag,plain,irnet", "binarize=[body],[body,up],[body,tail],[head,body]"),
)
"""20,480 rows, of which nearly half are impossible or the same network as another."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the study, measure and print; with ``--json`` write the same for machines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="the sweep, as behind run.py -m; -- before them")
    given = parser.parse_args(arguments)
    overrides = [*TINY, f"study.name={STUDY}", *(given.overrides or MANY)]
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        folder = Path(name)
        trials = build(folder, overrides)
        figures: dict[str, float] = {"trials": trials}
        # Somewhere else there is nothing yet, so that is planning and listing alone.
        planning = (f"outputs={folder / 'empty'}", f"tracking.uri=sqlite:///{folder / 'empty.db'}")
        for what, more, expected in (
            ("planned and listed", (*planning, "hydra.sweeper.dry_run=true"), f"0 done already, {trials} to train"),
            ("dry run", ("hydra.sweeper.dry_run=true",), f"{trials} done already, nothing to train"),
            ("resumed", (), f"{trials} done already, nothing to train"),
        ):
            ended = run(folder, ["-m", *overrides, *more])
            if expected not in ended.text:
                sys.exit(f"the command did not say {expected!r}:\n{ended.text[-2000:]}")
            figures |= {f"{what} (s)": ended.seconds, f"{what} (MiB)": ended.mib}
    for what, value in figures.items():
        print(f"{what:24s} {value:10.1f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Ended:
    """A command that has ended well: what it printed, how long it took, and the most memory that it had."""

    text: str
    seconds: float
    mib: float


def run(folder: Path, arguments: Sequence[str]) -> Ended:
    """Run the command; leaves where it fails."""
    output = folder / "output"
    start = time.perf_counter()
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run.py"), *arguments], cwd=folder, stdout=stream, stderr=stream
        )
        _, status, used = os.wait4(process.pid, 0)
    text = output.read_text(encoding="utf-8")
    if status:
        sys.exit(f"the command failed:\n{text[-4000:]}")
    return Ended(text, time.perf_counter() - start, used.ru_maxrss / 1024)


def build(folder: Path, overrides: Sequence[str]) -> int:
    """A study whose every trial has a result and a run; how many trials it has."""
    from ablations.planning.plan import plan_record

    run(folder, [*TINY, f"study.name={STUDY}"])
    outputs = folder / "outputs"
    (trained,) = trial_folders(outputs, STUDY)
    template = trained.result()
    assert template is not None
    with contextlib.chdir(folder):
        plan = planned(overrides)
        write_plan(outputs, STUDY, plan_record(plan))
    others = [entry for entry in plan.trials if entry.identity != (trained.cell, trained.seed)]
    for entry in others:
        result: dict[str, Any] = {**copy.copy(template), **entry.trial.facts()}
        place = TrialFolder(outputs, STUDY, *entry.identity)
        place.path.mkdir(parents=True)
        place.result_path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        copy_runs(database, [entry.identity for entry in others])
        database.commit()
    return len(plan.trials)


def planned(overrides: Sequence[str]) -> "Plan":
    """The plan that the command makes of these overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from ablations.config import SweeperConfig, register
    from ablations.planning.plan import make_plan

    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        master = compose("config", return_hydra_config=True)
        return make_plan(list(overrides), SweeperConfig(), master, GlobalHydra.instance().config_loader())


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
