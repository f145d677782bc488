"""The vision transformer of DINOv2 and DINOv3, with the parameter names of their published weights.

RoPE or learned positions, registers, masked key bias, LayerScale, MLP or SwiGLU, a norm of its own
for the cls token and registers of local crops. (DINOv2: arXiv 2304.07193; registers: arXiv
2309.16588; DINOv3: arXiv 2508.10104.)

Several sequences of one patient (MM-DINOv2) share patch embedding and positions and are told apart by a
normalised embedding of their name; one cls token and one set of registers see them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from pretrain.model.attention import Kernel, bias_of
from pretrain.model.drop_path import BlockRoute, Branch, routes, select
from pretrain.model.layers import FEED_FORWARD, Block, LayerScale, PatchEmbed, init_linear
from pretrain.model.positions import RotaryEmbedding, Rotation, resampled
from pretrain.model.tokens import (
    Crops,
    Features,
    Layout,
    Packing,
    Run,
    SelectedFeatures,
    layout,
    length,
    pack,
    token_places,
    unpack,
)


class VisionTransformer(nn.Module):
    """(N, S·C, h, w) images, h and w multiples of the patch size → Features.

    channels    C of each sequence
    grid        side of the learned position grid in patches (`position="learned"` only)
    ffn_ratio   hidden size of the feed-forward part relative to the embedding size; SwiGLU takes two thirds of it
    layer_scale initial value, or None for no LayerScale
    drop_path   share of samples that skip a residual branch in training: in every block (`uniform`), or rising
                linearly from 0 at the first block to this at the last (`linear`)
    rope_rescale  in training, coordinates are scaled by a factor between this one and its inverse, the same for all
                crops of a size, so that the model knows other resolutions (DINOv3, section 3.2)
    sequences   names of the sequences that the model knows; (): one sequence without a name
    Raises ValueError for an unknown word or a size that does not fit.
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        channels: int = 1,
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
        drop_path_over_depth: str = "uniform",
        norm_eps: float = 1e-5,
        local_norm: bool = False,
        rope_base: float = 100.0,
        rope_rescale: float | None = None,
        sequences: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        if ffn not in FEED_FORWARD:
            raise ValueError(f"ffn {ffn!r}: use {' or '.join(FEED_FORWARD)}")
        if position not in ("rope", "learned") or (position == "learned") != (grid is not None):
            raise ValueError(f"position {position!r} with grid {grid}: use rope without, or learned with a grid")
        if drop_path_over_depth not in ("uniform", "linear"):
            raise ValueError(f"drop_path_over_depth {drop_path_over_depth!r}: use uniform or linear")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path}: give a share from 0 to below 1")
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.register_count, self.channels, self.sequences = registers, channels, tuple(sequences)
        self.patch_embed = PatchEmbed(patch_size, channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if registers:
            self.storage_tokens = nn.Parameter(torch.zeros(1, registers, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
        if grid is not None:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, embed_dim))
        self.sequence_embed = nn.Embedding(len(self.sequences), embed_dim) if self.sequences else None
        self.rope_embed = RotaryEmbedding(embed_dim // num_heads, rope_base) if position == "rope" else None
        self.rope_rescale = rope_rescale
        self.recompute = False  # run blocks again for their gradients instead of keeping what they computed
        rates = [drop_path] * depth
        if drop_path_over_depth == "linear":
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
        """Draw fresh weights: truncated normal of 0.02 for matrices, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, generator)
            elif isinstance(module, nn.Conv2d):
                # the bound of a linear layer over the same number of inputs
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                assert module.bias is not None
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.initial)
        for name in ("cls_token", "storage_tokens", "pos_embed"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=0.02, generator=generator)
        if self.sequence_embed is not None:
            # as MM-DINOv2: it is normalised when used, so its length only sets how slowly it turns
            nn.init.normal_(self.sequence_embed.weight, std=1.0, generator=generator)
        nn.init.zeros_(self.mask_token)

    def forward(
        self,
        images: torch.Tensor,
        mask: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
        sequences: tuple[str, ...] = (),
    ) -> Features:
        """Return the features of the last block for images of one size; the arguments are those of Crops."""
        found = self.packed([Crops(images, mask, present=present, sequences=sequences)])[0]
        return cast(Features, found)  # no tokens are selected

    def packed(self, groups: Sequence[Crops]) -> list[Features | SelectedFeatures]:
        """Return the features of the last block for crops of several sizes, all in one row of tokens.

        Of a group that reads some tokens (`Crops.read_tokens`), those.
        """
        tokens, packings, layouts = self.embed(groups)
        read_tokens = self._read_tokens(groups, layouts, packings[0])
        again = self.recompute and torch.is_grad_enabled()
        for block, route in zip(self.blocks, self._routes(groups, layouts, packings, read_tokens, tokens.device)):
            tokens = checkpoint(block, tokens, route, use_reentrant=False) if again else block(tokens, route)
        return self._finish(tokens, packings[0], groups, layouts, read_tokens)

    def intermediate(
        self,
        images: torch.Tensor,
        blocks: Sequence[int],
        present: torch.Tensor | None = None,
        sequences: tuple[str, ...] = (),
    ) -> list[Features]:
        """Return the features after each of `blocks` (from 0, negative from the end), all through the final norm."""
        wanted = [number % self.depth for number in blocks]
        groups = [Crops(images, present=present, sequences=sequences)]
        tokens, (packing, *_), layouts = self.embed(groups)
        found = {}
        route = BlockRoute(Branch(packing=packing))
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            tokens = block(tokens, route)
            if number in wanted:
                found[number] = cast(Features, self._finish(tokens, packing, groups, layouts)[0])
        return [found[number] for number in wanted]

    def attend_with(self, kernel: Kernel) -> None:
        """Use another of `pretrain.model.attention`'s kernels: the same numbers."""
        for block in self._blocks:
            block.attn.kernel = kernel

    @property
    def _blocks(self) -> list[Block]:
        """The blocks, typed."""
        return cast("list[Block]", list(self.blocks))

    def embed(self, groups: Sequence[Crops]) -> tuple[torch.Tensor, list[Packing], list[Layout]]:
        """Return the (T, D) row of tokens before the first block, its packing in each block, the groups' layouts."""
        # not the images' len: an exported graph keeps their number open
        layouts = [layout(group.present, group.images.shape[0], self._count(group)) for group in groups]
        embedded = [each for group, place in zip(groups, layouts) for each in self._embed_group(group, place)]
        tokens, runs = pack([part for part, _ in embedded])
        bias = bias_of(runs, self._blocks[0].attn.kernel, tokens.device)
        packings = [
            Packing(runs, tuple(each[block % len(each)] for _, each in embedded), bias)
            for block in range(max(len(each) for _, each in embedded))
        ]
        return tokens, packings if len(packings) > 1 else packings * self.depth, layouts

    def _count(self, group: Crops) -> int:
        """The number of sequences of a group's images. Raises ValueError where the model does not know them."""
        count = group.images.shape[1] // self.channels
        names = group.sequences or self.sequences
        if self.sequences and len(names) != count:
            raise ValueError(f"images of {count} sequences, but names of {len(names)}: {', '.join(names)}")
        if not self.sequences and count != 1:
            raise ValueError(f"images of {count} sequences, but the model knows none; name them in model.sequences")
        if strange := [name for name in names if name not in self.sequences] if self.sequences else []:
            raise ValueError(f"sequence {strange[0]!r}: the model knows {', '.join(self.sequences)}")
        return count

    def _read_tokens(
        self, groups: Sequence[Crops], layouts: Sequence[Layout], packing: Packing
    ) -> list[torch.Tensor] | None:
        """Places in the row, on the host, of the tokens that are read of each group; None: all of all groups."""
        if all(group.read_tokens is None for group in groups):
            return None
        found, start = [], 0
        for group, place, runs in zip(groups, layouts, _by_group(packing, layouts)):
            end = start + length(runs)
            if group.read_tokens is None:
                found.append(torch.arange(start, end))
            else:
                patches = math.prod(self._grid(group))
                cls, first = token_places(place, 1 + self.register_count, patches, start)
                found.append(torch.cat([cls, first[group.read_tokens // patches] + group.read_tokens % patches]))
            start = end
        return found

    def _grid(self, group: Crops) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        height, width = group.images.shape[-2:]
        return height // self.patch_size, width // self.patch_size

    def _routes(
        self,
        groups: Sequence[Crops],
        layouts: Sequence[Layout],
        packings: Sequence[Packing],
        read_tokens: list[torch.Tensor] | None,
        device: torch.device,
    ) -> list[BlockRoute]:
        """The route through each block. Raises ValueError where training lacks draws."""
        rates, draws = [block.drop_path for block in self._blocks], None
        if self.training and any(rates):
            drawn = [group.drop for group in groups if group.drop is not None]
            if len(drawn) < len(groups):
                raise ValueError("drop_path: training needs draws, so that a run can be repeated")
            each = [select(drop.movedim(-1, 0), place.order) for drop, place in zip(drawn, layouts)]
            draws = torch.cat(each).movedim(0, -1)
        places = None if read_tokens is None else torch.cat(read_tokens)
        return routes(draws, rates, packings, places, self._blocks[0].attn.kernel, device)

    def _rope_scale(self, group: Crops) -> tuple[float, ...]:
        """Factors of the coordinates: one for all blocks, or one for each. Raises ValueError."""
        if not self.rope_rescale or not self.training:
            return (1.0,)
        if group.rope_scale is None or len(group.rope_scale) not in (1, self.depth):
            raise ValueError(f"rope_rescale: training needs 1 or {self.depth} RoPE scales, drawn repeatably")
        return group.rope_scale

    def _embed_group(self, group: Crops, place: Layout) -> list[tuple[torch.Tensor, tuple[Rotation | None, ...]]]:
        """For each run, (n, 1 + R + k·P, D) tokens before the first block, and the rotations of a sample's tokens."""
        rows, columns = self._grid(group)
        images = group.images.unflatten(1, (-1, self.channels)).flatten(0, 1)
        patches = self.patch_embed(images if place.take is None else images[place.take])
        if group.mask is not None:
            mask = group.mask.reshape(images.shape[0], -1)
            mask = mask if place.take is None else mask[place.take]
            patches = torch.where(mask.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        # without a mask the token still takes part, so that every parameter has a gradient
        cls = self.cls_token if group.mask is not None else self.cls_token + 0 * self.mask_token
        if self.rope_embed is None:
            places = resampled(self.pos_embed, rows, columns, antialias=self.register_count > 0)
            cls, patches = cls + places[:, :1], patches + places[:, 1:]
        if self.sequence_embed is not None:
            patches = patches + self._names(group, place).to(patches.dtype)
        prefix = torch.cat([cls, self.storage_tokens], dim=1) if self.register_count else cls
        rotations: tuple[Rotation | None, ...] = (None,)
        if self.rope_embed is not None:
            prefixed = 1 + self.register_count
            rotations = tuple(self.rope_embed(rows, columns, prefixed, each) for each in self._rope_scale(group))
        sizes, found = [count * each for count, each in place.runs], []
        for (count, sequences), part in zip(place.runs, patches.split(sizes) if len(sizes) > 1 else [patches]):
            tokens = part.unflatten(0, (-1, sequences)).flatten(1, 2) if sequences > 1 else part
            tokens = torch.cat([prefix.expand(count, -1, -1).to(patches.dtype), tokens], dim=1)
            found.append((tokens, tuple(self._repeated(each, sequences) for each in rotations)))
        return found

    def _names(self, group: Crops, place: Layout) -> torch.Tensor:
        """(M, 1, D) unit vectors that tell the sequences of a group's images apart."""
        names = [self.sequences.index(name) for name in group.sequences or self.sequences]
        assert self.sequence_embed is not None
        each = F.normalize(self.sequence_embed.weight[names], dim=-1)
        each = each.repeat(group.images.shape[0], 1) if place.take is None else each[place.take % len(names)]
        return each.unsqueeze(1)

    def _repeated(self, rotation: Rotation | None, sequences: int) -> Rotation | None:
        """The rotation of a sample with this many sequences: a patch has the same position in each."""
        if rotation is None or sequences == 1:
            return rotation
        prefix = 1 + self.register_count
        sine, cosine = (torch.cat([part[:prefix], part[prefix:].repeat(sequences, 1)]) for part in rotation)
        return sine, cosine

    def _finish(
        self,
        tokens: torch.Tensor,
        packing: Packing,
        groups: Sequence[Crops],
        layouts: Sequence[Layout],
        read_tokens: list[torch.Tensor] | None = None,
    ) -> list[Features | SelectedFeatures]:
        """What is read of the groups, their samples and sequences in the order in which they came."""
        by_group = _by_group(packing, layouts)
        sizes = [length(runs) for runs in by_group] if read_tokens is None else [len(each) for each in read_tokens]
        rows = tokens.split(sizes) if len(sizes) > 1 else [tokens]
        return [
            self._whole(row, runs, group, place)
            if group.read_tokens is None
            else self._selected(row, len(group.read_tokens), group.local)
            for row, runs, group, place in zip(rows, by_group, groups, layouts)
        ]

    def _whole(self, row: torch.Tensor, runs: Sequence[Run], group: Crops, place: Layout) -> Features:
        """The features of a group whose (T, D) tokens are all read."""
        parts = [
            self._normed(part, sequences, group.local) for part, (_, sequences) in zip(unpack(row, runs), place.runs)
        ]
        prefix, patches = (torch.cat(each) if len(each) > 1 else each[0] for each in zip(*parts))
        if place.back is not None:
            prefix, patches = prefix[place.back], patches[place.images_back]
        return Features(prefix[:, 0], prefix[:, 1:], patches, group.present)

    def _selected(self, row: torch.Tensor, patches: int, local: bool) -> SelectedFeatures:
        """The features of a group of which (N + `patches`, D) cls tokens and patches are read."""
        cls, read = row.split([len(row) - patches, patches])
        return SelectedFeatures(self._norm_of(local)(cls), self.norm(read))

    def _normed(self, tokens: torch.Tensor, sequences: int, local: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 1 + R, D) cls tokens and registers, and (n·k, P, D) patches of a run, after their norms."""
        split = 1 + self.register_count
        if (norm := self._norm_of(local)) is not self.norm:
            prefix, patches = norm(tokens[:, :split]), self.norm(tokens[:, split:])
        else:
            normed = self.norm(tokens)
            prefix, patches = normed[:, :split], normed[:, split:]
        return prefix, patches.unflatten(1, (sequences, -1)).flatten(0, 1) if sequences > 1 else patches

    def _norm_of(self, local: bool) -> nn.LayerNorm:
        """The final norm of cls tokens and registers."""
        return self.local_cls_norm if local and self.training and self.local_cls_norm is not None else self.norm


def _by_group(packing: Packing, layouts: Sequence[Layout]) -> list[list[Run]]:
    """The runs of each group."""
    runs = iter(packing.runs)
    return [[next(runs) for _ in place.runs] for place in layouts]
