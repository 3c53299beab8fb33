"""The state of other authors around a module of this package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
    ``constants`` are the names of the constants that it takes. ``unused`` are patterns, as of ``fnmatch``, of tensors
    that a state may hold and that take no part in the forward pass.
    """

    build: Callable[[State, Mapping[str, Any]], nn.Module]
    names: Callable[[State, Mapping[str, Any]], Mapping[str, str]]
    constants: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class AuthorsModule(nn.Module):
    """A module of this package behind the state of its authors.

    ``state`` has every tensor under the authors' name and in their shape: parameters, which have gradients after a
    backward pass, and buffers. Names with dots are those of nested modules, so ``state_dict()`` has the same keys.
    It computes in the type of its input, and the state keeps its own.
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
            tensors = tensors_of(module)
            for ours, theirs in self.names.items():
                tensors[ours].copy_(self.state[theirs].reshape(tensors[ours].shape))
        return module

    def _inner(self) -> nn.Module:
        module: nn.Module = self.__dict__["_computes"]
        return module.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        module, state = self._inner(), self.state
        module.to(dtype=x.dtype, device=x.device)
        ours = tensors_of(module)
        used = {name: state[theirs].to(x.dtype).reshape(ours[name].shape) for name, theirs in self.names.items()}
        output: Tensor = functional_call(module, used, (x,))
        with torch.no_grad():
            for name, _ in module.named_buffers():
                # A BatchNorm changes its statistics in place; in another type than the state's, those of a copy.
                if name in used and state[self.names[name]].dtype != x.dtype:
                    state[self.names[name]].copy_(used[name].reshape(state[self.names[name]].shape))
        return output


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, those that a checkpoint leaves out too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def differences(kind: str, entry: Kind, module: nn.Module, names: Mapping[str, str], state: State) -> str | None:
    """Return in one line what of a state does not fit the module that is built for it, or None."""
    tensors = tensors_of(module)
    for ours, theirs in names.items():
        if theirs not in state:
            return f"{kind}: the state has no {theirs}"
        if state[theirs].numel() != tensors[ours].numel():
            found, wanted = tuple(state[theirs].shape), tuple(tensors[ours].shape)
            return f"{kind}: {theirs} has the shape {found}, which does not fit {wanted}"
    unused = (*entry.unused, "*num_batches_tracked")
    for name in sorted(state.keys() - set(names.values())):
        if not any(fnmatchcase(name, pattern) for pattern in unused):
            return f"{kind}: the state has {name}, which this kind does not have"
    return None
