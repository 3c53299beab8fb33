"""The factors: their names, levels, references and meanings, and how a level is read and written."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bbcu.errors import ConfigError, unknown

Level = bool | str | float | tuple[str, ...]
Levels = Mapping[str, Level]

AUTO = "auto"
ALIGN_PER_CHANNEL = 130 / 64
"""Residual alignment that the authors use, per channel of width (k = 130 at 64 channels)."""

SHOWN = 12
"""Characters of a key that are shown to people."""

PARTS = ("head", "body", "up", "tail")
"""The parts of a network, in the order in which a picture meets them."""


@dataclass(frozen=True)
class Factor:
    """One component that can vary.

    A ``numeric`` factor takes any positive number beside its named levels, an ``open`` one the dotted path of a class
    of the user's own.
    """

    name: str
    levels: tuple[Level, ...]
    reference: Level
    meaning: str
    numeric: bool = False
    open: bool = False


def subsets(parts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every subset of ``parts``, each in their order; the empty one first."""
    return tuple(chosen for size in range(len(parts) + 1) for chosen in itertools.combinations(parts, size))


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
        Factor("binarize", subsets(PARTS), ("body",), "the parts that are binary"),
        Factor("threshold", (True, False), True, "learnable threshold per channel before the sign"),
        Factor(
            "surrogate",
            ("quadratic", "clip", "identity", "ede", "ho"),
            "quadratic",
            "gradient of the sign",
            open=True,
        ),
        Factor("weight", ("l1", "l1mag", "plain", "irnet"), "l1", "weight binariser", open=True),
    )
}

REFERENCE: dict[str, Level] = {name: factor.reference for name, factor in FACTORS.items()}


UNIT_FACTORS = tuple(name for name in FACTORS if name not in ("align", "binarize"))
"""The factors that say what a binary unit is made of."""


def level_text(level: object) -> str:
    """A level the way a user types it: ``true``, ``post``, ``130``, ``[body,up]``."""
    if isinstance(level, bool):
        return str(level).lower()
    if isinstance(level, list | tuple):
        return f"[{','.join(map(str, level))}]"
    return f"{level:g}" if isinstance(level, float) else str(level)


def parse_level(name: str, value: object) -> Level:
    """The level of factor ``name`` that ``value``, as it stands in a config, means.

    Raises ConfigError, with the valid levels, for a value that is none.
    """
    factor = FACTORS[name]
    if isinstance(value, list | tuple):
        return _parse_parts(factor, value)
    for level in factor.levels:
        if value is level or (isinstance(value, str) and value.lower() == level_text(level)):
            return level
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if factor.numeric and 0 < number < math.inf:
        return number
    if factor.open and isinstance(value, str) and "." in value:
        return value
    raise ConfigError(_no_level(factor, value))


def _parse_parts(factor: Factor, value: Sequence[object]) -> Level:
    """A list of parts in their canonical order, whatever order it was typed in."""
    parts = tuple(part for part in PARTS if part in value)
    if parts not in factor.levels or set(value) - set(parts):
        raise ConfigError(_no_level(factor, value))
    return parts


def _no_level(factor: Factor, value: object) -> str:
    valid = [level_text(level) for level in factor.levels]
    if factor.name == "binarize":
        valid = [f"any of {', '.join(PARTS)}, as in [body,up]"]
    valid += ["a positive number"] * factor.numeric + ["the dotted path of a class of your own"] * factor.open
    return f"{factor.name}={level_text(value)}: {unknown('level', level_text(value), valid)}"
