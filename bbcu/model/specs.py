"""The factors of a unit as plain data. Without torch, so that a config or a result can be read quickly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PARTS = ("head", "body", "up", "tail")
"""The parts of a network, from its input to its output."""

ALIGN_PER_CHANNEL = 130 / 64
"""Residual alignment of the authors, per channel of width: k = 130 at 64 channels."""


def automatic_alignment(bn: str, binarize: Sequence[str], channels: int) -> float:
    """Return the number that ``align=auto`` stands for: the authors' rule if nothing else closes the gap, else 1.

    The gap is that between the range of an image and the window of a surrogate; a BatchNorm closes it too.
    Source: k = 130 at 64 channels in the released configurations of BBCU.
    """
    return ALIGN_PER_CHANNEL * channels if bn == "none" and binarize else 1.0


@dataclass(frozen=True)
class UnitSpec:
    """The levels of a binary unit's factors; the defaults are BBCU, the reference.

    - ``residual``: True (an identity around every unit), False, "block" (one around each pair of units), or "scaled"
      (an identity around every unit, times a learnt number).
    - ``bn``: "none", "pre" (before the sign), "post" (after the convolution), "branch" (after the activation and before
      the residual is added) or "out" (after the residual is added).
    - ``act``: "inside" (before the residual is added), "after" it, "first" (after it, in the first unit of each pair
      only), or "none"; ``act_fn`` names the activation.
    - ``threshold``: whether a learnable number per channel is added before the sign, or a name in
      :mod:`bbcu.model.thresholds`.
    - ``surrogate``: the gradient of the sign. ``weight``: the binariser of the weights.
    - ``rescale``: "none", or the factors of the convolution's result, a name in :mod:`bbcu.model.rescales`.
    - ``extra``: levels of factors that a user's package declares; read by the unit class that such a factor selects.
    """

    residual: bool | str = True
    bn: str = "none"
    act: str = "inside"
    act_fn: str = "rprelu"
    threshold: bool | str = True
    surrogate: str = "quadratic"
    weight: str = "l1"
    rescale: str = "none"
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, levels: Mapping[str, Any]) -> "UnitSpec":
        """Return the spec with these levels; factors that are not fields go to ``extra``."""
        ours = {name: level for name, level in levels.items() if name in cls.__dataclass_fields__}
        return cls(**ours, extra={name: level for name, level in levels.items() if name not in ours})
