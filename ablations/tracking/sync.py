"""What MLflow missed: the folders on disk hold every fact, so its runs can be written later, or all over again."""

import contextlib
import json
import logging
from pathlib import Path

from ablations.storage.attempts import WITHOUT_A_WORD, State, closed_attempt, history_of, present_state
from ablations.storage.folder import TrialFolder, steps_of, study_folder, trial_folders
from ablations.storage.lease import TrialBusy, held
from ablations.storage.plans import read_plan
from ablations.storage.snapshots import Snapshots
from ablations.storage.status import StatusReader, record_of
from ablations.tracking.client import client_of, finished_runs, identity_of, prepare_tracking, search_runs
from ablations.tracking.runs import TrialRun, end_run, facts_of, final_metrics, place_of

log = logging.getLogger(__name__)

STATES = "states"
"""The name of the run that has the state of every trial."""

WITHOUT_RESULT = (State.FAILED, State.INTERRUPTED, State.PRUNED)
"""The states of which MLflow keeps a run though there is no result."""


def synchronise(outputs: Path, study: str, uri: str) -> list[TrialFolder]:
    """Log every result on disk that MLflow does not hold as finished; give the folders that were logged.

    Runs that seem to go on, though nobody works at their trials any more, are ended as these trials were.
    """
    experiment = prepare_tracking(uri, study)
    known = finished_runs(uri, experiment)
    logged = []
    for folder in trial_folders(outputs, study):
        if (folder.cell, folder.seed) in known or folder.result() is None:
            continue
        with contextlib.suppress(TrialBusy), held(folder, "logging"):
            if log_from_disk(folder, uri, experiment):
                logged.append(folder)
    end_abandoned(outputs, study, uri, experiment)
    return logged


def end_abandoned(outputs: Path, study: str, uri: str, experiment: str) -> None:
    """Close the runs that killed processes have left open; those of other folders are others' to close."""
    client = client_of(uri)
    for run in search_runs(uri, experiment, "attributes.status = 'RUNNING'"):
        identity = identity_of(run)
        if identity is None:
            continue
        folder = TrialFolder(outputs, study, *identity)
        if run.data.tags.get("folder") != place_of(folder) or not folder.path.is_dir():
            continue
        with contextlib.suppress(TrialBusy), held(folder, "logging"):
            # Whoever held the trial a moment ago may have ended it.
            if client.get_run(run.info.run_id).info.status != "RUNNING":
                continue
            state, reason = present_state(folder)
            if state not in WITHOUT_RESULT:
                state, reason = State.INTERRUPTED, WITHOUT_A_WORD
            end_run(client, run.info.run_id, state, reason)


def rebuild(outputs: Path, study: str, uri: str) -> tuple[int, int]:
    """Write every run of a study that MLflow has none of: the finished ones, and those that ended without a result.

    Gives how many of either were written. Runs that are there stay as they are, so nothing is there twice however often
    this is called. What MLflow holds of states is written anew, planned and excluded ones included.
    """
    finished = len(synchronise(outputs, study, uri))
    experiment = prepare_tracking(uri, study)
    others = log_without_result(outputs, study, uri, experiment)
    log_states(outputs, study, uri, experiment)
    return finished, others


def log_without_result(outputs: Path, study: str, uri: str, experiment: str) -> int:
    """Write a run of each planned trial that ended without a result and that MLflow has no run of; give how many."""
    present = {identity_of(run) for run in search_runs(uri, experiment)}
    planned = {(row["cell"], row["seed"]): row for row in read_plan(outputs, study)["trials"]}
    others = 0
    for folder in trial_folders(outputs, study):
        identity = (folder.cell, folder.seed)
        state, reason = present_state(folder)
        if identity in present or identity not in planned or state not in WITHOUT_RESULT:
            continue
        last = closed_attempt(history_of(folder).attempts[-1], folder)
        facts = facts_of({"provenance": {"git": "unknown", "dirty": True}, **planned[identity]}, folder)
        run = TrialRun(uri, experiment, facts, last.began)
        run.log_curve(folder.curve())
        run.leave(folder, state, reason, last.ended)
        others += run.recorded
    return others


def log_states(outputs: Path, study: str, uri: str, experiment: str) -> None:
    """Keep in MLflow what has become of every trial of a study, planned and excluded ones too, in a run of their own.

    That run, called ``states``, has each trial's state with reason, attempts and times in ``states.json``, and the
    number of each state as a metric.
    """
    status = StatusReader(outputs, study).read()
    client = client_of(uri)
    found = search_runs(uri, experiment, f"tags.kind = '{STATES}'")
    run = found[0] if found else client.create_run(experiment, tags={"kind": STATES, "study": study}, run_name=STATES)
    client.log_text(run.info.run_id, json.dumps(record_of(status), indent=1), "states.json")
    for state, number in status.counts.items():
        client.log_metric(run.info.run_id, f"trials/{state}", number)
    found_by_search = study_folder(outputs, study) / "search.json"
    if found_by_search.exists():
        client.log_artifact(run.info.run_id, str(found_by_search))
    client.set_terminated(run.info.run_id)


def log_from_disk(folder: TrialFolder, uri: str, experiment: str) -> bool:
    """Write a finished trial's folder to MLflow as one FINISHED run; False where MLflow did not take all of it."""
    result = folder.result()
    if result is None:
        return False
    attempts = history_of(folder).attempts
    began, ended = (attempts[-1].began, attempts[-1].ended) if attempts else (None, None)
    run = TrialRun(uri, experiment, facts_of(result, folder), began)
    Snapshots(folder.snapshots, {}).clear()
    run.log_curve(folder.curve())
    run.finish(folder, final_metrics(result), steps_of(result), ended)
    return run.recorded
