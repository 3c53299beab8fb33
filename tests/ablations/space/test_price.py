"""The price of a binary multiply-add as a user writes it."""

from fractions import Fraction

import pytest

from ablations.space.price import price_of
from bbcu.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("1/64", Fraction(1, 64)),
        ("2/16", Fraction(1, 8)),
        ("0.125", Fraction(1, 8)),
        ("1e-05", Fraction(1, 100_000)),
        ("1", Fraction(1)),
        ("measured", None),
    ],
)
def test_a_price_is_a_fraction_a_number_or_none_if_time_is_measured(text: str, price: Fraction | None) -> None:
    assert price_of(text) == price


@pytest.mark.parametrize(
    "text", ["0", "0/8", "1/0", "9/8", "1.5", "-1/8", "1/8/8", "1 / 8", "x", "", "nan", "1e99", "٣"]
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        price_of(text, "--cost-binary")
    valid = "must be a fraction such as 1/64 or 1/8, a number above 0 up to 1, or measured"
    assert str(error.value) == f"--cost-binary={text}: {valid}"
