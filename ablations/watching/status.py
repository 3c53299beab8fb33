"""``python -m ablations status STUDY``: print the state of each trial of a study from its folder.

It writes and locks nothing, so it can run at any time on any machine that can read the folder. As in a sweep, a trial
is finished if its ``result.json`` is valid.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ablations.storage import stopping
from ablations.storage.attempts import PROCESS_DIED, Attempt, State, progress_text
from ablations.storage.status import StatusReader, StudyStatus, TrialStatus, record_of
from ablations.watching.decisions import DecisionReader, comparison_line, comparison_records, summary_line
from ablations.watching.forecast import duration
from bbcu.errors import first_line, printable

if TYPE_CHECKING:
    from ablations.decide.decisions import Decisions

POLL_SECONDS = 2.0
"""How often ``--watch`` reads the status."""

IDLE_READS = 3
"""``--watch`` ends after this many reads in a row without a running trial; between two trials there may be none."""

MAX_LISTED = 20
"""The largest number of trials of a state that are listed."""

MAX_ATTEMPTS_LISTED = 5


def lines_of(status: StudyStatus, now: float, decisions: "Decisions | None" = None) -> list[str]:
    """Return the status as printable lines; ``now`` is in seconds since the epoch."""
    counts = status.counts
    lines = [
        f"study {status.folder.name}: {len(status.trials)} trials in {status.folder}",
        "  ".join(f"{state} {'unknown' if number is None else number}" for state, number in counts.items()),
        *([] if status.damage is None else [str(status.damage)]),
        *([] if decisions is None else [summary_line(decisions)]),
    ]
    if decisions is not None:
        lines += section("comparisons", [[comparison_line(decisions, each)] for each in decisions.comparisons])
    lines += section("running", [[running_line(trial, now)] for trial in status.of(State.RUNNING)])
    for state in (State.FAILED, State.INTERRUPTED):
        lines += section(state, [ended_lines(trial) for trial in status.of(state)])
    lines += section("excluded", [[f"{row.get('name', '')}: {row['reason']}"] for row in status.excluded])
    unfinished = any(counts[state] for state in (State.PLANNED, State.FAILED, State.INTERRUPTED))
    if not counts[State.RUNNING] and (unfinished or (decisions is not None and decisions.open)):
        lines += ["", stopping.RESUME]
    return list(map(printable, lines))


def section(title: str, entries: Sequence[Sequence[str]]) -> list[str]:
    """Return a title with at most MAX_LISTED entries of several lines each; empty without entries."""
    if not entries:
        return []
    lines = ["", title, *(f"  {line}" for entry in entries[:MAX_LISTED] for line in entry)]
    more = len(entries) - MAX_LISTED
    return [*lines, f"  and {more} more; --json lists all"] if more > 0 else lines


def running_line(trial: TrialStatus, now: float) -> str:
    lease = trial.lease
    assert lease is not None
    since = f"since {local_time(lease.began)} ({duration(max(0.0, now - lease.began))})"
    return f"{trial.title}: {progress_text(lease)}, {lease.place}, {since}"


def ended_lines(trial: TrialStatus) -> list[str]:
    """Return the reason why a trial has no result, its attempts, and the path of its log."""
    lines = [f"{trial.title}: {first_line(trial.reason or 'no reason recorded')}"]
    lines += [f"  {attempt_text(attempt, len(trial.attempts))}" for attempt in trial.attempts[-MAX_ATTEMPTS_LISTED:]]
    if trial.damage is not None:
        lines.append(f"  damaged: {trial.folder.shortened(trial.damage.path)}")
    return [*lines, f"  log: {trial.folder.shortened(trial.folder.log_path)}"]


def attempt_text(attempt: Attempt, of: int) -> str:
    ended = "" if attempt.ended is None else f" to {local_time(attempt.ended)}"
    start = f", resumed after step {attempt.from_step}" if attempt.from_step else ""
    reason = first_line(attempt.reason or "no reason recorded")
    how = PROCESS_DIED if attempt.state == State.RUNNING else f"{attempt.state}: {reason}"
    where = f"process {attempt.pid} on {attempt.host}"
    return f"attempt {attempt.number} of {of}: {local_time(attempt.began)}{ended}{start}, {where}: {how}"


def local_time(seconds: float) -> str:
    """Format a time in seconds since the epoch as the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# --- the command ------------------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Add the command ``status`` to the result of argparse's ``add_subparsers``."""
    parser = commands.add_parser("status", help="print the state of each trial of a study")
    parser.add_argument("study", help="the study's name, as in study.name")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of results (%(default)s)")
    parser.add_argument("--watch", action="store_true", help="redraw it until nothing runs")
    parser.add_argument("--json", action="store_true", help="as JSON, with every trial; with --watch at the end")
    parser.set_defaults(run=show_status)


def show_status(options: argparse.Namespace) -> None:
    """Print the status of a study; raise ConfigError, which names the existing studies, if it does not exist.

    Raises DamagedFile after printing if the plan is damaged, since the status is not complete then.
    """
    reader = StatusReader(options.outputs, options.study)
    decisions_of = DecisionReader(options.outputs, options.study).of
    if options.watch:
        console = None if options.json else rich.get_console()
        status = watch(reader.read, console, lambda: time.sleep(POLL_SECONDS), decisions_of)
    else:
        status = reader.read()
    decisions = decisions_of(status)
    if options.json:
        comparisons = {} if decisions is None else {"comparisons": comparison_records(decisions)}
        print(json.dumps({**record_of(status), **comparisons}, indent=1))
    else:
        print("\n".join(lines_of(status, time.time(), decisions)))
    if status.damage is not None:
        raise status.damage


def watch(
    read: Callable[[], StudyStatus],
    console: Console | None,
    wait: Callable[[], None],
    decisions_of: Callable[[StudyStatus], "Decisions | None"] = lambda status: None,
) -> StudyStatus:
    """Read the status until nothing runs, or until Ctrl-C, and return the last one.

    It is drawn on ``console`` if that is a terminal, and erased at the end.
    """
    status, quiet = read(), 0
    display = Live(console=console or Console(quiet=True), auto_refresh=False, transient=True)
    with display, contextlib.suppress(KeyboardInterrupt):
        while quiet < IDLE_READS:
            lines = "\n".join(lines_of(status, time.time(), decisions_of(status)))
            display.update(Text(lines, no_wrap=True, overflow="ellipsis"), refresh=True)
            quiet = 0 if status.counts[State.RUNNING] else quiet + 1
            if quiet < IDLE_READS:
                wait()
                status = read()
    return status
