"""EDSR, RCAN and RDN: what they cost, how far they see, which parts are binary, and the states of their authors."""

import decimal
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bbcu
from bbcu.errors import ConfigError
from bbcu.model.authors.networks import E2FIF
from bbcu.model.cost import Cost, count
from bbcu.model.initialisation import initialise
from bbcu.model.networks import assemble, build
from bbcu.model.parts import NetworkSpec, RestorationNetwork
from bbcu.model.specs import UnitSpec
from bbcu.model.super_resolution import EDSR, MEANS, RCAN, AttentionBlock
from bbcu.model.units import BinaryUnit
from tests.bbcu.model.test_authors import FOLDER, named

NAMES = ("edsr", "rcan", "rdn")
WHOLE = ("head", "body", "up", "tail")


def spec_of(scale: int = 2, *, channels: int = 4, blocks: int = 2, **spec: Any) -> NetworkSpec:
    return NetworkSpec(scale, channels, blocks, **{"groups": 2, "layers": 3, "align": 4.0, **spec})


def network_of(name: str, scale: int = 2, **spec: Any) -> RestorationNetwork:
    """A small network with initial values."""
    network = build(name, spec_of(scale, **spec), 0)
    assert isinstance(network, RestorationNetwork)
    return network


def pictures(side: int = 8, colours: int = 3) -> Tensor:
    return torch.rand(2, colours, side, side, generator=torch.Generator().manual_seed(0))


# --- cost -------------------------------------------------------------------------------------------------------------

PIXELS = 320 * 180
CONV = 9 * 64 * 64
HEAD, TAIL = 27 * 64, 27 * 64
ATTENTION = 2 * 64 * 4
"""The weights of a channel attention, and its multiply-adds for a picture."""

DENSE = sum(9 * 64 * (64 + 64 * place) for place in range(8)) + (64 + 8 * 64) * 64
"""The weights of a dense block."""

BODIES = {
    "EDSR": (2 * 16 + 1) * CONV,
    "RCAN": (10 * (2 * 20 + 1) + 1) * CONV,
    "RDN D16": 16 * DENSE + 2 * CONV + 16 * 64 * 64,
    "RDN D8": 8 * DENSE + 2 * CONV + 8 * 64 * 64,
}
"""The weights of a body's convolutions, each of which is also a multiply-add for each pixel."""

ATTENTIONS = {"RCAN": 10 * 20 * ATTENTION}
UP_MACS = {2: 4 * CONV, 3: 9 * CONV, 4: 4 * CONV * (1 + 4)}
UP_WEIGHTS = {2: 4 * CONV, 3: 9 * CONV, 4: 4 * CONV * 2}


def test_the_bodies_are_as_large_as_their_publications_say() -> None:
    assert BODIES["RCAN"] == 411 * CONV
    assert BODIES["RDN D16"] == 16 * 1_363_968 + 2 * 36_864 + 65_536 == 21_962_752
    assert HEAD + BODIES["EDSR"] + 4 * CONV + 4 * TAIL == 1_372_608


def expected_cost(layout: str, scale: int, binarize: tuple[str, ...]) -> tuple[str, str]:
    """The operations in G and the weights in K, as printed: to three decimals and to one."""
    ops_price, bits = ({part: by if part in binarize else 1 for part in WHOLE} for by in (64, 32))
    body, attention = BODIES[layout], ATTENTIONS.get(layout, 0)
    per_pixel = HEAD + body / ops_price["body"] + UP_MACS[scale] / ops_price["up"] + scale**2 * TAIL
    weights = HEAD + body / bits["body"] + UP_WEIGHTS[scale] / bits["up"] + TAIL
    ops_g, params_k = Decimal(PIXELS * per_pixel + attention) / 10**9, Decimal(weights + attention) / 10**3
    half_up = decimal.ROUND_HALF_UP
    return str(ops_g.quantize(Decimal("0.001"), half_up)), str(params_k.quantize(Decimal("0.1"), half_up))


# Computed independently, with the released modules; two of the operations are 0.001 less than there, which these sums
# round to: 57 600 * (27 * 64 + 33 * 36 864 / 64 + 737 280 / 64 + 16 * 27 * 64) = 3 450 470 400.
@pytest.mark.parametrize(
    ("layout", "scale", "full", "body", "body_and_up"),
    [
        ("EDSR", 2, ("79.062", "1367.4"), ("10.086", "188.9"), ("1.725", "46.1")),
        ("EDSR", 3, ("90.177", "1551.7"), ("21.200", "373.2"), ("2.389", "51.8")),
        ("EDSR", 4, ("114.230", "1514.9"), ("45.254", "336.4"), ("3.450", "50.7")),
        ("RCAN", 2, ("881.695", "15404.4"), ("22.627", "726.8"), ("14.266", "583.9")),
        ("RCAN", 3, ("892.809", "15588.7"), ("33.742", "911.1"), ("14.930", "589.7")),
        ("RCAN", 4, ("916.863", "15551.9"), ("57.795", "874.2"), ("15.992", "588.5")),
        ("RDN D16", 2, ("1274.046", "22113.7"), ("28.758", "837.2"), ("20.397", "694.4")),
        ("RDN D16", 3, ("1285.160", "22298.0"), ("39.872", "1021.6"), ("21.060", "700.2")),
        ("RDN D16", 4, ("1309.214", "22261.1"), ("63.926", "984.7"), ("22.122", "699.0")),
        ("RDN D8", 2, ("643.642", "11169.2"), ("18.908", "495.2"), ("10.547", "352.4")),
        ("RDN D8", 4, ("678.810", "11316.6"), ("54.076", "642.7"), ("12.272", "357.0")),
    ],
)
def test_the_sums_are_the_known_costs(
    layout: str, scale: int, full: tuple[str, str], body: tuple[str, str], body_and_up: tuple[str, str]
) -> None:
    found = [expected_cost(layout, scale, binarize) for binarize in ((), ("body",), ("body", "up"))]
    assert found == [full, body, body_and_up]


@pytest.mark.parametrize(
    ("layout", "name", "scale", "blocks", "parameters"),
    [
        ("EDSR", "edsr", 2, 16, 1_369_859),
        ("EDSR", "edsr", 3, 16, 1_554_499),
        ("EDSR", "edsr", 4, 16, 1_517_571),
        ("RCAN", "rcan", 4, 20, 15_592_355),
        ("RDN D16", "rdn", 3, 16, 22_308_035),
    ],
)
def test_the_published_size_has_these_sums_and_parameters(
    layout: str, name: str, scale: int, blocks: int, parameters: int
) -> None:
    """In full precision. All parameters are the published number, with biases."""
    with torch.device("meta"):
        network = assemble(name, NetworkSpec(scale, 64, blocks, binarize=()))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    body, attention = BODIES[layout], ATTENTIONS.get(layout, 0)
    assert list(count(network).parts.items()) == [
        ("head", Cost(PIXELS * HEAD, HEAD)),
        ("body", Cost(PIXELS * body + attention, body + attention)),
        ("up", Cost(PIXELS * UP_MACS[scale], UP_WEIGHTS[scale])),
        ("tail", Cost(PIXELS * scale**2 * TAIL, TAIL)),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_binary_part_costs_a_64th_and_a_channel_attention_what_it_did(name: str) -> None:
    with torch.device("meta"):
        full, binary = (
            count(assemble(name, spec_of(4, binarize=parts)), 20, 30).parts for parts in ((), ("body", "up"))
        )
    attention = 2 * 2 * 2 * 4 * 1 if name == "rcan" else 0
    assert (binary["head"], binary["tail"]) == (full["head"], full["tail"])
    for part, rest in (("body", attention), ("up", 0)):
        assert binary[part].ops == (full[part].ops - rest) / 64 + rest
        assert binary[part].params == (full[part].params - rest) / 32 + rest


@pytest.mark.parametrize(
    ("name", "sizes", "full", "binary", "weights", "printed"),
    [
        ("edsr", {"blocks": 16}, 497_664_000, 67_947_724_800, (8_640, 1_179_648), (1.559, 45.5)),
        ("edsr", {"blocks": 16, "scale": 4}, 1_692_057_600, 67_947_724_800, (29_376, 1_179_648), (2.754, 66.2)),
        ("edsr", {"blocks": 16, "colours": 1}, 165_888_000, 67_947_724_800, (2_880, 1_179_648), (1.228, 39.7)),
        ("rcan", {"blocks": 5}, 497_689_600, 233_570_304_000, (34_240, 4_055_040), (4.147, 161.0)),
        ("rdn", {"blocks": 8}, 497_664_000, 634_650_624_000, (8_640, 11_018_240), (10.414, 353.0)),
    ],
)
def test_a_light_network_costs_what_that_of_e2fif_does(
    name: str, sizes: dict[str, Any], full: int, binary: int, weights: tuple[int, int], printed: tuple[float, float]
) -> None:
    """Its only convolutions in full precision are head and tail, C -> colours * scale², and a channel attention's."""
    sizes = {"scale": 2, "colours": 3, **sizes}
    with torch.device("meta"):
        cost = count(assemble(name, NetworkSpec(channels=64, tail="light", unit=E2FIF, **sizes)))
    ends = 9 * 64 * sizes["colours"] * (1 + sizes["scale"] ** 2)
    attention = 10 * 5 * ATTENTION if name == "rcan" else 0
    units = {"edsr": 2 * 16 * CONV, "rcan": 10 * (2 * 5 + 1) * CONV, "rdn": BODIES["RDN D8"]}[name]
    assert (full, binary) == (PIXELS * ends + attention, PIXELS * units)
    assert weights == (ends + attention, units)
    assert list(cost.parts) == ["head", "body", "tail"]
    assert (cost.total.full_macs, cost.total.binary_macs) == (full, binary)
    assert cost.total.params == weights[0] + weights[1] / 32
    assert (cost.total.ops_g, cost.total.params_k) == printed


# --- layout -----------------------------------------------------------------------------------------------------------


def seen(network: RestorationNetwork, scale: int) -> int:
    """How far away an input pixel can be that changes an output pixel of the one in the middle."""
    side = 41
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    middle = slice(side // 2 * scale, (side // 2 + 1) * scale)
    network(x)[:, :, middle, middle].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    return int((rows - side // 2).abs().max())


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("name", "spec", "radius"),
    [
        ("edsr", {"binarize": ()}, {2: 8, 3: 8, 4: 8}),
        ("edsr", {"binarize": (), "tail": "light"}, {2: 6, 3: 6, 4: 6}),
        ("rdn", {"binarize": ()}, {2: 11, 3: 11, 4: 11}),
        ("rdn", {"binarize": (), "tail": "light"}, {2: 10, 3: 10, 4: 10}),
        ("rdn", {"unit": UnitSpec(rescale="box")}, {2: 11, 3: 11, 4: 11}),
    ],
)
def test_the_radius_is_how_far_a_network_sees(
    name: str, spec: dict[str, Any], radius: dict[int, int], scale: int
) -> None:
    network = network_of(name, scale, **spec)
    assert (network.radius, seen(network, scale)) == (radius[scale], radius[scale])


def test_a_network_that_averages_over_the_picture_has_no_radius() -> None:
    assert network_of("rcan", binarize=()).radius is None
    assert network_of("edsr", unit=UnitSpec(rescale="squeeze")).radius is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("tail", "binarize"),
    [
        *(("full", parts) for parts in ((), ("head",), ("up",), ("tail",), ("body", "up"), WHOLE)),
        *(("light", parts) for parts in ((), ("head", "tail"), ("body",))),
    ],
)
def test_the_parts_that_are_listed_are_binary_and_the_others_are_not(
    name: str, tail: str, binarize: tuple[str, ...]
) -> None:
    network = network_of(name, 4, tail=tail, binarize=binarize)
    units = {path.partition(".")[0] for path, module in network.named_modules() if isinstance(module, BinaryUnit)}
    full = {
        path.partition(".")[0]
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and "attention" not in path
    }
    parts = {"head", "body", "tail"} | ({"up"} if tail == "full" else set())
    assert (units, full) == (set(binarize), parts - set(binarize))
    assert network(pictures(6)).shape == (2, 3, 24, 24)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("edsr", {"scale": 1}, "network=edsr: it enlarges by 2, 3 or 4, and the task's scale is 1"),
        ("rdn", {"tail": "light", "binarize": ("body", "up")}, "a light tail has no upsampling"),
        ("rcan", {"accumulate": True}, "the units of an RCAN are not in one row"),
        ("rdn", {"accumulate": True}, "the units of an RDN are not in one row"),
        ("rdn", {"blocks": 0}, "blocks=0: an RDN fuses the outputs of its blocks"),
        ("srresnet", {"tail": "light"}, "network.tail=light: srresnet has the full tail only"),
        ("dncnn", {"scale": 1, "tail": "light"}, "network.tail=light: dncnn has the full tail only"),
    ],
)
def test_a_layout_that_does_not_exist_is_refused(name: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network_of(name, **spec)


@pytest.mark.parametrize("name", NAMES)
def test_both_kinds_of_body_have_blocks_with_outputs_of_the_same_shape(name: str) -> None:
    shapes = []
    for binarize in ((), ("body",)):
        network = network_of(name, binarize=binarize)
        found: list[torch.Size] = []
        for block in network.block_ends:
            block.register_forward_hook(lambda module, inputs, output, found=found: found.append(output.shape))
        network(pictures())
        shapes.append(found)
    assert shapes[0] == shapes[1] == [(2, 4, 8, 8)] * (4 if name == "rcan" else 2)


def only_residual(unit: BinaryUnit) -> Callable[..., Tensor]:
    """The forward pass of a unit whose branch is zero."""

    def forward(x: Tensor, residual: Tensor | None = None) -> Tensor:
        return x.new_zeros(len(x), unit.out_channels, *x.shape[2:]) if residual is None else residual

    return forward


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_without_its_branches_a_binary_body_is_its_identities(name: str, residual: bool) -> None:
    """An attention halves. An RDN's block of one layer doubles, and its last block is added to nothing at the end."""
    unit = UnitSpec(residual=residual, act="none")
    body, x = network_of(name, layers=1, unit=unit).body, torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, BinaryUnit):
                module.forward = only_residual(module)  # type: ignore[method-assign]
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    factor = {"edsr": 1.0, "rcan": (1 + 0.5**2) ** 2, "rdn": 2.0**2}[name]
    torch.testing.assert_close(body(x), factor * x if residual else 0 * x)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_takes_part(name: str) -> None:
    network = network_of(name, binarize=WHOLE, unit=UnitSpec(residual="scaled", rescale="spatial"))
    network(pictures()).sum().backward()
    assert [path for path, parameter in network.named_parameters() if parameter.grad is None] == []


def test_only_the_first_unit_of_a_pair_and_the_dense_layers_have_the_activation_of_act_first() -> None:
    def places(name: str) -> dict[str, str]:
        network = network_of(name, blocks=1, groups=1, layers=2, binarize=("body", "up"), unit=UnitSpec(act="first"))
        return {path: module.act for path, module in network.named_modules() if isinstance(module, BinaryUnit)}

    after = {
        "edsr": {"body.blocks.units.0"},
        "rcan": {"body.blocks.0.blocks.0.pair.units.0"},
        "rdn": {"body.blocks.0.layers.0", "body.blocks.0.layers.1"},
    }
    for name in NAMES:
        found = places(name)
        assert {path for path, act in found.items() if act == "after"} == after[name]
        assert set(found.values()) == {"after", "none"}


def test_the_second_unit_of_a_parallel_pair_reads_the_input_of_the_block() -> None:
    x = torch.randn(1, 4, 6, 6)
    outputs = []
    for parallel in (False, True):
        network = RCAN(spec_of(unit=UnitSpec(act="none")), parallel=parallel)
        initialise(network, 0)
        block = network.block_ends[0]
        assert isinstance(block, AttentionBlock)
        assert block.pair is not None
        first, second = block.pair.units
        between = x + first(x)
        expected = between + second(x if parallel else between)
        torch.testing.assert_close(block(x), block.attention(expected))
        outputs.append(block(x))
    assert not torch.allclose(*outputs)
    with pytest.raises(ConfigError, match="parallel pairs need an identity each"):
        RCAN(spec_of(unit=UnitSpec(residual="block")), parallel=True)


# --- the means of the colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [1.0, 130.0])
def test_a_picture_of_the_mean_is_zero_inside_edsr_and_rcan(align: float) -> None:
    """Without biases its output is then the mean again, and for one colour the mean is a half."""
    for name, colours, mean in (("edsr", 3, MEANS), ("rcan", 3, MEANS), ("edsr", 1, (0.5,))):
        network = network_of(name, binarize=(), colours=colours, align=align)
        for path, parameter in network.named_parameters():
            if path.endswith("bias"):
                nn.init.zeros_(parameter)
        flat = torch.tensor(mean).reshape(1, -1, 1, 1)
        torch.testing.assert_close(network(flat.expand(1, -1, 6, 6)), flat.expand(1, -1, 12, 12))
        assert not torch.allclose(network(flat.expand(1, -1, 6, 6) + 0.1), flat.expand(1, -1, 12, 12))


def test_a_binary_head_starts_at_the_middle_of_what_it_sees() -> None:
    heads = {name: network_of(name, binarize=("head",)).state_dict() for name in NAMES}
    starts = {name: state["head.unit.threshold"].unique().tolist() for name, state in heads.items()}
    assert starts == {"edsr": [0.0], "rcan": [0.0], "rdn": [-2.0]}


def test_a_standardisation_takes_the_place_of_the_means() -> None:
    def shifts(**spec: Any) -> dict[str, bool]:
        return {name: "shift.mean" in network_of(name, **spec).state_dict() for name in NAMES}

    assert shifts() == {"edsr": True, "rcan": True, "rdn": False}
    assert not any(shifts(standardise=True).values())


# --- initial values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_binary_network_starts_like_the_full_one_where_they_have_the_same_parameters(name: str) -> None:
    full, binary = (dict(network_of(name, binarize=parts).named_parameters()) for parts in ((), ("body", "up")))
    shared = {path for path in full.keys() & binary.keys() if full[path].shape == binary[path].shape}
    at_least = {"head.weight", "head.bias", "up.stages.0.weight", "tail.weight", "tail.bias"}
    assert at_least <= shared
    for path in shared:
        assert torch.equal(full[path], binary[path]), path
    assert all(parameter.abs().max() > 0 for parameter in full.values())


# --- states of the authors --------------------------------------------------------------------------------------------


def golden(kind: str) -> dict[str, np.ndarray]:
    return named(np.load(FOLDER / f"{kind}.npz"), "state.")


@pytest.mark.parametrize("wrapper", ["module.", "model."])
def test_a_state_is_read_with_a_wrapper_around_its_names_and_with_the_fixed_shifts(wrapper: str) -> None:
    state = golden("edsr")
    means = 255 * np.array(MEANS, dtype=np.float32)
    eye = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    shifts = {"sub_mean.weight": eye, "sub_mean.bias": -means, "add_mean.weight": eye, "add_mean.bias": means}
    wrapped = {wrapper + name: value for name, value in {**state, **shifts}.items()}
    plain, released = bbcu.from_authors_state("edsr", state), bbcu.from_authors_state("edsr", wrapped)
    assert torch.equal(plain(pictures()), released(pictures()))
    with pytest.raises(ConfigError, match="add_mean: it has other numbers than the means of DIV2K times align=255"):
        bbcu.from_authors_state("edsr", {**wrapped, f"{wrapper}add_mean.bias": 1.01 * means})
    with pytest.raises(ConfigError, match="sub_mean: it has other numbers"):
        bbcu.from_authors_state("edsr", {**wrapped, f"{wrapper}sub_mean.weight": 1.01 * eye})


@pytest.mark.parametrize("kind", ["edsr", "rdn"])
def test_the_scale_follows_from_the_upsampling_convolutions(kind: str) -> None:
    """Two stages of x2 are x4: the second is two modules after the first, and the convolution of an RDN's tail last."""
    state, stages = golden(kind), {"edsr": "tail.0.", "rdn": "UPNet."}[kind]
    first = {name: value for name, value in state.items() if name.startswith(f"{stages}0.")}
    tripled = {name: np.concatenate([value, value, value[: len(value) // 4]]) for name, value in first.items()}
    second = {name.replace(f"{stages}0.", f"{stages}2."): value for name, value in first.items()}
    last = {name.replace("UPNet.2.", "UPNet.4."): value for name, value in state.items()}
    for scale, changed in ((2, state), (3, state | tripled), (4, last | second)):
        module = bbcu.from_authors_state(kind, changed, scale=scale)
        assert module(pictures()).shape == (2, 3, 8 * scale, 8 * scale)
    with pytest.raises(ConfigError, match="scale=3: the state is that of a network of scale 2"):
        bbcu.from_authors_state(kind, state, scale=3)


def test_a_binary_tail_of_two_stages_is_refused() -> None:
    state = golden("edsr_repeat_up")
    state["tail.0.conv2.weight"] = state["tail.0.conv1.weight"]
    with pytest.raises(ConfigError, match="the tail has more than one stage"):
        bbcu.from_authors_state("edsr_repeat_up", state)
    with pytest.raises(ConfigError, match="a pixel shuffle cannot turn 24 channels into 8"):
        bbcu.from_authors_state("edsr_repeat_up", golden("edsr_repeat_up") | cut(state, "tail.0.conv1.weight", 24))


def cut(state: dict[str, np.ndarray], name: str, filters: int) -> dict[str, np.ndarray]:
    return {name: state[name][:filters]}


def test_an_edsr_of_e2fif_has_the_networks_own_layout() -> None:
    module = bbcu.from_authors_state("edsr_e2fif", golden("edsr_e2fif")).module
    assert isinstance(module, EDSR)
    assert (module.spec.unit, module.spec.tail, module.spec.blocks, module.spec.scale) == (E2FIF, "light", 2, 2)
