"""Count the operations and parameters of a network: as the paper does, and with everything counted.

As the paper counts: the multiply-adds of the convolutions in one forward pass on a 320 x 180 input, and their weights;
a binary multiply-add counts 1/64, a binary weight 1/32. Nothing else counts. Linear layers are convolutions here, and
the products of attention are multiply-adds in full precision: the BBCU paper has neither, and the field counts both.
Source: section 4.1 of the BBCU paper; the tests compare with every figure that it prints. Attention: the operations
that BI-DiffSR (Chen et al., NeurIPS 2024) prints are more than those of its convolutions.

With everything counted: also the :mod:`bbcu.model.operations` outside convolutions. Parameters are then everything in a
checkpoint, without a BatchNorm's statistics, and the scales of the binary convolutions.

``python -m bbcu.model.cost > docs/cost.md`` writes a page with both counts of all methods.
"""

import argparse
import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources

import torch
from torch import Tensor, nn

from bbcu.model.operations import BETWEEN, OperationCounter, ProductCounter, pixels, scales
from bbcu.model.published import BACKBONES, EXCEPTIONS, LAYOUTS, Printed, published_costs
from bbcu.model.rescales import Box
from bbcu.model.thresholds import Dynamic
from bbcu.model.units import BinaryUnit

Convolution = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear | Box | BinaryUnit
"""The modules whose weights and multiply-adds count by both readings."""

OPS_PER_BINARY_OP = 1 / 64
PARAMS_PER_BINARY_WEIGHT = 1 / 32

HEIGHT, WIDTH = 180, 320
"""Size of the input for the paper's figures, in pixels."""

COLOURS = 3
"""Channels of the input if the network has no spec."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""State of a BatchNorm that is folded into its affine map at inference."""


@dataclass(frozen=True)
class Cost:
    """``ops`` in multiply-adds, ``params`` in weights of 32 bits.

    ``binary_macs`` is the number of binary multiply-adds, each of which is 1/64 of one in ``ops``.
    """

    ops: float
    params: float
    binary_macs: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.ops + other.ops, self.params + other.params, self.binary_macs + other.binary_macs)

    @property
    def full_macs(self) -> float:
        """The multiply-adds in full precision."""
        return self.ops - self.binary_macs * OPS_PER_BINARY_OP

    def ops_at(self, price: float) -> float:
        """Return the operations if a binary multiply-add counts ``price`` of one in full precision."""
        return self.full_macs + self.binary_macs * price

    @property
    def ops_g(self) -> float:
        """Operations in G, with one decimal more than the paper prints."""
        return round(self.ops / 1e9, 3)

    @property
    def params_k(self) -> float:
        """Parameters in K, with one decimal more than the paper prints."""
        return round(self.params / 1e3, 1)

    @property
    def printed_ops_g(self) -> str:
        """Operations in G with the two decimals that the paper prints.

        Its figures agree with rounding twice, to three decimals and then half up to two: 79.1949 becomes 79.195 and
        79.20, and 1.8248 becomes 1.825 and 1.83.
        """
        return printed_g(self.ops)

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


def printed_g(ops: float) -> str:
    """Return operations in G as :attr:`Cost.printed_ops_g` does."""
    thousandths = Decimal(ops / 1e9).quantize(Decimal("0.001"), ROUND_HALF_UP)
    return str(thousandths.quantize(Decimal("0.01"), ROUND_HALF_UP))


# --- counting ---------------------------------------------------------------------------------------------------------


def count(network: nn.Module, height: int = HEIGHT, width: int = WIDTH, *, everything: bool = False) -> NetworkCost:
    """Count the cost of ``network`` for one input of ``height`` x ``width`` pixels; only shapes are computed.

    Counts as the paper does, or with ``everything``: there is then a part ``between`` for operations outside the parts.
    Only convolutions and linear layers that are modules count, and products of tensors; a subclass of BinaryUnit counts
    as the unit of its spec plus its ``own_operations``. Raises ConfigError for a product whose multiply-adds are not
    known, and with ``everything`` if the operations of a function or of a subclass are not.
    """
    return _counts(network, height, width, everything=everything)[everything]


def _counts(network: nn.Module, height: int, width: int, *, everything: bool) -> tuple[NetworkCost, NetworkCost]:
    """Count as the paper does and with everything counted, from one pass; the second is wrong unless ``everything``."""
    probe = copy.deepcopy(network).to("meta").eval()
    for module in probe.modules():
        if isinstance(module, BinaryUnit):
            # Shapes stay the same without the signs, and counting is twice as fast.
            module.binary_signs = module.binary_weights = False
    macs: defaultdict[str, float] = defaultdict(float)
    binary: defaultdict[str, float] = defaultdict(float)
    others: defaultdict[str, float] = defaultdict(float)
    _count_convolutions(probe, macs, binary)
    counter = OperationCounter(probe, macs, others) if everything else ProductCounter(probe, macs)
    colours = getattr(getattr(network, "spec", None), "colours", COLOURS)
    x = torch.empty(1, colours, height, width, device="meta")
    with torch.no_grad(), counter:
        probe(x)
    names = [name for name, _ in probe.named_children()] + [BETWEEN]
    weights, numbers = _convolution_weights(probe), _all_params(probe)
    paper = {name: Cost(macs[name], weights[name], binary[name]) for name in names}
    full = {name: Cost(macs[name] + others[name], numbers[name], binary[name]) for name in names}
    return _known(paper), _known(full)


def _known(parts: dict[str, Cost]) -> NetworkCost:
    """Return the cost of the parts that cost anything."""
    return NetworkCost({name: cost for name, cost in parts.items() if cost.ops or cost.params})


def multiply_adds(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Return the multiply-adds of one call of a convolution, a linear layer or a dynamic threshold.

    Each weight counts once for each position of the output, and of the input for a transposed convolution. Strides and
    groups need no factor: a stride leaves fewer positions, and groups fewer weights. A unit with two bits for each
    weight convolves twice. The perceptron of a dynamic threshold runs once a picture, though its code calls it again
    for the factors of a rescale.
    """
    if isinstance(module, Dynamic):
        return len(x) * (module.hidden.weight.numel() + module.out.weight.numel())
    assert isinstance(module, Convolution)
    weights = module.weight.numel()
    if isinstance(module, nn.Linear):
        return weights * (output.numel() // module.out_features)
    if isinstance(module, BinaryUnit):
        weights *= module.binariser.bits
    return weights * pixels(x if isinstance(module, nn.ConvTranspose2d) else output)


def _convolutions(network: nn.Module) -> list[tuple[str, Convolution]]:
    """Return every convolution and linear layer with the name of its part."""
    return [
        (name.partition(".")[0], module) for name, module in network.named_modules() if isinstance(module, Convolution)
    ]


def _count_convolutions(network: nn.Module, ops: defaultdict[str, float], binary: defaultdict[str, float]) -> None:
    """Make every convolution add to ``ops`` of its part when it is called, and a binary one to ``binary`` too."""

    def adding_to(part: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            macs, is_binary = multiply_adds(module, inputs[0], output), isinstance(module, BinaryUnit)
            ops[part] += macs * (OPS_PER_BINARY_OP if is_binary else 1)
            binary[part] += macs * is_binary

        return add

    for name, module in network.named_modules():
        inside = network.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Dynamic) or (isinstance(module, Convolution) and not isinstance(inside, Dynamic)):
            module.register_forward_hook(adding_to(name.partition(".")[0]))


def _convolution_weights(network: nn.Module) -> defaultdict[str, float]:
    """Count the weights of each part's convolutions."""
    params: defaultdict[str, float] = defaultdict(float)
    for part, module in _convolutions(network):
        bits = module.binariser.bits if isinstance(module, BinaryUnit) else 0
        params[part] += module.weight.numel() * (bits * PARAMS_PER_BINARY_WEIGHT or 1)
    return params


def _all_params(network: nn.Module) -> defaultdict[str, float]:
    """Count everything in each part's state, and the scales of its filters."""
    params: defaultdict[str, float] = defaultdict(float)
    for prefix, module in network.named_modules():
        part = prefix.partition(".")[0] or BETWEEN
        for name, value in module.state_dict().items():
            if "." in name or name in STATISTICS:
                continue
            binary = isinstance(module, BinaryUnit) and name == "weight"
            bits = module.binariser.bits if binary else 0
            params[part] += value.numel() * (bits * PARAMS_PER_BINARY_WEIGHT or 1)
        if isinstance(module, BinaryUnit):
            params[part] += scales(module.binariser, module.out_channels)
    return params


# --- the page ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A method in a network of the paper: its cost by both counts, and a remark."""

    network: str
    method: str
    paper: Cost
    everything: Cost
    remark: str


@functools.cache
def rows() -> tuple[Row, ...]:
    """Return a row for each method of each network; cached, because counting takes seconds."""
    found = []
    for title, layout in LAYOUTS.items():
        for name, method in layout.methods.items():
            network = layout.network_of(method)
            paper, everything = (cost.total for cost in _counts(network, HEIGHT, WIDTH, everything=True))
            remark = "; ".join(filter(None, [method.remark, EXCEPTIONS.get((title, name))]))
            found.append(Row(title, name, paper, everything, remark))
    return tuple(found)


@functools.cache
def other_rows() -> dict[str, dict[tuple[str, ...], tuple[Cost, Cost]]]:
    """Return both costs of each network that is not the paper's, by its title and its binary parts."""
    return {
        title: {parts: _totals(backbone.assembled(parts)) for parts in backbone.parts}
        for title, backbone in BACKBONES.items()
    }


def _totals(network: nn.Module) -> tuple[Cost, Cost]:
    paper, everything = _counts(network, HEIGHT, WIDTH, everything=True)
    return paper.total, everything.total


def other_table(rows: Mapping[str, Mapping[tuple[str, ...], tuple[Cost, Cost]]]) -> str:
    """Return the Markdown table of the networks that are not the paper's, with what others print of them."""
    lines = [
        "| network | binary | OPs (G) | Params (K) | all OPs (G) | all Params (K) | remark | printed elsewhere |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, by_parts in rows.items():
        backbone = BACKBONES[title]
        for parts, (paper, everything) in by_parts.items():
            printed = "" if parts else "; ".join(map(_shown, backbone.printed))
            cells = [title, f"`[{','.join(parts)}]`", paper.printed_ops_g, f"{paper.params_k:.1f}"]
            cells += [everything.printed_ops_g, f"{everything.params_k:.1f}", "" if parts else backbone.remark, printed]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(printed: Printed) -> str:
    """Return a figure that is printed elsewhere with its size and its source."""
    width, height = printed.size
    ops = f"{printed.ops_g} G for {width} x {height}" if printed.ops_g else ""
    figures = ", ".join(filter(None, [f"{printed.params_k} K", ops]))
    note = f"; {printed.note}" if printed.note else ""
    return f"{figures} ({printed.source}{note})"


def table(title: str, rows: Sequence[Row]) -> str:
    """Return the Markdown table of one network: this package's figures next to those that the paper prints."""
    lines = [
        "| method | in the paper | OPs (G) | paper | Params (K) | paper | all OPs (G) | all Params (K) | remark |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    published = published_costs()
    for row in rows:
        if row.network != title:
            continue
        printed = published.get((title, row.method), {"name": "", "ops_g": "", "params_k": ""})
        cells = [f"`{row.method}`", printed["name"], row.paper.printed_ops_g, printed["ops_g"]]
        cells += [row.paper.printed_params_k, printed["params_k"]]
        cells += [row.everything.printed_ops_g, f"{row.everything.params_k:.1f}", row.remark]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


OTHER_NETWORKS = """### Other networks

The networks that others compare on, in full precision (`[]`) and with units of the reference, at their published sizes
on the same 320 x 180 input. What others print is beside the network in full precision; their parameters have the
biases, as those with everything counted do here.
"""


def page(rows: Sequence[Row]) -> str:
    """Return the whole page in Markdown: the text of ``cost_page.md`` and a table for each network."""
    sections = [f"### {title}\n\n{layout.remark}\n\n{table(title, rows)}\n" for title, layout in LAYOUTS.items()]
    introduction = resources.files("bbcu.model").joinpath("cost_page.md").read_text(encoding="utf-8")
    others = f"{OTHER_NETWORKS}\n{other_table(other_rows())}\n"
    return "\n".join([introduction, *sections, others])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print ``docs/cost.md``."""
    description = "Print the cost of every method next to the paper's figures, in Markdown."
    argparse.ArgumentParser(prog="python -m bbcu.model.cost", description=description).parse_args(arguments)
    print(page(rows()), end="")


if __name__ == "__main__":
    main()
