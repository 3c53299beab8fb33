"""Find the collapsed trials of a table, by the rules of :mod:`ablations.space.collapse`."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ablations.space.collapse import by_score
from ablations.storage.folder import Identity
from analysis.study.schema import rows_of


def collapsed_trials(
    trials: pd.DataFrame, sets: Sequence[str], by_record: Mapping[Identity, str]
) -> dict[Identity, str]:
    """Return the collapsed ones of these finished trials, in their order, each with the evidence.

    ``by_record`` holds the evidence of those whose record or probes show it.
    """
    found: dict[Identity, str] = {}
    for row in rows_of(trials):
        identity = (row["cell"], row["seed"])
        gains = [row[f"metric/{name}/psnr_db"] - row[f"metric/baseline/{name}/psnr_db"] for name in sets]
        evidence = by_record.get(identity) or by_score(str(row["method"]), str(row["task"]), gains)
        if evidence:
            found[identity] = evidence
    return found
