"""What people read in MLflow's pages: descriptions of trials and studies, and the data of a trial. Pure functions."""

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ablations.space.factors import SHOWN, level_text
from ablations.space.interventions import by_part, ordered_keys, phrase_of
from ablations.storage.folder import CurvePoint, TrialFolder
from bbcu.files import read_text

NOTE = "mlflow.note.content"
"""The tag of a run or an experiment that MLflow shows as its description."""

NOTE_CHECK = "note"
"""The tag with the checksum of the description that was written here, so that one a user has edited is kept."""

LONGEST_NOTE = 5000
"""The most characters of a description: those of a tag that every version of MLflow accepts."""

MEAN = "mean_psnr_db"
"""The PSNR in dB, averaged over the test sets. MLflow alone has it: a result and a report compute it."""

LONGEST_DIGEST = 36
"""The most characters of the digest of a dataset in MLflow."""

LARGEST_CONFIG = 2**20
"""The most bytes of a ``config.yaml`` that is read."""


# --- descriptions -----------------------------------------------------------------------------------------------------


def note_tags(present: Mapping[str, str], text: str) -> dict[str, str]:
    """Return the tags that give a run or an experiment the description ``text``.

    ``present`` are its tags so far. Empty if nothing changes, or if a user has edited the description.
    """
    note = text if len(text) <= LONGEST_NOTE else f"{text[: LONGEST_NOTE - 1]}…"
    before = present.get(NOTE, "")
    if before == note or (before and present.get(NOTE_CHECK) != checksum(before)):
        return {}
    return {NOTE: note, NOTE_CHECK: checksum(note)}


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def description_of(params: Mapping[str, str], tags: Mapping[str, str], verdicts: Sequence[str] = ()) -> str:
    """Describe a trial in Markdown by what its run holds: the cell in words, its end, its verdicts, and its setting.

    MLflow folds all but the first lines, so what matters most comes first.
    """
    parts = [f"**{cell_in_words(tags)}**"]
    if tags.get("state") in ("failed", "interrupted", "pruned"):
        parts.append(f"**{tags['state']}**: {tags.get('reason') or 'no reason was recorded'}")
    elif tags.get("collapsed") == "true":
        parts.append(f"**collapsed**: {tags.get('collapsed_by', '')}")
    if verdicts:
        parts.append("\n".join(f"- {verdict}" for verdict in verdicts))
    steps = [f"{params['train.steps']} steps"] if params.get("train.steps") else []
    setting = ", ".join([task_in_words(params, tags), network_in_words(params), *steps, f"seed {tags['seed']}"])
    data = tags.get("data") or f"data {params.get('data', 'not recorded')[:SHOWN]}"
    return "\n\n".join([*parts, f"{setting}; {data}. Study `{tags['study']}`, cell `{tags['cell'][:SHOWN]}`."])


def cell_in_words(tags: Mapping[str, str]) -> str:
    """Say how a cell differs from the reference: ``BBCU with BatchNorm after the add, without the residual``."""
    method = tags["method"]
    levels, reference = (_levels(tags[name]) for name in ("levels", "reference"))
    changed = [key for key in ordered_keys([levels]) if levels[key] != reference.get(key, "")]
    pairs = [(phrase_of(key, levels[key]), phrase_of(key, reference.get(key, ""))) for key in changed]
    present = [after.noun for after, _ in pairs if after.noun]
    absent = [before.removed or before.noun for after, before in pairs if not after.noun and before.noun]
    parts = [f"{word} {', '.join(nouns)}" for word, nouns in (("with", present), ("without", absent)) if nouns]
    name = "" if method in ("bbcu", "custom") else f"{method}: "
    return f"{name}BBCU {', '.join(parts)}".strip()


def _levels(text: str) -> dict[str, str]:
    return by_part({name: level_text(level) for name, level in json.loads(text).items()})


def task_in_words(params: Mapping[str, str], tags: Mapping[str, str]) -> str:
    """Name a task with its strengths: ``denoise (sigma 25)``."""
    given = [f"{key} {params[f'task.{key}']}" for key in ("sigma", "quality") if params.get(f"task.{key}")]
    return f"{tags['task']} ({', '.join(given)})" if given else tags["task"]


def network_in_words(params: Mapping[str, str]) -> str:
    """Name a network with its size: ``srresnet of 64 channels and 16 blocks``."""
    given = {key: params[key] for key in ("channels", "blocks") if params.get(key)}
    size = [f"{number} {key.removesuffix('s') if number == '1' else key}" for key, number in given.items()]
    return f"{params.get('network.name', 'not recorded')}{' of ' if size else ''}{' and '.join(size)}"


# --- a study ----------------------------------------------------------------------------------------------------------


def study_description(study: str, plan: Mapping[str, Any], header: str) -> str:
    """Describe a study in Markdown by its plan and the comment that opens its file, which is empty if it has none."""
    cells = {row["cell"] for row in plan["trials"]}
    seeds = {row["seed"] for row in plan["trials"]}
    told = [header] if header else [f"Study `{study}`."]
    told.append(
        f"{_counted(len(plan['trials']), 'trial')}: {_counted(len(cells), 'cell')}, {_counted(len(seeds), 'seed')}."
    )
    if plan["left_out"]:
        combinations = _counted(len(plan["left_out"]), "combination")
        told.append(f"{combinations} left out, since they are impossible or the network of another cell.")
    return "\n\n".join([*told, f"Report: `python -m analysis {study}`"])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def header_of(path: Path) -> str:
    """Return the comment that opens the file of a study, as Markdown; empty if there is no such file.

    Its first line is the question; indented lines are commands.
    """
    try:
        lines = read_text(path, LARGEST_CONFIG).splitlines()
    except (OSError, ValueError):
        return ""
    comment = []
    for line in lines[1:] if lines[:1] and lines[0].startswith("# @package") else lines:
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ").rstrip()
        # Four spaces make a block of code in Markdown.
        comment.append(f"  {text}" if text.startswith("  ") else text)
    return "\n".join([f"**{comment[0]}**", *comment[1:]]) if comment else ""


# --- data -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Pictures of a trial as MLflow lists them; ``context`` is training or test, ``place`` a folder or a package."""

    name: str
    context: str
    place: str


BUNDLED = "the photographs of scikit-image and scikit-learn"


def data_sets_of(data: Mapping[str, Any] | None, *, trains: bool) -> tuple[DataSet, ...]:
    """Return the data sets that the key ``data`` of a config names; none without one.

    A training folder is called by its base name, and told from a test set of that name.
    """
    if not data:
        return ()
    if data.get("name") == "embedded":
        test = {"embedded": BUNDLED}
        train, place = "embedded-train", BUNDLED
    else:
        test = {str(name): str(folder) for name, folder in dict(data.get("test") or {}).items()}
        place = str(data.get("train"))
        train = PurePosixPath(place).name
        train = f"{train}-train" if train in test else train
    sets = [DataSet(train, "training", place)] if trains else []
    return (*sets, *(DataSet(name, "test", folder) for name, folder in test.items()))


def data_in_words(sets: Iterable[DataSet]) -> str:
    """Say what a trial trains and is tested on: ``trained on DIV2K, tested on Set5 and Set14``."""
    verbs = {"training": "trained on", "test": "tested on"}
    named = {context: [each.name for each in sets if each.context == context] for context in verbs}
    return ", ".join(f"{verbs[context]} {' and '.join(names)}" for context, names in named.items() if names)


def config_in(folder: TrialFolder) -> dict[str, Any]:
    """Return the config that a trial left in its folder; empty if it cannot be read."""
    try:
        # The base loader reads every value as text: it makes no objects, no numbers of many digits, and merges nothing.
        content = yaml.load(read_text(folder.config_path, LARGEST_CONFIG), Loader=yaml.BaseLoader)
    # A parser of a third party: what is no YAML raises YAMLError, ValueError, RecursionError or others.
    except Exception:
        return {}
    return content if isinstance(content, dict) else {}


# --- metrics ----------------------------------------------------------------------------------------------------------


def means_of(points: Iterable[CurvePoint]) -> list[CurvePoint]:
    """Return the mean PSNR over the test sets, :data:`MEAN`, at each step at which they were scored."""
    scores: dict[int, dict[str, float]] = {}
    times: dict[int, float] = {}
    for point in points:
        for name, value in point.metrics.items():
            if is_score(name):
                scores.setdefault(point.step, {})[name] = value
                times[point.step] = point.time
    return [
        CurvePoint(step, {MEAN: mean}, times[step])
        for step, found in scores.items()
        if not math.isnan(mean := statistics.fmean(found.values()))
    ]


def is_score(name: str) -> bool:
    """Whether a metric is the PSNR of a test set: ``Set5/psnr_db``, but not the baseline's or a training batch's."""
    first, _, metric = name.partition("/")
    return metric == "psnr_db" and first != "train"
