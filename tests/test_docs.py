"""The documentation: its recipes run, its links lead somewhere, and what it names exists.

``python -m tests.test_docs`` writes the tables that are made from the code and from the reports.
"""

import importlib
import importlib.util
import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ablations.space.claims import CLAIMS
from ablations.space.factors import FACTORS, Factor, level_text
from analysis.report.summary import SUMMARY, Task, read_summary
from analysis.report.words import in_thousands
from bbcu.data import tasks
from tests.harness.builders import noise
from tests.harness.paths import DOCS, REPOSITORY
from tests.harness.processes import CommandProcess
from tests.harness.support import Workplace, call, with_launcher
from tests.test_architecture import ALLOWED, FORBIDDEN

CONTRIBUTING = REPOSITORY / "CONTRIBUTING.md"
SECURITY = REPOSITORY / "SECURITY.md"
REPORTS = REPOSITORY / "reports" / "README.md"
PAGES = [REPOSITORY / "README.md", REPORTS, CONTRIBUTING, SECURITY, *sorted(DOCS.rglob("*.md"))]
EXAMPLES = REPOSITORY / "reports" / "examples"
EXTENDING = DOCS / "extending.md"

FENCED = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
INLINE = re.compile(r"`([^`]+)`")
INDENTED = re.compile(r"^(?: {4}|\t)(.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = ("bbcu", "ablations", "analysis", "hydra_plugins", "conf", "docs", "tests", "benchmarks")


def named(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def prose(text: str) -> str:
    """A page without its code."""
    return INLINE.sub("", FENCED.sub("", text))


def codes(text: str) -> Iterator[str]:
    """Every line of code of a page, in blocks and in sentences, without comments."""
    blocks = [found["code"] for found in FENCED.finditer(text)]
    rest = FENCED.sub("", text)
    lines = [line for block in blocks for line in block.splitlines()] + INDENTED.findall(rest)
    yield from (line.partition(" #")[0].strip() for line in lines)
    yield from (" ".join(code.split()) for code in INLINE.findall(INDENTED.sub("", rest)))


# --- promises --------------------------------------------------------------------------------------------------------


def promises() -> Iterator[tuple[str, str]]:
    """Each test that the policy names, with the folder that stands above its table."""
    folder = ""
    for line in SECURITY.read_text(encoding="utf-8").splitlines():
        if match := re.search(r"[Ii]n `(tests[\w/]*)`:$", line):
            folder = match[1]
        if match := re.fullmatch(r"\| .+ \| `(test_\w+)` \|", line):
            yield folder, match[1]


def test_every_promise_of_the_policy_has_its_test() -> None:
    named = list(promises())
    rows = [line for line in SECURITY.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    heads = [row for row in rows if row in ("| promise | test |", "| --- | --- |")]
    assert len(named) == len(rows) - len(heads) > 0
    for folder, test in named:
        files = (REPOSITORY / folder).rglob("test_*.py")
        assert any(f"\ndef {test}(" in path.read_text(encoding="utf-8") for path in files), f"{folder}: {test}"


# --- links and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and MkDocs give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_path_that_is_named_exists(page: Path) -> None:
    words = {word for code in codes(page.read_text(encoding="utf-8")) for word in code.split()}
    paths = {word for word in words if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", word)}
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


COMMANDS = sorted(
    {
        " ".join([found[1], *re.findall(r"^ ([a-z]+)(?= |$)", found[2]), *re.findall(r"--[a-z][\w-]*", found[2])])
        for page in PAGES
        for code in codes(page.read_text(encoding="utf-8"))
        for found in re.finditer(r"\bpython -m ([\w.]+)([^|;&]*)", code)
    }
)
"""Every ``python -m ...`` of the pages: the module, the word behind it, and the options."""


def test_commands_are_found() -> None:
    assert {"analysis --check", "ablations space", "bbcu.data fetch"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_is_named_exists(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *rest = command.split()
    assert importlib.util.find_spec(module) is not None
    if module.partition(".")[0] not in FOLDERS or module.startswith("tests"):
        return
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(SystemExit) as left:
        run_module(module, *(word for word in rest if not word.startswith("--")), "--help")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in rest if option.startswith("--"))


def test_the_command_for_costs_still_runs_under_its_earlier_name() -> None:
    command = [sys.executable, "-m", "bbcu.cost", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "usage: python -m bbcu.model.cost" in done.stdout


def run_module(module: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__", alter_sys=True)


REFERENCE_BLOCK = re.compile(r"^::: ([\w.]+)\n((?: +.*\n)*)", re.MULTILINE)


@pytest.mark.parametrize("page", sorted((DOCS / "reference").glob("*.md")), ids=named)
def test_every_name_of_the_reference_exists(page: Path) -> None:
    blocks = REFERENCE_BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for module, options in blocks:
        for name in yaml.safe_load(options)["options"]["members"]:
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("page", sorted((DOCS / "reference").glob("*.md")), ids=named)
def test_the_examples_of_the_reference_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for found in FENCED.finditer(page.read_text(encoding="utf-8")):
        exec(found["code"], {})
        printed = re.findall(r"^print.*# (.*)$", found["code"], re.MULTILINE)
        assert capsys.readouterr().out.splitlines()[: len(printed)] == printed


# --- tables that are made from the code -------------------------------------------------------------------------------


def factor_table() -> str:
    """The factors as they are declared."""
    rows = [
        f"| `{factor.name}` | {levels_of(factor)} | {as_code(factor.reference)} | {factor.meaning} |"
        for factor in FACTORS.values()
    ]
    return "\n".join(["| factor | levels | reference | meaning |", "|---|---|---|---|", *rows])


def levels_of(factor: Factor) -> str:
    parts = max((level for level in factor.levels if isinstance(level, tuple)), key=len, default=())
    if parts:
        return f"any of {', '.join(map(as_code, parts))}"
    levels = ", ".join(map(as_code, factor.levels))
    return levels + ", a positive number" * factor.numeric + ", the dotted path of a class of your own" * factor.open


def as_code(level: object) -> str:
    return f"`{level_text(level)}`"


def room_table() -> str:
    """The rooms, and what each may and must not import."""
    rows = [
        f"| `{room}` | {', '.join(f'`{name}`' for name in sorted(allowed))} "
        f"| {', '.join(f'`{name}`' for name in sorted(forbidden_in(room)))} |"
        for room, allowed in ALLOWED.items()
    ]
    return "\n".join(["| room | may import of the others | must not import |", "|---|---|---|", *rows])


def forbidden_in(room: str) -> set[str]:
    """What the room, or the package that it is in, must not import."""
    packages = [package for package in FORBIDDEN if room == package or room.startswith(f"{package}.")]
    return {name for package in packages for name in FORBIDDEN[package]}


def evidence_table() -> str:
    """What the committed reports say of each claim of the paper, those with more steps first."""
    found: dict[str, list[tuple[int, str]]] = {claim.text: [] for claim in CLAIMS}
    for summary_file in sorted(EXAMPLES.glob(f"*/{SUMMARY}")):
        parts = read_summary(summary_file).tasks
        for number, task in enumerate(parts, start=1):
            file = summary_file.with_name("claims.csv" if len(parts) == 1 else f"part{number}-claims.csv")
            claims = pd.read_csv(file, dtype=str) if file.is_file() else pd.DataFrame(columns=["claim"])
            for text, rows in claims.groupby("claim", sort=False):
                found[str(text)].append((int(task.steps), evidence(summary_file.parent.name, task, rows)))
    lines = [f"| {text} | {row} |" for text, rows in found.items() for _, row in sorted(rows, key=lambda one: -one[0])]
    return "\n".join(
        [
            "| Claim of the paper | Here | Measured [95 %] | Seeds | Network, steps, trained on | Report |",
            "|---|---|---|---:|---|---|",
            *lines,
        ]
    )


def evidence(report: str, task: Task, rows: pd.DataFrame) -> str:
    """The cells of a row: one verdict, or one for each test set if they differ; the difference on the first of them."""
    by_verdict: dict[str, list[str]] = {}
    for test_set, verdict in zip(rows["on"], rows["status"], strict=True):
        by_verdict.setdefault(verdict, []).append(test_set)
    alone = len(by_verdict) == 1
    verdicts = [f"**{word}**" + ("" if alone else f" on {', '.join(sets)}") for word, sets in by_verdict.items()]
    first = rows.fillna("").iloc[0]
    unit = "" if first["on"] == "probes" else " dB"
    mean, low, high = (f"{float(first[name]):+.3f}" for name in ("mean", "low_95", "high_95"))
    where = f" at `{first['away_from_the_papers_unit']}`" if first["away_from_the_papers_unit"] else ""
    collapsed = first["collapsed_before"], first["collapsed_after"]
    mark = "" if all(text.startswith("0 of") for text in collapsed) else f" (collapsed: {' and '.join(collapsed)})"
    return " | ".join(
        [
            "; ".join(verdicts),
            f"{mean}{unit} [{low}, {high}] on {first['on']}{where}{mark}",
            first["seeds"],
            f"{task.network} for {task.task}, {in_thousands(task.steps)}, {task.trained_on}",
            f"[{report}](../reports/examples/{report}/report.md)",
        ]
    )


def length_table() -> str:
    """What each committed report says of fewer steps: the rank correlation at parts of its training."""
    shares = {"1/8": 8, "1/4": 4, "1/2": 2}
    lines = [
        f"| Report | Effects | Steps | {' | '.join(f'after {share}' for share in shares)} | All verdicts from step |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for file in sorted(EXAMPLES.glob("*/*agreement.csv")):
        table = pd.read_csv(file)
        first = table[table["test_set"] == table["test_set"].iloc[0]].set_index("step")
        last, effects = first.index.max(), first["comparisons"].iloc[0]
        found = [first["rank_correlation"].get(last / part, math.nan) for part in shares.values()]
        if not math.isnan(first["rank_correlation"].iloc[-1]):
            shown = " | ".join("—" if math.isnan(value) else f"{value:+.2f}" for value in found)
            differing = first.index[first["same_outcome"] < effects]
            settled = first.index[first.index > max(differing, default=0)][0]
            report = f"[{file.parent.name}](../reports/examples/{file.parent.name}/report.md)"
            number = re.match(r"part(\d+)-", file.name)
            task = f", {read_summary(file.with_name(SUMMARY)).tasks[int(number[1]) - 1].task}" if number else ""
            lines.append(f"| {report}{task} | {effects} | {last:,} | {shown} | {settled:,} |")
    return "\n".join(lines)


TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "factors": (DOCS / "parts.md", factor_table),
    "rooms": (CONTRIBUTING, room_table),
    "lengths": (DOCS / "findings.md", length_table),
    "evidence": (DOCS / "findings.md", evidence_table),
}


def between_markers(name: str, text: str) -> re.Match[str]:
    found = re.search(rf"(?<=<!-- {name} -->\n\n).*?(?=\n\n<!-- end of {name} -->)", text, re.DOTALL)
    assert found is not None
    return found


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_is_what_the_code_says(name: str) -> None:
    page, table = TABLES[name]
    assert between_markers(name, page.read_text(encoding="utf-8"))[0] == table(), "python -m tests.test_docs"


# --- recipes ----------------------------------------------------------------------------------------------------------


def section(heading: str) -> str:
    """The text below a heading of the page on extending, without what follows the next of the same rank."""
    (_, _, after) = EXTENDING.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert after, heading
    return re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.fixture
def recipes(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """A workplace with every file of the page, in a folder where Python finds modules."""
    for found in FENCED.finditer(EXTENDING.read_text(encoding="utf-8")):
        if found["title"]:
            path = workplace.folder / found["title"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found["code"], encoding="utf-8")
    for role in ("train", "test"):
        (workplace.folder / "pictures").mkdir(exist_ok=True)
        (workplace.folder / "pictures" / role).symlink_to(workplace.folder / role)
    monkeypatch.syspath_prepend(workplace.folder)
    monkeypatch.chdir(workplace.folder)
    yield workplace
    for path in workplace.folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


def run_commands(text: str, workplace: Workplace) -> None:
    """Run every command of the shell blocks, as they follow one another."""
    commands = [
        line for found in FENCED.finditer(text) if found["language"] == "sh" for line in found["code"].splitlines()
    ]
    assert commands
    for command in commands:
        python, program, *arguments = shlex.split(command)
        assert python == "python"
        if program == "run.py":
            options = [argument for argument in arguments if "=" not in argument]
            overrides = workplace.overrides(*(argument for argument in arguments if "=" in argument))
            outcome = call(with_launcher([*options, *overrides]), workplace.folder)
            assert outcome.status == 0, outcome.text
        elif program == "-m":
            assert status_of(lambda arguments=arguments: run_module(*arguments)) == 0
        else:
            runpy.run_path(program, run_name="__main__")


def status_of(main: Callable[[], None]) -> object:
    """The exit status of a program that runs in this process."""
    try:
        main()
    except SystemExit as left:
        return left.code or 0
    return 0


@pytest.mark.parametrize(
    ("heading", "trials"),
    [
        pytest.param("A level", 2, id="level"),
        pytest.param("A network", 4, id="network"),
        pytest.param("A data set", 1, id="data set"),
        pytest.param("A design", 3, id="design"),
    ],
)
def test_a_recipe_runs(heading: str, trials: int, recipes: Workplace) -> None:
    run_commands(section(heading), recipes)
    assert len(recipes.results()) == trials


@pytest.mark.slow
def test_a_factor_of_ones_own_is_listed_swept_and_reported(recipes: Workplace) -> None:
    """In processes of their own, since a declared factor stays for as long as its process."""
    (commands,) = (found["code"] for found in FENCED.finditer(section("A factor")) if found["language"] == "sh")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(recipes.folder), str(REPOSITORY)])}
    own = recipes.overrides("hydra/launcher=basic", "hydra.sweeper.replicates=2")
    more = {"run.py": own, "analysis": ["--tracking-uri", recipes.uri]}
    out = ""
    for command in [*commands.splitlines(), "python run.py --help", "python -m ablations space"]:
        first, *words = shlex.split(command)
        if first == "export":
            environment |= [words[0].split("=", 1)]
            continue
        program, *arguments = words[1:] if words[0] == "-m" else words
        options = more.get(program, []) if arguments != ["--help"] else []
        process = CommandProcess([*arguments, *options], recipes.folder, environment, recipes.notes(), program=program)
        text, message = process.communicate(timeout=600)
        assert process.returncode == 0, message
        out += text
    results = [json.loads(path.read_text()) for path in recipes.outputs.glob("gain/*/seed0/result.json")]
    assert {(result["factors"]["gain"], result["factors"]["act_fn"]) for result in results} == {
        ("none", "rprelu"),
        ("none", "hardtanh"),
        ("channel", "rprelu"),
        ("unit", "rprelu"),
    }
    for path in recipes.outputs.glob("gain/*/seed0/checkpoint.pt"):
        level = json.loads(path.with_name("result.json").read_text())["factors"]["gain"]
        sizes = {value.numel() for name, value in torch.load(path).items() if name.endswith(".gain")}
        assert sizes == {"none": set(), "channel": {4}, "unit": {1}}[level]
    assert "hardtanh cuts off what a gain has made large" in out
    assert "gain: none" in out
    assert "distil, gain" in out
    page = recipes.folder / "reports" / "gain" / "report.md"
    assert "gain=channel" in page.read_text()
    factors = recipes.folder / "my_factors.py"
    phrased = factors.read_text().replace("import Factor,", "import Factor, Phrase,")
    said = 'phrases={"channel": Phrase("a gain for each channel")},'
    factors.write_text(phrased.replace("    unit=", f"    {said}\n    unit="))
    process = CommandProcess(
        ["gain", *more["analysis"]], recipes.folder, environment, recipes.notes(), program="analysis"
    )
    process.communicate(timeout=600)
    assert "A gain for each channel added" in page.read_text()


@pytest.mark.slow
def test_a_study_of_ones_own_has_a_report_and_a_table_of_ones_own(
    recipes: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_commands(section("A study"), recipes)
    assert len([*(recipes.outputs / "mine").glob("*/seed*/result.json")]) == 8
    capsys.readouterr()
    run_commands(section("A table of a report"), recipes)
    printed = capsys.readouterr().out
    assert "my_parts.Triangle" in printed
    assert "Tiny/psnr_db" in printed


@pytest.mark.slow
def test_a_metric_of_ones_own_is_scored(recipes: Workplace) -> None:
    run_commands(section("A metric"), recipes)
    results = [json.loads(path.read_text()) for path in recipes.outputs.glob("*/*/seed*/result.json")]
    assert [True for result in results if result["metrics"]["Tiny"].get("flat_error", -1) >= 0]


def test_the_task_of_the_page_is_a_task(recipes: Workplace) -> None:
    task = runpy.run_path("deblurring.py")["Deblurring"]()
    assert {name for name in vars(tasks.Task) if not name.startswith("_")} <= set(dir(task))
    given, truth = task.test_pair(noise(24, 30), "")
    assert given.shape == truth.shape == (24, 30, 3)
    blurred, same = task.score(task.baseline(given), truth), task.score(truth, truth)
    assert blurred.psnr_db < same.psnr_db
    assert blurred.ssim < same.ssim == 1


if __name__ == "__main__":
    for name, (page, table) in TABLES.items():
        text = page.read_text(encoding="utf-8")
        place = between_markers(name, text)
        page.write_text(text[: place.start()] + table() + text[place.end() :], encoding="utf-8")
