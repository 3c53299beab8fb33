"""What a search is asked for: its objectives, sampler, pruner and storage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from bbcu.errors import ConfigError, unknown

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

from ablations.search.storages import _check_storage

Direction: TypeAlias = Literal["maximize", "minimize"]

QUALITY = "psnr_db"
OBJECTIVES: dict[str, Direction] = {QUALITY: "maximize", "ops_g": "minimize", "params_k": "minimize"}
"""What can be searched for, and which way is better."""

DRAWS = 3
"""How many rows are drawn for one new cell before the nearest new one is taken; a drawn row costs milliseconds."""

POPULATION = 8
"""The size of a generation of NSGA-II. Optuna's 50 is more cells than most ablations train at all."""


# --- what is searched -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchOptions:
    """How to search; each is the key of ``hydra.sweeper`` of its name, but ``name``, which is the study's.

    ``trials`` is how many cells to train at most, those of earlier sessions included. ``objectives`` are of
    ``OBJECTIVES``. ``sampler`` is tpe, nsga2 or random, by default tpe for one objective and nsga2 for several.
    ``pruner`` is none, median or halving. ``storage`` is a file that ends in .log, or the URL of a database in SQLite
    or PostgreSQL. ``code`` is the fingerprint of the code that trains, and ``on_change`` what becomes of scores that
    other code has made: stop, keep them, or retrain, which begins the search anew. Raises ConfigError for what cannot
    be searched with.
    """

    trials: int
    storage: str
    name: str
    objectives: tuple[str, ...] = (QUALITY,)
    sampler: str | None = None
    pruner: str = "none"
    seed: int = 0
    code: str = ""
    on_change: str = "stop"

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"hydra.sweeper.trials={self.trials}: must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"hydra.sweeper.seed={self.seed}: must be at least 0")
        if self.chosen_sampler not in SAMPLERS:
            raise ConfigError(f"hydra.sweeper.sampler: {unknown('sampler', self.sampler, SAMPLERS)}")
        if self.pruner not in PRUNERS:
            raise ConfigError(f"hydra.sweeper.pruner: {unknown('pruner', self.pruner, PRUNERS)}")
        _check_objectives(self.objectives, self.pruner)
        _check_storage(self.storage)

    @property
    def chosen_sampler(self) -> str:
        return self.sampler or ("tpe" if len(self.objectives) == 1 else "nsga2")


def _check_objectives(objectives: Sequence[str], pruner: str) -> None:
    asked = f"hydra.sweeper.objectives=[{','.join(objectives)}]"
    for name in objectives:
        if name not in OBJECTIVES:
            raise ConfigError(f"hydra.sweeper.objectives: {unknown('objective', name, OBJECTIVES)}")
        if objectives.count(name) > 1:
            raise ConfigError(f"{asked}: {name} is there twice")
    if QUALITY not in objectives:
        raise ConfigError(f"{asked}: {QUALITY} must be among them; hydra.sweeper.dry_run=true lists costs untrained")
    if len(objectives) > 1 and pruner != "none":
        raise ConfigError(f"hydra.sweeper.pruner={pruner}: needs one objective, and {asked} has {len(objectives)}")


def _tpe(seed: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed)


def _nsga2(seed: int) -> "BaseSampler":
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(population_size=POPULATION, seed=seed)


def _random(seed: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _no_pruner() -> "BasePruner":
    from optuna.pruners import NopPruner

    return NopPruner()


def _median() -> "BasePruner":
    from optuna.pruners import MedianPruner

    return MedianPruner()


def _halving() -> "BasePruner":
    from optuna.pruners import SuccessiveHalvingPruner

    return SuccessiveHalvingPruner()


SAMPLERS: dict[str, "Callable[[int], BaseSampler]"] = {"tpe": _tpe, "nsga2": _nsga2, "random": _random}
PRUNERS: dict[str, "Callable[[], BasePruner]"] = {"none": _no_pruner, "median": _median, "halving": _halving}
