"""What goes on in a sweep, for those who watch it: a display on a terminal, plain lines elsewhere.

The view belongs to the process of the sweep and learns everything from the study's folder, so it is the same for every
launcher and sees what other sweeps do to the same trials. An update reads the leases, which are few, and looks into a
folder only when its lease has gone. A trial that came and went between two updates, or somewhere else, is found by a
look at all that is left, which comes twice a minute and once at the end.
"""

import contextlib
import heapq
import logging
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from ablations.storage.attempts import Attempt, State, history_of, state_at_rest
from ablations.storage.folder import Identity, TrialFolder, mean_psnr, study_folder
from ablations.storage.lease import Lease, leases, living_lease
from ablations.storage.status import mark_of
from ablations.watching.console import ConsoleHandler

LOOK_EVERYWHERE_SECONDS = 30.0
"""How often all trials that are left are looked at, for those that no lease has told of."""

LINE_SECONDS = 60.0
"""How long plain lines may be silent while trials run."""

AT_ONCE_SECONDS = 30.0
"""How long a number of trials side by side counts after it has fallen: between two trials a worker has none."""

NAMED = 4
"""How many running trials a plain line names."""

BAR_WIDTH = 16

DRAW_SECONDS = 0.4
"""How often the display is drawn at most; that takes some milliseconds, and a search looks more often."""

PREPARING = "preparing"
"""The phase of a lease whose holder does not train yet, and may find that it need not."""

WITHOUT_RESULT = (State.FAILED, State.INTERRUPTED, State.PRUNED)


@dataclass(frozen=True)
class WatchedTrial:
    """A trial as the view shows it: what it is called, how many steps it trains, and its folder."""

    name: str
    steps: int
    folder: TrialFolder

    @property
    def title(self) -> str:
        return f"{self.name} seed {self.folder.seed}"


@dataclass(frozen=True)
class Ending:
    """How an attempt at a trial ended.

    ``psnr_db`` is the mean over the test sets, of what has finished only. ``seconds`` is how long the attempt took and
    ``steps`` how many steps it trained; both are None where nobody wrote down when it began or ended.
    """

    trial: WatchedTrial
    state: State
    reason: str = ""
    psnr_db: float | None = None
    seconds: float | None = None
    steps: int | None = None


# --- how the trials stand ---------------------------------------------------------------------------------------------


class Standing:
    """How the trials of a sweep stand; ``running`` and ``ended`` have no trial in common, the rest waits.

    ``trials`` may grow meanwhile, in another thread too, as those of a search do.
    """

    def __init__(
        self, outputs: Path, study: str, trials: Mapping[Identity, WatchedTrial], done: Container[Identity]
    ) -> None:
        self._outputs, self._study = outputs, study
        self._given, self._done = trials, done
        self.trials: dict[Identity, WatchedTrial] = {}
        self.running: dict[Identity, Lease] = {}
        self.ended: dict[Identity, State] = {}
        self._marks: dict[Identity, Marks] = {}
        self._take_up_new()

    def _take_up_new(self) -> None:
        """Take up the trials that there were not at the last look."""
        known, self.trials = self.trials, dict(self._given)
        new = [identity for identity in self.trials if identity not in known]
        self.ended |= {identity: State.FINISHED for identity in new if identity in self._done}
        # What is in their folders already is of earlier sweeps; only what changes from now on is news.
        self._marks |= {identity: marks_of(self.trials[identity].folder) for identity in self._begun_and_left(new)}

    @property
    def waiting(self) -> Iterator[WatchedTrial]:
        """The trials that are still to begin."""
        return (
            trial
            for identity, trial in self.trials.items()
            if identity not in self.ended and identity not in self.running
        )

    @property
    def counts(self) -> Counter[State]:
        """How many trials are in each state, those that wait as PLANNED."""
        counts = Counter(self.ended.values())
        counts[State.RUNNING] = len(self.running)
        counts[State.PLANNED] = len(self.trials) - len(self.ended) - len(self.running)
        return counts

    @property
    def cells(self) -> tuple[int, int]:
        """How many cells have finished under every seed, and how many there are."""
        unfinished = {identity[0] for identity in self.trials if self.ended.get(identity) != State.FINISHED}
        cells = {identity[0] for identity in self.trials}
        return len(cells) - len(unfinished), len(cells)

    def look(self) -> list[Ending]:
        """Read the leases; what has become of the trials that do not run any more."""
        if len(self._given) != len(self.trials):
            self._take_up_new()
        # The oldest first, so that nothing changes its place in a view but by moving up.
        by_age = sorted(leases(self._outputs, self._study), key=lambda lease: lease.began)
        found = {(lease.cell, lease.seed): lease for lease in by_age}
        before = self.running
        # Whoever is given a trial that is finished holds it for a moment, to see that there is nothing to do.
        self.running = {
            identity: lease
            for identity, lease in found.items()
            if identity in self.trials and (self.ended.get(identity) != State.FINISHED or lease.phase != PREPARING)
        }
        endings = [
            self._after(identity, lease)
            for identity, lease in before.items()
            if identity not in self.running or self.running[identity].token != lease.token
        ]
        for identity in self.running:
            if self.ended.pop(identity, None) == State.FINISHED:
                # It is trained anew, and its old result is not what it ends with.
                self._marks[identity] = marks_of(self.trials[identity].folder)
        return [ending for ending in endings if ending is not None]

    def look_everywhere(self) -> list[Ending]:
        """What has become of trials whose lease was never seen; those that never began cost nothing."""
        endings = [
            self._unseen(identity) for identity in self._begun_and_left(self.trials) if identity not in self.running
        ]
        return [ending for ending in endings if ending is not None]

    def _begun_and_left(self, identities: Collection[Identity]) -> list[Identity]:
        """Those among some trials that have a folder and have not finished."""
        left = [identity for identity in identities if self.ended.get(identity) != State.FINISHED]
        try:
            begun = set(os.listdir(study_folder(self._outputs, self._study))) if left else set()
        except OSError:
            return []
        return [identity for identity in left if identity[0] in begun]

    def _after(self, identity: Identity, lease: Lease) -> Ending | None:
        """How the attempt ended whose lease has gone."""
        now = living_lease(self.trials[identity].folder)
        if now is not None and now.token == lease.token:
            # A listing may miss a file that is replaced while it is made.
            self.running[identity] = now
            return None
        return self._ending(identity, now)

    def _unseen(self, identity: Identity) -> Ending | None:
        folder = self.trials[identity].folder
        if marks_of(folder) == self._marks.get(identity, NO_MARKS) or living_lease(folder) is not None:
            return None
        return self._ending(identity, None)

    def _ending(self, identity: Identity, next_lease: Lease | None) -> Ending | None:
        """The latest ending that the folder tells of, or None; ``next_lease`` is of whoever holds the trial by now."""
        trial = self.trials[identity]
        before, now = self._marks.get(identity, NO_MARKS), marks_of(trial.folder)
        self._marks[identity] = now
        attempts = () if now.state == before.state else history_of(trial.folder).attempts
        if attempts and next_lease is not None and is_of(attempts[-1], next_lease):
            attempts = attempts[:-1]
        attempt = attempts[-1] if attempts else None
        is_new = now.result != before.result or attempt is None
        ending = (finish_of(trial, attempt) if is_new else None) or failure_of(trial, attempt)
        if ending is not None:
            self.ended[identity] = ending.state
        return ending


@dataclass(frozen=True)
class Marks:
    """What tells that a trial's files were written anew: the date in ns and size of each, None where there is none."""

    result: tuple[int, int] | None = None
    state: tuple[int, int] | None = None


NO_MARKS = Marks()


def marks_of(folder: TrialFolder) -> Marks:
    return Marks(mark_of(folder.result_path), mark_of(folder.state_path))


def is_of(attempt: Attempt, lease: Lease) -> bool:
    """Whether an attempt that has no end yet is the lease's."""
    return attempt.state == State.RUNNING and (attempt.host, attempt.pid) == (lease.host.partition("/")[0], lease.pid)


def finish_of(trial: WatchedTrial, attempt: Attempt | None) -> Ending | None:
    """The ending of a trial that has a result, or None."""
    result = trial.folder.result()
    if result is None:
        return None
    psnr_db = mean_psnr(result)
    if attempt is None or attempt.ended is None:
        return Ending(trial, State.FINISHED, psnr_db=psnr_db)
    # Where the clock was set back meanwhile, nobody knows how long it took.
    seconds = attempt.ended - attempt.began or None
    return Ending(trial, State.FINISHED, "", psnr_db, seconds, trial.steps - attempt.from_step)


def failure_of(trial: WatchedTrial, attempt: Attempt | None) -> Ending | None:
    """The ending of an attempt that has left no result; None for one that never began."""
    if attempt is None:
        return None
    return Ending(trial, *state_at_rest(trial.folder, attempt))


# --- how long it takes ------------------------------------------------------------------------------------------------


class Forecast:
    """How fast a sweep goes, and when it is over, learned from the trials that finish; None before any has."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()
        self._finished = 0
        self._seconds, self._steps = 0.0, 0
        self._first_seen: dict[str, tuple[float, int]] = {}
        self._at_once: deque[tuple[float, int]] = deque()

    def learn(self, endings: Iterable[Ending]) -> None:
        """Take in what has ended."""
        for ending in endings:
            if ending.state == State.FINISHED:
                self._finished += 1
                if ending.seconds is not None and ending.steps:
                    self._seconds += ending.seconds
                    self._steps += ending.steps

    def see(self, running: Collection[Lease]) -> None:
        """Take in what runs at this moment."""
        now = self._clock()
        self._at_once.append((now, len(running)))
        while now - self._at_once[0][0] > AT_ONCE_SECONDS:
            self._at_once.popleft()
        # The first step may compile, so a trial's own pace counts from the first step that was seen done.
        seen = {lease.token: (now, lease.step) for lease in running if lease.step}
        self._first_seen = {token: self._first_seen.get(token, moment) for token, moment in seen.items()}

    @property
    def trials_per_hour(self) -> float | None:
        seconds = self._clock() - self._began
        return 3600 * self._finished / seconds if self._finished and seconds > 0 else None

    @property
    def seconds_per_step(self) -> float | None:
        """What a step takes in the mean, with all that a trial does beside its steps."""
        return self._seconds / self._steps if self._steps else None

    def left_of(self, lease: Lease) -> float | None:
        """How many seconds a running trial needs, by its own pace where that is known."""
        pace = self.seconds_per_step
        began, step = self._first_seen.get(lease.token, (0.0, lease.step))
        if lease.step > step:
            pace = (self._clock() - began) / (lease.step - step)
        return None if pace is None else pace * (lease.steps - lease.step)

    def left(self, running: Collection[Lease], waiting: Iterable[WatchedTrial]) -> float | None:
        """How many seconds all need, when as many run side by side as lately, each next one where a place is free."""
        pace = self.seconds_per_step
        if pace is None:
            return None
        at_once = max([1, len(running), *(number for _, number in self._at_once)])
        ends = [self.left_of(lease) or 0.0 for lease in running] + [0.0] * (at_once - len(running))
        heapq.heapify(ends)
        for trial in waiting:
            heapq.heapreplace(ends, ends[0] + pace * trial.steps)
        return max(ends)


def span(seconds: float) -> str:
    """A time in words, in its two largest units: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


# --- what is shown ----------------------------------------------------------------------------------------------------


class LiveView:
    """Shows how a sweep goes on, as a context manager; :meth:`update` is to be called about twice a second.

    ``done`` are the trials that were finished before, and ``session`` is the sweep that shows itself: what other sweeps
    have in hand is marked. ``show`` is "auto" (a display on a terminal, lines elsewhere), True (the display; a file
    gets its last state only) or False (nothing). Log messages that go through ``console``, rich's own unless another
    is given, appear above the display.
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
        self._where, self._trials, self._done = (outputs, study), trials, done
        self._session, self._clock = session, clock
        self._console = console or rich.get_console()
        self._shows = show is not False
        self.is_display = show is True or (self._shows and self._console.is_interactive)

    def __enter__(self) -> "LiveView":
        if self._shows:
            self._standing = Standing(*self._where, self._trials, self._done)
            self._forecast = Forecast(self._clock)
            self._said_at = self._looked_at = self._clock()
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=self._console.is_interactive,
                # Where one of them goes to a file, it is to stay there.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._rows_before = 0
            if self.is_display:
                with unless_it_is_gone():
                    self._live.start()
                self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._shows:
            return
        try:
            self._take_in(self._standing.look() + self._standing.look_everywhere())
            if self.is_display:
                self._draw()
        finally:
            with unless_it_is_gone():
                self._live.stop()

    def update(self) -> None:
        """Look at what has changed and show it."""
        if not self._shows:
            return
        endings = self._standing.look()
        if self._clock() - self._looked_at >= LOOK_EVERYWHERE_SECONDS:
            endings += self._standing.look_everywhere()
            self._looked_at = self._clock()
        self._take_in(endings)
        if not self.is_display and self._standing.running and self._clock() - self._said_at >= LINE_SECONDS:
            self._say(self._progress_line())

    def _take_in(self, endings: list[Ending]) -> None:
        running = self._standing.running.values()
        self._forecast.learn(endings)
        self._forecast.see(running)
        for ending in endings:
            # On a display the numbers tell of what has finished; what has not is worth a line that stays.
            if not self.is_display or ending.state != State.FINISHED:
                self._say(self._line(ending))
        if self.is_display and self._clock() - self._drawn_at >= DRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        with unless_it_is_gone(), between_messages():
            self._live.update(self._display(), refresh=True)

    def _say(self, line: str) -> None:
        self._said_at = self._clock()
        with unless_it_is_gone():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    # --- lines ----------------------------------------------------------------------------------------------------

    def _line(self, ending: Ending) -> str:
        if ending.state != State.FINISHED:
            log = f"; see {ending.trial.folder.log_path}" * (ending.state == State.FAILED)
            return f"{ending.state}: {ending.trial.title}: {first_line(ending.reason)}{log}"
        counts = self._standing.counts
        took = "" if ending.seconds is None else f" in {span(ending.seconds)}"
        done = f"{counts[State.FINISHED]}/{len(self._standing.trials)}"
        return f"{done} {ending.trial.title}: {ending.psnr_db:.2f} dB{took}" + self._left(", ")

    def _progress_line(self) -> str:
        running = list(self._standing.running.items())
        named = [
            f"{self._standing.trials[identity].title} step {lease.step}/{lease.steps}{decibels(lease, ' ')}"
            for identity, lease in running[:NAMED]
        ]
        if len(running) > NAMED:
            named.append(f"{len(running) - NAMED} more")
        return f"{', '.join(self._numbers())}: {', '.join(named)}"

    def _numbers(self) -> list[str]:
        """How far the sweep is, in a few words each."""
        counts, trials = self._standing.counts, len(self._standing.trials)
        done, cells = self._standing.cells
        numbers = [f"{counts[State.FINISHED]}/{trials} trials done"]
        numbers += [f"{done}/{cells} cells"] * (cells != trials)
        numbers += [f"{counts[state]} {state}" for state in WITHOUT_RESULT if counts[state]]
        others = sum(lease.session != self._session for lease in self._standing.running.values())
        numbers.append(f"{counts[State.RUNNING]} running" + f" ({others} elsewhere)" * (others > 0))
        rate = self._forecast.trials_per_hour
        numbers += [] if rate is None else [f"{rate:.{0 if rate >= 10 else 1}f} trials/h"]
        return [*numbers, *filter(None, [self._left()])]

    def _left(self, before: str = "") -> str:
        """How long it still takes; empty where nobody knows, nothing is left, or the sweep is to stop."""
        if stopping.asked_by() is not None:
            return ""
        running, waiting = self._standing.running.values(), list(self._standing.waiting)
        seconds = self._forecast.left(running, waiting) if running or waiting else None
        return "" if seconds is None else f"{before}{span(seconds)} left"

    # --- the display ----------------------------------------------------------------------------------------------

    def _display(self) -> Group:
        headline = Text("  ".join(self._numbers()), style="bold")
        if stopping.asked_by() is not None:
            headline.append("  stopping after the steps in hand; Ctrl-C again stops at once", style="yellow")
        running = list(self._standing.running.items())
        # One line stays free for the cursor.
        room = max(1, self._console.size.height - 1 - len(headline.wrap(self._console, self._console.width)))
        shown = running if len(running) <= room else running[: room - 1]
        rest = [Text(f"and {len(running) - len(shown)} more", style="dim")] * (len(shown) < len(running))
        # Rows that were needed once stay, blank between two trials: a display that changes its height flickers, and
        # where a line is printed in that very moment, it may leave one of its own behind.
        used = len(shown) + len(rest)
        self._rows_before = min(room, max(used, self._rows_before))
        blank = [Text("")] * (self._rows_before - used)
        return Group(headline, self._rows(shown), *rest, *blank)

    def _rows(self, running: Iterable[tuple[Identity, Lease]]) -> Table:
        """A row for each running trial."""
        name = Column(no_wrap=True, overflow="ellipsis", min_width=8)
        table = Table(name, *(Column(no_wrap=True) for _ in range(6)), box=None, show_header=False, pad_edge=False)
        for identity, lease in running:
            seconds = self._forecast.left_of(lease)
            table.add_row(
                Text(self._standing.trials[identity].title),
                Text(lease.phase),
                ProgressBar(max(1, lease.steps), lease.step, width=BAR_WIDTH),
                Text(f"{lease.step}/{lease.steps}"),
                Text(decibels(lease)),
                Text(f"{span(seconds)} left" if seconds else ""),
                Text(self._whereabouts(lease), style="dim"),
            )
        return table

    def _whereabouts(self, lease: Lease) -> str:
        """Where a trial runs, of one that is not this sweep's on this machine."""
        if lease.session != self._session:
            return f"elsewhere: {lease.place}"
        return "" if lease.is_here else f"on {lease.host.partition('/')[0]}"


def decibels(lease: Lease, before: str = "") -> str:
    """The latest mean PSNR of a running trial, empty before the first."""
    return "" if lease.psnr_db is None or math.isnan(lease.psnr_db) else f"{before}{lease.psnr_db:.2f} dB"


def first_line(reason: str) -> str:
    return (reason.strip().splitlines() or ["no reason was given"])[0]


@contextlib.contextmanager
def between_messages() -> Iterator[None]:
    """Hold up what other threads log for the body: rich takes no care of two that draw at once."""
    with contextlib.ExitStack() as stack:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, ConsoleHandler):
                handler.acquire()
                stack.callback(handler.release)
        yield


@contextlib.contextmanager
def unless_it_is_gone() -> Iterator[None]:
    """Do the body as far as it goes: a terminal that is gone, or a full disk, is no reason to lose a sweep."""
    # Rich answers a pipe that nobody reads by leaving the program.
    with contextlib.suppress(OSError, SystemExit):
        yield
