"""The price of a binary multiply-add: which part of one in full precision it counts."""

import re
from fractions import Fraction

from bbcu.errors import ConfigError, shown

PAPER = "1/64"
"""What the paper counts; ``ops_g`` of a result is always counted so."""

MEASURED = "measured"
"""Stands for no price: costs are compared by measured time instead of counted operations."""

PRICE = re.compile(r"[0-9]{1,9}(/[0-9]{1,9}|(\.[0-9]{1,20})?(e-?[0-9]{1,2})?)")


def price_of(text: str, key: str = "cost.binary") -> Fraction | None:
    """Return the price, which is above 0 and at most 1; None for ``measured``.

    Raises ConfigError, which begins with ``key``, for anything else.
    """
    if text == MEASURED:
        return None
    try:
        price = Fraction(text) if PRICE.fullmatch(text) else Fraction(0)
    except ZeroDivisionError:
        price = Fraction(0)
    if not 0 < price <= 1:
        raise ConfigError(
            f"{key}={shown(text)}: must be a fraction such as {PAPER} or 1/8, a number above 0 up to 1, or {MEASURED}"
        )
    return price
