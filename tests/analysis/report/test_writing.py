"""Where a report cannot be written, the command says so in one line, and it writes through no link."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.report.archive import ARCHIVE, recording, write_archive
from analysis.report.compare import study_at
from analysis.report.forms import forms, write_forms
from analysis.report.page import compose, write
from analysis.statistics.estimates import MARGIN_DB
from bbcu.errors import BbcuError, ConfigError
from tests.harness.paths import REPOSITORY
from tests.harness.studies import read_back, trial


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """The folder of a report that holds only its archive, from which the command can write the rest."""
    results = read_back(tmp_path / "outputs", [trial(0), trial(1)])
    results.curves  # noqa: B018
    for identity in results.files:
        results.record(identity)
    recorded, asked = recording(results)
    recorded.curves  # noqa: B018
    folder = tmp_path / "reports" / "components"
    write_archive(results, asked, MARGIN_DB, folder)
    return folder


def refusal(*arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    message = str(stopped.value)
    assert message.startswith("analysis: ")
    assert len(message.splitlines()) == 1
    return message


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let the system refuse to write more than so many bytes to a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_is_one_line_and_leaves_no_part_of_a_file(report: Path) -> None:
    before = (report / ARCHIVE).read_bytes()
    with no_file_larger_than(5000):
        message = refusal(report, "--reports", report.parent / "new")
    assert "cannot be" in message
    assert "File too large" in message
    assert (report / ARCHIVE).read_bytes() == before
    assert all(path.stat().st_size != 5000 for path in report.parent.rglob("*"))


def test_a_file_in_place_of_the_folder_is_one_line(report: Path) -> None:
    (report.parent / "new").write_text("mine")
    assert f"{report.parent}/new/components: the report cannot be written" in refusal(
        report, "--reports", report.parent / "new"
    )
    assert (report.parent / "new").read_text() == "mine"


def test_a_folder_in_which_nothing_can_be_made_is_one_line(report: Path) -> None:
    assert "/proc/new/components: the report cannot be written" in refusal(report, "--reports", "/proc/new")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a report."""
    return compose(read_back(tmp_path_factory.mktemp("files"), [trial(0), trial(1)]))


def test_links_in_a_report_are_replaced_and_not_followed(files: dict[str, bytes], tmp_path: Path) -> None:
    """A folder that someone sent may have links to anything of the user's in place of its files."""
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "report" / "tables").mkdir(parents=True)
    for name in [*files, *forms(files)]:
        (tmp_path / "report" / name).symlink_to(tmp_path / "mine")
    written = [write(files, tmp_path / "report"), *write_forms(files, tmp_path / "report")]
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert not any(path.is_symlink() for path in (tmp_path / "report").rglob("*"))
    assert all(path.stat().st_size > 0 for path in written)


def test_tables_behind_a_link_are_not_removed(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.csv").write_text("mine")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "tables").symlink_to(tmp_path / "mine")
    with pytest.raises(BbcuError, match="tables is a link"):
        write_forms(files, tmp_path / "report")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["results.csv"]


def test_a_fifo_in_place_of_the_page_does_not_block(files: dict[str, bytes], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.md")
    assert write(files, tmp_path).is_file()


def test_a_full_disk_behind_the_screen_is_one_line(report: Path) -> None:
    command = [sys.executable, "-m", "analysis", "compare", str(report), str(report)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["analysis: [Errno 28] No space left on device"]


ODD_NAMES = ["x" * 260, "a\nb", "\x1b[31m", "..", ".", "", "../x", "/", "a/b", "\udcff"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_of_a_study_is_one_line_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*ODD_NAMES, "a?b", "%41"])
def test_an_odd_name_to_compare_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    refusal("compare", name, name)
    with pytest.raises(ConfigError), study_at(name, "sqlite:///none.db", tmp_path):
        pass
    assert list((tmp_path / "below").iterdir()) == []


@pytest.mark.parametrize("option", ["--reports", "--outputs", "--tracking-uri"])
@pytest.mark.parametrize("value", ["x" * 260, "a\nb", "a?b", "%41"])
def test_an_odd_place_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    monkeypatch.chdir(tmp_path)
    refusal("components", option, f"sqlite:///{value}.db" if option == "--tracking-uri" else value)
    assert list(tmp_path.iterdir()) == []


def test_a_margin_of_many_digits_is_one_short_line() -> None:
    message = refusal("components", "--margin", "9" * 5000)
    assert "give a difference in dB" in message
    assert len(message) < 300


@pytest.mark.parametrize("arguments", [["components"], ["compare", "a", "b"]], ids=["report", "compare"])
def test_factors_of_the_users_own_are_declared_first(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their phrases name the rows of a report."""
    monkeypatch.setenv("BBCU_FACTORS", "nowhere.GAIN")
    assert "factor nowhere.GAIN: cannot be imported" in refusal(*arguments)
