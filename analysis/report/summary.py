"""The facts of a report that an index of reports shows: ``summary.json``, which the report itself writes.

An index of many reports then opens none of their archives. A summary may come from anyone, so it is checked when it is
read: what it calls a text is shown as one, and its figure is a file beside it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field, StringConstraints, ValidationError

from ablations.storage.formats import first_problem
from analysis.effects.claims import Status
from analysis.effects.family import Conclusion
from analysis.report.chapter import Chapter
from analysis.report.forms import Parser
from analysis.report.opening import Opening
from analysis.report.shown import plain
from analysis.report.words import short
from analysis.statistics.rounding import rounded
from analysis.study.loading import NOT_RECORDED
from analysis.study.schema import MOST_TRIALS, STATES, Checked, Text
from bbcu.files import read_bytes

SUMMARY = "summary.json"

LARGEST_SUMMARY = 2**20  # bytes; that of a study of two tasks has two thousand
MOST_SECONDS = 1e15  # as any number in the results of a study
MOST_CHANGES = 1_000_000

FIRST_FIGURE = re.compile(r"^!\[.*\]\([\w.-]+\.png\)$", re.ASCII | re.MULTILINE)

FigureName = Annotated[str, StringConstraints(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.png\z")]
Count = Annotated[int, Field(ge=0, le=MOST_CHANGES)]


class Figure(Checked):
    """The first figure of the page: a file beside it, and what it shows."""

    file: FigureName
    shows: Text


class Task(Checked):
    """One task of a study: what was trained on what, in words; empty where that varies or is not known."""

    task: Text
    network: Text
    trained_on: Text
    steps: Text
    test_sets: Annotated[list[Text], Field(max_length=MOST_TRIALS)]


class Summary(Checked):
    """What an index shows of a report.

    ``seeds`` are the fewest and the most of a cell, ``trials`` how many of the plan are in each state, ``changes`` the
    rows of the first table, and ``verdicts`` how many conclusions of each kind they have, one for each test set.
    ``train_s`` has the seconds that the finished trainings of the plan took, added up for each processor.
    """

    study: Text
    question: Text
    figure: Figure | None
    tasks: Annotated[list[Task], Field(max_length=MOST_TRIALS)]
    cells: Count
    seeds: Annotated[list[Count], Field(min_length=2, max_length=2)]
    trials: dict[Annotated[str, StringConstraints(pattern=rf"\A(?:{'|'.join(STATES)})\z")], Count]
    changes: Count
    verdicts: dict[Conclusion, Count]
    claims: dict[Status, Count]
    train_s: dict[Text, Annotated[float, Field(ge=0, le=MOST_SECONDS)]]

    @property
    def trainings(self) -> int:
        """How many trials of the plan have finished."""
        return self.trials.get("finished", 0)


def summary_of(opening: Opening, chapters: Sequence[Chapter], page: str) -> bytes:
    """Return the summary of a report as its file, from what its page says first and from the page."""
    planned = opening.study.planned
    verdicts = Counter(
        found.conclusion
        for row in opening.rows
        for panel in opening.panels
        if (found := row.measured(panel, chapters)) and found.conclusion
    )
    claims = {status: len(opening.claims(status)) for status in Status}
    seeds = planned.groupby("cell")["seed"].nunique()
    summary = Summary(
        study=short(opening.study.study),
        question=short(plain(Parser().parseInline(opening.question)[0])),
        figure=first_figure(page),
        tasks=[task_of(opening, number) for number in range(len(chapters))],
        cells=len(seeds),
        seeds=[int(seeds.min()), int(seeds.max())] if len(seeds) else [0, 0],
        trials={str(state): int(number) for state, number in planned["state"].value_counts().items()},
        changes=len(opening.rows),
        verdicts=dict(verdicts),
        claims={status: number for status, number in claims.items() if number},
        train_s=rounded(seconds_by_processor(planned[planned["state"] == "finished"])),
    )
    return (json.dumps(summary.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def first_figure(page: str) -> Figure | None:
    """Return the first figure of a page, None if it has none."""
    found = FIRST_FIGURE.search(page)
    if found is None:
        return None
    (picture,) = Parser().parseInline(found[0])[0].children or []
    return Figure(file=str(picture.attrGet("src")), shows=short(plain(picture)))


def task_of(opening: Opening, number: int) -> Task:
    conditions, results = opening.conditions[number], opening.chapters[number].results
    words = (short(text) for text in (conditions.network, conditions.trained_on, conditions.steps))
    network, trained_on, steps = words
    return Task(
        task=short(conditions.task),
        network=network,
        trained_on=trained_on,
        steps=steps,
        test_sets=[short(name) for name in results.sets],
    )


def seconds_by_processor(finished: pd.DataFrame) -> dict[str, float]:
    """Add up how long trainings took, in seconds, for each processor by its recorded name."""
    seconds: dict[str, list[float]] = {}
    for text, taken in zip(finished["provenance"], finished.get("metric/timing/train_s", ()), strict=False):
        seconds.setdefault(short(processor(json.loads(text) if text else {})), []).append(taken)
    return {name: math.fsum(seconds[name]) for name in sorted(seconds)}


def processor(provenance: dict[str, object]) -> str:
    """Return the name of the processor that trained: that of the GPU, or of the CPU where there was none."""
    device = str(provenance.get("device") or NOT_RECORDED)
    named = re.fullmatch(r"cuda \((.+)\)", device)
    if named:
        return named[1]
    return str(provenance.get("cpu") or NOT_RECORDED) if device == "cpu" else device


def read_summary(path: Path) -> Summary:
    """Read a summary; raises OSError if there is none, and ValueError, in one line, if it cannot be believed."""
    try:
        return Summary.model_validate_json(read_bytes(path, LARGEST_SUMMARY))
    except ValidationError as error:
        raise ValueError(f"{SUMMARY}: {first_problem(error)}") from None
