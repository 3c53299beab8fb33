"""The census: what it counts is what listing every combination finds."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from ablations.space.cells import canonical_form, combinations
from ablations.space.census import Census, census
from ablations.space.factors import AUTO, FACTORS, REFERENCE, Factor, Level, Rule
from ablations.space.rules import Backbone, ImpossibleCell, rules
from bbcu.errors import ConfigError

BACKBONES = (
    Backbone("srresnet", 64),
    Backbone("dncnn", 64),
    Backbone("edsr", 64, "light", "sr_x4"),
    Backbone("rdn", 64, task="sr_x2"),
    Backbone("unet", 64),
    Backbone("my_module.Network", 64),
)
ALIGNS = (AUTO, 1.0, 130.0)


def listed(backbone: Backbone, levels: Mapping[str, Sequence[Level]]) -> Census:
    """The census by listing every combination."""
    found: Counter[str] = Counter({rule.reason: 0 for rule in (*rules().merging, *rules().impossible)})
    forms: set[tuple[Level, ...]] = set()
    total = impossible = 0
    for cell in combinations(levels):
        total += 1
        try:
            form, reasons = canonical_form(cell, backbone)
        except ImpossibleCell as error:
            impossible += 1
            found[str(error)] += 1
            continue
        forms.add(tuple(form.values()))
        found.update(reasons)
    return Census(total, impossible, total - impossible - len(forms), len(forms), dict(found))


def drawn(seed: int, most: int) -> dict[str, Sequence[Level]]:
    """Some levels of each factor, up to ``most`` combinations, and with those that rules lead to."""
    draw = random.Random(seed)
    targets = [*REFERENCE.items(), *(item for rule in rules().merging for item in (rule.becomes or {}).items())]
    wanted = {name: {level for key, level in targets if key == name} for name in FACTORS if name != "align"}
    others = [(name, level) for name in wanted for level in FACTORS[name].levels if level not in wanted[name]]
    draw.shuffle(others)
    size = 1
    for chosen in wanted.values():
        size *= len(chosen)
    for name, level in others:
        if size * (len(wanted[name]) + 1) // len(wanted[name]) <= most:
            size = size * (len(wanted[name]) + 1) // len(wanted[name])
            wanted[name].add(level)
    return {name: tuple(level for level in FACTORS[name].levels if level in chosen) for name, chosen in wanted.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.network)
def test_the_census_counts_what_listing_every_combination_finds(backbone: Backbone, seed: int) -> None:
    levels = drawn(seed, most=1200)
    order = {name: levels.get(name, ALIGNS) for name in FACTORS}
    assert census(backbone, ALIGNS, levels) == listed(backbone, order)


def test_the_whole_space_is_counted_without_listing_it() -> None:
    found, product = census(Backbone("srresnet", 64)), 2
    for name, factor in FACTORS.items():
        product *= len(factor.levels) if name != "align" else 1
    assert found.combinations == product > 10**8
    assert found.combinations == found.impossible + found.duplicates + found.cells
    assert found.impossible == sum(
        found.by_reason[rule.reason] for rule in {r.reason: r for r in rules().impossible}.values()
    )


def test_rules_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flip = Factor(
        "flip",
        (1.0, 2.0),
        1.0,
        "never settles",
        unit="my_module.Flip",
        of_unit=False,
        rules=(Rule("flip=1", "one is two", {"flip": 2.0}), Rule("flip=2", "two is one", {"flip": 1.0})),
    )
    monkeypatch.setitem(FACTORS, "flip", flip)
    with pytest.raises(ConfigError, match=r"contradict each other: .*one is two; two is one"):
        census(Backbone("srresnet", 64))
