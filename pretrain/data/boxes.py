"""Which part of a slice a crop shows: candidate boxes drawn inside the foreground, and the one with enough body.

Arrays end in (row, column) or (row, column, height, width), in whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_TRIES = 10  # sizes drawn before the central crop is taken
DRAWS = 2 + 2 * _TRIES  # uniform numbers of a box: its place, then each try's scale and aspect


def draw(
    foreground: np.ndarray,
    draws: np.ndarray,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    *,
    scale_of: str = "area",
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Return (B, K, 4) int64 boxes inside the (B, 4) foreground boxes (row0, row1, column0, column1).

    draws     (B, K, DRAWS) uniform numbers in [0, 1)
    scale_of  "area": torchvision's RandomResizedCrop. Its area is a uniform share of the foreground's and width by
              height log-uniform in `aspect`; a box that does not fit is drawn again, and after ten failures the
              largest central box with an allowed aspect is taken.
              "side": MM-DINOv2's crops. Height and width are the same uniform share of the foreground's own, the
              height again times a uniform number in `aspect`
    labelled  voxels (V, 2) inside the foreground boxes and starts (B + 1,) of each sample's: a box is centred at a
              uniformly drawn one of its sample, as far as the near borders let it, and cut at the far ones. A sample
              without any has its boxes at a uniform place, as all samples have where this is None
    """
    corner = foreground[:, None, 0::2]
    sides = foreground[:, None, 1::2] - corner
    place, tries = draws[..., :2], draws[..., 2:].reshape(*draws.shape[:2], _TRIES, 2)
    if scale_of == "side":
        size, central = _by_side(sides, tries[..., 0, :], scale, aspect), np.zeros(draws.shape[:2], bool)
    else:
        size, central = _by_area(sides, tries, scale, aspect)
    inside = np.minimum(size, sides)  # taller than the foreground where the side's share times the aspect is above 1
    start = np.where(central[..., None], (sides - inside) // 2, np.floor(place * (sides - inside + 1)))
    if labelled is not None:
        centre, known = _centres(*labelled, place[..., 0])
        around = np.maximum(centre - corner - size // 2, 0)
        start = np.where(known, around, start)
        inside = np.where(known, np.minimum(size, sides - around), inside)
    return np.concatenate([corner + start, inside], axis=-1).astype(np.int64)


def _by_area(
    sides: np.ndarray, tries: np.ndarray, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (B, K, 2) heights and widths, and (B, K) whether no try fitted and they are the central crop's."""
    most = np.broadcast_to(sides, (*tries.shape[:2], 2)).reshape(-1, 2).astype(np.float64)
    draws, size = tries.reshape(len(most), _TRIES, 2), np.empty_like(most)
    left = np.arange(len(most))
    for number in range(_TRIES):  # most fit at once, and only the others go on
        share, turn = draws[left, number].T
        area = most[left].prod(axis=1) * (scale[0] + (scale[1] - scale[0]) * share)
        ratio = np.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * turn)
        size[left] = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=1)))
        left = left[~((size[left] > 0) & (size[left] <= most[left])).all(axis=1)]
        if not len(left):
            break
    size[left] = _central(most[left], aspect)
    central = np.isin(np.arange(len(most)), left)
    return size.reshape(*tries.shape[:2], 2), central.reshape(tries.shape[:2])


def _central(sides: np.ndarray, aspect: tuple[float, float]) -> np.ndarray:
    """Return the largest height and width with an allowed aspect."""
    tall, broad = sides[..., 0], sides[..., 1]
    height = np.where(broad < aspect[0] * tall, np.rint(broad / aspect[0]), tall)
    width = np.where(broad > aspect[1] * tall, np.rint(tall * aspect[1]), broad)
    return np.maximum(np.stack([height, width], axis=-1), 1)


def _by_side(
    sides: np.ndarray, draws: np.ndarray, scale: tuple[float, float], aspect: tuple[float, float]
) -> np.ndarray:
    share = scale[0] + (scale[1] - scale[0]) * draws[..., 0]
    ratio = aspect[0] + (aspect[1] - aspect[0]) * draws[..., 1]
    return np.maximum(np.floor(sides * np.stack([share * ratio, share], axis=-1)), 1)


def _centres(voxels: np.ndarray, starts: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (B, K, 2) drawn voxels, and (B, 1, 1) whether the sample has any; without one the values mean nothing."""
    counts = np.diff(starts)[:, None]
    if not len(voxels):
        return np.zeros((*draws.shape, 2)), np.zeros((len(draws), 1, 1), bool)
    chosen = starts[:-1, None] + np.floor(draws * counts).astype(np.int64)
    return voxels[np.minimum(chosen, len(voxels) - 1)].astype(np.float64), (counts > 0)[..., None]


def body(planes: np.ndarray, lowest: Sequence[int]) -> np.ndarray:
    """Return (H, W) bool: whether some of the (P, H, W) planes is above its `lowest` value."""
    found = planes[0] > lowest[0]
    for plane, least in zip(planes[1:], lowest[1:]):
        found |= plane > least
    return found


def body_sums(pixels: torch.Tensor, lowest: torch.Tensor) -> torch.Tensor:
    """Return (B, H + 1, W + 1) counts of body pixels above and to the left of each corner of (B, P, H, W) pixels.

    lowest  (B or 1, P) integers: a pixel above the one of its plane belongs to the body
    """
    found = (pixels > lowest.to(pixels.dtype)[:, : pixels.shape[1], None, None]).any(dim=1)
    sums = found.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return torch.nn.functional.pad(sums, (1, 0, 1, 0))


def choose(sums: torch.Tensor, candidates: torch.Tensor, min_body: float) -> torch.Tensor:
    """Return (B, 4), the first of each sample's (B, K, 4) candidates with enough body, else the one with most."""
    row, column, height, width = candidates.unbind(dim=-1)
    image = torch.arange(len(candidates), device=candidates.device).unsqueeze(1)
    inside = (
        sums[image, row + height, column + width]
        - sums[image, row, column + width]
        - sums[image, row + height, column]
        + sums[image, row, column]
    )
    share = inside / (height * width)
    # the first good one outranks all; among the rest the share decides
    best = torch.where(share >= min_body, 2.0, share).argmax(dim=1)
    return candidates[image.squeeze(1), best]


def choose_one(found: np.ndarray, candidates: list[list[int]], min_body: float) -> list[int]:
    """Return what `choose` takes for one image with (H, W) body; it mostly need not look beyond the first."""
    if min_body <= 0:
        return candidates[0]
    shares = []
    for row, column, height, width in candidates:
        inside = np.count_nonzero(found[row : row + height, column : column + width])
        shares.append(np.float32(inside) / np.float32(height * width))
        if shares[-1] >= min_body:
            return [row, column, height, width]
    return candidates[int(np.argmax(shares))]
