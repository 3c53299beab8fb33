"""What a sweep draws on a terminal while it runs, and messages beside it."""

import dataclasses
import fcntl
import io
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
import rich
from rich.console import Console

from ablations.storage import stopping
from ablations.storage.attempts import State, end_attempt
from ablations.storage.lease import lease_path
from ablations.trial.progress import ConsoleHandler
from bbcu.errors import printable
from bbcu.files import write_atomically
from tests.ablations.watching.sweeps import Full, Screen, Sweep, finish, folder_of, run
from tests.harness.paths import REPOSITORY

# --- the display ------------------------------------------------------------------------------------------------------


def test_the_display_has_a_headline_and_a_row_for_each_running_trial(on_terminal: Sweep) -> None:
    with on_terminal.view("three") as view, on_terminal.at_work("one") as hold:
        hold.heartbeat(now=True, step=40, phase="evaluating", scored_at=25, psnr_db=31.5)
        on_terminal.draw(view)
        headline, row = on_terminal.screen
    assert headline == "1/3 trials done  1 running"
    assert row.startswith("one seed 0  evaluating  ━")
    assert row.endswith("40/100  31.50 dB")


@pytest.mark.parametrize("name", ["\x1b]0;title\x07x", "[red]x", "[link=http://evil]x[/link]", "\u202ex"], ids=ascii)
def test_a_row_shows_a_name_with_control_characters_and_markup_as_text(tmp_path: Path, name: str) -> None:
    sweep = Sweep(tmp_path, (name,), width=120)
    with sweep.view() as view, sweep.at_work(name):
        sweep.draw(view)
        _, row = sweep.screen
    assert row.startswith(f"{printable(name)} seed 0  training")


def test_the_display_disappears_at_the_end(on_terminal: Sweep) -> None:
    with on_terminal.at_work("one"), on_terminal.view() as view:
        on_terminal.draw(view)
        assert len(on_terminal.screen) == 2
    assert on_terminal.screen == []


def test_the_headline_counts_trials_without_a_result(on_terminal: Sweep) -> None:
    with on_terminal.view() as view:
        for name, state in zip(on_terminal.folders, (State.FAILED, State.INTERRUPTED, State.PRUNED), strict=True):
            with on_terminal.at_work(name):
                on_terminal.draw(view)
                end_attempt(on_terminal.folders[name], state, "there is a reason")
        on_terminal.draw(view)
        assert on_terminal.screen[-1] == "0/3 trials done  1 failed  1 interrupted  1 pruned  0 running"


def test_a_trial_that_is_retried_counts_as_running(on_terminal: Sweep) -> None:
    with on_terminal.view() as view:
        with on_terminal.at_work("one"):
            on_terminal.draw(view)
            end_attempt(on_terminal.folders["one"], State.FAILED, "out of memory")
        on_terminal.draw(view)
        with on_terminal.at_work("one"):
            on_terminal.draw(view)
            assert on_terminal.screen[1] == "0/3 trials done  1 running"


def test_trials_without_a_result_stay_above_the_display(on_terminal: Sweep) -> None:
    with on_terminal.view() as view:
        with on_terminal.at_work("one"):
            on_terminal.draw(view)
            end_attempt(on_terminal.folders["one"], State.INTERRUPTED, "there is a reason")
        with on_terminal.at_work("two"):
            on_terminal.draw(view)
            finish(on_terminal.folders["two"])
        on_terminal.draw(view)
    assert on_terminal.screen == ["interrupted: one seed 0: there is a reason"]


def test_cells_are_counted_if_there_are_several_seeds(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ("one", "two"), width=120)
    again = folder_of(tmp_path, "one", seed=1)
    sweep.folders["one again"] = again
    with sweep.view("one") as view:
        sweep.draw(view)
        assert sweep.screen == ["1/3 trials done  0/2 cells  0 running"]
        run(again, "one")
        sweep.clock.now += 30
        sweep.draw(view)
        assert sweep.screen[0].startswith("2/3 trials done  1/2 cells  0 running")


def test_a_trial_of_another_sweep_is_marked(on_terminal: Sweep) -> None:
    with on_terminal.view() as view, on_terminal.at_work("one", session="theirs") as hold:
        on_terminal.draw(view)
        headline, row = on_terminal.screen
    assert headline == "0/3 trials done  1 running (1 elsewhere)"
    assert row.endswith(f"elsewhere: {hold.lease.place}")


def test_a_worker_of_this_sweep_on_another_machine_is_named(on_terminal: Sweep) -> None:
    folder = on_terminal.folders["one"]
    with on_terminal.view() as view, on_terminal.at_work("two") as hold:
        lease = dataclasses.replace(hold.lease, cell=folder.cell, name="one", host="node7/abc", token="t")
        write_atomically(lease_path(folder), json.dumps(dataclasses.asdict(lease)))
        on_terminal.draw(view)
        headline, *rows = on_terminal.screen
    assert headline == "0/3 trials done  2 running"
    assert sorted(row.split()[0] + " " + row.split()[-1] for row in rows) == ["one node7", "two 0/100"]


def test_a_trial_shows_the_time_left_at_its_own_pace(on_terminal: Sweep) -> None:
    with on_terminal.view() as view, on_terminal.at_work("one") as hold:
        hold.heartbeat(now=True, step=1)
        on_terminal.draw(view)
        assert "left" not in on_terminal.screen[1]
        on_terminal.clock.now += 20
        hold.heartbeat(now=True, step=11)
        on_terminal.draw(view)
        assert on_terminal.screen[1].split()[-4:] == ["11/100", "3", "min", "left"]


def test_more_trials_than_lines_are_counted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, tuple("abcdefgh"), width=80, height=8)
    with sweep.all_at_work(), sweep.view() as view:
        sweep.draw(view)
        sweep.draw(view)
        assert len(sweep.screen) == 7
        assert sweep.screen[-1] == "and 3 more"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_keeps_a_row_on_its_line(tmp_path: Path, width: int) -> None:
    name = "residual=false bn=post act=after weight=irnet surrogate=identity"
    sweep = Sweep(tmp_path, (name,), width=width)
    with sweep.view() as view, sweep.at_work(name) as hold:
        hold.heartbeat(now=True, step=40, psnr_db=31.5)
        sweep.draw(view)
        sweep.draw(view)
        assert all(len(line) <= width for line in sweep.screen)
        assert [line[:4] for line in sweep.screen].count("resi") == 1


def test_a_name_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ("binarize=[body]",), width=120)
    with sweep.view() as view, sweep.at_work("binarize=[body]"):
        sweep.draw(view)
        assert sweep.screen[1].startswith("binarize=[body] seed 0")


def test_a_sweep_that_is_asked_to_stop_shows_that_instead_of_the_time_left(on_terminal: Sweep) -> None:
    try:
        with on_terminal.view() as view:
            with on_terminal.at_work("one"):
                on_terminal.draw(view)
                finish(on_terminal.folders["one"])
            on_terminal.draw(view)
            assert on_terminal.screen[0].endswith("2 min left")
            stopping.request_stop(signal.SIGINT)
            on_terminal.draw(view)
            assert on_terminal.screen[0].endswith(f"0 running  2400 trials/h  {stopping.STOPPING}")
    finally:
        stopping.clear_request()


def test_the_display_is_drawn_at_most_twice_a_second(on_terminal: Sweep) -> None:
    with on_terminal.view() as view, on_terminal.at_work("one"):
        on_terminal.clock.now += 0.25
        view.update()
        assert len(on_terminal.screen) == 1
        on_terminal.clock.now += 0.25
        view.update()
        assert len(on_terminal.screen) == 2


def test_the_display_keeps_its_height_between_two_trials(on_terminal: Sweep) -> None:
    with on_terminal.view() as view:
        with on_terminal.at_work("one"), on_terminal.at_work("two"):
            on_terminal.draw(view)
            assert on_terminal.cursor == 2
        on_terminal.draw(view)
        assert len(on_terminal.screen) == 2 + 1
        assert on_terminal.cursor == 2 + 2


def test_a_display_in_a_file_is_written_once_at_the_end(sweep: Sweep) -> None:
    with sweep.view("two", "three", show=True) as view:
        with sweep.at_work("one"):
            sweep.draw(view)
            finish(sweep.folders["one"])
        sweep.clock.now += 59
        sweep.draw(view)
        assert sweep.lines == []
    assert [line.strip() for line in sweep.lines if line.strip()] == ["3/3 trials done  0 running  60 trials/h"]


def test_a_dumb_terminal_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    sweep = Sweep(tmp_path, ("one",), width=120)
    with sweep.view() as view:
        assert not view.is_display
        sweep.run("one")
    assert sweep.lines == ["1/1 one seed 0: 33.91 dB in 50 s"]


# --- the display and other messages -----------------------------------------------------------------------------------


def play(outputs: str) -> None:
    """A sweep on this process's terminal: a display that is drawn as fast as it can be, and messages meanwhile."""
    sweep = Sweep(Path(outputs), ("one", "two", "three"))
    sweep.console = rich.get_console()
    logging.basicConfig(handlers=[ConsoleHandler()], format="%(message)s")
    log = logging.getLogger("play")
    over = threading.Event()
    with sweep.view() as view:
        assert view.is_display

        def draw() -> None:
            while not over.is_set():
                sweep.draw(view)

        thread = threading.Thread(target=draw)
        thread.start()
        for name, folder in sweep.folders.items():
            with sweep.at_work(name):
                for number in range(10):
                    log.warning("log message %d of %s", number, name)
                finish(folder)
        over.set()
        thread.join()
        for number in range(10):
            print("printed message", number)
            print("complaint", number, file=sys.stderr)
    print("the table at the end", flush=True)


def output_on_terminal(code: str, *arguments: str) -> str:
    """What Python code writes to a terminal of 24 lines of 100 columns."""
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    path = os.pathsep.join([str(REPOSITORY), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        env={**os.environ, "PYTHONPATH": path},
    )
    os.close(writer)
    text = io.BytesIO()
    try:
        while chunk := read_terminal(reader):
            text.write(chunk)
    finally:
        process.kill()
        os.close(reader)
    return text.getvalue().decode()


def read_terminal(reader: int) -> bytes:
    """Some of what was written to a terminal; nothing once nobody has it open any more, which is an error to Linux."""
    try:
        return os.read(reader, 65536)
    except OSError:
        return b""


def test_messages_stand_whole_and_in_order_above_a_display_on_a_terminal(tmp_path: Path) -> None:
    code = "import sys; from tests.ablations.watching.test_display import play; play(sys.argv[1])"
    text = output_on_terminal(code, str(tmp_path))
    assert text.count("0/3 trials done") > 1
    logged = [f"log message {number} of {name}" for name in ("one", "two", "three") for number in range(10)]
    printed = [f"{kind} {number}" for number in range(10) for kind in ("printed message", "complaint")]
    assert Screen(text).written == [*logged, *printed, "the table at the end"]


class Witness(io.StringIO):
    """A file that notes, whenever it is written to, whether another thread could log at that moment."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self.could_log: list[bool] = []

    def write(self, text: str) -> int:
        thread = threading.Thread(target=self._try)
        thread.start()
        thread.join()
        return super().write(text)

    def _try(self) -> None:
        lock = self._handler.lock
        assert lock is not None
        self.could_log.append(lock.acquire(blocking=False))
        if self.could_log[-1]:
            lock.release()


def test_no_other_thread_logs_while_the_display_is_drawn(on_terminal: Sweep) -> None:
    handler = ConsoleHandler()
    file = Witness(handler)
    on_terminal.console = Console(file=file, force_terminal=True, width=120, height=20)
    logging.getLogger().addHandler(handler)
    try:
        with on_terminal.view() as view:
            file.could_log.clear()
            on_terminal.draw(view)
            assert file.could_log == [False]
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_a_console_that_cannot_be_written_to_stops_nothing(sweep: Sweep, terminal: bool) -> None:
    sweep.console = Console(file=Full(), force_terminal=terminal)
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            end_attempt(sweep.folders["one"], State.FAILED, "out of memory")
        view.update()
    with pytest.raises(OSError, match="No space left"):
        sweep.console.print("so the console is the full one")
