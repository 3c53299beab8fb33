"""The cheap plan of a sweep: which rows of a design are cells of their own, before any config is composed.

Hydra composes a config in about 50 ms, which is minutes for thousands of rows. Most keys that a study varies are
factors, and what these mean is known here, so a config is composed once for each combination of the other keys only.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablations.space.cells import canonical_form
from ablations.space.conditions import Condition, Value, parse, value_of, value_text
from ablations.space.designs import Listing
from ablations.space.factors import FACTORS, Level, level_text, parse_level
from ablations.space.rows import Row
from ablations.space.rules import Backbone, ImpossibleCell, automatic_alignment
from bbcu.errors import ConfigError


@dataclass(frozen=True)
class Base:
    """What a row starts from: everything that its keys beside the factors decide.

    ``levels`` has every factor as it stands in the config, a method's presets included, before the row's own factors.
    ``known`` has what a condition may ask about beside the factors and the row's keys, as the task. ``setting`` is what
    else tells one trial from another, the seed included; None says that the texts of the other keys do, which never
    merges too much and misses that two methods may be one once factors are typed over them.
    """

    levels: Mapping[str, Any]
    backbone: Backbone
    known: Mapping[str, Value] = field(default_factory=dict)
    setting: Hashable = None


BaseOf = Callable[[Mapping[str, str]], Base]
"""Gives the base for the texts of a row's keys that are no factors."""


@dataclass(frozen=True)
class LostRow:
    """A row that is left out, and why; ``same_as`` is the kept row that is the same network, where that is why."""

    row: Row
    why: str
    same_as: Row | None = None

    @property
    def reason(self) -> str:
        return self.why if self.same_as is None else f"same as {' '.join(self.same_as)}: {self.why}"


@dataclass(frozen=True)
class Outline:
    """The rows that are cells of their own, and the others with the reason why each is left out.

    ``idle`` has the conditions that left nothing out which those before them had not; a user may have mistyped one.
    """

    kept: tuple[Row, ...]
    left_out: tuple[LostRow, ...]
    idle: tuple[str, ...] = ()


def outline(
    rows: Iterable[Row], base_of: BaseOf, exclude: Sequence[str] = (), *, reads_factors: bool = True
) -> Outline:
    """Sort rows into those to train and those to leave out, each with the first reason that applies.

    A row is excluded by what it asks for, before that takes its canonical form; then refused where it is impossible;
    then left out where an earlier row is the same network in the same setting. ``base_of`` is called once for each
    combination of the texts of keys that are no factors; or of all keys where ``reads_factors`` is false, for texts
    that only the composed config can tell the meaning of.

    Raises ConfigError for a level or a condition that is none, whatever row it is in.
    """
    reader = _Reader(base_of, exclude, reads_factors)
    kept: list[Row] = []
    left_out: list[LostRow] = []
    first_with: dict[Hashable, _Planned] = {}
    for row in rows:
        start, levels, condition = reader.read(row)
        if condition is not None:
            left_out.append(LostRow(row, f'excluded by "{condition}"'))
            continue
        try:
            form, reasons = canonical_form(levels, start.backbone)
        except ImpossibleCell as error:
            left_out.append(LostRow(row, f"impossible: {error}"))
            continue
        planned = _Planned(row, levels, form, reasons)
        identity = (*form.values(), start.setting)
        if identity in first_with:
            first = first_with[identity]
            left_out.append(LostRow(row, _why_same(first, planned), first.row))
            continue
        first_with[identity] = planned
        kept.append(row)
    return Outline(tuple(kept), tuple(left_out), reader.idle)


@dataclass(frozen=True)
class _Planned:
    """A row that is a cell: its levels as asked, their canonical form, and the rules that led there."""

    row: Row
    levels: Mapping[str, Level]
    form: Mapping[str, Level]
    reasons: tuple[str, ...]


def _why_same(first: _Planned, again: _Planned) -> str:
    """Why two rows are one cell: the rules that changed either, or what was typed in two ways."""
    reasons = list(dict.fromkeys((*first.reasons, *again.reasons)))
    if not reasons and first.levels != again.levels:
        reasons = [f"asked for twice, since align=auto is {level_text(again.form['align'])} here"]
    return "; ".join(reasons) or "asked for twice"


def check_whole(listing: Listing, found: Outline) -> None:
    """Raise ConfigError where a design that needs every row, as a fraction does, has lost one."""
    if listing.whole and found.left_out:
        first = found.left_out[0]
        raise ConfigError(
            f"{len(found.left_out)} of {len(listing.rows)} rows of the fraction are no cells of their own, so its "
            f"effects are mixed in unknown ways; choose other factors or generators, or design=full. "
            f"The first is {' '.join(first.row)}: {first.reason}"
        )


@dataclass(frozen=True)
class _Start:
    """A base that is read: what rows with the same other keys share."""

    levels: Mapping[str, Level]
    backbone: Backbone
    setting: Hashable
    known: Mapping[str, Value]
    conditions: tuple[Condition, ...]


class _Reader:
    """Reads rows; each text, and each combination of keys that are no factors, only once."""

    def __init__(self, base_of: BaseOf, exclude: Sequence[str], reads_factors: bool) -> None:
        self.base_of = base_of
        self.exclude = exclude
        self.reads_factors = reads_factors
        self.starts: dict[tuple[str, ...], _Start] = {}
        self.changes: dict[str, tuple[str, Level] | None] = {}
        self.had_effect: dict[str, bool] = {}

    @property
    def idle(self) -> tuple[str, ...]:
        return tuple(condition for condition, had_effect in self.had_effect.items() if not had_effect)

    def read(self, row: Row) -> tuple[_Start, dict[str, Level], Condition | None]:
        """What the row starts from, the level of every factor as it asks for, and the condition that excludes it."""
        changes, others = [], []
        for text in row:
            change = self.changes[text] if text in self.changes else self._read_change(text)
            if change is None:
                others.append(text)
            else:
                changes.append(change)
        key = tuple(others)
        start = self.starts[key] if key in self.starts else self._read_start(key)
        levels = {**start.levels, **dict(changes)}
        return start, levels, self._excluded_by(start, levels)

    def _read_change(self, text: str) -> tuple[str, Level] | None:
        """The factor and its level, or None for a key that the base answers for."""
        key, value = split(text)
        change = (key, parse_level(key, value_of(value))) if self.reads_factors and key in FACTORS else None
        self.changes[text] = change
        return change

    def _read_start(self, others: tuple[str, ...]) -> _Start:
        texts = dict(split(text) for text in others)
        base = self.base_of(texts)
        values = {key: value_of(text) for key, text in texts.items()}
        known = {"network": base.backbone.network, "channels": base.backbone.channels, **base.known, **values}
        conditions = tuple(parse(text, (*FACTORS, *known)) for text in self.exclude)
        for condition in conditions:
            self.had_effect.setdefault(str(condition), False)
        levels = {name: parse_level(name, base.levels[name]) for name in FACTORS}
        setting = base.setting
        if setting is None:
            setting = tuple(sorted((key, value_text(value)) for key, value in values.items()))
        start = self.starts[others] = _Start(levels, base.backbone, setting, known, conditions)
        return start

    def _excluded_by(self, start: _Start, levels: Mapping[str, Level]) -> Condition | None:
        if not start.conditions:
            return None
        automatic = automatic_alignment(levels, start.backbone)
        asked: dict[str, Value] = {**start.known, **levels}
        for condition in start.conditions:
            if condition.holds(asked, automatic):
                self.had_effect[str(condition)] = True
                return condition
        return None


@functools.lru_cache(maxsize=4096)
def split(text: str) -> tuple[str, str]:
    """The key and the text of its value; thousands of rows are made of few texts."""
    key, _, value = text.partition("=")
    return key, value
