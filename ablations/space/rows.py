"""Lists of the combinations of a sweep: every one, one change at a time, a chain, a random draw."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence

from bbcu.errors import ConfigError, unknown

Sweep = Mapping[str, Sequence[str]]
Row = tuple[str, ...]
"""One combination: ``("residual=true", "bn=pre")``."""


def full(sweep: Sweep) -> list[Row]:
    """The full factorial: every choice of one value for each key, the last key varying fastest.

    ``{"residual": ["true", "false"], "bn": ["pre", "post"]}`` yields ::

        ("residual=true", "bn=pre")
        ("residual=true", "bn=post")
        ("residual=false", "bn=pre")
        ("residual=false", "bn=post")
    """
    assignments = [[f"{key}={value}" for value in values] for key, values in sweep.items()]
    return list(itertools.product(*assignments))


def one_at_a_time(sweep: Sweep) -> list[Row]:
    """The base, and every other value of every key alone, key by key.

    One row and one for each value after the first. It cannot see that two changes together are worth more or less than
    each alone. ``{"residual": ["true", "false", "block"], "bn": ["none", "post"]}`` yields ::

        ("residual=true", "bn=none")
        ("residual=false", "bn=none")
        ("residual=block", "bn=none")
        ("residual=true", "bn=post")
    """
    base = _base_of(sweep)
    changes = [(key, value) for key, values in sweep.items() for value in values[1:]]
    return [_row_of(base), *(_row_of({**base, key: value}) for key, value in changes)]


def leave_one_out(sweep: Sweep) -> list[Row]:
    """The complete method, and the method without each component: every key alone at its last value.

    A component is there at the first value of its key and gone at the last; values between them are other forms of it,
    not its absence, and no row has them. One row and one for each key that varies, whatever their number of values.
    ``{"residual": ["true", "block", "false"], "threshold": ["true", "false"]}`` yields ::

        ("residual=true", "threshold=true")
        ("residual=false", "threshold=true")
        ("residual=true", "threshold=false")
    """
    return one_at_a_time({key: [values[0], *values[1:][-1:]] for key, values in _lists(sweep).items()})


def chain(steps: Sequence[Sequence[str]]) -> list[Row]:
    """Changes one after the other, each kept; the keys of a row in the order in which the steps name them.

    What a change is worth depends on those before it: another order of the steps is another chain.
    ``[["act=after", "align=1"], ["bn=post"], ["bn=none", "align=auto"]]`` yields ::

        ("act=after", "align=1")
        ("act=after", "align=1", "bn=post")
        ("act=after", "align=auto", "bn=none")

    Raises ConfigError for a text that is no ``key=value`` and for a step behind the first that changes nothing.
    """
    rows: list[Row] = []
    so_far: dict[str, str] = {}
    for number, step in enumerate(steps, start=1):
        changes = _changes_of(number, step)
        if rows and all(so_far.get(key) == value for key, value in changes.items()):
            raise ConfigError(f"step {number} of the chain changes nothing: {' '.join(step) or 'it is empty'}")
        so_far |= changes
        rows.append(_row_of(so_far))
    return rows


def random_cells(sweep: Sweep, cells: int, seed: int) -> list[Row]:
    """As many different combinations as ``cells``, drawn without bias; all of them, shuffled, where there are fewer.

    The first rows of a longer list are those of a shorter one, so asking for more keeps what is trained already.
    Nothing but the rows drawn is ever listed: a combination is a number, and its digits are the values. The draw is a
    Fisher-Yates shuffle over ``random.Random(seed).random()``, the one sequence that Python promises to keep.

    Raises ConfigError for less than one cell and for a negative seed.
    """
    if cells < 1 or seed < 0:
        raise ConfigError(
            f"random: {cells} cells under seed {seed}: at least 1 cell and a seed of at least 0 are needed"
        )
    lists = _lists(sweep)
    total = math.prod(len(values) for values in lists.values())
    uniform = random.Random(seed).random
    moved: dict[int, int] = {}
    rows = []
    for place in range(min(cells, total)):
        drawn = place + int(uniform() * (total - place))
        rows.append(_combination(lists, moved.get(drawn, drawn)))
        moved[drawn] = moved.get(place, place)
    return rows


def replicated(rows: Sequence[Row], replicates: int) -> list[tuple[int, Row]]:
    """Every row under each replicate, a whole replicate before the next begins.

    A sweep that is cut short then leaves whole replicates, which can be compared.
    """
    return [(replicate, row) for replicate in range(replicates) for row in rows]


def rebased(sweep: Sweep, reference: Mapping[str, str]) -> dict[str, list[str]]:
    """The sweep with the value that ``reference`` names first, as the base of its key, listed already or not.

    Raises ConfigError for a reference to a key that the sweep does not have.
    """
    for key in reference:
        if key not in sweep:
            raise ConfigError(f"reference: {unknown('key of the sweep', key, sweep)}")
    lists = {key: list(values) for key, values in sweep.items()}
    for key, base in reference.items():
        lists[key] = [base, *(value for value in lists[key] if value.lower() != base.lower())]
    return lists


def _row_of(values: Mapping[str, str]) -> Row:
    return tuple(f"{key}={value}" for key, value in values.items())


def _lists(sweep: Sweep) -> dict[str, list[str]]:
    """Each key's values; raises ConfigError for a key that has none."""
    for key, values in sweep.items():
        if not values:
            raise ConfigError(f"{key}: no value to choose from")
    return {key: list(values) for key, values in sweep.items()}


def _base_of(sweep: Sweep) -> dict[str, str]:
    return {key: values[0] for key, values in _lists(sweep).items()}


def _changes_of(number: int, step: Sequence[str]) -> dict[str, str]:
    """The values that a step sets."""
    changes: dict[str, str] = {}
    for text in step:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"step {number} of the chain: {text!r} is no change; write key=value")
        if key in changes:
            raise ConfigError(f"step {number} of the chain sets {key} twice")
        changes[key] = value
    return changes


def _combination(lists: Mapping[str, Sequence[str]], number: int) -> Row:
    """The row at place ``number`` of the full factorial."""
    row = []
    for key in reversed(list(lists)):
        number, digit = divmod(number, len(lists[key]))
        row.append(f"{key}={lists[key][digit]}")
    return tuple(reversed(row))
