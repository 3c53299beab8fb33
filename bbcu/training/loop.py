"""How a network is trained: one loop, the same for every cell, which can be left and taken up again at any step."""

import functools
import math
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
from bbcu.errors import BbcuError, ConfigError, unknown
from bbcu.model.networks import binary_units
from bbcu.training.acceleration import (
    COMPILE,
    CUDA_GRAPH,
    INT8,
    PRECISIONS,
    Plan,
    Replayed,
    Wanted,
    compile_units,
    convolve_in_bytes,
    exact_convolutions,
    keep_freed_memory,
    own_stream,
    plan_for,
)

ADAM_BETAS = (0.9, 0.99)
SCHEDULES = ("cosine", "constant", "halved", "stepped")

DIVERGED_LOSS = 1.0
"""The L1 loss of black where white should be: a training that stays above it, and far above its start, has diverged."""

DIVERGED_RATIO = 10.0
"""How many times its first loss a training must have come to be called diverged."""

DIVERGED_STEPS = 20
"""Over how many steps both must hold on average, so that one bad batch ends nothing."""


class TrainingDiverged(BbcuError):
    """The loss is no number any more, or has left every bound; the same steps would end there again."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    ``steps`` optimiser steps of ``batch`` patches, each ``patch`` x ``patch`` input pixels. ``lr`` is Adam's first
    learning rate, which then stays ("constant"), falls along half a cosine to zero ("cosine"), is halved at two thirds
    of the way ("halved", what the released configuration for super-resolution does) or at two, three and four fifths of
    it ("stepped", what that for denoising does). ``precision`` is that of the convolutions: "fp32", "bf16" by automatic
    mixed precision, or "auto", bf16 where the device has it. ``compile`` is whether the binary units are compiled,
    "auto" where that pays, and ``cuda_graph`` whether a GPU only replays a step that was recorded once, "auto" where
    nothing can change between steps that a replay would not see. ``int8`` is whether a CPU convolves signs in bytes,
    which changes no bit of a result, "auto" where it has the instructions. Raises ConfigError for other values.
    """

    steps: int
    batch: int
    patch: int
    lr: float
    schedule: str
    precision: str
    compile: bool | str = "auto"
    cuda_graph: bool | str = "auto"
    int8: bool | str = "auto"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[object, ...]] = {
            "schedule": SCHEDULES,
            "precision": PRECISIONS,
            "compile": COMPILE,
            "cuda_graph": CUDA_GRAPH,
            "int8": INT8,
        }
        for name, valid in choices.items():
            value = getattr(self, name)
            if value not in valid:
                raise ConfigError(f"train.{name}={value}: {unknown(name, value, valid)}")


@dataclass(frozen=True)
class StepReport:
    """What one step did: the L1 loss and the mean squared error of its batch, RGB in [0, 1]."""

    step: int
    loss: float
    squared_error: float

    @property
    def psnr_db(self) -> float:
        """The PSNR of the batch in dB."""
        return -10 * math.log10(max(self.squared_error, 1e-10))


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA where there is one. Raises BbcuError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BbcuError(f"device={name} is not available here: {str(error).splitlines()[0]}") from error
    return device


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """The learning rate of step ``step``, 1 to ``settings.steps``."""
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "halved":
        return settings.lr / 2 if 3 * step > 2 * settings.steps else settings.lr
    if settings.schedule == "stepped":
        return float(settings.lr / 2 ** sum(5 * step > fifths * settings.steps for fifths in (2, 3, 4)))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / settings.steps))


def acceleration(network: nn.Module, settings: TrainSettings, device: torch.device) -> Plan:
    """What a :class:`Training` does to be fast with these settings, and why."""
    pixels = settings.steps * settings.batch * settings.patch**2
    wanted = Wanted(settings.precision, settings.compile, settings.cuda_graph, settings.int8)
    return plan_for(network, device, wanted, steps=settings.steps, pixels=pixels)


def adam(network: nn.Module, rate: float, device: torch.device) -> torch.optim.Adam:
    """The optimiser of a training; on a GPU its rate and counts lie in tensors, where a replay sees them change."""
    if device.type != "cuda":
        return torch.optim.Adam(network.parameters(), rate, betas=ADAM_BETAS)
    on_device = torch.tensor(rate, device=device)
    return torch.optim.Adam(network.parameters(), on_device, betas=ADAM_BETAS, fused=True, capturable=True)


def batches(
    sampler: PatchSampler, first: int, last: int, *, ahead: bool
) -> Iterator[tuple[int, Callable[[], tuple[torch.Tensor, torch.Tensor]]]]:
    """Each step from ``first`` to ``last`` with what gives its batch.

    With ``ahead`` a thread draws the next batch during a step, which pays where the step is another device's work. A
    batch depends on seed and step alone, so it is the same one either way, and the same one in a resumed training.
    """
    if not ahead:
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
    """Trains a network in place, step by step; ``step`` is the last one that is done, 0 before the first.

    ``state_dict`` after any step holds all that the steps to come depend on. A training that has loaded it ends with
    the very network that the other would have had, bit for bit wherever the same steps give the same bits twice.
    ``seconds`` has the time that each step took, from drawing its patches to the end of the optimiser's step.
    """

    def __init__(
        self, network: nn.Module, sampler: PatchSampler, settings: TrainSettings, device: torch.device
    ) -> None:
        self.network, self.sampler, self.settings, self.device = network, sampler, settings, device
        self.plan = acceleration(network, settings, device)
        self.step = 0
        self.seconds: list[float] = []
        self._units = binary_units(network)
        self._first_loss = math.nan
        self._losses: deque[float] = deque(maxlen=DIVERGED_STEPS)
        keep_freed_memory()
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.plan.in_bytes:
            convolve_in_bytes(network)
        if self.plan.compiles:
            compile_units(network)
        self.optimiser = adam(network, settings.lr, device)

    @property
    def starting_seconds(self) -> float:
        """What the first step took beyond the median step: mostly compilation."""
        return max(0.0, self.seconds[0] - statistics.median(self.seconds))

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands, as tensors, numbers, lists and dictionaries, which ``torch.save`` takes.

        The tensors are those that the next step changes: save or copy them before it.
        """
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            # Only a network of the user's own draws while it trains.
            "generators": generators,
            "seconds": list(self.seconds),
            "first_loss": self._first_loss,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where the training that gave ``state`` stood."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        # Generators take their state from the memory of the processor, wherever the file was read to.
        torch.set_rng_state(state["generators"]["cpu"].cpu())
        if self.device.type == "cuda" and "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"].cpu(), self.device)
        self.step, self.seconds = state["step"], list(state["seconds"])
        self._first_loss = state["first_loss"]
        self._losses = deque(state["losses"], maxlen=DIVERGED_STEPS)

    def run(self, on_step: Callable[[StepReport], None]) -> None:
        """Train up to the last step, and call ``on_step`` after each; what that raises ends the run at a whole step.

        Raises TrainingDiverged when the loss is no finite number, or has grown beyond every bound.
        """
        with exact_convolutions(), own_stream(self.device):
            self._run(Replayed(self._step) if self.plan.replays else self._step, on_step)

    def _run(
        self,
        train_step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        on_step: Callable[[StepReport], None],
    ) -> None:
        settings, device = self.settings, self.device
        for step, batch in batches(self.sampler, self.step + 1, settings.steps, ahead=device.type == "cuda"):
            start = time.perf_counter()

            # --- data ------------------------------------------------------------------------------------------------
            inputs, targets = (part.to(device, non_blocking=True) for part in batch())

            # --- what changes from step to step ----------------------------------------------------------------------
            self.network.train()
            for unit in self._units:
                unit.set_progress((step - 1) / settings.steps)
            for group in self.optimiser.param_groups:
                set_rate(group, learning_rate_at(step, settings))

            # --- forward, backward and update ------------------------------------------------------------------------
            loss, squared_error = train_step(inputs, targets).tolist()  # waits for the device
            self.seconds.append(time.perf_counter() - start)

            # --- report ----------------------------------------------------------------------------------------------
            self.step = step
            self._check(loss)
            on_step(StepReport(step, loss, squared_error))

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One step of the optimiser; the loss and the mean squared error of the batch before it."""
        self.optimiser.zero_grad(set_to_none=True)
        # No weight is cast twice in a step, so nothing is kept for the next use; a recording could not keep it.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.plan.precision == "bf16", cache_enabled=False
        ):
            outputs = self.network(inputs.contiguous(memory_format=torch.channels_last)).float()
        # The loss is taken in full precision: its gradient is a sign, and small differences decide it.
        loss = F.l1_loss(outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        for unit in self._units:
            unit.after_step()
        return torch.stack([loss.detach(), F.mse_loss(outputs.detach(), targets)])

    def _check(self, loss: float) -> None:
        """Raise TrainingDiverged where no further step can lead anywhere."""
        where = f"at step {self.step} of {self.settings.steps}"
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss is {loss} {where}")
        if self.step == 1:
            self._first_loss = loss
        self._losses.append(loss)
        bound = max(DIVERGED_LOSS, DIVERGED_RATIO * self._first_loss)
        if len(self._losses) == DIVERGED_STEPS and (mean := statistics.fmean(self._losses)) > bound:
            raise TrainingDiverged(
                f"the loss has grown from {self._first_loss:.3g} to {mean:.3g}, over {DIVERGED_STEPS} steps, {where}"
            )


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of an optimiser's group, in place where it is a tensor that a recording reads."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def train(
    network: nn.Module,
    sampler: PatchSampler,
    settings: TrainSettings,
    device: torch.device,
    on_step: Callable[[StepReport], None],
) -> list[float]:
    """Train ``network`` in place from its first step to its last, and give the seconds that each step took.

    See :class:`Training`, which this runs in one go.
    """
    training = Training(network, sampler, settings, device)
    training.run(on_step)
    return training.seconds
