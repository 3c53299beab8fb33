"""Regular two-level fractions of a full factorial, and the effects that each aliases.

An effect is written as the product of its factors: ``residual*bn`` is the interaction of the two. In this file it is a
bit mask over the factors, so the product of two effects is their exclusive or. A *word* is an effect that is constant
over the rows of a fraction: ``A*B*C`` if C is generated as ``C=A*B``.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ablations.space.rows import Row, Sweep, check_values, row_of
from bbcu.errors import ConfigError, unknown

MAX_SEARCHED = 11
"""The largest number of factors for which generators are searched; that takes two seconds, one more factor twenty."""

MAX_FACTORS = 16
"""The largest number of factors for which effects are listed; each further factor doubles their number."""

MIN_RESOLUTION = 3
"""With a lower resolution main effects are aliased with each other, which is useless for an ablation."""

ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII", "XIV", "XV", "XVI")


@dataclass(frozen=True)
class Fraction:
    """A regular two-level fraction of a full factorial, and the effects that it aliases.

    ``generators`` define the factors that are not varied freely; ``defining_relation`` has every word; each entry of
    ``aliases`` has effects of which only the sum can be estimated.
    """

    rows: tuple[Row, ...]
    generators: tuple[str, ...]
    defining_relation: tuple[str, ...]
    resolution: int
    aliases: tuple[tuple[str, ...], ...]

    def notes(self) -> list[str]:
        """Describe the fraction, for the terminal and ``plan.json``.

        Effects of as many factors as the resolution, or more, are assumed to be zero and are not listed.
        """
        if self.resolution == 3:
            confused = "main effects are confused with interactions of two factors"
        elif self.resolution == 4:
            confused = "main effects are clear of interactions of two factors, which are confused with one another"
        else:
            confused = "main effects and interactions of two factors are clear of one another"
        lines = [
            f"{len(self.rows)} rows, resolution {ROMAN[self.resolution]}: {confused}",
            f"generators: {', '.join(self.generators)}",
            f"defining relation: I = {' = '.join(self.defining_relation)}",
        ]
        shown = [
            [effect for effect in together if effect.count("*") + 1 < self.resolution] for together in self.aliases
        ]
        return lines + [f"estimated together: {' = '.join(effects)}" for effects in shown if len(effects) > 1]


def fractional(sweep: Sweep, halvings: int | None = None, generators: Sequence[str] = ()) -> Fraction:
    """Return a regular fraction of the keys with two values, halved ``halvings`` times or with these ``generators``.

    A generator is a text such as ``threshold=residual*bn*act``: threshold is at its first value if an even number of
    the three is at its second. ``{"A": ["1", "2"], "B": ["1", "2"], "C": ["1", "2"]}``, halved once, is ``C=A*B`` ::

        ("A=1", "B=1", "C=1")
        ("A=1", "B=2", "C=2")
        ("A=2", "B=1", "C=2")
        ("A=2", "B=2", "C=1")

    Without generators the last keys are generated from the others with minimum aberration: the highest resolution, then
    the fewest shortest words. The row of all first values is always included. Sources: Box and Hunter, Technometrics
    1961; Fries and Hunter, Technometrics 1980.

    Raises ConfigError for a key with three values or more, and if main effects would be aliased.
    """
    check_values(sweep)
    factors = [key for key, values in sweep.items() if len(values) > 1]
    for key in factors:
        if len(set(sweep[key])) != 2:
            raise ConfigError(f"fractional: {key} has the values {', '.join(sweep[key])}; a fraction needs two each")
    if len(factors) > MAX_FACTORS:
        raise ConfigError(f"fractional: {len(factors)} factors with two values are more than {MAX_FACTORS}")
    if (halvings is None) == (not generators):
        raise ConfigError("fractional: set either the fraction, as in 1/4, or generators, as in threshold=residual*bn")
    words = _words_of(factors, generators) if halvings is None else _best_words(factors, halvings)
    group = sorted(_group(words.values()), key=_rank)
    resolution = group[0].bit_count()
    if resolution < MIN_RESOLUTION:
        raise ConfigError(f"fractional: {_text(factors, group[0])} is constant, so main effects are aliased")
    return Fraction(
        rows=_fraction_rows(sweep, factors, words.values()),
        generators=tuple(f"{factors[place]}={_text(factors, word ^ 1 << place)}" for place, word in words.items()),
        defining_relation=tuple(_text(factors, word) for word in group),
        resolution=resolution,
        aliases=_aliases(factors, group),
    )


def _rank(effect: int) -> tuple[int, list[int]]:
    """Return a sort key: effects of few factors first, then effects of early factors."""
    return effect.bit_count(), [place for place in range(effect.bit_length()) if effect >> place & 1]


def _text(factors: Sequence[str], effect: int) -> str:
    return "*".join(factor for place, factor in enumerate(factors) if effect >> place & 1)


def _group(words: Iterable[int]) -> list[int]:
    """Return every product of the words, which is every word of the fraction."""
    group: list[int] = []
    for word in words:
        group += [word, *(word ^ other for other in group)]
    return group


def _words_of(factors: Sequence[str], generators: Sequence[str]) -> dict[int, int]:
    """Return the word of each generator by the index of the factor that it defines.

    Raises ConfigError for a text that is not a generator of these factors.
    """
    defined = [text.partition("=")[0].strip() for text in generators]
    words: dict[int, int] = {}
    for name, text in zip(defined, generators, strict=True):
        _, equals, product = text.partition("=")
        if not equals:
            raise ConfigError(f"generator {text!r}: write a factor and its product, as in threshold=residual*bn")
        parents = [parent.strip() for parent in product.split("*")]
        for factor in (name, *parents):
            if factor not in factors:
                raise ConfigError(f"generator {text!r}: {unknown('factor with two values', factor, factors)}")
            if factor in defined and factor in parents:
                raise ConfigError(f"generator {text!r}: {factor} is itself defined by a generator")
        if defined.count(name) > 1 or len(set(parents)) < len(parents):
            raise ConfigError(f"generator {text!r}: a factor is named twice")
        words[factors.index(name)] = sum(1 << factors.index(factor) for factor in (name, *parents))
    return words


def _best_words(factors: Sequence[str], halvings: int) -> dict[int, int]:
    """Return the words of the generators of minimum aberration by the indices of the last factors, which they define.

    Raises ConfigError if main effects are aliased in every fraction of that size.
    """
    most = max((p for p in range(len(factors)) if len(factors) < 2 ** (len(factors) - p)), default=0)
    if not 1 <= halvings <= most:
        sizes = ", ".join(f"1/{2**p}" for p in range(1, most + 1)) or "none"
        raise ConfigError(
            f"fractional: 1/{2 ** max(halvings, 0)} of {len(factors)} factors with two values ({', '.join(factors)}) "
            f"would alias their main effects; possible: {sizes}"
        )
    if len(factors) > MAX_SEARCHED:
        raise ConfigError(f"fractional: {len(factors)} factors are more than {MAX_SEARCHED}; write the generators")
    free = len(factors) - halvings
    return {free + place: product | 1 << free + place for place, product in enumerate(_best_products(free, halvings))}


def _best_products(free: int, halvings: int) -> tuple[int, ...]:
    """Return the products of ``free`` factors that, as generators, make the fewest short words: a depth-first search.

    Words only accumulate, so a choice that already has as many short words as the best one is not extended. Longer
    products are tried first. The first product need only be the first of its length: renaming factors turns any
    other one into it.
    """
    products = sorted((mask for mask in range(1 << free) if mask.bit_count() > 1), key=lambda p: (-p.bit_count(), p))
    first_of_length = {product.bit_count(): product for product in reversed(products)}
    best: tuple[int, ...] = ()
    fewest: list[int] | None = None
    stack: list[tuple[tuple[int, ...], list[int], int]] = [((), [], 0)]
    while stack:
        chosen, words, start = stack.pop()
        lengths = [word.bit_count() for word in words]
        counts = [lengths.count(length) for length in range(MIN_RESOLUTION, free + halvings + 1)]
        if fewest is not None and counts >= fewest:
            continue
        if len(chosen) == halvings:
            best, fewest = chosen, counts
            continue
        for place in reversed(range(start, len(products) - (halvings - len(chosen)) + 1)):
            product = products[place]
            if chosen or first_of_length[product.bit_count()] == product:
                word = product | 1 << free + len(chosen)
                stack.append(((*chosen, product), [*words, word, *(word ^ other for other in words)], place + 1))
    return best


def _fraction_rows(sweep: Sweep, factors: Sequence[str], words: Iterable[int]) -> tuple[Row, ...]:
    """Return the rows of the full factorial, in its order, in which every word has an even number of second values."""
    rows = []
    for places in itertools.product((0, 1), repeat=len(factors)):
        seconds = sum(place << factor for factor, place in enumerate(places))
        if all((seconds & word).bit_count() % 2 == 0 for word in words):
            chosen = dict(zip(factors, places, strict=True))
            rows.append(row_of({key: values[chosen.get(key, 0)] for key, values in sweep.items()}))
    return tuple(rows)


def _aliases(factors: Sequence[str], group: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return every set of effects that are estimated together, those with the fewest factors first."""
    seen = set(group)
    aliases = []
    for effect in sorted(range(1, 1 << len(factors)), key=_rank):
        if effect not in seen:
            together = sorted((effect, *(effect ^ word for word in group)), key=_rank)
            seen.update(together)
            aliases.append(tuple(_text(factors, alias) for alias in together))
    return tuple(aliases)
