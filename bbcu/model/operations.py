"""The operations of a forward pass: products of two tensors, and what ``count(everything=True)`` adds to multiply-adds.

An operation is one addition, multiplication, division, comparison, magnitude, root or exponential; a multiply-add is
one too. Counted is inference, in which

  - a sign is one comparison; a threshold and a BatchNorm right before it only change what it compares with;
  - scale, bias and BatchNorm right after a binary convolution are one multiply-add for each value of its output;
  - a BatchNorm right after a full-precision convolution is folded into the convolution's weights and bias.

Nothing else is folded, except where :func:`unit_operations` says so.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bbcu.errors import ConfigError
from bbcu.model.activations import LeakyReLU, Maxout
from bbcu.model.binarisers import AdaBin, Binariser, LayerScaledPower, RectifiedClamp, SecondOrder, Sign
from bbcu.model.rescales import Both, Box, Channel, Doubled, Rescale, Spatial, Squeeze, Statistics
from bbcu.model.thresholds import Adaptive, Dynamic, Elastic
from bbcu.model.units import BinaryUnit

BETWEEN = "between"
"""Name of the operations outside a network's parts: alignment, the skip connection, the head's activation."""

SIGMOID = 4
"""Operations of a sigmoid: a sign change, an exponential, an addition and a division."""

OPERATIONS: Mapping[str, int] = {
    "add": 1,
    "sub": 1,
    "mul": 1,
    "div": 1,
    "neg": 1,
    "abs": 1,
    "square": 1,
    "sqrt": 1,
    "exp": 1,
    "maximum": 1,
    "minimum": 1,
    "gt": 1,
    "ge": 1,
    "lt": 1,
    "le": 1,
    "relu": 1,
    "clamp_min": 1,
    "clamp_max": 1,
    "clamp": 2,
    "leaky_relu": 2,
    "prelu": 2,
    "hardtanh": 2,
    "sigmoid": SIGMOID,
    "silu": SIGMOID + 1,
    "tanh": SIGMOID + 1,
    "softmax": 5,
    "interpolate nearest": 0,
    "interpolate bilinear": 4,
}
"""Operations of a function for each value of its output. A ReLU is a comparison, a hardtanh two, and the leaky ReLU and
the PReLU a comparison and a multiplication; RPReLU, a PReLU between two shifts, is then 4. A tanh is a sigmoid of twice
the value and a multiply-add. A softmax is two passes: the largest value, then a subtraction, an exponential, an
addition and a division. Interpolation is a multiply-add for each neighbour. A multiplication by the number 1, alignment
that is off, is none."""

REDUCTIONS: Mapping[str, tuple[int, int]] = {
    "sum": (1, 0),
    "mean": (1, 1),
    "adaptive_avg_pool2d": (1, 1),
    "var": (2, 3),
    "std": (2, 4),
}
"""Operations of a function for each value of its input, and for each value of its output.

A mean is an addition, and a division at the end. A variance is the sums of the values and of their squares, a
multiply-add; then a square, a multiply-add and a division make it of the two. A deviation is its root."""

LAYER_NORM = (3, 5)
"""Operations of a LayerNorm for each value, without its affine map, and for each group that is normalised: both sums
and a multiply-add, and what a deviation is at the end, with an epsilon."""

FREE = frozenset(
    {"arange", "cat", "chunk", "clone", "contiguous", "detach", "empty", "empty_like", "expand", "flatten", "flip"}
    | {
        "float",
        "full_like",
        "get",
        "getitem",
        "linspace",
        "movedim",
        "narrow",
        "new_zeros",
        "ones",
        "ones_like",
        "pad",
        "permute",
        "pixel_shuffle",
    }
    | {"pixel_unshuffle", "repeat", "repeat_interleave", "reshape", "roll", "select", "split", "squeeze", "stack", "to"}
    | {"transpose", "type_as", "unflatten", "unsqueeze", "view", "where", "zeros", "zeros_like"}
)
"""Functions that make, move or choose values, and compute none."""

CONVOLUTIONS = ("conv1d", "conv2d", "conv_transpose2d", "linear")
"""Functions whose multiply-adds count with the module that calls them; what is left is an addition for a bias."""

SAME: Mapping[str, str] = {
    **{name: "add" for name in ("iadd", "radd")},
    **{name: "sub" for name in ("isub", "rsub", "subtract")},
    **{name: "mul" for name in ("imul", "rmul", "multiply")},
    **{name: "div" for name in ("truediv", "itruediv", "rtruediv", "idiv", "rdiv", "true_divide", "divide")},
}
"""Other names of the same function: in place, as in ``x += y``, and reflected, as in ``1 - x``."""

PRODUCTS = ("matmul", "mm", "bmm", "scaled_dot_product_attention")
"""Functions that multiply two tensors, as in attention; their multiply-adds count by both readings."""

UNKNOWN_PRODUCTS = frozenset({"addbmm", "addmm", "baddbmm", "bilinear", "einsum", "multi_head_attention_forward"})
"""Products that are refused by both readings, since leaving them out would be a wrong count."""


# --- units ------------------------------------------------------------------------------------------------------------


def scales(binariser: Binariser, filters: int) -> int:
    """Return how many numbers beside its bits and its state a binariser leaves for inference.

    One scale for each filter, except: none if the weights are plain signs or the scales are parameters already; one for
    the whole layer; two for each filter if there are two scales, or a scale and an offset.
    """
    if isinstance(binariser, Sign | RectifiedClamp):
        return 0
    if isinstance(binariser, LayerScaledPower):
        return 1
    return filters * (2 if isinstance(binariser, SecondOrder | AdaBin) else 1)


def unit_operations(unit: BinaryUnit, x: Tensor, output: Tensor, has_residual: bool) -> int:
    """Count a unit's operations besides its multiply-adds, its activation, and a BatchNorm after that.

    For each value of the input ``x`` a comparison, and with a bit memory two additions: the weighted sum is added (its
    weight makes that a multiply-add), and the sign is added to the sum. For each value of ``output`` the multiply-adds
    of :func:`affine_maps`, and one operation if there is a residual: an addition, or a multiply-add if it is scaled.
    Thresholds, weights and rescale add their own. A subclass's ``own_operations`` come on top; raises ConfigError if it
    does not define that method.
    """
    kind = type(unit)
    if kind is not BinaryUnit and kind.own_operations is BinaryUnit.own_operations:
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise ConfigError(f"cost: {name} must define own_operations, the operations that it adds to a binary unit")
    per_input, per_output = 1 + 2 * (unit.memory is not None), affine_maps(unit) + has_residual
    total = x.numel() * per_input + output.numel() * per_output
    total += weight_operations(unit, x, output) + threshold_operations(unit, x, output)
    return total + rescale_operations(unit, x, output) + unit.own_operations(x, output)


HOMOGENEOUS = (nn.ReLU, nn.PReLU, nn.LeakyReLU, LeakyReLU, Maxout)
"""Activations that a positive factor passes through unchanged."""


def affine_maps(unit: BinaryUnit) -> int:
    """Return the multiply-adds between a unit's sums of bits and its activation, for each value of the output.

    A bias, and the second value of ``threshold=adaptive``, which adds a constant to each filter's sums, are a shift
    before the factors of a rescale; a BatchNorm is one after them. Without a rescale both are one map, and a scale is
    part of any map. If there is none, a scale is a multiplication; but a BatchNorm behind an activation that a positive
    factor passes through takes it over. The width of ``threshold=elastic`` is a scale. The slope of
    ``threshold=affine`` is none: it only changes what the sign compares with.
    """
    has_activation = unit.act != "none"
    norms_branch = isinstance(unit.bn_branch, nn.BatchNorm2d)
    shifts_before = unit.bias is not None or isinstance(unit.threshold, Adaptive)
    shifts_after = isinstance(unit.bn_post, nn.BatchNorm2d) or (norms_branch and not has_activation)
    maps = shifts_before + shifts_after if unit.has_factors else int(shifts_before or shifts_after)
    has_scale = not isinstance(unit.binariser, Sign) or isinstance(unit.threshold, Elastic)
    passes = norms_branch and has_activation and isinstance(unit.activation, HOMOGENEOUS)
    return maps or int(has_scale and not passes)


def weight_operations(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """Count what a binariser adds to one binary convolution and a scale.

    ``srb`` adds the second convolution, times its scale: a multiply-add for each value of the output. ``adabin`` adds
    its offset times the sum of all signs under the kernel, a multiply-add too; that box sum is the same for all
    filters: an addition for each sign of the input, and one for each tap of the kernel at each pixel.
    """
    if isinstance(unit.binariser, SecondOrder):
        return output.numel()
    if isinstance(unit.binariser, AdaBin):
        taps = unit.kernel**2 * unit.groups * pixels(output)
        return x.numel() + taps + output.numel()
    return 0


def threshold_operations(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """Count what a threshold adds to the comparison: nothing, unless it is ``dynamic``.

    That one takes the mean of each channel, and its perceptron has biases and a ReLU; each picture then has its own
    number to compare with. With the channels' factors it also has their sigmoids, and a multiplication for each value
    of the output.
    """
    if not isinstance(unit.threshold, Dynamic):
        return 0
    hidden, outputs = unit.threshold.hidden.out_channels, unit.threshold.out.out_channels
    total = x.numel() + len(x) * (unit.in_channels + 2 * hidden + outputs)
    if unit.shares_perceptron:
        total += len(x) * unit.in_channels * SIGMOID + output.numel()
    return total


def rescale_operations(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """Count what the factors of a rescale take besides multiply-adds; the reasons are with each kind below.

    Each multiplies the result, one multiplication for each value of the output. The factor of a channel could be part
    of that picture's scale of the channel; it is not folded, as in the methods' own codes.
    """
    rescale = unit.rescale
    if rescale is None:
        return 0
    if type(rescale) not in RESCALE_PRICES:
        raise ConfigError(f"cost: the operations of the rescale {type(rescale).__name__} are not known")
    return RESCALE_PRICES[type(rescale)](unit, x, output) + output.numel()


def _spatial(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """A bias and a sigmoid for each pixel."""
    return pixels(output) * (1 + SIGMOID)


def _channel(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """A mean and a sigmoid for each channel of the input."""
    return x.numel() + len(x) * unit.in_channels * (1 + SIGMOID)


def _both(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """Both, and a second multiplication for each value of the output; twice each is a factor of 4 for each channel."""
    doubled = len(x) * unit.in_channels * isinstance(unit.rescale, Doubled)
    return _spatial(unit, x, output) + _channel(unit, x, output) + doubled + output.numel()


def _squeeze(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """A mean for each channel, the perceptron's ReLU, and a sigmoid for each channel of the output."""
    assert isinstance(unit.rescale, Squeeze)
    hidden = unit.rescale.down.out_channels
    return x.numel() + len(x) * (unit.in_channels + hidden + unit.out_channels * SIGMOID)


def _statistics(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """Four for each value of the input, and eleven for each channel.

    The four are its magnitude, and the sums of the values, the magnitudes and the squares. They are statistics of what
    the threshold returns, so a threshold or a BatchNorm before it, otherwise part of the comparison, is one more. At
    the end are two means, a variance (3), an epsilon, a root, and a sigmoid.
    """
    shifts = unit.threshold is not None or isinstance(unit.bn_pre, nn.BatchNorm2d)
    return x.numel() * (4 + shifts) + len(x) * unit.in_channels * (2 + 3 + 1 + 1 + SIGMOID)


def _box(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """A magnitude and an addition for each value of the input; the nine weights take over the number of channels."""
    return 2 * x.numel()


RESCALE_PRICES: Mapping[type[Rescale], Callable[[BinaryUnit, Tensor, Tensor], int]] = {
    Spatial: _spatial,
    Channel: _channel,
    Both: _both,
    Doubled: _both,
    Squeeze: _squeeze,
    Statistics: _statistics,
    Box: _box,
}
"""Operations of each rescale beside its multiply-adds and the last multiplication."""


def pixels(x: Tensor) -> int:
    """Return the number of pixels of (batch, channels, height, width), over the batch."""
    return x.numel() // x.shape[1]


# --- functions --------------------------------------------------------------------------------------------------------


def product(name: str, args: tuple[Any, ...], result: Tensor) -> int:
    """Return the multiply-adds of a product of two tensors; attention is two, with the scores between them."""
    if name == "scaled_dot_product_attention":
        query, value = args[0], args[2]
        return _scores(args, result) * int(query.shape[-1] + value.shape[-1])
    return int(result.numel() * args[0].shape[-1])


def _scores(args: tuple[Any, ...], result: Tensor) -> int:
    """Return the number of scores of scaled dot-product attention: one for each query and key."""
    key, value = args[1], args[2]
    return result.numel() // int(value.shape[-1]) * int(key.shape[-2])


class ProductCounter(TorchFunctionMode):
    """While active, add the multiply-adds of every product of two tensors to ``macs``, under the part that calls it.

    Raises ConfigError for a product whose multiply-adds are not known.
    """

    def __init__(self, network: nn.Module, macs: defaultdict[str, float]) -> None:
        super().__init__()
        self._macs, self._part = macs, BETWEEN
        for name, child in network.named_children():
            child.register_forward_pre_hook(self._enter_part(name))
            child.register_forward_hook(self._enter_part(BETWEEN))

    def _enter_part(self, part: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._part = part

        return enter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        if name in UNKNOWN_PRODUCTS:
            raise ConfigError(f"cost: the multiply-adds of {name} are not known; known are {', '.join(PRODUCTS)}")
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if name in PRODUCTS:
                self._macs[self._part] += product(name, args, result)
            self.count(name, args, kwargs, result)
        return result

    def count(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Add the other operations of a function, of which as the paper counts there are none."""


class OperationCounter(ProductCounter):
    """While active, also add the operations of every torch function to ``ops``, under the part that calls it.

    A unit's functions are not counted one by one, because its code spells out what inference folds; its
    :func:`unit_operations` are added instead, and the functions of its activation and of a BatchNorm after that. A
    maxout, whose code has a multiplication for each side, is a comparison and a multiplication.
    """

    MAXOUT = OPERATIONS["prelu"]

    def __init__(self, network: nn.Module, macs: defaultdict[str, float], ops: defaultdict[str, float]) -> None:
        super().__init__(network, macs)
        self._ops = ops
        self._last_convolved: Tensor | None = None
        self._counting = [True]  # a stack: the last entry says whether functions are counted one by one
        for module in network.modules():
            if isinstance(module, Maxout):
                self._count_inside(module, False)
                module.register_forward_hook(self._add_maxout)
            if isinstance(module, BinaryUnit):
                self._count_inside(module, False)
                if not isinstance(module.activation, Maxout):
                    self._count_inside(module.activation, True)
                self._count_inside(module.bn_branch, module.act != "none")
                self._count_inside(module.bn_out, True)
                # Before the hook that leaves the part: if the tail is a unit, both are on the same module.
                module.register_forward_hook(self._add_unit, with_kwargs=True, prepend=True)

    def _count_inside(self, module: nn.Module, counts: bool) -> None:
        def enter(*_: Any) -> None:
            self._counting.append(counts)

        def leave(*_: Any) -> None:
            self._counting.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _add_maxout(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._ops[self._part] += self.MAXOUT * output.numel()

    def _add_unit(self, unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        assert isinstance(unit, BinaryUnit)
        residual = args[1] if len(args) > 1 else kwargs.get("residual")
        self._ops[self._part] += unit_operations(unit, args[0], output, residual is not None)

    def count(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        if self._counting[-1]:
            self._ops[self._part] += self._operations(name, args, kwargs, result)
            if name in CONVOLUTIONS:
                self._last_convolved = result

    def _operations(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> int:
        """Return the operations of one call of the function ``name``, without multiply-adds of weights."""
        if name in FREE:
            return 0
        if name == "scaled_dot_product_attention":
            # The scores are multiplied by a number, and a softmax is taken of them.
            return _scores(args, result) * (1 + OPERATIONS["softmax"])
        if name in PRODUCTS:
            return 0
        if name in REDUCTIONS:
            per_input, per_output = REDUCTIONS[name]
            return int(args[0].numel()) * per_input + result.numel() * per_output
        if name == "avg_pool2d":
            kernel = _argument(1, "kernel_size", args, kwargs)
            height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
            return result.numel() * int(height) * int(width)
        if name == "layer_norm":
            per_value, per_group = LAYER_NORM
            has_map = _argument(2, "weight", args, kwargs) is not None
            groups = result.numel() // result.shape[-len(_argument(1, "normalized_shape", args, kwargs)) :].numel()
            return result.numel() * (per_value + has_map) + groups * per_group
        return result.numel() * self._per_value(name, args, kwargs)

    def _per_value(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the operations of the function ``name`` for each value of its output."""
        if name in CONVOLUTIONS:
            return int(_argument(2, "bias", args, kwargs) is not None)
        if name == "batch_norm":
            return int(args[0] is not self._last_convolved)
        if name == "interpolate":
            name = f"interpolate {args[3] if len(args) > 3 else kwargs.get('mode', 'nearest')}"
        name = SAME.get(name, name)
        if name in ("mul", "div") and any(isinstance(factor, int | float) and factor == 1 for factor in args):
            return 0
        if name not in OPERATIONS:
            known = ", ".join([*OPERATIONS, *REDUCTIONS, *PRODUCTS, "avg_pool2d", "layer_norm"])
            raise ConfigError(f"cost: the operations of {name} are not known; known are those of {known}")
        return OPERATIONS[name]


def _argument(place: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return an argument that is given by its place or its name, None if it is not given."""
    return args[place] if len(args) > place else kwargs.get(name)
