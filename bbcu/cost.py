"""What a network costs, counted as the paper counts.

Multiply-adds of one forward pass on a 320 x 180 input, and weights; a binary multiply-add counts 1/64 of one, a binary
weight 1/32 of one. Biases, BatchNorm and activations count nothing. Source: section 4.1 of the BBCU paper; checked
against every published figure in the tests.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bbcu.units import BinaryUnit

OPS_PER_BINARY_OP = 1 / 64
PARAMS_PER_BINARY_WEIGHT = 1 / 32

HEIGHT, WIDTH = 180, 320
"""Size of the input that the paper's figures are for, in pixels."""


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


@dataclass(frozen=True)
class NetworkCost:
    """The cost of each part of a network (``head``, ``body``, ``up``, ``tail``), in their order."""

    parts: dict[str, Cost]

    @property
    def total(self) -> Cost:
        return sum(self.parts.values(), Cost(0, 0))


def count(network: nn.Module, height: int = HEIGHT, width: int = WIDTH, colours: int = 3) -> NetworkCost:
    """Count ``network`` on one input of ``height`` x ``width`` pixels; shapes are followed, nothing is computed."""
    probe = copy.deepcopy(network).to("meta").eval()
    parts: dict[str, Cost] = {name: Cost(0, 0) for name, _ in probe.named_children()}
    hooks = [
        module.register_forward_hook(_adding_to(parts, name.partition(".")[0]))
        for name, module in probe.named_modules()
        if isinstance(module, nn.Conv2d | BinaryUnit)
    ]
    with torch.no_grad():
        probe(torch.empty(1, colours, height, width, device="meta"))
    for hook in hooks:
        hook.remove()
    return NetworkCost(parts)


def _adding_to(parts: dict[str, Cost], part: str):  # type: ignore[no-untyped-def]
    def add(module: nn.Conv2d | BinaryUnit, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weights = module.weight.numel()
        binary = isinstance(module, BinaryUnit)
        parts[part] += Cost(
            ops=weights * output.shape[-2] * output.shape[-1] * (OPS_PER_BINARY_OP if binary else 1),
            params=weights * (PARAMS_PER_BINARY_WEIGHT if binary else 1),
        )

    return add
