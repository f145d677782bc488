"""Maps of what a model of several sequences sees in each of them: one colour means one feature, in all sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_prep.figures import INK, grid, png
from data_prep.schema import Slice, Split
from eval.data import images
from eval.data.examples import Picture
from eval.data.sources import shards
from eval.encoders.encoder import CheckpointEncoder
from eval.reporting import pictures
from pretrain.weights.encoder import load_encoder

_PATCHES = 12  # of a side: fine enough to see a shape


def draw(run: Path, root: str, window: Sequence[float] | None = None, count: int = 3) -> bytes:
    """Draw slices of different patients: every sequence and, below it, three principal components of its patches.

    Slices come from patients whom the training did not see, where the data set has such. A sequence that none of them
    has is left out. Raises SettingsError, CheckpointError.

    window  HU that become 0 and 1; None: the encoder's
    """
    split = next(each for name in ("val", "test", "train") if len(each := Split(root, name)))
    encoder = CheckpointEncoder(load_encoder(run), bf16=False)
    if window is not None:
        encoder.window = window[0], window[1]
    samples = choose(split, encoder.sequences, count)
    seen = [shards.picture(sample) for sample in samples]
    planes, maps, names = _maps(encoder, seen, _PATCHES * encoder.patch_size)
    columns = [name for name in encoder.sequences if any(name in there for there in names)]
    figure, axes = grid(2 * len(samples), len(columns), 1.6)
    for row, (shown, components, there) in enumerate(zip(planes, maps, names)):
        for column, name in enumerate(columns):
            top, bottom = axes[2 * row][column], axes[2 * row + 1][column]
            if not row:
                top.set_title(name, color=INK)
            if name in there:
                top.imshow(shown[there.index(name)].numpy(), cmap="gray", vmin=0, vmax=1)
                bottom.imshow(components[there.index(name)], interpolation="nearest")
            else:
                top.text(0.5, 0.5, "absent", color=INK, ha="center", va="center", transform=top.transAxes)
    return png(figure)


def choose(split: Split, sequences: Sequence[str], count: int) -> list[Slice]:
    """Choose slices from the middle of series of different patients, spread over the split."""
    subjects, chosen = np.unique(split.index["subject"]), []
    for subject in subjects[:: max(1, len(subjects) // count)][:count]:
        mine = np.flatnonzero(split.index["subject"] == subject)
        middle = mine[np.argsort(split.index["order"][mine])[len(mine) // 2]]
        sample = split[int(middle)]
        if set(sample.sequences) & set(sequences):
            chosen.append(sample)
    return chosen


def _maps(
    encoder: CheckpointEncoder, seen: Sequence[Picture], size: int
) -> tuple[list[torch.Tensor], list[np.ndarray], list[tuple[str, ...]]]:
    """Return for each picture its known sequences in 0…1, the components of their patches, and their names."""
    planes, names, tokens = [], [], []
    for picture in seen:
        places = [place for place, name in enumerate(picture.sequences) if name in encoder.sequences]
        there = tuple(picture.sequences[place] for place in places)
        unit = images.unit(images.image(picture, size), picture, encoder.window)
        given = images.of_channels(unit, picture, encoder.channels)[places].flatten(0, 1)
        with torch.inference_mode():
            whole = encoder.model(encoder.prepare(given[None]).to(encoder.device), sequences=there)
        planes.append(images.shown(picture, size, encoder.window)[places])
        names.append(there)
        tokens.append(whole.patches.cpu().numpy())
    coloured = pictures.components(np.concatenate(tokens), torch.cat(planes))
    ends = np.cumsum([len(each) for each in names])
    return planes, np.split(coloured, ends[:-1]), names
