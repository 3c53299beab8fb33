"""Which rows of a design are trained, and why the others are left out."""

import json
from collections.abc import Mapping

import pytest

from ablations.planning.outline import LeftOutRow, Outline, RowDefaults, check_complete, outline, split
from ablations.space.cells import canonical_levels
from ablations.space.conditions import value_of
from ablations.space.designs import Listing, rows_of
from ablations.space.factors import FACTORS, REFERENCE, level_text
from ablations.space.rows import full
from ablations.space.rules import Backbone, ImpossibleCell
from bbcu.errors import ConfigError
from bbcu.model.methods import METHODS

SRRESNET = Backbone("srresnet", 64)


def bbcu(texts: Mapping[str, str]) -> RowDefaults:
    return RowDefaults(REFERENCE, SRRESNET, setting=None)


def published(texts: Mapping[str, str]) -> RowDefaults:
    """The defaults of rows that may set a method, a width and a learning rate."""
    method, channels = texts.get("method", "bbcu"), int(texts.get("channels", "64"))
    setting = (channels, float(texts.get("train.lr", "1e-3")))
    return RowDefaults(METHODS[method].all_levels, Backbone("srresnet", channels), setting, {"task": "sr_x2"})


def left_out_in(found: Outline) -> list[tuple[tuple[str, ...], str]]:
    return [(entry.row, entry.reason) for entry in found.left_out]


NO_ADD = "no residual: there is no add for the activation to stand before or after"
HARDTANH = "hardtanh after the add cuts the stream to [-1, 1], and an alignment above 1 lives outside"
IS_130 = "same as align=auto: asked for twice, since align=auto is 130 here"


def rows_in(text: str) -> tuple[tuple[str, ...], ...]:
    """``a=1 & b=2; a=2`` as ``(("a=1", "b=2"), ("a=2",))``."""
    return tuple(tuple(row.split(" & ")) for row in text.split("; ") if row)


@pytest.mark.parametrize(
    ("rows", "exclude", "kept", "left_out"),
    [
        pytest.param(
            "bn=pre; bn=post; bn=pre", [], "bn=pre; bn=post", {"bn=pre": "same as bn=pre: asked for twice"}, id="twice"
        ),
        pytest.param(
            "align=auto; align=130; align=1.3e2; align=65",
            [],
            "align=auto; align=65",
            {"align=130": IS_130, "align=1.3e2": IS_130},
            id="one number in several spellings",
        ),
        pytest.param(
            "binarize=[body,up]; binarize=[up, body]",
            [],
            "binarize=[body,up]",
            {"binarize=[up, body]": "same as binarize=[body,up]: asked for twice"},
            id="one list in two orders",
        ),
        pytest.param(
            "residual=false & act=inside; residual=False & act=after",
            [],
            "residual=false & act=inside",
            {"residual=False & act=after": f"same as residual=false act=inside: {NO_ADD}"},
            id="a rule merges it with an earlier row",
        ),
        pytest.param(
            "residual=false & act=after; residual=false & act=inside",
            [],
            "residual=false & act=after",
            {"residual=false & act=inside": f"same as residual=false act=after: {NO_ADD}"},
            id="a rule merges an earlier row with it",
        ),
        pytest.param(
            "act=after & act_fn=hardtanh; act=after & act_fn=relu",
            [],
            "act=after & act_fn=relu",
            {"act=after & act_fn=hardtanh": f"impossible: {HARDTANH}"},
            id="impossible",
        ),
        pytest.param(
            "bn=pre; bn=post; bn=out",
            ["bn==post", "bn in [post,out]"],
            "bn=pre",
            {"bn=post": 'excluded by "bn=post"', "bn=out": 'excluded by "bn in [post,out]"'},
            id="excluded by the first condition that holds",
        ),
        pytest.param(
            "act=after & act_fn=hardtanh",
            ["act=after"],
            "",
            {"act=after & act_fn=hardtanh": 'excluded by "act=after"'},
            id="excluded before impossible",
        ),
        pytest.param(
            "residual=false & act=after; residual=false & act=inside",
            ["act=after"],
            "residual=false & act=inside",
            {"residual=false & act=after": 'excluded by "act=after"'},
            id="conditions apply before the canonical form",
        ),
        pytest.param(
            "bn=none; bn=post", ["align>100"], "bn=post", {"bn=none": 'excluded by "align>100"'}, id="auto is a number"
        ),
        pytest.param(
            "channels=32; channels=64",
            ["channels<64"],
            "channels=64",
            {"channels=32": 'excluded by "channels<64"'},
            id="another key",
        ),
        pytest.param(
            "bn=pre",
            ["network=srresnet and channels=64"],
            "",
            {"bn=pre": 'excluded by "network=srresnet and channels=64"'},
            id="a condition on the network",
        ),
    ],
)
def test_rows_are_kept_or_left_out_with_a_reason(
    rows: str, exclude: list[str], kept: str, left_out: dict[str, str]
) -> None:
    found = outline(rows_in(rows), published, exclude)
    assert found.kept == rows_in(kept)
    assert left_out_in(found) == [(rows_in(row)[0], reason) for row, reason in left_out.items()]


def test_a_row_that_sets_nothing_is_kept() -> None:
    assert outline([()], published) == Outline(((),), ())


def test_a_factor_of_the_row_overrides_its_method() -> None:
    rows = full({"method": ["bbcu", "reactnet"], "act": ["inside", "after"]})
    found = outline(rows, published, ["bn=post and act=after"])
    assert left_out_in(found) == [(("method=reactnet", "act=after"), 'excluded by "bn=post and act=after"')]


def test_auto_depends_on_the_width_of_the_row() -> None:
    rows = [("channels=64", "align=auto"), ("channels=64", "align=65"), ("channels=32", "align=auto")]
    found = outline([*rows, ("channels=32", "align=65")], published)
    assert found.kept == tuple(rows)
    reason = "same as channels=32 align=auto: asked for twice, since align=auto is 65 here"
    assert left_out_in(found) == [(("channels=32", "align=65"), reason)]


def test_defaults_are_computed_once_for_each_combination_of_other_keys() -> None:
    calls = []

    def defaults_of(texts: Mapping[str, str]) -> RowDefaults:
        calls.append(dict(texts))
        return published(texts)

    outline(
        full({"method": ["bbcu", "bnn"], "bn": ["pre", "post"], "train.lr": ["1e-3"], "act": ["none"]}), defaults_of
    )
    assert calls == [{"method": "bbcu", "train.lr": "1e-3"}, {"method": "bnn", "train.lr": "1e-3"}]


def test_rows_are_the_same_only_within_one_setting() -> None:
    rows = [("method=bbcu", "bn=pre"), ("method=full_precision", "binarize=[body]", "bn=pre")]
    found = outline([*rows, ("train.lr=1e-4", "bn=pre")], published)
    assert found.kept == (rows[0], ("train.lr=1e-4", "bn=pre"))
    assert left_out_in(found) == [(rows[1], "same as method=bbcu bn=pre: asked for twice")]
    assert found.left_out[0].same_as == rows[0]


def test_the_defaults_have_the_factors_that_only_hydra_can_resolve() -> None:
    calls = []

    def defaults_of(texts: Mapping[str, str]) -> RowDefaults:
        calls.append(dict(texts))
        align = 32 if texts["align"] == "${channels}" else texts["align"]
        return RowDefaults({**REFERENCE, "align": align}, SRRESNET, setting=None)

    found = outline([("align=${channels}",), ("align=auto",)], defaults_of, ["align<100"], reads_factors=False)
    assert calls == [{"align": "${channels}"}, {"align": "auto"}]
    assert found.kept == (("align=auto",),)


def test_conditions_that_excluded_nothing_more_are_listed() -> None:
    found = outline([("bn=pre",), ("bn=post",)], bbcu, ["bn=post", "bn in [post]", "act=none"])
    assert found.unused_conditions == ("bn in [post]", "act=none")


def test_a_condition_may_read_what_the_defaults_know() -> None:
    assert outline([()], published, ["task=sr_x2"]).kept == ()


@pytest.mark.parametrize(
    ("rows", "exclude", "message"),
    [
        pytest.param([("bn=pre",), ("bn=psot",)], [], "bn=psot: unknown level.*did you mean post", id="unknown level"),
        pytest.param([("align='130'",)], [], "align=130: unknown level", id="quoted number"),
        pytest.param([("bn=pre",)], ["bn="], "column 4: expected a value", id="a wrong condition"),
    ],
)
def test_a_mistake_of_the_user_is_refused(rows: list[tuple[str, ...]], exclude: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        outline(rows, published, exclude)
    assert not isinstance(refused.value, ImpossibleCell)


def test_a_large_outline_agrees_with_the_canonical_form_of_each_row() -> None:
    sweep = {name: [level_text(level) for level in factor.levels] for name, factor in FACTORS.items()}
    rows = rows_of("random", {**sweep, "align": ["auto", "1", "130"]}, {"cells": 3000}).rows
    found = outline(rows, bbcu)
    reasons = dict(left_out_in(found))
    first_with: dict[str, tuple[str, ...]] = {}
    for row in rows:
        try:
            levels = {key: value_of(text) for key, text in map(split, row)}
            form = json.dumps(canonical_levels(levels, SRRESNET).factors)
        except ImpossibleCell as error:
            why = f"impossible: {error}"
        else:
            first = first_with.setdefault(form, row)
            if first is row:
                continue
            why = f"same as {' '.join(first)}: "
        assert reasons.pop(row).startswith(why)
    assert found.kept == tuple(first_with.values())
    assert not reasons


FRACTION = {"residual": ["true", "false"], "act": ["inside", "after"], "bn": ["none", "post"]}


def test_a_fraction_without_one_of_its_rows_is_refused() -> None:
    listing = rows_of("fractional", FRACTION, {"fraction": "1/2"})
    found = outline(listing.rows, bbcu, ["residual=false and act=after"])
    with pytest.raises(ConfigError, match=r"^1 of 4 rows of the fraction .* The first is residual=false act=after"):
        check_complete(listing, found)


@pytest.mark.parametrize(
    ("needs_every_row", "found"),
    [
        pytest.param(True, Outline((("bn=pre",),), ()), id="a fraction with every row"),
        pytest.param(False, Outline((), (LeftOutRow(("bn=pre",), "impossible: x"),)), id="another design"),
    ],
)
def test_a_usable_design_passes(needs_every_row: bool, found: Outline) -> None:
    """No assert: a refusal would raise."""
    check_complete(Listing((("bn=pre",),), needs_every_row=needs_every_row), found)
