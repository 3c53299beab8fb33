"""The state of the networks that the authors released, in the names of ours."""

import re
from collections.abc import Mapping

from torch import Tensor

UNIT_NAMES = {
    "move0.bias": "threshold",
    "binary_conv.weight": "weight",
    "relu.pr_bias0.bias": "activation.shift_in",
    "relu.pr_prelu.weight": "activation.slope",
    "relu.pr_bias1.bias": "activation.shift_out",
}
PART_NAMES = {"conv_first": "head", "upconv1": "up.stages.0", "conv_hr": "up.refine", "conv_last": "tail"}
BODY_UNIT = re.compile(r"body\.(\d+)\.body\.(\d+)\.(.+)")


def name_from_released(name: str) -> str:
    """Our name of a released BBCU-L's parameter: ``body.3.body.1.move0.bias`` is our ``body.units.7.threshold``."""
    unit = BODY_UNIT.fullmatch(name)
    if unit:
        return f"body.units.{2 * int(unit[1]) + int(unit[2])}.{UNIT_NAMES[unit[3]]}"
    part, _, kind = name.partition(".")
    return f"{PART_NAMES[part]}.{kind}"


def state_from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names; raises KeyError for a name that no BBCU-L x2 has."""
    return {name_from_released(name): value for name, value in state.items()}
