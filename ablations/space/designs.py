"""Designs: the rules that list which combinations of a sweep are trained, and in which order.

Pure functions over the texts that stand on a command line; what the texts mean is settled when a config is composed.
A sweep maps each key to the texts of its values. The first value of a key is its base, the one that the others are
compared with; a key with a single value is set and not varied.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ablations.space.factors import level_text
from ablations.space.fractions import fractional
from ablations.space.rows import Row, Sweep, chain, full, leave_one_out, one_at_a_time, random_cells, rebased
from bbcu.errors import ConfigError, unknown

# --- designs by name --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """The rows of a design and what is to be said of them.

    ``whole`` says that the design answers nothing when a row is missing, as a fraction does: its effects would be mixed
    in another way than ``notes`` says.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Design:
    """A way to list rows: the question that it answers, and the options that it takes."""

    question: str
    options: tuple[str, ...]
    listing: Callable[[Sweep, Mapping[str, Any]], Listing]


def rows_of(design: str, sweep: Sweep, options: Mapping[str, Any]) -> Listing:
    """The rows of the design called ``design``; an option that is None was not given.

    Raises ConfigError for an unknown design, an option that it does not take and one that it lacks.
    """
    if design not in DESIGNS:
        raise ConfigError(f"hydra.sweeper.design={design}: {unknown('design', design, DESIGNS)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in DESIGNS[design].options:
            valid = DESIGNS[design].options or ("none",)
            raise ConfigError(f"hydra.sweeper.{name}: {unknown(f'option of design={design}', name, valid)}")
    return DESIGNS[design].listing(sweep, given)


def halvings_of(fraction: str) -> int:
    """How often a factorial is halved to come to ``fraction``: 2 for ``1/4``."""
    match = re.fullmatch(r"1/([1-9][0-9]*)", fraction.replace(" ", ""))
    denominator = int(match[1]) if match else 0
    if denominator < 2 or denominator.bit_count() != 1:
        raise ConfigError(f"hydra.sweeper.fraction={fraction}: must be 1/2, 1/4, 1/8, ...")
    return denominator.bit_length() - 1


def _list_full(sweep: Sweep, options: Mapping[str, Any]) -> Listing:
    return Listing(tuple(full(sweep)))


def _list_one_at_a_time(sweep: Sweep, options: Mapping[str, Any]) -> Listing:
    return Listing(tuple(one_at_a_time(_rebased_as_asked(sweep, options))))


def _list_leave_one_out(sweep: Sweep, options: Mapping[str, Any]) -> Listing:
    based = _rebased_as_asked(sweep, options)
    notes = [
        f"{key}={value} is in no row: leave_one_out has {key} at {values[0]} and at {values[-1]}"
        for key, values in based.items()
        for value in values[1:-1]
    ]
    return Listing(tuple(leave_one_out(based)), tuple(notes))


def _rebased_as_asked(sweep: Sweep, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """The sweep against the option's reference, whose levels a config holds as truth values, numbers and lists."""
    reference = options.get("reference", {})
    if not isinstance(reference, Mapping):
        raise ConfigError(f"hydra.sweeper.reference={reference}: write key and value, as in {{bn: post}}")
    return rebased(sweep, {key: level_text(level) for key, level in reference.items()})


def _list_chain(sweep: Sweep, options: Mapping[str, Any]) -> Listing:
    """The whole chain under every combination of what the sweep varies beside it."""
    steps = [step.split() if isinstance(step, str) else step for step in _needed(options, "chain", "steps")]
    if not steps:
        raise ConfigError("hydra.sweeper.steps=[]: a chain has at least one step")
    links = chain(steps)
    for key in dict.fromkeys(change.partition("=")[0] for link in links for change in link):
        if key in sweep:
            raise ConfigError(f"{key}: the chain sets it, so it cannot be set or swept beside")
    return Listing(tuple((*around, *link) for around in full(sweep) for link in links))


def _list_fractional(sweep: Sweep, options: Mapping[str, Any]) -> Listing:
    halvings = halvings_of(str(options["fraction"])) if "fraction" in options else None
    fraction = fractional(sweep, halvings, options.get("generators", ()))
    return Listing(fraction.rows, tuple(fraction.alias_lines()), whole=True)


def _list_random(sweep: Sweep, options: Mapping[str, Any]) -> Listing:
    cells, seed = int(_needed(options, "random", "cells")), int(options.get("seed", 0))
    rows = tuple(random_cells(sweep, cells, seed))
    total = math.prod(len(values) for values in sweep.values())
    return Listing(rows, (f"{len(rows)} of {total} combinations, drawn with seed {seed}",))


def _needed(options: Mapping[str, Any], design: str, name: str) -> Any:
    if name not in options:
        raise ConfigError(f"hydra.sweeper.design={design} needs hydra.sweeper.{name}")
    return options[name]


DESIGNS: dict[str, Design] = {
    "full": Design("What is every combination worth, and which changes interact?", (), _list_full),
    "one_at_a_time": Design("What is each level worth against the base?", ("reference",), _list_one_at_a_time),
    "leave_one_out": Design("What does the method lose without each component?", ("reference",), _list_leave_one_out),
    "chain": Design("What did each of these changes add, in this order?", ("steps",), _list_chain),
    "fractional": Design(
        "Which of many components matter, at a fraction of the cells?", ("fraction", "generators"), _list_fractional
    ),
    "random": Design("What does a space look like that is too large to list?", ("cells", "seed"), _list_random),
}
