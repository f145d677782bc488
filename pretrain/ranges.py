"""The range of each number of a configuration, as a table.

A probability of 2, a scale from large to small or a negative loss weight would otherwise change what is learned, or end
in an error somewhere else that names neither key nor value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from meddap.settings import SettingsError


class Allowed(NamedTuple):
    """From `low` to `high`, without `low` itself where it is `above`; a list has `length` numbers, `rising` ones."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    length: int | None = None
    rising: bool = False

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            each = "finite numbers" if self.length else "a finite number"
        elif math.isinf(self.high):
            each = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        else:
            each = f"above {self.low:g}, up to {self.high:g}" if self.above else f"from {self.low:g} to {self.high:g}"
        if self.length is None:
            return each
        return f"{self.length} numbers, {each}" + ", the first not above the second" * self.rising


_SHARE = Allowed(0, 1)
_POSITIVE = Allowed(0, above=True)
_COUNT = Allowed(1)
_WEIGHT = Allowed(0)
_RANGE = Allowed(0, above=True, length=2, rising=True)

MODEL = {
    "data.labelled_share": Allowed(0, 1, above=True),
    "intensity.window": Allowed(length=2, rising=True),
    "intensity.mean": Allowed(),
    "intensity.std": _POSITIVE,
    "model.patch_size": _COUNT,
    "model.embed_dim": _COUNT,
    "model.depth": _COUNT,
    "model.num_heads": _COUNT,
    "model.ffn_ratio": _POSITIVE,
    "model.registers": _WEIGHT,
    "model.grid": _COUNT,
    "model.layer_scale": _POSITIVE,
    "model.norm_eps": _POSITIVE,
    "model.drop_path": Allowed(0, 0.99),
    "model.rope_base": Allowed(1, above=True),
    "model.rope_rescale": _COUNT,
    **{
        f"{head}.{key}": Allowed(2) if key == "prototypes" else _COUNT
        for head in ("dino_head", "ibot_head")
        for key in ("prototypes", "hidden_dim", "bottleneck_dim", "layers")
    },
    "save.every": _COUNT,
    "save.keep_last": _COUNT,
    "save.keep_every": _WEIGHT,
    "knn.every": _WEIGHT,
    "knn.train_slices": _COUNT,
    "knn.val_slices": _COUNT,
    "knn.k": _COUNT,
    "knn.temperature": _POSITIVE,
    "machine.accumulate": _COUNT,
    "machine.hang_timeout": _WEIGHT,
    "machine.decode_threads": _COUNT,
    "machine.prefetch": _WEIGHT,
    "machine.log_every": _COUNT,
}
STAGE = {
    "batch_size": _COUNT,
    "crops.global_size": _COUNT,
    "crops.local_size": _COUNT,
    "crops.local_number": _WEIGHT,
    "crops.global_scale": Allowed(0, 1, above=True, length=2, rising=True),
    "crops.local_scale": Allowed(0, 1, above=True, length=2, rising=True),
    "crops.aspect": _RANGE,
    "crops.min_body": _SHARE,
    "crops.body_threshold_hu": Allowed(),
    "crops.candidates": _COUNT,
    "crops.flip": _SHARE,
    "augment.window_shift": _WEIGHT,
    "augment.mr_shift": _WEIGHT,
    "augment.window_stretch": Allowed(0, 0.99),
    "augment.noise_p": _SHARE,
    "augment.noise_std": _WEIGHT,
    "augment.blur_p": Allowed(0, 1, length=3),
    "augment.blur_sigma": Allowed(0, length=2, rising=True),
    "augment.gamma_p": Allowed(0, 1, length=3),
    "augment.gamma": _RANGE,
    "augment.slice.noise_p": _SHARE,
    "augment.slice.noise_std": _WEIGHT,
    "augment.slice.smooth_p": _SHARE,
    "augment.slice.smooth_sigma": Allowed(0, length=2, rising=True),
    "augment.slice.scale_p": _SHARE,
    "augment.slice.scale": Allowed(0, 1),
    "augment.slice.low_resolution_p": _SHARE,
    "augment.slice.low_resolution": Allowed(0, 1, above=True, length=2, rising=True),
    "augment.slice.gamma_p": _SHARE,
    "augment.slice.gamma": _RANGE,
    "masks.probability": _SHARE,
    "masks.ratio": Allowed(0, 1, length=2, rising=True),
    "masks.min_aspect": Allowed(0, 1, above=True),
    "masks.sequence_probability": _SHARE,
    "masks.sequence_count": _COUNT,
    "loss.dino": _WEIGHT,
    "loss.ibot": _WEIGHT,
    "loss.koleo": _WEIGHT,
    "loss.koleo_group": Allowed(2),  # one image has no neighbour
    "loss.classes": _WEIGHT,
    "loss.label_smoothing": Allowed(0, 0.99),
    "loss.class_temp": _POSITIVE,
    "loss.student_temp": _POSITIVE,
    "loss.sinkhorn_iterations": _COUNT,
    "loss.centre_momentum": Allowed(0, 0.99999),
    "gram.size": _COUNT,
    "gram.refresh_every": _WEIGHT,
    "gram.refresh_most": _COUNT,
    "optim.betas": Allowed(0, 0.99999, length=2),
    "optim.clip": _POSITIVE,
    "optim.layer_decay": Allowed(0, 1, above=True),
    "optim.patch_embed_multiplier": _WEIGHT,
    "optim.freeze_last_layer_steps": _WEIGHT,
    "optim.freeze_backbone_steps": _WEIGHT,
}
PAIR = {"ratio": _POSITIVE, "global_size": _COUNT, "local_size": _COUNT, "gram_size": _COUNT}


def check(where: str, tree: object, table: Mapping[str, Allowed]) -> None:
    """Raise SettingsError for the first setting outside its range; null is passed over.

    where  prefix of the keys: "" or "stages.NAME."
    """
    for key, allowed in table.items():
        value = _at(tree, key)
        if value is not None and not _fits(value, allowed):
            raise SettingsError(f"{where}{key}={value}: expected {allowed}")


def _at(tree: object, key: str) -> Any:
    for name in key.split("."):
        tree = getattr(tree, name, None)
    return tree


def _fits(value: Any, allowed: Allowed) -> bool:
    numbers: list[float] = list(value) if isinstance(value, list) else [value]
    if allowed.length not in (None, len(numbers)):
        return False
    # written so that NaN fits nowhere
    inside = all(
        math.isfinite(each) and (allowed.low < each if allowed.above else allowed.low <= each) and each <= allowed.high
        for each in numbers
    )
    return inside and (not allowed.rising or _rises(numbers, strictly=math.isinf(allowed.low)))


def _rises(numbers: list[float], strictly: bool) -> bool:
    """Return whether a pair rises: a window strictly, since an empty one holds no value."""
    return numbers[0] < numbers[1] if strictly else numbers[0] <= numbers[1]
