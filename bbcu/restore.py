"""The command that restores a user's own pictures: ``python -m bbcu.restore PICTURE... --from CELL``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bbcu.deploy.options import LARGEST_TILE, TRAINED, WAITING, add_network_options, whole
from bbcu.terminal import ArgumentParser, exit_status, protect_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 1 if it failed, 2 for a name or value that does not exist."""
    protect_output()
    os.environ.setdefault(*WAITING)
    options = command_line().parse_args(arguments)

    def run() -> None:
        from bbcu.deploy import restoring

        restoring.run(options)

    return exit_status("bbcu.restore", run, "interrupted; the pictures that are named above are written")


def command_line() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = ArgumentParser(
        prog="python -m bbcu.restore", description="Restore pictures of your own with a trained network."
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="a picture, or a folder of pictures")
    parser.add_argument("--from", dest="source", required=True, metavar="CELL", help=TRAINED)
    parser.add_argument(
        "--out", type=Path, default=Path("restored"), metavar="DIR", help="where to write NAME.png (%(default)s)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that are there, except the pictures themselves"
    )
    truth = "the truth of the picture, or a folder of truths of the same names: prints PSNR and SSIM"
    parser.add_argument("--truth", type=Path, metavar="PICTURE|DIR", help=truth)
    tile = "the largest side in input pixels that is run at once, 0 for whole pictures; by default 1024 output pixels"
    parser.add_argument("--tile", type=whole(0, LARGEST_TILE), metavar="N", help=tile)
    add_network_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
