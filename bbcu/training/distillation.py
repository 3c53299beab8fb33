r"""Distillation: losses between a network and its teacher, over their outputs or over the maps of their blocks.

A map loss takes two lists of features, (batch, channels, height, width) each, one entry for each block, and returns the
mean over the blocks. The numbers of channels may differ, but for :func:`spatial_loss` and :func:`distribution_loss`.
The teacher gets no gradient. All map losses but :func:`distribution_loss` ignore the size of the features, so that a
network with residual alignment can be taught by one without.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.training.settings import TrainSettings

MapLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]

LEAST_NORM = 1e-12
"""What a map is at least divided by, so that a map of zeros stays zero."""


# --- losses -----------------------------------------------------------------------------------------------------------


def mean_over_blocks(
    loss: Callable[[Tensor, Tensor], Tensor], students: Sequence[Tensor], teachers: Sequence[Tensor]
) -> Tensor:
    """Return the mean of ``loss(student, teacher)`` over the blocks; raises ConfigError for pictures of other sizes."""
    losses = []
    for student, teacher in zip(students, teachers, strict=True):
        ours, theirs = (tuple(features.shape[2:]) for features in (student, teacher))
        if ours != theirs:
            raise ConfigError(f"distil=attention: a block's output is {ours} pixels large, and the teacher's {theirs}")
        losses.append(loss(student, teacher.detach()))
    return torch.stack(losses).mean()


def energy(features: Tensor) -> Tensor:
    """Return the mean of the squares over the channels, (batch, pixels)."""
    return features.square().mean(1).flatten(1)


def attention(features: Tensor) -> Tensor:
    """Return the :func:`energy` of each picture, divided by its L2 norm."""
    return F.normalize(energy(features), dim=1, eps=LEAST_NORM)


def attention_sum_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    r"""Return :math:`\|A_S - A_T\|^2` of the :func:`attention`, mean over pictures and blocks: ``distil=attention``.

    It is between 0 and 2, and about 4 / (C + 2) for unrelated normal features of C channels. Called FRB's,
    reimplemented from the abstract: the paper (ICML 2024) speaks of a normalised attention form and has no code; this
    is the reading of our specification.
    """

    def of_block(student: Tensor, teacher: Tensor) -> Tensor:
        return (attention(student) - attention(teacher)).square().sum(1).mean()

    return mean_over_blocks(of_block, students, teachers)


def attention_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Return :func:`attention_sum_loss` as a mean over pixels, as in the released code of BI-DiffSR (NeurIPS 2024)."""

    def of_block(student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(attention(student), attention(teacher))

    return mean_over_blocks(of_block, students, teachers)


def real_to_binary_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of the :func:`energy`, divided by its maximum over the picture.

    Source: Martinez et al., Real-to-Binary Networks, ICLR 2020, after a third party's code.
    """

    def scaled(features: Tensor) -> Tensor:
        of_pixels = energy(features)
        return of_pixels / of_pixels.amax(1, keepdim=True).clamp_min(LEAST_NORM)

    def of_block(student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(scaled(student), scaled(teacher))

    return mean_over_blocks(of_block, students, teachers)


def spatial_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    r"""Return :math:`\|A_S - A_T\|` of :math:`A = F F^\top`, the products of a channel's rows, over its norm.

    Source: Zheng et al., BiDM, NeurIPS 2024, in the form of BiMaCoSR's code; there with a weight of 4.
    """

    def products(features: Tensor) -> Tensor:
        return F.normalize((features @ features.transpose(2, 3)).flatten(1), dim=1, eps=LEAST_NORM)

    def of_block(student: Tensor, teacher: Tensor) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm(products(student) - products(teacher), dim=1)
        return distance.mean()

    return mean_over_blocks(of_block, students, teachers)


def distribution_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Return the cross entropy of the students' softmax to the teachers', over all values of a picture.

    Made for the logits of a classifier; for images it means nothing, and no level uses it.
    Source: Liu et al., ReActNet, ECCV 2020, and its released code.
    """

    def of_block(student: Tensor, teacher: Tensor) -> Tensor:
        return F.cross_entropy(student.flatten(1), teacher.flatten(1).softmax(1))

    return mean_over_blocks(of_block, students, teachers)


MAP_LOSSES: dict[str, MapLoss] = {
    "attention": attention_loss,
    "attention_sum": attention_sum_loss,
    "real_to_binary": real_to_binary_loss,
    "spatial": spatial_loss,
    "distribution": distribution_loss,
}


# --- a network and its teacher ----------------------------------------------------------------------------------------


def watched(network: nn.Module, settings: TrainSettings) -> list[nn.Module]:
    """Return the modules of ``network`` whose outputs a distillation reads.

    Raises ConfigError for a network without the property ``block_ends``, which lists the modules that end its blocks.
    """
    if settings.distil != "attention":
        return []
    ends = getattr(network, "block_ends", None)
    if not ends:
        name = type(network).__name__
        raise ConfigError(f"distil=attention: {name} needs a property block_ends, the modules that end its blocks")
    return list(ends)


@contextlib.contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that holds the modules' outputs, in their order, once they have been called in the ``with`` block.

    The outputs are in fp32 at least. Nothing of them is kept in the network.
    """
    outputs: dict[int, Tensor] = {}
    collected: list[Tensor] = []

    def keep(place: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, arguments: object, output: Tensor) -> None:
            outputs[place] = output

        return hook

    handles = [module.register_forward_hook(keep(place)) for place, module in enumerate(modules)]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
    in_order = [outputs[place] for place in sorted(outputs)]
    collected += [output.to(torch.promote_types(output.dtype, torch.float32)) for output in in_order]


class Distillation:
    """The loss of a network to its teacher, in each step of a training; a ``teacher`` is changed to evaluation mode.

    Raises ConfigError if a teacher is missing or has no use, and if its blocks are not as many as the network's.
    """

    def __init__(
        self, network: nn.Module, teacher: nn.Module | None, settings: TrainSettings, device: torch.device
    ) -> None:
        self.kind, self.factor, self.teacher = settings.distil, settings.distil_factor, teacher
        self.blocks = watched(network, settings)
        if teacher is None:
            if self.kind != "none":
                raise ConfigError(f"distil={self.kind}: no teacher is given")
            return
        if self.kind == "none":
            raise ConfigError("distil=none: a teacher is given, and nothing would use it")
        self.blocks_of_teacher = watched(teacher, settings)
        ours, theirs = len(self.blocks), len(self.blocks_of_teacher)
        if ours != theirs:
            raise ConfigError(f"distil=attention: the network has {ours} blocks, and its teacher {theirs}")
        teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher.eval().requires_grad_(False)

    def loss(
        self,
        inputs: Tensor,
        outputs: Tensor,
        blocks: Sequence[Tensor],
        autocast: contextlib.AbstractContextManager[None],
    ) -> Tensor:
        """Return the loss of a batch, before its factor; zero without a teacher.

        ``outputs`` and ``blocks`` are the network's for the ``inputs``; the teacher runs under ``autocast``.
        """
        if self.teacher is None:
            return torch.zeros((), device=outputs.device)
        with torch.no_grad(), autocast, outputs_of(self.blocks_of_teacher) as blocks_of_teacher:
            taught = self.teacher(inputs).float()
        if self.kind == "attention":
            return attention_sum_loss(blocks, blocks_of_teacher)
        ours, theirs = tuple(outputs.shape), tuple(taught.shape)
        if ours != theirs:
            raise ConfigError(f"distil=output: the network's output is {ours}, and its teacher's {theirs}")
        return F.l1_loss(outputs, taught)
