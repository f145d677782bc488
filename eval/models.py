"""Encoders that are no run of ours: published weights, and statistics of pixels as a floor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from data_prep.settings import SettingsError
from pretrain import build, initialise, published
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.encoder import Encoder, frozen
from pretrain.published import Published

# heads of the published widths, where no configuration beside the weights says it
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 1536: 24, 4096: 32}
# what a window of soft tissue and ImageNet's statistics make of HU; weights of three channels absorb the latter
_INTENSITY = IntensityConfig(window=[-160.0, 240.0], mean=0.449, std=0.226)


class Pixels:
    """No network: a patch's features are mean, spread, minimum, maximum and four coarse cells of its pixels; the cls
    token's are 16 quantiles and the 4 × 4 thumbnail of the image. What beats chance here is no merit of a network."""

    source, digest = "pixels", hashlib.sha256(b"pixel statistics 1").hexdigest()
    patch_size, embed_dim, depth, window = 8, 32, 1, (-1000.0, 1000.0)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def features(
        self, images: torch.Tensor, blocks: Sequence[int], present: torch.Tensor | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        count, size = len(images), self.patch_size
        tokens = F.unfold(images, size, stride=size).transpose(1, 2)
        cells = F.adaptive_avg_pool2d(tokens.reshape(-1, 1, size, size), 2).reshape(*tokens.shape[:2], 4)
        summary = [tokens.mean(2), tokens.std(2), tokens.amin(2), tokens.amax(2)]
        patches = torch.cat([torch.stack(summary, dim=2), cells], dim=2)
        patches = F.pad(patches, (0, self.embed_dim - patches.shape[2]))
        quantiles = torch.quantile(images.reshape(count, -1), torch.linspace(0, 1, 16), dim=1).T
        cls = torch.cat([quantiles, F.adaptive_avg_pool2d(images, 4).reshape(count, -1)], dim=1)
        return [(cls, patches) for _ in blocks]


def is_published(path: Path) -> bool:
    """Whether a path names published weights and no run of ours."""
    return path.is_file() or (path / "config.json").is_file()


def published_encoder(path: Path) -> Encoder:
    """Published weights in a backbone of ours, on one channel, exactly. Raises WeightsError, SettingsError."""
    found = published.read(path)
    config = _config(found)
    model = build.backbone(config)
    initialise.load(model, found, config, _INTENSITY)
    return frozen(model, build.intensity(_INTENSITY), config, f"{path.name} ({found.kind})")


def _config(found: Published) -> ModelConfig:
    """The architecture that the names and shapes of the weights say."""
    weights, width = found.weights, found.settings["embed_dim"]
    kernel = weights["patch_embed.proj.weight"]
    settings = {name: value for name, value in found.settings.items() if name in ModelConfig.__dataclass_fields__}
    if "num_heads" not in settings:
        if width not in _HEADS:
            raise SettingsError(f"{found.source}: {width} channels in how many heads? Put config.json beside it")
        settings["num_heads"] = _HEADS[width]
    settings["patch_size"] = kernel.shape[-1]
    settings["layer_scale"] = 1e-5 if "blocks.0.ls1.gamma" in weights else None
    if settings["position"] == "learned":
        settings["grid"] = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    name = "w1" if settings["ffn"] == "swiglu" else "fc1"
    hidden = weights[f"blocks.0.mlp.{name}.weight"].shape[0]
    settings["ffn_ratio"] = hidden / width * (1.5 if settings["ffn"] == "swiglu" else 1.0)
    settings["mask_k_bias"] = settings["position"] == "rope"  # DINOv3's; where a file has no such bias, nothing changes
    settings.setdefault("norm_eps", 1e-6 if settings["position"] == "learned" else 1e-5)
    return ModelConfig(**settings)
