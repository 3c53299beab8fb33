"""A password, and a search for it in everything that a command leaves."""

import base64
from pathlib import Path
from urllib.parse import quote

USER, PASSWORD = "tracker", "Geheim/@Wort#9"
"""A password with characters that must be percent-encoded in an address."""

LOGIN = f"{USER}:{quote(PASSWORD, safe='')}@"
FORMS = (
    *(PASSWORD, quote(PASSWORD), quote(PASSWORD, safe="")),
    *(base64.b64encode(text.encode()).decode() for text in (PASSWORD, f"{USER}:{PASSWORD}")),
)


def leaks(folder: Path, *texts: str) -> list[str]:
    """Return where a form of the password is: in the texts, or in the content or name of a file below ``folder``."""
    sources = {f"text {number}": text.encode() for number, text in enumerate(texts)}
    for path in folder.rglob("*"):
        sources[str(path)] = path.read_bytes() if path.is_file() else b""
    return [
        f"{form} in {name}"
        for name, content in sources.items()
        for form in FORMS
        if form.encode() in content or form in name
    ]


def with_login(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{LOGIN}{rest.rpartition('@')[2]}"
