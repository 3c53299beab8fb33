"""What a study may expect before it trains: how many trainings, and the smallest effect that its seeds could show."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablations.decide.decider import boundary_of
from ablations.decide.results import finished_trial
from ablations.space.interventions import Pair
from ablations.space.stopping_rule import StoppingRule
from ablations.space.study_cells import UNTRAINED
from ablations.storage.folder import trial_folders
from ablations.storage.status import studies
from analysis.statistics.estimates import correlation_within_seeds, summary
from analysis.statistics.expectation import Expectation, Truth, effects_of, expectation, smallest_shown
from analysis.statistics.sequential import Boundary
from bbcu.errors import ConfigError

EFFECTS_DB = (0.0, 0.1, 0.2, 0.5, 1.0)
"""True effects for which the trainings are predicted, beside the margin."""

LARGEST_CORRELATION = 0.99  # of cells that are taken to share their seeds, so that differences still spread


@dataclass(frozen=True)
class Spread:
    """How scores vary between seeds, in dB: the standard deviation of each cell in ``own``, and ``typical`` of others.

    ``means`` has the mean scores of an earlier ``study`` on one test set, by cell. ``correlation`` is that of two cells
    within a seed.
    """

    typical: float
    own: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    correlation: float = 0.0
    study: str = ""

    def of(self, cell: str) -> float:
        return self.own.get(cell, self.typical)

    def in_words(self, cells: Collection[str]) -> str:
        """Return how these cells are taken to spread: ``by 0.1 dB``."""
        if not self.study:
            return f"by {self.typical:g} dB"
        known = sum(cell in self.own for cell in cells)
        median = f"by the median of study {self.study}, {self.typical:.2g} dB"
        if known == 0:
            return median
        each = f"each as in study {self.study}"
        return each if known == len(cells) else f"{each}, or if they are not in it {median}"


def spread_in(outputs: Path, study: str) -> Spread:
    """Return how the scores of an earlier study vary, on the test set where they vary most.

    Raises ConfigError for a study that does not exist, or without two seeds in any cell.
    """
    if study not in (available := studies(outputs)):
        names = ", ".join(available) or "none"
        raise ConfigError(f"hydra.sweeper.spread_from={study}: no such study in {outputs}; available: {names}")
    spreads = [spread_on(scores, study) for _, scores in sorted(scores_in(outputs, study).items())]
    found = [spread for spread in spreads if spread is not None]
    if not found:
        raise ConfigError(
            f"hydra.sweeper.spread_from={study}: none of its cells has results of two seeds, so it shows no spread"
        )
    return max(found, key=lambda spread: spread.typical)


def scores_in(outputs: Path, study: str) -> dict[str, dict[str, dict[int, float]]]:
    """Return the finite PSNR of a study's trained cells, by test set, cell and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for folder in trial_folders(outputs, study):
        result = folder.result()
        if result is not None and result["method"] not in UNTRAINED:
            for name, psnr_db in finished_trial(result).psnr_db.items():
                if math.isfinite(psnr_db):
                    found.setdefault(name, {}).setdefault(folder.cell, {})[folder.seed] = psnr_db
    return found


def spread_on(scores: Mapping[str, Mapping[int, float]], study: str) -> Spread | None:
    """Return how scores by cell and seed vary; None if no cell has two."""
    summaries = {cell: summary(list(own.values())) for cell, own in scores.items()}
    own = {cell: found.sd for cell, found in summaries.items() if found.n > 1}
    if not own:
        return None
    correlation = correlation_within_seeds(scores)
    return Spread(
        statistics.median(own.values()),
        own,
        {cell: found.mean for cell, found in summaries.items()},
        min(max(correlation, 0.0), LARGEST_CORRELATION) if math.isfinite(correlation) else 0.0,
        study,
    )


# --- trainings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """What a study may expect if its true effects are as ``effects`` says: the mean number of ``trainings``, and the
    mean share of its comparisons that is ``decided``; ``if_fixed`` of a plan with the last look's seeds for all cells.
    """

    effects: str
    trainings: float
    trainings_if_fixed: int
    decided: float
    decided_if_fixed: float


def forecasts(rule: StoppingRule, cells: Collection[str], spread: Spread, *, paired: bool) -> list[Forecast]:
    """Return what a study of these trained cells may expect, from its start, on one test set.

    All comparisons have the same effect, or those of the earlier study if it has all their cells.
    """
    pairs = [pair for family in rule.families for pair in family]
    cases: dict[str, dict[Pair, float]] = {
        f"{effect:g} dB": dict.fromkeys(pairs, effect) for effect in sorted({*EFFECTS_DB, rule.margin_db})
    }
    if spread.study and all(cell in spread.means for pair in pairs for cell in pair):
        cases[f"as in study {spread.study}"] = effects_of(pairs, spread.means)
    return [forecast(rule, cells, spread, name, effects, paired) for name, effects in cases.items()]


def forecast(
    rule: StoppingRule, cells: Collection[str], spread: Spread, name: str, effects: Mapping[Pair, float], paired: bool
) -> Forecast:
    """Return what a study may expect with these true effects, which are called ``name``."""
    found = [expected(rule, family, spread, effects, paired) for family in rule.families]
    comparisons = [each for one in found for each in one.comparisons]
    rest = len(cells) - len({cell for pair in effects for cell in pair})
    return Forecast(
        name,
        sum(one.trainings for one in found) + rest * rule.first_look,
        len(cells) * rule.last_look,
        statistics.fmean(each.decided for each in comparisons),
        statistics.fmean(each.decided_if_fixed for each in comparisons),
    )


def expected(
    rule: StoppingRule, family: Sequence[Pair], spread: Spread, effects: Mapping[Pair, float], paired: bool
) -> Expectation:
    """Return what the cells of one family may expect."""
    spreads = {cell: spread.of(cell) for pair in family for cell in pair}
    # Cells that are not compared within a seed are tested as if they shared nothing.
    truth = Truth({pair: effects[pair] for pair in family}, spreads, spread.correlation if paired else 0.0)
    return expectation(truth, boundary_of(rule), rule.margin_db, paired=paired)


def smallest_effect(rule: StoppingRule, spread: Spread, *, paired: bool) -> float:
    """Return the smallest effect in dB that the last look could show with 80 % power in the hardest comparison."""
    return smallest_at(boundary_of(rule), max(map(len, rule.families)), spread, paired)


def smallest_effect_of_seeds(seeds: int, comparisons: int, spread: Spread, *, paired: bool) -> float:
    """Return the same for a plain study with so many seeds, at least 2, and comparisons."""
    return smallest_at(Boundary((seeds,)), comparisons, spread, paired)


def smallest_at(boundary: Boundary, comparisons: int, spread: Spread, paired: bool) -> float:
    of_one = spread.typical * math.sqrt(2 * (1 - spread.correlation)) if paired else spread.typical
    return smallest_shown(of_one, boundary, comparisons, paired=paired)
