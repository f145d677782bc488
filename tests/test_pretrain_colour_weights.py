"""Weights of three channels: published ones exactly, grey ones spread over three, exported and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.corpora import write_pictures
from helpers.tiny_run import CONFIG, SHORT
from PIL import Image
from safetensors.torch import load_file

from meddap.settings import merge
from pretrain import build, export, train
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.data.intensity import Intensity
from pretrain.weights import encoder, export_huggingface, export_onnx, initialise, published
from pretrain.weights.encoder import Encoder

transformers = pytest.importorskip("transformers")
PICTURES = (0.0, 1.0)  # black and white
USUAL = build.intensity(IntensityConfig(window=[*PICTURES]), 3)
OTHER = Intensity(PICTURES, (0.3, 0.5, 0.7), (0.1, 0.2, 0.4))
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "dinov3": ("DINOv3ViT", {"patch_size": 16, "intermediate_size": 256, "num_register_tokens": 4, "image_size": 64}),
    "dinov2": ("Dinov2", {"patch_size": 14, "image_size": 70}),
}


def theirs_of(kind: str) -> torch.nn.Module:
    """A model of transformers for colour pictures with every parameter drawn."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def loaded(found: published.Published, intensity: Intensity, channels: int, **more: object) -> torch.nn.Module:
    """The weights in a model of 1 or 3 channels whose images are normalised like this."""
    said = {"num_heads": 4, "mask_k_bias": False, "patch_size": found.weights["patch_embed.proj.weight"].shape[-1]}
    config = merge(ModelConfig, ("here", {**said, **found.settings, "channels": channels, **more}))
    model = build.backbone(config).eval()
    initialise.load(model, found, config, intensity)
    return model


def tokens(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = model(images)
    return torch.cat([found.cls[:, None], found.registers, found.patches], dim=1)


def shown(channels: int, side: int = 56) -> torch.Tensor:
    """(2, channels, side, side) pictures in 0…1."""
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_file_keeps_its_three_channels(kind: str, tmp_path: Path) -> None:
    """The patch embedding to the bit; of a colour picture the features of the model itself, also under another mean; of
    a grey one those of the model of one channel, to 1e-5."""
    theirs = theirs_of(kind)
    theirs.save_pretrained(tmp_path)
    found, side = published.read(tmp_path), 5 * KINDS[kind][1]["patch_size"]
    model = loaded(found, USUAL, 3)
    assert torch.equal(model.patch_embed.proj.weight, found.weights["patch_embed.proj.weight"])
    assert torch.equal(model.patch_embed.proj.bias, found.weights["patch_embed.proj.bias"])
    picture, grey = shown(3, side), shown(1, side)
    with torch.inference_mode():
        expected = theirs(USUAL.standardise(picture)).last_hidden_state
    torch.testing.assert_close(tokens(model, USUAL.standardise(picture)), expected, atol=1e-4, rtol=1e-4)
    other = loaded(found, OTHER, 3)
    torch.testing.assert_close(tokens(other, OTHER.standardise(picture)), expected, atol=1e-4, rtol=1e-4)
    one = Intensity(PICTURES, 0.449, 0.226)
    folded = tokens(loaded(found, one, 1), one.standardise(grey))
    for three, intensity in ((model, USUAL), (other, OTHER)):
        found_three = tokens(three, intensity.standardise(grey.expand(-1, 3, -1, -1)))
        torch.testing.assert_close(found_three, folded, atol=1e-5, rtol=1e-5)


def test_weights_of_one_channel_go_on_in_colour_and_back() -> None:
    """Ours of grey images: a grey image has the features that it had, to 1e-5; so it has when they return to grey."""
    config = ModelConfig(embed_dim=64, depth=2, num_heads=4, patch_size=8)
    torch.manual_seed(0)
    grey = build.backbone(config).eval()
    for parameter in grey.parameters():
        parameter.data.normal_(std=0.2)
    own = Intensity(PICTURES, 0.31, 0.17)
    settings = {name: getattr(config, name) for name in ("embed_dim", "depth", "mask_k_bias")}
    weights = {name: value for name, value in grey.state_dict().items() if name not in initialise.buffers(grey)}
    found = published.Published("grey", "ours", weights, {**settings, "num_heads": 4}, intensity=own)
    picture = shown(1)
    expected = tokens(grey, own.standardise(picture))
    three = loaded(found, OTHER, 3, mask_k_bias=True)
    torch.testing.assert_close(
        tokens(three, OTHER.standardise(picture.expand(-1, 3, -1, -1))), expected, atol=1e-5, rtol=1e-5
    )
    weights = {name: value for name, value in three.state_dict().items() if name not in initialise.buffers(three)}
    back = replace(found, weights=weights, intensity=OTHER, mean=OTHER.means, std=OTHER.stds)
    one = loaded(back, own, 1, mask_k_bias=True)
    torch.testing.assert_close(tokens(one, own.standardise(picture)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["huggingface", "dinov3", "onnx"])
def test_an_encoder_of_colours_is_read_again(kind: str, tmp_path: Path) -> None:
    """Written and compared (inside); the folder keeps mean and deviation of each channel, and a run starts from it."""
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    config = ModelConfig(embed_dim=64, depth=2, num_heads=4, patch_size=8, channels=3)
    torch.manual_seed(0)
    model = build.backbone(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    mine = Encoder(model, OTHER, config, "tests", "0")
    path = tmp_path / {"huggingface": "out", "dinov3": "out.pth", "onnx": "out.onnx"}[kind]
    if kind == "onnx":
        export_onnx.write(mine, path, export_huggingface.preprocessing(mine))
    else:
        {"huggingface": export_huggingface.write, "dinov3": export.dinov3}[kind](mine, path)
    assert export.check(mine, path).difference <= 1e-4
    if kind == "onnx":
        return
    picture = shown(3, 40)
    again = initialise.published_encoder(path, 3)
    assert again.config.channels == 3
    if kind == "dinov3":  # which does not say how its images were normalised
        assert again.intensity.means == published.IMAGENET_MEAN
        return
    assert again.intensity == OTHER and initialise.published_encoder(path).config.channels == 3
    expected = tokens(model, OTHER.standardise(picture))
    torch.testing.assert_close(tokens(again.model, again.intensity.standardise(picture)), expected, atol=1e-4, rtol=0)
    usual = loaded(published.read(path), USUAL, 3, mask_k_bias=True)
    torch.testing.assert_close(tokens(usual, USUAL.standardise(picture)), expected, atol=1e-4, rtol=1e-4)


def test_a_run_in_colour_starts_from_a_published_file_and_its_card_runs(tmp_path: Path) -> None:
    """init_from keeps the file's patch embedding; the exported folder's own code gives the encoder's features."""
    theirs_of("dinov3").save_pretrained(tmp_path / "start")
    pictures = write_pictures(tmp_path / "pictures", patients=4)
    (tmp_path / "c.yaml").write_text(CONFIG)
    words = [f"output={tmp_path}", f"data.root={pictures}", "data.sequences=[image]", "model.channels=3", *SHORT]
    words += [
        "model.embed_dim=64",
        "model.num_heads=4",
        "model.patch_size=16",
        "model.registers=4",
        "model.drop_path=0",
    ]
    words += ["model.layer_scale=1e-5", "model.mask_k_bias=false", "stage_defaults.crops.local_size=32"]
    words += ["stages.adapt.steps=1", "stages.second.steps=1", f"stages.adapt.init_from={tmp_path / 'start'}"]
    assert train.main(["--config", str(tmp_path / "c.yaml"), *words]) == 0
    began = load_file(tmp_path / "tiny" / "adapt" / "00000000" / "student.safetensors")
    expected = published.read(tmp_path / "start").weights["patch_embed.proj.weight"]
    assert torch.equal(began["backbone.patch_embed.proj.weight"], expected)
    folder, run = tmp_path / "out", tmp_path / "tiny"
    words = ["--checkpoint", str(run), "--format", "huggingface", "--output", str(folder), "--license", "mit"]
    assert export.main(words) == 0
    card = (folder / "README.md").read_text()
    (code,) = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    mine = encoder.load_encoder(run)
    unit = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    for picture in (Image.fromarray(pixels), pixels):
        namespace = {"FOLDER": str(folder), "picture": picture}
        exec(code, namespace)
        found = tokens(mine.model, mine.intensity.standardise(unit))
        torch.testing.assert_close(namespace["tokens"], found, atol=1e-4, rtol=1e-4)
    assert "three input channels: red, green and blue" in card
    assert export_huggingface.takes_pictures(encoder.of_shares(mine)) and not export_huggingface.takes_pictures(mine)
