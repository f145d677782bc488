"""Memory that a process keeps once it has it: freed blocks of the C library, and a pool of arrays.

A training step on a CPU allocates its activations anew. By default the C library maps large blocks from the system and
gives them back at once, so that every step pays for half a million pages of zeros: a fifth of its time
(benchmarks/LOG.md).
"""

from __future__ import annotations

import ctypes
import math
import weakref

import numpy as np
import numpy.typing as npt

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's <malloc.h>
_NEVER = -1
_LARGEST = 1 << 30  # bytes of a block that is kept


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks for the next step; False where it has no such setting."""
    try:
        setting = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(setting(_MMAP_THRESHOLD, _LARGEST) and setting(_TRIM_THRESHOLD, _NEVER))


class ArrayPool:
    """A pool of reusable arrays of one type: fresh memory costs a page fault per 4 kB.

    When nobody holds an array any more, its memory serves the next request. As much memory is kept as was in use at
    once. Safe to use from several threads.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._free: list[np.ndarray] = []

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialised array that nobody else holds.

        Keep the array itself, or a tensor of it, for as long as its memory is in use: a slice does not count.
        """
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
