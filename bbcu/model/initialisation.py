"""Initial values that depend only on the seed and the parameter's name.

Cells with the same seed are compared in pairs, so a parameter that both networks have must start at the same value in
both, whatever other parameters they have. Each parameter is therefore drawn from its own generator.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Initialiser = Callable[[Tensor, Tensor, torch.Generator], None]
"""Fills its first argument in place, given the weight that it belongs to (for the fan-in) and a generator."""


def generator_for(seed: int, name: str) -> torch.Generator:
    """Return a generator that depends only on ``seed`` and ``name``."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def fan_in(weight: Tensor) -> int:
    return weight[0].numel()


@torch.no_grad()
def uniform(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Fill from U(-b, b) with b = 1 / sqrt(fan-in): torch's default for a convolution's weight and bias."""
    bound = 1 / math.sqrt(fan_in(weight))
    parameter.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def small_normal(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Fill from a tenth of He's normal (variance 2 / fan-in), as the released networks do outside the body."""
    parameter.normal_(0, 0.1 * math.sqrt(2 / fan_in(weight)), generator=generator)


@torch.no_grad()
def xavier(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Fill from Glorot's uniform, U(-b, b) with b = sqrt(6 / (fan-in + fan-out))."""
    fan_out = fan_in(weight) // weight.shape[1] * weight.shape[0]
    bound = math.sqrt(6 / (fan_in(weight) + fan_out))
    parameter.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def zeros(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    parameter.zero_()


INITIALISERS: dict[str, Initialiser] = {"torch": uniform, "xavier": xavier}
"""What ``network.initial`` selects for the latent weights of a binary body."""


def initialise(network: nn.Module, seed: int) -> None:
    """Fill each parameter ``NAME`` whose module has an initialiser ``initial_NAME``; leave the others."""
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            initial: Initialiser | None = getattr(module, f"initial_{name}", None)
            if initial is not None:
                weight = getattr(module, "weight", parameter)
                initial(parameter, weight, generator_for(seed, f"{prefix}.{name}"))
