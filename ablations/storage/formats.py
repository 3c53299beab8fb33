"""The formats of a study's files: keys, types and ranges. Importing this module imports pydantic, so do it late.

The models only check what is read; the rest of the code works with the plain objects of JSON. Types are strict: no text
counts as a number, and no truth value as a whole number. Keys that a later version adds are allowed.
"""

import itertools
import math
import statistics
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ablations.space.price import PAPER, price_of
from bbcu.errors import ConfigError, first_line

LARGEST_WHOLE = 2**63 - 1
"""The largest whole number of tables, databases and torch's generators."""

YEAR_10000 = 253_402_300_800
MOST_DECIBELS = 200.0
"""No two different pictures of fewer than 10^12 values of 8 bits are as close as this."""

ROUNDING = 2e-6
"""How far a mean may be from the mean of its parts; all of them are rounded to 6 digits."""


LONGEST_PLACE = 100
"""How many characters a message shows of the keys that lead to a problem."""


def _possible_psnr(value: float) -> float:
    """Allow infinity, the PSNR of identical pictures."""
    if not (0 <= value <= MOST_DECIBELS or value == math.inf):
        raise ValueError(f"a PSNR of {value} dB is not possible")
    return value


def _price(text: str) -> str:
    try:
        price_of(text, "binary")
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


Key = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Whole = Annotated[int, Field(ge=0, le=LARGEST_WHOLE)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, lt=YEAR_10000, allow_inf_nan=False)]
"""Seconds since the epoch."""
Process = Annotated[int, Field(ge=1, le=2**31 - 1)]
Psnr = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_possible_psnr)]
Ssim = Annotated[float, Field(ge=-1.000001, le=1.000001)]
Level = bool | str | float | list[str]
Levels = dict[str, Level]


def first_problem(error: ValidationError) -> str:
    """Return where the first problem is and what it is: ``metrics.Set5.ssim: Field required``."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, found["loc"]))[:LONGEST_PLACE]
    return first_line(f"{place}: {found['msg']}" if place else found["msg"])


class Format(BaseModel):
    """Base of the formats; ``sealed_only`` has the keys that no version without checksums wrote."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    sealed_only: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def keys(cls) -> set[str]:
        """The keys of a file of this format."""
        return {field.alias or name for name, field in cls.model_fields.items()}


# --- results ----------------------------------------------------------------------------------------------------------


class Score(Format):
    """The scores of a picture, or the mean over a test set: PSNR and SSIM, and numbers by any other name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Finite]

    psnr_db: Psnr
    ssim: Ssim
    psnr_rgb_db: Psnr | None = None


class SetScore(Score):
    """The scores of a test set: the mean, and each picture's."""

    images: dict[str, Score] = {}


class Cost(Format):
    """Operations in 10^9 multiply-adds, as the paper counts and by kind, and parameters in thousands.

    The last four are known if the latency was measured: milliseconds of the packed network and of its full-precision
    twin, their ratio, and the packed file in kB.
    """

    ops_g: Number
    params_k: Number
    full_macs_g: Number | None = None
    binary_macs_g: Number | None = None
    latency_ms: Number | None = None
    twin_ms: Number | None = None
    latency_ratio: Number | None = None
    packed_kb: Number | None = None


class Training(Format):
    """The settings of a training that are read back."""

    steps: Whole = 0


class Task(Format):
    """The task of a setting."""

    name: str


class Setting(Format):
    """What a trial was trained in, as far as it is read back."""

    task: Task
    train: Training = Training()


class Provenance(Format):
    """What made a result, how its latency was measured or why it was not, and the code of the user's own metrics."""

    git: str
    dirty: bool
    code: str | None = None
    latency: dict[str, str | int] | None = None
    metrics: dict[str, str] | None = None


class Taught(Format):
    """The trial that teaches another, with the SHA-256 of the checkpoint that it did so with, once it has."""

    cell: Key
    seed: Whole
    checkpoint: Key | None = None


class Files(Format):
    """The SHA-256 of files in a trial's folder."""

    curve: Key | None = Field(default=None, alias="curve.csv")
    checkpoint: Key | None = Field(default=None, alias="checkpoint.pt")


class Result(Format):
    """``result.json``: what a trial has found."""

    sealed_only = frozenset({"files"})

    study: str
    cell: Key
    name: str
    factors: Levels
    levels: Levels
    reference: Levels
    setting: Setting
    method: str
    task: str
    seed: Whole
    metrics: dict[str, SetScore] = Field(min_length=1)
    baseline: dict[str, Score]
    cost: Cost
    timing: dict[str, Number]
    probes: dict[str, Any]
    provenance: Provenance
    dead: bool | str | None = None
    teacher: Taught | None = None
    files: Files | None = None

    @model_validator(mode="after")
    def _has_a_baseline(self) -> "Result":
        for name in self.metrics:
            if name not in self.baseline:
                raise ValueError(f"baseline: there is none for {name}")
        return self


def disagreement(metrics: Mapping[str, Any]) -> str | None:
    """Return which mean over a test set is not that of its pictures, or None."""
    for name, scores in metrics.items():
        for metric in ("psnr_db", "ssim"):
            parts = [image[metric] for image in scores.get("images", {}).values()]
            if parts and not math.isclose(statistics.fmean(parts), scores[metric], rel_tol=0, abs_tol=ROUNDING):
                return f"metrics.{name}.{metric}: it is not the mean of its pictures"
    return None


# --- plans ------------------------------------------------------------------------------------------------------------


class PlannedSetting(Format):
    """The setting of a planned trial, as far as it is read back."""

    data: str


class PlannedTrial(Format):
    """A row of a plan."""

    cell: Key
    seed: Whole
    name: str
    method: str = ""
    factors: Levels
    levels: Levels
    reference: Levels = {}
    setting: PlannedSetting
    teacher: Taught | None = None
    only_teaches: bool = False
    planned_at: Moment | None = None


class LeftOut(Format):
    """A combination that a plan leaves out."""

    name: str = ""
    levels: Levels
    setting: dict[str, Any]
    reason: str
    same_as: str | None = None
    planned_at: Moment | None = None


Seeds = Annotated[int, Field(ge=2, le=LARGEST_WHOLE)]
Share = Annotated[float, Field(gt=0, le=1)]
ComparedPair = Annotated[list[Key], Field(min_length=2, max_length=2)]


class Rule(Format):
    """The stopping rule of a plan; see :class:`ablations.space.stopping_rule.StoppingRule`."""

    looks: list[Seeds] = Field(min_length=2)
    first_seed: Whole
    margin_db: Number
    families: list[Annotated[list[ComparedPair], Field(min_length=1)]] = Field(min_length=1)
    error_rate: Share
    floor: Share
    rise: Number

    @model_validator(mode="after")
    def _ascends(self) -> "Rule":
        if any(after <= before for before, after in itertools.pairwise(self.looks)):
            raise ValueError("looks: they do not ascend")
        return self


class ComparedCost(Format):
    """How costs are compared: the price of a binary multiply-add, as the config has it."""

    binary: Annotated[str, AfterValidator(_price)] = PAPER


class Plan(Format):
    """``plan.json``: the trials that a study has asked for."""

    study: str = ""
    pairing: bool = False
    design: dict[str, Any] = {}
    rule: Rule | None = None
    cost: ComparedCost = ComparedCost()
    reference: Levels = {}
    trials: list[PlannedTrial]
    left_out: list[LeftOut]


# --- attempts ---------------------------------------------------------------------------------------------------------


Ended = Literal["running", "finished", "failed", "interrupted", "pruned"]


class Attempt(Format):
    """One attempt at a trial."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    number: Annotated[int, Field(ge=1, le=LARGEST_WHOLE)]
    state: Ended
    reason: str
    began: Moment
    ended: Moment | None
    host: str
    pid: Process
    from_step: Whole = 0
    step: Whole | None = None
    psnr_db: Psnr | None = None


class History(Format):
    """``state.json``: every attempt at a trial, and how the last one has ended."""

    state: Ended
    reason: str
    attempts: list[Attempt] = Field(min_length=1)

    @model_validator(mode="after")
    def _ends_with_its_last_attempt(self) -> "History":
        last = self.attempts[-1]
        if (self.state, self.reason) != (last.state, last.reason):
            raise ValueError("state: it is not that of the last attempt")
        return self


# --- what a running trial leaves --------------------------------------------------------------------------------------


class Lease(Format):
    """The lease of a running trial; its PSNR may be any number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=True)

    study: str
    cell: str = Field(pattern=r"\A[0-9a-f]+\z")
    seed: Whole
    name: str
    session: str
    steps: Whole
    token: str
    host: str
    pid: Process
    process_start: str
    began: Moment
    heartbeats: Whole = 0
    phase: str = "preparing"
    step: Whole = 0
    scored_at: Whole = 0
    psnr_db: float | None = None


class PruningRequest(Format):
    """A trial's question whether to continue."""

    step: Whole
    psnr_db: float = Field(allow_inf_nan=True)


class PruningAnswer(Format):
    """The search's answer."""

    step: Whole
    prune: bool
