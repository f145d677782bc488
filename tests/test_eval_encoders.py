"""What --checkpoint may name: a user's file, published weights, models of transformers, pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.config import TaskConfig
from eval.data import features
from eval.data.examples import Picture
from eval.encoders import encoder
from meddap.settings import SettingsError
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.weights.published import WeightsError

MINE = """
import torch
class Mine:
    source, digest, patch_size, embed_dim, depth, window = "mine", "0" * 64, 8, 64, 1, (-1000, 1000)
    def prepare(self, images):
        return images - 0.5
    def features(self, images, blocks, present=None):
        tokens = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return [(tokens.mean(dim=1), tokens) for _ in blocks]
def build():
    return Mine()
def half():
    return object()
"""


def task() -> TaskConfig:
    return TaskConfig(data="none", bf16=False)


def grey(count: int = 2, size: int = 32) -> torch.Tensor:
    """(N, 1, size, size) in 0…1."""
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def three(images: torch.Tensor) -> torch.Tensor:
    """Repeated in three channels with ImageNet's normalisation."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images.repeat(1, 3, 1, 1) - mean) / std


def test_a_model_of_ones_own_in_ten_lines(tmp_path: Path) -> None:
    """FILE.py:FUNCTION gives an encoder; what it lacks is named."""
    (tmp_path / "mine.py").write_text(MINE)
    found = encoder.load(f"{tmp_path}/mine.py:build", task())
    cls, patches = found.features(found.prepare(grey()), [-1])[0]
    assert cls.shape == (2, 64) and patches.shape == (2, 16, 64)
    with pytest.raises(SettingsError, match="lacks source, digest, patch_size"):
        encoder.load(f"{tmp_path}/mine.py:half", task())
    with pytest.raises(SettingsError, match="has no nothing"):
        encoder.load(f"{tmp_path}/mine.py:nothing", task())
    with pytest.raises(SettingsError, match="no such file"):
        encoder.load(f"{tmp_path}/yours.py:build", task())


def test_dinov2_of_transformers_is_read_exactly(tmp_path: Path) -> None:
    """A folder of Hugging Face's DINOv2 becomes a backbone of one channel with the same features, to 1e-4."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, patch_size=8, image_size=32
    )
    torch.manual_seed(0)
    theirs = transformers.Dinov2Model(config).eval()
    theirs.save_pretrained(tmp_path / "dino")
    found = encoder.load(str(tmp_path / "dino"), task())
    assert (found.patch_size, found.embed_dim, found.depth) == (8, 64, 3)
    cls, patches = found.features(found.prepare(grey()), [-1])[0]
    with torch.inference_mode():
        expected = theirs(three(grey())).last_hidden_state
    torch.testing.assert_close(torch.cat([cls[:, None], patches], dim=1), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip"])
def test_other_vision_transformers_by_transformers(kind: str, tmp_path: Path) -> None:
    """ViT, and the image towers of CLIP and SigLIP: tokens as transformers has them, also of another size."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    vision = dict(**sizes, patch_size=8, image_size=32)
    torch.manual_seed(0)
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**vision), add_pooling_layer=False)
    elif kind == "clip":
        text = transformers.CLIPTextConfig(**sizes, vocab_size=50)
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=8)
        )
    else:
        text = transformers.SiglipTextConfig(**sizes, vocab_size=50)
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text.to_dict(), vision_config=vision))
    model.eval().save_pretrained(tmp_path / kind)
    found = encoder.load(str(tmp_path / kind), task())
    assert (found.patch_size, found.embed_dim, found.depth) == (8, 32, 2) and found.source.startswith(kind)
    (_, first), (cls, patches) = found.features(found.prepare(grey()), [0, -1])
    tower = model if kind == "vit" else model.vision_model
    with torch.inference_mode():
        expected = tower(three(grey())).last_hidden_state
        if kind == "clip":  # CLIP norms the cls token alone, after the last block; here all tokens are
            expected = tower.post_layernorm(expected)
        vector = tower(three(grey())).pooler_output if kind == "siglip" else expected[:, 0]  # SigLIP has no cls token
    torch.testing.assert_close(patches, expected[:, -16:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cls, vector, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first, patches)
    assert found.features(found.prepare(grey(size=48)), [-1])[0][1].shape == (2, 36, 32)
    assert encoder.load(str(tmp_path / kind), task()).digest == found.digest


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_weights_that_are_not_finite_are_said_of_the_file(kind: str, tmp_path: Path) -> None:
    """A model that a backbone of ours reads, and one that the library reads: one line with folder and tensor."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    if kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=64), add_pooling_layer=False)
    model.get_input_embeddings().projection.weight.data[0, 0, 0, 0] = float("nan")
    model.save_pretrained(tmp_path / kind)
    with pytest.raises((SettingsError, WeightsError), match=f"{kind}: .*projection.weight holds NaN or infinity"):
        encoder.load(str(tmp_path / kind), task())


def test_a_folder_whose_configuration_contradicts_it_is_not_left_to_the_library(tmp_path: Path) -> None:
    """A DINOv2 said to have fewer blocks, which transformers would load without a word, is refused; one with another
    activation is read by transformers, exactly."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    torch.manual_seed(0)
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, hidden_act="relu")).eval()
    theirs.save_pretrained(tmp_path / "dino")
    found = encoder.load(str(tmp_path / "dino"), task())
    assert found.source == "dino (Dinov2Model)"
    with torch.inference_mode():
        expected = theirs(three(grey())).last_hidden_state[:, 1:]
    torch.testing.assert_close(found.features(found.prepare(grey()), [-1])[0][1], expected, atol=1e-5, rtol=1e-4)
    file = tmp_path / "dino" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(WeightsError, match="config.json says num_hidden_layers=1, but the weights have 2"):
        encoder.load(str(tmp_path / "dino"), task())


def test_a_model_without_patches_is_refused(tmp_path: Path) -> None:
    """A convolutional network of transformers: one line."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    transformers.ResNetModel(config).save_pretrained(tmp_path / "net")
    with pytest.raises(SettingsError, match="ResNetModel has no patches or no blocks; is it a plain ViT"):
        encoder.load(str(tmp_path / "net"), task())


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    """Neither a run nor weights."""
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        encoder.load(str(tmp_path), task())


def test_sequences_one_after_the_other_are_averaged(tmp_path: Path) -> None:
    """An encoder of one channel sees each sequence of a sample; an absent one takes no part."""
    rng = np.random.default_rng(0)
    found = encoder.load("pixels", task())

    def picture(*numbers: int) -> Picture:
        planes = np.stack([rng_planes[n] for n in numbers])
        return Picture(planes, tuple(f"s{n}" for n in numbers), "unit8", (0, 32, 0, 32))

    rng_planes = rng.integers(0, 256, (3, 32, 32)).astype(np.uint8)
    tokens = features.encode(found, [picture(0, 1), picture(2)], 32, [-1])
    alone = [features.encode(found, [picture(n)], 32, [-1])[0] for n in range(3)]
    torch.testing.assert_close(tokens[0][0][0], (alone[0][0][0] + alone[1][0][0]) / 2)
    torch.testing.assert_close(tokens[0][1][1], alone[2][1][0])


def test_an_encoder_of_several_sequences_sees_them_at_once() -> None:
    """Channels in its own order, those that are absent 0 and marked."""
    seen = {}

    class Both:
        source, digest, patch_size, embed_dim, depth, window = "both", "0" * 64, 8, 4, 1, (-1000, 1000)
        sequences = ("flair", "t1")

        def prepare(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def features(self, images: torch.Tensor, blocks, present=None):
            seen.update(images=images, present=present)
            return [(images.mean(dim=(2, 3)), images.flatten(2).transpose(1, 2)) for _ in blocks]

    plane = np.full((16, 16), 255, np.uint8)
    pictures = [Picture(plane[None], ("t1",), "unit8", (0, 16, 0, 16))]
    features.encode(Both(), pictures, 16, [-1])
    assert seen["present"].tolist() == [[False, True]]
    assert seen["images"][0, 0].max() == 0 and seen["images"][0, 1].min() == 1
    # a file of pictures names no sequence: the task does; what it names must be known, and images of several have names
    files, several = [replace(pictures[0], sequences=("image",))], replace(pictures[0], sequences=("t1", "flair"))
    features.encode(Both(), files, 16, [-1], "flair")
    assert seen["present"].tolist() == [[True, False]] and seen["images"][0, 0].min() == 1
    for given, sequence, said in (
        (files, "", r"none of them \(image\); sequence=NAME says which"),
        (files, "xray", "sequence=xray: both knows flair, t1; name one"),
        ([several], "t1", "sequence=t1: some images have t1, flair; leave it out"),
    ):
        with pytest.raises(SettingsError, match=said):
            features.encode(Both(), given, 16, [-1], sequence)
