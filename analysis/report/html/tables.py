"""The tables of the page: by what a reader sorts and filters their rows, and what of them can be copied.

Everything is worked out here, so that the scripts of the page only pick rows and lines.
"""

import dataclasses
import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it.token import Token

from analysis.report.html.details import Details
from analysis.report.latex import MOST_LINES, LatexTable
from analysis.report.shown import PLACE, ShownTable, is_place, plain

FEWEST_ROWS = 5  # a table with fewer is not sorted or filtered

MOST_VALUES = 12  # a column or factor with more values is no filter
MOST_VALUE_LETTERS = 40  # nor is a column of sentences

NUMBER = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w.])")
"""What a cell begins with that is sorted as a number: a difference before its interval, a count before its total."""

ZERO = ("same", "none", "reference")
"""Words for no change in cost, no collapsed trial and no difference."""

MISSING = ("", "—")

OWN_LINK = re.compile(r"\[((?:[^\[\]\\`]|\\.|`[^`]*`)*)\]\(#[\w-]+\)")


@dataclasses.dataclass(frozen=True)
class Filter:
    """A choice that a reader has among the rows of a table: the numbers of the rows that each value has."""

    name: str
    rows: Mapping[str, Sequence[int]]


def prepare_tables(
    tokens: list[Token], tables: Sequence[ShownTable], latex: Sequence[LatexTable], page: str, details: Details
) -> str:
    """Give every table its caption, headers and sorting keys; return what the scripts know of the tables, as JSON.

    ``page`` is the Markdown that the tokens are of. The names in the JSON come from anywhere, so it holds no ``<``.
    """
    numbers = iter(tables)
    captions = iter(captions_of(tables))
    orders: Sequence[Sequence[str]] = []
    row = column = -1
    inserted = 0
    for place, token in enumerate(list(tokens)):
        if token.type == "table_open":
            table, row = next(numbers), -1
            orders = sorting_keys(table) if is_sorted(table) else []
            caption = Token("html_block", "", 0, content=f"<caption>{html.escape(next(captions))}</caption>\n")
            tokens.insert(place + 1 + inserted, caption)
            inserted += 1
        elif token.type == "tr_open":
            row, column = row + 1, -1
        elif token.type in ("th_open", "td_open"):
            column += 1
            if row == 0:
                token.attrSet("scope", "col")
            elif orders and orders[row - 1][column]:
                token.attrSet("data-order", orders[row - 1][column])
        if token.type in ("td_open", "td_close") and column == 0:
            token.tag = "th"
            if token.nesting == 1:
                token.attrSet("scope", "row")
    lines = page.split("\n")
    found = [known_of(table, in_latex, lines, details) for table, in_latex in zip(tables, latex, strict=True)]
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def is_sorted(table: ShownTable) -> bool:
    """Tell whether a reader can sort and filter a table."""
    return len(table.texts) >= FEWEST_ROWS


def captions_of(tables: Sequence[ShownTable]) -> list[str]:
    """Return the heading of each table, numbered where several are under one."""
    totals, seen = Counter(table.heading for table in tables), Counter[str]()
    found = []
    for table in tables:
        seen[table.heading] += 1
        several = totals[table.heading] > 1
        found.append(f"{table.heading}, table {seen[table.heading]}" if several else table.heading)
    return found


def sorting_keys(table: ShownTable) -> list[list[str]]:
    """Return the number by which each cell of a column of numbers is sorted; empty for text and for what is missing.

    A column is of numbers if it is flush right, or if all that is not missing in it is a number.
    """
    columns = [
        [number_of(text) for text in column]
        if place in table.right or (any(map(NUMBER.match, column)) and all(map(is_number_or_missing, column)))
        else [""] * len(column)
        for place, column in enumerate(zip(*table.texts, strict=True))
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def number_of(text: str) -> str:
    if text.startswith(ZERO):
        return "0"
    found = NUMBER.match(text)
    return found[1].replace(",", "") if found else "missing"


def is_number_or_missing(text: str) -> bool:
    return text in MISSING or number_of(text) != "missing"


def known_of(table: ShownTable, latex: LatexTable, page: Sequence[str], details: Details) -> dict[str, Any]:
    """Return what a script needs of a table: its filters, and its lines in every language that can be copied."""
    lines = page[table.first_line : table.first_line + len(table.rows) + 1]
    markdown = [OWN_LINK.sub(r"\1", PLACE.sub("", line)) for line in lines]
    return {
        "filters": [dataclasses.asdict(each) for each in filters_of(table, details)] if is_sorted(table) else None,
        "csv": table.csv_lines,
        "markdown": markdown,
        "latex": dataclasses.asdict(latex),
        "most_lines": MOST_LINES,
    }


def filters_of(table: ShownTable, details: Details) -> list[Filter]:
    """Return the choices among the rows: by a column with few values, and by the levels of the cells linked to."""
    by_name: dict[str, dict[str, list[int]]] = {}
    header, keys = [plain(cell) for cell in table.rows[0]], sorting_keys(table)
    for place in range(1, len(header)):
        texts = [row[place] for row in table.texts]
        is_choice = len(set(texts)) < len(texts) and max(map(len, texts)) <= MOST_VALUE_LETTERS
        if is_choice and not any(row[place] for row in keys):
            for number, text in enumerate(texts):
                if text not in MISSING:
                    by_name.setdefault(header[place], {}).setdefault(text, []).append(number)
    for number, row in enumerate(table.rows[1:]):
        for name, level in sorted({pair for cell in cells_of(row, details) for pair in cell.items()}):
            if name not in header:
                by_name.setdefault(name, {}).setdefault(level, []).append(number)
    return [
        Filter(name, rows)
        for name, rows in by_name.items()
        if 1 < len(rows) <= MOST_VALUES and any(len(found) < len(table.texts) for found in rows.values())
    ]


def cells_of(row: Sequence[Token], details: Details) -> list[Mapping[str, str]]:
    """Return the levels of the cells that a row links to or is the target of the links to."""
    children = [child for cell in row for child in cell.children or []]
    links = [str(child.attrGet("href") or "").removeprefix("#") for child in children]
    places = [child.content.split('"')[1] for child in children if is_place(child)]
    return [details.cells[name] for name in (*links, *places) if name in details.cells]
