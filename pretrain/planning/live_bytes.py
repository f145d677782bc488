"""How many bytes of tensors there are at a time, told from every operation."""

from __future__ import annotations

import math
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU_BLOCK = 512  # bytes that PyTorch's allocator for GPUs rounds up to


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made within it and still there.

    now       as far as it is; peak: the most there has been
    kept      when the first backward pass began; None before
    block     bytes that a tensor's memory is rounded up to
    """

    def __init__(self, block: int = GPU_BLOCK) -> None:
        super().__init__()
        self.block, self.now, self.peak, self.kept = block, 0, 0, None
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
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
