"""The published methods: the config sets what the table says, and each of them learns."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ablations.space.cells import Cell, canonical_levels
from ablations.space.factors import FACTORS, REFERENCE, parse_level
from ablations.space.rules import Backbone
from ablations.trial.identity import Trial
from bbcu.data.pairs import Pair
from bbcu.data.patches import PatchSampler
from bbcu.data.tasks import TASKS, Denoising, make_task
from bbcu.model.methods import BASELINE, METHODS, Method
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec, binary_units
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import ErrorDecay, sign
from bbcu.training.loop import StepReport, Training
from bbcu.training.preparation import standardise
from bbcu.training.settings import TrainSettings
from tests.harness.builders import blobs as textures
from tests.harness.paths import REPOSITORY
from tests.harness.support import composed

CPU = torch.device("cpu")
CHANNELS, BLOCKS = 8, 1
TRAINED = [name for name, method in METHODS.items() if method.network.get("name") != BASELINE]
SETTINGS = TrainSettings(steps=60, batch=4, patch=12, lr=3e-3, schedule="cosine", precision="fp32")


def network_of(name: str, scale: int = 2, layout: str = "srresnet", colours: int = 3) -> nn.Module:
    """A small network of a method, with the method's own number of channels if it has one."""
    method = METHODS[name]
    channels = method.channels or CHANNELS
    factors: dict[str, Any] = canonical_levels(method.all_levels, Backbone(layout, channels)).factors
    spec = NetworkSpec(
        scale=scale,
        channels=channels,
        blocks=BLOCKS,
        unit=UnitSpec(**{name: factors[name] for name, factor in FACTORS.items() if factor.of_unit}),
        align=factors["align"],
        binarize=factors["binarize"],
        colours=colours,
        **method.network,
    )
    return build(layout, spec, seed=0)


# --- config and code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_the_preset_of_a_method_sets_what_the_table_says(name: str) -> None:
    method = METHODS[name]
    config = composed(f"method={name}")
    assert {factor: config[factor] for factor in FACTORS} == {**REFERENCE, **method.all_levels}
    assert {key: config.network[key] for key in method.network} == dict(method.network)
    assert config.method.name == name
    assert method.channels in (None, config.channels)


def test_bbcu_is_the_reference() -> None:
    assert {name: parse_level(name, level) for name, level in METHODS["bbcu"].all_levels.items()} == REFERENCE


STRENGTHS = {"denoise": {"sigma": 25, "train_sigma": 25}, "jpeg": {"quality": 10, "train_quality": 10}}


def test_the_methods_that_are_not_trained_are_the_baselines_of_the_tasks() -> None:
    baselines = {make_task({"name": name, **STRENGTHS.get(name, {})}).baseline_name for name in TASKS}
    assert set(METHODS) - set(TRAINED) == baselines == {"bicubic", "identity"}


def test_no_two_trained_methods_of_one_width_are_the_same() -> None:
    def identity(method: Method) -> tuple[object, ...]:
        factors = canonical_levels(method.all_levels, Backbone("srresnet", CHANNELS)).factors
        return (*factors.values(), *sorted(method.network.items()), method.channels)

    assert len({identity(METHODS[name]) for name in TRAINED}) == len(TRAINED)


# --- training ---------------------------------------------------------------------------------------------------------


def noisy(colours: int) -> PatchSampler:
    """A sampler of flat squares with noise of sigma 50."""
    truths = [textures(seed, 1).truth[..., :colours] for seed in range(2)]
    degradation = Denoising((50.0,), (50.0, 50.0)).degradation
    pairs = [Pair("", truth, truth) for truth in truths]
    return PatchSampler(pairs, 1, 24, SETTINGS.batch, seed=0, degradation=degradation)


def losses_of(
    network: nn.Module,
    sampler: Any,
    settings: TrainSettings = SETTINGS,
    watch: Callable[[], object] = lambda: None,
) -> list[float]:
    """The losses of a training; ``watch`` is called after each step."""
    losses: list[float] = []

    def on_step(report: StepReport) -> None:
        losses.append(report.loss)
        watch()

    Training(network, sampler, settings, CPU).run(on_step)
    return losses


def blobs(network: nn.Module, scale: int = 2) -> PatchSampler:
    """A sampler of flat squares; sets the statistics of a network that standardises."""
    pairs = [textures(seed, scale) for seed in range(2)]
    standardise(network, pairs)
    return PatchSampler(pairs, scale, SETTINGS.patch, SETTINGS.batch, seed=0)


def assert_learns(losses: Sequence[float]) -> None:
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize(("name", "scale"), [*((name, 2) for name in TRAINED), ("bbcu", 3), ("bbcu", 4)])
def test_a_method_learns_super_resolution_and_its_latent_weights_flip(name: str, scale: int) -> None:
    network = network_of(name, scale)
    before = [sign(built.binariser(built.weight)) for built in binary_units(network)]
    assert_learns(losses_of(network, blobs(network, scale)))
    for built, start in zip(binary_units(network), before, strict=True):
        assert (sign(built.binariser(built.weight)) != start).any()


# With gray pictures a binary DnCNN has biases.
GRAY = ("full_precision", "bnn", "bbcu")


@pytest.mark.parametrize(("name", "colours"), [*((name, 3) for name in TRAINED), *((name, 1) for name in GRAY)])
def test_a_method_learns_to_denoise(name: str, colours: int) -> None:
    network = network_of(name, 1, "dncnn", colours)
    assert_learns(losses_of(network, noisy(colours)))


def test_the_latent_weights_of_bnn_are_clipped_to_where_they_can_flip_back() -> None:
    network = network_of("bnn")
    with torch.no_grad():
        for built in binary_units(network):
            built.weight.mul_(0.95 / built.weight.abs().max())
    extremes: list[float] = []

    def watch() -> None:
        extremes.append(max(float(built.weight.detach().abs().max()) for built in binary_units(network)))

    losses_of(network, blobs(network), dataclasses.replace(SETTINGS, lr=0.03), watch)
    # Without the clipping after each step, the largest would exceed 1.
    assert max(extremes) == 1.0


def test_irnet_sharpens_during_the_training() -> None:
    network = network_of("irnet")
    decays = [module for module in network.modules() if isinstance(module, ErrorDecay)]
    assert len(decays) == 2 * len(binary_units(network))
    seen: list[set[float]] = []
    losses_of(network, blobs(network), watch=lambda: seen.append({decay.sharpness.item() for decay in decays}))
    expected = [10 ** (-1 + 2 * step / SETTINGS.steps) for step in range(SETTINGS.steps)]
    assert [len(values) for values in seen] == [1] * SETTINGS.steps
    np.testing.assert_allclose([values.pop() for values in seen], expected, rtol=1e-5)


def test_bam_learns_the_weights_of_its_memory() -> None:
    network = network_of("bam")
    losses_of(network, blobs(network))
    share = network.body.memory.share
    assert share[0] == 1 / 16
    assert (share[1:] != 1 / 16).all()


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param("irnet", "irnet", id="published"),
        pytest.param("btm", "btm (reimplementation from the abstract)", id="reimplemented"),
        pytest.param("bbcu", "reference", id="the reference"),
        pytest.param("custom", "reference", id="no method"),
    ],
)
def test_a_trial_is_named_by_its_method_and_says_if_that_is_a_reimplementation(method: str, name: str) -> None:
    cell = Cell(dict(REFERENCE), {"channels": 8}, dict(REFERENCE))
    assert Trial("study", method, cell, 0).name == name


def test_the_page_lists_every_method_and_names_those_that_are_reimplementations() -> None:
    page = (REPOSITORY / "docs/methods.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert {name for name in METHODS if name in rows} == set(TRAINED)
    assert {name for name in TRAINED if "reimplementation" in rows[name]} == {n for n in METHODS if METHODS[n].label}
