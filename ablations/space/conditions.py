"""Parse and evaluate the conditions of rules and of ``exclude``, which select combinations of levels.

    residual=false and bn!=post
    binarize contains head or align>130
    not (act=after and act_fn in [relu,hardtanh])

``not`` binds tighter than ``and``, and ``and`` tighter than ``or``. ``GRAMMAR`` below is the whole syntax. Values are
typed as on Hydra's command line: ``true`` and ``false`` are booleans, ``130`` and ``1e-3`` numbers, ``null`` is None;
everything else, and everything in quotes, is text. Lists are compared as sets: order and repetition do not matter.
"""

import functools
import json
import operator
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from ablations.space.factors import AUTO, FACTORS, is_number, parse_level
from bbcu.errors import ConfigError, shown, unknown

_WORD = r"""[^\s()\[\],=!<>'"]+"""
GRAMMAR = rf"""
    ?condition:   conjunction | conjunction ("or" conjunction)+ -> any_of
    ?conjunction: negation    | negation ("and" negation)+      -> all_of
    ?negation:    operand     | NOT+ operand                    -> negated
    ?operand:     "(" condition ")" | comparison
    comparison:   WORD (SIGN | CONTAINS | NOT? IN) value
    value:        WORD -> word | QUOTED -> quoted | "[" (value ("," value)*)? "]" -> list

    WORD:     /{_WORD}/
    QUOTED:   /'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"/s
    SIGN:     /[=!<>]=|[=<>]/
    NOT:      "not"
    IN:       "in"
    CONTAINS: "contains"
    %ignore /\s+/
"""
RESERVED = ("and", "or", "not", "in", "contains")
MAX_DEPTH = 50
"""How deep parentheses and lists may nest; functions recurse into conditions, so it stays far below Python's limit."""

LONGEST_NUMBER = 255
"""The most characters of a number; a longer word is text. No name of a file has more, so no path is taken for one."""

CONTEXT = 60
"""The most characters before and after a mistake that a message quotes."""

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...] | None"
Values: TypeAlias = "Mapping[str, Value]"

ORDERS: dict[str, Any] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


# --- conditions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Compare one key with one value; ``sign`` is ``=``, ``!=``, ``in``, ``contains`` or one of ``ORDERS``."""

    key: str
    sign: str
    value: Value

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        """Return whether the comparison is true of these levels; ``automatic`` is the value of ``align=auto``.

        ``<`` and the like are false unless both sides are numbers. Raises ConfigError if the key has no level.
        """
        if self.key not in levels:
            raise ConfigError(unknown("key", self.key, levels))
        number = automatic if self.key in FACTORS and FACTORS[self.key].numeric else None
        level, value = _resolve_auto(levels[self.key], number), _resolve_auto(self.value, number)
        if self.sign in ORDERS:
            return is_number(level) and is_number(value) and bool(ORDERS[self.sign](level, value))
        if self.sign == "in":
            return _contains(value, level)
        if self.sign == "contains":
            return _contains(level, value)
        return _equal(level, value) == (self.sign == "=")

    def __str__(self) -> str:
        blank = " " if self.sign.isalpha() else ""
        return f"{self.key}{blank}{self.sign}{blank}{value_text(self.value)}"


@dataclass(frozen=True)
class Not:
    """The negation of a condition."""

    part: "Condition"

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        return not self.part.holds(levels, automatic)

    def __str__(self) -> str:
        return f"not {self.part}" if isinstance(self.part, Comparison) else f"not ({self.part})"


@dataclass(frozen=True)
class AllOf:
    """The conjunction of conditions."""

    parts: tuple["Condition", ...]

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        return all(part.holds(levels, automatic) for part in self.parts)

    def __str__(self) -> str:
        return " and ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


@dataclass(frozen=True)
class AnyOf:
    """The disjunction of conditions."""

    parts: tuple["Condition", ...]

    def holds(self, levels: Values, automatic: float | None = None) -> bool:
        return any(part.holds(levels, automatic) for part in self.parts)

    def __str__(self) -> str:
        return " or ".join(map(str, self.parts))


Condition = Comparison | Not | AllOf | AnyOf
"""Immutable; ``parse(str(condition))`` returns an equal condition."""


def keys_of(condition: Condition) -> tuple[str, ...]:
    """Return the keys that a condition reads, each once, in the order of its text."""
    if isinstance(condition, Comparison):
        return (condition.key,)
    parts = (condition.part,) if isinstance(condition, Not) else condition.parts
    return tuple(dict.fromkeys(key for part in parts for key in keys_of(part)))


def _resolve_auto(value: Value, number: float | None) -> Value:
    """Replace ``auto`` by ``number``, in lists too, unless ``number`` is None."""
    if isinstance(value, tuple):
        return tuple(_resolve_auto(entry, number) for entry in value)
    return number if value == AUTO and number is not None else value


def _contains(values: Value, value: Value) -> bool:
    return isinstance(values, tuple) and any(_equal(entry, value) for entry in values)


def _equal(one: Value, other: Value) -> bool:
    """Return whether two values are equal, lists as sets; unlike in Python, 1 does not equal true."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(_contains(other, entry) for entry in one) and all(_contains(one, entry) for entry in other)
    return isinstance(one, bool) == isinstance(other, bool) and one == other


# --- from text to a condition or a value ------------------------------------------------------------------------------


def parse(text: str, keys: Collection[str] = tuple(FACTORS)) -> Condition:
    """Parse a condition on ``keys``.

    Raises ConfigError, which names the column and what is valid there, also for a level that does not exist.
    """
    return _condition(_parsed(text, "condition", keys), text)


def value_of(text: str) -> Value:
    """Convert the text of a value as Hydra would; text that is not a value, such as ``a b``, is returned unchanged."""
    try:
        return _value(_parsed(text, "value", ()))
    except ConfigError:
        return text


def value_text(value: Value) -> str:
    """Return a value as a user types it, in quotes only if it would be read as another value without them."""
    if isinstance(value, tuple):
        return f"[{','.join(map(value_text, value))}]"
    if not isinstance(value, str):
        return json.dumps(value).removesuffix(".0")
    if re.fullmatch(_WORD, value) and value not in RESERVED and _typed(value) == value:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@functools.cache
def _parser() -> Any:
    """Build the parser once; importing lark takes 40 ms, which commands without conditions save."""
    from lark import Lark

    # The basic lexer splits the text whatever the parser expects, so that "android" is never read as "and" and "roid".
    return Lark(GRAMMAR, parser="lalr", lexer="basic", start=["condition", "value"], propagate_positions=True)


def _parsed(text: str, start: str, keys: Collection[str]) -> Any:
    """Return the syntax tree of the text, from the rule ``start``, after checking its keys and depth."""
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    steps = _parser().parse_interactive(text, start=start)
    depth = 0
    try:
        for token in steps.iter_parse():
            if depth > MAX_DEPTH:
                _refuse(text, token.start_pos, f"nested deeper than {MAX_DEPTH}")
            depth += (token.type in ("LPAR", "LSQB")) - (token.type in ("RPAR", "RSQB"))
            # A word is a key, and not a value, wherever a parenthesis could open instead.
            if token.type == "WORD" and "LPAR" in steps.choices() and token not in keys:
                _refuse(text, token.start_pos, unknown("key", token, keys))
        return steps.feed_eof()
    except UnexpectedCharacters as error:
        position = error.pos_in_stream or 0
        what = "a quote that is not closed" if text[position] in "'\"" else repr(text[position])
        _refuse(text, position, f"cannot read {what}")
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        position = len(text) if at_end else int(error.token.start_pos or 0)
        actual = "but the text ends" if at_end else f"not {shown(error.token)!r}"
        _refuse(text, position, f"expected {_valid_after(text[:position], start)}, {actual}")


def _valid_after(beginning: str, start: str) -> str:
    """Return what may follow the beginning of a text, as a user would type it."""
    steps = _parser().parse_interactive(beginning, start=start)
    steps.exhaust_lexer()
    valid = steps.accepts()
    if "WORD" in valid:
        return "a key" if "LPAR" in valid else "a value"
    texts = {"SIGN": "=, ==, !=, <, <=, >, >=", "NOT": "not in", "IN": "in", "CONTAINS": "contains", "COMMA": ","}
    texts |= {"AND": "and", "OR": "or", "RPAR": ")", "RSQB": "]", "$END": "the end"}
    *others, last = [text for terminal, text in texts.items() if terminal in valid]
    return f"{', '.join(others)} or {last}" if others else last


def _refuse(text: str, position: int, why: str) -> NoReturn:
    start, end = position - CONTEXT, position + CONTEXT
    quoted = f"{'...' * (start > 0)}{text[max(start, 0) : end]}{'...' * (end < len(text))}"
    raise ConfigError(f"condition {quoted!r}, column {position + 1}: {why}")


def _condition(tree: Any, text: str) -> Condition:
    """Return the condition of a syntax tree, without redundant parentheses and double negations."""
    if tree.data == "comparison":
        return _comparison(tree, text)
    if tree.data == "negated":
        *nots, operand = tree.children
        part = _condition(operand, text)
        if len(nots) % 2 == 0:
            return part
        return part.part if isinstance(part, Not) else Not(part)
    kind = AllOf if tree.data == "all_of" else AnyOf
    parts = [_condition(child, text) for child in tree.children]
    return kind(tuple(inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,))))


def _comparison(tree: Any, text: str) -> Condition:
    key, *nots, sign, value = tree.children
    try:
        checked = _checked(str(key), str(sign), _value(value))
    except ConfigError as error:
        _refuse(text, value.meta.start_pos, str(error))
    comparison = Comparison(str(key), "=" if sign == "==" else str(sign), checked)
    return Not(comparison) if nots else comparison


def _value(tree: Any) -> Value:
    if tree.data == "list":
        return tuple(map(_value, tree.children))
    (token,) = tree.children
    return re.sub(r"\\(['\"\\])", r"\1", token[1:-1]) if tree.data == "quoted" else _typed(str(token))


_DIGITS = r"(?:0|[1-9](?:_?[0-9])*)"
_INTEGER = re.compile(rf"[+-]?{_DIGITS}")
_FLOAT = re.compile(rf"[+-]?(?:{_DIGITS}\.?|{_DIGITS}?\.[0-9](?:_?[0-9])*)(?:[eE][+-]?[0-9](?:_?[0-9])*)?")


def _typed(word: str) -> Value:
    """Return the value of a word without quotes."""
    named = {"true": True, "false": False, "null": None}
    if len(word) > LONGEST_NUMBER:
        return word
    if word.lower() in named:
        return named[word.lower()]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) else word


def _checked(key: str, sign: str, value: Value) -> Value:
    """Return the value to compare a key with, as a level if the key is a factor.

    Raises ConfigError for a comparison that no level can satisfy.
    """
    factor = FACTORS.get(key)
    if sign == "in":
        if not isinstance(value, tuple):
            raise ConfigError(f"in needs a list, as in {key} in [{shown(value_text(value))}]")
        return tuple(parse_level(key, entry) for entry in value) if factor else value
    if sign in ORDERS:
        if not is_number(value) or (factor and not factor.numeric):
            raise ConfigError(f"{sign} compares numbers; compare {key} with {shown(value_text(value))} by =, != or in")
        return value
    if sign == "contains" and factor:
        if not factor.members:
            raise ConfigError(f"contains needs a list, and {key} is not a list")
        if value not in factor.members:
            raise ConfigError(unknown(f"part of {key}", value_text(value), factor.members))
        return value
    return parse_level(key, value) if factor else value
