"""What a sweep shows while it runs: a display on a terminal, plain lines elsewhere, and when it will be over."""

import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import rich
from rich.console import Console

from ablations.storage import stopping
from ablations.storage.attempts import State, begin_attempt, end_attempt, update_attempt
from ablations.storage.files import write_atomically
from ablations.storage.folder import Identity, TrialFolder
from ablations.storage.lease import HeldTrial, Lease, held, lease_path
from ablations.watching.console import ConsoleHandler
from ablations.watching.live import Ending, Forecast, LiveView, Standing, WatchedTrial, span
from tests.harness.paths import REPOSITORY

STUDY = "tiny"
STEPS = 100
TOLD_TO_RICH = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE")
"""Variables by which a user, or the one who runs the tests, changes what rich takes a terminal for."""

BEGAN = 1_700_000_000.0
SESSION = "ours"


# --- trials as a sweep leaves them ------------------------------------------------------------------------------------


def folder_of(outputs: Path, name: str, seed: int = 0) -> TrialFolder:
    return TrialFolder(outputs, STUDY, hashlib.sha256(name.encode()).hexdigest(), seed)


def result_of(folder: TrialFolder, psnr_db: float = 33.91) -> dict[str, Any]:
    """A whole result; the mean PSNR over its two test sets is ``psnr_db``."""
    unused = ("factors", "levels", "reference", "setting", "baseline", "cost", "probes", "provenance")
    return {
        **{key: {} for key in unused},
        "study": folder.study,
        "cell": folder.cell,
        "seed": folder.seed,
        "name": "bn=post",
        "method": "custom",
        "task": "sr_x2",
        "metrics": {"Set5": {"psnr_db": psnr_db + 1}, "Set14": {"psnr_db": psnr_db - 1}},
        "timing": {"train_s": 2.0},
    }


@contextmanager
def at_work(folder: TrialFolder, name: str, session: str = SESSION, steps: int = STEPS) -> Iterator[HeldTrial]:
    """A trial that this process works at, from the moment at which its attempt has begun."""
    with held(folder, name, session=session, steps=steps) as hold:
        attempt = begin_attempt(folder, BEGAN)
        hold.beat(now=True, attempt=attempt.number, phase="training")
        yield hold


def finish(folder: TrialFolder, psnr_db: float = 33.91, seconds: float = 50.0) -> None:
    """Finish the attempt at hand, which has taken ``seconds``."""
    folder.write_result(result_of(folder, psnr_db))
    update_attempt(folder, state=State.FINISHED, ended=BEGAN + seconds)


def run(folder: TrialFolder, name: str, psnr_db: float = 33.91, seconds: float = 50.0) -> None:
    """Run a trial to its end."""
    with at_work(folder, name):
        finish(folder, psnr_db, seconds)


def hold_until_killed(folder: TrialFolder, name: str, begun: Any) -> None:
    with at_work(folder, name):
        begun.set()
        signal.pause()


@contextmanager
def worker(folder: TrialFolder, name: str) -> Iterator[Any]:
    """A process of its own that works at a trial, and is killed in the end."""
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=hold_until_killed, args=(folder, name, begun))
    process.start()
    try:
        assert begun.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


# --- a view, and what it shows ----------------------------------------------------------------------------------------


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """What a terminal shows that is written this text: as much of one as a display that redraws itself needs."""

    TOKENS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r?\n|\r|[^\x1b\r\n]+")

    def __init__(self, text: str) -> None:
        self.lines, self.row, self._column = [""], 0, 0
        position = 0
        for token in self.TOKENS.finditer(text):
            assert token.start() == position, text[position : token.start()]
            position = token.end()
            self._take(token)

    def _take(self, token: re.Match[str]) -> None:
        number, command = token[1], token[2]
        if command == "A":
            self.row -= int(number or 1)
            assert self.row >= 0, "above the first line"
        elif command == "K":
            assert number == "2"
            self.lines[self.row] = ""
        elif command is not None:
            assert command in "mhl", token[0]
        elif token[0] == "\r":
            self._column = 0
        elif token[0].endswith("\n"):
            self.row, self._column = self.row + 1, 0
            self.lines += [""] * (self.row == len(self.lines))
        else:
            line = self.lines[self.row].ljust(self._column)
            self.lines[self.row] = line[: self._column] + token[0] + line[self._column + len(token[0]) :]
            self._column += len(token[0])

    @property
    def written(self) -> list[str]:
        """The lines with something on them."""
        return [line.rstrip() for line in self.lines if line.strip()]


class Sweep:
    """A sweep over a few trials, watched in a file or on a terminal of ``width`` columns."""

    def __init__(self, outputs: Path, names: tuple[str, ...], *, width: int = 0, height: int = 20) -> None:
        self.outputs, self.clock, self._file = outputs, Clock(), io.StringIO()
        self.folders = {name: folder_of(outputs, name) for name in names}
        self.console = Console(file=self._file, width=160)
        if width:
            self.console = Console(file=self._file, force_terminal=True, width=width, height=height)

    @property
    def trials(self) -> dict[Identity, WatchedTrial]:
        return {(folder.cell, folder.seed): WatchedTrial(name, STEPS, folder) for name, folder in self.folders.items()}

    def view(self, *done: str, **options: Any) -> LiveView:
        finished = {(self.folders[name].cell, 0) for name in done}
        given = {"trials": self.trials, "session": SESSION, "console": self.console, "clock": self.clock, **options}
        return LiveView(self.outputs, STUDY, done=finished, **given)

    def at_work(self, name: str, session: str = SESSION) -> Any:
        return at_work(self.folders[name], name, session)

    def draw(self, view: LiveView) -> None:
        """Let the view show what there is, as it does half a second after it has last drawn."""
        self.clock.now += 0.5
        view.update()

    @contextmanager
    def all_at_work(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in self.folders:
                stack.enter_context(self.at_work(name))
            yield

    def run(self, name: str, **result: float) -> None:
        run(self.folders[name], name, **result)

    @property
    def lines(self) -> list[str]:
        """Every line that was written, where there is no terminal."""
        return self._file.getvalue().splitlines()

    @property
    def screen(self) -> list[str]:
        """What the terminal shows."""
        return Screen(self._file.getvalue()).written

    @property
    def cursor(self) -> int:
        """The row of the terminal's cursor, which waits in the last line of the display."""
        return Screen(self._file.getvalue()).row


@pytest.fixture(autouse=True)
def terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in TOLD_TO_RICH:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep whose console is a file."""
    return Sweep(tmp_path, ("one", "two", "three"))


@pytest.fixture
def on_terminal(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, ("one", "two", "three"), width=120)


# --- lines: how a trial ends ------------------------------------------------------------------------------------------


def test_a_trial_that_finishes_is_a_line_with_its_score_its_time_and_how_far_the_sweep_is(sweep: Sweep) -> None:
    with sweep.view("three") as view:
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"], psnr_db=33.91, seconds=50)
        view.update()
        assert sweep.lines == ["2/3 one seed 0: 33.91 dB in 50 s, 50 s left"]


def test_a_trial_whose_clock_was_set_back_is_a_line_without_a_time_and_teaches_none(sweep: Sweep) -> None:
    with sweep.view("three") as view:
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"], psnr_db=33.91, seconds=0)
        view.update()
        assert sweep.lines == ["2/3 one seed 0: 33.91 dB"]


def test_a_trial_that_fails_is_a_line_with_its_reason_and_its_log(sweep: Sweep) -> None:
    folder = sweep.folders["one"]
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            end_attempt(folder, State.FAILED, "no room for [bold]\nand a long story")
        view.update()
    assert sweep.lines == [f"failed: one seed 0: no room for [bold]; see {folder.log_path}"]


@pytest.mark.parametrize("state", [State.INTERRUPTED, State.PRUNED])
def test_a_trial_that_ends_early_is_a_line_with_its_reason(sweep: Sweep, state: State) -> None:
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            end_attempt(sweep.folders["one"], state, "there is a reason")
        view.update()
    assert sweep.lines == [f"{state}: one seed 0: there is a reason"]


def test_a_worker_that_is_killed_leaves_an_interrupted_trial(sweep: Sweep) -> None:
    with sweep.view() as view, worker(sweep.folders["one"], "one") as process:
        view.update()
        assert sweep.lines == []
        process.kill()
        process.join()
        view.update()
    assert sweep.lines == ["interrupted: one seed 0: the process ended without a word"]


def test_a_trial_that_is_tried_again_is_told_of_each_time(sweep: Sweep) -> None:
    folder = sweep.folders["one"]
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            end_attempt(folder, State.FAILED, "the first time")
        # The next attempt has begun before anybody looked.
        with sweep.at_work("one"):
            view.update()
            assert [line.partition(";")[0] for line in sweep.lines] == ["failed: one seed 0: the first time"]
            finish(folder)
        view.update()
    assert sweep.lines[1:] == ["1/3 one seed 0: 33.91 dB in 50 s, 2 min left"]


def test_a_trial_that_is_trained_anew_and_fails_does_not_count_by_its_old_result(sweep: Sweep) -> None:
    sweep.run("one")
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            end_attempt(sweep.folders["one"], State.FAILED, "diverged")
        view.update()
    assert [line.partition(";")[0] for line in sweep.lines] == ["failed: one seed 0: diverged"]


def test_a_trial_whose_result_is_damaged_has_not_finished(sweep: Sweep) -> None:
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"])
            sweep.folders["one"].result_path.write_text("{")
        view.update()
    assert sweep.lines == ["interrupted: one seed 0: its result.json is damaged or gone"]


def test_a_lease_that_a_listing_misses_ends_no_trial(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with sweep.view("two", "three") as view:
        with sweep.at_work("one"):
            view.update()
            with monkeypatch.context() as file_system:
                file_system.setattr(Path, "glob", lambda path, pattern: iter(()))
                view.update()
            finish(sweep.folders["one"])
        view.update()
        assert sweep.lines == ["3/3 one seed 0: 33.91 dB in 50 s"]


def test_a_trial_that_was_done_and_is_trained_anew_counts_by_how_that_ends(sweep: Sweep) -> None:
    sweep.run("one")
    with sweep.view("one", "two") as view:
        with sweep.at_work("one"):
            sweep.clock.now += 60
            view.update()
            end_attempt(sweep.folders["one"], State.FAILED, "diverged")
        view.update()
        running, failed = sweep.lines
    assert running.startswith("1/3 trials done, 1 running: one seed 0")
    assert failed.startswith("failed: one seed 0: diverged")


def test_what_earlier_sweeps_left_is_no_news(sweep: Sweep) -> None:
    sweep.run("one")
    with sweep.at_work("two"):
        end_attempt(sweep.folders["two"], State.FAILED, "long ago")
    with sweep.view("one") as view:
        view.update()
        sweep.clock.now += 60
        view.update()
    assert sweep.lines == []


# --- lines: trials that come later, as those of a search -------------------------------------------------------------


def test_trials_may_come_later(sweep: Sweep) -> None:
    growing = {identity: trial for identity, trial in sweep.trials.items() if trial.name == "one"}
    with sweep.view(trials=growing) as view:
        with sweep.at_work("two"):
            view.update()
            growing |= sweep.trials
            view.update()
            finish(sweep.folders["two"])
        view.update()
        assert sweep.lines == ["1/3 two seed 0: 33.91 dB in 50 s, 2 min left"]


def test_what_earlier_sweeps_left_of_a_trial_that_comes_later_is_no_news(sweep: Sweep) -> None:
    with sweep.at_work("two"):
        end_attempt(sweep.folders["two"], State.FAILED, "long ago")
    growing = {identity: trial for identity, trial in sweep.trials.items() if trial.name == "one"}
    with sweep.view(trials=growing) as view:
        growing |= sweep.trials
        view.update()
    assert sweep.lines == []


# --- lines: what nobody saw running -----------------------------------------------------------------------------------


def test_a_trial_that_came_and_went_unseen_is_found_within_half_a_minute(sweep: Sweep) -> None:
    with sweep.view() as view:
        view.update()
        sweep.run("one")
        sweep.clock.now += 29
        view.update()
        assert sweep.lines == []
        sweep.clock.now += 1
        view.update()
        assert len(sweep.lines) == 1
        assert sweep.lines[0].startswith("1/3 one seed 0: 33.91 dB")


def test_between_two_looks_at_all_that_is_left_is_half_a_minute(sweep: Sweep) -> None:
    with sweep.view() as view:
        sweep.clock.now += 30
        view.update()
        sweep.run("one")
        sweep.clock.now += 29
        view.update()
        assert sweep.lines == []
        sweep.clock.now += 1
        view.update()
        assert len(sweep.lines) == 1


def test_a_trial_that_begins_while_all_are_looked_at_has_not_ended(sweep: Sweep) -> None:
    with sweep.at_work("one"):
        end_attempt(sweep.folders["one"], State.FAILED, "long ago")
    standing = Standing(sweep.outputs, STUDY, sweep.trials, ())
    assert standing.look() == []
    with sweep.at_work("one"):
        assert standing.look_everywhere() == []


def test_at_the_end_everything_is_told_once(sweep: Sweep) -> None:
    with sweep.view() as view:
        sweep.run("one")
        with sweep.at_work("two"):
            end_attempt(sweep.folders["two"], State.FAILED, "out of memory")
        view.update()
        assert sweep.lines == []
    assert [line.split()[:2] for line in sweep.lines] == [["1/3", "one"], ["failed:", "two"]]


def test_a_trial_that_another_sweep_has_finished_counts_once(sweep: Sweep) -> None:
    with sweep.view() as view:
        view.update()
        with sweep.at_work("one", session="theirs"):
            finish(sweep.folders["one"])
        sweep.clock.now += 30
        view.update()
        # This sweep gives it out too, and its worker finds that it is done.
        with held(sweep.folders["one"], "one", session=SESSION):
            view.update()
        view.update()
    assert len(sweep.lines) == 1


def test_a_trial_that_proves_to_be_finished_when_it_is_taken_up_counts(sweep: Sweep) -> None:
    sweep.run("one")
    with sweep.view() as view:
        with held(sweep.folders["one"], "one", session=SESSION):
            view.update()
        view.update()
    assert [line.split(":")[0] for line in sweep.lines] == ["1/3 one seed 0"]


# --- lines: what runs -------------------------------------------------------------------------------------------------


def test_a_line_a_minute_tells_what_runs_where_nothing_else_was_told(sweep: Sweep) -> None:
    with sweep.at_work("one") as hold, sweep.at_work("two", session="theirs"), sweep.view() as view:
        hold.beat(now=True, step=40, scored_at=25, psnr_db=31.5)
        for _ in range(120):
            sweep.clock.now += 1
            view.update()
    running = "one seed 0 step 40/100 31.50 dB, two seed 0 step 0/100"
    assert sweep.lines == [f"0/3 trials done, 2 running (1 elsewhere): {running}"] * 2


def test_a_line_about_an_ending_puts_the_next_one_off(sweep: Sweep) -> None:
    with sweep.view() as view, sweep.at_work("two"):
        sweep.clock.now += 59
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"])
        view.update()
        sweep.clock.now += 59
        view.update()
        assert len(sweep.lines) == 1
        sweep.clock.now += 1
        view.update()
        assert len(sweep.lines) == 2


def test_a_line_names_a_few_of_many(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, tuple("abcdef"))
    with sweep.all_at_work(), sweep.view() as view:
        sweep.clock.now += 60
        view.update()
    assert sweep.lines[0].count("step 0/100") == 4
    assert sweep.lines[0].endswith(", 2 more")


def test_nothing_is_said_while_nothing_runs(sweep: Sweep) -> None:
    with sweep.view() as view:
        for _ in range(10):
            sweep.clock.now += 60
            view.update()
    assert sweep.lines == []


def test_a_view_that_shows_nothing_says_nothing(sweep: Sweep) -> None:
    with sweep.view(show=False) as view:
        sweep.run("one")
        sweep.clock.now += 60
        view.update()
    assert sweep.lines == []


# --- the display ------------------------------------------------------------------------------------------------------


def test_the_display_has_a_headline_and_a_row_for_each_running_trial(on_terminal: Sweep) -> None:
    with on_terminal.view("three") as view, on_terminal.at_work("one") as hold:
        hold.beat(now=True, step=40, phase="evaluating", scored_at=25, psnr_db=31.5)
        on_terminal.draw(view)
        headline, row = on_terminal.screen
    assert headline == "1/3 trials done  1 running"
    assert row.startswith("one seed 0  evaluating  ━")
    assert row.endswith("40/100  31.50 dB")


def test_the_display_is_gone_at_the_end(on_terminal: Sweep) -> None:
    with on_terminal.at_work("one"), on_terminal.view() as view:
        on_terminal.draw(view)
        assert len(on_terminal.screen) == 2
    assert on_terminal.screen == []


def test_the_headline_counts_what_has_no_result(on_terminal: Sweep) -> None:
    with on_terminal.view() as view:
        for name, state in zip(on_terminal.folders, (State.FAILED, State.INTERRUPTED, State.PRUNED), strict=True):
            with on_terminal.at_work(name):
                on_terminal.draw(view)
                end_attempt(on_terminal.folders[name], state, "there is a reason")
        on_terminal.draw(view)
        assert on_terminal.screen[-1] == "0/3 trials done  1 failed  1 interrupted  1 pruned  0 running"


def test_a_trial_that_failed_and_is_tried_again_runs(on_terminal: Sweep) -> None:
    with on_terminal.view() as view:
        with on_terminal.at_work("one"):
            on_terminal.draw(view)
            end_attempt(on_terminal.folders["one"], State.FAILED, "out of memory")
        on_terminal.draw(view)
        with on_terminal.at_work("one"):
            on_terminal.draw(view)
            assert on_terminal.screen[1] == "0/3 trials done  1 running"


def test_what_has_no_result_stays_above_the_display(on_terminal: Sweep) -> None:
    with on_terminal.view() as view:
        with on_terminal.at_work("one"):
            on_terminal.draw(view)
            end_attempt(on_terminal.folders["one"], State.INTERRUPTED, "there is a reason")
        with on_terminal.at_work("two"):
            on_terminal.draw(view)
            finish(on_terminal.folders["two"])
        on_terminal.draw(view)
    assert on_terminal.screen == ["interrupted: one seed 0: there is a reason"]


def test_cells_are_counted_where_they_are_trained_under_several_seeds(tmp_path: Path) -> None:
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


def test_what_another_sweep_works_at_is_marked(on_terminal: Sweep) -> None:
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


def test_a_trial_tells_when_it_will_be_done_by_its_own_pace(on_terminal: Sweep) -> None:
    with on_terminal.view() as view, on_terminal.at_work("one") as hold:
        hold.beat(now=True, step=1)
        on_terminal.draw(view)
        assert "left" not in on_terminal.screen[1]
        on_terminal.clock.now += 20
        hold.beat(now=True, step=11)
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
        hold.beat(now=True, step=40, psnr_db=31.5)
        sweep.draw(view)
        sweep.draw(view)
        assert all(len(line) <= width for line in sweep.screen)
        assert [line[:4] for line in sweep.screen].count("resi") == 1


def test_a_name_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ("binarize=[body]",), width=120)
    with sweep.view() as view, sweep.at_work("binarize=[body]"):
        sweep.draw(view)
        assert sweep.screen[1].startswith("binarize=[body] seed 0")


def test_a_sweep_that_is_to_stop_says_so_and_no_time(on_terminal: Sweep) -> None:
    try:
        with on_terminal.view() as view:
            with on_terminal.at_work("one"):
                on_terminal.draw(view)
                finish(on_terminal.folders["one"])
            on_terminal.draw(view)
            assert on_terminal.screen[0].endswith("2 min left")
            stopping.request(signal.SIGINT)
            on_terminal.draw(view)
            assert on_terminal.screen[0].endswith(
                "0 running  2400 trials/h  stopping after the steps in hand; Ctrl-C again stops at once"
            )
    finally:
        stopping.forget()


def test_the_display_is_drawn_twice_a_second_however_often_it_is_looked(on_terminal: Sweep) -> None:
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


def test_a_display_that_is_asked_for_in_a_file_is_written_once_at_the_end(sweep: Sweep) -> None:
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
    text = output_on_terminal("import sys, test_live; test_live.play(sys.argv[1])", str(tmp_path))
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


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


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


# --- when it will be over ---------------------------------------------------------------------------------------------


def finished(seconds: float, steps: int) -> Ending:
    return Ending(waiting(steps)[0], State.FINISHED, seconds=seconds, steps=steps)


def waiting(*steps: int) -> list[WatchedTrial]:
    return [WatchedTrial("x", number, folder_of(Path(), "x")) for number in steps]


def running(*steps: int) -> list[Lease]:
    """Trials of STEPS steps that are after these; each keeps its token."""
    return [
        Lease(STUDY, "c", seed, "x", SESSION, 1, STEPS, f"token {seed}", "host", 1, "", BEGAN, step=step)
        for seed, step in enumerate(steps)
    ]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forecast(clock: Clock) -> Forecast:
    return Forecast(clock)


def test_nothing_is_foretold_before_a_trial_has_finished(clock: Clock, forecast: Forecast) -> None:
    clock.now += 60
    forecast.learn([Ending(waiting(100)[0], State.FAILED, "out of memory", seconds=10.0, steps=10)])
    assert forecast.left([], waiting(100)) is None
    assert forecast.left_of(running(0)[0]) is None
    assert forecast.trials_per_hour is None


@pytest.mark.parametrize(
    ("steps", "at_once", "seconds"),
    [
        pytest.param((100, 100, 100), 1, 3 * 50, id="one after the other"),
        pytest.param((100, 100, 100), 3, 50, id="all at once"),
        pytest.param((100, 100, 100), 2, 2 * 50, id="the third waits for a free place"),
        pytest.param((100, 300), 1, 50 + 150, id="by their steps"),
        pytest.param((), 2, 0, id="nothing"),
    ],
)
def test_what_waits_takes_its_steps_in_as_many_places_as_there_were(
    forecast: Forecast, steps: tuple[int, ...], at_once: int, seconds: float
) -> None:
    forecast.learn([finished(seconds=20.0, steps=40)])
    forecast.see(running(*[0] * at_once))
    assert forecast.left([], waiting(*steps)) == seconds


def test_what_waits_begins_where_a_running_trial_ends_first(forecast: Forecast) -> None:
    forecast.learn([finished(seconds=50.0, steps=100)])
    now = running(90, 20)
    forecast.see(now)
    assert forecast.left(now, []) == 80 / 2
    assert forecast.left(now, waiting(100)) == 10 / 2 + 100 / 2


def test_a_place_that_was_free_for_long_is_none(clock: Clock, forecast: Forecast) -> None:
    forecast.learn([finished(seconds=50.0, steps=100)])
    forecast.see(running(0, 0))
    clock.now += 30
    forecast.see(running(0))
    assert forecast.left([], waiting(100, 100)) == 50
    clock.now += 1
    forecast.see(running(0))
    assert forecast.left([], waiting(100, 100)) == 100


def test_the_pace_is_the_mean_over_all_steps(forecast: Forecast) -> None:
    forecast.learn([finished(seconds=10.0, steps=10), finished(seconds=10.0, steps=190)])
    assert forecast.seconds_per_step == 20 / 200


def test_a_trial_that_trains_nothing_teaches_nothing_of_steps(forecast: Forecast) -> None:
    forecast.learn([finished(seconds=10.0, steps=0)])
    assert forecast.seconds_per_step is None
    forecast.learn([finished(seconds=50.0, steps=100)])
    assert forecast.seconds_per_step == 50 / 100


def test_a_running_trial_goes_at_its_own_pace_once_that_is_seen(clock: Clock, forecast: Forecast) -> None:
    forecast.learn([finished(seconds=50.0, steps=100)])
    forecast.see(running(0))
    clock.now += 100
    forecast.see(running(10))
    assert forecast.left_of(running(10)[0]) == 90 / 2
    clock.now += 40
    assert forecast.left_of(running(20)[0]) == 80 * 4


def test_trials_an_hour_are_those_since_the_view_began(clock: Clock, forecast: Forecast) -> None:
    clock.now += 1800
    forecast.learn([finished(10.0, 10), finished(10.0, 10)])
    assert forecast.trials_per_hour == 4


def test_a_trial_that_was_resumed_teaches_by_the_steps_of_its_last_attempt(sweep: Sweep) -> None:
    folder = sweep.folders["one"]
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            update_attempt(folder, from_step=90)
            finish(folder, seconds=10)
        view.update()
    # 10 steps took 10 s; 200 are to come.
    assert sweep.lines == ["1/3 one seed 0: 33.91 dB in 10 s, 3 min left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (47 * 3600 + 59 * 60, "47 h 59 min"),
        (48 * 3600, "2 d 0 h"),
        (60 * 3600, "2 d 12 h"),
    ],
)
def test_a_time_is_told_in_its_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text
