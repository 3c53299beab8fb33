"""What made the trials: the code and the data of each, and the energy that it took."""

import collections
import functools
import json
from collections.abc import Iterable

import pandas as pd

from ablations.space.study_cells import UNTRAINED
from analysis.study.loading import NOT_RECORDED
from analysis.study.tasks import KEY_LENGTH, TaskResults

ENERGY = "metric/timing/energy_j"
"""The column of the energy that a training took, in joules, on machines that measure it."""


def codes(trials: pd.DataFrame) -> list[str]:
    return [code_in(text) for text in trials["provenance"].tolist()]


@functools.cache
def code_in(provenance: str) -> str:
    recorded = json.loads(provenance) if provenance else {}
    return str(recorded.get("code") or NOT_RECORDED)[:KEY_LENGTH]


def versions(trials: pd.DataFrame) -> dict[str, int]:
    """Count the trials by version of the code; one version if only the user's own parts tell the fingerprints apart.

    A trial with such parts has a fingerprint of its own: that of ``bbcu`` is compared among all trials, and that with
    the parts among those with the same parts.
    """
    found = [json.loads(text) if text else {} for text in trials["provenance"].tolist()]
    shared = counted(str(each.get("bbcu") or each.get("code") or NOT_RECORDED)[:KEY_LENGTH] for each in found)
    by_parts: dict[str, set[str]] = {}
    for each, code in zip(found, codes(trials), strict=True):
        by_parts.setdefault(str(each.get("parts", "")), set()).add(code)
    return counted(codes(trials)) if len(shared) == 1 and any(len(own) > 1 for own in by_parts.values()) else shared


def counted(kinds: Iterable[str]) -> dict[str, int]:
    """Count each kind; sorted by name, what is not recorded last."""
    counts = collections.Counter(kinds)
    return {kind: counts[kind] for kind in sorted(counts, key=lambda kind: (kind == NOT_RECORDED, kind))}


def energies(results: TaskResults) -> pd.Series:
    """The energy in joules of each finished training, NaN if the machine did not measure it."""
    trained = results.finished[~results.finished["method"].isin(UNTRAINED)]
    return trained[ENERGY] if ENERGY in trained else pd.Series(float("nan"), index=trained.index)
