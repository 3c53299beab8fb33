"""Find collapsed trials: finished trainings whose network restores nothing.

A trial is collapsed if its record or its probes show that its binary body contributes nothing, if its PSNR is below the
baseline's, or if it is within :data:`REACH_DB` of what the skip of its network gives alone. The skip of a DnCNN is its
input, the baseline of denoising and deblocking. That of an SRResNet is bilinear interpolation, which is below the
baseline, bicubic interpolation. PSNR is averaged over the test sets.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablations.space.study_cells import UNTRAINED

REACH_DB = 0.05
"""A network that gains less than this over its own skip adds nothing that anybody sees."""

NO_SIGNAL = 1e-6  # a branch whose deviation is a smaller share of what it is added to changes no pixel

DECIMALS = 12  # of a gain in dB; scores have six, and the last bits of a sum may say anything


def evidence_of_collapse(result: Mapping[str, Any]) -> str:
    """Return why a finished trial counts as collapsed, by its ``result.json``; empty if it does not."""
    baseline = result["baseline"]
    gains = [scores["psnr_db"] - baseline[name]["psnr_db"] for name, scores in result["metrics"].items()]
    return by_record(result) or by_score(result["method"], result["task"], gains)


def by_record(result: Mapping[str, Any]) -> str:
    """Return why the record of a trial shows that its binary body contributes nothing; empty if it does not.

    ``dead`` in the record is true, or the reason, if the trial itself found so; the probes may show it without that.
    """
    if flag := result.get("dead"):
        return flag if isinstance(flag, str) else "recorded as dead by the trial itself"
    units = list(((result.get("probes") or {}).get("units") or {}).values())
    if none_above([unit.get("entropy") for unit in units]):
        return "the bits of every channel of every binary unit are all equal"
    if none_above([unit.get("branch_ratio") for unit in units]):
        return "no branch of a binary unit adds anything to its residual"
    return ""


def none_above(signals: Sequence[float | None]) -> bool:
    """Whether there are units and none has a signal; a unit that was not measured may have one."""
    return len(signals) > 0 and all(signal is not None and signal <= NO_SIGNAL for signal in signals)


def by_score(method: str, task: str, gains: Iterable[float]) -> str:
    """Return why the scores of a trial show that it collapsed; empty if they do not.

    ``gains`` are its PSNR minus the baseline's in dB on each test set, NaN where one is not known. A method that trains
    nothing does not collapse.
    """
    known = [gain for gain in gains if not math.isnan(gain)]
    if method in UNTRAINED or not known:
        return ""
    gain = round(math.fsum(known) / len(known), DECIMALS) + 0.0  # no minus before a zero
    if gain < 0:
        return f"its PSNR is {-gain:.3f} dB below the baseline's"
    if gain <= REACH_DB and not task.startswith("sr_"):
        return f"its PSNR is only {gain:.3f} dB above that of the input, which the skip of the network gives"
    return ""
