"""The transformer against the references' own numbers and against transformers' implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pretrain.model.vit import VisionTransformer


def golden_model(path: Path, **fixed) -> tuple[VisionTransformer, dict[str, torch.Tensor]]:
    """Our model with a golden file's architecture and weights (training mode off), and its tensors."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    model = VisionTransformer(
        channels=3,
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        **fixed,
    )
    model.load_state_dict({name[8:]: value for name, value in tensors.items() if name.startswith("weights.")})
    return model.eval(), tensors


VARIANTS = {
    "dinov3_vit_mlp": {"mask_k_bias": True},
    "dinov3_vit_swiglu": {"ffn": "swiglu", "ffn_ratio": 3.0, "qkv_bias": False, "local_norm": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_dinov3_backbone_gives_the_references_numbers(name: str, golden_dir: Path) -> None:
    """cls, registers and patches, masked and not, and blocks 0 and 2, to 1e-5."""
    model, tensors = golden_model(golden_dir / f"{name}.safetensors", **VARIANTS[name])
    with torch.inference_mode():
        plain = model(tensors["input"])
        masked = model(tensors["input"], tensors["mask"].bool())
        inner = model.intermediate(tensors["input"], [0, 2])
    found = {"out": plain, "masked": masked, "inter.0": inner[0], "inter.2": inner[1]}
    for prefix, features in found.items():
        for part in ("cls", "registers", "patches"):
            if f"{prefix}.{part}" in tensors:
                torch.testing.assert_close(getattr(features, part), tensors[f"{prefix}.{part}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", ["native", "larger"])
def test_dinov2_backbone_gives_the_references_numbers(size: str, golden_dir: Path) -> None:
    """Learned positions at the grid's own size and resampled to another, to 1e-5."""
    fixed = {"position": "learned", "grid": 5, "registers": 0, "norm_eps": 1e-6, "layer_scale": 1.0}
    model, tensors = golden_model(golden_dir / "dinov2_vit.safetensors", **fixed)
    with torch.inference_mode():
        features = model(tensors[f"{size}.input"])
    torch.testing.assert_close(features.cls, tensors[f"{size}.cls"], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.patches, tensors[f"{size}.patches"], atol=1e-5, rtol=0)
