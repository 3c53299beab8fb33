"""The paper's tables 1 to 3 with our numbers under its own: :func:`comparisons`.

A published method is told by the name that its trial records, and BBCU-M by its levels. Trials are set beside the
paper in groups of one budget and one data set. Where the paper or we lack a number a dash stands, and the notes below a
table name every difference of protocol, budget or data that is known.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from analysis.published.tables import BINARY, NO_NETWORK, SOURCE, TABLES, PublishedTable, published
from analysis.report import tables
from analysis.statistics.estimates import Summary, summary
from analysis.study.loading import NOT_RECORDED, StudyResults
from analysis.study.methods import agrees, group_key, method_of
from analysis.study.settings import KEY_LENGTH, natural, rows_by_setting, tested_on

ABSENT = "—"
"""What stands where the paper, or we, have no number."""

DOUBTED = "?"
"""The mark of a published number that does not fit its neighbours."""

SAME_BASELINE_DB = 0.01
"""Baselines that are closer than this are of the same pictures, made and scored in the same way."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table to read and its numbers for a CSV file: ``name`` is the file's; ``notes`` go below, one a line."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    notes: tuple[str, ...]
    frame: pd.DataFrame

    @property
    def markdown(self) -> str:
        """Caption, table and notes in GitHub's Markdown, without the title."""
        if not self.rows:
            return self.caption
        table = tables.markdown(self.header, self.rows, range(2, len(self.header)))
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(part for part in (self.caption, table, notes) if part)


@dataclasses.dataclass(frozen=True)
class Group:
    """Finished trials of one task, budget and data set; ``setting`` is what they share."""

    published: PublishedTable
    task: str
    setting: Mapping[str, str]
    trials: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Row:
    """One method, by the paper or by us: PSNR in dB and SSIM over seeds for each test set, as the columns are named."""

    name: str
    method: str
    kind: str
    ours: bool
    cell: str
    psnr: Mapping[str, Summary]
    ssim: Mapping[str, Summary]
    ops_g: float
    params_k: float
    doubts: Mapping[str, str]
    remark: str = ""
    cost_doubt: str = ""

    @property
    def seeds(self) -> int:
        """The fewest seeds that a score of the row rests on; 0 where it has none."""
        return min((found.n for found in self.psnr.values()), default=0)


def comparisons(results: StudyResults) -> list[Table]:
    """A table for each task, budget and data set of a study that one of the paper's tables is about."""
    found = groups(results)
    made = [table_of(results, group, number if len(found) > 1 else 0) for number, group in enumerate(found, start=1)]
    titles = [table.title for table in made]
    return [
        table
        if titles.count(table.title) == 1
        else dataclasses.replace(table, title=f"{table.title}, {apart_in_words(group, found)}")
        for table, group in zip(made, found, strict=True)
    ]


def apart_in_words(group: Group, found: Sequence[Group]) -> str:
    """What tells a group from the others of its task: its data, its steps, or else its number among them."""
    others = [other for other in found if other.task == group.task]
    for key, noun in (("data", "data "), ("train.steps", "steps: ")):
        values = [other.setting.get(key, NOT_RECORDED) for other in others]
        if len(set(values)) == len(others):
            return f"{noun}{group.setting.get(key, NOT_RECORDED)[:KEY_LENGTH]}"
    return f"setting {next(n for n, other in enumerate(others, start=1) if other is group)}"


def groups(results: StudyResults) -> list[Group]:
    """The finished trials in groups that may stand in one table, in the order of the study.

    A method brings parts of the setting along, and the Lite one its channels. A trial with fewer keys, such as that of
    a baseline, which trains nothing, is in every group that agrees with it in those that it has.
    """
    finished = results.trials[results.trials["state"] == "finished"]
    settings = {
        place: (setting, tested_on(finished.iloc[places]))
        for setting, places in rows_by_setting(finished)
        for place in places
    }
    keys = {
        index: group_key(settings[place][0], method, settings[place][1])
        for place, (index, method) in enumerate(zip(finished.index, finished["method"].tolist(), strict=True))
    }
    distinct: list[dict[str, str]] = []
    for key in sorted(keys.values(), key=len, reverse=True):
        if not any(agrees(key, other) for other in distinct):
            distinct.append(key)
    order = list(keys.values())
    distinct.sort(key=lambda key: next(place for place, other in enumerate(order) if agrees(other, key)))
    about = {task: table for table in TABLES for task in table.tasks}

    def data_seen(key: Mapping[str, str]) -> str:
        first = next(place for place, other in enumerate(order) if agrees(other, key))
        return settings[first][0].get("data", NOT_RECORDED)

    return [
        Group(
            about[key["task.name"]],
            key["task.name"],
            {"data": data_seen(key), **key},
            finished.loc[[index for index, other in keys.items() if agrees(other, key)]],
        )
        for key in distinct
        if key.get("task.name") in about
    ]


def table_of(results: StudyResults, group: Group, number: int) -> Table:
    """The table of one group; ``number`` tells it from the study's others in its name, 0 where it is the only one."""
    paper = published()
    paper = paper[paper["task"] == group.task]
    columns = columns_of(group, paper)
    theirs = [paper_row(rows, columns) for _, rows in paper.groupby("name", sort=False)]
    ours, others = our_rows(results, group, columns, {row.method: row for row in theirs})
    pairs = [(row, [mine for mine in ours if mine.method == row.method]) for row in theirs]
    marks = {**marked(theirs, columns), **marked(ours, columns)}
    body = [line for row, mine in pairs for line in method_lines(row, mine, columns, marks)]
    header = ("Method", "Numbers", "Seeds", "OPs (G)", "Params (K)", *(column_name(group, name) for name in columns))
    about = group.published
    return Table(
        name=f"comparison-{group.task}" + (f"-{number}" if number else ""),
        title=f"Beside the paper: {about.subject}" + (f", {group.task}" if about.number == 1 else ""),
        header=header,
        rows=tuple(body) if any(row.cell for row in ours) else (),
        caption=caption(group, columns) if any(row.cell for row in ours) else no_method(group),
        notes=tuple(notes(group, [*theirs, *ours], others)),
        frame=frame_of([*theirs, *ours], columns),
    )


def columns_of(group: Group, paper: pd.DataFrame) -> dict[str, str]:
    """The table's test sets, the paper's first, each with its name among our metrics.

    A training that is scored at one strength does not append it to the name of the test set.
    """
    known = set(test_sets(group.trials))
    strength = group.setting.get(f"task.{group.published.level}", "").strip("[]")
    columns = {}
    for _, row in paper.drop_duplicates("scored_set").iterrows():
        alone = group.published.suffix and strength == str(row["level"])
        columns[row["scored_set"]] = row["test_set"] if alone else row["scored_set"]
    extra = sorted(known - set(columns.values()), key=natural)
    return columns | {name: name for name in extra}


def column_name(group: Group, column: str) -> str:
    """The heading of a test set's column, with its unit."""
    return f"{column} PSNR (dB)" + ("" if group.task == "denoise" else " / SSIM")


def test_sets(trials: pd.DataFrame) -> list[str]:
    """The test sets that some trial was scored on."""
    scored = [str(column) for column in trials.dropna(axis=1, how="all") if str(column).startswith("metric/baseline/")]
    return list(dict.fromkeys(column.split("/")[2] for column in scored))


def paper_row(rows: pd.DataFrame, columns: Mapping[str, str]) -> Row:
    """What the paper prints of a method."""
    first = rows.iloc[0]
    scores = {row["scored_set"]: row for _, row in rows.iterrows() if row["scored_set"] in columns}
    return Row(
        name=str(first["name"]),
        method=str(first["method"]),
        kind=str(first["kind"]),
        ours=False,
        cell="",
        psnr={name: summary([row["psnr_db"]]) for name, row in scores.items()},
        ssim={name: summary([row["ssim"]]) for name, row in scores.items() if row["ssim"] == row["ssim"]},
        ops_g=float(first["ops_g"]),
        params_k=float(first["params_k"]),
        doubts={name: str(row["doubt"]) for name, row in scores.items() if row["doubt"]},
        remark=str(first["remark"]),
        cost_doubt=str(first["cost_doubt"]),
    )


def our_rows(
    results: StudyResults, group: Group, columns: Mapping[str, str], theirs: Mapping[str, Row]
) -> tuple[list[Row], int]:
    """Our rows for the paper's methods, a row a cell, and how many cells of the group are no method of the table."""
    found: list[Row] = []
    others = 0
    for cell, trials in group.trials.groupby("cell", sort=False):
        method = method_of(trials.iloc[0], results.reference, results.factors)
        if method in theirs and theirs[method].kind != NO_NETWORK:
            found.append(our_row(theirs[method], str(cell), trials, columns, "metric"))
        elif method not in theirs and method != "identity":
            others += 1
    for row in theirs.values():
        if row.kind == NO_NETWORK:
            found.append(our_row(row, "", group.trials.drop_duplicates("seed"), columns, "metric/baseline"))
    return found, others


def our_row(row: Row, cell: str, trials: pd.DataFrame, columns: Mapping[str, str], prefix: str) -> Row:
    """What trials of one cell reach; the baseline's scores, which no seed changes, where there is no cell."""

    def scores(metric: str) -> dict[str, Summary]:
        kept = {name: f"{prefix}/{ours}/{metric}" for name, ours in columns.items()}
        values = {name: trials[column].dropna() for name, column in kept.items() if column in trials}
        return {name: summary((found if cell else found[:1]).tolist()) for name, found in values.items() if len(found)}

    return dataclasses.replace(
        row,
        ours=True,
        cell=cell,
        psnr=scores("psnr_db"),
        ssim=scores("ssim"),
        ops_g=float(trials["metric/cost/ops_g"].iloc[0]) if cell else float("nan"),
        params_k=float(trials["metric/cost/params_k"].iloc[0]) if cell else float("nan"),
        doubts={},
        cost_doubt="",
    )


def marked(rows: Sequence[Row], columns: Iterable[str]) -> dict[tuple[bool, str, str], list[float]]:
    """The best and second best value among the binary methods of each column, as they are printed.

    Ours are not ranked where one of them has a single seed: an order of single runs is an order of luck.
    """
    binary = [row for row in rows if row.kind == BINARY and row.psnr]
    if any(row.ours and row.seeds < 2 for row in binary):
        return {}
    found: dict[tuple[bool, str, str], list[float]] = {}
    for name in columns:
        for metric, digits in (("psnr", 2), ("ssim", 4)):
            scores: list[Mapping[str, Summary]] = [getattr(row, metric) for row in binary]
            values = sorted({round(score[name].mean, digits) for score in scores if name in score}, reverse=True)
            if len(values) > 1:
                found[binary[0].ours, name, metric] = values[:2]
    return found


def method_lines(
    row: Row, mine: Sequence[Row], columns: Mapping[str, str], marks: Mapping[tuple[bool, str, str], list[float]]
) -> list[tuple[str, ...]]:
    """The paper's line of a method and ours below it."""
    lines = [line(row, "paper", columns, marks)]
    for number, own in enumerate(mine):
        which = f" `{own.cell[:KEY_LENGTH]}`" if len(mine) > 1 else ""
        remark = f" ({own.remark})" if own.remark and number == 0 else ""
        runs = f"[ours](#runs-{own.cell[:KEY_LENGTH]})" if own.cell else "ours"
        lines.append(line(own, f"{runs}{which}{remark}" if own.psnr else "ours: not scored", columns, marks))
    return lines


def line(
    row: Row, source: str, columns: Iterable[str], marks: Mapping[tuple[bool, str, str], list[float]]
) -> tuple[str, ...]:
    """One row of the table."""
    costs = [ABSENT if cost != cost else f"{cost:.{digits}f}" for cost, digits in ((row.ops_g, 2), (row.params_k, 0))]
    if row.cost_doubt:
        costs[0] += f" {DOUBTED}"
    seeds = str(row.seeds) if row.ours and row.cell and row.psnr else ABSENT
    return (row.name, source, seeds, *costs, *(score_text(row, name, marks) for name in columns))


def score_text(row: Row, column: str, marks: Mapping[tuple[bool, str, str], list[float]]) -> str:
    """PSNR and SSIM of one test set, with the deviation over seeds, the marks of best and second best, and of doubt."""
    if column not in row.psnr:
        return ABSENT
    psnr = row.psnr[column]
    parts = [emphasised(f"{psnr.mean:.2f}", psnr.mean, 2, row, marks.get((row.ours, column, "psnr"), []))]
    if psnr.n > 1:
        parts[0] += f" ± {psnr.sd:.2f}"
    if column in row.ssim:
        ssim = row.ssim[column].mean
        parts.append(emphasised(f"{ssim:.4f}", ssim, 4, row, marks.get((row.ours, column, "ssim"), [])))
    return " / ".join(parts) + (f" {DOUBTED}" if column in row.doubts else "")


def emphasised(text: str, value: float, digits: int, row: Row, best: Sequence[float]) -> str:
    """Bold for the best of the binary methods, italics for the second best."""
    if row.kind != BINARY or round(value, digits) not in best:
        return text
    return f"**{text}**" if round(value, digits) == best[0] else f"*{text}*"


def no_method(group: Group) -> str:
    """That none of our cells is a method of the table."""
    return (
        f"No cell of this study is a method of table {group.published.number} of {SOURCE}, so there is nothing of ours "
        "to set beside its numbers."
    )


def caption(group: Group, columns: Mapping[str, str]) -> str:
    """What the table shows and what budget and data ours had."""
    setting = group.setting
    seeds = group.trials["seed"].nunique()
    recipe = [
        tables_count(int(setting[key]), noun)
        for key, noun in (("train.steps", "step"), ("channels", "channel"), ("blocks", "block"))
        if key in setting
    ]
    recipe += [f"{name} {setting[f'train.{name}']}" for name in ("batch", "patch", "lr") if f"train.{name}" in setting]
    lacking = [name for name, ours in columns.items() if ours not in test_sets(group.trials)]
    unscored = f" We have no scores on {', '.join(lacking)}." if lacking else ""
    return (
        f"Table {group.published.number} of {SOURCE}, with ours below each row: "
        f"{', '.join(recipe) or 'nothing trained'}, data `{setting['data'][:KEY_LENGTH]}`, "
        f"{tables_count(seeds, 'seed')}, mean ± standard "
        "deviation over seeds. **Bold** is the best and *italic* the second best of the binary methods, in the paper's "
        "rows and in ours apart; it is an order and no verdict. A dash is a number that is not printed or that we do "
        f"not have; {DOUBTED} marks a printed number that does not fit its neighbours.{unscored}"
    )


def tables_count(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def notes(group: Group, rows: Sequence[Row], others: int) -> list[str]:
    """Every known difference between our numbers and the paper's, and what is in doubt."""
    found = [*budget_notes(group), *data_notes(group, rows)]
    if any(row.ours and row.cell and row.seeds == 1 for row in rows):
        found.append("Some of ours rest on one seed, so they have no spread and are not ranked.")
    found += [f"{row.name}: ours is a {row.remark}." for row in rows if row.ours and row.cell and row.remark]
    for row in rows:
        by_reason: dict[str, list[str]] = {}
        for name, reason in row.doubts.items():
            by_reason.setdefault(reason, []).append(name)
        found += [f"{row.name} in the paper, {', '.join(names)}: {reason}." for reason, names in by_reason.items()]
        if row.cost_doubt:
            found.append(f"{row.name} in the paper: {row.cost_doubt}.")
    trained = {row.method for row in rows if row.ours}
    absent = [row.name for row in rows if not row.ours and row.method not in trained]
    if absent:
        found.append(f"Not trained here: {', '.join(absent)}.")
    if others:
        found.append(f"{tables_count(others, 'cell')} of ours with other components are no method of this table.")
    return list(dict.fromkeys(found))


def budget_notes(group: Group) -> list[str]:
    """How our training differs from the released recipe."""
    setting = group.setting
    words = [
        f"`{key}` is {setting[key]}, and {value} in the released recipe"
        for key, value in group.published.recipe.items()
        if key in setting and setting[key] != value
    ]
    found = [f"Another budget: {'; '.join(words)}."] if words else []
    if "evaluation.self_ensemble" in setting:
        found.append("Our scores are those of a self-ensemble; the paper's are not.")
    return found


def data_notes(group: Group, rows: Sequence[Row]) -> list[str]:
    """What is known of our pictures and protocol against the paper's."""
    found = ["Our training pictures are those of the fingerprint above; it does not tell whether they are the paper's."]
    theirs, ours = (
        next((row for row in rows if row.kind == NO_NETWORK and row.ours is mine), None) for mine in (False, True)
    )
    if theirs is None or ours is None:
        found.append("The paper prints no row for the inputs themselves, so it cannot be told that the pictures agree.")
        return found
    shared = [name for name in theirs.psnr if name in ours.psnr]
    gaps = {name: ours.psnr[name].mean - theirs.psnr[name].mean for name in shared}
    same = [name for name, gap in gaps.items() if abs(gap) <= SAME_BASELINE_DB]
    if same:
        found.append(
            f"Bicubic interpolation has the paper's PSNR on {', '.join(same)}: the same pictures and protocol."
        )
    found += [
        f"On {name} bicubic interpolation is {gap:+.2f} dB off the paper's: other pictures, or another protocol."
        for name, gap in gaps.items()
        if name not in same
    ]
    return found


def frame_of(rows: Iterable[Row], columns: Iterable[str]) -> pd.DataFrame:
    """Every number of the table, a row per method, source and test set that has one."""
    named = list(columns)
    return pd.DataFrame(
        [
            {
                "name": row.name,
                "method": row.method,
                "kind": row.kind,
                "source": "ours" if row.ours else "paper",
                "cell": row.cell,
                "test_set": name,
                "seeds": row.psnr[name].n if row.ours else "",
                "psnr_mean_db": row.psnr[name].mean,
                "psnr_sd_db": row.psnr[name].sd,
                "ssim_mean": row.ssim[name].mean if name in row.ssim else float("nan"),
                "ops_g": row.ops_g,
                "params_k": row.params_k,
                "doubt": row.doubts.get(name, ""),
                "cost_doubt": row.cost_doubt,
                "remark": row.remark if row.ours else "",
            }
            for row in rows
            for name in named
            if name in row.psnr
        ]
    )
