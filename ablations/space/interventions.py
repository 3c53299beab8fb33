"""The interventions of a study: which pairs of cells differ in the same recorded levels, and what that is in words.

A network with alignment 65 and no BatchNorm, and one with BatchNorm and no alignment, differ in ``bn`` as the user
typed it, because ``align=auto`` follows. What was done to the network is both, and the intervention says so: "BatchNorm
after the convolution in place of alignment 65". BatchNorm added where there was no alignment is another intervention.

A factor that lists parts (``binarize``) counts as one key for each part, ``binarize.up`` and so on, with the levels
``full`` and ``binary``: to make the upsampling binary is one intervention, whichever other parts are binary.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ablations.space.conditions import Condition, keys_of, parse, value_of
from ablations.space.factors import ABSENT, FACTORS, REFERENCE, SHOWN, Factor, Phrase, level_text
from ablations.space.rules import FACTS
from bbcu.model.specs import PARTS

FULL, BINARY = "full", "binary"
"""The levels of a part."""

MOST_STEPS = 12
"""More cells than this were not put in a row by hand, so they are not a chain."""

MOST_MOVED = 2
"""A step of a chain changes at most so many recorded levels, as from BatchNorm to alignment."""

NOTHING: Mapping[str, str] = MappingProxyType({})

Pair = tuple[str, str]
"""The keys of two cells: before and after an intervention."""

Quartet = tuple[str, str, str, str]
"""The keys of four cells: with neither of two interventions, with the first, with the second, with both."""


@dataclass(frozen=True)
class CellLevels:
    """What one cell is, as text: its level of each factor, and the value of each other key that some cell sets.

    ``recorded`` has the levels of the network that was trained, and ``asked`` the same keys as the user gave them, with
    ``auto`` for an alignment that follows. A key that a cell does not have is missing or empty: an untrained network
    has no learning rate.
    """

    recorded: Mapping[str, str]
    asked: Mapping[str, str]

    @functools.cached_property
    def recorded_parts(self) -> Mapping[str, str]:
        """The recorded levels with one key for each part."""
        return by_part(self.recorded)

    @functools.cached_property
    def asked_parts(self) -> Mapping[str, str]:
        """The levels that the user gave, with one key for each part."""
        return by_part(self.asked)

    @functools.cached_property
    def network(self) -> frozenset[tuple[str, str]]:
        """The recorded levels as one value, by which a cell is looked up."""
        return frozenset(self.recorded_parts.items())


Cells = Mapping[str, CellLevels]
"""What each cell is, by its key, in the order of the study. Two of them are two networks."""


@dataclass(frozen=True)
class Change:
    """One recorded key that changes; the level of a cell without the key is empty."""

    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Intervention:
    """Every recorded key that changes between two cells: the factors in declared order, then the other keys."""

    changes: tuple[Change, ...]

    @property
    def in_words(self) -> str:
        """What appears in the network and what goes, as a sentence begins: "Alignment 65 in place of BatchNorm"."""
        text = self.phrase
        starts_with_key = any(text.startswith(change.key) for change in self.changes if change.key not in FACTORS)
        return text if starts_with_key else text[:1].upper() + text[1:]

    @property
    def phrase(self) -> str:
        """What appears in the network and what goes, within a sentence: "alignment 65 in place of BatchNorm"."""
        # Parts first, then what is no factor: a factor may follow from them, as an alignment does.
        changes = sorted(self.changes, key=lambda change: (member_of(change.key) is None, change.key in FACTORS))
        has_part = any(member_of(change.key) for change in changes)
        before = {change.key: change.before for change in changes}
        if has_part and BINARY not in before.values():
            # Nothing that a binary unit has is taken away where there was none.
            before |= {f"binarize.{part}": FULL for part in PARTS}
        gone, appear = _phrases(before), _phrases({change.key: change.after for change in changes})
        swapped = [key for key in appear if key in gone]
        texts = [f"{appear.pop(key).noun} in place of {_replaced(gone.pop(key))}" for key in swapped]
        parts = _listed([phrase.noun for key, phrase in appear.items() if member_of(key)])
        others = _listed([phrase.noun for key, phrase in appear.items() if not member_of(key)])
        added = " with ".join(filter(None, (parts, others)))
        if appear and gone:
            texts.append(f"{added} in place of {_listed([phrase.noun for phrase in gone.values()])}")
        elif appear:
            texts.append(added if has_part else f"{added} added")
        elif gone:
            texts.append(f"without {_listed([phrase.removed or phrase.noun for phrase in gone.values()])}")
        return ", ".join(texts) or self.as_typed

    @property
    def as_typed(self) -> str:
        """The levels after it, as a user types them: ``bn=post align=1``; a part is ``binarize +up``."""
        return " ".join(_typed(change) for change in self.changes)


@dataclass(frozen=True)
class Comparison:
    """An intervention and the pairs of cells that differ in exactly that, one for each context.

    The pair at the reference comes first, then the others by how many recorded keys of their context differ from the
    reference cell. ``at_reference`` is the pair one cell of which is the reference cell, if there is one.
    """

    intervention: Intervention
    pairs: tuple[Pair, ...]
    at_reference: Pair | None


# --- comparisons ------------------------------------------------------------------------------------------------------


def reference_cell(cells: Cells, reference: Mapping[str, str]) -> str:
    """The cell with the most keys at their base, as the user gave them; the first of several.

    The base of a key is its level in ``reference`` if some cell has that, else the level of the first cell.
    """
    bases = _bases([cell.asked for cell in cells.values()], reference)
    return max(cells, key=lambda cell: sum(cells[cell].asked.get(key) == base for key, base in bases.items()))


def comparisons(cells: Cells, reference: str, base: Mapping[str, str] = NOTHING) -> tuple[Comparison, ...]:
    """Every intervention that changes one key, with all pairs of cells that differ in exactly its recorded levels.

    Two cells are a pair if one recorded key differs, or if one key as the user gave it does: then others may follow,
    as ``align=auto`` follows ``bn``. Between the cell ``reference`` and another, a factor that has no effect in one of
    them does not count. One cell of a pair has the base level of the key and comes first: the factor's reference if
    some cell has it, else the level in ``base``, else that of the first cell. Parts go from full to binary.

    Interventions with a pair at the reference come first; both groups are in the order of factors, then of other keys,
    then of levels.
    """
    return _Search(cells, reference, base).comparisons()


_Row = tuple[str | None, ...]
_Moved = tuple[tuple[int, str, str], ...]  # the place of a key, its level before and after


class _Search:
    """The search for pairs. Cells are rows of levels in the order of ``keys``, None where a cell lacks the key."""

    def __init__(self, cells: Cells, reference: str, base: Mapping[str, str]) -> None:
        self.cells, self.reference = cells, reference
        self.keys = ordered_keys(cell.recorded_parts for cell in cells.values())
        self.recorded = {name: tuple(map(cell.recorded_parts.get, self.keys)) for name, cell in cells.items()}
        self.asked = {name: tuple(map(cell.asked_parts.get, self.keys)) for name, cell in cells.items()}
        declared = {name: level_text(level) for name, level in REFERENCE.items()}
        parts = {key: FULL for key in self.keys if member_of(key)}
        bases = _bases([cell.asked_parts for cell in cells.values()], parts, declared, base)
        self.bases = [bases.get(key) for key in self.keys]
        self.place = {name: place for place, name in enumerate(cells)}

    def comparisons(self) -> tuple[Comparison, ...]:
        found: dict[_Moved, tuple[int, list[Pair]]] = {}
        for pair, key in self.pairs().items():
            found.setdefault(self.moved(*pair), (key, []))[1].append(pair)
        ordered = sorted(
            ((key, self.comparison(moved, pairs)) for moved, (key, pairs) in found.items()),
            key=lambda each: self.order(*each),
        )
        return tuple(comparison for _, comparison in ordered)

    def pairs(self) -> dict[Pair, int]:
        """Every pair, with the place of the key that makes it one."""
        found: dict[frozenset[str], tuple[Pair, int]] = {}
        for rows in (self.recorded, self.asked):
            for key in range(len(self.keys)):
                for group in alike_but_for(key, rows):
                    for pair in self.pairs_of(group, key):
                        found.setdefault(frozenset(pair), (pair, key))
            for cell in self.cells:
                for key in self.only_key_with_effect(cell, rows):
                    for pair in self.pairs_of([cell, self.reference], key):
                        found.setdefault(frozenset(pair), (pair, key))
        return dict(found.values())

    def pairs_of(self, group: Sequence[str], key: int) -> Iterable[Pair]:
        """The pairs of a cell at the base of a key with one that is not; their recorded levels differ."""
        at_base = [name for name in group if self.asked[name][key] == self.bases[key]]
        others = [name for name in group if self.asked[name][key] != self.bases[key]]
        for before, after in itertools.product(at_base, others):
            if self.moved(before, after):
                yield before, after

    def moved(self, before: str, after: str) -> _Moved:
        """The recorded levels that change; none if one of the cells lacks one of the keys."""
        ends = enumerate(zip(self.recorded[before], self.recorded[after], strict=True))
        moved = [(place, one, other) for place, (one, other) in ends if one != other]
        complete = tuple((place, one, other) for place, one, other in moved if one is not None and other is not None)
        return complete if len(complete) == len(moved) else ()

    def only_key_with_effect(self, cell: str, rows: Mapping[str, _Row]) -> list[int]:
        """The key that alone differs between a cell and the reference and has an effect in both, if there is one."""
        ends = self.cells[cell].recorded_parts, self.cells[self.reference].recorded_parts
        found = [
            place
            for place, key in enumerate(self.keys)
            if rows[cell][place] != rows[self.reference][place] and all(applies(key, end) for end in ends)
        ]
        return found if len(found) == 1 else []

    def comparison(self, moved: _Moved, pairs: Iterable[Pair]) -> Comparison:
        intervention = Intervention(tuple(Change(self.keys[place], one, other) for place, one, other in moved))
        context = set(range(len(self.keys))).difference(place for place, *_ in moved)
        centre = self.recorded[self.reference]

        def distance(pair: Pair) -> tuple[bool, int, int, int]:
            row = self.recorded[pair[0]]
            differing = sum(row[place] != centre[place] for place in context)
            return self.reference not in pair, differing, self.place[pair[0]], self.place[pair[1]]

        ordered = tuple(sorted(pairs, key=distance))
        return Comparison(intervention, ordered, ordered[0] if self.reference in ordered[0] else None)

    def order(self, key: int, comparison: Comparison) -> tuple[bool, int, int, int]:
        level = self.asked[comparison.pairs[0][1]][key]
        appearance = next(place for place, row in enumerate(self.asked.values()) if row[key] == level)
        return comparison.at_reference is None, key, appearance, len(comparison.intervention.changes)


def alike_but_for(key: int, rows: Mapping[str, _Row]) -> list[list[str]]:
    """The groups of two or more cells whose rows agree everywhere but at one place."""
    groups: dict[_Row, list[str]] = {}
    if len({row[key] for row in rows.values()}) > 1:
        for cell, row in rows.items():
            groups.setdefault(row[:key] + row[key + 1 :], []).append(cell)
    return [group for group in groups.values() if len(group) > 1]


def _bases(levels: Sequence[Mapping[str, str]], *preferred: Mapping[str, str]) -> dict[str, str]:
    """The base of each key: the first preferred level that some cell has, else the level of the first cell with one."""
    present: dict[str, dict[str, None]] = {}
    for row in levels:
        for key, level in row.items():
            if level:
                present.setdefault(key, {})[level] = None
    return {
        key: next((wanted[key] for wanted in preferred if wanted.get(key) in found), next(iter(found)))
        for key, found in present.items()
    }


# --- chains and interactions ------------------------------------------------------------------------------------------


def between(before: str, after: str, cells: Cells, reference: str = "") -> Comparison:
    """Whatever changes from one cell to another, as a comparison with this pair alone."""
    one, other = cells[before].recorded_parts, cells[after].recorded_parts
    keys = [key for key in ordered_keys([one, other]) if one.get(key) != other.get(key)]
    changes = tuple(Change(key, one.get(key, ""), other.get(key, "")) for key in keys)
    pair = (before, after)
    return Comparison(Intervention(changes), (pair,), pair if reference in pair else None)


def steps(cells: Cells, reference: str, most_moved: int = MOST_MOVED) -> tuple[Comparison, ...]:
    """Each cell of a chain compared with the one before it; empty if the cells are no chain.

    A chain is a few cells in a row, each of which changes at most ``most_moved`` recorded levels of the one before.
    Some cell is more than one level away from the cell ``reference``, so that comparisons of a single key do not show
    them all, and the cells are not every combination of their levels. ``between`` compares the last with the first.
    """
    names = list(cells)
    pairs = list(itertools.pairwise(names))
    if not 3 <= len(names) <= MOST_STEPS or is_grid([cell.asked for cell in cells.values()]):
        return ()
    far = any(moved(cells[reference], cell) > 1 for cell in cells.values())
    small = all(1 <= moved(cells[one], cells[other]) <= most_moved for one, other in pairs)
    return tuple(between(one, other, cells, reference) for one, other in pairs) if far and small else ()


def moved(one: CellLevels, other: CellLevels) -> int:
    """How many recorded keys differ; the parts of a network are one."""
    return sum(one.recorded.get(key) != other.recorded.get(key) for key in one.recorded.keys() | other.recorded.keys())


def is_grid(levels: Sequence[Mapping[str, str]]) -> bool:
    """Whether the cells are all combinations of their levels, which is a factorial design."""
    keys = {key for row in levels for key in row}
    return math.prod(len({row.get(key) for row in levels}) for key in keys) <= len(levels)


def quartets(first: Intervention, second: Intervention, cells: Cells) -> tuple[Quartet, ...]:
    """The cells in fours that show whether two interventions add up, in the order of the cells.

    Interventions that change the same key have none.
    """
    if {change.key for change in first.changes} & {change.key for change in second.changes}:
        return ()
    found: list[Quartet] = []
    named = {cell.network: name for name, cell in cells.items()}
    gone, also_gone = ({(change.key, change.before) for change in each.changes} for each in (first, second))
    came, also_came = ({(change.key, change.after) for change in each.changes} for each in (first, second))
    for name, cell in cells.items():
        if gone | also_gone <= cell.network:
            one = named.get(cell.network - gone | came)
            other = named.get(cell.network - also_gone | also_came)
            both = named.get(cell.network - gone - also_gone | came | also_came)
            if one is not None and other is not None and both is not None:
                found.append((name, one, other, both))
    return tuple(found)


# --- keys, parts and words --------------------------------------------------------------------------------------------


def by_part(levels: Mapping[str, str]) -> dict[str, str]:
    """``{"binarize": "[body]"}`` as ``{"binarize.head": "full", "binarize.body": "binary", ...}``; keys without a level
    are left out.
    """
    found: dict[str, str] = {}
    for key, level in levels.items():
        if key in FACTORS and FACTORS[key].members and level:
            chosen = level.strip("[]").split(",")
            found |= {f"{key}.{part}": BINARY if part in chosen else FULL for part in FACTORS[key].members}
        elif level:
            found[key] = level
    return found


def member_of(key: str) -> tuple[Factor, str] | None:
    """The factor that ``binarize.up`` is a part of, and the part; None for any other key."""
    name, _, part = key.rpartition(".")
    factor = FACTORS.get(name)
    return (factor, part) if factor is not None and part in factor.members else None


def ordered_keys(levels: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Every key: the factors in declared order, then the others as they appear."""
    present = dict.fromkeys(key for row in levels for key in row)
    declared = [
        key
        for name, factor in FACTORS.items()
        for key in ([f"{name}.{part}" for part in factor.members] or [name])
        if key in present
    ]
    return tuple(dict.fromkeys((*declared, *present)))


def applies(key: str, levels: Mapping[str, str]) -> bool:
    """Whether a key has an effect beside these levels of factors and parts; it has one unless they decide otherwise."""
    if key not in FACTORS:
        return True
    factor = FACTORS[key]
    if factor.of_unit and all(levels.get(f"binarize.{part}") == FULL for part in PARTS):
        return False
    names = keys_of(_condition(factor.applies, tuple(FACTORS))) if factor.applies else ()
    known = tuple((name, level) for name in names if (level := level_among(name, levels)))
    return not names or len(known) < len(names) or _holds(factor.applies, tuple(FACTORS), known)


def level_among(name: str, levels: Mapping[str, str]) -> str:
    """The level of a factor, put together again from its parts; empty if it is not known."""
    members = FACTORS[name].members if name in FACTORS else ()
    parts = {member: levels.get(f"{name}.{member}", "") for member in members}
    if not parts or not all(parts.values()):
        return levels.get(name, "")
    return f"[{','.join(member for member, level in parts.items() if level == BINARY)}]"


@functools.cache
def _condition(text: str, factors: tuple[str, ...]) -> Condition:
    return parse(text, (*factors, *FACTS))


@functools.cache
def _holds(text: str, factors: tuple[str, ...], levels: tuple[tuple[str, str], ...]) -> bool:
    return _condition(text, factors).holds({name: value_of(level) for name, level in levels})


COUNTED = {"channels": "channels", "blocks": "blocks", "train.steps": "steps"}
"""Keys whose value is a number of something."""


def phrase_of(key: str, level: str) -> Phrase:
    """What a level of any key adds to a network, in words; ABSENT if nothing.

    The declaration of a factor says it. Another level is called by its own name, a class without its module, data
    by the start of their fingerprint, and ``none`` is nothing.
    """
    if member := member_of(key):
        factor, part = member
        return factor.phrases.get(part, Phrase(f"{key} {level}")) if level == BINARY else ABSENT
    declared = FACTORS[key].phrases if key in FACTORS else {}
    for each, phrase in declared.items():
        if level_text(each) == level:
            return phrase
    if level in ("", "none"):
        return ABSENT
    if key in COUNTED:
        return Phrase(f"{level} {COUNTED[key].removesuffix('s') if level == '1' else COUNTED[key]}", replaced=level)
    if level.lower() in ("true", "false"):
        return Phrase(f"{key}={level.lower()}", replaced=level.lower())
    name = level[:SHOWN] if FINGERPRINT.fullmatch(level) else level.rpartition(".")[2] if is_path(level) else level
    return Phrase(f"{noun_of(key)} {name}", replaced=name)


FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def noun_of(key: str) -> str:
    """What stands before a level that nobody has put in words."""
    return FACTORS[key].noun or key if key in FACTORS else key


def is_path(level: str) -> bool:
    """Whether a level is the dotted path of a class, and not a number."""
    return "." in level and all(part.isidentifier() for part in level.split("."))


def _phrases(levels: Mapping[str, str]) -> dict[str, Phrase]:
    """What the levels at one end of an intervention add to a network, by key; a key that adds nothing is left out."""
    found = {key: phrase_of(key, level) for key, level in levels.items() if applies(key, levels)}
    return {key: phrase for key, phrase in found.items() if phrase.noun}


def _replaced(phrase: Phrase) -> str:
    return phrase.replaced or phrase.noun


def _typed(change: Change) -> str:
    if member := member_of(change.key):
        factor, part = member
        return f"{factor.name} {'+' if change.after == BINARY else '-'}{part}"
    return f"{change.key}={change.after or 'null'}"


def _listed(texts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1] if texts else "")))
