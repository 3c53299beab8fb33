"""``python -m ablations status STUDY``: the state of each trial of a study, read from its folder.

Nothing is written and nothing is locked, so it can be asked at any time and from any machine that sees the folder. A
trial counts as finished by the rule that a sweep uses: its ``result.json`` is whole.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ablations.storage.attempts import PROCESS_DIED, Attempt, State, progress_text
from ablations.storage.files import first_line
from ablations.storage.status import StatusReader, StudyStatus, TrialStatus, record_of
from ablations.watching.forecast import span

LOOK_SECONDS = 2.0
"""How often ``--watch`` reads the status."""

QUIET_LOOKS = 3
"""How many looks in a row must find nothing that runs: between two trials of a sweep nothing does, for a moment."""

LISTED = 20
"""How many trials of a state are listed."""

ATTEMPTS_LISTED = 5

RESUME = "the same command goes on from there"


def lines_of(status: StudyStatus, now: float) -> list[str]:
    """Return the status as lines; ``now`` is in seconds since the epoch."""
    counts = status.counts
    lines = [
        f"study {status.folder.name}: {len(status.trials)} trials in {status.folder}",
        "  ".join(f"{state} {number}" for state, number in counts.items()),
    ]
    lines += section("running", [[running_line(trial, now)] for trial in status.of(State.RUNNING)])
    for state in (State.FAILED, State.INTERRUPTED):
        lines += section(state, [ended_lines(trial) for trial in status.of(state)])
    lines += section("excluded", [[f"{row['name']}: {row['reason']}"] for row in status.excluded])
    if not counts[State.RUNNING] and counts[State.PLANNED] + counts[State.FAILED] + counts[State.INTERRUPTED]:
        lines += ["", RESUME]
    return lines


def section(title: str, entries: Sequence[Sequence[str]]) -> list[str]:
    """Return a title with entries of several lines each, at most LISTED of them; nothing without entries."""
    if not entries:
        return []
    lines = ["", title, *(f"  {line}" for entry in entries[:LISTED] for line in entry)]
    more = len(entries) - LISTED
    return [*lines, f"  and {more} more; --json lists all"] if more > 0 else lines


def running_line(trial: TrialStatus, now: float) -> str:
    lease = trial.lease
    assert lease is not None
    since = f"since {moment(lease.began)} ({span(max(0.0, now - lease.began))})"
    return f"{trial.title}: {progress_text(lease)}, {lease.place}, {since}"


def ended_lines(trial: TrialStatus) -> list[str]:
    """Return a trial without a result: the reason, the attempts at it, and where its log is."""
    lines = [f"{trial.title}: {first_line(trial.reason or 'no reason was given')}"]
    lines += [f"  {attempt_text(attempt, len(trial.attempts))}" for attempt in trial.attempts[-ATTEMPTS_LISTED:]]
    return [*lines, f"  log: {trial.folder.shortened(trial.folder.log_path)}"]


def attempt_text(attempt: Attempt, of: int) -> str:
    ended = "" if attempt.ended is None else f" to {moment(attempt.ended)}"
    start = f", resumed after step {attempt.from_step}" if attempt.from_step else ""
    reason = first_line(attempt.reason or "no reason was given")
    how = PROCESS_DIED if attempt.state == State.RUNNING else f"{attempt.state}: {reason}"
    where = f"process {attempt.pid} on {attempt.host}"
    return f"attempt {attempt.number} of {of}: {moment(attempt.began)}{ended}{start}, {where}: {how}"


def moment(seconds: float) -> str:
    """Write a time since the epoch as the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# --- the command ------------------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Add ``status`` to ``commands``, which argparse made by ``add_subparsers``."""
    parser = commands.add_parser("status", help="print the state of each trial of a study")
    parser.add_argument("study", help="the study's name, as in study.name")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of results (%(default)s)")
    parser.add_argument("--watch", action="store_true", help="redraw it until nothing runs")
    parser.add_argument("--json", action="store_true", help="as JSON, with every trial; with --watch at the end")
    parser.set_defaults(run=show_status)


def show_status(given: argparse.Namespace) -> None:
    """Print the status of a study; raise ConfigError, which names the studies that exist, if it does not exist."""
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
    """Read the status until nothing runs, or until Ctrl-C, and return the last one.

    It is drawn on ``console``, if that is a terminal, and removed from there at the end.
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
