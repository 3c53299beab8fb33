"""Training: it learns, it repeats itself, and it stops where there is nothing to learn from."""

import dataclasses

import numpy as np
import pytest
import torch
from builders import srresnet

from bbcu.errors import BbcuError, ConfigError
from bbcu.images import downscale
from bbcu.networks import SRResNet
from bbcu.pairs import Pair
from bbcu.patches import PatchSampler
from bbcu.training import (
    StepReport,
    TrainingDiverged,
    TrainSettings,
    batches,
    learning_rate_at,
    resolve_device,
    train,
)

CPU = torch.device("cpu")
SETTINGS = TrainSettings(steps=40, batch=4, patch=12, lr=2e-3, schedule="cosine", precision="fp32", compile=False)


def photograph(seed: int = 0) -> Pair:
    """Soft blobs: a picture with edges that bilinear interpolation blurs."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (12, 12, 3)).astype(np.uint8)
    truth = np.kron(coarse, np.ones((4, 4, 1), dtype=np.uint8))
    return Pair(f"blobs{seed}", downscale(truth, 2), truth)


def trained(settings: TrainSettings = SETTINGS, seed: int = 0) -> tuple[SRResNet, list[StepReport]]:
    network = srresnet(align=16.25, seed=seed)
    reports: list[StepReport] = []
    sampler = PatchSampler([photograph(0), photograph(1)], 2, settings.patch, settings.batch, seed)
    train(network, sampler, settings, CPU, reports.append)
    return network, reports


def test_training_lowers_the_loss() -> None:
    _, reports = trained(dataclasses.replace(SETTINGS, steps=150, lr=5e-3))
    first, last = (np.mean([report.loss for report in part]) for part in (reports[:20], reports[-20:]))
    assert last < 0.7 * first


def test_every_step_is_reported_once_and_in_order() -> None:
    _, reports = trained(dataclasses.replace(SETTINGS, steps=5))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]


def test_a_training_repeats_itself_bit_for_bit() -> None:
    (one, first), (other, second) = trained(), trained()
    assert first == second
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_another_seed_trains_another_network() -> None:
    assert trained(seed=0)[1] != trained(seed=1)[1]


@pytest.mark.parametrize(
    "change",
    [{"batch": 5}, {"patch": 10}, {"lr": 1e-3}, {"schedule": "constant"}, {"precision": "bf16"}, {"steps": 39}],
    ids=str,
)
def test_every_setting_changes_the_training(change: dict[str, object]) -> None:
    changed, _ = trained(dataclasses.replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert not torch.equal(changed.head.weight, trained()[0].head.weight)


def test_the_body_learns_too() -> None:
    network, _ = trained()
    start = srresnet(align=16.25)
    assert (torch.sign(network.body.units[0].weight) != torch.sign(start.body.units[0].weight)).any()


def test_a_loss_that_is_no_number_ends_the_training_at_its_step() -> None:
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d+ of 40"):
        trained(dataclasses.replace(SETTINGS, lr=1e30))


def test_the_cosine_starts_at_the_rate_and_ends_near_zero() -> None:
    rates = [learning_rate_at(step, SETTINGS) for step in (1, 21, 40)]
    assert rates[0] == SETTINGS.lr
    assert rates[1] == pytest.approx(SETTINGS.lr / 2)
    assert rates[2] < 0.01 * SETTINGS.lr


def test_a_constant_rate_stays() -> None:
    constant = dataclasses.replace(SETTINGS, schedule="constant")
    assert {learning_rate_at(step, constant) for step in (1, 40)} == {SETTINGS.lr}


def test_the_released_rate_is_halved_after_two_thirds() -> None:
    halved = dataclasses.replace(SETTINGS, schedule="halved", steps=30)
    assert [learning_rate_at(step, halved) / SETTINGS.lr for step in (1, 20, 21, 30)] == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize("change", [{"schedule": "linear"}, {"precision": "fp8"}], ids=str)
def test_an_unknown_schedule_or_precision_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="valid: "):
        dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_the_psnr_of_a_step_is_that_of_its_squared_error() -> None:
    assert StepReport(1, 0.1, 0.01).psnr_db == pytest.approx(20.0)


def test_the_automatic_device_is_there() -> None:
    assert torch.zeros(1, device=resolve_device("auto")).item() == 0


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(BbcuError, match=name):
        resolve_device(name)


def test_batches_that_are_drawn_ahead_are_the_same() -> None:
    sampler = PatchSampler((photograph(0),), 2, patch=8, batch=2, seed=3)
    plain, ahead = ([(step, batch()) for step, batch in batches(sampler, 1, 4, ahead=ahead)] for ahead in (False, True))
    assert [step for step, _ in ahead] == [step for step, _ in plain] == [1, 2, 3, 4]
    for (_, one), (_, other) in zip(plain, ahead, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))
    first, second = plain[0][1][0], plain[1][1][0]
    assert not torch.equal(first, second)


def test_the_stepped_rate_is_halved_after_two_three_and_four_fifths() -> None:
    stepped = dataclasses.replace(SETTINGS, schedule="stepped", steps=10)
    assert [SETTINGS.lr / learning_rate_at(step, stepped) for step in (1, 4, 5, 6, 7, 8, 9, 10)] == [
        *(1, 1, 2, 2, 4, 4, 8, 8)
    ]
