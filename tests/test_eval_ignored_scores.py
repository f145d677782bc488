"""Probes from files to scores: what lies where nobody annotated changes none of them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_prep import shard_ct
from eval import probe

SAROS = ("ct.nii.gz", "seg.nii.gz")
CASES = Path(__file__).parents[2] / "shared" / "cases"
TASK = """name: organ
kind: segmentation
size: 64
probes: [logistic, segmentation, patch_knn, region]
min_pixels: 1
draws: 20
pictures: 0
drawing: {surfaces: false}
stride: {train: 1, val: 1, test: 1}
split: {by: patient, train: 0.4, val: 0.3, test: 0.3}
logistic: {strengths: 2, steps: 10}
segmentation: {epochs: 2, lr: [0.01], cells: 2}
patch_knn: {k: [5]}
"""
DENSE = ("segmentation", "patch_knn", "region")  # a patch of the pixel baseline sees no other one


def patients(hidden: int, deep: Callable[[int, tuple[int, ...]], np.ndarray] | None = None) -> Iterator[tuple]:
    """Yield (HU, labels) of ten patients, (64, 64, 6): two organs, each in some slices; columns from 44 `hidden`.

    deep  makes the HU of the columns from 56, more than a patch away from what is annotated; None: as everywhere
    """
    for number in range(10):
        rng = np.random.default_rng(number)
        hu = rng.integers(-60, 60, (64, 64, 6)).astype(np.int16)
        labels = np.zeros(hu.shape, np.uint8)
        for value, change, planes in ((1, 150, slice(0, 4)), (2, -150, slice(2, 6))):
            row, column = rng.integers(2, 24), 4 if value == 1 else 24
            place = slice(row, row + 16), slice(column, column + 16), planes
            hu[place] += change
            labels[place] = value
        labels[44:, :, 1:] = hidden
        if deep is not None:
            hu[56:, :, 1:] = deep(number, hu[56:, :, 1:].shape)
        yield hu, labels


def nnunet(folder: Path, content, names: dict[str, int]) -> Path:
    """Write a raw data set of nnU-Net."""
    for number, (hu, labels) in enumerate(content):
        for name, values in ((f"imagesTr/c{number}_0000", hu), (f"labelsTr/c{number}", labels)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Image(values, np.diag([-1.0, -1, 2, 1]))
            (folder / f"{name}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 1))
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **names}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def shards(folder: Path, content, *words: str) -> Path:
    """Write patients with label maps and shard them."""
    raw = nnunet(folder / "raw", content, {"organ": 1, "gap": 2})
    command = ["--input", str(raw / "imagesTr"), "--masks", str(raw / "labelsTr"), "--output", str(folder / "out")]
    assert (
        shard_ct.main(
            [*command, "labels.1=organ", "labels.2=gap", "split.train=0.4", "split.val=0.3", "split.test=0.3", *words]
        )
        == 0
    )
    return folder / "out"


def scores(data: Path, folder: Path, *words: str) -> dict[tuple[str, str, str], tuple]:
    """Return (probe, metric, structure) → value, interval and what validation chose, of the pixel baseline."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(TASK)
    command = ["--checkpoint", "pixels", "--task", str(folder / "task.yaml"), "--output", str(folder / "out")]
    assert probe.main([*command, f"data={data}", *words]) == 0
    assert not (folder / "out" / "pictures.npz").exists()  # pictures: 0
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    return {
        (row["probe"], row["metric"], row["label"]): (row["value"], row["low"], row["high"], row["chosen_on_val"])
        for row in rows
    }


def dense(found: dict) -> dict:
    """Return the scores of probes that look at patches one by one."""
    return {key: value for key, value in found.items() if key[0] in DENSE}


def bone(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return (…) HU of bone with noise."""
    return np.random.default_rng(50 + number).integers(300, 900, shape).astype(np.int16)


def organs(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return (…) HU that look like the one organ here, like the other there."""
    return np.where(np.random.default_rng(number).random(shape) < 0.5, 150, -150).astype(np.int16)


ORGANS = {"organ": 1, "gap": 2}


def test_nnunet(tmp_path: Path) -> None:
    """Scores are those of 255 for any other value that is ignored, by name or by setting, and for any HU there.

    They are others where the same voxels count as background.
    """
    nnunet_task = "source=nnunet"
    first = scores(nnunet(tmp_path / "a", patients(255), ORGANS), tmp_path / "sa", nnunet_task)
    assert {key[0] for key in first} == {"logistic", *DENSE} and first["segmentation", "dice", "macro"][0] > 0.3
    named = nnunet(tmp_path / "b", patients(3), {**ORGANS, "ignore": 3})
    assert scores(named, tmp_path / "sb", nnunet_task) == first
    assert (
        scores(nnunet(tmp_path / "c", patients(7), ORGANS), tmp_path / "sc", nnunet_task, "files.ignore=[7]") == first
    )
    for number, deep in enumerate((bone, organs)):
        data = nnunet(tmp_path / f"d{number}", patients(255, deep), ORGANS)
        assert dense(scores(data, tmp_path / f"sd{number}", nnunet_task)) == dense(first)
    other = scores(tmp_path / "d1", tmp_path / "se", nnunet_task, "files.ignore=[]")
    assert all(dense(other)[key] != dense(first)[key] for key in dense(first) if key[:2] == ("segmentation", "dice"))


def test_shards(tmp_path: Path) -> None:
    """From label maps through shards: 255, and a value that `labels` calls ignore; any HU there."""
    first = scores(shards(tmp_path / "a", patients(255)), tmp_path / "sa")
    assert {key[0] for key in first} == {"logistic", *DENSE} and first["segmentation", "dice", "macro"][0] > 0.3
    assert scores(shards(tmp_path / "b", patients(9), "labels.9=ignore"), tmp_path / "sb") == first
    assert dense(scores(shards(tmp_path / "c", patients(255, organs)), tmp_path / "sc")) == dense(first)
    other = scores(shards(tmp_path / "d", patients(9, organs)), tmp_path / "sd")
    assert dense(other) != dense(first)


def test_reported_cases(tmp_path: Path) -> None:
    """nnU-Net's "ignore", and 255 in one patient's map, here with noise of ten: in their place any ignored value."""
    if not (CASES / "143-ignore").is_dir() or not (CASES / "189-saros-255").is_dir():
        pytest.skip("no 143-ignore or 189-saros-255 in ../shared/cases")
    case = tmp_path / "143"
    shutil.copytree(CASES / "143-ignore", case)
    few = ("probes=[segmentation, patch_knn]", "source=nnunet")
    first = scores(case, tmp_path / "s1", *few)
    for path in (case / "labelsTr").iterdir():
        path.chmod(0o644)
        image = nibabel.load(path)
        labels = np.asanyarray(image.dataobj)
        assert (labels == 2).any()
        nibabel.save(nibabel.Nifti1Image(np.where(labels == 2, 255, labels).astype(np.uint8), image.affine), path)
    assert scores(case, tmp_path / "s2", *few) == first
    hu, labels = (np.asanyarray(nibabel.load(CASES / "189-saros-255" / "p" / name).dataobj) for name in SAROS)
    assert (labels == 255).any()

    def ten(value: int) -> Iterator[tuple]:
        for number in range(10):
            noise = np.random.default_rng(number).integers(-9, 10, hu.shape)
            yield (hu + noise).astype(np.int16), np.where(labels == 255, value, labels).astype(np.uint8)

    found = [
        scores(shards(tmp_path / f"189-{value}", ten(value), *words), tmp_path / f"s{value}", "probes=[segmentation]")
        for value, words in ((255, ()), (77, ("labels.77=ignore",)))
    ]
    assert found[0] == found[1]
