"""Operations and parameters by both counts; every expected number is written as a sum."""

import runpy
import sys
from decimal import Decimal
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.cost import Cost, Row, count, main, rows
from bbcu.model.methods import METHODS
from bbcu.model.published import EXCEPTIONS, MEDIUM, published_costs
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit
from tests.harness.builders import dncnn, srresnet
from tests.harness.paths import REPOSITORY

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


# --- with everything counted ------------------------------------------------------------------------------------------

# On 10 x 10 pixels, networks of 8 channels and 1 block. For each pixel:
SIDE, AREA = 10, 100
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


BARE = {"residual": False, "act": "none", "threshold": False, "weight": "plain"}
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
    with pytest.raises(ConfigError, match="the operations of sigmoid are not known; known are those of add, sub,"):
        count(Custom(torch.sigmoid), everything=True)
    assert count(Custom(torch.sigmoid)) == count(Custom())


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
    ],
)
def test_a_function_costs_its_operations_for_each_value_of_its_output(function: Any, ops: int) -> None:
    identity, other = (count(Custom(function), SIDE, SIDE, everything=True) for function in (lambda x: x, function))
    enlarged = function(torch.empty(1, 3, SIDE, SIDE, device="meta")).numel() - 3 * AREA
    assert other.total.ops - identity.total.ops - enlarged == ops * AREA
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
