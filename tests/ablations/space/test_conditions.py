"""Conditions: what they mean, how they are written, and how a wrong one is refused."""

from typing import Any

import pytest

from ablations.space.conditions import MAX_DEPTH, AllOf, AnyOf, Comparison, Not, Value, parse, value_of, value_text
from ablations.space.factors import FACTORS, REFERENCE
from bbcu.errors import ConfigError

KEYS = (*FACTORS, "task", "channels", "train.lr", "note")
SETTING: dict[str, Value] = {"task": "sr_x2", "channels": 32, "train.lr": 1e-3, "note": None}


def levels(**changed: Value) -> dict[str, Value]:
    return {**REFERENCE, **SETTING, **changed}


# --- what holds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "changed", "holds"),
    [
        pytest.param("residual=false", {"residual": False}, True, id="a truth value"),
        pytest.param("residual=False", {"residual": False}, True, id="a truth value in capitals"),
        pytest.param("residual=false", {"residual": "block"}, False, id="other level"),
        pytest.param("bn==post", {"bn": "post"}, True, id="two equals signs"),
        pytest.param("bn != post", {"bn": "pre"}, True, id="not equal"),
        pytest.param("bn!=post", {"bn": "post"}, False, id="equal"),
        pytest.param("bn='post'", {"bn": "post"}, True, id="quoted"),
        pytest.param("act_fn in [relu, hardtanh]", {"act_fn": "relu"}, True, id="in a list"),
        pytest.param("act_fn in [relu,hardtanh]", {"act_fn": "prelu"}, False, id="not in the list"),
        pytest.param("act_fn in []", {"act_fn": "prelu"}, False, id="in an empty list"),
        pytest.param("act_fn not in [relu]", {"act_fn": "prelu"}, True, id="not in a list"),
        pytest.param("surrogate=my.Own", {"surrogate": "my.Own"}, True, id="class of the user"),
        pytest.param("align=130", {"align": 130.0}, True, id="a number, however it is typed"),
        pytest.param("align=1.3e2", {"align": 130.0}, True, id="an exponent"),
        pytest.param("align<130", {"align": 65.0}, True, id="less"),
        pytest.param("align<130", {"align": 130.0}, False, id="not less"),
        pytest.param("align<=130", {"align": 130.0}, True, id="at most"),
        pytest.param("align>9", {"align": 65.0}, True, id="more, as numbers and not as texts"),
        pytest.param("align>=65", {"align": 65.0}, True, id="at least"),
        pytest.param("binarize contains head", {"binarize": ("head", "body")}, True, id="contains"),
        pytest.param("binarize contains head", {"binarize": ("body",)}, False, id="does not contain"),
        pytest.param("binarize=[up,body]", {"binarize": ("body", "up")}, True, id="a list in another order"),
        pytest.param("binarize=[body]", {"binarize": ("body", "up")}, False, id="shorter list"),
        pytest.param("binarize=[body,up]", {"binarize": ("body",)}, False, id="longer list"),
        pytest.param("binarize=[]", {"binarize": ()}, True, id="the empty list"),
        pytest.param("binarize in [[body],[up,body]]", {"binarize": ("body", "up")}, True, id="a list of lists"),
        pytest.param("task=sr_x4", {"task": "sr_x4"}, True, id="a key that is no factor"),
        pytest.param("train.lr<=1e-3", {}, True, id="a number of the setting"),
        pytest.param("channels=32.0", {}, True, id="a whole number with a point"),
        pytest.param("channels=true", {"channels": 1}, False, id="one is not true"),
        pytest.param("note=null", {}, True, id="null"),
        pytest.param("note='null'", {}, False, id="quoted null"),
        pytest.param("task<3", {}, False, id="text has no order"),
        pytest.param("task contains sr", {}, False, id="text is not a list"),
        pytest.param("channels='32'", {}, False, id="quoted number"),
    ],
)
def test_a_comparison(text: str, changed: dict[str, Value], holds: bool) -> None:
    assert parse(text, KEYS).holds(levels(**changed)) is holds


@pytest.mark.parametrize(
    ("text", "align", "holds"),
    [
        pytest.param("align>100", "auto", True, id="auto is its number"),
        pytest.param("align=130", "auto", True, id="auto equals its number"),
        pytest.param("align=auto", 130.0, True, id="the number equals auto"),
        pytest.param("align in [1,auto]", 130.0, True, id="auto in a list"),
        pytest.param("align=auto", 65.0, False, id="another number"),
    ],
)
def test_auto_stands_for_a_number(text: str, align: Value, holds: bool) -> None:
    assert parse(text).holds(levels(align=align), automatic=130.0) is holds


def test_auto_is_a_name_if_it_stands_for_no_number() -> None:
    assert parse("align=auto").holds(levels(align="auto"))
    assert not parse("align>100").holds(levels(align="auto"))


def test_only_the_alignment_is_automatic() -> None:
    assert not parse("task>100", KEYS).holds(levels(task="auto"), automatic=130.0)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bn", ["none", "post"])
@pytest.mark.parametrize("threshold", [True, False])
@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        pytest.param("residual=true or bn=post and threshold=true", lambda r, b, t: r or (b and t), id="and before or"),
        pytest.param("residual=true and bn=post or threshold=true", lambda r, b, t: (r and b) or t, id="and after or"),
        pytest.param("(residual=true or bn=post) and threshold=true", lambda r, b, t: (r or b) and t, id="parentheses"),
        pytest.param("not residual=true and bn=post", lambda r, b, t: (not r) and b, id="not binds before and"),
        pytest.param("not (residual=true and bn=post)", lambda r, b, t: not (r and b), id="not a parenthesis"),
        pytest.param("not not residual=true", lambda r, b, t: r, id="double negation"),
        pytest.param("not (not (residual=true or bn=post))", lambda r, b, t: r or b, id="not in parentheses"),
        pytest.param("((threshold=true))", lambda r, b, t: t, id="parentheses around parentheses"),
    ],
)
def test_how_conditions_combine(text: str, meaning: Any, residual: bool, bn: str, threshold: bool) -> None:
    asked = levels(residual=residual, bn=bn, threshold=threshold)
    assert parse(text).holds(asked) is meaning(residual, bn == "post", threshold)


def test_a_key_without_a_level_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'bn'; valid: act"):
        parse("bn=post").holds({"act": "none"})


# --- how it is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "condition", "canonical"),
    [
        pytest.param(
            "residual == False  and bn!=post",
            AllOf((Comparison("residual", "=", False), Comparison("bn", "!=", "post"))),
            "residual=false and bn!=post",
            id="blanks, signs and capitals",
        ),
        pytest.param(
            "align>1.5 or align = 130.0 or binarize contains 'head'",
            AnyOf(
                (
                    Comparison("align", ">", 1.5),
                    Comparison("align", "=", 130.0),
                    Comparison("binarize", "contains", "head"),
                )
            ),
            "align>1.5 or align=130 or binarize contains head",
            id="numbers and quotes",
        ),
        pytest.param(
            "not(act=after and act_fn in[relu , hardtanh])",
            Not(AllOf((Comparison("act", "=", "after"), Comparison("act_fn", "in", ("relu", "hardtanh"))))),
            "not (act=after and act_fn in [relu,hardtanh])",
            id="not a parenthesis",
        ),
        pytest.param("act not in [after]", Not(Comparison("act", "in", ("after",))), "not act in [after]", id="not in"),
        pytest.param(
            "(bn=pre or bn=post) and (act=none and (threshold=true))",
            AllOf(
                (
                    AnyOf((Comparison("bn", "=", "pre"), Comparison("bn", "=", "post"))),
                    Comparison("act", "=", "none"),
                    Comparison("threshold", "=", True),
                )
            ),
            "(bn=pre or bn=post) and act=none and threshold=true",
            id="only the parentheses that are needed",
        ),
        pytest.param(
            "(bn=pre or (bn=post or act=none))",
            AnyOf((Comparison("bn", "=", "pre"), Comparison("bn", "=", "post"), Comparison("act", "=", "none"))),
            "bn=pre or bn=post or act=none",
            id="or in or",
        ),
        pytest.param("not (not bn=pre)", Comparison("bn", "=", "pre"), "bn=pre", id="double negation"),
        pytest.param(
            "binarize=[up,body]", Comparison("binarize", "=", ("body", "up")), "binarize=[body,up]", id="list"
        ),
        pytest.param(
            r"""note in ["a b",'and','130',x,'"',null]""",
            Comparison("note", "in", ("a b", "and", "130", "x", '"', None)),
            r"""note in ["a b","and","130",x,"\"",null]""",
            id="quotes where they are needed",
        ),
    ],
)
def test_a_condition_and_its_canonical_text(text: str, condition: object, canonical: str) -> None:
    assert parse(text, KEYS) == condition
    assert str(condition) == canonical
    assert parse(canonical, KEYS) == condition


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("true", True, id="true"),
        pytest.param("False", False, id="false in capitals"),
        pytest.param("null", None, id="nothing"),
        pytest.param("none", "none", id="none is a text"),
        pytest.param("130", 130, id="a whole number"),
        pytest.param("-1", -1, id="a negative number"),
        pytest.param("+1_000", 1000, id="digits in groups"),
        pytest.param("9007199254740993", 9007199254740993, id="a large number, exactly"),
        pytest.param("1.", 1.0, id="a point at the end"),
        pytest.param(".5", 0.5, id="a point in front"),
        pytest.param("1e-3", 1e-3, id="an exponent"),
        pytest.param("007", "007", id="leading zeros"),
        pytest.param("0x10", "0x10", id="hexadecimal"),
        pytest.param("1__0", "1__0", id="two underscores"),
        pytest.param("[body, up]", ("body", "up"), id="a list"),
        pytest.param("[]", (), id="an empty list"),
        pytest.param("[[a],1,'b c']", (("a",), 1, "b c"), id="a list in a list"),
        pytest.param("'130'", "130", id="quoted"),
        pytest.param('"it\'s"', "it's", id="a quote in other quotes"),
        pytest.param(r"'it\'s'", "it's", id="an escaped quote"),
        pytest.param("my_module.Steep", "my_module.Steep", id="a dotted path"),
        pytest.param("", "", id="empty"),
        pytest.param("a b", "a b", id="two words"),
        pytest.param("{Set5: /data/set5}", "{Set5: /data/set5}", id="a mapping"),
        pytest.param("[body", "[body", id="an open list"),
    ],
)
def test_the_text_of_a_value_is_typed(text: str, value: Value) -> None:
    read = value_of(text)
    assert read == value
    assert type(read) is type(value)
    assert value_of(value_text(read)) == value


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        pytest.param(
            "act_fm=relu", 1, "unknown key 'act_fm' (did you mean act_fn?); valid: residual", id="an unknown key"
        ),
        pytest.param("bn=post and ('act'=none)", 14, "expected a key, not \"'act'\"", id="a quoted key"),
        pytest.param("bn=post or task.nmae=x", 12, "unknown key 'task.nmae'", id="an unknown key further on"),
        pytest.param(
            "bn=psot", 4, "unknown level 'psot' (did you mean post?); valid: none, pre,", id="an unknown level"
        ),
        pytest.param("act_fn in [relu,tanh]", 11, "unknown level 'tanh'", id="an unknown level in a list"),
        pytest.param("residual=1", 10, "unknown level '1'", id="a number for a truth value"),
        pytest.param("align=-3", 7, "unknown level '-3'; valid: auto, a positive number", id="a negative alignment"),
        pytest.param("binarize=body", 10, "valid: any of head, body, up, tail", id="a part instead of a list"),
        pytest.param(
            "binarize contains foot", 19, "unknown part of binarize 'foot'; valid: head, body", id="an unknown part"
        ),
        pytest.param(
            "bn contains post",
            13,
            "contains needs a list, and bn is not a list",
            id="contains without a list",
        ),
        pytest.param("bn in post", 7, "in needs a list, as in bn in [post]", id="in without a list"),
        pytest.param("bn>3", 4, "> compares numbers; compare bn with 3 by =", id="a factor without order"),
        pytest.param("align>auto", 7, "> compares numbers", id="a name in an order"),
        pytest.param("channels<big", 10, "< compares numbers", id="a text in an order"),
        pytest.param("", 1, "expected a key, but the text ends", id="nothing"),
        pytest.param(
            "bn", 3, "expected =, ==, !=, <, <=, >, >=, not in, in or contains, but the text ends", id="a key alone"
        ),
        pytest.param("bn=", 4, "expected a value, but the text ends", id="no value"),
        pytest.param("bn=and", 4, "expected a value, not 'and'", id="a word of the grammar"),
        pytest.param(
            "bn post", 4, "expected =, ==, !=, <, <=, >, >=, not in, in or contains, not 'post'", id="a missing sign"
        ),
        pytest.param("bn not post", 8, "expected in, not 'post'", id="not without in"),
        pytest.param("bn '=' post", 4, "contains, not \"'='\"", id="a quoted sign"),
        pytest.param("bn=pre act=none", 8, "expected and, or or the end, not 'act'", id="a missing and"),
        pytest.param("bn=pre AND act=none", 8, "expected and, or or the end, not 'AND'", id="and in capitals"),
        pytest.param("bn=pre and", 11, "expected a key, but the text ends", id="nothing after and"),
        pytest.param("bn=pre=post", 7, "expected and, or or the end, not '='", id="two signs"),
        pytest.param("(bn=pre", 8, "expected and, or or ), but the text ends", id="an open parenthesis"),
        pytest.param("bn=pre)", 7, "expected and, or or the end, not ')'", id="an extra parenthesis"),
        pytest.param("bn in [pre post]", 12, "expected , or ], not 'post'", id="a missing comma"),
        pytest.param("bn in [pre", 11, "expected , or ], but the text ends", id="an open list"),
        pytest.param("bn='pre", 4, "cannot read a quote that is not closed", id="an open quote"),
        pytest.param("bn!pre", 3, "cannot read '!'", id="an exclamation mark alone"),
        pytest.param("(" * (MAX_DEPTH + 1) + "bn=pre", MAX_DEPTH + 2, "nested deeper than 50", id="too deep"),
        pytest.param("bn in " + "[" * 60, 7 + MAX_DEPTH + 1, "nested deeper than 50", id="lists too deep"),
    ],
)
def test_a_wrong_condition_is_refused_with_its_column(text: str, column: int, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text, KEYS)
    assert str(refused.value).startswith(f"condition {text!r}, column {column}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "bn=__import__('os')",
        "bn.__class__=str",
        "residual=(lambda: 1)()",
        "bn in [x for x in (1,)]",
        "act_fn=relu; import os",
        "1",
        "True",
    ],
)
def test_python_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="condition "):
        parse(text, KEYS)


def test_the_deepest_allowed_condition_is_parsed() -> None:
    assert parse("(" * MAX_DEPTH + "bn=pre" + ")" * MAX_DEPTH) == Comparison("bn", "=", "pre")


def test_a_condition_may_have_any_number_of_parts() -> None:
    parts = ["(bn=pre)"] * (MAX_DEPTH + 1) + ["binarize in [" + ",".join(["[body]"] * (MAX_DEPTH + 1)) + "]"]
    condition = parse(" or ".join(parts))
    assert isinstance(condition, AnyOf)
    assert len(condition.parts) == MAX_DEPTH + 2
