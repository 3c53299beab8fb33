"""Store the history of a search as a study of Optuna, one for each version of the training code."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablations.search.options import Direction, SearchOptions, pruner_of
from ablations.search.records import RowState
from ablations.search.storages import StorageBackend, opened
from ablations.space.rows import Sweep
from ablations.trial.changes import HOW_TO_CHOOSE, told_apart
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

RESTART = "+"
"""The suffix that a study's name gets for each restart of the search because the code has changed."""

CODE = "code"
"""The attribute of Optuna's study that has the fingerprint of the code that trained its cells."""


@dataclass(frozen=True)
class StoredSearch:
    """Optuna's study of one search, and the backend and the storage that it is in."""

    backend: StorageBackend
    storage: "BaseStorage"
    study: "Study"

    @classmethod
    def opened(cls, options: SearchOptions, name: str, directions: Sequence[Direction]) -> "StoredSearch":
        """Open the latest study of that name; create one if it does not exist or ``options.on_change`` restarts it.

        Raises BbcuError for a storage that cannot be used, and ConfigError if different code has scored its cells and
        ``options.on_change`` is stop.
        """
        import optuna

        with opened(options.storage) as (backend, storage):
            names = [known for known in optuna.get_all_study_names(storage) if known.rstrip(RESTART) == name]

            def study_of(name: str) -> "Study":
                pruner = pruner_of(options.pruner)
                return optuna.create_study(
                    study_name=name, storage=storage, pruner=pruner, directions=list(directions), load_if_exists=True
                )

            study = study_of(max(names, key=len, default=name))
            if _scored_by_other_code(study, options) and options.on_change == "retrain":
                study = study_of(study.study_name + RESTART)
            if not _has_scores(study):
                study.set_user_attr(CODE, options.code)
        return cls(backend, storage, study)

    def describe(self, options: SearchOptions, levels: Sweep) -> None:
        """Store what other programs, such as optuna-dashboard, show of the search, unless it is there already."""
        from optuna.exceptions import ExperimentalWarning

        notes = {
            "study": options.name,
            "sampler": options.chosen_sampler,
            "levels": " ".join(f"{key}={','.join(texts)}" for key, texts in levels.items() if len(texts) > 1),
        }
        with self.backend.locked():
            if self.study.metric_names != list(options.objectives):
                with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                    self.study.set_metric_names(list(options.objectives))
            known = self.study.user_attrs
            for name, note in notes.items():
                if known.get(name) != note:
                    self.study.set_user_attr(name, note)

    def is_running(self, number: int) -> bool:
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False)[number].state == TrialState.RUNNING

    def copy_notes(self, earlier: "FrozenTrial", later: "FrozenTrial") -> None:
        """Copy the sampler's notes on a row, such as its generation, to a queued row that lacks them."""
        for name, note in earlier.system_attrs.items():
            if name not in later.system_attrs:
                self.storage.set_trial_system_attr(self._id_of(later.number), name, note)

    def _id_of(self, number: int) -> int:
        """Return the storage's identifier of a row."""
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)


def _has_scores(study: "Study") -> bool:
    """Return whether the study has a score that a sampler would use."""
    return any(trial.values or trial.intermediate_values for trial in study.get_trials(deepcopy=False))


def _scored_by_other_code(study: "Study", options: SearchOptions) -> bool:
    """Return whether a study has scores of different code; raise ConfigError if ``options.on_change`` is stop."""
    made_by = study.user_attrs.get(CODE)
    if made_by == options.code or not _has_scores(study):
        return False
    if options.on_change == "stop":
        raise ConfigError(
            f"the search of {options.name} has scores: {told_apart(made_by, options.code)}; {HOW_TO_CHOOSE}"
        )
    return True


def note_state(trial: "Trial", state: RowState, **more: object) -> None:
    """Store the state of a row as an attribute; its key and format must not change, as stored searches have them.

    A reason has an attribute of its own too, where other programs show it.
    """
    trial.set_user_attr("verdict", {"standing": state, **more})
    if "reason" in more:
        trial.set_user_attr("reason", more["reason"])


def state_of(trial: "FrozenTrial") -> RowState:
    """Return the state of a row: Optuna's, refined by the stored attribute once Optuna's is final."""
    from optuna.trial import TrialState

    if trial.state == TrialState.WAITING:
        return RowState.QUEUED
    if trial.state == TrialState.RUNNING:
        return RowState.RUNNING
    noted = RowState(trial.user_attrs["verdict"]["standing"]) if "verdict" in trial.user_attrs else None
    if trial.state == TrialState.FAIL:
        return noted if noted in (RowState.FAILED, RowState.LEFT_OUT, RowState.REPEATED) else RowState.ABANDONED
    return noted or RowState.FINISHED


def counts_as_drawn(trial: "FrozenTrial") -> bool:
    """Return whether a row would be in the history if no process had died and no cell had failed."""
    attributes = trial.user_attrs
    if attributes.get("queued", {}).get("again"):
        return False
    return state_of(trial) != RowState.ABANDONED or "proposed" in attributes or "queued" in attributes
