"""Commands on studies and on the space of cells.

python -m ablations status STUDY    what is done, what runs and how far it is, what failed and why
python -m ablations sync STUDY      log to MLflow what it lacks: runs, and the state of every trial
python -m ablations rebuild STUDY   the same, for an MLflow that has nothing of the study
python -m ablations ui [STUDY]      show the runs in MLflow's pages, by a small server on this machine
python -m ablations space           count the cells of the whole factor space
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.space.census import census
from ablations.space.factors import FACTORS, load_declarations
from ablations.space.rules import MAX_CHANNELS, Backbone
from ablations.storage.folder import study_folder
from ablations.tracking.sync import synchronise_all
from ablations.tracking.ui import serve
from ablations.watching.status import add_command
from bbcu.errors import BbcuError, ConfigError, first_line, shown
from bbcu.passwords import masked
from bbcu.terminal import ArgumentParser, protect_output, say

NETWORKS = ("srresnet", "dncnn", "edsr", "rcan", "rdn", "drunet", "unet")
"""The networks that the rules of the factors speak of; of any other, only those that hold for all networks do."""

LAST_PORT = 65535


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    protect_output()
    parser = ArgumentParser(
        prog="python -m ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    add_command(commands)
    sync = commands.add_parser("sync", aliases=["rebuild"], help="log to MLflow what it lacks of a study")
    sync.add_argument("study", help="the study's name, as in study.name")
    sync.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of results (%(default)s)")
    sync.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="MLflow's store (%(default)s)")
    sync.set_defaults(run=synchronise_study)
    pages = commands.add_parser("ui", help="show the runs in MLflow's pages, by a small server on this machine")
    pages.add_argument("study", nargs="?", help="print the address of this study's page alone")
    pages.add_argument("--port", type=port, default=5000, help="(%(default)s)")
    pages.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="MLflow's store (%(default)s)")
    pages.set_defaults(run=show_pages)
    space = commands.add_parser("space", help="count the cells of the whole factor space")
    space.add_argument("--network", default="srresnet", choices=NETWORKS, help="(%(default)s)")
    space.add_argument("--tail", default="full", choices=["full", "light"], help="as network.tail (%(default)s)")
    space.add_argument("--task", default="", help="such as sr_x4, after which an EDSR, RCAN or RDN has more units")
    space.add_argument(
        "--channels", type=channels, default=64, help="the width that align=auto depends on (%(default)s)"
    )
    space.set_defaults(run=count_space)
    given = parser.parse_args(arguments)
    try:
        load_declarations()
        given.run(given)
        sys.stdout.flush()
    except BbcuError as error:
        sys.exit(f"ablations: {error}")
    except BrokenPipeError:
        # The reader has all it wants, as `head` does; what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # The disk has a fault, for instance; errors of MLflow are of the kind above.
        sys.exit(f"ablations: {first_line(error)}")


def channels(text: str) -> int:
    """The number of channels that a user typed; raises ArgumentTypeError, as argparse wants it, for any other text."""
    if not (re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= MAX_CHANNELS):
        raise argparse.ArgumentTypeError(f"{shown(text)!r} must be a whole number from 1 to {MAX_CHANNELS}")
    return int(text)


def port(text: str) -> int:
    """The number of a port that a user typed; raises ArgumentTypeError for any other text."""
    if not (re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= LAST_PORT):
        raise argparse.ArgumentTypeError(f"{shown(text)!r} must be a whole number from 1 to {LAST_PORT}")
    return int(text)


def show_pages(given: argparse.Namespace) -> None:
    """Serve MLflow's pages until the command is stopped."""
    serve(given.tracking_uri, given.port, given.study)


def synchronise_study(given: argparse.Namespace) -> None:
    """Log to MLflow all that it lacks of a study; raise ConfigError if the study does not exist."""
    if not study_folder(given.outputs, given.study).is_dir():
        raise ConfigError(f"no study {given.study!r} in {given.outputs}")
    finished, others = synchronise_all(given.outputs, given.study, given.tracking_uri)
    print(masked(f"{finished} results and {others} trials without a result were logged to {given.tracking_uri}"))


def count_space(given: argparse.Namespace) -> None:
    """Print how many combinations of levels are cells, and how many others each rule leaves out."""
    found = census(Backbone(given.network, given.channels, given.tail, given.task))
    print(f"{found.combinations} combinations of the levels of {', '.join(FACTORS)} (align: auto and 1)")
    print(f"{found.impossible} are impossible")
    print(f"{found.duplicates} are the same network as another")
    print(f"{found.cells} cells remain")
    print("A combination can meet several rules:")
    for reason, number in found.by_reason.items():
        say(f"{number:11d}  {reason}")


if __name__ == "__main__":
    main()
