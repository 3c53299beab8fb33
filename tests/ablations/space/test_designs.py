"""Designs list the combinations of a sweep."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from ablations.space.cells import canonical_levels
from ablations.space.conditions import value_of
from ablations.space.designs import DESIGNS, halvings_of, rows_of
from ablations.space.factors import FACTORS, REFERENCE, level_text
from ablations.space.fractions import MAX_FACTORS, MAX_SEARCHED, Fraction, fractional
from ablations.space.rows import chain, full, leave_one_out, one_at_a_time, random_cells, rebased
from ablations.space.rules import Backbone
from bbcu.errors import ConfigError
from bbcu.model.methods import METHODS

Sweep = dict[str, list[str]]
SPACE: Sweep = {name: [level_text(level) for level in factor.levels] for name, factor in FACTORS.items()}
RESIDUAL_BN: Sweep = {"residual": ["true", "false"], "bn": ["pre", "post"]}


def rows_in(text: str) -> list[tuple[str, ...]]:
    """``a=1 b=2; a=2`` as ``[("a=1", "b=2"), ("a=2",)]``."""
    return [tuple(row.split()) for row in text.split("; ")]


THREE: Sweep = {"residual": ["true", "block", "false"], "channels": ["32"], "bn": ["none", "post"]}


@pytest.mark.parametrize("design", [full, one_at_a_time, leave_one_out])
def test_nothing_varies_in_a_design_without_several_values(design: Any) -> None:
    assert design({}) == [()]
    assert design({"channels": ["32"]}) == [("channels=32",)]


@pytest.mark.parametrize(
    ("design", "sweep", "rows"),
    [
        pytest.param(
            full,
            RESIDUAL_BN,
            "residual=true bn=pre; residual=true bn=post; residual=false bn=pre; residual=false bn=post",
            id="full: the last key varies fastest",
        ),
        pytest.param(
            one_at_a_time,
            THREE,
            "residual=true channels=32 bn=none; residual=block channels=32 bn=none; "
            "residual=false channels=32 bn=none; residual=true channels=32 bn=post",
            id="one at a time: the base, then each other value alone",
        ),
        pytest.param(
            leave_one_out,
            THREE,
            "residual=true channels=32 bn=none; residual=false channels=32 bn=none; residual=true channels=32 bn=post",
            id="leave one out: the complete row, then each key at its last value",
        ),
    ],
)
def test_a_design_lists_its_rows(design: Any, sweep: Sweep, rows: str) -> None:
    assert design(sweep) == rows_in(rows)


def test_a_full_factorial_with_a_key_without_values_is_empty() -> None:
    assert full({"bn": []}) == []


def test_one_at_a_time_costs_one_cell_and_one_for_each_other_value() -> None:
    rows = one_at_a_time(SPACE)
    assert len(rows) == len(set(rows)) == 1 + sum(len(values) - 1 for values in SPACE.values())
    assert all(sum(one != other for one, other in zip(row, rows[0], strict=True)) == 1 for row in rows[1:])


@pytest.mark.parametrize("design", [one_at_a_time, leave_one_out, lambda sweep: random_cells(sweep, 1, 0), fractional])
def test_a_key_without_values_has_no_base(design: Any) -> None:
    with pytest.raises(ConfigError, match="bn: no value"):
        design({"bn": []})


@pytest.mark.parametrize(
    ("reference", "based"),
    [
        pytest.param({}, {"residual": ["true", "false"], "bn": ["pre", "post"]}, id="the first value"),
        pytest.param({"bn": "post"}, {"residual": ["true", "false"], "bn": ["post", "pre"]}, id="another value"),
        pytest.param({"bn": "none"}, {"residual": ["true", "false"], "bn": ["none", "pre", "post"]}, id="a new value"),
        pytest.param({"residual": "False"}, {"residual": ["False", "true"], "bn": ["pre", "post"]}, id="capitals"),
    ],
)
def test_a_reference_names_the_base(reference: dict[str, str], based: Sweep) -> None:
    assert rebased(RESIDUAL_BN, reference) == based


def test_a_reference_to_a_key_that_is_not_swept_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key of the sweep 'bm'; valid: residual, bn"):
        rebased(RESIDUAL_BN, {"bm": "pre"})


# --- chain ------------------------------------------------------------------------------------------------------------

BBCU_STEPS = [["act=after", "align=1"], ["bn=post"], ["bn=none", "align=auto"], ["act=inside"]]
"""BBCU-V1 to BBCU-V4, as changes of BBCU."""


def test_a_chain_keeps_every_change() -> None:
    assert chain(BBCU_STEPS) == [
        ("act=after", "align=1"),
        ("act=after", "align=1", "bn=post"),
        ("act=after", "align=auto", "bn=none"),
        ("act=inside", "align=auto", "bn=none"),
    ]


@pytest.mark.parametrize(
    ("version", "levels"),
    [
        pytest.param(1, {"bn": "none", "align": 1.0, "act": "after"}, id="V1: a residual, and the activation after it"),
        pytest.param(2, {"bn": "post", "align": 1.0, "act": "after"}, id="V2: and BatchNorm"),
        pytest.param(3, {"bn": "none", "align": 130.0, "act": "after"}, id="V3: alignment in place of BatchNorm"),
        pytest.param(4, {"bn": "none", "align": 130.0, "act": "inside"}, id="V4: the activation before the add"),
    ],
)
def test_the_chain_of_the_paper(version: int, levels: dict[str, object]) -> None:
    assert bbcu_version(version) == {**REFERENCE, **levels}


@pytest.mark.parametrize(
    ("version", "method"), [pytest.param(2, "reactnet", id="V2"), pytest.param(4, "bbcu", id="V4")]
)
def test_a_version_of_the_paper_is_a_published_method(version: int, method: str) -> None:
    assert bbcu_version(version) == canonical_levels(METHODS[method].all_levels, Backbone("srresnet", 64)).factors


def bbcu_version(version: int) -> dict[str, object]:
    """The canonical levels at one link of the chain."""
    typed = dict(text.split("=") for text in chain(BBCU_STEPS)[version - 1])
    levels = {**REFERENCE, **{key: value_of(text) for key, text in typed.items()}}
    return dict(canonical_levels(levels, Backbone("srresnet", 64)).factors)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        pytest.param([["act"]], "step 1 .*'act' is not a change; write key=value", id="no value"),
        pytest.param([["=after"]], "step 1 .*'=after' is not a change", id="no key"),
        pytest.param([["act=after"], ["bn=pre", "bn=post"]], "step 2 .*sets bn twice", id="twice in one step"),
        pytest.param([["act=after"], ["act=after"]], "step 2 .*changes nothing: act=after", id="the same again"),
        pytest.param([["act=after"], []], "step 2 .*changes nothing: it is empty", id="an empty step"),
    ],
)
def test_a_step_that_changes_nothing_or_is_malformed_is_refused(steps: list[list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chain(steps)


def test_a_chain_may_begin_with_the_config_as_it_is() -> None:
    assert chain([[], ["bn=post"]]) == [(), ("bn=post",)]


# --- random -----------------------------------------------------------------------------------------------------------


def test_a_draw_is_the_same_on_every_python() -> None:
    """Python's generator of seed 0 begins 0.844, 0.758, 0.421: places 0 + 5 of 6, 1 + 3 of 5 and 2 + 1 of 4."""
    assert random_cells({"residual": ["true", "false", "block"], "bn": ["none", "pre"]}, 3, seed=0) == [
        ("residual=block", "bn=pre"),
        ("residual=block", "bn=none"),
        ("residual=false", "bn=pre"),
    ]


@pytest.mark.parametrize("cells", [1, 7, 500])
def test_drawn_cells_differ_and_are_of_the_sweep(cells: int) -> None:
    drawn = random_cells(SPACE, cells, seed=3)
    assert len(drawn) == len(set(drawn)) == cells
    assert all(dict(text.split("=") for text in row).keys() == SPACE.keys() for row in drawn)
    assert all(value in SPACE[key] for row in drawn for key, value in (text.split("=") for text in row))


def test_more_cells_keep_those_that_were_drawn_before() -> None:
    assert random_cells(SPACE, 20, seed=1)[:5] == random_cells(SPACE, 5, seed=1)


def test_another_seed_draws_other_cells() -> None:
    assert random_cells(SPACE, 20, seed=1) != random_cells(SPACE, 20, seed=2)


@pytest.mark.parametrize("cells", [120, 121, 10**9])
def test_a_draw_of_more_than_all_is_all(cells: int) -> None:
    sweep = {"a": list("1234"), "b": list("12345"), "c": list("123456")}
    drawn = random_cells(sweep, cells, seed=0)
    assert len(drawn) == 4 * 5 * 6
    assert set(drawn) == set(full(sweep))


def test_a_draw_favours_no_value() -> None:
    sweep = {f"key{place}": [str(value) for value in range(10)] for place in range(9)}
    counts = Counter(text for row in random_cells(sweep, 4000, seed=0) for text in row)
    deviation = math.sqrt(4000 * 0.1 * 0.9)
    assert len(counts) == 90
    assert all(abs(count - 400) < 5 * deviation for count in counts.values())


@pytest.mark.parametrize(("cells", "seed"), [pytest.param(0, 0, id="no cells"), pytest.param(1, -1, id="seed below 0")])
def test_a_draw_of_nothing_is_refused(cells: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="at least"):
        random_cells(RESIDUAL_BN, cells, seed)


# --- fractions --------------------------------------------------------------------------------------------------------


def letters(factors: int) -> Sweep:
    """Factors A, B, ..., each at 1 and at 2."""
    return {name: ["1", "2"] for name in "ABCDEFGHIJKLMNOPQRS"[:factors]}


def contrast(fraction: Fraction, effect: str) -> list[int]:
    """The column of an effect: the product of +1 for each of its factors at the first value and -1 at the second."""
    rows = [dict(text.split("=") for text in row) for row in fraction.rows]
    return [math.prod(1 if row[factor] == "1" else -1 for factor in effect.split("*")) for row in rows]


def dot(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(one, other, strict=True))


TEXTBOOK = [
    pytest.param(3, 1, 3, {3: 1}, id="2^(3-1)"),
    pytest.param(4, 1, 4, {4: 1}, id="2^(4-1)"),
    pytest.param(5, 1, 5, {5: 1}, id="2^(5-1)"),
    pytest.param(5, 2, 3, {3: 2, 4: 1}, id="2^(5-2)"),
    pytest.param(6, 2, 4, {4: 3}, id="2^(6-2)"),
    pytest.param(6, 3, 3, {3: 4, 4: 3}, id="2^(6-3)"),
    pytest.param(7, 2, 4, {4: 1, 5: 2}, id="2^(7-2), which resolution alone does not single out"),
    pytest.param(7, 3, 4, {4: 7}, id="2^(7-3)"),
    pytest.param(7, 4, 3, {3: 7, 4: 7, 7: 1}, id="2^(7-4), saturated"),
    pytest.param(8, 2, 5, {5: 2, 6: 1}, id="2^(8-2)"),
    pytest.param(8, 4, 4, {4: 14, 8: 1}, id="2^(8-4)"),
    pytest.param(9, 4, 4, {4: 6, 5: 8, 8: 1}, id="2^(9-4)"),
    pytest.param(9, 5, 3, {3: 4, 4: 14, 5: 8, 7: 4, 8: 1}, id="2^(9-5)"),
]
"""Factors, halvings, and the resolution and numbers of words by length in the tables of minimum aberration."""


@pytest.mark.parametrize(("factors", "halvings", "resolution", "lengths"), TEXTBOOK)
def test_the_best_fraction_is_that_of_published_tables(
    factors: int, halvings: int, resolution: int, lengths: dict[int, int]
) -> None:
    fraction = fractional(letters(factors), halvings)
    words = Counter(word.count("*") + 1 for word in fraction.defining_relation)
    assert (len(fraction.rows), fraction.resolution) == (2 ** (factors - halvings), resolution)
    assert words == lengths
    assert fraction.resolution == min(words)


@pytest.mark.parametrize(("factors", "halvings", "resolution", "lengths"), TEXTBOOK)
def test_a_fraction_is_a_full_factorial_in_any_fewer_factors_than_its_resolution(
    factors: int, halvings: int, resolution: int, lengths: dict[int, int]
) -> None:
    """Every factor is balanced, every two are orthogonal, and so on up to the resolution, where it ends."""
    rows = fractional(letters(factors), halvings).rows
    assert rows[0] == tuple(f"{name}=1" for name in letters(factors))

    def balanced(places: Sequence[int]) -> bool:
        counts = Counter(tuple(row[place] for place in places) for row in rows)
        return len(counts) == 2 ** len(places) and len(set(counts.values())) == 1

    assert all(balanced(places) for places in itertools.combinations(range(factors), resolution - 1))
    assert not all(balanced(places) for places in itertools.combinations(range(factors), resolution))


def test_half_of_four_factors_by_hand() -> None:
    fraction = fractional(letters(4), generators=["D=A*B*C"])
    assert ["".join(text[-1] for text in row) for row in fraction.rows] == [
        *("1111", "1122", "1212", "1221"),
        *("2112", "2121", "2211", "2222"),
    ]
    assert fraction.defining_relation == ("A*B*C*D",)
    assert fraction.resolution == 4
    aliases = ["A = B*C*D", "B = A*C*D", "C = A*B*D", "D = A*B*C", "A*B = C*D", "A*C = B*D", "A*D = B*C"]
    assert [" = ".join(effects) for effects in fraction.aliases] == aliases
    assert fraction.notes() == [
        "8 rows, resolution IV: main effects are clear of interactions of two factors, which are confused with one "
        "another",
        "generators: D=A*B*C",
        "defining relation: I = A*B*C*D",
        *(f"estimated together: {alias}" for alias in aliases),
    ]
    assert fractional(letters(4), 1) == fraction


@pytest.mark.parametrize(
    ("factors", "halvings"), [pytest.param(4, 1, id="2^(4-1)"), pytest.param(5, 2, id="2^(5-2)"), (6, 2), (7, 4)]
)
def test_aliases_share_a_contrast_and_others_are_orthogonal(factors: int, halvings: int) -> None:
    fraction = fractional(letters(factors), halvings)
    for effects in fraction.aliases:
        assert len({tuple(contrast(fraction, effect)) for effect in effects}) == 1
    columns = [contrast(fraction, effects[0]) for effects in fraction.aliases]
    assert len(columns) == len(fraction.rows) - 1
    assert all(dot(one, other) == 0 for one, other in itertools.combinations(columns, 2))
    for word in fraction.defining_relation:
        assert set(contrast(fraction, word)) == {1}


def test_the_search_takes_the_first_of_equally_good_generators() -> None:
    """Another choice as good would be other cells, and what was trained for this one would be lost."""
    assert fractional(letters(6), 2).generators == ("E=A*B*C", "F=A*B*D")
    assert fractional(letters(7), 2).generators == ("F=A*B*C*D", "G=A*B*C*E")


def test_effects_of_as_many_factors_as_the_resolution_are_not_listed() -> None:
    aliases = ("A = B*E", "B = A*E", "C = D*E", "D = C*E", "E = A*B = C*D", "A*C = B*D", "A*D = B*C")
    assert fractional(letters(5), 2).notes()[3:] == [f"estimated together: {alias}" for alias in aliases]


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        (3, "4 rows, resolution III: main effects are confused with interactions of two factors"),
        (5, "16 rows, resolution V: main effects and interactions of two factors are clear of one another"),
    ],
)
def test_the_notes_of_a_half_say_what_is_confused(factors: int, text: str) -> None:
    assert fractional(letters(factors), 1).notes()[0] == text


def test_generators_may_define_any_factor() -> None:
    fraction = fractional(letters(5), generators=["A = B*C", "D=C*E"])
    assert fraction.generators == ("A=B*C", "D=C*E")
    assert fraction.defining_relation == ("A*B*C", "C*D*E", "A*B*D*E")
    assert fraction.resolution == 3


def test_a_key_with_one_value_is_set_in_every_row() -> None:
    fraction = fractional({"channels": ["32"], **letters(3), "blocks": ["4"]}, 1)
    assert fraction.rows[1] == ("channels=32", "A=1", "B=2", "C=2", "blocks=4")
    assert fraction.defining_relation == ("A*B*C",)


@pytest.mark.parametrize(
    ("sweep", "halvings", "generators", "message"),
    [
        pytest.param({**letters(3), "bn": ["none", "pre", "post"]}, 1, [], "bn has the values none, pre", id="three"),
        pytest.param({**letters(3), "bn": ["pre", "pre"]}, 1, [], "bn has the values pre, pre", id="twice the same"),
        pytest.param(letters(3), None, [], "either the fraction, as in 1/4, or generators", id="neither"),
        pytest.param(letters(3), 1, ["C=A*B"], "either the fraction, as in 1/4, or generators", id="both"),
        pytest.param(letters(2), 1, [], r"1/2 of 2 factors .*A, B.*possible: none", id="too few factors"),
        pytest.param({}, 1, [], r"0 factors .*possible: none", id="nothing varies"),
        pytest.param(letters(7), 5, [], "possible: 1/2, 1/4, 1/8, 1/16", id="too small a fraction"),
        pytest.param(letters(4), 0, [], "possible: 1/2", id="not halved"),
        pytest.param(letters(MAX_SEARCHED + 1), 2, [], "write the generators", id="too many to search"),
        pytest.param(letters(MAX_FACTORS + 1), 2, [], "more than 16", id="too many to list"),
        pytest.param(letters(4), None, ["D=A*B*X"], "unknown factor .*'X'.*valid: A, B, C, D", id="an unknown parent"),
        pytest.param(letters(4), None, ["X=A*B"], "unknown factor .*'X'", id="an unknown factor"),
        pytest.param({**letters(3), "bn": ["pre"]}, None, ["C=A*bn"], "unknown factor .*'bn'", id="it does not vary"),
        pytest.param(letters(4), None, ["D"], "write a factor and its product", id="no product"),
        pytest.param(letters(4), None, ["D=A"], r"A\*D is constant", id="a copy of a factor"),
        pytest.param(letters(5), None, ["D=A*B", "E=A*B"], r"D\*E is constant", id="two copies of a product"),
        pytest.param(letters(4), None, ["D=A*B", "D=A*C"], "named twice", id="defined twice"),
        pytest.param(letters(4), None, ["D=A*A*B"], "named twice", id="squared"),
        pytest.param(letters(5), None, ["D=A*B", "E=D*C"], "D is itself defined", id="a parent that is defined"),
        pytest.param(letters(4), None, ["D=D*A*B"], "D is itself defined", id="defined by itself"),
    ],
)
def test_a_fraction_is_refused_where_the_factors_do_not_allow_it(
    sweep: Sweep, halvings: int | None, generators: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fractional(sweep, halvings, generators)


# --- designs by name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "options", "rows"),
    [
        pytest.param("full", {}, full(RESIDUAL_BN), id="full"),
        pytest.param("one_at_a_time", {}, one_at_a_time(RESIDUAL_BN), id="one at a time"),
        pytest.param(
            "one_at_a_time",
            {"reference": {"bn": "none"}},
            rows_in("residual=true bn=none; residual=false bn=none; residual=true bn=pre; residual=true bn=post"),
            id="one at a time against another base",
        ),
        pytest.param(
            "one_at_a_time",
            {"reference": {"residual": False}},
            rows_in("residual=false bn=pre; residual=true bn=pre; residual=false bn=post"),
            id="a base as a config holds it",
        ),
        pytest.param(
            "leave_one_out",
            {"reference": {"bn": "post"}},
            rows_in("residual=true bn=post; residual=false bn=post; residual=true bn=pre"),
            id="leave one out of another method",
        ),
        pytest.param("random", {"cells": 2, "seed": 5}, random_cells(RESIDUAL_BN, 2, 5), id="random"),
        pytest.param("random", {"cells": 2}, random_cells(RESIDUAL_BN, 2, 0), id="the seed is 0 unless given"),
    ],
)
def test_a_design_by_its_name(design: str, options: dict[str, Any], rows: list[tuple[str, ...]]) -> None:
    assert rows_of(design, RESIDUAL_BN, {"steps": None, **options}).rows == tuple(rows)


@pytest.mark.parametrize(
    "options", [{"fraction": "1/2"}, {"fraction": "1 / 2"}, {"generators": ["D=A*B*C"]}], ids=lambda entry: str(entry)
)
def test_a_fraction_needs_every_row_and_notes_its_aliases(options: dict[str, Any]) -> None:
    listing = rows_of("fractional", letters(4), options)
    fraction = fractional(letters(4), 1)
    assert (listing.rows, listing.notes, listing.needs_every_row) == (fraction.rows, tuple(fraction.notes()), True)


@pytest.mark.parametrize("design", sorted(DESIGNS.keys() - {"fractional"}))
def test_other_designs_do_not_need_every_row(design: str) -> None:
    options = {"random": {"cells": 2}, "chain": {"steps": ["act=after"]}}
    assert not rows_of(design, RESIDUAL_BN, options.get(design, {})).needs_every_row


def test_a_chain_is_repeated_for_every_combination_of_the_other_keys() -> None:
    steps = ["act=after align=1", ["bn=post"]]
    assert rows_of("chain", {"task": ["sr_x2", "sr_x4"], "channels": ["32"]}, {"steps": steps}).rows == (
        ("task=sr_x2", "channels=32", "act=after", "align=1"),
        ("task=sr_x2", "channels=32", "act=after", "align=1", "bn=post"),
        ("task=sr_x4", "channels=32", "act=after", "align=1"),
        ("task=sr_x4", "channels=32", "act=after", "align=1", "bn=post"),
    )


def test_leave_one_out_notes_the_values_that_it_does_not_use() -> None:
    listing = rows_of("leave_one_out", {"residual": ["true", "block", "false"]}, {})
    assert listing.notes == ("residual=block is in no row: leave_one_out has residual at true and at false",)


def test_a_draw_notes_its_share_of_the_combinations() -> None:
    assert rows_of("random", RESIDUAL_BN, {"cells": 3}).notes == ("3 of 4 combinations, drawn with seed 0",)


@pytest.mark.parametrize(
    ("design", "options", "message"),
    [
        pytest.param("ful", {}, r"design=ful: .*did you mean full\?.*valid: full, one_at_a_time", id="unknown design"),
        pytest.param("full", {"cells": 3}, "cells: unknown option of design=full.*valid: none", id="takes no option"),
        pytest.param(
            "random",
            {"steps": []},
            "unknown option of design=random.*valid: cells, seed",
            id="option of another design",
        ),
        pytest.param("random", {}, "random needs hydra.sweeper.cells", id="how many cells"),
        pytest.param("chain", {}, "chain needs hydra.sweeper.steps", id="which steps"),
        pytest.param("chain", {"steps": ["bn=post"]}, "bn: the chain sets it", id="swept and in the chain"),
        pytest.param("fractional", {"fraction": "1/3"}, "fraction=1/3: must be 1/2, 1/4", id="not a power of two"),
    ],
)
def test_an_unknown_or_missing_option_is_refused(design: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows_of(design, RESIDUAL_BN, options)


@pytest.mark.parametrize(("fraction", "halvings"), [("1/2", 1), ("1/4", 2), ("1/16", 4), (" 1 / 8 ", 3)])
def test_a_fraction_is_a_number_of_halvings(fraction: str, halvings: int) -> None:
    assert halvings_of(fraction) == halvings


@pytest.mark.parametrize("fraction", ["1/1", "1/0", "1/6", "2/4", "0.5", "half", "1/-2", ""])
def test_a_malformed_fraction_is_refused(fraction: str) -> None:
    with pytest.raises(ConfigError, match="must be 1/2"):
        halvings_of(fraction)
