"""The teacher as the exponential moving average of the student."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 − momentum) · student, in one multi-tensor call; buffers are copied."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)
    for kept, fresh in zip(teacher.buffers(), student.buffers()):
        kept.copy_(fresh)
