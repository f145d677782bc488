"""Networks that no pretraining helped, for the same table: a U-Net, a TransUNet-like hybrid, a residual CNN."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from eval.networks.decoders import PRIOR, convolved, fill_bias
from pretrain.model.vit import VisionTransformer

Architecture = Literal["unet", "transunet", "cnn"]


def build(kind: Architecture, in_channels: int, outputs: int, channels: int, generator: torch.Generator) -> nn.Module:
    """Build a network: `unet` and `transunet` map images (N, C, h, w) to logits (N, O, h, w), `cnn` to (N, O).

    channels  of the first level. The default random state gives MONAI's weights, so it is seeded and put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        if kind == "unet":
            return _unet(in_channels, outputs, channels)
        if kind == "transunet":
            return TransUnet(in_channels, outputs, channels, generator)
        return _cnn(in_channels, outputs, channels)


def _unet(in_channels: int, outputs: int, channels: int) -> nn.Module:
    """nnU-Net's architecture with five levels."""
    from monai.networks.nets import DynUNet  # takes seconds to import

    levels = 5
    network = DynUNet(
        2, in_channels, outputs, [3] * levels, [1] + [2] * (levels - 1), [2] * (levels - 1),
        filters=[min(channels * 2**level, 512) for level in range(levels)],
        norm_name=("INSTANCE", {"affine": True}),
    )  # fmt: skip
    nn.init.constant_(network.output_block.conv.conv.bias, PRIOR)
    return network


def _cnn(in_channels: int, outputs: int, channels: int) -> nn.Module:
    """A residual network of ten layers."""
    from monai.networks.nets import ResNet

    widths = [channels * 2**level for level in range(4)]
    return ResNet("basic", [1, 1, 1, 1], widths, 2, in_channels, conv1_t_stride=2, num_classes=outputs)


class TransUnet(nn.Module):
    """A convolutional stem to a quarter of the size, a transformer on an eighth of it, and a decoder that joins the
    stem's levels again (arXiv 2102.04306)."""

    def __init__(self, in_channels: int, outputs: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels]
        self.stem = nn.ModuleList(
            convolved(inputs, width) for inputs, width in zip([in_channels, *widths[:-1]], widths)
        )
        dim = 64 * max(1, channels // 8)
        self.transformer = VisionTransformer(
            patch_size=2, channels=widths[-1], embed_dim=dim, depth=4, num_heads=dim // 32, registers=0,
            layer_scale=None,
        )  # fmt: skip
        self.transformer.init_weights(generator)
        levels = [dim, *reversed(widths)]
        self.grow = nn.ModuleList(nn.ConvTranspose2d(deep, fine, 2, 2) for deep, fine in zip(levels, levels[1:]))
        self.join = nn.ModuleList(convolved(2 * width, width) for width in levels[1:])
        self.out = nn.Conv2d(channels, outputs, 1)
        fill_bias(self.out, PRIOR)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits at the images' size. Raises ValueError for a side that is not a multiple of 8."""
        if any(side % 8 for side in images.shape[-2:]):
            raise ValueError(f"image of {images.shape[-2]}×{images.shape[-1]} pixels: not a multiple of 8")
        skips, maps = [], images
        for number, level in enumerate(self.stem):
            maps = level(F.max_pool2d(maps, 2) if number else maps)
            skips.append(maps)
        patches = self.transformer(maps).patches
        maps = patches.transpose(1, 2).unflatten(2, [side // 2 for side in maps.shape[-2:]])
        for grow, join, skip in zip(self.grow, self.join, reversed(skips)):
            maps = join(torch.cat([grow(maps), skip], dim=1))
        return self.out(maps)
