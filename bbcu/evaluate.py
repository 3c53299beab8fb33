"""The command that scores a trained network: ``python -m bbcu.evaluate CELL [SET...]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bbcu.deploy.options import TRAINED, add_network_options, numbers
from bbcu.terminal import ArgumentParser, exit_status, protect_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 1 if it failed, 2 for a name or value that does not exist."""
    protect_output()
    options = command_line().parse_args(arguments)

    def run() -> None:
        from bbcu.deploy import scoring

        scoring.run(options)

    return exit_status("bbcu.evaluate", run)


def command_line() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = ArgumentParser(
        prog="python -m bbcu.evaluate",
        description="Score a trained network on sets of pictures, by the protocol of the paper.",
    )
    parser.add_argument("source", metavar="CELL", help=TRAINED)
    sets = "NAME=DIR, embedded, or a set of python -m bbcu.data list; by default those of the trial, or embedded"
    parser.add_argument("sets", nargs="*", metavar="SET", help=sets)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="where fetched sets are (%(default)s)"
    )
    parser.add_argument("--task", help="another task than that of the network, for pictures of the same channels")
    sigma, quality = "the noise of denoising", "the qualities of JPEG"
    parser.add_argument("--sigma", type=numbers, metavar="N,N", help=f"{sigma} (the trial's, or 15,25,50)")
    parser.add_argument("--quality", type=numbers, metavar="N,N", help=f"{quality} (the trial's, or 10,20,30,40)")
    parser.add_argument("--inputs", choices=("made", "given"), default="made", help="data.inputs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, with the names of a result.json")
    add_network_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
