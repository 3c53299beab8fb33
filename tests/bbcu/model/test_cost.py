"""Operations and parameters in both readings; every expected number stands as its sum."""

import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.cost import EXCEPTIONS, Cost, Line, count, lines, main, published
from bbcu.model.methods import METHODS
from bbcu.model.specs import UnitSpec
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
    total = count(srresnet(channels=64, blocks=16)).total
    assert total.ops == PIXELS * (HEAD + BODY / 64 + UPSAMPLING + 4 * (REFINE + TAIL))
    assert total.params == HEAD + BODY / 32 + UPSAMPLING + REFINE + TAIL
    assert (total.ops_g, total.params_k) == (18.546, 224.6)
    assert (total.printed_ops_g, total.printed_params_k) == ("18.55", "225")


def test_each_part_is_counted_on_its_own() -> None:
    parts = count(srresnet(channels=64, blocks=16)).parts
    assert parts == {
        "head": Cost(PIXELS * HEAD, HEAD),
        "body": Cost(PIXELS * BODY / 64, BODY / 32),
        "up": Cost(PIXELS * (UPSAMPLING + 4 * REFINE), UPSAMPLING + REFINE),
        "tail": Cost(PIXELS * 4 * TAIL, TAIL),
    }
    assert list(parts) == ["head", "body", "up", "tail"]


def test_every_part_may_be_binary() -> None:
    whole = count(srresnet(channels=64, blocks=16, binarize=("head", "body", "up", "tail"))).total
    assert whole.ops == PIXELS * (HEAD + BODY + UPSAMPLING + 4 * (REFINE + TAIL)) / 64
    assert whole.params == (HEAD + BODY + UPSAMPLING + REFINE + TAIL) / 32


@pytest.mark.parametrize("spec", [UnitSpec(bn="post"), UnitSpec(act="none"), UnitSpec(residual=False)], ids=str)
def test_batchnorm_activations_and_residuals_count_nothing(spec: UnitSpec) -> None:
    assert count(srresnet(unit=spec)) == count(srresnet())


def test_operations_grow_with_the_input_and_parameters_do_not() -> None:
    network = srresnet()
    small, large = count(network, 10, 10).total, count(network, 20, 10).total
    assert (large.ops, large.params) == (2 * small.ops, small.params)


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


class Mine(nn.Module):
    """A network of the user's own: no spec, a convolution that is called twice, and a number of its own."""

    def __init__(self, function: Any = F.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gain * self.function(self.first(self.first(x)))
        return out


def test_a_network_of_the_users_own_needs_no_spec() -> None:
    assert count(Mine(), 10, 10).parts == {"first": Cost(100 * 2 * 81, 81)}


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

GRAY_HEAD = GRAY_TAIL = 1 * 64 * 9
PAIRS = 18 * 64 * 64 * 9

LITE_HEAD = LITE_TAIL = 3 * 12 * 9
LITE_BODY = 32 * 12 * 12 * 9
LITE_UPSAMPLING = 12 * 48 * 9
LITE_REFINE = 12 * 12 * 9
LITE_PAIRS = 18 * 12 * 12 * 9
LITE_GRAY_HEAD = LITE_GRAY_TAIL = 1 * 12 * 9

BINARY = ("bnn", "bireal", "irnet", "btm", "bam", "reactnet", "bbcu")
DENOISING = tuple(name for name in BINARY if name != "bam")
MEDIUM = "bbcu binarize=[body,up]"

PAPER: list[tuple[str, tuple[str, ...], float, str, float, str]] = [
    # network, methods, multiply-adds for each pixel of the input, G as printed, parameters, K as printed
    (
        "SRResNet x2",
        ("full_precision",),
        *(HEAD + BODY + UPSAMPLING + 4 * (REFINE + TAIL), "85.43"),
        *(HEAD + BODY + UPSAMPLING + REFINE + TAIL, "1367"),
    ),
    (
        "SRResNet x2",
        ("lite",),
        *(LITE_HEAD + LITE_BODY + LITE_UPSAMPLING + 4 * (LITE_REFINE + LITE_TAIL), "3.08"),
        *(LITE_HEAD + LITE_BODY + LITE_UPSAMPLING + LITE_REFINE + LITE_TAIL, "49"),
    ),
    (
        "SRResNet x2",
        BINARY,
        *(HEAD + BODY / 64 + UPSAMPLING + 4 * (REFINE + TAIL), "18.55"),
        *(HEAD + BODY / 32 + UPSAMPLING + REFINE + TAIL, "225"),
    ),
    (
        "SRResNet x2",
        (MEDIUM,),
        *(HEAD + (BODY + UPSAMPLING + 4 * REFINE) / 64 + 4 * TAIL, "1.83"),
        *(HEAD + (BODY + UPSAMPLING + REFINE) / 32 + TAIL, "46"),
    ),
    (
        "SRResNet x4",
        ("full_precision",),
        *(HEAD + BODY + (1 + 4) * UPSAMPLING + 16 * (REFINE + TAIL), "146.14"),
        *(HEAD + BODY + 2 * UPSAMPLING + REFINE + TAIL, "1515"),
    ),
    (
        "SRResNet x4",
        ("lite",),
        *(LITE_HEAD + LITE_BODY + (1 + 4) * LITE_UPSAMPLING + 16 * (LITE_REFINE + LITE_TAIL), "5.39"),
        *(LITE_HEAD + LITE_BODY + 2 * LITE_UPSAMPLING + LITE_REFINE + LITE_TAIL, "54"),
    ),
    (
        "SRResNet x4",
        BINARY,
        *(HEAD + BODY / 64 + (1 + 4) * UPSAMPLING + 16 * (REFINE + TAIL), "79.20"),
        *(HEAD + BODY / 32 + 2 * UPSAMPLING + REFINE + TAIL, "372"),
    ),
    (
        "SRResNet x4",
        (MEDIUM,),
        *(HEAD + (BODY + (1 + 4) * UPSAMPLING + 16 * REFINE) / 64 + 16 * TAIL, "3.95"),
        *(HEAD + (BODY + 2 * UPSAMPLING + REFINE) / 32 + TAIL, "51"),
    ),
    ("DnCNN", ("full_precision",), HEAD + PAIRS + TAIL, "38.42", HEAD + PAIRS + TAIL, "667"),
    (
        "DnCNN",
        ("lite",),
        *(LITE_HEAD + LITE_PAIRS + LITE_TAIL, "1.38"),
        *(LITE_HEAD + LITE_PAIRS + LITE_TAIL, "24"),
    ),
    ("DnCNN", DENOISING, HEAD + PAIRS / 64 + TAIL, "0.8", HEAD + PAIRS / 32 + TAIL, "24"),
    ("DnCNN-3", ("full_precision",), GRAY_HEAD + PAIRS + GRAY_TAIL, "38.29", GRAY_HEAD + PAIRS + GRAY_TAIL, "665"),
    (
        "DnCNN-3",
        ("lite",),
        *(LITE_GRAY_HEAD + LITE_PAIRS + LITE_GRAY_TAIL, "1.36"),
        *(LITE_GRAY_HEAD + LITE_PAIRS + LITE_GRAY_TAIL, "24"),
    ),
    ("DnCNN-3", DENOISING, GRAY_HEAD + PAIRS / 64 + GRAY_TAIL, "0.66", GRAY_HEAD + PAIRS / 32 + GRAY_TAIL, "22"),
]
ROWS = [
    pytest.param(network, method, ops, ops_g, params, params_k, id=f"{network} {method}")
    for network, methods, ops, ops_g, params, params_k in PAPER
    for method in methods
]
UNEXPLAINED = {("SRResNet x2", "bam"): ("20.52", "226"), ("SRResNet x4", "bam"): ("81.17", "373")}
"""What the paper prints for BAM, whose extra operations it does not derive."""


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str], Line]:
    """The lines of the page by network and method."""
    return {(line.network, line.method): line for line in lines()}


@pytest.mark.parametrize(("network", "method", "ops", "ops_g", "params", "params_k"), ROWS)
def test_the_paper_prints_what_is_counted(
    network: str,
    method: str,
    ops: float,
    ops_g: str,
    params: float,
    params_k: str,
    counted: dict[tuple[str, str], Line],
) -> None:
    cost, row = counted[network, method].paper, published()[network, method]
    assert cost == Cost(PIXELS * ops, params)
    assert (row["ops_g"], row["params_k"]) == UNEXPLAINED.get((network, method), (ops_g, params_k))
    if (network, method) not in EXCEPTIONS:
        assert Decimal(cost.printed_ops_g) == Decimal(ops_g)
    assert cost.printed_params_k == params_k


def test_the_papers_tables_have_no_other_row() -> None:
    assert set(published()) == {tuple(row.values[:2]) for row in ROWS}


def test_the_exceptions_are_the_rows_that_differ_and_say_so(counted: dict[tuple[str, str], Line]) -> None:
    def differs(key: tuple[str, str]) -> bool:
        cost, row = counted[key].paper, published()[key]
        same_ops = Decimal(cost.printed_ops_g) == Decimal(row["ops_g"])
        return not same_ops or cost.printed_params_k != row["params_k"]

    assert {key for key in published() if differs(key)} == set(EXCEPTIONS)
    assert set(EXCEPTIONS) == {("SRResNet x4", "full_precision"), *UNEXPLAINED}
    assert all(reason in counted[key].remark for key, reason in EXCEPTIONS.items())


def test_every_method_with_a_network_is_counted_in_every_network(counted: dict[tuple[str, str], Line]) -> None:
    methods = {name for name, method in METHODS.items() if "name" not in method.network}
    for network in ("SRResNet x2", "SRResNet x3", "SRResNet x4"):
        assert {method for title, method in counted if title == network} == {*methods, MEDIUM}
    for network in ("DnCNN", "DnCNN-3"):
        assert {method for title, method in counted if title == network} == methods


def test_a_reimplementation_is_shown_as_one(counted: dict[tuple[str, str], Line]) -> None:
    for (_, method), line in counted.items():
        name = method.partition(" ")[0]
        assert METHODS[name].remark in line.remark


def test_the_page_is_what_the_command_prints(
    counted: dict[tuple[str, str], Line], capsys: pytest.CaptureFixture[str]
) -> None:
    main([])
    written = (REPOSITORY / "docs" / "cost.md").read_text()
    assert capsys.readouterr().out == written, "python -m bbcu.model.cost > docs/cost.md"
    line = counted["SRResNet x2", "bam"]
    assert f"| `bam` | BAM | 18.55 | 20.52 | 225 | 226 | 19.42 | 233.3 | {line.remark} |" in written


def test_the_command_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "bbcu.model.cost", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "Print what every method costs" in done.stdout


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
    beside_sign = AFFINE + RPRELU + ADD
    per_filter = 1 + 3
    assert parts == {
        "head": (3 * 8 * 9 / 64 + 3 * SIGN + 8 * beside_sign, 3 * 8 * 9 / 32 + 3 + 8 * per_filter),
        "body": (2 * (MACS + 8 * SIGN + 8 * beside_sign), 2 * (8 * 8 * 9 / 32 + 8 + 8 * per_filter)),
        "up": (
            4 * MACS + 8 * SIGN + 32 * beside_sign + 4 * (MACS + 8 * SIGN + 8 * beside_sign + 2 * 8),
            8 * 32 * 9 / 32 + 8 + 32 * per_filter + 8 * 8 * 9 / 32 + 8 + 8 * per_filter,
        ),
        "tail": (4 * (8 * 3 * 9 / 64 + 8 * SIGN + 3 * beside_sign), 8 * 3 * 9 / 32 + 8 + 3 * per_filter),
        # the skip's addition belongs to the tail
        "between": (3 + 4 * 3 * (4 + 1), 0),
    }


def test_everything_of_a_full_precision_srresnet() -> None:
    parts = everything(srresnet(binarize=()))
    assert parts["body"] == (2 * (8 * 8 * 9 + 8) + 8 + 8, 2 * (8 * 8 * 9 + 8))
    assert parts["between"] == (2 * 8 + 4 * 3 * (4 + 1), 0)


def test_everything_of_a_full_precision_dncnn() -> None:
    assert everything(dncnn(binarize=())) == {
        "head": (3 * 8 * 9 + 8, 3 * 8 * 9 + 8),
        # a bias and a ReLU; the BatchNorm is part of the convolution, but for what a checkpoint holds
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
        pytest.param({"bn": "pre"}, SIGN, 2, id="BatchNorm before the sign is, too"),
        pytest.param({"weight": "l1"}, SIGN + AFFINE, 1, id="scale"),
        pytest.param({"weight": "irnet"}, SIGN + AFFINE, 1, id="scale that is a shift"),
        pytest.param({"bn": "post"}, SIGN + AFFINE, 2, id="BatchNorm behind the convolution"),
        pytest.param({"bn": "post", "weight": "l1"}, SIGN + AFFINE, 2 + 1, id="the scale goes into it"),
        pytest.param({"bn": "out"}, SIGN + NORM, 2, id="BatchNorm at the end"),
        pytest.param({"residual": True}, SIGN + ADD, 0, id="residual"),
        pytest.param({"residual": "block"}, SIGN + ADD / 2, 0, id="residual of a pair"),
        pytest.param({"act": "inside", "act_fn": "relu"}, SIGN + 1, 0, id="relu"),
        pytest.param({"act": "inside", "act_fn": "hardtanh"}, SIGN + 2, 0, id="hardtanh"),
        pytest.param({"act": "inside", "act_fn": "prelu"}, SIGN + PRELU, 1, id="prelu"),
        pytest.param({"act": "inside", "act_fn": "rprelu"}, SIGN + RPRELU, 3, id="rprelu"),
        pytest.param({"act": "after", "residual": True, "act_fn": "prelu"}, SIGN + ADD + PRELU, 1, id="after the add"),
        pytest.param({"surrogate": "ede"}, SIGN, 0, id="the surrogate is training's"),
    ],
)
def test_what_a_level_adds_for_each_channel(levels: dict[str, Any], ops: float, params: float) -> None:
    body = everything(srresnet(unit=UnitSpec(**{**BARE, **levels})))["body"]
    assert body == (2 * (MACS + 8 * ops), 2 * (BARE_PARAMS + 8 * params))


def test_a_bias_goes_into_the_scale() -> None:
    """The gray DnCNN has biases, the colour one none."""
    spec = UnitSpec(**BARE)
    colour, gray = (everything(dncnn(unit=spec, colours=colours))["body"] for colours in (3, 1))
    assert colour == (2 * (MACS + 8 * SIGN), 2 * BARE_PARAMS)
    assert gray == (2 * (MACS + 8 * (SIGN + AFFINE)), 2 * (BARE_PARAMS + 8))
    scaled = UnitSpec(**{**BARE, "weight": "l1"})
    assert everything(dncnn(unit=scaled, colours=1))["body"][0] == gray[0]


def test_the_memory_of_bits_is_read_and_kept() -> None:
    spec = UnitSpec(**BARE)
    plain, remembering = (everything(srresnet(unit=spec, accumulate=value))["body"] for value in (False, True))
    assert remembering == (plain[0] + 2 * 8 * 2, plain[1] + 2)


def test_standardisation_is_a_subtraction_and_a_division_and_back() -> None:
    plain, standardised = (everything(dncnn(standardise=value)) for value in (False, True))
    assert standardised.pop("standardisation") == (2 * 3, 2 * 3)
    assert standardised.pop("between")[0] == plain.pop("between")[0] + 2 * 3
    assert standardised == plain


def test_alignment_that_is_off_costs_nothing() -> None:
    off, on = (everything(dncnn(align=align))["between"][0] for align in (1.0, 130.0))
    assert on == off + 3 + 3


def test_everything_of_a_network_of_the_users_own() -> None:
    parts = everything(Mine())
    assert parts == {"first": (2 * (81 + 3), 81 + 3), "between": (3 + 3, 1)}


def test_a_function_without_a_price_is_refused_where_everything_counts() -> None:
    with pytest.raises(ConfigError, match="the function sigmoid has no price; those that have: add, sub,"):
        count(Mine(torch.sigmoid), everything=True)
    assert count(Mine(torch.sigmoid)) == count(Mine())


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
def test_a_function_costs_its_price_for_each_value_that_it_gives(function: Any, ops: int) -> None:
    identity, other = (count(Mine(function), SIDE, SIDE, everything=True) for function in (lambda x: x, function))
    enlarged = function(torch.empty(1, 3, SIDE, SIDE, device="meta")).numel() - 3 * AREA
    assert other.total.ops - identity.total.ops - enlarged == ops * AREA
    assert other.total.params == identity.total.params


@pytest.mark.parametrize(
    ("network", "method", "params"),
    [
        pytest.param("SRResNet x2", "bbcu", 196_355 + 1_179_648 / 32 + 32 * 64, id="L x2"),
        pytest.param("SRResNet x4", "bbcu", 344_067 + 1_179_648 / 32 + 32 * 64, id="L x4"),
        pytest.param("SRResNet x2", MEDIUM, 12_803 + 1_363_968 / 32 + 32 * 64 + 256 + 64, id="M x2"),
        pytest.param("SRResNet x4", MEDIUM, 13_635 + 1_511_424 / 32 + 32 * 64 + 2 * 256 + 64, id="M x4"),
    ],
)
def test_the_released_networks_hold_what_their_checkpoints_do_and_a_scale_for_each_filter(
    network: str, method: str, params: float, counted: dict[tuple[str, str], Line]
) -> None:
    """Full-precision numbers, bits, and scales."""
    assert counted[network, method].everything.params == params


def test_only_a_binary_network_of_the_page_is_aligned(counted: dict[tuple[str, str], Line]) -> None:
    """BBCU-L and the full-precision DnCNN at full size, the first with its k."""
    bbcu, dncnn = counted["SRResNet x2", "bbcu"].everything, counted["DnCNN", "full_precision"].everything
    units = BODY / 64 + 32 * 64 * (SIGN + AFFINE + RPRELU + ADD)
    up = UPSAMPLING + 256 * 3 + 4 * (REFINE + 64 * 3)
    between = 3 + 2 * 64 + 4 * 3 * (4 + 1 + 1)
    assert bbcu.ops == PIXELS * (HEAD + 64 + units + up + 4 * (TAIL + 3) + between)
    assert dncnn.ops == PIXELS * (HEAD + 64 + PAIRS + 18 * 64 * 2 + TAIL + 3 + 64 + 3)
