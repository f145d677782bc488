"""What the student draws in a step beside views and masks: drop path and RoPE's stretch.

Drop path's numbers belong to a sample's crops, the stretch to the step, so that neither depends on how a batch is
divided among processes or micro-batches, or on what ran before. The stretch is one factor for a whole network, as the
paper has it (DINOv3, section 3.2), or one for each block, as its code does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from pretrain.data.randomness import uniforms

_DROP, _STRETCH = 128, 129  # purposes of the randomness


@dataclass(frozen=True)
class Draws:
    """A step's draws for the student; None where the model has no use for them.

    drop     (depth, 2, 2 + L, B) float32 in [0, 1) on the host: of every block's two branches, for global crops and
             then for local ones
    stretch  factors of RoPE's coordinates for global and for local crops: one for all blocks or one for each
    """

    drop: torch.Tensor | None = None
    stretch: tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None] = (None, None)

    def part(self, rows: slice) -> Draws:
        """The draws of some of the batch's images."""
        return self if self.drop is None else replace(self, drop=self.drop[..., rows])

    def of_crops(self, crops: slice) -> torch.Tensor | None:
        """(depth, 2, crops · B) drop path's numbers of some crops."""
        return None if self.drop is None else self.drop[:, :, crops].flatten(2)


def sample(
    sample: torch.Tensor,
    epoch: torch.Tensor,
    seed: int,
    step: int,
    *,
    crops: int,
    depth: int,
    drop_path: float,
    rope_rescale: float | None,
    factors: int = 1,
) -> Draws:
    """The draws of step `step` for (B,) samples seen in (B,) epochs, each with `crops` crops (2 + L).

    factors  of RoPE's coordinates for each size of crop: 1, or `depth`
    """
    drop, stretch = None, (None, None)
    if drop_path:
        numbers = uniforms(seed, epoch.numpy(), sample.numpy(), _DROP, depth * 2 * crops)
        drop = torch.from_numpy(numbers.astype(np.float32).T.reshape(depth, 2, crops, -1).copy())
    if rope_rescale:
        sizes = uniforms(seed, np.array([step]), np.array([0]), _STRETCH, 2 * factors).reshape(factors, 2).T
        stretch = tuple(tuple(math.exp((2 * draw - 1) * math.log(rope_rescale)) for draw in size) for size in sizes)
    return Draws(drop, stretch)
