"""Count the operations and parameters of a network: as the paper does, and with everything counted.

As the paper counts: the multiply-adds of the convolutions in one forward pass on a 320 x 180 input, and their weights;
a binary multiply-add counts 1/64, a binary weight 1/32. Nothing else counts. Source: section 4.1 of the BBCU paper; the
tests compare with every figure that it prints.

With everything counted: also the :mod:`bbcu.model.operations` outside convolutions. Parameters are then everything in a
checkpoint, without a BatchNorm's statistics, and a scale for each filter of a binary convolution that has one.

``python -m bbcu.model.cost > docs/cost.md`` writes a page with both counts of all methods.
"""

import argparse
import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.model.operations import BETWEEN, OperationCounter, has_scale
from bbcu.model.published import EXCEPTIONS, LAYOUTS, published_costs
from bbcu.model.units import BinaryUnit

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
    Only convolutions that are modules count, and a subclass of BinaryUnit counts as the unit of its spec plus its
    ``own_operations``. Raises ConfigError with ``everything`` if the operations of a function or of a subclass are not
    known.
    """
    probe = copy.deepcopy(network).to("meta").eval()
    ops: defaultdict[str, float] = defaultdict(float)
    binary: defaultdict[str, float] = defaultdict(float)
    _count_convolutions(probe, ops, binary)
    colours = getattr(getattr(network, "spec", None), "colours", COLOURS)
    x = torch.empty(1, colours, height, width, device="meta")
    with torch.no_grad():
        if everything:
            with OperationCounter(probe, ops):
                probe(x)
        else:
            probe(x)
    params = _all_params(probe) if everything else _convolution_weights(probe)
    names = [name for name, _ in probe.named_children()] + [BETWEEN]
    parts = {name: Cost(ops[name], params[name], binary[name]) for name in names}
    return NetworkCost({name: cost for name, cost in parts.items() if cost.ops or cost.params})


def _convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d | BinaryUnit]]:
    """Return every convolution with the name of its part."""
    return [
        (name.partition(".")[0], module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | BinaryUnit)
    ]


def _count_convolutions(network: nn.Module, ops: defaultdict[str, float], binary: defaultdict[str, float]) -> None:
    """Make every convolution add to ``ops`` of its part when it is called, and a binary one to ``binary`` too."""

    def adding_to(part: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | BinaryUnit)
            macs = module.weight.numel() * output.shape[-2] * output.shape[-1]
            is_binary = isinstance(module, BinaryUnit)
            ops[part] += macs * (OPS_PER_BINARY_OP if is_binary else 1)
            binary[part] += macs * is_binary

        return add

    for part, module in _convolutions(network):
        module.register_forward_hook(adding_to(part))


def _convolution_weights(network: nn.Module) -> defaultdict[str, float]:
    """Count the weights of each part's convolutions."""
    params: defaultdict[str, float] = defaultdict(float)
    for part, module in _convolutions(network):
        params[part] += module.weight.numel() * (PARAMS_PER_BINARY_WEIGHT if isinstance(module, BinaryUnit) else 1)
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
            params[part] += value.numel() * (PARAMS_PER_BINARY_WEIGHT if binary else 1)
        if isinstance(module, BinaryUnit) and has_scale(module):
            params[part] += module.out_channels
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
            paper, everything = count(network).total, count(network, everything=True).total
            remark = "; ".join(filter(None, [method.remark, EXCEPTIONS.get((title, name))]))
            found.append(Row(title, name, paper, everything, remark))
    return tuple(found)


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


def page(rows: Sequence[Row]) -> str:
    """Return the whole page in Markdown: the text of ``cost_page.md`` and a table for each network."""
    sections = [f"### {title}\n\n{layout.remark}\n\n{table(title, rows)}\n" for title, layout in LAYOUTS.items()]
    introduction = resources.files("bbcu.model").joinpath("cost_page.md").read_text(encoding="utf-8")
    return "\n".join([introduction, *sections])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print ``docs/cost.md``."""
    description = "Print the cost of every method next to the paper's figures, in Markdown."
    argparse.ArgumentParser(prog="python -m bbcu.model.cost", description=description).parse_args(arguments)
    print(page(rows()), end="")


if __name__ == "__main__":
    main()
