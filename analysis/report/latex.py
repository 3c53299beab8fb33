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
from analysis.report.words import environment

LINE_LETTERS = 44  # a column with a longer text is a paragraph of lines of about this many letters

PARAGRAPH = r">{\raggedright\arraybackslash}p{8cm}"

MOST_LINES = 36  # a table with more lines of text is continued in another one
LONGEST_WORD = 24  # in a paragraph, a longer word may be broken after each stretch of this many letters


@dataclasses.dataclass(frozen=True)
class ShownTable:
    """A table of the page under its heading, as inline tokens; ``right`` are the columns that are flush right."""

    heading: str
    name: str
    rows: tuple[tuple[Token, ...], ...]
    right: frozenset[int]

    @property
    def paragraphs(self) -> frozenset[int]:
        """The columns whose texts are broken into lines."""
        found = {n for row in self.rows[1:] for n, text in enumerate(row) if len(plain(text)) > LINE_LETTERS}
        return frozenset(found)


def as_latex(table: ShownTable) -> str:
    """Return a table for LaTeX; what it needs is said in its first line."""
    wrapped = table.paragraphs
    columns = [PARAGRAPH if n in wrapped else "r" if n in table.right else "l" for n in range(len(table.rows[0]))]
    return template().render(
        caption=table.heading,
        name=Latex(table.name),
        columns=Latex("").join(map(Latex, columns)),
        header=line(table.rows[0], frozenset()),
        parts=[[line(row, wrapped) for row in rows] for rows in parts_of(table.rows[1:])],
    )


@functools.cache
def template() -> Template:
    """Return the template of a table, whose variables stand in << >> since LaTeX has braces of its own."""
    changed = environment(finalize=Latex.escape, variable_start_string="<<", variable_end_string=">>")
    return changed.get_template("table.tex.j2")


def parts_of(rows: Sequence[tuple[Token, ...]]) -> list[list[tuple[Token, ...]]]:
    found: list[list[tuple[Token, ...]]] = [[]]
    lines = 0
    for row in rows:
        taken = max(math.ceil(len(plain(text)) / LINE_LETTERS) or 1 for text in row)
        if found[-1] and lines + taken > MOST_LINES:
            found.append([])
            lines = 0
        found[-1].append(row)
        lines += taken
    return found


def line(row: Sequence[Token], wrapped: frozenset[int]) -> Latex:
    """Return a row; LaTeX would read a bracket or star at its start as an argument of the row before."""
    text = Latex(" & ").join(latex(cell, breakable=n in wrapped) for n, cell in enumerate(row))
    return Latex("{}") + text if text[:1] in ("[", "*") else text


PLACE = re.compile(r'<a id="[\w.-]+"></a>')  # a link target of the page, which paper does not have

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


def plain(token: Token) -> str:
    texts = (child for child in token.children or [] if child.type in ("text", "code_inline", "html_inline"))
    return "".join(child.content for child in texts if not is_place(child))


def is_place(token: Token) -> bool:
    """Tell whether a token is a link target, or the end of one, and not text."""
    return token.type == "html_inline" and PLACE.fullmatch(token.content) is not None
