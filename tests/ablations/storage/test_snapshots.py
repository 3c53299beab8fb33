"""Snapshots: a trial resumes from the newest one that is whole and of the same origin."""

import hashlib
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.storage.snapshots import RETAINED, Snapshots
from tests.ablations.storage.helpers import Warnings
from tests.harness.builders import in_another_process, open_folder, without_root_rights

ORIGIN = {"code": "abc", "torch": "2.13"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"body": torch.arange(6.0).reshape(2, 3) * step}}


def save(folder: Path, *steps: int, origin: dict[str, Any] = ORIGIN) -> Snapshots:
    """Save a snapshot of each step, one after the other, as one process does."""
    snapshots = Snapshots(folder, origin)
    for step in steps:
        assert snapshots.save(step, state_of(step))
    return snapshots


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[4:13]) for path in folder.glob("step*.pt"))


def newest_step(folder: Path, origin: dict[str, Any] = ORIGIN) -> int | None:
    """The step from which a new process would resume."""
    state = Snapshots(folder, origin).newest()
    return None if state is None else state["step"]


def path_of(folder: Path, step: int) -> Path:
    (path,) = folder.glob(f"step{step:09d}-*.pt")
    return path


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_state_is_read_back_as_it_was(folder: Path) -> None:
    save(folder, 3)
    state = Snapshots(folder, ORIGIN).newest()
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["weights"]["body"], state_of(3)["weights"]["body"])


def test_without_a_snapshot_there_is_no_state(folder: Path) -> None:
    assert newest_step(folder) is None


def test_the_newest_counts_by_its_step(folder: Path) -> None:
    save(folder, 9, 10)
    assert newest_step(folder) == 10


def test_the_two_newest_are_kept(folder: Path) -> None:
    save(folder, 1, 2, 3, 4)
    assert RETAINED == 2
    assert steps_in(folder) == [3, 4]


def test_a_process_that_resumes_keeps_two_together_with_earlier_ones(folder: Path) -> None:
    save(folder, 1, 2)
    later = Snapshots(folder, ORIGIN)
    later.newest()
    later.save(3, state_of(3))
    assert steps_in(folder) == [2, 3]


def test_a_snapshot_is_of_the_moment_at_which_it_was_taken(folder: Path) -> None:
    weights = torch.zeros(2)
    Snapshots(folder, ORIGIN).save(1, {"weights": weights})
    weights.add_(1)
    state = Snapshots(folder, ORIGIN).newest()
    assert state is not None
    assert state["weights"].tolist() == [0, 0]


def test_nothing_is_left_when_they_are_cleared(folder: Path) -> None:
    snapshots = save(folder, 1, 2)
    (folder / ".step000000003-half.pt.x").write_bytes(b"half of it")
    snapshots.clear()
    assert not folder.exists()
    snapshots.clear()


# --- what is skipped --------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut, empty, flip_a_bit])
def test_a_damaged_snapshot_is_skipped_with_a_warning(
    folder: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, 1, 2)
    spoil(path_of(folder, 2))
    assert newest_step(folder) == 1
    assert [record.getMessage() for record in caplog.records] == [f"{path_of(folder, 2)}: the file is damaged; skipped"]


@pytest.mark.parametrize(
    ("origin", "named"),
    [
        ({**ORIGIN, "code": "other"}, "code"),
        ({"code": "other", "torch": "9"}, "code, torch"),
        ({**ORIGIN, "device": "cuda"}, "device"),
        ({"code": "abc"}, "torch"),
    ],
    ids=["code", "both", "one-more", "one-less"],
)
def test_a_snapshot_of_another_origin_is_skipped_and_the_difference_named(
    folder: Path, origin: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, 1)
    assert newest_step(folder, origin) is None
    assert f"made with a different {named}; skipped" in caplog.text


def test_later_snapshots_of_another_origin_do_not_replace_those_that_count(folder: Path) -> None:
    save(folder, 800, 900, origin={**ORIGIN, "code": "other"})
    again = Snapshots(folder, ORIGIN)
    assert again.newest() is None
    for step in (10, 20, 30):
        again.save(step, state_of(step))
    assert newest_step(folder) == 30
    cut(path_of(folder, 30))
    assert newest_step(folder) == 20


def test_snapshots_of_another_origin_stay_until_the_end(folder: Path) -> None:
    other = {**ORIGIN, "code": "other"}
    save(folder, 800, 900, origin=other)
    again = Snapshots(folder, ORIGIN)
    again.newest()
    again.save(10, state_of(10))
    assert newest_step(folder, other) == 900


def test_a_damaged_snapshot_does_not_replace_one_that_counts(folder: Path) -> None:
    save(folder, 1, 2)
    cut(path_of(folder, 2))
    again = Snapshots(folder, ORIGIN)
    assert again.newest() is not None
    again.save(3, state_of(3))
    cut(path_of(folder, 3))
    assert newest_step(folder) == 1


class Trap:
    """Something that runs code as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sprung = tmp_path / "sprung"
    content = pickle.dumps(Trap(sprung), protocol=2)
    folder.mkdir()
    (folder / f"step000000001-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    assert newest_step(folder) is None
    assert not sprung.exists()
    assert "torch does not load it" in caplog.text
    pickle.loads(content)
    assert sprung.exists()


@pytest.mark.parametrize(
    "content",
    [{"step": 1}, [1, 2], {"origin": ORIGIN}, {"origin": 3, "state": {}}],
    ids=["no-origin", "a-list", "no-state", "a-number-for-an-origin"],
)
def test_a_file_of_something_else_is_skipped(folder: Path, content: object, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    torch.save(content, folder / "written.pt")
    digest = hashlib.sha256((folder / "written.pt").read_bytes()).hexdigest()[:16]
    (folder / "written.pt").rename(folder / f"step000000001-{digest}.pt")
    assert newest_step(folder) is None
    assert "it is not a snapshot; skipped" in caplog.text


def test_files_of_other_names_are_ignored(folder: Path) -> None:
    save(folder, 1)
    (folder / "step2.pt").write_bytes(b"")
    (folder / ".step000000003-0123456789abcdef.pt.half").write_bytes(b"half of it")
    assert newest_step(folder) == 1


def test_an_unreadable_snapshot_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with open_folder() as outputs:
        folder = outputs / "snapshots"
        save(folder, 1, 2)
        path_of(folder, 2).chmod(0)
        with without_root_rights():
            assert newest_step(folder) == 1
    assert "cannot be read: Permission denied; skipped" in caplog.text


# --- a disk that cannot be written to ---------------------------------------------------------------------------------


def save_on_a_full_disk(folder: Path) -> tuple[list[bool], list[str]]:
    """Save before the disk is full, twice while it is, when there is room again, and when there is none once more."""
    heard, snapshots = Warnings(), Snapshots(folder, ORIGIN)
    done = []
    for step, room in enumerate((resource.RLIM_INFINITY, 64, 64, resource.RLIM_INFINITY, 64), start=1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        done.append(snapshots.save(step, state_of(step)))
    return done, heard.texts


def test_a_full_disk_causes_one_warning_and_earlier_snapshots_stay(folder: Path) -> None:
    done, texts = in_another_process(save_on_a_full_disk, folder)
    assert done == [True, False, False, True, False]
    assert texts == [f"no snapshot at step {step}: File too large; training continues" for step in (2, 5)]
    assert steps_in(folder) == [1, 4]
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_written_to_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with open_folder() as outputs:
        snapshots = save(outputs / "snapshots", 1)
        with without_root_rights():
            assert not snapshots.save(2, state_of(2))
        assert newest_step(outputs / "snapshots") == 1
    assert "no snapshot at step 2: Permission denied; training continues" in caplog.text
