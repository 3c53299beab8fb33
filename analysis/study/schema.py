"""What the files of a study must look like to be believed: types, ranges, lengths, and what contradicts itself.

Files come from other machines and people, and from disks that were full. What is read here is checked once, so that
the rest of ``analysis`` may trust it.
"""

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

from ablations.space.settings import LAST_SEED
from ablations.space.stopping_rule import ERROR_RATE, StoppingRule
from ablations.storage.formats import MOST_DECIBELS, first_problem

TEXT_COLUMNS = (
    *("cell", "name", "planned", "state", "reason", "run_id", "method", "task"),
    *("git", "git_dirty", "provenance"),
)
"""The columns of the trials that every row has, besides the whole number ``seed``."""

LATER_COLUMNS = {"planned": "true"}
"""The columns that earlier archives lack, and what they stand for there."""

GROUPS = ("factor/", "level/", "setting/", "metric/")
"""How the other columns of the trials begin."""

NEEDED = ("cost/ops_g", "cost/params_k", "timing/train_s")
"""The metrics that every finished trial has, besides those of its test sets."""

COUNTS = ("full_macs_g", "binary_macs_g")
"""The costs by kind of multiply-add, in 10^9, which newer trials record."""

MEASURED_COSTS = ("latency_ratio", "latency_ms", "twin_ms", "packed_kb")
"""The costs that a trial with ``measure.latency=true`` records."""

STATES = ("finished", "failed", "interrupted", "pruned", "running", "missing")

MOST_TRIALS, MOST_COLUMNS = 100_000, 1_000
LONGEST_NAME = 255
"""The most characters in the name of a study, factor, key, metric or test set."""

MOST_MARGIN_DB = 1000
MOST_LOOK = 100
"""The most seeds of a look, as in a sweep: the time to compute a boundary grows with it."""

LARGEST_RISE = 100.0
"""The steepest boundary, which leaves nothing to any look but the last."""

LONGEST_TEXT = 100_000
"""The most characters in any other text, such as the provenance of a trial."""

MOST_SHOWN = 100  # how many characters of a value a message shows

LARGEST_NUMBER = 1e15
SAME_NUMBER = 1e-9  # the relative difference between two spellings of one number
SAME_PSNR_DB = 1e-3  # a result has six digits, and the learning curve all

CELL = re.compile(r"[0-9a-f]{64}")
WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
NUMBER = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,3})?")


def _shown(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has control characters")
    return text


def _without_folder(text: str) -> str:
    if "/" in text:
        raise ValueError("is a path")
    return text


Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT), AfterValidator(_shown)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME), AfterValidator(_shown)]
BaseName = Annotated[Name, AfterValidator(_without_folder)]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Psnr = Annotated[float, Field(ge=0, le=MOST_DECIBELS)]
Key = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
WholeNumber = Annotated[int, Field(ge=-(2**63), lt=2**63)]
AnyText = Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]
"""Text that may have control characters, since a report escapes them."""
Scalar = AnyText | bool | WholeNumber | Number | None


class Checked(BaseModel):
    """An object of JSON; keys that nothing reads are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class PictureScore(Checked):
    """The score of one test picture."""

    psnr_db: Psnr


class TestSetScores(Checked):
    """The scores of a test set; ``images`` are by the name of the picture."""

    psnr_db: Psnr | None = None
    ssim: Number | None = None
    images: dict[Text, PictureScore] | None = None


class Unit(Checked):
    """What was measured in one binary unit; ``bbcu.training.probes`` defines it."""

    sign_loss: Number | None = None
    output_loss: Number | None = None
    window: Number | None = None
    zeros: Number | None = None
    entropy: Number | None = None
    flipped: Number | None = None
    branch_ratio: Number | None = None
    residual: dict[Name, Number | None] | None = None
    branch: dict[Name, Number | None] | None = None
    input: dict[Name, Number | None] | None = None


class Probes(Checked):
    """What was measured inside a network, by unit from the input to the output."""

    units: dict[Name, Unit] | None = None


class Record(Checked):
    """What is read of a trial's ``result.json`` beyond the table of trials."""

    cell: Name | None = None
    seed: WholeNumber | None = None
    metrics: dict[Name, TestSetScores] = {}
    baseline: dict[Name, TestSetScores] = {}
    cost: dict[Name, Number | None] = {}
    timing: dict[Name, Number | None] = {}
    probes: Probes | None = None
    dead: bool | Text | None = None


class Provenance(Checked):
    """Where a trial ran: the versions of packages, and values by any other key."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar | list[Scalar] | dict[AnyText, Scalar]]

    packages: dict[AnyText, AnyText] = {}


Value = Text | bool | WholeNumber | Number | None
Values = Value | list[Value]


class Design(Checked):
    """The design of a sweep, as ``plan.json`` records it; every key may be missing."""

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    options: Annotated[dict[Name, Values | list[Values] | dict[Name, Values]], Field(max_length=MOST_COLUMNS)] = {}
    exclude: Annotated[list[Text], Field(max_length=MOST_TRIALS)] = []
    notes: Annotated[list[Text], Field(max_length=MOST_TRIALS)] = []


def read_design(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a plan's design; empty if it cannot be believed."""
    known = {name: content[name] for name in Design.model_fields if name in content}
    try:
        return Design.model_validate(known).model_dump(exclude_unset=True)
    except ValidationError:
        return {}


ComparedCells = Annotated[list[Key], Field(min_length=2, max_length=2)]


class Rule(Checked):
    """The stopping rule of a study, as ``plan.json`` records it."""

    model_config = ConfigDict(extra="forbid")

    looks: Annotated[list[Annotated[int, Field(ge=2, le=MOST_LOOK)]], Field(min_length=1, max_length=MOST_LOOK)]
    first_seed: Annotated[int, Field(ge=0, le=LAST_SEED)]
    margin_db: Annotated[float, Field(gt=0, le=MOST_MARGIN_DB)]
    families: Annotated[list[Annotated[list[ComparedCells], Field(max_length=MOST_TRIALS)]], Field(max_length=100)]
    error_rate: Annotated[float, Field(ge=ERROR_RATE, le=ERROR_RATE)]
    floor: Annotated[float, Field(gt=0, le=1)]
    rise: Annotated[float, Field(ge=0, le=LARGEST_RISE)]

    @field_validator("looks")
    @classmethod
    def _ascend(cls, looks: list[int]) -> list[int]:
        if any(after <= before for before, after in itertools.pairwise(looks)):
            raise ValueError("they do not ascend")
        return looks

    @field_validator("families")
    @classmethod
    def _once(cls, families: list[list[list[str]]]) -> list[list[list[str]]]:
        pairs = [frozenset(pair) for family in families for pair in family]
        if len(set(pairs)) < len(pairs) or any(len(pair) < 2 for pair in pairs):
            raise ValueError("a comparison is there twice, or is of a cell with itself")
        return families


def read_rule(content: Mapping[str, Any] | None) -> StoppingRule | None:
    """Return the stopping rule of a plan, None if it has none; raises ValueError, in one line, for an impossible one.

    A study is never read without its rule: the verdicts of a fixed number of seeds would be wrong too often.
    """
    if content is None:
        return None
    try:
        return StoppingRule.of(Rule.model_validate(content).model_dump())
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def read_record(content: bytes) -> dict[str, Any]:
    """Return what is read of a ``result.json``; raises ValueError, in one line, if it cannot be believed."""
    try:
        return Record.model_validate_json(content).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by the metrics that the table of trials calls them."""
    scores = {
        f"{prefix}{name}/{metric}": scores.get(metric)
        for prefix, group in (("", "metrics"), ("baseline/", "baseline"))
        for name, scores in record.get(group, {}).items()
        for metric in ("psnr_db", "ssim")
    }
    others = {f"{group}/{name}": value for group in ("cost", "timing") for name, value in record.get(group, {}).items()}
    return {name: value for name, value in {**scores, **others}.items() if value is not None}


def contradiction(row: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Say in which number the record of a trial differs from its row in the table of trials; empty if in none."""
    for key in ("cell", "seed"):
        if record.get(key) is not None and record[key] != row[key]:
            return f"{key} is {record[key]} in its result.json, but {row[key]} in the table"
    for name, value in metrics_of(record).items():
        known = row.get(f"metric/{name}", math.nan)
        if not math.isclose(known, value, rel_tol=SAME_NUMBER):
            return f"{name} is {value:g} in its result.json, but {known:g} in the table"
    return ""


def doubt_about(row: Mapping[str, Any]) -> str:
    """Say why the numbers of a finished trial cannot be those of one; empty if there is no reason."""
    metrics = {
        name.removeprefix("metric/"): value
        for name, value in row.items()
        if name.startswith("metric/") and value is not None and not (isinstance(value, float) and math.isnan(value))
    }
    for name, value in metrics.items():
        if not _is_possible(name, value):
            return f"its {name} is {_short(value)}, which cannot be"
    sets = scored_sets(metrics)
    wanted = [*NEEDED, *(each for name in sets for each in (f"{name}/ssim", f"baseline/{name}/psnr_db"))]
    missing = [name for name in wanted if name not in metrics]
    if missing or not sets:
        return f"it has no {missing[0]}" if missing else "it has no score on a test set"
    return doubt_about_provenance(str(row.get("provenance") or ""))


def doubt_about_provenance(text: str) -> str:
    try:
        if text:
            Provenance.model_validate_json(text)
    except ValidationError as error:
        return f"its provenance is damaged: {first_problem(error)}"
    return ""


def _is_possible(metric: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if metric.endswith(("/psnr_db", "/psnr_rgb_db")):
        return 0 <= value <= MOST_DECIBELS
    if metric.endswith("/ssim"):
        return abs(value) <= 1 + SAME_NUMBER
    if metric in MEASURED:
        return SMALLEST_MEASURED <= value <= LARGEST_MEASURED
    return (0 if metric.startswith(("cost/", "timing/")) else -LARGEST_NUMBER) <= value <= LARGEST_NUMBER


MEASURED = frozenset(f"cost/{name}" for name in MEASURED_COSTS)
SMALLEST_MEASURED, LARGEST_MEASURED = 1e-6, 1e9
"""The range of what is measured: logarithms are taken of it, and ratios."""


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)[:MOST_SHOWN]


def scored_sets(metrics: Iterable[str]) -> list[str]:
    """Return the test sets among the names of metrics."""
    found = (re.fullmatch(r"([^/]+)/psnr_db", name) for name in metrics)
    return [match[1] for match in found if match and match[1] != "train"]


def read_trials(content: bytes, factors: Sequence[str]) -> pd.DataFrame:
    """Read the table of trials of a study with these factors.

    Raises ValueError, in one line with the row and column, for anything that a report does not write into it.
    """
    rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    header, rows = (rows[0], rows[1:]) if rows else ([], [])
    _check_header(header, factors)
    if not 0 < len(rows) <= MOST_TRIALS:
        raise ValueError(f"{len(rows)} trials; valid: 1 to {MOST_TRIALS}")
    for number, row in enumerate(rows, start=1):
        _check_row(number, header, row)
    trials = pd.DataFrame(rows, columns=header, dtype="str")
    metrics = [name for name in header if name.startswith("metric/")]
    trials[metrics] = trials[metrics].replace("", "nan").astype("float64")
    trials = trials.astype({"seed": "int64"})
    for name, text in LATER_COLUMNS.items():
        if name not in trials:
            trials[name] = pd.Series(text, index=trials.index, dtype="str")
    _check_agreement(trials)
    return trials


def rows_of(trials: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in trials.to_dict("records")]


def _check_header(header: Sequence[str], factors: Sequence[str]) -> None:
    wanted = [*TEXT_COLUMNS, "seed", *(f"{group}/{name}" for name in factors for group in ("factor", "level"))]
    missing = [name for name in wanted if name not in header and name not in LATER_COLUMNS]
    if missing:
        raise ValueError(f"the column {missing[0]} is missing")
    known = {*TEXT_COLUMNS, "seed"}
    wrong = [name for name in header if not (name in known or _is_column(name))]
    if wrong or len(header) > MOST_COLUMNS:
        raise ValueError(
            f"unknown column {wrong[0][:MOST_SHOWN]!r}" if wrong else f"{len(header)} columns are too many"
        )
    if len(set(header)) < len(header):
        raise ValueError("a column is there twice")


def _is_column(name: str) -> bool:
    group = next((group for group in GROUPS if name.startswith(group)), None)
    # The name of a metric may be that of a test set with its metric.
    return group is not None and name.isprintable() and len(group) < len(name) <= len(group) + 2 * LONGEST_NAME


Check = Callable[[str], object]

CHECKS: Mapping[str, Check] = {
    "cell": CELL.fullmatch,
    "seed": lambda text: WHOLE_NUMBER.fullmatch(text) and int(text) <= LAST_SEED,
    "planned": ("true", "false").__contains__,
    "state": STATES.__contains__,
    "git_dirty": ("", "true", "false").__contains__,
    "provenance": lambda text: not doubt_about_provenance(text),
}


def _check_row(number: int, header: Sequence[str], row: Sequence[str]) -> None:
    if len(row) != len(header):
        raise ValueError(f"row {number} has {len(row)} cells, but the header has {len(header)}")
    for name, text in zip(header, row, strict=True):
        valid: object = text.isprintable() and len(text) <= LONGEST_TEXT
        if valid and name.startswith("metric/"):
            # A trial that failed may have had a loss without end; a finished one is looked at below.
            valid = text in ("", "inf", "-inf") or NUMBER.fullmatch(text)
        elif valid and name in CHECKS:
            valid = CHECKS[name](text)
        if not valid:
            raise ValueError(f"row {number}, column {name}: {text[:MOST_SHOWN]!r} is not valid")


def _check_agreement(trials: pd.DataFrame) -> None:
    """Raise ValueError if a finished trial is in doubt, a trial is there twice, or a cell is described in two ways."""
    described: dict[str, tuple[str, ...]] = {}
    identities = set()
    columns = [name for name in map(str, trials) if name.startswith(("factor/", "setting/"))]
    for number, row in enumerate(rows_of(trials), start=1):
        if (row["cell"], row["seed"]) in identities:
            raise ValueError(f"row {number}: the cell and seed of another row")
        identities.add((row["cell"], row["seed"]))
        if row["state"] == "finished" and (reason := doubt_about(row)):
            raise ValueError(f"row {number}: a finished trial, but {reason}")
        form = tuple(row[name] for name in columns)
        if described.setdefault(row["cell"], form) != form:
            raise ValueError(f"row {number}: the cell of another row, but with other levels or another setting")
