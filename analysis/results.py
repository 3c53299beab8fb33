"""What a study left behind, read from MLflow in one place: :func:`load`."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ablations.store import (
    TrackingError,
    TrialFolder,
    client_of,
    experiment_id,
    first_line,
    flatten,
    identity_of,
    read_json,
    read_plan,
    search_runs,
)
from bbcu.errors import BbcuError, ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATES = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "running",
    "SCHEDULED": "running",
}
"""What each status of an MLflow run is called here; a planned trial without a run is ``missing``."""

TEXT_COLUMNS = ("cell", "name", "state", "reason", "run_id", "method", "task", "git", "git_dirty", "provenance")
"""The columns of the trials that every row has, beside the whole number ``seed``."""

CURVE_COLUMNS = ("cell", "seed", "step", "metric", "value")

Identity = tuple[str, int]
"""A trial's cell and seed."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A cell that the study did not train, and why."""

    levels: Mapping[str, str]
    setting: Mapping[str, str]
    reason: str


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """Everything that a report needs to know of one study.

    ``trials`` has one row per trial, finished or not, those of the plan first and in its order, and these columns:

    - ``seed``: whole number; ``cell``: its SHA-256; ``name``: the run's name; ``run_id``: empty for a missing trial;
    - ``state``: finished, failed, interrupted, running or missing; ``reason``: why it is not finished, else empty;
    - ``method``, ``task``, ``git``, ``git_dirty``: text; ``provenance``: JSON; empty for a missing trial;
    - ``factor/<name>``: the level that the cell records, as text; ``level/<name>``: the level as it was asked for,
      which differs where ``auto`` became a number; both empty where the cell has no such factor;
    - ``setting/<key>``: everything else that the cell depends on, as text, such as ``setting/train.steps``;
    - ``metric/<name>``: a number, NaN where there is none, such as ``metric/Set5/psnr_db`` (dB),
      ``metric/baseline/Set5/ssim``, ``metric/cost/ops_g`` (10^9 multiply-adds), ``metric/cost/params_k`` (thousands),
      ``metric/timing/train_s`` (seconds).

    ``curves`` has a row per (cell, seed, step, metric) of every finished trial. ``samples`` gives, for a finished
    trial, the local folder of its sample pictures, or None where it left none.
    """

    study: str
    trials: pd.DataFrame
    curves: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    samples: Mapping[Identity, Callable[[], Path | None]]
    factors: tuple[str, ...]
    reference: Mapping[str, str]


def load(tracking_uri: str, study: str, outputs: Path) -> StudyResults:
    """Read a study from MLflow, and its plan from ``outputs``.

    Raises ConfigError where the database, the study or any trial of it does not exist, and TrackingError where the
    tracking store cannot be read.
    """
    with reading(tracking_uri):
        client = client_of(tracking_uri)
        runs = search_runs(tracking_uri, experiment_id(tracking_uri, study))
    plan = read_plan(outputs, study)
    counted = counted_runs(runs)
    rows = trial_rows(plan["trials"], counted, functools.partial(TrialFolder, outputs, study))
    if not rows:
        raise ConfigError(f"study {study!r} has no trial yet, neither in {tracking_uri} nor planned in {outputs}")
    fetch = {
        identity: functools.partial(artifact, client, run.info.run_id, TrialFolder(outputs, study, *identity).path)
        for identity, run in counted.items()
        if STATES[run.info.status] == "finished"
    }
    return StudyResults(
        study=study,
        trials=trial_frame(rows),
        curves=curve_frame(fetch),
        left_out=tuple(left_out_of(row) for row in plan["left_out"]),
        samples={identity: functools.partial(get, "samples") for identity, get in fetch.items()},
        factors=factor_names(rows),
        reference=reference_of(counted.values()),
    )


def study_names(tracking_uri: str) -> list[str]:
    """The studies in a tracking store, sorted; raises as :func:`load` does."""
    with reading(tracking_uri):
        experiments = client_of(tracking_uri).search_experiments()
    return sorted(experiment.name for experiment in experiments if experiment.name != "Default")


@contextlib.contextmanager
def reading(tracking_uri: str) -> Iterator[None]:
    """Make every error of the tracking store one line; a SQLite file that is absent is an error and is not created."""
    path = tracking_uri.removeprefix("sqlite:///")
    if path != tracking_uri and not Path(path).is_file():
        raise ConfigError(f"no tracking database at {path}: run a study first, or name another with --tracking-uri")
    try:
        yield
    except BbcuError:
        raise
    except Exception as error:
        raise TrackingError(f"{tracking_uri} cannot be read: {first_line(error)}") from error


def counted_runs(runs: Iterable["Run"]) -> dict[Identity, "Run"]:
    """The run that counts for each trial: its first finished one, otherwise its last; ``runs`` are oldest first."""
    counted: dict[Identity, Run] = {}
    for run in runs:
        identity = identity_of(run)
        if identity is None or (identity in counted and counted[identity].info.status == "FINISHED"):
            continue
        counted[identity] = run
    return counted


def trial_rows(
    planned: Sequence[Mapping[str, Any]], runs: Mapping[Identity, "Run"], folder_of: Callable[[str, int], TrialFolder]
) -> list[dict[str, Any]]:
    """One row for every trial that was planned or run."""
    plans = {(row["cell"], row["seed"]): row for row in planned}
    rows = []
    for identity in dict.fromkeys([*plans, *runs]):
        row = planned_row(plans[identity]) if identity in plans else {}
        if identity in runs:
            row |= run_row(runs[identity])
        row |= {"cell": identity[0], "seed": identity[1]}
        row["state"] = row.get("state", "missing")
        row["reason"] = reason_of(row, folder_of(*identity))
        rows.append(row)
    return rows


def planned_row(planned: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan knows of a trial."""
    return {
        "name": planned["name"],
        **prefixed("factor", levels_as_text(planned["factors"])),
        **prefixed("level", levels_as_text(planned["levels"])),
        **prefixed("setting", setting_as_text(planned["setting"])),
    }


def run_row(run: "Run") -> dict[str, Any]:
    """What MLflow knows of a trial."""
    params, tags = run.data.params, run.data.tags
    names = json.loads(tags["factors"])
    setting = {name: value for name, value in params.items() if name not in names and name != "seed"}
    return {
        "name": run.info.run_name,
        "state": STATES[run.info.status],
        "reason": tags.get("reason", ""),
        "run_id": run.info.run_id,
        **{name: tags[name] for name in ("method", "task", "git", "git_dirty", "provenance")},
        **prefixed("factor", {name: params[name] for name in names if name in params}),
        **prefixed("level", levels_as_text(json.loads(tags["levels"]))),
        **prefixed("setting", setting),
        **prefixed("metric", run.data.metrics),
        "reference": tags["reference"],
    }


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"bn": "post"}`` as ``{"level/bn": "post"}``."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def levels_as_text(levels: Mapping[str, object]) -> dict[str, str]:
    """Levels the way a user types them: ``true``, ``130``, ``[body,up]``."""
    return {name: typed_level(level) for name, level in levels.items()}


def typed_level(level: object) -> str:
    """One level the way a user types it."""
    if isinstance(level, list):
        return f"[{','.join(typed_level(part) for part in level)}]"
    if isinstance(level, bool):
        return str(level).lower()
    return f"{level:g}" if isinstance(level, float) else str(level)


def setting_as_text(setting: Mapping[str, Any]) -> dict[str, str]:
    """A plan's setting as the run's params spell it, so that a trial without a run finds those of its setting."""
    return {name: str(value) for name, value in flatten(setting).items()}


def reason_of(row: Mapping[str, Any], folder: TrialFolder) -> str:
    """Why a trial is not finished; empty where it is."""
    if row["state"] == "finished":
        return ""
    if folder.result() is not None:
        return "finished on disk but not in MLflow: `python -m ablations sync` logs it"
    if row.get("reason"):
        return str(row["reason"])
    if row["state"] != "missing":
        return "still running, or stopped without a word" if row["state"] == "running" else "no reason was recorded"
    failure = read_json(folder.failure_path)
    return f"failed, and is not in MLflow: {failure['reason']}" if failure else "planned, not started yet"


def trial_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The trials as :class:`StudyResults` describes them."""
    frame = pd.DataFrame([{name: value for name, value in row.items() if name != "reference"} for row in rows])
    frame = frame.reindex(columns=[*TEXT_COLUMNS, "seed", *sorted(set(frame.columns) - {*TEXT_COLUMNS, "seed"})])
    for name in frame.columns:
        if name.startswith("metric/"):
            frame[name] = frame[name].astype("float64")
        elif name != "seed":
            frame[name] = frame[name].fillna("").astype("str")
    return frame


def curve_frame(fetch: Mapping[Identity, Callable[[str], Path | None]]) -> pd.DataFrame:
    """The learning curves of all trials as one long table.

    They come from the run's ``curve.csv``: asking MLflow for each metric's history is a call per metric and run.
    """
    frames = []
    for (cell, seed), get in fetch.items():
        path = get("curve.csv")
        if path is not None:
            frames.append(pd.read_csv(path).assign(cell=cell, seed=seed)[list(CURVE_COLUMNS)])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(CURVE_COLUMNS))


def artifact(client: "MlflowClient", run: str, folder: Path, name: str) -> Path | None:
    """A local copy of a run's artifact, or the trial's own file where MLflow's cannot be reached, or None."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException, OSError):
        return Path(client.download_artifacts(run, name))
    return folder / name if (folder / name).exists() else None


def left_out_of(row: Mapping[str, Any]) -> LeftOut:
    """A row of the plan's ``left_out``."""
    return LeftOut(levels_as_text(row["levels"]), setting_as_text(row["setting"]), row["reason"])


def factor_names(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Every factor that some trial has, in the order in which trials name them."""
    names = [name.removeprefix("level/") for row in rows for name in row if name.startswith("level/")]
    return tuple(dict.fromkeys(names))


def reference_of(runs: Iterable["Run"]) -> dict[str, str]:
    """The reference level of every factor, as the runs state it."""
    reference: dict[str, str] = {}
    for run in runs:
        reference |= levels_as_text(json.loads(run.data.tags["reference"]))
    return reference
