"""Which results are those of a collapsed training, by the result alone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ablations.space.collapse import evidence_of_collapse
from tests.harness.judging import only_task
from tests.harness.studies import Trial, read_back, result_of, trial

SR, DENOISE = {"name": "sr_x2", "scale": 2}, {"name": "denoise", "sigma": [15, 25]}
DEAD_UNITS = {"pictures": 1, "units": {"body.0": {"entropy": 0.9, "branch_ratio": 0.0}}}


def scored(set5: float, task: dict[str, Any] = SR, set14: float | None = None, **others: Any) -> Trial:
    """The baseline scores 30 dB."""
    psnr_db = {"Set5": set5} if set14 is None else {"Set5": set5, "Set14": set14}
    trained = dataclasses.replace(trial(), psnr_db=psnr_db, baseline_db=30.0, others={"task": task})
    return dataclasses.replace(trained, **others)


@pytest.mark.parametrize(
    ("one", "evidence"),
    [
        pytest.param(scored(30.01), "", id="above interpolation"),
        pytest.param(scored(29.9), "its PSNR is 0.100 dB below the baseline's", id="below it"),
        pytest.param(scored(30.06, DENOISE), "", id="beyond the reach of the skip"),
        pytest.param(scored(30.05, DENOISE), "its PSNR is only 0.050 dB above that of the input", id="within it"),
        pytest.param(scored(30.0, DENOISE), "its PSNR is only 0.000 dB above that of the input", id="the input"),
        pytest.param(
            scored(30.0 - 1e-13, DENOISE), "its PSNR is only 0.000 dB above that of the input", id="a rounding error"
        ),
        pytest.param(scored(30.0, DENOISE, method="identity"), "", id="nothing is trained"),
        pytest.param(scored(31.0, dead="one colour"), "one colour", id="found by the trial"),
        pytest.param(scored(31.0, probes=DEAD_UNITS), "no branch of a binary unit adds anything", id="probes"),
        pytest.param(scored(30.1, set14=29.95), "", id="below the baseline on one of two test sets"),
    ],
)
def test_a_result_shows_that_its_training_collapsed_as_a_report_says(tmp_path: Path, one: Trial, evidence: str) -> None:
    found = evidence_of_collapse(result_of(one))
    assert found.startswith(evidence)
    assert bool(found) == bool(evidence)
    in_report = only_task(read_back(tmp_path, [one])).collapsed
    assert in_report.get((one.cell, one.seed), "") == found
