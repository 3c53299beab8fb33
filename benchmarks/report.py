"""How long a study of many runs takes to become a typed frame, and how much memory.

    python -m benchmarks.report                    # 10,000 runs of 20 params and 20 metrics, in a temporary folder
    python -m benchmarks.report --runs 1000
    python -m benchmarks.report --curves           # with the files of every trial, whose curves are then read

One run is logged as a trial logs it and its rows are copied in the database, since logging takes minutes. The figures
come from a process of its own, which begins with nothing imported.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STUDY = "benchmark"
FACTORS = ("residual", "bn", "act", "act_fn", "align", "binarize", "threshold", "surrogate", "weight")
CURVE_POINTS = 100
SEEDS = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the store, measure and print; with ``--json`` write the same for machines."""
    given = command_line().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        folder = Path(name)
        start = time.perf_counter()
        build(folder, given.runs, given.curves)
        print(f"built {given.runs} runs in {time.perf_counter() - start:.0f} s")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures = pool.apply(measure, (folder, given.curves))
    for what, value in figures.items():
        print(f"{what:24s} {value:10.1f}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="how many runs (%(default)s)")
    parser.add_argument("--curves", action="store_true", help="write every trial's files and read their curves too")
    parser.add_argument("--scratch", type=Path, help="where temporary files go")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def measure(folder: Path, curves: bool) -> dict[str, float]:
    """Load the study in this process: seconds, rows and the peak of resident memory in MiB."""
    start = time.perf_counter()
    from analysis.results import load

    imported = time.perf_counter()
    results = load(f"sqlite:///{folder / 'mlflow.db'}", STUDY, folder / "outputs")
    figures = {
        "import (s)": imported - start,
        "load (s)": time.perf_counter() - imported,
        "rows": float(len(results.trials)),
        "columns": float(len(results.trials.columns)),
        "frame (MiB)": float(results.trials.memory_usage(deep=True).sum()) / 2**20,
        "peak memory (MiB)": peak_mebibytes(),
    }
    if curves:
        start = time.perf_counter()
        rows = len(results.curves)
        figures |= {"curves (s)": time.perf_counter() - start, "rows of curves": float(rows)}
        figures["peak with curves (MiB)"] = peak_mebibytes()
    return figures


def peak_mebibytes() -> float:
    """The most resident memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(folder: Path, runs: int, files: bool) -> None:
    """A store with ``runs`` finished runs of one study, and with ``files`` their folders too."""
    from ablations.store import CurvePoint, TrialFolder, prepare_tracking
    from ablations.syncing import synchronise

    uri, outputs = f"sqlite:///{folder / 'mlflow.db'}", folder / "outputs"
    prepare_tracking(uri, STUDY)
    template = result(0)
    first = TrialFolder(outputs, STUDY, template["cell"], template["seed"])
    first.path.mkdir(parents=True)
    first.write_curve(CurvePoint(step, {"train/loss": 1 / step}, 0.0) for step in range(1, CURVE_POINTS + 1))
    first.write_result(template)
    synchronise(outputs, STUDY, uri)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        copy_runs(database, [(result(number)["cell"], number % SEEDS) for number in range(1, runs)])
        database.commit()
    if files:
        for number in range(1, runs):
            copy_folder(first, result(number), outputs)
    else:
        shutil.rmtree(outputs)


def result(number: int) -> dict[str, Any]:
    """The ``result.json`` of one trial, as large as MLflow's facts are: 20 params and 20 metrics."""
    sets = ("Set5", "Set14", "B100", "Urban100")
    return {
        "study": STUDY,
        "cell": hashlib.sha256(str(number // SEEDS).encode()).hexdigest(),
        "seed": number % SEEDS,
        "name": f"cell {number // SEEDS}",
        "factors": dict.fromkeys(FACTORS, "level"),
        "levels": dict.fromkeys(FACTORS, "level"),
        "reference": dict.fromkeys(FACTORS, "level"),
        "method": "custom",
        "task": "sr_x2",
        "setting": {
            "task": {"name": "sr_x2"},
            "channels": 64,
            "blocks": 16,
            "train": {"steps": 500, "batch": 16, "patch": 24, "lr": 0.001, "schedule": "cosine", "precision": "fp32"},
            "data": hashlib.sha256(b"data").hexdigest(),
        },
        "metrics": {name: {"psnr_db": 30.0, "ssim": 0.9, "images": {}} for name in sets},
        "baseline": {name: {"psnr_db": 28.0, "ssim": 0.8} for name in sets},
        "cost": {"ops_g": 18.55, "params_k": 224.6},
        "timing": {"train_s": 100.0},
        "probes": {},
        "provenance": {"git": "0" * 40, "dirty": False, "packages": {"torch": "2.13.0"}, "cpu": "two cores"},
    }


def copy_runs(database: sqlite3.Connection, identities: Sequence[tuple[str, int]]) -> None:
    """Copy the one run that is there, with its params, tags and metrics, for the cell and seed of each other trial."""
    ((original,),) = database.execute("select run_uuid from runs").fetchall()
    tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'").fetchall()]
    # The table of runs comes first: the others refer to it.
    for table in sorted(tables, key=lambda name: name != "runs"):
        columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
        if "run_uuid" not in columns:
            continue
        rows = [dict(zip(columns, row, strict=True)) for row in database.execute(f"select * from {table}")]
        own = [row for row in rows if row["run_uuid"] == original]
        marks = ", ".join("?" * len(columns))
        copies = (
            tuple(copied(row, number, *identity).values()) for number, identity in enumerate(identities) for row in own
        )
        database.executemany(f"insert into {table} values ({marks})", copies)


def copied(row: Mapping[str, Any], number: int, cell: str, seed: int) -> dict[str, Any]:
    """A row of some table as the copy of this number has it, for another trial."""
    changed = {**row, "run_uuid": f"{number:032x}"}
    own = {"cell": cell, "seed": str(seed)} if "key" in row else {}
    if row.get("key") in own:
        changed["value"] = own[row["key"]]
    return changed


def copy_folder(first: Any, own: Mapping[str, Any], outputs: Path) -> None:
    """The folder of another trial, with the first one's curve."""
    folder = outputs / STUDY / own["cell"] / f"seed{own['seed']}"
    folder.mkdir(parents=True)
    shutil.copyfile(first.curve_path, folder / "curve.csv")
    (folder / "result.json").write_text(json.dumps(own), encoding="utf-8")


if __name__ == "__main__":
    main()
