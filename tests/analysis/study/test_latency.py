"""Read back what trials measured, place by place, and count operations at another price."""

import dataclasses
import math
from typing import Any

import pytest

from analysis.study.latency import Latency, Place, latency_of
from analysis.study.loading import StudyResults, load_folder
from analysis.study.prices import at_price, operations, priced
from analysis.study.schema import doubt_about
from bbcu.errors import ConfigError
from tests.harness.studies import Trial, counted, in_memory, read_back, timed, trial, write_folder

FAST, OLD = "two fast cores", "an old core"


def measured(seed: int, ratio: float, cpu: str = FAST, **levels: Any) -> Trial:
    return timed(counted(trial(seed, **levels), 1.0, 64.0), ratio, 1000.0, cpu=cpu)


def latency(*trials: Trial) -> Latency:
    return latency_of(in_memory(trials).finished)


def test_a_cell_has_the_median_of_its_seeds_with_the_ends() -> None:
    found = latency(*(measured(seed, ratio) for seed, ratio in enumerate((0.3, 0.1, 0.25)))).timed(trial().cell)
    assert found
    assert dataclasses.astuple(found.ratio) == (0.25, 0.1, 0.3, 3)
    assert (found.ms.median, found.twin_ms.median) == (250.0, 1000.0)


def test_ratios_of_two_places_are_not_mixed_and_the_place_with_most_cells_comes_first() -> None:
    old = [measured(seed, 0.9, OLD) for seed in (0, 1, 2)]
    found = latency(*old, measured(3, 0.1), measured(3, 0.2, residual=False))
    assert [place.cpu for place in found.places] == [FAST, OLD]
    assert found.main == Place(FAST, "native", "onnxruntime", "320 x 180")
    here, there = (found.timed(trial().cell, place) for place in found.places)
    assert here
    assert there
    assert ((here.ratio.median, here.ratio.n), (there.ratio.median, there.ratio.n)) == ((0.1, 1), (0.9, 3))
    assert found.change((trial().cell, trial(residual=False).cell), found.places[1]) is None


def test_a_network_without_binary_units_is_compared_with_packed_ones_beside_the_same_twin() -> None:
    full = [dataclasses.replace(each, origin=beside_twin(each)) for each in (measured(0, 1.0, binarize=()),)]
    elsewhere = [dataclasses.replace(each, origin=beside_twin(each)) for each in (measured(1, 1.1, OLD, binarize=()),)]
    found = latency(measured(0, 0.1), *full, *elsewhere)
    assert [(place.cpu, place.backend) for place in found.places] == [(FAST, "native"), (OLD, "onnxruntime")]
    change = found.change((full[0].cell, trial().cell))
    assert change
    assert math.exp(change.mean) == pytest.approx(0.1)


def beside_twin(full: Trial) -> dict[str, Any]:
    """What a full-precision network records, which runs in the engine of its twin."""
    return {**full.origin, "latency": {**full.origin["latency"], "backend": "onnxruntime"}}


def test_why_a_cell_has_no_time_is_read_and_a_place_that_is_not_recorded_is_one() -> None:
    lost = dataclasses.replace(trial(residual=False), origin={"latency": {"missing": "no compiler"}})
    bare = dataclasses.replace(measured(0, 0.2), origin={})
    found = latency(lost, bare)
    assert found.missing == {lost.cell: "no compiler"}
    assert found.main
    assert found.main.cpu == "not recorded"


def test_results_without_a_measurement_have_none() -> None:
    found = latency(trial())
    assert (found.places, found.timed(trial().cell), found.packed_kb, found.is_of_one_twin) == ([], None, {}, True)


@pytest.mark.parametrize(
    ("name", "value"), [("latency_ratio", 0.0), ("twin_ms", 1e10), ("packed_kb", -1.0), ("binary_macs_g", -1.0)]
)
def test_a_measurement_that_cannot_be_is_doubted(name: str, value: float) -> None:
    metrics = {"Set5/psnr_db": 30.0, "Set5/ssim": 0.9, "baseline/Set5/psnr_db": 28.0}
    needed = {"cost/ops_g": 1.0, "cost/params_k": 1.0, "timing/train_s": 1.0}
    row = {f"metric/{key}": number for key, number in {**metrics, **needed}.items()}
    assert doubt_about(row) == ""
    assert f"its cost/{name} is" in doubt_about({**row, f"metric/cost/{name}": value})


# ---- the price of a binary multiply-add ------------------------------------------------------------------------------


def ops_of(study: StudyResults) -> list[float]:
    return priced(study).trials["metric/cost/ops_g"].tolist()


def test_operations_follow_the_price_and_the_paper_counts_a_sixty_fourth() -> None:
    assert [operations(1.0, 64.0, price) for price in ("1/64", "1/8", "0.5", "measured")] == [2.0, 9.0, 33.0, 2.0]
    study = in_memory([measured(0, 0.5)])
    assert ops_of(study) == ops_of(at_price(study, "measured")) == [2.0]
    assert ops_of(at_price(study, "1/8")) == [9.0]
    assert at_price(study, "0.015625").price == "1/64"


def test_the_price_is_that_of_the_plan_unless_one_is_given_or_the_results_do_not_allow_it(tmp_path: Any) -> None:
    known = read_back(tmp_path / "new", [measured(0, 0.5)], cost={"binary": "1/8"})
    assert (known.price, at_price(known, None).price, at_price(known, "1/4").price) == ("1/8", "1/8", "1/4")
    write_folder(tmp_path / "old", [trial()], cost={"binary": "1/8"})
    assert at_price(load_folder(tmp_path / "old" / "components"), None).price == "1/64"


@pytest.mark.parametrize(
    ("price", "said"),
    [
        ("1/8", "^--cost-binary=1/8: some trials do not record their full-precision and binary multiply-adds in study"),
        ("measured", "^--cost-binary=measured: no trial has measured its latency in study components$"),
        ("3/2", "^--cost-binary=3/2: must be a fraction"),
    ],
)
def test_a_price_that_the_results_do_not_allow_is_one_line(price: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        at_price(in_memory([trial()]), price)
