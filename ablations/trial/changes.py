"""Stale results: made for the same config by other code, by another teacher, or on pictures that have changed since.

None is reused without the user's consent, ``on_change``: ``stop`` names the stale results and trains nothing, ``keep``
reuses those of other code or teachers, and ``retrain`` replaces them and trains on the changed pictures beside the
earlier results.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.space.factors import FACTORS, SHOWN
from ablations.space.settings import identifying
from ablations.storage.files import DamagedFile
from ablations.storage.folder import TrialFolder, trial_folders
from ablations.storage.plans import read_plan
from ablations.trial.provenance import code_fingerprint
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from ablations.config import Config
    from ablations.trial.identity import Trial

log = logging.getLogger(__name__)

HOW_TO_CHOOSE = "on_change=keep reuses it, on_change=retrain replaces it, and another study.name leaves it alone"


# --- code -------------------------------------------------------------------------------------------------------------


def code_of(trial: "Trial") -> str:
    """The fingerprint of the code that decides a trial's result: ours, and that of the user's own parts in it."""
    return code_fingerprint(own_parts_of(trial))


def own_parts_of(trial: "Trial") -> tuple[str, ...]:
    """The dotted paths of the user's own parts in a trial, sorted."""
    return own_parts(trial.cell.levels, trial.cell.setting["network"])


def own_parts(levels: Mapping[str, Any], network: Mapping[str, Any]) -> tuple[str, ...]:
    """The dotted paths of the user's own parts: levels, parts of the network, and units of factors, sorted."""
    units = {FACTORS[name].unit for name, level in levels.items() if level != FACTORS[name].reference}
    return tuple(sorted({text for text in (*levels.values(), *network.values(), *units) if is_own_part(text)}))


def own_parts_of_sweep(swept: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The dotted paths of the user's own parts that a sweep may use, sorted; ``swept`` has the texts of each key."""
    texts = {text for key, values in swept.items() if key in FACTORS or key.startswith("network") for text in values}
    units = {FACTORS[key].unit for key in swept if key in FACTORS}
    return tuple(sorted(text for text in texts | units if is_own_part(text)))


def is_own_part(level: object) -> bool:
    """Whether a value is a dotted path, as in ``my_module.MySurrogate``."""
    return isinstance(level, str) and "." in level and all(name.isidentifier() for name in level.split("."))


def why_stale(result: Mapping[str, Any], trial: "Trial", outputs: str | Path) -> str:
    """A clause that says what has changed since a result was made: code, or its teacher; empty if nothing has.

    The second is so if the teacher has a result with another checkpoint. One without a result has not changed.
    """
    made_by, code = result["provenance"].get("code"), code_of(trial)
    if made_by != code:
        return told_apart(made_by, code)
    teacher = trial.teacher_folder(outputs)
    present = None if teacher is None else teacher.checkpoint_checksum()
    if present is not None and result.get("teacher", {}).get("checkpoint") != present:
        return "its teacher was trained again since, with another outcome"
    return ""


def counts(result: Mapping[str, Any] | None, trial: "Trial", config: "Config") -> bool:
    """Whether there is a result that counts: nothing has changed since it was made, or ``on_change=keep``."""
    return result is not None and (config.on_change == "keep" or not why_stale(result, trial, config.outputs))


def told_apart(made_by: str | None, code: str) -> str:
    """A clause that names two fingerprints of code; None is that of a result without one."""
    other = f"by code {made_by}" if made_by else "before code had a fingerprint"
    return f"it was made {other}, and the present code is {code}"


def is_reusable(result: Mapping[str, Any], config: "Config", trial: "Trial") -> bool:
    """Whether a result counts; raises ConfigError if other code made it and the user has not chosen."""
    if counts(result, trial, config):
        return True
    reason = why_stale(result, trial, config.outputs)
    if config.on_change == "retrain":
        log.info("%s seed %d is retrained: %s", trial.name, trial.seed, reason)
        return False
    raise ConfigError(f"{trial.name} seed {trial.seed} has a result, but {reason}; {HOW_TO_CHOOSE}")


# --- pictures ---------------------------------------------------------------------------------------------------------


class EarlierPictures:
    """The fingerprints of the pictures that a study's trials were trained on before, from its plan."""

    def __init__(self, outputs: Path, study: str) -> None:
        self._outputs, self._study = outputs, study
        self._before = {_without_data(row): row for row in _trials_before(outputs, study)}

    def refuse_others(self, trials: Iterable["Trial"]) -> None:
        """Raise ConfigError if the study has a result of one of these trials on other pictures."""
        for trial in trials if self._before else ():
            facts = trial.facts()
            row = self._before.get(_without_data(facts), facts)
            then, now = row["setting"]["data"], facts["setting"]["data"]
            if then != now and self._folder(row).result_path.exists():
                raise ConfigError(
                    f"study {self._study} has {trial.name} seed {trial.seed} on other pictures: their "
                    f"fingerprint was {then[:SHOWN]} and is {now[:SHOWN]}; on_change=retrain trains on these beside "
                    f"them, and another study.name leaves them alone"
                )

    def _folder(self, row: Mapping[str, Any]) -> TrialFolder:
        return TrialFolder(self._outputs, self._study, row["cell"], row["seed"])


def _trials_before(outputs: Path, study: str) -> Iterable[Mapping[str, Any]]:
    """The trials in the study's plan; those with a result if the plan is damaged."""
    try:
        trials: list[Mapping[str, Any]] = read_plan(outputs, study)["trials"]
    except DamagedFile:
        results = [folder.result() for folder in trial_folders(outputs, study)]
        return [result for result in results if result is not None]
    return trials


def _without_data(facts: Mapping[str, Any]) -> str:
    """A trial's identity without its data; a factor that a row does not know yet is at its reference there."""
    levels = {name: level for name, level in facts["levels"].items() if level != facts.get("reference", {}).get(name)}
    setting = {key: value for key, value in identifying(facts["setting"]).items() if key != "data"}
    return json.dumps([levels, setting, facts["seed"]], sort_keys=True)
