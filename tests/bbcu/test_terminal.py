"""Nothing that a command prints or logs acts on a terminal, fails for an encoding, or has a password."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rich
from hypothesis import given
from hypothesis import strategies as st

from ablations.__main__ import main
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import write_plan
from ablations.sweep.printing import print_table
from ablations.trial.progress import ConsoleHandler, TrialProgress
from bbcu.data.__main__ import main as manage_data
from bbcu.errors import printable_lines
from bbcu.terminal import ArgumentParser, SafeRecord, protect_output, say
from tests.ablations.storage.helpers import CELL, finished, result
from tests.harness.builders import save
from tests.harness.paths import REPOSITORY
from tests.harness.support import photograph

HOSTILE = {
    "a title": "\x1b]0;title\x07",
    "a colour": "\x1b[31mred\x9b2J",
    "a return": "good\rbad",
    "a direction": "\u202egnp.exe",
    "a surrogate": "\udcff",
    "markup": "[link=http://evil]click[/link] [red]",
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def protected(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    before, hook = logging.getLogRecordFactory(), sys.excepthook
    protect_output()
    yield
    logging.setLogRecordFactory(before)
    sys.excepthook = hook


def is_harmless(text: str, hostile: str) -> bool:
    """Whether a text has no character that a terminal obeys, and shows the markup of rich as it is."""
    return "".join(text.split("\n")).isprintable() and ("[" not in hostile or "[" in text)


def test_lines_and_tables_are_printable(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"one\n{hostile}")
    print_table(["cell", "seed"], [[hostile, "0"]])
    printed = capsys.readouterr().out
    assert is_harmless(printed, hostile)
    assert len(printed.splitlines()) == 4


def test_log_records_are_printable_whatever_handles_them(hostile: str, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError(hostile)
    except ValueError:
        logging.getLogger("ablations").exception("%s\nand a table", hostile)
    assert is_harmless(caplog.text, hostile)
    assert "\nand a table\n" in caplog.text


def test_the_console_prints_records_as_they_are(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = SafeRecord("ablations", logging.WARNING, "", 0, "%s", (hostile,), None)
    ConsoleHandler().handle(record)
    printed = capsys.readouterr().out
    assert is_harmless(printed, hostile)
    assert printable_lines(hostile) in printed


def test_a_log_record_has_no_password(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("http://me:hidden@host")
    except ValueError:
        logging.getLogger("ablations").exception("at %s", "http://me:hidden@host")
    assert "hidden" not in caplog.text
    assert "at http://me:***@host\n" in caplog.text
    assert caplog.text.endswith("ValueError: http://me:***@host\n")


def test_a_progress_bar_shows_a_name_as_it_is(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    with TrialProgress(hostile, 4, show=True) as progress:
        progress.update(1, 0.5, 30.0)
        progress.evaluated(hostile, 2)
        (task,) = progress._bar.tasks
        with rich.get_console().capture() as captured:
            rich.get_console().print(progress._bar.make_tasks_table([task]), soft_wrap=True)
    assert is_harmless(captured.get(), hostile)


def test_a_parser_quotes_arguments_in_a_printable_way(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="program")
    parser.add_argument("--network", choices=["srresnet"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--network", "srresnet", hostile])
    assert is_harmless(capsys.readouterr().err, hostile)


def test_the_status_of_a_foreign_study_is_printable(
    hostile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {name: value for name, value in result().items() if name not in ("metrics", "timing", "cost", "probes")}
    left_out = {"name": hostile, "reason": hostile, "levels": {}, "setting": {}}
    write_plan(tmp_path, "tiny", {"trials": [{**row, "name": hostile}], "left_out": [left_out]})
    TrialFolder(tmp_path, "tiny", CELL, 0).path.mkdir(parents=True, exist_ok=True)
    (TrialFolder(tmp_path, "tiny", CELL, 0).path / "trial.log").write_text("", encoding="utf-8")
    main(["status", "tiny", "--outputs", str(tmp_path)])
    printed = capsys.readouterr().out
    assert is_harmless(printed, hostile)
    assert "excluded" in printed


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "\u202egnp", "[red]x", "a\rb"], ids=ascii)
def test_the_check_of_pictures_with_hostile_names_is_printable(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photograph(0), tmp_path / f"{name}1.png")
    save(photograph(0), tmp_path / f"{name}2.png")
    (tmp_path / f"{name}3.png").write_bytes(b"no picture")
    manage_data(["check", str(tmp_path)])
    printed = capsys.readouterr()
    assert "the same pixels" in printed.out
    assert is_harmless(printed.out + printed.err, name)


@pytest.mark.parametrize("variables", [{"LANG": "C", "LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}], ids=["C", "ascii"])
def test_names_outside_the_encoding_of_a_stream_are_escaped(tmp_path: Path, variables: dict[str, str]) -> None:
    finished(tmp_path / "\udcff" / "ä")
    outputs = os.fsencode(tmp_path / "\udcff" / "ä")
    done = subprocess.run(
        [sys.executable, "-m", "ablations", "status", "tiny", "--outputs", outputs],
        capture_output=True,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\udcff" in done.stdout


def test_a_traceback_has_no_password_and_is_printable(tmp_path: Path) -> None:
    program = "from bbcu.terminal import *; protect_output(); raise ValueError('\\x1b http://me:hidden@host')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == r"ValueError: \x1b http://me:***@host"


@given(st.text(max_size=50))
def test_any_text_is_printable_on_as_many_lines(text: str) -> None:
    lines = printable_lines(text)
    assert lines.count("\n") == text.count("\n")
    assert lines.replace("\n", "").isprintable()
    lines.encode("utf-8")
