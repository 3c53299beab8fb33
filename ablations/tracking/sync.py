"""Log a study to MLflow from its folder, which has every fact: after a failure of the server, or into another store."""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.storage.attempts import (
    PROCESS_DIED,
    WITHOUT_RESULT,
    State,
    closed_attempt,
    history_of,
    present_state,
)
from ablations.storage.files import DamagedFile
from ablations.storage.folder import TrialFolder, study_folder, trial_folders
from ablations.storage.lease import TrialBusy, trial_lock
from ablations.storage.plans import plan_path, read_plan
from ablations.storage.snapshots import Snapshots
from ablations.storage.status import StatusReader, record_of
from ablations.tracking.client import (
    DESCRIBED_BY,
    REPORT,
    STATES,
    client_of,
    errors_of,
    finished_runs,
    identity_of,
    prepare_tracking,
    search_runs,
)
from ablations.tracking.notes import header_of, note_tags, study_description
from ablations.tracking.runs import TrialRun, end_run, facts_of, location_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
STUDIES = next((path for path in (_PACKAGE / "conf",) if path.is_dir()), _PACKAGE.parent / "conf") / "study"
"""The folder of studies: a wheel has it in the package, a clone at its root."""


def synchronise(outputs: Path, study: str, uri: str) -> list[TrialFolder]:
    """Log every result on disk that MLflow lacks; return the folders that were logged.

    A damaged result is skipped, with a warning. Runs that a killed process left open are closed with the state of their
    trial.
    """
    experiment = prepare_tracking(uri, study)
    known = finished_runs(uri, experiment)
    logged = []
    for folder in trial_folders(outputs, study):
        if (folder.cell, folder.seed) in known or not _has_result(folder):
            continue
        with contextlib.suppress(TrialBusy), trial_lock(folder, "logging"):
            if log_from_disk(folder, uri, experiment):
                logged.append(folder)
    end_abandoned(outputs, study, uri, experiment)
    return logged


def _has_result(folder: TrialFolder) -> bool:
    """Return whether a trial has a valid result; warn of a damaged one."""
    try:
        return folder.checked_result() is not None
    except DamagedFile as error:
        log.warning("%s; skipped", error)
        return False


def end_abandoned(outputs: Path, study: str, uri: str, experiment: str) -> None:
    """Close the runs that killed processes left open, except those of trials in other folders."""
    client = client_of(uri)
    for run in search_runs(uri, experiment, "attributes.status = 'RUNNING'"):
        identity = identity_of(run)
        if identity is None:
            continue
        folder = TrialFolder(outputs, study, *identity)
        if run.data.tags.get("folder") != location_of(folder) or not folder.path.is_dir():
            continue
        with contextlib.suppress(TrialBusy), trial_lock(folder, "logging"):
            state, reason = present_state(folder)
            if state not in WITHOUT_RESULT:
                state, reason = State.INTERRUPTED, PROCESS_DIED
            with errors_of(uri):
                # The process that has just released the trial may have closed it.
                if client.get_run(run.info.run_id).info.status == "RUNNING":
                    end_run(client, run.info.run_id, state, reason)


def synchronise_all(outputs: Path, study: str, uri: str) -> tuple[int, int]:
    """Log every run of a study that MLflow lacks, and the states of all trials.

    Returns how many trials with and without a result were logged. Existing runs are not changed, so
    nothing is logged twice. Raises DamagedFile, after everything else is logged, if the plan is damaged.
    """
    finished = len(synchronise(outputs, study, uri))
    experiment = prepare_tracking(uri, study)
    # The states come first, because the others need a plan that can be read.
    log_states(outputs, study, uri, experiment)
    others = log_without_result(outputs, study, uri, experiment)
    return finished, others


def log_without_result(outputs: Path, study: str, uri: str, experiment: str) -> int:
    """Log a run for each planned trial that ended without a result and has no run; return how many."""
    present = {identity_of(run) for run in search_runs(uri, experiment)}
    planned = {(row["cell"], row["seed"]): row for row in read_plan(outputs, study)["trials"]}
    others = 0
    for folder in trial_folders(outputs, study):
        identity = (folder.cell, folder.seed)
        state, reason = present_state(folder)
        last = history_of(folder).last
        if identity in present or identity not in planned or state not in WITHOUT_RESULT or last is None:
            continue
        last = closed_attempt(last, folder)
        facts = facts_of({"provenance": {"git": "unknown", "dirty": True}, **planned[identity]}, folder)
        run = TrialRun(uri, experiment, facts, last.began)
        try:
            run.log_curve(folder.curve())
        except DamagedFile as error:
            log.warning("%s; it is not logged", error)
        run.close_without_result(folder, state, reason, last.ended)
        others += run.recorded
    return others


def log_states(outputs: Path, study: str, uri: str, experiment: str) -> None:
    """Log the state of every trial of a study, including planned and excluded ones, to the run ``states``.

    Its ``states.json`` has each trial's state with the reason, attempts and times; its metrics are the number of trials
    in each state. The plan is beside it, unless it is damaged, and the report of a search.
    """
    from mlflow.entities import Metric

    status = StatusReader(outputs, study).read()
    client = client_of(uri)
    runs = search_runs(uri, experiment, f"tags.kind = '{STATES}'")
    with errors_of(uri):
        run = runs[0] if runs else client.create_run(experiment, tags={"kind": STATES, "study": study}, run_name=STATES)
        client.log_text(run.info.run_id, json.dumps(record_of(status), indent=1), "states.json")
        now = int(1000 * time.time())
        counts = [
            Metric(f"trials/{state}", number, now, 0) for state, number in status.counts.items() if number is not None
        ]
        client.log_batch(run.info.run_id, metrics=counts)
        plan = [plan_path(outputs, study)] if status.damage is None else []
        for path in (*plan, study_folder(outputs, study) / "search.json"):
            if path.exists():
                client.log_artifact(run.info.run_id, str(path))
        client.set_terminated(run.info.run_id)
        if status.damage is None:
            describe(client, experiment, outputs, study)


def describe(client: "MlflowClient", experiment: str, outputs: Path, study: str) -> None:
    """Give the study's experiment a description: its question, the command and the plan, until a report has one."""
    tags = client.get_experiment(experiment).tags
    if tags.get(DESCRIBED_BY) == REPORT:
        return
    header = header_of(STUDIES / f"{study}.yaml")
    new = note_tags(tags, study_description(study, read_plan(outputs, study), header))
    for name, value in new.items():
        client.set_experiment_tag(experiment, name, value)


def log_from_disk(folder: TrialFolder, uri: str, experiment: str) -> bool:
    """Log a finished trial's folder to MLflow as one FINISHED run; return whether MLflow accepted all of it."""
    result = folder.result()
    if result is None:
        return False
    last = history_of(folder).last
    began, ended = (last.began, last.ended) if last is not None else (None, None)
    run = TrialRun(uri, experiment, facts_of(result, folder), began)
    Snapshots(folder.snapshots, {}).clear()
    run.log_curve(folder.curve())
    run.finish(folder, result, ended)
    return run.recorded
