"""Recognise published methods among the trials, and settings that hold the methods of one comparison.

A method brings part of its setting with it: initial values, standardised weights, the width of the Lite network.
Trials that differ in nothing else are compared as methods, under the paper's names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.space.study_cells import LITE, MEDIUM, REIMPLEMENTED, TITLES, published_method
from analysis.published.tables import published
from analysis.study.loading import NOT_RECORDED

METHOD_KEYS = ("network.initial", "network.standardise", "network.accumulate")
"""The keys of a setting that a method sets; the Lite network sets ``channels`` too."""

SUPER_RESOLUTION = "sr_x2"  # the task whose table names the methods at every scale

NETWORKS_OF_PAPER = ("srresnet", "dncnn")
"""The networks that the paper's names of the methods in full precision are about."""

ON_OTHER_NETWORKS = {"full_precision": "Full precision", LITE: "Lite"}

OTHER_NAMES = {
    **{MEDIUM: "BBCU-M", "identity": "Input", "bam": "BAM", "bicubic": "Bicubic"},
    **TITLES,
}
"""Names of methods that not every table of the paper has, or none."""


REIMPLEMENTED_MARK = " (reimplementation)"
"""What stands behind the name of a method whose authors' code is not known."""


def method_of(row: Mapping[str, Any] | pd.Series, reference: Mapping[str, str], factors: Iterable[str]) -> str:
    """Return the method of a trial as the paper's tables are keyed, such as ``bbcu binarize=[body,up]`` for BBCU-M."""
    return published_method(str(row["method"]), factors_of(row, factors), reference)


def factors_of(row: Mapping[str, Any] | pd.Series, factors: Iterable[str]) -> dict[str, str]:
    """Return the level of each factor of a trial as the user gave it; a factor that it does not have is left out."""
    return {name: str(row[f"level/{name}"]) for name in factors if row[f"level/{name}"] != ""}


def group_key(setting: Mapping[str, str], method: str, tested: str = "") -> dict[str, str]:
    """Return what a trial must share with others to be compared with them as a method.

    ``tested`` identifies its test pictures, as by what the baseline scores on them; it is empty if unknown. A method
    that trains nothing goes with any training data, if the test pictures are the same.
    """
    own = {*METHOD_KEYS, *(["channels"] if method == LITE else [])}
    if "train.steps" not in setting:
        own |= {"network.name", *(["data"] if tested else [])}
    shared = {key: value for key, value in setting.items() if key not in own}
    # Data that are not recorded may be any, so they match none that are.
    recorded = {} if "data" in own else {"data": NOT_RECORDED}
    return {**recorded, **shared, **({"tested": tested} if tested else {})}


def agrees(key: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether ``other`` has all entries of ``key``."""
    return key.items() <= other.items()


def names_of(task: str, networks: Iterable[str] = ()) -> dict[str, str]:
    """Return the paper's name of each method in its table of a task, such as ``BBCU-L`` for super-resolution.

    Scales without a table take the names of those that have one. A method whose authors released no code is named with
    that it is a reimplementation. On ``networks`` that the paper does not have, what is in full precision is not called
    by the name of the paper's network.
    """
    paper = published()
    table = SUPER_RESOLUTION if task.startswith("sr_") and task not in set(paper["task"]) else task
    paper = paper[paper["task"] == table]
    names = {**OTHER_NAMES, **dict(zip(paper["method"].tolist(), paper["name"].tolist(), strict=True))}
    if not {*networks} <= {*NETWORKS_OF_PAPER}:
        names |= ON_OTHER_NETWORKS
    return {name: title + REIMPLEMENTED_MARK * (name in REIMPLEMENTED) for name, title in names.items()}


def groups_of(keys: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Return, for each key that no other one contains, the positions of the keys that agree with it, in order.

    A key with few entries, such as that of an untrained baseline, belongs to every group that it agrees with.
    """
    largest: list[Mapping[str, str]] = []
    for key in sorted(keys, key=len, reverse=True):
        if not any(agrees(key, other) for other in largest):
            largest.append(key)
    return sorted([place for place, key in enumerate(keys) if agrees(key, other)] for other in largest)


def tested_on(trials: pd.DataFrame) -> list[str]:
    """Identify the test pictures of each trial by what the baseline scores on them; empty if no score is known."""
    # Only PSNR: it follows from whole numbers, so every machine computes the same to the last digits.
    columns = sorted(str(name) for name in trials if re.fullmatch(r"metric/baseline/.*/psnr_db", str(name)))
    return [
        " ".join(f"{name}={score}" for name, score in zip(columns, row, strict=True) if score == score)
        for row in trials[columns].round(6).to_numpy().tolist()
    ]


def rows_by_setting(trials: pd.DataFrame) -> list[tuple[dict[str, str], list[int]]]:
    columns = [str(name) for name in trials if str(name).startswith("setting/")]
    if not columns:
        return [({}, list(range(len(trials))))]
    names = [column.removeprefix("setting/") for column in columns]
    found: dict[tuple[str, ...], list[int]] = {}
    for position, values in enumerate(trials[columns].itertuples(index=False, name=None)):
        found.setdefault(values, []).append(position)
    return [
        ({name: value for name, value in zip(names, values, strict=True) if value != ""}, positions)
        for values, positions in found.items()
    ]
