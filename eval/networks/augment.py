"""Small changes of images and their label maps, for networks that are trained on images."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

TURN, ZOOM, SHIFT = math.radians(10), 0.1, 0.05  # at most; shift by the image's side
GAIN, OFFSET = 0.1, 0.05  # of values in 0…1


def augment(
    images: torch.Tensor, maps: torch.Tensor | None, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Turn, zoom and shift each image and change its contrast and brightness, by its own draw.

    images (N, C, h, w) in 0…1; maps (N, R, R) uint8 or None move with them, nearest neighbour. No flips: organs have
    sides. What comes in from beyond the edge is the edge (0 in maps).
    """
    count = len(images)
    turn, zoom, row, column = (torch.from_numpy(generator.uniform(-1, 1, count)).float() for _ in range(4))
    scale = 1 + ZOOM * zoom
    cosine, sine = (TURN * turn).cos() * scale, (TURN * turn).sin() * scale
    moved = [torch.stack([cosine, -sine, 2 * SHIFT * column]), torch.stack([sine, cosine, 2 * SHIFT * row])]
    places = torch.stack(moved).permute(2, 0, 1).to(images.device)
    grid = F.affine_grid(places, list(images.shape), False)
    sampled = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = torch.from_numpy(generator.uniform(-1, 1, (2, count, 1, 1, 1))).float().to(images.device)
    sampled = (sampled * (1 + GAIN * gain) + OFFSET * offset).clamp(0, 1)
    if maps is None:
        return sampled, None
    planes = maps[:, None].float()
    grid = F.affine_grid(places, list(planes.shape), False)
    turned = F.grid_sample(planes, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return sampled, turned[:, 0].to(maps.dtype)
