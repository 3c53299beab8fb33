"""Test the claims of the BBCU paper on the pairs of cells that :mod:`ablations.space.claims` finds.

The first pair of a claim gives its verdict, and the other contexts are estimated beside it. A claim may well turn out
wrong: small networks, short trainings and other pictures are other conditions than the paper's.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

from ablations.space.claims import PSNR, Claim, away, side
from ablations.space.interventions import Pair
from ablations.space.study_cells import UNTRAINED, StudyCells
from analysis.effects.comparisons import cost_change
from analysis.effects.family import (
    Collapses,
    Conclusion,
    Family,
    Measured,
    collapses,
    combined,
    difference,
    undecided_by_collapse,
)
from analysis.published.tables import ROUNDING_DB, doubt_of, printed_difference
from analysis.statistics.estimates import ALPHA, MARGIN_DB, Estimate, Verdict, holm, tested
from analysis.statistics.rounding import rounded
from analysis.study.methods import NETWORKS_OF_PAPER
from analysis.study.tasks import TaskResults, scores_by_cell

ON_PROBES = "probes"  # where a claim about a probe is tested

PROBES = {
    "output_loss": "Output loss: the share of a binary unit's output that binarising loses, after the best linear fit "
    "in each channel, 0 for none and 1 for all; the mean over the units.",
    "range_gap": "Range gap: by how many powers of ten the deviation of a unit's branch exceeds that of the residual "
    "that it is added to, 0 if it does not; the mean over the units.",
}
"""What a measure that is a probe is, for a reader of its claims."""


class Status(enum.StrEnum):
    """What the cells say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested here"


NOTHING = Estimate(math.nan, math.nan, math.nan, 0, math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What the cells say of a claim, on one test set or of one probe.

    ``where`` is the test set, or ``probes``. ``context`` says how the pair differs from the paper's own unit and is
    empty if it does not. ``others`` are the estimates in the other contexts. ``printed`` is the same difference in the
    paper's tables, NaN if they do not print it, ``size`` how ours compares, and ``doubt`` why the printed one may be
    wrong. ``withheld`` says that the claim would be contradicted, were it not for collapsed trainings. ``look`` is that
    of :class:`analysis.effects.family.Measured`. For what is not tested, the estimate has n = 0.
    """

    claim: Claim
    where: str
    status: Status
    reason: str
    estimate: Estimate = NOTHING
    pair: Pair | None = None
    context: str = ""
    others: tuple[Estimate, ...] = ()
    collapsed: tuple[Collapses, Collapses] = (Collapses(0, 0), Collapses(0, 0))
    ops_g: float = math.nan
    params_k: float = math.nan
    printed: float = math.nan
    size: str = ""
    doubt: str = ""
    withheld: bool = False
    look: int | None = None

    @property
    def is_tested(self) -> bool:
        return self.status is not Status.NOT_TESTED

    @property
    def has_collapsed(self) -> bool:
        return any(side.count for side in self.collapsed)


def assessed(results: TaskResults, found: Sequence[tuple[Claim, Sequence[Pair]]], family: Family) -> list[Assessment]:
    """Test every claim, in order; ``family`` holds the verdicts of their pairs.

    The claims on probes are a family of their own.
    """
    rows = [row for claim, pairs in found for row in measured(results, claim, pairs, family)]
    probes = [place for place, row in enumerate(rows) if row.where == ON_PROBES and row.is_tested]
    for place, row in zip(probes, judged_by_probes([rows[place] for place in probes]), strict=True):
        rows[place] = row
    mostly_down = results.is_mostly_down
    return [withheld(row, mostly_down=mostly_down) for row in rows]


def withheld(row: Assessment, *, mostly_down: bool) -> Assessment:
    """A row as it is, or undecided if what would contradict the claim is a cell, or a study, that learned nothing."""
    if row.status is not Status.CONTRADICTED:
        return row
    if any(side.all for side in row.collapsed):
        why_not = "a cell of the two collapsed under every seed, so it contradicts no claim"
    elif mostly_down:
        why_not = "most networks of this study learned nothing, so it contradicts no claim"
    else:
        return row
    return dataclasses.replace(row, status=Status.UNDECIDED, reason=f"{why_not}: {row.reason}", withheld=True)


def measured(results: TaskResults, claim: Claim, pairs: Sequence[Pair], family: Family) -> list[Assessment]:
    where = results.sets if claim.measure == PSNR else (ON_PROBES,)
    if not pairs:
        reason = why_untested(claim, results.study_cells)
        return [Assessment(claim, where[0] if where else "", Status.NOT_TESTED, reason)]
    if claim.measure == PSNR:
        return [on_psnr(results, claim, pairs, name, family) for name in where]
    return [on_probe(results, claim, pairs)]


def on_psnr(results: TaskResults, claim: Claim, pairs: Sequence[Pair], test_set: str, family: Family) -> Assessment:
    pair = next((each for each in pairs if each in family), None)
    if pair is None:
        return Assessment(claim, test_set, Status.NOT_TESTED, "no pair of the study's stopping rule tests it")
    found = family.measured(test_set, pair)
    status = status_of(found.conclusion, claim.sign)
    names = [named_method(wanted) for wanted in (claim.before, claim.after)]
    printed = math.nan
    cells = results.study_cells
    networks = {cells.levels[cell].asked.get("network.name") for cell in pair if cells.methods[cell] not in UNTRAINED}
    is_of_paper = networks <= {None, *NETWORKS_OF_PAPER}
    if is_of_paper and not claim.where and not away(cells, claim, pair) and all(names):
        found_in_print = printed_difference(names[0], names[1], results.task, test_set)
        printed = math.nan if found_in_print is None else found_in_print
    doubts = (doubt_of(name, results.task, test_set) for name in names) if not math.isnan(printed) else ()
    row = about_pair(results, claim, pair, test_set, found)
    return dataclasses.replace(
        row,
        status=status,
        reason=why(found.conclusion, found.verdict),
        others=tuple(difference(results, test_set, other) for other in pairs if other != pair),
        printed=printed,
        size=compared_size(found.estimate, printed, row.has_collapsed),
        doubt="; ".join(filter(None, doubts)),
    )


def about_pair(results: TaskResults, claim: Claim, pair: Pair, where: str, found: Measured) -> Assessment:
    return Assessment(
        claim=claim,
        where=where,
        status=Status.UNDECIDED,
        reason="",
        estimate=found.estimate,
        look=found.look,
        pair=pair,
        context=" ".join(f"{factor}={level}" for factor, level in away(results.study_cells, claim, pair).items()),
        collapsed=found.collapsed,
        ops_g=cost_change(results, pair, "ops_g"),
        params_k=cost_change(results, pair, "params_k"),
    )


def on_probe(results: TaskResults, claim: Claim, pairs: Sequence[Pair]) -> Assessment:
    means = results.units.groupby(["cell", "seed"])[claim.measure].mean().dropna()
    identities = ((str(cell), int(seed)) for cell, seed in zip(*map(means.index.get_level_values, (0, 1)), strict=True))
    scores = scores_by_cell(dict(zip(identities, means.tolist(), strict=True)))
    probed = [pair for pair in pairs if all(cell in scores for cell in pair)]
    if not probed:
        reason = f"no {claim.measure.replace('_', ' ')} was measured in both cells of a pair"
        return Assessment(claim, ON_PROBES, Status.NOT_TESTED, reason)

    def change(pair: Pair) -> Estimate:
        return combined(results, scores, {pair[1]: 1.0, pair[0]: -1.0})

    first = Measured(change(probed[0]), None, None, math.nan, collapses(results, probed[0]))
    row = about_pair(results, claim, probed[0], ON_PROBES, first)
    return dataclasses.replace(row, others=tuple(map(change, probed[1:])))


PUBLISHED_LEVELS = {"[]": "full_precision", "[body]": "bbcu", "[body,up]": "bbcu binarize=[body,up]"}
"""The method of the paper's tables that has these binary parts and is BBCU otherwise."""


def named_method(wanted: Mapping[str, str]) -> str:
    return wanted.get("method") or PUBLISHED_LEVELS.get(wanted.get("binarize", ""), "")


def compared_size(found: Estimate, printed: float, collapsed: bool) -> str:
    """How our difference compares with the one that the paper prints; empty if it prints none."""
    if math.isnan(printed):
        return ""
    if collapsed:
        return "not comparable: collapsed trials"
    if math.isnan(found.low):
        return "unknown: no interval"
    sign = math.copysign(1, printed)
    low, high = sorted((found.low * sign, found.high * sign))
    if low - ROUNDING_DB <= abs(printed) <= high + ROUNDING_DB:
        return "agrees" if low > 0 else "agrees, but so does 0"
    if high < 0:
        return "the other direction here"
    if low < 0:
        return "smaller or in the other direction here"
    return "smaller here" if rounded(found.mean * sign) < abs(printed) else "larger here"


def status_of(conclusion: Conclusion | None, sign: int) -> Status:
    """What a conclusion says of a predicted direction; a difference that is too small to matter contradicts it."""
    if conclusion in (Conclusion.NOTHING, Conclusion.NO_RESULT):
        return Status.NOT_TESTED
    if conclusion in (Conclusion.BETTER, Conclusion.WORSE):
        predicted = Conclusion.BETTER if sign > 0 else Conclusion.WORSE
        return Status.SUPPORTED if conclusion is predicted else Status.CONTRADICTED
    return Status.CONTRADICTED if conclusion is Conclusion.EQUIVALENT else Status.UNDECIDED


def why(conclusion: Conclusion | None, verdict: Verdict | None) -> str:
    if conclusion is Conclusion.NOTHING:
        return "every trial of both cells collapsed: nothing was learned"
    if verdict is None:
        return ""
    return undecided_by_collapse(verdict) if conclusion is Conclusion.RISK else verdict.reason


def why_untested(claim: Claim, cells: StudyCells) -> str:
    sides = {
        "; ".join(f"{name}={level}" for name, level in {**claim.where, **wanted}.items()): wanted
        for wanted in (claim.before, claim.after)
    }
    absent = [words for words, wanted in sides.items() if not side(claim, cells, wanted)]
    if absent:
        return f"no finished cell with {' and none with '.join(absent)}"
    if claim.on_methods:
        return "no cell of one method that goes with just one of the other"
    return "no two finished cells that differ in nothing else"


def judged_by_probes(family: Sequence[Assessment]) -> list[Assessment]:
    """The claims on probes with their status: Welch's test with Holm's correction. A probe has no margin."""
    down = [all(side.all for side in row.collapsed) for row in family]
    found_p = [math.nan if dead else tested(row.estimate, MARGIN_DB)[0] for row, dead in zip(family, down, strict=True)]
    corrected = rounded(holm(found_p).tolist())
    found = []
    for row, p, dead in zip(family, corrected, down, strict=True):
        if dead:
            status, reason = Status.NOT_TESTED, why(Conclusion.NOTHING, None)
        elif math.isnan(p):
            status, reason = Status.UNDECIDED, "the seeds give one number, or none: no test"
        else:
            agrees = row.estimate.mean * row.claim.sign > 0
            status = Status.UNDECIDED if not p < ALPHA else Status.SUPPORTED if agrees else Status.CONTRADICTED
            reason = f"corrected p = {p:.2g}"
        found.append(dataclasses.replace(row, status=status, reason=reason))
    return found
