"""The parts of a transformer block, with the parameter names of the published DINO weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.model.attention import Kernel, by_run
from pretrain.model.drop_path import BlockRoute, select
from pretrain.model.tokens import Packing


def init_linear(layer: nn.Linear, generator: torch.Generator) -> None:
    """Draw the matrix from a truncated normal of 0.02 and set the bias to zero."""
    nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class PatchEmbed(nn.Module):
    """(N, C, h, w) images → (N, h/p · w/p, D) tokens, row-major."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images. Raises ValueError where a side is not a multiple of the patch size."""
        p = self.patch_size
        count, channels, height, width = images.shape
        if height % p or width % p:
            raise ValueError(f"image of {height}×{width} pixels: not a multiple of the patch size {p}")
        # a strided convolution is one matrix product over unfolded patches, and faster written so
        patches = images.reshape(count, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(count, -1, channels * p * p), self.proj.weight.flatten(1), self.proj.bias)


class QkvLinear(nn.Linear):
    """Query, key and value in one product; with `mask_k` the key's bias is held at zero."""

    bias_mask: torch.Tensor

    def __init__(self, dim: int, bias: bool, mask_k: bool) -> None:
        super().__init__(dim, 3 * dim, bias=bias)
        self.masked = bias and mask_k
        if self.masked:
            mask = torch.ones(3 * dim)
            mask[dim : 2 * dim] = 0
            self.register_buffer("bias_mask", mask)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        bias = self.bias * self.bias_mask.to(self.bias.dtype) if self.masked else self.bias
        return F.linear(tokens, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention within each sample of a row of packed tokens."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, mask_k_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.kernel: Kernel = by_run
        self.qkv = QkvLinear(dim, qkv_bias, mask_k_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, packing: Packing, read_tokens: torch.Tensor | None = None) -> torch.Tensor:
        """(T, D) → (A, D), of the tokens at `read_tokens`; None: of all."""
        return self.proj(select(self.kernel(self.qkv(tokens).unflatten(1, (3, self.heads, -1)), packing), read_tokens))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwiGlu(nn.Module):
    """w3(silu(w1 x) · w2 x) with a hidden size of two thirds, rounded up to a multiple of 64."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        narrow = (hidden * 2 // 3 + 63) // 64 * 64
        self.w1 = nn.Linear(dim, narrow)
        self.w2 = nn.Linear(dim, narrow)
        self.w3 = nn.Linear(narrow, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.w3(F.silu(self.w1(tokens)) * self.w2(tokens))


FEED_FORWARD = {"mlp": Mlp, "swiglu": SwiGlu}


class LayerScale(nn.Module):
    """A learned factor per channel of a residual branch (arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.gamma


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each in a residual branch that samples may skip."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        ffn: str,
        hidden: int,
        qkv_bias: bool,
        mask_k_bias: bool,
        layer_scale: float | None,
        norm_eps: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads, qkv_bias, mask_k_bias)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FEED_FORWARD[ffn](dim, hidden)
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = drop_path

    def forward(self, tokens: torch.Tensor, route: BlockRoute) -> torch.Tensor:
        """(T, D) packed tokens → (A, D), those that are read."""
        one, other = route.attention, route.feed_forward
        mixed = self.attn(self.norm1(select(tokens, one.rows)), one.packing, one.read_tokens)
        tokens = one.add_to(select(tokens, route.read_tokens), self.ls1(mixed))
        return other.add_to(tokens, self.ls2(self.mlp(self.norm2(select(tokens, other.rows)))))
