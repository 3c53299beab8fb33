"""A factor that a user's package declares: its unit is what is trained, and its code is part of what made a result."""

import pytest

from ablations.space.factors import FACTORS, REFERENCE, Factor
from ablations.trial.changes import own_parts
from ablations.trial.identity import unit_class
from bbcu.errors import ConfigError

NETWORK = {"name": "srresnet", "unit": "binary"}


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two factors, each with a unit of its own, that are declared while a test runs."""
    for name, unit in (("gain", "my_module.GainUnit"), ("noise", "my_module.NoisyUnit")):
        monkeypatch.setitem(FACTORS, name, Factor(name, (1.0, 2.0), 1.0, "a factor of the user's", unit=unit))
        monkeypatch.setitem(REFERENCE, name, 1.0)


def test_the_unit_of_a_factor_is_built_where_the_factor_is_not_at_its_reference() -> None:
    assert unit_class({**REFERENCE, "gain": 2.0}, "binary") == "my_module.GainUnit"
    assert unit_class(REFERENCE, "binary") == "binary"
    assert unit_class(REFERENCE, "other.Unit") == "other.Unit"


@pytest.mark.parametrize(
    ("levels", "of_network"),
    [({"gain": 2.0}, "other.Unit"), ({"gain": 2.0, "noise": 2.0}, "binary")],
    ids=["and network.unit", "of two factors"],
)
def test_two_units_at_once_are_refused(levels: dict[str, float], of_network: str) -> None:
    with pytest.raises(ConfigError, match=r"one kind of unit: gain=2 needs my_module\.GainUnit"):
        unit_class({**REFERENCE, **levels}, of_network)


def test_the_code_of_a_declared_unit_counts_where_it_is_used() -> None:
    assert own_parts({**REFERENCE, "gain": 2.0}, NETWORK) == ("my_module.GainUnit",)
    assert own_parts(REFERENCE, NETWORK) == ()
