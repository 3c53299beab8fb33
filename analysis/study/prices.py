"""What a binary multiply-add counts in a report: 1/64 as in the paper, another price, or nothing if a clock ranks.

At another price the operations follow from the multiply-adds of both kinds, which newer results record.
"""

import dataclasses

from ablations.space.price import MEASURED, PAPER, price_of
from ablations.space.study_cells import UNTRAINED
from analysis.study.latency import RATIO
from analysis.study.loading import StudyResults
from analysis.study.schema import COUNTS
from bbcu.errors import ConfigError, shown

OPTION = "--cost-binary"
OPS = "metric/cost/ops_g"

DECIMALS = 3
"""Operations in 10^9 have as many as a result has."""


def operations(full: float, binary: float, price: str) -> float:
    """Return the operations of 10^9 multiply-adds of both kinds; those of the paper where a clock ranks."""
    return round(full + binary * float(price_of(PAPER if price == MEASURED else price) or 0), DECIMALS)


def lacking(study: StudyResults, price: str) -> str:
    """Say what the results lack for a price; empty if nothing."""
    own = study.finished[study.finished["planned"] == "true"]
    own = own[~own["method"].isin(UNTRAINED)]
    if price == MEASURED:
        return "" if RATIO in own and own[RATIO].notna().any() else "no trial has measured its latency"
    columns = [f"metric/cost/{name}" for name in COUNTS]
    if price_of(price) == price_of(PAPER) or all(name in own and own[name].notna().all() for name in columns):
        return ""
    return "some trials do not record their full-precision and binary multiply-adds"


def at_price(study: StudyResults, given: str | None) -> StudyResults:
    """Return a study at the given price of a binary multiply-add, or else at its own if its results allow that.

    Raises ConfigError for a given price that is none, or that the results do not allow.
    """
    if given is None:
        return study if not lacking(study, study.price) else dataclasses.replace(study, price=PAPER)
    price_of(given, OPTION)
    if problem := lacking(study, given):
        raise ConfigError(f"{OPTION}={shown(given)}: {problem} in study {study.study}")
    return dataclasses.replace(study, price=PAPER if price_of(given) == price_of(PAPER) else given)


def priced(study: StudyResults) -> StudyResults:
    """Return a study whose operations are those at its price."""
    price = price_of(study.price)
    columns = [f"metric/cost/{name}" for name in COUNTS]
    if price is None or price == price_of(PAPER) or any(name not in study.trials for name in columns):
        return study
    full, binary = (study.trials[name] for name in columns)
    ops = (full + binary * float(price)).round(DECIMALS).fillna(study.trials[OPS])
    return dataclasses.replace(study, trials=study.trials.assign(**{OPS: ops}))
