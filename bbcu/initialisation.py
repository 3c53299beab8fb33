"""Initial values that depend on the seed and a parameter's name alone, so that two networks share what they can.

Cells of one seed are compared in pairs; a parameter that both have must start at the same value in both, whatever other
parameters stand before it. So each is drawn from a generator of its own.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Initialiser = Callable[[Tensor, torch.Generator], None]


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator that depends on ``seed`` and ``name`` and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def uniform(weight: Tensor, generator: torch.Generator) -> None:
    """Uniform within plus or minus one over the root of the fan-in: what torch gives a convolution."""
    bound = 1 / math.sqrt(fan_in(weight))
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)


def small_normal(weight: Tensor, generator: torch.Generator) -> None:
    """A tenth of He's normal (variance 2 / fan-in): what the released networks give all that is not body."""
    with torch.no_grad():
        weight.normal_(0, 0.1 * math.sqrt(2 / fan_in(weight)), generator=generator)


def initialise(network: nn.Module, seed: int) -> None:
    """Draw every weight of ``network`` whose module names an ``initial_weight``; the rest keeps its constant."""
    for prefix, module in network.named_modules():
        initial: Initialiser | None = getattr(module, "initial_weight", None)
        if initial is not None:
            assert isinstance(module.weight, Tensor)
            initial(module.weight, generator_for(seed, f"{prefix}.weight"))
