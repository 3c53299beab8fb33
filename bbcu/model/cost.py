"""What a network costs: as the paper counts, and with everything counted.

As the paper counts: the multiply-adds of the convolutions in one forward pass on a 320 x 180 input, and their weights;
a binary multiply-add counts 1/64 of one, a binary weight 1/32. Nothing else counts. Source: section 4.1 of the BBCU
paper; checked against every figure that it prints in the tests.

With everything counted, an operation is a multiply-add of a convolution, or one addition, multiplication or comparison
of two numbers elsewhere; PRICES and ``unit_operations`` have them all. They are those of inference, where

  - a sign is one comparison, of which a threshold and a BatchNorm right before it are the other side;
  - scale, bias and BatchNorm right behind a binary convolution are one multiply-add for each value that it gives;
  - a BatchNorm right behind a full-precision convolution is part of the convolution's weights and bias.

Nothing else is folded. Parameters are what a checkpoint holds, without a BatchNorm's statistics, and a scale for each
filter of a binary convolution that has one.

``python -m bbcu.model.cost > docs/cost.md`` writes the page with both readings of all methods.
"""

import argparse
import copy
import csv
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bbcu.errors import ConfigError
from bbcu.model.binarisers import Plain
from bbcu.model.methods import METHODS, Method
from bbcu.model.networks import NetworkSpec, assemble
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit

OPS_PER_BINARY_OP = 1 / 64
PARAMS_PER_BINARY_WEIGHT = 1 / 32

HEIGHT, WIDTH = 180, 320
"""Size of the input that the paper's figures are for, in pixels."""

COLOURS = 3
"""Channels of the input of a network without a spec that says them."""

BETWEEN = "between"
"""What a network does outside its parts, where everything is counted: alignment, the skip, the head's activation."""


@dataclass(frozen=True)
class Cost:
    """``ops`` in multiply-adds, ``params`` in weights of 32 bits."""

    ops: float
    params: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.ops + other.ops, self.params + other.params)

    @property
    def ops_g(self) -> float:
        """Operations in G, to a tenth of the paper's last digit."""
        return round(self.ops / 1e9, 3)

    @property
    def params_k(self) -> float:
        """Parameters in K, to a tenth of the paper's last digit."""
        return round(self.params / 1e3, 1)

    @property
    def printed_ops_g(self) -> str:
        """Operations in G with the two decimals that the paper prints.

        Its figures are those of rounding twice, to three decimals and then half up to two: 79.1949 becomes 79.195 and
        79.20, and 1.8248 becomes 1.825 and 1.83.
        """
        thousandths = Decimal(self.ops / 1e9).quantize(Decimal("0.001"), ROUND_HALF_UP)
        return str(thousandths.quantize(Decimal("0.01"), ROUND_HALF_UP))

    @property
    def printed_params_k(self) -> str:
        """Parameters in K without decimals, as the paper prints them."""
        return str(Decimal(self.params / 1e3).quantize(Decimal(1), ROUND_HALF_UP))


@dataclass(frozen=True)
class NetworkCost:
    """The cost of each part of a network (``head``, ``body``, ``up``, ``tail``), in their order."""

    parts: dict[str, Cost]

    @property
    def total(self) -> Cost:
        return sum(self.parts.values(), Cost(0, 0))


# --- counting ---------------------------------------------------------------------------------------------------------


def count(network: nn.Module, height: int = HEIGHT, width: int = WIDTH, *, everything: bool = False) -> NetworkCost:
    """Count ``network`` on one input of ``height`` x ``width`` pixels; shapes are followed, nothing is computed.

    As the paper counts, or with ``everything``: there is then a part ``between`` for what happens outside the parts,
    and a function without a price raises ConfigError. Convolutions are those that are modules; a binary unit of the
    user's own counts as the unit of its spec.
    """
    probe = copy.deepcopy(network).to("meta").eval()
    ops: defaultdict[str, float] = defaultdict(float)
    _count_convolutions(probe, ops)
    colours = getattr(getattr(network, "spec", None), "colours", COLOURS)
    x = torch.empty(1, colours, height, width, device="meta")
    with torch.no_grad():
        if everything:
            with _Listener(probe, ops):
                probe(x)
        else:
            probe(x)
    params = _all_params(probe) if everything else _convolution_weights(probe)
    names = [name for name, _ in probe.named_children()] + [BETWEEN]
    return NetworkCost({name: Cost(ops[name], params[name]) for name in names if ops[name] or params[name]})


def _convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d | BinaryUnit]]:
    """Every convolution with the name of its part."""
    return [
        (name.partition(".")[0], module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | BinaryUnit)
    ]


def _count_convolutions(network: nn.Module, ops: defaultdict[str, float]) -> None:
    """Let every convolution add its multiply-adds to those of its part whenever it is called."""

    def adding_to(part: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | BinaryUnit)
            price = OPS_PER_BINARY_OP if isinstance(module, BinaryUnit) else 1
            ops[part] += module.weight.numel() * output.shape[-2] * output.shape[-1] * price

        return add

    for part, module in _convolutions(network):
        module.register_forward_hook(adding_to(part))


def _convolution_weights(network: nn.Module) -> defaultdict[str, float]:
    """The weights of each part's convolutions."""
    params: defaultdict[str, float] = defaultdict(float)
    for part, module in _convolutions(network):
        params[part] += module.weight.numel() * (PARAMS_PER_BINARY_WEIGHT if isinstance(module, BinaryUnit) else 1)
    return params


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What a BatchNorm's affine map takes in at inference."""


def _all_params(network: nn.Module) -> defaultdict[str, float]:
    """Everything that each part's state holds, and the scales of its filters."""
    params: defaultdict[str, float] = defaultdict(float)
    for prefix, module in network.named_modules():
        part = prefix.partition(".")[0] or BETWEEN
        for name, value in module.state_dict().items():
            if "." in name or name in STATISTICS:
                continue
            binary = isinstance(module, BinaryUnit) and name == "weight"
            params[part] += value.numel() * (PARAMS_PER_BINARY_WEIGHT if binary else 1)
        if isinstance(module, BinaryUnit) and _has_scale(module):
            params[part] += module.out_channels
    return params


def _has_scale(unit: BinaryUnit) -> bool:
    return not isinstance(unit.binariser, Plain)


# --- the price of everything ------------------------------------------------------------------------------------------

PRICES: Mapping[str, int] = {
    "add": 1,
    "sub": 1,
    "mul": 1,
    "div": 1,
    "relu": 1,
    "leaky_relu": 2,
    "prelu": 2,
    "hardtanh": 2,
    "interpolate nearest": 0,
    "interpolate bilinear": 4,
}
"""Operations for each value that a function gives: a ReLU is a comparison, a hardtanh two, and the leaky ReLU and the
PReLU a comparison and a multiplication; a PReLU between two shifts, RPReLU, is 4 then. Interpolation is a multiply-add
for each neighbour that is weighed. A multiplication by the number 1, alignment that is off, is none."""

FREE = frozenset(
    {"cat", "clone", "contiguous", "detach", "expand", "flatten", "get", "getitem", "pad", "permute", "repeat"}
    | {"pixel_shuffle", "pixel_unshuffle", "repeat_interleave", "reshape", "squeeze", "stack", "transpose"}
    | {"unsqueeze", "view"}
)
"""Functions that move numbers and compute none."""


def unit_operations(unit: BinaryUnit, x: Tensor, output: Tensor, has_residual: bool) -> int:
    """What a unit does beside its multiply-adds, its activation and a BatchNorm at its end.

    A comparison for each value of the input, and two additions where bits are accumulated: one that reads the memory
    (its weight makes it a multiply-add) and one that keeps the bit. For each value of the output a multiply-add with
    whatever stands right behind the convolution, and the residual's addition.
    """
    accumulates = unit.memory is not None
    has_affine = _has_scale(unit) or unit.bias is not None or isinstance(unit.bn_post, nn.BatchNorm2d)
    ours = x.numel() * (1 + 2 * accumulates) + output.numel() * (has_affine + has_residual)
    kind = type(unit)
    if kind is not BinaryUnit and kind.own_operations is BinaryUnit.own_operations:
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise ConfigError(f"cost: {name} must define own_operations, the operations that it adds to a binary unit")
    return ours + unit.own_operations(x, output)


class _Listener(TorchFunctionMode):
    """Hears every function of a forward pass, and adds its price to the operations of the part that calls it.

    Most of a unit is not heard but priced as a whole, because what folds at inference is written out in its code.
    """

    def __init__(self, network: nn.Module, ops: defaultdict[str, float]) -> None:
        super().__init__()
        self._ops, self._part = ops, BETWEEN
        self._convolved: Tensor | None = None
        self._hears = [True]
        for name, child in network.named_children():
            child.register_forward_pre_hook(self._entering(name))
            child.register_forward_hook(self._entering(BETWEEN))
        for module in network.modules():
            if isinstance(module, BinaryUnit):
                self._hear_inside(module, False)
                self._hear_inside(module.activation, True)
                self._hear_inside(module.bn_out, True)
                # Ahead of the hook that tells the part is left, which for a tail is on the same module.
                module.register_forward_hook(self._add_unit, with_kwargs=True, prepend=True)

    def _entering(self, part: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._part = part

        return enter

    def _hear_inside(self, module: nn.Module, hears: bool) -> None:
        def enter(*_: Any) -> None:
            self._hears.append(hears)

        def leave(*_: Any) -> None:
            self._hears.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _add_unit(self, unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        assert isinstance(unit, BinaryUnit)
        residual = args[1] if len(args) > 1 else kwargs.get("residual")
        self._ops[self._part] += unit_operations(unit, args[0], output, residual is not None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._hears[-1] and isinstance(result, Tensor):
            name = func.__name__.strip("_")
            self._ops[self._part] += self._price(name, args, kwargs) * result.numel()
            if name == "conv2d":
                self._convolved = result
        return result

    def _price(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Operations for each value that the function ``name`` gives."""
        if name in FREE:
            return 0
        if name == "conv2d":
            return int((args[2] if len(args) > 2 else kwargs.get("bias")) is not None)
        if name == "batch_norm":
            return int(args[0] is not self._convolved)
        if name == "interpolate":
            name = f"interpolate {args[3] if len(args) > 3 else kwargs.get('mode', 'nearest')}"
        if name in ("mul", "div") and any(isinstance(factor, int | float) and factor == 1 for factor in args):
            return 0
        if name not in PRICES:
            raise ConfigError(f"cost: the function {name} has no price; those that have: {', '.join(PRICES)}")
        return PRICES[name]


# --- the page ---------------------------------------------------------------------------------------------------------

WIDE = 64
"""Channels of the published networks, but for the Lite ones."""

ALIGN = 130.0
"""The authors' residual alignment at that width, which a method of ``align=auto`` has where something is binary."""

MEDIUM = "bbcu binarize=[body,up]"
"""BBCU-M, which is no method of its own but BBCU with binary upsampling."""


@dataclass(frozen=True)
class Layout:
    """A network of the paper's tables, without what a method decides."""

    network: str
    scale: int
    blocks: int
    colours: int = 3
    remark: str = ""


LAYOUTS: Mapping[str, Layout] = {
    "SRResNet x2": Layout("srresnet", 2, 16, remark="Super-resolution, 64 channels and 16 blocks."),
    "SRResNet x3": Layout("srresnet", 3, 16, remark="Released with weights; in none of the paper's tables."),
    "SRResNet x4": Layout("srresnet", 4, 16, remark="Super-resolution with two upsampling convolutions."),
    "DnCNN": Layout("dncnn", 1, 9, remark="Denoising in colour, 64 channels and 20 layers (`blocks=9`)."),
    "DnCNN-3": Layout("dncnn", 1, 9, colours=1, remark="JPEG deblocking in gray, 64 channels and 20 layers."),
}

_BAM_REASON = "the paper adds 1.97 G and 1 K for the accumulation of bits, without a derivation"
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("SRResNet x4", "full_precision"): "the paper prints 0.06 G more, without a derivation",
    ("SRResNet x2", "bam"): _BAM_REASON,
    ("SRResNet x4", "bam"): _BAM_REASON,
}
"""Where the paper's figure is not what its own rule gives, and why."""

PAGE = """\
# What a network costs

`python -m bbcu.model.cost` prints this page; a test compares the two.

## As the paper counts

The paper counts the multiply-adds of the convolutions on a 320 x 180 input, and their weights. A binary multiply-add
counts 1/64, a binary weight 1/32. Biases, thresholds, scales, BatchNorm, activations, residual additions and
interpolation count nothing. So BBCU-L at scale 2 has

    operations  57600 * (3*64*9 + 32*64*64*9 / 64 + 64*256*9 + 4 * (64*64*9 + 64*3*9)) = 18.55 G
    parameters  3*64*9 + 32*64*64*9 / 32 + 64*256*9 + 64*64*9 + 64*3*9 = 225 K

The paper's operations agree with rounding twice, first to three decimals and then half up to two. This page rounds the
same way: 79.1949 becomes 79.20, and 1.8248 becomes 1.83. Results record three decimals.

## With everything counted

Here an operation is a multiply-add of a convolution (1/64 if it is binary), or one addition, multiplication or
comparison of two numbers elsewhere. What inference can fold into something else is folded:

| what | operations | for each |
|---|---|---|
| sign, with its threshold and a BatchNorm before it | 1 | value of the unit's input |
| memory of bits (BAM) | 2 | value of the unit's input |
| scale, bias and BatchNorm right after a binary convolution, together | 1 | value of its output |
| bias of a full-precision convolution, with a BatchNorm right after it | 1 | value of its output |
| BatchNorm elsewhere | 1 | value |
| ReLU / leaky ReLU, PReLU, hardtanh / RPReLU | 1 / 2 / 4 | value |
| residual, skip connection | 1 | value |
| bilinear interpolation of the skip connection | 4 | value of the network's output |
| alignment, if it is not 1 | 1 | value of the network's input, and of its output |
| standardisation (BTM) | 2 | value of the network's input, and of its output |
| pixel shuffle, repeated channels, nearest-neighbour interpolation | 0 | |

The parameters are everything in a checkpoint except a BatchNorm's statistics, which fold into its affine map, plus a
scale for each filter of a binary convolution unless its weights are plain signs. A binary weight counts 1/32 here too.

## Every method

The methods of `bbcu/model/methods.py` in the networks of the paper's tables. A cell is empty if the paper has no such
row.
"""


def published() -> dict[tuple[str, str], dict[str, str]]:
    """The paper's rows (``name``, ``ops_g``, ``params_k`` as printed) by network and method."""
    text = resources.files("bbcu.model").joinpath("published_costs.csv").read_text(encoding="utf-8")
    return {(row["network"], row["method"]): row for row in csv.DictReader(text.splitlines())}


def methods_of(layout: Layout) -> dict[str, Method]:
    """The methods that a network comes with, by what a user types for them; one that has no network is none."""
    with_network = {name: method for name, method in METHODS.items() if "name" not in method.network}
    medium = dataclasses.replace(METHODS["bbcu"], levels={"binarize": ["body", "up"]})
    return {**with_network, MEDIUM: medium} if layout.scale > 1 else with_network


def published_network(layout: Layout, method: Method) -> nn.Module:
    """The network of the paper's tables, of the size that is published and without values."""
    levels = method.all_levels
    binarize = tuple(levels["binarize"])
    automatic = ALIGN if binarize else 1.0
    spec = NetworkSpec(
        scale=layout.scale,
        channels=method.channels or WIDE,
        blocks=layout.blocks,
        unit=UnitSpec.of({name: level for name, level in levels.items() if name not in ("align", "binarize")}),
        align=automatic if levels["align"] == "auto" else levels["align"],
        binarize=binarize,
        colours=layout.colours,
        **method.network,
    )
    with torch.device("meta"):
        return assemble(layout.network, spec)


@dataclass(frozen=True)
class Line:
    """A method in a network: what it costs in either reading, and what is to be said about that."""

    network: str
    method: str
    paper: Cost
    everything: Cost
    remark: str


@functools.cache
def lines() -> tuple[Line, ...]:
    """A line for each method of each network; counting them takes seconds, and they are the same every time."""
    found = []
    for title, layout in LAYOUTS.items():
        for name, method in methods_of(layout).items():
            network = published_network(layout, method)
            paper, everything = count(network).total, count(network, everything=True).total
            remark = "; ".join(filter(None, [method.remark, EXCEPTIONS.get((title, name))]))
            found.append(Line(title, name, paper, everything, remark))
    return tuple(found)


def table(title: str, lines: Sequence[Line]) -> str:
    """One network's table: our figures beside those that the paper prints."""
    rows = [
        "| method | in the paper | OPs (G) | paper | Params (K) | paper | all OPs (G) | all Params (K) | remark |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    printed = published()
    for line in lines:
        if line.network != title:
            continue
        row = printed.get((title, line.method), {"name": "", "ops_g": "", "params_k": ""})
        cells = [f"`{line.method}`", row["name"], line.paper.printed_ops_g, row["ops_g"]]
        cells += [line.paper.printed_params_k, row["params_k"]]
        cells += [line.everything.printed_ops_g, f"{line.everything.params_k:.1f}", line.remark]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def page(lines: Sequence[Line]) -> str:
    """The whole page in Markdown."""
    sections = [f"### {title}\n\n{layout.remark}\n\n{table(title, lines)}\n" for title, layout in LAYOUTS.items()]
    return "\n".join([PAGE, *sections])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page."""
    description = "Print what every method costs, beside the paper's figures, in Markdown."
    argparse.ArgumentParser(prog="python -m bbcu.model.cost", description=description).parse_args(arguments)
    print(page(lines()), end="")


if __name__ == "__main__":
    main()
