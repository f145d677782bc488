"""The first batches of a stream, and settings of views in which every augmentation takes part."""

from __future__ import annotations

import itertools

from data_prep.schema import Split
from pretrain.data import stream, views
from pretrain.data.intensity import Intensity

SETTINGS = views.ViewSettings(
    global_size=32,
    global_scale=(0.4, 1.0),
    local_size=16,
    local_scale=(0.1, 0.4),
    local_number=3,
    intensity=Intensity((-200, 300), 0.4, 0.25),
    min_body=0.5,
    flip=0.5,
    window_shift=30,
    window_stretch=0.2,
    noise_p=0.5,
    noise_std=0.05,
    blur_p=(1.0, 0.1, 0.5),
    blur_sigma=(0.1, 1.0),
)


def take(split: Split, count: int, **options: object) -> list[stream.Batch]:
    """Return the first `count` batches of a stream; six samples each unless `options` say otherwise."""
    batches = stream.batches(split, **{"batch_size": 6, "seed": 3} | options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken
