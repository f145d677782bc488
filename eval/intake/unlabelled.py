"""Every slice of shards as examples without labels, in the order of patients, series and slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_prep.schema import Split, content_digest, read_dataset
from eval.data.examples import Examples, Picture
from eval.data.sources import shards
from meddap.console import progress
from meddap.settings import SettingsError


def load(root: str, stride: int = 1, split: str = "") -> Examples:
    """Return every `stride`-th slice of each series; targets (N, 0), label maps where the shards have them.

    split  that alone; "": all. Raises SettingsError where there are no slices, SchemaError for damaged shards.
    """
    dataset = read_dataset(root)
    if split and split not in dataset["splits"]:
        raise SettingsError(f"split={split}: {root} has {', '.join(dataset['splits'])}")
    names = [name for name in dataset["splits"] if split in ("", name)]
    splits = {name: Split(root, name) for name in names}
    chosen = [
        (name, int(number))
        for name, each in splits.items()
        for number in np.flatnonzero(each.index["order"] % stride == 0)
    ]
    if not chosen:
        raise SettingsError(f"{root}: holds no slices{f' in split {split}' if split else ''}")
    contents = {name: each.content() for name, each in splits.items()}
    rows = []
    for name, number in progress(chosen, len(chosen), "headers of slices"):
        record, content = splits[name].record(number), contents[name]
        digest = content_digest(splits[name][number].pixels) if content is None else int(content[number])
        named = record["subject"], record["series"], int(record["order"]), record["key"]
        rows.append((*named, float(record["position"]), digest))
    order = sorted(range(len(rows)), key=lambda place: rows[place][:3])
    subjects, studies, orders, keys, positions, digests = zip(*(rows[place] for place in order))
    chosen = [chosen[place] for place in order]

    def reader(place: int) -> Picture:
        name, number = chosen[place]
        return shards.picture(splits[name][number])

    return Examples(
        names=(),
        keys=np.array(keys),
        subjects=np.array(subjects),
        studies=np.array(studies),
        sites=np.full(len(rows), ""),
        splits=np.array([name for name, _ in chosen]),
        orders=np.array(orders, np.int64),
        positions=np.array(positions, np.float64),
        digests=np.array(digests, np.uint64),
        targets=np.zeros((len(rows), 0)),
        annotated=np.zeros((len(rows), 0), bool),
        reader=reader,
        version=dataset["digest"],
    )


def ends(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return (G + 1,) where each run of equal names begins, and the end of the last one."""
    column = np.asarray(names)
    changes = np.flatnonzero(column[1:] != column[:-1]) + 1
    return np.concatenate([[0], changes, [len(column)]])
