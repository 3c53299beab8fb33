"""Find collapsed trials: finished trainings whose network restores nothing.

A trial is collapsed if its record or its probes show that its binary body contributes nothing, if its PSNR is below the
baseline's, or if it is within :data:`REACH_DB` of what the skip of its network gives alone. The skip of a DnCNN is its
input, the baseline of denoising and deblocking. That of an SRResNet is bilinear interpolation, which is below the
baseline, bicubic interpolation. PSNR is averaged over the test sets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.storage.folder import Identity
from analysis.statistics.rounding import rounded
from analysis.study.methods import UNTRAINED
from analysis.study.schema import rows_of

REACH_DB = 0.05
"""A network that gains less than this over its own skip adds nothing that anybody sees."""


def collapsed_trials(
    trials: pd.DataFrame, sets: Sequence[str], by_record: Mapping[Identity, str]
) -> dict[Identity, str]:
    """Return the collapsed ones of these finished trials, in their order, each with the evidence.

    ``by_record`` holds the evidence of those whose record or probes show it.
    """
    found: dict[Identity, str] = {}
    for row in rows_of(trials):
        identity = (row["cell"], row["seed"])
        evidence = by_record.get(identity) or ("" if row["method"] in UNTRAINED else by_score(row, sets))
        if evidence:
            found[identity] = evidence
    return found


def by_score(row: Mapping[str, Any], sets: Sequence[str]) -> str:
    """Return why the scores of a trial show that it collapsed; empty if they do not."""
    gains = [row[f"metric/{name}/psnr_db"] - row[f"metric/baseline/{name}/psnr_db"] for name in sets]
    known = [float(gain) for gain in gains if gain == gain]
    if not known:
        return ""
    gain = rounded(sum(known) / len(known))
    if gain < 0:
        return f"its PSNR is {-gain:.3f} dB below the baseline's"
    if gain <= REACH_DB and not str(row["task"]).startswith("sr_"):
        return f"its PSNR is only {gain:.3f} dB above that of the input, which the skip of the network gives"
    return ""
