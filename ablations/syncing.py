"""What MLflow missed: the folders on disk hold every fact, so its runs can be written later, or all over again."""

import contextlib
import logging
from pathlib import Path

from ablations import states
from ablations.lease import TrialBusy, held
from ablations.states import State
from ablations.store import (
    TrialFolder,
    TrialRun,
    facts_of,
    final_metrics,
    finished_runs,
    identity_of,
    prepare_tracking,
    read_plan,
    search_runs,
    steps_of,
    trial_folders,
)

log = logging.getLogger(__name__)

WITHOUT_RESULT = (State.FAILED, State.INTERRUPTED, State.PRUNED)
"""The states of which MLflow keeps a run though there is no result."""


def synchronise(outputs: Path, study: str, uri: str) -> list[TrialFolder]:
    """Log every result on disk that MLflow does not hold as finished; give the folders that were logged."""
    experiment = prepare_tracking(uri, study)
    known = finished_runs(uri, experiment)
    logged = []
    for folder in trial_folders(outputs, study):
        if (folder.cell, folder.seed) in known or folder.result() is None:
            continue
        with contextlib.suppress(TrialBusy), held(folder, "logging"):
            if log_from_disk(folder, uri, experiment):
                logged.append(folder)
    return logged


def rebuild(outputs: Path, study: str, uri: str) -> tuple[int, int]:
    """Write every run of a study that MLflow has none of: the finished ones, and those that ended without a result.

    Gives how many of either were written. Runs that are there stay as they are, so nothing is there twice however often
    this is called.
    """
    finished = len(synchronise(outputs, study, uri))
    experiment = prepare_tracking(uri, study)
    present = {identity_of(run) for run in search_runs(uri, experiment)}
    planned = {(row["cell"], row["seed"]): row for row in read_plan(outputs, study)["trials"]}
    others = 0
    for folder in trial_folders(outputs, study):
        identity = (folder.cell, folder.seed)
        state, reason = states.present_state(folder)
        if identity in present or identity not in planned or state not in WITHOUT_RESULT:
            continue
        attempts = states.history_of(folder).attempts
        facts = facts_of({"provenance": {"git": "unknown", "dirty": True}, **planned[identity]})
        run = TrialRun(uri, experiment, facts, attempts[-1].began if attempts else None)
        run.log_curve(folder.curve())
        run.leave(folder, state, reason, attempts[-1].ended if attempts else None)
        others += run.recorded
    return finished, others


def log_from_disk(folder: TrialFolder, uri: str, experiment: str) -> bool:
    """Write a finished trial's folder to MLflow as one FINISHED run; False where MLflow did not take all of it."""
    result = folder.result()
    if result is None:
        return False
    attempts = states.history_of(folder).attempts
    began, ended = (attempts[-1].began, attempts[-1].ended) if attempts else (None, None)
    run = TrialRun(uri, experiment, facts_of(result), began)
    run.log_curve(folder.curve())
    run.finish(folder, final_metrics(result), steps_of(result), ended)
    return run.recorded
