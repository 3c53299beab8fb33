"""Distillation: the losses are those of the specification, and a teacher changes what is trained and nothing else."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bbcu.data.patches import PatchSampler
from bbcu.errors import ConfigError
from bbcu.model.networks import SRResNet
from bbcu.model.parts import binary_units
from bbcu.model.specs import UnitSpec
from bbcu.training.acceleration import plan_for, regions
from bbcu.training.distillation import MAP_LOSSES, attention_sum_loss, outputs_of, watched
from bbcu.training.loop import StepReport, Training
from bbcu.training.settings import DISTIL_WEIGHTS, TrainSettings
from tests.harness.builders import blobs, dncnn, drawn, srresnet
from tests.harness.paths import REPOSITORY

CPU = torch.device("cpu")
GOLDEN = REPOSITORY / "tests" / "bbcu" / "model" / "golden" / "newer" / "distillation.npz"
SETTINGS = TrainSettings(
    steps=3, batch=2, patch=8, lr=2e-3, schedule="constant", precision="fp32", compile=False, distil="output"
)
ATTENTION = dataclasses.replace(SETTINGS, distil="attention")


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAP_LOSSES)
def test_a_loss_and_its_gradients_are_those_of_the_specification(kind: str) -> None:
    with np.load(GOLDEN) as arrays:
        students, teachers = (
            [torch.from_numpy(arrays[f"{who}.{place}"]) for place in range(2)] for who in ("student", "teacher")
        )
        expected = [torch.from_numpy(arrays[f"grad.{kind}.{place}"]) for place in range(2)]
        loss_expected = float(arrays[f"loss.{kind}"])
    for student in students:
        student.requires_grad_()
    loss = MAP_LOSSES[kind](students, teachers)
    found = torch.autograd.grad(loss, students)
    assert loss.item() == pytest.approx(loss_expected, rel=1e-5)
    for gradient, theirs in zip(found, expected, strict=True):
        assert float((gradient - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("kind", [kind for kind in MAP_LOSSES if kind != "distribution"])
def test_a_map_loss_does_not_depend_on_the_size_of_the_features(kind: str) -> None:
    student, teacher = drawn(2, 4, 5, 6).double(), drawn(2, 4, 5, 6, seed=1).double()
    loss = MAP_LOSSES[kind]([student], [teacher])
    for ours, theirs in ((130, 1), (1, 130), (130, 130)):
        torch.testing.assert_close(MAP_LOSSES[kind]([ours * student], [theirs * teacher]), loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", MAP_LOSSES)
def test_features_of_zeros_have_a_loss_and_a_gradient(kind: str) -> None:
    zeros = torch.zeros(2, 4, 5, 6, requires_grad=True)
    for teacher in (drawn(2, 4, 5, 6), torch.zeros(2, 4, 5, 6)):
        loss = MAP_LOSSES[kind]([zeros], [teacher])
        (gradient,) = torch.autograd.grad(loss, [zeros])
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_the_maps_of_networks_of_other_widths_are_compared_and_those_of_other_sizes_are_refused() -> None:
    assert attention_sum_loss([drawn(2, 4, 5, 6)], [drawn(2, 3, 5, 6, seed=1)]).item() > 0
    with pytest.raises(ConfigError, match=r"a block's output is \(5, 6\) pixels large, and the teacher's \(10, 12\)"):
        attention_sum_loss([drawn(2, 4, 5, 6)], [drawn(2, 4, 10, 12)])


# --- a training with a teacher ----------------------------------------------------------------------------------------


def teacher(blocks: int = 1, **spec: Any) -> SRResNet:
    """A full-precision network of other initial values, which a training would change."""
    return srresnet(align=16.25, blocks=blocks, seed=7, binarize=(), **spec)


def trained(
    settings: TrainSettings, of: nn.Module | None, network: nn.Module | None = None
) -> tuple[nn.Module, list[StepReport]]:
    network = network or srresnet(align=16.25)
    sampler = PatchSampler([blobs(0), blobs(1)], 2, settings.patch, settings.batch, seed=0)
    reports: list[StepReport] = []
    Training(network, sampler, settings, CPU, of).run(reports.append)
    return network, reports


def test_every_kind_and_weight_of_distillation_changes_the_training() -> None:
    ways = [
        dataclasses.replace(SETTINGS, distil="none"),
        *(dataclasses.replace(SETTINGS, distil=kind) for kind in ("output", "attention")),
        *(dataclasses.replace(SETTINGS, distil=kind, distil_weight=0.5) for kind in ("output", "attention")),
    ]
    outcomes = [trained(settings, None if settings.distil == "none" else teacher()) for settings in ways]
    weights = [network.body.units[0].weight for network, _ in outcomes]  # type: ignore[union-attr,index]
    for place, weight in enumerate(weights):
        assert not any(torch.equal(weight, other) for other in weights[:place])
    # The loss of the task is reported as without a teacher, so that curves can be compared.
    assert len({reports[0].loss for _, reports in outcomes}) == 1
    assert [reports[0].distillation > 0 for _, reports in outcomes] == [False, True, True, True, True]


def test_the_losses_to_a_teacher_are_those_of_its_output_and_its_blocks() -> None:
    sampler = PatchSampler([blobs(0), blobs(1)], 2, SETTINGS.patch, SETTINGS.batch, seed=0)
    x = sampler.batch_at(0)[0]
    networks = (srresnet(align=16.25), teacher())
    outputs, blocks = [], []
    for network in networks:
        with torch.no_grad(), outputs_of(network.block_ends) as ends:
            outputs.append(network.train()(x))
        blocks.append(ends)
    expected = {
        "output": (outputs[0] - outputs[1]).abs().mean().item(),
        "attention": attention_sum_loss(*blocks).item(),
    }
    for kind, loss in expected.items():
        reports = trained(dataclasses.replace(SETTINGS, distil=kind), teacher())[1]
        assert reports[0].distillation == pytest.approx(loss, rel=1e-5)
    assert not any(end._forward_hooks for network in networks for end in network.block_ends)


@pytest.mark.parametrize("kind", ["output", "attention"])
def test_a_teacher_is_in_evaluation_mode_and_stays_as_it_is(kind: str) -> None:
    of = dncnn(blocks=1, seed=7, binarize=()).train()
    before = {name: value.clone() for name, value in of.state_dict().items()}
    pairs = [dataclasses.replace(pair, input=pair.truth) for pair in (blobs(0), blobs(1))]
    sampler = PatchSampler(pairs, 1, SETTINGS.patch, SETTINGS.batch, seed=0)
    Training(dncnn(), sampler, dataclasses.replace(SETTINGS, distil=kind), CPU, of).run(lambda report: None)
    assert not of.training
    assert not any(parameter.requires_grad for parameter in of.parameters())
    torch.testing.assert_close(of.state_dict(), before, rtol=0, atol=0)


def test_a_teacher_lowers_the_distance_to_it() -> None:
    settings = dataclasses.replace(ATTENTION, steps=40, distil_weight=1.0, lr=5e-3)
    _, reports = trained(settings, teacher())
    first, last = (np.mean([report.distillation for report in part]) for part in (reports[:8], reports[-8:]))
    assert last < 0.8 * first


def test_the_weight_is_the_given_one_or_that_of_the_kind() -> None:
    assert DISTIL_WEIGHTS == {"none": 0.0, "output": 1.0, "attention": 0.01}
    assert dataclasses.replace(SETTINGS, distil_weight=3).distil_factor == 3.0
    for kind in ("output", "attention"):
        assert dataclasses.replace(SETTINGS, distil=kind).distil_factor == DISTIL_WEIGHTS[kind]


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), True, "much", None], ids=str)
def test_a_weight_that_is_no_positive_number_is_refused(weight: Any) -> None:
    with pytest.raises(ConfigError, match=r"^train\.distil_weight=.*: must be auto or a positive number"):
        dataclasses.replace(SETTINGS, distil_weight=weight)


class Bare(nn.Module):
    """A user's own network, without blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


@pytest.mark.parametrize(
    ("settings", "network", "of", "message"),
    [
        (SETTINGS, srresnet(), None, "distil=output: no teacher is given"),
        (dataclasses.replace(SETTINGS, distil="none"), srresnet(), teacher(), "distil=none: a teacher is given"),
        (ATTENTION, srresnet(blocks=2), teacher(), "the network has 2 blocks, and its teacher 1"),
        (ATTENTION, Bare(), teacher(), "distil=attention: Bare needs a property block_ends"),
        (ATTENTION, srresnet(), Bare(), "distil=attention: Bare needs a property block_ends"),
        (SETTINGS, srresnet(), srresnet(3), r"output is \(2, 3, 16, 16\), and its teacher's \(2, 3, 24, 24\)"),
    ],
    ids=lambda value: value.distil if isinstance(value, TrainSettings) else "",
)
def test_a_teacher_that_is_missing_or_does_not_fit_is_refused(
    settings: TrainSettings, network: nn.Module, of: nn.Module | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(settings, of, network)


# --- accelerations ----------------------------------------------------------------------------------------------------


def test_a_body_that_would_compile_as_one_stays_eager_where_its_blocks_are_read() -> None:
    network = srresnet(accumulate=True, binarize=("body", "tail"))
    assert regions(network) == [network.body, network.tail]
    assert regions(network, watched(network, ATTENTION)) == [network.tail]
    plain = srresnet()
    assert regions(plain, watched(plain, ATTENTION)) == binary_units(plain)


def test_a_network_without_a_unit_that_could_compile_says_so() -> None:
    network = srresnet(accumulate=True, unit=UnitSpec(bn="post"))
    plan = plan_for(network, CPU, dataclasses.replace(ATTENTION, compile=True))
    assert not plan.compiles
    assert "units not compiled: distil=attention reads outputs inside the body" in plan.reasons[1]
