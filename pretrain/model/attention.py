"""Attention over packed samples: run by run with PyTorch's own kernels, or all samples in one call of xFormers'.

Both give the same numbers. xFormers needs a GPU; it attends to crops of all sizes at once, behind a bias that is block
diagonal (a sample's tokens see each other alone).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from meddap.settings import SettingsError
from pretrain.model.positions import rotate
from pretrain.model.tokens import Packing, Run, pack, unpack

Kernel = Callable[[torch.Tensor, Packing], torch.Tensor]


def by_run(qkv: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Attend run by run: (T, 3, heads, head_dim) queries, keys and values of packed samples → (T, heads · head_dim)."""
    mixed = []
    for part, rotation in zip(unpack(qkv, packing.runs), packing.rotations):
        both, value = part.permute(2, 0, 3, 1, 4).split((2, 1))
        if rotation is not None:
            both = rotate(both, rotation)
        query, key = both.unbind()
        mixed.append(attend(query, key, value[0]).transpose(1, 2).flatten(2))
    return pack(mixed)[0]


def at_once(qkv: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Attend as `by_run` does, in one call of xFormers' kernel; `packing.bias` is `bias_of` its runs."""
    from xformers.ops import memory_efficient_attention

    turned = []
    for part, rotation in zip(unpack(qkv, packing.runs), packing.rotations):
        both, value = part.permute(2, 0, 3, 1, 4).split((2, 1))
        if rotation is not None:
            both = rotate(both, rotation)
        turned.append(torch.cat([both, value]).permute(1, 3, 0, 2, 4))
    query, key, value = pack(turned)[0].unsqueeze(0).unbind(2)
    return memory_efficient_attention(query, key, value, attn_bias=packing.bias)[0].flatten(1)


def bias_of(runs: Sequence[Run], kernel: Kernel, device: torch.device) -> Any:
    """Return what `kernel` needs beside queries, keys and values; None for `by_run`."""
    if kernel is by_run:
        return None
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens([run.length for run in runs for _ in range(run.samples)], device=device)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return softmax(q kᵀ / √d) v for (N, heads, T, head_dim) tokens.

    `pretrain/planning` replaces this function to count a GPU's memory on a CPU.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad:
        # PyTorch's fused kernel has a backward for this case that is five to ten times slower
        # than plain products (benchmarks/LOG.md, 2026-11-23)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return scores.softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


def pick(wish: str, device: torch.device) -> Kernel:
    """Return the kernel that `machine.attention` names; `auto` is xFormers' where it and a GPU are available.

    Raises SettingsError for another word, or for xFormers where it cannot run.
    """
    if wish not in ("auto", "sdpa", "xformers"):
        raise SettingsError(f"machine.attention: {wish!r}; use auto, sdpa or xformers")
    if wish == "sdpa" or (wish == "auto" and device.type != "cuda"):
        return by_run
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        if wish == "auto":
            return by_run
        raise SettingsError("machine.attention: xformers is not installed; pip install 'meddap[xformers]'") from error
    if device.type != "cuda":
        raise SettingsError("machine.attention: xformers has no kernels for the CPU; use auto or sdpa")
    return at_once
