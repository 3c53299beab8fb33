"""The folders of a study and of its trials: their layout, and the files that hold a trial's result."""

import csv
import dataclasses
import math
import os
import re
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablations.space.factors import SHOWN
from ablations.space.settings import LAST_SEED
from ablations.storage.files import DamagedFile, file_checksum, read_sealed, write_sealed
from bbcu.errors import BbcuError, first_line
from bbcu.files import read_text, replacing

Identity = tuple[str, int]
"""The cell's key and the seed, which identify a trial within its study."""

SEED_FOLDER = re.compile(r"seed(0|[1-9][0-9]{0,18})")
CELL_FOLDER = re.compile(r"[0-9a-f]+")

CURVE_HEADER = ["step", "metric", "value", "time"]


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
        """Return the trial folder at ``path``; raise ValueError if its name is not of that form."""
        seed = seed_of(path.name)
        if seed is None:
            raise ValueError(f"{path} is not named as the folder of a trial")
        return cls(path.parents[2], path.parents[1].name, path.parent.name, seed)

    def shortened(self, path: Path) -> str:
        """Return a path in this folder with the cell's key shortened to a shell pattern such as ``3f9c01d2a4be*``."""
        short = f"{self.cell[:SHOWN]}*" if len(self.cell) > SHOWN else self.cell
        return str(Path(*(short if part == self.cell else part for part in path.parts)))

    def result(self) -> dict[str, Any] | None:
        """Return the trial's result, or None if it is missing, damaged or another trial's."""
        try:
            return self.checked_result()
        except DamagedFile:
            return None

    def damage(self) -> DamagedFile | None:
        """Return what is wrong with the trial's result, or None if it is intact or missing."""
        try:
            self.checked_result()
        except DamagedFile as error:
            return error
        return None

    def checked_result(self) -> dict[str, Any] | None:
        """Return the trial's result, or None if there is none.

        Raises DamagedFile if the result or the learning curve beside it is not what the trial wrote.
        """
        from ablations.storage import formats

        result = read_sealed(self.result_path, formats.Result)
        if result is None:
            return None
        if (result["cell"], result["seed"]) != (self.cell, self.seed):
            other = f"cell {result['cell'][:SHOWN]} seed {result['seed']}"
            raise DamagedFile(self.result_path, f"it is the result of {other}")
        files = result.pop("files", None)
        if files is None:
            self._check_earlier(result)
        else:
            _check_file(self.curve_path, files.get(self.curve_path.name))
        return result

    def _check_earlier(self, result: Mapping[str, Any]) -> None:
        """Raise DamagedFile if a result without checksums disagrees with itself or with its curve."""
        from ablations.storage.formats import ROUNDING, disagreement

        wrong = disagreement(result["metrics"])
        if wrong is not None:
            raise DamagedFile(self.result_path, wrong)
        last = {name: value for point in self.curve() for name, value in point.metrics.items()}
        for name, scores in result["metrics"].items():
            at_end = last.get(f"{name}/psnr_db", scores["psnr_db"])
            if not math.isclose(at_end, scores["psnr_db"], rel_tol=0, abs_tol=ROUNDING):
                raise DamagedFile(self.result_path, f"metrics.{name}.psnr_db: {self.curve_path.name} ends otherwise")

    def check_checkpoint(self) -> None:
        """Raise DamagedFile unless the trial's checkpoint is the one that its result was written with."""
        checksum = self._recorded_checksum()
        if checksum is None:
            raise DamagedFile(self.checkpoint_path, "result.json has no checksum of it")
        _check_file(self.checkpoint_path, checksum)

    def checkpoint_checksum(self) -> str | None:
        """Return the SHA-256 of the checkpoint that the trial's result was written with, None without a result."""
        return None if self.result() is None else self._recorded_checksum()

    def _recorded_checksum(self) -> str | None:
        from ablations.storage import formats

        result = read_sealed(self.result_path, formats.Result) or {}
        checksum: str | None = result.get("files", {}).get(self.checkpoint_path.name)
        return checksum

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json`` with its checksum and those of the trial's curve and checkpoint."""
        written = [path for path in (self.curve_path, self.checkpoint_path) if path.exists()]
        files = {path.name: file_checksum(path) for path in written}
        write_sealed(self.result_path, {**result, "files": files})

    def write_curve(self, points: Iterable[CurvePoint]) -> None:
        """Write the learning curve as a long table: step, metric, value, time (seconds since the epoch)."""
        with replacing(self.curve_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(CURVE_HEADER)
            for point in points:
                for name, value in point.metrics.items():
                    writer.writerow([point.step, name, repr(value), repr(point.time)])

    def curve(self) -> list[CurvePoint]:
        """Read the learning curve, one point per row of the table; empty if the file is missing.

        Raises DamagedFile if it is not such a table.
        """
        try:
            text = read_text(self.curve_path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DamagedFile(self.curve_path, f"it cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise DamagedFile(self.curve_path, "it is not text") from error
        try:
            header, *rows = csv.reader(text.splitlines(), strict=True)
            points = [
                CurvePoint(int(step), {metric: float(value)}, float(moment)) for step, metric, value, moment in rows
            ]
        except (ValueError, csv.Error) as error:
            raise DamagedFile(self.curve_path, first_line(error)) from error
        if header != CURVE_HEADER:
            raise DamagedFile(self.curve_path, f"its header is not {','.join(CURVE_HEADER)}")
        for point in points:
            if point.step < 0 or not math.isfinite(point.time) or any(map(math.isnan, point.metrics.values())):
                raise DamagedFile(self.curve_path, f"step {point.step} has an impossible number")
        return points


def _check_file(path: Path, checksum: str | None) -> None:
    """Raise DamagedFile unless the file has this checksum; it must not exist if that is None."""
    if checksum is None:
        if os.path.lexists(path):
            raise DamagedFile(path, "result.json does not know it")
        return
    try:
        is_intact = file_checksum(path) == checksum
    except FileNotFoundError:
        raise DamagedFile(path, "it is missing, and result.json has its checksum") from None
    except OSError as error:
        raise DamagedFile(path, f"it cannot be read: {error.strerror}") from error
    if not is_intact:
        raise DamagedFile(path, "its content does not match its checksum in result.json")


def seed_of(name: str) -> int | None:
    """Return the seed of the folder of that name, or None: ``seed0.bak``, ``seed01`` and ``seed-1`` are no trials."""
    match = SEED_FOLDER.fullmatch(name)
    return int(match[1]) if match is not None and int(match[1]) <= LAST_SEED else None


def identities_in(folder: Path) -> set[Identity]:
    """Return the trials that have a folder in a study's; folders and files of other names are ignored.

    It makes no path objects, since there may be thousands. Raises BbcuError if a folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            cells = [entry for entry in entries if CELL_FOLDER.fullmatch(entry.name) and entry.is_dir()]
        names = ((cell.name, seed_of(name)) for cell in cells for name in os.listdir(cell))
        return {(cell, seed) for cell, seed in names if seed is not None}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise BbcuError(f"{error.filename} cannot be read: {error.strerror}") from error


def trial_folders(outputs: Path, study: str) -> list[TrialFolder]:
    """Return every trial folder of a study, sorted by cell and seed."""
    identities = sorted(identities_in(study_folder(outputs, study)))
    folders = (TrialFolder(outputs, study, cell, seed) for cell, seed in identities)
    return [folder for folder in folders if folder.path.is_dir()]


def mean_psnr(result: Mapping[str, Any]) -> float:
    """Return a result's PSNR in dB, the mean over its test sets."""
    return statistics.fmean(scores["psnr_db"] for scores in result["metrics"].values())


def steps_of(result: Mapping[str, Any]) -> int:
    """Return how many steps the trial trained; 0 for a method that trains nothing."""
    return int(result["setting"].get("train", {}).get("steps", 0))


def metrics_in(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a test set by their names in ``result.json``, without those of its pictures."""
    return {name: value for name, value in scores.items() if name != "images"}
