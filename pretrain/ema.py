"""The teacher as the exponential moving average of the student."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.runtime.distributed import local


@torch.no_grad()
def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 − momentum) · student, in one multi-tensor call; buffers are copied.

    Of sharded networks each rank moves its own shard.
    """
    kept, fresh = ([local(p.detach()) for p in model.parameters()] for model in (teacher, student))
    torch._foreach_lerp_(kept, fresh, 1 - momentum)
    for kept, fresh in zip(teacher.buffers(), student.buffers()):
        kept.copy_(fresh)
