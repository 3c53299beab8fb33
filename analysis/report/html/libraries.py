"""The libraries that a page holds, from the files of installed packages."""

import dataclasses
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from bbcu.errors import BbcuError

HTML = re.compile("<(?=!--|/?script)", re.IGNORECASE)
"""What in the texts and patterns of a script would mean something to the HTML around it."""

EXPORT = re.compile(r"export\{[^}]*?([\w$]+) as default[^}]*\};?")


@dataclasses.dataclass(frozen=True)
class Library:
    """A script inside the page that somebody else wrote; ``made_of`` says what it is, with its licence."""

    made_of: str
    script: str


def datatables() -> Library:
    """Return DataTables as the package ``itables`` brings it; the script ends without its export.

    What it would export is ``DataTable`` for the script that follows in braces, see :func:`with_library`. Raises
    BbcuError if the package is not installed, or is one whose script this does not know.
    """
    try:
        package = distribution("itables")
        bundle = Path(str(package.locate_file("itables/html/dt_bundle.js"))).read_text(encoding="utf-8")
    except (PackageNotFoundError, FileNotFoundError) as error:
        raise BbcuError("report.html needs the package itables, which sorts its tables: pip install itables") from error
    script, exports = EXPORT.subn(r";const TheDataTable=\1;", bundle)
    if exports != 1:
        raise BbcuError(f"report.html cannot use itables {package.version}: its script does not export DataTables")
    size = f"{len(bundle.encode()) / 1000:.0f} KB"
    made_of = f"DataTables with jQuery, bundled by itables {package.version} (MIT licence, {size})"
    return Library(made_of, HTML.sub(r"\\x3C", script))


def with_library(library: Library, script: str) -> str:
    """Return a module of a library and of a script that uses it; the braces keep their names apart."""
    return f"{library.script}\n{{\nconst DataTable = TheDataTable;\n{script}}}\n"
