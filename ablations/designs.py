"""Designs: the rules that list which combinations of a sweep are trained, and in which order.

Pure functions over the texts that stand on a command line; what the texts mean is settled when a config is composed.
A sweep maps each key to the texts of its values. The first value of a key is its base, the one that the others are
compared with; a key with a single value is set and not varied.
"""

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablations.space import level_text
from bbcu.errors import ConfigError, unknown

Sweep = Mapping[str, Sequence[str]]
Row = tuple[str, ...]
"""One combination: ``("residual=true", "bn=pre")``."""


# --- lists of rows ----------------------------------------------------------------------------------------------------


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


# --- regular two-level fractions --------------------------------------------------------------------------------------

MOST_SEARCHED = 11
"""Factors up to which the best generators are searched for: two seconds at most, and ten times that for one more."""

MOST_FACTORS = 16
"""Factors up to which effects are listed; each factor more doubles them."""

LEAST_RESOLUTION = 3
"""Below it a main effect cannot be told from another, which is no answer to any question of an ablation."""

ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")


@dataclass(frozen=True)
class Fraction:
    """A regular two-level fraction of a full factorial, and what it cannot tell apart.

    An effect is written as the product of its factors: ``residual*bn`` is the interaction of the two. ``generators``
    say how each further factor follows from the others, ``defining_relation`` has every product that is constant over
    the rows, and each entry of ``aliases`` the effects that one contrast of the rows estimates together.
    """

    rows: tuple[Row, ...]
    generators: tuple[str, ...]
    defining_relation: tuple[str, ...]
    resolution: int
    aliases: tuple[tuple[str, ...], ...]

    def alias_lines(self) -> list[str]:
        """The fraction in words, to print and to record.

        Effects of as many factors as the resolution, or more, are assumed to be nothing and are not listed.
        """
        numeral = ROMAN[self.resolution] if self.resolution < len(ROMAN) else str(self.resolution)
        lines = [
            f"{len(self.rows)} rows, resolution {numeral}: {_what_is_confused(self.resolution)}",
            f"generators: {', '.join(self.generators)}",
            f"defining relation: I = {' = '.join(self.defining_relation)}",
        ]
        shown = [[effect for effect in effects if _order(effect) < self.resolution] for effects in self.aliases]
        return lines + [f"estimated together: {' = '.join(effects)}" for effects in shown if len(effects) > 1]


def fractional(sweep: Sweep, halvings: int | None = None, generators: Sequence[str] = ()) -> Fraction:
    """The regular fraction of the keys with two values, halved as often as asked or by ``generators``.

    ``generators`` are texts as ``"threshold=residual*bn*act"``: threshold is at its first value where an even number of
    the three is at its second. Without them, the last keys follow from the first ones by the generators of minimum
    aberration: the highest resolution, then the fewest shortest words. The row of all first values is always in.
    Source: Box and Hunter, Technometrics 1961; Fries and Hunter, Technometrics 1980.

    Raises ConfigError for a key with three values or more, and where main effects could not be told apart.
    """
    lists = _lists(sweep)
    factors = [key for key, values in lists.items() if len(values) > 1]
    for key in factors:
        if len(set(lists[key])) != 2:
            raise ConfigError(f"fractional: {key} has the values {', '.join(lists[key])}; a fraction needs two each")
    if len(factors) > MOST_FACTORS:
        raise ConfigError(f"fractional: {len(factors)} factors with two values are more than {MOST_FACTORS}")
    if (halvings is None) == (not generators):
        raise ConfigError("fractional: give either the fraction, as in 1/4, or generators, as in threshold=residual*bn")
    words = _words_of(factors, generators) if halvings is None else _best_words(factors, halvings)
    group = _group(words.values())
    resolution = min(word.bit_count() for word in group)
    if resolution < LEAST_RESOLUTION:
        shortest = min(group, key=_rank)
        raise ConfigError(f"fractional: {_text(factors, shortest)} is constant, so main effects cannot be told apart")
    return Fraction(
        rows=_fraction_rows(lists, factors, words),
        generators=tuple(f"{factors[place]}={_text(factors, word ^ 1 << place)}" for place, word in words.items()),
        defining_relation=tuple(_text(factors, word) for word in sorted(group, key=_rank)),
        resolution=resolution,
        aliases=_aliases(factors, group),
    )


# An effect, or a word, is a bit mask over the factors, so that the product of two is their exclusive or.


def _what_is_confused(resolution: int) -> str:
    if resolution == LEAST_RESOLUTION:
        return "main effects are confused with interactions of two factors"
    if resolution == LEAST_RESOLUTION + 1:
        return "main effects are clear of interactions of two factors, which are confused with one another"
    return "main effects and interactions of two factors are clear of one another"


def _order(effect: str) -> int:
    return effect.count("*") + 1


def _rank(word: int) -> tuple[int, list[int]]:
    """Sorts effects of few factors first, and early factors before late ones."""
    return word.bit_count(), [place for place in range(word.bit_length()) if word >> place & 1]


def _text(factors: Sequence[str], word: int) -> str:
    return "*".join(factor for place, factor in enumerate(factors) if word >> place & 1)


def _group(words: Iterable[int]) -> list[int]:
    """Every product of the words: the words that are constant over a fraction."""
    group: list[int] = []
    for word in words:
        group += [word, *(word ^ other for other in group)]
    return group


def _words_of(factors: Sequence[str], generators: Sequence[str]) -> dict[int, int]:
    """The word of each generator, by the place of the factor that it defines.

    Raises ConfigError for a text that is no generator of these factors.
    """
    sides = [(name.strip(), equals, product) for name, equals, product in (text.partition("=") for text in generators)]
    defined = [name for name, _, _ in sides]
    words: dict[int, int] = {}
    for (name, equals, product), text in zip(sides, generators, strict=True):
        parents = [parent.strip() for parent in product.split("*")]
        for factor in (name, *parents):
            if not equals:
                raise ConfigError(f"generator {text!r}: write a factor and its product, as in threshold=residual*bn")
            if factor not in factors:
                raise ConfigError(f"generator {text!r}: {unknown('factor with two values', factor, factors)}")
            if factor in defined and factor in parents:
                raise ConfigError(f"generator {text!r}: {factor} is itself defined by a generator")
        if defined.count(name) > 1 or len(set(parents)) < len(parents):
            raise ConfigError(f"generator {text!r}: a factor is named twice")
        words[factors.index(name)] = sum(1 << factors.index(factor) for factor in (name, *parents))
    return words


def _best_words(factors: Sequence[str], halvings: int) -> dict[int, int]:
    """The words of the generators of minimum aberration; the last factors are the defined ones.

    Raises ConfigError where no fraction of that size keeps main effects apart.
    """
    most = max((p for p in range(len(factors)) if len(factors) < 2 ** (len(factors) - p)), default=0)
    if not 1 <= halvings <= most:
        sizes = ", ".join(f"1/{2**p}" for p in range(1, most + 1)) or "none"
        raise ConfigError(
            f"fractional: 1/{2 ** max(halvings, 0)} of {len(factors)} factors with two values ({', '.join(factors)}) "
            f"cannot keep their main effects apart; possible: {sizes}"
        )
    if len(factors) > MOST_SEARCHED:
        raise ConfigError(f"fractional: {len(factors)} factors are more than {MOST_SEARCHED}; write the generators")
    base = len(factors) - halvings
    return {base + place: column | 1 << base + place for place, column in enumerate(_best_columns(base, halvings))}


def _best_columns(base: int, halvings: int) -> tuple[int, ...]:
    """The columns of ``base`` factors whose generators have the least pattern of word lengths, by exhaustion.

    Words only accumulate, so a choice whose pattern is no better than the best is given up with all that extends it.
    Columns are tried longest first, and the first of a choice is the first of its length: any other first column comes
    to that by renaming factors.
    """
    columns = sorted((mask for mask in range(1 << base) if mask.bit_count() > 1), key=lambda c: (-c.bit_count(), c))
    leaders = {column.bit_count(): column for column in reversed(columns)}
    best: tuple[int, ...] = ()
    least: list[int] | None = None
    open_choices: list[tuple[tuple[int, ...], list[int], int]] = [((), [], 0)]
    while open_choices:
        chosen, words, start = open_choices.pop()
        lengths = [word.bit_count() for word in words]
        pattern = [lengths.count(length) for length in range(LEAST_RESOLUTION, base + halvings + 1)]
        if least is not None and pattern >= least:
            continue
        if len(chosen) == halvings:
            best, least = chosen, pattern
            continue
        for place in reversed(range(start, len(columns) - (halvings - len(chosen)) + 1)):
            column = columns[place]
            if chosen or leaders[column.bit_count()] == column:
                word = column | 1 << base + len(chosen)
                longer = [*words, word, *(word ^ other for other in words)]
                open_choices.append(((*chosen, column), longer, place + 1))
    return best


def _fraction_rows(
    lists: Mapping[str, Sequence[str]], factors: Sequence[str], words: Mapping[int, int]
) -> tuple[Row, ...]:
    """The rows, the last factor that no generator defines varying fastest."""
    free = [place for place in range(len(factors)) if place not in words]
    rows = []
    for choice in itertools.product((0, 1), repeat=len(free)):
        seconds = sum(second << place for place, second in zip(free, choice, strict=True))
        seconds |= sum(((seconds & word).bit_count() & 1) << place for place, word in words.items())
        digits = {factor: seconds >> place & 1 for place, factor in enumerate(factors)}
        rows.append(_row_of({key: values[digits.get(key, 0)] for key, values in lists.items()}))
    return tuple(rows)


def _aliases(factors: Sequence[str], group: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """The effects that are estimated together, each set once, those of the fewest factors first."""
    seen = set(group)
    aliases = []
    for effect in sorted(range(1, 1 << len(factors)), key=_rank):
        if effect not in seen:
            together = sorted((effect, *(effect ^ word for word in group)), key=_rank)
            seen.update(together)
            aliases.append(tuple(_text(factors, alias) for alias in together))
    return tuple(aliases)


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
