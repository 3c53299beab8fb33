r"""Tables for LaTeX: each is well formed, fits the page and compiles."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from analysis.report.forms import forms
from analysis.report.latex import MOST_LINES
from tests.harness.paths import REPOSITORY

REPORT = REPOSITORY / "reports" / "examples" / "residual_bn" / "report.md"

NASTY = (
    r"C:\path_to\x & 50 % of $5 #1 {a} ~b^c <class 'ValueError'> \| \"quoted\" --flag “double” …",
    "naïve Straße ± → ≤ ≥ 中文 😀 ł † ‡ µ \u2018single\u2019 \u2013 \u2014 \u00d7 \u2212 \u03c3",
    "`surrogate=my.own.package.surrogates.LearnedHyperbolicTangentOfTheSignWithoutEnd`",
    f"`{'0123456789abcdef' * 4}`",
    "**bold `code_x`** and *slanted*, " + "and so on " * 30,
)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], first_number: int) -> str:
    """Lay out a Markdown table whose columns from ``first_number`` on are flush right."""
    rule = ["---:" if index >= first_number else "---" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def tables_of(page: str) -> dict[str, str]:
    found = forms({"report.md": page.encode()})
    return {name: content.decode() for name, content in found.items() if name.endswith(".tex")}


def in_latex(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 99) -> str:
    """A table under the heading Cells."""
    return tables_of(f"# Study\n\n## Cells\n\n{markdown_table(header, rows, numbers_from)}\n")["tables/01-cells.tex"]


def nasty_page() -> str:
    """Tables of every shape, with everything in them that means something else to LaTeX."""
    numbers = [f"{value}.125 [-0.250, +0.500] undecided" for value in range(9)]
    scores = [f"Set{value} PSNR (dB) / SSIM" for value in range(9)]
    tall = [[f"`cell={row}`", str(row), "loss is not finite at step 7 of the second seed"] for row in range(150)]
    tables = [
        markdown_table(["Key", "Value"], [[f"`key_{index}`", text] for index, text in enumerate(NASTY)], 2),
        markdown_table(["Cell", "Seed", "Reason"], tall, 3),
        markdown_table(["Cell", *scores], [[f"`c{row}`", *numbers] for row in range(99)], 1),
        markdown_table(["[95 %]", "*"], [["[body]", "\\*"], ["[body,up]", "[x]"]], 2),
        markdown_table(["A", "B"], [], 2),
    ]
    parts = [f"## Part {number} & 50 % of `x_y`\n\n{table}" for number, table in enumerate(tables)]
    return "\n\n".join(["# Study", *parts]) + "\n"


PAGES = [pytest.param(nasty_page(), id="nasty"), pytest.param(REPORT.read_text(encoding="utf-8"), id="report")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None and "CI" not in os.environ, reason="there is no pdflatex here")
@pytest.mark.parametrize("page", PAGES)
def test_every_table_compiles_and_fits_the_page(page: str, tmp_path: Path) -> None:
    for name, table in tables_of(page).items():
        (tmp_path / Path(name).name).write_text(table, encoding="utf-8")
    document = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs,array,graphicx}",
        r"\begin{document}",
        *(rf"\input{{{path.stem}}}\clearpage" for path in sorted(tmp_path.glob("*.tex"))),
        r"\end{document}",
    ]
    (tmp_path / "all.tex").write_text("\n".join(document))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0, "\n".join(said[-30:])
    # Of a paragraph TeX warns when its last word is over the edge by less than a letter.
    over = [float(match[1]) for line in said if (match := re.match(r"Overfull \\hbox \(([\d.]+)pt", line))]
    assert max(over, default=0.0) <= 2.0
    assert [line for line in said if "Overfull \\vbox" in line or "too large" in line] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_table_has_only_letters_that_latex_knows(page: str) -> None:
    assert {letter for table in tables_of(page).values() for letter in table if ord(letter) > 255} == set()


def test_numbers_are_flush_right_and_long_texts_are_paragraphs() -> None:
    assert r"\begin{tabular}{lr}" in in_latex(["Factor", "dB"], [["`bn`", "-0.5"]], 1)
    paragraph = in_latex(["Cell", "Reason"], [["`a`", "word " * 20]])
    assert r"\begin{tabular}{l>{\raggedright\arraybackslash}p{8cm}}" in paragraph


def test_a_table_too_high_for_the_page_is_continued() -> None:
    table = in_latex(["A", "B"], [["1", "2"]] * (2 * MOST_LINES + 1))
    parts = table.split(r"\begin{table}")[1:]
    assert [part.count("1 & 2") for part in parts] == [MOST_LINES, MOST_LINES, 1]
    assert all(rf"\caption{{Cells ({number} of 3)}}" in part for number, part in enumerate(parts, start=1))
    assert all(r"A & B \\" in part for part in parts)


def test_a_row_that_begins_with_a_bracket_is_not_an_argument() -> None:
    table = in_latex(["[95 %]", "B"], [["[body]", "1"], ["\\*", "2"]])
    assert [line[:3] for line in table.splitlines() if line.endswith(r"\\")] == ["{}[", "{}[", "{}*"]


def test_long_words_may_be_broken_and_numbers_may_not() -> None:
    table = in_latex(["Key", "Value"], [["`k`", f"`{'a' * 60}` with -0.125 " + "x " * 20]])
    assert rf"{'a' * 24}\allowbreak{{}}{'a' * 24}\allowbreak{{}}" in table
    assert "$-$0.125 x" in table
