"""A study that was interrupted: the same command resumes it, and keeps what is done byte for byte."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ablations.tracking.client import client_of
from tests.ablations.storage.helpers import holder_of
from tests.harness.support import STUDY, Outcome, Workplace, contents, wait_until

# --- a result that MLflow does not hold -------------------------------------------------------------------------------


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


def histories(workplace: Workplace) -> dict[str, set[tuple[int, float]]]:
    """Every (step, value) of every metric of the one finished run."""
    (run,) = workplace.runs("FINISHED")
    client = client_of(workplace.uri)
    names = run.data.metrics
    return {
        name: {(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)}
        for name in names
    }


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
    (original,) = workplace.runs()
    curves = histories(workplace)
    (folder,) = workplace.trials()
    before = contents(folder.path)

    spoiled = spoil(workplace)
    outcome = command(spoiled, "train.steps=4")

    assert outcome.status == 0
    assert ("1 done already, nothing to train" in outcome.out) == (command is Workplace.sweep)
    assert contents(folder.path) == before
    (run,) = spoiled.runs("FINISHED")
    assert run.data.metrics == original.data.metrics
    assert run.data.params == original.data.params
    assert {step for step, _ in histories(spoiled)["train/loss"]} == {1, 2, 3, 4}
    assert histories(spoiled) == curves
    assert spoiled.runs("RUNNING") == []


def test_a_result_that_mlflow_holds_already_is_not_logged_again(workplace: Workplace) -> None:
    workplace.sweep("bn=pre,post")
    (run, _) = workplace.runs()
    client_of(workplace.uri).delete_run(run.info.run_id)
    workplace.sweep("bn=pre,post")
    assert len(workplace.runs()) == 2
    assert workplace.finished() == workplace.results()


def test_a_trial_whose_result_was_lost_and_trained_again_has_one_finished_run(workplace: Workplace) -> None:
    workplace.run()
    shutil.rmtree(workplace.outputs / STUDY)
    workplace.sweep()
    assert workplace.finished() == workplace.results()


# --- a trial that another process holds -------------------------------------------------------------------------------


def test_a_sweep_waits_for_a_trial_that_another_process_holds_and_trains_it_when_that_is_gone(
    workplace: Workplace,
) -> None:
    held, free = workplace.folder_of("bn=pre"), workplace.folder_of("bn=post")

    def kill_holder() -> bool:
        """Kill the holder once the free trial is done; return whether the sweep had left the held one alone."""
        wait_until(lambda: free.result() is not None, "the other trial to finish")
        untouched = contents(held.path) == {}
        holder.process.kill()
        holder.process.join()
        return untouched

    with holder_of(held) as holder, ThreadPoolExecutor(1) as pool:
        untouched = pool.submit(kill_holder)
        outcome = workplace.sweep("bn=pre,post")
    assert untouched.result()
    assert outcome.status == 0
    assert workplace.finished() == workplace.results() == sorted([(free.cell, 0), (held.cell, 0)])


def test_a_single_trial_that_another_process_holds_is_refused_in_one_line(workplace: Workplace) -> None:
    with holder_of(workplace.folder_of()):
        outcome = workplace.run()
    (line,) = outcome.message.splitlines()
    assert outcome.status == 1
    assert "another process" in line
    assert workplace.runs() == []
