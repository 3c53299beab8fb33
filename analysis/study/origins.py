"""What made the trials: the code and the data of each, and the energy that it took."""

import collections
import functools
import json
from collections.abc import Iterable, Mapping

import pandas as pd

from ablations.storage.folder import Identity
from analysis.study.loading import NOT_RECORDED
from analysis.study.methods import UNTRAINED
from analysis.study.settings import KEY_LENGTH, SettingResults

ENERGY = "metric/timing/energy_j"
"""The column of the energy that a training took, in joules, on machines that measure it."""


def codes(trials: pd.DataFrame) -> list[str]:
    """The fingerprint of the code that made each trial, cut short."""
    return [code_in(text) for text in trials["provenance"].tolist()]


@functools.cache
def code_in(provenance: str) -> str:
    """The fingerprint in a trial's provenance, or ``NOT_RECORDED``."""
    recorded = json.loads(provenance) if provenance else {}
    return str(recorded.get("code") or NOT_RECORDED)[:KEY_LENGTH]


def code_by_trial(results: SettingResults) -> dict[Identity, str]:
    """The code that made each finished trial."""
    return dict(zip(results.identities, codes(results.finished), strict=True))


def data_of(results: SettingResults) -> str:
    """The fingerprint of the data of a setting, cut short."""
    return results.setting.get("data", NOT_RECORDED)[:KEY_LENGTH]


def counted(kinds: Iterable[str]) -> dict[str, int]:
    """Count each kind; sorted by name, what is not recorded last."""
    counts = collections.Counter(kinds)
    return {kind: counts[kind] for kind in sorted(counts, key=lambda kind: (kind == NOT_RECORDED, kind))}


def counted_in_words(counts: Mapping[str, int]) -> list[str]:
    """Each kind with its number of trials, in Markdown."""
    return [
        f"{kind if kind == NOT_RECORDED else f'`{kind}`'} ({number} trial{'' if number == 1 else 's'})"
        for kind, number in counts.items()
    ]


def energies(results: SettingResults) -> pd.Series:
    """The energy in joules of each finished training, NaN if the machine did not measure it."""
    trained = results.finished[~results.finished["method"].isin(UNTRAINED)]
    return trained[ENERGY] if ENERGY in trained else pd.Series(float("nan"), index=trained.index)


def energy_in_words(results: SettingResults) -> str:
    """The energy that the trainings took in total and each, or that it is not known; empty if nothing was trained."""
    found = energies(results)
    if found.empty:
        return ""
    known = found.dropna()
    if known.empty:
        return "How much energy the trainings took is not known: the machine does not measure it."
    if len(known) < len(found):
        return (
            f"How much energy the trainings took is known for {len(known)} of {len(found)} only, on machines that "
            "measure it, so no sum is given."
        )
    return (
        f"The trainings took {known.sum():,.0f} J in total, {known.mean():,.0f} J each ({known.min():,.0f} to "
        f"{known.max():,.0f} J), as measured by the machine."
    )
