"""The vision transformer of DINOv2 and DINOv3, with the parameter names of their published weights.

RoPE or learned positions, registers, masked key bias, LayerScale, MLP or SwiGLU, a norm of its own
for the cls token and registers of local crops. (DINOv2: arXiv 2304.07193; registers: arXiv
2309.16588; DINOv3: arXiv 2508.10104.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pretrain.attention import Kernel, bias_of
from pretrain.layers import FEED_FORWARD, Block, LayerScale, PatchEmbed, init_linear
from pretrain.packing import Packing, pack, unpack
from pretrain.positions import resampled
from pretrain.rope import RotaryEmbedding, Rotation


@dataclass(frozen=True)
class Features:
    """Tokens after the final norm: cls (N, D), registers (N, R, D), patches (N, P, D) in row-major order."""

    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class Crops:
    """Images of one size, one part of a packed call.

    images   (N, C, h, w), h and w multiples of the patch size
    mask     (N, P) bool, patches that the mask token replaces, or None
    local    they are local crops, whose cls token and registers have a norm of their own in training
    drop     (depth, 2, N) uniform numbers in [0, 1) that drop path compares, needed in training where there is any
    stretch  factor of RoPE's coordinates, needed in training where the model has `rope_rescale`
    """

    images: torch.Tensor
    mask: torch.Tensor | None = None
    local: bool = False
    drop: torch.Tensor | None = None
    stretch: float | None = None


class VisionTransformer(nn.Module):
    """(N, C, h, w) images, h and w multiples of the patch size → Features.

    grid        side of the learned position grid in patches (`position="learned"` only)
    ffn_ratio   hidden size of the feed-forward part by the embedding size; SwiGLU takes two thirds of it
    layer_scale initial value, or None for no LayerScale
    drop_path   of the last block, rising linearly from 0 at the first
    rope_rescale  in training coordinates are stretched by a factor up to this one or down to its inverse, the same
                for all crops of a size, so that other resolutions are nothing new (DINOv3, section 3.2)
    Raises ValueError for a word or size that does not fit.
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        in_channels: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        ffn: str = "mlp",
        ffn_ratio: float = 4.0,
        qkv_bias: bool = True,
        registers: int = 4,
        mask_k_bias: bool = False,
        position: str = "rope",
        grid: int | None = None,
        layer_scale: float | None = 1e-5,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        local_norm: bool = False,
        rope_base: float = 100.0,
        rope_rescale: float | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        if ffn not in FEED_FORWARD:
            raise ValueError(f"ffn {ffn!r}: use {' or '.join(FEED_FORWARD)}")
        if position not in ("rope", "learned") or (position == "learned") != (grid is not None):
            raise ValueError(f"position {position!r} with grid {grid}: use rope without, or learned with a grid")
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.register_count = registers
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if registers:
            self.storage_tokens = nn.Parameter(torch.zeros(1, registers, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
        if position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, embed_dim))
        self.rope_embed = RotaryEmbedding(embed_dim // num_heads, rope_base) if position == "rope" else None
        self.rope_rescale = rope_rescale
        self.recompute = False  # run blocks again for their gradients instead of keeping what they computed
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                ffn=ffn,
                hidden=int(embed_dim * ffn_ratio),
                qkv_bias=qkv_bias,
                mask_k_bias=mask_k_bias,
                layer_scale=layer_scale,
                norm_eps=norm_eps,
                drop_path=rate,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.local_cls_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if local_norm else None

    def init_weights(self, generator: torch.Generator) -> None:
        """Fresh weights: truncated normal of 0.02 for matrices, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, generator)
            elif isinstance(module, nn.Conv2d):
                # the bound of a linear layer over the same number of inputs
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.initial)
        for name in ("cls_token", "storage_tokens", "pos_embed"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=0.02, generator=generator)
        nn.init.zeros_(self.mask_token)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        """Features of the last block for images of one size; `mask` (N, P) bool, patches that are masked."""
        return self.packed([Crops(images, mask)])[0]

    def packed(self, groups: Sequence[Crops]) -> list[Features]:
        """Features of the last block for crops of several sizes, through the blocks in one row of tokens."""
        tokens, packing = self._pack(groups)
        kept = self._kept(groups, packing, tokens)
        again = self.recompute and torch.is_grad_enabled()
        for block, factors in zip(self.blocks, kept):
            if again:
                tokens = checkpoint(block, tokens, packing, factors, use_reentrant=False)
            else:
                tokens = block(tokens, packing, factors)
        return [self._finish(part, group.local) for part, group in zip(unpack(tokens, packing.runs), groups)]

    def intermediate(self, images: torch.Tensor, blocks: Sequence[int]) -> list[Features]:
        """Features after each of `blocks` (counted from 0, negative from the end), all through the final norm."""
        wanted = [number % self.depth for number in blocks]
        tokens, packing = self._pack([Crops(images)])
        found = {}
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            tokens = block(tokens, packing)
            if number in wanted:
                found[number] = self._finish(unpack(tokens, packing.runs)[0], False)
        return [found[number] for number in wanted]

    def attend_with(self, kernel: Kernel) -> None:
        """Use another of `pretrain.attention`'s kernels: the same numbers."""
        for block in self.blocks:
            block.attn.kernel = kernel

    def _pack(self, groups: Sequence[Crops]) -> tuple[torch.Tensor, Packing]:
        embedded = [self._embed(group.images, group.mask, self._stretch(group)) for group in groups]
        tokens, runs = pack([part for part, _ in embedded])
        bias = bias_of(runs, self.blocks[0].attn.kernel, tokens.device)
        return tokens, Packing(runs, tuple(rotation for _, rotation in embedded), bias)

    def _kept(self, groups: Sequence[Crops], packing: Packing, like: torch.Tensor) -> list:
        """Drop path's factors, block by block."""
        draws = [group.drop for group in groups]
        whole = [None] * self.depth if any(each is None for each in draws) else torch.cat(draws, dim=-1)
        return [block.keep(each, packing.runs, like) for block, each in zip(self.blocks, whole)]

    def _stretch(self, group: Crops) -> float:
        if not self.rope_rescale or not self.training:
            return 1.0
        if group.stretch is None:
            raise ValueError("rope_rescale: training needs a stretch, so that a run can be repeated")
        return group.stretch

    def _embed(
        self, images: torch.Tensor, mask: torch.Tensor | None, stretch: float
    ) -> tuple[torch.Tensor, Rotation | None]:
        """(N, 1 + R + P, D) tokens before the first block, and the rotation of a sample's tokens."""
        rows, columns = (side // self.patch_size for side in images.shape[-2:])
        patches = self.patch_embed(images)
        if mask is not None:
            patches = torch.where(mask.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        # with no mask the token takes part all the same, so that every parameter has a gradient
        cls = self.cls_token if mask is not None else self.cls_token + 0 * self.mask_token
        count = images.shape[0]  # not its len: an exported graph keeps it open
        prefix = [cls.expand(count, -1, -1)]
        if self.rope_embed is None:
            places = resampled(self.pos_embed, rows, columns)
            prefix[0] = prefix[0] + places[:, :1]
            patches = patches + places[:, 1:]
        if self.register_count:
            prefix.append(self.storage_tokens.expand(count, -1, -1))
        prefixed, rotation = 1 + self.register_count, None
        if self.rope_embed is not None:
            rotation = self.rope_embed(rows, columns, prefixed, stretch)
        return torch.cat([*(part.to(patches.dtype) for part in prefix), patches], dim=1), rotation

    def _finish(self, tokens: torch.Tensor, local: bool) -> Features:
        split = 1 + self.register_count
        if local and self.training and self.local_cls_norm is not None:
            prefix, patches = self.local_cls_norm(tokens[:, :split]), self.norm(tokens[:, split:])
        else:
            normed = self.norm(tokens)
            prefix, patches = normed[:, :split], normed[:, split:]
        return Features(prefix[:, 0], prefix[:, 1:], patches)
