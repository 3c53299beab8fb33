"""Small networks, units and pictures, built in one line."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bbcu.data.images import Pixels, downscale
from bbcu.data.pairs import Pair
from bbcu.data.sources import InMemory, Picture, Pictures
from bbcu.model.methods import METHODS
from bbcu.model.networks import SRResNet, build
from bbcu.model.parts import NetworkSpec
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit, UnitShape

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def unit(in_channels: int, out_channels: int, **levels: Any) -> BinaryUnit:
    """A unit with these levels, the reference's for the rest, and all values drawn from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = BinaryUnit(UnitShape(in_channels, out_channels), UnitSpec(**levels))
    built.initial_weight(built.weight, built.weight, torch.Generator().manual_seed(0))
    return built


def srresnet(scale: int = 2, channels: int = 8, blocks: int = 1, seed: int = 0, **spec: Any) -> SRResNet:
    """A super-resolution network; ``spec`` goes to NetworkSpec."""
    network = build("srresnet", NetworkSpec(scale, channels, blocks, **spec), seed)
    assert isinstance(network, SRResNet)
    return network


def dncnn(channels: int = 8, blocks: int = 1, seed: int = 0, **spec: Any) -> nn.Module:
    """A denoising network; ``spec`` goes to NetworkSpec."""
    return build("dncnn", NetworkSpec(1, channels, blocks, **spec), seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- pictures --------------------------------------------------------------------------------------------------------

NOBODY = 65534


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Every level as likely as any other: (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(name: str, height: int = 24, width: int = 30, seed: int = 0) -> Picture:
    """A picture of noise in memory."""
    return picture_of(name, noise(height, width, seed))


def picture_of(name: str, pixels: Pixels) -> Picture:
    """A picture of these pixels."""
    return Picture(name, InMemory(pixels, f"somewhere/{name}.png"))


def some_pictures() -> Pictures:
    """Two pictures to train on and two test sets, of several sizes."""
    return Pictures(
        (picture("first", seed=1), picture("second", 31, 25, seed=2)),
        {"SetB": (picture("third", seed=3), picture("fourth", seed=4)), "SetA": (picture("fifth", 25, 27, seed=5),)},
    )


def soft_blobs(seed: int, height: int, width: int) -> Pixels:
    """Flat squares of 4 pixels with a slope on them: edges and smooth parts, as a photograph has."""
    coarse = np.random.default_rng(seed).integers(0, 200, (-(-height // 4), -(-width // 4), 3))
    squares = np.kron(coarse, np.ones((4, 4, 1), dtype=np.int64))[:height, :width]
    slope = np.add.outer(np.arange(height), np.arange(width))[..., None] * 55 // (height + width)
    pixels: Pixels = (squares + slope).astype(np.uint8)
    return pixels


def save(pixels: Pixels, path: Path) -> None:
    """Save as a file of the kind that the path's ending says, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@contextmanager
def without_root_rights() -> Iterator[None]:
    """Drop the rights of root within the ``with`` block, if the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of tmp_path."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# ---- processes -------------------------------------------------------------------------------------------------------


def in_another_process(
    function: Callable[Parameters, Answer], *arguments: Parameters.args, **keywords: Parameters.kwargs
) -> Answer:
    """Return what a function of a test file returns in a fork of this process."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(function, *arguments, **keywords).result()


# ---- methods and pairs -----------------------------------------------------------------------------------------------


def of_method(name: str, seed: int = 0) -> SRResNet:
    """A small network of a published method."""
    method = METHODS[name]
    return srresnet(blocks=2, seed=seed, unit=method.unit, **method.network)


def blobs(seed: int = 0, scale: int = 2) -> Pair:
    """A pair of pictures with edges that bilinear interpolation blurs; the truth has 48 x 48 pixels."""
    truth = soft_blobs(seed, 48, 48)
    return Pair(f"blobs{seed}", truth if scale == 1 else downscale(truth, scale), truth)


def perturbed(module: Any) -> Any:
    """The module in evaluation, with every parameter moved away from the constants that some start at."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()
