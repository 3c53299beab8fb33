"""Which trials are published methods, and which settings hold the methods of one comparison.

A method brings a part of its setting along: its initial values, its standardised weights, the width of the Lite
network. Trials that differ in nothing else are compared as methods, under the names that the paper has for them.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from analysis.published.tables import published
from analysis.study.loading import NOT_RECORDED

BROUGHT = ("network.initial", "network.standardise", "network.accumulate")
"""The part of a setting that a method brings along."""

BBCU, LITE = "bbcu", "lite"

NO_RIVALS = frozenset({BBCU, "bbcu binarize=[body,up]", LITE, "full_precision", "bicubic", "identity"})
"""The methods that a study of BBCU's own parts may hold; only another one makes it a study of methods."""

UNTRAINED = ("bicubic", "identity")
"""The methods that train nothing."""

SUPER_RESOLUTION = "sr_x2"
"""The task whose table names the methods at every scale."""

OTHER_NAMES = {"bbcu binarize=[body,up]": "BBCU-M", "identity": "Input"}
"""Names of methods that not every table of the paper has."""


def with_planned_methods(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials, those that never ran with the method that their planned name tells, so that a gap has its name."""
    planned = trials["name"].str.partition(" (")[0].replace("reference", BBCU)
    return trials.assign(method=trials["method"].where(trials["method"] != "", planned))


def method_of(row: "pd.Series", reference: Mapping[str, str], factors: Iterable[str]) -> str:
    """The method of a trial as the paper's tables are keyed, such as ``bbcu binarize=[body,up]`` for BBCU-M.

    A method with other levels than its own is recorded as custom; so is BBCU-M, which is BBCU but for one level.
    """
    moved = {name: str(row[f"level/{name}"]) for name in factors if row[f"level/{name}"] != reference.get(name)}
    if row["method"] not in NO_RIVALS and set(moved) <= {"binarize"}:
        return f"bbcu binarize={moved['binarize']}" if moved else BBCU
    return str(row["method"])


def group_key(setting: Mapping[str, str], method: str, tested: str = "") -> dict[str, str]:
    """What a trial must share with others to be compared with them as a method.

    ``tested`` tells its test pictures from others, as by what the baseline scores on them; empty, it tells nothing.
    A method that trains nothing is at home with whatever the others train on, if they are tested on the same pictures.
    """
    brought = {*BROUGHT, *(["channels"] if method == LITE else [])}
    if "train.steps" not in setting:
        brought |= {"network.name", *(["data"] if tested else [])}
    shared = {key: value for key, value in setting.items() if key not in brought}
    # Data that are not recorded may be any: they agree with none that are.
    recorded = {} if "data" in brought else {"data": NOT_RECORDED}
    return {**recorded, **shared, **({"tested": tested} if tested else {})}


def agrees(key: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether ``other`` has all that ``key`` says."""
    return key.items() <= other.items()


def names_of(task: str) -> dict[str, str]:
    """What the paper calls each method in its table of a task, such as ``BBCU-L`` at super-resolution.

    Scales that the paper has no table of have the names of those that it has.
    """
    paper = published()
    told = SUPER_RESOLUTION if task.startswith("sr_") and task not in set(paper["task"]) else task
    paper = paper[paper["task"] == told]
    return {**OTHER_NAMES, **dict(zip(paper["method"].tolist(), paper["name"].tolist(), strict=True))}


def compared_methods(
    cells: pd.DataFrame, reference: Mapping[str, str], factors: Sequence[str], task: str
) -> dict[str, str]:
    """The paper's name of each cell's method, where the cells are a study of methods; empty where they are not.

    They are one where each cell is another published method and some of them is none of BBCU's own kin. ``cells`` has
    a row for each, with its key under ``cell``.
    """
    names = names_of(task)
    found = {str(row["cell"]): method_of(row, reference, factors) for _, row in cells.iterrows()}
    published_once = len(set(found.values())) == len(found) and all(method in names for method in found.values())
    if not published_once or len(found) < 2 or NO_RIVALS.issuperset(found.values()):
        return {}
    return {cell: names[method] for cell, method in found.items()}


def settings_of_methods(
    settings: Sequence[Mapping[str, str]], methods: Sequence[frozenset[str]], tested: Sequence[str] | None = None
) -> list[list[int]]:
    """Which settings differ in nothing but what methods bring along, as groups of their positions, in order.

    ``methods`` are those of each setting's trials, and ``tested`` tells their test pictures apart where that is known.
    A setting that could go with two groups, as the Lite network does where another one is trained at two widths, stays
    alone.
    """
    keys = [
        group_key(setting, next(iter(found)) if len(found) == 1 else "", pictures)
        for setting, found, pictures in zip(settings, methods, tested or [""] * len(settings), strict=True)
    ]
    whole: list[dict[str, str]] = []
    for key in sorted(keys, key=len, reverse=True):
        if not any(agrees(key, other) for other in whole):
            whole.append(key)
    groups: dict[tuple[int, int], list[int]] = {}
    for position, key in enumerate(keys):
        places = [place for place, other in enumerate(whole) if agrees(key, other)]
        groups.setdefault((places[0], -1) if len(places) == 1 else (-1, position), []).append(position)
    return sorted(groups.values())
