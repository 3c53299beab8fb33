"""How a report spells numbers and names, and the Jinja environments in which its templates use these spellings."""

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.effects.contrasts import METHOD, STEP, Contrast
from analysis.report.markup import Markdown, anchor, cells, code, joined, one_line
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


def environment(**options: Any) -> Environment:
    """Return an environment that escapes every value; a name that a template lacks raises UndefinedError."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
        **options,
    )


@functools.cache
def in_markdown() -> Environment:
    """Return the environment of the Markdown templates.

    What is not :class:`Markdown` is escaped before Jinja sees it, and Jinja leaves that as it is: ``Markdown`` is a
    ``Markup``, as are macros and blocks.
    """
    found = environment(finalize=Markdown.escape)
    functions = (anchor, cells, change, code, count, estimate, fingerprints, fraction, judged, key, listed, recorded)
    for function in (*functions, short, spread):
        found.filters[function.__name__] = function
    found.filters["join"] = joined
    return found


def render(template: str, **values: Any) -> str:
    """Fill in a Markdown template; several blank lines in a row become one."""
    lines: list[str] = []
    for line in in_markdown().get_template(template).render(values).splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).rstrip("\n") + "\n"


def key(text: str) -> str:
    return text[:KEY_LENGTH]


def short(text: object) -> str:
    """Shorten a text to what fits into a cell of a table."""
    flat = one_line(text)
    return flat if len(flat) <= MOST_LETTERS else flat[: MOST_LETTERS - 1] + "…"


def change(row: Contrast) -> Markdown:
    """Spell what a contrast changes: ``residual: true → false`` with the factor and the levels as code."""
    if row.factor == STEP:
        return Markdown("{} → {}").format(row.base, row.level)
    moved = Markdown("{} → {}").format(code(short(row.base)), code(short(row.level)))
    return moved if row.factor == METHOD else Markdown("{}: {}").format(code(row.factor), moved)


def listed(words: Iterable[object]) -> Markdown:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    *first, last = words
    return Markdown("{} and {}").format(joined(first, ", "), last) if first else Markdown.escape(last)


def count(number: int, noun: str) -> str:
    """Count a noun: ``1 cell``, ``4 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def estimate(found: Estimate) -> Markdown:
    """Spell a difference in dB with its interval, or say why it has none."""
    if found.n == 0:
        return Markdown("no complete seed")
    if found.n == 1:
        return Markdown(f"{found.mean:+.3f} [one seed]")
    return Markdown(f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")


def judged(found: Estimate, verdict: Verdict) -> Markdown:
    return estimate(found) + ("" if math.isnan(found.low) else f" {verdict.outcome}")


def spread(found: Summary) -> str:
    return f"{found.mean:.3f}" if found.n < 2 else f"{found.mean:.3f} ± {found.sd:.3f}"


def fraction(found: Estimate) -> Markdown:
    if not math.isfinite(found.mean):
        return Markdown("no gain to share")
    share = Markdown(f"{100 * found.mean:.0f} %")
    if found.n < 2:
        return share + Markdown(" [one seed]")
    if math.isnan(found.low):
        return share + Markdown(" [unbounded: the total may be 0]")
    return share + Markdown(f" [{100 * found.low:.0f}, {100 * found.high:.0f}]")


def with_counts(values: Mapping[str, int]) -> list[str]:
    """Spell each value with how many trials have it."""
    return [f"{value} ({count(number, 'trial')})" for value, number in values.items()]


def recorded(fingerprint: str) -> str:
    """Set a fingerprint as code, unless none was recorded."""
    return fingerprint if fingerprint == NOT_RECORDED else code(fingerprint)


def fingerprints(values: Mapping[str, int]) -> list[Markdown]:
    return [Markdown("{} ({})").format(recorded(value), count(number, "trial")) for value, number in values.items()]
