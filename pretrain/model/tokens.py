"""What goes into a vision transformer and what comes out, and how tokens of many samples lie in one row.

    Crops (images of one size) → a row of tokens of all crops → Features, or SelectedFeatures where some are read

Crops of every size go through a network in one call. Linear layers, norms and feed-forward parts work on each token
alone, so they take the row as it is; attention takes it run by run, or all at once behind a block-diagonal bias
(`pretrain/model/attention.py`). Samples with equally many sequences make one run, so an absent sequence costs nothing
and nobody attends to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pretrain.model.positions import Rotation


@dataclass(frozen=True)
class Features:
    """Tokens after the final norm.

    cls        (N, D)
    registers  (N, R, D)
    patches    (M, P, D) of each present sequence of each sample, in row-major order of `present`; patches row by row.
               M is N where there is one sequence, N·S where all are present
    present    (N, S) bool on the host, or None: all
    """

    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor
    present: torch.Tensor | None = None

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """Return (n, D) the patch tokens at some of the M·P places (`masking.Masked.places`)."""
        return self.patches.flatten(0, 1)[places]

    def merged(self) -> torch.Tensor:
        """Return (N, P, D) patches, the mean over each sample's sequences."""
        count = len(self.cls)
        if self.present is None or bool(self.present.all()):
            return self.patches.unflatten(0, (count, -1)).mean(dim=1) if len(self.patches) > count else self.patches
        owner = self.present.nonzero()[:, 0].to(self.patches.device)
        total = self.patches.new_zeros(count, *self.patches.shape[1:]).index_add_(0, owner, self.patches)
        return total / self.present.sum(dim=1).to(total).view(-1, 1, 1)


@dataclass(frozen=True)
class SelectedFeatures:
    """Tokens that are read, after the final norm: cls (N, D), and patches (n, D) at `Crops.read_tokens`."""

    cls: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class Crops:
    """Images of one size, one part of a packed call.

    images       (N, S·C, h, w): S sequences of C channels (S = 1 where the model knows no sequences); h and w are
                 multiples of the patch size
    mask         (N, S·P) bool, patches that the mask token replaces, or None
    local        they are local crops, whose cls token and registers have a norm of their own in training
    drop         (depth, 2, N) uniform numbers in [0, 1) on the host for drop path; needed in training where there is
                 any
    rope_scale   factors of RoPE's coordinates, one for all blocks or one for each; needed in training where the model
                 has `rope_rescale`
    present      (N, S) bool on the host, which sequences a sample has, or None: all. The pixels of absent ones are
                 ignored
    sequences    names of the S sequences; (): all that the model knows, in its order
    read_tokens  (n,) int64 on the host: which patches are read beside the cls tokens (places of Features.at), so that
                 the last block's other tokens are not computed; None: everything is
    """

    images: torch.Tensor
    mask: torch.Tensor | None = None
    local: bool = False
    drop: torch.Tensor | None = None
    rope_scale: tuple[float, ...] | None = None
    present: torch.Tensor | None = None
    sequences: tuple[str, ...] = ()
    read_tokens: torch.Tensor | None = None


class Run(NamedTuple):
    """`samples` samples of `length` tokens each, one after the other."""

    samples: int
    length: int


def length(runs: Sequence[Run]) -> int:
    """Return how many tokens runs have together."""
    return sum(run.samples * run.length for run in runs)


@dataclass(frozen=True)
class Packing:
    """How samples lie in a row of tokens.

    runs       from the row's start to its end
    rotations  of each run: (length, head_dim) as RoPE gives them, or None where positions are learned
    bias       what a block-diagonal kernel needs to keep samples apart (its type is the kernel's), or None
    """

    runs: tuple[Run, ...]
    rotations: tuple[Rotation | None, ...]
    bias: Any = None


def pack(groups: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple[Run, ...]]:
    """Pack (N, T, …) tensors, each with its own N and T, into a (ΣN·T, …) row; return it and its runs."""
    runs = tuple(Run(group.shape[0], group.shape[1]) for group in groups)
    rows = [group.flatten(0, 1) for group in groups]
    return rows[0] if len(rows) == 1 else torch.cat(rows), runs


def unpack(row: torch.Tensor, runs: Sequence[Run]) -> list[torch.Tensor]:
    """Return the (N, T, …) views of a row, one for each run."""
    parts = row.split([run.samples * run.length for run in runs])
    return [part.unflatten(0, run) for part, run in zip(parts, runs)]


@dataclass(frozen=True)
class Layout:
    """How the M images of N samples lie in a row, an image being one sequence of one sample.

    runs    (samples, sequences of each), fewest sequences first
    order   (N,) the sample at each place of the row, and `back` (N,) the place of each sample
    take    (M,) the image at each place, counted among all N·S, and `images_back` (M,) the place of each present image
    All four are None where every sample has all sequences: then the row is as they come.
    """

    runs: tuple[tuple[int, int], ...]
    order: torch.Tensor | None = None
    back: torch.Tensor | None = None
    take: torch.Tensor | None = None
    images_back: torch.Tensor | None = None


def layout(present: torch.Tensor | None, count: int, sequences: int) -> Layout:
    """Return the layout of `count` samples with the sequences that `present`, (N, S) bool on the host, marks.

    present  None: every sample has all sequences
    Raises ValueError for a sample without any.
    """
    if present is None or bool(present.all()):
        return Layout(((count, sequences),))
    numbers = present.sum(dim=1)
    if not bool(numbers.all()):
        raise ValueError("a sample has none of the sequences that the model is given")
    order = numbers.argsort(stable=True)
    back = order.argsort()
    images = present.flatten().nonzero().squeeze(1)
    along = back[images // sequences].argsort(stable=True)
    lengths, counts = numbers[order].unique_consecutive(return_counts=True)
    runs = tuple(zip(counts.tolist(), lengths.tolist()))
    return Layout(runs, order, back, images[along], along.argsort())


def token_places(place: Layout, prefix: int, patches: int, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N,) places of the cls tokens and (M,) of every image's first patch, in a row that begins at `start`.

    A sample has `prefix` tokens, then `patches` of each of its sequences. In the order of samples, and of present
    images.
    """
    every_cls, every_first = [], []
    for count, sequences in place.runs:
        length = prefix + sequences * patches
        begins = start + length * torch.arange(count)
        every_cls.append(begins)
        every_first.append((begins.unsqueeze(1) + prefix + patches * torch.arange(sequences)).flatten())
        start += count * length
    cls, first = torch.cat(every_cls), torch.cat(every_first)
    if place.back is None or place.images_back is None:
        return cls, first
    return cls[place.back], first[place.images_back]


def of_present(values: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Return (M, P) of (N, S·P) values: those of the present images, in row-major order of `present`."""
    if present is None:
        return values
    each = values.unflatten(1, (present.shape[1], -1)).flatten(0, 1)
    return each if bool(present.all()) else each[present.flatten().to(values.device)]


def repeated(present: torch.Tensor | None, crops: int) -> torch.Tensor | None:
    """Return the presence of `crops` crops of the same samples, one crop after the other."""
    return None if present is None else present.repeat(crops, 1)
