"""What people read in MLflow: descriptions, data sets and the mean over the test sets."""

from pathlib import Path
from typing import Any

import pytest

from ablations.storage.folder import CurvePoint
from ablations.tracking.notes import (
    LONGEST_NOTE,
    MEAN,
    NOTE,
    DataSet,
    cell_in_words,
    data_in_words,
    data_sets_of,
    description_of,
    header_of,
    means_of,
    network_in_words,
    note_tags,
    study_description,
)
from ablations.tracking.runs import facts_of
from tests.ablations.storage.helpers import CELL, result
from tests.harness.paths import REPOSITORY


def described(*verdicts: str, **tags: str) -> str:
    facts = facts_of(result(seed=1))
    return description_of(facts.params, {**facts.tags, "study": "tiny", "cell": CELL, "seed": "1", **tags}, verdicts)


# --- a trial ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ({}, "BBCU"),
        ({"bn": "post"}, "BBCU with BatchNorm after the convolution"),
        ({"residual": False, "bn": "out"}, "BBCU with BatchNorm after the add, without the residual"),
        ({"binarize": ["body", "up"]}, "BBCU with binary upsampling"),
    ],
)
def test_a_cell_is_what_it_has_and_lacks(levels: dict[str, Any], words: str) -> None:
    reference = {"residual": True, "bn": "none", "binarize": ["body"]}
    tags = facts_of({**result(), "levels": {**reference, **levels}, "reference": reference}).tags
    assert cell_in_words(tags) == words


def test_a_method_is_called_by_its_name() -> None:
    assert cell_in_words({**facts_of(result()).tags, "method": "irnet"}).startswith("irnet: BBCU with BatchNorm")


def test_one_block_is_not_spelt_as_several() -> None:
    params = {"network.name": "srresnet", "channels": "8"}
    assert network_in_words({**params, "blocks": "1"}) == "srresnet of 8 channels and 1 block"
    assert network_in_words({**params, "blocks": "10"}) == "srresnet of 8 channels and 10 blocks"


def test_a_description_ends_with_the_setting_the_seed_and_the_data() -> None:
    assert described(data="trained on DIV2K, tested on Set5") == (
        "**BBCU with BatchNorm after the convolution**\n\n"
        "sr_x2, not recorded of 8 channels, 20 steps, seed 1; trained on DIV2K, tested on Set5. "
        "Study `tiny`, cell `aaaaaaaaaaaa`."
    )
    assert "; data ffffffffffff." in described()


def test_what_failed_and_what_collapsed_come_right_after_the_cell() -> None:
    assert described(state="failed", reason="the loss is nan").split("\n\n")[1] == "**failed**: the loss is nan"
    assert described(collapsed="true", collapsed_by="as the input").split("\n\n")[1] == "**collapsed**: as the input"
    assert "collapsed" not in described(collapsed="false", state="finished")


def test_verdicts_are_listed() -> None:
    assert "\n\n- **worse** on Set5\n- **better** on Set14\n\n" in described("**worse** on Set5", "**better** on Set14")


# --- whose description it is ------------------------------------------------------------------------------------------


def test_a_description_is_rewritten_and_one_that_a_user_has_edited_is_kept() -> None:
    first = note_tags({}, "first")
    assert first[NOTE] == "first"
    assert note_tags(first, "first") == {}
    assert note_tags(first, "second")[NOTE] == "second"
    assert note_tags({**first, NOTE: "my own words"}, "second") == {}
    assert note_tags({NOTE: "my own words"}, "second") == {}


def test_a_description_may_be_deleted_to_get_a_new_one() -> None:
    assert note_tags({**note_tags({}, "first"), NOTE: ""}, "second")[NOTE] == "second"


def test_a_long_description_is_cut_and_still_known_as_ours() -> None:
    long = note_tags({}, "x" * (LONGEST_NOTE + 1))
    assert len(long[NOTE]) == LONGEST_NOTE
    assert note_tags(long, "second")[NOTE] == "second"


# --- a study ----------------------------------------------------------------------------------------------------------


def test_a_study_is_described_by_the_comment_of_its_file_and_by_its_plan() -> None:
    header = header_of(REPOSITORY / "conf" / "study" / "components.yaml")
    trials = [{"cell": cell, "seed": seed} for cell in "ab" for seed in range(3)]
    told = study_description("components", {"trials": trials, "left_out": [{}]}, header)
    assert told.startswith("**What are residual, BatchNorm, activation and residual alignment worth")
    assert "\n    python run.py -m study=components" in told
    assert "6 trials: 2 cells, 3 seeds." in told
    assert "1 combination left out" in told
    assert told.endswith("Report: `python -m analysis components`")


def test_a_study_without_a_file_is_described_by_its_plan(tmp_path: Path) -> None:
    assert header_of(tmp_path / "mine.yaml") == ""
    told = study_description("mine", {"trials": [{"cell": "a", "seed": 0}], "left_out": []}, "")
    assert told == "Study `mine`.\n\n1 trial: 1 cell, 1 seed.\n\nReport: `python -m analysis mine`"


# --- data -------------------------------------------------------------------------------------------------------------


def test_a_training_folder_is_called_by_its_name_and_told_from_a_test_set() -> None:
    data = {"name": "folder", "train": "/pictures/DIV2K", "test": {"Set5": "/pictures/Set5"}}
    train, test = data_sets_of(data, trains=True)
    assert train == DataSet("DIV2K", "training", "/pictures/DIV2K")
    assert test == DataSet("Set5", "test", "/pictures/Set5")
    assert data_sets_of({**data, "train": "/other/Set5"}, trains=True)[0].name == "Set5-train"
    assert data_in_words((train, test)) == "trained on DIV2K, tested on Set5"


def test_a_baseline_is_only_tested() -> None:
    assert [each.context for each in data_sets_of({"name": "embedded"}, trains=False)] == ["test"]
    assert data_sets_of(None, trains=True) == ()


# --- the mean over the test sets --------------------------------------------------------------------------------------


def test_the_mean_is_that_of_the_test_sets_of_a_step_however_they_are_grouped() -> None:
    scores = {"Set5/psnr_db": 30.0, "Set14/psnr_db": 20.0}
    others = {"train/psnr_db": 1.0, "baseline/Set5/psnr_db": 2.0, "Set5/ssim": 0.9}
    whole = [CurvePoint(5, {**scores, **others}, 1.0), CurvePoint(9, {"Set5/psnr_db": 31.0}, 2.0)]
    rows = [
        CurvePoint(point.step, {name: value}, point.time) for point in whole for name, value in point.metrics.items()
    ]
    assert means_of(whole) == means_of(rows) == [CurvePoint(5, {MEAN: 25.0}, 1.0), CurvePoint(9, {MEAN: 31.0}, 2.0)]
