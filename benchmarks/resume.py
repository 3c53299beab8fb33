"""Measure how long a sweep of thousands of finished trials takes to find that nothing is left to do.

    python -m benchmarks.resume                # more than ten thousand cells
    python -m benchmarks.resume -- OVERRIDE OVERRIDE ...

The study is planned by the command's code. Every trial then gets copies of the result and the MLflow run of one trial
that was trained, and the command is run again. Each figure is for a whole command, with Python's start and all imports.
"""

import contextlib
import copy
import json
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.storage.folder import TrialFolder, trial_folders
from ablations.storage.plans import write_plan
from benchmarks.common import REPOSITORY, TINY, parse_arguments, parser_of, print_times, run_command, write_figures
from benchmarks.report import copy_runs

if TYPE_CHECKING:
    from ablations.planning.plan import Plan

STUDY = "benchmark"
MANY = (
    *("residual=true,block", "bn=none,pre,post,out", "act=inside,after", "act_fn=rprelu,prelu,relu,hardtanh"),
    *("align=auto,1", "threshold=true,false", "surrogate=quadratic,clip,identity,ede,ho"),
    *("weight=l1,l1mag,plain,irnet", "binarize=[body],[body,up],[body,tail],[head,body]"),
)
"""20,480 rows, of which nearly half are impossible or the same network as another."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("overrides", nargs="*", help="the sweep, as behind run.py -m; -- before them")
    options = parse_arguments(parser, arguments)
    overrides = [*TINY, f"study.name={STUDY}", "train.steps=2", *(options.overrides or MANY)]
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        trials = build(folder, overrides)
        # A folder without results, to measure planning and listing alone.
        planning = (f"outputs={folder / 'empty'}", f"tracking.uri=sqlite:///{folder / 'empty.db'}")
        for what, more, expected in (
            ("planned and listed", (*planning, "hydra.sweeper.dry_run=true"), f"0 done already, {trials} to train"),
            ("dry run", ("hydra.sweeper.dry_run=true",), f"{trials} done already, nothing to train"),
            ("resumed", (), f"{trials} done already, nothing to train"),
        ):
            ended = run_command(["-m", *overrides, *more], folder)
            if expected not in ended.text:
                sys.exit(f"the command did not print {expected!r}:\n{ended.text[-2000:]}")
            print(f"{what}: {trials} trials, {ended.seconds:.1f} s, {ended.mib:.0f} MiB", flush=True)
            figures[what] = [ended.seconds]
    print_times(figures, "s")
    write_figures(options.json, figures)


def build(folder: Path, overrides: Sequence[str]) -> int:
    """Create a study in which every trial has a result and a run; return the number of trials."""
    from ablations.planning.plan import plan_record

    run_command([*TINY, f"study.name={STUDY}", "train.steps=2"], folder)
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
    """Return the plan that the command makes of these overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from ablations.config import SweeperConfig, register
    from ablations.planning.plan import make_plan

    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        master = compose("config", return_hydra_config=True)
        return make_plan(list(overrides), SweeperConfig(), master, GlobalHydra.instance().config_loader())


if __name__ == "__main__":
    main()
