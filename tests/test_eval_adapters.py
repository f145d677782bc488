"""LoRA and BitFit: what they train, what they leave, and that merging changes nothing."""

from __future__ import annotations

import pytest
import torch

from eval.networks import adapters
from pretrain.model.vit import VisionTransformer

IMAGES = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def backbone(**changes) -> VisionTransformer:
    """A small one, the same at every call."""
    small = {"patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3, "layer_scale": None}
    model = VisionTransformer(**small | changes)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def adapted(model: torch.nn.Module, method: str, steps: int = 5, **options) -> torch.nn.Module:
    """After some steps towards other features."""
    trained = adapters.prepare(model, method, torch.Generator().manual_seed(2), **options)
    optimizer = torch.optim.AdamW([each for _, each in trained], lr=1e-2)
    towards = torch.randn(4, 16, 96, generator=torch.Generator().manual_seed(3))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(IMAGES).patches * towards).mean().backward()
        optimizer.step()
    return model


def test_lora_begins_as_the_model_and_merges_exactly() -> None:
    """No change at first; after training one that the merged weights give to the last bit, under the old names."""
    plain = backbone(mask_k_bias=True)
    model = backbone(mask_k_bias=True)
    adapters.prepare(model, "lora", torch.Generator().manual_seed(2))
    assert torch.equal(model(IMAGES).patches, plain(IMAGES).patches)
    model = adapted(backbone(mask_k_bias=True), "lora")
    with torch.no_grad():
        before = model(IMAGES).patches
        assert (before - plain(IMAGES).patches).abs().max() > 0.01
        merged = adapters.merge(model)
        assert torch.equal(merged(IMAGES).patches, before)
        fresh = backbone(mask_k_bias=True)
        fresh.load_state_dict(merged.state_dict())
        assert torch.equal(fresh(IMAGES).patches, before)


def test_only_what_should_be_trained_changes() -> None:
    """LoRA touches the matrices of attention, BitFit biases, nothing touches nothing, full all."""
    plain = backbone().state_dict()
    for method, expected in (
        ("lora", lambda name: name.endswith(("qkv.weight", "attn.proj.weight"))),
        ("bitfit", lambda name: name.endswith("bias")),
        ("full", lambda name: name != "rope_embed.periods"),
    ):
        found = adapters.merge(adapted(backbone(), method)).state_dict()
        changed = {name for name in plain if not torch.equal(plain[name], found[name])}
        # mask tokens take no part here
        assert changed == {name for name in plain if expected(name)} - {"mask_token"}, method
    assert adapters.prepare(backbone(), "frozen", torch.Generator()) == []


@pytest.mark.parametrize("method", ["lora", "bitfit"])
@pytest.mark.parametrize("width", [192, 384])
def test_under_two_per_cent_are_trained(method: str, width: int) -> None:
    """Of a backbone of the sizes that are in use, counted without LoRA's own."""
    model = backbone(embed_dim=width, num_heads=width // 64, depth=2)
    everything = sum(each.numel() for each in model.parameters())
    trained = adapters.prepare(model, method, torch.Generator())
    assert sum(each.numel() for _, each in trained) / everything == pytest.approx(adapters.share(model))
    assert 0 < adapters.share(model) < 0.02


def test_another_models_layers() -> None:
    """A Hugging Face model by the names of its layers; a name that it has not is an error that says so."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    torch.manual_seed(0)
    model, images = transformers.Dinov2Model(config).eval(), torch.randn(2, 3, 28, 28)
    trained = adapters.prepare(model, "lora", torch.Generator(), targets=("q_proj", "v_proj"))
    assert len(trained) == 2 * 2 * 2
    torch.nn.init.ones_(trained[1][1])
    with torch.no_grad():
        before = model(images).last_hidden_state
        assert torch.equal(adapters.merge(model)(images).last_hidden_state, before)
    with pytest.raises(ValueError, match="no linear layer called kqv"):
        adapters.prepare(model, "lora", torch.Generator(), targets=("kqv",))
    with pytest.raises(ValueError, match="'lore': no such way to adapt"):
        adapters.prepare(model, "lore", torch.Generator())
