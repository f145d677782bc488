"""Randomness that belongs to a sample: a function of (seed, epoch, sample, purpose), never of a process's history.

Numbers come from hashing counters with integer arithmetic that is the same on every device (the
finaliser of MurmurHash3; products wrap in int64, of which the low 32 bits are kept).
"""

from __future__ import annotations

import math

import numpy as np
import torch

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def uniforms(seed: int, epoch: np.ndarray, sample: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """(B, count) float64 in [0, 1), one row per (epoch, sample)."""
    key = [np.full_like(sample, seed), epoch, sample, np.full_like(sample, purpose)]
    state = np.zeros(len(sample), np.uint64)
    for part in key:
        state = mix64(state ^ part.astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mix64(state[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def mix64(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, on arrays (their overflow wraps as it must)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def gaussian(keys: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(N, *shape) float32 standard normal values, each row a function of its key alone.

    keys (N,) int64 in 0 … 2³² − 1 on the device where the noise is wanted.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    counter = torch.arange(pairs, device=keys.device, dtype=torch.int64)
    state = _mix32((counter * _GOLDEN + keys.unsqueeze(1)) & _MASK)
    # Box-Muller: two uniforms give two normals
    radius = torch.sqrt(-2 * torch.log((state.float() + 1) * 2.0**-32))
    angle = _mix32(state ^ _GOLDEN).float() * (2 * math.pi * 2.0**-32)
    values = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return values[:, :count].reshape(len(keys), *shape)


def _mix32(value: torch.Tensor) -> torch.Tensor:
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _MASK
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _MASK
    return value ^ (value >> 16)
