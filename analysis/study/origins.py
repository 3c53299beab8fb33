"""What made the trials: the code and the data of each, and the energy that it took."""

import collections
import functools
import json
from collections.abc import Iterable, Mapping

import pandas as pd

from ablations.storage.folder import Identity
from analysis.study.loading import NOT_RECORDED
from analysis.study.methods import UNTRAINED
from analysis.study.settings import KEY_LENGTH, Section

ENERGY = "metric/timing/energy_j"
"""The column of the energy that a training took, in joules, where the machine tells it."""


def codes(trials: pd.DataFrame) -> list[str]:
    """The fingerprint of the code that made each trial, cut short."""
    return [code_in(text) for text in trials["provenance"].tolist()]


@functools.cache
def code_in(provenance: str) -> str:
    """The fingerprint in a trial's provenance; one that is not there is a kind of its own."""
    recorded = json.loads(provenance) if provenance else {}
    return str(recorded.get("code") or NOT_RECORDED)[:KEY_LENGTH]


def code_by_trial(section: Section) -> dict[Identity, str]:
    """The code that made each finished trial."""
    return dict(zip(section.identities, codes(section.finished), strict=True))


def data_of(section: Section) -> str:
    """The fingerprint of the data of a setting, cut short."""
    return section.setting.get("data", NOT_RECORDED)[:KEY_LENGTH]


def counted(kinds: Iterable[str]) -> dict[str, int]:
    """How many there are of each kind, sorted by name, what is not recorded last."""
    counts = collections.Counter(kinds)
    return {kind: counts[kind] for kind in sorted(counts, key=lambda kind: (kind == NOT_RECORDED, kind))}


def counted_in_words(counts: Mapping[str, int]) -> list[str]:
    """Each kind with how many trials are of it."""
    return [
        f"{kind if kind == NOT_RECORDED else f'`{kind}`'} ({number} trial{'' if number == 1 else 's'})"
        for kind, number in counts.items()
    ]


def energies(section: Section) -> pd.Series:
    """The energy in joules that each finished training took, NaN where the machine did not tell it."""
    trained = section.finished[~section.finished["method"].isin(UNTRAINED)]
    return trained[ENERGY] if ENERGY in trained else pd.Series(float("nan"), index=trained.index)


def energy_in_words(section: Section) -> str:
    """What the trainings took, in all and each, or that it is not known; nothing where nothing was trained."""
    found = energies(section)
    if found.empty:
        return ""
    told = found.dropna()
    if told.empty:
        return "How much energy the trainings took is not known: the machine does not tell."
    if len(told) < len(found):
        return (
            f"How much energy the trainings took is known of {len(told)} of {len(found)} alone, where the machine "
            "tells, so no sum is given."
        )
    return (
        f"The trainings took {told.sum():,.0f} J in all, {told.mean():,.0f} J each ({told.min():,.0f} to "
        f"{told.max():,.0f} J), as the machine tells it."
    )
