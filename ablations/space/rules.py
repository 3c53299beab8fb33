"""The rules of the factor space: which combinations of levels are the same network, or none at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ablations.space.factors import ALIGN_PER_CHANNEL, REFERENCE, UNIT_FACTORS, Level, Levels
from bbcu.errors import ConfigError


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
