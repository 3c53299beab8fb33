"""The checks of a report find what they are for: each of these reports has one fault."""

import re
from collections.abc import Callable

import pytest

from analysis.report.page import compose
from tests.harness.pages import broken, contradictions
from tests.harness.ruled import cell, ruled
from tests.harness.studies import components_study, full_trial, in_memory

Change = Callable[[str], str]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A report of five interventions in several contexts, one of which is at risk of collapse."""
    finished, left_out = components_study(range(3))
    collapsing = [full_trial(seed, residual="block") for seed in range(3)]
    collapsing[1] = type(collapsing[1])(**{**vars(collapsing[1]), "psnr_db": {"Set5": 20.0}})
    return compose(in_memory([*finished, *collapsing], left_out=left_out))


def replaced(old: str, new: str, number: int = 0) -> Change:
    """Replace the match with this number, and nothing else."""

    def change(page: str) -> str:
        found = list(re.finditer(old, page))[number]
        return page[: found.start()] + found.expand(new) + page[found.end() :]

    return change


def changed(files: dict[str, bytes], change: Change, name: str = "report.md") -> dict[str, bytes]:
    return {**files, name: change(files[name].decode()).encode()}


def test_a_sound_report_has_no_fault(files: dict[str, bytes]) -> None:
    assert broken(files) == []
    assert contradictions(files) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(replaced(r"\*\*worse\*\*", "undecided"), id="the verdict of the first table"),
        pytest.param(replaced(r"\*\*worse\*\*", "**better**", 5), id="the verdict of the folded table"),
        pytest.param(replaced(r"(Without the residual\S* \| )-1", r"\1-2"), id="a number of the first table"),
        pytest.param(replaced(r"Surely worse", "Surely better"), id="a list of the opening"),
        pytest.param(replaced(r"Surely worse\*\*: [^;]*; ", "Surely worse**: "), id="one that is not listed"),
        pytest.param(replaced(r"Risk of collapse", "Undecided"), id="a risk that is called undecided"),
        pytest.param(replaced(r"1 of 3 \[1, 91\] %", "2 of 3 [9, 99] %"), id="a count of collapsed trials"),
        pytest.param(
            replaced(r"(\| residual|\| `residual=block[^|]*\| \[3\]\(\S+\) \| )1", r"\1"), id="a count of the cells"
        ),
        pytest.param(replaced(r"(\d) supported", "9 supported"), id="a count of claims"),
        pytest.param(replaced(r"\*\*supported\*\*", "**undecided**"), id="the status of a claim"),
        pytest.param(replaced(r"(PSNR rises\) \| Set5 \| \+)1", r"\g<1>2"), id="the effect of a claim"),
        pytest.param(replaced(r"-1\.25 dB at the reference", "-1.35 dB at the reference"), id="an effect in a context"),
        pytest.param(replaced(r"10 cells", "11 cells"), id="a count of cells"),
        pytest.param(replaced(r"30 finished", "29 finished"), id="a count of trials"),
        pytest.param(replaced(r"28\.50 dB", "28.40 dB"), id="the baseline"),
        pytest.param(replaced(r"(\d+) of 30 trials", "11 of 30 trials"), id="a count of dirty trials"),
        pytest.param(replaced(r"for (\d+) comparisons", "for 99 comparisons"), id="the size of the family"),
        pytest.param(replaced(r"These numbers describe", "This is worse and describes"), id="a verdict of an average"),
        pytest.param(replaced(r"(added\S* \| — \| \S+ \S+ \S+ \| )\d", r"\g<1>7"), id="a count of contexts"),
    ],
)
def test_what_is_said_differently_in_two_places_is_found(files: dict[str, bytes], change: Change) -> None:
    assert contradictions(changed(files, change)) != []


@pytest.fixture(scope="module")
def of_a_rule() -> dict[str, bytes]:
    """A report of a stopping rule that has decided two comparisons; one is open, and some results are from before."""
    cells = [cell(31.0), cell(29.0, residual=False), cell(31.0, bn="pre"), cell(29.5, align=1)]
    return compose(ruled(cells, earlier=1, most=14))


def test_a_sound_report_of_a_stopping_rule_has_no_fault(of_a_rule: dict[str, bytes]) -> None:
    assert broken(of_a_rule) == []
    assert contradictions(of_a_rule) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        pytest.param(replaced(r"14 trainings", "15 trainings"), "report.md", id="what was spent"),
        pytest.param(replaced(r"would have been 24", "would have been 25"), "report.md", id="what all would have been"),
        pytest.param(replaced(r"spent so far", "spent"), "report.md", id="an end that was not reached"),
        pytest.param(replaced(r"4 results from", "3 results from"), "report.md", id="results from before the rule"),
        pytest.param(replaced(r"it fell, 3 seeds", "it fell, 4 seeds"), "report.md", id="when the verdicts fell"),
        pytest.param(replaced(r"1 of 3 comparisons", "2 of 3 comparisons"), "report.md", id="what is open"),
        pytest.param(replaced(r"looks at 3, 4", "looks at 2, 4"), "report.md", id="the looks"),
        pytest.param(replaced(r"from seed 1 on", "from seed 0 on"), "report.md", id="the first seed"),
        pytest.param(replaced(r"(\*\*worse\*\* \| )3", r"\g<1>4"), "report.md", id="the look of a row"),
        pytest.param(replaced(r"Still open", "Undecided"), "report.md", id="an open comparison called undecided"),
        pytest.param(replaced(r",worse", ",better"), "decisions.csv", id="the verdict at a look"),
        pytest.param(replaced(r"Set5,3,3,", "Set5,4,3,"), "decisions.csv", id="a look that was skipped"),
        pytest.param(replaced(r"Set5,3,3,-", "Set5,3,3,-1"), "decisions.csv", id="an estimate at a look"),
        pytest.param(replaced(r"repeated", "first look"), "effects.csv", id="the kind of an interval"),
        pytest.param(replaced(r",3,repeated", ",4,repeated"), "cells.csv", id="the look of a cell"),
    ],
)
def test_what_is_said_differently_of_a_stopping_rule_is_found(
    of_a_rule: dict[str, bytes], change: Change, name: str
) -> None:
    assert contradictions(changed(of_a_rule, change, name)) != []


def test_a_page_that_differs_from_its_numbers_is_found(files: dict[str, bytes]) -> None:
    for name, column in (("effects.csv", "worse"), ("claims.csv", "supported")):
        assert contradictions(changed(files, replaced(column, "better"), name)) != []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda page: page.replace("</details>\n", "</details>", 1), id="no line after a fold"),
        pytest.param(replaced("</details>", ""), id="a fold that is open"),
        pytest.param(lambda page: f"{page}\n## Nothing\n", id="a heading without content"),
        pytest.param(lambda page: f"{page}\n| Cell |\n| --- |\n", id="a table without a row"),
        pytest.param(replaced(r"(Without the residual\S* \|.*) none \|", r"\1"), id="a row with too few cells"),
        pytest.param(lambda page: f"{page}\n+nan dB\n", id="a number that is none"),
        pytest.param(lambda page: page + "\n{{ name }}\n", id="an expression of a template"),
        pytest.param(lambda page: f"{page}\n[a](#nowhere)\n", id="a link to nowhere"),
        pytest.param(replaced(r"\[effects.csv\]\(effects.csv\)", "effects.csv"), id="a file without a link"),
        pytest.param(lambda page: f"{page}\nOne , two.\n", id="a mark with a space before it"),
    ],
)
def test_what_is_broken_is_found(files: dict[str, bytes], change: Change) -> None:
    assert broken(changed(files, change)) != []
