"""Cells: the canonical form of a combination of levels, its key, and how many there are."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablations.space.factors import AUTO, FACTORS, REFERENCE, Level, Levels, level_text, parse_level
from ablations.space.rules import RULES, Frame, ImpossibleCell, automatic_alignment


@dataclass(frozen=True)
class CanonicalLevels:
    """A cell's factors in canonical form, with the reasons that led from what was asked to it.

    ``factors`` has numbers for ``align``; ``asked`` is the same with "auto" wherever auto gives that number.
    """

    factors: dict[str, Level]
    asked: dict[str, Level]
    reasons: tuple[str, ...] = ()


def canonical_levels(levels: Mapping[str, object], frame: Frame) -> CanonicalLevels:
    """The canonical form of ``levels``, one for every factor as they stand in a config.

    Raises ConfigError for an unknown level and ImpossibleCell for a combination that cannot mean anything.
    """
    cell = {name: parse_level(name, levels[name]) for name in FACTORS}
    factors, reasons = canonical_form(cell, frame)
    is_auto = factors["align"] == automatic_alignment(factors, frame)
    return CanonicalLevels(factors, {**factors, "align": AUTO} if is_auto else dict(factors), reasons)


def canonical_form(cell: Mapping[str, Level], frame: Frame) -> tuple[dict[str, Level], tuple[str, ...]]:
    """The canonical form of levels that are parsed already, with ``align`` as a number, and the reasons for changes.

    Each rule is asked once, in order, so a rule may rely on those before it. Raises ImpossibleCell.
    """
    form = dict(cell)
    asked_auto = form["align"] == AUTO
    if asked_auto:
        form["align"] = automatic_alignment(form, frame)
    reasons = []
    for rule in RULES:
        if not rule.applies(form, frame):
            continue
        if rule.becomes is None:
            raise ImpossibleCell(rule.reason)
        form.update(rule.becomes)
        if asked_auto:
            form["align"] = automatic_alignment(form, frame)
        reasons.append(rule.reason)
    return form, tuple(reasons)


@dataclass(frozen=True)
class Cell:
    """One level for every factor, in canonical form, and the setting that it is trained in.

    The setting is everything else that decides the trained network: task, network, width, training, data fingerprint.
    """

    factors: Mapping[str, Level]
    setting: Mapping[str, Any]
    asked: Mapping[str, Level] = field(compare=False, default_factory=dict)

    @property
    def key(self) -> str:
        """The SHA-256 of the canonical form, 64 hexadecimal digits."""
        form = {"factors": dict(self.factors), "setting": dict(self.setting)}
        return hashlib.sha256(json.dumps(form, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def cell_name(levels: Levels, reference: Levels = REFERENCE) -> str:
    """What tells a cell from the reference, the way a user would type it: ``residual=false bn=post``."""
    changed = [f"{name}={level_text(level)}" for name, level in levels.items() if level != reference[name]]
    return " ".join(changed) or "reference"


@dataclass(frozen=True)
class Census:
    """How many combinations there are, and what becomes of them; ``by_reason`` counts each rule's."""

    combinations: int
    impossible: int
    duplicates: int
    cells: int
    by_reason: dict[str, int]


def census(frame: Frame, aligns: Sequence[Level] = (AUTO, 1.0)) -> Census:
    """Count the whole factor space, with these alignments for the factor that has no end of levels."""
    levels = {name: factor.levels for name, factor in FACTORS.items()} | {"align": tuple(aligns)}
    seen: set[tuple[Level, ...]] = set()
    by_reason: dict[str, int] = {rule.reason: 0 for rule in RULES}
    total = impossible = 0
    for cell in combinations(levels):
        total += 1
        try:
            form, reasons = canonical_form(cell, frame)
        except ImpossibleCell as error:
            impossible += 1
            by_reason[str(error)] += 1
            continue
        seen.add(tuple(form.values()))
        for reason in reasons:
            by_reason[reason] += 1
    return Census(total, impossible, total - impossible - len(seen), len(seen), by_reason)


def combinations(levels: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name, the last name varying fastest.

    ``{"residual": [True, False], "bn": ["pre", "post"]}`` yields true pre, true post, false pre, false post.
    """
    for values in itertools.product(*levels.values()):
        yield dict(zip(levels, values, strict=True))
