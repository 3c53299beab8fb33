"""The declarations of factors: what one must have, and what adding one leaves as it was."""

from pathlib import Path

import pytest

from ablations.space import settings
from ablations.space.cells import Cell, canonical_levels
from ablations.space.factors import FACTORS, REFERENCE, Factor, Rule, declare, load_declarations, parse_level
from ablations.space.rules import Backbone, ImpossibleCell
from bbcu.errors import ConfigError
from bbcu.model.specs import UnitSpec

SRRESNET = Backbone("srresnet", 64)
SETTING = {"task": {"name": "sr_x2"}, "channels": 64, "network": {"name": "srresnet", "unit": "binary"}}
GAIN = Factor(
    "gain",
    (1.0, 2.0),
    1.0,
    "what the binary convolution is multiplied by",
    numeric=True,
    unit="my_module.GainUnit",
    applies="weight!=plain",
    otherwise="plain weights have no scale",
    rules=(Rule("gain>1 and act_fn=hardtanh", "hardtanh cuts off what a gain has made large"),),
)


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor that is declared while a test runs."""
    monkeypatch.setitem(FACTORS, "gain", GAIN)
    monkeypatch.setitem(REFERENCE, "gain", GAIN.reference)


def key_of(**levels: object) -> str:
    canonical = canonical_levels({**REFERENCE, **levels}, SRRESNET)
    return Cell(canonical.levels, SETTING, canonical.factors).key


def test_a_new_factor_leaves_every_earlier_key_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = [{}, {"bn": "post"}, {"align": 1, "act": "after"}, {"binarize": ["body", "up"]}]
    before = [key_of(**levels) for levels in asked]
    monkeypatch.setitem(FACTORS, "gain", GAIN)
    monkeypatch.setitem(REFERENCE, "gain", GAIN.reference)
    assert [key_of(**levels) for levels in asked] == before
    assert key_of(gain=2) not in before


def test_a_new_key_of_the_setting_leaves_every_earlier_key_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Cell(REFERENCE, SETTING).key
    monkeypatch.setattr(settings, "DEFAULTS", {**settings.DEFAULTS, "network.dropout": 0.0})
    longer = {**SETTING, "network": {**SETTING["network"], "dropout": 0.0}}  # type: ignore[dict-item]
    assert Cell(REFERENCE, longer).key == before
    longer["network"]["dropout"] = 0.5
    assert Cell(REFERENCE, longer).key != before


@pytest.mark.usefixtures("gain")
def test_a_declared_factor_takes_numbers_merges_and_is_refused_as_its_rules_say() -> None:
    assert parse_level("gain", 3) == 3.0
    assert key_of(gain=2, weight="plain") == key_of(weight="plain")
    assert key_of(gain=2, binarize=[]) == key_of(binarize=[])
    with pytest.raises(ImpossibleCell, match="hardtanh cuts off"):
        key_of(gain=2, act_fn="hardtanh")


@pytest.mark.usefixtures("gain")
def test_the_levels_of_a_declared_factor_reach_the_unit() -> None:
    spec = UnitSpec.of({"bn": "post", "gain": 2.0})
    assert (spec.bn, spec.extra) == ("post", {"gain": 2.0})


@pytest.mark.usefixtures("gain")
def test_rules_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    back_and_forth = Factor(
        "flip",
        (1.0, 2.0),
        1.0,
        "never settles",
        unit="my_module.Flip",
        of_unit=False,
        rules=(Rule("flip=1", "one is two", {"flip": 2.0}), Rule("flip=2", "two is one", {"flip": 1.0})),
    )
    monkeypatch.setitem(FACTORS, "flip", back_and_forth)
    monkeypatch.setitem(REFERENCE, "flip", 1.0)
    with pytest.raises(ConfigError, match="contradict each other: one is two; two is one"):
        key_of()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"name": "two words"}, "must be an identifier", id="a name that is not a key"),
        pytest.param({"reference": 3.0}, "reference 3 is not among its levels", id="a reference that is not a level"),
        pytest.param({"applies": "bn=none", "otherwise": ""}, "needs `otherwise`", id="a scope without a reason"),
    ],
)
def test_a_wrong_declaration_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Factor(**{**vars(GAIN), **changed})  # type: ignore[arg-type]


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ConfigError, match="factor bn: it is declared already"):
        declare(Factor("bn", (1.0,), 1.0, "another bn", unit="my_module.Unit"))


def test_a_factor_of_the_user_names_the_unit_that_implements_it() -> None:
    with pytest.raises(ConfigError, match="`unit` must be the dotted path"):
        declare(Factor("lost", (1.0,), 1.0, "nobody implements it"))


def test_a_factor_of_the_user_that_no_unit_would_see_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be declared with of_unit=False"):
        declare(Factor("lost", (1.0,), 1.0, "nobody reads it", unit="my_module.Unit", of_unit=False))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("nowhere.GAIN", "cannot be imported", id="no module"),
        pytest.param("declared_here.NOTHING", "cannot be imported", id="no such name"),
        pytest.param("declared_here.NUMBER", "it is a int, not a Factor", id="something else"),
    ],
)
def test_a_declaration_that_cannot_be_loaded_is_refused(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "declared_here.py").write_text("NUMBER = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BBCU_FACTORS", path)
    with pytest.raises(ConfigError, match=message):
        load_declarations()
