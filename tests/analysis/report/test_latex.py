r"""Tables for LaTeX: each is well formed, fits the page by the rule that is written down, and compiles."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.report.forms import forms
from tests.harness.paths import REPOSITORY

REPORT = REPOSITORY / "reports" / "residual_bn" / "report.md"

TURNED = r"\begin{landscape}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def set_in_latex(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table under the heading Cells."""
    page = f"# Study\n\n## Cells\n\n{markdown(header, rows, right)}\n"
    return forms({"report.md": page.encode()})["tables/01-cells.tex"].decode()


def tables_of(page: str) -> dict[str, str]:
    found = forms({"report.md": page.encode()})
    return {name: content.decode() for name, content in found.items() if name.endswith(".tex")}


NASTY = (
    r"C:\path_to\x & 50 % of $5 #1 {a} ~b^c <class 'ValueError'> \| \"quoted\" --flag “double” …",
    "naïve Straße ± → ≤ ≥ 中文 😀 ł † ‡ µ \u2018single\u2019 \u2013 \u2014 \u00d7 \u2212 \u03c3",
    "`surrogate=my.own.package.surrogates.LearnedHyperbolicTangentOfTheSignWithoutEnd`",
    f"`{'0123456789abcdef' * 4}`",
    "**bold `code_x`** and *slanted*, " + "and so on " * 30,
)


def nasty_page() -> str:
    """Tables of every kind of layout, with everything in them that LaTeX does not take as it is."""
    numbers = [f"{value}.125 [-0.250, +0.500] undecided" for value in range(9)]
    scores = [f"Set{value} PSNR (dB) / SSIM" for value in range(9)]
    tall = [[f"`cell={row}`", str(row), "loss is not finite at step 7 of the second seed"] for row in range(150)]
    tables = [
        markdown(["Key", "Value"], [[f"`key_{index}`", text] for index, text in enumerate(NASTY)]),
        markdown(["Factor", *scores], [["`a`", *numbers]] * 3, range(1, 10)),
        markdown(["Cell", "Seed", "Reason"], tall, [1]),
        markdown(["Cell", *scores], [[f"`c{row}`", *numbers] for row in range(99)], range(1, 10)),
        markdown(["[95 %]", "*"], [["[body]", "\\*"], ["[body,up]", "[x]"]]),
        markdown(["A", "B"], []),
    ]
    parts = [f"## Part {number} & 50 % of `x_y`\n\n{table}" for number, table in enumerate(tables)]
    return "\n\n".join(["# Study", *parts]) + "\n"


PAGES = [pytest.param(nasty_page(), id="nasty"), pytest.param(REPORT.read_text(encoding="utf-8"), id="report")]


def badly_formed(latex: str) -> list[str]:
    """What is wrong with a table: braces, environments, rows of another number of columns, letters LaTeX lacks."""
    plain = re.sub(r"\\[\\{}&%$#_]", lambda match: r"\\" if match[0] == r"\\" else "", latex)
    found = [] if plain.count("{") == plain.count("}") else ["braces"]
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", latex):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            found.append(f"environment {name}")
    found += [f"open {name}" for name in opened]
    width = 0
    for line in plain.splitlines():
        if match := re.match(r"\\begin\{(?:tabular|longtable)\}\{(.*)\}$", line):
            width = len(re.findall("[lrp]", re.sub(r">\{[^}]*\}|\{[^{}]*pt\}", "", match[1])))
        elif line.endswith(r"\\") and not line.startswith(r"\caption") and line.count("&") != width - 1:
            found.append(f"{line.count('&') + 1} columns of {width}: {line}")
    return found + [f"letter {letter}" for letter in re.sub("[À-ÿ]", "", latex) if not letter.isascii()]


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_well_formed(page: str) -> None:
    found = tables_of(page)
    assert found
    assert {name: wrong for name, table in found.items() if (wrong := badly_formed(table))} == {}


@pytest.mark.parametrize(
    ("spoilt", "wrong"),
    [
        pytest.param(("}", ""), "braces", id="a brace is lost"),
        pytest.param((r"\end{table}", ""), "open table", id="an end is lost"),
        pytest.param((" & ", " "), "1 columns of 2", id="a column is lost"),
        pytest.param(("one", "中"), "letter 中", id="a letter that LaTeX lacks"),
    ],
)
def test_the_check_of_forms_sees(spoilt: tuple[str, str], wrong: str) -> None:
    table = set_in_latex(["A", "B"], [["one", "two"]])
    assert badly_formed(table) == []
    assert wrong in " ".join(badly_formed(table.replace(*spoilt)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None and "CI" not in os.environ, reason="there is no pdflatex here")
@pytest.mark.parametrize("page", PAGES)
def test_every_table_compiles_and_fits_the_page(page: str, tmp_path: Path) -> None:
    for name, table in tables_of(page).items():
        (tmp_path / Path(name).name).write_text(table, encoding="utf-8")
    document = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs,array,longtable,pdflscape}",
        r"\begin{document}",
        *(rf"\input{{{path.stem}}}\clearpage" for path in sorted(tmp_path.glob("*.tex"))),
        r"\end{document}",
    ]
    (tmp_path / "all.tex").write_text("\n".join(document))
    # A longtable learns the widths of its columns in the first two runs.
    for _ in range(3):
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


class TestTheRule:
    def test_a_small_table_is_as_it_is(self) -> None:
        table = set_in_latex(["Factor", "dB"], [["`bn`", "-0.5"]], [1])
        assert r"\begin{tabular}{lr}" in table
        assert r"\normalsize" in table
        assert TURNED not in table

    def test_a_long_text_is_a_paragraph_and_shorter_ones_are_not(self) -> None:
        table = set_in_latex(["Cell", "Reason"], [["`a`", "word " * 20]])
        assert re.search(r"\\begin\{tabular\}\{l>\{\\raggedright\\arraybackslash\}p\{[\d.]+pt\}\}", table)

    def test_a_paragraph_takes_the_width_that_is_left(self) -> None:
        table = set_in_latex(["Cell", "Reason"], [["`a`", "word " * 60]])
        (width,) = re.findall(r"p\{([\d.]+)pt\}", table)
        assert 250 < float(width) < 345

    def test_the_type_is_smaller_before_the_page_is_turned(self) -> None:
        columns = [f"Set{number}" for number in range(7)]
        table = set_in_latex(columns, [["-0.12345"] * 7], range(1, 7))
        assert r"\normalsize" not in table
        assert TURNED not in table
        turned = set_in_latex(columns, [["-0.12345678"] * 7], range(1, 7))
        assert TURNED in turned
        assert r"\normalsize" in turned

    def test_columns_that_find_no_room_go_on_in_a_block_that_names_its_rows_again(self) -> None:
        numbers = ["-0.500 [-0.535, -0.485] undecided"] * 8
        table = set_in_latex(["Cell", *[f"Set{n}" for n in range(8)]], [["`bn=post`", *numbers]], range(1, 9))
        blocks = table.split(r"\begin{table}")[1:]
        assert len(blocks) > 1
        assert all(r"\texttt{bn=post}" in block for block in blocks)
        assert [name for block in blocks for name in re.findall(r"Set\d", block)] == [f"Set{n}" for n in range(8)]
        assert f"Cells (1 of {len(blocks)})" in blocks[0]

    def test_a_heading_longer_than_its_column_is_broken(self) -> None:
        table = set_in_latex(["Cell", "embedded over baseline"], [["`a`", "+1.302"]], [1])
        assert r"\begin{tabular}[b]{@{}r@{}}embedded\\over\\baseline\end{tabular}" in table

    def test_a_table_too_high_for_the_page_goes_on_over_pages(self) -> None:
        short, long = (set_in_latex(["A", "B"], [["1", "2"]] * rows) for rows in (20, 80))
        assert r"\begin{longtable}{ll}" in long
        assert r"\endhead" in long
        assert "longtable}" not in short.partition("\n")[2]

    def test_a_row_that_begins_with_a_bracket_is_no_argument(self) -> None:
        table = set_in_latex(["[95 %]", "B"], [["[body]", "1"], ["\\*", "2"]])
        assert [line[:3] for line in table.splitlines() if line.endswith(r"\\")] == ["{}[", "{}[", "{}*"]

    def test_long_words_may_be_broken_and_numbers_are_not(self) -> None:
        words = f"`{'a' * 60}` with -0.125 and interpolation of reconstructions " + "x " * 20
        table = set_in_latex(["Key", "Value"], [["`k`", words]])
        assert r"aaaaaaaaaaaaaa\allowbreak{}aaaaaaaaaaaaaa" in table
        assert "$-$0.125 and interpolation of reconstructions x" in table
