"""Conditions on cells, as a user writes them to leave combinations out; they are parsed, never run.

    residual=false and bn!=post
    binarize contains head or align>130
    not (act=after and act_fn in [relu,hardtanh])

``not`` binds closest, then ``and``, then ``or``. The grammar, where a word is a run of characters without blanks,
quotes, brackets, parentheses, commas and the signs of the operators::

    condition   = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = { "not" } ( "(" condition ")" | comparison )
    comparison  = word ( sign value | [ "not" ] "in" list | "contains" value )
    sign        = "=" | "==" | "!=" | "<" | "<=" | ">" | ">="
    value       = word | quoted | list
    quoted      = "'" characters "'" | '"' characters '"'      a backslash before a quote or backslash keeps it
    list        = "[" [ value { "," value } ] "]"

A value is typed as on Hydra's command line: ``true`` and ``false`` are truth values, ``130`` and ``1e-3`` numbers,
``null`` is nothing, and all else, like all that is quoted, is text. A list is a set: order and repetition do not count.
"""

import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ablations.space.factors import AUTO, FACTORS, is_number, parse_level
from bbcu.errors import ConfigError, unknown

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...] | None"
Values: TypeAlias = "Mapping[str, Value]"

ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SIGNS = ("=", "==", "!=", *ORDERS)
RESERVED = ("and", "or", "not", "in", "contains")
DEEPEST = 50
"""How deep parentheses and lists may nest, far below where Python's own stack ends."""


# --- what a condition is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One key against one value; ``sign`` is =, !=, an order, ``in`` or ``contains``."""

    key: str
    sign: str
    value: Value

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        """Whether it is true of these levels; ``automatic`` is the number that ``auto`` stands for, where it does.

        An order between things that are not both numbers is false. Raises ConfigError for a key without a level.
        """
        if self.key not in levels:
            raise ConfigError(unknown("key", self.key, levels))
        stands_for = automatic if self.key in FACTORS and FACTORS[self.key].numeric else None
        level, value = _settled(levels[self.key], stands_for), _settled(self.value, stands_for)
        if self.sign in ORDERS:
            return is_number(level) and is_number(value) and ORDERS[self.sign](level, value)  # type: ignore[arg-type]
        if self.sign == "in":
            return _has(value, level)
        if self.sign == "contains":
            return _has(level, value)
        return _is_same(level, value) == (self.sign == "=")

    def __str__(self) -> str:
        blank = " " if self.sign.isalpha() else ""
        return f"{self.key}{blank}{self.sign}{blank}{value_text(self.value)}"


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    part: "Condition"

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        return not self.part.holds(levels, automatic)

    def __str__(self) -> str:
        return f"not {self.part}" if isinstance(self.part, Comparison) else f"not ({self.part})"


@dataclass(frozen=True)
class AllOf:
    """Conditions that must hold together."""

    parts: tuple["Condition", ...]

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        return all(part.holds(levels, automatic) for part in self.parts)

    def __str__(self) -> str:
        return " and ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


@dataclass(frozen=True)
class AnyOf:
    """Conditions of which one is enough."""

    parts: tuple["Condition", ...]

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        return any(part.holds(levels, automatic) for part in self.parts)

    def __str__(self) -> str:
        return " or ".join(map(str, self.parts))


Condition = Comparison | Not | AllOf | AnyOf
"""Frozen, and its text, ``str(condition)``, parses to an equal one."""


def keys_of(condition: Condition) -> tuple[str, ...]:
    """The keys that a condition asks about, each once, in the order of its text."""
    if isinstance(condition, Comparison):
        return (condition.key,)
    parts = (condition.part,) if isinstance(condition, Not) else condition.parts
    return tuple(dict.fromkeys(key for part in parts for key in keys_of(part)))


def _settled(value: Value, automatic: float | None) -> Value:
    """The value, or what ``auto`` in its place stands for: a cell at auto is the cell at that number."""
    if isinstance(value, tuple):
        return tuple(_settled(entry, automatic) for entry in value)
    return automatic if value == AUTO and automatic is not None else value


def _has(values: Value, value: Value) -> bool:
    return isinstance(values, tuple) and any(_is_same(entry, value) for entry in values)


def _is_same(one: Value, other: Value) -> bool:
    """Whether two values are one; Python's own equality takes 1 for true."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(_has(other, entry) for entry in one) and all(_has(one, entry) for entry in other)
    return isinstance(one, bool) == isinstance(other, bool) and one == other


# --- from text to condition -------------------------------------------------------------------------------------------


def parse(text: str, keys: Collection[str] = tuple(FACTORS)) -> Condition:
    """The condition that ``text`` means, on ``keys``.

    A level that its factor does not have would silently never hold, so it is refused like an unknown key. Raises
    ConfigError, which names the column and what is valid there.
    """
    return _Parser(text, keys).whole_condition()


def value_of(text: str) -> Value:
    """The value that the text of a command line means, as a config would hold it; what is no value is itself."""
    try:
        return _Parser(text, ()).whole_value()
    except ConfigError:
        return text


def value_text(value: Value) -> str:
    """A value the way a user types it, with quotes only where it would be read as something else without."""
    if isinstance(value, tuple):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, str):
        plain = value not in RESERVED and _WORD.fullmatch(value) and _word_value(value) == value
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return value if plain else f'"{escaped}"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).removesuffix(".0")


_WORD = re.compile(r"""[^\s()\[\],=!<>'"]+""")
_TOKEN = re.compile(
    rf"""
    (?P<blank> \s+)
    | (?P<sign> == | != | <= | >= | [=<>])
    | (?P<mark> [()\[\],])
    | (?P<quoted> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
    | (?P<word> {_WORD.pattern})
    """,
    re.VERBOSE,
)
_WHOLE = r"(?:0|[1-9](?:_?[0-9])*)"
_INTEGER = re.compile(rf"[+-]?{_WHOLE}")
_DECIMAL = re.compile(rf"[+-]?(?:{_WHOLE}\.?|{_WHOLE}?\.[0-9](?:_?[0-9])*)(?:[eE][+-]?[0-9](?:_?[0-9])*)?")


def _word_value(word: str) -> Value:
    """What a word without quotes means."""
    named = {"true": True, "false": False, "null": None}
    if word.lower() in named:
        return named[word.lower()]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _DECIMAL.fullmatch(word) else word


@dataclass(frozen=True)
class _Token:
    """A piece of the text, a quoted one with its quotes.

    ``column`` counts from 1, and ``kind`` is sign, mark, quoted, word or end.
    """

    kind: str
    text: str
    column: int


class _Parser:
    """One pass over the tokens, from left to right, a method for each line of the grammar."""

    def __init__(self, text: str, keys: Collection[str]) -> None:
        self.text = text
        self.keys = keys
        self.tokens = list(self._tokens())
        self.place = 0
        self.depth = 0

    def whole_condition(self) -> Condition:
        condition = self._condition()
        self._end("and, or or the end")
        return condition

    def whole_value(self) -> Value:
        value = self._value()
        self._end("the end")
        return value

    def _tokens(self) -> Iterator[_Token]:
        start = 0
        while start < len(self.text):
            match = _TOKEN.match(self.text, start)
            if match is None:
                what = "a quote that is not closed" if self.text[start] in "'\"" else repr(self.text[start])
                raise self._refused(_Token("", "", start + 1), f"cannot read {what}")
            if match.lastgroup != "blank":
                yield _Token(str(match.lastgroup), match[0], start + 1)
            start = match.end()
        yield _Token("end", "", len(self.text) + 1)

    def _condition(self) -> Condition:
        parts = [self._conjunction()]
        while self._takes("or"):
            parts.append(self._conjunction())
        flat = [inner for part in parts for inner in (part.parts if isinstance(part, AnyOf) else (part,))]
        return flat[0] if len(flat) == 1 else AnyOf(tuple(flat))

    def _conjunction(self) -> Condition:
        parts = [self._negation()]
        while self._takes("and"):
            parts.append(self._negation())
        flat = [inner for part in parts for inner in (part.parts if isinstance(part, AllOf) else (part,))]
        return flat[0] if len(flat) == 1 else AllOf(tuple(flat))

    def _negation(self) -> Condition:
        negated = False
        while self._takes("not"):
            negated = not negated
        if self._takes("("):
            self._descend()
            part = self._condition()
            self._expect(")", "and, or or )")
            self.depth -= 1
        else:
            part = self._comparison()
        if not negated:
            return part
        return part.part if isinstance(part, Not) else Not(part)

    def _comparison(self) -> Condition:
        key = self._next()
        if key.kind != "word" or key.text in RESERVED:
            raise self._refused(key, f"expected a key, {_not_this(key)}")
        if key.text not in self.keys:
            raise self._refused(key, unknown("key", key.text, self.keys))
        negated = self._takes("not")
        sign = self._next()
        valid = ("in",) if negated else (*SIGNS, "in", "contains")
        if sign.text not in valid:
            raise self._refused(sign, f"expected {' '.join(valid)}, {_not_this(sign)}")
        token = self._peek()
        value = self._value()
        try:
            value = _checked(key.text, sign.text, value)
        except ConfigError as error:
            raise self._refused(token, str(error)) from None
        comparison = Comparison(key.text, "=" if sign.text == "==" else sign.text, value)
        return Not(comparison) if negated else comparison

    def _value(self) -> Value:
        token = self._next()
        if token.kind == "quoted":
            return re.sub(r"\\(['\"\\])", r"\1", token.text[1:-1])
        if token.kind == "word" and token.text not in RESERVED:
            return _word_value(token.text)
        if token.text == "[":
            return self._list()
        raise self._refused(token, f"expected a value, {_not_this(token)}")

    def _list(self) -> Value:
        self._descend()
        values: list[Value] = []
        while not self._takes("]"):
            if values:
                self._expect(",", ", or ]")
            values.append(self._value())
        self.depth -= 1
        return tuple(values)

    def _peek(self) -> _Token:
        return self.tokens[self.place]

    def _next(self) -> _Token:
        token = self.tokens[self.place]
        self.place = min(self.place + 1, len(self.tokens) - 1)
        return token

    def _takes(self, text: str) -> bool:
        """Step over the next token if it is this word or mark."""
        found = self._peek().text == text
        if found:
            self._next()
        return found

    def _expect(self, text: str, valid: str) -> None:
        if not self._takes(text):
            raise self._refused(self._peek(), f"expected {valid}, {_not_this(self._peek())}")

    def _end(self, valid: str) -> None:
        if self._peek().kind != "end":
            raise self._refused(self._peek(), f"expected {valid}, {_not_this(self._peek())}")

    def _descend(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._refused(self._peek(), f"nested deeper than {DEEPEST}")

    def _refused(self, token: _Token, why: str) -> ConfigError:
        return ConfigError(f"condition {self.text!r}, column {token.column}: {why}")


def _not_this(token: _Token) -> str:
    return "but the text ends" if token.kind == "end" else f"not {token.text!r}"


def _checked(key: str, sign: str, value: Value) -> Value:
    """The value that a key can be compared with by this sign, a factor's as its level.

    Raises ConfigError for a comparison that could hold for no level at all.
    """
    if sign == "in":
        if not isinstance(value, tuple):
            raise ConfigError(f"in needs a list, as in {key} in [{value_text(value)}]")
        return tuple(parse_level(key, entry) for entry in value) if key in FACTORS else value
    if sign in ORDERS:
        if not is_number(value) or (key in FACTORS and not FACTORS[key].numeric):
            raise ConfigError(f"{sign} compares numbers; compare {key} with {value_text(value)} by =, != or in")
        return value
    if key not in FACTORS:
        return value
    if sign == "contains":
        members = FACTORS[key].members
        if not members:
            raise ConfigError(f"contains asks what a list has in it, and {key} is not a list")
        if value not in members:
            raise ConfigError(unknown(f"part of {key}", value_text(value), members))
        return value
    return parse_level(key, value)
