"""The rules of the factor space against the networks themselves: what is merged trains alike, and nothing else does.

Two cells are the same network where training cannot tell them apart, so networks are built as asked, not in canonical
form, given the same values, and trained. All is in float64, where rounding is far from any difference that is real.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablations.space.cells import canonical_form, cell_name
from ablations.space.factors import AUTO, FACTORS, REFERENCE, Level
from ablations.space.rules import Backbone, ImpossibleCell, automatic_alignment, rules
from bbcu.errors import ConfigError
from bbcu.model.initialisation import generator_for, initialise
from bbcu.model.networks import build
from bbcu.model.parts import Body, NetworkSpec, binary_units
from bbcu.model.records import OF_TRAINING
from bbcu.model.specs import UnitSpec
from bbcu.training.probes import probe
from tests.harness.builders import drawn

CHANNELS, BLOCKS, SIDE = 4, 1, 8
SRRESNET, DNCNN = Backbone("srresnet", CHANNELS), Backbone("dncnn", CHANNELS)
EDSR, RCAN, RDN = (Backbone(name, CHANNELS, task="sr_x2") for name in ("edsr", "rcan", "rdn"))
DRUNET, UNET = Backbone("drunet", CHANNELS), Backbone("unet", CHANNELS)
STEPS = 4
ROUNDING = 1e-9
SMALL, LARGE = 25, 4
"""How many combinations are drawn of the networks of the paper, and of the others, which have more layers."""

EVERY_BACKBONE = (SRRESNET, DNCNN, EDSR, dataclasses.replace(EDSR, tail="light"), RCAN, RDN, DRUNET, UNET)
LEVELS: dict[str, tuple[Level, ...]] = {name: factor.levels for name, factor in FACTORS.items()}
LEVELS["align"] = (AUTO, 1.0)


def called(backbone: Backbone) -> str:
    return backbone.network if backbone.tail == "full" else f"{backbone.network} with a {backbone.tail} tail"


def draws(backbone: Backbone) -> int:
    return SMALL if backbone in (SRRESNET, DNCNN) else LARGE


def network_of(levels: dict[str, Level], backbone: Backbone, blocks: int = BLOCKS, colours: int = 3) -> nn.Module:
    """The network that these levels ask for as they stand, with every parameter away from where it starts.

    A parameter is moved by its name alone. What BatchNorm learns is moved alike in any place behind the convolution,
    since it is the same parameter in two cells that a rule merges.
    """
    factors: dict[str, Any] = {name: level for name, level in levels.items() if name not in OF_TRAINING}
    parts, align = factors.pop("binarize"), factors.pop("align")
    align = automatic_alignment(levels, backbone) if align == AUTO else align
    scale = int(backbone.task[-1]) if backbone.task else 2 if backbone == SRRESNET else 1
    sizes = {"colours": colours, "groups": 1, "layers": 3, "tail": backbone.tail}
    spec = NetworkSpec(scale, backbone.channels, blocks, UnitSpec.of(factors), align, parts, **sizes)
    network = build(backbone.network, spec, seed=0).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = generator_for(1, name.replace("bn_out", "bn_post").replace("bn_branch", "bn_post"))
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network


def pictures(seed: int = 3, side: int = SIDE, colours: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, colours, side, side, generator=generator).double()


def trained(network: nn.Module, start: Level = "scratch") -> list[Tensor]:
    """The outputs of a network in training and after it, and the sizes of its first gradients and of what it learnt."""
    units, x = binary_units(network), pictures()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    outputs, gradients = [network.eval()(x).detach()], []
    for step in range(STEPS):
        network.train()
        for unit in units:
            unit.set_progress(step / STEPS)
            is_binary = start == "scratch" or 2 * step >= STEPS
            unit.binary_weights, unit.binary_signs = is_binary, is_binary or start == "two_step"
        optimiser.zero_grad()
        output = network(x)
        F.l1_loss(output, pictures(4, output.shape[-1])).backward()
        outputs.append(output.detach())
        if step == 0:
            gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        optimiser.step()
        for unit in units:
            unit.after_step()
    learnt = [parameter.detach() for parameter in network.parameters() if parameter.grad is not None]
    told = [torch.stack([values.abs().sum() for values in each]) for each in (gradients, learnt) if each]
    return [*outputs, network.eval()(x).detach(), *told]


def outcome(levels: dict[str, Level], backbone: Backbone) -> list[Tensor]:
    return trained(network_of(levels, backbone), levels["start"])


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outcomes are equal; gradients and parameters count if both have as many."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.shape == b.shape]
    return all(torch.allclose(a, b, rtol=ROUNDING, atol=ROUNDING) for a, b in pairs)


def asked(**levels: Level) -> dict[str, Level]:
    return {**REFERENCE, **levels}


def settled(levels: dict[str, Level], backbone: Backbone) -> dict[str, Level]:
    """The levels with the number for the alignment that their canonical form has."""
    return {**levels, "align": canonical_form(levels, backbone)[0]["align"]}


# --- what is merged ---------------------------------------------------------------------------------------------------

MERGED = [
    pytest.param(
        SRRESNET,
        {"binarize": (), "bn": "post", "weight": "plain", "act_fn": "relu", "residual": False, "threshold": False},
        {"binarize": ()},
        id="nothing is binary",
    ),
    pytest.param(
        SRRESNET,
        {"binarize": (), "rescale": "both", "start": "full", "distil": "output", "bn": "branch", "act": "first"},
        {"binarize": ()},
        id="nothing is binary, nor starts in full precision",
    ),
    pytest.param(SRRESNET, {"act": "none", "act_fn": "relu"}, {"act": "none"}, id="no activation"),
    *(
        pytest.param(
            SRRESNET, {"residual": "block", "binarize": parts}, {"binarize": parts}, id=f"a block of one: {parts}"
        )
        for parts in (("head",), ("up",), ("tail",), ("head", "up", "tail"))
    ),
    pytest.param(
        DNCNN,
        {"binarize": ("tail",)},
        {"binarize": ("tail",), "residual": False},
        id="the tail of a DnCNN has no residual",
    ),
    pytest.param(
        DNCNN,
        {"binarize": ("tail",), "residual": "block", "act": "after"},
        {"binarize": ("tail",), "residual": False},
        id="nor a block",
    ),
    *(
        pytest.param(
            SRRESNET,
            {"residual": False, "act": "after", "act_fn": act_fn, "binarize": ("body", "up", "tail")},
            {"residual": False, "act_fn": act_fn, "binarize": ("body", "up", "tail")},
            id=f"no add: {act_fn}",
        )
        for act_fn in ("rprelu", "prelu", "relu", "hardtanh", "leaky", "maxout")
    ),
    pytest.param(
        SRRESNET,
        {"residual": False, "act": "none", "bn": "out"},
        {"residual": False, "act": "none", "bn": "post"},
        id="BatchNorm next to itself",
    ),
    pytest.param(
        SRRESNET, {"act": "none", "bn": "branch"}, {"act": "none", "bn": "post"}, id="no activation to stand behind"
    ),
    pytest.param(
        SRRESNET, {"residual": False, "bn": "branch"}, {"residual": False, "bn": "out"}, id="no add to stand before"
    ),
    *(
        pytest.param(
            SRRESNET, {"act": "first", "binarize": parts}, {"act": "none", "binarize": parts}, id=f"no pairs: {parts}"
        )
        for parts in (("head",), ("up",), ("tail",))
    ),
    *(
        pytest.param(
            backbone,
            {"binarize": ("tail",)},
            {"binarize": ("tail",), "residual": False},
            id=f"no residual: {called(backbone)}",
        )
        for backbone in (EDSR, RCAN, RDN)
    ),
    pytest.param(RDN, {"residual": "block"}, {"residual": True}, id="an RDN has no pairs"),
    *(
        pytest.param(
            SRRESNET,
            {"binarize": ("tail",), "residual": False, "bn": bn},
            {"binarize": ("tail",), "bn": bn},
            id=f"the skip of the tail is the network's: {bn}",
        )
        for bn in ("none", "pre", "post")
    ),
    pytest.param(
        UNET,
        {"binarize": ("tail",), "residual": False},
        {"binarize": ("tail",)},
        id="the skip of the tail is the network's: unet",
    ),
    *(
        pytest.param(
            backbone,
            {"binarize": ("tail",), "bn": "branch", "residual": residual},
            {"binarize": ("tail",), "bn": "out", "residual": False},
            id=f"before the skip or at the output of the unit: {called(backbone)}, {residual}",
        )
        for backbone, residual in ((SRRESNET, True), (SRRESNET, "block"), (UNET, True))
    ),
]


@pytest.mark.parametrize(("backbone", "one", "other"), MERGED)
def test_cells_that_are_merged_train_alike(backbone: Backbone, one: dict[str, Level], other: dict[str, Level]) -> None:
    first, second = asked(**one), asked(**other)
    assert canonical_form(first, backbone)[0] == canonical_form(second, backbone)[0]
    assert same(outcome(settled(first, backbone), backbone), outcome(settled(second, backbone), backbone))


def test_every_merging_rule_is_tested() -> None:
    """Of rules with one reason, one is enough here; the rows above have each."""
    found = {reason for row in MERGED for reason in canonical_form(asked(**row.values[1]), row.values[0])[1]}  # type: ignore[arg-type]
    assert found == {rule.reason for rule in rules().merging}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"residual": False, "bn": "out"}, {"residual": False, "bn": "post"}, id="an activation between"),
        pytest.param({"act": "none", "bn": "out"}, {"act": "none", "bn": "post"}, id="a residual between"),
        pytest.param({"act": "after"}, {"act": "inside"}, id="an add to stand beside"),
        pytest.param({"residual": "block"}, {"residual": True}, id="a body in blocks"),
        pytest.param(
            {"residual": "block", "act": "after"}, {"residual": "block"}, id="an add in every second unit alone"
        ),
        pytest.param(
            {"binarize": ("tail",), "residual": False, "bn": "out"},
            {"binarize": ("tail",), "bn": "out"},
            id="BatchNorm over the skip",
        ),
        pytest.param(
            {"binarize": ("up", "tail"), "residual": False}, {"binarize": ("up", "tail")}, id="more than the tail"
        ),
        pytest.param({"binarize": (), "align": 8.0}, {"binarize": (), "align": 1.0}, id="alignment without a bit"),
        pytest.param(
            {"align": 8.0, "residual": False}, {"align": 1.0, "residual": False}, id="alignment of bits alone"
        ),
        pytest.param({"weight": "l1mag"}, {"weight": "l1"}, id="a gradient that Adam scales"),
        pytest.param({"weight": "sign"}, {"weight": "plain"}, id="a cut of the latent weights"),
        pytest.param({"bn": "branch"}, {"bn": "out"}, id="an add behind it"),
        pytest.param({"bn": "branch", "act_fn": "leaky"}, {"bn": "post", "act_fn": "leaky"}, id="a kink before it"),
        pytest.param({"act": "first"}, {"act": "none"}, id="pairs in the body"),
        pytest.param({"residual": "scaled"}, {"residual": True}, id="a number that is learnt"),
        pytest.param(
            {"residual": "scaled", "binarize": ("tail",)}, {"binarize": ("tail",)}, id="a number that scales the skip"
        ),
        pytest.param({"bn": "post", "weight": "srb"}, {"bn": "post"}, id="two scales, one of which BatchNorm hides"),
        pytest.param({"bn": "post", "rescale": "channel"}, {"bn": "post"}, id="factors of each picture"),
        pytest.param({"start": "two_step"}, {"start": "full"}, id="signs from the start"),
    ],
)
def test_similar_cells_that_are_not_merged_train_differently(one: dict[str, Level], other: dict[str, Level]) -> None:
    first, second = asked(**one), asked(**other)
    assert canonical_form(first, SRRESNET)[0] != canonical_form(second, SRRESNET)[0]
    assert not same(outcome(first, SRRESNET), outcome(second, SRRESNET))


# --- what is impossible -----------------------------------------------------------------------------------------------


def possible(levels: dict[str, Level], backbone: Backbone) -> bool:
    try:
        canonical_form(levels, backbone)
    except ImpossibleCell:
        return False
    return True


def entropies(levels: dict[str, Level], backbone: Backbone) -> dict[str, float]:
    """The entropy of the bits of each unit of the network that these levels would be."""
    found = probe(network_of(levels, backbone, blocks=2), [pictures(), pictures(5)], None, torch.device("cpu"))
    return {name: values["entropy"] for name, values in found["units"].items()}


def test_a_dncnn_has_no_upsampling_to_binarise() -> None:
    levels = asked(binarize=("body", "up"))
    assert not possible(levels, DNCNN)
    with pytest.raises(ConfigError, match="upsampling"):
        network_of(levels, DNCNN)


@pytest.mark.parametrize("residual", [True, "block"])
@pytest.mark.parametrize(
    ("parts", "cut"),
    [
        pytest.param(("body",), "body", id="body"),
        pytest.param(("head",), "head", id="head"),
        pytest.param(("up",), "up.refine", id="up"),
        pytest.param(("tail",), "tail", id="tail"),
    ],
)
def test_hardtanh_after_the_add_cuts_what_alignment_has_made_large(
    parts: tuple[str, ...], cut: str, residual: Level
) -> None:
    levels = asked(act="after", act_fn="hardtanh", binarize=parts, residual=residual, align=130.0)
    assert not possible(levels, SRRESNET)
    assert possible({**levels, "align": 1.0}, SRRESNET)
    assert possible({**levels, "act": "inside"}, SRRESNET)
    assert largest(levels, cut) <= 1 < 10 < largest({**levels, "act": "inside"}, cut)


def largest(levels: dict[str, Level], place: str) -> float:
    """The largest magnitude that comes out of the module at ``place``."""
    network, outputs = network_of(levels, SRRESNET), []
    with network.get_submodule(place).register_forward_hook(lambda *passed: outputs.append(passed[-1])):
        network(pictures())
    return float(outputs[0].detach().abs().max())


def units_of_body(*numbers: int) -> set[str]:
    return {f"body.units.{number}" for number in numbers}


BLIND = [
    pytest.param(SRRESNET, {"act": "after"}, units_of_body(1, 2, 3), id="an identity each, after the add"),
    pytest.param(SRRESNET, {"residual": False}, units_of_body(1, 2, 3), id="no residual"),
    pytest.param(SRRESNET, {"residual": "block", "act": "after"}, units_of_body(1, 2, 3), id="pairs, after the add"),
    pytest.param(SRRESNET, {"residual": "block"}, units_of_body(1, 3), id="pairs: the second of each"),
    pytest.param(SRRESNET, {"binarize": ("up",), "act": "after"}, {"up.refine"}, id="up, after the add"),
    pytest.param(SRRESNET, {"binarize": ("up",), "residual": False}, {"up.refine"}, id="up, no residual"),
    pytest.param(
        SRRESNET, {"binarize": ("up", "tail"), "act": "after"}, {"up.refine", "tail"}, id="up and what it feeds"
    ),
    pytest.param(DNCNN, {}, units_of_body(0, 1, 2, 3), id="a stream that only grows"),
    pytest.param(DNCNN, {"binarize": ("tail",), "act_fn": "rprelu"}, {"tail"}, id="behind the last ReLU of a body"),
    pytest.param(SRRESNET, {"binarize": ("head",)}, {"head.unit"}, id="a head"),
    pytest.param(DNCNN, {"binarize": ("head",)}, {"head.unit"}, id="the head of a DnCNN"),
]
"""Levels with a ReLU or a picture before a sign without a threshold, and the units whose bits are all positive."""


@pytest.mark.parametrize("bn", ["none", "post"])
@pytest.mark.parametrize(("backbone", "levels", "blind"), BLIND)
def test_without_a_shift_after_a_relu_or_a_picture_every_bit_is_positive(
    backbone: Backbone, levels: dict[str, Level], blind: set[str], bn: str
) -> None:
    whole = {**asked(act_fn="relu", bn=bn, threshold=False), **levels}
    assert not possible(whole, backbone)
    found = entropies(whole, backbone)
    assert {name for name, entropy in found.items() if entropy == 0} == blind


@pytest.mark.parametrize("backbone", [SRRESNET, DNCNN], ids=["srresnet", "dncnn"])
def test_batchnorm_at_the_output_does_not_help_a_binary_head(backbone: Backbone) -> None:
    levels = asked(binarize=("head",), bn="out", threshold=False)
    assert not possible(levels, backbone)
    assert entropies(levels, backbone) == {"head.unit": 0}


@pytest.mark.parametrize(
    "change", [{"threshold": True}, {"bn": "pre"}, {"bn": "out"}, {"act_fn": "prelu"}, {"act": "inside"}], ids=str
)
def test_after_a_relu_bits_carry_information_if_something_shifts_them(change: dict[str, Level]) -> None:
    levels = {**asked(act="after", act_fn="relu", threshold=False), **change}
    assert possible(levels, SRRESNET)
    assert sum(entropy > 0 for entropy in entropies(levels, SRRESNET).values()) > 1


@pytest.mark.parametrize("change", [{"threshold": True}, {"bn": "pre", "threshold": False}], ids=str)
def test_a_binary_head_sees_a_picture_with_a_threshold_or_batchnorm(change: dict[str, Level]) -> None:
    levels = asked(binarize=("head",), **change)
    assert possible(levels, SRRESNET)
    assert entropies(levels, SRRESNET)["head.unit"] > 0


@pytest.mark.parametrize("backbone", [RDN, UNET, DRUNET], ids=called)
def test_a_binary_head_of_a_network_that_sees_the_picture_is_blind(backbone: Backbone) -> None:
    levels = asked(binarize=("head",), threshold=False)
    assert not possible(levels, backbone)
    assert entropies(levels, backbone) == {"head.unit": 0}


@pytest.mark.parametrize("backbone", [EDSR, RCAN], ids=called)
def test_a_binary_head_sees_a_picture_from_which_the_mean_is_subtracted(backbone: Backbone) -> None:
    levels = asked(binarize=("head",), threshold=False)
    assert possible(levels, backbone)
    assert entropies(levels, backbone)["head.unit"] > 0


UPSAMPLING = [
    pytest.param(EDSR, ("up",), set(), id="one unit, after a convolution"),
    pytest.param(EDSR, ("up", "tail"), {"tail"}, id="and the tail"),
    pytest.param(dataclasses.replace(EDSR, task="sr_x4"), ("up",), {"up.stages.1"}, id="two units"),
    pytest.param(UNET, ("up",), set(), id="units with stages between them"),
    pytest.param(DRUNET, ("up", "tail"), set(), id="a skip before the tail"),
]
"""Networks, binary parts, and the units whose bits are all positive if the output of a unit is."""


@pytest.mark.parametrize(("backbone", "parts", "blind"), UPSAMPLING)
def test_bits_of_upsampling_are_all_positive_where_a_unit_follows_a_unit(
    backbone: Backbone, parts: tuple[str, ...], blind: set[str]
) -> None:
    levels = asked(act="after", act_fn="relu", threshold=False, binarize=parts)
    assert possible(levels, backbone) == (not blind)
    assert {name for name, entropy in entropies(levels, backbone).items() if entropy == 0} == blind


@pytest.mark.parametrize("act", ["first", "after"])
def test_a_relu_after_the_add_blinds_the_second_unit_of_each_pair(act: str) -> None:
    levels = asked(act=act, act_fn="relu", threshold=False)
    assert not possible(levels, SRRESNET)
    assert {"body.units.1", "body.units.3"} <= {
        name for name, entropy in entropies(levels, SRRESNET).items() if entropy == 0
    }
    assert possible({**levels, "act_fn": "leaky"}, SRRESNET)
    assert all(entropies({**levels, "act_fn": "leaky"}, SRRESNET).values())


def test_inside_an_rdn_most_bits_after_a_relu_are_positive() -> None:
    """Only the first convolution of a block has a residual, so the others hand on what the ReLU leaves."""
    levels = asked(act_fn="relu", threshold=False)
    assert not possible(levels, RDN)
    bits: list[Tensor] = []
    network = network_of(levels, RDN)
    last = network.get_submodule("body.blocks.0.layers.2")
    with last.surrogate.register_forward_hook(lambda *passed: bits.append(passed[-1])):  # type: ignore[union-attr, operator]
        network(pictures())
    own, first, second = bits[0].unflatten(1, (3, CHANNELS)).unbind(1)
    assert bool((own < 0).any() and (first < 0).any())
    assert bool((second > 0).all())


@pytest.mark.parametrize("threshold", ["affine", "elastic", "adaptive", "dynamic"])
def test_every_threshold_shifts_what_a_sign_is_taken_of(threshold: str) -> None:
    levels = asked(act="after", act_fn="relu", threshold=threshold)
    assert possible(levels, SRRESNET)
    assert sum(entropy > 0 for entropy in entropies(levels, SRRESNET).values()) > 1


@pytest.mark.parametrize(("act", "residual"), [("after", True), ("first", True), ("first", "scaled")])
def test_between_activation_and_add_there_is_a_place_only_before_the_add(act: str, residual: Level) -> None:
    """The unit has its BatchNorm there only if its activation stands before the add."""
    levels = asked(bn="branch", act=act, residual=residual)
    assert not possible(levels, SRRESNET)
    assert possible({**levels, "act": "inside"}, SRRESNET)
    unit, x = body_of(act=act, bn="branch").units[0], stream()
    with torch.no_grad():
        unit.bn_branch.weight.zero_()
        unit.bn_branch.bias.zero_()
    assert not torch.equal(unit(x, x), x), "bn_branch is not used"


@pytest.mark.parametrize("residual", [False, "block"])
def test_an_activation_in_the_first_of_a_pair_needs_the_add_of_the_first(residual: Level) -> None:
    levels = asked(act="first", residual=residual)
    assert not possible(levels, SRRESNET)
    assert possible({**levels, "residual": "scaled"}, SRRESNET)
    with_first, without = (body_of(act=act, residual=residual) for act in ("first", "inside"))
    torch.testing.assert_close(with_first.units[0](stream()), without.units[0](stream()))


@pytest.mark.parametrize("rescale", ["channel", "both", "doubled", "statistics"])
def test_factors_of_channels_need_a_channel_of_the_output_for_each_of_the_input(rescale: str) -> None:
    for parts, backbone in ((("tail",), SRRESNET), (("body",), RDN), (("up",), UNET)):
        assert not possible(asked(rescale=rescale, binarize=parts), backbone)
        assert possible(asked(rescale="squeeze", binarize=parts), backbone)
        units = binary_units(network_of(asked(rescale=rescale, binarize=parts), backbone))
        assert any(unit.out_channels < unit.in_channels for unit in units)
    assert possible(asked(rescale=rescale, binarize=("head", "body", "up")), SRRESNET)
    units = binary_units(network_of(asked(rescale=rescale, binarize=("head", "up")), SRRESNET))
    assert all(unit.out_channels >= unit.in_channels for unit in units)


@pytest.mark.parametrize("weight", FACTORS["weight"].levels)
def test_a_binary_network_starts_from_full_precision_weights_of_about_its_own_size(weight: str) -> None:
    unit = Body(NetworkSpec(2, 64, 1, UnitSpec(weight=weight, act="none"))).units[0]
    initialise(unit, 0)
    jump = float((unit.binariser(unit.weight).norm() / unit.weight.norm()).detach())
    for start in ("full", "two_step"):
        assert possible(asked(start=start, weight=weight, bn="none"), SRRESNET) == (0.5 < jump < 2)
        assert possible(asked(start=start, weight=weight, bn="out"), SRRESNET) == (0.5 < jump < 2)
        assert possible(asked(start=start, weight=weight, bn="out", residual=False), SRRESNET)
        assert possible(asked(start=start, weight=weight, bn="post"), SRRESNET)


@pytest.mark.parametrize("backbone", [EDSR, RCAN, RDN], ids=called)
def test_a_light_tail_has_no_upsampling_to_binarise(backbone: Backbone) -> None:
    levels, light = asked(binarize=("body", "up")), dataclasses.replace(backbone, tail="light")
    assert possible(levels, backbone)
    assert not possible(levels, light)
    with pytest.raises(ConfigError, match="light tail"):
        network_of(levels, light)


def test_every_impossible_rule_is_tested() -> None:
    refused = [
        (asked(binarize=("up",)), DNCNN),
        (asked(binarize=("up",)), dataclasses.replace(EDSR, tail="light")),
        (asked(act="after", act_fn="hardtanh"), SRRESNET),
        (asked(act="after", act_fn="relu", threshold=False), SRRESNET),
        (asked(binarize=("head",), threshold=False), SRRESNET),
        (asked(bn="branch", act="after"), SRRESNET),
        (asked(act="first", residual="block"), SRRESNET),
        (asked(rescale="channel", binarize=("tail",)), SRRESNET),
        (asked(start="full", weight="plain"), SRRESNET),
    ]
    reasons = set()
    for levels, backbone in refused:
        with pytest.raises(ImpossibleCell) as error:
            canonical_form(levels, backbone)
        reasons.add(str(error.value))
    assert reasons == {rule.reason for rule in rules().impossible}


# --- the whole space --------------------------------------------------------------------------------------------------


def sampled(backbone: Backbone, count: int) -> Iterator[tuple[dict[str, Level], dict[str, Level]]]:
    """Combinations that are possible, each with its canonical form, the same ones every time."""
    draw = random.Random(f"{backbone.network} 0")
    while count:
        levels = {name: draw.choice(values) for name, values in LEVELS.items()}
        if possible(levels, backbone):
            count -= 1
            yield levels, canonical_form(levels, backbone)[0]


@pytest.mark.parametrize("backbone", EVERY_BACKBONE, ids=called)
def test_combinations_train_like_their_canonical_form(backbone: Backbone) -> None:
    changed = 0
    for levels, form in sampled(backbone, draws(backbone)):
        settled_levels = {**levels, "align": form["align"]}
        if settled_levels != form:
            changed += 1
            assert same(outcome(settled_levels, backbone), outcome(form, backbone)), cell_name(settled_levels)
    assert changed >= draws(backbone) / 4


@pytest.mark.parametrize("backbone", EVERY_BACKBONE, ids=called)
def test_combinations_that_differ_by_one_level_and_are_not_merged_do_not_train_alike(backbone: Backbone) -> None:
    """But for ``distil``, whose levels differ by what a teacher adds to the loss."""
    draw, compared = random.Random(0), 0
    for _, form in sampled(backbone, draws(backbone)):
        name = draw.choice([name for name in LEVELS if name != "distil"])
        neighbour = {**form, name: draw.choice([level for level in LEVELS[name] if level != form[name]])}
        if possible(neighbour, backbone) and (other := canonical_form(neighbour, backbone)[0]) != form:
            compared += 1
            assert not same(outcome(form, backbone), outcome(other, backbone)), (
                f"{cell_name(form)} | {cell_name(other)}"
            )
    assert compared >= draws(backbone) / 4


@pytest.mark.parametrize("backbone", EVERY_BACKBONE, ids=called)
def test_canonical_forms_are_stable(backbone: Backbone) -> None:
    for _, form in sampled(backbone, 200):
        assert canonical_form(form, backbone) == (form, ())


# --- the same functions, and yet not the same networks ----------------------------------------------------------------


def body_of(blocks: int = BLOCKS, **levels: Any) -> Body:
    """A body with every parameter and every statistic away from where it starts."""
    body = Body(NetworkSpec(2, CHANNELS, blocks, UnitSpec(**levels))).double()
    with torch.no_grad():
        for name, value in body.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator_for(2, name)).double()
                value.add_(noise if "running" in name else noise - 0.5)
    return body


def stream() -> Tensor:
    return drawn(2, CHANNELS, SIDE, SIDE).double()


def test_a_threshold_after_batchnorm_adds_no_function_but_learns_faster() -> None:
    with_threshold, without = body_of(bn="pre"), body_of(bn="pre", threshold=False)
    state = {name: value.clone() for name, value in with_threshold.state_dict().items()}
    thresholds = {name: state.pop(name) for name in list(state) if name.endswith("threshold")}
    for name, value in thresholds.items():
        state[name.replace("threshold", "bn_pre.bias")] += value.flatten()
    without.load_state_dict(state)
    for mode in (True, False):
        torch.testing.assert_close(with_threshold.train(mode)(stream()), without.train(mode)(stream()))

    def moved(body: Body) -> Tensor:
        """How far the sign's argument moves in one step of Adam, by what is added to it."""
        added = [
            value
            for name, value in body.named_parameters()
            if name.endswith(("units.0.threshold", "units.0.bn_pre.bias"))
        ]
        before = sum(value.detach().flatten().clone() for value in added)
        optimiser = torch.optim.Adam(body.parameters(), 0.01)
        body.train()(stream()).square().sum().backward()
        optimiser.step()
        return (sum(value.detach().flatten() for value in added) - before).abs()

    torch.testing.assert_close(moved(with_threshold), 2 * moved(without), rtol=1e-3, atol=0)


def test_a_bias_before_batchnorm_has_no_effect() -> None:
    """The released gray DnCNN has biases; with BatchNorm behind them neither output nor gradient knows."""
    levels = asked(bn="post", align=1.0)
    network, x = network_of(levels, DNCNN, colours=1), pictures(colours=1)
    before = network.train()(x)
    before.square().sum().backward()
    for unit in binary_units(network):
        assert unit.bias is not None
        assert unit.bias.grad is not None
        assert unit.weight.grad is not None
        assert unit.bias.grad.abs().max() < 1e-10 * unit.weight.grad.abs().max()
        with torch.no_grad():
            unit.bias.add_(3.0)
    torch.testing.assert_close(network(x), before)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            pytest.param({}, {"weight": weight}, id=f"l1 and {weight}")
            for weight in ("l1mag", "plain", "sign", "reste")
        ),
        pytest.param({"weight": "irnet"}, {"weight": "recu"}, id="irnet and recu"),
        pytest.param({"rescale": "both"}, {"rescale": "doubled"}, id="both and doubled"),
    ],
)
def test_batchnorm_behind_the_convolution_hides_its_scale_but_not_from_the_training(
    one: dict[str, Level], other: dict[str, Level]
) -> None:
    first, second = (network_of(asked(bn="post", **levels), SRRESNET) for levels in (one, other))
    with torch.no_grad():
        for unit in binary_units(second):
            if "gain" in dict(unit.binariser.named_parameters()):
                unit.binariser.gain.abs_()
    # BatchNorm adds 1e-5 to a variance, which turns over a few bits.
    assert (first(pictures()) - second(pictures())).abs().mean() < 1e-3
    assert not same(trained(first), trained(second))


def test_the_shift_of_batchnorm_and_the_shift_into_rprelu_are_one() -> None:
    body = body_of(bn="post").eval()
    before = body(stream())
    with torch.no_grad():
        for unit in body.units:
            unit.activation.shift_in += unit.bn_post.bias[:, None, None]
            unit.bn_post.bias.zero_()
    torch.testing.assert_close(body(stream()), before)


def test_after_the_add_the_shift_out_of_rprelu_folds_into_the_next_unit() -> None:
    body = body_of(act="after").eval()
    before, (first, second) = body(stream()), body.units
    with torch.no_grad():
        shift = first.activation.shift_out.clone()
        first.activation.shift_out.zero_()
        second.threshold += shift
        second.activation.shift_in += shift
    torch.testing.assert_close(body(stream()), before)


def test_before_the_add_the_shift_out_of_rprelu_folds_into_every_later_threshold() -> None:
    body = body_of(blocks=2).eval()
    before, total = body(stream()), torch.zeros(1, CHANNELS, 1, 1).double()
    with torch.no_grad():
        for unit in body.units:
            unit.threshold += total
            total = total + unit.activation.shift_out
            unit.activation.shift_out.zero_()
    torch.testing.assert_close(body(stream()) + total, before)


def test_batchnorm_between_two_bare_convolutions_is_a_threshold() -> None:
    """If its weight is positive; a negative one flips the bits too."""
    body = body_of(residual=False, act="none", bn="post").eval()
    before, (first, second) = body(stream()), body.units
    bn = first.bn_post
    assert (bn.weight > 0).all()
    with torch.no_grad():
        deviation = (bn.running_var + bn.eps).sqrt()
        folded = (bn.bias + second.threshold.flatten()) * deviation / bn.weight - bn.running_mean
        second.threshold.copy_(folded[None, :, None, None])
        first.bn_post = nn.Identity()
    torch.testing.assert_close(body(stream()), before)


def test_alignment_without_a_residual_scales_the_tail_and_narrows_the_window() -> None:
    """The signs of the body are blind to it at the start, but neither the output nor the gradient is."""
    networks = [network_of(asked(residual=False, threshold=False, align=align), SRRESNET) for align in (1.0, 8.0)]
    for network in networks:
        with torch.no_grad():
            network.head.bias.zero_()
    x, features = pictures(), []
    for network in networks:
        with network.body.register_forward_hook(lambda *passed: features.append(passed[-1].detach())):
            network(x).sum().backward()
    torch.testing.assert_close(*features)
    assert not torch.allclose(networks[0](x), networks[1](x))
    # The head counts eight times as much before the sign and the body an eighth at the output, so what is left of the
    # gradient's size is how many inputs of the signs lie in the window.
    sizes = [float(network.head.weight.grad.abs().sum()) for network in networks]
    assert 0 < sizes[1] < sizes[0]


@pytest.mark.parametrize("weight", ["plain", "irnet"])
def test_weights_without_a_scale_make_a_branch_as_large_as_the_root_of_the_fan_in(weight: str) -> None:
    channels = 64
    unit = Body(NetworkSpec(2, channels, 1, UnitSpec(weight=weight, act="none"))).units[0]
    with torch.no_grad():
        unit.weight.copy_(drawn(*unit.weight.shape) / 24)
        inside = unit.branch(drawn(1, channels, 20, 20, seed=1))[:, :, 1:-1, 1:-1]
    assert float(inside.std()) == pytest.approx((channels * 3 * 3) ** 0.5, rel=0.1)


@pytest.mark.parametrize("residual", [True, False, "block"])
def test_a_binary_tail_adds_the_skip_once(residual: Level) -> None:
    network, x = network_of(asked(binarize=("tail",), residual=residual, act="none"), SRRESNET), pictures()
    with torch.no_grad():
        network.tail.weight.zero_()
    torch.testing.assert_close(network(x), F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))


def test_the_first_unit_of_a_dncnn_is_blind_without_a_threshold() -> None:
    """The head ends in a ReLU as published, so methods without a threshold start with one unit that sees nothing."""
    levels = asked(threshold=False, bn="post", align=1.0)
    found = entropies(levels, DNCNN)
    assert found["body.units.0"] == 0
    assert sum(found.values()) > 0
    assert entropies({**levels, "threshold": True}, DNCNN)["body.units.0"] > 0
