"""Every slice of shards as examples without labels, in the order of patients, series and slices.

In memory: some 150 bytes a slice, the indices of the shards among them. The ids of patients and series, as long again
and more, are memory-mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from data_prep.schema import SchemaError, Split, content_digest, read_dataset
from eval.data import files
from eval.data.examples import Examples, Picture, ends
from eval.data.sources import shards
from meddap.console import progress
from meddap.settings import SettingsError


def load(root: str, work: Path, stride: int = 1, split: str = "") -> Examples:
    """Return every `stride`-th slice of each series; targets (N, 0), label maps where the shards have them.

    work   folder for the ids of patients and series, which are memory-mapped
    split  that alone; "": all. `keys` are the numbers of the slices in the data set, split after split; `positions` are
           NaN: only the header of each slice says them, and no header but one of each series is read here.
    Raises SettingsError where there are no slices, SchemaError for damaged shards.
    """
    dataset = read_dataset(root)
    if split and split not in dataset["splits"]:
        raise SettingsError(f"split={split}: {root} has {', '.join(dataset['splits'])}")
    names = list(dataset["splits"])
    splits = {name: Split(root, name) for name in names if split in ("", name)}
    firsts = np.cumsum([0, *(dataset["splits"][name]["samples"] for name in names)])
    taken = {name: np.flatnonzero(each.index["order"] % stride == 0) for name, each in splits.items()}
    count = sum(map(len, taken.values()))
    if not count:
        raise SettingsError(f"{root}: holds no slices{f' in split {split}' if split else ''}")
    place = np.repeat([names.index(name) for name in splits], [len(rows) for rows in taken.values()]).astype(np.uint8)
    number = np.concatenate(list(taken.values()))
    column = {name: np.concatenate([each.index[name][taken[key]] for key, each in splits.items()])
              for name in ("subject", "series", "order")}  # fmt: skip
    order = np.lexsort((column["order"], column["series"], column["subject"]))
    place, number = place[order], number[order]
    column = {name: values[order] for name, values in column.items()}
    series = ends(column["series"])
    subjects, studies = _ids(splits, names, place, number, series, column, work)
    digests = np.concatenate([_digests(each, taken[name]) for name, each in splits.items()])[order]

    def reader(row: int) -> Picture:
        return shards.picture(splits[names[place[row]]][int(number[row])])

    return Examples(
        names=(),
        keys=firsts[place] + number,
        subjects=subjects,
        studies=studies,
        sites=np.full(count, ""),
        splits=np.array(names)[place],
        orders=column["order"].astype(np.int64),
        positions=np.full(count, np.nan),
        digests=digests,
        targets=np.zeros((count, 0)),
        annotated=np.zeros((count, 0), bool),
        reader=reader,
        version=dataset["digest"],
    )


def _ids(
    splits: dict[str, Split],
    names: Sequence[str],
    place: np.ndarray,
    number: np.ndarray,
    series: np.ndarray,
    column: dict[str, np.ndarray],
    work: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of patients and series of all slices, memory-mapped, from the header of one slice per series."""
    work.mkdir(parents=True, exist_ok=True)
    written = {name: open_memmap(work / f"{name}.npy", "w+", "<U32", number.shape) for name in ("subject", "series")}
    runs = list(zip(series[:-1].tolist(), series[1:].tolist()))
    for start, stop in progress(runs, len(runs), "series"):
        split = splits[names[place[start]]]
        record = split.record(int(number[start]))
        for name, array in written.items():
            if not record[name].startswith(f"{column[name][start]:016x}"):
                raise SchemaError(f"{split.root}: {split.name}: sample {number[start]}: its {name} is not the index's")
            array[start:stop] = record[name]
    for array in written.values():
        array.flush()
    remedy = f"delete {work} and start again"
    return files.mapped(work / "subject.npy", remedy), files.mapped(work / "series.npy", remedy)


def _digests(split: Split, rows: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 digests of the pixels of some slices, which are decoded where their shards lack them."""
    content = split.content()
    if content is not None:
        return content[rows]
    each = (content_digest(split[int(row)].pixels) for row in progress(rows, len(rows), "pixels of slices"))
    return np.fromiter(each, np.uint64, len(rows))
