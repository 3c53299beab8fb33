"""Comparisons of a study with a stopping rule, as they are after some look, without the trials behind them."""

import math
from collections.abc import Mapping, Sequence

from ablations.decide.decider import Comparison
from ablations.decide.decisions import Decisions
from ablations.decide.progress import ComparisonStatus
from ablations.space.interventions import Pair
from ablations.space.stopping_rule import StoppingRule
from analysis.statistics.estimates import Estimate, Outcome, Verdict
from analysis.statistics.sequential import Judged, Progress

LOOKS = (3, 4, 6, 12)


def judged(progress: Progress, look: int, outcome: Outcome = Outcome.UNDECIDED) -> Judged:
    """A comparison on one test set; its interval is not known."""
    estimate = Estimate(-0.25, math.nan, math.nan, look, math.nan, math.nan, math.nan)
    return Judged(
        progress, look, Verdict(outcome, "there is a reason", estimate, math.nan, math.nan, 3, math.nan, look)
    )


def still_open(look: int) -> Judged:
    """A comparison that is open after a look."""
    return judged(Progress.OPEN, look)


def worse(look: int) -> Judged:
    """A comparison that was decided at a look."""
    return judged(Progress.DECIDED, look, Outcome.WORSE)


def comparison(label: str, on: Mapping[str, Judged], pair: Pair | None = None, task: str = "sr_x2") -> ComparisonStatus:
    """A comparison of the cell ``reference`` with the one that is called like its label, or of a ``pair``."""
    pair = pair or ("reference", label)
    seeds = max((found.look for found in on.values()), default=0)
    return ComparisonStatus(label, task, pair, on, seeds, Comparison(0, pair, on).progress)


def decisions(*comparisons: ComparisonStatus, looks: Sequence[int] = LOOKS, first_seed: int = 0) -> Decisions:
    """What a study with these comparisons has decided."""
    family = tuple(found.pair for found in comparisons)
    return Decisions(StoppingRule(tuple(looks), first_seed, 0.05, (family,)), comparisons)
