"""PSNR over alignment and cost: which cells stand together, and the paper's beside them."""

import pytest

from analysis.effects.curves import alignment_table, cost_table, costs_differ
from analysis.study.tasks import TaskResults
from tests.harness.judging import only_task, summaries
from tests.harness.studies import components_study, in_memory


@pytest.fixture(scope="module")
def whole() -> TaskResults:
    """A whole study of the components under two seeds."""
    finished, left_out = components_study(range(2))
    return only_task(in_memory(finished, left_out=left_out))


def test_alignment_joins_cells_that_are_alike_otherwise(whole: TaskResults) -> None:
    table = alignment_table(whole)
    assert {tuple(group["align"]) for _, group in table.groupby("group")} == {(1.0, 130.0)}
    assert set(table["group"]) == {"residual=true act=inside", "residual=true act=after", "residual=false act=inside"}


def test_the_papers_points_stand_beside_ours_on_its_task_and_sets(whole: TaskResults) -> None:
    table = cost_table(whole, summaries(whole))
    paper = table[table["source"] == "paper"].set_index("label")
    assert paper.loc["SRResNet", ["mean", "ops_g"]].tolist() == [38.0, 85.43]
    assert set(table["test_set"]) == {"Set5"}
    assert costs_differ(table)
