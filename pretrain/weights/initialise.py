"""Published weights in a backbone of ours: one channel instead of three, another patch size, another grid.

All of it exact where it can be: the patch embedding of a grey image repeated three times is a patch embedding of one
channel, and their normalisation is a factor and a shift that the kernel and the bias absorb.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from pretrain import build
from pretrain.config import IntensityConfig, ModelConfig, head_count
from pretrain.data.intensity import Intensity
from pretrain.model.positions import resampled
from pretrain.model.vit import VisionTransformer
from pretrain.weights import architecture, encoder, published
from pretrain.weights.encoder import Encoder
from pretrain.weights.published import Published, WeightsError

log = logging.getLogger("pretrain")

# where a file does not say: a window of soft tissue with ImageNet's statistics; weights of three channels absorb these
_ASSUMED = Intensity(window=(-160.0, 240.0), mean=0.449, std=0.226)
_PROJ, _NAMES = "patch_embed.proj", "sequence_embed.weight"
# settings that the names and shapes of our own weights do not tell
_OURS = (
    *("embed_dim", "depth", "ffn", "ffn_ratio", "qkv_bias", "registers", "mask_k_bias", "position", "grid"),
    *("norm_eps", "local_norm", "rope_base"),
)


def weights_of(path: str | Path) -> Published:
    """The backbone that a run, stage or step folder of ours holds (its teacher's), or a published one.

    Raises WeightsError, CheckpointError.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        loaded = encoder.load_encoder(folder)
        own = {name: value for name, value in loaded.model.state_dict().items() if name not in buffers(loaded.model)}
        settings = {name: getattr(loaded.config, name) for name in _OURS}
        settings["num_heads"] = head_count(loaded.config)
        names = tuple(loaded.config.sequences)
        return Published(str(path), "ours", own, settings, sequences=names, intensity=loaded.intensity)
    return published.read(path)


def buffers(model: VisionTransformer) -> set[str]:
    """Names of what follows from the architecture."""
    return {name for name, _ in model.named_buffers()}


def load(
    model: VisionTransformer, found: Published, config: ModelConfig, intensity: IntensityConfig | Intensity | None
) -> None:
    """Fill `model` with the weights. Raises WeightsError that names what does not fit, on both sides.

    intensity  how our images are normalised; weights of three channels need it. One that differs from what the weights
               were trained with is a warning
    """
    _check_settings(found, config)
    if intensity is not None and found.intensity is not None:
        _warn_of_intensity(found, intensity)
    weights = dict(found.weights)
    kernel, bias = weights[f"{_PROJ}.weight"], weights.get(f"{_PROJ}.bias")
    bias = torch.zeros(len(kernel)) if bias is None else bias
    if found.grey:
        kernel = kernel.double().sum(dim=1, keepdim=True).float()
    elif kernel.shape[1] == 3:
        if len(found.mean) != 3 or len(found.std) != 3:
            raise WeightsError(f"{found.source}: three channels, but a mean of {len(found.mean)}; name one for each")
        kernel, bias = one_channel(kernel, bias, found, intensity)
    weights[f"{_PROJ}.weight"], weights[f"{_PROJ}.bias"] = resample_kernel(kernel, config.patch_size), bias
    if "pos_embed" in weights and config.grid:
        # as the file's own grid would be read at that size
        weights["pos_embed"] = resampled(weights["pos_embed"], config.grid, config.grid, bool(config.registers))
    own = model.state_dict()
    if model.sequences:
        weights[_NAMES] = sequence_rows(own[_NAMES], model.sequences, weights.get(_NAMES), found.sequences)
    derived = {name: own[name] for name in buffers(model) & set(own)}
    _check_names(found, set(weights) | set(derived), set(own))
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise WeightsError(f"{found.source}: {name} is {tuple(value.shape)}, the model's {tuple(own[name].shape)}")
    model.load_state_dict({**derived, **weights})


def is_published(path: Path) -> bool:
    """Whether a path names published weights rather than a run of ours."""
    return path.is_file() or (path / "config.json").is_file()


def published_encoder(path: Path) -> Encoder:
    """Published weights in a backbone of ours, on one channel, exactly. Raises WeightsError, SettingsError.

    Its intensity is the file's own, else a window of soft tissue. That is a warning for weights of grey images: they
    were trained with an intensity that the file does not name.
    """
    found = published.read(path)
    config = _model_config(found)
    model = build.backbone(config)
    intensity = found.intensity or _ASSUMED
    load(model, found, config, intensity)
    if found.intensity is None and (found.grey or found.weights["patch_embed.proj.weight"].shape[1] == 1):
        log.warning(
            "%s: does not say its intensity; assumed is %s, which may be wrong: name a run or a folder exported "
            "with its intensity to be sure",
            *(path, intensity_words(intensity)),
        )
    whole = encoder.frozen(model, intensity, config, f"{path.name} ({found.kind})")
    if found.intensity is None:
        return whole
    # the same weights under another intensity give other features, which are kept by the digest
    digest = hashlib.sha256(f"{whole.digest} {intensity}".encode()).hexdigest()
    return replace(whole, digest=digest)


def _model_config(found: Published) -> ModelConfig:
    """The architecture of the weights. Raises WeightsError where the number of heads cannot be read from them."""
    if "num_heads" not in found.settings:
        raise WeightsError(untold_heads(found))
    learned = found.settings["position"] == "learned"
    usual = {
        "mask_k_bias": not learned,  # DINOv3's; where a file has no such bias, nothing changes
        "norm_eps": architecture.usual_eps(found.settings["position"]),
    }
    return ModelConfig(
        **(usual | found.settings),
        patch_size=found.weights["patch_embed.proj.weight"].shape[-1],
        sequences=list(found.sequences),
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in found.weights else None,
    )


def sequence_rows(
    fresh: torch.Tensor, names: Sequence[str], given: torch.Tensor | None, given_names: Sequence[str]
) -> torch.Tensor:
    """(V, D) embeddings of `names`: those that were given by their names, others as they are in `fresh`.

    The weights may name fewer sequences than the model, in another order, or none.
    """
    known = dict(zip(given_names, given)) if given is not None else {}
    return torch.stack([known.get(name, row) for name, row in zip(names, fresh)])


def one_channel(
    kernel: torch.Tensor, bias: torch.Tensor, theirs: Published, ours: IntensityConfig | Intensity
) -> tuple[torch.Tensor, torch.Tensor]:
    """The patch embedding of a grey image x, seen as (x·std + mean), ours, in three channels with their normalisation.

    kernel (D, 3, p, p) and bias (D,) become (D, 1, p, p) and (D,); in float64, so that nothing is lost.
    """
    theirs_mean, theirs_std = (torch.tensor(each, dtype=torch.float64) for each in (theirs.mean, theirs.std))
    exact = kernel.double()
    factor, shift = ours.std / theirs_std, (ours.mean - theirs_mean) / theirs_std
    folded = torch.einsum("dcij,c->dij", exact, factor).unsqueeze(1)
    return folded.float(), (bias.double() + torch.einsum("dcij,c->d", exact, shift)).float()


def resample_kernel(kernel: torch.Tensor, size: int) -> torch.Tensor:
    """(D, C, p, p) → (D, C, size, size): of all kernels the one that answers a resized patch as before.

    The pseudo-inverse of antialiased bicubic resizing, which is how our images are resized (FlexiViT, arXiv
    2212.08013, section 3.4).
    """
    old = kernel.shape[-1]
    if old == size:
        return kernel
    basis = torch.eye(old * old, dtype=torch.float64).reshape(old * old, 1, old, old)
    resized = F.interpolate(basis, (size, size), mode="bicubic", antialias=True).reshape(old * old, size * size)
    return (kernel.double().flatten(2) @ torch.linalg.pinv(resized).T).unflatten(2, (size, size)).float()


def _check_settings(found: Published, config: ModelConfig) -> None:
    """Every setting that differs is named at once, as the words that would mend it."""
    told = found.settings
    wanted = {
        name: told[name]
        for name in told
        if name not in ("num_heads", "ffn_ratio", "grid") and not _same(getattr(config, name), told[name])
    }
    if "ffn_ratio" in told:
        ratios = config.ffn_ratio, told["ffn_ratio"]
        given, theirs = (architecture.hidden(told["ffn"], told["embed_dim"], ratio) for ratio in ratios)
        wanted |= {"ffn_ratio": told["ffn_ratio"]} if given != theirs else {}
    if (config.grid is None) != (told.get("grid") is None):  # another grid than the file's is resampled
        wanted["grid"] = told.get("grid")
    if (config.layer_scale is not None) != ("blocks.0.ls1.gamma" in found.weights):
        wanted["layer_scale"] = 1e-5 if config.layer_scale is None else None
    if found.sequences and not config.sequences:
        wanted["sequences"] = list(found.sequences)
    heads = told.get("num_heads", config.num_heads)
    if config.num_heads != heads and (config.num_heads is not None or told["embed_dim"] != 64 * heads):
        wanted["num_heads"] = heads
    if wanted:
        words = " ".join(f"model.{name}={_word(value)}" for name, value in wanted.items())
        more = "" if heads else " and model.num_heads, which the file does not hold"
        raise WeightsError(f"{found.source}: belongs to another model; set {words}{more}")
    if heads is None:
        raise WeightsError(untold_heads(found))


def _warn_of_intensity(found: Published, ours: IntensityConfig | Intensity) -> None:
    theirs = found.intensity
    pairs = zip((*theirs.window, theirs.mean, theirs.std), (*ours.window, ours.mean, ours.std))
    if not all(math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) for one, other in pairs):
        log.warning(
            "%s: trained with %s, but here it is %s; the weights see other values than they know",
            *(found.source, intensity_words(theirs), intensity_words(ours)),
        )


def intensity_words(intensity: IntensityConfig | Intensity) -> str:
    """The settings of an intensity as a user writes them."""
    (low, high), mean, std = intensity.window, intensity.mean, intensity.std
    return f"intensity.window=[{low:g},{high:g}] intensity.mean={mean:g} intensity.std={std:g}"


def untold_heads(found: Published) -> str:
    """The error line about weights from which the number of heads cannot be read."""
    size = f"embed_dim={found.settings['embed_dim']}, depth={found.settings['depth']}"
    return f"{found.source}: cannot tell num_heads for {size}; set model.num_heads, or add config.json beside it"


def _word(value: object) -> str:
    if value is None:
        return "null"
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value).lower()


def _same(mine: object, theirs: object) -> bool:
    if isinstance(theirs, float) and isinstance(mine, (int, float)):
        return math.isclose(mine, theirs, rel_tol=1e-6)
    return mine == theirs


def _check_names(found: Published, theirs: set[str], ours: set[str]) -> None:
    lacking, spare = sorted(ours - theirs), sorted(theirs - ours)
    if lacking or spare:
        raise WeightsError(
            f"{found.source}: unmatched; in the file only: {_list(spare)}; in the model only: {_list(lacking)}"
        )


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "none"
