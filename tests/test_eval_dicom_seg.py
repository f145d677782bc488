"""DICOM segmentations that `meddap predict` writes: on the planes of their source images, as highdicom reads them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers.encoders import random_transformer

from data_prep import identity, shard_ct
from eval import predict, probe
from eval.config import DecoderConfig, StrideConfig, TaskConfig
from eval.encoders import encoder
from eval.intake.command import LEFT_OUT


@pytest.fixture(scope="module")
def probed(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that draws the organs of the synthetic CT patients."""
    folder = tmp_path_factory.mktemp("seg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        patch.setattr(encoder, "load", lambda checkpoint, task: random_transformer())
        words = ["--input", str(patients), "--output", str(folder / "shards"), "--key", str(folder / "key.jsonl")]
        assert shard_ct.main([*words, "split.train=2", "split.val=2", "split.test=2"]) == 0
        settings = TaskConfig(
            **{"data": str(folder / "shards"), "size": 48, "probes": ["segmentation"], "draws": 20, "pictures": 1},
            **{"stride": StrideConfig(1, 1, 1), "segmentation": DecoderConfig(lr=[1e-2], epochs=10, batch_size=8)},
        )
        probe.run("any", settings, folder / "probed")
    return folder


def run(probed: Path, output: Path, images: Path, *more: str) -> int:
    words = ["--checkpoint", "any", "--head", str(probed / "probed"), "--input", str(images), "--output", str(output)]
    return predict.main([*words, "--keep-ids", "--dicom-seg", "--allow-training-patients", "maps=each", *more])


@pytest.fixture(autouse=True)
def transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load", lambda checkpoint, task: random_transformer())


def test_segments_lie_on_the_planes_of_their_source(patients: Path, probed: Path, tmp_path: Path) -> None:
    """Every segment of every source image is what the NIfTI file holds there; patient and study are the source's; a
    series that is no DICOM has none, and its row says why."""
    hd = pytest.importorskip("highdicom", reason="needs highdicom: pip install 'meddap[seg]'")
    assert run(probed, tmp_path / "out", patients) == LEFT_OUT
    key = {row["name"]: row for row in map(json.loads, (probed / "key.jsonl").read_text().splitlines())}
    hashes = {
        row["source"]: row for row in map(json.loads, (probed / "shards" / "manifest.jsonl").read_text().splitlines())
    }
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "predicted"]
    seen = drawn = 0
    for row in rows:
        mine = key[row["series"]]
        name = hashes[mine["source"]]["stack"]
        path = tmp_path / "out" / "segmentations" / f"{name}.dcm"
        if not mine["dicom"]:
            assert not path.exists() and row["reason"] == "no DICOM segmentation: its source is not DICOM"
            continue
        assert row["reason"] == ""
        sources = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, mine["files"])}
        found = hd.seg.segread(path)
        first = next(iter(sources.values()))
        assert (found.PatientID, found.StudyInstanceUID) == (first.PatientID, first.StudyInstanceUID)
        named = {each.SegmentLabel: each.SegmentNumber for each in found.SegmentSequence}
        uids = [uid for _, _, uid in found.get_source_image_uids()]
        assert set(uids) <= set(sources) and len(uids) == len(set(uids)) == 8
        masks = found.get_pixels_by_source_instance(uids)  # (F, rows, columns, segments)
        made = json.loads((tmp_path / "out" / "made.json").read_text())
        for label, value in made["labels"].items():
            image = nib.load(tmp_path / "out" / "segmentations" / name / f"{value}.nii.gz")
            volume, back = np.asarray(image.dataobj), np.linalg.inv(image.affine)
            for uid, mask in zip(uids, masks[..., named[label] - 1]):
                at = np.array(sources[uid].ImagePositionPatient, float) * (-1, -1, 1)
                column, line, place = np.rint(back @ [*at, 1])[:3].astype(int)
                assert (column, line) == (0, 0) and np.array_equal(volume[:, :, place].T, mask)
                drawn += int(mask.sum())
        seen += 1
    assert seen >= 2 and drawn > 50


def test_without_highdicom_one_line_says_what_to_install(patients, probed, tmp_path, monkeypatch, capsys) -> None:
    """Before anything is read."""
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    assert run(probed, tmp_path / "out", patients) == 1
    assert "--dicom-seg needs highdicom: pip install 'meddap[seg]'" in capsys.readouterr().err


def test_two_volumes_in_a_series_have_no_segmentation(patients: Path, probed: Path, tmp_path: Path) -> None:
    """Which images belong to which volume is not said: the row says so, the NIfTI files are there."""
    pytest.importorskip("highdicom", reason="needs highdicom: pip install 'meddap[seg]'")
    key = [json.loads(line) for line in (probed / "key.jsonl").read_text().splitlines()]
    files = next(row["files"] for row in key if row["dicom"] and len(row["files"]) == 8)
    for phase in range(2):
        for number, file in enumerate(files):
            image = pydicom.dcmread(file)
            image.AcquisitionNumber, image.InstanceNumber = phase + 1, number + 1
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
            image.PixelData = (image.pixel_array + phase).astype(image.pixel_array.dtype).tobytes()
            image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            (tmp_path / "images").mkdir(exist_ok=True)
            image.save_as(tmp_path / "images" / f"{phase}-{number}.dcm", enforce_file_format=True)
    assert run(probed, tmp_path / "out", tmp_path / "images") == 0
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["reason"] for row in rows] == ["no DICOM segmentation: its series holds several volumes"] * 2
    assert len(list((tmp_path / "out" / "segmentations").rglob("*.nii.gz"))) > 2
    shutil.rmtree(tmp_path / "out")
