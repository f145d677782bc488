"""Several sequences in one transformer: the reference's numbers, and what absent and permuted sequences change."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from pretrain.data.masking import masked
from pretrain.model.tokens import Crops, of_present, unpack
from pretrain.model.vit import VisionTransformer

NAMES = ("t1", "t1c", "t2", "flair")
BACKBONES = {
    "learned": {"position": "learned", "grid": 3, "registers": 0},
    "rope": {"position": "rope", "registers": 2, "mask_k_bias": True},
}


def model_of(backbone: str, sequences: tuple[str, ...] = NAMES) -> VisionTransformer:
    """A small transformer with weights large enough that everything matters."""
    model = VisionTransformer(
        patch_size=4, embed_dim=32, depth=3, num_heads=2, layer_scale=None, sequences=sequences, **BACKBONES[backbone]
    )
    model.init_weights(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    return model.eval()


def images_of(count: int, sequences: int, size: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, sequences, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", ["native", "larger"])
def test_the_multi_sequence_backbone_gives_the_references_numbers(size: str, golden_dir: Path) -> None:
    """Tokens before the first block and masked and unmasked outputs, at both sizes, to 1e-5."""
    path = golden_dir / "mm_dinov2_vit.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    weights = {name[8:]: value for name, value in tensors.items() if name.startswith("weights.")}
    # the reference repeats each sequence in three channels
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    weights["sequence_embed.weight"] = weights.pop("mri_seq_embed.weight")
    model = VisionTransformer(
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        position="learned",
        grid=config["img_size"] // config["patch_size"],
        registers=0,
        norm_eps=1e-6,
        layer_scale=1.0,
        sequences=config["sequence_embedding_rows"],
    ).eval()
    model.load_state_dict(weights)
    images, mask = tensors[f"{size}.input"], tensors[f"{size}.mask"]
    order, count = tuple(config["sequences_in_input_order"]), len(images)
    with torch.inference_mode():
        plain = model(images, sequences=order)
        masked = model(images, mask.bool(), sequences=order)
        crops = Crops(images, mask.bool(), sequences=order)
        row, (packing, *_), _ = model.embed([crops])
        (tokens,) = unpack(row, packing.runs)
    found = {
        "cls": plain.cls,
        "patches": plain.patches.reshape(count, -1, config["embed_dim"]),
        "masked_cls": masked.cls,
        "masked_patches": masked.patches.reshape(count, -1, config["embed_dim"]),
        "tokens_masked": tokens,
    }
    for name, value in found.items():
        torch.testing.assert_close(value, tensors[f"{size}.{name}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_order_of_sequences_does_not_matter(backbone: str) -> None:
    """Permuted with their names: the cls feature stays to 1e-5, the patches move along."""
    model, images, order = model_of(backbone), images_of(3, 4), (2, 0, 3, 1)
    with torch.inference_mode():
        plain = model(images, sequences=NAMES)
        moved = model(images[:, order], sequences=tuple(NAMES[place] for place in order))
        renamed = model(images[:, order], sequences=NAMES)
    torch.testing.assert_close(moved.cls, plain.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.registers, plain.registers, atol=1e-5, rtol=0)
    patches = plain.patches.unflatten(0, (3, 4))[:, order].flatten(0, 1)
    torch.testing.assert_close(moved.patches, patches, atol=1e-5, rtol=0)
    assert (renamed.cls - plain.cls).abs().max() > 1e-3  # the names are what tells them apart


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_absent_sequence_changes_nothing_for_anybody(backbone: str) -> None:
    """Each sample in a batch of others with other sequences, whatever lies in the absent pixels, has the features
    that it has alone with its own sequences; masks of absent sequences do nothing either."""
    model, images = model_of(backbone), images_of(5, 4)
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]).bool()
    images[~present] = float("nan")
    mask = torch.rand(5, 4 * 9, generator=torch.Generator().manual_seed(2)) < 0.3
    with torch.inference_mode():
        together = model(images, mask, present)
    assert len(together.patches) == present.sum()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), present.sum(dim=1).cumsum(0)])
    for number, mine in enumerate(present):
        names = tuple(name for name, there in zip(NAMES, mine) if there)
        own = mask[number].view(4, 9)[mine].view(1, -1)
        with torch.inference_mode():
            alone = model(images[number, mine].unsqueeze(0), own, sequences=names)
        torch.testing.assert_close(together.cls[number], alone.cls[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.registers[number], alone.registers[0], atol=1e-5, rtol=0)
        patches = together.patches[starts[number] : starts[number + 1]]
        torch.testing.assert_close(patches, alone.patches, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_sequence_with_a_zero_embedding_is_the_single_sequence_model(backbone: str) -> None:
    """The same weights without a vocabulary give the same features, to the bit."""
    several, single = model_of(backbone), model_of(backbone, ())
    several.sequence_embed.weight.data.zero_()
    weights = {name: value for name, value in several.state_dict().items() if not name.startswith("sequence_embed.")}
    single.load_state_dict(weights)
    images = images_of(4, 1)
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(3)) < 0.3
    with torch.inference_mode():
        one, other = several(images, mask, sequences=("t2",)), single(images, mask)
    for part in ("cls", "registers", "patches"):
        assert torch.equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_absent_sequences_have_no_gradient_and_drop_path_follows_its_sample(backbone: str) -> None:
    """In training: pixels of absent sequences get none; drop path does to a sample alone what it does to it packed."""
    model, images = model_of(backbone).train(), images_of(3, 4).requires_grad_()
    for block in model.blocks:
        block.drop_path = 0.3
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]]).bool()
    draws = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(4))
    (packed,) = model.packed([Crops(images, drop=draws, present=present)])
    packed.cls[:, 0].sum().backward()
    assert not images.grad[~present].any() and images.grad[present].abs().flatten(1).sum(1).all()
    for number, mine in enumerate(present):
        names = tuple(name for name, there in zip(NAMES, mine) if there)
        own = Crops(images[number, mine].unsqueeze(0), drop=draws[..., number : number + 1], sequences=names)
        torch.testing.assert_close(model.packed([own])[0].cls[0], packed.cls[number], atol=1e-5, rtol=0)


def test_features_at_a_mask_are_in_the_masks_own_order() -> None:
    """Row-major over samples, sequences, patches; absent sequences left out."""
    model, images = model_of("rope"), images_of(3, 2)
    present = torch.tensor([[1, 1], [0, 1], [1, 1]]).bool()
    mask = torch.zeros(3, 2, 9, dtype=torch.bool)
    mask[0, 1, 4] = mask[1, 1, 2] = mask[2, 0, 0] = mask[2, 1, 8] = True
    with torch.inference_mode():
        features = model(images, None, present, ("t2", "t1"))
    found = masked(mask.flatten(1), present, 2, torch.device("cpu"))
    chosen = features.at(found.places)
    expected = torch.stack([features.patches[image, patch] for image, patch in ((1, 4), (2, 2), (3, 0), (4, 8))])
    assert torch.equal(chosen, expected)
    assert torch.equal(of_present(mask.flatten(1), present).nonzero(), torch.tensor([[1, 4], [2, 2], [3, 0], [4, 8]]))


def test_sequences_that_the_model_does_not_know_are_refused() -> None:
    """Unknown names, wrong numbers, several images without a vocabulary, a sample without any: said in one line."""
    for backbone_names, names, count, said in (
        (NAMES, ("t1", "adc"), 2, "sequence 'adc': the model knows t1, t1c, t2, flair"),
        (NAMES, ("t1",), 2, "images of 2 sequences, but names of 1"),
        ((), (), 2, "name them in model.sequences"),
    ):
        with pytest.raises(ValueError, match=said):
            model_of("rope", backbone_names)(images_of(1, count), sequences=names)
    with pytest.raises(ValueError, match="none of the sequences"):
        model_of("rope")(images_of(1, 4), present=torch.zeros(1, 4, dtype=torch.bool))


def test_two_of_four_sequences_cost_little_more_than_half_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of a whole training step, and bytes kept for its gradients: under 60 % of those with all four."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "benchmarks")
    bench = importlib.import_module("sequences")
    arms, products, kept = bench.arms_of(192, 6, 2), {}, {}
    for count in (2, 4):
        with FlopCounterMode(display=False) as counter:
            arms.step(bench.present_of(2, count))
        products[count] = counter.get_total_flops()
        kept[count] = bench.kept_bytes(arms, bench.present_of(2, count))
    ratios = products[2] / products[4], kept[2] / kept[4]
    print("products and bytes of two sequences by those of four: {:.2f} {:.2f}".format(*ratios))
    assert max(ratios) < 0.6
