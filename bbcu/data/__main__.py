"""The command for data sets: ``python -m bbcu.data list``, ``fetch NAME`` and ``check DIR``."""

import argparse
import logging
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bbcu.data.downloads import DOWNLOAD_OF_SET, DOWNLOADS, Download, download_of, fetch
from bbcu.data.layouts import Role
from bbcu.data.pairs import check_picture
from bbcu.data.sources import ImageInfo, ImageInfoCache, Pictures, find_pictures, fingerprint
from bbcu.data.tasks import STRENGTHS, TASKS, Task, make_task
from bbcu.errors import ConfigError, DataError, printable, unknown
from bbcu.terminal import ArgumentParser, exit_status, protect_output, say

ROLES: tuple[Role, ...] = ("train", "test")

SIZES_SHOWN = 8
"""How many picture sizes are listed, the most frequent first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status: 1 if it failed, 2 for a name or value that does not exist."""
    protect_output()
    options = command_line().parse_args(arguments)
    return exit_status("data", lambda: options.run(options), "interrupted; the same command resumes")


def command_line() -> argparse.ArgumentParser:
    """The parser of the command; each subcommand sets ``run``, which raises BbcuError if it fails."""
    parser = ArgumentParser(prog="python -m bbcu.data", description="Manage data sets of pictures.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    command = subparsers.add_parser("list", help="show the sets that can be fetched by name")
    command.set_defaults(run=run_list)

    command = subparsers.add_parser("fetch", help="download a set, check it and unpack it")
    command.add_argument(
        "set", metavar="NAME|URL", help="a name that list shows, or the URL of an archive or a picture"
    )
    command.add_argument("--to", type=Path, default=Path("data"), metavar="DIR", help="where to put it (%(default)s)")
    command.add_argument("--sha256", metavar="HEX", help="the expected checksum of the file at the URL")
    command.set_defaults(run=run_fetch)

    command = subparsers.add_parser("check", help="show what a trial would use of a folder")
    command.add_argument("folder", type=Path, metavar="DIR", help="the value of data.train or data.test")
    command.add_argument("--task", choices=TASKS, default="sr_x2", help="the task of the trial (%(default)s)")
    command.add_argument("--role", choices=ROLES, help="check it for one role; without it, for both")
    command.add_argument("--patch", type=int, default=24, help="train.patch, in input pixels (%(default)s)")
    command.add_argument("--inputs", choices=("made", "given"), default="made", help="data.inputs (%(default)s)")
    command.set_defaults(run=run_check)
    return parser


# ---- list ------------------------------------------------------------------------------------------------------------


def run_list(options: argparse.Namespace) -> None:
    """Print each download: its name, the sets in it, size, licence, URL, and who published its checksum."""
    rows = [("name", "sets", "size", "licence", "from", "checksum from")]
    for download in DOWNLOADS.values():
        sets, size = ", ".join(download.sets or (download.name,)), f"{(download.bytes or 0) / 1e6:,.0f} MB"
        rows.append((download.name, sets, size, download.licence, download.url, download.source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# ---- fetch -----------------------------------------------------------------------------------------------------------


def run_fetch(options: argparse.Namespace) -> None:
    """Fetch what has the set, and print where the set is and how to use it."""
    download = download_named(options.set, options.sha256)
    logging.basicConfig(format="data: %(message)s")
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(download.name), total=download.bytes)
        place = fetch(download, options.to, progress=lambda here, total: bar.update(task, completed=here, total=total))
    if options.set in download.sets:
        if not (place / options.set).is_dir():
            raise DataError(
                f"{printable(place)}: {options.set} is not in it any more; delete the folder to fetch it again"
            )
        say(f"{options.set} is in {place / options.set}, from {download.name}")
    else:
        say(f"{download.name} is in {place}")
    say(f"use it: {download.usage_of(options.set).replace('DIR/', f'{options.to}/')}")


def download_named(name_or_url: str, sha256: str | None) -> Download:
    """Find the download that has a set; raises ConfigError for an unknown name or a malformed checksum."""
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"--sha256 {sha256!a}: needs 64 hexadecimal digits")
    if "://" in name_or_url:
        return download_of(name_or_url, sha256)
    if name_or_url not in DOWNLOAD_OF_SET:
        raise ConfigError(f"{unknown('data set', name_or_url, DOWNLOAD_OF_SET)}; or give a URL")
    if sha256 is not None:
        raise ConfigError(f"--sha256 goes with a URL; the checksum of {name_or_url} is known")
    return DOWNLOAD_OF_SET[name_or_url]


# ---- check -----------------------------------------------------------------------------------------------------------


def run_check(options: argparse.Namespace) -> None:
    """Print what a trial would use of a folder; raises DataError if the trial would stop."""
    # Which pictures a task accepts does not depend on its strengths.
    task = make_task({"name": options.task, **{key: 10 for key in STRENGTHS.get(options.task, ())}})
    if options.patch < 1:
        raise ConfigError(f"--patch {options.patch}: needs at least 1 pixel")
    if options.inputs == "given" and task.degradation is not None:
        raise ConfigError(f"--inputs given: {task.name} makes its inputs from the pictures")
    cache = ImageInfoCache(None)  # decodes each picture once for both roles
    roles = [options.role] if options.role else ROLES
    refused = [check_role(role, options, task, cache) for role in roles]
    if any(refused):
        raise DataError(f"{printable(options.folder)}: a trial of {task.name} would stop at the first refused picture")


def check_role(role: Role, options: argparse.Namespace, task: Task, cache: ImageInfoCache) -> bool:
    """Check every picture as a trial would, and print the result for one role; return whether one is refused.

    A picture that is refused does not end the check, as it would a trial.
    """
    pictures = find_pictures(options.folder, role, task.scale if options.inputs == "given" else None)
    infos: dict[str, ImageInfo] = {}
    refused = []
    for picture in pictures:
        try:
            check_picture(picture, cache.info, task, options.patch if role == "train" else None)
            infos[picture.name] = cache.info(picture.truth)
        except DataError as error:
            refused.append(str(error))
    purpose = "to train on" if role == "train" else "to test on"
    print(f"{task.name}, {purpose}: {len(infos)} pictures can be used, {len(refused)} are refused")
    sizes = Counter((info.width, info.height) for info in infos.values()).most_common()
    for (width, height), number in sizes[:SIZES_SHOWN]:
        print(f"  {number} of {width} x {height}")
    if len(sizes) > SIZES_SHOWN:
        widths, heights = zip(*(size for size, _ in sizes), strict=True)
        print(
            f"  {sum(number for _, number in sizes[SIZES_SHOWN:])} of {len(sizes) - SIZES_SHOWN} other sizes; all "
            f"within {min(widths)} x {min(heights)} and {max(widths)} x {max(heights)}"
        )
    names = defaultdict(list)
    for name, info in infos.items():
        names[info].append(name)
    for same in names.values():
        if len(same) > 1:
            say(f"  the same pixels: {printable(', '.join(same))}")
    for reason in refused:
        print(f"  refused: {reason}")
    if not refused:
        print(f"  fingerprint {fingerprint(Pictures(pictures, {}), cache)}")
    return bool(refused)


if __name__ == "__main__":
    sys.exit(main())
