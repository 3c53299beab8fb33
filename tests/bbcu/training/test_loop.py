"""Training: it learns, it repeats itself, and it stops where there is nothing to learn from."""

import dataclasses
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bbcu.data.pairs import Pair
from bbcu.data.patches import PatchSampler
from bbcu.data.tasks import Denoising
from bbcu.errors import BbcuError, ConfigError
from bbcu.model.networks import SRResNet
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit
from bbcu.training.loop import (
    DIVERGED_LOSS,
    DIVERGED_RATIO,
    DIVERGED_STEPS,
    StepReport,
    Training,
    TrainingDiverged,
    batches,
    resolve_device,
)
from bbcu.training.settings import TrainSettings, learning_rate_at
from tests.harness.builders import blobs, dncnn, of_method, srresnet

CPU = torch.device("cpu")
SETTINGS = TrainSettings(steps=40, batch=4, patch=12, lr=2e-3, schedule="cosine", precision="fp32", compile=False)


def trained(settings: TrainSettings = SETTINGS, seed: int = 0) -> tuple[SRResNet, list[StepReport]]:
    network = srresnet(align=16.25, seed=seed)
    reports: list[StepReport] = []
    sampler = PatchSampler([blobs(0), blobs(1)], 2, settings.patch, settings.batch, seed)
    Training(network, sampler, settings, CPU).run(reports.append)
    return network, reports


@pytest.fixture(scope="module")
def usual() -> tuple[SRResNet, list[StepReport]]:
    """A training with the settings of this file, for tests that only look at it."""
    return trained()


def test_training_lowers_the_loss() -> None:
    _, reports = trained(dataclasses.replace(SETTINGS, steps=150, lr=5e-3))
    first, last = (np.mean([report.loss for report in part]) for part in (reports[:20], reports[-20:]))
    assert last < 0.7 * first


def test_every_step_is_reported_once_and_in_order() -> None:
    _, reports = trained(dataclasses.replace(SETTINGS, steps=5))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]


def test_a_training_repeats_itself_bit_for_bit(usual: tuple[SRResNet, list[StepReport]]) -> None:
    (one, first), (other, second) = usual, trained()
    assert first == second
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_another_seed_trains_another_network(usual: tuple[SRResNet, list[StepReport]]) -> None:
    assert usual[1] != trained(seed=1)[1]


@pytest.mark.parametrize(
    "change",
    [{"batch": 5}, {"patch": 10}, {"lr": 1e-3}, {"schedule": "constant"}, {"precision": "bf16"}, {"steps": 39}],
    ids=str,
)
def test_every_setting_changes_the_training(
    change: dict[str, object], usual: tuple[SRResNet, list[StepReport]]
) -> None:
    changed, _ = trained(dataclasses.replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert not torch.equal(changed.head.weight, usual[0].head.weight)


def test_the_body_learns_too(usual: tuple[SRResNet, list[StepReport]]) -> None:
    network, _ = usual
    start = srresnet(align=16.25)
    assert (torch.sign(network.body.units[0].weight) != torch.sign(start.body.units[0].weight)).any()


def test_a_loss_that_is_no_number_ends_the_training_at_its_step() -> None:
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d+ of 40"):
        trained(dataclasses.replace(SETTINGS, lr=1e30))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1] * 10),
        ("cosine", [0.5 + 0.5 * math.cos(math.pi * done / 10) for done in range(10)]),
        ("halved", [1] * 6 + [0.5] * 4),
        ("stepped", [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]),
    ],
)
def test_a_schedule_gives_each_step_its_rate(schedule: str, rates: list[float]) -> None:
    settings = dataclasses.replace(SETTINGS, schedule=schedule, steps=10)
    assert [learning_rate_at(step, settings) / SETTINGS.lr for step in range(1, 11)] == pytest.approx(rates)


@pytest.mark.parametrize("name", ["schedule", "precision", "compile", "cuda_graph", "int8", "native"])
def test_an_unknown_value_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train\.{name}=always: .*; valid: "):
        dataclasses.replace(SETTINGS, **{name: "always"})


def test_the_psnr_of_a_step_is_that_of_its_squared_error() -> None:
    assert StepReport(1, 0.1, 0.01).psnr_db == pytest.approx(20.0)


def test_the_automatic_device_is_there() -> None:
    assert torch.zeros(1, device=resolve_device("auto")).item() == 0


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(BbcuError, match=name):
        resolve_device(name)


def test_batches_that_are_drawn_ahead_are_the_same() -> None:
    sampler = PatchSampler((blobs(0),), 2, patch=8, batch=2, seed=3)
    plain, ahead = (
        [(step, batch()) for step, batch in batches(sampler, 1, 4, prefetch=ahead)] for ahead in (False, True)
    )
    assert [step for step, _ in ahead] == [step for step, _ in plain] == [1, 2, 3, 4]
    for (_, one), (_, other) in zip(plain, ahead, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))
    first, second = plain[0][1][0], plain[1][1][0]
    assert not torch.equal(first, second)


# --- a training that is interrupted and resumed -----------------------------------------------------------------------

LAST, LEFT = 12, 5
SHORT = dataclasses.replace(SETTINGS, steps=LAST)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A network, by the seed of its initial values, and how it is trained."""

    network: Callable[[int], nn.Module]
    settings: TrainSettings = SHORT
    noise: Denoising | None = None
    teacher: Callable[[], nn.Module | None] = lambda: None

    def training(self, seed: int = 0) -> Training:
        pairs = [blobs(0), blobs(1)]
        if self.noise is not None:
            pairs = [dataclasses.replace(pair, input=pair.truth) for pair in pairs]
        sampler = PatchSampler(
            pairs,
            1 if self.noise else 2,
            self.settings.patch,
            self.settings.batch,
            seed=0,
            degradation=None if self.noise is None else self.noise.degradation,
        )
        return Training(self.network(seed), sampler, self.settings, CPU, self.teacher())


def of_levels(**levels: object) -> Cell:
    """The reference but for these levels of a unit."""
    unit = UnitSpec(**levels)  # type: ignore[arg-type]
    return Cell(lambda seed: srresnet(align=16.25, blocks=2, seed=seed, unit=unit))


class Dropping(BinaryUnit):
    """A unit of a user's own that draws random numbers while it trains."""

    def branch(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().branch(x), 0.5, self.training)


CELLS = {
    "reference": of_levels(),
    "bn=post": of_levels(bn="post"),
    "surrogate=ede": of_levels(surrogate="ede"),
    "weight=irnet": of_levels(weight="irnet"),
    "method=bnn": Cell(lambda seed: of_method("bnn", seed)),
    "method=bam": Cell(lambda seed: of_method("bam", seed)),
    "dncnn": Cell(lambda seed: dncnn(blocks=2, seed=seed), noise=Denoising((25.0,), (0.0, 75.0))),
    "random": Cell(lambda seed: srresnet(seed=seed, unit_class=f"{__name__}.Dropping")),
    "bf16": Cell(of_levels().network, dataclasses.replace(SHORT, precision="bf16")),
}
PHASED = {
    "start=full bn=post weight=recu": Cell(
        of_levels(bn="post", weight="recu").network, dataclasses.replace(SHORT, start="full")
    ),
    "start=two_step surrogate=tanh bam distil=attention bf16": Cell(
        lambda seed: srresnet(align=16.25, seed=seed, accumulate=True, unit=UnitSpec(surrogate="tanh")),
        dataclasses.replace(SHORT, start="two_step", distil="attention", precision="bf16"),
        teacher=lambda: srresnet(seed=7, binarize=()),
    ),
    "distil=output": Cell(
        lambda seed: srresnet(seed=seed),
        dataclasses.replace(SHORT, distil="output"),
        teacher=lambda: srresnet(seed=7, binarize=()),
    ),
}
"""Trainings with more than one phase or a teacher."""

COMPILED = Cell(
    lambda seed: srresnet(seed=seed, unit=UnitSpec(bn="post")),
    dataclasses.replace(SHORT, compile=True, start="two_step"),
)


class Left(Exception):
    """A training was interrupted."""


def leave(training: Training, step: int, reports: list[StepReport]) -> bytes:
    """Train up to ``step``, and give what a file would hold of the training then."""

    def on_step(report: StepReport) -> None:
        reports.append(report)
        if report.step == step:
            raise Left

    with pytest.raises(Left):
        training.run(on_step)
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    return file.getvalue()


def resume(training: Training, content: bytes) -> Training:
    training.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return training


def assert_resumes_as_if_uninterrupted(cell: Cell, *left: int) -> None:
    """Train without and with interruptions after these steps; compare everything that the two leave."""
    torch.manual_seed(0)
    whole, undisturbed = cell.training(), list[StepReport]()
    whole.run(undisturbed.append)

    torch.manual_seed(0)
    training, reports = cell.training(), list[StepReport]()
    for number, step in enumerate(left, start=1):
        content = leave(training, step, reports)
        # The resuming training starts with other values and other random numbers.
        torch.manual_seed(number)
        training = resume(cell.training(seed=number), content)
    training.run(reports.append)

    assert reports == undisturbed
    ours, theirs = training.state_dict(), whole.state_dict()
    assert len(ours.pop("seconds")) == len(theirs.pop("seconds")) == LAST
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", CELLS)
def test_a_training_that_is_resumed_ends_bit_for_bit_like_an_uninterrupted_one(name: str) -> None:
    assert_resumes_as_if_uninterrupted(CELLS[name], LEFT)


@pytest.mark.parametrize("name", PHASED)
def test_so_does_one_that_is_left_in_each_phase_and_between_them(name: str) -> None:
    assert_resumes_as_if_uninterrupted(PHASED[name], 3, LAST // 2, 9)


@pytest.mark.slow
def test_so_does_a_compiled_one() -> None:
    if not COMPILED.training().plan.compiles:
        pytest.skip("no C++ compiler")
    assert_resumes_as_if_uninterrupted(COMPILED, LEFT, LAST - LEFT)


@pytest.mark.parametrize("left", [(1,), (LAST - 1,), (3, 8)], ids=str)
def test_it_may_be_left_at_any_step_and_more_than_once(left: tuple[int, ...]) -> None:
    assert_resumes_as_if_uninterrupted(CELLS["surrogate=ede"], *left)


def test_a_training_that_is_resumed_at_its_end_does_nothing() -> None:
    cell = CELLS["reference"]
    content = leave(cell.training(), LAST, [])
    reports: list[StepReport] = []
    resume(cell.training(seed=1), content).run(reports.append)
    assert reports == []


# --- a training that leads nowhere ------------------------------------------------------------------------------------


class Scripted(nn.Module):
    """A network whose loss on black pictures is, step by step, what a test says."""

    step: Tensor

    def __init__(self, losses: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.losses = losses

    def forward(self, x: Tensor) -> Tensor:
        loss = self.losses[int(self.step)]
        self.step += 1
        return 0 * x + 0 * self.weight + loss


def scripted(losses: Sequence[float]) -> Training:
    black = np.zeros((16, 16, 3), dtype=np.uint8)
    settings = dataclasses.replace(SETTINGS, steps=len(losses))
    sampler = PatchSampler([Pair("black", black, black)], 1, settings.patch, settings.batch, seed=0)
    return Training(Scripted(losses), sampler, settings, CPU)


def last_step(training: Training) -> int:
    """The step at which it ends, of its own or for having diverged."""
    try:
        training.run(lambda report: None)
    except TrainingDiverged:
        return training.step
    assert training.step == training.settings.steps
    return training.step


def test_a_loss_that_has_left_every_bound_ends_the_training_and_says_from_where_to_where() -> None:
    message = "the loss has grown from 0.05 to 1.05, over 20 steps, at step 20 of 40"
    with pytest.raises(TrainingDiverged, match=message):
        scripted([0.05] + [1.1] * 39).run(lambda report: None)


@pytest.mark.parametrize(
    ("losses", "last"),
    [
        pytest.param([0.05] + [50.0] * (DIVERGED_STEPS - 2), DIVERGED_STEPS - 1, id="too-short-to-tell"),
        pytest.param([0.05] + [0.99 * DIVERGED_LOSS] * 59, 60, id="below-what-black-for-white-is"),
        pytest.param([0.5] + [0.99 * DIVERGED_RATIO * 0.5] * 59, 60, id="not-far-above-the-start"),
        pytest.param([0.5] + [1.1 * DIVERGED_RATIO * 0.5] * 59, DIVERGED_STEPS, id="far-above-the-start"),
        pytest.param([0.05] * 30 + [15.0] + [0.05] * 29, 60, id="one-bad-batch"),
        pytest.param([0.05] * 30 + [2.0] * 30, 40, id="late"),
    ],
)
def test_a_training_ends_early_where_its_mean_loss_is_beyond_both_bounds(losses: list[float], last: int) -> None:
    assert last_step(scripted(losses)) == last


def test_a_training_that_was_resumed_diverges_at_the_same_step() -> None:
    losses = [0.5] * 10 + [6.0] * 30
    content = leave(scripted(losses), 15, [])
    assert last_step(resume(scripted(losses), content)) == last_step(scripted(losses)) < 40
