"""The space of cells: factors, their levels, and which combinations are one network or none.

Pure functions over frozen dataclasses. A cell's key is the SHA-256 of its canonical form, so that two ways to ask for
one network are one cell, and nothing but what is trained decides it.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bbcu.errors import ConfigError, unknown

Level = bool | str | float
Levels = Mapping[str, Level]

AUTO = "auto"
ALIGN_PER_CHANNEL = 130 / 64
"""Residual alignment that the authors use, per channel of width (k = 130 at 64 channels)."""

SHOWN = 12
"""Characters of a key that are shown to people."""


@dataclass(frozen=True)
class Factor:
    """One component that can vary. ``numeric`` factors take any positive number beside their named levels."""

    name: str
    levels: tuple[Level, ...]
    reference: Level
    meaning: str
    numeric: bool = False


FACTORS: dict[str, Factor] = {
    factor.name: factor
    for factor in (
        Factor(
            "residual",
            (True, False, "block"),
            True,
            "identity around every binary convolution; none; one around each pair",
        ),
        Factor(
            "bn",
            ("none", "pre", "post", "out"),
            "none",
            "BatchNorm: none; before the sign; after the binary convolution and before the add; after the add",
        ),
        Factor("act", ("inside", "after", "none"), "inside", "activation before the residual add; after it; none"),
        Factor("act_fn", ("rprelu", "prelu", "relu", "hardtanh"), "rprelu", "the activation"),
        Factor(
            "align",
            (AUTO,),
            AUTO,
            "residual alignment k, 1 = off; auto = 130 * channels / 64 where bn=none, and 1 where a BatchNorm is",
            numeric=True,
        ),
    )
}

REFERENCE: dict[str, Level] = {name: factor.reference for name, factor in FACTORS.items()}


def level_text(level: object) -> str:
    """A level the way a user types it."""
    if isinstance(level, bool):
        return str(level).lower()
    return f"{level:g}" if isinstance(level, float) else str(level)


def parse_level(name: str, value: object) -> Level:
    """The level of factor ``name`` that ``value``, as it stands in a config, means.

    Raises ConfigError, with the valid levels, for a value that is none.
    """
    factor = FACTORS[name]
    for level in factor.levels:
        if value is level or (isinstance(value, str) and value.lower() == level_text(level)):
            return level
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if factor.numeric and 0 < number < math.inf:
        return number
    valid = [level_text(level) for level in factor.levels] + (["a positive number"] if factor.numeric else [])
    raise ConfigError(f"{name}={level_text(value)}: {unknown('level', level_text(value), valid)}")


def automatic_alignment(bn: Level, channels: int) -> float:
    """What ``align=auto`` stands for: the authors' rule where nothing else closes the value-range gap, 1 elsewhere."""
    return ALIGN_PER_CHANNEL * channels if bn == "none" else 1.0


@dataclass(frozen=True)
class Rule:
    """A fact about combinations: where ``applies`` holds, ``becomes`` gives the same network in canonical levels, or
    there is no network where ``becomes`` is None.
    """

    reason: str
    applies: Callable[[Levels], bool]
    becomes: Callable[[Levels], Levels] | None = None


def _replacing(**levels: Level) -> Callable[[Levels], Levels]:
    return lambda cell: {**cell, **levels}


RULES: tuple[Rule, ...] = (
    Rule(
        "no activation: which one it would be makes no difference",
        lambda cell: cell["act"] == "none" and cell["act_fn"] != FACTORS["act_fn"].reference,
        _replacing(act_fn=FACTORS["act_fn"].reference),
    ),
    Rule(
        "no residual: there is no add for the activation to stand before or after",
        lambda cell: cell["residual"] is False and cell["act"] == "after",
        _replacing(act="inside"),
    ),
    Rule(
        "no residual and no activation: BatchNorm after the convolution is BatchNorm at the output",
        lambda cell: cell["residual"] is False and cell["act"] == "none" and cell["bn"] == "out",
        _replacing(bn="post"),
    ),
    Rule(
        "hardtanh after the add cuts the stream to [-1, 1], and an alignment above 1 lives outside",
        lambda cell: (
            cell["residual"] is not False
            and cell["act"] == "after"
            and cell["act_fn"] == "hardtanh"
            and isinstance(cell["align"], float)
            and cell["align"] > 1
        ),
    ),
)


class ImpossibleCell(ConfigError):
    """The levels describe no network that means anything; the message is the reason."""


@dataclass(frozen=True)
class CanonicalLevels:
    """A cell's factors in canonical form, with the reasons that led from what was asked to it.

    ``factors`` has numbers for ``align``; ``asked`` is the same with "auto" wherever auto gives that number.
    """

    factors: dict[str, Level]
    asked: dict[str, Level]
    reasons: tuple[str, ...] = ()


def canonical_levels(levels: Mapping[str, object], channels: int) -> CanonicalLevels:
    """The canonical form of ``levels`` (one for every factor) in a network ``channels`` wide.

    Raises ConfigError for an unknown level and ImpossibleCell for a combination that cannot mean anything.
    """
    asked = {name: parse_level(name, levels[name]) for name in FACTORS}
    cell = dict(asked)
    if cell["align"] == AUTO:
        cell["align"] = automatic_alignment(cell["bn"], channels)
    reasons = []
    for rule in RULES:
        if not rule.applies(cell):
            continue
        if rule.becomes is None:
            raise ImpossibleCell(rule.reason)
        cell = dict(rule.becomes(cell))
        reasons.append(rule.reason)
    is_auto = cell["align"] == automatic_alignment(cell["bn"], channels)
    return CanonicalLevels(cell, {**cell, "align": AUTO} if is_auto else dict(cell), tuple(reasons))


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


def combinations(levels: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name, the last name varying fastest.

    ``{"residual": [True, False], "bn": ["pre", "post"]}`` yields true pre, true post, false pre, false post.
    """
    for values in itertools.product(*levels.values()):
        yield dict(zip(levels, values, strict=True))
