"""How a report spells numbers and names, and the Jinja environments in which its templates use these spellings."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.effects.cells import CellSummary
from analysis.effects.claims import Assessment
from analysis.effects.comparisons import Interaction, Row
from analysis.effects.family import Collapses, Conclusion, Measured, undecided_by_collapse
from analysis.effects.savings import Saving, Word
from analysis.report.markup import Markdown, anchor, cells, code, joined, one_line
from analysis.statistics.estimates import Estimate, Summary, share
from analysis.statistics.rounding import rounded
from analysis.study.latency import Middle
from analysis.study.loading import NOT_RECORDED
from analysis.study.tasks import KEY_LENGTH, TaskResults

TEMPLATES = Path(__file__).with_name("templates")

MOST_LETTERS = 200  # a Markdown table shows this much of a reason; the CSV has all of it


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
    functions = (anchor, cells, code, count, estimate, fingerprints, in_thousands, key, largest, listed)
    for function in (*functions, middle, other_contexts, percent, risk, saving_word, short, spread, time_change, why):
        found.filters[function.__name__] = function
    found.filters["join"] = joined
    found.tests["lacks_seed"] = lacks_seed
    return found


def lacks_seed(cell: CellSummary, results: TaskResults) -> bool:
    """Tell whether a cell has fewer seeds than others or, with a stopping rule, than it was given."""
    if results.study.rule is None:
        return len(cell.seeds) < len(results.seeds)
    return len(cell.seeds) < int((results.trials["cell"] == cell.cell).sum())


def seeds_in_words(results: TaskResults) -> str:
    """Count the seeds: ``3 seeds``, or ``3 to 8 seeds a cell`` if a stopping rule gave them."""
    if results.study.rule is None:
        return count(len(results.seeds), "seed")
    counts = results.trials.groupby("cell")["seed"].nunique()
    ends = list(dict.fromkeys((int(counts.min()), int(counts.max()))))
    return f"{' to '.join(map(str, ends))} seeds a cell"


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


def listed(words: Iterable[object]) -> Markdown:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    *first, last = words
    return Markdown("{} and {}").format(joined(first, ", "), last) if first else Markdown.escape(last)


def count(number: int, noun: str) -> str:
    """Count a noun: ``1 cell``, ``4 cells``, ``2,000 steps``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def in_thousands(text: str) -> str:
    """Spell a whole number with a comma at each thousand, and leave any other text as it is."""
    return f"{int(text):,}" if text.isdecimal() else text


def estimate(found: Estimate) -> Markdown:
    """Spell a difference in dB with its interval, or say why it has none."""
    if found.n == 0:
        return Markdown("no complete seed")
    if found.n == 1:
        return Markdown(f"{found.mean:+.3f} [one seed]")
    if math.isnan(found.low) and math.isfinite(found.mean):
        return Markdown(f"{found.mean:+.3f}")
    return Markdown(f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")


def percent(share: float) -> str:
    """Spell a change, given as a share of what was before: ``-90.2 %``."""
    if math.isnan(share):
        return "—"
    text = f"{100 * rounded(share):+.1f}"
    return f"{'0.0' if text in ('-0.0', '+0.0') else text} %"


def time_change(found: Saving) -> Markdown:
    """Spell how much time a change costs, with the 95 % interval: ``-71.0 % [-71.4, -70.6]``."""
    inside = "one seed" if math.isnan(found.low) else f"{-100 * found.high:+.1f}, {-100 * found.low:+.1f}"
    return Markdown(f"{percent(-found.by_clock)} [{inside}]")


def middle(found: Middle) -> Markdown:
    """Spell a ratio over the seeds: ``0.084 [0.083, 0.086]``, the median with the smallest and the largest."""
    return Markdown(f"{found.median:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.n > 1 else ""))


def saving_word(found: Saving) -> Markdown:
    """Spell what the clock says of a saving, in bold if that is sure."""
    return Markdown(f"{found.word}" if found.word in (Word.NONE, Word.ONE_SEED) else f"**{found.word}**")


def spread(found: Summary) -> str:
    return f"{found.mean:.3f}" if found.n < 2 else f"{found.mean:.3f} ± {found.sd:.3f}"


def risk(found: Collapses) -> Markdown:
    """Spell how many trials of a cell collapsed, with the exact 95 % interval of its risk."""
    if not found.total:
        return Markdown("no trial")
    inside = rounded(share(found.count, found.total))
    percent = f" [{100 * inside.low:.0f}, {100 * inside.high:.0f}] %" if found.count else ""
    return Markdown(f"{found.count} of {found.total}{percent}")


def why(found: Measured) -> str:
    """Say what a conclusion rests on."""
    if found.verdict is None:
        down = found.conclusion is Conclusion.NOTHING
        return "every trial of both cells collapsed" if down else "not in the family of verdicts"
    if found.conclusion is Conclusion.RISK:
        return undecided_by_collapse(found.verdict)
    return found.verdict.reason


def extremes(row: Row, test_set: str) -> list[tuple[float, str]]:
    """Return the lowest and the highest effect of an intervention over its contexts, each with where that is."""
    first = (row.described[test_set].mean, row.context)
    every = [first, *((each.by_set[test_set].mean, each.label) for each in row.contexts)]
    known = [(effect, where) for effect, where in every if math.isfinite(effect)] or [first]
    return [min(known, key=lambda one: rounded(one[0])), max(known, key=lambda one: rounded(one[0]))]


def largest(found: Sequence[Interaction], most: int) -> list[Interaction]:
    """Return the interactions of the largest size on any test set, in the order given."""
    sizes = [
        max((abs(each.mean) for each in one.by_set.values() if math.isfinite(each.mean)), default=0) for one in found
    ]
    places = sorted(range(len(found)), key=lambda place: -rounded(sizes[place]))[:most]
    return [found[place] for place in sorted(places)]


def other_contexts(row: Assessment) -> str:
    """Spell the range of a claim's effect in the contexts that give no verdict."""
    found = [each.mean for each in row.others if math.isfinite(each.mean)]
    if not found:
        return "none"
    ends = sorted({f"{min(found):+.3f}", f"{max(found):+.3f}"}, key=float)
    return f"{' to '.join(ends)} in {len(found)}"


def with_counts(values: Mapping[str, int]) -> list[str]:
    """Spell each value with how many trials have it."""
    return [f"{value} ({count(number, 'trial')})" for value, number in values.items()]


def recorded(fingerprint: str) -> str:
    """Set a fingerprint as code, unless none was recorded."""
    return fingerprint if fingerprint == NOT_RECORDED else code(fingerprint)


def fingerprints(values: Mapping[str, int]) -> list[Markdown]:
    return [Markdown("{} ({})").format(recorded(value), count(number, "trial")) for value, number in values.items()]
