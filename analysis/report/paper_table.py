"""The paper's tables 1 to 3 with our numbers below its own: :func:`paper_tables`.

A published method is recognised by the name that its trial records, and BBCU-M by its levels. Each table holds trials
of one budget and one data set, and the test sets that both the paper and we have scores on. The notes below a table
name every known difference of protocol, budget or data.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import pandas as pd

from ablations.storage.folder import Identity
from analysis.published.tables import BINARY, COSTS, NO_NETWORK, SOURCE, TABLES, WORDS, PublishedTable, published
from analysis.report.markup import Markdown, anchor, code, joined
from analysis.report.words import count, in_thousands, listed
from analysis.statistics.estimates import Summary, summary
from analysis.statistics.rounding import rounded
from analysis.study.latency import latency_of
from analysis.study.loading import NOT_RECORDED, StudyResults, identities_of
from analysis.study.methods import NETWORKS_OF_PAPER, group_key, groups_of, method_of, rows_by_setting, tested_on
from analysis.study.tasks import KEY_LENGTH, test_sets

ABSENT = "—"  # stands for a number that the paper or we do not have
DOUBTED = "?"  # marks a published number that does not fit its neighbours
COLLAPSED = "†"  # marks a mean over seeds of which some collapsed
SAME_BASELINE_DB = 0.01  # baselines closer than this come from the same pictures, prepared and scored in the same way


NUMBERS = [
    *("name", "method", "kind", "source", "cell", "test_set", "seeds", "collapsed"),
    *("psnr_mean_db", "psnr_sd_db", "ssim_mean", "ops_g", "params_k", "doubt", "cost_doubt", "remark"),
]
"""The columns of the table's numbers, a row per method, source and test set."""

MEASURED = {"time_over_twin": ("Time / twin", 3), "packed_kb": ("Packed (KB)", 1)}
"""The columns that follow where some cell of ours was measured, with their headings and digits."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table to read, and its numbers for the CSV file ``name``."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: Markdown
    notes: tuple[Markdown, ...]
    frame: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Group:
    """Finished trials of one task, budget and data set; ``setting`` is what they share.

    ``data`` is the name of the training pictures, or else the start of the fingerprint. ``numbers`` are the paper's and
    ours on the test sets of both, ``unscored`` the paper's other test sets, ``others`` how many cells of ours are no
    method of the table.
    """

    published: PublishedTable
    task: str
    setting: Mapping[str, str]
    data: str
    trials: pd.DataFrame
    numbers: pd.DataFrame
    unscored: tuple[str, ...]
    others: int


def paper_tables(results: StudyResults, collapsed: Collection[Identity] = ()) -> list[Table]:
    """Return a table for each task, budget and data set in which a network of ours stands beside a number of the paper.

    That is a finished cell of a method that the paper's table of the task has, in a network of the paper, scored on one
    of its test sets.
    ``collapsed`` are the trials whose networks learned nothing.
    """
    finished = results.finished
    marked = [identity in collapsed for identity in identities_of(finished)]
    found = groups(results, finished.assign(collapsed=marked))
    return [table_of(group, [other for other in found if other.task == group.task]) for group in found]


def groups(results: StudyResults, finished: pd.DataFrame) -> list[Group]:
    """Group the finished trials that share a table, in the order of the study; without those that none covers."""
    settings: dict[int, tuple[dict[str, str], str]] = {}
    for setting, places in rows_by_setting(finished):
        tested = next(filter(None, tested_on(finished.iloc[places])), "")
        settings |= dict.fromkeys(places, (setting, tested))
    methods = enumerate(finished["method"].tolist())
    keys = [group_key(settings[place][0], method, settings[place][1]) for place, method in methods]
    about = {task: table for table in TABLES for task in table.tasks}
    found = []
    for places in groups_of(keys):
        key = max((keys[place] for place in places), key=len)
        task, data = key.get("task.name", ""), settings[places[0]][0].get("data", NOT_RECORDED)
        if task in about and {key.get("network.name")} <= {None, *NETWORKS_OF_PAPER}:
            setting, trials = {"data": data, **key}, finished.iloc[places]
            group = group_of(results, about[task], task, setting, trials)
            if (group.numbers["cell"] != "").any():
                found.append(group)
    return found


def group_of(
    results: StudyResults, table: PublishedTable, task: str, setting: Mapping[str, str], trials: pd.DataFrame
) -> Group:
    paper = published()
    paper = paper[paper["task"] == task]
    names, scored = names_of_sets(table, setting, paper), test_sets(trials)
    columns = {name: ours for name, ours in names.items() if ours in scored}
    paper = paper[paper["scored_set"].isin(columns)]
    ours, others = our_numbers(results, trials, columns, paper)
    numbers = with_measured(pd.concat([paper_numbers(paper), ours], ignore_index=True), trials)
    unscored = tuple(name for name in names if name not in columns)
    known = results.data_names.get(setting["data"])
    data = known.train if known and known.train else setting["data"][:KEY_LENGTH]
    return Group(table, task, setting, data, trials, numbers, unscored, others)


def with_measured(numbers: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Add what the trials measured at the place where most of these cells were; the paper measured nothing."""
    latency = latency_of(trials)
    ratios = {cell: found.ratio.median for cell in numbers["cell"].unique() if (found := latency.timed(cell))}
    if not ratios:
        return numbers
    return numbers.assign(
        time_over_twin=numbers["cell"].map(ratios).astype(float),
        packed_kb=numbers["cell"].map(latency.packed_kb).astype(float),
    )


def measured_columns(numbers: pd.DataFrame) -> list[str]:
    return [name for name in MEASURED if name in numbers]


def names_of_sets(table: PublishedTable, setting: Mapping[str, str], paper: pd.DataFrame) -> dict[str, str]:
    """Return the paper's test sets in its order, each with its name among our metrics.

    A training that is scored at one strength does not append the strength to the name of the test set.
    """
    strength = setting.get(f"task.{table.level}", "").strip("[]")
    return {
        row["scored_set"]: row["test_set"] if table.suffix and strength == str(row["level"]) else row["scored_set"]
        for _, row in paper.drop_duplicates("scored_set").iterrows()
    }


def table_of(group: Group, found: Sequence[Group]) -> Table:
    """Make the table of one of the groups of a task."""
    about, unit = group.published, "PSNR (dB)" if group.numbers["ssim_mean"].isna().all() else "PSNR (dB) / SSIM"
    columns = list(group.numbers["test_set"].unique())
    return Table(
        name=f"comparison-{group.task}" + (f"-{number_of(group, found)}" if len(found) > 1 else ""),
        title=about.subject + (f", {group.task}" if about.number == 1 else "") + apart_in_words(group, found),
        header=(
            *("Method", "Numbers", "Seeds", "OPs (G)", "Params (K)"),
            *(MEASURED[name][0] for name in measured_columns(group.numbers)),
            *(f"{name} {unit}" for name in columns),
        ),
        rows=tuple(lines(group.numbers, columns)),
        caption=caption(group),
        notes=tuple(notes(group)),
        frame=group.numbers,
    )


def apart_in_words(group: Group, found: Sequence[Group]) -> str:
    """Say how a group differs from the others of its task: by its data, its steps, or else its number."""
    if len(found) == 1:
        return ""
    number = number_of(group, found)
    for noun, values in (
        ("data", [other.data for other in found]),
        ("data", [other.setting["data"][:KEY_LENGTH] for other in found]),
        ("steps:", [other.setting.get("train.steps", NOT_RECORDED) for other in found]),
    ):
        if len(set(values)) == len(found):
            return f", {noun} {values[number - 1]}"
    return f", setting {number}"


def number_of(group: Group, found: Sequence[Group]) -> int:
    return next(number for number, other in enumerate(found, start=1) if other is group)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def paper_numbers(paper: pd.DataFrame) -> pd.DataFrame:
    names = {"psnr_db": "psnr_mean_db", "ssim": "ssim_mean"}
    frame = paper.drop(columns="test_set").rename(columns={**names, "scored_set": "test_set"})
    return frame.assign(source="paper", cell="", seeds="", collapsed="", psnr_sd_db=math.nan, remark="")[NUMBERS]


def our_numbers(
    results: StudyResults, trials: pd.DataFrame, columns: Mapping[str, str], paper: pd.DataFrame
) -> tuple[pd.DataFrame, int]:
    """Return our numbers for the paper's methods, and how many cells are not a method of the table."""
    known = {row["method"]: row for _, row in paper.drop_duplicates("method").iterrows()}
    rows: list[dict[str, object]] = []
    others = 0
    for cell, of_cell in trials.groupby("cell", sort=False):
        method = method_of(of_cell.iloc[0], results.reference, results.factors)
        if method in known and known[method]["kind"] != NO_NETWORK:
            rows += scores(known[method], str(cell), of_cell, columns, "metric")
        elif method not in known and method != "identity":
            others += 1
    for row in known.values():
        if row["kind"] == NO_NETWORK:
            rows += scores(row, "", trials, columns, "metric/baseline")
    return pd.DataFrame(rows, columns=NUMBERS), others


def scores(
    about: "pd.Series", cell: str, trials: pd.DataFrame, columns: Mapping[str, str], prefix: str
) -> list[dict[str, object]]:
    """Return what the trials of one cell reach; without a cell the baseline's scores, which no seed changes."""

    def over_seeds(test_set: str, metric: str) -> Summary:
        column = f"{prefix}/{columns[test_set]}/{metric}"
        values = trials[column].dropna().tolist() if column in trials else []
        return summary(values if cell else values[:1])

    def collapsed(test_set: str) -> int:
        scored = trials[f"metric/{columns[test_set]}/psnr_db"].notna()
        return int(trials.loc[scored, "collapsed"].sum()) if cell else 0

    costs = {name: trials[f"metric/cost/{name}"].iloc[0] if cell else math.nan for name in COSTS}
    return [
        {
            **{key: about[key] for key in ("name", "method", "kind", "remark")},
            **{"source": "ours", "cell": cell, "test_set": name, "seeds": psnr.n},
            **{"collapsed": collapsed(name), **costs},
            **{"psnr_mean_db": psnr.mean, "psnr_sd_db": psnr.sd, "ssim_mean": over_seeds(name, "ssim").mean},
            **{"doubt": "", "cost_doubt": ""},
        }
        for name in columns
        if (psnr := over_seeds(name, "psnr_db")).n
    ]


# ---- rows ------------------------------------------------------------------------------------------------------------


def single_seed(numbers: pd.DataFrame) -> bool:
    return bool((numbers.loc[numbers["cell"] != "", "seeds"] == 1).any())


def has_collapsed(numbers: pd.DataFrame) -> "pd.Series[bool]":
    """Whether collapsed seeds are among those of each number."""
    return ~numbers["collapsed"].isin(("", 0))


def ranked(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers with PSNR and SSIM as printed, the best binary method bold and the second best italic.

    The paper's numbers and ours are ranked separately. Ours are not ranked if some rest on a single seed, since the
    order of single runs is a matter of luck, and a mean with collapsed seeds never is.
    """
    found = numbers.assign(
        psnr=[f"{mean:.2f}" if mean == mean else "" for mean in numbers["psnr_mean_db"]],
        ssim=[f"{mean:.4f}" if mean == mean else "" for mean in numbers["ssim_mean"]],
    )
    binary = found[(found["kind"] == BINARY) & ~has_collapsed(found)]
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
        for cell, rows in cells:
            shown = str(cell)[:KEY_LENGTH]
            source = Markdown("[ours](#runs-{})").format(anchor(shown)) if cell else Markdown("ours")
            yield line(rows, source + (Markdown(" {}").format(code(shown)) if len(cells) > 1 else ""), columns)


def line(rows: pd.DataFrame, source: str, columns: Sequence[str]) -> tuple[str, ...]:
    first = rows.iloc[0]
    digits = {"ops_g": 2, "params_k": 0, **{name: MEASURED[name][1] for name in measured_columns(rows)}}
    costs = (cost_text(first, name, decimals) for name, decimals in digits.items())
    seeds = str(rows["seeds"].min()) if first["cell"] else ABSENT
    texts = {row["test_set"]: score_text(row) for _, row in rows.iterrows()}
    return (first["name"], source, seeds, *costs, *(texts.get(name, ABSENT) for name in columns))


def cost_text(row: "pd.Series", name: str, digits: int) -> str:
    if row[name] != row[name]:
        return ABSENT
    doubted = name in WORDS and f"{WORDS[name]}:" in row["cost_doubt"]
    return f"{row[name]:.{digits}f}" + (f" {DOUBTED}" if doubted else "")


def score_text(row: "pd.Series") -> Markdown:
    spread = f" ± {row['psnr_sd_db']:.2f}" if row["psnr_sd_db"] == row["psnr_sd_db"] else ""
    ssim = f" / {row['ssim']}" if row["ssim"] else ""
    marks = (DOUBTED * bool(row["doubt"]), COLLAPSED * (row["collapsed"] not in ("", 0)))
    return Markdown(" ".join(filter(None, (f"{row['psnr']}{spread}{ssim}", *marks))))


# ---- caption and notes -----------------------------------------------------------------------------------------------


def caption(group: Group) -> Markdown:
    """Say what the table shows, and the budget and data of ours."""
    setting = group.setting
    counted = (("train.steps", "step"), ("channels", "channel"), ("blocks", "block"))
    conditions = [
        *(count(int(setting[key]), noun) for key, noun in counted if key in setting),
        Markdown("data {}").format(code(group.data)),
        count(group.trials["seed"].nunique(), "seed"),
    ]
    text = Markdown(
        "Table {} of {}, with our row below each of its own: {}, mean ± standard deviation. **Bold** is the best and "
        "*italic* the second best binary method of the paper and of ours: a ranking, not a verdict. {} marks a printed "
        "number that is in doubt."
    ).format(group.published.number, SOURCE, joined(conditions, ", "), DOUBTED)
    return text + (Markdown(" The paper also has {}.").format(listed(group.unscored)) if group.unscored else "")


def notes(group: Group) -> list[Markdown]:
    """List every known difference between our numbers and the paper's, and what is in doubt."""
    numbers = group.numbers
    paper, ours = (numbers[numbers["source"] == source] for source in ("paper", "ours"))
    found = [*budget_notes(group), *data_notes(numbers[numbers["kind"] == NO_NETWORK])]
    if single_seed(numbers):
        found.append("Ours are not ranked, because some rest on one seed.")
    found += collapsed_notes(ours)
    remarked = ours[ours["remark"] != ""]
    found += [f"Our {row['name']} is a {row['remark']}." for _, row in remarked.iterrows()]
    for name, rows in paper.groupby("name", sort=False):
        for reason, doubted in rows[rows["doubt"] != ""].groupby("doubt", sort=False):
            found.append(f"The paper's {name} on {listed(doubted['test_set'])}, {reason}.")
        found += [f"The paper's {name}, {reason}." for reason in rows["cost_doubt"].unique() if reason]
    if place := latency_of(group.trials).main:
        where = f"on {place.cpu}, {place.backend} beside {place.twin}, {place.size} pixels"
        found.append(f"Time / twin: our packed network over its full-precision twin in the same run, {where}.")
    if absent := list(paper.loc[~paper["method"].isin(ours["method"]), "name"].unique()):
        found.append(f"Not trained here: {listed(absent)}.")
    if group.others:
        verb = "is" if group.others == 1 else "are"
        found.append(f"{count(group.others, 'cell')} of ours with other components {verb} not in this table.")
    return list(map(Markdown.escape, dict.fromkeys(found)))


def budget_notes(group: Group) -> list[str]:
    """Say how our training differs from the released recipe."""
    setting = group.setting
    words = [
        f"{key.rpartition('.')[2]} {in_thousands(setting[key])} ({in_thousands(value)})"
        for key, value in group.published.recipe.items()
        if key in setting and not same_value(setting[key], value)
    ]
    found = [f"Budget of ours, and of the released recipe in parentheses: {', '.join(words)}."] if words else []
    if setting.get("evaluation.self_ensemble") == str(True):
        found.append("Our scores use a self-ensemble; the paper's do not.")
    return found


def same_value(ours: str, theirs: str) -> bool:
    """Whether two values of a setting are equal; numbers are, in whichever way they are written."""
    try:
        return bool(json.loads(ours) == json.loads(theirs))
    except (ValueError, RecursionError):  # words, or a value of somebody else's archive
        return ours == theirs


def collapsed_notes(ours: pd.DataFrame) -> list[str]:
    cells = ours[has_collapsed(ours)].drop_duplicates("cell")
    words = [f"{row['collapsed']} of {count(row['seeds'], 'seed')} of {row['name']}" for _, row in cells.iterrows()]
    return [f"{COLLAPSED} Collapsed seeds are in the mean, which is not ranked: {listed(words)}."] if words else []


def data_notes(inputs: pd.DataFrame) -> list[str]:
    """Compare our test pictures and protocol with the paper's, as far as the scores of the inputs themselves show."""
    theirs, ours = (
        inputs[inputs["source"] == source].set_index("test_set")["psnr_mean_db"] for source in ("paper", "ours")
    )
    if theirs.empty or ours.empty:
        return ["The paper prints no scores of the inputs, so whether the test pictures are the same is not known."]
    gaps = {str(name): rounded(float(ours[name] - theirs[name])) for name in theirs.index if name in ours}
    same = [name for name, gap in gaps.items() if abs(gap) <= SAME_BASELINE_DB]
    found = []
    if same:
        agreed = f"bicubic interpolation has its PSNR on {listed(same)}."
        found.append(f"Test pictures and protocol are the paper's: {agreed}")
    return found + [
        f"On {name} bicubic interpolation is {gap:+.2f} dB off the paper's: other test pictures or protocol."
        for name, gap in gaps.items()
        if name not in same
    ]
