"""A store that cannot be used is refused in one line, whatever is wrong with it; nothing is logged about it."""

import contextlib
import http.server
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ablations.__main__ import main
from ablations.tracking.client import prepare_tracking, recorded_runs, run_file, study_names
from bbcu.errors import BbcuError
from bbcu.files import read_text
from tests.ablations.storage.helpers import finished
from tests.ablations.sweep.test_faults_of_storage import disk, full, read_only
from tests.harness.studies import trial, write_study
from tests.harness.support import Workplace


def refusal(uri: str) -> str:
    """The message with which a store is refused; one line."""
    with pytest.raises(BbcuError) as caught:
        prepare_tracking(uri, "study")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"tracking.uri={uri}"[:60])
    return line


@pytest.fixture(autouse=True)
def silence(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither MLflow nor SQLAlchemy writes a traceback beside the one line."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield
    written = "".join(capfd.readouterr())
    assert "Traceback" not in written
    assert "sqlalche.me" not in written


# --- a file -----------------------------------------------------------------------------------------------------------


def no_database(path: Path) -> None:
    path.write_text("a letter\n" * 100, encoding="utf-8")


def one_byte(path: Path) -> None:
    path.write_bytes(b"x")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def newer_schema(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")


def older_schema(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")


FAULTS = {
    no_database: "is not an SQLite database",
    one_byte: "is not an SQLite database",
    directory: "is not a file",
    fifo: "is not a file",
    half: "database disk image is malformed",
    newer_schema: "out-of-date database schema",
    older_schema: "out-of-date database schema",
}


@pytest.mark.parametrize(("damage", "reason"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS])
def test_a_file_that_cannot_be_used_is_refused(tracking_uri: str, damage: Callable[[Path], None], reason: str) -> None:
    damage(Path(tracking_uri.removeprefix("sqlite:///")))
    assert reason in refusal(tracking_uri)


def test_a_file_that_is_no_database_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_bytes(b"x")
    refusal(f"sqlite:///{path}")
    assert path.read_bytes() == b"x"


def test_a_locked_database_is_refused(tracking_uri: str) -> None:
    """Another program holds an exclusive transaction, and SQLite gives up after five seconds."""
    connection = sqlite3.connect(tracking_uri.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("begin exclusive")
    try:
        assert refusal(tracking_uri).endswith("database is locked")
    finally:
        connection.close()


@pytest.mark.parametrize("uri", ["", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite:///:memory:"])
def test_a_store_that_would_be_lost_with_the_process_is_refused(uri: str) -> None:
    assert "name a file" in refusal(uri)


# --- characters in its path -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["100%", "a#b", "a b", "ä", "a'b", 'a"b', "a;b&c", "x" * 200], ids=ascii)
def test_a_study_below_a_folder_of_any_name_is_recorded_and_read_back(
    migrated_database: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    write_study(uri, folder / "outputs", [trial()])
    (run,) = recorded_runs(uri, "components").values()
    result = run_file(uri, run, "result.json")
    assert result is not None
    assert result.is_relative_to(folder / "mlruns")
    assert read_text(result) == read_text(next((folder / "outputs").rglob("result.json")))


@pytest.mark.parametrize("name", ["a%41b", "a?b", "a\nb", "\x1b]0;title\x07", "\udcff", "\u202egnp"], ids=ascii)
def test_a_path_that_is_another_one_to_mlflow_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(BbcuError, match="is another one to MLflow"):
        prepare_tracking(f"sqlite:///{tmp_path / name / 'mlflow.db'}", "study")
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert "the file's name has more than" in refusal(f"sqlite:///{tmp_path / ('x' * 260)}")


# --- a disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [full, read_only])
def test_sync_into_a_database_on_a_disk_that_fails_is_one_line(
    workplace: Workplace, migrated_database: Path, failure: Callable[[Path], contextlib.AbstractContextManager[None]]
) -> None:
    finished(workplace.outputs)
    with disk(workplace.folder / "records") as folder:
        shutil.copyfile(migrated_database, folder / "mlflow.db")
        with failure(folder), pytest.raises(SystemExit) as left:
            main(
                ["sync", "tiny", "--outputs", str(workplace.outputs), "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
            )
    assert str(left.value.code).startswith(f"ablations: tracking.uri=sqlite:///{folder}/mlflow.db")
    assert len(str(left.value.code).splitlines()) == 1


def test_sync_names_the_disk_for_a_fault_of_the_disk(workplace: Workplace) -> None:
    with disk(workplace.outputs) as outputs:
        finished(outputs)
        with read_only(outputs), pytest.raises(SystemExit) as left:
            main(["sync", "tiny", "--outputs", str(outputs), "--tracking-uri", workplace.uri])
    assert "Read-only file system" in str(left.value.code)
    assert "tracking.uri" not in str(left.value.code)


# --- a server ---------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "a redirect in a circle": b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
    "a redirect to nowhere": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
    "a page": OK + b"\r\n<html><title>\x1b]0;title\x07</title>\n<p>Log in</html>",
    "a page of an error": b"HTTP/1.1 500 Error\r\n\r\n<html>\n" + b"x" * 100_000,
    "no login": b"HTTP/1.1 401 Unauthorized\r\n\r\nYou are not authenticated.",
    "another JSON": OK + b'\r\n{"experiment": 7}',
    "a list": OK + b"\r\n[1, 2]",
    "a million characters": OK + b"\r\n" + b"A" * 2_000_000,
    "a thousand headers": OK + b"".join(b"X-%d: y\r\n" % number for number in range(1000)) + b"\r\n",
    "a long header": OK + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    "noise": b"\x00\xff\xfe\r\n\r\n",
    "nothing": b"",
}


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers every request with the bytes of its server."""

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(ANSWERS[self.server.answer])  # type: ignore[attr-defined]

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_not_mlflows_is_refused(hostile: http.server.ThreadingHTTPServer, answer: str) -> None:
    hostile.answer = answer  # type: ignore[attr-defined]
    line = refusal(f"http://127.0.0.1:{hostile.server_port}")
    assert line.isprintable()
    assert len(line) < 2500


def test_a_server_without_a_certificate_is_refused(hostile: http.server.ThreadingHTTPServer) -> None:
    hostile.answer = "a page"  # type: ignore[attr-defined]
    assert "SSL" in refusal(f"https://127.0.0.1:{hostile.server_port}")


# --- any address ------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=30)


@given(st.sampled_from(["", "sqlite://", "sqlite:///", "file:", "foo://", "sqlite+x:///", "postgresql+x://"]), NAMES)
@example("sqlite:///", "..")
@example("sqlite:///", "\0")
@example("sqlite:///", "m.db?mode=memory")
@example("postgresql+x://", "u:abc[d@h")
def test_any_text_that_is_no_store_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, name: str
) -> None:
    """None of these is a store, and reading creates none."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BbcuError) as caught:
        study_names(start + name)
    assert len(str(caught.value).splitlines()) == 1
