"""Tiny encoders with text towers, as folders: CLIP's and SigLIP's of transformers, BiomedCLIP's of open_clip."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

WORDS = (
    "a an of the no scan image showing with without round square bright dark circle disc ring shape small large left "
    "right top bottom lesion normal abnormal healthy tissue slice in is and picture brain medical"
).split()
SIZES: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


def values(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Draw from a normal distribution by a seed that follows from a name."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def save_tokenizer(folder: Path, ends: tuple[str, str], words: Sequence[str] = WORDS) -> int:
    """Write a real tokenizer of whole words that puts `ends` around a text; return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    first, last = ends
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", first, last, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", bos_token=first, eos_token=last
    ).save_pretrained(folder)
    return len(vocabulary)


def two_towers(kind: str, folder: Path, seed: int = 0) -> Any:
    """Write a tiny CLIP or SigLIP with random weights, its tokenizer and its image processor; return the model."""
    import transformers

    count = save_tokenizer(folder, ("[BOS]", "[EOS]"))
    vision = dict(**SIZES, patch_size=8, image_size=32)
    words = dict(**SIZES, vocab_size=count, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    torch.manual_seed(seed)
    if kind == "clip":
        text = transformers.CLIPTextConfig(**words)
        config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=16)
        model = transformers.CLIPModel(config)
    else:
        text = transformers.SiglipTextConfig(**words, projection_size=32)
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text.to_dict(), vision_config=vision))
        with torch.no_grad():
            model.logit_scale.fill_(2.0)
            model.logit_bias.fill_(-0.5)
    model.eval().save_pretrained(folder)
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "do_rescale": True, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return model


def open_clip_folder(folder: Path) -> None:
    """Write a tiny model in BiomedCLIP's layout, every weight by `values` of its name."""
    width, hidden, embed = 128, 64, 24
    shapes: dict[str, tuple[int, ...]] = {
        "visual.trunk.cls_token": (1, 1, width),
        "visual.trunk.pos_embed": (1, 17, width),
        "visual.trunk.patch_embed.proj.weight": (width, 3, 8, 8),
        "visual.trunk.patch_embed.proj.bias": (width,),
        **_norm("visual.trunk.norm", width),
        "visual.head.proj.weight": (embed, width),
        "text.transformer.embeddings.word_embeddings.weight": (48, width),
        "text.transformer.embeddings.position_embeddings.weight": (32, width),
        "text.transformer.embeddings.token_type_embeddings.weight": (2, width),
        **_norm("text.transformer.embeddings.LayerNorm", width),
        "text.proj.0.weight": ((width + embed) // 2, width),
        "text.proj.2.weight": (embed, (width + embed) // 2),
    }
    for block in range(2):
        name = f"visual.trunk.blocks.{block}"
        shapes |= _norm(f"{name}.norm1", width) | _norm(f"{name}.norm2", width)
        shapes |= _linear(f"{name}.attn.qkv", 3 * width, width) | _linear(f"{name}.attn.proj", width, width)
        shapes |= _linear(f"{name}.mlp.fc1", width, width) | _linear(f"{name}.mlp.fc2", width, width)
    layer = "text.transformer.encoder.layer.0"
    for part in ("self.query", "self.key", "self.value", "output.dense"):
        shapes |= _linear(f"{layer}.attention.{part}", width, width)
    shapes |= _linear(f"{layer}.intermediate.dense", hidden, width) | _linear(f"{layer}.output.dense", width, hidden)
    shapes |= _norm(f"{layer}.attention.output.LayerNorm", width) | _norm(f"{layer}.output.LayerNorm", width)
    weights = {name: _weight(name, shape) for name, shape in shapes.items()}
    weights["logit_scale"] = torch.tensor(3.0)
    save_file(weights, folder / "open_clip_model.safetensors")
    text = {"hf_model_name": "a BERT", "hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "mlp"}
    vision = {"timm_model_name": "vit_tiny_golden_patch8_32", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    described = {
        "model_cfg": {"embed_dim": embed, "vision_cfg": vision, "text_cfg": {**text, "context_length": 16}},
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(described))


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    drawn = values(name, shape)
    if len(shape) == 1:
        return 0.1 * drawn + ("norm" in name.lower() and name.endswith("weight"))
    return drawn / math.prod(shape[1:]) ** 0.5


def made_up_language(width: int) -> Any:
    """A text tower whose features of a text follow from its characters alone; images are their cls tokens."""
    from eval.encoders.language import Language

    def encode(texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([values(text, (width,)) for text in texts])

    return Language(encode, lambda cls: cls, scale=10.0, bias=0.0, sigmoid=False, width=width)


SHAPES, PLACES = ("square", "disc", "ring"), ("left", "right")


def picture_of(shape: str, place: str, rng: np.random.Generator) -> np.ndarray:
    """Draw one bright shape on a dark ground: (32, 32) uint8."""
    row, column = rng.integers(13, 19), rng.integers(8, 11) + 13 * (place == "right")
    size, rows, columns = rng.integers(5, 8), *np.mgrid[:32, :32]
    away = np.hypot(rows - row, columns - column)
    square = np.maximum(abs(rows - row), abs(columns - column)) < size
    drawn = {"square": square, "disc": away < size, "ring": (away < size) & (away > size - 3)}[shape]
    return np.clip(40 + 150 * drawn + rng.normal(0, 10, drawn.shape), 0, 255).astype(np.uint8)


def trained_clip(folder: Path, steps: int = 250) -> None:
    """Write a tiny CLIP that was trained on pictures of shapes with captions that name shape and place."""
    from transformers import AutoTokenizer

    model = two_towers("clip", folder)
    tokenizer, rng = AutoTokenizer.from_pretrained(folder), np.random.default_rng(0)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    captions = [f"{shape} {place}" for shape in SHAPES for place in PLACES]
    written = ["{} {}", "an image of a {} on the {}", "the scan with a {} {}"]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        which = rng.integers(0, len(captions), 48)
        images = np.stack([picture_of(*captions[number].split(), rng) for number in which])
        pixels = (torch.from_numpy(images).float().div(255)[:, None].repeat(1, 3, 1, 1) - mean) / std
        texts = [written[step % len(written)].format(*each.split()) for each in captions]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        logits = model(pixel_values=pixels, **inputs).logits_per_image
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(which))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)


def pictures_of_shapes(folder: Path, each: int = 20) -> Path:
    """Write pictures of shapes as FOLDER/<split>/<shape>/NAME.png; return the folder."""
    from PIL import Image

    rng = np.random.default_rng(1)
    for split in ("train", "val", "test"):
        for shape in SHAPES:
            (folder / split / shape).mkdir(parents=True, exist_ok=True)
            for number in range(each):
                drawn = picture_of(shape, PLACES[number % 2], rng)
                Image.fromarray(drawn).save(folder / split / shape / f"{number:03d}.png")
    return folder
