"""The paper's tables 1 to 3 with our numbers below its own: :func:`paper_tables`.

A published method is recognised by the name that its trial records, and BBCU-M by its levels. Each table holds trials
of one budget and one data set. A dash stands for a number that the paper or we lack, and the notes below a table name
every known difference of protocol, budget or data.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from analysis.published.tables import BINARY, NO_NETWORK, SOURCE, TABLES, PublishedTable, published
from analysis.report.markup import Markdown, anchor, code, joined
from analysis.report.words import count
from analysis.statistics.estimates import Summary, summary
from analysis.statistics.rounding import rounded
from analysis.study.loading import NOT_RECORDED, StudyResults
from analysis.study.methods import group_key, groups_of, method_of
from analysis.study.settings import KEY_LENGTH, natural, rows_by_setting, test_sets, tested_on

ABSENT = "—"  # stands for a number that the paper or we do not have
DOUBTED = "?"  # marks a published number that does not fit its neighbours
SAME_BASELINE_DB = 0.01  # baselines closer than this come from the same pictures, prepared and scored in the same way


NUMBERS = [
    *("name", "method", "kind", "source", "cell", "test_set", "seeds", "psnr_mean_db", "psnr_sd_db", "ssim_mean"),
    *("ops_g", "params_k", "doubt", "cost_doubt", "remark"),
]
"""The columns of the table's numbers, a row per method, source and test set."""


NO_METHOD = f"No cell of this study is a method of table {{}} of {SOURCE}, so there is nothing to compare."


@dataclasses.dataclass(frozen=True)
class Table:
    """A table to read, empty if no cell is a method of it, and its numbers for the CSV file ``name``."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: Markdown
    notes: tuple[Markdown, ...]
    frame: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Group:
    """Finished trials of one task, budget and data set; ``setting`` is what they share."""

    published: PublishedTable
    task: str
    setting: Mapping[str, str]
    trials: pd.DataFrame


def paper_tables(results: StudyResults) -> list[Table]:
    """Return a table for each task, budget and data set of the study that a table of the paper covers."""
    found = groups(results)
    return [table_of(results, group, found) for group in found]


def apart_in_words(group: Group, found: Sequence[Group]) -> str:
    """Say how a group differs from the others of its task: by its data, its steps, or else its number."""
    others = [other for other in found if other.task == group.task]
    if len(others) == 1:
        return ""
    for key, noun in (("data", "data "), ("train.steps", "steps: ")):
        values = [other.setting.get(key, NOT_RECORDED) for other in others]
        if len(set(values)) == len(others):
            return f", {noun}{group.setting.get(key, NOT_RECORDED)[:KEY_LENGTH]}"
    return f", setting {number_of(group, others)}"


def number_of(group: Group, found: Sequence[Group]) -> int:
    return next(number for number, other in enumerate(found, start=1) if other is group)


def groups(results: StudyResults) -> list[Group]:
    """Group the finished trials that may share a table, in the order of the study."""
    finished = results.finished
    settings = {
        place: (setting, tested_on(finished.iloc[places]))
        for setting, places in rows_by_setting(finished)
        for place in places
    }
    methods = enumerate(finished["method"].tolist())
    keys = [group_key(settings[place][0], method, settings[place][1]) for place, method in methods]
    about = {task: table for table in TABLES for task in table.tasks}
    found = []
    for places in groups_of(keys):
        key = max((keys[place] for place in places), key=len)
        task, data = key.get("task.name", ""), settings[places[0]][0].get("data", NOT_RECORDED)
        if task in about:
            found.append(Group(about[task], task, {"data": data, **key}, finished.iloc[places]))
    return found


def table_of(results: StudyResults, group: Group, found: Sequence[Group]) -> Table:
    """Make the table of one of the groups."""
    paper = published()
    paper = paper[paper["task"] == group.task]
    columns = columns_of(group, paper)
    ours, others = our_numbers(results, group, columns, paper)
    numbers = pd.concat([paper_numbers(paper), ours], ignore_index=True)
    has_method = bool((ours["cell"] != "").any())
    about, unit = group.published, "PSNR (dB)" if group.task == "denoise" else "PSNR (dB) / SSIM"
    return Table(
        name=f"comparison-{group.task}" + (f"-{number_of(group, found)}" if len(found) > 1 else ""),
        title=about.subject + (f", {group.task}" if about.number == 1 else "") + apart_in_words(group, found),
        header=("Method", "Numbers", "Seeds", "OPs (G)", "Params (K)", *(f"{name} {unit}" for name in columns)),
        rows=tuple(lines(numbers, list(columns))) if has_method else (),
        caption=caption(group, columns) if has_method else Markdown(NO_METHOD.format(about.number)),
        notes=tuple(notes(group, numbers, others)),
        frame=numbers,
    )


def columns_of(group: Group, paper: pd.DataFrame) -> dict[str, str]:
    """Return the table's test sets, the paper's first, each with its name among our metrics.

    A training that is scored at one strength does not append the strength to the name of the test set.
    """
    strength = group.setting.get(f"task.{group.published.level}", "").strip("[]")
    columns = {}
    for _, row in paper.drop_duplicates("scored_set").iterrows():
        alone = group.published.suffix and strength == str(row["level"])
        columns[row["scored_set"]] = row["test_set"] if alone else row["scored_set"]
    extra = sorted(set(test_sets(group.trials)) - set(columns.values()), key=natural)
    return columns | {name: name for name in extra}


def paper_numbers(paper: pd.DataFrame) -> pd.DataFrame:
    names = {"psnr_db": "psnr_mean_db", "ssim": "ssim_mean"}
    frame = paper.drop(columns="test_set").rename(columns={**names, "scored_set": "test_set"})
    return frame.assign(source="paper", cell="", seeds="", psnr_sd_db=math.nan, remark="")[NUMBERS]


def our_numbers(
    results: StudyResults, group: Group, columns: Mapping[str, str], paper: pd.DataFrame
) -> tuple[pd.DataFrame, int]:
    """Return our numbers for the paper's methods, and how many cells are not a method of the table."""
    known = {row["method"]: row for _, row in paper.drop_duplicates("method").iterrows()}
    rows: list[dict[str, object]] = []
    others = 0
    for cell, trials in group.trials.groupby("cell", sort=False):
        method = method_of(trials.iloc[0], results.reference, results.factors)
        if method in known and known[method]["kind"] != NO_NETWORK:
            rows += scores(known[method], str(cell), trials, columns, "metric")
        elif method not in known and method != "identity":
            others += 1
    for row in known.values():
        if row["kind"] == NO_NETWORK:
            rows += scores(row, "", group.trials, columns, "metric/baseline")
    return pd.DataFrame(rows, columns=NUMBERS), others


def scores(
    about: "pd.Series", cell: str, trials: pd.DataFrame, columns: Mapping[str, str], prefix: str
) -> list[dict[str, object]]:
    """Return what the trials of one cell reach; without a cell the baseline's scores, which no seed changes."""

    def over_seeds(test_set: str, metric: str) -> Summary:
        column = f"{prefix}/{columns[test_set]}/{metric}"
        values = trials[column].dropna().tolist() if column in trials else []
        return summary(values if cell else values[:1])

    costs = {name: trials[f"metric/cost/{name}"].iloc[0] if cell else math.nan for name in ("ops_g", "params_k")}
    return [
        {
            **{key: about[key] for key in ("name", "method", "kind", "remark")},
            **{"source": "ours", "cell": cell, "test_set": name, "seeds": psnr.n, **costs},
            **{"psnr_mean_db": psnr.mean, "psnr_sd_db": psnr.sd, "ssim_mean": over_seeds(name, "ssim").mean},
            **{"doubt": "", "cost_doubt": ""},
        }
        for name in columns
        if (psnr := over_seeds(name, "psnr_db")).n
    ]


def single_seed(numbers: pd.DataFrame) -> bool:
    return bool((numbers.loc[numbers["cell"] != "", "seeds"] == 1).any())


def ranked(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers with PSNR and SSIM as printed, the best binary method bold and the second best italic.

    The paper's numbers and ours are ranked separately, and ours only without single seeds: the order of single runs is
    a matter of luck.
    """
    found = numbers.assign(
        psnr=[f"{mean:.2f}" if mean == mean else "" for mean in numbers["psnr_mean_db"]],
        ssim=[f"{mean:.4f}" if mean == mean else "" for mean in numbers["ssim_mean"]],
    )
    binary = found[found["kind"] == BINARY]
    binary = binary[binary["source"] == "paper"] if single_seed(binary) else binary
    for (_, group), metric in itertools.product(binary.groupby(["source", "test_set"]), ("psnr", "ssim")):
        texts = group[metric]
        best = sorted(set(texts) - {""}, key=float, reverse=True)[:2]
        if len(best) == 2:
            found.loc[group.index, metric] = texts.replace({best[0]: f"**{best[0]}**", best[1]: f"*{best[1]}*"})
    return found


def lines(numbers: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    by_source = {key: rows for key, rows in ranked(numbers).groupby(["name", "source"], sort=False)}
    for name in numbers["name"].unique():
        yield line(by_source[name, "paper"], "paper", columns)
        cells = list(by_source[name, "ours"].groupby("cell", sort=False)) if (name, "ours") in by_source else []
        for number, (cell, rows) in enumerate(cells):
            shown = str(cell)[:KEY_LENGTH]
            source = Markdown("[ours](#runs-{})").format(anchor(shown)) if cell else Markdown("ours")
            which = Markdown(" {}").format(code(shown)) if len(cells) > 1 else ""
            remark = rows["remark"].iloc[0] if number == 0 else ""
            yield line(rows, source + which + (f" ({remark})" if remark else ""), columns)


def line(rows: pd.DataFrame, source: str, columns: Sequence[str]) -> tuple[str, ...]:
    first = rows.iloc[0]
    ops, params = (
        ABSENT if cost != cost else f"{cost:.{digits}f}"
        for cost, digits in ((first["ops_g"], 2), (first["params_k"], 0))
    )
    seeds = str(rows["seeds"].min()) if first["cell"] else ABSENT
    texts = {row["test_set"]: score_text(row) for _, row in rows.iterrows()}
    doubted = f" {DOUBTED}" if first["cost_doubt"] else ""
    return (first["name"], source, seeds, ops + doubted, params, *(texts.get(name, ABSENT) for name in columns))


def score_text(row: "pd.Series") -> Markdown:
    spread = f" ± {row['psnr_sd_db']:.2f}" if row["psnr_sd_db"] == row["psnr_sd_db"] else ""
    ssim = f" / {row['ssim']}" if row["ssim"] else ""
    return Markdown(f"{row['psnr']}{spread}{ssim}{f' {DOUBTED}' if row['doubt'] else ''}")


def caption(group: Group, columns: Mapping[str, str]) -> Markdown:
    """Say what the table shows, and the budget and data of ours."""
    setting = group.setting
    counted = (("train.steps", "step"), ("channels", "channel"), ("blocks", "block"))
    recipe = [count(int(setting[key]), noun) for key, noun in counted if key in setting]
    recipe += [f"{name} {setting[f'train.{name}']}" for name in ("batch", "patch", "lr") if f"train.{name}" in setting]
    lacking = [name for name, ours in columns.items() if ours not in test_sets(group.trials)]
    unscored = f" We have no scores on {', '.join(lacking)}." if lacking else ""
    return Markdown(
        "Table {} of {}, with our results below each row: {}, data {}, {}, mean ± standard deviation over seeds. "
        "**Bold** is the best and *italic* the second best binary method, separately among the paper's rows and ours; "
        "it is a ranking, not a verdict. A dash is a number that the paper does not print or that we do not have; {} "
        "marks a printed number that does not fit its neighbours.{}"
    ).format(
        group.published.number,
        SOURCE,
        ", ".join(recipe) or "nothing trained",
        code(setting["data"][:KEY_LENGTH]),
        count(group.trials["seed"].nunique(), "seed"),
        DOUBTED,
        unscored,
    )


def notes(group: Group, numbers: pd.DataFrame, others: int) -> list[Markdown]:
    """List every known difference between our numbers and the paper's, and what is in doubt."""
    paper, ours = (numbers[numbers["source"] == source] for source in ("paper", "ours"))
    found = [*budget_notes(group), *data_notes(numbers[numbers["kind"] == NO_NETWORK])]
    if single_seed(numbers):
        found.append("Some of our results rest on one seed, so they have no spread and are not ranked.")
    remarked = ours[ours["remark"] != ""]
    found += [f"Our {row['name']} is a {row['remark']}." for _, row in remarked.iterrows()]
    for name, rows in paper.groupby("name", sort=False):
        for reason, doubted in rows[rows["doubt"] != ""].groupby("doubt", sort=False):
            found.append(f"{name} in the paper, {', '.join(doubted['test_set'])}: {reason}.")
        found += [f"{name} in the paper: {reason}." for reason in rows["cost_doubt"].unique() if reason]
    if absent := list(paper.loc[~paper["method"].isin(ours["method"]), "name"].unique()):
        found.append(f"Not trained here: {', '.join(absent)}.")
    if others:
        verb = "is" if others == 1 else "are"
        found.append(f"{count(others, 'cell')} of ours with other components {verb} not in this table.")
    return list(map(Markdown.escape, dict.fromkeys(found)))


def budget_notes(group: Group) -> list[str]:
    """Say how our training differs from the released recipe."""
    setting = group.setting
    words = [
        Markdown("{} is {} ({} in the released recipe)").format(code(key), setting[key], value)
        for key, value in group.published.recipe.items()
        if key in setting and setting[key] != value
    ]
    found: list[str] = [Markdown("Different budget: {}.").format(joined(words, "; "))] if words else []
    if "evaluation.self_ensemble" in setting:
        found.append("Our scores use a self-ensemble; the paper's do not.")
    return found


def data_notes(inputs: pd.DataFrame) -> list[str]:
    """Compare our pictures and protocol with the paper's, as far as the scores of the inputs themselves show."""
    found = ["The fingerprint above identifies our training pictures; it does not show whether they are the paper's."]
    theirs, ours = (
        inputs[inputs["source"] == source].set_index("test_set")["psnr_mean_db"] for source in ("paper", "ours")
    )
    if theirs.empty or ours.empty:
        said = "The paper prints no row for the inputs themselves, so we cannot check that the pictures agree."
        return [*found, said]
    gaps = {str(name): rounded(float(ours[name] - theirs[name])) for name in theirs.index if name in ours}
    same = [name for name, gap in gaps.items() if abs(gap) <= SAME_BASELINE_DB]
    if same:
        found.append(
            f"Bicubic interpolation reaches the paper's PSNR on {', '.join(same)}: same pictures and protocol."
        )
    return found + [
        f"On {name} bicubic interpolation is {gap:+.2f} dB off the paper's: different pictures or protocol."
        for name, gap in gaps.items()
        if name not in same
    ]
