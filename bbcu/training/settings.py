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
}


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

    def __post_init__(self) -> None:
        for name, valid in VALID.items():
            value = getattr(self, name)
            # In Python 1 equals True.
            if not any(type(value) is type(one) and value == one for one in valid):
                raise ConfigError(f"train.{name}={shown(value)}: {unknown(name, value, valid)}")
        if self.int8 is True and self.native is True:
            raise ConfigError("train.int8=true train.native=true: a convolution is computed in one way; choose one")


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Return the learning rate of step ``step``, counted from 1 to ``settings.steps``."""
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "halved":
        return settings.lr / 2 if 3 * step > 2 * settings.steps else settings.lr
    if settings.schedule == "stepped":
        return float(settings.lr / 2 ** sum(5 * step > fifths * settings.steps for fifths in (2, 3, 4)))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / settings.steps))
