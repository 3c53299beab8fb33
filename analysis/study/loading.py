"""Read a study back as one typed table: from its folder, and from MLflow where there is no folder.

A trial's ``result.json`` is the truth. Large files, such as curves and sample pictures, are opened only when a report
asks for them.
"""

import dataclasses
import functools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.space.factors import level_text
from ablations.space.price import PAPER
from ablations.space.settings import levels_as_text, one_line, setting_as_text
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import State, present_state
from ablations.storage.folder import Identity, TrialFolder, trial_folders
from ablations.storage.plans import read_plan, read_plan_at
from ablations.tracking.client import RecordedRun, experiment_id, recorded_plan, recorded_runs, run_file
from ablations.tracking.runs import facts_of, final_metrics
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.data_names import DataNames, read_data_names
from analysis.study.experiment import experiment_address
from analysis.study.schema import (
    CELL,
    LARGEST_NUMBER,
    LONGEST_NAME,
    MOST_SHOWN,
    NUMBER,
    SAME_PSNR_DB,
    TEXT_COLUMNS,
    doubt_about,
    read_design,
    read_record,
    read_rule,
    scored_sets,
)
from bbcu.errors import BbcuError, ConfigError
from bbcu.files import read_bytes, read_text

CURVE_COLUMNS = ("cell", "seed", "step", "metric", "value")

CURVE_HEADERS = ("step,metric,value,time", "step,metric,value")
"""The first line of a learning curve in a trial's folder, and in an archive."""

LARGEST_CURVE = LARGEST_RECORD = 16 * 2**20
"""The most bytes of a learning curve and of a ``result.json``; those of a million steps have a tenth of that."""

MOST_STEPS = 10**12

MOST_CONFIGS = 10
"""How many trials are asked for the names of their data; if the config of one is damaged, the next one has them too."""

LONGEST_FILE_NAME = 255  # bytes, on nearly every file system

SAMPLES = "samples"
"""The folder of a trial's sample pictures."""

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
    - ``planned``: whether the design of a sweep lists it, true or false as text, so false for one that only teaches
      others; in a study without a plan, every trial counts as planned;
    - ``state``: finished, failed, interrupted, pruned, running or missing; ``reason``: why it is not finished;
    - ``method``, ``task``, ``git``, ``git_dirty``: text; ``provenance``: JSON; empty if unknown;
    - ``factor/<name>``: the level that the cell records, as text; ``level/<name>``: the level as the user gave it,
      which differs if ``auto`` became a number; both empty if the cell does not have the factor;
    - ``setting/<key>``: everything else that the cell depends on, as text, such as ``setting/train.steps``;
    - ``metric/<name>``: a number or NaN, such as ``metric/Set5/psnr_db`` (dB), ``metric/baseline/Set5/ssim``,
      ``metric/cost/ops_g`` (10^9 multiply-adds), ``metric/cost/params_k`` (thousands), ``metric/timing/train_s``.
      Not every study has ``metric/cost/full_macs_g``, ``binary_macs_g`` (10^9) and what is measured: ``latency_ratio``,
      ``latency_ms``, ``twin_ms``, ``packed_kb`` (10^3 bytes).

    ``pairing`` says that the study compares its cells seed by seed, as it was planned before it trained. ``design`` is
    that of its last sweep, with the keys ``name``, ``options``, ``exclude`` and ``notes``; empty if it is not known.
    ``rule`` is the stopping rule by which its cells were given seeds, None if their number was fixed. ``price`` is that
    of a binary multiply-add, of which ``metric/cost/ops_g`` always has the paper's.
    ``data_names`` has what a person calls the data, by their fingerprint (``setting/data``), where it is known.
    ``experiment`` is the address at which the tracking server shows the study, empty if no browser can open it.
    ``files`` opens the files of every finished trial by name. One that is damaged is left out and can be asked for.
    """

    study: str
    trials: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    factors: tuple[str, ...]
    reference: Mapping[str, str]
    files: Mapping[Identity, Fetch]
    pairing: bool
    design: Mapping[str, Any]
    data_names: Mapping[str, DataNames]
    rule: StoppingRule | None = None
    price: str = PAPER
    experiment: str = ""

    @property
    def planned(self) -> pd.DataFrame:
        """The trials that the design of a sweep lists; the others are teachers and single runs."""
        return self.trials[self.trials["planned"] == "true"]

    @property
    def is_search(self) -> bool:
        """Tell whether the cells were chosen by their scores."""
        return self.design.get("name") == "search"

    @property
    def finished(self) -> pd.DataFrame:
        return self.trials[self.trials["state"] == "finished"]

    @property
    def curves(self) -> pd.DataFrame:
        """The learning curves of all finished trials: a row per (cell, seed, step, metric)."""
        return self._curves[0]

    @property
    def damaged_curves(self) -> frozenset[Identity]:
        """The finished trials whose learning curve cannot be read, or does not end with the trial's scores."""
        return self._curves[1]

    @functools.cached_property
    def _curves(self) -> tuple[pd.DataFrame, frozenset[Identity]]:
        frame, unreadable = curve_frame({identity: fetch("curve.csv") for identity, fetch in self.files.items()})
        other = contradicting(frame, self.finished)
        if other:
            frame = frame[[identity not in other for identity in identities_of(frame)]].reset_index(drop=True)
        return frame, unreadable | other

    def record(self, identity: Identity) -> dict[str, Any] | None:
        """Return what is read of a finished trial's ``result.json``; empty if there is none, None if it is damaged."""
        path = self.files[identity]("result.json") if identity in self.files else None
        return believed_record(path) if path is not None else {}


def load(tracking_uri: str, study: str, outputs: Path) -> StudyResults:
    """Read a study from ``outputs/<study>``, and from MLflow what has no folder there.

    MLflow adds the run ids and the last values of the training curves, and the plan if there is none on disk. Raises
    ConfigError if there is no trial, or if no study can have this name, and, if there is no folder either, the errors
    of :func:`ablations.tracking.client.recorded_runs`.
    """
    check_name(study)
    folders = trial_folders(outputs, study)
    plan = read_plan(outputs, study)
    try:
        runs = recorded_runs(tracking_uri, study)
        recorded = None if plan["trials"] else recorded_plan(tracking_uri, study)
    except BbcuError:
        if not folders and not plan["trials"]:
            raise
        runs, recorded = {}, None
    if recorded is not None:
        plan = read_plan_at(recorded)
    found = study_results(study, plan, folders, runs, tracking_uri)
    is_served = runs and tracking_uri.startswith(("http://", "https://"))
    address = experiment_address(tracking_uri, experiment_id(tracking_uri, study)) if is_served else ""
    return dataclasses.replace(found, experiment=address)


def check_name(study: str) -> None:
    """Raise ConfigError for a name that no study has, since results are in, and reports go into, a folder of it."""
    is_name = study not in ("", ".", "..") and "/" not in study and study.isprintable()
    if not is_name or len(os.fsencode(study)) > LONGEST_FILE_NAME:
        shown = study if len(study) <= MOST_SHOWN else f"{study[:MOST_SHOWN]}…"
        raise ConfigError(f"{shown}: neither a study, nor the folder of a report with a results.zip")


def margin_of(results: StudyResults, given: float | None) -> float:
    """Return the difference in dB that does not matter to a report: that of the rule, the given one, or the usual one.

    Raises ConfigError if another one is given than that of the rule, which was fixed before training.
    """
    if results.rule is None:
        return MARGIN_DB if given is None else given
    fixed = results.rule.margin_db
    if given not in (None, fixed):
        raise ConfigError(
            f"--margin {given:g}: study {results.study} gave its seeds by a margin of {fixed:g} dB, which its stopping "
            "rule fixed before training; leave --margin out"
        )
    return fixed


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

    Raises ConfigError if none of them knows a trial, and for a stopping rule that cannot be.
    """
    try:
        rule = read_rule(plan.get("rule"))
    except ValueError as error:
        raise ConfigError(f"study {study!r} has a plan whose stopping rule cannot be: {error}") from None
    planned = {(row["cell"], row["seed"]): planned_row(row) for row in plan["trials"]}
    teachers = {(row["cell"], row["seed"]) for row in plan["trials"] if row.get("only_teaches", False)}
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
        if row["state"] == "finished" and (doubt := doubt_about(row)):
            row = without_result(row, doubt)
        is_planned = (identity in planned and identity not in teachers) or not planned
        row |= {"cell": identity[0], "seed": identity[1], "planned": level_text(is_planned)}
        reason = row.get("reason") or NO_REASON.get(row["state"], "no reason was recorded")
        row["reason"] = "" if row["state"] == "finished" else reason
        rows.append(row)
        if row["state"] == "finished":
            if found.get("state") == "finished" and folder is not None:
                files[identity] = functools.partial(existing_file, folder.path)
            elif run is not None:
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
        pairing=plan.get("pairing", False),
        design=read_design(plan.get("design", {})),
        data_names=names_of_data(rows, files),
        rule=rule,
        price=plan.get("cost", {}).get("binary", PAPER),
    )


def names_of_data(rows: Iterable[Mapping[str, Any]], files: Mapping[Identity, Fetch]) -> dict[str, DataNames]:
    """Name the data of finished trials by their fingerprint; each data set by the first trials that have it."""
    names: dict[str, DataNames] = {}
    tried: Counter[str] = Counter()
    for row in rows:
        data, fetch = row.get("setting/data", ""), files.get((row["cell"], row["seed"]))
        if fetch is None or data in names or not CELL.fullmatch(data) or tried[data] >= MOST_CONFIGS:
            continue
        tried[data] += 1
        path = fetch("config.yaml")
        found = None if path is None else read_data_names(path, trains="setting/train.steps" in row)
        if found is not None:
            names[data] = found
    return names


def without_result(row: Mapping[str, Any], doubt: str) -> dict[str, Any]:
    """Return the row of a trial that is not believed to be finished, without its numbers."""
    kept = {name: value for name, value in row.items() if not name.startswith("metric/")}
    return {**kept, "state": "interrupted", "reason": f"its result cannot be believed: {doubt}"}


def planned_row(planned: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": planned["name"],
        "method": planned.get("method", ""),
        **prefixed("factor", levels_as_text(planned["factors"])),
        **prefixed("level", levels_as_text(planned["levels"])),
        **prefixed("setting", setting_as_text(planned["setting"])),
    }


def run_row(run: RecordedRun) -> dict[str, Any]:
    row = {"name": run.name, "state": run.state, "reason": run.reason, "run_id": run.run_id}
    try:
        facts = facts_row(run.params, run.tags)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {**row, "state": "interrupted", "reason": "the tags of its MLflow run are missing or damaged"}
    return {**row, **facts, **prefixed("metric", run.metrics)}


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


def trial_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([{name: value for name, value in row.items() if name != "reference"} for row in rows])
    frame = frame.reindex(columns=[*TEXT_COLUMNS, "seed", *sorted(set(frame.columns) - {*TEXT_COLUMNS, "seed"})])
    for name in frame.columns:
        if name.startswith("metric/"):
            frame[name] = frame[name].astype("float64")
        elif name != "seed":
            frame[name] = frame[name].astype("object").fillna("").astype("str").map(one_line)
    return frame


def believed_record(path: Path) -> dict[str, Any] | None:
    """Return what is read of a ``result.json``; empty if there is none, None if it is damaged."""
    try:
        return read_record(read_bytes(path, LARGEST_RECORD))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None


def curve_frame(paths: Mapping[Identity, Path | None]) -> tuple[pd.DataFrame, frozenset[Identity]]:
    """Read these ``curve.csv`` into one long table, and return which of them cannot be read.

    pandas takes a millisecond per file, so files with the same header are parsed as one, and one by one if some file
    among them is damaged.
    """
    texts = {identity: curve_text(path) for identity, path in paths.items() if path is not None}
    frames = []
    for header in CURVE_HEADERS:
        bodies = {
            identity: text.removeprefix(f"{header}\n")
            for identity, text in texts.items()
            if text.startswith(f"{header}\n") and text.endswith("\n")
        }
        together = parsed_curves(header, bodies)
        parts = [together] if together is not None else [parsed_curves(header, {each: bodies[each]}) for each in bodies]
        frames += [frame for frame in parts if frame is not None and len(frame)]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(CURVE_COLUMNS))
    return frame, frozenset(texts.keys() - set(identities_of(frame)))


def curve_text(path: Path) -> str:
    """Return the text of a learning curve; empty if it cannot be read."""
    try:
        text = read_text(path, LARGEST_CURVE)
    except (OSError, ValueError):
        return ""
    # pandas ends a line at \r too, so that the lines of one file could be counted as those of another.
    return "" if "\0" in text or "\r" in text else text


def parsed_curves(header: str, bodies: Mapping[Identity, str]) -> pd.DataFrame | None:
    """Parse curves without their header, each of whole lines, as one; None if a line of one of them is no point."""
    counts = [body.count("\n") for body in bodies.values()]
    types = {"step": "int64", "metric": "str", "value": "str", "time": "str"}
    numbers = [name for name in ("value", "time") if name in header]
    try:
        frame = pd.read_csv(StringIO("".join([f"{header}\n", *bodies.values()])), dtype=types, keep_default_na=False)
        # A missing field is NaN, which is no number here.
        if len(frame) != sum(counts) or not all(frame[name].str.fullmatch(NUMBER).all() for name in numbers):
            return None
        frame = frame.astype({"value": "float64"})
    # A parser of a third party: what is no CSV raises ParserError, ValueError, OverflowError, TypeError or others.
    except Exception:
        return None
    frame["cell"] = np.repeat([cell for cell, _ in bodies], counts)
    frame["seed"] = np.repeat([seed for _, seed in bodies], counts)
    sound = frame["step"].between(0, MOST_STEPS) & frame["value"].abs().le(LARGEST_NUMBER)
    names = frame["metric"].unique()
    is_sound = sound.all() and all(name.isprintable() and 0 < len(name) <= 2 * LONGEST_NAME for name in names)
    return frame[list(CURVE_COLUMNS)] if is_sound else None


def identities_of(frame: pd.DataFrame) -> list[Identity]:
    return list(zip(frame["cell"].tolist(), frame["seed"].tolist(), strict=True))


def contradicting(curves: pd.DataFrame, finished: pd.DataFrame) -> frozenset[Identity]:
    """Return the trials whose curve does not end with their PSNR on each test set, as one that was cut off."""
    found = set()
    known = set(identities_of(curves))
    for test_set in scored_sets(str(name).removeprefix("metric/") for name in finished):
        own = curves[curves["metric"] == f"{test_set}/psnr_db"].drop_duplicates(["cell", "seed"], keep="last")
        last = dict(zip(identities_of(own), own["value"].tolist(), strict=True))
        scores = zip(identities_of(finished), finished[f"metric/{test_set}/psnr_db"].tolist(), strict=True)
        for identity, score in scores:
            if identity in known and not math.isnan(score):
                found |= set() if abs(last.get(identity, math.inf) - score) <= SAME_PSNR_DB else {identity}
    return frozenset(found)


def existing_file(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if path.exists() else None


def left_out_cell(row: Mapping[str, Any]) -> LeftOut:
    """A row of the plan, with its texts on one line as those of the trials, so that they are of one setting."""
    levels, setting = (
        {name: one_line(text) for name, text in texts.items()}
        for texts in (levels_as_text(row["levels"]), setting_as_text(row["setting"]))
    )
    return LeftOut(levels, setting, one_line(row["reason"]), row.get("same_as"))


def factor_names(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    names = [name.removeprefix("level/") for row in rows for name in row if name.startswith("level/")]
    return tuple(dict.fromkeys(names))


def reference_levels(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The reference level of every factor, as the trials state it."""
    reference: dict[str, str] = {}
    for text in dict.fromkeys(row["reference"] for row in rows if "reference" in row):
        levels = levels_as_text(json.loads(text))
        reference |= {name: one_line(level) for name, level in levels.items()}
    return reference
