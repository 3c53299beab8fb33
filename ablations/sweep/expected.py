"""What a dry run says a sweep may expect: how many trainings, and the smallest effect that its seeds could show."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.config import SweeperConfig
from ablations.planning.plan import Plan, study_cells
from ablations.space.family import family
from ablations.space.interventions import Pair
from ablations.space.stopping_rule import StoppingRule
from ablations.sweep.printing import print_table
from ablations.trial.identity import trains
from bbcu.errors import ConfigError
from bbcu.terminal import say

if TYPE_CHECKING:
    from ablations.decide.forecast import Spread

HOW_TO_GIVE = "give the spread between seeds: hydra.sweeper.spread_db=0.05 or hydra.sweeper.spread_from=STUDY"


def given_spread(options: SweeperConfig, outputs: Path) -> "Spread | None":
    """Return how the scores of a sweep are taken to vary between seeds, None if the options do not say.

    Raises ConfigError for two answers, and for an earlier study that does not exist or does not show a spread.
    """
    from ablations.decide.forecast import Spread, spread_in

    if options.spread_db is not None and options.spread_from is not None:
        raise ConfigError("hydra.sweeper.spread_db and hydra.sweeper.spread_from: give one of them")
    if options.spread_from is not None:
        return spread_in(outputs, options.spread_from)
    return None if options.spread_db is None else Spread(options.spread_db)


def print_expected(planned: Plan, spread: "Spread | None") -> None:
    """Print what a sweep may expect of the trials in ``planned``: all that its stopping rule may ask for, if any."""
    seeds = Counter(entry.identity[0] for entry in planned.listed if trains(entry.config))
    if len(seeds) < 2:
        return
    if spread is None:
        wanted = "which effects its seeds could show" if planned.rule is None else "how many trainings to expect"
        say(f"to learn {wanted}, {HOW_TO_GIVE}")
    elif planned.rule is None:
        print_smallest_effect(planned, min(seeds.values()), seeds, spread)
    else:
        every = {entry.identity[0] for entry in planned.trials if trains(entry.config)}
        print_trainings(planned.rule, every, spread, paired=planned.pairing)


def print_trainings(rule: StoppingRule, cells: Collection[str], spread: "Spread", *, paired: bool) -> None:
    """Print how many trainings a study with a stopping rule may expect."""
    from ablations.decide.forecast import forecasts, smallest_effect

    say(f"expected trainings from the start of the study, if cells spread {spread.in_words(cells)}:")
    rows = [
        [
            found.effects,
            *(f"{found.trainings:.0f}", f"{100 * found.decided:.0f} %"),
            *(str(found.trainings_if_fixed), f"{100 * found.decided_if_fixed:.0f} %"),
        ]
        for found in forecasts(rule, cells, spread, paired=paired)
    ]
    print_table(["true effects", "trainings", "decided", f"{rule.last_look} seeds for every cell", "decided"], rows)
    effect = in_words(smallest_effect(rule, spread, paired=paired), max(map(len, rule.families)))
    say(f"the look at {rule.last_look} seeds could show {effect}")


def print_smallest_effect(plan: Plan, seeds: int, cells: Collection[str], spread: "Spread") -> None:
    """Print the smallest effect that a fixed number of seeds could show."""
    from ablations.decide.forecast import smallest_effect_of_seeds

    comparisons = max(map(len, families_of(plan)), default=0)
    if comparisons == 0:
        return
    if seeds < 2:
        say("one seed could show no effect, because it has no spread; set hydra.sweeper.replicates")
        return
    effect = smallest_effect_of_seeds(seeds, comparisons, spread, paired=plan.pairing)
    say(f"{seeds} seeds could show {in_words(effect, comparisons)}, if cells spread {spread.in_words(cells)}")


def families_of(plan: Plan) -> list[tuple[Pair, ...]]:
    """Return the comparisons that the report of a plan without a stopping rule corrects together."""
    first = {entry.identity[0]: entry for entry in reversed(plan.listed)}
    return list(map(family, study_cells(list(reversed(first.values())), plan.design)))


def in_words(effect: float, comparisons: int) -> str:
    hardest = "" if comparisons == 1 else f" in the hardest of {comparisons} comparisons"
    return f"an effect of {effect:.2g} dB with 80 % power{hardest}"
