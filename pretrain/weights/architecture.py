"""The architecture behind a file of weights: from shapes, the periods of its RoPE and the config.json beside it.

What these leave open comes from a table of published models, or stays open: heads are never guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from meddap.errors import MeddapError
from pretrain.model.layers import FEED_FORWARD
from pretrain.weights.naming import Tensors

_PERIODS = ("rope_embed.periods", "rope_embed.inv_freq", "rope_embeddings.inv_freq", "inv_freq")
_CONFIG = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps", "rope_theta": "rope_base"}
# relative tolerance of periods in each precision: two of its steps, or float32's rounding over a few operations
_PRECISIONS = ((torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float32, 1e-5))


def family(position: str) -> str:
    """Return whose architecture has these positions: "dinov3", rotary, or "dinov2", learned."""
    return "dinov3" if position == "rope" else "dinov2"


class WeightsError(MeddapError, ValueError):
    """A file of weights that cannot be used; one line that names it and says why."""


class DamagedError(WeightsError):
    """A file that must not be used, whatever its kind of model."""


@dataclass(frozen=True)
class Size:
    """Heads of a published size; `position` restricts it to one kind, `norm_eps` is set where it is not `usual_eps`."""

    heads: int
    position: str | None = None
    norm_eps: float | None = None


# (width, depth) of DINOv2, DINOv3 and FlexiCT; an MAE's ViT-H has 16 heads where DINOv3's H+ has 20
SIZES = {
    (192, 12): Size(3),
    (384, 12): Size(6),
    (768, 12): Size(12),
    (1024, 24): Size(16),
    (1280, 32): Size(20, "rope"),
    (1536, 40): Size(24, "learned"),
    (4096, 40): Size(32, "rope"),
    (432, 12): Size(6, "rope", 1e-6),
    (864, 16): Size(12, "rope", 1e-6),
    (1152, 24): Size(16, "rope", 1e-6),
}


def settings(source: str, weights: Tensors, described: dict) -> tuple[dict[str, Any], frozenset[str]]:
    """Return ModelConfig's settings for a file, and the names of those that come from the table alone.

    weights    under our names, derived buffers among them
    described  the configuration beside the weights, as transformers writes it; {} where there is none
    Raises WeightsError where the parts contradict each other.
    """
    found = _shapes(source, weights) | _attention(weights)
    width, depth, position = found["embed_dim"], found["depth"], found["position"]
    _check_described(source, weights, found, described)
    periods = _periods(weights) if position == "rope" else None
    given = _described_settings(source, width, described)
    if position != "rope":
        given.pop("rope_base", None)
    if periods is not None:
        given = _of_periods(source, width, periods) | given
        _check_agreement(source, width, periods, given)
    size = SIZES.get((width, depth))
    usual: dict[str, Any] = {}
    # MoCo's and MAE's have the same sizes with other heads; without LayerScale no model of the table
    if size is not None and size.position in (None, position) and "blocks.0.ls1.gamma" in weights:
        usual = {"num_heads": size.heads, "norm_eps": size.norm_eps or usual_eps(position)}
    return found | usual | given, frozenset(usual) - set(given)


def usual_eps(position: str) -> float:
    """Return the eps of the norms of DINOv2 (learned positions) or DINOv3 (rope)."""
    return 1e-6 if position == "learned" else 1e-5


def hidden(ffn: str, width: int, ratio: float) -> int:
    """Return the hidden channels of a feed-forward part, from `model.ffn_ratio`."""
    with torch.device("meta"):
        return len(next(FEED_FORWARD[ffn](width, int(width * ratio)).parameters()))


def base_of(periods: torch.Tensor) -> float | None:
    """Return the RoPE base b of (n,) periods b^(k / n), k = 0 … n − 1, with the fewest digits that give them.

    None for a single period, which any base has. Periods rounded to bfloat16 or float16, or computed in it, are held to
    its precision. Raises ValueError where no base gives the periods.
    """
    exact = periods.double()
    count = len(exact)
    if not bool((exact > 0).all()):
        raise ValueError("not above 0")
    if count == 1:
        if abs(float(exact[0]) - 1) > 1e-5:
            raise ValueError("a single period other than 1")
        return None
    places = torch.arange(count, dtype=torch.float64)
    estimate = math.exp(float((places * exact.log()).sum() / (places * places).sum()) * count)
    dtype, tolerance = next(each for each in _PRECISIONS if _rounded_to(each[0], exact))
    for digits in range(1, 8):
        base = float(f"{estimate:.{digits - 1}e}")
        if min(_apart(base, exact, torch.float64), _apart(base, exact, dtype)) <= tolerance:
            return base
    raise ValueError(f"the nearest base, {estimate:.4g}, gives others")


def _rounded_to(dtype: torch.dtype, periods: torch.Tensor) -> bool:
    """Whether the periods, or their inverses, are numbers of this type; every period counts as float32."""
    if dtype == torch.float32:
        return True
    return any(torch.allclose(each, each.to(dtype).double(), rtol=1e-6, atol=0) for each in (periods, 1 / periods))


def _apart(base: float, periods: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the largest relative difference from the base's periods, computed in `dtype` as DINOv3 does."""
    exponents = 2 * torch.arange(len(periods), dtype=dtype) / (2 * len(periods))
    return float(((base**exponents).double() / periods - 1).abs().max())


def _shapes(source: str, weights: Tensors) -> dict[str, Any]:
    width = weights["cls_token"].shape[-1]
    registers, places = weights.get("storage_tokens"), weights.get("pos_embed")
    ffn = "swiglu" if "blocks.0.mlp.w3.weight" in weights else "mlp"
    first = weights.get(f"blocks.0.mlp.{'w1' if ffn == 'swiglu' else 'fc1'}.weight")
    if first is None:
        raise WeightsError(f"{source}: blocks without DINO's feed-forward part (mlp.fc1 or mlp.w1); not supported")
    found: dict[str, Any] = {
        "embed_dim": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        "registers": 0 if registers is None else registers.shape[1],
        "position": "rope" if places is None else "learned",
        "ffn": ffn,
        "ffn_ratio": _ratio(ffn, width, len(first)),
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "local_norm": "local_cls_norm.weight" in weights,
    }
    if places is not None:
        found["grid"] = math.isqrt(places.shape[1] - 1)
        if found["grid"] ** 2 != places.shape[1] - 1:
            raise WeightsError(f"{source}: {places.shape[1]} positions are not a cls token and a square grid")
    return found


def _ratio(ffn: str, width: int, wide: int) -> float:
    ratio = wide / width * (1.5 if ffn == "swiglu" else 1.0)
    return ratio if hidden(ffn, width, ratio) >= wide else math.nextafter(ratio, math.inf)


def _attention(weights: Tensors) -> dict[str, Any]:
    """Return whether an existing bias of the keys counts: with RoPE it changes the features."""
    bias = weights.get("blocks.0.attn.qkv.bias")
    if bias is None or "pos_embed" in weights:
        return {}
    keys = (value.chunk(3)[1] for name, value in weights.items() if name.endswith(".attn.qkv.bias"))
    if not any(bool(key.any()) for key in keys):
        return {}
    return {"mask_k_bias": any(name.endswith("attn.qkv.bias_mask") for name in weights)}


def _described_settings(source: str, width: int, described: dict) -> dict[str, Any]:
    """Return the settings that config.json adds to the weights', checked on their own."""
    given = {theirs: described[theirs] for theirs in _CONFIG if described.get(theirs) is not None}
    for theirs, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise _contradiction(source, theirs, value, "a positive number is needed")
    heads = given.get("num_attention_heads", 1)
    if not isinstance(heads, int) or width % heads:
        raise _contradiction(source, "num_attention_heads", heads, f"a whole number that divides {width} is needed")
    return {_CONFIG[theirs]: value for theirs, value in given.items()}


def _check_described(source: str, weights: Tensors, found: dict[str, Any], described: dict) -> None:
    """Refuse a config.json that belongs to other weights; what it does not name, or names as null, is not compared."""
    kernel, gated = weights.get("patch_embed.proj.weight"), found["ffn"] == "swiglu"
    patch = None if kernel is None else kernel.shape[-1]
    held: dict[str, Any] = {
        "hidden_size": found["embed_dim"],
        "num_hidden_layers": found["depth"],
        "num_register_tokens": found["registers"],
        "intermediate_size": hidden(found["ffn"], found["embed_dim"], found["ffn_ratio"]),
        "use_gated_mlp": gated,
        "use_swiglu_ffn": gated,
        "qkv_bias": found["qkv_bias"],
    }
    if kernel is not None:
        held |= {"num_channels": kernel.shape[1], "patch_size": patch}
    if patch is not None and found["position"] == "learned":
        held["image_size"] = found["grid"] * patch
    for name, value in held.items():
        said = described.get(name)
        # an image whose sides are not multiples of the patch size is cut
        whole = said // patch * patch if name == "image_size" and isinstance(said, int) and patch else said
        if said is not None and whole not in (value, [value, value]):
            raise _contradiction(source, name, said, f"the weights have {_word(value)}")
    if "layerscale_value" in described or str(described.get("model_type")).startswith(("dinov2", "dinov3")):
        gains = [f"blocks.{block}.ls{number}.gamma" for block in range(found["depth"]) for number in (1, 2)]
        if lacking := [name for name in gains if name not in weights]:
            said = next(name for name in ("layerscale_value", "model_type") if name in described)
            raise _contradiction(source, said, described[said], f"the weights lack LayerScale ({lacking[0]})")
    # transformers' DINOv2 gates with SiLU whatever its hidden_act says
    wanted = None if gated and "use_gated_mlp" not in described else "silu" if gated else "gelu"
    if wanted and described.get("hidden_act") not in (None, wanted):
        raise WeightsError(
            f"{source}: config.json says hidden_act={described['hidden_act']!r}; only {wanted} is supported here, "
            f"take weights that were trained with {wanted}"
        )


def _contradiction(source: str, name: str, said: object, held: str) -> DamagedError:
    return DamagedError(
        f"{source}: config.json says {name}={_word(said)}, but {held}; put the weights' own config.json there"
    )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _periods(weights: Tensors) -> torch.Tensor | None:
    """Return (d / 4,) periods for heads of d channels, as the file holds them."""
    for name in _PERIODS:
        if (value := weights.get(name)) is not None:
            return 1 / value.float() if name.endswith("inv_freq") else value.flatten()
    return None


def _of_periods(source: str, width: int, periods: torch.Tensor) -> dict[str, Any]:
    each = 4 * len(periods)
    if width % each:
        raise WeightsError(f"{source}: {len(periods)} RoPE periods mean heads of {each} channels, but it has {width}")
    given: dict[str, Any] = {"num_heads": width // each}
    if not bool(periods.isfinite().all()):  # a buffer that was never filled: its length counts
        return given
    try:
        base = base_of(periods)
    except ValueError as error:
        raise WeightsError(f"{source}: its RoPE periods belong to no base ({error}); not supported") from error
    return given if base is None else given | {"rope_base": base}


def _check_agreement(source: str, width: int, periods: torch.Tensor, given: dict[str, Any]) -> None:
    by_file = _of_periods(source, width, periods)
    for name, value in by_file.items():
        if not math.isclose(given[name], value, rel_tol=1e-6):
            raise DamagedError(
                f"{source}: config.json says {name}={given[name]}, the RoPE periods {value:g}; "
                "put the weights' own config.json there"
            )
