"""Published weights as an encoder: the architecture is what their names and shapes say, on one input channel."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

from pretrain import build
from pretrain.config import ModelConfig
from pretrain.data.intensity import Intensity
from pretrain.weights import architecture, initialise, published
from pretrain.weights.encoder import Encoder, frozen
from pretrain.weights.published import Published, WeightsError

log = logging.getLogger("pretrain")

# where a file does not say: a window of soft tissue with ImageNet's statistics; weights of three channels absorb these
_ASSUMED = Intensity(window=(-160.0, 240.0), mean=0.449, std=0.226)


def is_published(path: Path) -> bool:
    """Whether a path names published weights and no run of ours."""
    return path.is_file() or (path / "config.json").is_file()


def published_encoder(path: Path) -> Encoder:
    """Published weights in a backbone of ours, on one channel, exactly. Raises WeightsError, SettingsError.

    Its intensity is the file's own, else a window of soft tissue; that is a warning for weights of grey images, which
    were trained with one that nothing tells.
    """
    found = published.read(path)
    config = _config(found)
    model = build.backbone(config)
    intensity = found.intensity or _ASSUMED
    initialise.load(model, found, config, intensity)
    if found.intensity is None and (found.grey or found.weights["patch_embed.proj.weight"].shape[1] == 1):
        log.warning(
            "%s: does not say its intensity; assumed is %s, which may be wrong: name a run or a folder exported "
            "with its intensity to be sure",
            *(path, initialise.intensity_words(intensity)),
        )
    whole = frozen(model, intensity, config, f"{path.name} ({found.kind})")
    if found.intensity is None:
        return whole
    # the same weights under another intensity give other features, which are kept by the digest
    digest = hashlib.sha256(f"{whole.digest} {intensity}".encode()).hexdigest()
    return replace(whole, digest=digest)


def _config(found: Published) -> ModelConfig:
    """The architecture of the weights. Raises WeightsError where the number of heads cannot be read from them."""
    if "num_heads" not in found.settings:
        raise WeightsError(initialise.untold_heads(found))
    learned = found.settings["position"] == "learned"
    usual = {
        "mask_k_bias": not learned,  # DINOv3's; where a file has no such bias, nothing changes
        "norm_eps": architecture.usual_eps(found.settings["position"]),
    }
    return ModelConfig(
        **(usual | found.settings),
        patch_size=found.weights["patch_embed.proj.weight"].shape[-1],
        sequences=list(found.sequences),
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in found.weights else None,
    )
