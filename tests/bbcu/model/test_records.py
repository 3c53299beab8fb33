"""A spec from the facts of a trial: the same levels as the factors have, and errors for what no network has."""

import dataclasses

import pytest

from ablations.space.factors import FACTORS
from bbcu.errors import ConfigError
from bbcu.model.parts import NetworkSpec
from bbcu.model.records import BOUNDS, LEVELS, OF_NETWORK, OF_TRAINING, checked, spec_of
from bbcu.model.specs import UnitSpec
from tests.harness.deployed import facts_of


def test_the_levels_are_those_of_the_factors() -> None:
    others = {*OF_NETWORK, *OF_TRAINING, "surrogate", "weight"}
    assert {name: factor.levels for name, factor in FACTORS.items() if name not in others} == LEVELS


@pytest.mark.parametrize("scale", [1, 2])
def test_a_spec_is_that_of_the_facts(scale: int) -> None:
    unit = UnitSpec("block", "pre", "after", "prelu", "affine", "ede", "plain", "box", extra={"gain": 2.0})
    spec = NetworkSpec(scale, 8, 3, unit, 7.5, ("head", "tail"), 3, "my_module.Unit", "xavier", True, True)
    if scale == 1:
        # The middle of the noise that the facts' task trains with, 0 to 75.
        spec = dataclasses.replace(spec, noise_level=37.5 / 255)
    facts = facts_of(spec)
    assert spec_of(facts["factors"], facts["setting"]) == spec


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_out_of_range_is_refused(name: str) -> None:
    spec = NetworkSpec(2, 8, 1)
    for bound in BOUNDS[name]:
        checked(dataclasses.replace(spec, **{name: bound}))
    for value in (BOUNDS[name][0] - 1, BOUNDS[name][1] + 1, 2.0, "2", None, True):
        with pytest.raises(ConfigError, match=f"{name}={value}: must be a whole number"):
            checked(dataclasses.replace(spec, **{name: value}))
