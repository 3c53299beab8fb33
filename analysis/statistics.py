"""What numbers under several seeds say, and what they cannot say.

Cells are compared within a seed, because trials of one seed share patches, noise and initial values: the difference
of two cells under one seed is one observation, and the interval is taken over seeds. No interval and no p here is
corrected for multiple comparisons: among twenty effects that are all nothing, one 95 % interval is expected to
exclude 0.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""The share of intervals that cover the truth, if differences between seeds are normal."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n - 1 in the denominator; NaN for n = 1) of ``n`` values."""

    mean: float
    sd: float
    n: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean difference, its 95 % interval from ``low`` to ``high``, and the two-sided p of no difference.

    For n = 1 the interval and p are NaN: one seed cannot tell an effect from noise. For n = 0 all four are NaN.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float


def summary(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and count; NaN for what ``values`` are too few to give."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean()) if array.size else math.nan
    sd = float(array.std(ddof=1)) if array.size > 1 else math.nan
    return Summary(mean, sd, int(array.size))


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Estimate:
    """How far ``values`` lie above ``reference``, paired by position: Student's t interval and test over the pairs.

    Differences that are all equal leave no width: the interval is the point, and p is 0, or 1 where they are all 0.
    Raises ValueError where the two do not pair up.
    """
    if len(values) != len(reference):
        raise ValueError(f"{len(values)} values cannot be paired with {len(reference)}")
    difference = summary(np.subtract(values, reference).tolist())
    if difference.n < 2 or not math.isfinite(difference.mean):
        return Estimate(difference.mean, math.nan, math.nan, difference.n, math.nan)
    error = difference.sd / math.sqrt(difference.n)
    if error == 0:
        return Estimate(difference.mean, difference.mean, difference.mean, difference.n, float(difference.mean == 0))
    freedom = difference.n - 1
    width = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    p = 2 * float(stats.t.sf(abs(difference.mean) / error, freedom))
    return Estimate(difference.mean, difference.mean - width, difference.mean + width, difference.n, p)


def verdict(estimate: Estimate) -> str:
    """What an estimate of a quality in which more is better allows to be said, in words."""
    if estimate.n == 0:
        return "no complete seed: no verdict"
    if not math.isfinite(estimate.mean):
        return "not a finite number: no verdict"
    if estimate.n == 1:
        return "one seed: no verdict"
    if estimate.low > 0:
        return "better"
    if estimate.high < 0:
        return "worse"
    return f"not distinguishable from noise at n = {estimate.n}"
