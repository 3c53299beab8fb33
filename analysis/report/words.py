"""How a report spells numbers and names, and the Jinja environment in which its templates use these spellings."""

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.statistics.estimates import Estimate, Outcome, Summary, Verdict
from analysis.study.loading import NOT_RECORDED
from analysis.study.settings import KEY_LENGTH

TEMPLATES = Path(__file__).with_name("templates")

MOST_LETTERS = 200  # a Markdown table shows this much of a reason; the CSV has all of it

INTERACTION_WORDS = {
    Outcome.BETTER: "more than the sum",
    Outcome.WORSE: "less than the sum",
    Outcome.EQUIVALENT: "the sum",
    Outcome.UNDECIDED: "undecided",
}
"""What a verdict on an interaction means: the two changes together, compared with what each does alone."""


@functools.cache
def environment() -> Environment:
    """Return the environment of the templates; a name that a template lacks raises UndefinedError."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=lambda name: name is not None and ".html" in name,
    )
    for function in (
        code,
        cell,
        whole_cell,
        estimate,
        judged,
        spread,
        fraction,
        listed,
        count,
        key,
        recorded,
        fingerprints,
    ):
        found.filters[function.__name__] = function
    return found


def render(template: str, **values: Any) -> str:
    """Fill in a Markdown template; several blank lines in a row become one."""
    lines: list[str] = []
    for line in environment().get_template(template).render(values).splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).rstrip("\n") + "\n"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def key(text: str) -> str:
    return text[:KEY_LENGTH]


def cell(text: object) -> str:
    """Make a text fit into a cell of a Markdown table: one line, short, with its bars escaped."""
    flat = " ".join(str(text).split())
    return whole_cell(flat if len(flat) <= MOST_LETTERS else flat[: MOST_LETTERS - 1] + "…")


def whole_cell(text: object) -> str:
    """Make a text fit into a cell of a Markdown table without shortening it."""
    return " ".join(str(text).split()).replace("|", "\\|")


def listed(words: Iterable[object]) -> str:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def count(number: int, noun: str) -> str:
    """Count a noun: ``1 cell``, ``4 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def estimate(found: Estimate) -> str:
    """Spell a difference in dB with its interval, or say why it has none."""
    if found.n == 0:
        return "no complete seed"
    if found.n == 1:
        return f"{found.mean:+.3f} [one seed]"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def judged(found: Estimate, verdict: Verdict) -> str:
    return estimate(found) + ("" if math.isnan(found.low) else f" {verdict.outcome}")


def spread(found: Summary) -> str:
    return f"{found.mean:.3f}" if found.n < 2 else f"{found.mean:.3f} ± {found.sd:.3f}"


def fraction(found: Estimate) -> str:
    if not math.isfinite(found.mean):
        return "no gain to share"
    if found.n < 2:
        return f"{100 * found.mean:.0f} % [one seed]"
    if math.isnan(found.low):
        return f"{100 * found.mean:.0f} % [unbounded: the total may be 0]"
    return f"{100 * found.mean:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def with_counts(values: Mapping[str, int]) -> list[str]:
    """Spell each value with how many trials have it."""
    return [f"{value} ({count(number, 'trial')})" for value, number in values.items()]


def recorded(fingerprint: str) -> str:
    """Set a fingerprint as code, unless none was recorded."""
    return fingerprint if fingerprint == NOT_RECORDED else code(fingerprint)


def fingerprints(values: Mapping[str, int]) -> list[str]:
    return with_counts({recorded(value): number for value, number in values.items()})
