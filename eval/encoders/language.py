"""The text tower of an encoder that was trained on pairs of images and texts (CLIP, SigLIP), and the space of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from meddap.settings import SettingsError

NO_TEXT_TOWER = "it has no text tower"
_SIGLIP_LENGTH = 64  # tokens to which SigLIP's texts were padded in training
_PROMPTS = 256  # at a time


@dataclass(frozen=True)
class Language:
    """A text tower and the space that its features share with those of images.

    encode    texts → (T, E) float32 features, not of unit length
    project   (…, D) cls tokens as the encoder gives them after its last block → (…, E), not of unit length
    scale     factor by which cosines become logits
    bias      added to them (SigLIP); 0 where there is none
    sigmoid   a text was scored by itself (SigLIP), not against the other texts (CLIP)
    width     E
    """

    encode: Callable[[Sequence[str]], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]
    scale: float
    bias: float
    sigmoid: bool
    width: int

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return (T, E) features of unit length."""
        parts = [self.encode(prompts[at : at + _PROMPTS]) for at in range(0, len(prompts), _PROMPTS)]
        return F.normalize(torch.cat(parts), dim=1)

    def images(self, cls: torch.Tensor) -> torch.Tensor:
        """Return (…, E) features of unit length of (…, D) cls tokens."""
        return F.normalize(self.project(cls), dim=-1)

    def logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return (N, T) logits of (N, E) images and (T, E) texts, both of unit length."""
        return self.scale * images @ texts.T + self.bias


def of(encoder: object) -> Language | str:
    """Return an encoder's text tower (its attribute `language`), or why it has none."""
    found: Language | str = getattr(encoder, "language", NO_TEXT_TOWER)
    return found


def lacking(encoder: object) -> str:
    """Return why an encoder cannot be asked in words; "" where it can."""
    found = of(encoder)
    return found if isinstance(found, str) else ""


def of_transformers(folder: Path, model: Any) -> Language | str:
    """Return the text tower of a model that transformers loaded, or why it cannot be used.

    model  in evaluation mode, on its device. CLIP's layout (visual_projection) and SigLIP's (a pooling head) are known.
    """
    if not (hasattr(model, "text_model") and hasattr(model, "logit_scale") and hasattr(model, "vision_model")):
        return NO_TEXT_TOWER
    sigmoid = hasattr(model, "logit_bias")
    if not sigmoid and not hasattr(model, "visual_projection"):
        return f"the text tower of a {type(model).__name__} is not read; CLIP's and SigLIP's are"
    tokenizer = tokenizer_of(folder)
    if isinstance(tokenizer, str):
        return tokenizer
    text = model.config.text_config
    limit = min(_SIGLIP_LENGTH, text.max_position_embeddings) if sigmoid else text.max_position_embeddings
    device = next(model.parameters()).device

    def encode(texts: Sequence[str]) -> torch.Tensor:
        inputs = tokens(folder, tokenizer, texts, limit, text.vocab_size, whole_length=sigmoid).to(device)
        with torch.inference_mode():
            found = model.get_text_features(**inputs)
        features: torch.Tensor = getattr(found, "pooler_output", found)  # a tensor before transformers 5
        return features.float().cpu()

    def project(cls: torch.Tensor) -> torch.Tensor:
        if sigmoid:  # its pooling head gives the very features that are compared with texts
            return cls
        with torch.inference_mode():
            found: torch.Tensor = model.visual_projection(cls.to(device)).float().cpu()
        return found

    bias = float(model.logit_bias) if sigmoid else 0.0
    width = text.projection_size if sigmoid else model.config.projection_dim
    return Language(encode, project, float(model.logit_scale.exp()), bias, sigmoid, width)


def tokenizer_of(folder: Path) -> Any:
    """Return the tokenizer in a folder, or in words why there is none. None of the folder's code is run."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")):
        return f"{folder.name} holds no tokenizer; copy tokenizer.json beside its weights"
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its readers raise whatever a damaged file happens to mean to them
        what = str(error).splitlines()[0] if str(error) else ""
        return f"{folder.name}: its tokenizer cannot be read ({type(error).__name__}: {what})"


def tokens(
    folder: Path, tokenizer: Any, texts: Sequence[str], limit: int, vocabulary: int, whole_length: bool = False
) -> Any:
    """Return texts as a tokenizer gives them, as tensors; `whole_length`: padded to `limit` tokens.

    Raises SettingsError for a text of more than `limit` tokens, which would be cut, and for a tokenizer of another
    model's vocabulary.
    """
    clean = [" ".join(text.split()) for text in texts]
    lengths = [len(each) for each in tokenizer(clean)["input_ids"]]
    if (longest := max(lengths)) > limit:
        text = clean[lengths.index(longest)]
        raise SettingsError(f"prompt {text!r}: {longest} tokens, the text tower takes {limit}; shorten it")
    padding: dict[str, Any] = {"padding": "max_length", "max_length": limit} if whole_length else {"padding": True}
    found = tokenizer(clean, return_tensors="pt", **padding)
    if int(found["input_ids"].max()) >= vocabulary:
        raise SettingsError(f"{folder}: its tokenizer is of another model: the text tower knows {vocabulary} tokens")
    return found
