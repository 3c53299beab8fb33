"""Trainings that start in full precision: what each phase binarises, and what a new phase keeps and begins anew."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbcu.data.patches import PatchSampler
from bbcu.errors import ConfigError
from bbcu.model.networks import SRResNet
from bbcu.model.parts import binary_units
from bbcu.model.specs import UnitSpec
from bbcu.training.acceleration import plan_for
from bbcu.training.loop import DIVERGED_STEPS, StepReport, Training, TrainingDiverged
from bbcu.training.settings import Phase, TrainSettings, learning_rate_at
from tests.harness.builders import blobs, srresnet, unit

CPU = torch.device("cpu")
SETTINGS = TrainSettings(
    steps=5, batch=2, patch=8, lr=2e-3, schedule="cosine", precision="fp32", compile=False, start="full"
)
TWO_STEP = dataclasses.replace(SETTINGS, start="two_step")


def training_of(network: nn.Module, settings: TrainSettings) -> Training:
    sampler = PatchSampler([blobs(0), blobs(1)], 2, settings.patch, settings.batch, seed=0)
    return Training(network, sampler, settings, CPU)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "phases"),
    [
        ("scratch", (Phase(1, 5),)),
        ("full", (Phase(1, 2, binary_signs=False, binary_weights=False), Phase(3, 5))),
        ("two_step", (Phase(1, 2, binary_weights=False), Phase(3, 5))),
    ],
)
def test_half_of_the_steps_rounded_down_are_those_of_the_first_phase(start: str, phases: tuple[Phase, ...]) -> None:
    settings = dataclasses.replace(SETTINGS, start=start)
    assert settings.phases == phases
    assert [settings.phase_at(step) for step in (1, 2, 3, 5)] == [phases[0], phases[0], phases[-1], phases[-1]]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "halved", "stepped"])
def test_the_schedule_runs_over_each_phase(schedule: str) -> None:
    whole = dataclasses.replace(SETTINGS, start="scratch", schedule=schedule, steps=10)
    twice = dataclasses.replace(whole, start="full", steps=20)
    rates = [learning_rate_at(step, whole) for step in range(1, 11)]
    assert [learning_rate_at(step, twice) for step in range(1, 21)] == rates + rates


@pytest.mark.parametrize("start", ["full", "two_step"])
def test_two_phases_need_two_steps_and_binary_units(start: str) -> None:
    with pytest.raises(ConfigError, match=rf"start={start} train\.steps=1: each of its two phases needs a step"):
        dataclasses.replace(SETTINGS, start=start, steps=1)
    with pytest.raises(ConfigError, match=rf"start={start}: SRResNet has no binary units"):
        training_of(srresnet(binarize=()), dataclasses.replace(SETTINGS, start=start))


@pytest.mark.parametrize("name", ["start", "distil"])
def test_an_unknown_level_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}=always: .*; valid: "):
        dataclasses.replace(SETTINGS, **{name: "always"})


# --- what a phase binarises -------------------------------------------------------------------------------------------


@torch.no_grad()
def is_binary(network: SRResNet) -> tuple[bool, bool]:
    """Return whether the first unit convolves signs, and whether with weights of one magnitude, after checking both."""
    built = binary_units(network)[0]
    x = torch.linspace(-3, 3, 8 * 4 * 4).reshape(1, 8, 4, 4)
    v = built.sign_input(x)[1]
    signs = torch.where(v >= 0, 1.0, -1.0)
    values = signs if built.binary_signs else v
    weight = built.binariser(built.weight) if built.binary_weights else built.weight
    torch.testing.assert_close(built.convolve(built.bits(x)), functional.conv2d(values, weight, padding=1))
    return torch.equal(built.bits(x), signs), torch.equal(weight.abs()[0, 0], weight.abs()[0, 0, :1, :1].expand(3, 3))


@pytest.mark.parametrize(("start", "first"), [("full", (False, False)), ("two_step", (True, False))])
def test_a_phase_binarises_nothing_or_signs_and_the_last_one_all_in_evaluation_too(
    start: str, first: tuple[bool, bool]
) -> None:
    network, seen = srresnet(align=16.25), list[tuple[bool, bool]]()
    training = training_of(network, dataclasses.replace(SETTINGS, start=start))
    training.run(lambda report: seen.append(is_binary(network.eval())))
    assert seen == [first] * 2 + [(True, True)] * 3


@pytest.mark.parametrize("settings", [SETTINGS, TWO_STEP], ids=["full", "two_step"])
def test_a_new_phase_changes_no_parameter_and_no_statistic(settings: TrainSettings) -> None:
    network = srresnet(align=16.25, unit=UnitSpec(bn="post", threshold="affine"))
    before, after = list[dict[str, Tensor]](), list[dict[str, Tensor]]()

    def state(*_: Any) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in network.state_dict().items()}

    network.register_forward_pre_hook(lambda *_: before.append(state()))
    training = training_of(network, settings)
    training.run(lambda report: after.append(state()))
    # What step 3 starts from is what step 2 has left, the parameters of the thresholds and activations among it.
    torch.testing.assert_close(before[2], after[1], rtol=0, atol=0)
    assert not torch.equal(after[0]["body.units.0.threshold.slope"], after[1]["body.units.0.threshold.slope"])


def test_a_new_phase_has_a_new_optimiser() -> None:
    training = training_of(srresnet(), SETTINGS)
    optimisers, counts = set[int](), list[int]()

    def on_step(report: StepReport) -> None:
        optimisers.add(id(training.optimiser))
        counts.append(int(training.optimiser.state_dict()["state"][0]["step"]))

    training.run(on_step)
    assert counts == [1, 2, 1, 2, 3]


def test_the_schedules_of_surrogates_and_binarisers_run_over_each_phase() -> None:
    network = srresnet(unit=UnitSpec(surrogate="reste", weight="irnet"))
    built, seen = binary_units(network)[0], list[tuple[float, float]]()

    def on_step(report: StepReport) -> None:
        seen.append((float(built.surrogate.power), float(built.binariser.surrogate.sharpness)))  # type: ignore

    training_of(network, dataclasses.replace(TWO_STEP, steps=4)).run(on_step)
    assert seen[0] == pytest.approx((1.0, 0.1))
    assert seen[1][0] > 1.5
    assert seen[:2] == seen[2:]


def test_latent_weights_are_not_clipped_while_they_are_convolved() -> None:
    network, largest = srresnet(align=130.0, unit=UnitSpec(weight="plain")), list[float]()
    built = binary_units(network)[0]
    with torch.no_grad():
        built.weight.mul_(0.999 / built.weight.abs().max())
    settings = dataclasses.replace(TWO_STEP, lr=0.1, schedule="constant")
    training_of(network, settings).run(lambda report: largest.append(float(built.weight.detach().abs().max())))
    assert [value > 1 for value in largest] == [True, True, False, False, False]


def test_every_start_trains_another_network() -> None:
    outputs = []
    for start in ("scratch", "full", "two_step"):
        network = srresnet(align=16.25)
        training_of(network, dataclasses.replace(SETTINGS, start=start)).run(lambda report: None)
        outputs.append(network.head.weight.detach())
    assert not any(torch.equal(outputs[one], outputs[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


# --- the rest of a training -------------------------------------------------------------------------------------------


class Scripted(nn.Module):
    """A network with a unit, whose loss on any picture is nearly what a test says, step by step."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.unit, self.losses, self.step = unit(3, 3), losses, 0

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        y: Tensor = 0 * self.unit(x) + 100 * self.losses[self.step - 1]
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_loss_is_compared_with_the_first_of_its_phase() -> None:
    """The first loss of a phase may be far above those of the phase before; from there it must not grow."""
    settings = dataclasses.replace(SETTINGS, steps=4 * DIVERGED_STEPS)
    half = 2 * DIVERGED_STEPS
    training_of(Scripted([0.05] * half + [5.0] * half), settings).run(lambda report: None)
    training = training_of(Scripted([0.05] * half + [0.05] + [5.0] * half), settings)
    with pytest.raises(TrainingDiverged, match=rf"at step {half + DIVERGED_STEPS} of {settings.steps}"):
        training.run(lambda report: None)


def test_the_time_of_a_start_is_that_of_the_first_step_of_each_phase() -> None:
    training = training_of(srresnet(), SETTINGS)
    training.seconds = [3.0, 1.0, 6.0, 1.0, 1.0]
    assert training.starting_seconds == 7.0


def test_a_plan_counts_the_code_and_the_recording_of_each_phase() -> None:
    gpu, steps = torch.device("cuda"), 30
    settings = dataclasses.replace(SETTINGS, cuda_graph="auto", steps=steps)
    assert plan_for(srresnet(), gpu, dataclasses.replace(settings, start="scratch")).replays
    assert not plan_for(srresnet(), gpu, settings).replays
