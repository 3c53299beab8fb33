"""Activations: the gradients that the compiler gets are those of automatic differentiation, at zero too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bbcu.model.activations import Leaky, LeakyReLU, Maxout, TwoSlopes
from tests.harness.builders import drawn


def maxout() -> Maxout:
    """One whose slopes differ from channel to channel."""
    activation = Maxout(4).double()
    with torch.no_grad():
        activation.positive += drawn(1, 4, 1, 1, seed=1) / 8
        activation.negative += drawn(1, 4, 1, 1, seed=2) / 8
    return activation


def two_slopes(activation: Maxout) -> Callable[[Tensor], Tensor]:
    return lambda x: TwoSlopes.apply(x, activation.positive, activation.negative)  # type: ignore


def leaky(activation: LeakyReLU) -> Callable[[Tensor], Tensor]:
    return lambda x: Leaky.apply(x, activation.SLOPE)  # type: ignore


@pytest.mark.parametrize(
    ("activation", "compiled"), [(maxout(), two_slopes), (LeakyReLU(), leaky)], ids=["maxout", "leaky"]
)
def test_the_function_for_the_compiler_has_the_same_values_and_gradients(
    activation: nn.Module, compiled: Callable[[nn.Module], Callable[[Tensor], Tensor]]
) -> None:
    x = (2 * drawn(2, 4, 5, 6)).round().double().requires_grad_()
    outgoing = drawn(2, 4, 5, 6, seed=3).double()
    wanted = [x, *activation.parameters()]
    assert (x == 0).any()
    y, other = activation(x), compiled(activation)(x)
    torch.testing.assert_close(other, y)
    found = torch.autograd.grad(other, wanted, outgoing)
    torch.testing.assert_close(found, torch.autograd.grad(y, wanted, outgoing))


def test_a_maxout_with_a_slope_of_one_is_a_prelu_at_zero_too() -> None:
    activation, prelu = Maxout(4), nn.PReLU(4)
    x = (2 * drawn(2, 4, 5, 6)).round().requires_grad_()
    y, expected = activation(x), prelu(x)
    torch.testing.assert_close(y, expected)
    gradients = (torch.autograd.grad(output.sum(), x)[0] for output in (y, expected))
    torch.testing.assert_close(*gradients)
