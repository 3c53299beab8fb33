"""The options that the commands for trained networks share; importing this imports no torch."""

import argparse
import re
from collections.abc import Callable

from bbcu.errors import shown

MOST_THREADS = 1024
"""The most threads of a process. OpenMP crashes it if it cannot start as many as it is asked for."""

LARGEST_TILE = 2**27
"""The longest side of a picture: that of one with the most pixels and a single row."""

WAITING = ("OMP_WAIT_POLICY", "passive")
"""How torch's threads wait for work: asleep. By default they wait busily for milliseconds after each operation, on the
cores that the kernel's threads need, and two threads are hardly faster than one. Read when torch is imported."""

TRAINED = (
    "the folder of a cell or trial (the start of its name is enough), a checkpoint of a trial, one that the authors of "
    "BBCU released, or a packed file"
)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add how the network is read, and where it runs."""
    align = "the residual alignment of a released checkpoint, which does not record it (130, that of 64 channels)"
    parser.add_argument("--align", type=float, metavar="K", help=align)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 and the like (%(default)s)")
    threads = "threads on a CPU; by default, torch's"
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), metavar="N", help=threads)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number from ``least`` to ``most``, and raises ArgumentTypeError for another text."""

    def number(text: str) -> int:
        found = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        if found is None or not least <= found <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be a whole number from {least} to {most}")
        return found

    return number


def numbers(text: str) -> list[float]:
    """Return the numbers of a list such as 15,25,50; raises ArgumentTypeError, which argparse shows."""
    try:
        found = [float(part) for part in text.removeprefix("[").removesuffix("]").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be numbers, such as 15,25,50") from None
    return [int(number) if number.is_integer() else number for number in found]
