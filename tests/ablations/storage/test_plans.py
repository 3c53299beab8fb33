"""The stopping rule in a study's plan: it is fixed by the first sweep that has one."""

import dataclasses
from pathlib import Path

import pytest

from ablations.space.stopping_rule import StoppingRule
from ablations.storage.plans import plan_path, planned_rule, read_plan, refuse_other_rule, write_plan
from bbcu.errors import ConfigError
from tests.ablations.storage.helpers import CELL

OTHER = "b" * 64
RULE = StoppingRule((3, 4, 5), 0, 0.05, (((CELL, OTHER),),))
ROW = {"cell": CELL, "seed": 0, "name": "x", "factors": {}, "levels": {}, "setting": {"data": "f" * 64}}


def write(outputs: Path, rule: StoppingRule | None) -> None:
    record = None if rule is None else rule.record()
    write_plan(outputs, "tiny", {"study": "tiny", "rule": record, "trials": [ROW], "left_out": []})


def test_a_plan_has_the_rule_with_which_it_was_written(tmp_path: Path) -> None:
    assert planned_rule(tmp_path, "tiny") is None
    write(tmp_path, RULE)
    assert planned_rule(tmp_path, "tiny") == RULE
    write(tmp_path, RULE)
    assert len(read_plan(tmp_path, "tiny")["trials"]) == 1


def test_a_plain_study_may_get_a_rule_later(tmp_path: Path) -> None:
    write(tmp_path, None)
    write(tmp_path, RULE)
    assert planned_rule(tmp_path, "tiny") == RULE


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (None, "set hydra.sweeper.until=decided hydra.sweeper.replicates=3 hydra.sweeper.most_replicates=5 as before"),
        (
            dataclasses.replace(RULE, looks=(3, 5)),
            "looks=3, 5 and not 3 to 5; use another study.name",
        ),
    ],
    ids=["none", "another"],
)
def test_another_rule_or_none_is_refused_and_the_plan_stays(
    tmp_path: Path, rule: StoppingRule | None, why: str
) -> None:
    write(tmp_path, RULE)
    before = plan_path(tmp_path, "tiny").read_bytes()
    for refuse in (refuse_other_rule, lambda outputs, study, other: write(outputs, other)):
        with pytest.raises(ConfigError, match="the stopping rule of study tiny is fixed before it trains") as refused:
            refuse(tmp_path, "tiny", rule)
        assert why in str(refused.value)
    assert plan_path(tmp_path, "tiny").read_bytes() == before


def test_a_damaged_plan_says_nothing_about_a_rule(tmp_path: Path) -> None:
    write(tmp_path, RULE)
    plan_path(tmp_path, "tiny").write_text("{")
    assert planned_rule(tmp_path, "tiny") is None
    refuse_other_rule(tmp_path, "tiny", None)
