"""How a network is trained and what it is worth afterwards: one loop and one evaluation."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bbcu.acceleration import COMPILE, PRECISIONS, Plan, compile_units, keep_freed_memory, plan_for
from bbcu.datasets import Pair, PatchSampler
from bbcu.errors import BbcuError, ConfigError, unknown
from bbcu.images import Pixels, to_image, to_tensor
from bbcu.networks import binary_units
from bbcu.tasks import Score, Task

ADAM_BETAS = (0.9, 0.99)
SCHEDULES = ("cosine", "constant", "halved")


class TrainingDiverged(BbcuError):
    """The loss, or what the network puts out, is no number any more."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    ``steps`` optimiser steps of ``batch`` patches, each ``patch`` x ``patch`` input pixels. ``lr`` is Adam's first
    learning rate, which then stays ("constant"), falls along half a cosine to zero ("cosine"), or is halved at two
    thirds of the way ("halved", what the released configuration does). ``precision`` is that of the convolutions:
    "fp32", "bf16" by automatic mixed precision, or "auto", bf16 where the device has it. ``compile`` is whether the
    binary units are compiled, "auto" where that pays. Raises ConfigError for another schedule, precision or compile.
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
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / settings.steps))


def acceleration(network: nn.Module, settings: TrainSettings, device: torch.device) -> Plan:
    """What :func:`train` does to be fast with these settings, and why."""
    pixels = settings.steps * settings.batch * settings.patch**2
    return plan_for(network, device, precision=settings.precision, compile=settings.compile, pixels=pixels)


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
    for step in range(1, settings.steps + 1):
        start = time.perf_counter()

        # --- data ----------------------------------------------------------------------------------------------------
        inputs, targets = (part.to(device, non_blocking=True) for part in sampler.batch_at(step - 1))

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


def restore(network: nn.Module, picture: Pixels, device: torch.device) -> Pixels:
    """Run ``network`` in evaluation mode and full precision on one picture, and give its output rounded.

    Takes uint8 (height, width, 3), returns uint8 (scale * height, scale * width, 3). Raises TrainingDiverged for an
    output that is no picture.
    """
    network.eval()
    with torch.inference_mode():
        batch = to_tensor(picture).unsqueeze(0).to(device, memory_format=torch.channels_last)
        output = network(batch)[0]
        if not torch.isfinite(output).all():
            raise TrainingDiverged("the network's output holds nan or inf")
        return to_image(output)


def evaluate(
    network: nn.Module,
    sets: Mapping[str, Sequence[Pair]],
    task: Task,
    device: torch.device,
    on_picture: Callable[[str, Pair, Pixels], None] | None = None,
) -> dict[str, dict[str, Score]]:
    """Score ``network`` on every picture of every set: set name -> picture name -> score, in the task's metrics.

    ``on_picture(set name, pair, output)`` sees every output as it is made.
    """
    scores: dict[str, dict[str, Score]] = {}
    for set_name, pairs in sets.items():
        scores[set_name] = {}
        for pair in pairs:
            output = restore(network, pair.input, device)
            scores[set_name][pair.name] = task.score(output, pair.truth)
            if on_picture is not None:
                on_picture(set_name, pair, output)
    return scores


def mean_score(scores: Mapping[str, Score]) -> Score:
    """The mean over the pictures of a set, as the field averages: of the dB, not of the errors."""
    return Score(
        psnr_db=float(np.mean([score.psnr_db for score in scores.values()])),
        ssim=float(np.mean([score.ssim for score in scores.values()])),
    )
