"""ONNX: a network as a file that other programs run, and ONNX Runtime, which runs it on a CPU.

ONNX has no bits: signs and binary weights are floats of one and minus one there, so a binary network is no faster
than the full-precision one of the same layout. ONNX Runtime is what that twin is timed with.
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.deploy.backends import Runner
from bbcu.deploy.packed import DeployError, PackedUnit, named_units, pack, shape_of
from bbcu.errors import first_line

OPSET = 20
"""The version of ONNX's operators that a file needs; ONNX Runtime has had it since 1.17."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

INPUT, OUTPUT = "input", "output"

ERRORS_ONLY = 3
"""ONNX Runtime's level of messages; one lower, it warns of each constant that it does not compute beforehand."""


def missing() -> str | None:
    """Return None if the packages are installed that export to ONNX and run it, else how to install them."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: pip install 'bbcu[onnx]'" if absent else None


# --- export -----------------------------------------------------------------------------------------------------------


def to_onnx(network: nn.Module, height: int, width: int, *, dynamic: bool = False) -> bytes:
    """Export a network, float or packed, for one picture of ``height`` x ``width`` pixels, or of any with ``dynamic``.

    The model takes ``input``, (1, colours, height, width) of float32, and returns ``output``. Raises DeployError if the
    packages are missing, and if torch cannot export the network.
    """
    require()
    import onnx

    unpacked = unpack(network)
    x = torch.zeros(1, colours_of(unpacked), height, width)
    shapes = ({2: "height", 3: "width"},) if dynamic else None
    try:
        with silence():
            program = torch.onnx.export(
                unpacked,
                (x,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_shapes=shapes,
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise DeployError(f"torch cannot export {type(network).__name__} to ONNX: {first_line(error)}") from error
    assert program is not None, "it is written to no file"
    model = program.model_proto
    drop_notes(model)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def require() -> None:
    """Raise DeployError if a package is missing."""
    reason = missing()
    if reason is not None:
        raise DeployError(f"ONNX: {reason}")


def colours_of(network: nn.Module) -> int:
    """Return the channels of a network's input: those of its spec, or of its first convolution if it has none."""
    colours = getattr(getattr(network, "spec", None), "colours", None)
    if isinstance(colours, int):
        return colours
    channels = (getattr(module, "in_channels", None) for module in network.modules())
    return next((number for number in channels if isinstance(number, int)), 3)


class FloatUnit(PackedUnit):
    """A packed unit whose weights are floats, since the exporter has no operators of bits."""

    float_weights: Tensor

    def __init__(self, unit: PackedUnit) -> None:
        super().__init__(shape_of(unit), unit.spec, unit.form)
        self.load_state_dict(unit.state_dict())
        self.set_memory(unit.memory)
        self.register_buffer("float_weights", unit.convolved_weights())
        del self.weight_bits, self.second_bits

    def convolved_weights(self) -> Tensor:
        return self.float_weights


def unpack(network: nn.Module) -> nn.Module:
    """Return a copy of a network, float or packed, in evaluation mode, whose binary weights are signs in float32."""
    packed = pack(network)
    for name, unit in named_units(packed):
        if isinstance(unit, PackedUnit):
            packed.set_submodule(name, FloatUnit(unit))
    return packed.eval()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep torch's exporter from telling its steps, and from warning of its own deprecated calls."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def drop_notes(model: Any) -> None:
    """Remove what the exporter notes for debugging, such as the paths of this computer's files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")


# --- running ----------------------------------------------------------------------------------------------------------


def onnx_runner(network: nn.Module, height: int, width: int) -> Runner:
    """Return what runs a network in ONNX Runtime for inputs of (1, colours, height, width)."""
    return runner_of(to_onnx(network, height, width))


def runner_of(model: bytes) -> Runner:
    """Return what runs a model in ONNX Runtime on the CPU, optimised and with as many threads as torch has now."""
    require()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = ERRORS_ONLY
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's errors have no class in common.
    except Exception as error:
        raise DeployError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error

    def run(x: Tensor) -> Tensor:
        (output,) = session.run([OUTPUT], {INPUT: x.detach().contiguous().numpy()})
        return torch.from_numpy(output)

    return run
