"""What a committed report was made from, in one small file beside it, so that anybody can regenerate it.

``results.zip`` holds the typed frame of the trials, what was left out, and those files of the trials that the report
read: learning curves, scores by picture, probes, and the sample pictures that it can show. The same results give the
same bytes under one version of zlib.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.storage.folder import Identity
from analysis.report.pictures import SHOWN_PER_SET
from analysis.study.loading import Fetch, LeftOut, StudyResults, existing_file
from analysis.study.settings import natural
from bbcu.errors import ConfigError
from bbcu.files import replacing

ARCHIVE = "results.zip"

MOMENT = (1980, 1, 1, 0, 0, 0)  # the time stamp of every file in the archive: the earliest that the format has

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
    known = {
        "study": results.study,
        "margin_db": margin,
        "factors": list(results.factors),
        "reference": dict(results.reference),
        "left_out": [dataclasses.asdict(row) for row in results.left_out],
    }
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
            if path is not None and path.is_file():
                yield f"{number}/{name}", without_times(path) if name == "curve.csv" else path.read_bytes()
            elif path is not None:
                for below, sample in sample_files(path).items():
                    content = b"" if sample.is_dir() else sample.read_bytes()
                    digest = "" if sample.is_dir() else hashlib.sha256(content).hexdigest()
                    if digest and digest not in stored:
                        stored.add(digest)
                        yield f"pictures/{digest}.png", content
                    places[f"{number}/{name}/{below}"] = digest
    yield "pictures.json", as_json(places)


def without_times(curve: Path) -> bytes:
    """Return a learning curve without its times, which no report shows."""
    rows = [line.split(",")[:3] for line in curve.read_text(encoding="utf-8").splitlines()]
    return "".join(f"{','.join(row)}\n" for row in rows).encode()


def as_json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def numbered(trials: pd.DataFrame) -> list[tuple[int, Identity]]:
    return list(enumerate(zip(trials["cell"].astype(str), trials["seed"].astype(int), strict=True)))


def sample_files(folder: Path) -> dict[str, Path]:
    """Return the files of the test pictures that a report shows, and the folder of every picture, for counting."""
    found: dict[str, Path] = {}
    for test_set in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = sorted((path for path in test_set.iterdir() if path.is_dir()), key=lambda path: natural(path.name))
        for position, picture in enumerate(pictures):
            name = picture.relative_to(folder).as_posix()
            found[f"{name}/"] = picture
            if position < SHOWN_PER_SET:
                found |= {f"{name}/{path.name}": path for path in sorted(picture.glob("*.png"))}
    return found


@dataclasses.dataclass(frozen=True)
class Archive:
    """What a report was made from: the results, and the margin in dB."""

    results: StudyResults
    margin: float


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            with zipfile.ZipFile(path) as file:
                file.extractall(root)
            for below, digest in json.loads((root / "pictures.json").read_text(encoding="utf-8")).items():
                place = root / below
                (place.parent if digest else place).mkdir(parents=True, exist_ok=True)
                if digest:
                    shutil.copyfile(root / "pictures" / f"{digest}.png", place)
            archive = restored(root)
        except (OSError, zipfile.BadZipFile, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} does not hold the results of a study: {error}") from error
        yield archive


def restored(root: Path) -> Archive:
    """Read an archive that was unpacked to ``root``."""
    known: Mapping[str, Any] = json.loads((root / "study.json").read_text(encoding="utf-8"))
    trials = pd.read_csv(root / "trials.csv", dtype="str", keep_default_na=False)
    metrics = [name for name in trials.columns if name.startswith("metric/")]
    trials[metrics] = trials[metrics].replace("", "nan").astype("float64")
    trials = trials.astype({"seed": "int64"})
    finished = set(trials.index[trials["state"] == "finished"])
    results = StudyResults(
        study=known["study"],
        trials=trials,
        left_out=tuple(LeftOut(**row) for row in known["left_out"]),
        factors=tuple(known["factors"]),
        reference=known["reference"],
        files={
            identity: functools.partial(existing_file, root / str(number))
            for number, identity in numbered(trials)
            if number in finished
        },
    )
    return Archive(results, float(known["margin_db"]))
