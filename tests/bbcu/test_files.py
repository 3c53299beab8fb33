"""Files are replaced as a whole, follow the umask, and nothing of a killed process stays."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bbcu.files import (
    NotAFile,
    read_bytes,
    remove_abandoned,
    replacing,
    temporary_folder,
    why_untrusted,
    write_atomically,
)

HOLD = """
import sys, time
from pathlib import Path
from bbcu.files import replacing, temporary_folder
with replacing(Path(sys.argv[1])) as file, temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "content").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_file_follows_the_umask(tmp_path: Path, umask: None, mask: int, mode: int) -> None:
    os.umask(mask)
    write_atomically(tmp_path / "plan.json", "{}")
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == mode


def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, "old")
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_the_longest_length_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_a_temporary_folder_may_be_renamed(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "cache") as folder:
        (folder / "content").write_text("whole")
        folder.rename(tmp_path / "cache")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["cache", "cache/content"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    (tmp_path / ".other.tmp").write_text("not ours")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "plan.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        held = sorted(tmp_path.glob(".plan.json.*.tmp"))
        assert remove_abandoned(tmp_path) == []
        assert sorted(tmp_path.glob(".plan.json.*.tmp")) == held
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert sorted(remove_abandoned(tmp_path)) == held
    assert len(held) == 2
    assert [path.name for path in tmp_path.iterdir()] == [".other.tmp"]


@pytest.mark.parametrize(
    ("above", "itself", "reason"),
    [
        (0o755, 0o700, None),
        (0o755, 0o755, None),
        (0o1777, 0o700, None),
        (0o755, 0o775, "other users can write to {folder}"),
        (0o755, 0o1777, "other users can write to {folder}"),
        (0o775, 0o700, "other users can write to {folder.parent}"),
        (0o2777, 0o700, "other users can write to {folder.parent}"),
    ],
)
def test_a_folder_is_trusted_if_nobody_else_can_write_to_it_or_replace_it(
    tmp_path: Path, above: int, itself: int, reason: str | None
) -> None:
    folder = tmp_path / "above" / "itself"
    folder.mkdir(parents=True)
    folder.chmod(itself)
    folder.parent.chmod(above)
    (tmp_path / "link").symlink_to(folder)
    expected = reason and reason.format(folder=folder)
    assert why_untrusted(folder) == why_untrusted(tmp_path / "link") == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("given", ["above", "above/itself"])
def test_a_folder_of_another_user_is_not_trusted(tmp_path: Path, given: str) -> None:
    (tmp_path / "above" / "itself").mkdir(parents=True)
    os.chown(tmp_path / given, 12345, 12345)
    assert why_untrusted(tmp_path / "above" / "itself") == f"{tmp_path / given} belongs to another user"


def test_a_folder_that_is_missing_is_not_trusted(tmp_path: Path) -> None:
    assert why_untrusted(tmp_path / "gone") == f"{tmp_path / 'gone'}: No such file or directory"


def test_what_other_programs_have_in_the_folder_stays(tmp_path: Path) -> None:
    names = {name: tmp_path / f".{name}.{'0' * 12}.tmp" for name in ("mlflow[1].db", "mlflow1.db", "other")}
    for path in names.values():
        path.write_text("abandoned")
    assert remove_abandoned(tmp_path, "mlflow[1].db") == [names["mlflow[1].db"]]


def test_a_link_among_the_temporary_files_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / f".x.{'0' * 12}.tmp").symlink_to(target)
    remove_abandoned(tmp_path)
    assert target.read_text() == "kept"


def test_a_fifo_and_a_file_that_is_too_large_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(NotAFile, match="not a regular file"):
        read_bytes(tmp_path / "fifo")
    with pytest.raises(NotAFile, match="larger than 10 bytes"):
        read_bytes(tmp_path / "large", limit=10)
    assert read_bytes(tmp_path / "large", limit=11) == bytes(11)
