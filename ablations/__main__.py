"""Commands on studies and on the space of cells.

python -m ablations status STUDY    what is done, what runs and how far it is, what failed and why
python -m ablations sync STUDY      bring MLflow up to date: what it missed, and the state of every trial
python -m ablations rebuild STUDY   write all runs of a study to an MLflow that has none of them, from the outputs alone
python -m ablations space           count the cells of the whole factor space
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.space.cells import census
from ablations.space.factors import FACTORS, load_declarations
from ablations.space.rules import Backbone
from ablations.storage.folder import study_folder
from ablations.tracking.sync import rebuild
from ablations.watching.status import add_command
from bbcu.errors import BbcuError, ConfigError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    add_command(commands)
    for name, what, command in (
        ("sync", "bring MLflow up to date: the runs that it missed, and the state of every trial", synchronise_study),
        ("rebuild", "write every run that MLflow has not, those without a result too", rebuild_study),
    ):
        logs = commands.add_parser(name, help=what)
        logs.add_argument("study", help="the study's name, as in study.name")
        logs.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of results (%(default)s)")
        logs.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="MLflow's store (%(default)s)")
        logs.set_defaults(run=command)
    space = commands.add_parser("space", help="count the cells of the whole factor space")
    space.add_argument("--network", default="srresnet", choices=["srresnet", "dncnn"], help="(%(default)s)")
    space.add_argument("--channels", type=int, default=64, help="the width that align=auto depends on (%(default)s)")
    space.set_defaults(run=count_space)
    given = parser.parse_args(arguments)
    try:
        load_declarations()
        given.run(given)
    except BbcuError as error:
        sys.exit(f"ablations: {error}")


def synchronise_study(given: argparse.Namespace) -> None:
    """Log what MLflow missed."""
    check_study(given)
    finished, others = rebuild(given.outputs, given.study, given.tracking_uri)
    without = f" and {others} trials without one" * bool(others)
    print(f"{finished} results{without} were logged to {given.tracking_uri}")


def rebuild_study(given: argparse.Namespace) -> None:
    """Write all that MLflow has not."""
    check_study(given)
    finished, others = rebuild(given.outputs, given.study, given.tracking_uri)
    print(f"{finished} results and {others} trials without one were written to {given.tracking_uri}")


def check_study(given: argparse.Namespace) -> None:
    """Raise ConfigError for a study that is not there."""
    if not study_folder(given.outputs, given.study).is_dir():
        raise ConfigError(f"no study {given.study!r} in {given.outputs}")


def count_space(given: argparse.Namespace) -> None:
    """Print what becomes of every combination of levels, and by which rule."""
    found = census(Backbone(given.network, given.channels))
    print(f"{found.combinations} combinations of the levels of {', '.join(FACTORS)} (align: auto and 1)")
    print(f"{found.impossible} are impossible")
    print(f"{found.duplicates} are the same network as another")
    print(f"{found.cells} cells remain")
    print("A combination can meet several rules:")
    for reason, number in found.by_reason.items():
        print(f"{number:8d}  {reason}")


if __name__ == "__main__":
    main()
