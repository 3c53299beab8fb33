"""Initial values that depend on the seed and a parameter's name alone, so that two networks share what they can.

Cells of one seed are compared in pairs; a parameter that both have must start at the same value in both, whatever other
parameters stand before it. So each is drawn from a generator of its own.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Initialiser = Callable[[Tensor, Tensor, torch.Generator], None]
"""Fills its first argument, given the weight that it belongs to (for the fan-in) and a generator."""


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator that depends on ``seed`` and ``name`` and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def uniform(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Uniform within plus or minus one over the root of the fan-in: torch's own start of a convolution and its bias."""
    bound = 1 / math.sqrt(fan_in(weight))
    with torch.no_grad():
        parameter.uniform_(-bound, bound, generator=generator)


def small_normal(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """A tenth of He's normal (variance 2 / fan-in): what the released networks give all that is not body."""
    with torch.no_grad():
        parameter.normal_(0, 0.1 * math.sqrt(2 / fan_in(weight)), generator=generator)


def xavier(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    """Glorot's uniform, within the root of 6 over the sum of fan-in and fan-out."""
    fan_out = fan_in(weight) // weight.shape[1] * weight.shape[0]
    bound = math.sqrt(6 / (fan_in(weight) + fan_out))
    with torch.no_grad():
        parameter.uniform_(-bound, bound, generator=generator)


def zeros(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        parameter.zero_()


def initialise(network: nn.Module, seed: int) -> None:
    """Draw each weight and bias whose module names an initialiser for it; the rest keep their constants."""
    for prefix, module in network.named_modules():
        for kind in ("weight", "bias"):
            initial: Initialiser | None = getattr(module, f"initial_{kind}", None)
            parameter = getattr(module, kind, None)
            if initial is not None and parameter is not None:
                assert isinstance(module.weight, Tensor)
                initial(parameter, module.weight, generator_for(seed, f"{prefix}.{kind}"))
