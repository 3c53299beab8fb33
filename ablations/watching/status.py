"""``python -m ablations status STUDY``: what has become of each trial of a study, read from its folder.

Nothing is written and nothing is locked, so it can be asked at any time and from any machine that sees the folder. A
trial counts as finished by the rule that a sweep goes by: its ``result.json`` is read and is whole. Asked again and
again, only results that have changed since are read again.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import rich
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ablations.storage.attempts import WITHOUT_A_WORD, Attempt, State, described
from ablations.storage.status import StatusReader, StudyStatus, TrialStatus, record_of
from ablations.watching.live import first_line, span

LOOK_SECONDS = 2.0
"""How long a redrawn status stays."""

QUIET_LOOKS = 3
"""How many looks in a row must find nothing that runs: between two trials of a sweep nothing does, for a moment."""

LISTED = 20
"""How many trials of a kind are listed for people."""

ATTEMPTS_LISTED = 5

GOES_ON = "the same command goes on from there"


# --- for people -------------------------------------------------------------------------------------------------------


def lines_of(status: StudyStatus, now: float) -> list[str]:
    """The status as lines; ``now`` is in seconds since the epoch."""
    counts = status.counts
    lines = [
        f"study {status.folder.name}: {len(status.trials)} trials in {status.folder}",
        "  ".join(f"{state} {number}" for state, number in counts.items()),
    ]
    lines += section("running", [running_lines(trial, now) for trial in status.of(State.RUNNING)])
    for state in (State.FAILED, State.INTERRUPTED):
        lines += section(state, [ended_lines(trial) for trial in status.of(state)])
    lines += section("excluded", [[f"{row['name']}: {row['reason']}"] for row in status.excluded])
    if not counts[State.RUNNING] and counts[State.PLANNED] + counts[State.FAILED] + counts[State.INTERRUPTED]:
        lines += ["", GOES_ON]
    return lines


def section(title: str, entries: Sequence[Sequence[str]]) -> list[str]:
    """A title and what it stands over, cut off after LISTED entries; nothing where there is none."""
    if not entries:
        return []
    lines = ["", title, *(f"  {line}" for entry in entries[:LISTED] for line in entry)]
    more = len(entries) - LISTED
    return [*lines, f"  and {more} more; --json lists all"] if more > 0 else lines


def running_lines(trial: TrialStatus, now: float) -> list[str]:
    lease = trial.lease
    assert lease is not None
    since = f"since {moment(lease.began)} ({span(max(0.0, now - lease.began))})"
    return [f"{trial.title}: {described(lease)}, {lease.place}, {since}"]


def ended_lines(trial: TrialStatus) -> list[str]:
    """A trial without a result: why, every attempt at it, and where its log is."""
    lines = [f"{trial.title}: {first_line(trial.reason)}"]
    lines += [f"  {attempt_text(attempt, len(trial.attempts))}" for attempt in trial.attempts[-ATTEMPTS_LISTED:]]
    return [*lines, f"  log: {trial.folder.log_path}"]


def attempt_text(attempt: Attempt, of: int) -> str:
    ended = "" if attempt.ended is None else f" to {moment(attempt.ended)}"
    start = f" after step {attempt.from_step}" if attempt.from_step else ""
    how = WITHOUT_A_WORD if attempt.state == State.RUNNING else f"{attempt.state}: {first_line(attempt.reason)}"
    where = f"process {attempt.pid} on {attempt.host}"
    return f"attempt {attempt.number} of {of}: {moment(attempt.began)}{ended}{start}, {where}: {how}"


def moment(seconds: float) -> str:
    """A time since the epoch as the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# --- the command ------------------------------------------------------------------------------------------------------


class Commands(Protocol):
    """What ``argparse`` adds commands to."""

    def add_parser(self, name: str, *, help: str) -> argparse.ArgumentParser: ...


def add_command(subparsers: Commands) -> None:
    """Add ``status`` to the commands of ``python -m ablations``."""
    parser = subparsers.add_parser("status", help="say what has become of each trial of a study")
    parser.add_argument("study", help="the study's name, as in study.name")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of results (%(default)s)")
    parser.add_argument("--watch", action="store_true", help="draw it anew until nothing runs")
    parser.add_argument("--json", action="store_true", help="as JSON, with every trial; with --watch at the end")
    parser.set_defaults(run=show_status)


def show_status(given: argparse.Namespace) -> None:
    """Print the status of a study; raises ConfigError, which names those that exist, for one that does not."""
    reader = StatusReader(given.outputs, given.study)
    if given.watch:
        status = watch(reader.read, None if given.json else rich.get_console(), lambda: time.sleep(LOOK_SECONDS))
    else:
        status = reader.read()
    if given.json:
        print(json.dumps(record_of(status), indent=1))
    else:
        print("\n".join(lines_of(status, time.time())))


def watch(read: Callable[[], StudyStatus], console: Console | None, wait: Callable[[], None]) -> StudyStatus:
    """Read the status until nothing runs, or until Ctrl-C, with a ``wait`` between; the last one.

    It is drawn on ``console`` where that is a terminal, and gone from there afterwards.
    """
    status, quiet = read(), 0
    display = Live(console=console or Console(quiet=True), auto_refresh=False, transient=True)
    with display, contextlib.suppress(KeyboardInterrupt):
        while quiet < QUIET_LOOKS:
            lines = "\n".join(lines_of(status, time.time()))
            display.update(Text(lines, no_wrap=True, overflow="ellipsis"), refresh=True)
            quiet = 0 if status.counts[State.RUNNING] else quiet + 1
            if quiet < QUIET_LOOKS:
                wait()
                status = read()
    return status
