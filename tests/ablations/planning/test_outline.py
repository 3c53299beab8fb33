"""The cheap plan: which rows are cells of their own, and why the others are left out."""

import json
from collections.abc import Mapping

import pytest

from ablations.planning.outline import Base, LostRow, Outline, check_whole, outline
from ablations.space.cells import canonical_levels
from ablations.space.conditions import value_of
from ablations.space.designs import Listing, rows_of
from ablations.space.factors import FACTORS, REFERENCE, level_text
from ablations.space.rows import full
from ablations.space.rules import Backbone, ImpossibleCell
from bbcu.errors import ConfigError
from bbcu.model.methods import METHODS

SRRESNET = Backbone("srresnet", 64)


def bbcu(texts: Mapping[str, str]) -> Base:
    return Base(REFERENCE, SRRESNET)


def published(texts: Mapping[str, str]) -> Base:
    """The base of a row that may choose a method and a width, as a config would have it."""
    method = METHODS[texts.get("method", "bbcu")]
    return Base(method.all_levels, Backbone("srresnet", int(texts.get("channels", "64"))), {"task": "sr_x2"})


def reasons_of(found: Outline) -> list[tuple[tuple[str, ...], str]]:
    return [(lost.row, lost.reason) for lost in found.left_out]


@pytest.mark.parametrize(
    ("rows", "exclude", "kept", "left_out"),
    [
        pytest.param([()], [], [()], [], id="the base as it is"),
        pytest.param(
            [("bn=pre",), ("bn=post",), ("bn=pre",)],
            [],
            [("bn=pre",), ("bn=post",)],
            [(("bn=pre",), "same as bn=pre: asked for twice")],
            id="asked for twice",
        ),
        pytest.param(
            [("align=auto",), ("align=130",), ("align=1.3e2",), ("align=65",)],
            [],
            [("align=auto",), ("align=65",)],
            [
                (("align=130",), "same as align=auto: asked for twice, since align=auto is 130 here"),
                (("align=1.3e2",), "same as align=auto: asked for twice, since align=auto is 130 here"),
            ],
            id="one number in several spellings",
        ),
        pytest.param(
            [("binarize=[body,up]",), ("binarize=[up, body]",)],
            [],
            [("binarize=[body,up]",)],
            [(("binarize=[up, body]",), "same as binarize=[body,up]: asked for twice")],
            id="one list in two orders",
        ),
        pytest.param(
            [("residual=false", "act=inside"), ("residual=False", "act=after")],
            [],
            [("residual=false", "act=inside")],
            [
                (
                    ("residual=False", "act=after"),
                    "same as residual=false act=inside: "
                    "no residual: there is no add for the activation to stand before or after",
                )
            ],
            id="the same network, by a rule",
        ),
        pytest.param(
            [("residual=false", "act=after"), ("residual=false", "act=inside")],
            [],
            [("residual=false", "act=after")],
            [
                (
                    ("residual=false", "act=inside"),
                    "same as residual=false act=after: "
                    "no residual: there is no add for the activation to stand before or after",
                )
            ],
            id="the same network, by a rule on the row before",
        ),
        pytest.param(
            [("act=after", "act_fn=hardtanh"), ("act=after", "act_fn=relu")],
            [],
            [("act=after", "act_fn=relu")],
            [
                (
                    ("act=after", "act_fn=hardtanh"),
                    "impossible: hardtanh after the add cuts the stream to [-1, 1], "
                    "and an alignment above 1 lives outside",
                )
            ],
            id="no network at all",
        ),
        pytest.param(
            [("bn=pre",), ("bn=post",), ("bn=out",)],
            ["bn==post", "bn in [post,out]"],
            [("bn=pre",)],
            [(("bn=post",), 'excluded by "bn=post"'), (("bn=out",), 'excluded by "bn in [post,out]"')],
            id="excluded, by the first condition that holds",
        ),
        pytest.param(
            [("act=after", "act_fn=hardtanh")],
            ["act=after"],
            [],
            [(("act=after", "act_fn=hardtanh"), 'excluded by "act=after"')],
            id="excluded comes before impossible",
        ),
        pytest.param(
            [("residual=false", "act=after"), ("residual=false", "act=inside")],
            ["act=after"],
            [("residual=false", "act=inside")],
            [(("residual=false", "act=after"), 'excluded by "act=after"')],
            id="a condition is on what is asked for, not on what it becomes",
        ),
        pytest.param(
            [("bn=none",), ("bn=post",)],
            ["align>100"],
            [("bn=post",)],
            [(("bn=none",), 'excluded by "align>100"')],
            id="auto is the number that it stands for in each row",
        ),
        pytest.param(
            [("channels=32",), ("channels=64",)],
            ["channels<64"],
            [("channels=64",)],
            [(("channels=32",), 'excluded by "channels<64"')],
            id="a condition on a key of the row",
        ),
        pytest.param(
            [("bn=pre",)],
            ["network=srresnet and channels=64"],
            [],
            [(("bn=pre",), 'excluded by "network=srresnet and channels=64"')],
            id="a condition on the backbone",
        ),
    ],
)
def test_rows_are_kept_or_left_out_with_a_reason(
    rows: list[tuple[str, ...]],
    exclude: list[str],
    kept: list[tuple[str, ...]],
    left_out: list[tuple[tuple[str, ...], str]],
) -> None:
    found = outline(rows, published, exclude)
    assert (found.kept, reasons_of(found)) == (tuple(kept), left_out)


def test_a_method_is_the_base_and_what_is_typed_wins() -> None:
    rows = full({"method": ["bbcu", "reactnet"], "act": ["inside", "after"]})
    found = outline(rows, published, ["bn=post and act=after"])
    assert reasons_of(found) == [(("method=reactnet", "act=after"), 'excluded by "bn=post and act=after"')]


def test_a_width_decides_what_auto_is() -> None:
    rows = [("channels=64", "align=auto"), ("channels=64", "align=65"), ("channels=32", "align=auto")]
    found = outline([*rows, ("channels=32", "align=65")], published)
    assert found.kept == tuple(rows)
    reason = "same as channels=32 align=auto: asked for twice, since align=auto is 65 here"
    assert reasons_of(found) == [(("channels=32", "align=65"), reason)]


def test_a_base_is_asked_for_once_for_each_combination_of_other_keys() -> None:
    asked = []

    def base_of(texts: Mapping[str, str]) -> Base:
        asked.append(dict(texts))
        return published(texts)

    outline(full({"method": ["bbcu", "bnn"], "bn": ["pre", "post"], "train.lr": ["1e-3"], "act": ["none"]}), base_of)
    assert asked == [{"method": "bbcu", "train.lr": "1e-3"}, {"method": "bnn", "train.lr": "1e-3"}]


@pytest.mark.parametrize(
    ("rows", "number"),
    [
        pytest.param(
            [("method=bbcu", "bn=pre"), ("method=full_precision", "binarize=[body]", "bn=pre")], 2, id="texts"
        ),
        pytest.param([("train.lr=1e-3",), ("train.lr=0.001",)], 1, id="a number in two spellings"),
        pytest.param([("x=1",), ("x=true",)], 2, id="one is not true"),
        pytest.param([("x=1", "y=2"), ("y=2", "x=1")], 1, id="in any order"),
    ],
)
def test_other_keys_tell_cells_apart_by_their_texts(rows: list[tuple[str, ...]], number: int) -> None:
    assert len(outline(rows, published).kept) == number


def test_a_setting_tells_cells_apart_exactly() -> None:
    def base_of(texts: Mapping[str, str]) -> Base:
        base = published(texts)
        return Base(base.levels, base.backbone, setting="one setting")

    rows = [("method=bbcu", "bn=pre"), ("method=full_precision", "binarize=[body]", "bn=pre")]
    found = outline(rows, base_of)
    assert reasons_of(found) == [(rows[1], "same as method=bbcu bn=pre: asked for twice")]
    assert found.left_out[0].same_as == rows[0]


def test_a_base_answers_for_factors_that_are_not_to_be_read() -> None:
    asked = []

    def base_of(texts: Mapping[str, str]) -> Base:
        asked.append(dict(texts))
        return Base({**REFERENCE, "align": 32 if texts["align"] == "${channels}" else texts["align"]}, SRRESNET)

    found = outline([("align=${channels}",), ("align=auto",)], base_of, ["align<100"], reads_factors=False)
    assert asked == [{"align": "${channels}"}, {"align": "auto"}]
    assert found.kept == (("align=auto",),)


def test_a_condition_without_effect_is_told() -> None:
    found = outline([("bn=pre",), ("bn=post",)], bbcu, ["bn=post", "bn in [post]", "act=none"])
    assert found.idle == ("bn in [post]", "act=none")


def test_a_condition_may_ask_about_what_the_base_knows() -> None:
    assert outline([()], published, ["task=sr_x2"]).kept == ()


@pytest.mark.parametrize(
    ("rows", "exclude", "message"),
    [
        pytest.param([("bn=pre",), ("bn=psot",)], [], "bn=psot: unknown level.*did you mean post", id="a level"),
        pytest.param([("align='130'",)], [], "align=130: unknown level", id="a number in quotes is a text"),
        pytest.param([("bn=pre",)], ["tsak=sr_x2"], r"column 1: unknown key 'tsak' \(did you mean task", id="a key"),
        pytest.param([("bn=pre",)], ["bn="], "column 4: expected a value", id="a condition"),
        pytest.param([("bn=pre",)], ["__import__('os')"], "column 1: unknown key '__import__'", id="python"),
    ],
)
def test_what_a_user_can_mend_is_refused(rows: list[tuple[str, ...]], exclude: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        outline(rows, published, exclude)
    assert not isinstance(refused.value, ImpossibleCell)


def form_of(row: tuple[str, ...]) -> str:
    """The canonical form of a row, or why it has none, worked out on its own."""
    levels = {key: value_of(text) for key, _, text in (text.partition("=") for text in row)}
    try:
        return json.dumps(canonical_levels(levels, SRRESNET).factors)
    except ImpossibleCell as error:
        return f"impossible: {error}"


def test_the_plan_of_a_large_draw_agrees_with_each_row_on_its_own() -> None:
    sweep = {name: [level_text(level) for level in factor.levels] for name, factor in FACTORS.items()}
    rows = rows_of("random", {**sweep, "align": ["auto", "1", "130"]}, {"cells": 3000}).rows
    found = outline(rows, bbcu)
    reasons = dict(reasons_of(found))
    first_with: dict[str, tuple[str, ...]] = {}
    for row in rows:
        form = form_of(row)
        if form.startswith("impossible"):
            assert reasons.pop(row) == form
        elif form in first_with:
            assert reasons.pop(row).startswith(f"same as {' '.join(first_with[form])}: ")
        else:
            first_with[form] = row
    assert found.kept == tuple(first_with.values())
    assert not reasons


# --- a design that needs every row ------------------------------------------------------------------------------------

FRACTION = {"residual": ["true", "false"], "act": ["inside", "after"], "bn": ["none", "post"]}


def test_a_fraction_that_lost_a_row_is_refused() -> None:
    listing = rows_of("fractional", FRACTION, {"fraction": "1/2"})
    found = outline(listing.rows, bbcu, ["residual=false and act=after"])
    with pytest.raises(ConfigError, match=r"^1 of 4 rows of the fraction .* The first is residual=false act=after"):
        check_whole(listing, found)


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        pytest.param(Listing((("bn=pre",),), whole=True), Outline((("bn=pre",),), ()), id="a fraction with every row"),
        pytest.param(
            Listing((("bn=pre",),)), Outline((), (LostRow(("bn=pre",), "impossible: x"),)), id="another design"
        ),
    ],
)
def test_a_design_that_stands_is_let_through(listing: Listing, found: Outline) -> None:
    check_whole(listing, found)
