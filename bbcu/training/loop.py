"""The training loop: the same for every cell, and resumable after any step."""

import contextlib
import functools
import math
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bbcu.data.patches import PatchSampler
from bbcu.errors import BbcuError, ConfigError, first_line, shown
from bbcu.machine import retain_freed_memory
from bbcu.model.parts import binary_units
from bbcu.training.acceleration import (
    CudaGraphStep,
    compile_units,
    convolve_signs,
    deterministic_fp32,
    plan_for,
    side_stream,
)
from bbcu.training.distillation import Distillation, outputs_of
from bbcu.training.settings import Phase, TrainSettings, learning_rate_at

ADAM_BETAS = (0.9, 0.99)

DIVERGED_LOSS = 1.0
"""The L1 loss of black instead of white. A training has diverged if its loss is above this ..."""

DIVERGED_RATIO = 10.0
"""... and above this many times the first loss of its phase ..."""

DIVERGED_STEPS = 20
"""... on average over this many steps, so that one bad batch does not end a training."""

Batch = tuple[torch.Tensor, torch.Tensor]


class TrainingDiverged(BbcuError):
    """The loss is not finite or has grown too far; a retry would diverge too."""


@dataclass(frozen=True)
class StepReport:
    """The result of one step: the L1 loss and the mean squared error of its batch, in [0, 1].

    ``distillation`` is the loss to a teacher before its factor, and not part of ``loss``; 0 without a teacher.
    """

    step: int
    loss: float
    squared_error: float
    distillation: float = 0.0

    @property
    def psnr_db(self) -> float:
        """The PSNR of the batch in dB."""
        return -10 * math.log10(max(self.squared_error, 1e-10))


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" is CUDA if there is one. Raises BbcuError if it is not available.

    Only processors and CUDA devices train here; torch also names devices without memory, such as "meta".
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", name):
        raise BbcuError(f"device={shown(name)}: must be auto, cpu, cuda, or cuda:1 and the like")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BbcuError(f"device={name} is not available here: {shown(first_line(error))}") from error
    return device


def adam(network: nn.Module, rate: float, device: torch.device) -> torch.optim.Adam:
    """Return the optimiser; on a GPU its rate and counts are tensors, so that a CUDA graph sees them change."""
    if device.type != "cuda":
        return torch.optim.Adam(network.parameters(), rate, betas=ADAM_BETAS)
    on_device = torch.tensor(rate, device=device)
    return torch.optim.Adam(network.parameters(), on_device, betas=ADAM_BETAS, fused=True, capturable=True)


def batches(
    sampler: PatchSampler, first: int, last: int, *, prefetch: bool
) -> Iterator[tuple[int, Callable[[], Batch]]]:
    """Yield each step from ``first`` to ``last`` with a function that returns its batch.

    With ``prefetch`` a thread draws the next batch during a step, which saves time if a GPU computes the step. The
    batches are the same in both cases, since each depends on the seed and the step alone.
    """
    if not prefetch:
        for step in range(first, last + 1):
            yield step, functools.partial(sampler.batch_at, step - 1)
        return
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(sampler.batch_at, first - 1)
        for step in range(first, last + 1):
            current = following
            if step < last:
                following = pool.submit(sampler.batch_at, step)
            yield step, current.result


class Training:
    """Trains a network in place; ``step`` is the last completed step, 0 before the first.

    After any step ``state_dict`` holds everything that the steps to come depend on. A training that has loaded it ends
    with the same network, bit for bit if the same steps give the same bits twice. ``seconds`` is the duration of each
    step, from drawing its patches to the end of the optimiser's step.

    ``phase`` is that of the last step: between two steps the network is the one that was trained, without signs or
    with full-precision weights if the training has started so, in evaluation too. A new phase has a new optimiser and
    keeps every parameter and statistic. A ``teacher`` is for ``distil``; it is changed to evaluation mode, gets no
    gradient and is not part of the state.

    Raises ConfigError if a start in full precision has no binary units, and for a teacher that is missing, has no use,
    or does not go with the network.
    """

    def __init__(
        self,
        network: nn.Module,
        sampler: PatchSampler,
        settings: TrainSettings,
        device: torch.device,
        teacher: nn.Module | None = None,
    ) -> None:
        self.network, self.sampler, self.settings, self.device = network, sampler, settings, device
        self.plan = plan_for(network, device, settings)
        self.step = 0
        self.seconds: list[float] = []
        self._units = binary_units(network)
        if settings.start != "scratch" and not self._units:
            raise ConfigError(f"start={settings.start}: {type(network).__name__} has no binary units")
        self._distillation = Distillation(network, teacher, settings, device)
        self._first_loss = math.nan
        self._losses: deque[float] = deque(maxlen=DIVERGED_STEPS)
        retain_freed_memory()
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        convolve_signs(network, self.plan.signs)
        self._enter(settings.phases[0])

    def _enter(self, phase: Phase) -> None:
        """Binarise what ``phase`` does, and start with a new optimiser and no losses to compare with."""
        self.phase = phase
        for unit in self._units:
            unit.binary_signs, unit.binary_weights = phase.binary_signs, phase.binary_weights
        if self.plan.compiles:
            compile_units(self.network, self._distillation.blocks)
        self.network.zero_grad(set_to_none=True)
        self.optimiser = adam(self.network, self.settings.lr, self.device)
        self._losses.clear()

    @property
    def starting_seconds(self) -> float:
        """The time of the first step of each phase beyond the median step: mostly compilation."""
        median = statistics.median(self.seconds)
        firsts = [phase.first for phase in self.settings.phases if phase.first <= len(self.seconds)]
        return sum(max(0.0, self.seconds[first - 1] - median) for first in firsts)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the training, of types that ``torch.save`` accepts.

        The next step changes the tensors in place: save or copy them before it.
        """
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            # Only a user's own network draws random numbers while it trains.
            "generators": generators,
            "seconds": list(self.seconds),
            "first_loss": self._first_loss,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the ``state`` of another training."""
        self._enter(self.settings.phase_at(max(1, state["step"])))
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        # Generators take their state from the CPU, whatever device the file was loaded to.
        torch.set_rng_state(state["generators"]["cpu"].cpu())
        if self.device.type == "cuda" and "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"].cpu(), self.device)
        self.step, self.seconds = state["step"], list(state["seconds"])
        self._first_loss = state["first_loss"]
        self._losses = deque(state["losses"], maxlen=DIVERGED_STEPS)

    def run(self, on_step: Callable[[StepReport], None]) -> None:
        """Train to the last step, and call ``on_step`` after each; an exception from it ends the run between steps.

        Raises TrainingDiverged if the loss is not finite or has grown too far.
        """
        with deterministic_fp32(), side_stream(self.device):
            for phase in self.settings.phases:
                if phase.last > self.step:
                    self._run(phase, on_step)

    def _run(self, phase: Phase, on_step: Callable[[StepReport], None]) -> None:
        """Train to the last step of ``phase``."""
        settings, device = self.settings, self.device
        if phase != self.phase:
            self._enter(phase)
        # A CUDA graph repeats what was recorded, so each phase records its own.
        train_step = CudaGraphStep(self._step) if self.plan.replays else self._step
        for step, batch in batches(self.sampler, self.step + 1, phase.last, prefetch=device.type == "cuda"):
            start = time.perf_counter()

            # --- data ------------------------------------------------------------------------------------------------
            inputs, targets = (part.to(device, non_blocking=True) for part in batch())

            # --- progress and learning rate ----------------------------------------------------------------------
            self.network.train()
            for unit in self._units:
                unit.set_progress(phase.done_before(step))
            self._set_rate(learning_rate_at(step, settings))

            # --- forward, backward and update ------------------------------------------------------------------------
            loss, squared_error, distillation = train_step(inputs, targets).tolist()  # waits for the device
            self.seconds.append(time.perf_counter() - start)

            # --- report ----------------------------------------------------------------------------------------------
            self.step = step
            self._check(loss, distillation)
            on_step(StepReport(step, loss, squared_error, distillation))

    def _set_rate(self, rate: float) -> None:
        """Set the learning rate, in place if it is a tensor that a CUDA graph reads."""
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Do one step of the optimiser; return the losses of the batch before it, as :class:`StepReport` has them."""
        distillation = self._distillation
        self.optimiser.zero_grad(set_to_none=True)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self._autocast(), outputs_of(distillation.blocks) as blocks:
            outputs = self.network(inputs).float()
        # The loss is computed in fp32: its gradient is a sign, which small differences decide.
        loss = F.l1_loss(outputs, targets)
        of_teacher = distillation.loss(inputs, outputs, blocks, self._autocast())
        (loss + distillation.factor * of_teacher).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        for unit in self._units:
            unit.after_step()
        squared_error = F.mse_loss(outputs.detach(), targets)
        return torch.stack([loss.detach(), squared_error, of_teacher.detach()])

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        # No weight is cast twice in a step, so a cache of casts is useless, and a CUDA graph cannot have one.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.plan.precision == "bf16", cache_enabled=False
        )

    def _check(self, loss: float, distillation: float) -> None:
        """Raise TrainingDiverged if a loss is not finite, or the task's has grown too far since the phase began."""
        where = f"at step {self.step} of {self.settings.steps}"
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss is {loss} {where}")
        if not math.isfinite(distillation):
            raise TrainingDiverged(f"the distillation loss is {distillation} {where}")
        if self.step == self.phase.first:
            self._first_loss = loss
        self._losses.append(loss)
        bound = max(DIVERGED_LOSS, DIVERGED_RATIO * self._first_loss)
        if len(self._losses) == DIVERGED_STEPS and (mean := statistics.fmean(self._losses)) > bound:
            raise TrainingDiverged(
                f"the loss has grown from {self._first_loss:.3g} to {mean:.3g}, over {DIVERGED_STEPS} steps, {where}"
            )
