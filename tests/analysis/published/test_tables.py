"""The paper's tables are whole, typed, consistent, and doubted where they are not."""

import itertools

import pandas as pd
import pytest

from analysis.published.tables import (
    BINARY,
    NO_NETWORK,
    ROUNDING_DB,
    doubt_of,
    points,
    printed_difference,
    published,
)
from bbcu.model.methods import METHODS
from bbcu.model.published import published_costs

SETS = {1: 5, 2: 3, 3: 2}
LEVELS = {1: (2, 4), 2: (15, 25, 50), 3: (10, 20, 30, 40)}
METHOD_COUNTS = {1: 11, 2: 8, 3: 8}
NETWORKS = {"sr_x2": "SRResNet x2", "sr_x4": "SRResNet x4", "denoise": "DnCNN", "jpeg": "DnCNN-3"}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return published()


def test_every_method_has_every_set_at_every_level_but_for_what_is_known_to_lack(frame: pd.DataFrame) -> None:
    for table, rows in frame.groupby("table"):
        known = itertools.product(rows["name"].unique(), rows["test_set"].unique(), LEVELS[int(str(table))])
        lacking = set(known) - set(zip(rows["name"], rows["test_set"], rows["level"], strict=True))
        assert lacking == ({("BAM", "Manga109", 2), ("BAM", "Manga109", 4)} if table == 1 else set())
        assert rows["name"].nunique() == METHOD_COUNTS[int(str(table))]
        assert rows["test_set"].nunique() == SETS[int(str(table))]


def test_nothing_is_there_twice_and_the_counts_are_those_of_the_tables(frame: pd.DataFrame) -> None:
    assert not frame.duplicated(["table", "name", "level", "test_set"]).any()
    assert frame["table"].value_counts().to_dict() == {1: 11 * 5 * 2 - 2, 2: 8 * 3 * 3, 3: 8 * 2 * 4}


def test_numbers_are_in_range_and_absent_only_where_known(frame: pd.DataFrame) -> None:
    assert frame["psnr_db"].between(16, 40).all()
    assert frame["ssim"].isna().equals(frame["table"] == 2)
    assert frame["ssim"].dropna().between(0.6, 0.98).all()
    assert frame["ops_g"].isna().equals(frame["kind"] == NO_NETWORK)
    assert frame["params_k"].isna().equals(frame["kind"] == NO_NETWORK)


@pytest.mark.parametrize("metric", ["psnr_db", "ssim"])
def test_a_harder_level_scores_lower(frame: pd.DataFrame, metric: str) -> None:
    for (table, *_), rows in frame.groupby(["table", "name", "test_set"]):
        scores = rows.sort_values("level", ascending=table != 3)[metric].dropna()
        assert scores.is_monotonic_decreasing
        assert scores.is_unique


def test_bbcu_l_is_the_best_binary_method_everywhere(frame: pd.DataFrame) -> None:
    binary = frame[frame["kind"] == BINARY]
    for _, rows in binary.groupby(["table", "level", "test_set"]):
        assert rows.loc[rows["psnr_db"].idxmax(), "method"] == "bbcu"


def test_costs_are_those_of_the_cost_model(frame: pd.DataFrame) -> None:
    costs = published_costs()
    rows = frame[frame["kind"] != NO_NETWORK].drop_duplicates(["task", "method"])
    assert len(rows) == len(costs)
    for _, row in rows.iterrows():
        cost = costs[NETWORKS[row["task"]], row["method"]]
        wanted = (cost["name"], float(cost["ops_g"]), float(cost["params_k"]))
        assert (row["name"], row["ops_g"], row["params_k"]) == wanted


def test_names_and_remarks_are_those_of_the_methods(frame: pd.DataFrame) -> None:
    for method, remark in zip(frame["method"], frame["remark"], strict=True):
        assert METHODS[method.split()[0]].remark == remark


def discordant(frame: pd.DataFrame, decibels: float = 0.1, ssim: float = 0.002) -> set[tuple[str, int, str]]:
    """Rows that PSNR and SSIM order differently from two or more others in their column."""
    counts: dict[tuple[str, int, str], int] = {}
    for _, rows in frame.dropna(subset="ssim").groupby(["table", "level", "test_set"]):
        for (_, one), (_, other) in itertools.combinations(rows.iterrows(), 2):
            apart, alike = one["psnr_db"] - other["psnr_db"], one["ssim"] - other["ssim"]
            if apart * alike < 0 and abs(apart) > decibels and abs(alike) > ssim:
                for row in (one, other):
                    key = (row["name"], row["level"], row["test_set"])
                    counts[key] = counts.get(key, 0) + 1
    return {key for key, count in counts.items() if count > 1}


def test_every_row_that_disagrees_with_its_neighbours_is_doubted(frame: pd.DataFrame) -> None:
    doubted = frame[frame["doubt"] != ""]
    known = set(zip(doubted["name"], doubted["level"], doubted["test_set"], strict=True))
    found = discordant(frame)
    assert ("Bicubic", 4, "Urban100") in found
    assert ("DnCNN-3", 10, "Classic5") in found
    assert found <= known


def test_doubts_name_the_quantity_and_touch_no_other_row(frame: pd.DataFrame) -> None:
    doubted = frame[frame["doubt"] != ""].groupby("name").size().to_dict()
    assert doubted == {"BNN": 4, "Bicubic": 2, "BAM": 8, "DnCNN-3": 4}
    (set5,) = frame.query("name == 'Bicubic' and level == 4 and test_set == 'Set5'")["doubt"]
    assert set5.startswith("SSIM: ")
    assert "0.8138" in set5
    assert frame[frame["cost_doubt"] != ""].groupby("name").size().to_dict() == {"BAM": 8, "SRResNet": 5}


@pytest.mark.parametrize(
    ("task", "test_set", "skip_db"),
    [("sr_x2", "Set5", 32.2512), ("sr_x2", "Set14", 29.2490), ("sr_x4", "Set5", 27.56047), ("sr_x4", "Set14", 25.5117)],
)
def test_bnn_is_in_doubt_where_the_skip_connection_alone_gives_its_score(
    frame: pd.DataFrame, task: str, test_set: str, skip_db: float
) -> None:
    (row,) = frame.query("name == 'BNN' and task == @task and test_set == @test_set").to_dict("records")
    assert row["psnr_db"] == round(skip_db, 2)
    assert f"{skip_db:.3f} dB" in row["doubt"]
    assert f"{row['ssim']:.4f}" in row["doubt"]
    assert doubt_of("bnn", task, test_set) == row["doubt"].removeprefix("PSNR: ")


@pytest.mark.parametrize(
    ("method", "task", "test_set"),
    [
        pytest.param("bnn", "sr_x2", "B100", id="not measured"),
        pytest.param("bireal", "sr_x2", "Set5", id="near the skip connection, and not equal to it"),
        pytest.param("bam", "sr_x2", "Set5", id="a doubt about SSIM"),
        pytest.param("bnn", "sr_x3", "Set5", id="a task without a table"),
        pytest.param("xnor", "sr_x2", "Set5", id="no method of the table"),
    ],
)
def test_a_psnr_is_in_doubt_only_where_that_is_shown(method: str, task: str, test_set: str) -> None:
    assert doubt_of(method, task, test_set) == ""


def test_a_difference_is_that_of_the_printed_psnr_and_rounded() -> None:
    assert printed_difference("bnn", "bbcu", "sr_x2", "Set5") == 5.33  # 37.58 - 32.25
    assert printed_difference("bbcu", "bnn", "sr_x2", "Set5") == -5.33
    assert printed_difference("bbcu", "bbcu binarize=[body,up]", "sr_x4", "Set14") == -0.18  # 28.20 - 28.38
    assert printed_difference("lite", "bbcu", "denoise", "CBSD68-sigma25") == 0.92  # 30.56 - 29.64
    assert ROUNDING_DB == 2 * 0.005


@pytest.mark.parametrize(
    ("before", "task", "test_set"),
    [
        pytest.param("bnn", "sr_x2", "embedded", id="a test set that it does not print"),
        pytest.param("bnn", "sr_x3", "Set5", id="a task without a table"),
        pytest.param("bam", "jpeg", "Classic5-q10", id="a method that this table lacks"),
        pytest.param("bam", "sr_x2", "Manga109", id="a number that is not printed"),
    ],
)
def test_there_is_no_difference_where_a_number_is_not_printed(before: str, task: str, test_set: str) -> None:
    assert printed_difference(before, "bbcu", task, test_set) is None


def test_points_have_a_cost_each_and_the_names_of_scored_sets() -> None:
    found = points()
    assert not found[["ops_g", "params_k", "psnr_db"]].isna().any(axis=None)
    assert {"Set5", "CBSD68-sigma25", "Classic5-q10"} <= set(found["test_set"])
    (row,) = found.query("method == 'bbcu' and test_set == 'CBSD68-sigma25'").to_dict("records")
    assert (row["psnr_db"], row["ops_g"], row["params_k"]) == (30.56, 0.8, 24)


def test_a_caller_cannot_change_what_the_next_one_reads() -> None:
    changed = published()
    changed["psnr_db"] = 0.0
    assert published()["psnr_db"].min() > 16
