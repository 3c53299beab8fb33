"""Image restoration networks: those of the BBCU paper, and the table of all networks by their name."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.initialisation import initialise, small_normal, uniform
from bbcu.model.parts import (
    NEGATIVE_SLOPE,
    BinaryHead,
    Body,
    Convolution,
    FullBlock,
    FullDenoisingUnit,
    NetworkSpec,
    RestorationNetwork,
    Upsampler,
    require_full_tail,
)
from bbcu.model.registry import create, errors_of_own
from bbcu.model.specs import PARTS
from bbcu.model.super_resolution import EDSR, RCAN, RDN, without_residual
from bbcu.model.unets import DRUNet, UNet
from bbcu.model.units import UnitShape


class SRResNet(RestorationNetwork):
    """The super-resolution network of the paper: head, body, upsampler, tail, and a bilinear skip connection.

    Input (batch, colours, height, width) in [0, 1], output ``scale`` times that size. BBCU-L is ``channels=64,
    blocks=16, binarize=("body",)``, BBCU-M ``("body", "up")``.
    Source: Xia et al., Basic Binary Convolution Unit, ICLR 2023, and its released network.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        require_full_tail("srresnet", spec)
        super().__init__(spec)
        binary = {part: part in spec.binarize for part in PARTS}
        self.head = BinaryHead(spec) if binary["head"] else Convolution(spec.colours, spec.channels)
        full_blocks = (FullBlock(spec.channels) for _ in range(spec.blocks))
        self.body = Body(spec) if binary["body"] else nn.Sequential(*full_blocks)
        self.up = Upsampler(spec)
        tail_shape = UnitShape(spec.channels, spec.colours, initial_weight=small_normal)
        self.tail = spec.binary_unit(tail_shape) if binary["tail"] else Convolution(spec.channels, spec.colours)

    @property
    def reach(self) -> int:
        sizes, reach = 1, 1.0 + 2 * self.spec.blocks
        for ratio in self.up.ratios:
            reach += 1 / sizes
            sizes *= ratio
        # Two more convolutions at the size of the output: the last of the upsampler and the tail.
        return math.ceil(reach + 2 / sizes)

    def skip(self, x: Tensor) -> Tensor:
        """Return the skip connection: the output if the layers added nothing."""
        return F.interpolate(x, scale_factor=float(self.spec.scale), mode="bilinear", align_corners=False)

    def restore(self, aligned: Tensor) -> Tensor:
        features = self.head_features(aligned)
        if not isinstance(self.head, BinaryHead):
            features = F.leaky_relu(features, NEGATIVE_SLOPE)
        features = self.up(self.body(features))
        skip = self.skip(aligned)
        # The skip connection is the residual of BBCU-T; the network has it even if units have no residuals.
        if "tail" in self.spec.binarize and self.spec.unit.residual is not False:
            restored: Tensor = self.tail(features, skip)
        else:
            restored = self.tail(features) + skip
        return restored


class DnCNN(RestorationNetwork):
    """The denoising network of the paper: head, body and tail, whose output is subtracted from the input.

    Input and output (batch, colours, height, width) in [0, 1]. The paper's 20 layers are ``blocks=9``. As in the
    released networks, a binary one has biases for gray images and none for colour; full precision always has them.
    Raises ConfigError for a scale other than 1 and for binary upsampling.
    Source: Zhang et al., Beyond a Gaussian Denoiser, TIP 2017; the released DnCNN_b and DnCNN3_b of BBCU.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        if spec.scale != 1:
            raise ConfigError(
                f"network=dncnn: its output has the size of its input, and the task's scale is {spec.scale}"
            )
        if "up" in spec.binarize:
            raise ConfigError("binarize: a DnCNN has no upsampling; its parts are head, body and tail")
        require_full_tail("dncnn", spec)
        super().__init__(spec)
        bias = spec.colours == 1 or not spec.binarize
        binary = {part: part in spec.binarize for part in PARTS}
        full = functools.partial(Convolution, bias=bias, initial_weight=uniform, initial_bias=uniform)
        self.head = BinaryHead(spec) if binary["head"] else full(spec.colours, spec.channels)
        full_layers = (FullDenoisingUnit(spec.channels) for _ in range(2 * spec.blocks))
        self.body = Body(spec, bias=bias) if binary["body"] else nn.Sequential(*full_layers)
        shape, of_tail = UnitShape(spec.channels, spec.colours, bias=bias), without_residual(spec)
        self.tail = of_tail.binary_unit(shape) if binary["tail"] else full(spec.channels, spec.colours)

    @property
    def reach(self) -> int:
        return 2 * self.spec.blocks + 2

    def skip(self, x: Tensor) -> Tensor:
        """Return the skip connection: the output if the layers subtracted nothing."""
        return x

    def restore(self, aligned: Tensor) -> Tensor:
        features = self.head_features(aligned)
        if not isinstance(self.head, BinaryHead):
            features = F.relu(features)
        noise: Tensor = self.tail(self.body(features))
        return aligned - noise


SIDE = 32
"""The side of the picture with which a network of the user's is checked, in pixels."""

NETWORKS: dict[str, type[nn.Module]] = {
    "srresnet": SRResNet,
    "dncnn": DnCNN,
    "edsr": EDSR,
    "rcan": RCAN,
    "rdn": RDN,
    "drunet": DRUNet,
    "unet": UNet,
}


def assemble(name: str, spec: NetworkSpec) -> nn.Module:
    """Return the network by its name or the dotted path of a class that takes a NetworkSpec, without initial values.

    Raises ConfigError for an unknown name, and for a user's class that raises an error.
    """
    network: nn.Module = create("network.name", name, NETWORKS, nn.Module, spec)
    return network


def check_shape(name: str, network: nn.Module, spec: NetworkSpec) -> None:
    """Raise ConfigError unless a network of the user's, on meta, has parameters and enlarges a picture by the scale."""
    if name in NETWORKS:
        return
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"network.name={name}: it has no parameters to train")
    with errors_of_own("network.name", name), torch.no_grad():
        made = tuple(network(torch.empty(2, spec.colours, SIDE, SIDE, device="meta")).shape)
    wanted = (2, spec.colours, spec.scale * SIDE, spec.scale * SIDE)
    if made != wanted:
        raise ConfigError(f"network.name={name}: its output for {SIDE} x {SIDE} pixels must be {wanted}, and is {made}")


def build(name: str, spec: NetworkSpec, seed: int) -> nn.Module:
    """Return the network by its name or the dotted path of its class, with the initial values of ``seed``.

    In a user's own network, modules with an ``initial_weight`` or ``initial_bias`` get initial values that depend on
    the seed and their name. Raises ConfigError for an unknown name.
    """
    network = assemble(name, spec)
    initialise(network, seed)
    return network
