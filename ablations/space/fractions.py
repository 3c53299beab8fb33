"""Regular two-level fractions of a full factorial, and which effects each confuses."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ablations.space.rows import Row, Sweep, _lists, _row_of
from bbcu.errors import ConfigError, unknown

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
