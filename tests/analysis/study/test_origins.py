"""Which version of the code made a result: parts of the user's own make no other version."""

import dataclasses
from collections.abc import Mapping

import pytest

from analysis.report.page import compose
from analysis.study.origins import versions
from tests.harness.studies import in_memory, trial

OWN = {"code": "b" * 16, "bbcu": "a" * 16, "parts": "my_parts.Triangle"}
OTHER_OWN = {"code": "c" * 16, "bbcu": "a" * 16, "parts": "my_parts.Steep"}


def versions_of(*origins: Mapping[str, str]) -> dict[str, int]:
    made = [dataclasses.replace(trial(seed, 30.0), origin=origin) for seed, origin in enumerate(origins)]
    return versions(in_memory(made).trials)


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        (({"code": "a" * 16}, OWN, OWN, OTHER_OWN), {"a" * 12: 4}),
        (({"code": "a" * 16}, {"code": "d" * 16}), {"a" * 12: 1, "d" * 12: 1}),
        (({"code": "a" * 16}, {**OWN, "bbcu": "d" * 16}), {"a" * 12: 1, "d" * 12: 1}),
        ((OWN, {**OWN, "code": "e" * 16}), {"b" * 12: 1, "e" * 12: 1}),
        (({"code": "a" * 16}, {}), {"a" * 12: 1, "not recorded": 1}),
    ],
    ids=["own parts alone", "bbcu", "bbcu below own parts", "a changed part", "not recorded"],
)
def test_versions(origins: tuple[Mapping[str, str], ...], expected: Mapping[str, int]) -> None:
    assert versions_of(*origins) == expected


def test_the_page_does_not_warn_of_parts_of_the_users_own() -> None:
    made = [dataclasses.replace(trial(0, 30.0), origin={"code": "a" * 16})]
    made += [dataclasses.replace(trial(0, 29.0, bn="post"), origin=OWN)]
    page = compose(in_memory(made))["report.md"].decode()
    assert "Different versions" not in page
    assert "`aaaaaaaaaaaa` (1 trial) and `bbbbbbbbbbbb` (1 trial). They differ in parts of the user's own.\n" in page
