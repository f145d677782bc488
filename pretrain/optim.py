"""AdamW with layer-wise decay of the learning rate, and the teacher as the student's moving average."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pretrain.runtime.distributed import local, whole


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 for embeddings and tokens, 1 … depth for the blocks, depth + 1 for all others.

    The embedding of sequences is among the others, as MM-DINOv2 has it.
    """
    name = name.removeprefix("backbone.")
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    embeddings = ("patch_embed.", "cls_token", "storage_tokens", "mask_token", "pos_embed")
    return 0 if name.startswith(embeddings) else depth + 1


def multipliers(name: str, depth: int, layer_decay: float, patch_embed_multiplier: float) -> dict:
    """Return lr_multiplier, wd_multiplier and is_last_layer of one parameter, as DINOv3 sets them.

    Biases, norms and LayerScale have no weight decay. A head's prototypes are a last layer.
    """
    rate = layer_decay ** (depth + 1 - layer_of(name, depth))
    if "patch_embed" in name:
        rate *= patch_embed_multiplier
    spared = name.endswith(".bias") or "norm" in name or "gamma" in name
    return {
        "lr_multiplier": rate,
        "wd_multiplier": 0.0 if spared else 1.0,
        "is_last_layer": "last_layer" in name,
    }


def build_groups(
    named: Iterable[tuple[str, nn.Parameter]], depth: int, layer_decay: float, patch_embed_multiplier: float
) -> list[dict]:
    """Group the parameters that share their multipliers: params, names and the multipliers of each group."""
    groups: dict[tuple, dict] = {}
    for name, parameter in named:
        factors = multipliers(name, depth, layer_decay, patch_embed_multiplier)
        group = groups.setdefault(tuple(factors.values()), {"params": [], "names": [], **factors})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def adamw(groups: list[dict], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW, one fused kernel per group; `set_step` gives learning rate and weight decay before each step."""
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, betas=betas, fused=True)


def set_step(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, freeze_last_layer: bool) -> None:
    """Set learning rate and weight decay of this step in every group, by its multipliers."""
    for group in optimizer.param_groups:
        frozen = freeze_last_layer and group["is_last_layer"]
        group["lr"] = 0.0 if frozen else lr * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["wd_multiplier"]


def clip(model: nn.Module, limit: float) -> dict[str, torch.Tensor]:
    """Clip the gradient norm of each part (backbone, heads) on its own; return the norms before clipping."""
    return {
        name: whole(nn.utils.clip_grad_norm_(part.parameters(), limit, foreach=True))
        for name, part in model.named_children()
    }


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 − momentum) · student, in one multi-tensor call; buffers are copied.

    Where networks are sharded, each rank moves its own shard.
    """
    ours, theirs = ([local(p.detach()) for p in model.parameters()] for model in (teacher, student))
    torch._foreach_lerp_(ours, theirs, 1 - momentum)
    for kept, fresh in zip(teacher.buffers(), student.buffers()):
        kept.copy_(fresh)
