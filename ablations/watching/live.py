"""Show the progress of a sweep while it runs: a display on a terminal, plain lines elsewhere.

The view runs in the sweep's process and reads the study's folder, so it is the same for every launcher and shows the
trials of other sweeps too. Each update reads the leases. A trial that started and ended between two updates is found by
reading the folders of all unfinished trials, twice a minute and at the end.
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import rich
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from ablations.storage import stopping
from ablations.storage.attempts import WITHOUT_RESULT, State
from ablations.storage.folder import Identity
from ablations.storage.lease import Lease
from ablations.watching.decisions import closing_line, summary_line
from ablations.watching.forecast import Forecast, duration
from ablations.watching.tracker import Ending, TrialTracker, WatchedTrial
from bbcu.errors import first_line, printable

if TYPE_CHECKING:
    from ablations.decide.decisions import Decisions

POLL_ALL_SECONDS = 30.0
"""How often the folders of all unfinished trials are read, to find those whose lease was never seen."""

LINE_SECONDS = 60.0
"""The longest time without a printed line while trials run."""

MAX_NAMED = 4
"""The largest number of running trials that a plain line names."""

BAR_WIDTH = 16

DRAW_SECONDS = 0.4
"""The shortest time between two drawings, which take milliseconds; a search updates more often."""


class LiveView:
    """Shows the progress of a sweep, as a context manager; call :meth:`update` about twice a second.

    ``done`` are the trials that had finished before. ``session`` identifies this sweep; trials of other sweeps are
    marked. ``decisions`` returns what a sweep with a stopping rule has decided; it is called at each update. ``show``
    is "auto" (a display on a terminal, lines elsewhere), True (the display, of which a file gets only the last state)
    or False (nothing). Log messages that go through ``console``, by default rich's, appear above the display.
    """

    def __init__(
        self,
        outputs: Path,
        study: str,
        trials: Mapping[Identity, WatchedTrial],
        done: Container[Identity],
        show: Literal["auto"] | bool = "auto",
        *,
        session: str = "",
        decisions: Callable[[], "Decisions"] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sweep = (outputs, study, trials, done)
        self._session, self._clock, self._read_decisions = session, clock, decisions
        self._console = console or rich.get_console()
        self._shows = show is not False
        self.is_display = show is True or (self._shows and self._console.is_interactive)

    def __enter__(self) -> "LiveView":
        if self._shows:
            self._tracker = TrialTracker(*self._sweep)
            self._forecast = Forecast(self._clock)
            self._decisions = None if self._read_decisions is None else self._read_decisions()
            self._summary = ""
            self._printed_at = self._polled_all_at = self._clock()
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=self._console.is_interactive,
                # Do not redirect a stream that is written to a file.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._rows_before = 0
            if self.is_display:
                with ignoring_broken_output():
                    self._live.start()
                self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._shows:
            return
        try:
            self._show(self._tracker.poll() + self._tracker.poll_all())
            if self.is_display:
                self._draw()
        finally:
            with ignoring_broken_output():
                self._live.stop()

    def update(self) -> None:
        """Show what has changed."""
        if not self._shows:
            return
        endings = self._tracker.poll()
        if self._clock() - self._polled_all_at >= POLL_ALL_SECONDS:
            endings += self._tracker.poll_all()
            self._polled_all_at = self._clock()
        self._show(endings)
        if not self.is_display and self._tracker.running and self._clock() - self._printed_at >= LINE_SECONDS:
            self._print(self._progress_line())

    def _show(self, endings: list[Ending]) -> None:
        self._forecast.learn(endings)
        self._forecast.observe(self._tracker.running.values())
        for ending in endings:
            # A display counts finished trials; other endings are printed as lines that stay.
            if not self.is_display or ending.state != State.FINISHED:
                self._print(self._ending_line(ending))
        self._show_decisions()
        if self.is_display and self._clock() - self._drawn_at >= DRAW_SECONDS:
            self._draw()

    def _show_decisions(self) -> None:
        """Print what has been decided since the last update and, without a display, which look comes next."""
        if self._decisions is None or self._read_decisions is None:
            return
        were_open = {comparison.pair for comparison in self._decisions.open}
        self._decisions = self._read_decisions()
        for comparison in self._decisions.comparisons:
            if comparison.pair in were_open and not comparison.is_open:
                self._print(closing_line(self._decisions, comparison))
        summary = summary_line(self._decisions)
        if not self.is_display and summary != self._summary:
            self._print(summary)
        self._summary = summary

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        with ignoring_broken_output(), blocking_log_messages():
            self._live.update(self._display(), refresh=True)

    def _print(self, line: str) -> None:
        self._printed_at = self._clock()
        with ignoring_broken_output():
            self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    # --- lines --------------------------------------------------------------------------------------------------------

    def _ending_line(self, ending: Ending) -> str:
        if ending.state != State.FINISHED:
            folder = ending.trial.folder
            log = f"; see {folder.shortened(folder.log_path)}" * (ending.state == State.FAILED)
            return f"{ending.state}: {ending.trial.title}: {first_line(ending.reason or 'no reason recorded')}{log}"
        took = "" if ending.seconds is None else f" in {duration(ending.seconds)}"
        done = f"{self._tracker.counts[State.FINISHED]}/{len(self._tracker.trials)}"
        return f"{done} {ending.trial.title}: {ending.psnr_db:.2f} dB{took}" + self._left(", ")

    def _progress_line(self) -> str:
        running = list(self._tracker.running.items())
        named = [
            f"{self._tracker.trials[identity].title} step {lease.step}/{lease.steps}{decibels(lease, ' ')}"
            for identity, lease in running[:MAX_NAMED]
        ]
        if len(running) > MAX_NAMED:
            named.append(f"{len(running) - MAX_NAMED} more")
        return f"{', '.join(self._numbers())}: {', '.join(named)}"

    def _numbers(self) -> list[str]:
        """Return the labelled numbers of the headline."""
        counts, trials = self._tracker.counts, len(self._tracker.trials)
        done, cells = self._tracker.cells
        numbers = [f"{counts[State.FINISHED]}/{trials} trials done"]
        numbers += [f"{done}/{cells} cells"] * (cells != trials)
        numbers += [f"{counts[state]} {state}" for state in WITHOUT_RESULT if counts[state]]
        others = sum(lease.session != self._session for lease in self._tracker.running.values())
        numbers.append(f"{counts[State.RUNNING]} running" + f" ({others} elsewhere)" * (others > 0))
        rate = self._forecast.trials_per_hour
        numbers += [] if rate is None else [f"{rate:.{0 if rate >= 10 else 1}f} trials/h"]
        return [*numbers, *filter(None, [self._left()])]

    def _left(self, before: str = "") -> str:
        """Return the remaining time after ``before``; empty if it is unknown or zero, or if the sweep is stopping."""
        if stopping.received_signal() is not None:
            return ""
        running, waiting, possible = self._tracker.running.values(), list(self._tracker.waiting), self._possible()
        seconds = self._forecast.left(running, waiting, possible) if running or waiting or possible else None
        return "" if seconds is None else f"{before}{'at most ' * bool(possible)}{duration(seconds)} left"

    def _possible(self) -> list[list[WatchedTrial]]:
        """Return, look by look, a trial of the same cell for each that a rule may ask for later, teachers too."""
        if self._decisions is None:
            return []
        trials = self._tracker.trials
        of_cell = {cell: trial for (cell, _), trial in trials.items()}
        looks = []
        for look in self._decisions.possible(trials):
            taught = ((of_cell[cell].teacher, seed) for cell, seed in look)
            teachers = {(teacher[0], seed) for teacher, seed in taught if teacher is not None} - {*trials, *look}
            looks.append([of_cell[cell] for cell, _ in [*look, *sorted(teachers)]])
        return looks

    # --- the display --------------------------------------------------------------------------------------------------

    def _display(self) -> Group:
        headline = Text("  ".join(self._numbers()), style="bold")
        if stopping.received_signal() is not None:
            headline.append(f"  {stopping.STOPPING}", style="yellow")
        if self._decisions is not None:
            headline.append(f"\n{summary_line(self._decisions)}", style="not bold")
        running = list(self._tracker.running.items())
        # Leave a line for the cursor.
        room = max(1, self._console.size.height - 1 - len(headline.wrap(self._console, self._console.width)))
        shown = running if len(running) <= room else running[: room - 1]
        rest = [Text(f"and {len(running) - len(shown)} more", style="dim")] * (len(shown) < len(running))
        # The display never shrinks: it would flicker, and a line printed at the same time could leave a part of it
        # behind.
        used = len(shown) + len(rest)
        self._rows_before = min(room, max(used, self._rows_before))
        blank = [Text("")] * (self._rows_before - used)
        return Group(headline, self._rows(shown), *rest, *blank)

    def _rows(self, running: Iterable[tuple[Identity, Lease]]) -> Table:
        """Return a row for each running trial."""
        name = Column(no_wrap=True, overflow="ellipsis", min_width=8)
        table = Table(name, *(Column(no_wrap=True) for _ in range(6)), box=None, show_header=False, pad_edge=False)
        for identity, lease in running:
            seconds = self._forecast.left_of(lease)
            table.add_row(
                Text(printable(self._tracker.trials[identity].title)),
                Text(printable(lease.phase)),
                ProgressBar(max(1, lease.steps), lease.step, width=BAR_WIDTH),
                Text(f"{lease.step}/{lease.steps}"),
                Text(decibels(lease)),
                Text(f"{duration(seconds)} left" if seconds else ""),
                Text(printable(self._place(lease)), style="dim"),
            )
        return table

    def _place(self, lease: Lease) -> str:
        """Return where a trial runs; empty if this sweep runs it on this machine."""
        if lease.session != self._session:
            return f"elsewhere: {lease.place}"
        return "" if lease.is_here else f"on {lease.host.partition('/')[0]}"


def decibels(lease: Lease, before: str = "") -> str:
    """Return the latest mean PSNR of a running trial after ``before``; empty until the first evaluation."""
    return "" if lease.psnr_db is None or math.isnan(lease.psnr_db) else f"{before}{lease.psnr_db:.2f} dB"


@contextlib.contextmanager
def blocking_log_messages() -> Iterator[None]:
    """Make other threads wait with their log messages, which would corrupt a display that is being drawn."""
    with contextlib.ExitStack() as stack:
        for handler in logging.getLogger().handlers:
            handler.acquire()
            stack.callback(handler.release)
        yield


@contextlib.contextmanager
def ignoring_broken_output() -> Iterator[None]:
    """Ignore errors of the output, such as a closed terminal or a full disk, which must not end a sweep."""
    # Rich exits the program when it writes to a closed pipe.
    with contextlib.suppress(OSError, SystemExit):
        yield
