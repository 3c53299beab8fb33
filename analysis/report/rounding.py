"""Round numbers to what is meant, so that the same results give the same files on every processor.

The last bits of a mean or a p-value depend on the order in which a processor adds, and a difference of 0 can come out
as 1e-15. Every number is therefore rounded before it is written, and before it decides an order, a sign or a threshold.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import pandas as pd

SIGNIFICANT_DIGITS = 9

DECIMALS = 12
"""Numbers closer to 0 than half of 10^-12 are rounding errors: scores are in dB, and p-values below it say the same."""

Value = TypeVar("Value")


def rounded_number(number: float) -> float:
    """Return the number with nine significant digits and at most twelve decimals; NaN and infinities stay."""
    if not math.isfinite(number):
        return float(number)
    return float(f"{round(float(number), DECIMALS):.{SIGNIFICANT_DIGITS}g}") + 0.0


def rounded(value: Value) -> Value:
    """Round every number in a value: a float, a frame, or dataclasses, mappings, lists and tuples of such."""
    return cast(Value, _rounded(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return rounded_number(value)
    if isinstance(value, pd.DataFrame):
        numbers = [name for name, column in value.items() if column.dtype == object or column.dtype.kind == "f"]
        return value.assign(**{str(name): [_rounded(each) for each in value[name].tolist()] for name in numbers})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        return dataclasses.replace(value, **{name: _rounded(getattr(value, name)) for name in fields})
    if isinstance(value, Mapping):
        return {key: _rounded(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rounded(item) for item in value)
    return value


def as_csv(frame: pd.DataFrame) -> bytes:
    """Return the frame as CSV with rounded numbers and one kind of line end."""
    return str(rounded(frame).to_csv(index=False, lineterminator="\n")).encode()
