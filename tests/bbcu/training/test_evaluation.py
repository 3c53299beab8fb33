"""Whole pictures through a network: as they are, in eight symmetries, in tiles; and the scores of what comes out."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bbcu.data.images import Pixels, to_tensor
from bbcu.data.pairs import Pair
from bbcu.data.tasks import Denoising, Input, Score, SuperResolution
from bbcu.errors import ConfigError
from bbcu.model.parts import binary_units
from bbcu.model.specs import UnitSpec
from bbcu.training.evaluation import Evaluation, _run, evaluate, mean_score, radius_of, restore
from bbcu.training.loop import TrainingDiverged
from tests.harness.builders import blobs, dncnn, soft_blobs, srresnet

CPU = torch.device("cpu")
WHOLE, ENSEMBLE = Evaluation(), Evaluation(self_ensemble=True)


def off_the_threshold(network: nn.Module) -> nn.Module:
    """Move the thresholds as a training does.

    At the start they are zero, and so is what a ReLU holds back plus bits that cancel out: a tie, whose sign hangs on
    the order in which numbers are added.
    """
    for number, unit in enumerate(binary_units(network)):
        assert unit.threshold is not None
        nn.init.constant_(unit.threshold, 0.01 * (number + 1))
    return network


# ---- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [WHOLE, ENSEMBLE, Evaluation(tile=7)], ids=["whole", "ensemble", "tiles"])
def test_every_picture_is_restored_in_this_way_scored_and_shown(how: Evaluation) -> None:
    network, task, pairs = srresnet(), SuperResolution(2), (blobs(2), blobs(3))
    shown: list[tuple[str, Pair, Pixels]] = []
    scores = evaluate(network, {"A": pairs}, task, CPU, how, on_picture=lambda *picture: shown.append(picture))
    restored = [restore(network, pair.input, CPU, how) for pair in pairs]
    expected = {pair.name: task.score(output, pair.truth) for pair, output in zip(pairs, restored, strict=True)}
    assert scores == {"A": expected}
    assert [(name, pair) for name, pair, _ in shown] == [("A", pair) for pair in pairs]
    np.testing.assert_array_equal([output for *_, output in shown], restored)


def test_evaluation_uses_running_statistics() -> None:
    """In evaluation a picture's score does not depend on which others are scored beside it."""
    network = srresnet(unit=UnitSpec(bn="post"))
    alone = evaluate(network, {"A": (blobs(2),)}, SuperResolution(2), CPU)
    beside = evaluate(network, {"A": (blobs(3), blobs(2))}, SuperResolution(2), CPU)
    assert alone["A"]["blobs2"] == beside["A"]["blobs2"]


def test_a_sets_score_is_the_mean_of_its_pictures() -> None:
    assert mean_score({"a": Score(30.0, 0.8), "b": Score(40.0, 0.9)}) == Score(35.0, pytest.approx(0.85))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_no_picture_is_a_divergence(value: float) -> None:
    network = nn.Conv2d(3, 3, 1, bias=False)
    network.weight.data.fill_(value)
    with pytest.raises(TrainingDiverged, match="nan or inf"):
        restore(network, blobs().input, CPU)


def test_an_input_between_and_beyond_the_levels_reaches_the_network_as_it_is() -> None:
    half = nn.Conv2d(3, 3, 1, bias=False)
    half.weight.data.copy_(0.5 * torch.eye(3)[..., None, None])
    input = np.array([[[300.0, 101.0, -40.0]]], dtype=np.float32)
    assert restore(half, input, CPU).tolist() == [[[150, 51, 0]]]


# ---- self-ensemble ---------------------------------------------------------------------------------------------------


def symmetry(image: NDArray[Any], number: int) -> NDArray[Any]:
    """One of the 8 symmetries of a picture (height, width, channels): perhaps a flip, then quarter turns."""
    return np.rot90(image[:, ::-1] if number >= 4 else image, number % 4)


def undone(image: NDArray[Any], number: int) -> NDArray[Any]:
    upright = np.rot90(image, -(number % 4))
    return upright[:, ::-1] if number >= 4 else upright


def mean_over_symmetries(network: nn.Module, picture: Pixels) -> NDArray[np.float64]:
    """The self-ensemble spelt out: (height, width, channels) on the scale of 0 to 255, not rounded."""
    outputs = []
    for number in range(8):
        turned = np.ascontiguousarray(symmetry(picture, number))
        with torch.inference_mode():
            output = network.eval()(to_tensor(turned)[None])[0]
        outputs.append(undone(output.permute(1, 2, 0).numpy().astype(np.float64), number))
    mean: NDArray[np.float64] = np.mean(outputs, axis=0) * 255
    return mean


def lopsided(scale: int = 1) -> nn.Module:
    """A network that no symmetry leaves alone, and that says how far it sees."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 3 * scale**2, 3, padding=1, bias=False)
    nn.init.uniform_(convolution.weight, 0, 0.07)
    return nn.Sequential(convolution, nn.PixelShuffle(scale))


@pytest.mark.parametrize(
    ("network", "height", "width"),
    [
        pytest.param(lopsided(), 13, 18, id="of the same size"),
        pytest.param(lopsided(2), 11, 14, id="enlarged"),
        pytest.param(lopsided(3), 9, 9, id="square"),
        pytest.param(srresnet(binarize=()), 12, 15, id="srresnet"),
        pytest.param(off_the_threshold(dncnn()), 12, 15, id="dncnn"),
    ],
)
def test_self_ensemble_is_the_mean_of_the_outputs_for_the_eight_symmetries(
    network: nn.Module, height: int, width: int
) -> None:
    picture = soft_blobs(0, height, width)
    mean = mean_over_symmetries(network, picture)
    found = restore(network, picture, CPU, ENSEMBLE)
    assert found.shape == mean.shape
    # Where the mean lies between two levels to within the precision of float32, either is right.
    assert np.abs(found - mean.clip(0, 255)).max() <= 0.5 + 1e-3
    assert not np.array_equal(found, restore(network, picture, CPU))


# ---- how far a network sees ------------------------------------------------------------------------------------------


def seeing_everything(network: nn.Module) -> nn.Module:
    """Weights and biases above zero, so that no ReLU closes and nothing cancels out: every path counts."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.1)
    return network.double().eval()


def reach(network: nn.Module, side: int, scale: int) -> int:
    """How many input pixels away from a changed one the farthest changed output pixel is."""
    middle = side // 2
    before = torch.full((1, 3, side, side), 0.5, dtype=torch.float64)
    after = before.clone()
    after[0, :, middle, middle] = 0
    with torch.inference_mode():
        changed = (network(after) != network(before)).any(dim=1)[0]
    places = changed.nonzero() // scale
    return int((places - middle).abs().max())


@pytest.mark.parametrize(
    "network",
    [
        *(srresnet(scale, 4, blocks, binarize=()) for scale in (1, 2, 3, 4) for blocks in (1, 2)),
        *(dncnn(4, blocks, binarize=()) for blocks in (1, 2)),
    ],
    ids=lambda network: f"{type(network).__name__} x{network.spec.scale}, {network.spec.blocks} blocks",
)
def test_a_pixel_reaches_as_far_as_the_radius_and_no_farther(network: nn.Module) -> None:
    radius = radius_of(network)
    assert reach(seeing_everything(network), 2 * radius + 7, network.spec.scale) == radius


PARTS = ("head", "body", "up", "tail")


@pytest.mark.parametrize(
    "network",
    [
        *(
            pytest.param(
                srresnet(scale, binarize=binarize, accumulate=accumulate, standardise=True),
                id=f"srresnet x{scale} {binarize} {accumulate}",
            )
            for scale in (2, 3, 4)
            for binarize in (("body",), PARTS)
            for accumulate in (False, True)
        ),
        pytest.param(dncnn(), id="dncnn"),
        pytest.param(dncnn(binarize=("head", "body", "tail")), id="dncnn, everything"),
    ],
)
def test_no_pixel_of_a_binary_network_reaches_farther_than_its_radius(network: nn.Module) -> None:
    assert 0 < reach(network.double().eval(), 2 * radius_of(network) + 7, network.spec.scale) <= radius_of(network)


def test_a_network_that_does_not_say_how_far_it_sees_cannot_be_run_in_tiles() -> None:
    with pytest.raises(ConfigError, match=r"^evaluation\.tile: Sequential must have a property radius"):
        restore(lopsided(), soft_blobs(0, 12, 12), CPU, Evaluation(tile=8))


def test_a_picture_that_fits_into_a_tile_needs_no_radius() -> None:
    picture = soft_blobs(0, 12, 10)
    np.testing.assert_array_equal(
        restore(lopsided(), picture, CPU, Evaluation(tile=12)), restore(lopsided(), picture, CPU)
    )


# ---- tiles -----------------------------------------------------------------------------------------------------------

TILED = [
    *(pytest.param(srresnet(scale, 4), id=f"binary srresnet x{scale}") for scale in (2, 3, 4)),
    *(pytest.param(srresnet(scale, 4, binarize=()), id=f"full srresnet x{scale}") for scale in (2, 3, 4)),
    pytest.param(srresnet(4, 4, binarize=PARTS), id="binary srresnet x4, every part"),
    pytest.param(off_the_threshold(dncnn(4)), id="binary dncnn"),
    pytest.param(dncnn(4, binarize=()), id="full dncnn"),
]
SIZES = [
    pytest.param(23, 17, 8, id="no multiple"),
    pytest.param(16, 24, 8, id="a multiple"),
    pytest.param(13, 12, 1, id="tiles of one pixel"),
    pytest.param(11, 19, 3, id="tiles smaller than the radius"),
    pytest.param(9, 21, 10, id="one row of tiles"),
    pytest.param(21, 9, 20, id="a last tile of one pixel"),
]


@pytest.mark.parametrize("network", TILED)
@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
def test_tiles_change_nothing(network: nn.Module, height: int, width: int, tile: int) -> None:
    exact = network.double().eval()
    batch = to_tensor(soft_blobs(0, height, width))[None].double()
    with torch.inference_mode():
        torch.testing.assert_close(_run(exact, batch, tile), exact(batch), rtol=0, atol=1e-12)


NOISY, _ = Denoising((50.0,), (0.0, 75.0)).test_pair(soft_blobs(4, 37, 50), "")


@pytest.mark.parametrize(
    ("network", "picture"),
    [
        pytest.param(srresnet(), soft_blobs(4, 61, 50), id="binary srresnet"),
        pytest.param(srresnet(3, binarize=()), soft_blobs(4, 61, 50), id="full srresnet"),
        pytest.param(off_the_threshold(dncnn()), soft_blobs(4, 61, 50), id="binary dncnn"),
        pytest.param(off_the_threshold(dncnn()), NOISY, id="noise"),
    ],
)
@pytest.mark.parametrize("how", [WHOLE, ENSEMBLE], ids=["plain", "self-ensemble"])
def test_a_picture_comes_out_of_tiles_byte_for_byte(network: nn.Module, picture: Input, how: Evaluation) -> None:
    tiled = Evaluation(how.self_ensemble, tile=24)
    np.testing.assert_array_equal(restore(network, picture, CPU, tiled), restore(network, picture, CPU, how))


class Largest(nn.Module):
    """Notes the largest side that it is given."""

    radius = 2

    def __init__(self) -> None:
        super().__init__()
        self.side = 0

    def forward(self, x: Tensor) -> Tensor:
        self.side = max(self.side, *x.shape[2:])
        return x


@pytest.mark.parametrize(("tile", "side"), [(16, 16 + 2 * Largest.radius), (0, 70)])
def test_a_tile_bounds_what_is_run_at_once(tile: int, side: int) -> None:
    network, picture = Largest(), soft_blobs(0, 40, 70)
    np.testing.assert_array_equal(restore(network, picture, CPU, Evaluation(tile=tile)), picture)
    assert network.side == side
