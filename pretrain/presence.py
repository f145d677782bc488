"""Which sequences the samples of a batch have, and how only those lie in a row of tokens.

Samples with equally many sequences make one run, so that an absent sequence costs nothing and nobody attends to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
    """The layout of `count` samples of which `present` (N, S), bool and on the host, says which sequences they have.

    None: all of them. Raises ValueError for a sample without any.
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
    """(N,) places of the cls tokens and (M,) of every image's first patch, in a row of tokens that begins at `start`.

    A sample has `prefix` tokens, then `patches` of each of its sequences. In the order of samples, and of present
    images.
    """
    cls, first = [], []
    for count, sequences in place.runs:
        length = prefix + sequences * patches
        begins = start + length * torch.arange(count)
        cls.append(begins)
        first.append((begins.unsqueeze(1) + prefix + patches * torch.arange(sequences)).flatten())
        start += count * length
    cls, first = torch.cat(cls), torch.cat(first)
    return (cls, first) if place.back is None else (cls[place.back], first[place.images_back])


def of_present(values: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """(N, S·P) values → (M, P), those of the present images in row-major order of `present`."""
    if present is None:
        return values
    each = values.unflatten(1, (present.shape[1], -1)).flatten(0, 1)
    return each if bool(present.all()) else each[present.flatten().to(values.device)]


def repeated(present: torch.Tensor | None, crops: int) -> torch.Tensor | None:
    """The presence of `crops` crops of the same samples, one crop after the other."""
    return None if present is None else present.repeat(crops, 1)
