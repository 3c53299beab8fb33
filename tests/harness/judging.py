"""Judge a synthetic study as a report does."""

import dataclasses

from ablations.space.claims import pairs_to_test
from ablations.space.family import compared, corrected_together, tested_pairs
from ablations.space.interventions import Pair
from analysis.effects.cells import CellSummary, cell_summaries
from analysis.effects.claims import Assessment, assessed
from analysis.effects.comparisons import Row, rows
from analysis.effects.family import Family
from analysis.effects.ruled import family_of
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.loading import StudyResults
from analysis.study.tasks import TaskResults, split_by_task


@dataclasses.dataclass(frozen=True)
class Judged:
    """The interventions and claims of one task, with the family that holds their verdicts.

    ``tested`` are the pairs of the interventions that have a verdict.
    """

    results: TaskResults
    family: Family
    rows: list[Row]
    claims: list[Assessment]
    tested: list[Pair]

    def row(self, label: str) -> Row:
        (found,) = [row for row in self.rows if row.label == label]
        return found

    def claim(self, text: str, where: str = "Set5") -> Assessment:
        (found,) = [row for row in self.claims if row.claim.text == text and row.where in (where, "probes")]
        return found


def summaries(results: TaskResults) -> list[CellSummary]:
    return cell_summaries(results, judge(results).family)


def only_task(study: StudyResults) -> TaskResults:
    (found,) = split_by_task(study)
    return found


def judge(results: TaskResults) -> Judged:
    first = results.at_first_look
    found, claims = compared(first.study_cells), pairs_to_test(first.study_cells)
    tested = tested_pairs(first.study_cells, found)
    family = family_of(results, corrected_together(tested, claims), MARGIN_DB)
    return Judged(results, family, rows(first, found, family), assessed(first, claims, family), tested)
