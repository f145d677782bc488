"""Bytes of live tensors at any time, counted at every operation."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU_BLOCK = 512  # bytes that PyTorch's allocator for GPUs rounds up to


class Live(TorchDispatchMode):
    """Bytes of the tensors that were made within it and are alive.

    now       at this moment; peak, the most so far
    kept      when the first backward pass began; None before
    block     bytes to whose multiples a tensor's memory is rounded up
    """

    def __init__(self, block: int = GPU_BLOCK) -> None:
        super().__init__()
        self.block, self.now, self.peak = block, 0, 0
        self.kept: int | None = None
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.kept is None and torch._C._current_graph_task_id() >= 0:
            self.kept = self.now
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, torch.Tensor):
                self._seen(each.untyped_storage(), 0)  # it was there before
        given = func(*args, **(kwargs or {}))
        for each in tree_leaves(given):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self._seen(storage, math.ceil(storage.nbytes() / self.block) * self.block)
        return given

    def _seen(self, storage: torch.UntypedStorage, size: int) -> None:
        place = id(storage)  # a storage is one Python object as long as it lives
        if place in self._sizes:
            return
        self._sizes[place] = size
        self.now += self._sizes[place]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, place)

    def _gone(self, place: int) -> None:
        self.now -= self._sizes.pop(place)
