"""The parts of a stopping rule: the looks by the options, the families by the cells, and the first seed."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path

from ablations.config import DECIDED, SweeperConfig
from ablations.space.family import family
from ablations.space.interventions import Pair
from ablations.space.stopping_rule import StoppingRule
from ablations.space.study_cells import StudyCells
from ablations.storage.folder import Identity, TrialFolder, identities_in, study_folder
from ablations.storage.plans import planned_rule, refuse_damaged_plan
from bbcu.errors import ConfigError, shown

UNTIL = f"hydra.sweeper.until={DECIDED}"


def looks_of(options: SweeperConfig) -> tuple[int, ...]:
    """Return the looks of a sweep until all is decided; none for another sweep.

    Raises ConfigError for options that do not fit together.
    """
    if options.until is None:
        for name in ("most_replicates", "looks"):
            if getattr(options, name) is not None:
                raise ConfigError(f"hydra.sweeper.{name}: has no effect without {UNTIL}; add it")
        return ()
    first, last = options.replicates, options.most_replicates
    if options.design == "search":
        raise ConfigError(f"{UNTIL}: design=search compares no cells; use another design")
    if first < 2:
        raise ConfigError(
            f"hydra.sweeper.replicates={first}: must be at least 2 with {UNTIL}: one seed shows no spread"
        )
    if last is None:
        raise ConfigError(f"{UNTIL} needs hydra.sweeper.most_replicates, the number of seeds at which it ends")
    if last <= first:
        raise ConfigError(f"hydra.sweeper.most_replicates={last}: must be above hydra.sweeper.replicates={first}")
    looks = tuple(range(first, last + 1)) if options.looks is None else tuple(options.looks)
    ascend = all(before < after for before, after in itertools.pairwise(looks))
    if not ascend or looks[:1] != (first,) or looks[-1:] != (last,):
        given = shown(",".join(map(str, looks)))
        raise ConfigError(
            f"hydra.sweeper.looks=[{given}]: must ascend from hydra.sweeper.replicates={first} to "
            f"hydra.sweeper.most_replicates={last}"
        )
    return looks


def families_of(studies: Iterable[StudyCells]) -> tuple[tuple[Pair, ...], ...]:
    """Return the comparisons of each task that has some; raise ConfigError if there are none at all."""
    families = tuple(filter(None, map(family, studies)))
    if not families:
        raise ConfigError(f"{UNTIL}: no two cells of this sweep make a comparison, so there is nothing to decide")
    return families


def rule_of(asked: StoppingRule, trials: Collection[Identity], outputs: Path, study: str) -> StoppingRule:
    """Return the rule that is asked for, with its first seed, and with the boundary that the study was planned with.

    A later version may spread the error differently over the looks; a study goes on as it began. Raises ConfigError if
    the plan is damaged: a new rule would draw new seeds, and with them another chance of each verdict.
    """
    refuse_damaged_plan(outputs, study)
    shape = planned_rule(outputs, study) or asked
    first_seed = first_seed_of(trials, outputs, study)
    return dataclasses.replace(asked, first_seed=first_seed, floor=shape.floor, rise=shape.rise)


def first_seed_of(trials: Collection[Identity], outputs: Path, study: str) -> int:
    """Return the first seed of a rule about the cells of these trials, which all have one seed.

    If the study was planned with a rule, it is that one's, unless a later seed is asked for, which makes another rule.
    Otherwise it is the seed of the trials, or the first after every result of their cells: a result that was known when
    the rule was chosen counts in no verdict, because seeds that are added after having looked make more verdicts wrong
    than the error rate says.
    """
    seeds = {seed for _, seed in trials}
    if len(seeds) > 1:
        raise ConfigError(f"seed: {UNTIL} chooses the seeds of each cell; give it one value, the first seed")
    # Results first: what a sweep has trained under a rule is listed only if its rule is read below.
    known = seeds_with_result(outputs, study, {cell for cell, _ in trials})
    planned = planned_rule(outputs, study)
    earliest = [seed + 1 for seed in known] if planned is None else [planned.first_seed]
    return max([*seeds, *earliest])


def seeds_with_result(outputs: Path, study: str, cells: Collection[str]) -> list[int]:
    """Return the seed of every trial of these cells that has a result, damaged or not."""
    trials = [identity for identity in identities_in(study_folder(outputs, study)) if identity[0] in cells]
    return [seed for cell, seed in trials if TrialFolder(outputs, study, cell, seed).result_path.exists()]
