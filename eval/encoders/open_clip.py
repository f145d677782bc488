"""BiomedCLIP and its like, from a folder of open_clip: a timm vision transformer beside a BERT.

open_clip_config.json, open_clip_model.safetensors and the tokenizer. The image tower becomes a backbone of ours, the
text tower transformers' BertModel; open_clip itself is not needed, and nothing of the folder is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eval.encoders import language
from eval.encoders.language import Language
from pretrain.weights import initialise, published
from pretrain.weights.encoder import Encoder
from pretrain.weights.published import DamagedError, WeightsError

_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TRUNK, _PROJECTION, _TEXT = "visual.trunk.", "visual.head.proj.", "text.transformer."
_HEAD_WIDTH = 64  # of timm's vit_tiny, vit_small, vit_base and vit_large, and of the published BERTs
_SIZES = re.compile(r"(vit|deit)_(tiny|small|base|large)_")
_POOLED = ("cls_last_hidden_state_pooler", "mean_pooler")
_CONTEXT = 77  # tokens, where the folder does not say: open_clip's own


def is_folder(path: Path) -> bool:
    """Whether a folder holds a model in open_clip's layout and none in transformers' layout, which is preferred."""
    return (path / _CONFIG).is_file() and not (path / "model.safetensors").is_file()


def load(folder: Path, channels: int = 1) -> tuple[Encoder, Language | str]:
    """Return the image tower, and the text tower or why it cannot be used. Raises WeightsError.

    channels  3: the image tower keeps its three (pretrain.weights.initialise.published_encoder)
    """
    described = _described(folder / _CONFIG)
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise WeightsError(f"{folder}: holds neither of {', '.join(_WEIGHTS)}; copy the model's weights")
    tensors = published.tensors_of(file)
    if f"{_TRUNK}cls_token" not in tensors or f"{_PROJECTION}weight" not in tensors:
        raise WeightsError(
            f"{file}: its image tower is not timm's with a linear projection, as BiomedCLIP's; take the model's "
            "folder for transformers"
        )
    for name, value in tensors.items():
        if not bool(value.float().isfinite().all()):
            raise DamagedError(f"{file}: {name} holds NaN or infinity; copy it again or take another checkpoint")
    loaded = _image_tower(folder, file, described, channels)
    beside = {name: value for name, value in tensors.items() if not name.startswith(_TRUNK)}
    digest = hashlib.sha256(f"{loaded.digest} {described['model_cfg'].get('text_cfg')}".encode())
    for name, value in sorted(beside.items()):
        digest.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return replace(loaded, digest=digest.hexdigest()), _language(folder, described, beside)


def _described(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text())
        towers = [said["model_cfg"][name] for name in ("vision_cfg", "text_cfg")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedError(f"{path}: no model_cfg with vision_cfg and text_cfg ({what}); copy it again") from error
    if not all(isinstance(tower, dict) for tower in towers):
        raise DamagedError(f"{path}: vision_cfg and text_cfg must be objects; copy it again")
    return dict(said)


def _image_tower(folder: Path, file: Path, described: Mapping[str, Any], channels: int) -> Encoder:
    found = published.read(file)
    vision = described["model_cfg"]["vision_cfg"]
    name = str(vision.get("timm_model_name", ""))
    if vision.get("timm_pool") not in (None, "", "token"):
        raise WeightsError(f"{folder / _CONFIG}: timm_pool={vision['timm_pool']!r} is not read; the cls token's is")
    known = {}
    if "num_heads" not in found.settings and _SIZES.match(name):
        known = {"num_heads": found.settings["embed_dim"] // _HEAD_WIDTH}
    given = described.get("preprocess_cfg") or {}
    mean, std = (tuple(given.get(key) or usual) for key, usual in _USUAL.items())
    if not all(isinstance(each, (int, float)) for each in (*mean, *std)) or min(std) <= 0 or len(mean) != len(std):
        raise DamagedError(f"{folder / _CONFIG}: preprocess_cfg: mean={mean}, std={std}; copy it again")
    found = replace(found, settings={**known, **found.settings}, mean=mean, std=std, source=str(folder))
    return initialise.of_published(found, folder.name, channels)


# of open_clip, where the folder does not say
_USUAL = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def _language(folder: Path, described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Language | str:
    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        return "its text tower needs transformers; pip install 'meddap[models]'"
    said = described["model_cfg"]["text_cfg"]
    pooler = said.get("hf_pooler_type") or said.get("pooler_type") or _POOLED[0]
    bert = {name[len(_TEXT) :]: value for name, value in tensors.items() if name.startswith(_TEXT)}
    words, kinds = (bert.get(f"embeddings.{name}_embeddings.weight") for name in ("word", "token_type"))
    if words is None or kinds is None or len(kinds) < 2 or "encoder.layer.0.attention.self.query.weight" not in bert:
        return "its text tower is not a BERT, as BiomedCLIP's is; take the model's folder for transformers"
    if pooler not in _POOLED:
        return f"its text tower pools by {pooler}; {' and '.join(_POOLED)} are read"
    tokenizer = language.tokenizer_of(folder)
    if isinstance(tokenizer, str):
        return tokenizer
    width, layers = words.shape[1], len({name.split(".")[2] for name in bert if name.startswith("encoder.layer.")})
    places = len(bert["embeddings.position_embeddings.weight"])
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        intermediate_size=len(bert["encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=places,
        type_vocab_size=len(kinds),
    )
    model = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    own = model.state_dict()
    weights = {name: value.float() for name, value in bert.items() if name in own}
    if missing := sorted(set(own) - set(weights) - {"embeddings.position_ids", "embeddings.token_type_ids"}):
        return f"its text tower lacks {', '.join(missing[:3])}; copy it again"
    model.load_state_dict(weights, strict=False)
    projection = _text_projection(tensors)
    kernel, bias = tensors[f"{_PROJECTION}weight"].float(), tensors.get(f"{_PROJECTION}bias")
    limit = min(int(said.get("context_length") or _CONTEXT), places)

    def encode(texts: Sequence[str]) -> torch.Tensor:
        inputs = language.tokens(folder, tokenizer, texts, limit, len(words))
        ids = inputs["input_ids"]
        mask = (ids != config.pad_token_id).long()
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(2).float()
            pooled = states[:, 0] if pooler == _POOLED[0] else (states * weight).sum(dim=1) / weight.sum(dim=1)
            found: torch.Tensor = projection(pooled)
        return found

    def project(cls: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(cls, kernel, None if bias is None else bias.float())

    scale, offset = float(tensors["logit_scale"].float().exp()), tensors.get("logit_bias")
    shift = 0.0 if offset is None else float(offset)
    return Language(encode, project, scale, shift, offset is not None, len(kernel))


def _text_projection(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return what follows the pooled text: nothing, one matrix, or two with a GELU between them."""
    names = [name for name in ("text.proj.weight", "text.proj.0.weight", "text.proj.2.weight") if name in tensors]
    layers: list[nn.Module] = []
    for name in names:
        matrix = tensors[name].float()
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.load_state_dict({"weight": matrix})
        layers += [nn.GELU(), layer] if layers else [layer]
    return nn.Sequential(*layers).eval().requires_grad_(False)
