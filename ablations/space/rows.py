"""List the rows of each design: every combination, one change at a time, a chain of changes, a random sample.

A sweep maps each key to the texts of its values as typed on the command line. The first value of a key is its base,
with which the others are compared.
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence

from bbcu.errors import ConfigError, shown, unknown

Sweep = Mapping[str, Sequence[str]]
Row = tuple[str, ...]
"""One combination: ``("residual=true", "bn=pre")``."""

MAX_ROWS = 200_000
"""The most rows of a design, and trials of a sweep: the whole space of factors has fewer combinations."""


def full(sweep: Sweep) -> list[Row]:
    """List the full factorial: every choice of one value for each key, the last key varying fastest.

    ``{"residual": ["true", "false"], "bn": ["pre", "post"]}`` yields ::

        ("residual=true", "bn=pre")
        ("residual=true", "bn=post")
        ("residual=false", "bn=pre")
        ("residual=false", "bn=post")

    Raises ConfigError for more than MAX_ROWS.
    """
    check_count(math.prod(map(len, sweep.values())))
    return list(itertools.product(*([f"{key}={value}" for value in values] for key, values in sweep.items())))


def one_at_a_time(sweep: Sweep) -> list[Row]:
    """List the base, then every other value of every key, changed alone.

    These rows cannot show interactions.
    ``{"residual": ["true", "false", "block"], "bn": ["none", "post"]}`` yields ::

        ("residual=true", "bn=none")
        ("residual=false", "bn=none")
        ("residual=block", "bn=none")
        ("residual=true", "bn=post")
    """
    check_values(sweep)
    base = {key: values[0] for key, values in sweep.items()}
    changes = [(key, value) for key, values in sweep.items() for value in values[1:]]
    return [row_of(base), *(row_of({**base, key: value}) for key, value in changes)]


def leave_one_out(sweep: Sweep) -> list[Row]:
    """List the complete method, then the method without each component: every key alone at its last value.

    The first value of a key has the component, and the last does not. Values between them are other forms of the
    component and are in no row. ``{"residual": ["true", "block", "false"], "threshold": ["true", "false"]}`` yields ::

        ("residual=true", "threshold=true")
        ("residual=false", "threshold=true")
        ("residual=true", "threshold=false")
    """
    return one_at_a_time({key: [*values[:1], *values[1:][-1:]] for key, values in sweep.items()})


def chain(steps: Sequence[Sequence[str]]) -> list[Row]:
    """List the cumulative results of changes; keys are in the order in which the steps name them.

    The effect of a change depends on those before it, so the same steps in a different order are a different chain.
    ``[["act=after", "align=1"], ["bn=post"], ["bn=none", "align=auto"]]`` yields ::

        ("act=after", "align=1")
        ("act=after", "align=1", "bn=post")
        ("act=after", "align=auto", "bn=none")

    Raises ConfigError for a text that is not a ``key=value`` and for a later step that changes nothing.
    """
    rows: list[Row] = []
    values: dict[str, str] = {}
    for number, step in enumerate(steps, start=1):
        changes: dict[str, str] = {}
        for text in step:
            key, equals, value = text.partition("=")
            if not (key and equals):
                raise ConfigError(f"step {number} of the chain: {text!r} is not a change; write key=value")
            if key in changes:
                raise ConfigError(f"step {number} of the chain sets {key} twice")
            changes[key] = value
        if rows and all(values.get(key) == value for key, value in changes.items()):
            raise ConfigError(f"step {number} of the chain changes nothing: {' '.join(step) or 'it is empty'}")
        values |= changes
        rows.append(row_of(values))
    return rows


def random_cells(sweep: Sweep, cells: int, seed: int) -> list[Row]:
    """Draw this many different combinations without bias; if there are fewer, return all of them, shuffled.

    More cells under the same seed begin with the same rows, so nothing is trained twice. Three cells of
    ``{"residual": ["true", "false", "block"], "bn": ["none", "pre"]}`` under seed 0 are ::

        ("residual=block", "bn=pre")
        ("residual=block", "bn=none")
        ("residual=false", "bn=pre")

    This is a Fisher-Yates shuffle of the row numbers of ``full``, which are never listed. It uses ``Random.random``
    alone, the only sequence that Python keeps the same in all versions. Raises ConfigError for less than one cell and
    for a negative seed.
    """
    if cells < 1 or seed < 0:
        raise ConfigError(f"random: {cells} cells with seed {seed}: needs at least 1 cell and a seed of at least 0")
    check_values(sweep)
    total = math.prod(map(len, sweep.values()))
    uniform = random.Random(seed).random
    moved: dict[int, int] = {}
    rows = []
    for place in range(min(cells, total)):
        drawn = place + int(uniform() * (total - place))
        rows.append(_row_at(sweep, moved.get(drawn, drawn)))
        moved[drawn] = moved.get(place, place)
    return rows


def rebased(sweep: Sweep, reference: Mapping[str, str]) -> dict[str, list[str]]:
    """Move the value that ``reference`` names for a key to the front as its base; add it if the sweep lacks it.

    Raises ConfigError for a key that the sweep does not have.
    """
    for key in reference:
        if key not in sweep:
            raise ConfigError(f"reference: {unknown('key of the sweep', key, sweep)}")
    lists = {key: list(values) for key, values in sweep.items()}
    for key, base in reference.items():
        lists[key] = [base, *(value for value in lists[key] if value.lower() != base.lower())]
    return lists


def row_of(values: Mapping[str, str]) -> Row:
    """Return ``{"residual": "true", "bn": "pre"}`` as ``("residual=true", "bn=pre")``."""
    return tuple(f"{key}={value}" for key, value in values.items())


def check_count(rows: int) -> None:
    """Raise ConfigError for more rows than a sweep may have."""
    if rows > MAX_ROWS:
        raise ConfigError(
            f"{shown(rows)} combinations: a sweep has at most {MAX_ROWS}; choose fewer values, or the design random or "
            "search"
        )


def check_values(sweep: Sweep) -> None:
    """Raise ConfigError for a key that has no values."""
    for key, values in sweep.items():
        if not values:
            raise ConfigError(f"{key}: no value to choose from")


def _row_at(sweep: Sweep, number: int) -> Row:
    """Return the row with this index in ``full(sweep)``."""
    texts = []
    for key in reversed(list(sweep)):
        number, place = divmod(number, len(sweep[key]))
        texts.append(f"{key}={sweep[key][place]}")
    return tuple(reversed(texts))
