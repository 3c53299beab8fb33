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
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import filelock

from ablations.storage.folder import Identity
from ablations.tracking.notes import MEAN
from bbcu.errors import BbcuError, ConfigError, first_line
from bbcu.files import remove_abandoned, replacing, temporary_folder
from bbcu.passwords import remember

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
    # The caller reports an error of the store once and in one line; these would add its traceback.
    for name in ("alembic", "mlflow", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("mlflow.store", "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def errors_of(uri: str) -> Iterator[None]:
    """Raise a TrackingError of one line for every error of the store."""
    try:
        yield
    except BbcuError:
        raise
    # MLflow passes on the errors of its many libraries.
    except Exception as error:
        raise TrackingError(f"tracking.uri={uri} cannot be used: {first_line(error)}") from error


def client_of(uri: str) -> "MlflowClient":
    """Return a client of the tracking store at ``uri``; raise TrackingError if it cannot be opened."""
    quiet_mlflow()
    from mlflow import MlflowClient

    quiet_mlflow()
    remember(uri)
    with errors_of(uri):
        return MlflowClient(tracking_uri=uri)


NAME = "name"
"""The tag with the name of a trial's cell; the name of its run has the seed as well."""

KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""The tag of an experiment that says whether MLflow shows it as the training of models or as an agent, and our value.

Its own guess, ``..._inferred``, is replaced; what a user has chosen is kept.
"""

DESCRIBED_BY, REPORT = "described_by", "report"
"""The tag of an experiment that says what its description comes from, and its value once a report has written it."""

STATES = "states"
"""The name of the run that holds the state of every trial, and the plan."""

SQLITE = "sqlite:///"
HEADER = b"SQLite format 3\0"
"""The first bytes of every SQLite database."""

LONGEST_NAME = 200
"""The most bytes of the name of a database, to which SQLite and locks add endings; file systems allow 255."""


def database_of(uri: str) -> Path | None:
    """Return the file of a store in SQLite, None for another store; raise TrackingError for one MLflow cannot use.

    MLflow decodes ``%41`` in a path and ends it at a ``?``, so it would use another file.
    """
    if uri and not uri.startswith("sqlite"):
        return None
    name, refused = uri.removeprefix(SQLITE), f"tracking.uri={uri} cannot be used"
    if not uri.startswith(SQLITE) or name in ("", ":memory:") or name.startswith("file:"):
        raise TrackingError(f"{refused}: name a file, as in {SQLITE}mlflow.db; a database in memory would be lost")
    path = Path(name).absolute()
    if unquote(str(path)) != str(path) or "?" in str(path) or not str(path).isprintable():
        raise TrackingError(f"{refused}: a path with ?, %41 or a control character is another one to MLflow; rename it")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise TrackingError(f"{refused}: the file's name has more than {LONGEST_NAME} bytes")
    with errors_of(uri):
        is_new = not path.exists() or not path.stat().st_size
        if path.exists() and not path.is_file():
            raise TrackingError(f"{refused}: {path} is not a file")
        if not is_new:
            with path.open("rb") as file:
                if file.read(len(HEADER)) != HEADER:
                    raise TrackingError(f"{refused}: {path} is not an SQLite database")
    return path


def prepare_tracking(uri: str, study: str) -> str:
    """Create the store's schema and the study's experiment; return the experiment's id.

    The parent calls this once, before any worker starts: processes that set up an empty SQLite file, or create the same
    experiment, at the same time make each other fail. SQLite is set to write-ahead mode, which is several times faster.
    """
    sqlite = database_of(uri)
    if sqlite:
        check_writable(sqlite.parent, f"tracking.uri={uri}")
    with errors_of(uri):
        if sqlite:
            _create_database(sqlite)
        client = client_of(uri)
        location = (sqlite.parent / "mlruns" / study).as_uri() if sqlite else None
        experiment = client.get_experiment_by_name(study) or _create_experiment(client, study, location)
        if experiment.lifecycle_stage != "active":
            raise TrackingError(f"the MLflow experiment {study!r} is deleted: restore it, or choose another study.name")
        if "inferred" in experiment.tags.get(KIND, "inferred"):
            client.set_experiment_tag(experiment.experiment_id, KIND, TRAINING)
        return str(experiment.experiment_id)


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
        identifier = client.create_experiment(study, artifact_location=location, tags={KIND: TRAINING})
    except Exception:
        # Another sweep may have created it in the meantime.
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise
        return experiment
    return client.get_experiment(identifier)


def experiment_id(uri: str, study: str) -> str:
    """Return the id of the study's experiment.

    Raises ConfigError, which lists the studies, if it does not exist, and TrackingError if the store cannot be used.
    """
    client = client_of(uri)
    with errors_of(uri):
        experiment = client.get_experiment_by_name(study)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return str(experiment.experiment_id)
        names = sorted(other.name for other in client.search_experiments() if other.name != "Default")
        raise ConfigError(f"no study {study!r} in {uri}; available: {', '.join(names) or 'none'}")


def search_runs(uri: str, experiment: str, condition: str = "") -> list["Run"]:
    """Return every run of an experiment that meets MLflow's filter ``condition``, oldest first.

    Raises TrackingError if the store cannot be used.
    """
    client = client_of(uri)
    runs: list[Run] = []
    token = None
    while True:
        with errors_of(uri), without_garbage_collection():
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
    path = database_of(uri)
    if path is not None and not path.exists():
        shown = uri.removeprefix(SQLITE)
        raise ConfigError(f"no tracking database at {shown}: run a study first, or name another with --tracking-uri")
    with errors_of(uri):
        yield


def study_names(uri: str) -> list[str]:
    """List the studies in the store, sorted; raises as :func:`one_line_errors` does."""
    with one_line_errors(uri):
        experiments = client_of(uri).search_experiments()
    return sorted(experiment.name for experiment in experiments if experiment.name != "Default")


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """MLflow's record of a trial; ``name`` is that of its cell, ``artifacts`` the address of its files."""

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


def recorded_plan(uri: str, study: str) -> Path | None:
    """Return the local path of the plan that MLflow has of a study, or None; raises as :func:`recorded_runs` does."""
    with one_line_errors(uri):
        runs = search_runs(uri, experiment_id(uri, study), f"tags.kind = '{STATES}'")
    return run_file(uri, _recorded(runs[0]), "plan.json") if runs else None


def _recorded(run: "Run") -> RecordedRun:
    """Return a run as plain data; a tag distinguishes interrupted from pruned, which have the same status in MLflow."""
    tags, info = run.data.tags, run.info
    state = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}.get(info.status, "running")
    if tags.get("state") in ("failed", "interrupted", "pruned"):
        state = tags["state"]
    return RecordedRun(
        info.run_id,
        tags.get(NAME, info.run_name),
        state,
        tags.get("reason", ""),
        run.data.params,
        tags,
        {name: value for name, value in run.data.metrics.items() if name != MEAN},
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
