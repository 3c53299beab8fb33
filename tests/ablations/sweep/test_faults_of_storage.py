"""What a study keeps its facts in fails: disks, files, MLflow. In the end it is as if nothing had happened."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ablations.storage.attempts import State, history_of
from tests.harness.faults import (
    BASIC,
    LATER_SNAPSHOT,
    SNAPSHOT_ENDS,
    TRIALS,
    Endings,
    Moment,
    attempts,
    check_nothing_lost,
    let_go,
    started,
    undisturbed,
)
from tests.harness.servers import mlflow_server
from tests.harness.support import Outcome, Workplace

__all__ = ["undisturbed"]


def go_on(workplace: Workplace, undisturbed: Endings) -> Outcome:
    """Give the same command again, and see that nothing was lost."""
    again = workplace.sweep(*TRIALS)
    assert again.status == 0, again.text
    check_nothing_lost(workplace, undisturbed)
    return again


# --- disks ------------------------------------------------------------------------------------------------------------

DISK_MIB = 4


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small disk of its own at ``folder``."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a disk of the test's own takes the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Let the disk at ``folder`` be full for the body."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nothing be opened for writing at ``folder`` for the body, whoever wants to."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


Failure = Callable[[Path], contextlib.AbstractContextManager[None]]

FAILURES = [
    pytest.param(full, "No space left on device", id="full"),
    pytest.param(read_only, "Read-only file system", id="read-only"),
]


@pytest.fixture
def outputs(workplace: Workplace) -> Iterator[Path]:
    """The workplace's outputs on a disk of their own."""
    with disk(workplace.outputs) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize(("failure", "reason"), FAILURES)
def test_a_disk_that_fails_during_a_training_fails_trials_with_that_reason_and_nothing_else(
    workplace: Workplace, outputs: Path, undisturbed: Endings, failure: Failure, reason: str
) -> None:
    with started(workplace, *TRIALS, *BASIC, halt=SNAPSHOT_ENDS) as command:
        halted = command.halted()
        with failure(outputs):
            let_go(halted)
            outcome = command.end()
    assert outcome.status == 1
    assert "Traceback" not in outcome.text
    assert outcome.text.count(reason) >= 4
    assert "4 of 4 trials have no result" in outcome.text
    go_on(workplace, undisturbed)


@pytest.mark.parametrize(("failure", "reason"), FAILURES)
def test_a_sweep_on_a_disk_that_takes_nothing_is_refused_in_one_line(
    workplace: Workplace, outputs: Path, failure: Failure, reason: str
) -> None:
    with failure(outputs):
        outcome = workplace.sweep(*TRIALS)
    assert outcome.status == 1
    (line,) = outcome.message.splitlines()
    assert line.startswith("run.py: ")
    assert line.endswith(reason)
    assert workplace.trials() == []


@pytest.mark.slow
def test_a_full_disk_below_the_records_costs_no_training_and_they_are_written_later(
    workplace: Workplace, migrated_database: Path, undisturbed: Endings
) -> None:
    with disk(workplace.folder / "records") as folder:
        shutil.copyfile(migrated_database, folder / "mlflow.db")
        workplace = Workplace(workplace.folder, f"sqlite:///{folder / 'mlflow.db'}")
        with started(workplace, *TRIALS, *BASIC, halt=LATER_SNAPSHOT) as command:
            halted = command.halted()
            with full(folder):
                let_go(halted)
                outcome = command.end()
        assert outcome.status == 0, outcome.text
        assert "they wait on disk" in outcome.text
        assert len(workplace.results()) == 4
        again = go_on(workplace, undisturbed)
        assert "nothing to train" in again.out


# --- files ------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rot(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def newest(paths: list[Path]) -> list[Path]:
    return paths[-1:]


def all_of(paths: list[Path]) -> list[Path]:
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, rot])
@pytest.mark.parametrize(("which", "goes_on_from"), [(newest, SNAPSHOT_ENDS.nth - 2), (all_of, 0)])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(
    workplace: Workplace,
    undisturbed: Endings,
    damage: Callable[[Path], None],
    which: Callable[[list[Path]], list[Path]],
    goes_on_from: int,
) -> None:
    with started(workplace, *TRIALS, *BASIC, halt=SNAPSHOT_ENDS) as command:
        command.halted()
        command.send(signal.SIGKILL)
        command.end()
    (folder,) = workplace.trials()
    snapshots = sorted(folder.snapshots.glob("step*.pt"))
    assert len(snapshots) == 2
    for path in which(snapshots):
        damage(path)
    go_on(workplace, undisturbed)
    assert history_of(folder).attempts[-1].from_step == goes_on_from
    assert folder.log_path.read_text(encoding="utf-8").count("; skipped") == len(which(snapshots))


def of_another_trial(path: Path) -> None:
    """Put another trial's result in the place of this one."""
    others = [other for other in path.parents[2].glob("*/seed*/result.json") if other != path]
    shutil.copyfile(others[0], path)


@pytest.mark.parametrize("damage", [cut, of_another_trial])
def test_a_damaged_result_is_made_anew(
    workplace: Workplace, undisturbed: Endings, damage: Callable[[Path], None]
) -> None:
    assert workplace.sweep(*TRIALS).status == 0
    damage(workplace.trials()[0].result_path)
    again = go_on(workplace, undisturbed)
    assert "3 done already, 1 to train" in again.out


# --- trials that come to nothing --------------------------------------------------------------------------------------


def test_a_training_that_diverges_fails_with_its_step_and_is_not_tried_again(workplace: Workplace) -> None:
    outcome = workplace.sweep(*TRIALS, "hydra.sweeper.replicates=1", "bn=pre", "train.lr=0.01,1e30")
    assert outcome.status == 1
    (failed,) = [folder for folder in workplace.trials() if folder.result() is None]
    (attempt,) = history_of(failed).attempts
    assert attempt.state == State.FAILED
    assert "the loss is nan at step 2 of 12" in attempt.reason
    assert attempt.reason in outcome.out
    (run,) = workplace.runs("FAILED")
    assert run.data.tags["reason"] == attempt.reason
    assert len(workplace.finished()) == 1


def test_a_network_whose_body_is_dead_is_called_so_in_the_table_and_its_result(
    workplace: Workplace, undisturbed: Endings
) -> None:
    outcome = workplace.sweep(*TRIALS, "hydra.sweeper.replicates=1")
    dead = {folder.result()["name"]: folder.result()["dead"] for folder in workplace.trials()}
    assert dead["bn=post"] is None
    assert dead["bn=pre"].startswith("its output is the skip connection")
    lines = {line.split()[0]: line for line in outcome.out.splitlines() if line.startswith("bn=") and " done " in line}
    assert lines["bn=pre"].endswith(" dB, dead")
    assert lines["bn=post"].endswith(" dB")


# --- MLflow -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_costs_no_training_and_no_metric(
    tmp_path: Path, migrated_database: Path, undisturbed: Endings
) -> None:
    database = tmp_path / "server.db"
    shutil.copyfile(migrated_database, database)
    with mlflow_server(f"sqlite:///{database}", tmp_path) as server:
        workplace = Workplace.make(tmp_path, server.uri)
        with started(workplace, *TRIALS, *BASIC, halt=LATER_SNAPSHOT) as command:
            halted = command.halted()
            server.stop()
            let_go(halted)
            outcome = command.end()
        assert outcome.status == 0, outcome.text
        assert "when it is available again: python -m ablations sync adhoc" in outcome.text
        server.start()
        again = go_on(workplace, undisturbed)
        assert "4 done already, nothing to train" in again.out


@pytest.fixture
def fresh(tmp_path: Path) -> Workplace:
    """A workplace whose tracking store does not exist yet."""
    return Workplace.make(tmp_path, f"sqlite:///{tmp_path / 'new.db'}")


@pytest.mark.slow
def test_eight_workers_on_a_store_that_does_not_exist_yet_lose_no_run(fresh: Workplace) -> None:
    sixteen = ("bn=pre,post", "act=inside,after", "threshold=true,false", "hydra.sweeper.replicates=2", "train.steps=2")
    with started(fresh, *TRIALS, *sixteen, "hydra/launcher=joblib", "hydra.launcher.n_jobs=8") as command:
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    assert "they wait on disk" not in outcome.text
    assert len(fresh.results()) == 16
    assert fresh.finished() == fresh.results()
    assert attempts(fresh) == 16 * [[State.FINISHED]]


@pytest.mark.slow
def test_two_sweeps_that_meet_on_a_store_that_does_not_exist_yet_share_the_work(
    fresh: Workplace, undisturbed: Endings
) -> None:
    with started(fresh, *TRIALS, *BASIC) as one, started(fresh, *TRIALS, *BASIC) as other:
        outcomes = [one.end(), other.end()]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes[0].text + outcomes[1].text
    check_nothing_lost(fresh, undisturbed)
    assert attempts(fresh) == 4 * [[State.FINISHED]]


SCHEMA = Moment("sql", "(CREATE|ALTER) TABLE", 40)
"""In the middle of the making of MLflow's tables, which takes seconds."""


@pytest.mark.slow
def test_a_store_whose_making_was_cut_short_is_made_anew(fresh: Workplace, undisturbed: Endings) -> None:
    with started(fresh, *TRIALS, *BASIC, halt=SCHEMA) as command:
        command.halted()
        command.send(signal.SIGKILL)
        command.end()
    go_on(fresh, undisturbed)
