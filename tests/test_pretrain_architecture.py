"""What is read from a file of weights about its model; one that differs is refused with the words that mend it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from meddap.settings import SettingsError, load
from pretrain import build
from pretrain.config import Config, IntensityConfig, ModelConfig, head_count, recipe
from pretrain.weights import architecture, initialise, published
from pretrain.weights.published import WeightsError

SMALL = dict(embed_dim=64, depth=2, num_heads=4, layer_scale=None)


def write(config: ModelConfig, path: Path, without: str | None = None, **more: torch.Tensor) -> Path:
    """Weights of such a model in Meta's layout, every parameter drawn, its buffers as they are."""
    model = build.backbone(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=generator)
    kept = {name: value for name, value in model.state_dict().items() if not without or not re.search(without, name)}
    torch.save({**kept, **more}, path)
    return path


def model_words(*words: str) -> ModelConfig:
    """A configuration's model section with these words."""
    return load(Config, None, ["name=x", "data.root=x", "stages.a.steps=1", *words]).model


def start(path: Path, *words: str) -> torch.nn.Module:
    """What `init_from` makes of a file, in a model that the words describe."""
    config = model_words(*words)
    model = build.backbone(config).eval()
    initialise.load(model, initialise.weights_of(path), config, IntensityConfig())
    return model


def mends(path: Path, *words: str) -> list[str]:
    """The words that the refusal of a file names."""
    with pytest.raises(WeightsError) as caught:
        start(path, *words)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value).partition("; set ")[2].split(" ")


@pytest.mark.parametrize("name", ["rope_embed.periods", "rope_embed_2D.periods", "rope.periods", "inv_freq"])
def test_the_periods_tell_the_heads(name: str, tmp_path: Path) -> None:
    """Under Meta's, FlexiCT's, timm's and transformers' names: another model.num_heads is refused, probes take it."""
    periods = build.backbone(ModelConfig(**SMALL)).rope_embed.periods
    key, value = ("rope_embed.inv_freq", 1 / periods) if name == "inv_freq" else (name, periods)
    path = write(ModelConfig(**SMALL, mask_k_bias=False), tmp_path / "w.pth", r"periods", **{key: value})
    size = ("model.embed_dim=64", "model.depth=2", "model.layer_scale=null", "model.mask_k_bias=false")
    assert mends(path, *size) == mends(path, *size, "model.num_heads=2") == ["model.num_heads=4"]
    start(path, *size, "model.num_heads=4")
    assert initialise.published_encoder(path).config.num_heads == 4


def test_the_configuration_beside_the_weights_tells_the_heads(tmp_path: Path) -> None:
    """config.json before the table; not of another width, and not against the periods: these are one line each."""
    learned = dict(position="learned", grid=2, registers=0, ffn_ratio=0.1, qkv_bias=False)
    whole = write(ModelConfig(embed_dim=192, depth=12, **learned), tmp_path / "pytorch_model.bin")
    assert published.read(whole).settings["num_heads"] == 3  # the table's
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6, "layer_norm_eps": 1e-12}))
    for path in (tmp_path, whole):
        assert (
            published.read(path).settings["num_heads"] == 6 and initialise.published_encoder(path).config.num_heads == 6
        )
        assert published.read(path).settings["norm_eps"] == 1e-12
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6, "hidden_size": 384}))
    with pytest.raises(WeightsError, match="config.json says hidden_size=384, but the weights have 192"):
        published.read(tmp_path)
    write(ModelConfig(**SMALL), whole)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8}))
    with pytest.raises(WeightsError, match="config.json says num_heads=8, the RoPE periods 4"):
        published.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="config.json: not valid JSON"):
        published.read(tmp_path)


CONTRADICTIONS = {
    "num_hidden_layers": 3,
    "num_register_tokens": 0,
    "intermediate_size": 128,
    "use_gated_mlp": True,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": False,
    "layerscale_value": 1.0,
    "model_type": "dinov3_vit",
    "hidden_act": "relu",
    "num_attention_heads": 0,
    "layer_norm_eps": -1e-6,
    "rope_theta": "100",
}


@pytest.mark.parametrize(("key", "value"), CONTRADICTIONS.items())
def test_a_configuration_of_other_weights_is_refused(key: str, value: object, tmp_path: Path) -> None:
    """Whatever config.json says that the weights do not have: one line with key and value; null says nothing."""
    write(ModelConfig(**SMALL), tmp_path / "pytorch_model.bin")
    said = value if isinstance(value, str) else json.dumps(value)
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    with pytest.raises(WeightsError, match=f"config.json says {key}='?{said}'?[,;] ") as caught:
        published.read(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    if key not in ("layerscale_value", "model_type"):
        (tmp_path / "config.json").write_text(json.dumps({key: None}))
        published.read(tmp_path)


@pytest.mark.parametrize("heads", [-4, 4.0, True, "4", [4], 3])
def test_heads_that_are_no_count_are_refused(heads: object, tmp_path: Path) -> None:
    """Of config.json: a whole number above 0 that divides the width, or one line."""
    write(ModelConfig(**SMALL), tmp_path / "pytorch_model.bin", "periods")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": heads}))
    with pytest.raises(WeightsError, match="config.json says num_attention_heads="):
        published.read(tmp_path)


def test_a_grid_of_another_image_size_is_refused(tmp_path: Path) -> None:
    """Learned positions of 3 × 3 patches: 48 to 63 pixels, not 64."""
    write(ModelConfig(**SMALL, position="learned", grid=3), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"image_size": 50}')
    published.read(tmp_path)
    (tmp_path / "config.json").write_text('{"image_size": 64}')
    with pytest.raises(WeightsError, match="config.json says image_size=64, but the weights have 48"):
        published.read(tmp_path)


def test_heads_and_eps_of_the_table_need_layerscale(tmp_path: Path) -> None:
    """A file of DINOv2's size: its eps is held, by the word that mends it; without LayerScale heads are unknown."""
    size = dict(embed_dim=384, depth=12, position="learned", grid=2, registers=0, ffn_ratio=0.1)
    words = [f"model.{name}={value}" for name, value in size.items()]
    path = write(ModelConfig(**size), tmp_path / "w.pth")
    assert mends(path, *words) == ["model.norm_eps=1e-06"]
    assert start(path, *words, "model.norm_eps=1e-6").norm.eps == 1e-6
    moco = write(ModelConfig(**size, layer_scale=None), tmp_path / "moco.pth")
    with pytest.raises(WeightsError, match="cannot tell num_heads for embed_dim=384, depth=12; set model.num_heads"):
        start(moco, *words, "model.layer_scale=null")
    with pytest.raises(WeightsError, match="add config.json"):
        initialise.published_encoder(moco)
    start(moco, *words, "model.layer_scale=null", "model.num_heads=12")


@pytest.mark.parametrize(("width", "depth"), architecture.SIZES)
def test_the_table_of_published_models(width: int, depth: int) -> None:
    """Every row by shapes alone: its heads, eps 1e-6 for FlexiCT's and DINOv2's, else 1e-5; at another depth, or
    without LayerScale (MoCo's, MAE's), the file tells nothing."""
    size = architecture.SIZES[width, depth]
    position = dict(position="learned", grid=2) if size.position == "learned" else {}
    for layers, scale, expected in ((depth, 1.0, size.heads), (depth + 1, 1.0, None), (depth, None, None)):
        more = dict(num_heads=size.heads, qkv_bias=False, layer_scale=scale)
        config = ModelConfig(embed_dim=width, depth=layers, **more, **position)
        with torch.device("meta"):
            weights = dict(build.backbone(config).named_parameters())
        settings, usual = architecture.settings("file", weights, {})
        assert settings.get("num_heads") == expected and ("num_heads" in usual) == (expected is not None)
        eps = 1e-6 if width in (432, 864, 1152) or size.position == "learned" else 1e-5
        assert settings.get("norm_eps") == (eps if expected else None)


def test_heads_that_nothing_tells_are_the_users_word(tmp_path: Path) -> None:
    """A width that nobody published, without periods: accepted where model.num_heads is named, else one line."""
    path = write(ModelConfig(**SMALL), tmp_path / "w.pth", r"periods")
    size = ("model.embed_dim=64", "model.depth=2", "model.layer_scale=null")
    with pytest.raises(WeightsError, match="w.pth: cannot tell num_heads for embed_dim=64, depth=2; set model.num"):
        start(path, *size)
    with pytest.raises(WeightsError, match="set model.depth=2 and model.num_heads, which the file does not hold"):
        start(path, "model.embed_dim=64", "model.layer_scale=null")
    with pytest.raises(WeightsError, match="set model.num_heads"):
        initialise.published_encoder(path)
    start(path, *size, "model.num_heads=2")


def test_heads_of_64_channels_by_default() -> None:
    """model.num_heads null: as many as fit, and a run recorded with their number is the same run; a width that they do
    not fit is refused."""
    words = ["name=x", "data.root=x", "stages.a.steps=1"]
    unnamed, named = (load(Config, None, [*words, f"model.num_heads={heads}"]) for heads in ("null", "12"))
    assert recipe(unnamed, "a") == recipe(named, "a")
    assert head_count(ModelConfig()) == 12 and head_count(ModelConfig(embed_dim=768, num_heads=6)) == 6
    assert build.backbone(ModelConfig(embed_dim=128, depth=1)).blocks[0].attn.heads == 2
    with pytest.raises(SettingsError, match="model.embed_dim=864: not a multiple of 64, .*; set model.num_heads"):
        build.backbone(ModelConfig(embed_dim=864))


@pytest.mark.parametrize("base", [2.0, 16.0, 50.0, 100.0, 123.4, 10000.0])
@pytest.mark.parametrize("quarter", [2, 4, 16, 18, 32])
def test_the_base_of_periods(base: float, quarter: int) -> None:
    """Heads of 8 … 128 channels: to 1e-4 from float32, to 3 % if rounded, and 100 as 100."""
    exact = base ** (torch.arange(quarter) / quarter)
    assert architecture.base_of(exact) == pytest.approx(base, rel=1e-4)
    coarse = torch.tensor(base) ** (2 * torch.arange(quarter, dtype=torch.bfloat16) / (2 * quarter))
    inverse = 1 / (1 / exact).bfloat16().float()
    for rounded in (exact.bfloat16(), coarse.bfloat16().float(), inverse, exact.half()):
        found = architecture.base_of(rounded)
        assert found == base if base == 100 else found == pytest.approx(base, rel=0.03)


def test_another_base_is_refused_and_periods_of_none(tmp_path: Path) -> None:
    """Base 57 by the word that mends it; FlexiCT's bfloat16 periods count as 100; no base, or NaN: one line, untold."""
    size = ("model.embed_dim=64", "model.depth=2", "model.layer_scale=null", "model.num_heads=4")
    path = write(ModelConfig(**SMALL, rope_base=57.0), tmp_path / "57.pth")
    assert mends(path, *size) == ["model.rope_base=57.0"]
    assert initialise.published_encoder(path).config.rope_base == 57
    periods = build.backbone(ModelConfig(**SMALL)).rope_embed.periods
    own = {"rope_embed.periods": periods.bfloat16()}
    path = write(ModelConfig(**SMALL), tmp_path / "bf16.pth", **own)
    start(path, *size)
    assert mends(path, *size, "model.rope_base=101") == ["model.rope_base=100.0"]
    own["rope_embed.periods"] = torch.full_like(periods, float("nan"))
    start(write(ModelConfig(**SMALL), tmp_path / "nan.pth", **own), *size)
    for wrong in (periods.flip(0), torch.linspace(1, 30, 4), -periods):
        own["rope_embed.periods"] = wrong
        with pytest.raises(WeightsError, match="its RoPE periods belong to no base"):
            published.read(write(ModelConfig(**SMALL), tmp_path / "none.pth", **own))
    own["rope_embed.periods"] = torch.ones(5)
    with pytest.raises(WeightsError, match="5 RoPE periods mean heads of 20 channels, but it has 64"):
        published.read(write(ModelConfig(**SMALL), tmp_path / "odd.pth", **own))


def test_flexicts_eps(tmp_path: Path) -> None:
    """432 wide, 12 deep: probes take 1e-6 and six heads of 72 channels; init_from names both."""
    config = ModelConfig(embed_dim=432, depth=12, num_heads=6, qkv_bias=False, norm_eps=1e-6, ffn_ratio=0.1)
    path = write(config, tmp_path / "flexict.pth")
    found = initialise.published_encoder(path)
    assert found.config.num_heads == 6 and found.model.norm.eps == 1e-6
    assert {"model.num_heads=6", "model.norm_eps=1e-06"} < set(mends(path))
    start(path, *mends(path))


TINY = dict(embed_dim=192, depth=12, position="learned", ffn_ratio=0.1, norm_eps=1e-6)  # DINOv2's size and eps
FILES = {
    "rope": dict(**SMALL, rope_base=57.0, ffn_ratio=2.0),
    "rope, gated": dict(embed_dim=96, depth=3, num_heads=3, ffn="swiglu", ffn_ratio=2.5, registers=0),
    "rope, no bias": dict(embed_dim=80, depth=1, num_heads=5, qkv_bias=False, ffn_ratio=3.3, local_norm=True),
    "learned": dict(**TINY, grid=3, registers=0),
    "learned, registers": dict(**TINY, grid=5, registers=2),
    "sequences": dict(**SMALL, sequences=["t1", "t1c", "t2", "flair"]),
}
WRONG = {
    "the defaults": (),
    "rope": ("model.embed_dim=32", "model.num_heads=2", "model.ffn=swiglu", "model.registers=1", "model.depth=4"),
    "learned": (*("model.position=learned", "model.grid=7", "model.layer_scale=null", "model.num_heads=8"),),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", FILES)
def test_the_words_of_a_refusal_mend_it(kind: str, wrong: str, tmp_path: Path) -> None:
    """All at once: applied as they stand, the file loads and its features are its own model's, to 1e-5."""
    config = ModelConfig(**FILES[kind])
    path = write(config, tmp_path / "w.pth")
    words = (*WRONG[wrong], *mends(path, *WRONG[wrong]))
    model = start(path, *words)
    original = build.backbone(config).eval()
    original.load_state_dict(torch.load(path))
    side = 16 * (model_words(*words).grid or 4)  # a grid that the user keeps starts as the file's at that size
    images = torch.randn(2, max(len(config.sequences), 1), side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = model(images), original(images)
    torch.testing.assert_close(found.cls, expected.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patches, expected.patches, atol=1e-5, rtol=1e-5)


def test_the_words_of_a_refusal_of_a_folder_mend_it(tmp_path: Path) -> None:
    """With config.json, eps is among them; so is an ffn_ratio that no short number gives."""
    config = dict(embed_dim=96, depth=2, num_heads=6, ffn_ratio=1000 / 96 + 1e-9, norm_eps=1e-6, position="learned")
    write(ModelConfig(**config, grid=2, registers=0), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6, "layer_norm_eps": 1e-6}))
    words = mends(tmp_path, "model.layer_scale=null")
    assert {"model.norm_eps=1e-06", "model.num_heads=6", "model.grid=2"} < set(words)
    assert start(tmp_path, *words).norm.eps == 1e-6


def test_a_key_bias_that_counts_is_not_masked(tmp_path: Path) -> None:
    """RoPE turns the key's bias with the place: a file that has one without a mask needs model.mask_k_bias=false."""
    path = write(ModelConfig(**SMALL, mask_k_bias=False), tmp_path / "w.pth")
    size = ("model.embed_dim=64", "model.depth=2", "model.layer_scale=null", "model.num_heads=4")
    assert mends(path, *size) == ["model.mask_k_bias=false"]
    assert initialise.published_encoder(path).config.mask_k_bias is False
    assert initialise.published_encoder(write(ModelConfig(**SMALL), tmp_path / "m.pth")).config.mask_k_bias is True
