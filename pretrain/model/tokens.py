"""Samples of several lengths in one row of tokens: crops of every size go through a network in one call.

Linear layers, norms and feed-forward parts work on each token alone, so that they take the row as it is; attention
takes it run by run, or all at once behind a block-diagonal bias (`pretrain/model/attention.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pretrain.rope import Rotation


class Run(NamedTuple):
    """`count` samples of `length` tokens each, one after the other."""

    count: int
    length: int


def length(runs: Sequence[Run]) -> int:
    """How many tokens runs have together."""
    return sum(run.count * run.length for run in runs)


@dataclass(frozen=True)
class Packing:
    """How samples lie in a row of tokens.

    runs       from the row's start to its end
    rotations  of each run: (length, head_dim) as RoPE gives them, or None where positions are learned
    bias       what a block-diagonal kernel needs to keep samples apart, or None
    """

    runs: tuple[Run, ...]
    rotations: tuple[Rotation | None, ...]
    bias: Any = None


def pack(groups: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple[Run, ...]]:
    """(N, T, …) tensors, each with its own N and T → (ΣN·T, …) row and the runs in it."""
    runs = tuple(Run(*group.shape[:2]) for group in groups)
    rows = [group.flatten(0, 1) for group in groups]
    return rows[0] if len(rows) == 1 else torch.cat(rows), runs


def unpack(row: torch.Tensor, runs: Sequence[Run]) -> list[torch.Tensor]:
    """The (N, T, …) views of a row, one for each run."""
    parts = row.split([run.count * run.length for run in runs])
    return [part.unflatten(0, run) for part, run in zip(parts, runs)]
