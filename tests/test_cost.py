"""Operations and parameters as the paper counts them; every expected number stands as its sum."""

import pytest
import torch
from builders import srresnet

from bbcu.cost import Cost, count
from bbcu.units import UnitSpec

PIXELS = 320 * 180
HEAD = 3 * 64 * 9
BODY = 32 * 64 * 64 * 9
UPSAMPLING = 64 * 256 * 9
REFINE = 64 * 64 * 9
TAIL = 64 * 3 * 9


def test_a_full_sized_bbcu_l_costs_what_the_paper_prints() -> None:
    total = count(srresnet(channels=64, blocks=16)).total
    assert total.ops == PIXELS * (HEAD + BODY / 64 + UPSAMPLING + 4 * (REFINE + TAIL))
    assert total.params == HEAD + BODY / 32 + UPSAMPLING + REFINE + TAIL
    assert round(total.ops / 1e9, 2) == 18.55
    assert round(total.params / 1e3) == 225


def test_each_part_is_counted_on_its_own() -> None:
    parts = count(srresnet(channels=64, blocks=16)).parts
    assert parts == {
        "head": Cost(PIXELS * HEAD, HEAD),
        "body": Cost(PIXELS * BODY / 64, BODY / 32),
        "up": Cost(PIXELS * (UPSAMPLING + 4 * REFINE), UPSAMPLING + REFINE),
        "tail": Cost(PIXELS * 4 * TAIL, TAIL),
    }


@pytest.mark.parametrize("spec", [UnitSpec(bn="post"), UnitSpec(act="none"), UnitSpec(residual=False)], ids=str)
def test_batchnorm_activations_and_residuals_count_nothing(spec: UnitSpec) -> None:
    assert count(srresnet(unit=spec)) == count(srresnet())


def test_operations_grow_with_the_input_and_parameters_do_not() -> None:
    network = srresnet()
    small, large = count(network, 10, 10).total, count(network, 20, 10).total
    assert (large.ops, large.params) == (2 * small.ops, small.params)


def test_counting_leaves_the_network_as_it_was() -> None:
    network = srresnet(unit=UnitSpec(bn="post"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count(network)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
