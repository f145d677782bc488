"""Weights of others in our transformer: every layout, one channel, other patch sizes, other grids, and files that hold
no weights. What files tell of their architecture is in test_pretrain_architecture.py."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from meddap.settings import merge
from pretrain import build
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.weights import initialise, published
from pretrain.weights.published import WeightsError

transformers = pytest.importorskip("transformers")
SMALL = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
MODELS = {
    "dinov3": ("DINOv3ViT", dict(patch_size=16, intermediate_size=256, num_register_tokens=4, image_size=64), {}),
    "dinov3 gated": (
        "DINOv3ViT",
        dict(patch_size=16, intermediate_size=192, num_register_tokens=4, image_size=64, use_gated_mlp=True),
        {"hidden_act": "silu"},
    ),
    "dinov3 without registers": (
        "DINOv3ViT",
        dict(patch_size=8, intermediate_size=128, num_register_tokens=0, image_size=64),
        {},
    ),
    "dinov2": ("Dinov2", dict(patch_size=14, image_size=70), {}),
    # of a width at which both round the hidden size alike
    "dinov2 swiglu": ("Dinov2", dict(patch_size=14, image_size=70, use_swiglu_ffn=True), {"hidden_size": 96}),
    "dinov2 with registers": ("Dinov2WithRegisters", dict(patch_size=14, image_size=70, num_register_tokens=4), {}),
}


def theirs_of(kind: str) -> torch.nn.Module:
    """A model of transformers with every parameter drawn, so that no zero hides a mistake."""
    name, options, more = MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options, **more})
    model = getattr(transformers, f"{name}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def config_for(found: published.Published, **more: object) -> ModelConfig:
    """The model that the weights belong to, as a user would write it."""
    said = {"patch_size": found.weights["patch_embed.proj.weight"].shape[-1], "num_heads": 4, "mask_k_bias": False}
    return merge(ModelConfig, ("here", {**said, **found.settings, **more}))


def loaded(found: published.Published, **more: object):
    """Our model with these weights."""
    config = config_for(found, **more)
    model = build.backbone(config).eval()
    initialise.load(model, found, config, IntensityConfig())
    return model


def grey(intensity: IntensityConfig, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A windowed image as we feed it, and as three channels with ImageNet's normalisation."""
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (published.IMAGENET_MEAN, published.IMAGENET_STD))
    return (image - intensity.mean) / intensity.std, (image - mean) / std


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_of_hugging_face_gives_its_features(kind: str, tmp_path: Path) -> None:
    """Saved, read, one channel instead of three: cls, registers and patches of the repeated grey image, to 1e-5."""
    theirs = theirs_of(kind)
    theirs.save_pretrained(tmp_path)
    found = published.read(tmp_path)
    assert found.kind == "huggingface"
    ours = loaded(found)
    patch = ours.patch_size
    sizes = [(patch * 5, patch * 5)] if "dinov2" in kind else [(patch * 4, patch * 4), (patch * 3, patch * 6)]
    for size in sizes:
        mine, rgb = grey(IntensityConfig(), size)
        with torch.inference_mode():
            expected, features = theirs(rgb).last_hidden_state, ours(mine)
        together = torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "described", "mean", "std"),
    [
        ("preprocessor_config.json", {"image_mean": [0.53] * 3, "image_std": [0.26] * 3}, (0.53,) * 3, (0.26,) * 3),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ("config.json", {"pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5] * 3}}, (0.5, 0.4, 0.3), (0.5,) * 3),
    ],
)
def test_images_are_normalised_as_the_folder_says(name: str, described: dict, mean, std, tmp_path: Path) -> None:
    """RAD-DINO's, timm's and other models' own mean and deviation, folded into the one channel, to 1e-5."""
    theirs = theirs_of("dinov2")
    theirs.save_pretrained(tmp_path)
    before = json.loads((tmp_path / name).read_text()) if (tmp_path / name).is_file() else {}
    (tmp_path / name).write_text(json.dumps({**before, **described}))
    found = published.read(tmp_path)
    assert (found.mean, found.std) == (mean, std)
    image, intensity = torch.rand(2, 1, 70, 70), IntensityConfig()
    rgb = (image - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.inference_mode():
        mine = loaded(found)((image - intensity.mean) / intensity.std)
        torch.testing.assert_close(mine.cls, theirs(rgb).last_hidden_state[:, 0], atol=1e-5, rtol=1e-4)


def meta_file(tmp_path: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """Our DINOv3 layout as Meta's file has it: three channels, a teacher beside a student, prefixes, heads."""
    torch.manual_seed(0)
    config = ModelConfig(embed_dim=64, depth=3, num_heads=4)
    network = build.backbone(config)
    backbone = {name: torch.randn_like(value) * 0.1 for name, value in network.state_dict().items()}
    backbone |= dict(network.named_buffers())
    backbone["patch_embed.proj.weight"] = torch.randn(64, 3, 16, 16)
    heads = {"dino_head.mlp.0.weight": torch.zeros(3, 3), "ibot_head.last_layer.weight": torch.zeros(2, 2)}
    teacher = {f"backbone.{name}": value for name, value in backbone.items()} | heads
    student = {name: value + 1 for name, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "iteration": 5}, tmp_path / "teacher.pth")
    return backbone, tmp_path / "teacher.pth"


def test_metas_files_with_prefixes_and_chunks(tmp_path: Path) -> None:
    """The teacher is taken, prefixes and heads are left; a bare backbone and blocks in chunks give the same."""
    backbone, path = meta_file(tmp_path)
    whole = published.read(path)
    torch.save(backbone, tmp_path / "bare.pth")
    bare = published.read(tmp_path / "bare.pth")
    chunked = {name.replace("blocks.", "blocks.0.", 1): value for name, value in backbone.items()}
    save_file(chunked, tmp_path / "chunked.safetensors")
    chunks = published.read(tmp_path / "chunked.safetensors")
    assert whole.kind == bare.kind == "meta" and set(whole.weights) == set(bare.weights) == set(chunks.weights)
    for name, value in bare.weights.items():
        assert torch.equal(whole.weights[name], value) and torch.equal(chunks.weights[name], value)
    loaded(whole, mask_k_bias=True)


def test_flexicts_names(tmp_path: Path) -> None:
    """A teacher with ways in for slices and for volumes: the slices' is taken; no bias of query, key and value."""
    backbone, _ = meta_file(tmp_path)
    theirs = {name: value for name, value in backbone.items() if not name.endswith("qkv.bias")}
    theirs = {name.replace("patch_embed.", "patch_embed_2D."): value for name, value in theirs.items()}
    theirs["patch_embed_2D.proj.weight"] = torch.randn(64, 1, 16, 16)
    theirs = {name.replace("rope_embed.", "rope_embed_2D."): value for name, value in theirs.items()}
    theirs |= {"patch_embed_3D.proj.weight": torch.zeros(64, 1, 8, 8, 8), "rope_embed_3D.periods": torch.zeros(4)}
    torch.save({"teacher": {f"backbone.{name}": value for name, value in theirs.items()}}, tmp_path / "flexict.pth")
    found = published.read(tmp_path / "flexict.pth")
    assert found.settings["qkv_bias"] is False and not any("3D" in name or "2D" in name for name in found.weights)
    model = loaded(found, qkv_bias=False, mask_k_bias=True)
    assert torch.equal(model.patch_embed.proj.weight, theirs["patch_embed_2D.proj.weight"])


def test_timms_names(tmp_path: Path) -> None:
    """Registers, LayerScale under timm's names, positions without the cls token, no mask token."""
    torch.manual_seed(0)
    config = ModelConfig(embed_dim=64, depth=2, num_heads=4, position="learned", grid=5, mask_k_bias=False)
    ours = {name: torch.randn_like(value) for name, value in build.backbone(config).state_dict().items()}
    ours["patch_embed.proj.weight"] = torch.randn(64, 3, 16, 16)
    theirs = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for name, v in ours.items()}
    theirs["reg_token"], theirs["pos_embed"] = theirs.pop("storage_tokens"), theirs["pos_embed"][:, 1:].contiguous()
    del theirs["mask_token"]
    theirs["head.weight"] = torch.zeros(10, 64)
    save_file(theirs, tmp_path / "timm.safetensors")
    found = published.read(tmp_path / "timm.safetensors")
    assert found.kind == "timm" and set(found.weights) == set(ours)
    assert torch.equal(found.weights["pos_embed"][:, 1:], ours["pos_embed"][:, 1:])
    assert not found.weights["pos_embed"][:, 0].any() and torch.equal(
        found.weights["blocks.1.ls2.gamma"], ours["blocks.1.ls2.gamma"]
    )
    loaded(found)


TIMMS = ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3")


@pytest.mark.parametrize("name", TIMMS)
def test_a_dinov3_of_timm_gives_its_features(name: str, tmp_path: Path) -> None:
    """Without and with biases of query and value, gated: cls, registers and patches of the grey image, to 1e-5."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision and PyTorch that do not fit each other
        pytest.skip(f"needs timm ({error})")
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False, num_classes=0, depth=2, embed_dim=96, num_heads=6).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    found = published.read(tmp_path / "model.safetensors")
    assert found.kind == "timm"
    ours = loaded(found, num_heads=6)
    image, coloured = grey(IntensityConfig(), (64, 48))
    with torch.inference_mode():
        mine, expected = ours(image), theirs.forward_features(coloured)
    together = torch.cat([mine.cls[:, None], mine.registers, mine.patches], dim=1)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


def smooth(count: int, size: int, seed: int) -> torch.Tensor:
    """(count, 1, size, size) random images whose spectrum falls with the square of the frequency, as tissue's does."""
    wide = 4 * size  # its middle is not periodic
    frequency = torch.fft.fftfreq(wide)
    radius = (frequency[:, None].square() + frequency.square()).sqrt().clamp(min=1 / wide)
    noise = torch.randn(count, wide, wide, generator=torch.Generator().manual_seed(seed))
    images = torch.fft.ifft2(torch.fft.fft2(noise) / radius.square()).real
    return (images / images.std(dim=(1, 2), keepdim=True)).unsqueeze(1)[..., :size, :size]


@pytest.mark.parametrize(("size", "most"), [(8, 0.03), (14, 0.002), (24, 1e-5), (32, 1e-5)])
def test_a_resampled_kernel_answers_a_resized_patch_as_before(size: int, most: float) -> None:
    """Smooth kernels on smooth patches, resized antialiased as our images are: the products, relative to their norm."""
    kernel, patches = smooth(32, 16, 0), smooth(64, 16, 1)
    resized = torch.nn.functional.interpolate(patches, (size, size), mode="bicubic", antialias=True)
    expected = torch.einsum("dcij,ncij->nd", kernel, patches)
    found = torch.einsum("dcij,ncij->nd", initialise.resample_kernel(kernel, size), resized)
    assert (found - expected).norm() <= most * expected.norm()
    assert initialise.resample_kernel(kernel, 16) is kernel


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 with registers"])
def test_a_smaller_grid_starts_as_the_files_own(kind: str, tmp_path: Path) -> None:
    """model.grid=3 of a file with 5: the features of 3 × 3 patches are those of the file's grid there, to 1e-5."""
    theirs_of(kind).save_pretrained(tmp_path)
    found = published.read(tmp_path)
    image = torch.randn(2, 1, 42, 42, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        small, whole = loaded(found, grid=3)(image), loaded(found)(image)
    torch.testing.assert_close(small.cls, whole.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.patches, whole.patches, atol=1e-5, rtol=1e-5)


def test_wrappers_leave_no_trace_in_names(tmp_path: Path) -> None:
    """torch.compile, DataParallel, checkpoint_wrapper and FSDP, mixed and nested anywhere: the bare file's weights."""
    backbone, _ = meta_file(tmp_path)
    torch.save(backbone, tmp_path / "bare.pth")
    words = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
    wrapped = {}
    for number, (name, value) in enumerate(backbone.items()):
        parts = name.split(".")
        parts.insert(number % len(parts), words[number % 4])
        parts.insert(number % len(parts), words[(number + 1) % 4])
        wrapped[".".join(["module", "_orig_mod", "backbone", words[number % 4], *parts])] = value
    torch.save({"teacher": wrapped}, tmp_path / "wrapped.pth")
    bare, found = (published.read(tmp_path / name) for name in ("bare.pth", "wrapped.pth"))
    assert bare.settings == found.settings and set(bare.weights) == set(found.weights)
    assert all(torch.equal(found.weights[name], value) for name, value in bare.weights.items())
    torch.save({**backbone, "module.norm.bias": torch.zeros(64)}, tmp_path / "twice.pth")
    with pytest.raises(WeightsError, match="holds norm.bias twice"):
        published.read(tmp_path / "twice.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float, tmp_path: Path) -> None:
    """One value of one tensor: its name in the file; in derived buffers and heads it does not matter."""
    backbone, _ = meta_file(tmp_path)
    nothing = {"blocks.0.attn.qkv.bias_mask", "blocks.1.attn.qkv.bias_mask", "blocks.2.attn.qkv.bias_mask"}
    harmless = {name: torch.full_like(value, bad) if name in nothing else value for name, value in backbone.items()}
    torch.save({"teacher": {**harmless, "dino_head.weight": torch.tensor([bad])}}, tmp_path / "good.pth")
    published.read(tmp_path / "good.pth")
    harmless["blocks.1.mlp.fc1.weight"][3, 5] = bad
    torch.save({"teacher": harmless}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="bad.pth: teacher.blocks.1.mlp.fc1.weight holds NaN or infinity; copy it"):
        published.read(tmp_path / "bad.pth")


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/meddap-was-here",)


def test_files_that_are_no_weights_give_one_line(tmp_path: Path) -> None:
    """Code in a pickle is not run; cut files, text, a network without a cls token, an empty folder: each its line."""
    Path("/tmp/meddap-was-here").unlink(missing_ok=True)
    torch.save({"cls_token": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil()))
    _, whole = meta_file(tmp_path)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:5000])
    save_file({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "s.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "s.safetensors").read_bytes()[:20])
    (tmp_path / "text.pth").write_text("hello")
    save_file({"conv1.weight": torch.zeros(1), "layer1.0.bn1.bias": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    (tmp_path / "empty").mkdir()
    expected = {
        "evil.pth": "only plain tensors are loaded",
        "bare.pth": "only plain tensors are loaded",
        "cut.pth": "damaged or cut short",
        "cut.safetensors": "damaged or cut short",
        "text.pth": "damaged or cut short",
        "resnet.safetensors": "no cls token",
        "s.safetensors": "no attention blocks",
        "tensor.pth": "holds a Tensor",
        "empty": "holds none of",
        "nowhere.pth": "not found",
    }
    for name, reason in expected.items():
        with pytest.raises(WeightsError, match=reason) as caught:
            published.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("/tmp/meddap-was-here").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_any_bytes_for_weights_give_one_line(suffix: str, tmp_path: Path) -> None:
    """Text, a table, and whatever the opcodes of a pickle make of bytes drawn at random."""
    draws = np.random.default_rng(0)
    contents = [b"name: x\nbase: y\n", b"id,label\n1,2\n", b"\x80\x02.", b"(", b"0", b"a" * 9, b"\n", b""]
    contents += [draws.bytes(length) for length in (1, 2, 3, 10, 100) for _ in range(20)]
    contents += [b"\x80\x02" + draws.bytes(length) for length in (1, 2, 5, 20) for _ in range(20)]
    path = tmp_path / f"x.{suffix}"
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            published.read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), content


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("preprocessor_config.json", "image_mean", 0.5),
        ("preprocessor_config.json", "image_mean", []),
        ("preprocessor_config.json", "image_mean", ["0.5", 0.5, 0.5]),
        ("preprocessor_config.json", "image_mean", [float("nan"), 0.5, 0.5]),
        ("preprocessor_config.json", "image_std", {"r": 1}),
        ("preprocessor_config.json", "image_std", [0.2, 0, 0.2]),
        ("preprocessor_config.json", "image_std", [0.2, -0.2, 0.2]),
        ("preprocessor_config.json", "image_std", [0.2, float("inf"), 0.2]),
        ("preprocessor_config.json", "do_rescale", False),
        ("preprocessor_config.json", "do_rescale", "yes"),
        ("preprocessor_config.json", "rescale_factor", 1 / 127.5),
        ("preprocessor_config.json", "rescale_factor", "1/255"),
        ("config.json", "pretrained_cfg", [1]),
        ("config.json", "meddap", {"window": [400, -160], "mean": 0.4, "std": 0.2}),
        ("config.json", "meddap", {"window": [-160, 240], "mean": 0.4, "std": 0}),
        ("config.json", "meddap", 3),
    ],
)
def test_a_normalisation_that_is_none_is_refused(name: str, key: str, value: object, tmp_path: Path) -> None:
    """One line with file, key and value, instead of features of other images or a traceback."""
    theirs_of("dinov2").save_pretrained(tmp_path)
    before = json.loads((tmp_path / name).read_text()) if (tmp_path / name).is_file() else {}
    (tmp_path / name).write_text(json.dumps({**before, key: value}))
    with pytest.raises(WeightsError) as caught:
        published.read(tmp_path)
    assert f"{tmp_path / name}: {key}={value!r}; " in str(caught.value).replace(", but", ";")
    assert "\n" not in str(caught.value)
    (tmp_path / name).write_text(json.dumps({**before, key: None}))
    published.read(tmp_path)


@pytest.mark.parametrize("text", ["[]", "7", "null", '"text"', "{", "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_json_that_is_no_object_is_one_line(name: str, text: str, tmp_path: Path) -> None:
    """Beside weights that are well, and as the index of several files: its path and what it is."""
    theirs_of("dinov2").save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match="not valid JSON|not a JSON object") as caught:
        published.read(tmp_path)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("said", [{}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}, {"weight_map": None}])
def test_an_index_without_a_map_is_one_line(said: dict, tmp_path: Path) -> None:
    """weight_map absent, or not from names to files."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError, match="index.json: weight_map names no file for each tensor; copy it again"):
        published.read(tmp_path)


def test_mm_dinov2s_names(golden_dir: Path, tmp_path: Path) -> None:
    """Its file, bare or with a teacher's prefix: the reference's numbers to 1e-5 from one channel, whatever the order
    of our vocabulary; a name that it lacks gets a row of its own."""
    tensors = load_file(golden_dir / "mm_dinov2_vit.safetensors")
    weights = {name[8:]: value for name, value in tensors.items() if name.startswith("weights.")}
    assert "mri_seq_embed.weight" in weights
    torch.save({"teacher": {f"backbone.{name}": value for name, value in weights.items()}}, tmp_path / "mm.pth")
    found = published.read(tmp_path / "mm.pth")
    assert found.sequences == ("t1", "t1c", "t2", "flair")
    more = dict(num_heads=3, registers=0, norm_eps=1e-6, layer_scale=1.0, sequences=["flair", "adc", "t2", "t1c", "t1"])
    config = config_for(found, **more)
    model = build.backbone(config).eval()
    model.init_weights(torch.Generator().manual_seed(0))
    initialise.load(model, found, config, IntensityConfig())
    with torch.inference_mode():
        features = model(tensors["larger.input"], sequences=("t2", "t1", "t1c", "flair"))
    torch.testing.assert_close(features.cls, tensors["larger.cls"], atol=1e-5, rtol=0)
    assert model.sequence_embed.weight.shape[0] == 5 and model.sequence_embed.weight[1].norm() > 0
