"""KoLeo of a batch that ranks and micro-batches share: exact whichever images are computed together.

Neighbours are sought among consecutive images of the whole batch. Where no such group spans two parts, each part has
its own KoLeo. Else a first pass gives all cls tokens, from which follow KoLeo and its gradient with respect to each
token; the usual pass then needs only the product of that gradient with the tokens of its part, whose derivative is
KoLeo's by the chain rule. Both passes see the same weights, crops and draws, so nothing is approximated.

How the parts are weighted. Of N images in all a rank has n, and one of its parts m. A step's gradient is the mean over
R ranks of the sum over a rank's parts, each part's loss times m · R / N (`step.gradients`). With g = ∂KoLeo/∂token a
part therefore adds N / m · Σ g · token to its loss: m · R / N of that, averaged over R ranks, is Σ g · token over all
images. `World.gather` hands back N / n · g; what is left is a factor n / m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pretrain.objective.losses import koleo_loss
from pretrain.runtime.distributed import ALONE, World


@dataclass(frozen=True)
class KnownKoleo:
    """KoLeo of the whole batch, for one part of it.

    value     () float32
    gradient  (2·m, D) float32, of the part's cls tokens, weighted as a part's mean is (see above)
    """

    value: torch.Tensor
    gradient: torch.Tensor

    def term(self, cls: torch.Tensor) -> torch.Tensor:
        """The value, with the gradient with respect to the part's (2·m, D) cls tokens."""
        product = (self.gradient * cls.float()).sum()
        return self.value + (product - product.detach())


def spans_micro_batches(counts: Sequence[tuple[int, ...]], group: int | None) -> bool:
    """Whether some group of `group` consecutive images (None: all) may lie in more than one part.

    counts  images of every rank, for each part. A batch is ordered by rank and then by part: every stretch but the
            last one must be whole groups
    """
    if len(counts) == 1:
        return False
    stretches = [images for part in counts for images in part]
    return group is None or any(images % group for images in stretches[:-1])


def koleo(cls: torch.Tensor, counts: Sequence[int], group: int | None, world: World = ALONE) -> torch.Tensor:
    """KoLeo of this rank's (2·B, D) cls tokens and those of all others, the mean over the two global crops.

    counts  images of each rank
    """
    everyone = [world.gather(crop, counts) for crop in cls.chunk(2)]
    return sum(koleo_loss(crop, group) for crop in everyone) / 2


def known_koleo(
    tokens: Sequence[torch.Tensor], counts: Sequence[tuple[int, ...]], group: int | None, world: World = ALONE
) -> list[KnownKoleo]:
    """KoLeo of a whole batch from the (2·m, D) cls tokens, without gradients, of each of this rank's parts.

    counts  as for `spans_micro_batches`
    """
    crops = [each.float().unflatten(0, (2, -1)) for each in tokens]
    whole = torch.cat(crops, dim=1).requires_grad_()
    value = koleo(whole.flatten(0, 1), [sum(of_rank) for of_rank in zip(*counts)], group, world)
    (gradient,) = torch.autograd.grad(value, whole)
    sizes = [each.shape[1] for each in crops]
    return [
        KnownKoleo(value.detach(), part.flatten(0, 1) * (sum(sizes) / size))
        for part, size in zip(gradient.split(sizes, dim=1), sizes)
    ]
