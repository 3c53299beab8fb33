"""The layout of a network of this package: what is needed to assemble another one with the same tensors."""

from dataclasses import dataclass

from torch import nn

from bbcu.deploy.packed import DeployError
from bbcu.model.checkpoints import UnpairedBody
from bbcu.model.networks import NETWORKS, DnCNN
from bbcu.model.parts import Body, NetworkSpec, RestorationNetwork

PAIRED = ("srresnet", "dncnn")
"""The networks whose body is a row of convolutions in pairs."""


@dataclass(frozen=True)
class Layout:
    """A network's name in :data:`NETWORKS`, its spec, and the number of its body's convolutions.

    ``layers`` is 2 * blocks, or one less in a released DnCNN with an odd number; None for networks that are not
    :data:`PAIRED`, whose spec says it all.
    """

    kind: str
    spec: NetworkSpec
    layers: int | None


def layout_of(network: nn.Module) -> Layout:
    """Return the layout of a network; raises DeployError for one of a user's own class."""
    kind = next((name for name, class_ in NETWORKS.items() if type(network) is class_), None)
    if kind is None:
        raise DeployError(f"{_class_of(network)} is a network of your own; it must be one of {', '.join(NETWORKS)}")
    assert isinstance(network, RestorationNetwork)
    body = network.body
    if kind not in PAIRED:
        if type(body).__module__.partition(".")[0] not in ("bbcu", "torch"):
            raise DeployError(f"the body is a {_class_of(body)}, a part of your own")
        return Layout(kind, network.spec, None)
    if type(body) not in (Body, UnpairedBody, nn.Sequential):
        raise DeployError(f"the body is a {_class_of(body)}, a part of your own")
    if isinstance(body, Body):
        return Layout(kind, network.spec, len(body.units))
    return Layout(kind, network.spec, len(body) * (2 if kind == "srresnet" else 1))  # type: ignore[arg-type]


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def assembled(layout: Layout) -> nn.Module:
    """Return a new network of this layout without initial values; raises DeployError for one that is impossible."""
    spec = layout.spec
    network = NETWORKS[layout.kind](spec)
    if layout.layers == (2 * spec.blocks if layout.kind in PAIRED else None):
        return network
    is_plain = spec.unit.residual is True and not spec.accumulate
    if not isinstance(network, DnCNN) or layout.layers != 2 * spec.blocks - 1 or not is_plain:
        raise DeployError(
            f"a {layout.kind} of {spec.blocks} blocks cannot have {layout.layers} convolutions in its body"
        )
    if isinstance(network.body, Body):
        network.body = UnpairedBody(spec, bias=spec.colours == 1)
    else:
        assert isinstance(network.body, nn.Sequential)
        network.body = network.body[: layout.layers]
    return network
