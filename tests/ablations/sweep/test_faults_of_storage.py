"""Disks, files and MLflow servers that fail: afterwards the study is as if nothing had happened."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ablations.storage.attempts import State, history_of
from tests.harness.faults import (
    BASIC,
    LATER_SNAPSHOT,
    ONE_SEED,
    SNAPSHOT_ENDS,
    TRIALS,
    Endings,
    Moment,
    attempts,
    check_nothing_lost,
    kill_sweep_at,
    let_go,
    of_seed,
    rerun,
    started,
)
from tests.harness.servers import mlflow_server
from tests.harness.support import Workplace

# --- disks ------------------------------------------------------------------------------------------------------------

DISK_MIB = 4


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk at ``folder``."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a disk needs root rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the disk at ``folder`` within the ``with`` block."""
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
    """Make ``folder`` read-only within the ``with`` block, for root too."""
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
    """The workplace's outputs on their own disk."""
    with disk(workplace.outputs) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize(("failure", "reason"), FAILURES)
def test_trials_fail_for_the_reason_of_a_disk_that_fails_during_the_training(
    workplace: Workplace, outputs: Path, undisturbed: Endings, failure: Failure, reason: str
) -> None:
    with started(workplace, *ONE_SEED, *BASIC, halt=SNAPSHOT_ENDS) as command:
        halted = command.halted()
        with failure(outputs):
            let_go(halted)
            outcome = command.end()
    assert outcome.status == 1
    assert "Traceback" not in outcome.text
    assert outcome.text.count(reason) >= 2
    assert "2 of 2 trials have no result" in outcome.text
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)


@pytest.mark.parametrize(("failure", "reason"), FAILURES)
def test_a_sweep_on_a_disk_that_cannot_be_written_to_is_refused_in_one_line(
    workplace: Workplace, outputs: Path, failure: Failure, reason: str
) -> None:
    with failure(outputs):
        outcome = workplace.sweep(*TRIALS)
    assert outcome.refusal.startswith("run.py: ")
    assert outcome.refusal.endswith(reason)
    assert workplace.trials() == []


@pytest.mark.slow
def test_a_full_disk_of_mlflow_loses_no_training_and_the_records_are_written_later(
    workplace: Workplace, migrated_database: Path, undisturbed: Endings
) -> None:
    with disk(workplace.folder / "records") as folder:
        shutil.copyfile(migrated_database, folder / "mlflow.db")
        workplace = Workplace(workplace.folder, f"sqlite:///{folder / 'mlflow.db'}")
        with started(workplace, *ONE_SEED, *BASIC, halt=LATER_SNAPSHOT) as command:
            halted = command.halted()
            with full(folder):
                let_go(halted)
                outcome = command.end()
        assert outcome.status == 0, outcome.text
        assert "they wait on disk" in outcome.text
        assert len(workplace.results()) == 2
        again = rerun(workplace, of_seed(0, undisturbed), ONE_SEED)
        assert "nothing to train" in again.out


# --- files ------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rot(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "damaged", "resumes_from"),
    [pytest.param(cut, 1, SNAPSHOT_ENDS.nth - 2, id="the newest"), pytest.param(rot, 2, 0, id="all")],
)
def test_a_damaged_snapshot_is_skipped_for_the_one_before(
    workplace: Workplace, undisturbed: Endings, damage: Callable[[Path], None], damaged: int, resumes_from: int
) -> None:
    kill_sweep_at(SNAPSHOT_ENDS, workplace, *ONE_SEED)
    (folder,) = workplace.trials()
    snapshots = sorted(folder.snapshots.glob("step*.pt"))
    assert len(snapshots) == 2
    for path in snapshots[-damaged:]:
        damage(path)
    rerun(workplace, of_seed(0, undisturbed), ONE_SEED)
    assert history_of(folder).attempts[-1].from_step == resumes_from
    assert folder.log_path.read_text(encoding="utf-8").count("the file is damaged; skipped") == damaged


def of_another_trial(path: Path) -> None:
    """Replace the result by that of another trial."""
    others = [other for other in path.parents[2].glob("*/seed*/result.json") if other != path]
    shutil.copyfile(others[0], path)


@pytest.mark.parametrize("damage", [cut, of_another_trial])
def test_a_trial_whose_result_is_damaged_is_retrained(
    workplace: Workplace, undisturbed: Endings, damage: Callable[[Path], None]
) -> None:
    assert workplace.sweep(*ONE_SEED).status == 0
    damage(workplace.trials()[0].result_path)
    again = rerun(workplace, of_seed(0, undisturbed), ONE_SEED)
    assert "1 done already, 1 to train" in again.out


# --- a dead network ---------------------------------------------------------------------------------------------------


def test_a_network_whose_body_is_dead_is_marked_in_the_table_and_in_its_result(workplace: Workplace) -> None:
    outcome = workplace.sweep(*ONE_SEED, "train.steps=12")
    dead = {folder.result()["name"]: folder.result()["dead"] for folder in workplace.trials()}
    assert dead["bn=post"] is None
    assert dead["bn=pre"].startswith("its output is the skip connection")
    lines = {line.split()[0]: line for line in outcome.out.splitlines() if line.startswith("bn=") and " done " in line}
    assert lines["bn=pre"].endswith(" dB, dead")
    assert lines["bn=post"].endswith(" dB")


# --- MLflow -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_loses_no_training_and_no_metric(
    tmp_path: Path, migrated_database: Path, undisturbed: Endings
) -> None:
    database = tmp_path / "server.db"
    shutil.copyfile(migrated_database, database)
    with mlflow_server(f"sqlite:///{database}", tmp_path) as server:
        workplace = Workplace.make(tmp_path, server.uri)
        with started(workplace, *ONE_SEED, *BASIC, halt=LATER_SNAPSHOT) as command:
            halted = command.halted()
            server.stop()
            let_go(halted)
            outcome = command.end()
        assert outcome.status == 0, outcome.text
        assert "when it is available again: python -m ablations sync adhoc" in outcome.text
        server.start()
        again = rerun(workplace, of_seed(0, undisturbed), ONE_SEED)
        assert "2 done already, nothing to train" in again.out


@pytest.fixture
def fresh(tmp_path: Path) -> Workplace:
    """A workplace whose tracking store does not exist yet."""
    return Workplace.make(tmp_path, f"sqlite:///{tmp_path / 'new.db'}")


@pytest.mark.slow
def test_four_workers_on_a_new_store_lose_no_run(fresh: Workplace) -> None:
    four = ("train.steps=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=4")
    with started(fresh, *TRIALS, *four) as command:
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    assert "they wait on disk" not in outcome.text
    assert len(fresh.results()) == 4
    assert fresh.finished() == fresh.results()
    assert attempts(fresh) == 4 * [[State.FINISHED]]


@pytest.mark.slow
def test_two_sweeps_that_start_on_a_new_store_share_the_work(fresh: Workplace, undisturbed: Endings) -> None:
    with started(fresh, *ONE_SEED, *BASIC) as one, started(fresh, *ONE_SEED, *BASIC) as other:
        outcomes = [one.end(), other.end()]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes[0].text + outcomes[1].text
    check_nothing_lost(fresh, of_seed(0, undisturbed))
    assert attempts(fresh) == 2 * [[State.FINISHED]]


SCHEMA = Moment("sql", "(CREATE|ALTER) TABLE", 40)
"""While MLflow's tables are created, which takes seconds."""


@pytest.mark.slow
def test_a_store_whose_creation_was_killed_is_created_again(fresh: Workplace, undisturbed: Endings) -> None:
    kill_sweep_at(SCHEMA, fresh, *ONE_SEED)
    rerun(fresh, of_seed(0, undisturbed), ONE_SEED)
