"""Shards of synthetic CT patients to be loaded."""

from __future__ import annotations

from pathlib import Path

from data_prep import generate
from data_prep.config import CtConfig, SplitConfig
from data_prep.sharding import convert_ct
from data_prep.sharding import run as sharding


def shards(folder: Path, patients: int = 6, side: int = 512) -> Path:
    """A data set made in `folder`: patients of 40 slices of `side` × `side` pixels, all of them to train on."""
    size = generate.GenerateConfig(patients=patients, size=side, odd=False)
    generate.generate(folder / "patients", size)
    request = sharding.Request(
        inputs=[folder / "patients"],
        output=folder / "shards",
        masks=[],
        modality="CT",
        convert=convert_ct.convert,
        config=CtConfig(workers=1, split=SplitConfig(train=1.0, val=0.0, test=0.0)),
        salt=b"benchmark",
    )
    sharding.run(request)
    return folder / "shards"
