"""What decides a unit and a network, as data: no torch, so that a config or a result can be read without it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PARTS = ("head", "body", "up", "tail")
"""The parts of a network, from its input to its output."""


@dataclass(frozen=True)
class UnitSpec:
    """The factors of a binary unit; the defaults are BBCU, the reference.

    ``residual`` is True (an identity around every unit), False, or "block" (one around each pair of units).
    ``bn`` is "none", "pre" (before the sign), "post" (after the convolution) or "out" (after the add).
    ``act`` is "inside" (before the add), "after" it, or "none", and ``act_fn`` which activation.
    ``threshold`` is whether each channel learns a number that is added before the sign.
    ``surrogate`` and ``weight`` name the gradient of the sign and the binariser of the weights.
    ``extra`` has the levels of factors that a user's package declares; the unit class that they name reads them.
    """

    residual: bool | str = True
    bn: str = "none"
    act: str = "inside"
    act_fn: str = "rprelu"
    threshold: bool = True
    surrogate: str = "quadratic"
    weight: str = "l1"
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, levels: Mapping[str, Any]) -> "UnitSpec":
        """The spec of these levels of unit factors; those that are not ours go to ``extra``."""
        ours = {name: level for name, level in levels.items() if name in cls.__dataclass_fields__}
        return cls(**ours, extra={name: level for name, level in levels.items() if name not in ours})
