"""What a user sees while trials run: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINES = 5
"""How many lines a trial prints where there is no terminal."""

SMOOTHING = 0.95
"""Weight of the past in the loss and PSNR that are shown; one batch alone jumps too much to read."""


class TrialProgress:
    """Follows one training; ``show`` is "auto" (a bar on a terminal, lines elsewhere), True (a bar) or False."""

    def __init__(self, name: str, steps: int, show: bool | str) -> None:
        self.name, self.steps = name, steps
        console = rich.get_console()
        self._lines = show == "auto" and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  PSNR {task.fields[psnr]:.2f} dB"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=show is False or self._lines,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=steps, loss=float("nan"), psnr=float("nan"))
        self._loss: float | None = None
        self._psnr = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> "TrialProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, psnr_db: float) -> None:
        """Show that ``step`` is done, with its loss and its PSNR."""
        keep = 0.0 if self._loss is None else SMOOTHING
        self._loss = keep * (self._loss or 0.0) + (1 - keep) * loss
        self._psnr = keep * self._psnr + (1 - keep) * psnr_db
        self._bar.update(self._task, completed=step, loss=self._loss, psnr=self._psnr)
        if self._lines and (step * PLAIN_LINES) // self.steps > ((step - 1) * PLAIN_LINES) // self.steps:
            left = (time.monotonic() - self._start) / step * (self.steps - step)
            print(
                f"  step {step}/{self.steps}  loss {self._loss:.4f}  PSNR {self._psnr:.2f} dB  {left:.0f} s left",
                flush=True,
            )
