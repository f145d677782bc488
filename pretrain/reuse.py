"""Large arrays whose memory is used again: of the system, new memory costs a page fault for every 4 kB of it."""

from __future__ import annotations

import math
import weakref

import numpy as np


class Reuse:
    """Hands out arrays of one type; when nobody holds one any more, its memory serves the next that is asked for.

    As much memory is kept as was in use at once. Any thread may ask.
    """

    def __init__(self, dtype: type) -> None:
        self.dtype = np.dtype(dtype)
        self._free: list[np.ndarray] = []

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of its holder's alone, with any values in it. Hold the array itself, or a tensor of it: no slice."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, self.dtype)
        if len(memory) < size:
            memory = np.empty(size, self.dtype)
        array = memory[:size].reshape(shape)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array
