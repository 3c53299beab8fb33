"""``python -m bbcu.deploy verify``: compare what each backend computes with the float network."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bbcu.data.images import Pixels, gray, read_rgb, to_image, to_tensor
from bbcu.data.sources import EMBEDDED_TEST
from bbcu.deploy import reference
from bbcu.deploy.backends import BACKENDS, missing_for, runner
from bbcu.deploy.file import from_bytes, to_bytes
from bbcu.deploy.packed import DeployError, PackedUnit, check_input, pack
from bbcu.deploy.sources import find
from bbcu.model.parts import binary_units
from bbcu.model.units import BinaryUnit
from bbcu.terminal import say

SIDE = 128
"""The side of the part of the bundled photograph that is restored, in pixels."""

EXACT = ("torch", "native")
"""The backends that compute the same as the float network, bit for bit."""


@dataclass(frozen=True)
class Comparison:
    """How an output differs from the float network's: ``values`` and 8-bit ``levels`` that differ, of ``size``.

    ``is_equal`` says whether every byte is the same, and ``largest`` is the largest difference, for values in [0, 1].
    """

    is_equal: bool
    values: int
    levels: int
    size: int
    largest: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    picture = f"what to restore; without it {SIDE} x {SIDE} pixels of a photograph"
    parser.add_argument("--picture", type=Path, metavar="FILE", help=picture)
    parser.add_argument("--backend", choices=BACKENDS, help="the one to check; without it all that can run here")


def run(options: argparse.Namespace) -> None:
    """Print the comparisons; raises DeployError if an exact backend, the file or the number of values is wrong."""
    source = find(options.cell, options.overrides)
    name, pixels = _picture(options.picture)
    colours = getattr(getattr(source.network, "spec", None), "colours", pixels.shape[2])
    x = to_tensor(gray(pixels) if colours == 1 else pixels)[None]
    say(f"{source.name}: {name}, {x.shape[3]} x {x.shape[2]} pixels")
    packed = pack(source.network)
    expected = output_of(source.network, x)
    wrong = [_check_values(source.network), _check_file(packed, x)]
    backends = [options.backend] if options.backend else list(BACKENDS)
    for backend in backends:
        reason = missing_for(backend)
        if reason is not None and options.backend is None:
            say(f"{backend}: not run: {reason}")
            continue
        try:
            output = runner(packed, backend)(x)
        except DeployError as error:
            # Such as a unit of the user's own, which OpenVINO does not know.
            if backend in EXACT or options.backend is not None:
                raise
            say(f"{backend}: not run: {error}")
            continue
        found = compared(output, expected)
        say(f"{backend}: {described(found)}")
        if backend in EXACT and not found.is_equal:
            wrong.append(f"{backend} differs from the float network in {found.values:,} of {found.size:,} values")
    if any(wrong):
        raise DeployError("; ".join(filter(None, wrong)))


def _picture(path: Path | None) -> tuple[str, Pixels]:
    """Return the user's picture, or the middle of a bundled photograph, and its name; raises DataError."""
    if path is not None:
        return str(path), read_rgb(path)
    photograph = EMBEDDED_TEST[0]
    pixels = photograph.read()
    top, left = ((size - SIDE) // 2 for size in pixels.shape[:2])
    return photograph.origin, pixels[top : top + SIDE, left : left + SIDE]


def output_of(network: nn.Module, x: Tensor) -> Tensor:
    """Return a network's output in torch, in the memory format in which the reference backend runs it."""
    check_input(network, x)
    return reference.prepare(network)(x)


def skip_of(network: nn.Module, x: Tensor) -> Tensor:
    """Return a network's output if its layers added nothing: its skip connection, or zero if it has none."""
    skip: Callable[[Tensor], Tensor] = getattr(network, "skip", lambda x: x.new_zeros(()))
    return skip(x)


def compared(output: Tensor, expected: Tensor) -> Comparison:
    """Compare two outputs (1, colours, height, width); raises DeployError if their shapes differ or one has NaN."""
    if output.shape != expected.shape:
        raise DeployError(f"the output is {tuple(output.shape)}, not {tuple(expected.shape)}")
    try:
        levels = int((to_image(output[0]) != to_image(expected[0])).sum())
    except ValueError as error:
        raise DeployError(str(error)) from error
    values = int((output.contiguous().view(torch.int32) != expected.contiguous().view(torch.int32)).sum())
    return Comparison(values == 0, values, levels, expected.numel(), float((output - expected).abs().max()))


def described(found: Comparison) -> str:
    if found.is_equal:
        return f"equal to the float network, byte for byte, in {found.size:,} values"
    share = f"{found.values:,} of {found.size:,} values, {found.levels:,} of them after rounding to 8 bits"
    return f"differs from the float network in {share}, by at most {found.largest:.2g}"


def _check_values(network: nn.Module) -> str | None:
    """Print how many distinct values the binary weights of a filter have; return what is wrong."""
    units = binary_units(network)
    if not units:
        say("binary weights: none")
        return None
    counts = [number for unit in units for number in distinct_values(unit)]
    weights = sum(binary_weights(unit).numel() for unit in units)
    say(f"binary weights: {weights:,} in {len(counts):,} filters, at most {max(counts)} values in each")
    allowed = max(2 ** (unit.form.planes if isinstance(unit, PackedUnit) else unit.binariser.bits) for unit in units)
    return f"a filter has {max(counts)} different weights" if max(counts) > allowed else None


def distinct_values(unit: BinaryUnit) -> list[int]:
    """Return the number of distinct weights of each filter of a unit; a filter of zeros has one."""
    return [len(torch.unique(weight)) for weight in binary_weights(unit)]


@torch.no_grad()
def binary_weights(unit: BinaryUnit) -> Tensor:
    """Return the binary weights of a unit with their scales."""
    weights: Tensor = unit.weights() if isinstance(unit, PackedUnit) else unit.binariser(unit.weight)
    return weights


def _check_file(packed: nn.Module, x: Tensor) -> str | None:
    """Print whether a network that is saved and loaded computes the same; return what is wrong."""
    try:
        content = to_bytes(packed)
    except DeployError as error:
        say(f"file: none: {error}")
        return None
    is_equal = compared(output_of(from_bytes(content), x), output_of(packed, x)).is_equal
    result = "the same, byte for byte" if is_equal else "otherwise"
    say(f"file: {len(content):,} bytes; loaded again it computes {result}")
    return None if is_equal else "the network that is loaded from its file computes otherwise"
