"""Memory of the C library that a process keeps once it has it.

A training step on a CPU allocates its activations anew. By default the C library maps large blocks from the system and
gives them back at once, so that every step pays for half a million pages of zeros: a fifth of its time
(benchmarks/LOG.md).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's <malloc.h>
_NEVER = -1
_LARGEST = 1 << 30  # bytes of a block that is kept


def keep_memory() -> bool:
    """Whether the C library now keeps freed blocks for the next step; False where it has no such setting."""
    try:
        setting = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(setting(_MMAP_THRESHOLD, _LARGEST) and setting(_TRIM_THRESHOLD, _NEVER))
