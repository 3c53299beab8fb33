"""The comparisons of a stopping rule in words."""

from analysis.effects.ruled import RuledFamily
from analysis.report.decisions import decisions
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
