"""What a sweep shows while it runs: a display on a terminal, plain lines elsewhere.

The view belongs to the process of the sweep and learns everything from the study's folder, so it is the same for every
launcher and sees what other sweeps do to the same trials. A trial that came and went between two updates, or elsewhere,
is found by a look at all that is left, twice a minute and at the end.
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

import rich
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from ablations.storage import stopping
from ablations.storage.attempts import WITHOUT_RESULT, State
from ablations.storage.files import first_line
from ablations.storage.folder import Identity
from ablations.storage.lease import Lease
from ablations.watching.forecast import Forecast, span
from ablations.watching.tracker import Ending, TrialTracker, WatchedTrial

LOOK_EVERYWHERE_SECONDS = 30.0
"""How often all trials that are left are looked at, to find those whose lease was never seen."""

LINE_SECONDS = 60.0
"""How long nothing is printed at most while trials run."""

NAMED = 4
"""How many running trials a plain line names."""

BAR_WIDTH = 16

DRAW_SECONDS = 0.4
"""How often the display is drawn at most; that takes some milliseconds, and a search updates more often."""


class LiveView:
    """Shows the progress of a sweep, as a context manager; call :meth:`update` about twice a second.

    ``done`` are the trials that were finished before. ``session`` is this sweep; what other sweeps run is marked.
    ``show`` is "auto" (a display on a terminal, lines elsewhere), True (the display; a file gets its last state only)
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
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sweep = (outputs, study, trials, done)
        self._session, self._clock = session, clock
        self._console = console or rich.get_console()
        self._shows = show is not False
        self.is_display = show is True or (self._shows and self._console.is_interactive)

    def __enter__(self) -> "LiveView":
        if self._shows:
            self._tracker = TrialTracker(*self._sweep)
            self._forecast = Forecast(self._clock)
            self._printed_at = self._looked_at = self._clock()
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=self._console.is_interactive,
                # A stream that goes to a file stays there.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._rows_before = 0
            if self.is_display:
                with ignoring_lost_terminal():
                    self._live.start()
                self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._shows:
            return
        try:
            self._show(self._tracker.look() + self._tracker.look_everywhere())
            if self.is_display:
                self._draw()
        finally:
            with ignoring_lost_terminal():
                self._live.stop()

    def update(self) -> None:
        """Look at what has changed and show it."""
        if not self._shows:
            return
        endings = self._tracker.look()
        if self._clock() - self._looked_at >= LOOK_EVERYWHERE_SECONDS:
            endings += self._tracker.look_everywhere()
            self._looked_at = self._clock()
        self._show(endings)
        if not self.is_display and self._tracker.running and self._clock() - self._printed_at >= LINE_SECONDS:
            self._print(self._progress_line())

    def _show(self, endings: list[Ending]) -> None:
        self._forecast.learn(endings)
        self._forecast.see(self._tracker.running.values())
        for ending in endings:
            # A display counts what has finished; what has not is worth a line that stays.
            if not self.is_display or ending.state != State.FINISHED:
                self._print(self._ending_line(ending))
        if self.is_display and self._clock() - self._drawn_at >= DRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        with ignoring_lost_terminal(), holding_log_messages():
            self._live.update(self._display(), refresh=True)

    def _print(self, line: str) -> None:
        self._printed_at = self._clock()
        with ignoring_lost_terminal():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    # --- lines --------------------------------------------------------------------------------------------------------

    def _ending_line(self, ending: Ending) -> str:
        if ending.state != State.FINISHED:
            folder = ending.trial.folder
            log = f"; see {folder.shortened(folder.log_path)}" * (ending.state == State.FAILED)
            return f"{ending.state}: {ending.trial.title}: {first_line(ending.reason or 'no reason was given')}{log}"
        took = "" if ending.seconds is None else f" in {span(ending.seconds)}"
        done = f"{self._tracker.counts[State.FINISHED]}/{len(self._tracker.trials)}"
        return f"{done} {ending.trial.title}: {ending.psnr_db:.2f} dB{took}" + self._left(", ")

    def _progress_line(self) -> str:
        running = list(self._tracker.running.items())
        named = [
            f"{self._tracker.trials[identity].title} step {lease.step}/{lease.steps}{decibels(lease, ' ')}"
            for identity, lease in running[:NAMED]
        ]
        if len(running) > NAMED:
            named.append(f"{len(running) - NAMED} more")
        return f"{', '.join(self._numbers())}: {', '.join(named)}"

    def _numbers(self) -> list[str]:
        """Return the numbers of the headline, each with its label."""
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
        """Return the time left; empty if it is unknown, nothing is left, or the sweep is to stop."""
        if stopping.asked_by() is not None:
            return ""
        running, waiting = self._tracker.running.values(), list(self._tracker.waiting)
        seconds = self._forecast.left(running, waiting) if running or waiting else None
        return "" if seconds is None else f"{before}{span(seconds)} left"

    # --- the display --------------------------------------------------------------------------------------------------

    def _display(self) -> Group:
        headline = Text("  ".join(self._numbers()), style="bold")
        if stopping.asked_by() is not None:
            headline.append(f"  {stopping.STOPPING}", style="yellow")
        running = list(self._tracker.running.items())
        # One line stays free for the cursor.
        room = max(1, self._console.size.height - 1 - len(headline.wrap(self._console, self._console.width)))
        shown = running if len(running) <= room else running[: room - 1]
        rest = [Text(f"and {len(running) - len(shown)} more", style="dim")] * (len(shown) < len(running))
        # The display never gets lower, or it would flicker, and a line that is printed at that very moment could leave
        # a line of the display behind.
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
                Text(self._tracker.trials[identity].title),
                Text(lease.phase),
                ProgressBar(max(1, lease.steps), lease.step, width=BAR_WIDTH),
                Text(f"{lease.step}/{lease.steps}"),
                Text(decibels(lease)),
                Text(f"{span(seconds)} left" if seconds else ""),
                Text(self._place(lease), style="dim"),
            )
        return table

    def _place(self, lease: Lease) -> str:
        """Return where a trial runs, unless this sweep runs it on this machine."""
        if lease.session != self._session:
            return f"elsewhere: {lease.place}"
        return "" if lease.is_here else f"on {lease.host.partition('/')[0]}"


def decibels(lease: Lease, before: str = "") -> str:
    """Return the latest mean PSNR of a running trial, empty before the first."""
    return "" if lease.psnr_db is None or math.isnan(lease.psnr_db) else f"{before}{lease.psnr_db:.2f} dB"


@contextlib.contextmanager
def holding_log_messages() -> Iterator[None]:
    """Make other threads wait with their log messages: two that draw at once on a rich console tear the display."""
    with contextlib.ExitStack() as stack:
        for handler in logging.getLogger().handlers:
            handler.acquire()
            stack.callback(handler.release)
        yield


@contextlib.contextmanager
def ignoring_lost_terminal() -> Iterator[None]:
    """Ignore that the terminal is gone, or that the disk behind it is full: neither must end a sweep."""
    # Rich exits the program when it writes to a pipe that nobody reads.
    with contextlib.suppress(OSError, SystemExit):
        yield
