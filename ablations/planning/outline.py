"""Sort the rows of a design into those to train and those to leave out, before their configs are composed.

Hydra needs about 50 ms to compose a config, which is minutes for thousands of rows. Most keys that a study varies are
factors, whose meaning is known without Hydra, so a config is composed only once for each combination of the other keys.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablations.space.cells import canonical_form
from ablations.space.conditions import Condition, Value, parse, value_of
from ablations.space.designs import Listing
from ablations.space.factors import FACTORS, Level, level_text, parse_level
from ablations.space.rows import Row
from ablations.space.rules import Backbone, ImpossibleCell, automatic_alignment
from bbcu.errors import ConfigError


@dataclass(frozen=True)
class RowDefaults:
    """What all rows with the same keys other than factors share, as their config has it.

    ``levels`` has every factor before the row sets any, so with the presets of the row's method. ``setting`` is all
    else that distinguishes one trial from another, the seed included. ``known`` has what a condition may ask about
    besides the factors and the row's own keys, as the task.
    """

    levels: Mapping[str, Any]
    backbone: Backbone
    setting: Hashable
    known: Mapping[str, Value] = field(default_factory=dict)


DefaultsOf = Callable[[Mapping[str, str]], RowDefaults]
"""Returns the defaults for the texts of a row's keys that are not factors."""


@dataclass(frozen=True)
class LeftOutRow:
    """A row that is not trained, and why; ``same_as`` is the kept row of the same network, if that is the reason."""

    row: Row
    why: str
    same_as: Row | None = None

    @property
    def reason(self) -> str:
        return self.why if self.same_as is None else f"same as {' '.join(self.same_as)}: {self.why}"


@dataclass(frozen=True)
class Outline:
    """The rows to train, and those to leave out with their reasons.

    ``unused_conditions`` excluded no row that an earlier condition had not; the user may have mistyped one.
    """

    kept: tuple[Row, ...]
    left_out: tuple[LeftOutRow, ...]
    unused_conditions: tuple[str, ...] = ()


def outline(
    rows: Iterable[Row], defaults_of: DefaultsOf, exclude: Sequence[str] = (), *, reads_factors: bool = True
) -> Outline:
    """Keep every row that is a network of its own, and leave out the others with the first reason that applies.

    A row is left out if a condition in ``exclude`` holds for the levels that it asks for, before they take their
    canonical form; then if it is impossible; then if an earlier row is the same network in the same setting.

    ``defaults_of`` is called once for each combination of the keys that are not factors. If ``reads_factors`` is false,
    it is called for the factors' texts too: they may be interpolations, which only Hydra can resolve.

    Raises ConfigError for a level that does not exist and for a condition that cannot be parsed.
    """
    # Thousands of rows are made of few texts, so each text and each combination of other keys is parsed only once.
    level_in = functools.cache(_level_in if reads_factors else lambda text: None)
    excludes: dict[str, bool] = {}

    @functools.cache
    def defaults_for(others: tuple[str, ...]) -> _ParsedDefaults:
        parsed = _parse_defaults(dict(map(split, others)), defaults_of, exclude)
        excludes.update({text: False for text in map(str, parsed.conditions) if text not in excludes})
        return parsed

    kept: dict[Hashable, _KeptRow] = {}
    left_out: list[LeftOutRow] = []
    for row in rows:
        defaults = defaults_for(tuple([text for text in row if level_in(text) is None]))
        levels = {**defaults.levels, **dict(filter(None, map(level_in, row)))}
        if (condition := _excluding(defaults, levels)) is not None:
            excludes[text := str(condition)] = True
            left_out.append(LeftOutRow(row, f'excluded by "{text}"'))
            continue
        try:
            form, reasons = canonical_form(levels, defaults.given.backbone)
        except ImpossibleCell as error:
            left_out.append(LeftOutRow(row, f"impossible: {error}"))
            continue
        new = _KeptRow(row, levels, form, reasons)
        first = kept.setdefault((*form.values(), defaults.given.setting), new)
        if first is not new:
            left_out.append(LeftOutRow(row, _why_same(first, new), first.row))
    unused = tuple(condition for condition, has_excluded in excludes.items() if not has_excluded)
    return Outline(tuple(entry.row for entry in kept.values()), tuple(left_out), unused)


@dataclass(frozen=True)
class _KeptRow:
    """A row with its levels as asked for, their canonical form, and the reasons of the rules that changed them."""

    row: Row
    levels: Mapping[str, Level]
    form: Mapping[str, Level]
    reasons: tuple[str, ...]


def _why_same(first: _KeptRow, second: _KeptRow) -> str:
    """The rules that make two rows the same network, or that both ask for the same levels."""
    reasons = list(dict.fromkeys((*first.reasons, *second.reasons)))
    if not reasons and first.levels != second.levels:
        reasons = [f"asked for twice, since align=auto is {level_text(second.form['align'])} here"]
    return "; ".join(reasons) or "asked for twice"


def check_complete(listing: Listing, found: Outline) -> None:
    """Raise ConfigError if a row is missing from a design that needs every row, as a fraction does."""
    if listing.needs_every_row and found.left_out:
        first = found.left_out[0]
        raise ConfigError(
            f"{len(found.left_out)} of {len(listing.rows)} rows of the fraction are not cells of their own, so its "
            f"effects are mixed in unknown ways; choose other factors or generators, or design=full. "
            f"The first is {' '.join(first.row)}: {first.reason}"
        )


def _level_in(text: str) -> tuple[str, Level] | None:
    """The factor that a text sets and its level, or None for a key that is not a factor."""
    key, value = split(text)
    return (key, parse_level(key, value_of(value))) if key in FACTORS else None


@dataclass(frozen=True)
class _ParsedDefaults:
    """The defaults of rows, their levels parsed, with the conditions and what those may ask about."""

    given: RowDefaults
    levels: Mapping[str, Level]
    known: Mapping[str, Value]
    conditions: tuple[Condition, ...]


def _parse_defaults(texts: Mapping[str, str], defaults_of: DefaultsOf, exclude: Sequence[str]) -> _ParsedDefaults:
    given = defaults_of(texts)
    known: dict[str, Value] = {"network": given.backbone.network, "channels": given.backbone.channels, **given.known}
    known |= {key: value_of(text) for key, text in texts.items()}
    conditions = tuple(parse(text, (*FACTORS, *known)) for text in exclude)
    return _ParsedDefaults(given, {name: parse_level(name, given.levels[name]) for name in FACTORS}, known, conditions)


def _excluding(defaults: _ParsedDefaults, levels: Mapping[str, Level]) -> Condition | None:
    """The first condition that holds for these levels, if any."""
    if not defaults.conditions:
        return None
    automatic = automatic_alignment(levels, defaults.given.backbone)
    values: dict[str, Value] = {**defaults.known, **levels}
    return next((condition for condition in defaults.conditions if condition.holds(values, automatic)), None)


@functools.lru_cache(maxsize=4096)
def split(text: str) -> tuple[str, str]:
    """The key and the value's text of ``key=value``; cached, since thousands of rows are made of few texts."""
    key, _, value = text.partition("=")
    return key, value
