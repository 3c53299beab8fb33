"""The rules of the factor space against the networks themselves: what is merged trains alike, and nothing else does.

Two cells are the same network where training cannot tell them apart, so networks are built as asked, not in canonical
form, given the same values, and trained. All is in float64, where rounding is far from any difference that is real.
"""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablations.space.cells import canonical_form, cell_name, census, combinations
from ablations.space.factors import AUTO, FACTORS, REFERENCE, Level
from ablations.space.rules import Backbone, ImpossibleCell, automatic_alignment, rules
from bbcu.errors import ConfigError
from bbcu.model.initialisation import generator_for
from bbcu.model.networks import build
from bbcu.model.parts import Body, NetworkSpec, binary_units
from bbcu.model.specs import UnitSpec
from bbcu.training.probes import probe
from tests.harness.builders import drawn

CHANNELS, BLOCKS, SIDE = 4, 1, 8
SRRESNET, DNCNN = Backbone("srresnet", CHANNELS), Backbone("dncnn", CHANNELS)
BACKBONES = {"srresnet": SRRESNET, "dncnn": DNCNN}
SCALES = {"srresnet": 2, "dncnn": 1}
STEPS = 3
ROUNDING = 1e-9
LEVELS: dict[str, tuple[Level, ...]] = {name: factor.levels for name, factor in FACTORS.items()}
LEVELS["align"] = (AUTO, 1.0)


def network_of(levels: dict[str, Level], backbone: Backbone, blocks: int = BLOCKS, colours: int = 3) -> nn.Module:
    """The network that these levels ask for as they stand, with every parameter away from where it starts.

    A parameter is moved by its name alone. What BatchNorm learns is moved alike in either place behind the convolution,
    since it is the same parameter in two cells that a rule merges.
    """
    factors: dict[str, Any] = dict(levels)
    parts, align = factors.pop("binarize"), factors.pop("align")
    align = automatic_alignment(levels, backbone) if align == AUTO else align
    scale = SCALES[backbone.network]
    spec = NetworkSpec(scale, backbone.channels, blocks, UnitSpec.of(factors), align, parts, colours=colours)
    network = build(backbone.network, spec, seed=0).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = generator_for(1, name.replace("bn_out", "bn_post"))
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network


def pictures(seed: int = 3, side: int = SIDE, colours: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, colours, side, side, generator=generator).double()


def trained(network: nn.Module) -> list[Tensor]:
    """The outputs of a network in training and after it, and the sizes of its first gradients."""
    units, x = binary_units(network), pictures()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    outputs, gradients = [network.eval()(x).detach()], []
    for step in range(STEPS):
        network.train()
        for unit in units:
            unit.set_progress(step / STEPS)
        optimiser.zero_grad()
        output = network(x)
        F.l1_loss(output, pictures(4, output.shape[-1])).backward()
        outputs.append(output.detach())
        if step == 0:
            gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        optimiser.step()
        for unit in units:
            unit.after_step()
    told = torch.stack([gradient.abs().sum() for gradient in gradients])
    return [*outputs, network.eval()(x).detach(), told]


def outcome(levels: dict[str, Level], backbone: Backbone) -> list[Tensor]:
    return trained(network_of(levels, backbone))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outcomes are equal; gradients count if both have as many parameters."""
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
        for act_fn in ("rprelu", "prelu", "relu", "hardtanh")
    ),
    pytest.param(
        SRRESNET,
        {"residual": False, "act": "none", "bn": "out"},
        {"residual": False, "act": "none", "bn": "post"},
        id="BatchNorm next to itself",
    ),
    *(
        pytest.param(
            SRRESNET,
            {"binarize": ("tail",), "residual": False, "bn": bn},
            {"binarize": ("tail",), "bn": bn},
            id=f"the skip of the tail is the network's: {bn}",
        )
        for bn in ("none", "pre", "post")
    ),
]


@pytest.mark.parametrize(("backbone", "one", "other"), MERGED)
def test_cells_that_are_merged_train_alike(backbone: Backbone, one: dict[str, Level], other: dict[str, Level]) -> None:
    first, second = asked(**one), asked(**other)
    assert canonical_form(first, backbone)[0] == canonical_form(second, backbone)[0]
    assert same(outcome(settled(first, backbone), backbone), outcome(settled(second, backbone), backbone))


def test_every_merging_rule_is_tested() -> None:
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


def test_every_impossible_rule_is_tested() -> None:
    refused = [
        (asked(binarize=("up",)), DNCNN),
        (asked(act="after", act_fn="hardtanh"), SRRESNET),
        (asked(act="after", act_fn="relu", threshold=False), SRRESNET),
        (asked(binarize=("head",), threshold=False), SRRESNET),
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


@pytest.mark.parametrize("backbone", [SRRESNET, DNCNN], ids=["srresnet", "dncnn"])
def test_combinations_train_like_their_canonical_form(backbone: Backbone) -> None:
    changed = 0
    for levels, form in sampled(backbone, 75):
        settled_levels = {**levels, "align": form["align"]}
        if settled_levels != form:
            changed += 1
            assert same(outcome(settled_levels, backbone), outcome(form, backbone)), cell_name(settled_levels)
    assert changed > 20


@pytest.mark.parametrize("backbone", [SRRESNET, DNCNN], ids=["srresnet", "dncnn"])
def test_combinations_that_differ_by_one_level_and_are_not_merged_do_not_train_alike(backbone: Backbone) -> None:
    draw, compared = random.Random(0), 0
    for _, form in sampled(backbone, 75):
        name = draw.choice(list(LEVELS))
        neighbour = {**form, name: draw.choice([level for level in LEVELS[name] if level != form[name]])}
        if possible(neighbour, backbone) and (other := canonical_form(neighbour, backbone)[0]) != form:
            compared += 1
            assert not same(outcome(form, backbone), outcome(other, backbone)), (
                f"{cell_name(form)} | {cell_name(other)}"
            )
    assert compared > 40


@pytest.mark.parametrize("backbone", [SRRESNET, DNCNN], ids=["srresnet", "dncnn"])
def test_canonical_forms_are_stable_over_the_whole_space_and_counted_by_the_census(backbone: Backbone) -> None:
    forms: set[tuple[Level, ...]] = set()
    total = refused = 0
    for levels in combinations(LEVELS):
        total += 1
        try:
            form, _ = canonical_form(levels, backbone)
        except ImpossibleCell:
            refused += 1
            continue
        if (key := tuple(form.values())) not in forms:
            assert canonical_form(form, backbone) == (form, ())
            forms.add(key)
    counted = census(backbone)
    assert (counted.combinations, counted.impossible, counted.cells) == (total, refused, len(forms))
    assert counted.duplicates == total - refused - len(forms)
    forbidding = {rule.reason for rule in rules().impossible}
    assert sum(number for reason, number in counted.by_reason.items() if reason in forbidding) == refused


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


@pytest.mark.parametrize("weight", ["l1mag", "plain"])
def test_batchnorm_behind_the_convolution_hides_the_scale_of_the_weights_but_not_from_the_training(weight: str) -> None:
    one, other = asked(bn="post"), asked(bn="post", weight=weight)
    first, second = outcome(one, SRRESNET), outcome(other, SRRESNET)
    torch.testing.assert_close(first[1], second[1], rtol=1e-3, atol=1e-3)
    assert not same(first, second)


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
