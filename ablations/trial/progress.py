"""What a trial writes to the terminal: its log messages, and a bar on a terminal or plain lines elsewhere."""

import logging
import time
from types import TracebackType

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bbcu.errors import printable

PLAIN_LINES = 5
"""How many lines a training prints without a terminal."""

EVALUATION_SECONDS = 20.0
"""How often an evaluation prints a line without a terminal."""

SMOOTHING = 0.95
"""Weight of the past in the loss and PSNR that are shown; those of a single batch vary too much to be read."""


class ConsoleHandler(logging.Handler):
    """Writes log messages through rich's console, so that they do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            rich.get_console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)
        except (Exception, SystemExit):
            # Losing the terminal, or a full disk behind a redirection, must not end a training.
            self.handleError(record)


class TrialProgress:
    """Follows one training; ``show`` is "auto" (a bar on a terminal, lines elsewhere), True (a bar) or False."""

    def __init__(self, name: str, steps: int, show: bool | str) -> None:
        self.name, self.steps = printable(name), steps
        console = rich.get_console()
        self._lines = show == "auto" and not console.is_terminal
        self._bar = Progress(
            # A name may look like the markup of rich, as binarize=[body] does.
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  training patches {task.fields[psnr]:.2f} dB"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=show is False or self._lines,
            transient=True,
        )
        self._task = self._bar.add_task(self.name, total=steps, loss=float("nan"), psnr=float("nan"))
        self._loss: float | None = None
        self._psnr = 0.0
        self._start = self._told_at = time.monotonic()
        self._set, self._pictures = "", 0

    def __enter__(self) -> "TrialProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, psnr_db: float) -> None:
        """Show that ``step`` is done, with the loss and the PSNR of its batch of training patches."""
        keep = 0.0 if self._loss is None else SMOOTHING
        self._loss = keep * (self._loss or 0.0) + (1 - keep) * loss
        self._psnr = keep * self._psnr + (1 - keep) * psnr_db
        self._bar.update(self._task, description=self.name, completed=step, loss=self._loss, psnr=self._psnr)
        if self._lines and (step * PLAIN_LINES) // self.steps > ((step - 1) * PLAIN_LINES) // self.steps:
            left = (time.monotonic() - self._start) / step * (self.steps - step)
            self._print(
                f"step {step}/{self.steps}  loss {self._loss:.4f}  "
                f"training patches {self._psnr:.2f} dB  {left:.0f} s left"
            )

    def evaluated(self, test_set: str, pictures: int) -> None:
        """Show that one more of the ``pictures`` of a test set is evaluated."""
        self._pictures = self._pictures % pictures + 1 if test_set == self._set else 1
        self._set = test_set
        text = f"evaluating {printable(test_set)} {self._pictures}/{pictures}"
        self._bar.update(self._task, description=f"{self.name}, {text}")
        if self._lines and time.monotonic() - self._told_at >= EVALUATION_SECONDS:
            self._print(text)

    def _print(self, text: str) -> None:
        self._told_at = time.monotonic()
        print(f"  {text}", flush=True)
