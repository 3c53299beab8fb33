"""What a committed report was made from, in one small file beside it, so that anybody can regenerate it.

``results.zip`` holds the typed frame of the trials, what was left out, and those files of the trials that the report
read: learning curves, scores by picture, probes, and the sample pictures that it can show. The same results give the
same bytes under one version of zlib.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ablations.space.factors import SHOWN
from ablations.space.price import PAPER, price_of
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.folder import Identity
from ablations.storage.formats import first_problem
from analysis.report.pictures import KINDS, LARGEST_PICTURE, SHOWN_PER_SET, is_shown_name, sample_folders_in
from analysis.report.unpacking import LARGEST_MEMBER, members
from analysis.study.data_names import DataNames, TestNames, TrainName
from analysis.study.experiment import is_experiment
from analysis.study.loading import SAMPLES, Fetch, LeftOut, StudyResults, believed_record, existing_file
from analysis.study.prices import lacking
from analysis.study.schema import (
    MOST_MARGIN_DB,
    MOST_TRIALS,
    Checked,
    Design,
    Key,
    Name,
    Rule,
    Text,
    contradiction,
    read_trials,
    rows_of,
)
from bbcu.errors import BbcuError, ConfigError, first_line
from bbcu.files import read_bytes, replacing

ARCHIVE = "results.zip"

MOMENT = (1980, 1, 1, 0, 0, 0)  # the time stamp of every file in the archive: the earliest that the format has

MOST_FACTORS, MOST_PLACES = 100, 100_000

DIGEST = re.compile(r"[0-9a-f]{64}")

Value = TypeVar("Value")

Asked = set[tuple[Identity, str]]  # the files that a report read: the trial and the name


def recording(results: StudyResults) -> tuple[StudyResults, Asked]:
    """Return the same study, and a set that collects every file which is read through it."""
    asked: Asked = set()

    def fetch_and_record(identity: Identity, fetch: Fetch, name: str) -> Path | None:
        asked.add((identity, name))
        return fetch(name)

    files = {
        identity: functools.partial(fetch_and_record, identity, fetch) for identity, fetch in results.files.items()
    }
    return dataclasses.replace(results, files=files), asked


def write_archive(results: StudyResults, asked: Asked, margin: float, folder: Path) -> Path:
    """Write ``results.zip`` into a report's folder, with the files that the report read, and return its path.

    ``margin`` is the difference in dB that did not matter to the report.
    """
    path = folder / ARCHIVE
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, content in contents(results, asked, margin):
            file.writestr(entry(name), content)
    return path


def entry(name: str) -> zipfile.ZipInfo:
    """Describe a file of the archive, or a folder if its name ends in a slash, without anything of this machine."""
    info = zipfile.ZipInfo(name, MOMENT)
    folder = name.endswith("/")
    info.compress_type = zipfile.ZIP_STORED if folder or name.endswith(".png") else zipfile.ZIP_DEFLATED
    info.create_system, info.external_attr = 3, (0o40755 if folder else 0o100644) << 16
    return info


def contents(results: StudyResults, asked: Asked, margin: float) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the archive with its name, one at a time, in the same order for the same results.

    The folder of a finished trial is its number in the frame. Pictures that trials share are stored once, under their
    SHA-256, and ``pictures.json`` says where each belongs.
    """
    known: dict[str, object] = {
        "study": results.study,
        "margin_db": margin,
        "factors": list(results.factors),
        "reference": dict(results.reference),
        "left_out": [dataclasses.asdict(row) for row in results.left_out],
        "pairing": results.pairing,
        "design": dict(results.design),
        "data_names": {data: dataclasses.asdict(names) for data, names in results.data_names.items()},
    }
    if results.rule is not None:
        known["rule"] = results.rule.record()
    if results.price != PAPER:
        known["cost_binary"] = results.price
    if results.experiment:
        known["experiment"] = results.experiment
    yield "study.json", as_json(known)
    yield "trials.csv", results.trials.to_csv(index=False, lineterminator="\n").encode()
    names: dict[Identity, list[str]] = {}
    for identity, name in sorted(asked):
        names.setdefault(identity, []).append(name)
    places: dict[str, str] = {}
    stored: set[str] = set()
    for number, identity in numbered(results.trials):
        for name in names.get(identity, []):
            path = results.files[identity](name)
            if path is not None and name != SAMPLES:
                content = kept(path, LARGEST_MEMBER)
                is_curve = name == "curve.csv" and identity not in results.damaged_curves
                yield f"{number}/{name}", without_times(content) if is_curve else content
            elif path is not None:
                for below, sample in sample_files(path).items():
                    content = b"" if sample is None else kept(sample, LARGEST_PICTURE)
                    digest = "" if sample is None else hashlib.sha256(content).hexdigest()
                    if digest and digest not in stored:
                        stored.add(digest)
                        yield f"pictures/{digest}.png", content
                    places[f"{number}/{name}/{below}"] = digest
    yield "pictures.json", as_json(places)


def kept(path: Path, limit: int) -> bytes:
    """Return the content of a trial's file; empty if it cannot be read, so that it is damaged in the archive too."""
    try:
        return read_bytes(path, limit)
    except OSError:
        return b""


def without_times(curve: bytes) -> bytes:
    """Return a learning curve without its times, which no report shows."""
    rows = [line.split(",")[:3] for line in curve.decode("utf-8").splitlines()]
    return "".join(f"{','.join(row)}\n" for row in rows).encode()


def as_json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def numbered(trials: pd.DataFrame) -> list[tuple[int, Identity]]:
    return list(enumerate(zip(trials["cell"].astype(str), trials["seed"].astype(int), strict=True)))


def sample_files(folder: Path) -> dict[str, Path | None]:
    """Return the files of the test pictures that a report shows, and None for the folder of every picture."""
    found: dict[str, Path | None] = {}
    shown: Counter[str] = Counter()
    for name in sorted(sample_folders_in(folder), key=lambda name: name.partition("/")[0]):
        found[f"{name}/"] = None
        test_set = name.partition("/")[0]
        shown[test_set] += 1
        if shown[test_set] <= SHOWN_PER_SET:
            paths = (folder / name / f"{kind}.png" for kind in sorted(KINDS))
            found |= {f"{name}/{path.name}": path for path in paths if path.exists()}
    return found


@dataclasses.dataclass(frozen=True)
class Archive:
    """What a report was made from: the results, with its price of a binary multiply-add, and the margin in dB."""

    results: StudyResults
    margin: float


class LeftOutRow(Checked):
    """A row of ``left_out`` in ``study.json``."""

    model_config = ConfigDict(extra="forbid")

    levels: dict[Name, Text]
    setting: dict[Name, Text]
    reason: Text
    same_as: Text | None


class DataNamesRow(Checked):
    """A row of ``data_names`` in ``study.json``."""

    model_config = ConfigDict(extra="forbid")

    train: TrainName
    test: TestNames


def _experiment(text: str) -> str:
    if not is_experiment(text):
        raise ValueError("is no address of an experiment")
    return text


def _price(text: str) -> str:
    try:
        price_of(text, "cost_binary")
    except ConfigError as error:
        raise ValueError(first_line(error)) from None
    return text


class Known(Checked):
    """``study.json``: what the report knew of the study besides its trials; earlier reports lack the last six."""

    model_config = ConfigDict(extra="forbid")

    study: Name
    margin_db: Annotated[float, Field(gt=0, le=MOST_MARGIN_DB)]
    factors: Annotated[list[Name], Field(max_length=MOST_FACTORS)]
    reference: dict[Name, Text]
    left_out: Annotated[list[LeftOutRow], Field(max_length=MOST_TRIALS)]
    pairing: bool = False
    design: Design = Design()
    data_names: dict[Key, DataNamesRow] = Field({}, max_length=MOST_TRIALS)
    rule: Rule | None = None
    cost_binary: Annotated[Name, AfterValidator(_price)] = PAPER
    experiment: Annotated[str, AfterValidator(_experiment)] = ""


PLACES = TypeAdapter(Annotated[dict[str, str], Field(max_length=MOST_PLACES)])
"""``pictures.json``: the SHA-256 of each sample picture by its place; empty for the folder of a picture."""

PLACE = re.compile(rf"(0|[1-9][0-9]{{0,5}})/{SAMPLES}/([^/\\]+)/([^/\\]+)/(?:({'|'.join(KINDS)})\.png)?")
"""A place of a picture: the trial's number, the test set, the picture, and which one of it."""


def archive_at(path: Path) -> Path | None:
    """Return the archive that a path means, itself or in a report's folder; None if there is neither.

    Something else in the place of an archive, such as a FIFO, is refused where it is opened.
    """
    # os.path answers False for a name that the system does not take, where pathlib raises.
    if os.path.isdir(path):
        return path / ARCHIVE if os.path.lexists(path / ARCHIVE) else None
    return path if os.path.lexists(path) else None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive, which may come from anyone; its files lie in a temporary folder until the end.

    Raises ConfigError, in one line, for an archive that is damaged, or holds what no report writes.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            unpack(path, root)
            archive = restored(root)
        except ValueError as error:
            raise ConfigError(f"{path} does not hold the results of a study: {first_line(error)}") from None
        except OSError as error:
            raise BbcuError(f"{path} cannot be unpacked to {root}: {error.strerror}") from None
        yield archive


def unpack(path: Path, root: Path) -> None:
    """Write the files of an archive below ``root``; raises ValueError for a picture that is another than it says."""
    for name, content in members(path):
        place = root / name
        if place.suffix == ".png" and hashlib.sha256(content).hexdigest() != place.stem:
            raise ValueError(f"{name} is damaged: it has another SHA-256")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)


def restored(root: Path) -> Archive:
    """Read an archive that was unpacked to ``root``; raises ValueError if it cannot be believed."""
    known = checked("study.json", lambda: Known.model_validate_json((root / "study.json").read_bytes()))
    trials = checked("trials.csv", lambda: read_trials((root / "trials.csv").read_bytes(), known.factors))
    finished = {number: identity for number, identity in numbered(trials) if trials["state"].iat[number] == "finished"}
    check_records(root, trials, finished)
    rule = None if known.rule is None else StoppingRule.of(known.rule.model_dump())
    check_rule(rule, known.margin_db, set(trials["cell"]))
    places = checked("pictures.json", lambda: PLACES.validate_json((root / "pictures.json").read_bytes(), strict=True))
    put_pictures(root, places, finished)
    results = StudyResults(
        study=known.study,
        trials=trials,
        left_out=tuple(LeftOut(**row.model_dump()) for row in known.left_out),
        factors=tuple(known.factors),
        reference=known.reference,
        files={identity: functools.partial(existing_file, root / str(number)) for number, identity in finished.items()},
        pairing=known.pairing,
        design=known.design.model_dump(exclude_unset=True),
        data_names={data: DataNames(row.train, tuple(row.test)) for data, row in known.data_names.items()},
        rule=rule,
        price=known.cost_binary,
        experiment=known.experiment,
    )
    if problem := lacking(results, results.price):
        raise ValueError(f"study.json: a binary multiply-add at {results.price[:SHOWN]}, but {problem}")
    return Archive(results, known.margin_db)


def checked(name: str, read: Callable[[], Value]) -> Value:
    """Return what ``read`` reads of a file; raises ValueError, in one line with the file's name, if it cannot."""
    try:
        return read()
    except ValidationError as error:
        raise ValueError(f"{name}: {first_problem(error)}") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name}: {first_line(error)}") from None


def check_rule(rule: StoppingRule | None, margin: float, cells: Collection[str]) -> None:
    """Raise ValueError if a stopping rule has another margin than the report, or compares a cell that is not here."""
    if rule is None:
        return
    if rule.margin_db != margin:
        raise ValueError(f"study.json: a margin of {margin:g} dB, but {rule.margin_db:g} dB in its stopping rule")
    if unknown := {cell for family in rule.families for pair in family for cell in pair}.difference(cells):
        raise ValueError(f"study.json: its stopping rule compares the cell {min(unknown)[:SHOWN]}, which has no trial")


def check_records(root: Path, trials: pd.DataFrame, finished: Mapping[int, Identity]) -> None:
    """Raise ValueError if a trial's ``result.json`` says something else than the table, or belongs to no trial."""
    rows = rows_of(trials)
    for folder in root.iterdir():
        if folder.name.isdecimal() and int(folder.name) not in finished:
            raise ValueError(f"{folder.name}/ belongs to no finished trial")
    for number in finished:
        record = believed_record(root / str(number) / "result.json")
        # A damaged one was damaged before it was put into the archive, and the report says so.
        if record is not None and (problem := contradiction(rows[number], record)):
            raise ValueError(f"{number}/result.json: {problem}")


def put_pictures(root: Path, places: Mapping[str, str], finished: Mapping[int, Identity]) -> None:
    """Link the sample pictures to their places, as a trial's folder has them; raises ValueError for another place."""
    for below, digest in places.items():
        match = PLACE.fullmatch(below)
        picture = root / "pictures" / f"{digest}.png"
        if (
            match is None
            or int(match[1]) not in finished
            or not all(is_shown_name(part) for part in match.group(2, 3))
            or (match[4] is None) != (digest == "")
            or (digest and (not DIGEST.fullmatch(digest) or not picture.is_file()))
        ):
            raise ValueError(f"pictures.json: {below[:100]!a} is no place of a picture")
        place = root / below
        (place.parent if digest else place).mkdir(parents=True, exist_ok=True)
        if digest:
            # Trials share pictures, and a copy for each place could fill the disk.
            place.symlink_to(picture)
