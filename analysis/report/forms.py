"""A report in other forms: one self-contained HTML file, and CSV and LaTeX of every table that it shows.

All of them follow from the page and its files, byte for byte. The HTML loads nothing: figures and data are embedded,
and its policy has the browser refuse everything else. ``templates/page.html.j2`` is its frame, ``templates/page.css``
its style. :func:`log_report` shows the report in MLflow.
"""

import base64
import csv
import dataclasses
import hashlib
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup

from ablations.tracking.client import client_of, experiment_id, one_line_errors, search_runs
from analysis.report.latex import PLACE, ShownTable, as_latex, plain
from analysis.report.markup import csv_cell
from analysis.report.words import TEMPLATES, environment
from bbcu.errors import BbcuError
from bbcu.files import replacing

STYLE = TEMPLATES / "page.css"

PAGE, HTML, TABLES = "report.md", "report.html", "tables"

KIND = "report"  # the name of the MLflow run that shows a study's report, and the value of its tag ``kind``
LARGEST_DATA = 2**20  # a larger CSV or SVG is linked and not embedded: no browser opens a page of a hundred megabytes

MOST_ANCHOR_LETTERS = 100  # it also names a file

MEDIA = {".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}

OWN_LINE = re.compile(r"</?details>|<summary>[^<>&]*</summary>")
"""The lines of HTML that a page has, besides :data:`PLACE` inside a line; all other angle brackets are text."""

OWN_ADDRESS = re.compile(r"#[\w-]+|[\w.-]+\.(?:png|svg|csv)", re.ASCII)
"""Where a page links to: a place on itself, or a file beside it."""


class Parser(MarkdownIt):
    """A parser of the report's Markdown: CommonMark and tables, with no HTML and no links but the report's own."""

    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False})
        self.enable("table")
        self.block.ruler.before("html_block", "own_line", own_line, {"alt": ["paragraph"]})
        self.inline.ruler.before("html_inline", "own_place", own_place)

    def validateLink(self, url: str) -> bool:
        """Tell whether a link may be one; another one stays text."""
        return OWN_ADDRESS.fullmatch(url) is not None


def own_line(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    text = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    if not OWN_LINE.fullmatch(text):
        return False
    if not silent:
        state.push("html_block", "", 0).content = f"{text}\n"
        state.line = start + 1
    return True


def own_place(state: StateInline, silent: bool) -> bool:
    found = PLACE.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.push("html_inline", "", 0).content = found[0]
    state.pos = found.end()
    return True


def forms(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the other forms of a report by name, made from its page and files."""
    tokens = Parser().parse(files[PAGE].decode())
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
    markdown = Parser()
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
    style = STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment().get_template("page.html.j2").render(style=Markup(style), style_hash=digest, **values)


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of the page and its anchor."""

    level: int
    id: str
    text: str


def slug(text: str) -> str:
    """Make an anchor of a heading: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower())[:MOST_ANCHOR_LETTERS].strip("-") or "part"


def embed(tokens: Iterable[Token], files: Mapping[str, bytes]) -> None:
    """Embed the files that the page links to; a picture that cannot be embedded becomes its description.

    The alignment of a cell becomes a class, because the policy of the page allows no style but that of its head.
    """
    for token in every(tokens):
        if token.type == "image":
            source = address(str(token.attrGet("src")), files)
            if source.startswith("data:"):
                token.attrSet("src", source)
            else:
                token.type, token.content = "text", plain(token)
        elif token.type == "link_open":
            name = str(token.attrGet("href"))
            if name in files:
                token.attrSet("href", address(name, files))
                token.attrSet("download", name)
        elif token.type in ("th_open", "td_open") and token.attrs.pop("style", ""):
            token.attrSet("class", "right")


def every(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from every(token.children or [])


def address(name: str, files: Mapping[str, bytes]) -> str:
    """Return the data URI of a file, or its name if it does not exist or is too large."""
    content, media = files.get(name), MEDIA.get(Path(name).suffix)
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
    csv.writer(buffer, lineterminator="\n").writerows([csv_cell(plain(cell)) for cell in row] for row in table.rows)
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
