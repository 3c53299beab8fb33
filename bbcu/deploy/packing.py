"""``python -m bbcu.deploy pack``: write a packed network to a file, and say how much smaller it is."""

import argparse
import io
from pathlib import Path

import torch

from bbcu.deploy.file import save, to_bytes
from bbcu.deploy.packed import count_binary_weights, pack, unpacked
from bbcu.deploy.sources import Source, find
from bbcu.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it; without it only sizes are shown")


def run(options: argparse.Namespace) -> None:
    """Print the sizes of a network and of its packed form, and write that; raises BbcuError if it cannot be."""
    source = find(options.cell, options.overrides)
    packed = pack(source.network)
    say(f"{source.name}: {count_binary_weights(packed):,} binary weights")
    for name, reason in unpacked(packed).items():
        say(f"not packed: {name}: {reason}")
    size = len(to_bytes(packed))
    if source.is_packed:
        say(f"packed: {size:,} bytes")
    else:
        whole = _checkpoint_size(source)
        say(f"checkpoint: {whole:,} bytes; packed: {size:,} bytes, {whole / size:.1f} times smaller")
    if options.out is not None:
        save(packed, options.out)
        say(f"written to {options.out}")


def _checkpoint_size(source: Source) -> int:
    """Return the bytes of a network's checkpoint, or those that it would have."""
    if source.file is not None:
        return source.file.stat().st_size
    checkpoint = io.BytesIO()
    torch.save(source.network.state_dict(), checkpoint)
    return checkpoint.tell()
