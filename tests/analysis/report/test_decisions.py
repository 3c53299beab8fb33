"""The comparisons of a stopping rule in words."""

from analysis.effects.ruled import RuledFamily
from analysis.report.decisions import decisions, note_of
from analysis.report.notes import runs_of
from analysis.report.words import estimate
from tests.harness.judging import judge, only_task
from tests.harness.ruled import cell, ruled


def test_a_comparison_that_only_tests_a_claim_is_named_by_what_changes() -> None:
    """As the table at the end of the sweep names it; its claim may be about a probe, and the figure is about PSNR."""
    found = judge(only_task(ruled([cell(31.0), cell(30.0, align=1), cell(30.5, bn="post")])))
    assert isinstance(found.family, RuledFamily)
    rows = [row for row in found.rows if row.pair in found.tested]
    labels = [each.label for each in decisions(found.family, found.results, rows)]
    assert labels == [
        "BatchNorm after the convolution in place of alignment 130",
        "Without alignment 130",
        "BatchNorm after the convolution added",
    ]


def test_the_mark_of_a_look_says_what_it_showed_and_leads_to_the_cell_after_the_change() -> None:
    found = judge(only_task(ruled([cell(31.0), cell(30.0, align=1)])))
    assert isinstance(found.family, RuledFamily)
    (each,) = decisions(found.family, found.results, [row for row in found.rows if row.pair in found.tested])
    ((name, course),) = each.by_set.items()
    last = course[-1]
    note = note_of(each, name, last)
    assert note.text == (
        f"Without alignment 130, {name}, look at {last.look} seeds: "
        f"{estimate(last.estimate)} dB, worse, {last.estimate.n} seeds a cell"
    )
    assert note.runs == runs_of(each.cell)
    assert found.results.levels[each.cell].asked["align"] == "1"
