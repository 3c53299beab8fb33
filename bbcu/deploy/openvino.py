"""The OpenVINO backend: the one kept library that convolves single bits on a CPU.

A network is translated by running its own ``forward`` on a :class:`Value`, which takes the place of a tensor: each of
torch's functions then writes OpenVINO's operation. Sums of signs are exact. The full-precision convolutions round
differently from torch's, so a value within rounding of a threshold may get the other sign.
"""

import copy
import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.deploy.backends import Runner
from bbcu.deploy.packed import BITS_PER_BYTE, DeployError, packed_units, unpacked
from bbcu.errors import first_line
from bbcu.model.thresholds import Elastic, Threshold

SIZES_KEPT = 8
"""The most sizes of inputs for which the compiled network is kept."""


def missing() -> str | None:
    """Return None if OpenVINO is installed, else how to install it."""
    installed = importlib.util.find_spec("openvino") is not None
    return None if installed else "OpenVINO is not installed: pip install 'bbcu[openvino]'"


@functools.cache
def library() -> ModuleType:
    """Import OpenVINO without its telemetry.

    OpenVINO reports each import to its makers unless the package ``openvino_telemetry``, which comes with it, cannot
    be imported; then it uses a stub of its own. So that package is blocked meanwhile.
    """
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("openvino.opset15")
        return importlib.import_module("openvino")
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]


# --- running ----------------------------------------------------------------------------------------------------------


def prepare(packed: nn.Module) -> Runner:
    """Return what runs ``packed`` in OpenVINO; it is compiled at the first input of each size.

    Raises DeployError for units that are not packed, and at the first input if something has no translation.
    """
    for name, reason in unpacked(packed).items():
        raise DeployError(f"OpenVINO runs packed units only, and {name} is not packed: {reason}")
    network, threads = translatable(packed), torch.get_num_threads()

    @functools.lru_cache(SIZES_KEPT)
    def compiled(shape: torch.Size) -> Any:
        return compile_for(network, shape, threads)

    def run(x: Tensor) -> Tensor:
        # The input is read where it is. The output is copied, since the next call overwrites it.
        outputs = compiled(x.shape)([x.detach().contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(outputs[0])

    return run


def compile_for(network: nn.Module, shape: torch.Size, threads: int) -> Any:
    """Compile for inputs of ``shape``, (batch, colours, height, width), in float32 and for the least latency."""
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # it would put processes that run side by side on the same cores
    }
    x = library().opset15.parameter(list(shape), library().Type.f32)
    try:
        model = library().Model([network(Value(x)).node], [x])
        keep_residuals(model)
        return library().Core().compile_model(model, "CPU", options)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise DeployError(
            f"backend openvino: {type(network).__name__} is not translated: {first_line(error)}"
        ) from error


def keep_residuals(model: Any) -> None:
    """Give each value that only a FakeQuantize reads a second reader, of one number.

    Otherwise OpenVINO 2026.4 fuses a residual's addition and the FakeQuantize after it into the binary convolution
    before them, which then writes its bits over the residual that it has yet to read.
    """
    ops = library().opset15
    for node in model.get_ops():
        value = node.input_value(0) if node.get_type_name() == "FakeQuantize" else None
        if value is not None and len(value.get_target_inputs()) == 1:
            corner = ops.slice(value, *(np.array([place] * 4) for place in (0, 1, 1)))
            model.add_results([ops.result(corner)])


# --- translation ------------------------------------------------------------------------------------------------------


class Value:
    """A value of OpenVINO's graph in place of a tensor of float32: torch's functions of it extend the graph."""

    device = torch.device("cpu")

    def __init__(self, node: Any) -> None:
        self.node = node

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.node.get_output_shape(0))

    def dim(self) -> int:
        return len(self.shape)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, arguments: Any = (), keywords: Any = None
    ) -> "Value":
        if function not in OPERATIONS:
            raise TypeError(f"nothing is known of torch's {function.__name__}")
        return OPERATIONS[function](*arguments, **(keywords or {}))

    def abs(self) -> "Value":
        return write("absolute", self)

    def sqrt(self) -> "Value":
        return write("sqrt", self)

    def to(self, dtype: torch.dtype) -> "Value":
        only(dtype=(dtype, torch.float32))
        return self

    def mean(self, dims: int | Sequence[int], keepdim: bool, dtype: torch.dtype = torch.float32) -> "Value":
        only(dtype=(dtype, torch.float32))
        axes = [dims] if isinstance(dims, int) else list(dims)
        return Value(library().opset15.reduce_mean(self.node, np.array(axes), keepdim))

    def var(self, dims: Sequence[int], correction: int, keepdim: bool) -> "Value":
        centred, number = self - self.mean(dims, keepdim=True), math.prod(self.shape[dim] for dim in dims)
        return (centred * centred).mean(dims, keepdim) * (number / (number - correction))

    def clamp_min(self, least: float) -> "Value":
        return write("maximum", self, least)

    def clamp_max(self, most: float) -> "Value":
        return write("minimum", self, most)

    def chunk(self, chunks: int, dim: int) -> list["Value"]:
        only(dim=(dim, 1))
        size = -(-self.shape[1] // chunks)
        return [self[:, start : start + size] for start in range(0, self.shape[1], size)]

    def transpose(self, first: int, second: int) -> "Value":
        order = list(range(self.dim()))
        order[first], order[second] = second, first
        return Value(library().opset15.transpose(self.node, np.array(order)))

    def unsqueeze(self, dim: int) -> "Value":
        return Value(library().opset15.unsqueeze(self.node, np.array(dim)))

    def __gt__(self, other: "Operand") -> "Value":
        return write("greater", self, other)

    def __add__(self, other: "Operand") -> "Value":
        return write("add", self, other)

    def __sub__(self, other: "Operand") -> "Value":
        return write("subtract", self, other)

    def __mul__(self, other: "Operand") -> "Value":
        return write("multiply", self, other)

    def __truediv__(self, other: "Operand") -> "Value":
        return write("divide", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __getitem__(self, places: tuple[Any, ...]) -> "Value":
        """Translate ``[:, a:b]``, a picture's corner ``[:, :, :h, :w]``, and a place ``[..., 0]`` or ``[:, :, 0]``."""
        if len(places) == 2 and isinstance(places[1], slice):
            only(batch=(places[0], slice(None)))
            return select(self, range(self.shape[1])[places[1]])
        if len(places) == 4 and isinstance(places[3], slice):
            stops = [one.stop for one in places[2:]]
            only(places=(list(places), [slice(None), slice(None), *map(slice, stops)]))
            bounds = (np.array(numbers) for numbers in ([0, 0], stops, [1, 1], [2, 3]))
            return Value(library().opset15.slice(self.node, *bounds))
        whole, place = [one for one in places[:-1] if one is not ...], places[-1]
        only(whole=(whole, [slice(None)] * len(whole)))
        dim = self.dim() - 1 if places[0] is ... else len(whole)
        return Value(library().opset15.gather(self.node, np.array(place), np.array(dim)))

    def repeat_interleave(self, repeats: int, dim: int) -> "Value":
        only(dim=(dim, 1))
        return select(self, [channel for channel in range(self.shape[1]) for _ in range(repeats)])


Operand = Value | Tensor | float


class Nothing(Value):
    """A value without channels, which can only be concatenated."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(None)
        self.of_shape = shape

    @property
    def shape(self) -> torch.Size:
        batch, _, *rest = self.of_shape
        return torch.Size((batch, 0, *rest))


def only(**arguments: tuple[object, object]) -> None:
    """Raise ValueError unless each argument, given with the one value that is translated, has it."""
    for name, (value, known) in arguments.items():
        if value != known:
            raise ValueError(f"{name}={value} is not known, only {known}")


def write(operation: str, *operands: Operand, **attributes: Any) -> Value:
    """Write one of OpenVINO's operations; tensors and numbers become constants of float32."""
    nodes = (one.node if isinstance(one, Value) else constant(one) for one in operands)
    return Value(getattr(library().opset15, operation)(*nodes, **attributes))


def constant(value: Tensor | float) -> Any:
    return library().opset15.constant(torch.as_tensor(value, dtype=torch.float32).detach().numpy())


def select(x: Value, channels: Sequence[int]) -> Value:
    """Write the selection of channels, in this order, as a convolution, which unlike a Gather keeps the layout."""
    if not channels:
        return Nothing(x.shape)
    return convolution(x, F.one_hot(torch.tensor(channels, dtype=torch.int64), x.shape[1])[..., None, None])


# --- binary units -----------------------------------------------------------------------------------------------------


class Signs(Value):
    """Ones where ``u`` is above ``limits`` and minus ones elsewhere; a binary convolution reads them as ``bits``.

    The bits are a FakeQuantize of two levels, which no other operation can read: OpenVINO does not convert them.
    """

    def __init__(self, u: Value, limits: Tensor) -> None:
        super().__init__(write("select", write("greater", u, limits), 1.0, -1.0).node)
        self.bits = write("fake_quantize", u, limits, limits, 0.0, 1.0, levels=2)


class Comparison(nn.Module):
    """The sign of the input plus a number: +1 where the input is above ``limits``, (1, channels, 1, 1).

    FakeQuantize compares by "greater", not by "at least", so a limit is the number before the threshold's negative. It
    is never one so small that a CPU may take it for zero.
    """

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        before = torch.nextafter(-threshold.detach(), torch.tensor(-torch.inf))
        smallest = torch.finfo(before.dtype).tiny
        self.limits = torch.where(before.abs() < smallest, -smallest, before)

    def forward(self, u: Value) -> Signs:
        return Signs(u, self.limits)


class Gain(Threshold):
    """No threshold, but the factor of the convolution's result that another one has."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.factor = gain

    def forward(self, u: Tensor) -> Tensor:
        return u

    def gain(self) -> Tensor:
        return self.factor


def translatable(packed: nn.Module) -> nn.Module:
    """Return a copy of a packed network whose units compare with their thresholds instead of adding them.

    What a threshold with more than a shift returns, or a rescale is computed from, is compared with zero.
    """
    network = copy.deepcopy(packed)
    for unit in packed_units(network):
        shift = torch.zeros(1, unit.in_channels, 1, 1)
        if isinstance(unit.threshold, nn.Parameter) and not unit.has_factors:
            shift, unit.threshold = unit.threshold.detach(), None
        elif isinstance(unit.threshold, Elastic) and not unit.has_factors:
            shift, unit.threshold = -unit.threshold.centre.detach(), Gain(unit.threshold.width.detach())
        unit.surrogate = Comparison(shift)  # type: ignore[assignment]
    return network


def binary_convolution(x: Signs, signs: Tensor, window: dict[str, Any]) -> Value:
    """Convolve bits, with one bit a weight, the first of eight the lowest of a byte, and pad with zeros."""
    ov, packed = library(), np.packbits((signs > 0).numpy().ravel(), bitorder="little")
    weight = ov.op.Constant(ov.Tensor(packed, list(signs.shape), ov.Type.u1), shared_memory=False)
    return Value(ov.opset15.binary_convolution(x.bits.node, weight, **window, mode="xnor-popcount", pad_value=0.0))


# --- torch's functions ------------------------------------------------------------------------------------------------


def convolution(
    x: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Value:
    """Translate ``F.conv2d`` and ``F.conv1d``.

    The bits of :class:`Signs` are convolved with bits as such where whole bytes hold their channels and the convolution
    is neither grouped nor strided.
    """
    number = weight.dim() - 2
    strides, pads, dilations = (one_of_each(value, number) for value in (stride, padding, dilation))
    window: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads_begin": pads, "pads_end": pads}
    is_plain = groups == 1 and set(strides) == {1}
    if isinstance(x, Signs) and x.shape[1] % BITS_PER_BYTE == 0 and is_plain and bool((weight.abs() == 1).all()):
        y = binary_convolution(x, weight, window)
    elif groups == 1:
        y = write("convolution", x, weight, **window)
    else:
        y = write("group_convolution", x, weight.reshape(groups, -1, *weight.shape[1:]), **window)
    return y if bias is None else y + bias.reshape(1, -1, *[1] * number)


def one_of_each(value: int | Sequence[int], number: int) -> list[int]:
    """Return one whole number for each dimension."""
    return [value] * number if isinstance(value, int) else list(value)


def transposed_convolution(x: Value, weight: Tensor, bias: None, stride: Sequence[int], *rest: object) -> Value:
    only(bias=(bias, None), rest=(rest, ((0, 0), (0, 0), 1, (1, 1))))  # padding, more of the output, groups, dilation
    none = [0, 0]
    node = library().opset15.convolution_backprop_data(
        x.node, constant(weight), strides=list(stride), pads_begin=none, pads_end=none, dilations=[1, 1]
    )
    return Value(node)


def pad(x: Value, sides: Sequence[int], mode: str, value: object = None) -> Value:
    """Translate the padding of columns on the right and of rows at the bottom."""
    left, right, top, bottom = sides
    only(mode=(mode, "replicate"), left=(left, 0), top=(top, 0))
    ends = np.array([0, 0, bottom, right])
    return x if not ends.any() else Value(library().opset15.pad(x.node, np.zeros_like(ends), ends, "edge"))


def mean_of_squares(x: Value, side: int) -> Value:
    """Translate ``F.avg_pool2d``."""
    none, sides = [0, 0], [side, side]
    return Value(library().opset15.avg_pool(x.node, sides, none, none, sides, exclude_pad=True))


def batch_norm(
    x: Value, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, training: bool, momentum: float, eps: float
) -> Value:
    only(training=(training, False))
    return write("batch_norm_inference", x, weight, bias, mean, variance, epsilon=eps)


def interpolate(x: Value, size: object, scale_factor: float, mode: str, align_corners: object, **_: object) -> Value:
    only(size=(size, None), mode=(mode, "bilinear"), align_corners=(align_corners, False))
    scales, axes = np.array([scale_factor] * 2, np.float32), np.array([2, 3])
    how = {"mode": "linear_onnx", "shape_calculation_mode": "scales", "coordinate_transformation_mode": "half_pixel"}
    return Value(library().opset15.interpolate(x.node, scales, axes=axes, **how))


def concatenate(values: Sequence[Value], dim: int) -> Value:
    return Value(library().opset15.concat([one.node for one in values if not isinstance(one, Nothing)], dim))


OPERATIONS: dict[Callable[..., Any], Callable[..., Value]] = {
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    torch.prelu: lambda x, slope: write("prelu", x, slope),
    torch.pixel_shuffle: lambda x, ratio: write("depth_to_space", x, mode="depth_first", block_size=ratio),
    F.avg_pool2d: mean_of_squares,
    torch.cat: concatenate,
    torch.conv_transpose2d: transposed_convolution,
    torch.full_like: lambda x, value: Value(constant(torch.full(x.shape, value))),
    torch.pixel_unshuffle: lambda x, ratio: write("space_to_depth", x, mode="depth_first", block_size=ratio),
    F.pad: pad,
    torch.sigmoid: lambda x: write("sigmoid", x),
    torch.where: lambda condition, one, other: write("select", condition, one, other),
    F.batch_norm: batch_norm,
    F.hardtanh: lambda x, min_val, max_val, inplace: write("clamp", x, min_value=min_val, max_value=max_val),
    F.interpolate: interpolate,
    F.leaky_relu: lambda x, negative_slope, inplace=False: write("prelu", x, negative_slope),
    F.relu: lambda x, inplace=False: write("relu", x),
    Tensor.mul: lambda factor, x: x * factor,
}
"""Those functions of torch's that the networks of :mod:`bbcu.model` call."""
