"""The transformer against a second implementation, with random weights and several sizes."""

from __future__ import annotations

import pytest
import torch

from pretrain.model.positions import resampled
from pretrain.model.vit import VisionTransformer

transformers = pytest.importorskip("transformers")


def renamed(theirs: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Another implementation's weights under our names; query, key and value become one matrix."""
    ours, parts = {}, {}
    for name, value in theirs.items():
        for old, new in names.items():
            name = name.replace(old, new)
        head, dot, tail = name.rpartition("attn.")
        if dot and tail[:2] in ("q.", "k.", "v."):
            parts.setdefault(f"{head}attn.qkv.{tail[2:]}", {})[tail[0]] = value
        else:
            ours[name] = value
    for name, found in parts.items():
        absent = torch.zeros_like(found["q"])  # DINOv3's key has no bias
        ours[name] = torch.cat([found.get(part, absent) for part in "qkv"])
    return ours


DINOV3 = {
    "embeddings.patch_embeddings": "patch_embed.proj", "embeddings.register_tokens": "storage_tokens",
    "embeddings.": "", "model.layer.": "blocks.", "layer.": "blocks.",
    "attention.q_proj": "attn.q", "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v", "attention.o_proj": "attn.proj", "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2",
}  # fmt: skip
DINOV2 = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "", "encoder.layer.": "blocks.", "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k", "attention.attention.value": "attn.v", "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma", "layernorm.": "norm.",
    # from version 5 on
    "attention.q_proj": "attn.q", "attention.k_proj": "attn.k", "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
}  # fmt: skip


def random_model(kind: str, config) -> torch.nn.Module:
    """A model of transformers with every parameter drawn, so that no zero hides a mistake."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_dinov3_equals_transformers(registers: int, size: tuple[int, int]) -> None:
    """cls, registers and patches to 1e-4 of DINOv3ViTModel, for square and oblong images."""
    config = transformers.DINOv3ViTConfig(
        patch_size=16, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
        num_register_tokens=registers, image_size=64,
    )  # fmt: skip
    theirs = random_model("DINOv3ViTModel", config)
    ours = VisionTransformer(channels=3, embed_dim=64, depth=3, num_heads=4, registers=registers).eval()
    weights = renamed(theirs.state_dict(), DINOV3)
    weights["mask_token"] = weights["mask_token"].reshape(1, -1)
    if not registers:
        weights.pop("storage_tokens", None)
    weights["rope_embed.periods"] = ours.rope_embed.periods
    ours.load_state_dict({name: value for name, value in weights.items() if "inv_freq" not in name})
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = theirs(image).last_hidden_state, ours(image)
    together = torch.cat([found.cls[:, None], found.registers, found.patches], dim=1)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [37, 16, 5])
@pytest.mark.parametrize("size", [(7, 7), (16, 16), (32, 32), (5, 40), (48, 31), (1, 2), (37, 37)])
def test_antialiased_positions_equal_pytorchs(side: int, size: tuple[int, int]) -> None:
    """Smaller and larger, square and oblong: F.interpolate's antialiased bicubic to 1e-5; the cls token's stays."""
    places = torch.randn(1, 1 + side * side, 6, generator=torch.Generator().manual_seed(0))
    square = places[:, 1:].reshape(1, side, side, 6).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, size, mode="bicubic", antialias=True)
    found = resampled(places, *size, antialias=True)
    torch.testing.assert_close(found[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, :1], places[:, :1])
    if size == (side, side):
        assert torch.equal(found, places)


@pytest.mark.parametrize("size", [(37, 37), (7, 7), (16, 16), (32, 32), (7, 19), (40, 5)])
def test_dinov2_with_registers_equals_transformers(size: tuple[int, int]) -> None:
    """cls, registers and patches to 1e-4 of Dinov2WithRegistersModel on grids other than its own 37 × 37, too."""
    config = transformers.Dinov2WithRegistersConfig(
        patch_size=2, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=74, num_register_tokens=4
    )
    theirs = random_model("Dinov2WithRegistersModel", config)
    ours = VisionTransformer(
        channels=3, patch_size=2, embed_dim=64, depth=3, num_heads=4, position="learned", grid=37, norm_eps=1e-6,
    ).eval()  # fmt: skip
    ours.load_state_dict(renamed(theirs.state_dict(), {"embeddings.register_tokens": "storage_tokens"} | DINOV2))
    image = torch.randn(2, 3, 2 * size[0], 2 * size[1], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = theirs(image).last_hidden_state, ours(image)
    together = torch.cat([found.cls[:, None], found.registers, found.patches], dim=1)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


def test_dinov2_equals_transformers() -> None:
    """cls and patches to 1e-4 of Dinov2Model at its own size."""
    config = transformers.Dinov2Config(
        patch_size=14, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=70
    )
    theirs = random_model("Dinov2Model", config)
    ours = VisionTransformer(
        channels=3, patch_size=14, embed_dim=64, depth=3, num_heads=4, registers=0, position="learned", grid=5,
        norm_eps=1e-6,
    ).eval()  # fmt: skip
    ours.load_state_dict(renamed(theirs.state_dict(), DINOV2))
    image = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = theirs(image).last_hidden_state, ours(image)
    torch.testing.assert_close(torch.cat([found.cls[:, None], found.patches], dim=1), expected, atol=1e-4, rtol=1e-4)


def test_patches_that_do_not_fit_are_refused() -> None:
    """An image that is not whole patches, or words that do not exist, raise one clear line."""
    with pytest.raises(ValueError, match="not a multiple of the patch size 16"):
        VisionTransformer(embed_dim=32, depth=1, num_heads=2)(torch.zeros(1, 1, 40, 32))
    with pytest.raises(ValueError, match="use mlp or swiglu"):
        VisionTransformer(embed_dim=32, depth=1, num_heads=2, ffn="swish")
    with pytest.raises(ValueError, match="use rope without, or learned with a grid"):
        VisionTransformer(embed_dim=32, depth=1, num_heads=2, position="learned")


def test_bf16_attention_on_the_cpu_is_attention() -> None:
    """The products that replace the fused kernel in bf16 give its output and gradients within bf16's precision."""
    from pretrain.model.attention import attend

    parts = [torch.randn(2, 3, 17, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    found = [part.bfloat16().requires_grad_() for part in parts]
    exact = [part.clone().requires_grad_() for part in parts]
    one, other = attend(*found), attend(*exact)
    one.float().square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(one.float(), other, atol=0.03, rtol=0.03)
    for mine, theirs in zip(found, exact):
        torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=0.1, rtol=0.1)
