"""Synthetic studies whose truth is known: a report must give the true effects, each once, and never a mixture."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from ablations.space.claims import PSNR, pairs_to_test
from ablations.space.family import compared
from ablations.space.interventions import Pair
from analysis.effects.claims import Status, status_of
from analysis.effects.comparisons import interactions
from analysis.effects.family import Conclusion
from analysis.study.tasks import TaskResults
from tests.harness.judging import Judged, judge, only_task
from tests.harness.studies import FULL_REFERENCE, TRUTH, Trial, components_study, in_memory, true_psnr

IN_PLACE = "BatchNorm after the convolution in place of alignment 130"
ADDED = "BatchNorm after the convolution added"
UNALIGNED = "Without alignment 130"
NO_RESIDUAL = "Without the residual"
AFTER = "Activation after the add in place of before it"


def without_noise(finished: Sequence[Trial]) -> list[Trial]:
    return [dataclasses.replace(each, psnr_db={"Set5": true_psnr(dict(each.levels))}) for each in finished]


def components(finished: Sequence[Trial], left_out: Sequence[Mapping[str, Any]] = ()) -> Judged:
    return judge(only_task(in_memory(finished, left_out=left_out)))


@pytest.fixture(scope="module")
def exact() -> Judged:
    finished, left_out = components_study(range(3))
    return components(without_noise(finished), left_out)


@pytest.fixture(scope="module")
def noisy() -> Judged:
    finished, left_out = components_study(range(6, 12))
    return components(finished, left_out)


EFFECTS = {
    NO_RESIDUAL: {"": -1.25, "align=1": -1.0, "bn=post align=1": -1.0},
    IN_PLACE: {"": -0.2, "act=after": -0.2, "residual=false": 0.05},
    ADDED: {"align=1": 0.3, "align=1 act=after": 0.3, "residual=false align=1": 0.3},
    AFTER: {"": -0.15, "align=1": -0.15, "bn=post align=1": -0.15},
    UNALIGNED: {"": -0.5, "act=after": -0.5, "residual=false": -0.25},
}
"""The true effect of each intervention by context; an alignment is worth half where there is no residual.

There is no alignment beside a BatchNorm, and without a residual no add for the activation to stand after.
"""


def context_of(judged: Judged, pair: Pair) -> str:
    levels, reference = (judged.results.levels[cell].recorded for cell in (pair[0], judged.results.reference))
    return " ".join(f"{key}={level}" for key, level in levels.items() if level != reference[key])


def effects_of(judged: Judged) -> dict[str, dict[str, float]]:
    """The mean effect of every intervention by context, which is empty at the reference."""
    return {
        row.label: {context_of(judged, row.pair): row.by_set["Set5"].estimate.mean}
        | {context_of(judged, each.pair): each.by_set["Set5"].mean for each in row.contexts}
        for row in judged.rows
    }


def test_every_intervention_has_its_true_effect_in_every_context_where_it_exists(exact: Judged) -> None:
    assert effects_of(exact) == {label: pytest.approx(contexts) for label, contexts in EFFECTS.items()}


def test_an_average_is_over_the_contexts_where_the_intervention_exists(exact: Judged) -> None:
    averages = {row.label: row.average["Set5"].mean for row in exact.rows}
    assert averages == pytest.approx({label: sum(each.values()) / len(each) for label, each in EFFECTS.items()})


def test_the_row_of_an_intervention_is_about_its_effect_at_the_reference(exact: Judged) -> None:
    at_reference = {row.label: row.pair in exact.tested for row in exact.rows}
    assert at_reference == {label: "" in contexts for label, contexts in EFFECTS.items()}


def test_an_intervention_that_only_other_contexts_show_is_in_no_family(exact: Judged) -> None:
    added = exact.row(ADDED)
    assert context_of(exact, added.pair) == "align=1"
    assert added.pair not in exact.tested


def test_interactions_are_the_analytic_ones(exact: Judged) -> None:
    """Those of interventions that change the same key, or of which one excludes the other, do not exist."""
    at_reference = [row for row in exact.rows if row.pair in exact.tested]
    found = {
        frozenset((each.first.label, each.second.label)): (each.by_set["Set5"].mean, each.contexts)
        for each in interactions(exact.results, at_reference)
    }
    truth = {
        frozenset((NO_RESIDUAL, IN_PLACE)): 0.25,
        frozenset((NO_RESIDUAL, UNALIGNED)): 0.25,
        frozenset((AFTER, IN_PLACE)): 0.0,
        frozenset((AFTER, UNALIGNED)): 0.0,
    }
    assert {pair: mean for pair, (mean, _) in found.items()} == pytest.approx(truth)
    assert {contexts for _, contexts in found.values()} == {1}


def test_a_context_is_set_against_the_reference(exact: Judged) -> None:
    changes = {each.label: each.change["Set5"].mean for each in exact.row(UNALIGNED).contexts}
    assert changes == pytest.approx({"act=after": 0.0, "residual=false": 0.25})


def test_with_noise_the_intervals_hold_the_truth(noisy: Judged) -> None:
    found = [
        (label, context, estimate)
        for row in noisy.rows
        for label, context, estimate in (
            (row.label, context_of(noisy, row.pair), row.by_set["Set5"].estimate),
            *((row.label, context_of(noisy, each.pair), each.by_set["Set5"]) for each in row.contexts),
        )
    ]
    held = [each.low <= EFFECTS[label][context] <= each.high for label, context, each in found]
    assert len(held) == sum(map(len, EFFECTS.values()))
    assert sum(held) >= 0.9 * len(held)


def test_combinations_that_are_another_network_change_nothing() -> None:
    finished, left_out = components_study(range(3))
    assert len(left_out) == 7
    whole, bare = components(finished, left_out), components(finished)
    assert whole.rows == bare.rows
    assert whole.family.size == bare.family.size


def test_a_small_nested_design_is_no_chain() -> None:
    """Without its merged cells, each cell of this one is two levels from the one before it."""
    finished, left_out = components_study(range(2))
    kept = [each for each in finished if each.levels["residual"]]
    labels = [row.label for row in components(kept, [row for row in left_out if row["levels"]["residual"]]).rows]
    assert labels == [IN_PLACE, AFTER, UNALIGNED, ADDED]


# ---- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "truth", "others"),
    [
        ("The residual raises PSNR", 1.25, 2),
        ("BatchNorm after the convolution raises PSNR", TRUTH["bn"], 1),
        ("Residual alignment raises PSNR", TRUTH["alignment"], 1),
        ("Residual alignment is better than BatchNorm", TRUTH["alignment"] - TRUTH["bn"], 1),
        ("The activation inside the residual is better than after the add", TRUTH["inside"], 2),
    ],
)
def test_a_true_claim_is_supported_at_the_papers_unit(noisy: Judged, claim: str, truth: float, others: int) -> None:
    got = noisy.claim(claim)
    assert (got.status, got.context, len(got.others)) == (Status.SUPPORTED, "", others)
    assert got.estimate.mean == pytest.approx(truth, abs=0.02)


def activation(reference_db: float, unaligned_db: float, cells: Sequence[str] = ("auto", "1")) -> list[Trial]:
    """The gain of the activation inside the residual, at BBCU and in an unaligned network."""
    gains = {"auto": reference_db, "1": unaligned_db}
    return [
        Trial(
            {**FULL_REFERENCE, "align": "auto" if align == "auto" else 1, "act": act},
            seed,
            {"Set5": 31.0 + (act == "inside") * gains[align] + 0.004 * seed * (-1) ** place},
            reference=FULL_REFERENCE,
        )
        for seed in range(3)
        for place, (align, act) in enumerate(itertools.product(cells, ("inside", "after")))
    ]


INSIDE = "The activation inside the residual is better than after the add"


def test_a_claim_that_only_holds_elsewhere_is_not_supported() -> None:
    """Its mean over both contexts would be 0.4 dB."""
    got = components(activation(0.0, 0.8)).claim(INSIDE)
    assert got.status is Status.CONTRADICTED
    assert got.estimate.mean == pytest.approx(0.0, abs=0.01)
    assert [each.mean for each in got.others] == [pytest.approx(0.8, abs=0.01)]


def test_a_claim_is_tested_at_the_nearest_unit_if_the_papers_own_is_missing() -> None:
    got = components(activation(0.0, 0.8, cells=("1",))).claim(INSIDE)
    assert (got.status, got.context) == (Status.SUPPORTED, "align=1")


# ---- any truth -------------------------------------------------------------------------------------------------------

SEEDS = (0, 1, 2)
CELLS = components_study([0])[0]
STUDY = in_memory([dataclasses.replace(cell, seed=seed) for cell in CELLS for seed in SEEDS])

few_examples = hypothesis.settings(max_examples=10)
thousandths = st.integers(28_000, 34_000).map(lambda number: number / 1000)
tables = st.lists(thousandths, min_size=len(CELLS), max_size=len(CELLS))
spreads = st.lists(st.sampled_from([0.003, 0.02, 0.1, 0.5]), min_size=len(CELLS), max_size=len(CELLS))


def drawn(means: Sequence[float], spread: Sequence[float]) -> Judged:
    """The cells of the study of the components with these means, each with a spread of its own over the seeds."""
    scores = [
        mean + each * (-1, 0.25, 0.75)[(seed + place) % 3]
        for place, (mean, each) in enumerate(zip(means, spread, strict=True))
        for seed in SEEDS
    ]
    trials = STUDY.trials.assign(**{"metric/Set5/psnr_db": scores})
    return judge(only_task(dataclasses.replace(STUDY, trials=trials)))


def recorded_change(results: TaskResults, pair: Pair) -> dict[str, tuple[str, str]]:
    before, after = (results.levels[cell].recorded_parts for cell in pair)
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


@few_examples
@hypothesis.given(means=tables)
def test_two_interventions_never_meet_in_one_number(means: list[float]) -> None:
    """Every pair of a row changes exactly what the row names, and no pair of cells is in two rows."""
    judged = drawn(means, [0.0] * len(CELLS))
    seen: set[frozenset[str]] = set()
    truth = {cell.cell: mean for cell, mean in zip(CELLS, means, strict=True)}
    for row in judged.rows:
        pairs = [row.pair, *(each.pair for each in row.contexts)]
        named = {change.key: (change.before, change.after) for change in row.intervention.changes}
        assert all(recorded_change(judged.results, pair) == named for pair in pairs)
        effects = [truth[after] - truth[before] for before, after in pairs]
        assert row.by_set["Set5"].estimate.mean == pytest.approx(effects[0], abs=1e-6)
        assert row.average["Set5"].mean == pytest.approx(sum(effects) / len(effects), abs=1e-6)
        assert seen.isdisjoint(map(frozenset, pairs))
        seen |= set(map(frozenset, pairs))


OPPOSITE = {Conclusion.BETTER: Conclusion.WORSE, Conclusion.WORSE: Conclusion.BETTER}


@few_examples
@hypothesis.given(means=tables, spread=spreads)
def test_a_pair_of_cells_has_one_verdict_wherever_it_is_shown(means: list[float], spread: list[float]) -> None:
    judged = drawn(means, spread)
    shown = {row.pair: row.by_set["Set5"] for row in judged.rows if row.pair in judged.tested}
    for (before, after), there in shown.items():
        back = judged.family.measured("Set5", (after, before))
        assert there.conclusion is not None
        assert back.conclusion is OPPOSITE.get(there.conclusion, there.conclusion)
        assert (back.estimate.low, back.estimate.high) == (-there.estimate.high, -there.estimate.low)
        assert (back.verdict is None) == (there.verdict is None)
        if back.verdict and there.verdict:
            assert back.verdict.detectable == pytest.approx(there.verdict.detectable, nan_ok=True)
    for claim in (each for each in judged.claims if each.pair and each.claim.measure == PSNR):
        before, after = claim.pair or ("", "")
        for pair, sign in (((before, after), 1), ((after, before), -1)):
            if pair in shown:
                said = status_of(shown[pair].conclusion, claim.claim.sign * sign)
                # Networks that learned nothing contradict no claim.
                assert claim.status is (Status.UNDECIDED if claim.withheld else said)
                assert claim.estimate.mean == pytest.approx(sign * shown[pair].estimate.mean)


@few_examples
@hypothesis.given(means=tables, spread=spreads)
def test_interventions_and_claims_are_corrected_as_one_family(means: list[float], spread: list[float]) -> None:
    judged = drawn(means, spread)
    claimed = [frozenset(each.pair) for each in judged.claims if each.pair and each.claim.measure == PSNR]
    down = {cell for cell in judged.results.trained if judged.results.is_down(cell)}
    pairs = {pair for pair in {*map(frozenset, judged.tested), *claimed} if not pair <= down}
    assert judged.family.size == len(pairs)


def test_every_pair_of_a_claim_is_at_the_levels_that_it_names(exact: Judged) -> None:
    for claim, pairs in pairs_to_test(exact.results.study_cells):
        for pair in pairs:
            changed = recorded_change(exact.results, pair)
            assert set(changed) <= {*claim.before, *claim.after}


def test_every_comparison_is_of_finished_cells_of_one_task(exact: Judged) -> None:
    cells = {cell for each in compared(exact.results.study_cells) for pair in each.pairs for cell in pair}
    assert cells == set(exact.results.trained)
