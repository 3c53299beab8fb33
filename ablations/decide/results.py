"""What the folder of a study says about trials that have ended."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ablations.decide.decider import EndedTrial
from ablations.space.collapse import evidence_of_collapse
from ablations.storage.folder import Identity, TrialFolder, identities_in, study_folder
from ablations.storage.status import stamp_of

Counts = Callable[[Identity, Mapping[str, Any]], bool]
"""Returns whether the result of a trial counts, or the trial is trained again."""


def finished_trial(result: Mapping[str, Any]) -> EndedTrial:
    """Return what a result says."""
    psnr_db = {name: scores["psnr_db"] for name, scores in result["metrics"].items()}
    return EndedTrial(psnr_db, bool(evidence_of_collapse(result)))


class ResultReader:
    """Reads the results of a study's trials from its folder, each once, and again if it has changed."""

    def __init__(self, outputs: Path, study: str, counts: Counts = lambda identity, result: True) -> None:
        self._outputs, self._study, self._counts = outputs, study, counts
        self._known: dict[Identity, tuple[tuple[int, int] | None, EndedTrial | None]] = {}

    def read(self, trials: Iterable[Identity]) -> dict[Identity, EndedTrial]:
        """Return what is known of those of these trials that have finished."""
        started = identities_in(study_folder(self._outputs, self._study))
        found = ((identity, self._trial(identity)) for identity in trials if identity in started)
        return {identity: trial for identity, trial in found if trial is not None}

    def _trial(self, identity: Identity) -> EndedTrial | None:
        folder = TrialFolder(self._outputs, self._study, *identity)
        stamp = stamp_of(folder.result_path)
        if identity not in self._known or self._known[identity][0] != stamp:
            result = folder.result()
            if result is not None and not self._counts(identity, result):
                result = None
            self._known[identity] = stamp, None if result is None else finished_trial(result)
        return self._known[identity][1]
