"""Measure the time and memory to load a study of many runs, or to write its report.

    python -m benchmarks.report                    # 10,000 runs of 20 params and 20 metrics, in a temporary folder
    python -m benchmarks.report --runs 1000
    python -m benchmarks.report --report           # with the files of every trial, into a report in all its forms

The runs are a full factorial design of five factors under four seeds, of which two cells in a hundred lack one. A trial
has four test sets, a curve of 100 points and the probes of 32 binary units. One run is logged as a trial logs it and
its rows are copied in the database, since logging takes minutes. The figures are measured in a new process, in
which nothing is imported yet.
"""

import contextlib
import hashlib
import json
import math
import multiprocessing
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import parse_arguments, parser_of, write_figures

STUDY = "benchmark"
LEVELS = {
    "bn": ("none", "pre", "post", "out"),
    "act_fn": ("rprelu", "prelu", "relu", "hardtanh", "none"),
    "align": ("auto", "1", "10", "65", "260"),
    "surrogate": ("quadratic", "clip", "identity", "ede", "ho"),
    "binarize": ("[body]", "[body,up]", "[head,body]", "[body,tail]", "[head,body,up,tail]"),
}
"""The factors that vary: 2,500 cells."""

FIXED = {"residual": "true", "act": "inside", "threshold": "true", "weight": "l1"}
TEST_SETS = {"Set5": 5, "Set14": 14, "B100": 20, "Urban100": 20}
"""The test sets, and the number of pictures that a result scores in each."""

CURVE_POINTS = 100
UNITS = 32
SEEDS = 4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="how many runs (%(default)s)")
    parser.add_argument("--report", action="store_true", help="write every trial's files and make the report")
    options = parse_arguments(parser, arguments)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        start = time.perf_counter()
        build(folder, options.runs, options.report)
        print(f"built {options.runs} runs in {time.perf_counter() - start:.0f} s", flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures = pool.apply(report, (folder,)) if options.report else pool.apply(measure, (folder,))
    for what, value in figures.items():
        print(f"{what:24s} {value:10.1f}")
    write_figures(options.json, figures)


def measure(folder: Path) -> dict[str, float]:
    """Load the study in this process."""
    start = time.perf_counter()
    from analysis.study.loading import load

    imported = time.perf_counter()
    results = load(f"sqlite:///{folder / 'mlflow.db'}", STUDY, folder / "outputs")
    return {
        "import (s)": imported - start,
        "load (s)": time.perf_counter() - imported,
        "rows": float(len(results.trials)),
        "columns": float(len(results.trials.columns)),
        "frame (MiB)": float(results.trials.memory_usage(deep=True).sum()) / 2**20,
        "peak memory (MiB)": peak_mebibytes(),
    }


def report(folder: Path) -> dict[str, float]:
    """Make the report by the command in this process."""
    start = time.perf_counter()
    from analysis.__main__ import main as analysis

    places = {"tracking-uri": f"sqlite:///{folder / 'mlflow.db'}", "outputs": folder / "outputs", "reports": folder}
    analysis([STUDY, *(word for name, place in places.items() for word in (f"--{name}", str(place)))])
    written = [path for path in (folder / STUDY).rglob("*") if path.is_file()]
    return {
        "report (s)": time.perf_counter() - start,
        "peak memory (MiB)": peak_mebibytes(),
        "files": float(len(written)),
        "report.md (KiB)": (folder / STUDY / "report.md").stat().st_size / 1024,
        "report.html (KiB)": (folder / STUDY / "report.html").stat().st_size / 1024,
        "all files (MiB)": sum(path.stat().st_size for path in written) / 2**20,
    }


def peak_mebibytes() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(folder: Path, runs: int, files: bool) -> None:
    """Create a store with ``runs`` finished runs of one study, and with ``files`` their folders too."""
    from ablations.storage.folder import CurvePoint, TrialFolder
    from ablations.tracking.client import prepare_tracking
    from ablations.tracking.sync import synchronise

    uri, outputs = f"sqlite:///{folder / 'mlflow.db'}", folder / "outputs"
    prepare_tracking(uri, STUDY)
    template = result(0)
    first = TrialFolder(outputs, STUDY, template["cell"], template["seed"])
    first.path.mkdir(parents=True)
    first.write_curve(CurvePoint(step, {"train/loss": 1 / step}, 0.0) for step in range(1, CURVE_POINTS + 1))
    first.write_result(template)
    synchronise(outputs, STUDY, uri)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        numbers = list(filter(exists, range(1, runs)))
        identities = [(str(result(number)["cell"]), number % SEEDS) for number in numbers]
        copy_runs(database, identities, [facts(number) for number in numbers])
        database.commit()
    if files:
        for number in filter(exists, range(1, runs)):
            copy_folder(first, result(number), outputs)
    else:
        shutil.rmtree(outputs)


def exists(number: int) -> bool:
    """Return whether the run of this number exists: the second seed of every fiftieth cell is missing."""
    return number % (50 * SEEDS) != 1


def levels_of(cell: int) -> dict[str, str]:
    """Return the levels of a cell of the design by its number, which counts them as digits."""
    chosen = dict(FIXED)
    for factor, levels in LEVELS.items():
        cell, place = divmod(cell, len(levels))
        chosen[factor] = levels[place]
    return chosen


def result(number: int) -> dict[str, Any]:
    """Return the ``result.json`` of one trial, as large as MLflow's facts are: 20 params and 20 metrics."""
    cell, seed = divmod(number, SEEDS)
    levels = levels_of(cell)
    return {
        "study": STUDY,
        "cell": hashlib.sha256(str(cell).encode()).hexdigest(),
        "seed": seed,
        "name": f"cell {cell}",
        "factors": {**levels, "align": "130" if levels["align"] == "auto" else levels["align"]},
        "levels": levels,
        "reference": levels_of(0),
        "method": "custom",
        "task": "sr_x2",
        "setting": {
            "task": {"name": "sr_x2"},
            "channels": 64,
            "blocks": 16,
            "train": {"steps": 500, "batch": 16, "patch": 24, "lr": 0.001, "schedule": "cosine", "precision": "fp32"},
            "data": hashlib.sha256(b"data").hexdigest(),
        },
        "metrics": {
            name: {
                "psnr_db": score(number),
                "ssim": 0.9,
                "images": {
                    f"{place:03d}": {"psnr_db": score(number) + place, "ssim": 0.9} for place in range(pictures)
                },
            }
            for name, pictures in TEST_SETS.items()
        },
        "baseline": {name: {"psnr_db": 28.0, "ssim": 0.8} for name in TEST_SETS},
        "cost": {"ops_g": 18.55 - 0.01 * (cell % 7), "params_k": 224.6},
        "timing": {"train_s": 100.0},
        "probes": {"units": {f"body.units.{place}": unit(number + place) for place in range(UNITS)}},
        "provenance": {"git": "0" * 40, "dirty": False, "packages": {"torch": "2.13.0"}, "cpu": "two cores"},
    }


def score(number: int) -> float:
    """Return a PSNR in dB that looks like noise and depends only on the number."""
    return 30.0 + math.sin(number**2)


def unit(number: int) -> dict[str, Any]:
    """Return the probes of one binary unit."""
    spread = {"p1": -1.0, "p25": -0.5, "p50": 0.0, "p75": 0.5, "p99": 1.0, "std": 0.5}
    return {
        **dict.fromkeys(("sign_loss", "output_loss", "window", "entropy", "flipped"), abs(math.sin(number))),
        "zeros": 0.0,
        "branch_ratio": 1.0 + abs(math.sin(number)),
        **dict.fromkeys(("residual", "branch", "input"), spread),
    }


def facts(number: int) -> dict[str, Any]:
    """Return the params, tags and metrics of a trial in MLflow, by key."""
    from ablations.tracking.runs import facts_of, final_metrics

    document = result(number)
    facts = facts_of(document)
    return {**facts.params, **facts.tags, **final_metrics(document)}


def copy_runs(
    database: sqlite3.Connection, identities: Sequence[tuple[str, int]], facts: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Copy the only run in the store, with its params, tags and metrics, for the cell and seed of each other trial.

    ``facts`` has further values of each trial by key.
    """
    ((original,),) = database.execute("select run_uuid from runs").fetchall()
    tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'").fetchall()]
    own = [
        {**(facts[place] if facts else {}), "cell": cell, "seed": str(seed)}
        for place, (cell, seed) in enumerate(identities)
    ]
    # The table of runs comes first: the others refer to it.
    for table in sorted(tables, key=lambda name: name != "runs"):
        columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
        if "run_uuid" not in columns:
            continue
        rows = [dict(zip(columns, row, strict=True)) for row in database.execute(f"select * from {table}")]
        originals = [row for row in rows if row["run_uuid"] == original]
        marks = ", ".join("?" * len(columns))
        copies = (tuple(copied(row, number, each).values()) for number, each in enumerate(own) for row in originals)
        database.executemany(f"insert into {table} values ({marks})", copies)


def copied(row: Mapping[str, Any], number: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table changed for the copy with this number, whose own values are ``own``."""
    changed = {**row, "run_uuid": f"{number:032x}"}
    if row.get("key") in own:
        changed["value"] = own[row["key"]]
    return changed


def copy_folder(first: Any, own: Mapping[str, Any], outputs: Path) -> None:
    """Create the folder of another trial with the curve of the first."""
    folder = outputs / STUDY / own["cell"] / f"seed{own['seed']}"
    folder.mkdir(parents=True)
    shutil.copyfile(first.curve_path, folder / "curve.csv")
    (folder / "result.json").write_text(json.dumps(own), encoding="utf-8")


if __name__ == "__main__":
    main()
