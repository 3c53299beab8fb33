"""A user's own pictures: what a restorer returns for each kind, in tiles or not, and which files are used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bbcu
from bbcu.data.images import Pixels, brightness, rounded, upscale
from bbcu.data.tasks import ArtifactReduction, SuperResolution
from bbcu.deploy import restoring
from bbcu.deploy.packed import DeployError, pack
from bbcu.deploy.restoring import Job, Restorer, check, plan
from bbcu.errors import BbcuError, ConfigError, DataError
from bbcu.model.networks import build
from bbcu.model.parts import Convolution, NetworkSpec
from bbcu.training.evaluation import restore
from bbcu.training.loop import TrainingDiverged
from tests.harness.builders import dncnn, noise, perturbed, save, soft_blobs, srresnet

CPU = torch.device("cpu")
HEIGHT, WIDTH = 12, 10
COLOUR = soft_blobs(0, HEIGHT, WIDTH)
GRAY, ALPHA = COLOUR[..., :1], noise(HEIGHT, WIDTH)[..., :1]
X2, SAME, OF_GRAY = perturbed(srresnet()), perturbed(dncnn()), perturbed(dncnn(colours=1))


def joined(*pictures: Pixels) -> Pixels:
    return np.concatenate(pictures, axis=2)


# --- kinds of pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [X2, SAME, pack(X2)], ids=["enlarged", "of the same size", "packed"])
def test_a_colour_picture_is_what_the_network_returns(network: nn.Module) -> None:
    np.testing.assert_array_equal(bbcu.Restorer(network)(COLOUR), restore(network, COLOUR, CPU))


@pytest.mark.parametrize("network", [X2, SAME], ids=["enlarged", "of the same size"])
def test_a_gray_picture_stays_gray_in_a_network_of_colours(network: nn.Module) -> None:
    found = Restorer(network)(GRAY)
    output = restore(network, GRAY.repeat(3, axis=2), CPU)
    np.testing.assert_array_equal(found, rounded(brightness(output)))
    np.testing.assert_array_equal(Restorer(network)(GRAY[..., 0]), found[..., 0])


def test_a_gray_picture_in_a_network_of_gray_pictures_is_what_it_returns() -> None:
    np.testing.assert_array_equal(Restorer(OF_GRAY)(GRAY), restore(OF_GRAY, GRAY, CPU))


def test_a_colour_picture_keeps_its_colours_in_a_network_of_gray_pictures() -> None:
    found = Restorer(OF_GRAY)(COLOUR).astype(np.int16)
    before = rounded(brightness(COLOUR))
    change = restore(OF_GRAY, before, CPU).astype(np.int16) - before
    assert np.abs(change).max() > 0
    np.testing.assert_array_equal(found, (COLOUR + change).clip(0, 255))


def test_an_enlarged_colour_picture_has_its_colours_from_the_baseline_in_a_network_of_gray_pictures() -> None:
    network = perturbed(srresnet(colours=1))
    larger, before = upscale(COLOUR, 2), upscale(rounded(brightness(COLOUR)), 2)
    change = restore(network, rounded(brightness(COLOUR)), CPU).astype(np.int16) - before
    np.testing.assert_array_equal(Restorer(network)(COLOUR), (larger + change).clip(0, 255))


@pytest.mark.parametrize("colours", [COLOUR, GRAY], ids=["colour", "gray"])
def test_alpha_is_kept_and_enlarged_as_the_baseline_does(colours: Pixels) -> None:
    same, enlarged = Restorer(SAME), Restorer(X2)
    np.testing.assert_array_equal(same(joined(colours, ALPHA)), joined(same(colours), ALPHA))
    np.testing.assert_array_equal(enlarged(joined(colours, ALPHA)), joined(enlarged(colours), upscale(ALPHA, 2)))


@pytest.mark.parametrize(
    "array",
    [COLOUR / 255, COLOUR[None], COLOUR[:0], np.zeros((4, 4, 5), np.uint8), np.zeros(4, np.uint8)],
    ids=["floats", "a batch", "no rows", "five channels", "one axis"],
)
def test_an_array_that_is_no_picture_is_refused(array: Pixels) -> None:
    with pytest.raises(DeployError, match=r"^a picture is uint8 of \(height, width\)"):
        Restorer(SAME)(array)


# --- networks ---------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A network of a user's own, which says neither its spec nor its radius."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perturbed(Convolution(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.body(x)
        return output


def test_a_network_of_ones_own_is_run_if_its_form_is_given() -> None:
    own = Own()
    np.testing.assert_array_equal(Restorer(own, form=(1, 3))(COLOUR), restore(own, COLOUR, CPU))
    with pytest.raises(ConfigError, match=r"^Own: a network of your own that has no spec"):
        Restorer(own)


def test_an_output_that_is_no_picture_is_refused() -> None:
    broken = Own()
    nn.init.constant_(broken.body.bias, torch.nan)
    with pytest.raises(TrainingDiverged):
        Restorer(broken, form=(1, 3))(COLOUR)


class Hungry(Own):
    """Asks for more memory than any machine has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**50)


def test_a_lack_of_memory_is_one_line() -> None:
    with pytest.raises(DeployError, match=r"^there is not enough memory; smaller tiles need less$"):
        Restorer(Hungry(), form=(1, 3))(COLOUR)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (srresnet(colours=4), {}, "pictures of 4 channels, which are not gray or RGB"),
        (X2, {"tile": -1}, "tile=-1: must be 0 or more"),
        (X2, {"device": "tpu"}, "device=tpu: must be auto, cpu, cuda"),
        (pack(X2), {"device": "cuda"}, "device=cuda: a packed network runs on the CPU only"),
        (Own(), {"tile": 8, "form": (1, 3)}, "tile=8: Own must have a property radius"),
    ],
    ids=["channels", "tile", "device", "packed", "radius"],
)
def test_what_cannot_run_is_refused_before_any_picture(
    network: nn.Module, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BbcuError) as error:
        Restorer(network, **options)  # type: ignore[arg-type]
    assert message in str(error.value)


# --- tiles ------------------------------------------------------------------------------------------------------------

RCAN = build("rcan", NetworkSpec(2, 8, 1, align=16.25, groups=1), 0)
LARGE = soft_blobs(1, 30, 44)


@pytest.mark.parametrize("network", [X2, SAME, OF_GRAY], ids=["enlarged", "of the same size", "gray"])
def test_a_large_picture_is_restored_in_tiles_which_change_nothing(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = Restorer(network, tile=0)(LARGE), list[int]()
    monkeypatch.setattr(restoring, "LARGEST_OUTPUT", 32)
    np.testing.assert_array_equal(Restorer(network)(LARGE, pieces.append), whole)
    assert len(pieces) == (6 if network is X2 else 2)
    assert sum(pieces) == 30 * 44


@pytest.mark.parametrize(
    ("tile", "height", "width", "expected"),
    [(None, 512, 512, 0), (None, 513, 512, 512), (None, 200, 1200, 0), (0, 9000, 9000, 0), (64, 20, 20, 64)],
)
def test_the_tile_is_that_of_the_user_or_of_so_many_output_pixels(
    tile: int | None, height: int, width: int, expected: int
) -> None:
    assert Restorer(X2, tile=tile).tile_for(height, width) == expected


def test_a_network_that_averages_over_the_picture_is_run_whole_and_says_so() -> None:
    restorer = Restorer(RCAN)
    assert restorer.tile_for(2000, 2000) == 0
    assert restorer.is_too_large(2000, 2000)
    assert not restorer.is_too_large(20, 20)
    assert not Restorer(X2).is_too_large(2000, 2000)
    with pytest.raises(ConfigError, match=r"^tile=64: a part of this network averages over the whole picture"):
        Restorer(RCAN, tile=64)


# --- which files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.png", "a.bmp", "notes.txt"):
        save(COLOUR, tmp_path / "photos" / name.replace("txt", "png"))
    (tmp_path / "photos" / "notes.png").rename(tmp_path / "photos" / "notes.txt")
    save(COLOUR, tmp_path / "c.png")
    return tmp_path / "photos"


def test_the_pictures_of_a_folder_are_written_under_their_names(photos: Path, tmp_path: Path) -> None:
    out, single = tmp_path / "out", tmp_path / "c.png"
    pictures = [photos / "a.bmp", photos / "b.png", single]
    assert plan([photos, single], out) == [Job(path, out / f"{path.stem}.png") for path in pictures]


def test_a_truth_has_the_name_of_its_picture_with_or_without_the_scale(photos: Path, tmp_path: Path) -> None:
    save(COLOUR, tmp_path / "low" / "ax2.png")
    save(COLOUR, tmp_path / "low" / "b.png")
    jobs = plan([tmp_path / "low"], tmp_path / "out", photos, scale=2)
    assert [job.truth for job in jobs] == [photos / "a.bmp", photos / "b.png"]
    (single,) = plan([tmp_path / "c.png"], tmp_path / "out", photos / "b.png")
    assert single.truth == photos / "b.png"


def test_what_would_be_lost_or_is_unclear_is_refused(photos: Path, tmp_path: Path) -> None:
    single, out = tmp_path / "c.png", tmp_path / "out"
    save(COLOUR, out / "b.png")
    save(COLOUR, tmp_path / "more" / "a.png")

    def refusal(*arguments: object, **options: object) -> str:
        with pytest.raises(BbcuError) as error:
            plan(*arguments, **options)  # type: ignore[arg-type]
        return str(error.value)

    same = refusal([photos, tmp_path / "more" / "a.png"], tmp_path)
    assert same.startswith(f"{tmp_path / 'a.png'}: 2 pictures would be written to it: {photos / 'a.bmp'}, ")
    assert refusal([photos], out) == f"{out / 'b.png'}: exists already; --overwrite replaces it"
    own = f"{photos / 'b.png'}: would be overwritten; give another folder as --out"
    assert refusal([photos], photos, overwrite=True) == own
    (tmp_path / "link").symlink_to(photos)
    assert refusal([photos], tmp_path / "link", overwrite=True) == own
    truth = refusal([photos / "b.png"], tmp_path, single.rename(tmp_path / "b.png"), overwrite=True)
    assert truth == f"{tmp_path / 'b.png'}: would be overwritten; give another folder as --out"
    assert refusal([photos], tmp_path, photos / "b.png").endswith("is one picture for 2; give a folder")
    assert refusal([photos], tmp_path, tmp_path / "more") == (
        f"{photos / 'b.png'}: has no truth; there is no b in {tmp_path / 'more'}"
    )
    assert [job.output for job in plan([photos], out, overwrite=True)] == [out / "a.png", out / "b.png"]


def test_a_truth_must_have_the_size_of_the_result(tmp_path: Path) -> None:
    save(noise(9, 10), tmp_path / "low.png")
    save(noise(19, 21), tmp_path / "truth.png")
    save(noise(22, 20), tmp_path / "other.png")
    low, task = tmp_path / "low.png", SuperResolution(2)
    (info,) = check([Job(low, tmp_path / "out.png", tmp_path / "truth.png")], task)
    assert (info.height, info.width) == (9, 10)
    with pytest.raises(DataError, match=r"low\.png: the input is 10 x 9 pixels; .*other\.png shrunk by 2 is 10 x 11"):
        check([Job(low, tmp_path / "out.png", tmp_path / "other.png")], task)
    with pytest.raises(DataError, match="needs at least 11 x 11"):
        check([Job(low, tmp_path / "out.png", low)], ArtifactReduction((10,), (1, 50)))
