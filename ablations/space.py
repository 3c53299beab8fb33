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


@dataclass(frozen=True)
class Frame:
    """What the rules must know of a cell's setting: the network's layout and its width."""

    network: str
    channels: int


def automatic_alignment(cell: Levels, frame: Frame) -> float:
    """What ``align=auto`` stands for: the authors' rule where nothing else closes the value-range gap, 1 elsewhere."""
    return ALIGN_PER_CHANNEL * frame.channels if cell["bn"] == "none" and cell["binarize"] else 1.0


@dataclass(frozen=True)
class Rule:
    """A fact about combinations.

    Where ``applies`` holds, ``becomes`` has the levels of the same network in canonical form, and None where there is
    no network.

    Two cells are the same network only if training cannot tell them apart. Being able to compute the same functions is
    not enough: a threshold beside the shift of a BatchNorm is redundant, and yet the two learn faster than one.
    """

    reason: str
    applies: Callable[[Levels, Frame], bool]
    becomes: Mapping[str, Level] | None = None


def _has_body(cell: Levels) -> bool:
    parts = cell["binarize"]
    return isinstance(parts, tuple) and "body" in parts


def _cuts_an_aligned_stream(cell: Levels, frame: Frame) -> bool:
    align = cell["align"]
    after_an_add = cell["residual"] is not False and cell["act"] == "after"
    return after_an_add and cell["act_fn"] == "hardtanh" and isinstance(align, float) and align > 1


def _nothing_shifts(cell: Levels) -> bool:
    """Whether what comes out of a unit reaches the sign of the next as it is."""
    return cell["threshold"] is False and cell["bn"] in ("none", "post")


def _gives_only_positive_bits(cell: Levels, frame: Frame) -> bool:
    """Whether binary units in a row, of the body or the upsampling, have a ReLU and nothing else before their sign."""
    parts = cell["binarize"]
    in_a_row = isinstance(parts, tuple) and ("body" in parts or "up" in parts)
    straight_from_relu = cell["act"] == "after" or (cell["act"] == "inside" and cell["residual"] is not True)
    return in_a_row and cell["act_fn"] == "relu" and straight_from_relu and _nothing_shifts(cell)


def _only_grows(cell: Levels, frame: Frame) -> bool:
    """Whether the stream of a DnCNN starts behind the head's ReLU and every unit adds what is positive."""
    parts = cell["binarize"]
    starts_positive = frame.network == "dncnn" and isinstance(parts, tuple) and "body" in parts and "head" not in parts
    return starts_positive and cell["act_fn"] == "relu" and cell["act"] == "inside" and _nothing_shifts(cell)


def _tail_sees_only_light(cell: Levels, frame: Frame) -> bool:
    """Whether the binary tail of a DnCNN stands behind the last ReLU of a full-precision body."""
    only_tail = frame.network == "dncnn" and cell["binarize"] == ("tail",)
    return only_tail and cell["threshold"] is False and cell["bn"] != "pre"


def _head_sees_only_light(cell: Levels, frame: Frame) -> bool:
    parts = cell["binarize"]
    binary_head = isinstance(parts, tuple) and "head" in parts
    return binary_head and cell["threshold"] is False and cell["bn"] != "pre"


RULES: tuple[Rule, ...] = (
    Rule(
        "a DnCNN has no upsampling to binarise",
        lambda cell, frame: frame.network == "dncnn" and "up" in cell["binarize"],  # type: ignore[operator]
    ),
    Rule(
        "nothing is binary: what a binary unit would be made of makes no difference",
        lambda cell, frame: not cell["binarize"] and any(cell[name] != REFERENCE[name] for name in UNIT_FACTORS),
        {name: REFERENCE[name] for name in UNIT_FACTORS},
    ),
    Rule(
        "no activation: which one it would be makes no difference",
        lambda cell, frame: cell["act"] == "none" and cell["act_fn"] != "rprelu",
        {"act_fn": "rprelu"},
    ),
    Rule(
        "a unit outside the body stands alone: an identity around its block is one around it",
        lambda cell, frame: cell["residual"] == "block" and not _has_body(cell),
        {"residual": True},
    ),
    Rule(
        "the tail of a DnCNN has no residual, and nothing else is binary",
        lambda cell, frame: (
            frame.network == "dncnn" and cell["binarize"] == ("tail",) and cell["residual"] is not False
        ),
        {"residual": False},
    ),
    Rule(
        "no residual: there is no add for the activation to stand before or after",
        lambda cell, frame: cell["residual"] is False and cell["act"] == "after",
        {"act": "inside"},
    ),
    Rule(
        "no residual and no activation: BatchNorm after the convolution is BatchNorm at the output",
        lambda cell, frame: cell["residual"] is False and cell["act"] == "none" and cell["bn"] == "out",
        {"bn": "post"},
    ),
    Rule(
        "only the tail is binary, and the skip that it adds belongs to the network",
        lambda cell, frame: (
            frame.network == "srresnet"
            and cell["binarize"] == ("tail",)
            and cell["residual"] is False
            and cell["bn"] != "out"
        ),
        {"residual": True},
    ),
    Rule(
        "hardtanh after the add cuts the stream to [-1, 1], and an alignment above 1 lives outside",
        _cuts_an_aligned_stream,
    ),
    Rule(
        "a ReLU right before a sign without a threshold or BatchNorm: every bit is +1 and tells nothing",
        lambda cell, frame: any(
            rule(cell, frame) for rule in (_gives_only_positive_bits, _only_grows, _tail_sees_only_light)
        ),
    ),
    Rule(
        "an image is nowhere negative: without a threshold or BatchNorm every bit of a binary head is +1",
        _head_sees_only_light,
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
