r"""A table of the page for LaTeX with ``booktabs``, scaled to the width of the line and split if it is too high.

Columns with long texts become paragraphs. LaTeX measures the table itself, so that it fits any page.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

from jinja2 import Template
from markdown_it.token import Token

from analysis.report.markup import Latex
from analysis.report.shown import ShownTable, is_place
from analysis.report.words import environment

LINE_LETTERS = 44  # a column with a longer text is a paragraph of lines of about this many letters

PARAGRAPH = r">{\raggedright\arraybackslash}p{8cm}"

ROW_END = " \\\\\n"

MOST_LINES = 36  # a table with more lines of text is continued in another one
LONGEST_WORD = 24  # in a paragraph, a longer word may be broken after each stretch of this many letters


@dataclasses.dataclass(frozen=True)
class LatexTable:
    """A table for LaTeX in pieces, of which a reader's own choice of rows can be put together too.

    The first piece says what it needs. A part is the second, `` (1 of 2)``, the third, ``-1``, the fourth, the rows
    with line ends of LaTeX between them, and the fifth; a table that is one part has no numbers. ``lines`` has each
    row, ``heights`` how many of the :data:`MOST_LINES` lines of a part it takes.
    """

    pieces: Sequence[str]
    lines: Sequence[str]
    heights: Sequence[int]

    def __str__(self) -> str:
        """Return the whole table; what it needs is said in its first line."""
        parts: list[list[str]] = [[]]
        taken = 0
        for line, height in zip(self.lines, self.heights, strict=True):
            if parts[-1] and taken + height > MOST_LINES:
                parts.append([])
                taken = 0
            parts[-1].append(line)
            taken += height
        needs, start, label, head, end = self.pieces
        return needs + "".join(
            f"{start}{f' ({number} of {len(parts)})' * several}{label}{f'-{number}' * several}{head}"
            f"{ROW_END.join(part)}{end}"
            for several in [len(parts) > 1]
            for number, part in enumerate(parts, start=1)
        )


def as_latex(table: ShownTable) -> LatexTable:
    wrapped, mark = paragraphs(table), Latex("\0")
    columns = [PARAGRAPH if n in wrapped else "r" if n in table.right else "l" for n in range(len(table.rows[0]))]
    whole = template().render(
        caption=Latex.escape(table.heading) + mark,
        name=Latex(table.name) + mark,
        columns=Latex("").join(map(Latex, columns)),
        header=line(table.rows[0], frozenset()),
        start=mark,
        rows=mark,
    )
    rows = table.rows[1:]
    return LatexTable(whole.split(mark), [str(line(row, wrapped)) for row in rows], [*map(height, table.texts)])


def paragraphs(table: ShownTable) -> frozenset[int]:
    """Return the columns whose texts are broken into lines."""
    return frozenset(n for row in table.texts for n, text in enumerate(row) if len(text) > LINE_LETTERS)


@functools.cache
def template() -> Template:
    """Return the template of a table, whose variables stand in << >> since LaTeX has braces of its own."""
    changed = environment(finalize=Latex.escape, variable_start_string="<<", variable_end_string=">>")
    return changed.get_template("table.tex.j2")


def height(texts: Sequence[str]) -> int:
    """Return how many lines of text a row takes."""
    return max(math.ceil(len(text) / LINE_LETTERS) or 1 for text in texts)


def line(row: Sequence[Token], wrapped: frozenset[int]) -> Latex:
    """Return a row; LaTeX would read a bracket or star at its start as an argument of the row before."""
    text = Latex(" & ").join(latex(cell, breakable=n in wrapped) for n, cell in enumerate(row))
    return Latex("{}") + text if text[:1] in ("[", "*") else text


MARKS = {
    "strong_open": r"\textbf{",
    "em_open": r"\emph{",
    "strong_close": "}",
    "em_close": "}",
    "softbreak": " ",
    "hardbreak": " ",
}


def latex(cell: Token, *, breakable: bool) -> Latex:
    """Return the content of a cell for LaTeX; the hyphen before a number is a minus sign."""
    parts = []
    for child in cell.children or []:
        if not is_place(child):
            text = pieces(child.content) if breakable else Latex.escape(child.content)
            parts.append(rf"\texttt{{{text}}}" if child.type == "code_inline" else MARKS.get(child.type) or text)
    return Latex(re.sub(r"(?<![\w.-])-(?=\d)", "$-$", "".join(parts)))


def pieces(text: str) -> Latex:
    """Escape a text in which long words may be broken."""
    words = re.split(r"(\s+)", text)
    stretches = ([word[n : n + LONGEST_WORD] for n in range(0, len(word), LONGEST_WORD)] for word in words)
    return Latex("").join(Latex(r"\allowbreak{}").join(found) for found in stretches)
