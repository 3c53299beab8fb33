"""U-Nets and the units that change width or size: their layout, how far they see, and what they cost."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bbcu
from bbcu.data.images import to_tensor
from bbcu.data.tasks import make_task, noise_level
from bbcu.errors import ConfigError
from bbcu.model.authors.unets import BISR, BRVE, BiSRNet, brve_network, unit_maker
from bbcu.model.cost import Cost, count
from bbcu.model.initialisation import initialise
from bbcu.model.networks import build
from bbcu.model.parts import Body, NetworkSpec
from bbcu.model.records import spec_of
from bbcu.model.resampling import BRVEDown, BRVEUp, CPDown, CPUp, CSFusion, FusionDown, FusionUp
from bbcu.model.specs import PARTS, UnitSpec
from bbcu.model.unets import DRUNet, UNet, UNetLayout, UNetwork, radius_of_steps
from bbcu.model.units import BinaryUnit
from bbcu.training.evaluation import _run
from tests.bbcu.model.test_authors import FOLDER
from tests.harness.builders import drawn, soft_blobs

SUBSETS = [parts for size in range(5) for parts in itertools.combinations(PARTS, size)]
GRIDS = {"drunet": 8, "unet": 4}


def unet(name: str, channels: int = 2, blocks: int = 1, **spec: Any) -> UNetwork:
    """A U-Net with the initial values of seed 0; ``spec`` goes to NetworkSpec."""
    network = build(name, NetworkSpec(1, channels, blocks, **spec), 0)
    assert isinstance(network, UNetwork)
    return network


class Inputs:
    """A hook that keeps the first argument of every call."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen.append(given[0])


# --- shape-changing units ---------------------------------------------------------------------------------------------


def silent(module: nn.Module) -> nn.Module:
    """Set the activations' output to zero, so that units add nothing."""
    with torch.no_grad():
        for unit in module.modules():
            if isinstance(unit, BinaryUnit):
                unit.weight.fill_(1.0)
                unit.binary_weights = False
                unit.weight.zero_()
    return module


def test_the_fusions_of_silent_units_undo_each_other() -> None:
    x, make = drawn(1, 4, 3, 5), unit_maker(BISR)
    up, down = silent(FusionUp(make, 4, kernel=1)), silent(FusionDown(make, 4, kernel=1))
    torch.testing.assert_close(up(x), torch.cat([x, x], dim=1))
    torch.testing.assert_close(down(up(x)), x)


def test_channel_pairs_of_silent_units_move_and_add_pixels() -> None:
    x, make = drawn(1, 4, 4, 6), unit_maker(UnitSpec())
    torch.testing.assert_close(silent(CPUp(make, 4))(x), F.pixel_shuffle(torch.cat([x, x], dim=1), 2))
    torch.testing.assert_close(silent(CPDown(make, 4))(x), F.pixel_unshuffle(x[:, :2] + x[:, 2:], 2))


def test_a_crosswise_fusion_of_silent_units_adds_neighbouring_channels_of_the_same_stream() -> None:
    a, b = drawn(1, 4, 3, 3), drawn(1, 4, 3, 3, seed=1)
    expected = torch.cat([a[:, ::2] + a[:, 1::2], b[:, ::2] + b[:, 1::2]], dim=1)
    torch.testing.assert_close(silent(CSFusion(unit_maker(UnitSpec()), 4))(a, b), expected)


@pytest.mark.parametrize("residual", [True, "block", "scaled", False])
def test_a_projection_stands_for_the_identity_of_a_unit_that_has_one(residual: bool | str) -> None:
    make, x = unit_maker(UnitSpec(residual=residual)), drawn(1, 4, 4, 6)
    down, up = silent(BRVEDown(make, 4, 6)), silent(BRVEUp(make, 4, 2))
    share = 0.3 if residual == "scaled" else 1.0
    for module, small in ((down, F.avg_pool2d(x, 2)), (up, F.interpolate(x, scale_factor=2.0, mode="bilinear"))):
        projection: nn.Module | None = module.projection  # type: ignore[assignment]
        if residual is False:
            assert projection is None
            assert not module(x).any()
        else:
            assert projection is not None
            torch.testing.assert_close(module(x), share * projection(small))


@pytest.mark.parametrize("kind", [CPDown, CPUp])
def test_an_odd_number_of_channels_has_no_halves(kind: type[CPDown] | type[CPUp]) -> None:
    with pytest.raises(ConfigError, match=r"^channels=5: .* even number$"):
        kind(unit_maker(UnitSpec()), 5)


def test_a_body_of_an_odd_number_of_units_ends_with_one_that_has_its_own_identity() -> None:
    x = drawn(1, 4, 5, 5)
    for residual in (True, "block", False):
        body = Body(NetworkSpec(1, 4, 1, UnitSpec(residual=residual, act="first")), units=3)
        assert [unit.act for unit in body.units] == ["after", "none", "none"]
        initialise(body, 0)
        pair = Body(body.spec)
        pair.load_state_dict(
            {name: value for name, value in body.state_dict().items() if not name.startswith("units.2")}
        )
        torch.testing.assert_close(body(x), body.units[2](pair(x), None if residual is False else pair(x)))


# --- the layout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binarize", SUBSETS, ids=lambda parts: "+".join(parts) or "full")
@pytest.mark.parametrize("name", GRIDS)
def test_the_binary_parts_are_those_of_binarize(name: str, binarize: tuple[str, ...]) -> None:
    network = unet(name, binarize=binarize)
    for part, module in network.named_children():
        modules = list(module.modules())
        has_units = any(isinstance(inner, BinaryUnit) for inner in modules)
        convolutions = [inner for inner in modules if isinstance(inner, nn.Conv2d | nn.ConvTranspose2d)]
        assert has_units == (part in binarize), part
        # Only the projections of BRVE's units stay in full precision.
        kernels = {convolution.kernel_size for convolution in convolutions}
        assert kernels == ({(1, 1)} if (name, part) == ("unet", "up") else set()) or part not in binarize
    assert network(torch.rand(1, 3, 9, 14)).shape == (1, 3, 9, 14)


@pytest.mark.parametrize("name", GRIDS)
def test_another_scale_or_tail_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^network={name}: its output has the size of its input"):
        build(name, NetworkSpec(2, 4, 1), 0)
    with pytest.raises(ConfigError, match=f"^network.tail=light: {name} has the full tail only"):
        build(name, NetworkSpec(1, 4, 1, tail="light"), 0)


@pytest.mark.parametrize(("name", "ends"), [("drunet", 14), ("unet", 7)])
def test_there_are_as_many_block_ends_whether_it_is_binary_or_not(name: str, ends: int) -> None:
    """Their outputs have the same shapes, from the finest resolution to the coarsest and back."""
    shapes = []
    for binarize in ((), ("body",), PARTS):
        network = unet(name, blocks=2, binarize=binarize)
        found: list[tuple[int, ...]] = []
        for end in network.block_ends:
            end.register_forward_hook(lambda module, inputs, output, found=found: found.append(tuple(output.shape)))
        network(torch.rand(1, 3, 8, 16))
        shapes.append(found)
    assert shapes[0] == shapes[1] == shapes[2]
    assert len(shapes[0]) == ends
    assert shapes[0] == shapes[0][::-1] if name == "drunet" else shapes[0][1:] == shapes[0][:0:-1]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("binarize", [(), PARTS], ids=["full", "binary"])
def test_a_picture_is_continued_by_its_last_row_and_column(name: str, binarize: tuple[str, ...]) -> None:
    network = unet(name, channels=4, binarize=binarize)
    grid, x = GRIDS[name], torch.rand(1, 3, 8 + 3, 8 + 6, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x, (0, -14 % grid, 0, -11 % grid), mode="replicate")
    assert network.grid == grid
    torch.testing.assert_close(network(x), network(padded)[:, :, :11, :14])


@pytest.mark.parametrize(
    ("name", "spec", "adds_input"),
    [
        ("drunet", {}, False),
        ("drunet", {"binarize": ("tail",)}, True),
        ("drunet", {"binarize": ("tail",), "unit": UnitSpec(residual=False)}, False),
        ("unet", {}, True),
        ("unet", {"binarize": ("tail",)}, True),
    ],
)
def test_a_network_whose_tail_is_silent_gives_its_skip(name: str, spec: dict[str, Any], adds_input: bool) -> None:
    network, x = unet(name, **spec), torch.rand(1, 3, 8, 8)
    silent(network)
    if isinstance(network.tail, nn.Conv2d):
        nn.init.zeros_(network.tail.weight)
    torch.testing.assert_close(network(x), x if adds_input else torch.zeros_like(x))
    torch.testing.assert_close(network.skip(x), network(x))  # type: ignore[operator]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("binarize", [(), PARTS], ids=["full", "binary"])
def test_every_weight_starts_from_the_seed(name: str, binarize: tuple[str, ...]) -> None:
    networks = [build(name, NetworkSpec(1, 4, 1, binarize=binarize), seed) for seed in (0, 1)]
    states = [dict(network.named_parameters()) for network in networks]
    weights = [name for name, value in states[0].items() if value.dim() == 4 and min(value.shape[:2]) > 1]
    assert len(weights) > 20
    assert all(not torch.equal(states[0][weight], states[1][weight]) for weight in weights)


def test_the_weights_of_a_drunet_start_orthogonal() -> None:
    state = unet("drunet", 4, binarize=()).state_dict()
    for name in ("head", "body.encode2.0.first", "up.down1", "up.up1"):
        weight = state[f"{name}.weight"].flatten(1)
        torch.testing.assert_close(weight @ weight.T, 0.2**2 * torch.eye(len(weight)))


def test_binary_units_see_a_stream_in_full_precision_under_autocast() -> None:
    for name in GRIDS:
        network, inputs = unet(name, 4), Inputs()
        for unit in network.modules():
            if isinstance(unit, BinaryUnit):
                unit.register_forward_hook(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            network(torch.rand(1, 3, 8, 8))
        assert {x.dtype for x in inputs.seen} == {torch.float32}


# --- the noise level --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "level"),
    [
        pytest.param({"name": "denoise", "sigma": 25, "train_sigma": [0, 75]}, 37.5 / 255, id="a range"),
        pytest.param({"name": "denoise", "sigma": [15, 50], "train_sigma": 25}, 25 / 255, id="one noise"),
        pytest.param({"name": "jpeg", "quality": 10, "train_quality": [1, 50]}, 1 - 25.5 / 100, id="qualities"),
        pytest.param({"name": "jpeg", "quality": 10, "train_quality": 40}, 0.6, id="one quality"),
        pytest.param({"name": "sr_x2"}, 0.0, id="no noise"),
    ],
)
def test_the_noise_level_is_the_middle_of_the_training_range(task: dict[str, Any], level: float) -> None:
    setting = {
        "task": task,
        "channels": 4,
        "blocks": 1,
        "network": {"unit": "binary", "initial": "torch", "accumulate": False, "standardise": False},
    }
    factors = {**dataclasses.asdict(UnitSpec()), "align": 1.0, "binarize": ["body"]}
    factors.pop("extra")
    assert noise_level(make_task(task)) == pytest.approx(level)
    assert spec_of(factors, setting).noise_level == pytest.approx(level)


@pytest.mark.parametrize("align", [1.0, 16.0])
def test_a_drunet_sees_the_noise_level_as_one_more_channel_of_the_picture(align: float) -> None:
    network = unet("drunet", binarize=(), align=align, noise_level=0.25)
    inputs = Inputs()
    network.head.register_forward_hook(inputs)
    x = torch.rand(2, 3, 8, 8)
    network(x)
    torch.testing.assert_close(inputs.seen[0], align * torch.cat([x, torch.full((2, 1, 8, 8), 0.25)], dim=1))
    other = unet("drunet", binarize=(), align=align)
    assert not torch.allclose(network(x), other(x))


# --- how far a network sees -------------------------------------------------------------------------------------------


def seen_from(network: UNetwork, place: int, width: int) -> int:
    """How many pixels away the farthest is that the output at ``place`` of a row depends on, by its gradient."""
    row = torch.full((1, 3, network.grid, width), 0.5, dtype=torch.float64, requires_grad=True)
    network(row)[0, :, :, place].sum().backward()
    assert row.grad is not None
    places = row.grad.abs().sum((0, 1, 2)).nonzero()
    return int((places - place).abs().max())


@pytest.mark.parametrize(
    ("name", "spec", "radius"),
    [
        pytest.param("drunet", {"binarize": ()}, 2 + 44 + 7, id="full drunet"),
        pytest.param("drunet", {"binarize": (), "blocks": 2}, 2 + 2 * 44 + 7, id="full drunet of two blocks"),
        # One convolution more at the finer size going down and at the coarser going up: 1 + 2 + 4, and 2 + 4 + 8.
        pytest.param("drunet", {"binarize": PARTS}, 2 + 44 + 7 + 21, id="binary drunet"),
        pytest.param("unet", {"binarize": ()}, 55, id="full unet"),
        pytest.param("unet", {"binarize": PARTS}, 55, id="binary unet"),
    ],
)
def test_a_pixel_sees_as_far_as_the_radius_and_no_farther(name: str, spec: dict[str, Any], radius: int) -> None:
    """Every path counts: weights are positive, and the sign passes every gradient."""
    network = unet(name, unit=UnitSpec(surrogate="identity"), **spec).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.1)
    grid = network.grid
    middle = (radius // grid + 1) * grid
    assert network.radius == radius
    assert max(seen_from(network, middle + place, 2 * middle + grid) for place in range(grid)) == radius


def test_the_radius_of_steps_is_that_of_the_worst_place() -> None:
    assert radius_of_steps([lambda seen: (seen[0] // 2 * 2, seen[0] // 2 * 2 + 1)], 2) == 1
    assert radius_of_steps([lambda seen: (seen[0] - 3, seen[1])], 1) == 3


@pytest.mark.parametrize("name", GRIDS)
def test_a_unit_that_averages_over_the_picture_leaves_no_radius(name: str) -> None:
    assert unet(name, unit=UnitSpec(rescale="statistics")).radius is None
    assert unet(name, unit=UnitSpec(rescale="box")).radius == unet(name).radius


@pytest.mark.parametrize(
    "network",
    [unet("drunet", binarize=()), unet("drunet", 4), unet("drunet", 4, binarize=PARTS), unet("unet", 4)],
    ids=["full drunet", "binary drunet", "binary drunet, every part", "binary unet"],
)
@pytest.mark.parametrize(("width", "tile"), [(141, 13), (136, 67)])
def test_tiles_change_nothing(network: UNetwork, width: int, tile: int) -> None:
    exact = network.double().eval()
    batch = to_tensor(soft_blobs(0, 11, width))[None].double()
    with torch.inference_mode():
        torch.testing.assert_close(_run(exact, batch, tile), exact(batch), rtol=0, atol=1e-12)


# --- the released BiSRNet ---------------------------------------------------------------------------------------------


def test_a_whole_bisrnet_is_told_from_its_body_by_the_convolutions_around_it() -> None:
    """Whatever those are called: one is 1x1, and of the others the first is before the body."""
    arrays = np.load(FOLDER / "bisrnet.npz")
    body = {name.removeprefix("state."): arrays[name] for name in arrays if name.startswith("state.")}
    join, bias, before, after = (
        drawn(4, 8, 1, 1),
        drawn(4, seed=1),
        drawn(4, 4, 3, 3, seed=2),
        drawn(4, 4, 3, 3, seed=3),
    )
    state = {"first.weight": before, "mix.weight": join, "mix.bias": bias}
    state |= {f"net.{name}": torch.from_numpy(value) for name, value in body.items()} | {"last.weight": after}
    x = drawn(1, 8, 8, 16)
    features = F.conv2d(F.conv2d(x, join, bias), before, padding=1)
    inside = bbcu.from_authors_state("bisrnet", body)(features)
    expected = F.conv2d(inside, after, padding=1) + features
    torch.testing.assert_close(bbcu.from_authors_state("bisrnet", state)(x), expected)
    cropped = x[:, :, :7, :13]
    assert bbcu.from_authors_state("bisrnet", state)(cropped).shape == (1, 4, 7, 13)


# --- cost -------------------------------------------------------------------------------------------------------------

PIXELS = 180 * 320


def total(network: nn.Module, height: int = 180, width: int = 320) -> Cost:
    return count(network, height, width).total


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def on_meta(network: Any, *arguments: Any) -> Any:
    with torch.device("meta"):
        return network(*arguments)


def binary_weights(network: nn.Module) -> int:
    return sum(unit.weight.numel() for unit in network.modules() if isinstance(unit, BinaryUnit))


def test_a_full_drunet_costs_what_it_should() -> None:
    level = 16 * 9 * 64**2  # 16 convolutions of level 0, a pixel; the same at levels 1 and 2, a quarter as many pixels
    body, up, ends = 3 * level + 8 * 9 * 512**2 // 64, 6 * 8192, 4 * 64 * 9 + 64 * 3 * 9
    assert (level, ends) == (589_824, 2304 + 1728)
    per_pixel = body + up + ends
    assert per_pixel == 2_117_568
    network = on_meta(DRUNet, NetworkSpec(1, 64, 4, binarize=()))
    assert total(network, 8, 8).ops == 64 * per_pixel
    assert round(per_pixel * PIXELS / 1e9, 3) == 121.972
    # 180 rows are padded to 184.
    cost = total(network)
    assert (cost.ops_g, cost.params_k) == (124.682, 32641.0)
    assert cost.ops == 184 * 320 * per_pixel
    assert total(network, 256, 256).ops_g == 138.777
    assert parameters(network) == 32_640_960
    assert parameters(on_meta(DRUNet, NetworkSpec(1, 64, 4, binarize=(), colours=1))) == 32_638_656


def test_a_drunet_with_a_binary_body_costs_what_it_should() -> None:
    binary, full = 3 * 589_824 + 294_912, 6 * 8192 + 2304 + 1728
    cost = total(on_meta(DRUNet, NetworkSpec(1, 64, 4)), 8, 8)
    assert (cost.binary_macs, cost.full_macs) == (64 * binary, 64 * full)
    assert round((full + binary / 64) * PIXELS / 1e9, 3) == 4.921
    assert cost.params_k == 2357.2


def test_binary_down_and_up_units_of_a_drunet_cost_what_they_should() -> None:
    """9C²/2 weights at the finer size going down, 18C² at the coarser going up."""
    network = on_meta(DRUNet, NetworkSpec(1, 64, 4, binarize=("up",)))
    down = {level: 9 * (64 * 2**level) ** 2 // 2 for level in range(3)}
    up = {level: 18 * (64 * 2**level) ** 2 for level in range(1, 4)}
    assert binary_weights(network.up) == sum(down.values()) + sum(up.values())
    macs = sum(weights // 4**level for level, weights in [*down.items(), *up.items()])
    assert count(network, 8, 8).parts["up"] == Cost(macs, binary_weights(network.up) / 32, 64 * macs)


def brve(layout: UNetLayout) -> UNet:
    """The image network of BRVE, whose down and up units have no rescale."""
    return brve_network(NetworkSpec(1, 24, 1, BRVE, binarize=("body", "up")), layout)


def test_the_network_of_brve_costs_what_it_should() -> None:
    """Units are 3, 7 and 6 of the three levels: both ways, and one on each skip connection."""
    units = PIXELS * (3 * 9 * 24**2 + 7 * 9 * 48**2 // 4 + 6 * 9 * 96**2 // 16)
    down_and_up = PIXELS * 9 * (24 * 48 // 4 + 48 * 96 // 16 + 48 * 96 // 4 + 24 * 48)
    assert units + down_and_up == 6_270_566_400
    projections = PIXELS * (24 * 48 // 4 + 48 * 96 // 16 + 48 * 96 // 4 + 24 * 48)
    factors = 9 * (3 * 24 + 7 * 48 + 6 * 96)  # a convolution over the channels, once a picture
    assert projections + factors == 165_896_856
    shallow, ends = PIXELS * 3 * 9 * 24**2, PIXELS * 2 * 27 * 24
    network = on_meta(brve, UNetLayout.of(NetworkSpec(1, 24, 1)))
    cost = total(network)
    assert cost.binary_macs == units + down_and_up + shallow == 7_166_361_600
    assert cost.full_macs == projections + factors + ends + 9 * 3 * 24 == 240_547_104
    assert cost.ops_g == 0.353
    assert f"{cost.ops / 1e9:.4f}" == "0.3525"
    assert binary_weights(network) == 777_600
    assert cost.params == 12_987 + 777_600 / 32
    assert parameters(network) == 796_062


def test_the_u_net_inside_it_costs_what_it_should() -> None:
    """The body and the down and up units, without what is before the U-Net."""
    layout = UNetLayout.of(NetworkSpec(1, 24, 1))
    assert layout == UNetLayout((24, 48, 96), (1, 3, 3), 3)
    inside = on_meta(brve, dataclasses.replace(layout, shallow=0))
    cost = count(inside).parts["body"] + count(inside).parts["up"]
    assert (cost.full_macs, cost.binary_macs) == (165_896_856, 6_270_566_400)
    assert f"{cost.ops / 1e9:.4f}" == "0.2639"
    assert cost.params == 11_664 + 762_048 / 32
    assert parameters(inside.body) + parameters(inside.up) == 778_872


def test_bisrnet_costs_what_it_should() -> None:
    """Three convolutions in full precision: 1x1 of measurement and mask, and 3x3 before and after the body."""
    network = on_meta(BiSRNet, unit_maker(BISR), 28, (1, 1, 1))
    network.spec = NetworkSpec(1, 28, 1, colours=56)  # what count asks for the channels of the input
    parts, weights = count(network, 256, 256).parts, 56 * 28 + 2 * 9 * 28**2
    assert weights == 15_680
    body, whole = parts["body"], sum(parts.values(), Cost(0, 0))
    assert (body.full_macs, whole.full_macs) == (0, 256**2 * weights) == (0, 1_027_604_480)
    assert body.binary_macs == whole.binary_macs == 9_439_281_152
    assert body.binary_macs * PIXELS == 256**2 * 8_296_243_200
    assert (f"{whole.ops / 1e9:.4f}", f"{8_296_243_200 / 64 / 1e9:.4f}") == ("1.1751", "0.1296")
    assert (body.params, whole.params) == (611_072 / 32, weights + 611_072 / 32)
    assert sum(isinstance(module, BinaryUnit) for module in network.body.modules()) == 59
    assert (parameters(network.body), parameters(network)) == (643_611, 659_319)
