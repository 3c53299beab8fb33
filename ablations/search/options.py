"""The options of a search: its objectives, sampler, pruner and storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ablations.search.storages import check_storage
from ablations.space.price import MEASURED, PAPER, price_of
from bbcu.errors import ConfigError, unknown

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

Direction: TypeAlias = Literal["maximize", "minimize"]

QUALITY, OPS, LATENCY = "psnr_db", "ops_g", "latency_ratio"
OBJECTIVES: dict[str, Direction] = {
    QUALITY: "maximize",
    OPS: "minimize",
    "params_k": "minimize",
    LATENCY: "minimize",
}
"""The objectives of a search, each with the direction that is better."""

OPTION_KEYS = ("trials", "objectives", "sampler", "pruner", "storage", "seed")
"""The keys of ``hydra.sweeper`` that are options of a search."""

SAMPLERS = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "random": "RandomSampler"}
PRUNERS = {"none": "NopPruner", "median": "MedianPruner", "halving": "SuccessiveHalvingPruner"}
"""The names of samplers and pruners, and the classes of Optuna that implement them."""

POPULATION = 8
"""The size of a generation of NSGA-II; Optuna's default of 50 is more cells than most studies train in total."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search; each field to ``seed`` is a key of ``hydra.sweeper``, except ``name``.

    ``trials`` is the largest number of cells to train, including those of earlier sessions. ``objectives`` are keys of
    ``OBJECTIVES``. ``sampler`` is tpe, nsga2 or random, by default tpe for one objective and nsga2 for several.
    ``pruner`` is none, median or halving. ``storage`` is a file that ends in .log, or the URL of a database in SQLite
    or PostgreSQL. ``name`` is the study's. ``code`` is the fingerprint of the code that trains, and ``on_change`` says
    what to do with scores of different code: stop, keep them, or retrain, which starts a new search. ``binary_price``
    and ``measures_latency`` are ``cost.binary`` and ``measure.latency``. Raises ConfigError for invalid options.
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
    binary_price: str = PAPER
    measures_latency: bool = False

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
        _check_costs(self)
        check_storage(self.storage)

    @property
    def chosen_sampler(self) -> str:
        return self.sampler or ("tpe" if len(self.objectives) == 1 else "nsga2")

    @property
    def measure(self) -> tuple[str, ...]:
        """What makes values comparable: the objectives, and the price of a binary multiply-add if it is not usual."""
        price = price_of(self.binary_price)
        is_usual = OPS not in self.objectives or price == price_of(PAPER)
        return self.objectives if is_usual else (*self.objectives, f"cost.binary={price}")


def _check_objectives(objectives: Sequence[str], pruner: str) -> None:
    option = f"hydra.sweeper.objectives=[{','.join(objectives)}]"
    for name in objectives:
        if name not in OBJECTIVES:
            raise ConfigError(f"hydra.sweeper.objectives: {unknown('objective', name, OBJECTIVES)}")
        if objectives.count(name) > 1:
            raise ConfigError(f"{option}: {name} is named twice")
    if QUALITY not in objectives:
        raise ConfigError(f"{option}: {QUALITY} must be among them; hydra.sweeper.dry_run=true lists costs untrained")
    if len(objectives) > 1 and pruner != "none":
        raise ConfigError(f"hydra.sweeper.pruner={pruner}: needs one objective, and {option} has {len(objectives)}")


def _check_costs(options: SearchOptions) -> None:
    option = f"hydra.sweeper.objectives=[{','.join(options.objectives)}]"
    if LATENCY in options.objectives and not options.measures_latency:
        raise ConfigError(f"{option}: {LATENCY} needs measure.latency=true")
    if OPS in options.objectives and price_of(options.binary_price) is None:
        raise ConfigError(
            f"{option}: {OPS} is counted, and cost.binary={MEASURED} is no price; search for {LATENCY} instead, or set "
            f"cost.binary={PAPER}"
        )


def sampler_of(name: str, seed: int) -> "BaseSampler":
    """Return a sampler; Optuna is imported here because that is slow and most sweeps do not need it."""
    import optuna.samplers

    more = {"population_size": POPULATION} if name == "nsga2" else {}
    sampler: BaseSampler = getattr(optuna.samplers, SAMPLERS[name])(seed=seed, **more)
    return sampler


def pruner_of(name: str) -> "BasePruner":
    import optuna.pruners

    pruner: BasePruner = getattr(optuna.pruners, PRUNERS[name])()
    return pruner
