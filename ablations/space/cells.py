"""Cells: the canonical form of a combination of levels, and its key."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablations.space.factors import AUTO, FACTORS, REFERENCE, Level, Levels, level_text, parse_level
from ablations.space.rules import Backbone, ImpossibleCell, automatic_alignment, contradiction, rules
from ablations.space.settings import identifying


@dataclass(frozen=True)
class CanonicalLevels:
    """A cell's levels in canonical form, and the reasons of the rules that changed what was asked for.

    ``levels`` has "auto" for an alignment of the number that auto stands for; ``factors`` has the number.
    """

    levels: dict[str, Level]
    factors: dict[str, Level]
    reasons: tuple[str, ...] = ()


def canonical_levels(levels: Mapping[str, object], backbone: Backbone) -> CanonicalLevels:
    """The canonical form of ``levels``, which has one for every factor as it stands in a config.

    Raises ConfigError for an unknown level and ImpossibleCell for a combination that is not a meaningful network.
    """
    factors, reasons = canonical_form({name: parse_level(name, levels[name]) for name in FACTORS}, backbone)
    is_auto = factors["align"] == automatic_alignment(factors, backbone)
    return CanonicalLevels({**factors, "align": AUTO} if is_auto else dict(factors), factors, reasons)


def canonical_form(levels: Levels, backbone: Backbone) -> tuple[dict[str, Level], tuple[str, ...]]:
    """The canonical form of parsed levels, with a number for ``align``, and the reasons of the rules that changed them.

    Rules that merge cells are applied until none changes anything, so their order does not matter; then the form is
    checked by those for impossible cells. Raises ImpossibleCell.
    """
    cell: dict[str, Level] = {**levels, **backbone.facts}
    asked_auto = cell["align"] == AUTO
    if asked_auto:
        cell["align"] = automatic_alignment(cell, backbone)
    found, reasons = rules(), dict[str, None]()
    for _ in range(len(found.merging) + 1):
        is_settled = True
        for rule in found.merging:
            if rule.changes(cell):
                cell.update(rule.becomes or {})
                if asked_auto:
                    cell["align"] = automatic_alignment(cell, backbone)
                reasons[rule.reason], is_settled = None, False
        if is_settled:
            break
    else:
        raise contradiction(reasons)
    for rule in found.impossible:
        if rule.holds(cell):
            raise ImpossibleCell(rule.reason)
    return {name: cell[name] for name in levels}, tuple(reasons)


@dataclass(frozen=True)
class Cell:
    """One level for every factor, in canonical form, and the setting that it is trained in.

    ``levels`` and ``factors`` are those of :class:`CanonicalLevels`. The setting is everything else that decides the
    trained network: task, network, width, training, data fingerprint.
    """

    levels: Levels
    setting: Mapping[str, Any]
    factors: Levels = field(compare=False, default_factory=dict)

    @property
    def key(self) -> str:
        """The SHA-256 of the canonical form, 64 hexadecimal digits.

        Levels at the reference and keys of the setting at their default are left out: a factor or a key that is added
        later, with what was there before as its reference, changes no earlier key.
        """
        changed = {name: level for name, level in self.levels.items() if level != REFERENCE[name]}
        form = {"factors": changed, "setting": identifying(self.setting)}
        return hashlib.sha256(json.dumps(form, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def cell_name(levels: Levels, reference: Levels = REFERENCE) -> str:
    """What tells a cell from the reference, the way a user would type it: ``residual=false bn=post``."""
    changed = [f"{name}={level_text(level)}" for name, level in levels.items() if level != reference[name]]
    return " ".join(changed) or "reference"


def combinations(levels: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name, the last name varying fastest.

    ``{"residual": [True, False], "bn": ["pre", "post"]}`` yields true pre, true post, false pre, false post.
    """
    for values in itertools.product(*levels.values()):
        yield dict(zip(levels, values, strict=True))
