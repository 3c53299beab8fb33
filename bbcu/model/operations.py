"""The operations of a forward pass besides its multiply-adds: what ``count(everything=True)`` adds.

An operation is one addition, multiplication or comparison of two numbers. Counted is inference, in which

  - a sign is one comparison; a threshold and a BatchNorm right before it only change what it compares with;
  - scale, bias and BatchNorm right after a binary convolution are one multiply-add for each value of its output;
  - a BatchNorm right after a full-precision convolution is folded into the convolution's weights and bias.

Nothing else is folded.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bbcu.errors import ConfigError
from bbcu.model.binarisers import Sign
from bbcu.model.units import BinaryUnit

BETWEEN = "between"
"""Name of the operations outside a network's parts: alignment, the skip connection, the head's activation."""

OPERATIONS: Mapping[str, int] = {
    "add": 1,
    "sub": 1,
    "mul": 1,
    "div": 1,
    "relu": 1,
    "leaky_relu": 2,
    "prelu": 2,
    "hardtanh": 2,
    "interpolate nearest": 0,
    "interpolate bilinear": 4,
}
"""Operations of a function for each value of its output. A ReLU is a comparison, a hardtanh two, and the leaky ReLU and
the PReLU a comparison and a multiplication; RPReLU, a PReLU between two shifts, is then 4. Interpolation is a
multiply-add for each neighbour. A multiplication by the number 1, alignment that is off, is none."""

FREE = frozenset(
    {"cat", "clone", "contiguous", "detach", "expand", "flatten", "get", "getitem", "pad", "permute", "repeat"}
    | {"pixel_shuffle", "pixel_unshuffle", "repeat_interleave", "reshape", "squeeze", "stack", "transpose"}
    | {"unsqueeze", "view"}
)
"""Functions that move values and compute none."""


def has_scale(unit: BinaryUnit) -> bool:
    """Return whether the unit multiplies by a scale at inference: unless its weights are plain signs."""
    return not isinstance(unit.binariser, Sign)


def unit_operations(unit: BinaryUnit, x: Tensor, output: Tensor, has_residual: bool) -> int:
    """Count a unit's operations besides its multiply-adds, its activation and a BatchNorm at its end.

    For each value of the input ``x`` a comparison, and with a bit memory two additions: the weighted sum is added (its
    weight makes that a multiply-add), and the sign is added to the sum. For each value of ``output`` a multiply-add if
    the convolution has a scale, a bias or a BatchNorm, and an addition if there is a residual. A subclass's
    ``own_operations`` come on top; raises ConfigError if it does not define that method.
    """
    kind = type(unit)
    if kind is not BinaryUnit and kind.own_operations is BinaryUnit.own_operations:
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise ConfigError(f"cost: {name} must define own_operations, the operations that it adds to a binary unit")
    has_affine = has_scale(unit) or unit.bias is not None or isinstance(unit.bn_post, nn.BatchNorm2d)
    per_input, per_output = 1 + 2 * (unit.memory is not None), has_affine + has_residual
    return x.numel() * per_input + output.numel() * per_output + unit.own_operations(x, output)


class OperationCounter(TorchFunctionMode):
    """While active, add the operations of every torch function to ``ops``, under the part of the network that calls it.

    A unit's functions are not counted one by one, because its code spells out what inference folds; its
    :func:`unit_operations` are added instead, and the functions of its activation and of a BatchNorm at its end.
    """

    def __init__(self, network: nn.Module, ops: defaultdict[str, float]) -> None:
        super().__init__()
        self._ops, self._part = ops, BETWEEN
        self._last_convolved: Tensor | None = None
        self._counting = [True]  # a stack: the last entry says whether functions are counted one by one
        for name, child in network.named_children():
            child.register_forward_pre_hook(self._enter_part(name))
            child.register_forward_hook(self._enter_part(BETWEEN))
        for module in network.modules():
            if isinstance(module, BinaryUnit):
                self._count_inside(module, False)
                self._count_inside(module.activation, True)
                self._count_inside(module.bn_out, True)
                # Before the hook that leaves the part: if the tail is a unit, both are on the same module.
                module.register_forward_hook(self._add_unit, with_kwargs=True, prepend=True)

    def _enter_part(self, part: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._part = part

        return enter

    def _count_inside(self, module: nn.Module, counts: bool) -> None:
        def enter(*_: Any) -> None:
            self._counting.append(counts)

        def leave(*_: Any) -> None:
            self._counting.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _add_unit(self, unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        assert isinstance(unit, BinaryUnit)
        residual = args[1] if len(args) > 1 else kwargs.get("residual")
        self._ops[self._part] += unit_operations(unit, args[0], output, residual is not None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._counting[-1] and isinstance(result, Tensor):
            name = func.__name__.strip("_")
            self._ops[self._part] += self._per_value(name, args, kwargs) * result.numel()
            if name == "conv2d":
                self._last_convolved = result
        return result

    def _per_value(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the operations of the function ``name`` for each value of its output."""
        if name in FREE:
            return 0
        if name == "conv2d":
            return int((args[2] if len(args) > 2 else kwargs.get("bias")) is not None)
        if name == "batch_norm":
            return int(args[0] is not self._last_convolved)
        if name == "interpolate":
            name = f"interpolate {args[3] if len(args) > 3 else kwargs.get('mode', 'nearest')}"
        if name in ("mul", "div") and any(isinstance(factor, int | float) and factor == 1 for factor in args):
            return 0
        if name not in OPERATIONS:
            raise ConfigError(
                f"cost: the operations of {name} are not known; known are those of {', '.join(OPERATIONS)}"
            )
        return OPERATIONS[name]
