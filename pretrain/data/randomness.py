"""Randomness that belongs to a sample: a function of (seed, epoch, sample, purpose), never of a process's history.

Numbers come from hashing counters with integer arithmetic that is the same on every device (the finaliser of
MurmurHash3; products wrap). `Draws` are what the student draws in a step beside views and masks: drop path and RoPE's
scale. Drop path's numbers belong to a sample's crops, the scale to the step, so neither depends on how a batch is
divided among processes or micro-batches, or on what ran before. The scale is one factor for a whole network, as the
paper has it (DINOv3, section 3.2), or one for each block, as its code does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

_GOLDEN = 0x9E3779B9 - 2**32  # as an int32
_NEXT_SEQUENCE = 4096  # added to the purpose for each sequence after the first
_DROP, _ROPE_SCALE = 128, 129  # purposes


def uniforms(
    seed: int, epoch: np.ndarray, sample: np.ndarray, purpose: int, count: int, sequence: int = 0
) -> np.ndarray:
    """Return (B, count) float64 in [0, 1), one row per (epoch, sample).

    purpose   below 4096; each value of `sequence` gives further independent rows
    count     a longer row begins with the shorter one
    """
    key = [np.full_like(sample, seed), epoch, sample, np.full_like(sample, purpose + _NEXT_SEQUENCE * sequence)]
    state = np.zeros(len(sample), np.uint64)
    for part in key:
        state = mix64(state ^ part.astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mix64(state[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def mix64(value: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser to a uint64 array (overflow wraps, as it must)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def gaussian(keys: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return (N, *shape) float32 standard normal values, each row a function of its key alone.

    keys  (N,) int64 in 0 … 2³² − 1 on the device where the noise is wanted
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    counter = torch.arange(pairs, device=keys.device, dtype=torch.int32).mul_(_GOLDEN)
    state = _mix32_(counter + keys.to(torch.int32).unsqueeze(1))
    # Box-Muller: two uniforms give two normals
    radius = _unsigned(state).add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = _unsigned(_mix32_(state.bitwise_xor_(_GOLDEN))).mul_(2 * math.pi * 2.0**-32)
    values = torch.cat([torch.cos(angle).mul_(radius), angle.sin_().mul_(radius)], dim=1)
    return values[:, :count].reshape(len(keys), *shape)


def _mix32_(value: torch.Tensor) -> torch.Tensor:
    """The finaliser in place, on int32; a shift brings the sign in from the left, which is masked."""
    value.bitwise_xor_((value >> 16).bitwise_and_(0xFFFF)).mul_(0x85EBCA6B - 2**32)
    value.bitwise_xor_((value >> 13).bitwise_and_(0x7FFFF)).mul_(0xC2B2AE35 - 2**32)
    return value.bitwise_xor_((value >> 16).bitwise_and_(0xFFFF))


def _unsigned(value: torch.Tensor) -> torch.Tensor:
    return value.view(torch.uint32).float()


RopeScale = tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]


@dataclass(frozen=True)
class Draws:
    """A step's draws for the student; None where the model has no use for them.

    drop        (depth, 2, 2 + L, B) float32 in [0, 1) on the host: of every block's two branches, for global crops and
                then for local ones
    rope_scale  factors of RoPE's coordinates for global and for local crops: one for all blocks or one for each
    """

    drop: torch.Tensor | None = None
    rope_scale: RopeScale = (None, None)

    def select(self, rows: slice) -> Draws:
        """Return the draws of some of the batch's images."""
        return self if self.drop is None else replace(self, drop=self.drop[..., rows])

    def of_crops(self, crops: slice) -> torch.Tensor | None:
        """Return (depth, 2, crops · B) drop path's numbers of some crops."""
        return None if self.drop is None else self.drop[:, :, crops].flatten(2)


def sample_draws(
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
    """Draw for step `step` and (B,) samples seen in (B,) epochs, each with `crops` crops (2 + L).

    factors  RoPE's scales for each size of crop: 1, or `depth`
    """
    drop, rope_scale = None, cast(RopeScale, (None, None))
    if drop_path:
        numbers = uniforms(seed, epoch.numpy(), sample.numpy(), _DROP, depth * 2 * crops)
        drop = torch.from_numpy(numbers.astype(np.float32).T.reshape(depth, 2, crops, -1).copy())
    if rope_rescale:
        sizes = uniforms(seed, np.array([step]), np.array([0]), _ROPE_SCALE, 2 * factors).reshape(factors, 2).T
        whole, small = (tuple(math.exp((2 * draw - 1) * math.log(rope_rescale)) for draw in size) for size in sizes)
        rope_scale = (whole, small)
    return Draws(drop, rope_scale)
