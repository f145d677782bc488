"""Block masks over the patches of global crops (BEiT, arXiv 2106.08254, algorithm 1), and whole sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.machine import sent
from pretrain.noise import uniforms
from pretrain.presence import of_present

_PURPOSE, _WHOLE = 4, 6  # of the randomness; views take 0 and 1
_SMALLEST = 4  # patches of a block
_TRIES = 64  # blocks drawn before the rest is filled patch by patch


def sample(
    grid: tuple[int, int],
    sample: torch.Tensor,
    epoch: torch.Tensor,
    seed: int,
    *,
    probability: float,
    ratio: tuple[float, float],
    min_aspect: float = 0.3,
) -> torch.Tensor:
    """(2·B, P) bool masks, those of global crop 0 first; P = rows · columns of `grid`.

    A crop is masked with `probability`, then with a share of patches drawn from `ratio`, exactly
    rounded. Each mask is a function of (seed, epoch, sample, crop).
    """
    masks = []
    for crop in range(2):
        draws = uniforms(seed, epoch.numpy(), sample.numpy(), _PURPOSE + crop, 2 + 4 * _TRIES + math.prod(grid))
        masks += [_mask(grid, row, probability, ratio, min_aspect) for row in draws]
    return torch.from_numpy(np.stack(masks))


def over_sequences(
    masks: torch.Tensor,
    present: torch.Tensor,
    sample: torch.Tensor,
    epoch: torch.Tensor,
    seed: int,
    *,
    probability: float,
    count: int,
) -> torch.Tensor:
    """(2·B, S·P) masks of all sequences: the (2·B, P) `masks` in each of them, and some sequences entirely.

    With `probability` a crop loses `count` of its sequences, always keeping one, drawn anew for each crop. An absent
    sequence (present (B, S)) is masked nowhere.
    """
    whole = []
    for crop in range(2):
        draws = uniforms(seed, epoch.numpy(), sample.numpy(), _WHOLE + crop, 1 + present.shape[1])
        chance, order = torch.from_numpy(draws[:, :1]), torch.from_numpy(draws[:, 1:]).masked_fill(~present, 2.0)
        rank = order.argsort(dim=1, stable=True).argsort(dim=1)
        most = (present.sum(dim=1, keepdim=True) - 1).clamp(max=count)
        whole.append((chance < probability) & (rank < most))
    each = masks.unsqueeze(1) | torch.cat(whole).unsqueeze(2)
    return (each & present.repeat(2, 1).unsqueeze(2)).flatten(1)


@dataclass(frozen=True)
class Masked:
    """The masks of N crops on a device, with what the host knows of them, so that nobody waits for the device to tell.

    listed    (M,) int64 on the host: the masked patches among those of the present sequences, flat, in row-major order
    patches   (N, S·P) bool
    places    `listed` on the device
    share     (M,) float32 of each masked patch in the mean over crops of the means over a crop's masked patches
    lost      (L,) int64 which of the M belong to entirely masked sequences, and `sequence` (L,) int64 which one it is
    """

    listed: torch.Tensor
    patches: torch.Tensor
    places: torch.Tensor
    share: torch.Tensor
    lost: torch.Tensor
    sequence: torch.Tensor


def masked(masks: torch.Tensor, present: torch.Tensor | None, sequences: int, device: torch.device) -> Masked:
    """(N, S·P) bool masks and (N, S) presence, both on the host, for a device."""
    places = of_present(masks, present).flatten().nonzero().squeeze(1)
    share = (1 / masks.sum(dim=1).clamp(min=1) / len(masks)).unsqueeze(1).expand_as(masks)[masks]
    each = masks.unflatten(1, (sequences, -1))
    whole = each.all(dim=2, keepdim=True).expand_as(each)[each].nonzero().squeeze(1)
    sequence = torch.arange(sequences).view(1, -1, 1).expand_as(each)[each][whole]
    return Masked(places, *(sent(one, device) for one in (masks, places, share, whole, sequence)))


def _mask(
    grid: tuple[int, int], draws: np.ndarray, probability: float, ratio: tuple[float, float], min_aspect: float
) -> np.ndarray:
    """(P,) bool mask of one crop from its uniform draws."""
    mask = np.zeros(grid, bool)
    share = ratio[0] + (ratio[1] - ratio[0]) * draws[1]
    wanted = round(share * mask.size) if draws[0] < probability else 0
    blocks, order = draws[2 : 2 + 4 * _TRIES].reshape(_TRIES, 4), draws[2 + 4 * _TRIES :]
    for area, aspect, top, left in blocks:
        lacking = wanted - int(mask.sum())
        if lacking < _SMALLEST:
            break
        block = _block(grid, lacking, area, aspect, min_aspect)
        if block is None:
            continue
        height, width = block
        row, column = int(top * (grid[0] - height + 1)), int(left * (grid[1] - width + 1))
        inside = mask[row : row + height, column : column + width]
        if 0 < inside.size - inside.sum() <= lacking:
            inside[:] = True
    flat = mask.ravel()
    free = np.flatnonzero(~flat)
    flat[free[np.argsort(order[free], kind="stable")[: wanted - int(flat.sum())]]] = True
    return flat


def _block(
    grid: tuple[int, int], lacking: int, area: float, aspect: float, min_aspect: float
) -> tuple[int, int] | None:
    """Height and width of a block of at most about `lacking` patches, or None where it does not fit the grid."""
    patches = _SMALLEST + area * (lacking - _SMALLEST)
    ratio = math.exp((2 * aspect - 1) * -math.log(min_aspect))
    height, width = round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
    return (height, width) if 0 < height <= grid[0] and 0 < width <= grid[1] else None
