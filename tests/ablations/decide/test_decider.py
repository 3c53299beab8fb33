"""The decider: which trials a stopping rule needs, as a pure function of the trials that have ended."""

import dataclasses
import random

from ablations.config import SweeperConfig
from ablations.decide.decider import FAILED, Decider, EndedTrial
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.folder import Identity
from analysis.statistics.estimates import ALPHA, MARGIN_DB
from analysis.statistics.sequential import Boundary, Progress

RULE = StoppingRule((3, 4, 6), 0, 0.05, ((("a", "b"), ("a", "c")), (("d", "e"),)))
DECIDER = Decider(RULE, ("a", "b", "c", "d", "e", "alone"))
NOISE = (0.0, 0.02, -0.02, 0.01, -0.01, 0.015)
"""The noise of each seed in dB."""


def ended(*trials: Identity, **worth: float) -> dict[Identity, EndedTrial]:
    """Trials that have finished with what their cell is worth, 30 dB if it is not given, and noise."""
    return {(cell, seed): EndedTrial({"Tiny": worth.get(cell, 30.0) + NOISE[seed]}) for cell, seed in trials}


def seeds(cells: str, count: int) -> list[Identity]:
    return [(cell, seed) for seed in range(count) for cell in cells]


def test_before_anything_has_ended_every_cell_is_asked_for_seed_by_seed() -> None:
    assert DECIDER.ask({}) == [(cell, seed) for seed in range(3) for cell in DECIDER.cells]


def test_the_cells_of_open_comparisons_are_asked_for_up_to_the_next_look() -> None:
    known = ended(*seeds("abcde", 3), *[("alone", seed) for seed in range(3)], b=31.0, e=31.0)
    assert DECIDER.ask(known) == [("a", 3), ("c", 3)]
    known |= ended(("a", 3), ("c", 3))
    assert DECIDER.ask(known) == [("a", 4), ("c", 4), ("a", 5), ("c", 5)]


def test_a_look_is_judged_when_all_its_trials_have_ended() -> None:
    known = ended(*seeds("ab", 3), ("c", 0), ("c", 1), b=31.0)
    assert all(found.is_open for found in DECIDER.comparisons(known))
    assert ("c", 2) in DECIDER.ask(known)


def test_nothing_is_asked_for_when_all_is_decided() -> None:
    known = ended(*seeds("abcde", 3), *[("alone", seed) for seed in range(3)], b=31.0, c=29.0, e=31.0)
    assert DECIDER.ask(known) == []
    assert [found.judged["Tiny"].progress for found in DECIDER.comparisons(known)] == [Progress.DECIDED] * 3


def test_each_comparison_names_its_family() -> None:
    assert [(found.family, found.pair) for found in DECIDER.comparisons({})] == [
        (0, ("a", "b")),
        (0, ("a", "c")),
        (1, ("d", "e")),
    ]


def test_a_comparison_is_open_until_it_is_closed_on_every_test_set() -> None:
    decider = Decider(dataclasses.replace(RULE, families=((("a", "b"),),)), ("a", "b"))
    known = {
        (cell, seed): EndedTrial(
            {"One": 30 + (cell == "b") + NOISE[seed], "Two": 30 + NOISE[seed] * (1 + 3 * (cell == "b"))}
        )
        for cell, seed in seeds("ab", 3)
    }
    (found,) = decider.comparisons(known)
    assert {name: each.progress for name, each in found.judged.items()} == {
        "One": Progress.DECIDED,
        "Two": Progress.OPEN,
    }
    assert found.is_open
    assert decider.ask(known) == [("a", 3), ("b", 3)]


def test_a_failed_trial_has_ended_and_has_no_score() -> None:
    known = ended(*seeds("abcde", 3), *[("alone", seed) for seed in range(3)], b=31.0, c=29.0, e=31.0)
    assert DECIDER.ask({**known, ("alone", 1): FAILED}) == []
    assert DECIDER.ask({**known, **dict.fromkeys(seeds("b", 3), FAILED)}) == []
    assert ("b", 3) in DECIDER.ask({**known, ("b", 1): FAILED, ("b", 2): FAILED}), "one score has no spread"


def test_seeds_before_the_first_count_in_no_verdict() -> None:
    later = Decider(dataclasses.replace(RULE, first_seed=3), DECIDER.cells)
    known = ended(*seeds("abcde", 3), *[("alone", seed) for seed in range(3)], b=31.0, c=29.0, e=31.0)
    assert later.ask(known) == [(cell, seed) for seed in (3, 4, 5) for cell in DECIDER.cells]
    assert all(found.is_open for found in later.comparisons(known))


def test_pairs_within_a_seed_count_if_the_study_compares_so() -> None:
    rule = dataclasses.replace(RULE, families=((("a", "b"),),))
    known = {
        (cell, seed): EndedTrial({"Tiny": 30 + 100 * NOISE[seed] + (cell == "b") * (1 + NOISE[seed])})
        for cell, seed in seeds("ab", 3)
    }
    assert Decider(rule, ("a", "b"), paired=True).ask(known) == []
    assert Decider(rule, ("a", "b"), paired=False).ask(known) == [("a", 3), ("b", 3)]


def test_the_order_in_which_trials_end_changes_nothing() -> None:
    known = ended(*seeds("abcde", 4), *[("alone", seed) for seed in range(3)], b=30.03, e=31.0)
    shuffled = list(known.items())
    random.Random(0).shuffle(shuffled)
    assert DECIDER.needed(dict(shuffled)) == DECIDER.needed(known)
    assert DECIDER.comparisons(dict(shuffled)) == DECIDER.comparisons(known)


def test_the_rule_of_a_plan_is_the_one_that_the_statistics_are_about() -> None:
    default = Boundary(RULE.looks)
    assert (RULE.floor, RULE.rise, RULE.error_rate) == (default.floor, default.rise, ALPHA)
    assert SweeperConfig().margin_db == MARGIN_DB


def test_comparisons_are_closed_if_every_trial_of_the_first_look_failed() -> None:
    failed = {(cell, seed): FAILED for cell in DECIDER.cells for seed in RULE.seeds(RULE.first_look)}
    assert {found.progress for found in DECIDER.comparisons(failed)} == {Progress.NO_RESULT}
    assert DECIDER.ask(failed) == []
    del failed["d", 0]
    assert {found.progress for found in DECIDER.comparisons(failed) if found.family == 1} == {Progress.OPEN}
