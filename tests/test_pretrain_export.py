"""What is handed out is what was trained: read again by our reader and by transformers, features equal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_run import CONFIG, rows
from safetensors.torch import load_file

from pretrain import build, export, train
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.model import vit
from pretrain.model.positions import resampled
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.weights import encoder, export_huggingface, initialise, published
from pretrain.weights.encoder import Encoder

pytest.importorskip("transformers")
SMALL = dict(embed_dim=64, depth=3, num_heads=2, patch_size=8)
MODELS = {
    "rope": ModelConfig(**SMALL),
    "rope, gated, no LayerScale": ModelConfig(**SMALL, ffn="swiglu", layer_scale=None, mask_k_bias=False),
    "rope, no registers, no bias": ModelConfig(**SMALL, registers=0, qkv_bias=False, mask_k_bias=False),
    "rope, a norm for local crops": ModelConfig(**SMALL, local_norm=True, rope_base=50.0),
    "learned": ModelConfig(**SMALL, position="learned", grid=5, registers=0, norm_eps=1e-6, mask_k_bias=False),
    "learned, registers": ModelConfig(**SMALL, position="learned", grid=5, norm_eps=1e-6, layer_scale=None),
}


def encoder_of(config: ModelConfig) -> Encoder:
    """A backbone with every weight drawn."""
    torch.manual_seed(0)
    model = build.backbone(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return Encoder(model, build.intensity(IntensityConfig(window=[-250, 450])), config, "tests", "0")


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_for_transformers(kind: str, tmp_path: Path) -> None:
    """Written, loaded by AutoModel and by our own reader: cls, registers and patches to 1e-4 (checked inside), also of
    5 × 9 patches; there transformers has other positions for plain DINOv2, and that is said with its figure."""
    loaded = encoder_of(MODELS[kind])
    export_huggingface.write(loaded, tmp_path / "out")
    compared = export.check(loaded, tmp_path / "out")
    assert compared.difference <= 1e-4
    if kind == "learned":
        assert compared.otherwise > 1e-3 and compared.grids == ((5, 5),)
        assert re.fullmatch(
            r"features equal to \de[-+]\d\d at 5 × 5 patches; at 5 × 9 patches transformers interpolates positions "
            rf"otherwise and differs by {compared.otherwise:.0e}", str(compared)
        )  # fmt: skip
    else:
        assert compared.otherwise is None and compared.grids[1] == (5, 9)
        assert re.fullmatch(r"features equal to \de[-+]\d\d at (4 × 4|5 × 5) and 5 × 9 patches", str(compared))
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(tmp_path / "out").eval()
    side = 8 * 5
    images = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        ours = loaded.model(images)
        expected = torch.cat([ours.cls[:, None], ours.registers, ours.patches], dim=1)
        torch.testing.assert_close(theirs(images).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["rope", "learned"])
def test_an_exported_folder_keeps_its_intensity(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Probes normalise as in training: window, mean and std, and the features of HU are equal to 1e-4, nothing is said.
    The file in the reference's layout does not tell them: one warning with the window that is assumed."""
    config = MODELS[kind]
    own = build.intensity(IntensityConfig(window=[-250, 450], mean=0.31, std=0.17))
    loaded = replace(encoder_of(config), intensity=own)
    export_huggingface.write(loaded, tmp_path / "out")
    found = initialise.published_encoder(tmp_path / "out")
    assert found.intensity == own and not caplog.records
    export_huggingface.write(replace(loaded, intensity=replace(own, mean=0.32)), tmp_path / "other")
    assert initialise.published_encoder(tmp_path / "other").digest != found.digest  # features are kept by it
    hu = torch.randint(-1000, 1000, (2, 1, 40, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, features = loaded.model(own.normalise(hu)), found.model(found.intensity.normalise(hu))
    torch.testing.assert_close(features.patches, expected.patches, atol=1e-4, rtol=1e-4)
    if kind == "rope":  # periods tell the heads
        export.dinov3(loaded, tmp_path / "model.pth")
        initialise.published_encoder(tmp_path / "model.pth")
        (line,) = caplog.messages
        assert "model.pth: does not say its intensity; assumed is intensity.window=[-160,240]" in line


@pytest.mark.parametrize(("changed", "said"), [({}, 0), ({"window": [-250, 451]}, 1), ({"mean": 0.4}, 1)])
def test_init_from_with_another_intensity_warns(
    changed: dict, said: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line with both; none where they are equal."""
    loaded = encoder_of(MODELS["rope"])
    export_huggingface.write(loaded, tmp_path / "out")
    intensity = IntensityConfig(**{"window": [-250, 450], **changed})
    initialise.load(build.backbone(loaded.config), initialise.weights_of(tmp_path / "out"), loaded.config, intensity)
    assert len(caplog.messages) == said
    if said:
        ours = initialise.intensity_settings(build.intensity(intensity))
        assert "trained with intensity.window=[-250,450]" in caplog.text and f"here it is {ours}" in caplog.text


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_in_the_references_layout(kind: str, tmp_path: Path) -> None:
    """One file of plain tensors under the reference's names; our reader takes it back."""
    loaded = encoder_of(MODELS[kind])
    export.dinov3(loaded, tmp_path / "model.pth")
    compared = export.check(loaded, tmp_path / "model.pth")
    assert compared.difference <= 1e-6 and compared.otherwise is None and len(compared.grids) == 2
    tensors = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(tensors) == set(loaded.model.state_dict())


@pytest.mark.parametrize("kind", ["rope, gated, no LayerScale", "rope, no registers, no bias", "learned, registers"])
def test_an_onnx_file_of_open_size(kind: str, tmp_path: Path) -> None:
    """Read by onnxruntime: cls, registers and patches of several counts and sizes, and of the grid's own, to 1e-4."""
    onnxruntime = pytest.importorskip("onnxruntime")
    loaded = encoder_of(MODELS[kind])
    export.export_onnx.write(loaded, tmp_path / "model.onnx", {"clip_hu": [-250, 450]})
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert export.check(loaded, tmp_path / "model.onnx").difference <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    images = torch.randn(5, 1, 56, 16, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = loaded.model(images)
    cls, _, patches = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(cls), expected.cls, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(patches), expected.patches, atol=1e-4, rtol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["clip_hu"] == "[-250, 450]"
    with torch.no_grad():
        loaded.model.norm.bias[0] += 1
    with pytest.raises(export.ExportError, match="do not use it"):
        export.check(loaded, tmp_path / "model.onnx")


def test_a_damaged_export_is_found(tmp_path: Path) -> None:
    """Features that differ are an error, not a number in a log."""
    loaded = encoder_of(MODELS["rope"])
    export_huggingface.write(loaded, tmp_path / "out")
    from safetensors.torch import save_file

    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["layer.1.mlp.up_proj.bias"][0] += 1
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(export.ExportError, match="do not use it"):
        export.check(loaded, tmp_path / "out")


def test_a_reader_that_differs_off_the_native_grid_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal at 5 × 5 patches and other positions at 5 × 9: of a format that we read ourselves that is an error."""
    loaded = encoder_of(MODELS["learned"])
    export.dinov3(loaded, tmp_path / "model.pth")

    def shifted(places: torch.Tensor, rows: int, columns: int, antialias: bool) -> torch.Tensor:
        own = places is loaded.model.pos_embed or (rows, columns) == (5, 5)
        return resampled(places, rows, columns, antialias) * (1 if own else 1.5)

    monkeypatch.setattr(vit, "resampled", shifted)
    with pytest.raises(export.ExportError, match="do not use it"):
        export.check(loaded, tmp_path / "model.pth")


def test_what_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    """Learned positions with SwiGLU of our rounding: one line."""
    loaded = encoder_of(ModelConfig(**SMALL, position="learned", grid=5, ffn="swiglu"))
    with pytest.raises(export.ExportError, match="use --format dinov3"):
        export_huggingface.write(loaded, tmp_path / "out")


def test_the_command_hands_out_a_run(tiny_dataset, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """From a run: a folder with card and normalisation, teacher or student; nothing overwritten; errors in one line."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    words = ["--config", str(tmp_path / "c.yaml"), f"output={tmp_path}", f"data.root={tiny_dataset()}", "knn.every=4"]
    assert train.main(words) == 0
    run, out = tmp_path / "tiny", tmp_path / "handed"
    command = ["--checkpoint", str(run), "--format", "huggingface", "--output", str(out)]
    assert export.main(command) == 0
    assert "features equal to" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    for text in ("second/00000003 (teacher)", "| adapt | 8 of 8 |", "| second | 3 of 3 |", "Not a medical device"):
        assert text in card
    found = rows(run / "adapt")
    assert f"| {found[3]['loss/total']:.3f} | {found[5]['loss/total']:.3f} | {found[7]['loss/total']:.3f} |" in card
    assert f"| adapt, kNN | – | – | {found[3]['knn/auroc']:.3f} |" in card
    assert "features equal to" in card and "at 4 × 4 and 5 × 9 patches" in card
    processor = json.loads((out / "preprocessor_config.json").read_text())
    hu = np.array([-1000.0, 0.0, 300.0])
    loaded = IntensityConfig()
    expected = ((hu - loaded.window[0]) / 2000 - loaded.mean) / loaded.std
    assert np.allclose((hu - processor["image_mean"][0]) / processor["image_std"][0], expected)
    assert export.main(command) == 1 and "exists; name another --output" in capsys.readouterr().err
    both = ["--checkpoint", str(run), "--format", "dinov3", "--output", str(tmp_path / "both"), "--which", "both"]
    assert export.main(both) == 0
    for which in ("teacher", "student"):
        given = load_file(run / "second" / "00000003" / f"{which}.safetensors")
        handed = torch.load(tmp_path / "both" / f"{which}.pth", weights_only=True)
        assert torch.equal(handed["cls_token"], given["backbone.cls_token"])
    assert export.main(["--checkpoint", str(run), "--format", "onnx", "--output", str(tmp_path / "model")]) == 1
    assert "name it model.onnx" in capsys.readouterr().err
    assert export.main(["--checkpoint", str(tmp_path), "--format", "dinov3", "--output", str(tmp_path / "x.pth")]) == 1
    assert "no checkpoint there" in capsys.readouterr().err


def test_a_model_of_several_sequences_is_handed_out_whole_or_one_sequence_of_it(tmp_path: Path) -> None:
    """In the reference's layout with a named row each, read back in any order; one sequence alone for transformers,
    with the features that the whole model has of it, masked patches included."""
    names = ["t2", "t1", "ct"]
    loaded = encoder_of(ModelConfig(**SMALL, sequences=names))
    export.dinov3(loaded, tmp_path / "all.pth")
    assert export.check(loaded, tmp_path / "all.pth").difference <= 1e-6
    assert published.read(tmp_path / "all.pth").sequences == tuple(names)
    one = encoder.of_one_sequence(loaded, "t1")
    export_huggingface.write(one, tmp_path / "t1")
    assert export.check(one, tmp_path / "t1").difference <= 1e-4
    images = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.inference_mode():
        whole, alone = loaded.model(images, mask, sequences=("t1",)), one.model(images, mask)
    torch.testing.assert_close(alone.cls, whole.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.patches, whole.patches, atol=1e-5, rtol=1e-5)
    assert one.intensity.window == (0.0, 1.0) and encoder.of_one_sequence(loaded, "ct").intensity.window == (-250, 450)
    with pytest.raises(CheckpointError, match="no sequence adc in the model; it knows t2, t1, ct"):
        encoder.of_one_sequence(loaded, "adc")
