"""How long a study with thousands of finished runs takes to find out that nothing is left to do.

    python -m benchmarks.resume                # about ten thousand cells
    python -m benchmarks.resume -- OVERRIDE OVERRIDE ...

The study is planned as the command plans it; every trial then gets a result and a run in MLflow that are copies of one
that was really trained, and the command is run again, as a user would.
"""

import argparse
import contextlib
import copy
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import copy_runs

if TYPE_CHECKING:
    from ablations.plan import Plan

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = "benchmark"
TINY = ("channels=4", "blocks=1", "train.steps=2", "train.batch=2", "train.patch=8", "threads=1", "progress=false")
MANY = (
    *(
        "residual=true,false,block",
        "bn=none,pre,post,out",
        "act=inside,after,none",
        "act_fn=rprelu,prelu,relu,hardtanh",
    ),
    *(
        "align=auto,1",
        "threshold=true,false",
        "surrogate=quadratic,clip,identity,ede,ho",
        "weight=l1,l1mag,plain,irnet",
    ),
)


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
        for what, more in (("dry run (s)", ["hydra.sweeper.dry_run=true"]), ("resumed (s)", [])):
            start = time.perf_counter()
            text = run(folder, ["-m", *overrides, *more])
            figures[what] = time.perf_counter() - start
            if f"{trials} done already, nothing to train" not in text:
                sys.exit(f"the command did not find everything done:\n{text[-2000:]}")
        figures["largest process (MiB)"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    for what, value in figures.items():
        print(f"{what:24s} {value:10.1f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def run(folder: Path, arguments: Sequence[str]) -> str:
    """What the command prints; leaves where it fails."""
    command = [sys.executable, str(REPOSITORY / "run.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the command failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def build(folder: Path, overrides: Sequence[str]) -> int:
    """A study whose every trial has a result and a run; how many trials it has."""
    from ablations import store
    from ablations.plan import plan_record

    run(folder, [*TINY, f"study.name={STUDY}"])
    outputs = folder / "outputs"
    (trained,) = store.trial_folders(outputs, STUDY)
    template = trained.result()
    assert template is not None
    with contextlib.chdir(folder):
        plan = planned(overrides)
        store.write_plan(outputs, STUDY, plan_record(plan))
    others = [entry for entry in plan.trials if entry.identity != (trained.cell, trained.seed)]
    for entry in others:
        result: dict[str, Any] = {**copy.copy(template), **entry.trial.facts()}
        place = store.TrialFolder(outputs, STUDY, *entry.identity)
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
    from ablations.plan import make_plan

    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        master = compose("config", return_hydra_config=True)
        return make_plan(list(overrides), SweeperConfig(), master, GlobalHydra.instance().config_loader())


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
