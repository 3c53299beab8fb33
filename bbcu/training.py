"""How a network is trained: one loop, the same for every cell."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bbcu.acceleration import COMPILE, PRECISIONS, Plan, compile_units, keep_freed_memory, plan_for
from bbcu.errors import BbcuError, ConfigError, unknown
from bbcu.networks import binary_units
from bbcu.patches import PatchSampler

ADAM_BETAS = (0.9, 0.99)
SCHEDULES = ("cosine", "constant", "halved", "stepped")


class TrainingDiverged(BbcuError):
    """The loss, or what the network puts out, is no number any more."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    ``steps`` optimiser steps of ``batch`` patches, each ``patch`` x ``patch`` input pixels. ``lr`` is Adam's first
    learning rate, which then stays ("constant"), falls along half a cosine to zero ("cosine"), is halved at two thirds
    of the way ("halved", what the released configuration for super-resolution does) or at two, three and four fifths of
    it ("stepped", what that for denoising does). ``precision`` is that of the convolutions: "fp32", "bf16" by automatic
    mixed precision, or "auto", bf16 where the device has it. ``compile`` is whether the binary units are compiled,
    "auto" where that pays. Raises ConfigError for another schedule, precision or compile.
    """

    steps: int
    batch: int
    patch: int
    lr: float
    schedule: str
    precision: str
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[object, ...]] = {
            "schedule": SCHEDULES,
            "precision": PRECISIONS,
            "compile": COMPILE,
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
    """What :func:`train` does to be fast with these settings, and why."""
    pixels = settings.steps * settings.batch * settings.patch**2
    return plan_for(network, device, precision=settings.precision, compile=settings.compile, pixels=pixels)


def batches(
    sampler: PatchSampler, steps: int, *, ahead: bool
) -> Iterator[tuple[int, Callable[[], tuple[torch.Tensor, torch.Tensor]]]]:
    """Each step from 1 to ``steps`` with what gives its batch.

    With ``ahead`` a thread draws the next batch during a step, which pays where the step is another device's work. A
    batch depends on seed and step alone, so it is the same one either way.
    """
    if not ahead:
        for step in range(1, steps + 1):
            yield step, functools.partial(sampler.batch_at, step - 1)
        return
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(sampler.batch_at, 0)
        for step in range(1, steps + 1):
            current = following
            if step < steps:
                following = pool.submit(sampler.batch_at, step)
            yield step, current.result


def train(
    network: nn.Module,
    sampler: PatchSampler,
    settings: TrainSettings,
    device: torch.device,
    on_step: Callable[[StepReport], None],
) -> list[float]:
    """Train ``network`` in place, call ``on_step`` after each step, and give the seconds that each step took.

    The time of a step is from drawing its patches to the end of the optimiser's step, without ``on_step``.
    Raises TrainingDiverged when the loss is no finite number.
    """
    plan = acceleration(network, settings, device)
    keep_freed_memory()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.compiles:
        compile_units(network)
    optimiser = torch.optim.Adam(network.parameters(), settings.lr, betas=ADAM_BETAS)
    units = binary_units(network)
    seconds = []
    for step, batch in batches(sampler, settings.steps, ahead=device.type == "cuda"):
        start = time.perf_counter()

        # --- data ----------------------------------------------------------------------------------------------------
        inputs, targets = (part.to(device, non_blocking=True) for part in batch())

        # --- forward and backward ------------------------------------------------------------------------------------
        network.train()
        for unit in units:
            unit.set_progress((step - 1) / settings.steps)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            outputs = network(inputs.contiguous(memory_format=torch.channels_last))
        # The loss is taken in full precision: its gradient is a sign, and small differences decide it.
        loss = F.l1_loss(outputs.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]

        # --- update --------------------------------------------------------------------------------------------------
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        optimiser.step()
        for unit in units:
            unit.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)

        # --- report --------------------------------------------------------------------------------------------------
        report = StepReport(step, float(loss.detach()), float(F.mse_loss(outputs.detach().float(), targets)))
        if not math.isfinite(report.loss):
            raise TrainingDiverged(f"the loss is {report.loss} at step {step} of {settings.steps}")
        on_step(report)
    return seconds
