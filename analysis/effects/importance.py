"""Which keys mattered to the score among the cells that a search tried; a hint, without a verdict.

Optuna's PED-ANOVA compares how often each level is among the best quarter of the cells with how often it is among all.
It is chosen since a report must be the same on every processor: it has no random numbers, and scores only decide which
cells are the best. Forests (fANOVA, mean decrease in impurity) choose splits by sums of floats, whose last digits
differ between processors, and a seed does not help against that.
"""

import dataclasses
import statistics
import warnings

from analysis.statistics.rounding import rounded
from analysis.study.tasks import TaskResults, varying

FEWEST_CELLS = 10
"""Of fewer cells, the best quarter would be one or two."""

BEST = 0.25
"""The share of the cells that counts as the best; at Optuna's 10 %, most searches would have fewer than five."""


@dataclasses.dataclass(frozen=True)
class Importance:
    """How much a key mattered, as a share: those of all keys add up to 1. ``levels`` is how many were tried."""

    key: str
    levels: int
    share: float


def importances(results: TaskResults) -> list[Importance] | str:
    """Return the importance of each key that varies, the largest first, or in one sentence why there is none.

    A cell counts with its mean PSNR over the seeds on the first test set.
    """
    cells = {cell: levels.asked for cell, levels in results.trained.items()}
    if len(cells) < FEWEST_CELLS:
        return f"Which keys mattered is not estimated from fewer than {FEWEST_CELLS} cells."
    keys = varying(cells.values(), sorted({key for levels in cells.values() for key in levels}))
    if len(keys) < 2:
        return "Which keys mattered is not estimated: fewer than two vary."
    psnr = results.psnr(results.sets[0])
    scores = {cell: rounded(statistics.fmean(psnr[cell].values())) for cell in cells}
    if len(set(scores.values())) == 1:
        return "Which keys mattered is not estimated: all cells have the same score."
    shares = _shares([({key: cells[cell].get(key, "") for key in keys}, score) for cell, score in scores.items()])
    found = [Importance(key, len({levels.get(key, "") for levels in cells.values()}), shares[key]) for key in keys]
    return sorted(rounded(found), key=lambda one: (-one.share, one.key))


def _shares(scored: list[tuple[dict[str, str], float]]) -> dict[str, float]:
    """Return the importance of each key, from the levels and the score of each cell."""
    # Only the report of a search needs Optuna, which takes long to import.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    levels = {key: sorted({own[key] for own, _ in scored}) for key in scored[0][0]}
    choices = {key: optuna.distributions.CategoricalDistribution(found) for key, found in levels.items()}
    study.add_trials(
        optuna.trial.create_trial(params=own, distributions=dict(choices), value=score) for own, score in scored
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST)
    with warnings.catch_warnings(action="ignore"):
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
