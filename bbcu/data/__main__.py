"""The command for data sets.

``python -m bbcu.data list`` shows those that are known, ``fetch NAME`` downloads one, and ``check DIR`` says what a
trial would see of a folder.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bbcu.data.downloads import DOWNLOADS, Download, download_of, fetch
from bbcu.data.inspection import Inspection, inspect
from bbcu.data.layouts import Role, printable
from bbcu.data.sources import Catalogue
from bbcu.data.tasks import STRENGTHS, TASKS, make_task
from bbcu.errors import BbcuError, ConfigError, DataError, unknown

TARGET = Path("data")

ROLES: tuple[Role, ...] = ("train", "test")

SIZES_SHOWN = 8
"""How many sizes of pictures are listed, the most frequent first."""

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and give the exit status: 1 where it failed, 2 where it was asked for what does not exist."""
    options = command_line().parse_args(arguments)
    try:
        options.run(options)
    except ConfigError as error:
        print(f"data: {error}", file=sys.stderr)
        return WRONG_USE
    except BbcuError as error:
        print(f"data: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("data: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0


def command_line() -> argparse.ArgumentParser:
    """The command's arguments: each of ``SUBCOMMANDS`` brings its own."""
    parser = argparse.ArgumentParser(prog="python -m bbcu.data", description="Look after sets of pictures.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for subcommand in SUBCOMMANDS:
        subparser = subparsers.add_parser(subcommand.name, help=subcommand.help)
        subcommand.add_arguments(subparser)
        subparser.set_defaults(run=subcommand.run)
    return parser


@dataclass(frozen=True)
class Subcommand:
    """One thing that the command does; ``run`` raises BbcuError where it cannot be done."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


# ---- list ------------------------------------------------------------------------------------------------------------


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run_list(options: argparse.Namespace) -> None:
    """Print the sets known by name, each with its size, its licence, its URL and who published its checksum."""
    rows = (_row(download) for download in DOWNLOADS.values())
    print(table([("name", "size", "licence", "from", "checksum from"), *rows]))


def _row(download: Download) -> tuple[str, ...]:
    return download.name, size_in_words(download.bytes), download.licence, download.url, download.source


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def size_in_words(size: int | None) -> str:
    """Show a number of bytes in MB."""
    return "unknown" if size is None else f"{size / 1e6:,.0f} MB"


# ---- fetch -----------------------------------------------------------------------------------------------------------


def add_fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """Take ``NAME|URL [--to DIR] [--sha256 HEX]``."""
    parser.add_argument("set", metavar="NAME|URL", help="a name that list shows, or the URL of an archive or a picture")
    parser.add_argument("--to", type=Path, default=TARGET, metavar="DIR", help="where to put it (%(default)s)")
    parser.add_argument("--sha256", metavar="HEX", help="what the file at the URL must have; without it, it is shown")


def run_fetch(options: argparse.Namespace) -> None:
    """Fetch a set, and print where it is and how to use it; raises BbcuError where that cannot be."""
    download = chosen(options.set, options.sha256)
    logging.basicConfig(format="data: %(message)s")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(download.name, total=download.bytes)
        place = fetch(download, options.to, progress=lambda here, whole: bar.update(task, completed=here, total=whole))
    print(f"{download.name} is in {printable(place)}: {download.layout}")
    print(f"use it: {download.usage.replace('DIR/', f'{printable(options.to)}/')}")


def chosen(name_or_url: str, sha256: str | None) -> Download:
    """Find the set that is meant; raises ConfigError for an unknown name and for a checksum that cannot be one."""
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"--sha256 {sha256!a}: needs 64 hexadecimal digits")
    if "://" in name_or_url:
        return download_of(name_or_url, sha256)
    if name_or_url not in DOWNLOADS:
        raise ConfigError(f"{unknown('data set', name_or_url, DOWNLOADS)}; or give a URL")
    if sha256 is not None:
        raise ConfigError(f"--sha256 goes with a URL; the checksum of {name_or_url} is known")
    return DOWNLOADS[name_or_url]


# ---- check -----------------------------------------------------------------------------------------------------------


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Take ``DIR --task NAME [--role train|test] [--patch N] [--inputs made|given]``."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="what data.train or data.test would name")
    parser.add_argument("--task", choices=TASKS, default="sr_x2", help="the task of the trial (%(default)s)")
    parser.add_argument("--role", choices=ROLES, help="look at it as one of these only; as both without it")
    parser.add_argument("--patch", type=int, default=24, help="train.patch, in input pixels (%(default)s)")
    parser.add_argument("--inputs", choices=("made", "given"), default="made", help="data.inputs (%(default)s)")


def run_check(options: argparse.Namespace) -> None:
    """Print what a trial would see of a folder; raises DataError where it would stop."""
    # The strengths of a task change nothing about which pictures it takes.
    task = make_task({"name": options.task, **{key: 10 for key in STRENGTHS.get(options.task, ())}})
    if options.inputs == "given" and task.corruption is not None:
        raise ConfigError(f"--inputs given: {task.name} makes its inputs from the pictures")
    inputs = f"X{task.scale}" if options.inputs == "given" else None
    refusals = 0
    # Each picture is decoded once, whatever it is looked at for.
    catalogue = Catalogue(None)
    for role in [options.role] if options.role else ROLES:
        found = inspect(options.folder, role, task, options.patch, inputs=inputs, catalogue=catalogue)
        print("\n".join(describe(found, role, task.name)))
        refusals += len(found.refused)
    if refusals:
        raise DataError(f"{printable(options.folder)}: a trial of {task.name} would stop at the first refused picture")


def describe(found: Inspection, role: Role, task_name: str) -> list[str]:
    """What was found, as lines for people."""
    purpose = "to train on" if role == "train" else "to test on"
    lines = [f"{task_name}, {purpose}: {len(found.usable)} pictures can be used, {len(found.refused)} are refused"]
    sizes = found.sizes.most_common()
    lines += [f"  {number} of {width} x {height}" for (width, height), number in sizes[:SIZES_SHOWN]]
    if len(sizes) > SIZES_SHOWN:
        widths, heights = zip(*found.sizes, strict=True)
        rest = sum(number for _, number in sizes[SIZES_SHOWN:])
        lines.append(f"  {rest} of {len(sizes) - SIZES_SHOWN} other sizes; all within ")
        lines[-1] += f"{min(widths)} x {min(heights)} and {max(widths)} x {max(heights)}"
    lines += [f"  the same pixels: {', '.join(names)}" for names in found.repeated]
    lines += [f"  refused: {reason}" for reason in found.refused]
    if found.fingerprint is not None:
        lines.append(f"  fingerprint {found.fingerprint}")
    return lines


SUBCOMMANDS = (
    Subcommand("list", "show the sets that can be fetched by name", add_list_arguments, run_list),
    Subcommand("fetch", "download a set, check it and unpack it", add_fetch_arguments, run_fetch),
    Subcommand("check", "say what a trial would see of a folder", add_check_arguments, run_check),
)

if __name__ == "__main__":
    sys.exit(main())
