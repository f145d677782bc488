"""Peak rates of a machine, measured now: matrix products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_SIZES = {"cuda": 8192, "cpu": 1536}  # of square matrices: large enough for the rate to level off
_COPIED = {"cuda": 1 << 30, "cpu": 1 << 27}  # bytes
_ROUNDS = 5


def products(device: str, precision: str, size: int | None = None) -> float:
    """Operations a second of square matrix products, `precision` being bf16, float32 or tf32: the best of five."""
    kind = torch.device(device).type
    size, dtype = size or _SIZES[kind], torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out, before = torch.empty_like(one), torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        return 2.0 * size**3 / min(taken(lambda: torch.mm(one, other, out=out), device) for _ in range(_ROUNDS))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copies(device: str) -> float:
    """Bytes a second read and written by copying within the memory: the best of five."""
    source = torch.ones(_COPIED[torch.device(device).type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * len(source) / min(taken(lambda: target.copy_(source), device) for _ in range(_ROUNDS))


def taken(work: Callable[[], object], device: str | torch.device, least: float = 0.05) -> float:
    """Seconds that `work` takes, mean of as many calls as make up `least` seconds, after one to warm up."""
    finish = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    work()
    finish()
    count, spent = 1, 0.0
    while True:
        began = time.perf_counter()
        for _ in range(count):
            work()
        finish()
        spent = time.perf_counter() - began
        if spent >= least:
            return spent / count
        count = max(2 * count, int(count * least / max(spent, 1e-9)) + 1)
