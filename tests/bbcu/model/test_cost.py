"""Operations and parameters by both counts; every expected number is written as a sum."""

import runpy
import sys
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.cost import Cost, Row, count, main, other_rows, rows
from bbcu.model.methods import METHODS
from bbcu.model.networks import assemble
from bbcu.model.parts import NetworkSpec
from bbcu.model.published import BACKBONES, EXCEPTIONS, MEDIUM, Printed, published_costs
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit, UnitShape
from tests.harness.builders import dncnn, srresnet
from tests.harness.paths import REPOSITORY

SIDE, AREA = 10, 100
PIXELS = 320 * 180
HEAD = 3 * 64 * 9
BODY = 32 * 64 * 64 * 9
UPSAMPLING = 64 * 256 * 9
REFINE = 64 * 64 * 9
TAIL = 64 * 3 * 9


# --- as the paper counts ----------------------------------------------------------------------------------------------


def test_a_full_sized_bbcu_l_costs_what_the_paper_prints() -> None:
    cost = count(srresnet(channels=64, blocks=16))
    assert list(cost.parts.items()) == [
        ("head", Cost(PIXELS * HEAD, HEAD)),
        ("body", Cost(PIXELS * BODY / 64, BODY / 32, PIXELS * BODY)),
        ("up", Cost(PIXELS * (UPSAMPLING + 4 * REFINE), UPSAMPLING + REFINE)),
        ("tail", Cost(PIXELS * 4 * TAIL, TAIL)),
    ]
    assert (cost.total.ops_g, cost.total.params_k) == (18.546, 224.6)
    assert (cost.total.printed_ops_g, cost.total.printed_params_k) == ("18.55", "225")


def test_multiply_adds_are_known_by_kind_so_that_binary_ones_can_have_another_price() -> None:
    total = count(srresnet(channels=64, blocks=16)).total
    full = PIXELS * (HEAD + UPSAMPLING + 4 * (REFINE + TAIL))
    assert (total.full_macs, total.binary_macs) == (full, PIXELS * BODY)
    assert total.ops_at(1 / 64) == total.ops
    assert total.ops_at(1 / 8) == full + PIXELS * BODY / 8


def test_every_part_may_be_binary() -> None:
    whole = count(srresnet(channels=64, blocks=16, binarize=("head", "body", "up", "tail"))).total
    assert whole.ops == PIXELS * (HEAD + BODY + UPSAMPLING + 4 * (REFINE + TAIL)) / 64
    assert whole.params == (HEAD + BODY + UPSAMPLING + REFINE + TAIL) / 32


@pytest.mark.parametrize("spec", [UnitSpec(bn="post"), UnitSpec(act="none"), UnitSpec(residual=False)], ids=str)
def test_batchnorm_activations_and_residuals_count_nothing(spec: UnitSpec) -> None:
    assert count(srresnet(unit=spec)) == count(srresnet())


@pytest.mark.parametrize("everything", [False, True])
def test_counting_leaves_the_network_as_it_was(everything: bool) -> None:
    network = srresnet(unit=UnitSpec(bn="post"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count(network, everything=everything)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_colours_of_the_input_are_the_networks() -> None:
    total = count(dncnn(8, 1, colours=1), 10, 10).total
    assert total.ops == 100 * (1 * 8 * 9 + 2 * 8 * 8 * 9 / 64 + 8 * 1 * 9)


class Custom(nn.Module):
    """A user's network: no spec, a convolution that is called twice, and a parameter of its own."""

    def __init__(self, function: Any = F.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gain * self.function(self.first(self.first(x)))
        return out


def test_a_users_network_needs_no_spec() -> None:
    assert count(Custom(), 10, 10).parts == {"first": Cost(100 * 2 * 81, 81)}


@pytest.mark.parametrize(
    ("layer", "function", "macs", "weights"),
    [
        pytest.param(
            nn.Conv2d(3, 6, 5, stride=2, padding=2, groups=3),
            None,
            5 * 5 * (6 * 1 * 5 * 5),
            6 * 1 * 5 * 5,
            id="strided",
        ),
        pytest.param(
            nn.ConvTranspose2d(3, 4, 2, stride=2), None, 10 * 10 * (3 * 4 * 2 * 2), 3 * 4 * 2 * 2, id="transposed"
        ),
        pytest.param(
            nn.Conv1d(3, 2, 5, padding=2), lambda x: x.mean(3), 10 * (3 * 2 * 5), 3 * 2 * 5, id="across a line"
        ),
        pytest.param(nn.Linear(10, 7), None, 3 * 10 * (10 * 7), 10 * 7, id="linear, for each row of each colour"),
        pytest.param(
            nn.Conv2d(3, 2, 1), lambda x: x.mean((2, 3), keepdim=True), 3 * 2, 3 * 2, id="once for each picture"
        ),
        pytest.param(nn.Identity(), lambda x: x @ x, 3 * 10 * 10 * 10, 0, id="product of two matrices"),
        pytest.param(
            nn.Identity(),
            lambda x: F.scaled_dot_product_attention(x[:, :, :4], x, x[..., :2]),
            3 * (4 * 10) * (10 + 2),
            0,
            id="attention: scores of 4 queries and 10 keys, then of values",
        ),
    ],
)
def test_multiply_adds_of_every_kind_of_layer(layer: nn.Module, function: Any, macs: int, weights: int) -> None:
    before = nn.Identity() if function is None else Function(function)
    total = count(nn.Sequential(before, layer), SIDE, SIDE).total
    assert (total.ops, total.params) == (macs, weights)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)
        return out


@pytest.mark.parametrize(
    ("shape", "weights", "positions"),
    [
        pytest.param(UnitShape(3, 6, kernel=1), 3 * 6, 10 * 10, id="1x1"),
        pytest.param(UnitShape(3, 6, stride=2), 3 * 6 * 9, 5 * 5, id="stride 2"),
        pytest.param(UnitShape(3, 6, groups=3), 1 * 6 * 9, 10 * 10, id="groups"),
    ],
)
@pytest.mark.parametrize(("weight", "bits"), [("l1", 1), ("srb", 2)])
def test_multiply_adds_of_a_binary_unit(shape: UnitShape, weights: int, positions: int, weight: str, bits: int) -> None:
    total = count(nn.Sequential(BinaryUnit(shape, UnitSpec(weight=weight))), SIDE, SIDE).total
    macs = weights * positions * bits
    assert total == Cost(macs / 64, weights * bits / 32, macs)


@pytest.mark.parametrize(
    ("ops", "printed"),
    [(79.1949312e9, "79.20"), (1.824768e9, "1.83"), (1.8244e9, "1.82"), (85.43232e9, "85.43"), (0, "0.00")],
)
def test_operations_are_rounded_as_the_paper_rounds(ops: float, printed: str) -> None:
    assert Cost(ops, 0).printed_ops_g == printed


@pytest.mark.parametrize(("params", "printed"), [(48_600, "49"), (54_499, "54"), (500, "1")])
def test_parameters_are_rounded_as_the_paper_rounds(params: float, printed: str) -> None:
    assert Cost(0, params).printed_params_k == printed


# --- every figure of the paper's tables -------------------------------------------------------------------------------


def costs_of(*convolutions: tuple[int, int, bool]) -> tuple[float, float]:
    """Sum (weights, positions for each pixel of the input, binary) to multiply-adds for each pixel, and weights."""
    ops = sum(weights * positions / (64 if binary else 1) for weights, positions, binary in convolutions)
    return ops, sum(weights / (32 if binary else 1) for weights, _, binary in convolutions)


def super_resolution(stages: int, c: int = 64, binary: tuple[str, ...] = ()) -> tuple[float, float]:
    """An SRResNet with c channels and 16 blocks that doubles the size ``stages`` times."""
    body, up, size = "body" in binary, "up" in binary, 4**stages
    upsampling = [(c * 4 * c * 9, 4**stage, up) for stage in range(stages)]
    after = [(c * c * 9, size, up), (c * 3 * 9, size, False)]
    return costs_of((3 * c * 9, 1, False), (32 * c * c * 9, 1, body), *upsampling, *after)


def denoising(colours: int, c: int = 64, *, binary: bool = False) -> tuple[float, float]:
    """A DnCNN with c channels and 20 layers."""
    return costs_of((colours * c * 9, 1, False), (18 * c * c * 9, 1, binary), (c * colours * 9, 1, False))


ALL = ("bnn", "bireal", "irnet", "btm", "bam", "reactnet", "bbcu")
WITHOUT_BAM = tuple(name for name in ALL if name != "bam")

PAPER: list[tuple[str, tuple[str, ...], tuple[float, float], str, str]] = [
    # network, methods, (multiply-adds for each pixel of the input, parameters), G and K as printed
    ("SRResNet x2", ("full_precision",), super_resolution(1), "85.43", "1367"),
    ("SRResNet x2", ("lite",), super_resolution(1, 12), "3.08", "49"),
    ("SRResNet x2", ALL, super_resolution(1, binary=("body",)), "18.55", "225"),
    ("SRResNet x2", (MEDIUM,), super_resolution(1, binary=("body", "up")), "1.83", "46"),
    ("SRResNet x4", ("full_precision",), super_resolution(2), "146.14", "1515"),
    ("SRResNet x4", ("lite",), super_resolution(2, 12), "5.39", "54"),
    ("SRResNet x4", ALL, super_resolution(2, binary=("body",)), "79.20", "372"),
    ("SRResNet x4", (MEDIUM,), super_resolution(2, binary=("body", "up")), "3.95", "51"),
    ("DnCNN", ("full_precision",), denoising(3), "38.42", "667"),
    ("DnCNN", ("lite",), denoising(3, 12), "1.38", "24"),
    ("DnCNN", WITHOUT_BAM, denoising(3, binary=True), "0.8", "24"),
    ("DnCNN-3", ("full_precision",), denoising(1), "38.29", "665"),
    ("DnCNN-3", ("lite",), denoising(1, 12), "1.36", "24"),
    ("DnCNN-3", WITHOUT_BAM, denoising(1, binary=True), "0.66", "22"),
]
ROWS = [
    pytest.param(network, method, *rest, id=f"{network} {method}")
    for network, methods, *rest in PAPER
    for method in methods
]
UNEXPLAINED = {("SRResNet x2", "bam"): ("20.52", "226"), ("SRResNet x4", "bam"): ("81.17", "373")}
"""What the paper prints for BAM, whose extra operations it does not derive."""


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], Row]:
    """The rows of the page by network and method."""
    return {(row.network, row.method): row for row in rows()}


@pytest.mark.parametrize(("network", "method", "sums", "ops_g", "params_k"), ROWS)
def test_the_paper_prints_what_is_counted(
    network: str,
    method: str,
    sums: tuple[float, float],
    ops_g: str,
    params_k: str,
    counted: dict[tuple[str, str], Row],
) -> None:
    cost, printed = counted[network, method].paper, published_costs()[network, method]
    assert (cost.ops, cost.params) == (PIXELS * sums[0], sums[1])
    assert (printed["ops_g"], printed["params_k"]) == UNEXPLAINED.get((network, method), (ops_g, params_k))
    if (network, method) not in EXCEPTIONS:
        assert Decimal(cost.printed_ops_g) == Decimal(ops_g)
    assert cost.printed_params_k == params_k


def test_the_papers_tables_have_no_other_row() -> None:
    assert set(published_costs()) == {tuple(row.values[:2]) for row in ROWS}


def test_the_exceptions_are_the_rows_that_differ_and_say_so(counted: dict[tuple[str, str], Row]) -> None:
    def differs(key: tuple[str, str]) -> bool:
        cost, row = counted[key].paper, published_costs()[key]
        same_ops = Decimal(cost.printed_ops_g) == Decimal(row["ops_g"])
        return not same_ops or cost.printed_params_k != row["params_k"]

    assert {key for key in published_costs() if differs(key)} == set(EXCEPTIONS)
    assert set(EXCEPTIONS) == {("SRResNet x4", "full_precision"), *UNEXPLAINED}
    assert all(reason in counted[key].remark for key, reason in EXCEPTIONS.items())


def test_every_method_with_a_network_is_counted_in_every_network(counted: dict[tuple[str, str], Row]) -> None:
    methods = {name for name, method in METHODS.items() if "name" not in method.network}
    for network in ("SRResNet x2", "SRResNet x3", "SRResNet x4", "DnCNN", "DnCNN-3"):
        expected = {*methods, MEDIUM} if network.startswith("SRResNet") else methods
        assert {method for title, method in counted if title == network} == expected
    for (_, method), row in counted.items():
        assert METHODS[method.partition(" ")[0]].remark in row.remark


def test_the_page_is_what_the_command_prints(
    counted: dict[tuple[str, str], Row], capsys: pytest.CaptureFixture[str]
) -> None:
    main([])
    written = (REPOSITORY / "docs" / "cost.md").read_text()
    assert capsys.readouterr().out == written, "python -m bbcu.model.cost > docs/cost.md"
    row = counted["SRResNet x2", "bam"]
    assert f"| `bam` | BAM | 18.55 | 20.52 | 225 | 226 | 19.42 | 233.3 | {row.remark} |" in written


def test_the_command_runs_as_a_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cost", "--help"])
    monkeypatch.delitem(sys.modules, "bbcu.model.cost")
    with pytest.raises(SystemExit):
        runpy.run_module("bbcu.model.cost", run_name="__main__")
    assert "Print the cost of every method" in capsys.readouterr().out


# --- the newer levels, as the paper counts ----------------------------------------------------------------------------

BBCU_L = HEAD + UPSAMPLING + 4 * (REFINE + TAIL), HEAD + UPSAMPLING + REFINE + TAIL
BINARY = 64 * 64 * 9
PERCEPTRON = 64 * 128 + 128 * 128


@pytest.mark.parametrize(
    ("levels", "unit", "ops_g", "params_k"),
    [
        # What a unit adds to the binary convolution: multiply-adds a pixel, a picture, weights; and G and K of BBCU-L.
        pytest.param({}, (0, 0, 0), 18.546, 224.6, id="the reference"),
        pytest.param({"threshold": "affine", "surrogate": "tanh"}, (0, 0, 0), 18.546, 224.6, id="affine, tanh"),
        pytest.param({"threshold": "elastic"}, (0, 0, 0), 18.546, 224.6, id="elastic"),
        pytest.param({"surrogate": "reste", "weight": "reste"}, (0, 0, 0), 18.546, 224.6, id="reste"),
        pytest.param({"weight": "sign"}, (0, 0, 0), 18.546, 224.6, id="sign"),
        pytest.param({"weight": "recu"}, (0, 0, 0), 18.546, 224.6, id="recu"),
        pytest.param({"weight": "adabin", "threshold": "adaptive"}, (0, 0, 0), 18.546, 224.6, id="adabin, adaptive"),
        pytest.param({"rescale": "statistics"}, (0, 3 * 3 * 64, 3 * 3), 18.546, 224.9, id="statistics"),
        pytest.param({"rescale": "squeeze"}, (0, 2 * 64 * 8, 2 * 64 * 8), 18.546, 257.4, id="squeeze"),
        pytest.param({"rescale": "spatial"}, (64, 0, 64), 18.664, 226.7, id="spatial"),
        pytest.param({"rescale": "channel"}, (0, 5 * 64, 5), 18.546, 224.8, id="channel"),
        pytest.param({"rescale": "both"}, (64, 5 * 64, 64 + 5), 18.664, 226.8, id="both"),
        pytest.param(
            {"threshold": "dynamic", "rescale": "both"},
            (64, PERCEPTRON, 64 + PERCEPTRON),
            18.665,  # 18.664 without what counts once a picture
            1013.1,
            id="dynamic, both",
        ),
        pytest.param({"rescale": "box"}, (9, 0, 9), 18.563, 224.9, id="box"),
        pytest.param({"weight": "srb"}, (BINARY / 64, 0, BINARY / 32), 19.608, 261.5, id="srb"),
    ],
)
def test_what_a_level_adds_to_a_full_sized_bbcu_l(
    levels: dict[str, Any], unit: tuple[float, float, float], ops_g: float, params_k: float
) -> None:
    with torch.device("meta"):
        network = assemble("srresnet", NetworkSpec(scale=2, channels=64, blocks=16, unit=UnitSpec(**levels)))
    total = count(network).total
    a_pixel, a_picture, weights = unit
    ops = PIXELS * (BBCU_L[0] + 32 * (BINARY / 64 + a_pixel)) + 32 * a_picture
    assert (total.ops, total.params) == (ops, BBCU_L[1] + 32 * (BINARY / 32 + weights))
    assert (total.ops_g, total.params_k) == (ops_g, params_k)


# --- other networks ---------------------------------------------------------------------------------------------------

TRUNK = 3 * 64 * 9 + 64 * 3 * 9  # the head, and a tail at the size of the input
DENSE = sum(576 * 64 * (1 + place) for place in range(8)) + 576 * 64
RDN = 16 * DENSE + 2 * 36864 + 1024 * 64
LEVEL, RESIZE = 16 * 9 * 64 * 64, 2 * 2 * 64 * 128 / 4
DRUNET = 4 * 64 * 9 + 3 * LEVEL + 8 * 9 * 512 * 512 / 64 + 6 * RESIZE + 64 * 3 * 9
DRUNET_BODY = 9 * 64 * 64 * (16 + 16 * 4 + 16 * 16 + 8 * 64)
DRUNET_RESIZE = 2 * 4 * 64 * 64 * (2 + 8 + 32)
ATTENTION = 200 * 2 * 64 * 4


@pytest.mark.parametrize(
    ("title", "parts", "a_pixel", "a_picture", "params", "ops_g", "params_k"),
    [
        # Multiply-adds a pixel and a picture, weights; and G and K as published with the sums.
        ("EDSR x2", (), 27 * 64 + 33 * 36864 + 147456 + 4 * 1728, 0, TRUNK + 33 * 36864 + 147456, 79.062, 1367.4),
        (
            *("EDSR x2", ("body",), 1728 + 33 * 36864 / 64 + 147456 + 4 * 1728, 0),
            *(TRUNK + 33 * 36864 / 32 + 147456, 10.086, 188.9),
        ),
        (
            *("EDSR x2", ("body", "up"), 1728 + (33 * 36864 + 147456) / 64 + 4 * 1728, 0),
            *(TRUNK + (33 * 36864 + 147456) / 32, 1.725, 46.1),
        ),
        ("EDSR x3", (), 1728 + 33 * 36864 + 331776 + 9 * 1728, 0, TRUNK + 33 * 36864 + 331776, 90.177, 1551.7),
        (
            *("EDSR x4", (), 1728 + 33 * 36864 + 147456 * 5 + 16 * 1728, 0),
            *(TRUNK + 33 * 36864 + 2 * 147456, 114.230, 1514.9),
        ),
        (
            *("EDSR x4", ("body", "up"), 1728 + (33 * 36864 + 147456 * 5) / 64 + 16 * 1728, 0),
            # 3.4505 G: rounded to 3.450, and printed as 3.451.
            *(TRUNK + (33 * 36864 + 2 * 147456) / 32, 3.450, 50.7),
        ),
        (
            *("RCAN x4", (), 1728 + 411 * 36864 + 147456 * 5 + 16 * 1728, ATTENTION),
            *(TRUNK + 411 * 36864 + 2 * 147456 + ATTENTION, 916.863, 15551.9),
        ),
        (
            *("RCAN x4", ("body",), 1728 + 411 * 36864 / 64 + 147456 * 5 + 16 * 1728, ATTENTION),
            # 57.7955 G: rounded to 57.795, and printed as 57.796.
            *(TRUNK + 411 * 36864 / 32 + 2 * 147456 + ATTENTION, 57.795, 874.2),
        ),
        ("RDN x2", (), 1728 + RDN + 147456 + 4 * 1728, 0, TRUNK + RDN + 147456, 1274.046, 22113.7),
        (
            *("RDN x2", ("body",), 1728 + RDN / 64 + 147456 + 4 * 1728, 0),
            *(TRUNK + RDN / 32 + 147456, 28.758, 837.2),
        ),
        (
            *("RDN x2", ("body", "up"), 1728 + (RDN + 147456) / 64 + 4 * 1728, 0),
            *(TRUNK + (RDN + 147456) / 32, 20.397, 694.4),
        ),
        # 184 rows of the padded picture for 180
        (
            *("DRUNet", (), DRUNET * 184 / 180, 0),
            *(TRUNK + 64 * 9 + DRUNET_BODY + DRUNET_RESIZE, 124.682, 32641.0),
        ),
        (
            *("DRUNet", ("body",), (DRUNET - 63 / 64 * (3 * LEVEL + 8 * 9 * 512 * 512 / 64)) * 184 / 180, 0),
            *(TRUNK + 64 * 9 + DRUNET_BODY / 32 + DRUNET_RESIZE, 5.031, 2357.2),
        ),
        # The published units also have 19 convolutions of three statistics: 171 weights, 9504 multiply-adds a picture.
        (
            *("U-Net", ("body", "up"), 240_547_104 / PIXELS + 7_166_361_600 / PIXELS / 64, -9504),
            *(12_987 - 171 + 777_600 / 32, 0.353, 37.1),
        ),
    ],
)
def test_what_the_networks_of_others_cost(
    title: str,
    parts: tuple[str, ...],
    a_pixel: float,
    a_picture: int,
    params: float,
    ops_g: float,
    params_k: float,
) -> None:
    cost, _ = other_rows()[title][parts]
    assert cost.ops == pytest.approx(PIXELS * a_pixel + a_picture, rel=1e-12)
    assert cost.params == params
    assert (cost.ops_g, cost.params_k) == (ops_g, params_k)


@pytest.mark.parametrize(
    ("title", "printed"), [(title, one) for title, backbone in BACKBONES.items() for one in backbone.printed]
)
def test_what_others_print_of_their_networks(title: str, printed: Printed) -> None:
    cost, everything = other_rows()[title][()]
    digits = -1 if printed.params_k.endswith("0") else len(printed.params_k.partition(".")[2])
    assert round(everything.params / 1e3, digits) == float(printed.params_k)
    if printed.ops_g:
        width, height = printed.size
        ops = cost.ops / 1e9 * width * height / PIXELS
        # As the BBCU paper's: rounded twice, 316.249 to 316.25 and 316.3.
        twice = Decimal(ops).quantize(Decimal("0.01"), ROUND_HALF_UP).quantize(Decimal("0.1"), ROUND_HALF_UP)
        assert (twice == Decimal(printed.ops_g)) == (not printed.note)
        assert ops == pytest.approx(float(printed.ops_g), rel=1e-3)


# --- with everything counted ------------------------------------------------------------------------------------------

# On 10 x 10 pixels, networks of 8 channels and 1 block. For each pixel:
SIGN, AFFINE, RPRELU, PRELU, ADD, NORM = 1, 1, 4, 2, 1, 1
MACS = 8 * 8 * 9 / 64


def everything(network: nn.Module) -> dict[str, tuple[float, float]]:
    """Each part's operations for each pixel of the input, and its parameters."""
    parts = count(network, SIDE, SIDE, everything=True).parts
    return {name: (cost.ops / AREA, cost.params) for name, cost in parts.items()}


def test_everything_of_a_bbcu_l() -> None:
    assert everything(srresnet(align=130.0)) == {
        "head": (3 * 8 * 9 + 8, 3 * 8 * 9 + 8),
        "body": (2 * (MACS + 8 * (SIGN + AFFINE + RPRELU + ADD)), 2 * (8 * 8 * 9 / 32 + 8 + 8 + 3 * 8)),
        "up": (8 * 32 * 9 + 32 + 2 * 32 + 4 * (8 * 8 * 9 + 8 + 2 * 8), 8 * 32 * 9 + 32 + 8 * 8 * 9 + 8),
        "tail": (4 * (8 * 3 * 9 + 3), 8 * 3 * 9 + 3),
        # k, leaky ReLU of the head, four neighbours of the skip, its addition, and the division by k
        "between": (3 + 2 * 8 + 4 * 3 * (4 + 1 + 1), 0),
    }


def test_everything_of_a_bbcu_with_every_part_binary() -> None:
    parts = everything(srresnet(align=130.0, binarize=("head", "body", "up", "tail")))
    after_sign = AFFINE + RPRELU + ADD
    per_filter = 1 + 3
    assert parts == {
        "head": (3 * 8 * 9 / 64 + 3 * SIGN + 8 * after_sign, 3 * 8 * 9 / 32 + 3 + 8 * per_filter),
        "body": (2 * (MACS + 8 * SIGN + 8 * after_sign), 2 * (8 * 8 * 9 / 32 + 8 + 8 * per_filter)),
        "up": (
            4 * MACS + 8 * SIGN + 32 * after_sign + 4 * (MACS + 8 * SIGN + 8 * after_sign + 2 * 8),
            8 * 32 * 9 / 32 + 8 + 32 * per_filter + 8 * 8 * 9 / 32 + 8 + 8 * per_filter,
        ),
        "tail": (4 * (8 * 3 * 9 / 64 + 8 * SIGN + 3 * after_sign), 8 * 3 * 9 / 32 + 8 + 3 * per_filter),
        # the skip's addition belongs to the tail
        "between": (3 + 4 * 3 * (4 + 1), 0),
    }


def test_everything_of_full_precision_networks() -> None:
    parts = everything(srresnet(binarize=()))
    assert parts["body"] == (2 * (8 * 8 * 9 + 8) + 8 + 8, 2 * (8 * 8 * 9 + 8))
    assert parts["between"] == (2 * 8 + 4 * 3 * (4 + 1), 0)
    assert everything(dncnn(binarize=())) == {
        "head": (3 * 8 * 9 + 8, 3 * 8 * 9 + 8),
        # a bias and a ReLU; the BatchNorm is folded into the convolution, but a checkpoint contains it
        "body": (2 * (8 * 8 * 9 + 8 + 8), 2 * (8 * 8 * 9 + 8 + 2 * 8)),
        "tail": (8 * 3 * 9 + 3, 8 * 3 * 9 + 3),
        "between": (8 + 3, 0),
    }


BARE: dict[str, Any] = {"residual": False, "act": "none", "threshold": False, "weight": "plain"}
BARE_PARAMS = 8 * 8 * 9 / 32


@pytest.mark.parametrize(
    ("levels", "ops", "params"),
    [
        pytest.param({}, SIGN, 0, id="only the sign"),
        pytest.param({"threshold": True}, SIGN, 1, id="a threshold is what the sign compares with"),
        pytest.param({"bn": "pre"}, SIGN, 2, id="BatchNorm before the sign too"),
        pytest.param({"weight": "l1"}, SIGN + AFFINE, 1, id="scale"),
        pytest.param({"weight": "irnet"}, SIGN + AFFINE, 1, id="scale that is a shift"),
        pytest.param({"bn": "post"}, SIGN + AFFINE, 2, id="BatchNorm after the convolution"),
        pytest.param({"bn": "post", "weight": "l1"}, SIGN + AFFINE, 2 + 1, id="the scale is folded into it"),
        pytest.param({"bn": "out"}, SIGN + NORM, 2, id="BatchNorm at the end"),
        pytest.param({"residual": True}, SIGN + ADD, 0, id="residual"),
        pytest.param({"residual": "block"}, SIGN + ADD / 2, 0, id="residual of a pair"),
        pytest.param({"act": "inside", "act_fn": "relu"}, SIGN + 1, 0, id="relu"),
        pytest.param({"act": "inside", "act_fn": "hardtanh"}, SIGN + 2, 0, id="hardtanh"),
        pytest.param({"act": "inside", "act_fn": "prelu"}, SIGN + PRELU, 1, id="prelu"),
        pytest.param({"act": "inside", "act_fn": "rprelu"}, SIGN + RPRELU, 3, id="rprelu"),
        pytest.param({"act": "after", "residual": True, "act_fn": "prelu"}, SIGN + ADD + PRELU, 1, id="after the add"),
        pytest.param({"surrogate": "ede"}, SIGN, 0, id="the surrogate only affects training"),
    ],
)
def test_what_a_level_adds_for_each_channel(levels: dict[str, Any], ops: float, params: float) -> None:
    body = everything(srresnet(unit=UnitSpec(**{**BARE, **levels})))["body"]
    assert body == (2 * (MACS + 8 * ops), 2 * (BARE_PARAMS + 8 * params))


HIDDEN = 16
SIGMOID = 4
VALUES = 8 * AREA


@pytest.mark.parametrize(
    ("levels", "ops", "params"),
    [
        # What each unit of 8 channels adds on 10 x 10 pixels to a bare one.
        pytest.param({"threshold": "affine"}, 0, 2 * 8, id="affine: what the sign compares with"),
        pytest.param({"threshold": "elastic"}, VALUES * AFFINE, 1 + 8, id="elastic: its width is a scale"),
        pytest.param({"threshold": "elastic", "weight": "l1"}, VALUES * AFFINE, 1 + 8 + 8, id="that folds into others"),
        pytest.param({"threshold": "adaptive"}, VALUES * AFFINE, 2, id="adaptive: an offset for each filter"),
        pytest.param(
            {"threshold": "dynamic"},
            8 * HIDDEN + HIDDEN * 8 + VALUES + 8 + 2 * HIDDEN + 8,
            8 * HIDDEN + HIDDEN + HIDDEN * 8 + 8,
            id="dynamic: means, a perceptron with biases and a ReLU",
        ),
        pytest.param(
            {"threshold": "dynamic", "rescale": "channel"},
            8 * HIDDEN + HIDDEN * 16 + VALUES + 8 + 2 * HIDDEN + 16 + 8 * SIGMOID + VALUES,
            8 * HIDDEN + HIDDEN + HIDDEN * 16 + 16,
            id="dynamic with the factors of the channels",
        ),
        pytest.param({"surrogate": "tanh"}, 0, 1, id="tanh"),
        pytest.param({"surrogate": "reste"}, 0, 0, id="reste"),
        pytest.param({"weight": "sign"}, 0, 0, id="sign: no scale"),
        pytest.param({"weight": "reste"}, VALUES * AFFINE, 1, id="reste: a scale for the unit"),
        pytest.param({"weight": "recu"}, VALUES * AFFINE, 8, id="recu: scales that are parameters"),
        pytest.param(
            {"weight": "srb"}, AREA * MACS + VALUES * (AFFINE + 1), BARE_PARAMS + 2 * 8, id="srb: two bits, two scales"
        ),
        pytest.param(
            {"weight": "adabin"}, VALUES + 9 * AREA + VALUES * (AFFINE + 1), 2 * 8, id="adabin: box sum and offset"
        ),
        pytest.param({"rescale": "spatial"}, AREA * 8 + AREA * (1 + SIGMOID) + VALUES, 8 + 1, id="spatial"),
        pytest.param({"rescale": "channel"}, 8 * 5 + VALUES + 8 * (1 + SIGMOID) + VALUES, 5, id="channel"),
        pytest.param(
            {"rescale": "both"},
            AREA * 8 + 8 * 5 + AREA * (1 + SIGMOID) + VALUES + 8 * (1 + SIGMOID) + 2 * VALUES,
            8 + 1 + 5,
            id="both",
        ),
        pytest.param(
            {"rescale": "doubled"},
            AREA * 8 + 8 * 5 + AREA * (1 + SIGMOID) + VALUES + 8 * (1 + SIGMOID + 1) + 2 * VALUES,
            8 + 1 + 5,
            id="doubled",
        ),
        pytest.param(
            {"rescale": "squeeze"}, 2 * 8 + VALUES + 8 + 1 + 8 * SIGMOID + VALUES, 2 * 8, id="squeeze: 8 to 1 to 8"
        ),
        pytest.param(
            {"rescale": "statistics"}, 8 * 9 + 4 * VALUES + 8 * (7 + SIGMOID) + VALUES, 9, id="statistics of the input"
        ),
        pytest.param(
            {"rescale": "statistics", "threshold": True},
            8 * 9 + 5 * VALUES + 8 * (7 + SIGMOID) + VALUES,
            9 + 8,
            id="statistics after a threshold",
        ),
        pytest.param({"rescale": "box"}, 9 * AREA + 2 * VALUES + VALUES, 9, id="box"),
        pytest.param(
            {"rescale": "box", "bn": "post"}, 9 * AREA + 3 * VALUES + VALUES * AFFINE, 9 + 16, id="norm after"
        ),
        pytest.param(
            {"rescale": "box", "bn": "post", "threshold": "adaptive"},
            9 * AREA + 3 * VALUES + VALUES * 2 * AFFINE,
            9 + 16 + 2,
            id="a shift before the factors and one after them",
        ),
        pytest.param({"residual": "scaled"}, VALUES * ADD, 1, id="a scaled residual is a multiply-add"),
        pytest.param({"bn": "branch"}, VALUES * AFFINE, 16, id="bn of the branch without an activation"),
        pytest.param(
            {"bn": "branch", "act": "inside", "act_fn": "relu", "weight": "l1"},
            VALUES * (1 + NORM),
            16 + 8,
            id="a scale goes through a ReLU into the BatchNorm",
        ),
        pytest.param(
            {"bn": "branch", "act": "inside", "act_fn": "rprelu", "weight": "l1"},
            VALUES * (AFFINE + RPRELU + NORM),
            3 * 8 + 16 + 8,
            id="and not through an RPReLU",
        ),
        pytest.param({"act": "inside", "act_fn": "leaky"}, VALUES * 2, 0, id="leaky"),
        pytest.param({"act": "inside", "act_fn": "maxout"}, VALUES * 2, 16, id="maxout"),
        pytest.param(
            {"act": "first", "act_fn": "leaky", "residual": True}, VALUES * (ADD + 2 / 2), 0, id="in one unit of two"
        ),
    ],
)
def test_what_a_level_of_the_newer_methods_adds_to_a_unit(levels: dict[str, Any], ops: float, params: float) -> None:
    cost = count(srresnet(unit=UnitSpec(**{**BARE, **levels})), SIDE, SIDE, everything=True).parts["body"]
    assert cost.ops == pytest.approx(2 * (AREA * MACS + VALUES * SIGN + ops), rel=1e-12)
    assert cost.params == 2 * (BARE_PARAMS + params)


def test_a_bias_is_folded_into_the_scale() -> None:
    """The gray DnCNN has biases, the colour one none."""
    spec, scaled = UnitSpec(**BARE), UnitSpec(**{**BARE, "weight": "l1"})
    colour, gray = (everything(dncnn(unit=spec, colours=colours))["body"] for colours in (3, 1))
    assert colour == (2 * (MACS + 8 * SIGN), 2 * BARE_PARAMS)
    assert gray == (2 * (MACS + 8 * (SIGN + AFFINE)), 2 * (BARE_PARAMS + 8))
    assert everything(dncnn(unit=scaled, colours=1))["body"][0] == gray[0]


def test_the_bit_memory_is_read_and_added_to() -> None:
    without, with_memory = (everything(srresnet(unit=UnitSpec(**BARE), accumulate=on))["body"] for on in (False, True))
    assert with_memory == (without[0] + 2 * 8 * 2, without[1] + 2)


def test_standardisation_is_a_subtraction_and_a_division_and_back() -> None:
    plain, standardised = (everything(dncnn(standardise=value)) for value in (False, True))
    assert standardised.pop("standardisation") == (2 * 3, 2 * 3)
    assert standardised.pop("between")[0] == plain.pop("between")[0] + 2 * 3
    assert standardised == plain


def test_everything_of_a_users_network() -> None:
    parts = everything(Custom())
    assert parts == {"first": (2 * (81 + 3), 81 + 3), "between": (3 + 3, 1)}


class Gated(BinaryUnit):
    """A unit that multiplies its branch, one operation for each value of its output."""

    def branch(self, x: Tensor) -> Tensor:
        return 2 * super().branch(x)

    def own_operations(self, x: Tensor, output: Tensor) -> int:
        return output.numel()


class Undeclared(BinaryUnit):
    """A unit that does not say what it adds."""


def test_the_operations_of_a_users_unit_are_counted() -> None:
    plain, gated = (everything(srresnet(unit_class=kind)) for kind in ("binary", f"{__name__}.Gated"))
    assert gated.pop("body") == (plain["body"][0] + 2 * 8, plain.pop("body")[1])
    assert gated == plain


def test_a_users_unit_that_does_not_declare_its_operations_is_refused_if_everything_counts() -> None:
    network = srresnet(unit_class=f"{__name__}.Undeclared")
    with pytest.raises(ConfigError, match=rf"^cost: {__name__}.Undeclared must define own_operations, [^\n]*$"):
        count(network, everything=True)
    assert count(network) == count(srresnet())


def test_a_function_of_unknown_cost_is_refused_if_everything_counts() -> None:
    with pytest.raises(ConfigError, match="the operations of erf are not known; known are those of add, sub,"):
        count(Custom(torch.erf), everything=True)
    assert count(Custom(torch.erf)) == count(Custom())


@pytest.mark.parametrize("everything", [False, True])
def test_a_product_whose_multiply_adds_are_not_known_is_refused_by_both_readings(everything: bool) -> None:
    network = Custom(lambda x: torch.einsum("bchw,bkhw->bckw", x, x))
    with pytest.raises(ConfigError, match=r"^cost: the multiply-adds of einsum are not known; known are matmul, mm, "):
        count(network, everything=everything)


STATISTICS = torch.zeros(3, device="meta"), torch.ones(3, device="meta")


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda x: F.interpolate(x, scale_factor=2.0), 0),
        (lambda x: F.interpolate(x, None, 2.0, "bilinear"), 4 * 4 * 3),
        (lambda x: F.batch_norm(x + x, *STATISTICS), 3 + 3),
        (lambda x: F.batch_norm(x, *STATISTICS), 0),
        (lambda x: torch.cat([x, x], 1)[:, :3].reshape(1, 3, 10, 10), 0),
        (lambda x: 1 * x / 1.0, 0),
        (lambda x: 2 * x / 2.0 - 1, 3 * 3),
        (lambda x: 1 - x.clone().add_(1), 3 + 3),
        (lambda x: torch.sigmoid(x) + torch.tanh(x), 3 * (4 + 5 + 1)),
        (lambda x: torch.where(x > 0, x, x.abs()), 3 * (1 + 1)),
        (lambda x: x - x.mean(1, keepdim=True), 3 + 1 + 3),
        (lambda x: x * x.var(1, keepdim=True).sqrt(), 3 * 2 + 3 + 1 + 3),
        (lambda x: F.avg_pool2d(x, 2), 3 * 4 / 4),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 3 + 3 / AREA),
        (lambda x: F.layer_norm(x, (10,)), 3 * (3 + 5 / SIDE)),
        (lambda x: F.layer_norm(x.movedim(1, 3), (3,), *STATISTICS).movedim(3, 1), 3 * 4 + 5),
        (lambda x: torch.softmax(x, 3), 3 * 5),
    ],
)
def test_a_function_costs_its_operations_for_each_value_of_its_output(function: Any, ops: int) -> None:
    identity, other = (count(Custom(function), SIDE, SIDE, everything=True) for function in (lambda x: x, function))
    enlarged = function(torch.empty(1, 3, SIDE, SIDE, device="meta")).numel() - 3 * AREA
    assert other.total.ops - identity.total.ops - enlarged == pytest.approx(ops * AREA, rel=1e-12)
    assert other.total.params == identity.total.params


@pytest.mark.parametrize(
    ("network", "method", "params"),
    [
        ("SRResNet x2", "bbcu", 196_355 + 1_179_648 / 32 + 32 * 64),
        ("SRResNet x4", "bbcu", 344_067 + 1_179_648 / 32 + 32 * 64),
        ("SRResNet x2", MEDIUM, 12_803 + 1_363_968 / 32 + 32 * 64 + 256 + 64),
        ("SRResNet x4", MEDIUM, 13_635 + 1_511_424 / 32 + 32 * 64 + 2 * 256 + 64),
    ],
)
def test_the_released_networks_have_the_parameters_of_their_checkpoints_and_a_scale_for_each_filter(
    network: str, method: str, params: float, counted: dict[tuple[str, str], Row]
) -> None:
    """Numbers in full precision, bits, and scales."""
    assert counted[network, method].everything.params == params
