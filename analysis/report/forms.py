"""A report in other forms: one self-contained HTML file, and CSV and LaTeX of every table that it shows.

All of them follow from the page and its files, byte for byte. The HTML loads nothing from the network: figures and data
are embedded. ``templates/page.html.j2`` is its frame and style; :func:`log_report` shows the report in MLflow.
"""

import base64
import csv
import dataclasses
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from ablations.tracking.client import client_of, experiment_id, one_line_errors, search_runs
from analysis.report.latex import PLACE, ShownTable, as_latex, plain
from analysis.report.words import environment
from bbcu.errors import BbcuError
from bbcu.files import replacing

PAGE, HTML, TABLES = "report.md", "report.html", "tables"

KIND = "report"  # the name of the MLflow run that shows a study's report, and the value of its tag ``kind``
LARGEST_DATA = 2**20  # a larger CSV or SVG is linked and not embedded: no browser opens a page of a hundred megabytes

MEDIA = {".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}

ALLOWED_TAG = re.compile(rf"</?(?:details|summary|u|br)>|{PLACE.pattern}")
"""The HTML that a page may contain; all other angle brackets are text, such as ``<class 'ValueError'>`` in a reason."""


def parser() -> MarkdownIt:
    """Return a parser of the report's Markdown: CommonMark and tables, with no HTML but that of ``ALLOWED_TAG``."""
    return MarkdownIt("commonmark", {"html": True}).enable("table")


def forms(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the other forms of a report by name, made from its page and files."""
    tokens = parser().parse(files[PAGE].decode())
    tables = shown_tables(tokens)
    return {
        HTML: page_of(tokens, files).encode(),
        **{f"{TABLES}/{table.name}.csv": as_csv(table).encode() for table in tables},
        **{f"{TABLES}/{table.name}.tex": as_latex(table).encode() for table in tables},
    }


def write_forms(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write the other forms of a report beside it and return their paths; remove tables that it no longer has.

    Raises BbcuError if the folder of the tables is a link, since the tables of another folder would be removed.
    """
    found = forms(files)
    if (folder / TABLES).is_symlink():
        raise BbcuError(f"{folder / TABLES} is a link: remove it, so that the tables can be written")
    for path in (folder / TABLES).glob("*"):
        if path.suffix in (".csv", ".tex") and f"{TABLES}/{path.name}" not in found:
            path.unlink()
    for name, content in found.items():
        replace(folder / name, content)
    return [folder / name for name in found]


def replace(path: Path, content: bytes) -> None:
    """Replace a file, or a link to one, by a new file; its folder is made if needed."""
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(content)


def page_of(tokens: Sequence[Token], files: Mapping[str, bytes]) -> str:
    """Render a page's tokens as HTML; the tokens are changed on the way."""
    markdown = parser()
    embed(tokens, files)
    body = markdown.renderer.render(tokens, markdown.options, {})
    body = body.replace("<table", '<div class="table"><table').replace("</table>", "</table></div>")
    headings: list[Heading] = []

    def with_anchor(match: re.Match[str]) -> str:
        text = html.unescape(re.sub("<[^>]*>", "", match[2]))
        name, taken = slug(text), sum(slug(other.text) == slug(text) for other in headings)
        headings.append(Heading(int(match[1]), f"{name}-{taken + 1}" if taken else name, text))
        anchor = f'<a class="anchor" href="#{headings[-1].id}" aria-label="Link">#</a>'
        return f'<h{match[1]} id="{headings[-1].id}">{match[2]}{anchor}</h{match[1]}>'

    body = re.sub(r"<h(\d)>(.*?)</h\1>", with_anchor, body)
    first, end, rest = body.rpartition("</h1>\n")
    values = {"headings": headings, "first": Markup(first + end), "body": Markup(rest)}
    return environment().get_template("page.html.j2").render(values)


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of the page and its anchor."""

    level: int
    id: str
    text: str


def slug(text: str) -> str:
    """Make an anchor of a heading: lower case, words joined by hyphens."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "part"


def embed(tokens: Iterable[Token], files: Mapping[str, bytes]) -> None:
    """Embed the files that the page links to, and escape angle brackets that are not HTML of the page's own."""
    for token in every(tokens):
        if token.type in ("html_block", "html_inline"):
            token.content = safe(token.content)
        elif token.type == "image":
            token.attrSet("src", address(str(token.attrGet("src")), files))
        elif token.type == "link_open":
            name = unquote(str(token.attrGet("href")))
            if name in files:
                token.attrSet("href", address(name, files))
                token.attrSet("download", name)


def every(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from every(token.children or [])


def safe(content: str) -> str:
    text = re.split(f"({ALLOWED_TAG.pattern})", content)
    return "".join(part if ALLOWED_TAG.fullmatch(part) else html.escape(html.unescape(part), False) for part in text)


def address(name: str, files: Mapping[str, bytes]) -> str:
    """Return the data URI of a file, or its name if it does not exist or is too large."""
    content, media = files.get(unquote(name)), MEDIA.get(Path(name).suffix)
    if content is None or media is None or (media != "image/png" and len(content) > LARGEST_DATA):
        return name
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def shown_tables(tokens: Sequence[Token]) -> list[ShownTable]:
    """Return the tables of a page, named by their number and the heading above; captions name its chapter too."""
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
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([plain(cell) for cell in row] for row in table.rows)
    return buffer.getvalue()


def log_report(tracking_uri: str, study: str, paths: Mapping[str, Path]) -> str:
    """Log a report to MLflow as the artifacts of one run named ``report``, and return that run's id.

    ``paths`` maps names there to files. The run of an earlier report is deleted. The run has no cell, so nothing
    mistakes it for a trial. Raises TrackingError if MLflow cannot be reached.
    """
    with one_line_errors(tracking_uri):
        client, experiment = client_of(tracking_uri), experiment_id(tracking_uri, study)
        earlier = search_runs(tracking_uri, experiment, f"tags.kind = '{KIND}'")
        run = client.create_run(experiment, run_name=KIND, tags={"kind": KIND, "study": study})
        for name, path in paths.items():
            client.log_artifact(run.info.run_id, str(path), str(Path(name).parent) if "/" in name else None)
        client.set_terminated(run.info.run_id, "FINISHED")
        for old in earlier:
            client.delete_run(old.info.run_id)
    return str(run.info.run_id)
