"""References for a training step: the released arithmetic, the full-precision twin, and a matrix product."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.model.activations import RPReLU
from bbcu.model.networks import assemble
from bbcu.model.parts import NetworkSpec, binary_units
from bbcu.model.units import BinaryUnit
from bbcu.training.acceleration import has_bf16


class WrittenOut(nn.Module):
    """A BBCU unit with a separate tensor for every operation, as the released code trains it in fp32.

    The surrogate's slope comes from a second path, a piecewise quadratic that is added and subtracted again.
    """

    def __init__(self, unit: BinaryUnit) -> None:
        super().__init__()
        assert isinstance(unit.threshold, nn.Parameter)
        assert isinstance(unit.activation, RPReLU)
        self.threshold, self.weight, self.activation = unit.threshold, unit.weight, unit.activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        shifted = x + self.threshold.expand_as(x)
        left, right = shifted * shifted + 2 * shifted, 2 * shifted - shifted * shifted
        under, negative, low = ((shifted < bound).float() for bound in (-1.0, 0.0, 1.0))
        smooth = negative * (left * (1 - under) - under) + (1 - negative) * right
        smooth = low * smooth + (1 - low)
        signs = shifted.sign().detach() + (smooth - smooth.detach())
        cut = self.weight.clamp(-1, 1)
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = (scale * self.weight.sign()).detach() + (cut - cut.detach())
        branch: Tensor = self.activation(F.conv2d(signs, weight, padding=1))
        return branch if residual is None else branch + residual


class Twin(nn.Module):
    """The full-precision unit with the same multiply-adds: a convolution and a ReLU."""

    def __init__(self, unit: BinaryUnit) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(unit.in_channels, unit.out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return F.relu(self.convolution(x))


def rebuilt(network: str, spec: NetworkSpec, replacement: type[WrittenOut] | type[Twin]) -> nn.Module:
    """Return our network with each of its units replaced."""
    built = assemble(network, spec)
    for unit in binary_units(built):
        unit.initial_weight(unit.weight, unit.weight, torch.Generator().manual_seed(0))
    for parent in list(built.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BinaryUnit):
                setattr(parent, name, replacement(child))
    return built


def multiply_adds(network: nn.Module, x: Tensor) -> int:
    """Return the multiply-adds of the convolutions in one forward pass of a twin over ``x``."""
    counted: list[int] = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counted.append(output.numel() * module.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return sum(counted)


def matrix_product_seconds(operations: float, device: torch.device, size: int = 2048) -> float:
    """Return the seconds of ``operations`` multiply-adds at the rate of a large matrix product, in bf16 if possible."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if has_bf16(device) else torch.float32)
    repeats = 10
    for _ in range(2):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats * operations / size**3
