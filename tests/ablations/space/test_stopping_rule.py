"""The stopping rule: its seeds and looks, how a plan records it, and how two rules differ in words."""

import dataclasses
import json

import pytest

from ablations.space.stopping_rule import StoppingRule

RULE = StoppingRule((3, 4, 5), 7, 0.05, ((("a", "b"), ("a", "c")), (("d", "e"),)))


def test_a_look_is_about_its_number_of_seeds_from_the_first() -> None:
    assert list(RULE.seeds(3)) == [7, 8, 9]
    assert (RULE.first_look, RULE.last_look) == (3, 5)


@pytest.mark.parametrize(("look", "following"), [(0, 3), (3, 5), (5, 9), (9, None)])
def test_the_next_look_is_the_first_with_more_seeds(look: int, following: int | None) -> None:
    assert dataclasses.replace(RULE, looks=(3, 5, 9)).look_after(look) == following


def test_a_rule_is_read_back_as_it_was_recorded() -> None:
    assert StoppingRule.of(json.loads(json.dumps(RULE.record()))) == RULE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"looks": (3, 5)}, "looks=3, 5 and not 3 to 5"),
        ({"looks": (3, 4)}, "looks=3 to 4 and not 3 to 5"),
        ({"first_seed": 0}, "first_seed=0 and not 7"),
        ({"margin_db": 0.0500001}, "margin_db=0.0500001 and not 0.05"),
        ({"rise": 3.0}, f"rise=3.0 and not {RULE.rise}"),
        ({"error_rate": 0.01, "floor": 0.5}, "error_rate=0.01 and not 0.05, floor=0.5 and not 0.01"),
        ({"families": RULE.families[:1]}, "comparisons=2 and not 3"),
        ({"families": ((("a", "b"), ("a", "c")), (("d", "f"),))}, "other comparisons"),
        ({"families": ((("a", "b"),), (("a", "c"), ("d", "e")))}, "other comparisons"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_a_difference_is_said_in_words(change: dict[str, object], words: str) -> None:
    assert dataclasses.replace(RULE, **change).difference(RULE) == words  # type: ignore[arg-type]
