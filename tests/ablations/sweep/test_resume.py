"""A study that was interrupted: the same command resumes it, and keeps what is done byte for byte."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations.tracking.client import client_of
from tests.ablations.storage.helpers import holder_of
from tests.harness.servers import check_recorded
from tests.harness.support import STUDY, Outcome, Workplace, contents


def reopen(workplace: Workplace) -> Workplace:
    """Set the run to RUNNING, as a process leaves it that is killed before it closes its run."""
    (run,) = workplace.runs()
    client_of(workplace.uri).update_run(run.info.run_id, status="RUNNING")
    return workplace


def delete(workplace: Workplace) -> Workplace:
    """Delete the run, as a user can on MLflow's page."""
    (run,) = workplace.runs()
    client_of(workplace.uri).delete_run(run.info.run_id)
    return workplace


def lose(workplace: Workplace) -> Workplace:
    """Point to a database that holds nothing yet."""
    return Workplace(workplace.folder, f"sqlite:///{workplace.folder / 'empty.db'}")


@pytest.mark.parametrize(
    ("spoil", "command"),
    [
        pytest.param(reopen, Workplace.run, id="left-running-trial"),
        pytest.param(delete, Workplace.sweep, id="deleted-sweep"),
        pytest.param(lose, Workplace.sweep, id="another-database-sweep"),
    ],
)
def test_a_result_that_mlflow_does_not_hold_is_logged_and_not_trained(
    workplace: Workplace,
    migrated_database: Path,
    spoil: Callable[[Workplace], Workplace],
    command: Callable[..., Outcome],
) -> None:
    shutil.copyfile(migrated_database, workplace.folder / "empty.db")
    workplace.run("train.steps=4")
    (folder,) = workplace.trials()
    before = contents(folder.path)

    spoiled = spoil(workplace)
    outcome = command(spoiled, "train.steps=4")

    assert outcome.status == 0
    assert ("1 done already, nothing to train" in outcome.out) == (command is Workplace.sweep)
    assert contents(folder.path) == before
    check_recorded(spoiled, trials=1)


def test_a_result_that_mlflow_holds_already_is_not_logged_again(workplace: Workplace) -> None:
    workplace.sweep("bn=pre,post")
    (run, _) = workplace.runs()
    client_of(workplace.uri).delete_run(run.info.run_id)
    workplace.sweep("bn=pre,post")
    assert len(workplace.runs()) == 2
    assert workplace.finished() == workplace.results()


def test_a_trial_that_is_retrained_after_its_result_was_lost_has_one_finished_run(workplace: Workplace) -> None:
    workplace.run()
    shutil.rmtree(workplace.outputs / STUDY)
    workplace.sweep()
    assert workplace.finished() == workplace.results()


def test_a_single_trial_that_another_process_holds_is_refused_in_one_line(workplace: Workplace) -> None:
    with holder_of(workplace.folder_of()):
        outcome = workplace.run()
    assert "another process" in outcome.refusal
    assert workplace.runs() == []
