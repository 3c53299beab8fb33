"""A report in other forms: one HTML file that holds everything, and CSV and LaTeX of every table that it shows.

All of them follow from the page and its files, byte for byte. The HTML asks for nothing from anywhere: pictures are
embedded, data are embedded as downloads, and the style is its own. ``log_report`` shows it in MLflow.
"""

import base64
import csv
import html
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ablations.tracking.client import client_of, experiment_id, reading, search_runs
from analysis.report.latex import PLACE, ShownTable, as_latex, plain

PAGE, HTML, TABLES = "report.md", "report.html", "tables"

RUN_NAME, KIND = "report", "report"
"""The name of the run that shows a study's report, and the value of its tag ``kind``."""

LARGEST_DATA = 2**20
"""A CSV or SVG of more bytes than this is linked and not embedded: a page of a hundred megabytes opens nowhere."""

MEDIA = {".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}

ALLOWED_TAG = re.compile(rf"</?(?:details|summary|u|br)>|{PLACE.pattern}")
"""The HTML that a page may hold; all other angle brackets are text, such as ``<class 'ValueError'>`` in a reason."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a;
  background: #fff; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2rem 0 .75rem; }
h1 { margin-top: .5rem; }
h2 { border-bottom: 1px solid #d0d0d0; padding-bottom: .25rem; }
.anchor { color: #767676; text-decoration: none; margin-left: .4em; }
a { color: #0b57a4; }
nav ul { margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1.25rem; list-style: none; font-size: .875rem; }
img { max-width: 100%; height: auto; }
code { font: .875em ui-monospace, monospace; background: #f2f2f2; padding: .1em .25em; border-radius: 3px; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #d8d8d8; text-align: left; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
table.wide { font-size: .75rem; }
.wide th, .wide td { padding: .3rem .35rem; }
td.long { white-space: normal; min-width: 16rem; }
th { border-bottom: 2px solid #555; vertical-align: bottom; white-space: normal; overflow-wrap: normal; }
.right { text-align: right; }
summary { cursor: pointer; }
@media (min-width: 40rem) { th:first-child, td:first-child { position: sticky; left: 0; background: #fff; } }
@media (max-width: 40rem) { p:has(> img) { overflow-x: auto; } p > img { max-width: none; width: 44rem; } }
@media print { .table { overflow-x: visible; } th, td { white-space: normal; } }
"""

MANY_COLUMNS = 9
"""From so many columns on a table is set smaller."""

LONG_TEXT = 48
"""A cell of a table with more letters than this may be broken into lines."""


def parser() -> MarkdownIt:
    """Markdown as the report writes it: CommonMark and tables, with no HTML but that of ``ALLOWED_TAG``."""
    return MarkdownIt("commonmark", {"html": True}).enable("table")


def forms(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The other forms of a report by name, from its page and files."""
    tokens = parser().parse(files[PAGE].decode())
    found = {}
    for table in shown_tables(tokens):
        found[f"{TABLES}/{table.name}.csv"] = as_csv(table).encode()
        found[f"{TABLES}/{table.name}.tex"] = as_latex(table).encode()
    return {HTML: page_of(tokens, files).encode(), **found}


def write_forms(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write the other forms of a report beside it and give their paths; tables that it no longer has are removed."""
    found = forms(files)
    for path in (folder / TABLES).glob("*"):
        if path.suffix in (".csv", ".tex") and f"{TABLES}/{path.name}" not in found:
            path.unlink()
    for name, content in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [folder / name for name in found]


# ---- HTML ------------------------------------------------------------------------------------------------------------


def page(files: Mapping[str, bytes]) -> str:
    """The whole report as one HTML file."""
    return page_of(parser().parse(files[PAGE].decode()), files)


def page_of(tokens: list[Token], files: Mapping[str, bytes]) -> str:
    """The HTML file of a page's tokens, which are changed on the way."""
    markdown = parser()
    contents = with_anchors(tokens)
    embed(tokens, files)
    mark_tables(tokens)
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = body.replace("<table", '<div class="table"><table').replace("</table>", "</table></div>")
    title = html.escape(next((text for level, _, text in contents if level == 1), "Report"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    ).replace("</h1>\n", f"</h1>\n{navigation(contents)}", 1)


def with_anchors(tokens: Sequence[Token]) -> list[tuple[int, str, str]]:
    """Give every heading an id and a link to itself; the level, id and text of each."""
    found: list[tuple[int, str, str]] = []
    for opening, inline in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        text = plain(inline)
        name = unused(slug(text), {known for _, known, _ in found})
        opening.attrSet("id", name)
        link = Token("html_inline", "", 0, content=f'<a class="anchor" href="#{name}" aria-label="Link">#</a>')
        link.meta = {"ours": True}
        inline.children = [*(inline.children or []), link]
        found.append((int(opening.tag[1]), name, text))
    return found


def slug(text: str) -> str:
    """A heading as an anchor: lower case, words joined by hyphens."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "part"


def unused(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    numbers = (f"-{number}" for number in range(2, len(taken) + 3))
    return next(f"{name}{end}" for end in ("", *numbers) if f"{name}{end}" not in taken)


def navigation(contents: Iterable[tuple[int, str, str]]) -> str:
    """A list of links to the parts of the page; nothing where there is one part at most."""
    parts = [(name, text) for level, name, text in contents if level == 2]
    if len(parts) < 2:
        return ""
    items = "".join(f'<li><a href="#{name}">{html.escape(text)}</a></li>\n' for name, text in parts)
    return f'<nav aria-label="Contents"><ul>\n{items}</ul></nav>\n'


def embed(tokens: Iterable[Token], files: Mapping[str, bytes]) -> None:
    """Put the files that the page links to into it, and make angle brackets text that are no HTML of ours."""
    for token in every(tokens):
        if token.type in ("html_block", "html_inline") and not token.meta.get("ours"):
            token.content = safe(token.content)
        elif token.type == "image":
            token.attrSet("src", address(str(token.attrGet("src")), files))
        elif token.type == "link_open":
            name = unquote(str(token.attrGet("href")))
            if name in files:
                token.attrSet("href", address(name, files))
                token.attrSet("download", name)


def every(tokens: Iterable[Token]) -> Iterator[Token]:
    """All tokens and those inside them."""
    for token in tokens:
        yield token
        yield from every(token.children or [])


def safe(content: str) -> str:
    """HTML in which only allowed tags are tags."""
    text = re.split(f"({ALLOWED_TAG.pattern})", content)
    return "".join(part if ALLOWED_TAG.fullmatch(part) else html.escape(html.unescape(part), False) for part in text)


def address(name: str, files: Mapping[str, bytes]) -> str:
    """The data URI of a file, or its name where it is not there or is too large."""
    content, media = files.get(unquote(name)), MEDIA.get(Path(name).suffix)
    if content is None or media is None or (media != "image/png" and len(content) > LARGEST_DATA):
        return name
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def mark_tables(tokens: Sequence[Token]) -> None:
    """Say by class what a table needs, small print for many columns, and its cells: flush right, or broken lines."""
    for position, token in enumerate(tokens):
        if token.type == "table_open":
            heads = itertools.takewhile(lambda other: other.type != "thead_close", tokens[position:])
            if sum(other.type == "th_open" for other in heads) >= MANY_COLUMNS:
                token.attrSet("class", "wide")
    for opening, inline in itertools.pairwise(tokens):
        if opening.type in ("th_open", "td_open"):
            right = "right" in str(opening.attrGet("style"))
            opening.attrs.pop("style", None)
            long = opening.type == "td_open" and len(plain(inline)) > LONG_TEXT
            names = [name for name, holds in (("right", right), ("long", long)) if holds]
            if names:
                opening.attrSet("class", " ".join(names))


# ---- tables ----------------------------------------------------------------------------------------------------------


def shown_tables(tokens: Sequence[Token]) -> list[ShownTable]:
    """The tables of a page, in its order, named by their number and the heading above; captions have its part too."""
    found: list[ShownTable] = []
    headings = {"h2": "Report"}
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            headings = {level: text for level, text in headings.items() if "h1" < level < token.tag}
            headings[token.tag] = plain(tokens[position + 1])
        elif token.type == "table_open":
            name = f"{len(found) + 1:02d}-{slug(list(headings.values())[-1])}"
            found.append(shown_table(tokens, position, name, ". ".join(headings.values())))
    return found


def shown_table(tokens: Sequence[Token], start: int, name: str, heading: str) -> ShownTable:
    """The table that opens at ``start``."""
    rows: list[list[Token]] = []
    right = set()
    for token, inline in zip(tokens[start:], tokens[start + 1 :], strict=False):
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            if "right" in str(token.attrGet("style")):
                right.add(len(rows[-1]))
            rows[-1].append(inline)
    return ShownTable(heading, name, tuple(tuple(row) for row in rows), frozenset(right))


def as_csv(table: ShownTable) -> str:
    """A table as it is shown, without marks."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([plain(cell) for cell in row] for row in table.rows)
    return buffer.getvalue()


# ---- MLflow ----------------------------------------------------------------------------------------------------------


def log_report(tracking_uri: str, study: str, paths: Mapping[str, Path]) -> str:
    """Show a report in MLflow as the files of one run named ``report``, and give that run's id.

    ``paths`` gives each file by its name there. The run of an earlier report is deleted. It has no cell, so neither a
    report nor the sweeper takes it for a trial. Raises TrackingError where MLflow does not take it.
    """
    with reading(tracking_uri):
        client, experiment = client_of(tracking_uri), experiment_id(tracking_uri, study)
        earlier = search_runs(tracking_uri, experiment, f"tags.kind = '{KIND}'")
        run = client.create_run(experiment, run_name=RUN_NAME, tags={"kind": KIND, "study": study})
        for name, path in paths.items():
            client.log_artifact(run.info.run_id, str(path), str(Path(name).parent) if "/" in name else None)
        client.set_terminated(run.info.run_id, "FINISHED")
        for old in earlier:
            client.delete_run(old.info.run_id)
    return str(run.info.run_id)
