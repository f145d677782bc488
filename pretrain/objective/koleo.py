"""KoLeo of a batch that ranks and micro-batches share: exact whichever images are computed together.

Neighbours are sought among consecutive images of the whole batch. Where no such group spans two micro-batches, each has
its own KoLeo. Otherwise a first pass gives all cls tokens, and from these KoLeo and its gradient with respect to each
token; the usual pass then needs only the product of that gradient with the tokens of its micro-batch, whose derivative
is KoLeo's by the chain rule. Both passes see the same weights, crops and draws, so nothing is approximated.

How micro-batches are weighted. Of N images in all a rank has n, and one of its micro-batches m. A step's gradient is
the mean over R ranks of the sum over a rank's micro-batches, each loss times m · R / N (`distillation.backward`). With
g = ∂KoLeo/∂token a micro-batch therefore adds N / m · Σ g · token to its loss: m · R / N of that, averaged over R
ranks, is Σ g · token over all images. `World.gather` hands back N / n · g; what remains is a factor n / m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pretrain.objective.losses import koleo_loss
from pretrain.runtime.distributed import ALONE, World


@dataclass(frozen=True)
class KnownKoleo:
    """KoLeo of the whole batch, for one of its micro-batches.

    value     () float32
    gradient  (2·m, D) float32, of the micro-batch's cls tokens, weighted as its mean is (see above)
    """

    value: torch.Tensor
    gradient: torch.Tensor

    def term(self, cls: torch.Tensor) -> torch.Tensor:
        """Return the value, with the gradient with respect to the micro-batch's (2·m, D) cls tokens."""
        product = (self.gradient * cls.float()).sum()
        return self.value + (product - product.detach())


def spans_micro_batches(counts: Sequence[tuple[int, ...]], group: int | None) -> bool:
    """Whether some group of `group` consecutive images (None: all) may lie in more than one micro-batch.

    counts  images of every rank, for each micro-batch. A batch is ordered by rank and then by micro-batch: every share
            but the last one must be whole groups
    """
    if len(counts) == 1:
        return False
    shares = [images for of_ranks in counts for images in of_ranks]
    return group is None or any(images % group for images in shares[:-1])


def koleo(cls: torch.Tensor, counts: Sequence[int], group: int | None, world: World = ALONE) -> torch.Tensor:
    """Return KoLeo of this rank's (2·B, D) cls tokens and those of all others, the mean over the two global crops.

    counts  images of each rank
    """
    everyone = [world.gather(crop, counts) for crop in cls.chunk(2)]
    first, second = (koleo_loss(crop, group) for crop in everyone)
    return (first + second) / 2


def known_koleo(
    tokens: Sequence[torch.Tensor], counts: Sequence[tuple[int, ...]], group: int | None, world: World = ALONE
) -> list[KnownKoleo]:
    """Return KoLeo of a whole batch from the (2·m, D) cls tokens, without gradients, of each micro-batch of this rank.

    counts  as for `spans_micro_batches`
    """
    crops = [each.float().unflatten(0, (2, -1)) for each in tokens]
    whole = torch.cat(crops, dim=1).requires_grad_()
    value = koleo(whole.flatten(0, 1), [sum(of_rank) for of_rank in zip(*counts)], group, world)
    (gradient,) = torch.autograd.grad(value, whole)
    sizes = [each.shape[1] for each in crops]
    return [
        KnownKoleo(value.detach(), mine.flatten(0, 1) * (sum(sizes) / size))
        for mine, size in zip(gradient.split(sizes, dim=1), sizes)
    ]
