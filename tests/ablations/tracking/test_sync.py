"""MLflow rebuilt from the folders on disk: one run for every trial that has ended."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from ablations.__main__ import main
from ablations.storage.attempts import PROCESS_DIED, Attempt, State, begin_attempt, end_attempt, history_of
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import trial_lock
from ablations.tracking.client import client_of, experiment_id, identity_of, search_runs
from ablations.tracking.sync import synchronise, synchronise_all
from tests.harness.servers import check_recorded, recorded_file
from tests.harness.support import STUDY, Workplace, contents

FINISHED, DIVERGED, STOPPED, KILLED = (f"train.lr={rate}" for rate in ("0.01", "1e30", "0.02", "0.03"))
"""The trials of the study, by the override in which they differ."""

LAST_WRITTEN = 2_000_000_000.5


@pytest.fixture(scope="module")
def study(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A study of four trials: one finished, one failed, one interrupted, and one killed."""
    place = new_workplace()
    rates = ",".join(name.partition("=")[2] for name in (FINISHED, DIVERGED, STOPPED, KILLED))
    outcome = place.sweep(f"train.lr={rates}", "train.steps=3", "hydra.sweeper.retries=0")
    assert "1 of 4 trials have no result" in outcome.message
    for name in (STOPPED, KILLED):
        folder_of(place, name).result_path.unlink()
        folder_of(place, name).state_path.unlink()
        begin_attempt(folder_of(place, name), began=LAST_WRITTEN - 60)
    end_attempt(folder_of(place, STOPPED), State.INTERRUPTED, "stopped from the keyboard")
    os.utime(folder_of(place, KILLED).log_path, (LAST_WRITTEN, LAST_WRITTEN))
    return place


@pytest.fixture
def empty(study: Workplace, migrated_database: Path, tmp_path: Path) -> Workplace:
    """The study, beside an MLflow that holds nothing."""
    path = tmp_path / "empty.db"
    shutil.copyfile(migrated_database, path)
    return Workplace(study.folder, f"sqlite:///{path}")


def folder_of(place: Workplace, name: str) -> TrialFolder:
    return place.folder_of(name, "train.steps=3")


def attempt_at(place: Workplace, name: str) -> Attempt:
    """The one attempt at a trial."""
    (attempt,) = history_of(folder_of(place, name)).attempts
    return attempt


def run_of(place: Workplace, name: str) -> Run:
    """The one run of a trial."""
    folder = folder_of(place, name)
    (run,) = [run for run in place.runs() if identity_of(run) == (folder.cell, folder.seed)]
    return run


def rebuilt(place: Workplace) -> tuple[int, int]:
    return synchronise_all(place.outputs, STUDY, place.uri)


def test_every_trial_that_ended_gets_one_run_with_its_state_and_reason(empty: Workplace) -> None:
    assert rebuilt(empty) == (1, 3)
    assert len(empty.runs()) == 4
    told = {name: run_of(empty, name) for name in (FINISHED, DIVERGED, STOPPED, KILLED)}
    assert [(run.info.status, run.data.tags["state"]) for run in told.values()] == [
        ("FINISHED", "finished"),
        ("FAILED", "failed"),
        ("KILLED", "interrupted"),
        ("KILLED", "interrupted"),
    ]
    assert told[DIVERGED].data.tags["reason"] == attempt_at(empty, DIVERGED).reason != ""
    assert told[STOPPED].data.tags["reason"] == "stopped from the keyboard"
    assert told[KILLED].data.tags["reason"] == PROCESS_DIED


def test_synchronising_again_adds_nothing(empty: Workplace) -> None:
    rebuilt(empty)
    before = {(run.info.run_id, run.info.status, run.info.end_time) for run in empty.runs()}
    assert rebuilt(empty) == (0, 0)
    assert {(run.info.run_id, run.info.status, run.info.end_time) for run in empty.runs()} == before


def test_an_mlflow_that_holds_every_run_already_stays_as_it_is(study: Workplace) -> None:
    before = {(run.info.run_id, run.info.status) for run in study.runs()}
    assert len(before) == 4
    assert rebuilt(study) == (0, 0)
    assert {(run.info.run_id, run.info.status) for run in study.runs()} == before


@pytest.mark.parametrize("name", [FINISHED, DIVERGED, STOPPED])
def test_a_run_began_and_ended_when_its_trial_did(empty: Workplace, name: str) -> None:
    rebuilt(empty)
    attempt, info = attempt_at(empty, name), run_of(empty, name).info
    assert attempt.ended is not None
    assert (info.start_time, info.end_time) == (int(1000 * attempt.began), int(1000 * attempt.ended))


def test_a_killed_trial_ended_when_it_last_wrote_a_file(empty: Workplace) -> None:
    rebuilt(empty)
    info = run_of(empty, KILLED).info
    assert (info.start_time, info.end_time) == (int(1000 * (LAST_WRITTEN - 60)), int(1000 * LAST_WRITTEN))


def test_a_run_has_the_params_the_metrics_and_the_result_of_its_trial(empty: Workplace) -> None:
    rebuilt(empty)
    check_recorded(empty, trials=1, failed=3)


def test_a_trial_without_a_result_has_its_params_too(study: Workplace, empty: Workplace) -> None:
    rebuilt(empty)
    assert run_of(empty, DIVERGED).data.params == run_of(study, DIVERGED).data.params


def test_a_running_trial_gets_no_run(empty: Workplace) -> None:
    with trial_lock(folder_of(empty, KILLED), "somebody"):
        assert rebuilt(empty) == (1, 2)
    assert rebuilt(empty) == (0, 1)


def test_the_command_logs_all_that_mlflow_missed(empty: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sync", STUDY, "--outputs", str(empty.outputs), "--tracking-uri", empty.uri])
    assert capsys.readouterr().out == f"1 results and 3 trials without a result were logged to {empty.uri}\n"
    assert len(empty.runs()) == 4
    assert states_of(empty)["counts"]["failed"] == 1


def states_of(place: Workplace) -> dict[str, Any]:
    """The states of the study's trials in MLflow, from the one run that has them."""
    (run,) = search_runs(place.uri, experiment_id(place.uri, STUDY), "tags.kind = 'states'")
    told: dict[str, Any] = json.loads(recorded_file(place.uri, run.info.run_id, "states.json"))
    assert {f"trials/{state}": number for state, number in told["counts"].items()} == run.data.metrics
    return told


def test_the_state_of_every_trial_is_logged_with_its_reason_and_its_time(empty: Workplace) -> None:
    rebuilt(empty)
    told = states_of(empty)
    counted = {state: number for state, number in told["counts"].items() if number}
    assert counted == {"finished": 1, "failed": 1, "interrupted": 2}
    by_cell = {trial["cell"]: trial for trial in told["trials"]}
    failed = by_cell[folder_of(empty, DIVERGED).cell]
    assert (failed["reason"], failed["since"]) == (
        attempt_at(empty, DIVERGED).reason,
        attempt_at(empty, DIVERGED).ended,
    )
    assert all(trial["since"] > 0 for trial in told["trials"])


def test_a_study_gets_a_description_once(empty: Workplace) -> None:
    rebuilt(empty)
    tags = client_of(empty.uri).get_experiment(experiment_id(empty.uri, STUDY)).tags
    assert "4 trials: 4 cells, 1 seed." in tags["mlflow.note.content"]
    assert "described_by" not in tags


def test_a_run_is_described_as_it_was_when_it_was_trained(study: Workplace, empty: Workplace) -> None:
    rebuilt(empty)
    for name in (FINISHED, DIVERGED):
        live, later = run_of(study, name), run_of(empty, name)
        assert later.info.run_name == live.info.run_name
        assert later.data.tags["mlflow.note.content"] == live.data.tags["mlflow.note.content"]
        assert later.inputs.to_dictionary() == live.inputs.to_dictionary()
    live, later = run_of(study, FINISHED).data.tags, run_of(empty, FINISHED).data.tags
    # How a network was compiled is known once it is trained.
    assert {**live, "provenance": ""} == {**later, "provenance": ""}


def test_changed_states_are_logged_by_the_same_run(empty: Workplace) -> None:
    with trial_lock(folder_of(empty, KILLED), "somebody"):
        rebuilt(empty)
        assert states_of(empty)["counts"]["running"] == 1
    rebuilt(empty)
    assert states_of(empty)["counts"]["running"] == 0


def test_nothing_on_disk_is_touched(empty: Workplace) -> None:
    before = contents(empty.outputs / STUDY)
    rebuilt(empty)
    assert contents(empty.outputs / STUDY) == before


def test_results_alone_can_be_logged_too(empty: Workplace) -> None:
    (logged,) = synchronise(empty.outputs, STUDY, empty.uri)
    assert logged.cell == folder_of(empty, FINISHED).cell
    assert len(empty.runs()) == 1
    assert synchronise(empty.outputs, STUDY, empty.uri) == []
