"""Published weights of other projects, under our names.

Known are Meta's files of DINOv2 and DINOv3 (a backbone alone, or a teacher's with prefixes, as MedDINOv3 and FlexiCT
hand them out), MM-DINOv2's with its sequences, Hugging Face's folders of both, and timm's vision transformers. The kind
shows in the keys. Files are read without executing anything that they hold.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pretrain.data.intensity import Intensity
from pretrain.weights import architecture, naming
from pretrain.weights.architecture import DamagedError, WeightsError
from pretrain.weights.naming import Tensors

log = logging.getLogger("pretrain")

MM_DINOV2 = ("t1", "t1c", "t2", "flair")  # the order of its embedding's rows
NAMES = ("model.safetensors", "pytorch_model.bin")  # of the weights in a folder, by preference
_SHARDED = "model.safetensors.index.json"
_CLS = "cls_token"
# of several networks in one file the one to take: an average of weights before what was averaged
_PREFERRED = ("teacher", "ema", "model", "backbone", "")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Published:
    """A backbone's weights as our VisionTransformer names them, the patch embedding with all its channels.

    kind       huggingface, meta or timm
    settings   of the model, under ModelConfig's names: from the weights, config.json or the table of published models
    usual      names of the settings that come from that table alone
    sequences  names of the rows of the sequence embedding; () where there is none
    grey       three channels see the same grey image as it is, not a normalisation of it
    mean, std  of each channel, of images between 0 and 1, as the weights expect them normalised
    intensity  how HU became the input of weights that we trained; None where the file does not say
    """

    source: str
    kind: str
    weights: Tensors
    settings: dict[str, Any] = field(default_factory=dict)
    usual: frozenset[str] = frozenset()
    sequences: tuple[str, ...] = ()
    grey: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    intensity: Intensity | None = None


def read(path: str | Path) -> Published:
    """Return the weights in a file or in a Hugging Face folder. Raises WeightsError."""
    path = Path(path)
    tensors = _unwrapped(path, tensors_of(path))
    root, embedded = _root(path, tensors)
    mine = {name[len(root) :]: value for name, value in tensors.items() if name.startswith(root)}
    kind = naming.kind_of(mine, embedded)
    ours = naming.renamed(mine, kind)
    _check_finite(path, root, mine, ours)
    weights = naming.one_matrix(ours)
    if not any(name.startswith("blocks.0.attn.qkv.") for name in weights):
        raise WeightsError(
            f"{path}: a cls token, but no attention blocks of a known kind; its keys begin {_some(mine)}"
        )
    grey, beside = "sequence_embed.weight" in weights, _beside(path)
    sequences = _sequences(path, weights)
    tidy = _tidied(weights)
    settings, usual = architecture.settings(str(path), weights | tidy, _described(beside / "config.json"))
    intensity = _intensity(beside)
    own = intensity is not None and intensity.channels == 3  # ours, in whose processor pictures or HU may be meant
    mean, std = (intensity.means, intensity.stds) if intensity is not None and own else normalisation(beside)
    return Published(str(path), kind, tidy, settings, usual, sequences, grey, mean, std, intensity)


def _beside(path: Path) -> Path:
    """Return the folder with the weights' configuration: the one around a file with one of Hugging Face's names."""
    return path.parent if path.name in NAMES and path.is_file() else path


def normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel from transformers' or timm's file in a folder, else ImageNet's.

    Raises WeightsError for values that cannot be either, and for images that are not scaled to 0 … 1 before.
    """
    config, (processor, said) = path / "config.json", _processor(path)
    timm = _described(config).get("pretrained_cfg") or {}
    if not isinstance(timm, dict):
        raise DamagedError(f"{config}: pretrained_cfg={timm!r}, but an object is needed; copy the model's own again")
    given = {
        "mean": _channels(processor, said, "image_mean") or _channels(config, timm, "mean") or IMAGENET_MEAN,
        "std": _channels(processor, said, "image_std") or _channels(config, timm, "std") or IMAGENET_STD,
    }
    if config.is_file() and not (said.get("image_mean") or timm.get("mean")) and said.get("do_normalize") is not False:
        log.warning(
            "%s: says no mean and deviation of images; ImageNet's are taken, which may be wrong: copy the model's "
            "preprocessor_config.json beside its weights",
            path,
        )
    if len(given["mean"]) > 1:  # ours of one channel are of HU, which nothing scales
        _check_rescaling(processor, said)
    if said.get("do_normalize") is False:
        given = {"mean": (0.0,) * len(given["mean"]), "std": (1.0,) * len(given["std"])}
    return given["mean"], given["std"]


def _processor(path: Path) -> tuple[Path, dict]:
    """Return what a folder says of its image processor, and the file: a processor of images and texts that transformers
    writes since version 5 holds that of images."""
    alone, both = path / "preprocessor_config.json", path / "processor_config.json"
    if not alone.is_file() and isinstance(inner := _described(both).get("image_processor"), dict):
        return both, inner
    return alone, _described(alone)


def _channels(path: Path, said: dict, key: str) -> tuple[float, ...] | None:
    """Return the finite numbers under a key, one per channel, above 0 for a deviation, or None where it is missing."""
    values = said.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or not values or not all(_is_finite(each) for each in values):
        raise DamagedError(f"{path}: {key}={values!r}; give a list of one finite number for each channel")
    if key.endswith("std") and min(values) <= 0:
        raise DamagedError(f"{path}: {key}={values!r}; a standard deviation is above 0, correct it")
    return tuple(values)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_rescaling(path: Path, said: dict) -> None:
    flag, factor = said.get("do_rescale"), said.get("rescale_factor")
    if flag not in (None, True):
        raise WeightsError(f"{path}: do_rescale={flag!r}; only models of images between 0 and 1 can be read")
    if factor is not None and not (_is_finite(factor) and math.isclose(factor, 1 / 255, rel_tol=1e-3)):
        raise WeightsError(f"{path}: rescale_factor={factor!r}; only 1/255 (0.00392…) can be read, as for 0 … 1")


def _intensity(folder: Path) -> Intensity | None:
    """Return what our export wrote into config.json, checked."""
    path = folder / "config.json"
    said = _described(path).get("meddap")
    if said is None:
        return None
    window: Any
    mean: Any
    std: Any
    window, mean, std = (said.get(key) for key in ("window", "mean", "std")) if isinstance(said, dict) else (None,) * 3
    means, stds = (each if isinstance(each, list) else [each] for each in (mean, std))
    if (
        not isinstance(window, list)
        or len(window) != 2
        or (len(means), len(stds)) not in ((1, 1), (3, 3))
        or not all(_is_finite(each) for each in (*window, *means, *stds))
        or not (window[0] < window[1] and min(stds) > 0)
    ):
        raise DamagedError(f"{path}: meddap={said!r}; needs window [low, high], low < high, mean and std > 0")
    ends = float(window[0]), float(window[1])
    if len(means) == 1:
        return Intensity(ends, float(means[0]), float(stds[0]))
    return Intensity(ends, tuple(map(float, means)), tuple(map(float, stds)))


def _described(path: Path) -> dict:
    try:
        said = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise DamagedError(f"{path}: not valid JSON ({error}); copy it again") from error
    if not isinstance(said, dict):
        raise DamagedError(f"{path}: holds a {type(said).__name__}, not a JSON object; copy it again")
    return said


def tensors_of(path: Path) -> Tensors:
    """Return all tensors of a file or folder, nested dictionaries flattened."""
    if path.is_dir():
        return {key: value for file in files(path) for key, value in tensors_of(file).items()}
    if not path.is_file():
        raise WeightsError(f"{path}: not found; name a file of weights or a folder with config.json")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedError(
            f"{path}: holds more than weights, or is not a file of weights; only plain tensors are loaded"
        ) from error
    except Exception as error:  # of a file that is no pickle, its reader raises whatever its bytes happen to mean
        raise DamagedError(f"{path}: damaged or cut short ({type(error).__name__}); copy it again") from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}, not names and tensors")
    return dict(_flat("", loaded))


def files(path: Path) -> list[Path]:
    """Return the files with the weights of a file or folder. Raises WeightsError where a folder has none."""
    if not path.is_dir():
        return [path]
    index = path / _SHARDED
    if index.is_file():
        placed = _described(index).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise DamagedError(f"{index}: weight_map names no file for each tensor; copy it again")
        names = sorted(set(placed.values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise WeightsError(f"{index}: names {strange[0]!r}, which is not a file beside it")
        return [path / name for name in names]
    for name in NAMES:
        if (path / name).is_file():
            return [path / name]
    raise WeightsError(f"{path}: holds none of {', '.join((_SHARDED, *NAMES))}")


def _flat(prefix: str, tree: dict) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value


def _unwrapped(path: Path, tensors: Tensors) -> Tensors:
    found: Tensors = {}
    for name, value in tensors.items():
        if (short := naming.unwrapped(name)) in found:
            raise WeightsError(f"{path}: holds {short} twice, with and without a wrapper; save one network")
        found[short] = value
    return found


def _check_finite(path: Path, root: str, mine: Tensors, ours: Tensors) -> None:
    """Raise DamagedError for NaN or infinity, except in derived buffers and heads, which are not read."""
    for (name, value), new in zip(mine.items(), ours):
        if naming.kept(new) and not bool(value.float().isfinite().all()):
            raise DamagedError(f"{path}: {root}{name} holds NaN or infinity; copy it again or take another checkpoint")


def _root(path: Path, tensors: Tensors) -> tuple[str, bool]:
    """Return the prefix of a backbone's names, and whether its tokens are in `embeddings.`"""
    found = [name[: -len(_CLS)] for name in tensors if name == _CLS or name.endswith(f".{_CLS}")]
    if not found:
        raise WeightsError(f"{path}: no cls token, so not a known vision transformer; its keys begin {_some(tensors)}")

    def rank(prefix: str) -> int:
        return next((place for place, word in enumerate(_PREFERRED) if word in prefix), len(_PREFERRED))

    best = min(found, key=lambda prefix: ("student" in prefix, rank(prefix), prefix))
    embedded = best.endswith("embeddings.")
    return best.removesuffix("embeddings."), embedded


def _tidied(weights: Tensors) -> Tensors:
    """Return the weights without heads and derived buffers, in our shapes."""
    tidy = {name: value.float() for name, value in weights.items() if naming.kept(name)}
    if "mask_token" in tidy:
        tidy["mask_token"] = tidy["mask_token"].reshape(1, -1)
    else:  # not part of what timm hands out: a masked patch starts from nothing
        tidy["mask_token"] = torch.zeros(1, tidy[_CLS].shape[-1])
    places = tidy.get("pos_embed")
    if places is not None and round(places.shape[1] ** 0.5) ** 2 == places.shape[1]:
        # positions of the patches alone: the cls token has none
        tidy["pos_embed"] = torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)
    if "storage_tokens" in tidy and tidy["storage_tokens"].shape[1] == 0:
        del tidy["storage_tokens"]
    return tidy


def _sequences(path: Path, weights: Tensors) -> tuple[str, ...]:
    """Return the names of a sequence embedding's rows: ours have names, MM-DINOv2's files do not."""
    rows = weights.get("sequence_embed.weight")
    if rows is None:
        names = [name for name in weights if name.startswith("sequence_embed.")]
        if names:
            weights["sequence_embed.weight"] = torch.stack([weights.pop(name) for name in names])
        return tuple(name.partition(".")[2] for name in names)
    if len(rows) != len(MM_DINOV2):
        raise WeightsError(f"{path}: embeds {len(rows)} sequences; MM-DINOv2's are {', '.join(MM_DINOV2)}")
    return MM_DINOV2


def _some(tensors: Tensors) -> str:
    return ", ".join(list(tensors)[:3]) + (" …" if len(tensors) > 3 else "")
