"""The designs by name: which combinations of a sweep are trained, and in which order.

:mod:`ablations.space.rows` and :mod:`ablations.space.fractions` implement them, each with an example.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ablations.space.factors import level_text
from ablations.space.fractions import fractional
from ablations.space.rows import (
    Row,
    Sweep,
    chain,
    check_count,
    full,
    leave_one_out,
    one_at_a_time,
    random_cells,
    rebased,
)
from bbcu.errors import ConfigError, shown, unknown


@dataclass(frozen=True)
class Listing:
    """The rows of a design, and notes for the user about them.

    ``needs_every_row`` is true of a fraction, whose notes on its aliased effects hold only for the complete fraction.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    needs_every_row: bool = False


Options = Mapping[str, Any]


@dataclass(frozen=True)
class Design:
    """The options of a design, and the function that lists its rows."""

    options: tuple[str, ...]
    listing: Callable[[Sweep, Options], Listing]


def rows_of(design: str, sweep: Sweep, options: Options) -> Listing:
    """List the rows of the design with this name; an option that is None counts as missing.

    ``rows_of("full", {"bn": ["pre", "post"]}, {}).rows`` is ``(("bn=pre",), ("bn=post",))``. Raises ConfigError for an
    unknown design, an unknown option and a missing option.
    """
    if design not in DESIGNS:
        raise ConfigError(f"hydra.sweeper.design={shown(design)}: {unknown('design', design, DESIGNS)}")
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in chosen:
        if name not in DESIGNS[design].options:
            valid = DESIGNS[design].options or ("none",)
            raise ConfigError(f"hydra.sweeper.{name}: {unknown(f'option of design={design}', name, valid)}")
    return DESIGNS[design].listing(sweep, chosen)


def halvings_of(fraction: str) -> int:
    """Return how often a full factorial is halved to get ``fraction``: 2 for ``1/4``."""
    match = re.fullmatch(r"1/([1-9][0-9]{0,9})", fraction.replace(" ", ""))
    denominator = int(match[1]) if match else 0
    if denominator < 2 or denominator.bit_count() != 1:
        raise ConfigError(f"hydra.sweeper.fraction={shown(fraction)}: must be 1/2, 1/4, 1/8, ...")
    return denominator.bit_length() - 1


def _one_at_a_time(sweep: Sweep, options: Options) -> Listing:
    return Listing(tuple(one_at_a_time(_rebased(sweep, options))))


def _leave_one_out(sweep: Sweep, options: Options) -> Listing:
    based = _rebased(sweep, options)
    notes = [
        f"{key}={value} is in no row: leave_one_out has {key} at {values[0]} and at {values[-1]}"
        for key, values in based.items()
        for value in values[1:-1]
    ]
    return Listing(tuple(leave_one_out(based)), tuple(notes))


def _rebased(sweep: Sweep, options: Options) -> dict[str, list[str]]:
    """Return the sweep with the bases of the option ``reference``, whose levels are typed by YAML."""
    reference = options.get("reference", {})
    if not isinstance(reference, Mapping):
        raise ConfigError(f"hydra.sweeper.reference={shown(reference)}: write key and value, as in {{bn: post}}")
    return rebased(sweep, {key: level_text(level) for key, level in reference.items()})


def _chain(sweep: Sweep, options: Options) -> Listing:
    """List the whole chain for every combination of the other keys of the sweep.

    ``{"task": ["sr_x2", "sr_x4"]}`` with ``steps=["act=after align=1", "bn=post"]`` yields ::

        ("task=sr_x2", "act=after", "align=1")
        ("task=sr_x2", "act=after", "align=1", "bn=post")
        ("task=sr_x4", "act=after", "align=1")
        ("task=sr_x4", "act=after", "align=1", "bn=post")
    """
    steps = [step.split() if isinstance(step, str) else step for step in _needed(options, "chain", "steps")]
    for step in steps:
        if not (isinstance(step, list | tuple) and all(isinstance(text, str) for text in step)):
            raise ConfigError(
                f"hydra.sweeper.steps: {shown(step)} is not a step; write changes, as in [bn=none,act=after]"
            )
    if not steps:
        raise ConfigError("hydra.sweeper.steps=[]: a chain has at least one step")
    links = chain(steps)
    for key in (text.partition("=")[0] for text in links[-1]):
        if key in sweep:
            raise ConfigError(f"{key}: the chain sets it, so it cannot also be set or swept")
    check_count(math.prod(map(len, sweep.values())) * len(links))
    return Listing(tuple((*others, *link) for others in full(sweep) for link in links))


def _fractional(sweep: Sweep, options: Options) -> Listing:
    halvings = halvings_of(shown(options["fraction"])) if "fraction" in options else None
    fraction = fractional(sweep, halvings, options.get("generators", ()))
    return Listing(fraction.rows, tuple(fraction.notes()), needs_every_row=True)


def _random(sweep: Sweep, options: Options) -> Listing:
    cells, seed = int(_needed(options, "random", "cells")), int(options.get("seed", 0))
    rows = tuple(random_cells(sweep, cells, seed))
    total = math.prod(map(len, sweep.values()))
    return Listing(rows, (f"{len(rows)} of {total} combinations, drawn with seed {seed}",))


def _needed(options: Options, design: str, name: str) -> Any:
    if name not in options:
        raise ConfigError(f"hydra.sweeper.design={design} needs hydra.sweeper.{name}")
    return options[name]


DESIGNS: dict[str, Design] = {
    "full": Design((), lambda sweep, _: Listing(tuple(full(sweep)))),
    "one_at_a_time": Design(("reference",), _one_at_a_time),
    "leave_one_out": Design(("reference",), _leave_one_out),
    "chain": Design(("steps",), _chain),
    "fractional": Design(("fraction", "generators"), _fractional),
    "random": Design(("cells", "seed"), _random),
}
"""Every design by its name; ``docs/designs.md`` says which question each answers."""
