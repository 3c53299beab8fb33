"""The plan of a study on disk: every trial that was requested, and the combinations that were left out."""

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from ablations.space.factors import level_text
from ablations.space.settings import distinguishing_keys, flatten
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.files import DamagedFile, read_sealed, write_sealed
from ablations.storage.folder import Identity, study_folder
from bbcu.errors import BbcuError, ConfigError

log = logging.getLogger(__name__)

REQUESTED = ("levels", "setting")
"""The keys of a plan's row that hold the requested levels and setting, before they are put into canonical form."""

ADVICE = "which trials are missing is not known; restore it, or run the study again, which begins a new plan"


def refuse_other_pairing(outputs: Path, study: str, pairing: bool) -> None:
    """Raise ConfigError if an earlier sweep planned the study with another ``study.pairing``.

    How cells are compared is chosen before their results are known, or it could be chosen by them. A damaged plan says
    nothing about it.
    """
    with contextlib.suppress(DamagedFile):
        _refuse_other_pairing(read_plan(outputs, study), study, pairing)


def _refuse_other_pairing(before: Mapping[str, Any], study: str, pairing: bool) -> None:
    planned = before.get("pairing", False)
    if before["trials"] and planned != pairing:
        raise ConfigError(
            f"study.pairing={level_text(pairing)}: study {study} was planned with study.pairing={level_text(planned)}, "
            f"which is fixed before it trains; set it to {level_text(planned)}, or use another study.name"
        )


def planned_rule(outputs: Path, study: str) -> StoppingRule | None:
    """Return the stopping rule with which a study was planned, or None; a damaged plan says nothing about it."""
    with contextlib.suppress(DamagedFile):
        return rule_in(read_plan(outputs, study))
    return None


def refuse_damaged_plan(outputs: Path, study: str) -> None:
    """Raise ConfigError if the plan of a study is damaged, for a sweep that must know its stopping rule."""
    try:
        read_plan(outputs, study)
    except DamagedFile as error:
        raise ConfigError(
            f"{error.path} is damaged: {error.reason}; the stopping rule of study {study} may be in it, so restore it, "
            f"or use another study.name"
        ) from error


def rule_in(plan: Mapping[str, Any]) -> StoppingRule | None:
    """Return the stopping rule of a plan, or None."""
    record = plan.get("rule")
    return None if record is None else StoppingRule.of(record)


def refuse_other_rule(outputs: Path, study: str, rule: StoppingRule | None) -> None:
    """Raise ConfigError if an earlier sweep planned the study with another stopping rule, or has one and this has none.

    A study may get its first rule later: results from before it count in no verdict.
    """
    _refuse_other_rule(planned_rule(outputs, study), study, rule)


def _refuse_other_rule(planned: StoppingRule | None, study: str, rule: StoppingRule | None) -> None:
    if planned is None:
        return
    fixed = f"the stopping rule of study {study} is fixed before it trains"
    if rule is None:
        raise ConfigError(
            f"{fixed}; set hydra.sweeper.until=decided hydra.sweeper.replicates={planned.first_look} "
            f"hydra.sweeper.most_replicates={planned.last_look} as before, or use another study.name"
        )
    difference = rule.difference(planned)
    if difference:
        raise ConfigError(f"{fixed}, and this one differs: {difference}; use another study.name")


def write_plan(outputs: Path, study: str, plan: Mapping[str, Any]) -> None:
    """Merge a plan into the study's earlier plans.

    Raises BbcuError if the disk cannot be written to, and ConfigError if they have another ``pairing`` or ``rule``.
    A plan is ``{"trials": [{"cell", "seed", "factors", ...}], "left_out": [{"factors", "reason"}], ...}``. Trials are
    identified by cell and seed, left-out combinations by levels and setting. Each row gets ``planned_at``, the
    time at which it was first planned, in seconds since the epoch. The other keys are replaced. A damaged plan is moved
    aside, with a warning, and a new one begins.
    """
    folder = study_folder(outputs, study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".plan.lock"):
            before = _intact_plan(outputs, study)
            _refuse_other_pairing(before, study, plan.get("pairing", False))
            _refuse_other_rule(rule_in(before), study, rule_in(plan))
            merged = _merged(before, plan, time.time())
            write_sealed(plan_path(outputs, study), merged)
    except OSError as error:
        raise BbcuError(f"outputs={outputs}: {folder} cannot be written to: {error.strerror}") from error


def _merged(before: Mapping[str, Any], plan: Mapping[str, Any], now: float) -> dict[str, Any]:
    merged = dict(plan)
    for name, keys in (("trials", ("cell", "seed")), ("left_out", REQUESTED)):
        known = {_text_of(row, keys): row for row in before[name]}
        new = {text: _listed(row, known.get(text)) for row in plan.get(name, []) if (text := _text_of(row, keys))}
        times = {text: known[text].get("planned_at", now) if text in known else now for text in new}
        merged[name] = list(
            {**known, **{text: {**row, "planned_at": times[text]} for text, row in new.items()}}.values()
        )
    if before["left_out"]:
        # A combination that an earlier command left out and this one plans is no longer left out.
        planned = {_text_of(row, REQUESTED) for row in plan.get("trials", [])}
        planned -= {_text_of(row, REQUESTED) for row in plan.get("left_out", [])}
        merged["left_out"] = [row for row in merged["left_out"] if _text_of(row, REQUESTED) not in planned]
    return merged


def _listed(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a row that does not only teach if it did not do so in an earlier plan."""
    was_listed = before is not None and not before.get("only_teaches", False)
    return {key: value for key, value in row.items() if not (was_listed and key == "only_teaches")}


def _text_of(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps([row.get(key) for key in keys], sort_keys=True)


def plan_path(outputs: Path, study: str) -> Path:
    return study_folder(outputs, study) / "plan.json"


def read_plan(outputs: Path, study: str) -> dict[str, Any]:
    """Return the study's plan; it is empty before the first sweep. Raises DamagedFile."""
    return read_plan_at(plan_path(outputs, study))


def read_plan_at(path: Path) -> dict[str, Any]:
    """Return the plan in this file, as :func:`read_plan` does."""
    from ablations.storage import formats

    try:
        plan = read_sealed(path, formats.Plan)
    except DamagedFile as error:
        raise DamagedFile(path, error.reason, ADVICE) from error
    return _empty() if plan is None else plan


def _intact_plan(outputs: Path, study: str) -> dict[str, Any]:
    """Return the study's plan; move a damaged one aside, with a warning, and return an empty one."""
    try:
        return read_plan(outputs, study)
    except DamagedFile as error:
        aside = error.path.with_name("plan.json.damaged")
        error.path.replace(aside)
        log.warning("%s is damaged: %s; it is now %s, and a new plan begins", error.path, error.reason, aside.name)
        return _empty()


def _empty() -> dict[str, Any]:
    return {"trials": [], "left_out": []}


def name_in_plan(name: str, *, only_teaches: bool) -> str:
    """Return the name of a cell in its plan: one that the design does not list is called a teacher."""
    return f"{name} (teacher)" if only_teaches else name


def trial_names(trials: Iterable[tuple[Identity, str, Mapping[str, Any]]]) -> dict[Identity, str]:
    """Name each trial of a study; ``trials`` has the name of each one's cell and its setting.

    A trial's name is its cell's name and the keys that distinguish the settings of the study: ``bn=post
    task.name=sr_x4``.
    """
    # A study has many cells and few settings.
    texts = {identity: (name, json.dumps(setting, sort_keys=True)) for identity, name, setting in trials}
    settings = {text: flatten(json.loads(text)) for text in {text for _, text in texts.values()}}
    keys = distinguishing_keys(list(settings.values()))
    endings = {
        text: [f"{key}={level_text(setting[key])}" for key in keys if key in setting]
        for text, setting in settings.items()
    }
    return {identity: " ".join([name, *endings[text]]) for identity, (name, text) in texts.items()}
