"""A backbone as a folder for `transformers.AutoModel.from_pretrained`: weights, configuration, normalisation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from meddap.disk import write_atomic
from meddap.errors import MeddapError
from pretrain.config import ModelConfig, head_count
from pretrain.model.vit import VisionTransformer
from pretrain.weights import architecture, initialise
from pretrain.weights.encoder import Encoder
from pretrain.weights.published import Tensors

_NAMES = {
    "dinov3": (
        (r"^blocks\.", "layer."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"\.attn\.(q|k|v)\.", r".attention.\1_proj."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"^norm\.", "norm."),
    ),
    "dinov2": (
        (r"^blocks\.", "encoder.layer."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"\.attn\.q\.", ".attention.attention.query."),
        (r"\.attn\.k\.", ".attention.attention.key."),
        (r"\.attn\.v\.", ".attention.attention.value."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"^norm\.", "layernorm."),
    ),
}
_SHARED = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^storage_tokens$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)
_FFN = {
    "mlp": ((r"\.mlp\.fc1\.", ".mlp.up_proj."), (r"\.mlp\.fc2\.", ".mlp.down_proj.")),
    "swiglu": (
        (r"\.mlp\.w1\.", ".mlp.gate_proj."),
        (r"\.mlp\.w2\.", ".mlp.up_proj."),
        (r"\.mlp\.w3\.", ".mlp.down_proj."),
    ),
}


class ExportError(MeddapError, RuntimeError):
    """What cannot be exported; one line that says why."""


def write(loaded: Encoder, output: Path, descent: Mapping[str, Any] | None = None) -> None:
    """Write a folder that transformers loads. Raises ExportError for an architecture that it does not have.

    descent  `lineage` and `license` of the weights, beside their intensity in config.json
    """
    config = loaded.config
    kind = architecture.family(config.position)
    if kind == "dinov2" and (config.ffn != "mlp" or config.ffn_ratio % 1):
        raise ExportError(
            "transformers has no model of learned positions with SwiGLU or a fractional ffn_ratio; use --format dinov3"
        )
    output.mkdir(parents=True, exist_ok=True)
    weights = _renamed(
        _split(_weights(loaded.model), config, kind),
        (*_SHARED, *_NAMES[kind], *(_FFN[config.ffn] if kind == "dinov3" else ())),
    )
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    # a key that transformers ignores, so that our reader knows the window and where the weights come from
    ours = {"meddap": {**asdict(loaded.intensity), **(descent or {})}}
    _write_json(output / "config.json", _config(config, kind, weights) | ours)
    _write_json(output / "preprocessor_config.json", preprocessing(loaded))


def _weights(model: VisionTransformer) -> Tensors:
    skipped = initialise.buffers(model)
    return {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if name not in skipped and not name.startswith("local_cls_norm.")
    }


def _split(weights: Tensors, config: ModelConfig, kind: str) -> Tensors:
    """Split query, key and value; add LayerScale of ones where there is none; reshape the mask token."""
    ours: Tensors = {}
    for name, value in weights.items():
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", value.chunk(3)):
                if not (part == "k" and name.endswith("bias") and config.mask_k_bias and kind == "dinov3"):
                    zero = part == "k" and name.endswith("bias") and config.mask_k_bias
                    ours[name.replace(".qkv.", f".{part}.")] = torch.zeros_like(piece) if zero else piece.clone()
        else:
            ours[name] = value
    if config.layer_scale is None:
        for block in range(config.depth):
            for number in (1, 2):
                ours[f"blocks.{block}.ls{number}.gamma"] = torch.ones(config.embed_dim)
    if kind == "dinov3":
        ours["mask_token"] = ours["mask_token"].reshape(1, 1, -1)
        ours.setdefault("storage_tokens", torch.zeros(1, 0, config.embed_dim))
    return ours


def _renamed(weights: Tensors, rules: tuple[tuple[str, str], ...]) -> Tensors:
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _config(config: ModelConfig, kind: str, weights: Tensors) -> dict:
    shared = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": head_count(config),
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "layer_norm_eps": config.norm_eps,
        "layerscale_value": 1.0,
    }
    if kind == "dinov3":
        wide = weights["layer.0.mlp.up_proj.weight"].shape[0]
        gated = config.ffn == "swiglu"
        return {
            **shared,
            "architectures": ["DINOv3ViTModel"],
            "model_type": "dinov3_vit",
            "image_size": 14 * config.patch_size,
            "intermediate_size": wide,
            "hidden_act": "silu" if gated else "gelu",
            "use_gated_mlp": gated,
            "num_register_tokens": config.registers,
            "query_bias": config.qkv_bias,
            "key_bias": config.qkv_bias and not config.mask_k_bias,
            "value_bias": config.qkv_bias,
            "rope_theta": config.rope_base,
        }
    assert config.grid is not None  # learned positions lie on one
    with_registers = config.registers > 0
    return {
        **shared,
        "architectures": ["Dinov2WithRegistersModel" if with_registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if with_registers else "dinov2",
        "image_size": config.grid * config.patch_size,
        "mlp_ratio": int(config.ffn_ratio),
        "qkv_bias": config.qkv_bias,
        **({"num_register_tokens": config.registers} if with_registers else {}),
    }


def preprocessing(loaded: Encoder) -> dict:
    """Return the settings of an image processor: (x − mean) / std for values already clipped to the window.

    No image processor of transformers clips, so the model card has the lines that do. Of a model of colour pictures it
    takes red, green and blue from 0 to 255.
    """
    low, high = loaded.intensity.window
    width, in_colour = high - low, takes_pictures(loaded)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_center_crop": False,
        "do_rescale": in_colour,
        **({"rescale_factor": 1 / 255} if in_colour else {}),
        "do_normalize": True,
        "image_mean": [low + mean * width for mean in loaded.intensity.means],
        "image_std": [std * width for std in loaded.intensity.stds],
    }


def takes_pictures(loaded: Encoder) -> bool:
    """Whether an encoder is one of colour pictures, whose black is 0 and white 1 (`encoder.of_shares`)."""
    return loaded.config.channels == 3 and loaded.intensity.window == (0.0, 1.0)


def _write_json(path: Path, content: dict) -> None:
    write_atomic(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
