"""What a study would have said after fewer steps: its comparisons at every step at which the test sets were scored.

The scores on the way are in the learning curves. They are those of an unfinished training, whose learning rate is
still higher than that of a training that ends there, so they do not replace a shorter study: ``python -m analysis
compare`` sets two studies beside each other.
"""

import dataclasses
from collections.abc import Sequence

from ablations.space.interventions import Pair
from analysis.effects.family import Family, combined
from analysis.statistics.estimates import Outcome, Verdict, rank_correlation, verdicts
from analysis.study.loading import identities_of
from analysis.study.tasks import TaskResults

MOST_STAGES = 24  # of a training that is scored more often, those at even distances

SIDES = {Outcome.BETTER, Outcome.WORSE}

Scores = dict[str, dict[int, float]]  # PSNR in dB by cell and seed


@dataclasses.dataclass(frozen=True)
class Stage:
    """The comparisons of a study on one test set after so many steps.

    ``verdicts`` are in the order of the comparisons, corrected as those of the report are. ``rank_correlation`` is
    Spearman's, of the effects here with those of the last stage; NaN for fewer than three. ``same`` counts the
    comparisons with the outcome that they have at the last stage, ``opposite`` those that were better and end worse or
    the other way round.
    """

    step: int
    verdicts: tuple[Verdict, ...]
    rank_correlation: float
    same: int
    opposite: int


def stages(results: TaskResults, pairs: Sequence[Pair], family: Family) -> dict[str, list[Stage]]:
    """Return what the comparisons ``pairs`` show on each test set, at the steps that all of their trials have.

    Every trial counts, also one that collapsed; with a stopping rule those of the first look, so ``results`` are these.
    The steps ascend to the end of the training. Empty unless there are a comparison, two steps and one length of the
    training for all cells.
    """
    known = set(map(frozenset, pairs))
    others = [pair for pair in family.pairs if frozenset(pair) not in known and results.trained.keys() >= set(pair)]
    judged = [*pairs, *others]
    found = {}
    for name in results.sets:
        by_step = scores_by_step(results, name, judged)
        if pairs and len(by_step) > 1:
            found[name] = compared_to_last(
                [(step, judged_at(results, scores, judged, family.margin)) for step, scores in by_step.items()],
                len(pairs),
            )
    return found


def scores_by_step(results: TaskResults, test_set: str, pairs: Sequence[Pair]) -> dict[int, Scores]:
    """Return the scores on a test set at the steps at which every trial of the pairs was scored, in order.

    Empty if these are not the steps to the end of each, which then train for different numbers of steps.
    """
    cells = {cell for pair in pairs for cell in pair}
    curves = results.curves()
    own = curves[(curves["metric"] == f"{test_set}/psnr_db") & curves["cell"].isin(cells) & (curves["step"] > 0)]
    own = own.sort_values(["cell", "seed"])
    found: dict[int, Scores] = {}
    for step, (cell, seed), score in zip(own["step"].tolist(), identities_of(own), own["value"].tolist(), strict=True):
        found.setdefault(int(step), {}).setdefault(cell, {})[seed] = score
    wanted = {cell: set(results.seeds_by_cell.get(cell, [])) for cell in cells}
    whole = [step for step in sorted(found) if {cell: set(table) for cell, table in found[step].items()} == wanted]
    return {step: found[step] for step in thinned(whole)} if whole[-1:] == [max(found, default=0)] else {}


def thinned(steps: Sequence[int]) -> list[int]:
    """Return at most :data:`MOST_STAGES` of the steps at even distances, the last among them."""
    apart = -(-len(steps) // MOST_STAGES)
    return list(steps[::-1][::apart][::-1]) if steps else []


def judged_at(results: TaskResults, scores: Scores, pairs: Sequence[Pair], margin: float) -> list[Verdict]:
    return verdicts([combined(results, scores, {after: 1.0, before: -1.0}) for before, after in pairs], margin)


def compared_to_last(found: Sequence[tuple[int, Sequence[Verdict]]], shown: int) -> list[Stage]:
    """Return the stages from the verdicts at each step, of which the first ``shown`` count."""
    last = found[-1][1][:shown]
    return [
        Stage(
            step,
            tuple(own),
            rank_correlation([one.estimate.mean for one in own], [one.estimate.mean for one in last]),
            sum(one.outcome is end.outcome for one, end in zip(own, last, strict=True)),
            sum(
                {one.outcome, end.outcome} <= SIDES and one.outcome is not end.outcome
                for one, end in zip(own, last, strict=True)
            ),
        )
        for step, every in found
        for own in (every[:shown],)
    ]


def shortest(found: Sequence[Stage]) -> int:
    """Return the step from which on every outcome is that of the last stage."""
    settled = found[-1].step
    for stage in reversed(found):
        if stage.same < len(stage.verdicts):
            break
        settled = stage.step
    return settled
