"""Read a study back as one typed table: from its folder, and from MLflow where there is no folder.

A trial's ``result.json`` is the truth. Large files, such as curves and sample pictures, are opened only when a report
asks for them.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.space.factors import level_text
from ablations.space.settings import flatten
from ablations.storage.attempts import State, present_state
from ablations.storage.files import read_json
from ablations.storage.folder import Identity, TrialFolder, trial_folders
from ablations.storage.plans import read_plan
from ablations.tracking.client import RecordedRun, recorded_runs, run_file
from ablations.tracking.runs import facts_of, final_metrics
from bbcu.errors import BbcuError, ConfigError

TEXT_COLUMNS = ("cell", "name", "state", "reason", "run_id", "method", "task", "git", "git_dirty", "provenance")
"""The columns of the trials that every row has, besides the whole number ``seed``."""

CURVE_COLUMNS = ("cell", "seed", "step", "metric", "value")

NOT_RECORDED = "not recorded"
"""Stands for the code or data of a trial that was trained before their fingerprints were recorded."""

NO_REASON = {"missing": "planned, not started yet", "running": "still running"}
"""The reason shown for an unfinished trial that has none; other states get "no reason was recorded"."""

Fetch = Callable[[str], Path | None]
"""Returns the local path of a trial's file or folder by its name, such as ``curve.csv``; None if there is none."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A cell that the study did not train, and why; ``same_as`` is the key of the cell that is the same network."""

    levels: Mapping[str, str]
    setting: Mapping[str, str]
    reason: str
    same_as: str | None = None


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """Everything that a report needs to know about one study.

    ``trials`` has one row per trial, finished or not, planned ones first and in the order of the plan, with columns:

    - ``seed``: whole number; ``cell``: its SHA-256; ``name``: the cell's name; ``run_id``: empty if not in MLflow;
    - ``state``: finished, failed, interrupted, pruned, running or missing; ``reason``: why it is not finished;
    - ``method``, ``task``, ``git``, ``git_dirty``: text; ``provenance``: JSON; empty if unknown;
    - ``factor/<name>``: the level that the cell records, as text; ``level/<name>``: the level as the user gave it,
      which differs if ``auto`` became a number; both empty if the cell does not have the factor;
    - ``setting/<key>``: everything else that the cell depends on, as text, such as ``setting/train.steps``;
    - ``metric/<name>``: a number or NaN, such as ``metric/Set5/psnr_db`` (dB), ``metric/baseline/Set5/ssim``,
      ``metric/cost/ops_g`` (10^9 multiply-adds), ``metric/cost/params_k`` (thousands), ``metric/timing/train_s``.

    ``files`` opens the files of every finished trial by name.
    """

    study: str
    trials: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    factors: tuple[str, ...]
    reference: Mapping[str, str]
    files: Mapping[Identity, Fetch]

    @property
    def finished(self) -> pd.DataFrame:
        return self.trials[self.trials["state"] == "finished"]

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """The learning curves of all finished trials: a row per (cell, seed, step, metric)."""
        return curve_frame({identity: fetch("curve.csv") for identity, fetch in self.files.items()})

    def record(self, identity: Identity) -> dict[str, Any]:
        """Return the ``result.json`` of a finished trial; empty if it cannot be read."""
        path = self.files[identity]("result.json") if identity in self.files else None
        return (read_json(path) or {}) if path is not None else {}


def load(tracking_uri: str, study: str, outputs: Path) -> StudyResults:
    """Read a study from ``outputs/<study>``, and from MLflow what has no folder there.

    MLflow adds the run ids and the last values of the training curves. Raises ConfigError if there is no trial, and,
    if there is no folder either, the errors of :func:`ablations.tracking.client.recorded_runs`.
    """
    folders = trial_folders(outputs, study)
    plan = read_plan(outputs, study)
    try:
        runs = recorded_runs(tracking_uri, study)
    except BbcuError:
        if not folders and not plan["trials"]:
            raise
        runs = {}
    return study_results(study, plan, folders, runs, tracking_uri)


def load_folder(folder: Path) -> StudyResults:
    """Read a study from its folder alone, without MLflow; raises ConfigError if it holds no trial."""
    outputs, study = folder.parent, folder.name
    return study_results(study, read_plan(outputs, study), trial_folders(outputs, study), {}, "")


def study_results(
    study: str,
    plan: Mapping[str, Any],
    folders: Iterable[TrialFolder],
    runs: Mapping[Identity, RecordedRun],
    tracking_uri: str,
) -> StudyResults:
    """Merge what the plan, the folders and MLflow know: a trial's folder is believed before its run.

    Raises ConfigError if none of them knows a trial.
    """
    planned = {(row["cell"], row["seed"]): planned_row(row) for row in plan["trials"]}
    on_disk = {(folder.cell, folder.seed): folder for folder in folders}
    rows = []
    files: dict[Identity, Fetch] = {}
    for identity in dict.fromkeys([*planned, *on_disk, *runs]):
        folder, run = on_disk.get(identity), runs.get(identity)
        found = {} if folder is None else folder_row(folder)
        if found.get("state") == "finished" and run is not None and run.state != "finished":
            run = None  # MLflow lacks the finished run; an earlier one that failed is not this trial's.
        row = {"state": "missing", **planned.get(identity, {}), **({} if run is None else run_row(run)), **found}
        if row["state"] == "missing" and identity not in planned:
            continue
        row |= {"cell": identity[0], "seed": identity[1]}
        reason = row.get("reason") or NO_REASON.get(row["state"], "no reason was recorded")
        row["reason"] = "" if row["state"] == "finished" else reason
        rows.append(row)
        if found.get("state") == "finished" and folder is not None:
            files[identity] = functools.partial(existing_file, folder.path)
        elif row["state"] == "finished" and run is not None:
            files[identity] = functools.partial(run_file, tracking_uri, run)
    if not rows:
        raise ConfigError(f"study {study!r} has no trial yet: there is no result, no plan and no run of it")
    return StudyResults(
        study=study,
        trials=trial_frame(rows),
        left_out=tuple(left_out_cell(row) for row in plan["left_out"]),
        factors=factor_names(rows),
        reference=reference_levels(rows),
        files=files,
    )


def planned_row(planned: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": planned["name"],
        "method": planned.get("method", ""),
        **prefixed("factor", levels_as_text(planned["factors"])),
        **prefixed("level", levels_as_text(planned["levels"])),
        **prefixed("setting", setting_as_text(planned["setting"])),
    }


def run_row(run: RecordedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "run_id": run.run_id,
        **facts_row(run.params, run.tags),
        **prefixed("metric", run.metrics),
    }


def folder_row(folder: TrialFolder) -> dict[str, Any]:
    """What a trial's folder knows about it, spelt as MLflow spells it; empty if it was never started."""
    result = folder.result()
    if result is not None:
        facts = facts_of(result)
        row = {"name": facts.name, "state": "finished", **facts_row(facts.params, facts.tags)}
        return row | prefixed("metric", final_metrics(result))
    state, reason = present_state(folder)
    return {} if state is State.PLANNED else {"state": str(state), "reason": reason}


def facts_row(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    """A trial's levels, setting and provenance from the params and tags of its run."""
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
    return {f"{prefix}/{name}": value for name, value in values.items()}


def levels_as_text(levels: Mapping[str, object]) -> dict[str, str]:
    """Levels the way a user types them: ``true``, ``130``, ``[body,up]``."""
    return {name: level_text(level) for name, level in levels.items()}


def setting_as_text(setting: Mapping[str, Any]) -> dict[str, str]:
    """A plan's setting spelt as the params of a run, so that planned and finished trials of one setting match."""
    return {name: str(value) for name, value in flatten(setting).items()}


def trial_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([{name: value for name, value in row.items() if name != "reference"} for row in rows])
    frame = frame.reindex(columns=[*TEXT_COLUMNS, "seed", *sorted(set(frame.columns) - {*TEXT_COLUMNS, "seed"})])
    for name in frame.columns:
        if name.startswith("metric/"):
            frame[name] = frame[name].astype("float64")
        elif name != "seed":
            frame[name] = frame[name].astype("object").fillna("").astype("str")
    return frame


def curve_frame(paths: Mapping[Identity, Path | None]) -> pd.DataFrame:
    """Read these ``curve.csv`` into one long table.

    pandas takes a millisecond per file, so files with the same header are parsed as one.
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


def existing_file(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if path.exists() else None


def left_out_cell(row: Mapping[str, Any]) -> LeftOut:
    return LeftOut(levels_as_text(row["levels"]), setting_as_text(row["setting"]), row["reason"], row.get("same_as"))


def factor_names(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    names = [name.removeprefix("level/") for row in rows for name in row if name.startswith("level/")]
    return tuple(dict.fromkeys(names))


def reference_levels(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The reference level of every factor, as the trials state it."""
    reference: dict[str, str] = {}
    for text in dict.fromkeys(row["reference"] for row in rows if "reference" in row):
        reference |= levels_as_text(json.loads(text))
    return reference
