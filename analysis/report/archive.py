"""What a committed report was made from, in one small file beside it, so that anybody can make it again.

``results.zip`` holds the typed frame of the trials, what was left out, and those files of the trials that the report
asked for: learning curves, scores by picture, probes, and of the sample pictures the ones that it can show. The same
results give the same bytes under one version of zlib.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.storage.files import replacing
from ablations.storage.folder import Identity
from analysis.report.pictures import SHOWN_PER_SET
from analysis.statistics.estimates import MARGIN_DB
from analysis.study.loading import Fetch, LeftOut, StudyResults, existing_file
from analysis.study.settings import natural
from bbcu.errors import ConfigError

ARCHIVE = "results.zip"

MOMENT = (1980, 1, 1, 0, 0, 0)
"""The time stamp of every file in the archive: the earliest that the format has."""

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


def write_archive(results: StudyResults, asked: Asked, margin: float, folder: Path) -> Path:
    """Put ``results.zip`` into a report's folder, with the files that the report asked for, and give its path.

    ``margin`` is the difference in dB that did not matter to the report.
    """
    path = folder / ARCHIVE
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, content in contents(results, asked, margin):
            file.writestr(entry(name), content)
    return path


def entry(name: str) -> zipfile.ZipInfo:
    """A file or, where its name ends in a slash, a folder of the archive, with nothing of this machine in it."""
    info = zipfile.ZipInfo(name, MOMENT)
    folder = name.endswith("/")
    info.compress_type = zipfile.ZIP_STORED if folder or name.endswith(".png") else zipfile.ZIP_DEFLATED
    info.create_system, info.external_attr = 3, (0o40755 if folder else 0o100644) << 16
    return info


def contents(results: StudyResults, asked: Asked, margin: float) -> Iterator[tuple[str, bytes]]:
    """Every file of the archive with its name, one at a time, in one order for the same results.

    The folder of a finished trial is its number in the frame.
    """
    known = {
        "study": results.study,
        "margin_db": margin,
        "factors": list(results.factors),
        "reference": dict(results.reference),
        "left_out": [
            {
                "levels": dict(row.levels),
                "setting": dict(row.setting),
                "reason": row.reason,
                "same_as": row.same_as,
            }
            for row in results.left_out
        ],
    }
    yield "study.json", as_json(known)
    yield "trials.csv", results.trials.to_csv(index=False, lineterminator="\n").encode()
    names: dict[Identity, list[str]] = {}
    for identity, name in asked:
        names.setdefault(identity, []).append(name)
    places: dict[str, str] = {}
    for number, identity in numbered(results.trials):
        for name in sorted(names.get(identity, [])):
            path = results.files[identity](name)
            if path is not None and path.is_file():
                yield f"{number}/{name}", kept_part(path)
            elif path is not None:
                yield from kept_samples(path, f"{number}/{name}", places)
    yield "pictures.json", as_json(places)


def kept_samples(folder: Path, place: str, places: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """The sample pictures below a folder that no trial before had; ``places`` learns where each belongs."""
    known = set(places.values())
    for below, sample in sample_files(folder).items():
        content = b"" if sample.is_dir() else sample.read_bytes()
        digest = "" if sample.is_dir() else hashlib.sha256(content).hexdigest()
        places[f"{place}/{below}"] = digest
        if digest and digest not in known:
            known.add(digest)
            yield f"pictures/{digest}.png", content


def kept_part(path: Path) -> bytes:
    """A learning curve without its times, any other file as it is."""
    if path.name != "curve.csv":
        return path.read_bytes()
    rows = [line.split(",")[:3] for line in path.read_text(encoding="utf-8").splitlines()]
    return "".join(f"{','.join(row)}\n" for row in rows).encode()


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


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a report was made from: the results, and the margin in dB that it was made under."""

    results: StudyResults
    margin: float


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Kept]:
    """What a ``results.zip`` holds, as long as the body runs; raises ConfigError where it is none."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            with zipfile.ZipFile(path) as file:
                file.extractall(root)
            put_pictures(root)
            kept = restored(root)
        except (OSError, zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is no results of a study: {error}") from error
        yield kept


def put_pictures(root: Path) -> None:
    """Put the sample pictures, of which the archive holds one where several trials have the same, at their places."""
    places: Mapping[str, str] = json.loads((root / "pictures.json").read_text(encoding="utf-8"))
    for name, digest in places.items():
        path = root / name
        (path.parent if digest else path).mkdir(parents=True, exist_ok=True)
        if digest:
            shutil.copyfile(root / "pictures" / f"{digest}.png", path)


def restored(root: Path) -> Kept:
    """What was kept in the archive that was unpacked to ``root``; one without a margin had the usual one."""
    known: Mapping[str, Any] = json.loads((root / "study.json").read_text(encoding="utf-8"))
    trials = typed(pd.read_csv(root / "trials.csv", dtype="str", keep_default_na=False))
    finished = set(trials.index[trials["state"] == "finished"])
    results = StudyResults(
        study=known["study"],
        trials=trials,
        left_out=tuple(left_out(known["left_out"])),
        factors=tuple(known["factors"]),
        reference=known["reference"],
        files={
            identity: functools.partial(existing_file, root / str(number))
            for number, identity in numbered(trials)
            if number in finished
        },
    )
    return Kept(results, float(known.get("margin_db", MARGIN_DB)))


def typed(trials: pd.DataFrame) -> pd.DataFrame:
    """The frame with its numbers as numbers."""
    metrics = [name for name in trials.columns if name.startswith("metric/")]
    trials[metrics] = trials[metrics].replace("", "nan").astype("float64")
    return trials.astype({"seed": "int64"})


def left_out(rows: Iterable[Mapping[str, Any]]) -> Iterator[LeftOut]:
    for row in rows:
        yield LeftOut(row["levels"], row["setting"], row["reason"], row.get("same_as"))
