"""Commands on studies and on the space of cells.

python -m ablations sync STUDY    log to MLflow every result on disk that it does not hold yet
python -m ablations space         count the cells of the whole factor space
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.space import FACTORS, Frame, census
from ablations.store import study_folder
from ablations.syncing import synchronise
from bbcu.errors import BbcuError, ConfigError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    sync = commands.add_parser("sync", help="log to MLflow every result that it does not hold yet")
    sync.add_argument("study", help="the study's name, as in study.name")
    sync.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of results (%(default)s)")
    sync.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="MLflow's store (%(default)s)")
    sync.set_defaults(run=synchronise_study)
    space = commands.add_parser("space", help="count the cells of the whole factor space")
    space.add_argument("--network", default="srresnet", choices=["srresnet", "dncnn"], help="(%(default)s)")
    space.add_argument("--channels", type=int, default=64, help="the width that align=auto depends on (%(default)s)")
    space.set_defaults(run=count_space)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except BbcuError as error:
        sys.exit(f"ablations: {error}")


def synchronise_study(given: argparse.Namespace) -> None:
    """Log what MLflow missed."""
    if not study_folder(given.outputs, given.study).is_dir():
        raise ConfigError(f"no study {given.study!r} in {given.outputs}")
    logged = synchronise(given.outputs, given.study, given.tracking_uri)
    print(f"{len(logged)} results were logged to {given.tracking_uri}")


def count_space(given: argparse.Namespace) -> None:
    """Print what becomes of every combination of levels, and by which rule."""
    found = census(Frame(given.network, given.channels))
    print(f"{found.combinations} combinations of the levels of {', '.join(FACTORS)} (align: auto and 1)")
    print(f"{found.impossible} are impossible")
    print(f"{found.duplicates} are the same network as another")
    print(f"{found.cells} cells remain")
    print("A combination can meet several rules:")
    for reason, number in found.by_reason.items():
        print(f"{number:8d}  {reason}")


if __name__ == "__main__":
    main()
