"""The space of cells: which levels there are, which combinations are one network, and what identifies a cell."""

import dataclasses
import hashlib
import json

import pytest

from ablations.space.cells import Cell, canonical_levels, cell_name, combinations
from ablations.space.factors import FACTORS, REFERENCE, parse_level
from ablations.space.rules import Backbone
from bbcu.errors import ConfigError

SRRESNET = Backbone("srresnet", 64)
SETTING = {"task": {"name": "sr_x2"}, "channels": 64, "train": {"steps": 10, "lr": 1e-3}, "data": "f" * 64}


@pytest.mark.parametrize(
    ("factor", "value", "level"),
    [
        pytest.param("residual", True, True, id="boolean"),
        pytest.param("residual", "True", True, id="capitalised text"),
        pytest.param("residual", "false", False, id="text of a boolean"),
        pytest.param("residual", "block", "block", id="a name"),
        pytest.param("align", "auto", "auto", id="the named level of a number"),
        pytest.param("align", 130, 130.0, id="a whole number"),
        pytest.param("align", 32.5, 32.5, id="a fraction"),
    ],
)
def test_a_level_is_parsed_from_a_config(factor: str, value: object, level: object) -> None:
    parsed = parse_level(factor, value)
    assert parsed == level
    assert type(parsed) is type(level)


@pytest.mark.parametrize(
    ("factor", "value"),
    [
        pytest.param("residual", "maybe", id="unknown name"),
        pytest.param("residual", 1, id="a number is not a boolean"),
        pytest.param("bn", True, id="a boolean is not a name"),
        pytest.param("bn", None, id="null"),
        pytest.param("align", 0, id="zero"),
        pytest.param("align", -1, id="negative"),
        pytest.param("align", float("inf"), id="infinite"),
        pytest.param("align", float("nan"), id="not a number"),
        pytest.param("align", True, id="a boolean is not a number"),
    ],
)
def test_an_unknown_level_is_refused_with_the_valid_ones(factor: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_level(factor, value)
    assert str(refused.value).startswith(f"{factor}=")
    assert "valid: " in str(refused.value)


@pytest.mark.parametrize(
    ("bn", "channels", "align"),
    [
        pytest.param("none", 64, 130.0, id="the authors' value at their width"),
        pytest.param("none", 32, 65.0, id="in proportion to the width"),
        pytest.param("pre", 64, 1.0, id="off where a BatchNorm stands before the sign"),
        pytest.param("post", 64, 1.0, id="off where a BatchNorm stands after the convolution"),
        pytest.param("out", 64, 1.0, id="off where a BatchNorm stands at the output"),
    ],
)
def test_automatic_alignment_becomes_a_number(bn: str, channels: int, align: float) -> None:
    canonical = canonical_levels({**REFERENCE, "bn": bn}, Backbone("srresnet", channels))
    assert canonical.factors["align"] == align
    assert canonical.levels["align"] == "auto"


def test_auto_and_its_number_are_one_cell() -> None:
    assert canonical_levels({**REFERENCE, "align": 130}, SRRESNET) == canonical_levels(REFERENCE, SRRESNET)


def test_another_number_is_another_cell() -> None:
    assert canonical_levels({**REFERENCE, "align": 1}, SRRESNET).levels["align"] == 1.0


def test_every_reference_is_a_level_of_its_factor() -> None:
    for name, factor in FACTORS.items():
        assert parse_level(name, factor.reference) == factor.reference


def test_a_key_is_the_same_whatever_the_order_of_the_levels() -> None:
    forwards = Cell(dict(REFERENCE), SETTING)
    backwards = Cell(dict(reversed(REFERENCE.items())), dict(reversed(SETTING.items())))
    assert forwards.key == backwards.key
    assert len(forwards.key) == 64


@pytest.mark.parametrize("name", list(FACTORS))
def test_a_key_changes_with_every_factor(name: str) -> None:
    other = next(level for level in (*FACTORS[name].levels, 7.0) if level != REFERENCE[name])
    assert Cell({**REFERENCE, name: other}, SETTING).key != Cell(REFERENCE, SETTING).key


@pytest.mark.parametrize("name", list(SETTING))
def test_a_key_changes_with_every_part_of_the_setting(name: str) -> None:
    assert Cell(REFERENCE, {**SETTING, name: "other"}).key != Cell(REFERENCE, SETTING).key


def test_a_key_does_not_depend_on_the_number_that_auto_stands_for() -> None:
    cell = Cell(REFERENCE, SETTING)
    assert dataclasses.replace(cell, factors={**REFERENCE, "align": 130.0}).key == cell.key


def test_a_key_is_the_hash_of_the_canonical_json() -> None:
    form = json.dumps({"factors": {"bn": "pre"}, "setting": {"channels": 8}}, sort_keys=True, separators=(",", ":"))
    assert (
        Cell({**REFERENCE, "bn": "pre"}, {"channels": 8, "network": {"unit": "binary"}}).key
        == hashlib.sha256(form.encode()).hexdigest()
    )


@pytest.mark.parametrize(
    ("levels", "name"),
    [
        pytest.param({}, "reference", id="nothing changed"),
        pytest.param({"residual": False, "bn": "post"}, "residual=false bn=post", id="two levels"),
        pytest.param({"align": 65.0}, "align=65", id="a number"),
    ],
)
def test_a_cell_is_named_by_its_differences_from_the_reference(levels: dict[str, object], name: str) -> None:
    assert cell_name({**REFERENCE, **levels}) == name


def test_combinations_vary_the_last_name_fastest() -> None:
    listed = [tuple(choice.values()) for choice in combinations({"residual": [True, False], "bn": ["pre", "post"]})]
    assert listed == [(True, "pre"), (True, "post"), (False, "pre"), (False, "post")]
