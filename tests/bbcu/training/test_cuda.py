"""On a GPU: the same training as on a CPU, replayed steps that are those as eager, and a trial from end to end."""

import dataclasses
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbcu.data.pairs import Pair
from bbcu.data.patches import PatchSampler
from bbcu.model.methods import METHODS
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import Surrogate
from bbcu.training.acceleration import deterministic_fp32, missing_for_compilation, plan_for
from bbcu.training.evaluation import restore
from bbcu.training.loop import StepReport, Training
from bbcu.training.probes import probe
from bbcu.training.settings import TrainSettings
from tests.harness.builders import blobs, dncnn, srresnet
from tests.harness.paths import REPOSITORY

pytestmark = pytest.mark.cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda")
EAGER = TrainSettings(
    steps=12, batch=4, patch=12, lr=2e-3, schedule="cosine", precision="fp32", compile=False, cuda_graph=False
)
AUTO = TrainSettings(steps=500, batch=16, patch=32, lr=1e-3, schedule="cosine", precision="auto")
REPLAYED = dataclasses.replace(EAGER, cuda_graph=True)
FAST = dataclasses.replace(EAGER, precision="bf16", compile=True, cuda_graph=True)


class Counting(Surrogate):
    """A user's own, which narrows from step to step by a number that lives in Python."""

    width = 4.0

    def set_progress(self, progress: float) -> None:
        self.width = 4.0 - 3.0 * progress

    def derivative(self, u: Tensor) -> Tensor:
        return (self.width - u.abs()).clamp_min(0)


class Asking(Counting):
    """One that asks the GPU for a number, which no recording can."""

    def forward(self, u: Tensor) -> Tensor:
        if float(u.detach().abs().max()) < 0:
            raise AssertionError
        return super().forward(u)


def pairs(scale: int = 2) -> list[Pair]:
    return [blobs(seed, scale) for seed in range(2)]


def of_method(name: str) -> nn.Module:
    method = METHODS[name]
    levels = method.all_levels
    unit = UnitSpec(**{field.name: levels[field.name] for field in dataclasses.fields(UnitSpec)})
    align = 16.25 if levels["align"] == "auto" else levels["align"]
    return build("srresnet", NetworkSpec(2, 8, 1, unit=unit, align=align, **method.network), 0)


@dataclass(frozen=True)
class Outcome:
    reports: list[StepReport]
    state: dict[str, Tensor]
    training: Training


def trained(
    network: nn.Module,
    settings: TrainSettings,
    device: torch.device = GPU,
    scale: int = 2,
    teacher: nn.Module | None = None,
) -> Outcome:
    sampler = PatchSampler(pairs(scale), scale, settings.patch, settings.batch, seed=0)
    training = Training(network, sampler, settings, device, teacher)
    reports: list[StepReport] = []
    training.run(reports.append)
    return Outcome(reports, {name: value.cpu() for name, value in network.state_dict().items()}, training)


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.reports == other.reports
    for name, value in one.state.items():
        assert torch.equal(value, other.state[name]), name


# --- what is decided --------------------------------------------------------------------------------------------------


def test_the_default_on_a_gpu_is_bf16_and_a_cuda_graph() -> None:
    plan = plan_for(srresnet(), GPU, AUTO)
    assert plan.precision == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")
    assert plan.replays
    assert len(plan.reasons) == 3


def test_a_part_of_the_users_own_is_not_replayed_unless_that_is_asked_for() -> None:
    network = srresnet(unit=UnitSpec(surrogate=f"{__name__}.Counting"))
    plan = plan_for(network, GPU, AUTO)
    assert not plan.replays
    assert any("Counting may change outside of tensors" in reason for reason in plan.reasons)
    assert plan_for(network, GPU, dataclasses.replace(AUTO, cuda_graph=True)).replays


# --- the same training ------------------------------------------------------------------------------------------------

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: of_method(name)) for name in METHODS if METHODS[name].all_levels["binarize"]},
    "surrogate=ede bn=post": lambda: srresnet(align=16.25, unit=UnitSpec(surrogate="ede", bn="post")),
    "weight=plain act=after": lambda: srresnet(align=1.0, unit=UnitSpec(weight="plain", bn="out", act="after")),
    "all parts": lambda: srresnet(align=16.25, binarize=("head", "body", "up", "tail")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_replayed_steps_are_the_eager_steps_bit_for_bit(name: str) -> None:
    eager, replayed = trained(NETWORKS[name](), EAGER), trained(NETWORKS[name](), REPLAYED)
    assert replayed.training.plan.replays
    assert_same(eager, replayed)


def test_a_denoiser_is_replayed_too() -> None:
    eager, replayed = (trained(dncnn(blocks=2, align=16.25), way, scale=1) for way in (EAGER, REPLAYED))
    assert_same(eager, replayed)


@pytest.mark.parametrize(("start", "distil"), [("full", "output"), ("two_step", "attention")])
def test_each_phase_replays_its_own_recording_with_the_teacher_in_it(start: str, distil: str) -> None:
    """Each phase has more steps than are done before a recording, so a recording that outlived its phase would show."""

    def outcome(settings: TrainSettings) -> Outcome:
        settings = dataclasses.replace(settings, steps=16, start=start, distil=distil)
        network = srresnet(align=16.25, unit=UnitSpec(surrogate="tanh", bn="post"))
        return trained(network, settings, teacher=srresnet(seed=7, binarize=()))

    eager, replayed = outcome(EAGER), outcome(REPLAYED)
    assert replayed.training.plan.replays
    assert_same(eager, replayed)


def test_a_gpu_trains_what_a_cpu_trains() -> None:
    on_cpu, on_gpu = (trained(srresnet(align=16.25), EAGER, device) for device in (CPU, GPU))
    first_of_cpu, first_of_gpu = on_cpu.reports[0], on_gpu.reports[0]
    assert first_of_gpu.loss == pytest.approx(first_of_cpu.loss, rel=1e-5)
    for ours, theirs in zip(on_gpu.reports, on_cpu.reports, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=0.02)


@pytest.mark.parametrize("settings", [EAGER, REPLAYED, FAST], ids=["eager", "replayed", "fast"])
def test_a_training_on_a_gpu_repeats_itself_bit_for_bit(settings: TrainSettings) -> None:
    assert_same(trained(srresnet(align=16.25), settings), trained(srresnet(align=16.25), settings))


def test_the_fast_way_learns_as_the_plain_one_does() -> None:
    if missing_for_compilation(GPU):
        pytest.skip(missing_for_compilation(GPU))
    longer = {"steps": 60}
    plain = trained(srresnet(align=16.25), dataclasses.replace(EAGER, **longer))
    fast = trained(srresnet(align=16.25), dataclasses.replace(FAST, **longer))
    assert fast.training.plan.compiles
    last = [np.mean([report.loss for report in outcome.reports[-10:]]) for outcome in (plain, fast)]
    assert last[1] == pytest.approx(last[0], rel=0.1)


def test_a_step_that_cannot_be_recorded_stays_eager_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def network() -> nn.Module:
        return srresnet(align=16.25, unit=UnitSpec(surrogate=f"{__name__}.Asking"))

    with caplog.at_level(logging.WARNING, logger="bbcu.training.acceleration"):
        replayed = trained(network(), REPLAYED)
    assert [record for record in caplog.records if "cannot be recorded and stays eager" in record.message]
    assert_same(trained(network(), EAGER), replayed)


@pytest.mark.parametrize("start", ["scratch", "two_step"])
@pytest.mark.parametrize("settings", [EAGER, REPLAYED, FAST], ids=["eager", "replayed", "fast"])
def test_a_training_that_is_resumed_ends_bit_for_bit_like_an_uninterrupted_one(
    settings: TrainSettings, start: str
) -> None:
    settings = dataclasses.replace(settings, start=start)

    class Left(Exception):
        pass

    def leave(report: StepReport) -> None:
        if report.step == 7:
            raise Left

    def fresh(seed: int) -> Training:
        sampler = PatchSampler(pairs(), 2, settings.patch, settings.batch, seed=0)
        network = srresnet(align=16.25, seed=seed, unit=UnitSpec(surrogate="ede", bn="post"))
        return Training(network, sampler, settings, GPU)

    whole, left, resumed = fresh(0), fresh(0), fresh(1)
    whole.run(lambda report: None)
    with pytest.raises(Left):
        left.run(leave)
    file = io.BytesIO()
    torch.save(left.state_dict(), file)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True, map_location=GPU))
    resumed.run(lambda report: None)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


# --- full precision ---------------------------------------------------------------------------------------------------


def test_full_precision_is_not_tf32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 64, 24, 24, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    with deterministic_fp32():
        found = functional.conv2d(x.to(GPU), weight.to(GPU), padding=1).cpu().double()
    assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_a_network_restores_on_a_gpu_what_it_restores_on_a_cpu() -> None:
    network = trained(srresnet(align=16.25), EAGER).training.network
    picture = pairs()[0].input
    on_gpu = restore(network.to(GPU), picture, GPU).astype(int)
    on_cpu = restore(network.to(CPU), picture, CPU).astype(int)
    assert np.abs(on_gpu - on_cpu).max() <= 1
    assert (on_gpu != on_cpu).mean() < 0.01


def test_probes_see_on_a_gpu_what_they_see_on_a_cpu() -> None:
    network = srresnet(align=16.25)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))

    def found(device: torch.device) -> str:
        moved = {name: value.to(device) for name, value in start.items()}
        return json.dumps(probe(network.to(device), [x], moved, device), sort_keys=True)

    numbers = [[float(number) for number in re.findall(r"-?\d+\.\d+", found(device))] for device in (CPU, GPU)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_runs_on_the_gpu_and_says_how(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "run.py"), "train.steps=40", "channels=8", "blocks=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("outputs/adhoc/*/seed0/result.json")
    result = json.loads(path.read_text())
    assert result["provenance"]["device"].startswith("cuda (")
    assert result["provenance"]["cuda_graph"]
    assert "steps replayed as a CUDA graph" in (path.parent / "trial.log").read_text()
    assert all(scores["psnr_db"] > 15 for scores in result["metrics"].values())
