"""Round numbers to what is meant, so that the same results give the same files on every processor.

The last bits of a mean or a p-value depend on the order in which a processor adds, and a difference of 0 can come out
as 1e-15. Every number is therefore rounded before it is shown, and before it decides an order, a sign or a threshold.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

SIGNIFICANT_DIGITS = 9
DECIMALS = 12  # numbers closer to 0 are rounding errors: scores are in dB, and p-values below it say the same

Value = TypeVar("Value")


def rounded(value: Value) -> Value:
    """Round every number in a value: a float, or dataclasses, mappings, lists and tuples of such.

    A number has nine significant digits and at most twelve decimals then; NaN and infinities stay.
    """
    return cast(Value, _rounded(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return float(value)
        return float(f"{round(float(value), DECIMALS):.{SIGNIFICANT_DIGITS}g}") + 0.0
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        return dataclasses.replace(value, **{name: _rounded(getattr(value, name)) for name in fields})
    if isinstance(value, Mapping):
        return {key: _rounded(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rounded(item) for item in value)
    return value


def settled(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Set the numbers of an array that are smaller than 10^-12 to 0, which has a verdict of its own."""
    array = np.asarray(values, dtype=float)
    return np.where(np.abs(array) < 10.0**-DECIMALS, 0.0, array)
