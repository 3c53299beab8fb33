"""What comes before the first step of a training."""

import pytest
import torch
from torch import nn

from bbcu.data.pairs import PreparedData, prepare
from bbcu.data.tasks import make_task
from bbcu.training.loop import Training
from bbcu.training.preparation import prepare_training
from bbcu.training.settings import TrainSettings
from tests.harness.builders import some_pictures, srresnet

SETTINGS = TrainSettings(steps=3, batch=2, patch=6, lr=1e-3, schedule="cosine", precision="fp32", compile=False)
CPU = torch.device("cpu")


@pytest.fixture
def data() -> PreparedData:
    return prepare(some_pictures(), make_task({"name": "sr_x2"}), SETTINGS.patch)


def drawing_network() -> nn.Module:
    """A network of which no value is seeded but by torch's global generator."""
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))


def parameters_after(training: Training) -> list[torch.Tensor]:
    training.run(lambda report: None)
    return list(training.network.parameters())


def test_the_same_seed_makes_the_same_parameters_bit_for_bit(data: PreparedData) -> None:
    first = parameters_after(prepare_training(drawing_network, data, SETTINGS, 5, CPU))
    again = parameters_after(prepare_training(drawing_network, data, SETTINGS, 5, CPU))
    assert all(map(torch.equal, first, again))


def test_another_seed_makes_other_initial_values_and_draws_other_patches(data: PreparedData) -> None:
    first, other = (prepare_training(drawing_network, data, SETTINGS, seed, CPU) for seed in (5, 6))
    assert not torch.equal(*(next(training.network.parameters()) for training in (first, other)))
    assert not torch.equal(*(training.sampler.batch_at(0)[1] for training in (first, other)))


def test_a_network_that_standardises_gets_the_statistics_of_the_training_inputs(data: PreparedData) -> None:
    found = prepare_training(lambda: srresnet(2, standardise=True), data, SETTINGS, 0, CPU).network.standardisation
    pixels = torch.cat([torch.from_numpy(pair.input).reshape(-1, 3) / 255 for pair in data.train])
    torch.testing.assert_close(found.mean.flatten(), pixels.mean(0))
    torch.testing.assert_close(found.deviation.flatten(), pixels.std(0, correction=0))
