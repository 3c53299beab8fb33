"""The size of a picture, as people write it: 320x180."""

import argparse
import re
from typing import NamedTuple

from bbcu.errors import shown

LARGEST_SIDE = 4096
"""The longest side of a picture, in pixels."""


class Size(NamedTuple):
    """Height and width of a picture in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height} pixels"


def size_in(text: str) -> Size:
    """Return the size in ``WIDTHxHEIGHT``; raises ArgumentTypeError, as argparse wants it."""
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        wanted = f"must be WIDTHxHEIGHT, as 320x180, each from 1 to {LARGEST_SIDE}"
        raise argparse.ArgumentTypeError(f"{shown(text)!r} {wanted}")
    return Size(height, width)
