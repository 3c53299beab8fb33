"""Which parts of a config make another cell, and which do not."""

import dataclasses

import numpy as np
import pytest
import torch

from ablations.trial.data import data_of
from ablations.trial.identity import network_of
from tests.harness.builders import save
from tests.harness.support import Workplace, photograph


def keys(workplace: Workplace, *configs: str) -> set[str]:
    """The keys of the cells that these overrides ask for; spaces separate the overrides of one config."""
    return {workplace.trial(*config.split()).cell.key for config in configs}


@pytest.mark.parametrize(
    "configs",
    [
        pytest.param(("task=denoise task.sigma=25", "task=denoise task.sigma=25.0", "task=denoise task.sigma=[25]")),
        pytest.param(("train.precision=fp32", "train.precision=fp32 train.compile=true")),
        pytest.param(("train.precision=fp32", "train.precision=fp32 train.cuda_graph=true")),
        pytest.param(("train.precision=fp32", "train.precision=fp32 train.int8=false train.native=true")),
        pytest.param(("method=bicubic", "method=bicubic data.train=''"), id="pictures that are not trained on"),
        pytest.param(("evaluation.tile=0", "evaluation.tile=16")),
        pytest.param(("network=srresnet", "network=srresnet network.groups=3 network.layers=5")),
        pytest.param(("network=rdn network.layers=2", "network=rdn network.layers=2 network.groups=3")),
        pytest.param(("measure.latency=false", "measure.latency=true", "cost.binary=1/8")),
        pytest.param(("evaluation.self_ensemble=false", "seed=1", "align=8.125", "residual=True")),
    ],
    ids=" is ".join,
)
def test_these_configs_are_one_cell(workplace: Workplace, configs: tuple[str, ...]) -> None:
    assert len(keys(workplace, *configs)) == 1


@pytest.mark.parametrize(
    "configs",
    [
        ("task=denoise task.sigma=24", "task=denoise task.sigma=25"),
        ("train.precision=fp32", "train.precision=bf16"),
        ("evaluation.self_ensemble=false", "evaluation.self_ensemble=true"),
        ("train.lr=1e-3", "train.lr=5e-2"),
        ("network=rcan network.groups=1", "network=rcan network.groups=3"),
        ("network=rdn network.layers=1", "network=rdn network.layers=3"),
    ],
    ids=" is not ".join,
)
def test_these_configs_are_different_cells(workplace: Workplace, configs: tuple[str, ...]) -> None:
    assert len(keys(workplace, *configs)) == len(configs)


def test_a_default_is_recorded_and_left_out_of_the_key(workplace: Workplace) -> None:
    cell = workplace.trial().cell
    assert cell.setting["evaluation"] == {"self_ensemble": False}
    without = {key: value for key, value in cell.setting.items() if key != "evaluation"}
    assert dataclasses.replace(cell, setting=without).key == cell.key


def test_a_network_that_is_typed_replaces_that_of_the_task(workplace: Workplace) -> None:
    assert workplace.trial("task=denoise").cell.setting["network"]["name"] == "dncnn"
    typed = workplace.trial("network=srresnet", "task=denoise")
    assert typed.cell.setting["network"]["name"] == "srresnet"
    assert network_of(typed)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_given_inputs_are_other_data(workplace: Workplace) -> None:
    place = workplace.folder / "given"
    for name, seeds in (("train", (0, 1)), ("test", (2, 3))):
        for seed in seeds:
            save(photograph(seed), place / name / "HR" / f"{seed}.png")
            save(photograph(seed, 24), place / name / "LR_bicubic" / "X2" / f"{seed}x2.png")
    setting = (f"data.train={place}/train", f"data.test={{Tiny: {place}/test}}")
    assert workplace.run(*setting, "data.inputs=given").status == 0
    made, given = (workplace.trial(*setting, f"data.inputs={inputs}").cell.key for inputs in ("made", "given"))
    assert made != given
    pair = data_of(workplace.config(*setting, "data.inputs=given")).test["Tiny"][0]
    assert np.array_equal(pair.input, photograph(2, 24))


@pytest.mark.parametrize("other", ["bn=pre", "bn=out", "residual=false", "residual=block", "act_fn=prelu", "act=after"])
def test_two_cells_share_the_initial_values_of_every_parameter_that_both_have(workplace: Workplace, other: str) -> None:
    reference, changed = (network_of(workplace.trial(*levels)).state_dict() for levels in ((), (other,)))
    shared = reference.keys() & changed.keys()
    assert {"head.weight", "body.units.0.weight", "body.units.1.weight", "tail.weight"} <= shared
    assert all(torch.equal(reference[name], changed[name]) for name in shared)
