"""The settings of a training, and the learning rate of each step."""

import math
from dataclasses import dataclass

from bbcu.errors import ConfigError, shown, unknown

AUTO_OR_BOOL = ("auto", True, False)
VALID: dict[str, tuple[object, ...]] = {
    "schedule": ("cosine", "constant", "halved", "stepped"),
    "precision": ("auto", "fp32", "bf16"),
    "compile": AUTO_OR_BOOL,
    "cuda_graph": AUTO_OR_BOOL,
    "int8": AUTO_OR_BOOL,
    "native": AUTO_OR_BOOL,
    "start": ("scratch", "full", "two_step"),
    "distil": ("none", "output", "attention"),
}

FACTORS = ("start", "distil")
"""The settings that are factors of a cell, and whose keys therefore have no prefix."""

DISTIL_WEIGHTS: dict[str, float] = {"none": 0.0, "output": 1.0, "attention": 0.01}
"""The weight of each distillation loss unless it is set.

That of the output is an L1 loss like the task's. That of the attention is open in FRB's abstract. Of 0.001, 0.01 and
0.1, the largest lost 0.2 dB to the middle one after 200 steps of a small network, under two seeds.
"""


@dataclass(frozen=True)
class Phase:
    """Steps of a training, ``first`` to ``last`` counted from 1, in which the same things are binary.

    The learning rate, and the progress that surrogates and binarisers receive, start anew in each phase.
    """

    first: int
    last: int
    binary_signs: bool = True
    binary_weights: bool = True

    def done_before(self, step: int) -> float:
        """Return the share of the phase that is done before ``step``, from 0 to 1."""
        return (step - self.first) / (self.last - self.first + 1)


@dataclass(frozen=True)
class TrainSettings:
    """How to train; raises ConfigError for an invalid value.

    ``steps`` optimiser steps of ``batch`` patches, each ``patch`` x ``patch`` input pixels. ``lr`` is Adam's initial
    learning rate. ``schedule`` keeps it ("constant"), lowers it to zero along half a cosine ("cosine"), or halves it at
    two thirds of the steps ("halved", as in the released configuration for super-resolution) or at two, three and four
    fifths ("stepped", as in that for denoising). ``precision`` is that of the convolutions: "fp32", or "bf16" by
    automatic mixed precision. ``compile`` compiles the binary units, ``cuda_graph`` lets a GPU replay one recorded
    step, and ``int8`` and ``native`` compute the forward convolutions of binary units on a CPU in 8-bit integers or in
    single bits, without changing a bit of the result. For these five, "auto" decides by the device and the network, see
    :func:`bbcu.training.acceleration.plan_for`. ``trainings`` is how many trainings share the code of compiled units,
    this one among them, as the trials of a study do.

    ``start`` trains with full-precision weights for the first half of the steps, and without any sign ("full") or with
    binary signs ("two_step"); "scratch" is binary from the first step. ``distil`` adds ``distil_weight`` times a loss
    to a teacher, over its "output" or its "attention" maps, see :mod:`bbcu.training.distillation`; the weight "auto" is
    1 and 0.01.
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
    native: bool | str = "auto"
    trainings: int = 1
    start: str = "scratch"
    distil: str = "none"
    distil_weight: float | str = "auto"

    def __post_init__(self) -> None:
        for name, valid in VALID.items():
            value = getattr(self, name)
            # In Python 1 equals True.
            if not any(type(value) is type(one) and value == one for one in valid):
                key = name if name in FACTORS else f"train.{name}"
                raise ConfigError(f"{key}={shown(value)}: {unknown(name, value, valid)}")
        if self.int8 is True and self.native is True:
            raise ConfigError("train.int8=true train.native=true: a convolution is computed in one way; choose one")
        if self.start != "scratch" and self.steps < 2:
            raise ConfigError(f"start={self.start} train.steps={self.steps}: each of its two phases needs a step")
        weight = self.distil_weight
        is_number = type(weight) in (int, float) and 0 < weight < math.inf  # type: ignore[operator]
        if weight != "auto" and not is_number:
            raise ConfigError(f"train.distil_weight={shown(weight)}: must be auto or a positive number")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the training, in order: one, or two with half of the steps each, the first rounded down."""
        if self.start == "scratch":
            return (Phase(1, self.steps),)
        half = self.steps // 2
        first = Phase(1, half, binary_signs=self.start == "two_step", binary_weights=False)
        return first, Phase(half + 1, self.steps)

    def phase_at(self, step: int) -> Phase:
        """Return the phase of step ``step``, counted from 1."""
        return next(phase for phase in self.phases if step <= phase.last)

    @property
    def distil_factor(self) -> float:
        """The number that multiplies the distillation loss: ``distil_weight``, with "auto" resolved."""
        return DISTIL_WEIGHTS[self.distil] if isinstance(self.distil_weight, str) else float(self.distil_weight)


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Return the learning rate of step ``step``, counted from 1 to ``settings.steps``; it starts anew in each phase."""
    phase = settings.phase_at(step)
    step, steps = step - phase.first + 1, phase.last - phase.first + 1
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "halved":
        return settings.lr / 2 if 3 * step > 2 * steps else settings.lr
    if settings.schedule == "stepped":
        return float(settings.lr / 2 ** sum(5 * step > fifths * steps for fifths in (2, 3, 4)))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
