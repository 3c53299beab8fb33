"""A study that was cut short: the same command goes on where it stopped, and keeps what is done byte for byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ablations.storage.files import write_atomically
from ablations.storage.folder import TrialFolder
from ablations.tracking.client import client_of
from tests.harness.support import STUDY, Outcome, Workplace, contents, ended, wait_until

ENDLESS = "train.steps=1000000"


def is_training(folder: TrialFolder) -> bool:
    """Whether the trial has said in its log that it trains; its run in MLflow is open by then."""
    return folder.log_path.exists() and " steps on " in folder.log_path.read_text(encoding="utf-8")


def python(program: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python program that uses the store, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


# --- a sweep that is killed -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_is_stopped_from_the_keyboard_closes_its_run_and_leaves_no_traceback(workplace: Workplace) -> None:
    folder = workplace.folder_of(ENDLESS)
    with ended(workplace.start("-m", *workplace.overrides(ENDLESS))) as process:
        wait_until(lambda: is_training(folder) or process.poll() is not None, "the trial to be trained")
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=600)
    assert process.returncode not in (0, None)
    (stopped,) = workplace.runs()
    assert stopped.info.status == "KILLED"
    assert stopped.data.tags["reason"] == "stopped from the keyboard"
    assert folder.result() is None
    assert "Traceback" not in message


# --- a result that MLflow does not hold -------------------------------------------------------------------------------


def reopen(workplace: Workplace) -> Workplace:
    """Set the run back to what a process leaves that is killed before it closes its run."""
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
        pytest.param(reopen, Workplace.sweep, id="left-running-sweep"),
        pytest.param(reopen, Workplace.run, id="left-running-trial"),
        pytest.param(delete, Workplace.sweep, id="deleted-sweep"),
        pytest.param(lose, Workplace.sweep, id="another-database-sweep"),
        pytest.param(lose, Workplace.run, id="another-database-trial"),
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
    assert contents(folder.path) == before
    (run,) = spoiled.runs("FINISHED")
    assert run.data.metrics == original.data.metrics
    assert run.data.params == original.data.params
    assert {step for step, _ in histories(spoiled)["train/loss"]} == {1, 2, 3, 4}
    assert histories(spoiled) == curves
    assert spoiled.runs("RUNNING") == []


def test_a_sweep_that_only_logs_says_that_nothing_is_trained(workplace: Workplace) -> None:
    workplace.run()
    outcome = delete(workplace).sweep()
    assert "1 done already, nothing to train" in outcome.out


def test_a_result_that_mlflow_holds_already_is_not_logged_again(workplace: Workplace) -> None:
    workplace.sweep("bn=pre,post")
    (run, _) = workplace.runs()
    client_of(workplace.uri).delete_run(run.info.run_id)
    workplace.sweep("bn=pre,post")
    assert len(workplace.runs()) == 2
    assert workplace.finished() == workplace.results()


# --- a result that does not count -------------------------------------------------------------------------------------


def cut(text: str) -> str:
    return text[: len(text) // 2]


def of_another_cell(text: str) -> str:
    return json.dumps({**json.loads(text), "cell": "0" * 64})


def of_another_seed(text: str) -> str:
    return json.dumps({**json.loads(text), "seed": 7})


def a_list(text: str) -> str:
    return json.dumps([text])


def without_metrics(text: str) -> str:
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "metrics"})


def metrics_of(folder: TrialFolder) -> dict[str, Any] | None:
    result = folder.result()
    return result and result["metrics"]


@pytest.mark.parametrize("spoil", [cut, a_list, of_another_cell, of_another_seed, without_metrics])
def test_a_result_that_is_not_whole_or_not_its_own_does_not_count(
    workplace: Workplace, spoil: Callable[[str], str]
) -> None:
    workplace.run()
    (folder,) = workplace.trials()
    metrics = metrics_of(folder)
    folder.result_path.write_text(spoil(folder.result_path.read_text(encoding="utf-8")), encoding="utf-8")

    outcome = workplace.sweep()

    assert "0 done already, 1 to train" in outcome.out
    assert metrics_of(folder) == metrics


def test_a_trial_whose_result_was_lost_and_trained_again_has_one_finished_run(workplace: Workplace) -> None:
    workplace.run()
    shutil.rmtree(workplace.outputs / STUDY)
    workplace.sweep()
    assert workplace.finished() == workplace.results()


# --- a trial that another process is at -------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import trial_lock

with trial_lock(TrialFolder.of(Path(sys.argv[1])), "other"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_sweep_waits_for_a_trial_that_another_process_holds_and_takes_it_up_when_that_is_gone(
    workplace: Workplace,
) -> None:
    held, free = workplace.folder_of("bn=pre"), workplace.folder_of("bn=post")
    with ended(python(HOLD, str(held.path))) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with ThreadPoolExecutor(1) as pool:
            untouched = pool.submit(let_go_once, free, held, holder)
            outcome = workplace.sweep("bn=pre,post")
    assert untouched.result()
    assert outcome.status == 0
    assert workplace.finished() == workplace.results() == sorted([(free.cell, 0), (held.cell, 0)])


def let_go_once(free: TrialFolder, held: TrialFolder, holder: "subprocess.Popen[str]") -> bool:
    """End the holder once the free trial is done; whether nobody had touched what it held by then."""
    wait_until(lambda: free.result() is not None, "the other trial is done")
    untouched = contents(held.path) == {}
    holder.kill()
    return untouched


def test_a_single_trial_that_another_process_holds_is_told_in_one_line(workplace: Workplace) -> None:
    folder = workplace.folder_of()
    with ended(python(HOLD, str(folder.path))) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        outcome = workplace.run()
    (line,) = outcome.message.splitlines()
    assert outcome.status == 1
    assert "another process" in line
    assert workplace.runs() == []


# --- writing atomically -----------------------------------------------------------------------------------------------

DIE_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from ablations.storage.files import replacing

with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of the ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "the old text")
    with ended(python(DIE_WHILE_WRITING, str(path))) as writer:
        writer.communicate(timeout=600)
    assert writer.returncode == -signal.SIGKILL
    assert path.read_text(encoding="utf-8") == "the old text"
