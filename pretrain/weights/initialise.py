"""Weights in a backbone of ours: one channel or three, another normalisation, another patch size, another grid.

All of it exact where it can be: the patch embedding of a grey image repeated three times is a patch embedding of one
channel, and a normalisation is a factor and a shift that the kernel and the bias absorb.
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
_GREY = Intensity()  # of weights of one channel that do not say
_PROJ, _NAMES = "patch_embed.proj", "sequence_embed.weight"
# settings that a checkpoint of ours has beside its weights
_OURS = (
    *("embed_dim", "depth", "ffn", "ffn_ratio", "qkv_bias", "registers", "mask_k_bias", "position", "grid"),
    *("norm_eps", "local_norm", "rope_base"),
)


def weights_of(path: str | Path) -> Published:
    """Return the teacher's backbone of a checkpoint of ours (see `encoder.find`), or a published one.

    Raises WeightsError, CheckpointError.
    """
    if encoder.is_run(Path(path)):
        loaded = encoder.load_encoder(path)
        own = {name: value for name, value in loaded.model.state_dict().items() if name not in buffers(loaded.model)}
        settings = {name: getattr(loaded.config, name) for name in _OURS}
        settings["num_heads"] = head_count(loaded.config)
        names = tuple(loaded.config.sequences)
        found = Published(str(path), "ours", own, settings, sequences=names, intensity=loaded.intensity)
        return replace(found, mean=loaded.intensity.means, std=loaded.intensity.stds)
    return published.read(path)


def buffers(model: VisionTransformer) -> set[str]:
    """Return the names of the tensors that follow from the architecture."""
    return {name for name, _ in model.named_buffers()}


def load(
    model: VisionTransformer, found: Published, config: ModelConfig, intensity: IntensityConfig | Intensity | None
) -> None:
    """Fill `model` with the weights. Raises WeightsError, naming what does not fit on either side.

    intensity  how our images are normalised; weights of three channels need it. One that differs from what the weights
               were trained with is a warning
    """
    _check_settings(found, config)
    if isinstance(intensity, IntensityConfig):
        intensity = build.intensity(intensity, config.channels)
    if intensity is not None and found.intensity is not None:
        _warn_of_intensity(found.source, found.intensity, intensity)
    weights = dict(found.weights)
    kernel, bias = weights[f"{_PROJ}.weight"], weights.get(f"{_PROJ}.bias")
    bias = torch.zeros(len(kernel)) if bias is None else bias
    if found.grey:
        kernel = kernel.double().sum(dim=1, keepdim=True).float()
    kernel, bias = _of_channels(kernel, bias, found, config.channels, intensity)
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


def _of_channels(
    kernel: torch.Tensor, bias: torch.Tensor, found: Published, channels: int, ours: Intensity | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the patch embedding for a model of 1 or 3 channels, exact for grey images and, of three, for all.

    ours  how our images are normalised; None: as the weights were trained
    """
    if kernel.shape[1] == 1 == channels:
        return kernel, bias
    if kernel.shape[1] == 1:
        if ours is None:
            raise WeightsError(f"{found.source}: one channel, and model.channels={channels}")
        return three_channels(kernel, bias, found.intensity or _GREY, ours)
    if kernel.shape[1] != 3:
        raise WeightsError(f"{found.source}: a patch embedding of {kernel.shape[1]} channels; 1 and 3 are read")
    if len(found.mean) != 3 or len(found.std) != 3:
        raise WeightsError(f"{found.source}: three channels, but a mean of {len(found.mean)}; name one for each")
    if channels == 3:
        return (kernel, bias) if ours is None else renormalised(kernel, bias, found, ours)
    assert ours is not None, "weights of three channels need to know how our images are normalised"
    return one_channel(kernel, bias, found, ours)


def is_published(path: Path) -> bool:
    """Whether a path names published weights rather than a run of ours."""
    return path.is_file() or (path / "config.json").is_file()


def published_encoder(path: Path, channels: int = 1) -> Encoder:
    """Return published weights in a backbone of ours, exactly. Raises WeightsError, SettingsError.

    channels  1: weights of three channels are folded into one, for grey images; 3: they keep them ((N, 3, h, w)
              images), and weights of another number have one. Those that a run of ours trained in colour keep them

    Its intensity is the file's own, else a window of soft tissue. That is a warning for weights of grey images: they
    were trained with an intensity that the file does not name.
    """
    return of_published(published.read(path), path.name, channels)


def of_published(found: Published, name: str, channels: int = 1) -> Encoder:
    """Return weights that were read as `published_encoder` does; name: what the encoder is called."""
    in_colour = channels == 3 and found.weights[f"{_PROJ}.weight"].shape[1] == 3 and not found.grey
    if found.intensity is not None:
        in_colour, intensity = found.intensity.channels == 3, found.intensity
    elif in_colour:
        intensity = replace(_ASSUMED, mean=found.mean, std=found.std)
    else:
        intensity = _ASSUMED
    config = _model_config(found, 3 if in_colour else 1)
    model = build.backbone(config)
    load(model, found, config, intensity)
    if found.intensity is None and (found.grey or found.weights["patch_embed.proj.weight"].shape[1] == 1):
        log.warning(
            "%s: does not say its intensity; assumed is %s, which may be wrong: name a run or a folder exported "
            "with its intensity to be sure",
            *(found.source, intensity_settings(intensity)),
        )
    whole = encoder.frozen(model, intensity, config, f"{name} ({found.kind})")
    if found.intensity is None and not in_colour:
        return whole
    # the same weights under another intensity give other features, which are kept by the digest
    digest = hashlib.sha256(f"{whole.digest} {intensity}".encode()).hexdigest()
    return replace(whole, digest=digest)


def _model_config(found: Published, channels: int) -> ModelConfig:
    """Return the architecture of the weights. Raises WeightsError where they do not say their number of heads."""
    if "num_heads" not in found.settings:
        raise WeightsError(unknown_heads(found))
    learned = found.settings["position"] == "learned"
    usual = {
        "mask_k_bias": not learned,  # DINOv3's; where a file has no such bias, nothing changes
        "norm_eps": architecture.usual_eps(found.settings["position"]),
    }
    return ModelConfig(
        **(usual | found.settings),
        patch_size=found.weights["patch_embed.proj.weight"].shape[-1],
        channels=channels,
        sequences=list(found.sequences),
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in found.weights else None,
    )


def sequence_rows(
    fresh: torch.Tensor, names: Sequence[str], given: torch.Tensor | None, given_names: Sequence[str]
) -> torch.Tensor:
    """Return (V, D) embeddings of `names`: the given ones by name, the others from `fresh`.

    The weights may name fewer sequences than the model, in another order, or none.
    """
    known = dict(zip(given_names, given)) if given is not None else {}
    return torch.stack([known.get(name, row) for name, row in zip(names, fresh)])


def one_channel(
    kernel: torch.Tensor, bias: torch.Tensor, theirs: Published, ours: Intensity
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold three channels into one: for a grey image that our normalisation gives, seen through theirs.

    kernel (D, 3, p, p) and bias (D,) become (D, 1, p, p) and (D,): the patch embedding of x is theirs of
    (x · std + mean), ours, three times, normalised with their mean and std. In float64, so that nothing is lost.
    """
    theirs_mean, theirs_std = (torch.tensor(each, dtype=torch.float64) for each in (theirs.mean, theirs.std))
    exact = kernel.double()
    factor, shift = ours.stds[0] / theirs_std, (ours.means[0] - theirs_mean) / theirs_std
    folded = torch.einsum("dcij,c->dij", exact, factor).unsqueeze(1)
    return folded.float(), (bias.double() + torch.einsum("dcij,c->d", exact, shift)).float()


def renormalised(
    kernel: torch.Tensor, bias: torch.Tensor, theirs: Published, ours: Intensity
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a patch embedding (D, 3, p, p), (D,) for our normalisation of three channels: theirs of the same image."""
    if (theirs.mean, theirs.std) == (ours.means, ours.stds):
        return kernel, bias
    their_mean, their_std = (torch.tensor(each, dtype=torch.float64) for each in (theirs.mean, theirs.std))
    mean, std = (torch.tensor(each, dtype=torch.float64) for each in (ours.means, ours.stds))
    exact = kernel.double()
    shift = torch.einsum("dcij,c->d", exact, (mean - their_mean) / their_std)
    return (exact * (std / their_std).view(1, -1, 1, 1)).float(), (bias.double() + shift).float()


def three_channels(
    kernel: torch.Tensor, bias: torch.Tensor, theirs: Intensity, ours: Intensity
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spread one channel evenly over three: a grey image, three times in ours, has the embedding that it had in theirs.

    kernel (D, 1, p, p) and bias (D,) become (D, 3, p, p) and (D,), each channel a third. Colours enter by their mean.
    """
    mean, std = (torch.tensor(each, dtype=torch.float64) for each in (ours.means, ours.stds))
    exact = kernel.double()
    spread = exact * (std / (3 * theirs.stds[0])).view(1, -1, 1, 1)
    shift = exact.sum(dim=(1, 2, 3)) * (mean.mean() - theirs.means[0]) / theirs.stds[0]
    return spread.float(), (bias.double() + shift).float()


def resample_kernel(kernel: torch.Tensor, size: int) -> torch.Tensor:
    """Resample (D, C, p, p) to (D, C, size, size) so that a resized patch gives the same embedding.

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
    """Name every setting that differs at once, as the overrides that mend it."""
    known = found.settings
    wanted = {
        name: known[name]
        for name in known
        if name not in ("num_heads", "ffn_ratio", "grid") and not _same(getattr(config, name), known[name])
    }
    if "ffn_ratio" in known:
        ratios = config.ffn_ratio, known["ffn_ratio"]
        given, theirs = (architecture.hidden(known["ffn"], known["embed_dim"], ratio) for ratio in ratios)
        wanted |= {"ffn_ratio": known["ffn_ratio"]} if given != theirs else {}
    if (config.grid is None) != (known.get("grid") is None):  # another grid than the file's is resampled
        wanted["grid"] = known.get("grid")
    if (config.layer_scale is not None) != ("blocks.0.ls1.gamma" in found.weights):
        wanted["layer_scale"] = 1e-5 if config.layer_scale is None else None
    if found.sequences and not config.sequences:
        wanted["sequences"] = list(found.sequences)
    heads = known.get("num_heads", config.num_heads)
    if (
        heads is not None
        and config.num_heads != heads
        and (config.num_heads is not None or known["embed_dim"] != 64 * heads)
    ):
        wanted["num_heads"] = heads
    if wanted:
        overrides = " ".join(f"model.{name}={_written(value)}" for name, value in wanted.items())
        more = "" if heads else " and model.num_heads, which the file does not hold"
        raise WeightsError(f"{found.source}: belongs to another model; set {overrides}{more}")
    if heads is None:
        raise WeightsError(unknown_heads(found))


def _warn_of_intensity(source: str, theirs: Intensity, ours: Intensity) -> None:
    pairs = [*zip(theirs.window, ours.window)]
    if theirs.channels == ours.channels == 1:  # else the patch embedding absorbs mean and deviation
        pairs += [(theirs.means[0], ours.means[0]), (theirs.stds[0], ours.stds[0])]
    if not all(math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) for one, other in pairs):
        log.warning(
            "%s: trained with %s, but here it is %s; the weights get other values than in their training",
            *(source, intensity_settings(theirs), intensity_settings(ours)),
        )


def intensity_settings(intensity: Intensity) -> str:
    """Return the settings of an intensity as a user writes them."""
    (low, high), several = intensity.window, intensity.channels > 1
    mean, std = (",".join(f"{each:g}" for each in values) for values in (intensity.means, intensity.stds))
    levels = (
        f"intensity.rgb_mean=[{mean}] intensity.rgb_std=[{std}]"
        if several
        else f"intensity.mean={mean} intensity.std={std}"
    )
    return f"intensity.window=[{low:g},{high:g}] {levels}"


def unknown_heads(found: Published) -> str:
    """Return the error line for weights that do not say their number of heads."""
    size = f"embed_dim={found.settings['embed_dim']}, depth={found.settings['depth']}"
    return f"{found.source}: cannot tell num_heads for {size}; set model.num_heads, or add config.json beside it"


def _written(value: object) -> str:
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
