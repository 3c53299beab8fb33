"""The paper's tables 1 to 3 as a typed frame; ``published/README.md`` names their source and what they lack."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent

SOURCE = "Xia et al., Basic Binary Convolution Unit for Binarized Image Restoration Network, ICLR 2023"

BINARY, FULL_PRECISION, NO_NETWORK = "binary", "full precision", "no network"
"""The kinds of a method; best and second best are those among the binary ones, as in the paper."""

QUALITIES, COSTS = ("psnr_db", "ssim"), ("ops_g", "params_k")

WORDS = {"psnr_db": "PSNR", "ssim": "SSIM", "ops_g": "OPs", "params_k": "Params"}
"""What the quantities are called in a sentence."""

ROUNDING_DB = 0.01
"""How far :func:`printed_difference` may be from the true one: both numbers are printed with two decimals."""

COLUMNS = (
    *("table", "task", "level", "test_set", "scored_set", "name", "method", "kind", "remark"),
    *(*QUALITIES, *COSTS, "doubt", "cost_doubt"),
)


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """One of the paper's tables: its number, its subject and the column of its level.

    ``suffix`` is how a level is appended to the name of a test set here, as in ``CBSD68-sigma25``, and empty where the
    level is part of the task. ``recipe`` is the setting of the released training, as a result's setting spells it.
    """

    number: int
    subject: str
    level: str
    suffix: str
    tasks: tuple[str, ...]
    recipe: Mapping[str, str]


SUPER_RESOLUTION = {
    **{"train.steps": "300000", "channels": "64", "blocks": "16", "train.batch": "16", "train.patch": "32"},
    **{"train.lr": "0.0001", "train.precision": "fp32"},
}
DENOISING = SUPER_RESOLUTION | {"train.steps": "500000", "blocks": "9", "train.batch": "32", "train.patch": "64"}

TABLES = (
    PublishedTable(1, "super-resolution", "scale", "", ("sr_x2", "sr_x4"), SUPER_RESOLUTION),
    PublishedTable(
        2, "denoising in colour", "sigma", "-sigma", ("denoise",), DENOISING | {"task.train_sigma": "[0, 75]"}
    ),
    PublishedTable(
        3, "JPEG artifact reduction", "quality", "-q", ("jpeg",), DENOISING | {"task.train_quality": "[1, 50]"}
    ),
)


def published() -> pd.DataFrame:
    """Every number of the tables, a row for each method, level and test set, in the order of the paper.

    - ``table``, ``level``: whole numbers; the level is the scale, sigma or quality;
    - ``task``: sr_x2, sr_x4, denoise or jpeg; ``test_set``: as printed; ``scored_set``: as one training that is scored
      at several levels names it, such as ``CBSD68-sigma25``;
    - ``name``: the method in the paper; ``method``: the same method here, such as ``bbcu binarize=[body,up]``;
    - ``kind``: binary, full precision or no network; ``remark``: what goes with our numbers for it, else empty;
    - ``psnr_db``, ``ssim``, ``ops_g`` (10^9), ``params_k`` (thousands): numbers, NaN where none is printed;
    - ``doubt``, ``cost_doubt``: why PSNR or SSIM, or the costs, do not fit their neighbours, else empty.
    """
    return _published().copy()


@functools.cache
def _published() -> pd.DataFrame:
    return pd.concat([table_frame(table) for table in TABLES], ignore_index=True)


def table_frame(table: PublishedTable) -> pd.DataFrame:
    frame = pd.read_csv(FOLDER / f"table{table.number}.csv").rename(columns={table.level: "level", "method": "name"})
    frame = frame.reindex(columns=[*frame.columns, *({*QUALITIES} - {*frame.columns})])
    frame = frame.astype({"level": "int64", **dict.fromkeys((*QUALITIES, *COSTS), "float64")})
    frame["table"] = table.number
    frame["task"] = [table.tasks[0] if table.suffix else f"sr_x{level}" for level in frame["level"]]
    frame["scored_set"] = frame["test_set"] + (
        [f"{table.suffix}{level}" for level in frame["level"]] if table.suffix else ""
    )
    methods = pd.read_csv(FOLDER / "methods.csv", keep_default_na=False)
    frame = frame.merge(methods, on=["table", "name"], how="left", validate="many_to_one")
    frame["doubt"] = [doubts_of(row, QUALITIES) for _, row in frame.iterrows()]
    frame["cost_doubt"] = [doubts_of(row, COSTS) for _, row in frame.iterrows()]
    return frame[list(COLUMNS)]


@functools.cache
def doubts() -> pd.DataFrame:
    """Every doubt as text; an empty column means every value."""
    return pd.read_csv(FOLDER / "doubts.csv", dtype=str, keep_default_na=False)


def doubts_of(row: "pd.Series", quantities: tuple[str, ...]) -> str:
    """Why some of the ``quantities`` of a row are in doubt; each sentence begins with the quantity."""
    return "; ".join(f"{WORDS[quantity]}: {reason}" for quantity, reason in reasons(row) if quantity in quantities)


def reasons(row: "pd.Series") -> Iterator[tuple[str, str]]:
    """Yield each quantity of a row that is in doubt, with the reason."""
    for _, doubt in doubts().iterrows():
        if all(doubt[key] in ("", str(row[key])) for key in ("table", "level", "name", "test_set")):
            yield doubt["quantity"], doubt["reason"]


def printed(method: str, task: str, test_set: str) -> "pd.Series | None":
    """The row of a method, named as here, on a test set, named as one training at several levels names it; or None."""
    frame = _published()
    found = frame[(frame["method"] == method) & (frame["task"] == task) & (frame["scored_set"] == test_set)]
    return None if found.empty else found.iloc[0]


def printed_difference(before: str, after: str, task: str, test_set: str) -> float | None:
    """PSNR of the method ``after`` minus that of ``before`` in dB, as the paper prints them; None if it does not.

    Arguments are as for :func:`printed`. The true difference is within :data:`ROUNDING_DB` of it.
    """
    rows = (printed(after, task, test_set), printed(before, task, test_set))
    scores = [math.nan if row is None else float(row["psnr_db"]) for row in rows]
    difference = round(scores[0] - scores[1], 2)
    return None if math.isnan(difference) else difference


def doubt_of(method: str, task: str, test_set: str) -> str:
    """Why the printed PSNR of a method is in doubt, else empty; arguments are as for :func:`printed`.

    A claim that compares PSNR with such a method's rests on that number.
    """
    row = printed(method, task, test_set)
    return "" if row is None else "; ".join(reason for quantity, reason in reasons(row) if quantity == "psnr_db")


def points() -> pd.DataFrame:
    """What a figure of quality against cost needs: task, method, name, kind, test_set (as scored here), psnr_db, ssim,
    ops_g and params_k. Bicubic interpolation, which has no cost, is left out.
    """
    frame = published()
    frame = frame[frame["kind"] != NO_NETWORK].drop(columns="test_set").rename(columns={"scored_set": "test_set"})
    names = ["task", "method", "name", "kind", "test_set", *QUALITIES, *COSTS]
    return frame[names].reset_index(drop=True)
