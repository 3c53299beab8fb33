"""What a study left behind as one typed frame: :func:`load` reads MLflow, :func:`load_folder` what lies on disk.

A study of thousands of runs costs a few paged calls: params, tags and metrics come with the runs, and a trial's files
are opened only when they are asked for, from ``outputs`` where they still lie there.
"""

import contextlib
import dataclasses
import functools
import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pandas as pd

from ablations.space.settings import flatten
from ablations.storage.files import first_line, read_json
from ablations.storage.folder import Identity, TrialFolder, trial_folders
from ablations.storage.plans import read_plan
from ablations.tracking.client import TrackingError, client_of, experiment_id, identity_of, search_runs
from ablations.tracking.runs import facts_of, final_metrics
from bbcu.errors import BbcuError, ConfigError

if TYPE_CHECKING:
    from mlflow.entities import Run

STATES = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "running",
    "SCHEDULED": "running",
}
"""What each status of an MLflow run is called here; a planned trial without a run is ``missing``."""

ENDED = ("failed", "interrupted", "pruned")
"""How a trial ends that has no result; MLflow has one status for the last two, and its runs a tag that tells them."""

TEXT_COLUMNS = ("cell", "name", "state", "reason", "run_id", "method", "task", "git", "git_dirty", "provenance")
"""The columns of the trials that every row has, beside the whole number ``seed``."""

CURVE_COLUMNS = ("cell", "seed", "step", "metric", "value")

NOT_RECORDED = "not recorded"
"""What stands for the code of a trial that was made before code had a fingerprint, and for data without one."""

"""A trial's cell and seed."""

Fetch = Callable[[str], Path | None]
"""The local path of a trial's file or folder by its name, such as ``curve.csv``; None where the trial left none."""


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
    - ``state``: finished, failed, interrupted, pruned, running or missing; ``reason``: why it is not finished, else
      empty;
    - ``method``, ``task``, ``git``, ``git_dirty``: text; ``provenance``: JSON; empty for a missing trial;
    - ``factor/<name>``: the level that the cell records, as text; ``level/<name>``: the level as it was asked for,
      which differs where ``auto`` became a number; both empty where the cell has no such factor;
    - ``setting/<key>``: everything else that the cell depends on, as text, such as ``setting/train.steps``;
    - ``metric/<name>``: a number, NaN where there is none, such as ``metric/Set5/psnr_db`` (dB),
      ``metric/baseline/Set5/ssim``, ``metric/cost/ops_g`` (10^9 multiply-adds), ``metric/cost/params_k`` (thousands),
      ``metric/timing/train_s`` (seconds).

    ``files`` gives the files of every finished trial by name; nothing of them is read before it is asked for.
    """

    study: str
    trials: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    factors: tuple[str, ...]
    reference: Mapping[str, str]
    files: Mapping[Identity, Fetch]

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """The learning curves of every finished trial: a row per (cell, seed, step, metric)."""
        return self.curves_of(self.files)

    def curves_of(self, identities: Iterable[Identity]) -> pd.DataFrame:
        """The learning curves of some finished trials, as ``curves`` has them for all."""
        return curve_frame({identity: self.files[identity]("curve.csv") for identity in identities})

    @functools.cached_property
    def samples(self) -> Mapping[Identity, Callable[[], Path | None]]:
        """The local folder of the sample pictures of every finished trial, or None where it left none."""
        return {identity: functools.partial(fetch, "samples") for identity, fetch in self.files.items()}

    def record(self, identity: Identity) -> dict[str, Any]:
        """The ``result.json`` of a finished trial: scores by picture, probes; empty where it cannot be had."""
        path = self.files[identity]("result.json") if identity in self.files else None
        return (read_json(path) or {}) if path is not None else {}


def load(tracking_uri: str, study: str, outputs: Path) -> StudyResults:
    """Read a study from MLflow, and its plan from ``outputs``.

    Raises ConfigError where the database, the study or any trial of it does not exist, and TrackingError where the
    tracking store cannot be read.
    """
    with reading(tracking_uri), uncollected():
        counted = counted_runs(search_runs(tracking_uri, experiment_id(tracking_uri, study)))
    plan = read_plan(outputs, study)
    rows = trial_rows(
        plan["trials"],
        {identity: run_row(run) for identity, run in counted.items()},
        functools.partial(TrialFolder, outputs, study),
    )
    if not rows:
        raise ConfigError(f"study {study!r} has no trial yet, neither in {tracking_uri} nor planned in {outputs}")
    files = {
        identity: functools.partial(
            run_file, TrialFolder(outputs, study, *identity).path, tracking_uri, run.info.run_id, run.info.artifact_uri
        )
        for identity, run in counted.items()
        if STATES[run.info.status] == "finished"
    }
    return study_results(study, rows, plan["left_out"], files)


def load_folder(folder: Path) -> StudyResults:
    """Read a study from ``outputs/<study>`` alone, as its trials left it; raises ConfigError where there is none.

    It lacks what MLflow alone makes of a trial: the run's id, and the last values of the curve among the metrics.
    """
    outputs, study = folder.parent, folder.name
    found = {(trial.cell, trial.seed): trial for trial in trial_folders(outputs, study)}
    plan = read_plan(outputs, study)
    rows = trial_rows(
        plan["trials"],
        {identity: row for identity, trial in found.items() if (row := folder_row(trial))},
        functools.partial(TrialFolder, outputs, study),
    )
    if not rows:
        raise ConfigError(f"{folder}: no trial of a study, neither a result nor a plan")
    finished = {(row["cell"], row["seed"]) for row in rows if row["state"] == "finished"}
    files = {identity: functools.partial(kept_file, found[identity].path) for identity in found if identity in finished}
    return study_results(study, rows, plan["left_out"], files)


def study_results(
    study: str,
    rows: Sequence[Mapping[str, Any]],
    left_out: Iterable[Mapping[str, Any]],
    files: Mapping[Identity, Fetch],
) -> StudyResults:
    """A study of these rows, one for each trial; the files are put into their order."""
    order = [(row["cell"], row["seed"]) for row in rows]
    return StudyResults(
        study=study,
        trials=trial_frame(rows),
        left_out=tuple(left_out_of(row) for row in left_out),
        factors=factor_names(rows),
        reference=reference_of(rows),
        files={identity: files[identity] for identity in order if identity in files},
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


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let nothing be looked through for garbage while the body runs.

    MLflow makes fifty objects a run, all of which stay; looking through them again and again takes half of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    planned: Sequence[Mapping[str, Any]],
    runs: Mapping[Identity, Mapping[str, Any]],
    folder_of: Callable[[str, int], TrialFolder],
) -> list[dict[str, Any]]:
    """One row for every trial that was planned or run; ``runs`` holds what is known of those that were run."""
    plans = {(row["cell"], row["seed"]): row for row in planned}
    rows = []
    for identity in dict.fromkeys([*plans, *runs]):
        row = planned_row(plans[identity]) if identity in plans else {}
        row |= runs.get(identity, {})
        row |= {"cell": identity[0], "seed": identity[1]}
        row["state"], row["reason"] = state_and_reason(row, folder_of(*identity))
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
    return {
        "name": run.info.run_name,
        "state": tags["state"] if tags.get("state") in ENDED else STATES[run.info.status],
        "reason": tags.get("reason", ""),
        "run_id": run.info.run_id,
        **facts_row(params, tags),
        **prefixed("metric", run.data.metrics),
    }


def folder_row(folder: TrialFolder) -> dict[str, Any]:
    """What a trial's folder knows of it, spelt as MLflow spells it; empty for a folder without a word."""
    result = folder.result()
    if result is not None:
        facts = facts_of(result)
        row = {"name": facts.name, "state": "finished", **facts_row(facts.params, facts.tags)}
        return row | prefixed("metric", final_metrics(result))
    return told_by(folder)


def told_by(folder: TrialFolder) -> dict[str, str]:
    """What the folder of a trial without a result says of it, ``state`` and ``reason``; empty where it says nothing.

    ``state.json`` tells it; ``failure.json`` did before there was one.
    """
    told = read_json(folder.state_path)
    if told is None:
        failure = read_json(folder.path / "failure.json")
        return {"state": "failed", "reason": str(failure.get("reason", ""))} if failure else {}
    state, reason = str(told.get("state", "")), str(told.get("reason") or "")
    if state == "finished":
        return {"state": "missing", "reason": "its folder says that it finished, and its result is gone or cut short"}
    return {"state": state, "reason": reason} if state in (*ENDED, "running") else {}


def facts_row(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    """A trial's levels, setting and provenance from what MLflow is told of it."""
    names = json.loads(tags["factors"])
    setting = {name: value for name, value in params.items() if name not in names and name != "seed"}
    return {
        **{name: tags[name] for name in ("method", "task", "git", "git_dirty", "provenance")},
        **prefixed("factor", {name: params[name] for name in names if name in params}),
        **prefixed("level", levels_as_text(json.loads(tags["levels"]))),
        **prefixed("setting", setting),
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


def state_and_reason(row: Mapping[str, Any], folder: TrialFolder) -> tuple[str, str]:
    """What a trial is, and why it is not finished; the reason of one that is finished is empty.

    The folder is the truth, since MLflow may have been away; only that a process still runs may have become untrue
    since it was written.
    """
    state, reason = row.get("state", "missing"), row.get("reason", "")
    if state == "finished":
        return state, ""
    if folder.result_path.exists() and folder.result() is not None:
        return state, "finished on disk but not in MLflow: `python -m ablations sync` logs it"
    told = told_by(folder)
    if told and (state not in ENDED or told["state"] in ENDED):
        state, reason = told["state"], told["reason"] or (reason if state == told["state"] else "")
    return state, reason or UNTOLD[state]


UNTOLD = {
    "missing": "planned, not started yet",
    "running": "still running, or stopped without a word",
    **dict.fromkeys(ENDED, "no reason was recorded"),
}
"""The reason of a trial that is not finished where none was recorded."""


def trial_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The trials as :class:`StudyResults` describes them."""
    frame = pd.DataFrame([{name: value for name, value in row.items() if name != "reference"} for row in rows])
    frame = frame.reindex(columns=[*TEXT_COLUMNS, "seed", *sorted(set(frame.columns) - {*TEXT_COLUMNS, "seed"})])
    for name in frame.columns:
        if name.startswith("metric/"):
            frame[name] = frame[name].astype("float64")
        elif name != "seed":
            frame[name] = frame[name].astype("object").fillna("").astype("str")
    return frame


def curve_frame(paths: Mapping[Identity, Path | None]) -> pd.DataFrame:
    """The learning curves in these ``curve.csv`` as one long table.

    MLflow gives a metric's history by a call per metric and run, and pandas takes a millisecond a file, so files of
    one header are read as one.
    """
    texts = {identity: path.read_text(encoding="utf-8") for identity, path in paths.items() if path is not None}
    frames = []
    for header in dict.fromkeys(text.partition("\n")[0] for text in texts.values()):
        bodies = {
            identity: text[len(header) + 1 :] for identity, text in texts.items() if text.startswith(f"{header}\n")
        }
        text = "".join([f"{header}\n", *bodies.values()])
        frame = pd.read_csv(StringIO(text), dtype={"value": "str"}).astype({"value": "float64"})
        counts = [body.count("\n") for body in bodies.values()]
        frame["cell"] = np.repeat([cell for cell, _ in bodies], counts)
        frame["seed"] = np.repeat([seed for _, seed in bodies], counts)
        frames.append(frame[list(CURVE_COLUMNS)])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(CURVE_COLUMNS))


def kept_file(folder: Path, name: str) -> Path | None:
    """A file of a trial's folder, or None."""
    return folder / name if (folder / name).exists() else None


def run_file(folder: Path, tracking_uri: str, run: str, artifacts: str, name: str) -> Path | None:
    """A file of a finished trial: its folder's where that is whole, else the run's artifact, or None.

    Artifacts that lie on this machine are opened where they are; asking MLflow for each takes 20 ms.
    """
    if (folder / "result.json").exists():
        return kept_file(folder, name)
    address = urlparse(artifacts)
    if address.scheme in ("", "file"):
        return kept_file(Path(url2pathname(address.path)), name)
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException, OSError):
        return Path(client_of(tracking_uri).download_artifacts(run, name))
    return kept_file(folder, name)


def left_out_of(row: Mapping[str, Any]) -> LeftOut:
    """A row of the plan's ``left_out``."""
    return LeftOut(levels_as_text(row["levels"]), setting_as_text(row["setting"]), row["reason"])


def factor_names(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Every factor that some trial has, in the order in which trials name them."""
    names = [name.removeprefix("level/") for row in rows for name in row if name.startswith("level/")]
    return tuple(dict.fromkeys(names))


def reference_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The reference level of every factor, as the runs state it."""
    reference: dict[str, str] = {}
    for text in dict.fromkeys(row["reference"] for row in rows if "reference" in row):
        reference |= levels_as_text(json.loads(text))
    return reference
