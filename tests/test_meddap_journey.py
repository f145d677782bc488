"""The whole road on real patients: shards, adaptation, choice, comparison, vectors, and drawings of the test patients,
whose new images are the same scans as a hospital sends them, DICOM."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers import dicom_files

from data_prep import identity
from eval.reporting import results
from meddap import cli

PATIENTS = (1, 10, 101, 103, 104, 105, 106, 108, 109, 11, 111, 112, 113, 114, 115)
ORGANS = {"brainstem": 1, "spinal cord": 2, "right parotid": 3, "left parotid": 4, "larynx": 6, "mandible": 7}
TRAINING = (
    *("stages.adapt.steps=24", "stages.adapt.batch_size=8", "stages.adapt.crops.global_size=32"),
    *("stages.adapt.crops.local_size=16", "stages.adapt.crops.local_number=2", "stages.adapt.optim.lr.warmup_steps=4"),
    "stages.adapt.optim.freeze_last_layer_steps=2",
    *("save.every=8", "save.keep_every=8", "machine.device=cpu", "model.embed_dim=48", "model.depth=2"),
)
TASK = f"""
name: organs
organs: {json.dumps(ORGANS)}
size: 128
stride: {{train: 4, val: 4, test: 1}}
probes: [segmentation, knn]
main: segmentation/dice
segmentation: {{lr: [1.0e-2], epochs: 16, batch_size: 16}}
draws: 50
pictures: 1
"""


def meddap(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of twelve patients, a run of three milestones, and the one that was chosen of them."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "ct_openkbp"
    if not shared.is_dir():
        pytest.skip("needs ../shared/data, which is not beside this checkout")
    folder = tmp_path_factory.mktemp("road")
    for number in PATIENTS:
        (folder / "patients").mkdir(exist_ok=True)
        os.symlink(shared / f"pt_{number}", folder / "patients" / f"pt_{number}")
    (folder / "task.yaml").write_text(TASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        words = ["--input", folder / "patients", "--output", folder / "shards", "--key", folder / "key.jsonl"]
        assert meddap("shard-ct", *words, "split.train=4", "split.val=3", "split.test=3") == 0
        words = ["--config", "pretrain/configs/quickstart.yaml", "name=road", f"data.root={folder / 'shards'}"]
        assert meddap("train", *words, f"output={folder / 'runs'}", *TRAINING) == 0
        words = ["--run", folder / "runs" / "road", "--task", folder / "task.yaml", f"data={folder / 'shards'}"]
        assert meddap("choose", *words) == 0
    return folder


@pytest.fixture(scope="module")
def arrived(road: Path) -> Path:
    """The test patients' CT as DICOM series."""
    split = {row["subject"]: row["split"] for row in lines_of(road / "shards" / "manifest.jsonl")}
    for row in lines_of(road / "key.jsonl"):
        if split[row["subject"]] == "test":
            source = Path(row["files"][0])
            write_dicom(road / "arrived" / row["patient"], nib.load(source), row["patient"])
    return road / "arrived"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def planes_of(image: nib.Nifti1Image) -> np.ndarray:
    """Return axial planes from the feet up, (Z, rows, columns), as DICOM orders them."""
    axes = nib.orientations.axcodes2ornt(("L", "P", "S"))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), axes))
    return np.asarray(turned.dataobj).transpose(2, 1, 0)


def write_dicom(folder: Path, image: nib.Nifti1Image, patient: str) -> None:
    """Write a volume as an axial series: DICOM's axes run to the left and to the back."""
    planes = planes_of(image)
    columns, lines, slices = (float(each) for each in nib.affines.voxel_sizes(image.affine)[[1, 0, 2]])
    corners = [(0, 0, slices * number) for number in range(len(planes))]
    dicom_files.series(
        folder,
        planes,
        corners,
        PatientID=patient,
        StudyInstanceUID=f"1.2.3.{patient.strip('pt_')}",
        SeriesInstanceUID=f"1.2.3.{patient.strip('pt_')}.1",
        PixelSpacing=[lines, columns],
        SliceThickness=slices,
    )


def predictions(output: Path) -> list[dict[str, str]]:
    with open(output / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def dice(drawn: np.ndarray, true: np.ndarray) -> float:
    total = np.count_nonzero(drawn) + np.count_nonzero(true)
    return 2 * np.count_nonzero(drawn & true) / total if total else np.nan


def without_highdicom(file: pydicom.Dataset, uids: list[str], shape: tuple[int, int]) -> dict[int, np.ndarray]:
    """Return each segment's number → (images, rows, columns) bool, by the references of its frames."""
    found = {each.SegmentNumber: np.zeros((len(uids), *shape), bool) for each in file.SegmentSequence}
    for frame, pixels in zip(file.PerFrameFunctionalGroupsSequence, file.pixel_array.reshape(-1, *shape)):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber][uids.index(source)] = pixels > 0
    return found


def test_the_chosen_checkpoint_is_compared_with_the_start(road: Path, capsys: pytest.CaptureFixture) -> None:
    """`choose` opens the test for the start and what it takes; the last milestone is probed beside, and compared."""
    run, task = road / "runs" / "road", road / "task.yaml"
    record = json.loads((run / "chosen.json").read_text())
    assert len(record["tasks"][0]["validation"]) == 4 and record["tasks"][0]["test"]["start"]["test_opened"] == 1
    words = ["--checkpoint", run, "--task", task, "--output", road / "after", f"data={road / 'shards'}"]
    assert meddap("probe", *words) == 0
    capsys.readouterr()
    assert meddap("compare", "--runs", run / "choose" / "organs" / "start", road / "after") == 0
    said = capsys.readouterr().out
    assert "3 patients" in said and "segmentation" in said and "knn" in said


def test_vectors_of_new_images_are_those_of_the_shards(road: Path, arrived: Path) -> None:
    """The same scans, once as DICOM and once from the shards, give the same vectors of the chosen checkpoint."""
    words = ["--checkpoint", f"{road / 'runs' / 'road'}:chosen", "size=128"]
    assert meddap("embed", *words, "--input", arrived, "--output", road / "new.npz", "--level", "patient") == 0
    words += ["split=test", "--data", road / "shards"]
    assert meddap("embed", *words, "--output", road / "old.npz", "--level", "patient") == 0
    new, old = (np.load(road / name) for name in ("new.npz", "old.npz"))
    assert sorted(new["patient"]) == sorted(old["patient"]) and len(new["patient"]) == 3
    places = [list(old["patient"]).index(each) for each in new["patient"]]
    np.testing.assert_allclose(new["vectors"], old["vectors"][places], atol=1e-6)


@pytest.fixture(scope="module")
def drawn(road: Path, arrived: Path) -> Path:
    """What `predict` draws of the test patients, as NIfTI and, where highdicom is there, as DICOM segmentations."""
    pytest.importorskip("highdicom", reason="needs highdicom: pip install 'meddap[seg]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        words = ["--input", arrived, "--output", road / "drawn", "--keep-ids", "--dicom-seg", "maps=each"]
        assert (
            meddap("predict", "--checkpoint", f"{road / 'runs' / 'road'}:chosen", "--head", head_of(road), *words) == 0
        )
    return road / "drawn"


def head_of(road: Path) -> Path:
    """The kept head of what was chosen: the start's, where no milestone beats it."""
    run = road / "runs" / "road"
    beaten = json.loads((run / "chosen.json").read_text())["beats_start"]
    return run / "choose" / "organs" / ("chosen" if beaten else "start") / "heads" / "segmentation"


def test_what_is_drawn_on_dicom_has_the_probes_dice(road: Path, drawn: Path, arrived: Path) -> None:
    """Each organ of each patient, read from the DICOM segmentation by highdicom and by pydicom alone, and from NIfTI,
    against the label map that came with the scan: the Dice that the probe had measured on the shards."""
    hd = pytest.importorskip("highdicom")
    _, written = results.read_predictions(head_of(road).parents[1])
    probe = written["segmentation"]
    names = {row["subject"]: row["patient"] for row in lines_of(road / "key.jsonl")}
    wanted = {names[each]: values for each, values in zip(probe.subjects, probe.values["dice"][0])}
    rows = [row for row in predictions(drawn) if row["status"] == "predicted"]
    assert sorted(row["patient"] for row in rows) == sorted(wanted)
    segmentations = {each: pydicom.dcmread(each).PatientID for each in (drawn / "segmentations").glob("*.dcm")}
    found = []
    for row in rows:
        labels = nib.load(road / "patients" / row["patient"] / "seg.nii.gz")
        images = sorted(arrived.glob(f"{row['patient']}/*"))
        (path,) = [file for file, name in segmentations.items() if name == row["patient"]]
        truth, voxel = planes_of(labels), abs(np.linalg.det(labels.affine)) / 1000  # ml
        segments = hd.seg.segread(path)
        uids = [pydicom.dcmread(each).SOPInstanceUID for each in images]
        masks = segments.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
        plain = without_highdicom(pydicom.dcmread(path), uids, masks.shape[1:3])
        for number, (name, value) in enumerate(ORGANS.items()):
            (segment,) = [each for each in segments.SegmentSequence if each.SegmentLabel == name]
            mine = masks[..., segment.SegmentNumber - 1] > 0
            assert np.array_equal(mine, plain[segment.SegmentNumber])
            nifti = nib.load(drawn / row["file"] / f"{value}.nii.gz")
            assert np.array_equal(mine, planes_of(nifti) > 0)
            assert float(row[f"{name} ml"]) == pytest.approx(mine.sum() * voxel, rel=1e-4)
            true = truth == value
            mine = dice(mine, true) if true.any() else np.nan  # a structure that nobody drew there is not scored
            assert mine == pytest.approx(wanted[row["patient"]][number], abs=1e-6, nan_ok=True)
            found.append(mine)
    assert np.nanmax(found) > 0.3
