"""Which cells of a study form an intervention, and what it is called."""

import itertools
import time
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.space.cells import canonical_levels, combinations
from ablations.space.factors import FACTORS, REFERENCE, Factor, Phrase, level_text
from ablations.space.interventions import (
    FULL,
    CellLevels,
    Change,
    Comparison,
    Intervention,
    between,
    by_part,
    comparisons,
    quartets,
    reference_cell,
    steps,
)
from ablations.space.rules import Backbone, ImpossibleCell
from bbcu.errors import ConfigError

SRRESNET = Backbone("srresnet", 32)
LEVELS = {name: level_text(level) for name, level in REFERENCE.items()}

Rows = Iterable[Mapping[str, object]]


def study(rows: Rows) -> dict[str, CellLevels]:
    """The cells of these rows, each of which names what is not at the reference; the same network is listed once.

    A cell is called by its levels as typed, ``bn=post``, and the reference is called ``bbcu``.
    """
    cells: dict[str, CellLevels] = {}
    for row in rows:
        try:
            canonical = canonical_levels({**REFERENCE, **row}, SRRESNET)
        except ImpossibleCell:
            continue
        asked = {name: level_text(level) for name, level in canonical.levels.items()}
        recorded = {name: level_text(level) for name, level in canonical.factors.items()}
        name = " ".join(f"{key}={level}" for key, level in asked.items() if level != LEVELS[key]) or "bbcu"
        cells.setdefault(name, CellLevels(recorded, asked))
    return cells


def grid(**levels: Iterable[object]) -> dict[str, CellLevels]:
    return study(combinations({name: list(values) for name, values in levels.items()}))


def trained(*rows: Mapping[str, str]) -> dict[str, CellLevels]:
    """Cells called ``0``, ``1``, ... whose keys are recorded as they were given."""
    return {str(number): CellLevels(row, row) for number, row in enumerate(rows)}


def intervention(**changes: tuple[str, str]) -> Intervention:
    return Intervention(tuple(Change(key, *levels) for key, levels in changes.items()))


def part(name: str) -> Intervention:
    return Intervention((Change(f"binarize.{name}", "full", "binary"),))


def by_name(found: Iterable[Comparison]) -> dict[str, tuple[tuple[str, str], ...]]:
    return {each.intervention.in_words: each.pairs for each in found}


# --- what an intervention is called -----------------------------------------------------------------------------------

NAMES = [
    (intervention(residual=("true", "false")), "Without the residual", "residual=false"),
    (
        intervention(residual=("true", "block")),
        "A residual per block in place of one per convolution",
        "residual=block",
    ),
    (intervention(residual=("false", "true")), "A residual per convolution added", "residual=true"),
    (intervention(bn=("none", "post")), "BatchNorm after the convolution added", "bn=post"),
    (
        intervention(bn=("none", "post"), align=("65", "1")),
        "BatchNorm after the convolution in place of alignment 65",
        "bn=post align=1",
    ),
    (intervention(bn=("pre", "out")), "BatchNorm after the add in place of one before the sign", "bn=out"),
    (intervention(align=("65", "1")), "Without alignment 65", "align=1"),
    (intervention(align=("1", "65")), "Alignment 65 added", "align=65"),
    (intervention(align=("65", "130")), "Alignment 130 in place of 65", "align=130"),
    (intervention(act=("inside", "after")), "Activation after the add in place of before it", "act=after"),
    (intervention(act=("inside", "none")), "Without activation", "act=none"),
    (intervention(act_fn=("rprelu", "relu")), "ReLU in place of RPReLU", "act_fn=relu"),
    (intervention(threshold=("true", "false")), "Without the threshold", "threshold=false"),
    (intervention(surrogate=("quadratic", "ede")), "The EDE surrogate in place of the quadratic one", "surrogate=ede"),
    (
        intervention(surrogate=("quadratic", "parts.Tri")),
        "Surrogate Tri in place of the quadratic one",
        "surrogate=parts.Tri",
    ),
    (intervention(weight=("l1", "irnet")), "The IR-Net weight binariser in place of the l1 one", "weight=irnet"),
    (
        intervention(act=("inside", "first")),
        "Activation after the add in the first unit of each pair in place of before it",
        "act=first",
    ),
    (
        intervention(residual=("true", "scaled")),
        "A residual times a number in place of one per convolution",
        "residual=scaled",
    ),
    (
        intervention(bn=("post", "branch")),
        "BatchNorm between activation and add in place of one after the convolution",
        "bn=branch",
    ),
    (
        intervention(threshold=("true", "affine")),
        "An affine threshold in place of one that only shifts",
        "threshold=affine",
    ),
    (
        intervention(threshold=("affine", "elastic")),
        "An elastic threshold in place of an affine one",
        "threshold=elastic",
    ),
    (intervention(weight=("l1", "srb")), "The second-order weight binariser in place of the l1 one", "weight=srb"),
    (intervention(rescale=("none", "both")), "A rescale by pixel and channel added", "rescale=both"),
    (
        intervention(rescale=("both", "doubled")),
        "A doubled rescale by pixel and channel in place of one by pixel and channel",
        "rescale=doubled",
    ),
    (intervention(start=("scratch", "full")), "A start in full precision added", "start=full"),
    (
        intervention(start=("full", "two_step")),
        "A start with binary signs in place of one in full precision",
        "start=two_step",
    ),
    (intervention(distil=("none", "output")), "Distillation of the output added", "distil=output"),
    (
        intervention(start=("scratch", "full"), distil=("attention", "none")),
        "A start in full precision in place of distillation of attention maps",
        "start=full distil=none",
    ),
    (part("head"), "A binary head", "binarize +head"),
    (part("up"), "Binary upsampling", "binarize +up"),
    (Intervention((Change("binarize.tail", "binary", "full"),)), "Without a binary tail", "binarize -tail"),
    (
        Intervention((Change("binarize.body", "full", "binary"), Change("align", "1", "65"))),
        "A binary body with alignment 65",
        "binarize +body align=65",
    ),
    (intervention(channels=("32", "16")), "16 channels in place of 32", "channels=16"),
    (intervention(blocks=("4", "1")), "1 block in place of 4", "blocks=1"),
    (intervention(**{"train.lr": ("0.001", "0.0004")}), "train.lr 0.0004 in place of 0.001", "train.lr=0.0004"),
    (
        intervention(**{"network.unit": ("binary", "parts.ScaledUnit")}),
        "network.unit ScaledUnit in place of binary",
        "network.unit=parts.ScaledUnit",
    ),
    (
        intervention(**{"network.accumulate": ("False", "True")}),
        "network.accumulate=true in place of false",
        "network.accumulate=True",
    ),
    (
        intervention(bn=("none", "post"), threshold=("true", "false"), align=("65", "1")),
        "BatchNorm after the convolution in place of the threshold and alignment 65",
        "bn=post threshold=false align=1",
    ),
    (
        intervention(act=("after", "inside"), align=("1", "65")),
        "Activation before the add in place of after it, alignment 65 added",
        "act=inside align=65",
    ),
    (
        intervention(channels=("32", "16"), act=("inside", "none"), bn=("pre", "post")),
        "16 channels in place of 32, BatchNorm after the convolution in place of one before the sign, "
        "without activation",
        "channels=16 act=none bn=post",
    ),
]


@pytest.mark.parametrize(("change", "words", "typed"), NAMES, ids=[typed for _, _, typed in NAMES])
def test_an_intervention_says_what_appears_and_what_goes(change: Intervention, words: str, typed: str) -> None:
    assert (change.in_words, change.as_typed) == (words, typed)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        pytest.param({"act_fn": ("hardtanh", "rprelu")}, "RPReLU in place of Hardtanh", id="name"),
        pytest.param(
            {"residual": ("block", "true")}, "a residual per convolution in place of one per block", id="noun"
        ),
    ],
)
def test_a_phrase_within_a_sentence_keeps_the_capitals_of_names(
    changes: dict[str, tuple[str, str]], phrase: str
) -> None:
    assert intervention(**changes).phrase == phrase


def test_an_activation_function_goes_with_the_activation() -> None:
    gone = intervention(act=("inside", "none"), act_fn=("relu", "rprelu"))
    assert gone.in_words == "Without activation and ReLU"


def test_every_declared_level_is_in_words() -> None:
    for factor in FACTORS.values():
        named = factor.members or [level for level in factor.levels if not factor.numeric]
        assert set(named) <= set(factor.phrases), factor.name


def test_a_factor_that_a_user_declares_is_called_by_its_name_or_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = Factor("gain", ("none", "channel", "unit"), "none", "a gain", unit="my.Unit")
    monkeypatch.setitem(FACTORS, "gain", gain)
    assert intervention(gain=("none", "unit")).in_words == "Gain unit added"
    assert intervention(gain=("channel", "unit")).in_words == "Gain unit in place of channel"
    spoken = Factor("gain", ("none", "unit"), "none", "a gain", unit="my.Unit", phrases={"unit": Phrase("a gain")})
    monkeypatch.setitem(FACTORS, "gain", spoken)
    assert intervention(gain=("none", "unit")).in_words == "A gain added"


def test_a_phrase_for_a_level_that_a_factor_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="phrase for double, which is not a level"):
        Factor("gain", ("none", "unit"), "none", "a gain", unit="my.Unit", phrases={"double": Phrase("two gains")})


# --- the reference cell -----------------------------------------------------------------------------------------------


def test_the_reference_cell_has_the_most_keys_at_their_base() -> None:
    cells = grid(bn=["post", "none"], act=["after", "inside"])
    assert reference_cell(cells, LEVELS) == "bbcu"


def test_the_base_of_a_key_that_no_cell_has_at_the_reference_is_that_of_the_first_cell() -> None:
    cells = grid(bn=["post", "pre"], act=["after", "inside"])
    assert reference_cell(cells, LEVELS) == "bn=post"
    assert reference_cell(cells, {**LEVELS, "bn": "pre"}) == "bn=pre"


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_one_change_has_a_pair_in_each_context_the_reference_first() -> None:
    cells = grid(threshold=[False, True], surrogate=["clip", "quadratic"], weight=["plain", "l1"])
    found = by_name(comparisons(cells, "bbcu"))
    assert found["Without the threshold"] == (
        ("bbcu", "threshold=false"),
        ("surrogate=clip", "threshold=false surrogate=clip"),
        ("weight=plain", "threshold=false weight=plain"),
        ("surrogate=clip weight=plain", "threshold=false surrogate=clip weight=plain"),
    )
    assert len(found) == 3


def test_two_interventions_under_one_factor_never_meet() -> None:
    found = by_name(comparisons(grid(bn=["none", "post"], align=["auto", 1]), "bbcu"))
    assert found == {
        "BatchNorm after the convolution in place of alignment 65": (("bbcu", "bn=post"),),
        "Without alignment 65": (("bbcu", "align=1"),),
        "BatchNorm after the convolution added": (("align=1", "bn=post"),),
    }


def test_a_nested_factor_is_compared_only_where_it_exists() -> None:
    """``align=1`` with a BatchNorm is ``align=auto``: the plan lists that network once."""
    cells = grid(bn=["none", "pre", "post"], align=["auto", 1], threshold=[True, False])
    assert by_name(comparisons(cells, "bbcu"))["Without alignment 65"] == (
        ("bbcu", "align=1"),
        ("threshold=false", "align=1 threshold=false"),
    )


def test_cells_that_are_one_network_are_in_one_pair() -> None:
    """Without an activation all activation functions are one network."""
    cells = grid(act=["inside", "none"], act_fn=["rprelu", "prelu", "relu"])
    found = by_name(comparisons(cells, "bbcu"))
    assert found["Without activation"] == (("bbcu", "act=none"),)
    assert found["PReLU in place of RPReLU"] == (("bbcu", "act_fn=prelu"),)


def test_a_factor_without_an_effect_does_not_hide_a_change_at_the_reference_cell() -> None:
    cells = study([{"act_fn": "relu"}, {"act_fn": "relu", "act": "none"}])
    (found,) = comparisons(cells, "act_fn=relu")
    assert found.intervention.in_words == "Without activation and ReLU"
    assert found.at_reference == ("act_fn=relu", "act=none")


def test_a_part_is_made_binary_in_the_context_of_the_other_parts() -> None:
    cells = study({"binarize": parts} for parts in (["body"], ["body", "up"], ["body", "tail"], ["body", "up", "tail"]))
    found = comparisons(cells, "bbcu")
    assert [each.intervention for each in found] == [part("up"), part("tail")]
    assert found[0].pairs == (("bbcu", "binarize=[body,up]"), ("binarize=[body,tail]", "binarize=[body,up,tail]"))


def test_a_part_goes_from_full_to_binary_at_the_reference_too() -> None:
    (found,) = comparisons(study([{}, {"binarize": []}]), "bbcu")
    assert found.intervention.in_words == "A binary body with alignment 65"
    assert found.at_reference == ("binarize=[]", "bbcu")


def test_a_network_without_binary_parts_has_nothing_of_a_binary_unit_to_lose() -> None:
    """``threshold=false`` where nothing is binary is recorded as ``threshold=true``."""
    (found,) = comparisons(study([{"threshold": False}, {"threshold": False, "binarize": []}]), "threshold=false")
    assert found.intervention.in_words == "A binary body with alignment 65"
    assert found.intervention.as_typed == "align=65 binarize +body threshold=false"


@pytest.mark.parametrize("training", [{"start": "full"}, {"distil": "output"}], ids=str)
def test_a_network_without_binary_parts_has_nothing_of_a_binary_training_to_lose(training: dict[str, object]) -> None:
    """A network in full precision is recorded as trained from scratch and without a teacher."""
    (name, level), *_ = training.items()
    (found,) = comparisons(study([training, {**training, "binarize": []}]), f"{name}={level}")
    assert found.intervention.in_words.startswith("A binary body with alignment 65")
    assert found.at_reference == ("binarize=[]", f"{name}={level}")


def test_keys_that_are_no_factors_are_compared_like_factors() -> None:
    values = {"threshold": ["true", "false"], "train.lr": ["0.001", "0.01"], "network.unit": ["binary", "parts.Scaled"]}
    cells = trained(*combinations(values))
    found = comparisons(cells, "0")
    assert [each.intervention.as_typed for each in found] == [
        "threshold=false",
        "train.lr=0.01",
        "network.unit=parts.Scaled",
    ]
    assert all(len(each.pairs) == 4 for each in found)


def test_the_base_of_such_a_key_may_be_given() -> None:
    cells = trained({"channels": "16"}, {"channels": "32"}, {"channels": "64"})
    found = comparisons(cells, "1", {"channels": "32"})
    assert [each.intervention.in_words for each in found] == [
        "16 channels in place of 32",
        "64 channels in place of 32",
    ]
    assert comparisons(cells, "1", {"channels": "128"})[0].pairs == (("0", "1"),)


def test_a_cell_without_a_key_is_compared_with_none_that_has_it() -> None:
    cells = trained({"act": "inside", "train.lr": "0.001"}, {"act": "inside"}, {"act": "after", "train.lr": "0.001"})
    (found,) = comparisons(cells, "0")
    assert found.pairs == (("0", "2"),)


def test_interventions_away_from_the_reference_come_last() -> None:
    cells = study([{}, {"weight": "plain"}, {"bn": "post", "act": "after"}, {"bn": "pre", "act": "after"}])
    cells |= study([{"act": "after", "bn": "pre", "weight": "plain"}, {"bn": "none", "act": "after"}])
    found = comparisons(cells, "bbcu")
    assert [(each.intervention.as_typed, each.at_reference) for each in found] == [
        ("act=after", ("bbcu", "act=after")),
        ("weight=plain", ("bbcu", "weight=plain")),
        ("bn=post align=1", None),
        ("bn=pre align=1", None),
    ]


def test_the_same_cells_give_the_same_comparisons() -> None:
    cells = grid(bn=["none", "post"], align=["auto", 1], act=["inside", "after"])
    assert comparisons(cells, "bbcu") == comparisons(dict(cells), "bbcu")


FULL_GRID = grid(
    residual=[True, False, "block"],
    bn=["none", "pre", "post", "out"],
    act=["inside", "after", "none"],
    act_fn=["rprelu", "relu"],
    align=["auto", 1],
    binarize=[["body"], ["body", "up"], []],
)


@settings(max_examples=30)
@given(st.sets(st.sampled_from(sorted(FULL_GRID)), min_size=2, max_size=40), st.data())
def test_in_every_pair_the_levels_of_the_intervention_change_and_nothing_else(
    chosen: set[str], data: st.DataObject
) -> None:
    cells = {name: FULL_GRID[name] for name in FULL_GRID if name in chosen}
    reference = data.draw(st.sampled_from(sorted(chosen)))
    seen: set[frozenset[str]] = set()
    for each in comparisons(cells, reference):
        assert each.at_reference == next((pair for pair in each.pairs if reference in pair), None)
        for before, after in each.pairs:
            assert between(before, after, cells).intervention == each.intervention
            assert frozenset((before, after)) not in seen
            seen.add(frozenset((before, after)))


@settings(max_examples=30)
@given(st.sets(st.sampled_from(sorted(FULL_GRID)), min_size=2, max_size=40))
def test_no_pair_of_cells_that_differ_in_one_recorded_factor_from_its_base_is_missed(chosen: set[str]) -> None:
    cells = {name: FULL_GRID[name] for name in FULL_GRID if name in chosen}
    bases = {key: FULL if key.startswith("binarize.") else LEVELS[key] for key in by_part(LEVELS)}
    pairs = {frozenset(pair) for each in comparisons(cells, next(iter(cells))) for pair in each.pairs}
    for one, other in itertools.combinations(cells, 2):
        found = between(one, other, cells).intervention.changes
        asked = [cells[name].asked_parts[found[0].key] for name in (one, other)]
        if len(found) == 1 and asked.count(bases[found[0].key]) == 1:
            assert {one, other} in pairs


def test_two_thousand_cells_are_compared_in_about_a_second() -> None:
    values = {f"key{number}": ["a", "b"] for number in range(11)} | {f"same{number}": ["a"] for number in range(14)}
    cells = trained(*combinations(values))
    start = time.process_time()
    assert [len(each.pairs) for each in comparisons(cells, "0")] == [1024] * 11
    assert time.process_time() - start < 5


# --- chains -----------------------------------------------------------------------------------------------------------

CHAIN: list[dict[str, object]] = [{"act": "after", "align": 1}, {"act": "after", "bn": "post"}, {"act": "after"}, {}]
"""V1 to V4 of the paper."""


def test_the_steps_of_a_chain_are_compared_in_turn() -> None:
    cells = study(CHAIN)
    found = steps(cells, "bbcu")
    assert [each.intervention.in_words for each in found] == [
        "BatchNorm after the convolution added",
        "Alignment 65 in place of BatchNorm after the convolution",
        "Activation before the add in place of after it",
    ]
    assert [each.pairs for each in found] == [(pair,) for pair in itertools.pairwise(cells)]
    assert [each.at_reference for each in found] == [None, None, ("act=after", "bbcu")]


def test_cells_that_record_the_same_levels_show_no_intervention() -> None:
    found = between("0", "1", trained({"bn": "post"}, {"bn": "post"}))
    assert (found.intervention.changes, found.intervention.in_words) == ((), "")


def test_a_key_that_only_one_cell_has_appears_or_goes() -> None:
    cells = trained({"channels": "32"}, {"channels": "32", "train.steps": "500"})
    assert between("0", "1", cells).intervention.in_words == "500 steps added"
    assert between("1", "0", cells).intervention.as_typed == "train.steps=null"


def test_the_last_of_a_chain_is_compared_with_the_first() -> None:
    cells = study(CHAIN)
    found = between(next(iter(cells)), "bbcu", cells, "bbcu")
    assert found.intervention.as_typed == "act=inside align=65"


@pytest.mark.parametrize(
    "cells",
    [
        study([{}, {"act": "after", "bn": "post"}]),
        grid(bn=["none", "post"], act=["inside", "after"]),
        study([{}, {"act": "after"}, {"bn": "post"}]),
        study([{}, {"act": "after", "threshold": False, "weight": "plain"}, {"act": "after", "threshold": False}]),
        trained(*({"blocks": str(number), "channels": str(number // 2)} for number in range(13))),
    ],
    ids=["two cells", "a grid", "one at a time", "a step of three changes", "too many cells"],
)
def test_cells_that_are_no_chain_have_no_steps(cells: dict[str, CellLevels]) -> None:
    assert steps(cells, next(iter(cells))) == ()


# --- interactions -----------------------------------------------------------------------------------------------------


def test_a_quartet_has_both_interventions_alone_and_together() -> None:
    cells = grid(act=["inside", "after"], threshold=[True, False], weight=["l1", "plain"])
    bbcu, plain = quartets(intervention(act=("inside", "after")), intervention(threshold=("true", "false")), cells)
    assert bbcu == ("bbcu", "act=after", "threshold=false", "act=after threshold=false")
    assert plain == tuple(f"{name} weight=plain".removeprefix("bbcu ") for name in bbcu)


def test_interventions_that_change_the_same_key_have_no_quartet() -> None:
    cells = grid(bn=["none", "post"], align=["auto", 1])
    assert quartets(intervention(bn=("none", "post"), align=("65", "1")), intervention(align=("65", "1")), cells) == ()


def test_a_nested_intervention_has_no_quartet_where_it_does_not_exist() -> None:
    """With a BatchNorm there is no alignment to remove, so the network would be compared with itself."""
    cells = grid(bn=["none", "post"], align=["auto", 1])
    assert quartets(intervention(bn=("none", "post")), intervention(align=("65", "1")), cells) == ()


def test_a_quartet_needs_all_four_cells() -> None:
    cells = study([{}, {"act": "after"}, {"threshold": False}])
    assert quartets(intervention(act=("inside", "after")), intervention(threshold=("true", "false")), cells) == ()


def test_a_quartet_of_parts_depends_on_no_other_part() -> None:
    cells = study({"binarize": parts} for parts in (["body"], ["body", "up"], ["body", "tail"], ["body", "up", "tail"]))
    assert len(quartets(part("up"), part("tail"), cells)) == 1
