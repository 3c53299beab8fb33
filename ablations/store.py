"""Where trials leave their facts: a folder each on disk, and a run each in MLflow.

The folder is the truth: ``result.json`` is written last and atomically, so a folder with a valid one holds a whole
trial. MLflow holds the same facts for people to look at; a run that is missing there is logged again from the folder
(:func:`synchronise`). A trial is finished when both agree.
"""

import contextlib
import csv
import dataclasses
import functools
import json
import logging
import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from ablations.memory import without_collecting
from ablations.space import level_text
from bbcu.errors import BbcuError, ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

log = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000
"""How many metrics MLflow takes in one ``log_batch``."""

PATIENCE_SECONDS = 60.0
PATIENCE_SHARE = 0.05
"""How long a trial waits for MLflow in all, in seconds or as a share of its own time, whichever is more."""

TAG_LENGTH = 5000
"""How many characters MLflow keeps of a tag."""


RESULT_KEYS = {
    *("study", "cell", "name", "factors", "levels", "reference", "setting", "method", "task", "seed"),
    *("metrics", "baseline", "cost", "timing", "probes", "provenance"),
}
"""What every ``result.json`` has."""


class TrackingError(BbcuError):
    """The tracking store cannot be used at all; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """The metrics of one training step: ``{"train/loss": 0.03, "Set5/psnr_db": 34.1}``, and when they were taken."""

    step: int
    metrics: Mapping[str, float]
    time: float = dataclasses.field(default_factory=time.time)


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Put ``text`` at ``path`` so that a reader, or a crash, sees the old file or the new one and nothing between."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to, and move it to ``path`` when the body ends without an error.

    ``durable`` waits until the disk has it, so that a machine that loses its power keeps the old file or the new one
    too; without it that holds for processes that end, however they do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def study_folder(outputs: Path, study: str) -> Path:
    return outputs / study


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is none or it was cut short."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class TrialFolder:
    """``outputs/<study>/<cell>/seed<N>/``: everything that one trial leaves on disk."""

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
        """The folder at ``path``, its identity read from the path."""
        return cls(path.parents[2], path.parents[1].name, path.parent.name, int(path.name.removeprefix("seed")))

    def result(self) -> dict[str, Any] | None:
        """The trial's result, or None where it has none that is whole and its own."""
        result = read_json(self.result_path)
        if result is None or not result.keys() >= RESULT_KEYS:
            return None
        return result if (result["cell"], result["seed"]) == (self.cell, self.seed) else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_atomically(self.result_path, json.dumps(result, indent=1) + "\n")

    def write_curve(self, points: Iterable[CurvePoint]) -> None:
        """Keep the learning curve as a long table: step, metric, value, time (seconds since the epoch)."""
        with replacing(self.curve_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["step", "metric", "value", "time"])
            for point in points:
                for name, value in point.metrics.items():
                    writer.writerow([point.step, name, repr(value), repr(point.time)])

    def curve(self) -> list[CurvePoint]:
        """The learning curve as it was written, one point a row; empty where there is none."""
        if not self.curve_path.exists():
            return []
        with self.curve_path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [CurvePoint(int(row["step"]), {row["metric"]: float(row["value"])}, float(row["time"])) for row in rows]


def trial_folders(outputs: Path, study: str) -> list[TrialFolder]:
    """Every trial folder of a study, sorted by cell and seed."""
    found = [TrialFolder.of(path) for path in study_folder(outputs, study).glob("*/seed*") if path.is_dir()]
    return sorted(found, key=lambda folder: (folder.cell, folder.seed))


def write_plan(outputs: Path, study: str, plan: Mapping[str, Any]) -> None:
    """Add a plan to what the study has planned before; raises BbcuError where the disk does not take it.

    A plan is ``{"trials": [{"cell", "seed", "factors", ...}], "left_out": [{"factors", "reason"}], ...}``; trials are
    told apart by cell and seed, what was left out by its levels and setting, and each row is given the time at which
    it was planned first, ``planned_at``, in seconds since the epoch. The other keys are replaced.
    """
    folder = study_folder(outputs, study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".plan.lock"):
            merged = _merged(read_plan(outputs, study), plan, time.time())
            write_atomically(folder / "plan.json", json.dumps(merged, indent=1) + "\n")
    except OSError as error:
        raise BbcuError(f"outputs={outputs}: {folder} cannot be written to: {error.strerror}") from error


def _merged(before: Mapping[str, Any], plan: Mapping[str, Any], now: float) -> dict[str, Any]:
    merged = dict(plan)
    for name, identity in (("trials", ("cell", "seed")), ("left_out", AS_ASKED)):
        known = {_texts_of(row, identity): row for row in before[name]}
        new = {_texts_of(row, identity): row for row in plan.get(name, [])}
        times = {key: known[key].get("planned_at", now) if key in known else now for key in new}
        merged[name] = list({**known, **{key: {**row, "planned_at": times[key]} for key, row in new.items()}}.values())
    if before["left_out"]:
        # What an earlier command has left out is not left out any more where it is planned now.
        planned = {_texts_of(row, AS_ASKED) for row in plan.get("trials", [])}
        planned -= {_texts_of(row, AS_ASKED) for row in plan.get("left_out", [])}
        merged["left_out"] = [row for row in merged["left_out"] if _texts_of(row, AS_ASKED) not in planned]
    return merged


AS_ASKED = ("levels", "setting")
"""The keys of a plan's row that say what was asked for, before it took its canonical form."""


def _texts_of(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps([row.get(key) for key in keys], sort_keys=True)


def read_plan(outputs: Path, study: str) -> dict[str, Any]:
    """What the study has planned so far; an empty plan where it has none."""
    return read_json(study_folder(outputs, study) / "plan.json") or {"trials": [], "left_out": []}


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What MLflow is told of a trial when it starts: its identity, its name and its params and tags."""

    study: str
    cell: str
    seed: int
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


def quiet_mlflow() -> None:
    """Turn off telemetry, progress bars and the migration log; must run before mlflow is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What a server that is away does to a call is said once, by whoever called.
    for name in ("urllib3", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


def client_of(uri: str) -> "MlflowClient":
    """A client of the tracking store at ``uri``; raises TrackingError with the reason where there is none."""
    quiet_mlflow()
    from mlflow import MlflowClient

    quiet_mlflow()
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise TrackingError(f"tracking.uri={uri} cannot be used: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def prepare_tracking(uri: str, study: str) -> str:
    """Create the store's schema and the study's experiment, and give the experiment's id.

    To be called once, by the parent, before any worker starts: several processes that meet a fresh SQLite file, or
    that create one experiment, fail each other. SQLite is put into write-ahead mode, which multiplies its rate.
    """
    sqlite = Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
    if sqlite:
        check_writable(sqlite.parent, f"tracking.uri={uri}")
    try:
        if sqlite:
            _make_database(sqlite)
        client = client_of(uri)
        location = (sqlite.parent / "mlruns" / study).as_uri() if sqlite else None
        experiment = client.get_experiment_by_name(study) or _make_experiment(client, study, location)
        if experiment.lifecycle_stage != "active":
            raise TrackingError(f"the MLflow experiment {study!r} is deleted: restore it, or choose another study.name")
        return str(experiment.experiment_id)
    except BbcuError:
        raise
    except Exception as error:
        raise TrackingError(f"tracking.uri={uri} cannot be used: {first_line(error)}") from error


def _make_database(path: Path) -> None:
    """See that there is an SQLite store at ``path``, in write-ahead mode.

    MLflow takes seconds to make one, statement by statement. So it is made elsewhere and put in place as a whole: one
    that was cut short could never be used, and neither could one that two processes have made at once.
    """
    if not path.exists() or not path.stat().st_size:
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists() or not path.stat().st_size:
                with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
                    made = Path(folder) / path.name
                    client_of(f"sqlite:///{made}").search_experiments()
                    _write_ahead(made)
                    with replacing(path) as temporary:
                        shutil.copyfile(made, temporary)
    _write_ahead(path)


def _write_ahead(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _make_experiment(client: "MlflowClient", study: str, location: str | None) -> "Experiment":
    try:
        identifier = client.create_experiment(study, artifact_location=location)
    except Exception:
        # Another sweep may have made it since.
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise
        return experiment
    return client.get_experiment(identifier)


def check_writable(folder: Path, what: str) -> None:
    """Make ``folder``, and raise BbcuError, which begins with ``what``, where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BbcuError(f"{what}: {folder} cannot be written to: {error.strerror}") from error


def experiment_id(uri: str, study: str) -> str:
    """The id of the study's experiment; raises ConfigError, naming those that exist, where there is none."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None or experiment.lifecycle_stage != "active":
        names = sorted(found.name for found in client.search_experiments() if found.name != "Default")
        raise ConfigError(f"no study {study!r} in {uri}; there: {', '.join(names) if names else 'none'}")
    return str(experiment.experiment_id)


def search_runs(uri: str, experiment: str, condition: str = "") -> list["Run"]:
    """Every run of an experiment that meets MLflow's filter ``condition``, oldest first.

    MLflow's own errors come through, as its retries and its transport make them.
    """
    client = client_of(uri)
    runs: list[Run] = []
    token = None
    while True:
        with without_collecting():
            page = client.search_runs(
                [experiment], condition, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def identity_of(run: "Run") -> tuple[str, int] | None:
    """The (cell, seed) that a run belongs to, or None for a run that is no trial's."""
    tags = run.data.tags
    return (tags["cell"], int(tags["seed"])) if "cell" in tags and "seed" in tags else None


def finished_runs(uri: str, experiment: str) -> set[tuple[str, int]]:
    """The (cell, seed) of every trial that MLflow holds as finished."""
    runs = search_runs(uri, experiment, "attributes.status = 'FINISHED'")
    return {identity for run in runs if (identity := identity_of(run)) is not None}


def is_finished(uri: str, experiment: str, cell: str, seed: int) -> bool:
    """Whether MLflow holds this trial as finished."""
    condition = f"attributes.status = 'FINISHED' and tags.cell = '{cell}' and tags.seed = '{seed}'"
    return bool(search_runs(uri, experiment, condition))


def end_run(client: "MlflowClient", run_id: str, state: str, reason: str = "", ended: float | None = None) -> None:
    """Close a run with the state of its trial, and the reason where there is one; ``ended`` is in seconds, or now."""
    status = {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
    if reason:
        client.set_tag(run_id, "reason", reason[:TAG_LENGTH])
    client.set_tag(run_id, "state", state)
    client.set_terminated(run_id, status, None if ended is None else int(1000 * ended))


def place_of(folder: TrialFolder) -> str:
    """Where the folder of a trial is, as MLflow is told it: the machine and the path."""
    return f"{platform.node()}:{folder.path.resolve()}"


class TrialRun:
    """One trial's run in MLflow, from RUNNING to FINISHED or FAILED; ``seconds`` is how long MLflow has taken so far.

    A store that goes away never stops a training: the first call that fails says so once in the log, the rest is
    skipped, and the facts wait on disk for :func:`ablations.syncing.synchronise`. ``experiment`` is None where it was
    away from the beginning. ``began`` is when the trial did, in seconds since the epoch, where that is not now.
    """

    def __init__(self, uri: str, experiment: str | None, facts: RunFacts, began: float | None = None) -> None:
        self._uri, self._experiment, self._facts = uri, experiment or "", facts
        self._began = None if began is None else int(1000 * began)
        self._away = experiment is None
        self._made = time.monotonic()
        self._run_id = ""
        self.seconds = 0.0
        self._call(self._start)

    @property
    def recorded(self) -> bool:
        """Whether everything up to now is in MLflow."""
        return not self._away

    def log_curve(self, points: Sequence[CurvePoint]) -> None:
        """Log every metric of ``points``, in as few calls as MLflow takes."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * point.time), point.step)
            for point in points
            for name, value in point.metrics.items()
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            batch = metrics[start : start + METRICS_PER_BATCH]
            self._call(functools.partial(self._log_metrics, batch))

    def finish(self, folder: TrialFolder, metrics: Mapping[str, float], step: int, ended: float | None = None) -> None:
        """Log the final metrics at ``step`` and the folder's files, and close the run as FINISHED.

        ``ended`` is when the trial did, in seconds since the epoch, where that is not now.
        """
        self.log_curve([CurvePoint(step, metrics)])
        self._call(lambda: self._log_files(folder))
        self._call(self._retire_others)
        self._call(lambda: end_run(self._client, self._run_id, "finished", ended=ended))

    def leave(self, folder: TrialFolder, state: str, reason: str, ended: float | None = None) -> None:
        """Close the run of a trial that has no result with its state ("failed", "interrupted", "pruned") and reason."""
        self._call(lambda: self._log_files(folder))
        self._call(lambda: end_run(self._client, self._run_id, state, reason, ended))

    def _start(self) -> None:
        from mlflow.entities import Param, RunTag

        self._client = client_of(self._uri)
        self._end_abandoned()
        tags = {**self._facts.tags, "study": self._facts.study, "cell": self._facts.cell, "seed": str(self._facts.seed)}
        run = self._client.create_run(self._experiment, self._began, tags, self._facts.name)
        self._run_id = run.info.run_id
        params = [Param(name, value) for name, value in self._facts.params.items()]
        self._client.log_batch(self._run_id, params=params, tags=[RunTag("state", "running")])

    def _end_abandoned(self) -> None:
        """Close what a killed process left open; the caller holds the trial, so nobody works on those runs."""
        for run in search_runs(self._uri, self._experiment, f"{self._own_runs()} and attributes.status = 'RUNNING'"):
            end_run(self._client, run.info.run_id, "interrupted", "interrupted: the process ended without a word")

    def _retire_others(self) -> None:
        """Take back other runs of this trial that are finished, or open, as one may count.

        The result of a finished one was no longer on disk; an open one is what a slow server made of a repeated call.
        """
        for run in search_runs(self._uri, self._experiment, self._own_runs()):
            if run.info.run_id == self._run_id or run.info.status not in ("FINISHED", "RUNNING"):
                continue
            end_run(self._client, run.info.run_id, "interrupted", f"run {self._run_id} takes its place")

    def _own_runs(self) -> str:
        return f"tags.cell = '{self._facts.cell}' and tags.seed = '{self._facts.seed}'"

    def _log_metrics(self, metrics: Sequence["Metric"]) -> None:
        self._client.log_batch(self._run_id, metrics=metrics)

    def _log_files(self, folder: TrialFolder) -> None:
        # MLflow looks the run up at each call, so everything goes in one.
        with tempfile.TemporaryDirectory() as name:
            for path in (folder.config_path, folder.result_path, folder.curve_path, folder.state_path, folder.log_path):
                if path.exists():
                    shutil.copy(path, name)
            if folder.samples.is_dir():
                shutil.copytree(folder.samples, Path(name) / "samples")
            self._client.log_artifacts(self._run_id, name)

    def _call(self, action: Callable[[], object]) -> None:
        if self._away:
            return
        if self.seconds > max(PATIENCE_SECONDS, PATIENCE_SHARE * (time.monotonic() - self._made)):
            self._away = True
            log.warning("MLflow at %s is too slow; the records wait on disk", self._uri)
            return
        start = time.perf_counter()
        try:
            action()
        except Exception as error:
            self._away = True
            log.warning("MLflow at %s does not take records (%s); they wait on disk", self._uri, first_line(error))
        finally:
            self.seconds += time.perf_counter() - start


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result as MLflow names them: ``Set5/psnr_db``, ``cost/ops_g``, ``timing/train_s``, ..."""
    metrics = {f"{name}/{metric}": scores[metric] for name, scores in result["metrics"].items() for metric in METRICS}
    for name, scores in result["baseline"].items():
        metrics |= {f"baseline/{name}/{metric}": scores[metric] for metric in METRICS}
    for group in ("cost", "timing"):
        metrics |= {f"{group}/{name}": value for name, value in result[group].items()}
    return metrics


def steps_of(result: Mapping[str, Any]) -> int:
    """How many steps the trial trained; 0 for a method that trains nothing."""
    return int(result["setting"].get("train", {}).get("steps", 0))


METRICS = ("psnr_db", "ssim")
"""The metrics of a test set, as ``result.json`` names them."""


def facts_of(result: Mapping[str, Any], folder: TrialFolder | None = None) -> RunFacts:
    """What MLflow is told of a trial, from its result or from what is known of it before it starts."""
    setting = {name: str(value) for name, value in flatten(result["setting"]).items()}
    factors = {name: level_text(level) for name, level in result["factors"].items()}
    provenance = result["provenance"]
    tags = {
        "method": result["method"],
        "task": result["task"],
        "factors": json.dumps(list(result["factors"])),
        "levels": json.dumps(result["levels"]),
        "reference": json.dumps(result["reference"]),
        "git": provenance["git"],
        "git_dirty": level_text(provenance["dirty"]),
        "provenance": json.dumps(provenance),
        **({} if folder is None else {"folder": place_of(folder)}),
    }
    params = {**factors, **setting, "seed": str(result["seed"])}
    return RunFacts(result["study"], result["cell"], result["seed"], result["name"], params, tags)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"steps": 5}}`` as ``{"train.steps": 5}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def telling_apart(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell flat settings apart, the task first; none that tells no more than those before it."""
    keys = sorted({key for setting in settings for key in setting}, key=lambda key: (key != "task.name", key))
    told: list[str] = []
    for key in keys:
        if _kinds(settings, [*told, key]) > _kinds(settings, told):
            told.append(key)
    return told


def _kinds(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    """How many settings these keys tell apart."""
    return len({tuple(str(setting.get(key)) for key in keys) for setting in settings})
