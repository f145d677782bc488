"""Models of other libraries as encoders, from a folder on the disk: transformers' and timm's vision transformers.

Nothing is downloaded, no code of the folder is run, and only safetensors are read. Images are repeated in as many
channels as the model has and normalised as the folder says.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eval.encoders import between_blocks, language
from eval.encoders.language import Language
from meddap.settings import SettingsError
from pretrain.runtime.device import autocast, pick_device
from pretrain.weights.published import normalisation

_TOP = ("pooler", "head", "classifier")
_NORMS = ("layernorm", "post_layernorm", "norm", "layer_norm")
Tokens = list[tuple[torch.Tensor, torch.Tensor]]


def kind_of(folder: Path) -> str | None:
    """Return `timm` or `transformers` where a folder has a model of theirs, else None."""
    try:
        said = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict):
        return None
    return "timm" if "architecture" in said else "transformers" if "model_type" in said else None


class ThirdPartyEncoder(ABC):
    """What the encoders of other libraries share; see eval.encoders.encoder.FrozenEncoder."""

    window = (-160.0, 240.0)  # HU that become 0 and 1: a soft tissue window, as for natural images
    patch_size: int
    embed_dim: int
    depth: int
    language: Language | str = language.NO_TEXT_TOWER
    pool: nn.Module | None = None  # (N, tokens, D) → (N, D), where the model was trained with such a head (SigLIP)

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        bf16: bool,
        pool: nn.Module | None = None,
    ) -> None:
        self.device = pick_device("auto")
        self.precision = autocast("auto" if bf16 else "float32", self.device)
        self.network: Any = model.eval().requires_grad_(False).to(self.device)  # with its library's own methods
        self.pool, self.mean, self.std = pool, tuple(mean), tuple(std)
        self._mean, self._std = (torch.tensor(each).view(1, -1, 1, 1) for each in (list(mean), list(std)))
        self.channels = len(list(mean))
        kind = repr((type(model).__name__, list(mean), list(std)))
        used = {name: value for name, value in model.state_dict().items() if pool is not None or not _is_top(name)}
        self.digest = _digest(folder, used, kind)
        self.source = f"{folder.name} ({type(model).__name__})"

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return (images.expand(-1, self._mean.shape[1], -1, -1) - self._mean) / self._std

    def features(self, images: torch.Tensor, blocks: Sequence[int], present: torch.Tensor | None = None) -> Tokens:
        patches = images.shape[2] // self.patch_size * (images.shape[3] // self.patch_size)
        with torch.inference_mode(), self.precision:
            found = self.tokens(images.to(self.device), [number % self.depth for number in blocks])
            pooled = [None if self.pool is None else self.pool(each).float().cpu() for each in found]
        split = [_split(each.float().cpu(), patches, self.source) for each in found]
        return [(cls if own is None else own, tokens) for (cls, tokens), own in zip(split, pooled)]

    def adapted(self, images: torch.Tensor, blocks: Sequence[int], change: between_blocks.Change) -> None:
        """See eval.encoders.encoder.CheckpointEncoder."""
        layers = between_blocks.layers_of(self.network, self.depth)
        with self.precision:
            between_blocks.run(lambda: self.tokens(images, [self.depth - 1]), layers, len(images), blocks, change)

    @abstractmethod
    def tokens(self, images: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        """Return (N, tokens, D) after each of the blocks, through the final norm."""


def _digest(folder: Path, weights: Mapping[str, torch.Tensor], more: str) -> str:
    """Return a hash over weights and whatever else the features depend on. Raises SettingsError for NaN, infinity."""
    if bad := [name for name, value in weights.items() if not bool(value.float().isfinite().all())]:
        raise SettingsError(f"{folder}: {bad[0]} holds NaN or infinity; copy it again or take another checkpoint")
    digest = hashlib.sha256(more.encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_top(name: str) -> bool:
    """Return whether a weight pools the tokens into one vector: it is not used, and random where not saved."""
    return any(word in _TOP for word in name.split("."))


def _split(tokens: torch.Tensor, patches: int, source: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cls and patches of (N, prefix + P, D) tokens; without a cls token the mean patch takes its place."""
    prefix = tokens.shape[1] - patches
    if prefix < 0:
        raise SettingsError(f"{source}: gives {tokens.shape[1]} tokens for {patches} patches; is it a plain ViT?")
    return (tokens[:, 0] if prefix else tokens.mean(dim=1)), tokens[:, prefix:]


class TransformersEncoder(ThirdPartyEncoder):
    """A vision transformer that transformers loads: ViT, MAE, BEiT, CLIP and SigLIP with their text towers …

    Where an image tower was trained with a pooling head (SigLIP), its vector takes the place of the cls token.
    """

    def __init__(self, folder: Path, bf16: bool = True) -> None:
        try:
            from transformers import AutoModel
        except ImportError:
            raise SettingsError(f"{folder}: needs transformers; pip install 'meddap[models]'") from None
        try:
            whole, said = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise SettingsError(f"{folder}: transformers cannot load it ({str(error).splitlines()[0]})") from error
        model = getattr(whole, "vision_model", whole)
        pool = model.head if getattr(model, "use_head", False) else None
        if missing := sorted(name for name in said["missing_keys"] if pool is not None or not _is_top(name)):
            raise SettingsError(f"{folder}: its weights lack {', '.join(missing[:3])}; copy it again")
        config = model.config
        sizes = [getattr(config, name, None) for name in ("patch_size", "hidden_size", "num_hidden_layers")]
        whole_numbers = [each for each in sizes if isinstance(each, int)]
        if len(whole_numbers) < len(sizes):
            raise SettingsError(f"{folder}: {type(model).__name__} has no patches or no blocks; is it a plain ViT?")
        self.patch_size, self.embed_dim, self.depth = whole_numbers
        mean, std = _of_channels(folder, getattr(config, "num_channels", 3))
        super().__init__(folder, model, mean, std, bf16, pool)
        self._norm = next((getattr(model, name) for name in _NORMS if hasattr(model, name)), nn.Identity())
        whole = whole.eval().requires_grad_(False).to(self.device)
        self.language = language.of_transformers(folder, whole)
        if whole is not model:  # the text tower and the projections: what is said of images in words depends on them
            beside = {name: value for name, value in whole.state_dict().items() if not name.startswith("vision_model.")}
            read = {name: value for name, value in beside.items() if pool is not None or not _is_top(name)}
            self.digest = _digest(folder, read, self.digest)

    def tokens(self, images: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        # at another size than it was trained on, positions are interpolated where the model can
        known = inspect.signature(self.network.forward).parameters
        words = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
        states = self.network(images, output_hidden_states=True, **words).hidden_states
        return [self._norm(states[number + 1]) for number in blocks]


class TimmEncoder(ThirdPartyEncoder):
    """A vision transformer of timm from a folder as its hub keeps them: config.json and model.safetensors."""

    def __init__(self, folder: Path, bf16: bool = True) -> None:
        try:
            import timm
        except ImportError:
            raise SettingsError(f"{folder}: needs timm; pip install timm") from None
        said = json.loads((folder / "config.json").read_text())
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise SettingsError(f"{weights}: not found; only safetensors are read")
        model = timm.create_model(
            said["architecture"],
            pretrained=False,
            num_classes=0,
            dynamic_img_size=True,
            checkpoint_path=str(weights),
            **said.get("model_args", {}),
        )
        if not hasattr(model, "forward_intermediates") or not hasattr(model, "blocks"):
            raise SettingsError(f"{folder}: {said['architecture']} is not a plain vision transformer")
        self.patch_size, self.embed_dim = model.patch_embed.patch_size[0], model.embed_dim
        self.depth = len(model.blocks)
        super().__init__(folder, model, *normalisation(folder), bf16)

    def tokens(self, images: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        wanted = sorted(set(blocks))
        found = self.network.forward_intermediates(
            images, indices=wanted, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        whole = {number: torch.cat([prefix, patches], dim=1) for number, (patches, prefix) in zip(wanted, found)}
        return [whole[number] for number in blocks]


def _of_channels(folder: Path, channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation for as many channels as the model has."""
    mean, std = normalisation(folder)
    if len(mean) == channels:
        return list(mean), list(std)
    return [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels
