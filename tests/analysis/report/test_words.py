"""How a report spells numbers."""

import pytest

from analysis.report.words import count, in_thousands


@pytest.mark.parametrize(
    ("number", "spelled"), [(1, "1 step"), (0, "0 steps"), (999, "999 steps"), (2000, "2,000 steps")]
)
def test_a_noun_is_counted_with_a_comma_at_each_thousand(number: int, spelled: str) -> None:
    assert count(number, "step") == spelled


@pytest.mark.parametrize(
    ("text", "spelled"), [("2000", "2,000"), ("300000", "300,000"), ("20", "20"), ("0.001", "0.001"), ("", "")]
)
def test_a_whole_number_has_a_comma_at_each_thousand_and_other_text_stays(text: str, spelled: str) -> None:
    assert in_thousands(text) == spelled
