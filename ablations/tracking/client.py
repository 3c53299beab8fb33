"""Open and create the MLflow store, and find experiments and runs in it."""

import contextlib
import dataclasses
import gc
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

import filelock

from ablations.storage.folder import Identity
from bbcu.errors import BbcuError, ConfigError, first_line
from bbcu.files import remove_abandoned, replacing, temporary_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

from ablations.storage.files import check_writable


class TrackingError(BbcuError):
    """The tracking store cannot be used; the message has its address and the reason."""


def quiet_mlflow() -> None:
    """Turn off MLflow's telemetry, progress bars and migration log; must run before mlflow is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The caller reports once that a server does not answer.
    for name in ("urllib3", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


def client_of(uri: str) -> "MlflowClient":
    """Return a client of the tracking store at ``uri``; raise TrackingError if it cannot be opened."""
    quiet_mlflow()
    from mlflow import MlflowClient

    quiet_mlflow()
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise TrackingError(f"tracking.uri={uri} cannot be used: {first_line(error)}") from error


def prepare_tracking(uri: str, study: str) -> str:
    """Create the store's schema and the study's experiment; return the experiment's id.

    The parent calls this once, before any worker starts: processes that set up an empty SQLite file, or create the same
    experiment, at the same time make each other fail. SQLite is set to write-ahead mode, which is several times faster.
    """
    sqlite = Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
    if sqlite:
        check_writable(sqlite.parent, f"tracking.uri={uri}")
    try:
        if sqlite:
            _create_database(sqlite)
        client = client_of(uri)
        location = (sqlite.parent / "mlruns" / study).as_uri() if sqlite else None
        experiment = client.get_experiment_by_name(study) or _create_experiment(client, study, location)
        if experiment.lifecycle_stage != "active":
            raise TrackingError(f"the MLflow experiment {study!r} is deleted: restore it, or choose another study.name")
        return str(experiment.experiment_id)
    except BbcuError:
        raise
    except Exception as error:
        raise TrackingError(f"tracking.uri={uri} cannot be used: {first_line(error)}") from error


def _create_database(path: Path) -> None:
    """Create an SQLite store in write-ahead mode at ``path``, unless it exists.

    MLflow takes seconds to set up the schema, and a store whose setup was interrupted, or was run by two processes at
    once, could never be used. So the store is created elsewhere and moved into place.
    """
    if not path.exists() or not path.stat().st_size:
        with filelock.FileLock(path.with_name(f"{path.name}.lock")):
            if not path.exists() or not path.stat().st_size:
                remove_abandoned(path.parent, path.name)
                with temporary_folder(path) as folder:
                    created = folder / path.name
                    client_of(f"sqlite:///{created}").search_experiments()
                    _write_ahead(created)
                    with replacing(path) as temporary:
                        shutil.copyfile(created, temporary)
    _write_ahead(path)


def _write_ahead(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _create_experiment(client: "MlflowClient", study: str, location: str | None) -> "Experiment":
    try:
        identifier = client.create_experiment(study, artifact_location=location)
    except Exception:
        # Another sweep may have created it in the meantime.
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise
        return experiment
    return client.get_experiment(identifier)


def experiment_id(uri: str, study: str) -> str:
    """Return the id of the study's experiment; raise ConfigError, which lists the studies, if it does not exist."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None or experiment.lifecycle_stage != "active":
        names = sorted(other.name for other in client.search_experiments() if other.name != "Default")
        raise ConfigError(f"no study {study!r} in {uri}; available: {', '.join(names) or 'none'}")
    return str(experiment.experiment_id)


def search_runs(uri: str, experiment: str, condition: str = "") -> list["Run"]:
    """Return every run of an experiment that meets MLflow's filter ``condition``, oldest first.

    Raises MLflow's own errors.
    """
    client = client_of(uri)
    runs: list[Run] = []
    token = None
    while True:
        with without_garbage_collection():
            page = client.search_runs(
                [experiment], condition, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause Python's collection of reference cycles while millions of long-lived objects are created.

    The collector walks through all of them again and again and frees none; that took two thirds of the time in which
    MLflow lists thousands of runs. Objects outside cycles are freed as usual.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def identity_of(run: "Run") -> tuple[str, int] | None:
    """Return the (cell, seed) that a run belongs to, or None for a run that is not a trial's."""
    tags = run.data.tags
    return (tags["cell"], int(tags["seed"])) if "cell" in tags and "seed" in tags else None


def finished_runs(uri: str, experiment: str) -> set[tuple[str, int]]:
    """Return the (cell, seed) of every trial that MLflow holds as finished."""
    runs = search_runs(uri, experiment, "attributes.status = 'FINISHED'")
    return {identity for run in runs if (identity := identity_of(run)) is not None}


def is_finished(uri: str, experiment: str, cell: str, seed: int) -> bool:
    """Return whether MLflow holds this trial as finished."""
    condition = f"attributes.status = 'FINISHED' and tags.cell = '{cell}' and tags.seed = '{seed}'"
    return bool(search_runs(uri, experiment, condition))


@contextlib.contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """Turn every error of the store into an error with a message of one line; do not create a missing SQLite file.

    Raises ConfigError if the file is missing, and TrackingError if the store cannot be read.
    """
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).is_file():
        raise ConfigError(f"no tracking database at {path}: run a study first, or name another with --tracking-uri")
    try:
        yield
    except BbcuError:
        raise
    except Exception as error:
        raise TrackingError(f"{uri} cannot be read: {first_line(error)}") from error


def study_names(uri: str) -> list[str]:
    """List the studies in the store, sorted; raises as :func:`one_line_errors` does."""
    with one_line_errors(uri):
        experiments = client_of(uri).search_experiments()
    return sorted(experiment.name for experiment in experiments if experiment.name != "Default")


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """MLflow's record of a trial; ``artifacts`` is the address of its files."""

    run_id: str
    name: str
    state: str
    reason: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    artifacts: str


def recorded_runs(uri: str, study: str) -> dict[Identity, RecordedRun]:
    """Return one run for each trial of a study: its first finished one, otherwise its last.

    Raises ConfigError if the database or the study does not exist, and TrackingError if the store cannot be read.
    """
    runs: dict[Identity, RecordedRun] = {}
    with one_line_errors(uri):
        for run in search_runs(uri, experiment_id(uri, study)):
            identity = identity_of(run)
            if identity is not None and (identity not in runs or runs[identity].state != "finished"):
                runs[identity] = _recorded(run)
    return runs


def _recorded(run: "Run") -> RecordedRun:
    """Return a run as plain data; a tag distinguishes interrupted from pruned, which have the same status in MLflow."""
    tags, info = run.data.tags, run.info
    state = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}.get(info.status, "running")
    if tags.get("state") in ("failed", "interrupted", "pruned"):
        state = tags["state"]
    return RecordedRun(
        info.run_id,
        info.run_name,
        state,
        tags.get("reason", ""),
        run.data.params,
        tags,
        run.data.metrics,
        info.artifact_uri,
    )


def run_file(uri: str, run: RecordedRun, name: str) -> Path | None:
    """Return the local path of a file or folder among a run's artifacts, or None if there is no such artifact.

    Artifacts on this machine are opened in place, because a request to MLflow takes 20 ms for each.
    """
    address = urlparse(run.artifacts)
    if address.scheme in ("", "file"):
        path = Path(url2pathname(address.path)) / name
        return path if path.exists() else None
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException, OSError):
        return Path(client_of(uri).download_artifacts(run.run_id, name))
    return None
