"""``python -m bbcu.deploy export``: write a network as ONNX, and compare what ONNX Runtime computes with torch."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bbcu.data.images import gray, to_tensor
from bbcu.data.sources import EMBEDDED_TEST
from bbcu.deploy.onnx import OPSET, colours_of, require, runner_of, to_onnx
from bbcu.deploy.packed import DeployError
from bbcu.deploy.sizes import Size, size_in
from bbcu.deploy.sources import find, twin_of
from bbcu.deploy.verify import SIDE, compared, described, output_of, skip_of
from bbcu.files import replacing
from bbcu.terminal import say

DEFAULT = Size(SIDE, SIDE)
"""The picture on which a network of any size is checked."""

TOLERANCE = 1e-3
"""The largest error of an export as a share of what the network adds to its skip connection, as root mean squares."""

OWN_CHANGES = 2
"""The largest error in multiples of the change of the network's own output if its input changes in the last bit."""

ROUNDING = 1e-6
"""The largest error in any case, for values in [0, 1]."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it; without it, it is only checked")
    also = "also export the full-precision network of the same layout, as FILE with -twin behind its name"
    parser.add_argument("--twin", action="store_true", help=also)
    only = "of the only pictures that it takes; without it, it takes any"
    parser.add_argument("--size", type=size_in, metavar="WIDTHxHEIGHT", help=only)


def run(options: argparse.Namespace) -> None:
    """Export a network, and its twin if it is asked for; raises BbcuError if one cannot be, or computes otherwise."""
    require()
    source, out = find(options.cell, options.overrides), options.out
    export(source.name, source.network, options.size, out)
    if options.twin:
        beside = None if out is None else out.with_name(f"{out.stem}-twin{out.suffix}")
        export(f"the full-precision twin of {source.name}", twin_of(source.network), options.size, beside)


def export(name: str, network: nn.Module, size: Size | None, out: Path | None) -> None:
    """Export a network, print and check what ONNX Runtime computes, and write it to ``out`` if that is given."""
    model, takes = exported(network, size)
    say(f"{name}: ONNX, opset {OPSET}, {len(model):,} bytes, for {takes}")
    x = photograph(size or DEFAULT, colours_of(network))
    expected, found = output_of(network, x), runner_of(model)(x)
    say(f"ONNX Runtime, {size or DEFAULT}: {described(compared(found, expected))}")
    error, allowed = root_mean_square(found - expected), tolerance(network, x, expected)
    if error > allowed:
        difference = f"the root mean square of the difference is {error:.2g}, and at most {allowed:.2g} is rounding"
        raise DeployError(f"{name}: ONNX Runtime computes something else than torch: {difference}")
    if out is not None:
        write(model, out)
        say(f"written to {out}")


def exported(network: nn.Module, size: Size | None) -> tuple[bytes, str]:
    """Return a network as ONNX, and what pictures it takes: of ``size``, or of any if it is None and torch can."""
    if size is not None:
        return to_onnx(network, size.height, size.width), f"pictures of {size}"
    try:
        return to_onnx(network, SIDE, SIDE, dynamic=True), "pictures of any size"
    except DeployError as error:
        return to_onnx(network, SIDE, SIDE), f"pictures of {DEFAULT} only, since for any size {error}"


def photograph(size: Size, colours: int) -> Tensor:
    """Return the middle of a bundled photograph, (1, colours, height, width) in [0, 1], repeated beyond its borders."""
    pixels = EMBEDDED_TEST[0].read()
    sides = zip((size.height, size.width), pixels.shape[:2], strict=True)
    rows, columns = (np.arange((whole - side) // 2, (whole + side) // 2 + 1)[:side] % whole for side, whole in sides)
    part = pixels[rows][:, columns]
    return to_tensor(gray(part) if colours == 1 else part)[None]


def tolerance(network: nn.Module, x: Tensor, expected: Tensor) -> float:
    """Return the largest error that rounding explains.

    Where a value is within rounding of a threshold, its sign may be the other one in ONNX Runtime, and many others
    after it. How far that reaches shows the change of the network's own output if its input changes in the last bit.
    """
    skip = skip_of(network, x)
    changed = output_of(network, torch.nextafter(x, torch.tensor(torch.inf)))
    errors = TOLERANCE * root_mean_square(expected - skip), OWN_CHANGES * root_mean_square(changed - expected)
    return max(*errors, ROUNDING)


def root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def write(model: bytes, out: Path) -> None:
    """Write a file, which is replaced atomically; its folder is made. Raises DeployError if it cannot be written."""
    try:
        with replacing(out) as temporary:
            temporary.write_bytes(model)
    except OSError as error:
        raise DeployError(f"{out}: cannot be written: {error.strerror or error}") from error
