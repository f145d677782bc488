"""A backbone and a decoder as one network: images in, maps of structures out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from eval.networks.decoders import Standardise
from pretrain import optim
from pretrain.model.vit import VisionTransformer


class Segmenter(nn.Module):
    """(N, C, h, w) normalised images → (N, O, R, R) logits.

    backbone     a transformer with `intermediate`; images of more channels than it takes pass through it one
                 channel after the other, and their features are laid side by side
    blocks       whose patch features the decoder sees, counted from 0
    decoder      of eval.networks.decoders, for features of width channels · blocks · D
    standardise  of the same width
    """

    def __init__(
        self, backbone: VisionTransformer, blocks: Sequence[int], decoder: nn.Module, standardise: Standardise
    ) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, list(blocks)
        self.decoder, self.standardise = decoder, standardise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patch = self.backbone.patch_size
        grid = images.shape[-2] // patch, images.shape[-1] // patch
        return self.decoder(self.standardise(self.features(images)), grid, images)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return (N, P, F) patch features of all blocks (and channels), side by side."""
        takes = self.backbone.patch_embed.proj.in_channels
        if images.shape[1] % takes:
            raise ValueError(f"images of {images.shape[1]} channels, but the backbone takes {takes}")
        stacked = images.unflatten(1, (-1, takes))
        found = self.backbone.intermediate(stacked.flatten(0, 1), self.blocks)
        tokens = torch.cat([each.patches for each in found], dim=2).unflatten(0, stacked.shape[:2])
        return tokens.movedim(1, 2).flatten(2)


class Padded(nn.Module):
    """A network on images that are brought to whole patches by zeros below and on the right, and cut back."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        return self.network(padded)[..., :height, :width]


def groups(model: nn.Module, depth: int, layer_decay: float) -> list[dict]:
    """Return the trained parameters as optimizer groups; the rate falls by `layer_decay` per block from the top."""
    named = [(name.rpartition("backbone.")[2], each) for name, each in model.named_parameters() if each.requires_grad]
    return optim.build_groups(named, depth, layer_decay, patch_embed_multiplier=1.0)
