"""The factors: one declaration says a factor's name, levels, reference, meaning, where it applies, and its rules.

Everything else follows from the declaration: the config key, the levels of a method, the list of ``python -m ablations
space``, the conditions of a study, the table in the documentation, and the rows of a report. What a level does is the
business of ``bbcu.model``.

A package of the user's own declares a factor in the same way, without a change here: see :func:`load_declarations`.
"""

import functools
import importlib
import importlib.metadata
import itertools
import keyword
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bbcu.errors import ConfigError, first_line, shown, unknown
from bbcu.model.specs import PARTS

Level = bool | str | float | tuple[str, ...]
Levels = Mapping[str, Level]

AUTO = "auto"
SHOWN = 12
"""Characters of a cell's key that are shown to people."""


def is_number(value: object) -> bool:
    """Whether a value is a number; a truth value is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Rule:
    """A fact about combinations of levels: they are another cell's network, or no network at all.

    ``when`` is a condition as users write it (:mod:`ablations.space.conditions`) on the factors, ``network``,
    ``channels``, ``network.tail`` and ``task``. If it holds, ``becomes`` has the levels to change to get the canonical
    form of the same network; None means that the combination is impossible. ``reason`` is shown to users.

    Two cells are the same network only if training cannot tell them apart. Being able to compute the same functions is
    not enough: a threshold beside the shift of a BatchNorm is redundant, and yet the two learn faster than one.
    """

    when: str
    reason: str
    becomes: Mapping[str, Level] | None = None


class Phrase(NamedTuple):
    """What a level adds to a network, in words; an empty ``noun`` means that the level is the absence of something.

    ``replaced`` stands after "in place of", where another level of the factor has been named, and ``removed`` after
    "without"; both are ``noun`` unless they are given.
    """

    noun: str
    replaced: str = ""
    removed: str = ""


ABSENT = Phrase("")


@dataclass(frozen=True)
class Factor:
    """One component that can vary.

    ``reference`` is its level in BBCU. A ``numeric`` factor takes any positive number beside its named levels, an
    ``open`` one the dotted path of a class of the user's own, and a ``subset`` one any list of its ``members``.

    ``applies`` is a condition: elsewhere the factor has no effect, so that every level is the network of the reference,
    and ``otherwise`` says why. A factor ``of_unit`` says what a binary unit is made of; it has no effect on a network
    without one.

    ``unit`` is for a factor that a user declares: the dotted path of the subclass of ``bbcu.BinaryUnit`` that
    implements its levels. Cells at the reference keep the unit of the network.

    ``phrases`` puts levels and members in words, for the rows of a report. A level without a phrase is called by its
    own name after ``noun``, which is the factor's name unless it is given.
    """

    name: str
    levels: tuple[Level, ...]
    reference: Level
    meaning: str
    numeric: bool = False
    open: bool = False
    members: tuple[str, ...] = ()
    of_unit: bool = True
    applies: str = ""
    otherwise: str = ""
    rules: tuple[Rule, ...] = ()
    unit: str = ""
    noun: str = ""
    phrases: Mapping[Level, Phrase] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise ConfigError(f"factor {self.name!r}: its name must be an identifier, as it is a key of the config")
        if self.reference not in self.levels:
            raise ConfigError(f"factor {self.name}: the reference {level_text(self.reference)} is not among its levels")
        if self.applies and not self.otherwise:
            raise ConfigError(f"factor {self.name}: `applies` needs `otherwise`, the reason shown for cells that merge")
        for level in self.phrases:
            if level not in (*self.levels, *self.members) and not (self.numeric and is_number(level)):
                raise ConfigError(f"factor {self.name}: it has a phrase for {level_text(level)}, which is not a level")


def subsets(members: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every subset of ``members``, each in their order, from the empty one to the whole."""
    return tuple(chosen for size in range(len(members) + 1) for chosen in itertools.combinations(members, size))


_NOTHING_SHIFTS = "threshold=false and bn in [none,post]"
_POSITIVE_OUTPUTS = "act_fn=relu and (act in [after,first] or act=inside and residual in [false,block])"
_UNIT_AFTER_UNIT = (
    "binarize contains body or binarize contains up and (not network in [edsr,rcan,rdn,drunet,unet] "
    "or network in [edsr,rcan,rdn] and (task=sr_x4 or binarize contains tail))"
)
_SKIP_OF_NETWORK = "only the tail is binary, and the skip that it adds belongs to the network"
_PER_CHANNEL = "rescale in [channel,both,doubled,statistics]"
_ALL_POSITIVE = (
    "a ReLU right before a sign without a threshold or BatchNorm: every bit is +1 and carries no information"
)
_ALL_LIGHT = "an image is never negative: without a threshold or BatchNorm every bit of a binary head is +1"

_DECLARED: tuple[Factor, ...] = (
    Factor(
        "residual",
        (True, False, "block", "scaled"),
        True,
        "identity around every binary convolution; none; one around each block of two; one times a learnt number",
        rules=(
            Rule(
                "residual=block and not binarize contains body",
                "a unit outside the body stands alone: an identity around its block is one around it",
                {"residual": True},
            ),
            Rule(
                "network=rdn and residual=block",
                "the units of an RDN come in no pairs: an identity around each block is one around each unit",
                {"residual": True},
            ),
            Rule(
                "network in [dncnn,edsr,rcan,rdn] and binarize=[tail] and residual!=false",
                "the tail of this network has no residual, and nothing else is binary",
                {"residual": False},
            ),
            Rule(
                "network in [srresnet,unet] and binarize=[tail] and residual=false and bn!=out and act!=after",
                _SKIP_OF_NETWORK,
                {"residual": True},
            ),
            Rule(
                "network in [srresnet,unet] and binarize=[tail] and residual=true and bn=branch and act=inside",
                _SKIP_OF_NETWORK,
                {"residual": False, "bn": "out"},
            ),
        ),
        phrases={
            True: Phrase("a residual per convolution", replaced="one per convolution", removed="the residual"),
            False: ABSENT,
            "block": Phrase("a residual per block", replaced="one per block", removed="the residual"),
            "scaled": Phrase("a residual times a number", replaced="one times a number", removed="the residual"),
        },
    ),
    Factor(
        "bn",
        ("none", "pre", "post", "branch", "out"),
        "none",
        "BatchNorm: none; before the sign; after the binary convolution; between activation and add; after the add",
        rules=(
            Rule(
                "bn=branch and act=none",
                "no activation: BatchNorm between activation and add is BatchNorm after the convolution",
                {"bn": "post"},
            ),
            Rule(
                "bn=branch and residual=false",
                "no residual: BatchNorm between activation and add is BatchNorm at the output",
                {"bn": "out"},
            ),
            Rule(
                "bn=branch and act in [after,first]",
                "the activation stands after the add, so there is no place between activation and add",
            ),
            Rule(
                "residual=false and act=none and bn=out",
                "no residual and no activation: BatchNorm after the convolution is BatchNorm at the output",
                {"bn": "post"},
            ),
        ),
        phrases={
            "none": ABSENT,
            "pre": Phrase("BatchNorm before the sign", replaced="one before the sign"),
            "post": Phrase("BatchNorm after the convolution", replaced="one after the convolution"),
            "branch": Phrase("BatchNorm between activation and add", replaced="one between activation and add"),
            "out": Phrase("BatchNorm after the add", replaced="one after the add"),
        },
    ),
    Factor(
        "act",
        ("inside", "after", "first", "none"),
        "inside",
        "activation before the residual add; after it; after it in the first unit of each pair only; none",
        rules=(
            Rule(
                "residual=false and act=after",
                "no residual: there is no add for the activation to stand before or after",
                {"act": "inside"},
            ),
            Rule(
                "act=first and not binarize contains body",
                "a unit outside the body stands alone, and an activation in the first of each pair is none",
                {"act": "none"},
            ),
            Rule(
                "act=first and residual in [false,block]",
                "only the first unit of a pair has an activation, and it stands after an add that this unit has not",
            ),
        ),
        phrases={
            "inside": Phrase("activation before the add", replaced="before it", removed="activation"),
            "after": Phrase("activation after the add", replaced="after it", removed="activation"),
            "first": Phrase(
                "activation after the add in the first unit of each pair",
                replaced="after it in the first unit of each pair",
                removed="activation",
            ),
            "none": ABSENT,
        },
    ),
    Factor(
        "act_fn",
        ("rprelu", "prelu", "relu", "hardtanh", "leaky", "maxout"),
        "rprelu",
        "the activation",
        applies="act!=none",
        otherwise="no activation: which one it would be makes no difference",
        rules=(
            Rule(
                "residual!=false and act in [after,first] and act_fn=hardtanh and align>1",
                "hardtanh after the add cuts the stream to [-1, 1], and an alignment above 1 lives outside",
            ),
        ),
        phrases={
            "rprelu": Phrase("RPReLU"),
            "prelu": Phrase("PReLU"),
            "relu": Phrase("ReLU"),
            "hardtanh": Phrase("Hardtanh"),
            "leaky": Phrase("LeakyReLU"),
            "maxout": Phrase("Maxout"),
        },
    ),
    Factor(
        "align",
        (AUTO,),
        AUTO,
        "residual alignment k, 1 = off; auto = 130 * channels / 64 if bn=none, and 1 with a BatchNorm",
        numeric=True,
        of_unit=False,
        noun="alignment",
        phrases={1.0: ABSENT},
    ),
    Factor(
        "binarize",
        subsets(PARTS),
        ("body",),
        "the parts that are binary",
        members=PARTS,
        of_unit=False,
        rules=(
            Rule("network=dncnn and binarize contains up", "a DnCNN has no upsampling to binarise"),
            Rule(
                "network in [edsr,rcan,rdn] and network.tail=light and binarize contains up",
                "a light tail is one convolution and has no upsampling to binarise",
            ),
        ),
        phrases={
            "head": Phrase("a binary head"),
            "body": Phrase("a binary body"),
            "up": Phrase("binary upsampling"),
            "tail": Phrase("a binary tail"),
        },
    ),
    Factor(
        "threshold",
        (True, False, "affine", "elastic", "adaptive", "dynamic"),
        True,
        "before the sign: a learnt threshold per channel; none; with a slope; with a width; with a width and two "
        "values that are no opposites; one that depends on the picture",
        rules=(
            Rule(f"({_UNIT_AFTER_UNIT}) and {_POSITIVE_OUTPUTS} and {_NOTHING_SHIFTS}", _ALL_POSITIVE),
            Rule(
                f"network=rdn and binarize contains body and act_fn=relu and act=inside and {_NOTHING_SHIFTS}",
                _ALL_POSITIVE,
            ),
            Rule(
                "network=dncnn and binarize contains body and not binarize contains head and act_fn=relu "
                f"and act=inside and {_NOTHING_SHIFTS}",
                _ALL_POSITIVE,
            ),
            Rule("network=dncnn and binarize=[tail] and threshold=false and bn!=pre", _ALL_POSITIVE),
            Rule(
                "not network in [edsr,rcan] and binarize contains head and threshold=false and bn!=pre",
                _ALL_LIGHT,
            ),
        ),
        phrases={
            True: Phrase("the threshold", replaced="one that only shifts", removed="the threshold"),
            False: ABSENT,
            "affine": Phrase("an affine threshold", replaced="an affine one"),
            "elastic": Phrase("an elastic threshold", replaced="an elastic one"),
            "adaptive": Phrase("an adaptive threshold", replaced="an adaptive one"),
            "dynamic": Phrase("a dynamic threshold", replaced="a dynamic one"),
        },
    ),
    Factor(
        "surrogate",
        ("quadratic", "clip", "identity", "ede", "ho", "tanh", "reste"),
        "quadratic",
        "gradient of the sign",
        open=True,
        phrases={
            "quadratic": Phrase("the quadratic surrogate", replaced="the quadratic one"),
            "clip": Phrase("the clip surrogate", replaced="the clip one"),
            "identity": Phrase("the identity surrogate", replaced="the identity one"),
            "ede": Phrase("the EDE surrogate", replaced="the EDE one"),
            "ho": Phrase("the ho surrogate", replaced="the ho one"),
            "tanh": Phrase("the learnt tanh surrogate", replaced="the learnt tanh one"),
            "reste": Phrase("the ReSTE surrogate", replaced="the ReSTE one"),
        },
    ),
    Factor(
        "weight",
        ("l1", "l1mag", "plain", "irnet", "sign", "srb", "reste", "adabin", "recu"),
        "l1",
        "weight binariser",
        open=True,
        noun="weight binariser",
        phrases={
            "l1": Phrase("the l1 weight binariser", replaced="the l1 one"),
            "l1mag": Phrase("the l1mag weight binariser", replaced="the l1mag one"),
            "plain": Phrase("the plain weight binariser", replaced="the plain one"),
            "irnet": Phrase("the IR-Net weight binariser", replaced="the IR-Net one"),
            "sign": Phrase("the sign weight binariser", replaced="the sign one"),
            "srb": Phrase("the second-order weight binariser", replaced="the second-order one"),
            "reste": Phrase("the ReSTE weight binariser", replaced="the ReSTE one"),
            "adabin": Phrase("the AdaBin weight binariser", replaced="the AdaBin one"),
            "recu": Phrase("the ReCU weight binariser", replaced="the ReCU one"),
        },
    ),
    Factor(
        "rescale",
        ("none", "spatial", "channel", "both", "doubled", "squeeze", "statistics", "box"),
        "none",
        "factors of the convolution's result, computed in full precision from its input",
        rules=(
            Rule(
                f"(binarize contains tail or network=rdn and binarize contains body or "
                f"network=unet and binarize contains up) and {_PER_CHANNEL}",
                "this rescale has a factor for each channel of the input, and a unit has fewer channels of the output",
            ),
        ),
        phrases={
            "none": ABSENT,
            "spatial": Phrase("a spatial rescale", replaced="a spatial one"),
            "channel": Phrase("a channel rescale", replaced="a channel one"),
            "both": Phrase("a rescale by pixel and channel", replaced="one by pixel and channel"),
            "doubled": Phrase("a doubled rescale by pixel and channel", replaced="a doubled one"),
            "squeeze": Phrase("a squeeze rescale", replaced="a squeeze one"),
            "statistics": Phrase("a rescale by statistics", replaced="one by statistics"),
            "box": Phrase("a box rescale", replaced="a box one"),
        },
    ),
    Factor(
        "start",
        ("scratch", "full", "two_step"),
        "scratch",
        "how the training starts: binary; half of the steps in full precision; half with binary signs and full weights",
        of_unit=False,
        applies="binarize!=[]",
        otherwise="nothing is binary: the whole training is in full precision",
        rules=(
            Rule(
                "start!=scratch and weight in [plain,sign,irnet,recu] "
                "and (bn in [none,pre] or bn=out and residual!=false)",
                "these binary weights are many times larger than the full-precision ones that they follow",
            ),
        ),
        phrases={
            "scratch": ABSENT,
            "full": Phrase("a start in full precision", replaced="one in full precision"),
            "two_step": Phrase("a start with binary signs", replaced="one with binary signs"),
        },
    ),
    Factor(
        "distil",
        ("none", "output", "attention"),
        "none",
        "a full-precision teacher: none; its output; the attention maps of its blocks",
        of_unit=False,
        applies="binarize!=[]",
        otherwise="nothing is binary: a full-precision network is its own teacher",
        phrases={
            "none": ABSENT,
            "output": Phrase("distillation of the output", replaced="that of the output"),
            "attention": Phrase("distillation of attention maps", replaced="that of attention maps"),
        },
    ),
)

FACTORS: dict[str, Factor] = {factor.name: factor for factor in _DECLARED}
"""Every factor by its name, in the order in which they are listed everywhere."""

REFERENCE: dict[str, Level] = {name: factor.reference for name, factor in FACTORS.items()}
"""The reference cell, BBCU: the level of each factor that effects are measured against."""


# --- factors of the user's own ----------------------------------------------------------------------------------------

ENTRY_POINTS = "bbcu.factors"
VARIABLE = "BBCU_FACTORS"


def declare(factor: Factor) -> None:
    """Add a factor; declaring the same one again does nothing.

    Its reference must be what networks did before there was the factor: cells at the reference keep their keys, and so
    their results. Raises ConfigError for a name that another factor has, and for a factor without a ``unit``
    or not ``of_unit``, which would have no effect.
    """
    if FACTORS.get(factor.name) == factor:
        return
    if factor.name in FACTORS:
        raise ConfigError(f"factor {factor.name}: it is declared already")
    if "." not in factor.unit:
        raise ConfigError(f"factor {factor.name}: `unit` must be the dotted path of the unit that implements it")
    if not factor.of_unit:
        raise ConfigError(f"factor {factor.name}: a unit implements it, so it cannot be declared with of_unit=False")
    FACTORS[factor.name] = factor
    REFERENCE[factor.name] = factor.reference


def load_declarations() -> None:
    """Declare the factors of installed packages and of the environment.

    A package names a :class:`Factor` in the entry point group ``bbcu.factors``; ``BBCU_FACTORS=my_module.GAIN,...``
    does the same for a module that is not installed. Every process does it once, the workers of a sweep too. Raises
    ConfigError for one that cannot be imported.
    """
    _load(os.environ.get(VARIABLE, ""))


@functools.cache
def _load(variable: str) -> None:
    paths = [entry.value.replace(":", ".") for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)]
    paths += [path.strip() for path in variable.split(",") if path.strip()]
    for path in paths:
        module, _, name = path.rpartition(".")
        try:
            factor = getattr(importlib.import_module(module), name)
        # A module of the user's own may raise anything, and a script that is imported may exit.
        except (Exception, SystemExit) as error:
            raise ConfigError(f"factor {path}: cannot be imported: {first_line(error)}") from error
        if not isinstance(factor, Factor):
            raise ConfigError(f"factor {path}: it is a {type(factor).__name__}, not a Factor")
        declare(factor)


# --- levels as text ---------------------------------------------------------------------------------------------------


def level_text(level: object) -> str:
    """A level the way a user types it: ``true``, ``post``, ``130``, ``[body,up]``."""
    if isinstance(level, bool) or level is None:
        return "null" if level is None else str(level).lower()
    if isinstance(level, list | tuple):
        return f"[{','.join(map(str, level))}]"
    return f"{level:g}" if isinstance(level, float) else str(level)


def parse_level(name: str, value: object) -> Level:
    """The level of factor ``name`` that a value in a config means.

    Raises ConfigError, which lists the valid levels, for any other value.
    """
    factor = FACTORS[name]
    if factor.members and isinstance(value, list | tuple):
        # A list of parts means the same in any order.
        chosen = tuple(member for member in factor.members if member in value)
        if all(member in chosen for member in value):
            return chosen
    for level in factor.levels:
        if value is level or (isinstance(value, str) and value.lower() == level_text(level)):
            return level
        if is_number(value) and is_number(level) and value == level:
            return level
    # An integer may be larger than any floating-point number.
    if factor.numeric and is_number(value) and 0 < value <= sys.float_info.max:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    if factor.open and isinstance(value, str) and "." in value:
        return value
    try:
        text = shown(level_text(value))
    except (ValueError, RecursionError):
        text = shown(value)
    raise ConfigError(f"{name}={text}: {unknown('level', text, valid_levels(factor))}")


def valid_levels(factor: Factor) -> list[str]:
    """The levels of a factor as a user is told them."""
    if factor.members:
        return [f"any of {', '.join(factor.members)}, as in [{','.join(factor.members[1:3])}]"]
    valid = [level_text(level) for level in factor.levels]
    return valid + ["a positive number"] * factor.numeric + ["the dotted path of a class of your own"] * factor.open
