"""The command for packed networks: ``python -m bbcu.deploy pack|verify|time|export CELL``."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from bbcu.deploy.options import WAITING
from bbcu.terminal import ArgumentParser, exit_status, protect_output

COMMANDS = {
    "pack": ("bbcu.deploy.packing", "write a packed network to a file, and show how much smaller it is"),
    "verify": ("bbcu.deploy.verify", "compare what the backends compute with the float network"),
    "time": ("bbcu.deploy.latency", "measure how long the backends and the full-precision network take"),
    "export": ("bbcu.deploy.export", "write a network as ONNX"),
}
"""The module of each command, with ``add_arguments(parser)`` and ``run(options)``, and what the command does."""

CELL = (
    "the folder of a cell or trial, a checkpoint, a packed file, or a method's name, such as bbcu, with the initial "
    "values of seed 0"
)
OVERRIDES = "levels and sizes of a method, such as binarize=[body,up] task=sr_x2 channels=64 blocks=16"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 1 if it failed, 2 for a name or value that does not exist."""
    protect_output()
    os.environ.setdefault(*WAITING)
    arguments = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        options = parsed(arguments)
        options.run(options)

    return exit_status("bbcu.deploy", run)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; overrides may stand before and behind options.

    Only the module of the command that is asked for is imported, since each of them imports torch.
    """
    parser = ArgumentParser(prog="python -m bbcu.deploy", description="Pack, check, time and export trained networks.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, purpose) in COMMANDS.items():
        command = subparsers.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        command.add_argument("cell", metavar="CELL", help=CELL)
        command.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=OVERRIDES)
        if name in arguments[:1]:
            chosen = importlib.import_module(module)
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run)
    options, rest = parser.parse_known_args(arguments)
    wrong = [text for text in rest if text.startswith("-") or "=" not in text]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    options.overrides = [*options.overrides, *rest]
    return options


if __name__ == "__main__":
    sys.exit(main())
