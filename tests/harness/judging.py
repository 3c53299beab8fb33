"""Judge a synthetic study as a report does."""

import dataclasses

from ablations.space.claims import pairs_to_test
from ablations.space.family import compared, corrected_together, tested_pairs
from ablations.space.interventions import Pair
from analysis.effects.claims import Assessment, assessed
from analysis.effects.comparisons import Family, Row, rows
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


def only_task(study: StudyResults) -> TaskResults:
    (found,) = split_by_task(study)
    return found


def judge(results: TaskResults) -> Judged:
    found, claims = compared(results.study_cells), pairs_to_test(results.study_cells)
    tested = tested_pairs(results.study_cells, found)
    family = Family(results, corrected_together(tested, claims))
    return Judged(results, family, rows(results, found, family), assessed(results, claims, family), tested)
