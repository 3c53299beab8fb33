"""What the probes measured by depth: which cells, and the mean and range of their seeds."""

import pytest

from analysis.effects.depth import depth_table, range_table, star
from analysis.study.tasks import TaskResults
from tests.harness.judging import only_task
from tests.harness.studies import components_study, read_back


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TaskResults:
    """A whole study of the components under two seeds."""
    finished, left_out = components_study(range(2))
    return only_task(read_back(tmp_path_factory.mktemp("whole"), finished, left_out=left_out))


def test_the_star_holds_cells_that_differ_in_one_factor(whole: TaskResults) -> None:
    found = star(whole)
    assert {factor: list(levels) for factor, levels in found.items()} == {
        "residual": ["true", "false"],
        "bn": ["none", "post"],
        "align": ["auto", "1"],
        "act": ["inside", "after"],
    }
    assert whole.labels[found["align"]["1"]] == "residual=true bn=none align=1 act=inside"


def test_depth_lines_are_means_over_seeds_within_their_range(whole: TaskResults) -> None:
    row = depth_table(whole).query("factor == 'residual' and level == 'false' and depth == 3").iloc[0]
    raw = whole.units[(whole.units["cell"] == row["cell"]) & (whole.units["depth"] == 3)][row["measure"]]
    assert (row["mean"], row["low"], row["high"], row["n"]) == (raw.mean(), raw.min(), raw.max(), 2)


def test_ranges_take_the_input_where_there_is_no_residual(whole: TaskResults) -> None:
    table = range_table(whole).set_index(["label", "depth"])
    without = table.loc[("residual=false bn=none align=auto act=inside", 1)]
    assert not without["has_residual"]
    assert without["beside_p99"] == pytest.approx(2.3 * 5.0)
