"""Block masks over the patches of global crops (BEiT, arXiv 2106.08254, algorithm 1), and whole sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.data.randomness import uniforms
from pretrain.model.tokens import of_present
from pretrain.runtime.device import to_device_async

_PURPOSE, _WHOLE = 4, 6  # of the randomness; views take 0 and 1
_SMALLEST = 4  # patches of a block, where so many are still to be masked
_FAILURES = 10  # blocks in a row that cannot be placed, before the rest is filled patch by patch
_TRIES = 128  # blocks drawn at most; of 3,000 masks of up to 48 × 48 patches the longest took 38


def sample(
    grid: tuple[int, int],
    sample: torch.Tensor,
    epoch: torch.Tensor,
    seed: int,
    *,
    probability: float,
    ratio: tuple[float, float],
    min_aspect: float = 0.3,
    whole: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return (2·B, P) bool masks, those of global crop 0 first; P = rows · columns of `grid`.

    whole  (sample, epoch), each (G,), of the global batch that these B images belong to; None: they are all of it

    Exactly ⌊2·G·probability⌋ = n of the global batch's crops are masked: those with the lowest uniform numbers. The
    i-th lowest has a share of masked patches drawn uniformly from the i-th of n equal parts of `ratio`. Each mask is a
    function of (seed, epoch, sample, crop) and of which images the global batch holds, in any order. Raises ValueError
    for an image that is not in `whole`.
    """
    patches = math.prod(grid)
    rank, crops = _ranks((sample, epoch) if whole is None else whole, (sample, epoch), seed)
    count = int(crops * probability)
    masks = np.zeros((2, len(sample), patches), bool)
    for crop in range(2):
        rows = np.flatnonzero(rank[crop] < count)
        draws = uniforms(seed, epoch.numpy()[rows], sample.numpy()[rows], _PURPOSE + crop, 2 + 4 * _TRIES + patches)
        for row, each in zip(rows, draws):
            share = ratio[0] + (ratio[1] - ratio[0]) * (rank[crop, row] + each[1]) / count
            # truncated: the reference rounds down, and a nearest whole number would mask more on average
            masks[crop, row] = _mask(grid, int(share * patches), each[2:], min_aspect)
    return torch.from_numpy(masks).flatten(0, 1)


def _ranks(
    whole: tuple[torch.Tensor, torch.Tensor], mine: tuple[torch.Tensor, torch.Tensor], seed: int
) -> tuple[np.ndarray, int]:
    """Return (2, B) places of my crops among those of the whole batch by uniform number, and how many those are.

    The batch is put in order of epoch and sample first, so that equal numbers, too, are ranked the same everywhere.
    """
    epochs, samples = (np.unique(each.numpy(), return_inverse=True) for each in reversed(whole))
    keys = epochs[1] * len(samples[0]) + samples[1]
    order = np.argsort(keys, kind="stable")
    epoch, sample = (each.numpy()[order] for each in reversed(whole))
    chance = np.concatenate([uniforms(seed, epoch, sample, _PURPOSE + crop, 1)[:, 0] for crop in range(2)])
    rank = np.empty(len(chance), np.int64)
    rank[np.argsort(chance, kind="stable")] = np.arange(len(chance))
    places = [np.searchsorted(known, each.numpy()) for (known, _), each in zip((epochs, samples), reversed(mine))]
    wanted = places[0] * len(samples[0]) + places[1]
    place = np.searchsorted(keys[order], wanted).clip(max=len(keys) - 1)
    if not (np.array_equal(epoch[place], mine[1].numpy()) and np.array_equal(sample[place], mine[0].numpy())):
        raise ValueError("masks are wanted for images that are not in the whole batch")
    return rank.reshape(2, -1)[:, place], len(chance)


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
    """Return (2·B, S·P) masks of all sequences: the (2·B, P) `masks` in each of them, and some sequences entirely.

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
    """The masks of N crops on a device, with what the host knows of them, so that it never waits for the device.

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
    """Put (N, S·P) bool masks on a device; masks and (N, S) presence are on the host."""
    places = of_present(masks, present).flatten().nonzero().squeeze(1)
    share = (1 / masks.sum(dim=1).clamp(min=1) / len(masks)).unsqueeze(1).expand_as(masks)[masks]
    each = masks.unflatten(1, (sequences, -1))
    whole = each.all(dim=2, keepdim=True).expand_as(each)[each].nonzero().squeeze(1)
    sequence = torch.arange(sequences).view(1, -1, 1).expand_as(each)[each][whole]
    return Masked(places, *(to_device_async(one, device) for one in (masks, places, share, whole, sequence)))


def _mask(grid: tuple[int, int], lacking: int, draws: np.ndarray, min_aspect: float) -> np.ndarray:
    """Return a (P,) bool mask with `lacking` patches from one crop's uniform draws: four of each block, then an order.

    A block may cover masked patches; it is taken where it adds some and not too many, at most half of all at once.
    """
    mask = np.zeros(grid, bool)
    failed, blocks = 0, draws[: 4 * _TRIES].reshape(-1, 4)
    for area, aspect, top, left in blocks:
        if not lacking or failed == _FAILURES:
            break
        most = min(lacking, mask.size / 2)
        height, width = _block(most, area, aspect, min_aspect)
        failed += 1
        if height < grid[0] and width < grid[1]:
            row, column = int(top * (grid[0] - height + 1)), int(left * (grid[1] - width + 1))
            inside = mask[row : row + height, column : column + width]
            added = height * width - np.count_nonzero(inside)
            if 0 < added <= most:
                inside[:] = True
                lacking, failed = lacking - added, 0
    flat, order = mask.ravel(), draws[4 * _TRIES :]
    free = np.flatnonzero(~flat)
    flat[free[np.argsort(order[free], kind="stable")[:lacking]]] = True
    return flat


def _block(most: float, area: float, aspect: float, min_aspect: float) -> tuple[int, int]:
    """Return height and width of a block whose area lies between four patches and `most`, whichever is less."""
    patches = _SMALLEST + area * (most - _SMALLEST)
    ratio = math.exp((2 * aspect - 1) * -math.log(min_aspect))
    return round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
