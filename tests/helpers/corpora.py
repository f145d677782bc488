"""Several tiny data sets of different kinds, and a run that mixes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data_prep import schema
from helpers.datasets import body_slice, identity, write_dataset
from helpers.tiny_run import CONFIG

SEVERAL = CONFIG.replace(
    "layer_scale: null, drop_path: 0.1}", "layer_scale: null, drop_path: 0.1, sequences: [ct, flair, t1, t2]}"
)
KINDS = ("t1", "t2", "flair")


def brain_slice(rng: np.random.Generator, subject: int, order: int, size: int = 64) -> schema.Slice:
    """The body of a CT slice as MR: two or three sequences of another patient, on the scale of MR."""
    ct = body_slice(rng, 1000 + subject, order, size)
    names = KINDS if subject % 2 else KINDS[:2]
    planes = [ct.pixels[0].astype(np.int64) * (4 + place) + 30000 for place in range(len(names))]
    fields = {**vars(ct), "labelmap": None, "annotated": (), "sequences": names}
    fields["pixels"] = np.clip(np.stack(planes), 0, 65535).astype(np.uint16)
    return schema.Slice(**fields)


def other_ct(rng: np.random.Generator, subject: int, order: int, size: int = 64) -> schema.Slice:
    """A CT slice of patients of their own."""
    return body_slice(rng, 2000 + subject, order, size)


def write_corpus(root: Path) -> dict[str, Path]:
    """Three data sets with 24, 18 and 4 training slices: CT, MR of another size, and a small one of CT."""
    brains = write_dataset(
        root / "brains", {"train": 6, "val": 2, "test": 1}, slices=3, size=48, make=brain_slice,
        labels={}, sequences={"t1": 9, "t2": 9, "flair": 4},
    )  # fmt: skip
    few = write_dataset(
        root / "few", {"train": 2, "val": 1, "test": 1}, slices=2, size=56, make=other_ct, sequences={"ct": 4}
    )
    body = write_dataset(root / "body", {"train": 4, "val": 2, "test": 2}, sequences={"ct": 8})
    return {"body": body, "brains": brains, "few": few}


def picture_slice(rng: np.random.Generator, subject: int, order: int, size: int = 64) -> schema.Slice:
    """A picture of cells on a coloured ground; of every third patient in grey."""
    rows, columns = np.mgrid[:size, :size]
    colour = np.ones((3, size, size)) * rng.uniform(0.5, 0.9, (3, 1, 1))
    for _ in range(4):
        row, column = rng.uniform(0.2, 0.8, 2) * size
        cell = (rows - row) ** 2 + (columns - column) ** 2 < (size * rng.uniform(0.06, 0.14)) ** 2
        colour[:, cell] = rng.uniform(0, 0.6, (3, 1)) + rng.normal(0, 0.03, (3, int(cell.sum())))
    planes = colour if subject % 3 else colour[:1]
    values = np.rint(schema.MR_LOW + planes * (schema.MR_HIGH - schema.MR_LOW)).clip(0, 65535).astype(np.uint16)
    return schema.Slice(
        pixels=values,
        sequences=("image",),
        spacing=(1.0, 1.0),
        position=float(order),
        **identity(f"pictured {subject}", order),
        box=(0, size, 0, size),
        scales=((1.0, 0.0),),
        channels=len(values),
    )


def write_pictures(root: Path, patients: int = 6, slices: int = 3) -> Path:
    """Pictures in colour and in grey, of one sequence."""
    counts = {"train": patients, "val": 2, "test": 2}
    known = {"labels": {}, "sequences": {"image": sum(counts.values())}, "channels": {"image": 3}}
    return write_dataset(root, counts, slices=slices, size=40, make=picture_slice, seed=7, **known)


def overrides(roots: dict[str, Path]) -> list[str]:
    """`data.sources.NAME.root=…` of data sets by name."""
    return [f"data.sources.{name}.root={root}" for name, root in roots.items()]


def write_weights(root: Path, name: str, weights: np.ndarray, **other: object) -> None:
    """Weights `name` of the training split of a data set; `other` replaces what is written about them."""
    path, about = schema.weights_of(root, name)
    np.save(path, weights)
    record = {"digest": schema.read_dataset(root)["digest"], "split": "train", "made_with": {"by": "a test"}}
    about.write_text(json.dumps({**record, **other}))
