"""The folders of a study and of its trials: their layout, and the files that hold a trial's result."""

import csv
import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablations.space.factors import SHOWN
from ablations.storage.files import read_json
from bbcu.files import replacing, write_atomically

Identity = tuple[str, int]
"""The cell's key and the seed, which identify a trial within its study."""

RESULT_KEYS = {
    *("study", "cell", "name", "factors", "levels", "reference", "setting", "method", "task", "seed"),
    *("metrics", "baseline", "cost", "timing", "probes", "provenance"),
}
"""The keys of every ``result.json``."""


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """The metrics of one training step, as in ``{"train/loss": 0.03, "Set5/psnr_db": 34.1}``, and the time."""

    step: int
    metrics: Mapping[str, float]
    time: float = dataclasses.field(default_factory=time.time)


def study_folder(outputs: Path, study: str) -> Path:
    return outputs / study


class TrialFolder:
    """``outputs/<study>/<cell>/seed<N>/``: the files of one trial."""

    def __init__(self, outputs: Path, study: str, cell: str, seed: int) -> None:
        self.outputs, self.study, self.cell, self.seed = outputs, study, cell, seed
        self.path = study_folder(outputs, study) / cell / f"seed{seed}"
        self.result_path = self.path / "result.json"
        self.state_path = self.path / "state.json"
        self.snapshots = self.path / "snapshots"
        self.config_path = self.path / "config.yaml"
        self.log_path = self.path / "trial.log"
        self.curve_path = self.path / "curve.csv"
        self.checkpoint_path = self.path / "checkpoint.pt"
        self.samples = self.path / "samples"

    @classmethod
    def of(cls, path: Path) -> "TrialFolder":
        """Return the trial folder at ``path``, which must have that form."""
        return cls(path.parents[2], path.parents[1].name, path.parent.name, int(path.name.removeprefix("seed")))

    def shortened(self, path: Path) -> str:
        """Return a path in this folder with the cell's key shortened to a shell pattern such as ``3f9c01d2a4be*``."""
        short = f"{self.cell[:SHOWN]}*" if len(self.cell) > SHOWN else self.cell
        return str(Path(*(short if part == self.cell else part for part in path.parts)))

    def result(self) -> dict[str, Any] | None:
        """Return the trial's result, or None if it is missing, damaged or another trial's."""
        result = read_json(self.result_path)
        if result is None or not result.keys() >= RESULT_KEYS:
            return None
        return result if (result["cell"], result["seed"]) == (self.cell, self.seed) else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_atomically(self.result_path, json.dumps(result, indent=1) + "\n")

    def write_curve(self, points: Iterable[CurvePoint]) -> None:
        """Write the learning curve as a long table: step, metric, value, time (seconds since the epoch)."""
        with replacing(self.curve_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["step", "metric", "value", "time"])
            for point in points:
                for name, value in point.metrics.items():
                    writer.writerow([point.step, name, repr(value), repr(point.time)])

    def curve(self) -> list[CurvePoint]:
        """Read the learning curve, one point per row of the table; empty if the file is missing."""
        if not self.curve_path.exists():
            return []
        with self.curve_path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [CurvePoint(int(row["step"]), {row["metric"]: float(row["value"])}, float(row["time"])) for row in rows]


def trial_folders(outputs: Path, study: str) -> list[TrialFolder]:
    """Return every trial folder of a study, sorted by cell and seed."""
    folders = [TrialFolder.of(path) for path in study_folder(outputs, study).glob("*/seed*") if path.is_dir()]
    return sorted(folders, key=lambda folder: (folder.cell, folder.seed))


def is_current(result: Mapping[str, Any] | None, *, code: str, on_change: str) -> bool:
    """Return whether a result may be reused: the code with the fingerprint ``code`` made it, or ``on_change=keep``."""
    return result is not None and (on_change == "keep" or result["provenance"].get("code") == code)


def mean_psnr(result: Mapping[str, Any]) -> float:
    """Return a result's PSNR in dB, the mean over its test sets."""
    return statistics.fmean(scores["psnr_db"] for scores in result["metrics"].values())


def steps_of(result: Mapping[str, Any]) -> int:
    """Return how many steps the trial trained; 0 for a method that trains nothing."""
    return int(result["setting"].get("train", {}).get("steps", 0))


METRICS = ("psnr_db", "ssim")
"""The metrics of a test set, as ``result.json`` names them."""
