"""What killed processes left behind is removed, and nothing that a living process uses."""

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.storage.folder import TrialFolder
from ablations.storage.lease import lease_files, trial_lock
from ablations.storage.leftovers import joblib_folder, remove_leftovers, remove_unused_semaphores
from tests.harness.paths import REPOSITORY

WORK = """
import sys, time
from pathlib import Path
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import trial_lock
from ablations.storage.leftovers import joblib_folder
from bbcu.files import replacing
outputs = Path(sys.argv[1])
trial = TrialFolder(outputs, "study", "c" * 64, 0)
with (
    trial_lock(trial, "bn=pre"),
    joblib_folder(outputs),
    replacing(outputs / "study" / "plan.json"),
    replacing(outputs / "study" / ".running" / "lease.json"),
    replacing(outputs / ".cache" / "pictures.json"),
    replacing(trial.result_path),
    replacing(trial.snapshots / "step1.pt"),
):
    print("ready", flush=True)
    time.sleep(600)
"""


def temporary(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_the_next_run_removes_what_a_killed_one_left_and_not_what_a_living_one_uses(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        remove_leftovers(tmp_path, "study")
        assert len(temporary(tmp_path)) == 6
        assert len(lease_files(tmp_path, "study")) == 1
        process.send_signal(signal.SIGKILL)
    remove_leftovers(tmp_path, "study")
    assert temporary(tmp_path) == []
    assert lease_files(tmp_path, "study") == []
    with trial_lock(TrialFolder(tmp_path, "study", "c" * 64, 0), "bn=pre") as lease:
        lease.check()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux grants leases on files")
def test_a_semaphore_is_removed_if_no_process_has_it_open(tmp_path: Path) -> None:
    used, unused, other = (tmp_path / name for name in ("sem.loky-1-a", "sem.loky-1-b", "sem.mp-1-c"))
    for path in (used, unused, other):
        path.write_bytes(bytes(32))
    # As sem_open does: the file is closed, and stays mapped.
    handle = os.open(used, os.O_RDWR)
    mapped = mmap.mmap(handle, 32)
    os.close(handle)
    remove_unused_semaphores(tmp_path)
    assert sorted(tmp_path.iterdir()) == [used, other]
    mapped.close()
    remove_unused_semaphores(tmp_path)
    assert list(tmp_path.iterdir()) == [other]


def test_joblib_has_its_folder_in_the_outputs_for_as_long_as_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", "/before")
    with joblib_folder(tmp_path):
        folder = Path(os.environ["JOBLIB_TEMP_FOLDER"])
        assert folder.parent == tmp_path / ".cache"
        assert folder.is_dir()
    assert os.environ["JOBLIB_TEMP_FOLDER"] == "/before"
    assert temporary(tmp_path) == []
