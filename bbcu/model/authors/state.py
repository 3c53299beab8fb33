"""The state of other authors around a module of this package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """How a state of the authors' becomes a module of this package.

    ``build`` takes the state and the constants, and returns the module without values; ``names`` takes the same and
    returns the authors' name for each tensor of that module's state. Shapes may differ where the numbers do not.
    ``constants`` are the names of the constants that it takes.
    """

    build: Callable[[State, Mapping[str, Any]], nn.Module]
    names: Callable[[State, Mapping[str, Any]], Mapping[str, str]]
    constants: tuple[str, ...] = ()


class AuthorsModule(nn.Module):
    """A module of this package behind the state of its authors.

    ``state`` has every tensor under the authors' name and in their shape: parameters, which have gradients after a
    backward pass, and buffers. Names with dots are those of nested modules, so ``state_dict()`` has the same keys.
    """

    def __init__(self, module: nn.Module, names: Mapping[str, str], state: State) -> None:
        super().__init__()
        # Not a submodule: its own parameters take no part in the forward pass.
        self.__dict__["_computes"] = module
        self.names = dict(names)
        buffers = {names[name] for name, _ in module.named_buffers() if name in names}
        for name, value in state.items():
            parent, _, last = name.rpartition(".")
            holder = self._nested(parent)
            tensor = value.detach().clone()
            if name in buffers or not tensor.is_floating_point():
                holder.register_buffer(last, tensor)
            else:
                holder.register_parameter(last, nn.Parameter(tensor))

    def _nested(self, path: str) -> nn.Module:
        holder: nn.Module = self
        for part in filter(None, path.split(".")):
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        return holder

    @property
    def state(self) -> dict[str, Tensor]:
        """Every tensor of the authors' state by their name: parameters and buffers."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    @property
    def module(self) -> nn.Module:
        """The module of this package with the present values: to evaluate, pack or count."""
        module = self._inner()
        with torch.no_grad():
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, value in self._substitutes(module).items():
                tensors[name].copy_(value)
        return module

    def _inner(self) -> nn.Module:
        module: nn.Module = self.__dict__["_computes"]
        return module.train(self.training)

    def _substitutes(self, module: nn.Module) -> dict[str, Tensor]:
        shapes = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        state = self.state
        return {ours: state[theirs].reshape(shapes[ours].shape) for ours, theirs in self.names.items()}

    def forward(self, x: Tensor) -> Tensor:
        module = self._inner()
        module.to(dtype=x.dtype, device=x.device)
        output: Tensor = functional_call(module, self._substitutes(module), (x,))
        return output
