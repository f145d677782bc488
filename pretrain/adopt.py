"""Published weights as an encoder: the architecture is what their names and shapes say, on one input channel."""

from __future__ import annotations

from pathlib import Path

from data_prep.settings import SettingsError
from pretrain import build, initialise, published
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.encoder import Encoder, frozen
from pretrain.published import Published, WeightsError

# heads of the published widths, where no configuration beside the weights says it
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 1536: 24, 4096: 32}
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
    """The architecture that the names and shapes of the weights say."""
    weights, width = found.weights, found.settings["embed_dim"]
    kernel = weights["patch_embed.proj.weight"]
    settings = {name: value for name, value in found.settings.items() if name in ModelConfig.__dataclass_fields__}
    if "num_heads" not in settings:
        if width not in _HEADS:
            raise SettingsError(f"{found.source}: {width} channels in how many heads? Put config.json beside it")
        settings["num_heads"] = _HEADS[width]
    settings["patch_size"], settings["sequences"] = kernel.shape[-1], list(found.sequences)
    settings["layer_scale"] = 1e-5 if "blocks.0.ls1.gamma" in weights else None
    if settings["position"] == "learned":
        settings["grid"] = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    name = "w1" if settings["ffn"] == "swiglu" else "fc1"
    if (first := weights.get(f"blocks.0.mlp.{name}.weight")) is None:
        raise WeightsError(f"{found.source}: its blocks are not DINO's: there is no feed-forward part that is known")
    hidden = first.shape[0]
    settings["ffn_ratio"] = hidden / width * (1.5 if settings["ffn"] == "swiglu" else 1.0)
    settings["mask_k_bias"] = settings["position"] == "rope"  # DINOv3's; where a file has no such bias, nothing changes
    settings.setdefault("norm_eps", 1e-6 if settings["position"] == "learned" else 1e-5)
    return ModelConfig(**settings)
