"""Tensors of which every rank has a part (DTensor), and those that are whole: one way to look at both.

PyTorch's parts that know shards take most of a second to import, so that a run without shards does not import them.
"""

from __future__ import annotations

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each rank has a part of it."""
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies on this rank; all of it where it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, gathered from every rank's part where it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def divided(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every rank has, as `like` is: on its device, and of its shards this rank's."""
    full = full.to(like.device)
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
