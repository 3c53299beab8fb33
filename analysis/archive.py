"""What a committed report was made from, in one small file beside it, so that anybody can make it again.

``results.zip`` holds the typed frame of the trials, what was left out, and those files of the trials that the report
asked for: learning curves, scores by picture, probes, and of the sample pictures the ones that it can show. The same
results give the same bytes under one version of zlib.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.store import read_json, replacing
from analysis.pictures import SHOWN_PER_SET
from analysis.results import Fetch, Identity, LeftOut, StudyResults, kept_file
from analysis.sections import natural
from bbcu.errors import ConfigError

ARCHIVE = "results.zip"

MOMENT = (1980, 1, 1, 0, 0, 0)
"""The time stamp of every file in the archive: the earliest that the format has."""

KNOWN_FROM_THE_FRAME = frozenset(
    {
        *("study", "cell", "seed", "name", "factors", "levels", "reference", "setting", "method", "task"),
        *("baseline", "cost", "timing", "provenance"),
    }
)
"""The keys of a ``result.json`` that the trials' frame holds already."""


Asked = set[tuple[Identity, str]]
"""The files that a report asked for: the trial and the name."""


def recording(results: StudyResults) -> tuple[StudyResults, Asked]:
    """The same study, and a set that names every file which is asked for through it."""
    asked: Asked = set()
    files = {
        identity: functools.partial(recorded_fetch, asked, identity, fetch) for identity, fetch in results.files.items()
    }
    return dataclasses.replace(results, files=files), asked


def recorded_fetch(asked: Asked, identity: Identity, fetch: Fetch, name: str) -> Path | None:
    """The file as ``fetch`` gives it, and a note that it was asked for."""
    asked.add((identity, name))
    return fetch(name)


def write_archive(results: StudyResults, asked: Asked, folder: Path) -> Path:
    """Put ``results.zip`` into a report's folder, with the files that the report asked for, and give its path."""
    path = folder / ARCHIVE
    with replacing(path) as temporary:
        temporary.write_bytes(archive(results, asked))
    return path


def archive(results: StudyResults, asked: Asked) -> bytes:
    """The bytes of ``results.zip``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, content in sorted(contents(results, asked).items()):
            file.writestr(entry(name), content)
    return buffer.getvalue()


def entry(name: str) -> zipfile.ZipInfo:
    """A file or, where its name ends in a slash, a folder of the archive, with nothing of this machine in it."""
    info = zipfile.ZipInfo(name, MOMENT)
    folder = name.endswith("/")
    info.compress_type = zipfile.ZIP_STORED if folder or name.endswith(".png") else zipfile.ZIP_DEFLATED
    info.create_system, info.external_attr = 3, (0o40755 if folder else 0o100644) << 16
    return info


def contents(results: StudyResults, asked: Asked) -> dict[str, bytes]:
    """Every file of the archive by its name; the folder of a finished trial is its number in the frame."""
    known = {
        "study": results.study,
        "factors": list(results.factors),
        "reference": dict(results.reference),
        "left_out": [
            {"levels": dict(row.levels), "setting": dict(row.setting), "reason": row.reason} for row in results.left_out
        ],
    }
    trials = results.trials.to_csv(index=False, lineterminator="\n").encode()
    files = {"study.json": as_json(known), "trials.csv": trials}
    pictures: dict[str, str] = {}
    for number, identity in numbered(results.trials):
        for name in sorted(name for other, name in asked if other == identity):
            path = results.files[identity](name)
            if path is None:
                continue
            if path.is_file():
                files[f"{number}/{name}"] = kept_part(path)
                continue
            for below, sample in sample_files(path).items():
                content = b"" if sample.is_dir() else sample.read_bytes()
                digest = "" if sample.is_dir() else hashlib.sha256(content).hexdigest()
                pictures[f"{number}/{name}/{below}"] = digest
                files |= {f"pictures/{digest}.png": content} if digest else {}
    return files | {"pictures.json": as_json(pictures)}


def kept_part(path: Path) -> bytes:
    """A learning curve without its times, of a ``result.json`` what is not in the frame, any other file as it is."""
    if path.name == "curve.csv":
        rows = [line.split(",")[:3] for line in path.read_text(encoding="utf-8").splitlines()]
        return "".join(f"{','.join(row)}\n" for row in rows).encode()
    if path.name == "result.json":
        record = read_json(path) or {}
        return as_json({key: record[key] for key in record.keys() - KNOWN_FROM_THE_FRAME})
    return path.read_bytes()


def as_json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def numbered(trials: pd.DataFrame) -> list[tuple[int, Identity]]:
    """Every trial with its number in the frame."""
    return [
        (n, (str(cell), int(seed))) for n, (cell, seed) in enumerate(zip(trials["cell"], trials["seed"], strict=True))
    ]


def sample_files(folder: Path) -> dict[str, Path]:
    """The files of the test pictures that a report shows, and every picture's folder, since the report counts them."""
    found: dict[str, Path] = {}
    for test_set in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = sorted((path for path in test_set.iterdir() if path.is_dir()), key=lambda path: natural(path.name))
        for position, picture in enumerate(pictures):
            name = picture.relative_to(folder).as_posix()
            found[f"{name}/"] = picture
            if position < SHOWN_PER_SET:
                found |= {f"{name}/{path.name}": path for path in sorted(picture.glob("*.png"))}
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[StudyResults]:
    """The study in a ``results.zip``, as long as the body runs; raises ConfigError where it is none."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            with zipfile.ZipFile(path) as file:
                file.extractall(root)
            put_pictures(root)
            study = restored(root)
        except (OSError, zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is no results of a study: {error}") from error
        yield study


def put_pictures(root: Path) -> None:
    """Put the sample pictures, of which the archive holds one where several trials have the same, at their places."""
    places: Mapping[str, str] = json.loads((root / "pictures.json").read_text(encoding="utf-8"))
    for name, digest in places.items():
        path = root / name
        (path.parent if digest else path).mkdir(parents=True, exist_ok=True)
        if digest:
            shutil.copyfile(root / "pictures" / f"{digest}.png", path)


def restored(root: Path) -> StudyResults:
    """The study whose archive was unpacked to ``root``."""
    known: Mapping[str, Any] = json.loads((root / "study.json").read_text(encoding="utf-8"))
    trials = typed(pd.read_csv(root / "trials.csv", dtype="str", keep_default_na=False))
    finished = set(trials.index[trials["state"] == "finished"])
    return StudyResults(
        study=known["study"],
        trials=trials,
        left_out=tuple(left_out(known["left_out"])),
        factors=tuple(known["factors"]),
        reference=known["reference"],
        files={
            identity: functools.partial(kept_file, root / str(number))
            for number, identity in numbered(trials)
            if number in finished
        },
    )


def typed(trials: pd.DataFrame) -> pd.DataFrame:
    """The frame with its numbers as numbers."""
    metrics = [name for name in trials.columns if name.startswith("metric/")]
    trials[metrics] = trials[metrics].replace("", "nan").astype("float64")
    return trials.astype({"seed": "int64"})


def left_out(rows: Iterable[Mapping[str, Any]]) -> Iterator[LeftOut]:
    for row in rows:
        yield LeftOut(row["levels"], row["setting"], row["reason"])
