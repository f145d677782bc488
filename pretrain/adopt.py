"""Published weights as an encoder: the architecture is what their names and shapes say, on one input channel."""

from __future__ import annotations

from pathlib import Path

from pretrain import build, initialise, published
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.encoder import Encoder, frozen
from pretrain.published import Published, WeightsError

# what a window of soft tissue and ImageNet's statistics make of HU; weights of three channels absorb the latter
_INTENSITY = IntensityConfig(window=[-160.0, 240.0], mean=0.449, std=0.226)


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
    """The architecture of the weights. Raises WeightsError where the number of heads cannot be read from them."""
    if "num_heads" not in found.settings:
        raise WeightsError(initialise.untold_heads(found))
    learned = found.settings["position"] == "learned"
    usual = {
        "mask_k_bias": not learned,  # DINOv3's; where a file has no such bias, nothing changes
        "norm_eps": 1e-6 if learned else 1e-5,
    }
    return ModelConfig(
        **(usual | found.settings),
        patch_size=found.weights["patch_embed.proj.weight"].shape[-1],
        sequences=list(found.sequences),
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in found.weights else None,
    )
