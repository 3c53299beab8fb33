"""The plan of a study on disk: every trial that was asked for, and what was left out."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from ablations.space.factors import level_text
from ablations.space.settings import flatten, telling_apart
from ablations.storage.files import read_json, write_atomically
from ablations.storage.folder import Identity, study_folder
from bbcu.errors import BbcuError


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


def trial_names(trials: Iterable[tuple[Identity, str, Mapping[str, Any]]]) -> dict[Identity, str]:
    """Name each trial of a study, given with its cell's name and its setting.

    A name is the cell's, followed by the keys that distinguish the settings of the study: ``bn=post task.name=sr_x4``.
    """
    # A study has many cells and few settings.
    texts = {identity: (name, json.dumps(setting, sort_keys=True)) for identity, name, setting in trials}
    settings = {text: flatten(json.loads(text)) for text in {text for _, text in texts.values()}}
    keys = telling_apart(list(settings.values()))
    endings = {
        text: [f"{key}={level_text(setting[key])}" for key in keys if key in setting]
        for text, setting in settings.items()
    }
    return {identity: " ".join([name, *endings[text]]) for identity, (name, text) in texts.items()}
