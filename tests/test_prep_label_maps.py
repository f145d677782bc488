"""Label maps as people have them: another affine, values off a little, voxels nobody annotated, a file per organ."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers import dicom_files
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage, generate_uid

from data_prep import overview, schema, shard_ct, shard_mri, verify

TRAIN = ("split.train=1", "split.val=0", "split.test=0")
CASES = Path(__file__).parents[2] / "shared" / "cases"
SPACING = np.diag([-2.0, -2.0, 3.0, 1.0])


def volume(seed: int = 0) -> np.ndarray:
    """(24, 20, 8) HU: tissue in air."""
    hu = np.full((24, 20, 8), -1000, np.int16)
    hu[4:20, 4:16] = np.random.default_rng(seed).integers(-60, 80, (16, 12, 8))
    return hu


def drawn() -> np.ndarray:
    """(24, 20, 8) labels: 1 at the left, 2 at the right."""
    labels = np.zeros((24, 20, 8), np.uint8)
    labels[6:10, 6:10, 2:6], labels[12:16, 6:10, 2:6] = 1, 2
    return labels


def write(path: Path, values: np.ndarray, affine: np.ndarray = SPACING) -> Path:
    """A NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def shard(folder: Path, output: Path, *words: str, command=shard_ct) -> int:
    """Run the command."""
    return command.main(["--input", str(folder), "--output", str(output), *TRAIN, *words])


def rows(output: Path) -> list[dict]:
    """The manifest."""
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def labels_of(output: Path) -> np.ndarray:
    """(Z, Y, X) labels of the one patient."""
    split = schema.Split(output, "train")
    found = sorted((split[number] for number in range(len(split))), key=lambda sample: sample.order)
    return np.stack([sample.labelmap for sample in found])


def as_stored(labels: np.ndarray) -> np.ndarray:
    """What (I, J, K) labels on SPACING are in shards: (Z, Y, X)."""
    return labels.transpose(2, 1, 0)


def moved(millimetres: float, axis: int = 0) -> np.ndarray:
    """SPACING with another origin."""
    affine = SPACING.copy()
    affine[axis, 3] += millimetres
    return affine


@pytest.mark.parametrize(("millimetres", "off"), [(1.5, 1.5), (0.04, None), (4.0, 4.0)])
def test_a_map_of_the_images_shape_on_another_affine_is_noted(millimetres, off, tmp_path: Path, capsys) -> None:
    """Placed by its affine with a word in manifest and console; refused where a setting says so."""
    write(tmp_path / "in" / "p" / "ct.nii.gz", volume())
    write(tmp_path / "in" / "p" / "seg.nii.gz", drawn(), moved(millimetres))
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    notes, said = rows(tmp_path / "out")[0]["notes"], capsys.readouterr().err
    assert notes.get("labels_off_mm") == off and ("another affine" in said) == (off is not None)
    steps = round(millimetres / 2)  # voxels along the first axis, whose index runs to the left
    expected = np.roll(drawn(), -steps, axis=0)
    assert np.array_equal(labels_of(tmp_path / "out"), as_stored(expected))
    refused = shard(tmp_path / "in", tmp_path / "other", "label_grid=refuse")
    assert refused == (0 if off is None else 1)
    assert off is None or "mm off; label_grid=place places it" in capsys.readouterr().err


def test_labels_that_fall_outside_are_counted_and_refused_above_a_limit(tmp_path: Path, capsys) -> None:
    """A quarter of the voxels lies beyond the image; what nobody annotated does not count."""
    write(tmp_path / "in" / "p" / "ct.nii.gz", volume())
    labels = drawn()
    labels[:, :, 7] = 255
    write(tmp_path / "in" / "p" / "seg.nii.gz", labels, moved(9.0, axis=2))
    assert shard(tmp_path / "in", tmp_path / "out") == 1
    assert "25.0% of its labels lie outside the image, more than max_labels_outside=0.01" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "more", "max_labels_outside=0.3") == 0
    assert rows(tmp_path / "more")[0]["notes"]["labels_outside"] == 0.25
    assert "up to 25.00% of a map's labels lie outside" in capsys.readouterr().err


@pytest.mark.parametrize("values", [np.float32, np.float64, "slope"])
def test_values_nearly_whole_are_rounded_and_others_refused(values, tmp_path: Path, capsys) -> None:
    """0.99999994 as float, 2.00000003 by a slope; 0.99 is no label."""
    write(tmp_path / "in" / "p" / "ct.nii.gz", volume())
    path = tmp_path / "in" / "p" / "seg.nii"
    if values == "slope":
        image = nibabel.Nifti1Image(drawn(), SPACING)
        image.header.set_slope_inter(1.00000001, 0)
        nibabel.save(image, path)
    else:
        write(path, drawn().astype(values) * values(1 - 6e-8))
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    assert np.array_equal(labels_of(tmp_path / "out"), as_stored(drawn()))
    write(path, drawn().astype(np.float32) * np.float32(0.99))
    assert shard(tmp_path / "in", tmp_path / "other") == 1
    assert "expected whole numbers 0 to 255" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "words"), [(255, ()), (7, ("ignore=[7]",)), (9, ("labels.9=ignore",))])
def test_voxels_that_nobody_annotated_are_no_label(value, words, tmp_path: Path, capsys) -> None:
    """They stay in the map, are named in dataset.json as ignored, and are not among the annotated values."""
    write(tmp_path / "in" / "p" / "ct.nii.gz", volume())
    labels = drawn()
    labels[:, :, :3] = value
    write(tmp_path / "in" / "p" / "seg.nii.gz", labels)
    assert shard(tmp_path / "in", tmp_path / "out", *words) == 0
    dataset = schema.read_dataset(tmp_path / "out")
    assert value in dataset["ignore"] and set(dataset["labels"]) == {"1", "2"}
    assert rows(tmp_path / "out")[0]["notes"]["ignored_voxels"] == 24 * 20 * 3
    assert all(
        sample.annotated == (1, 2) for sample in map(schema.Split(tmp_path / "out", "train").__getitem__, [0, 5])
    )
    assert np.array_equal(labels_of(tmp_path / "out"), as_stored(labels))
    assert "voxels that nobody annotated" in capsys.readouterr().err
    assert verify.main([str(tmp_path / "out")]) == 0 and overview.main([str(tmp_path / "out")]) == 0


def test_a_mask_of_255_alone_is_not_taken_for_anything_without_a_word(tmp_path: Path, capsys) -> None:
    """0 and 255 may be a mask's two values: left out and said; a name makes it a label."""
    write(tmp_path / "in" / "p" / "ct.nii.gz", volume())
    write(tmp_path / "in" / "p" / "seg.nii.gz", (drawn() > 0).astype(np.uint8) * 255)
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    assert "1 series without their label map: its only value means" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "named", "labels.255=organ") == 0
    dataset = schema.read_dataset(tmp_path / "named")
    assert dataset["labels"] == {"255": "organ"} and dataset["ignore"] == []


def organ_folder(folder: Path, names: dict[str, int], image: str = "ct.nii.gz") -> Path:
    """An image, and a binary file for each name: the voxels of that label."""
    write(folder / image, volume())
    for name, value in names.items():
        write(folder / "segmentations" / f"{name}.nii.gz", (drawn() == value).astype(np.uint8))
    return folder


def test_a_file_per_organ_becomes_one_map_with_names(tmp_path: Path, capsys) -> None:
    """Values agree over patients, whichever organs each has; configured names keep their values."""
    organ_folder(tmp_path / "in" / "s1", {"liver": 1, "vertebrae_T1": 2})
    organ_folder(tmp_path / "in" / "s2", {"vertebrae_T1": 2})
    assert shard(tmp_path / "in", tmp_path / "out", "labels.5=Liver") == 0
    assert schema.read_dataset(tmp_path / "out")["labels"] == {"1": "vertebrae_T1", "5": "Liver"}
    assert sorted(row["annotated"] for row in rows(tmp_path / "out")) == [[1], [1, 5]]
    assert "2 folders with a file per organ: 2 organs, one map each" in capsys.readouterr().err


@pytest.mark.parametrize("organ_files", [False, True], ids=["one map", "organs"])
def test_what_the_header_of_a_map_left_open_is_noted(organ_files: bool, tmp_path: Path, capsys) -> None:
    """Its unit, as for images: in the manifest and on the console."""
    folder = tmp_path / "in" / "p"
    write(folder / "ct.nii.gz", volume())
    name, values = ("segmentations/liver.nii.gz", drawn() == 1) if organ_files else ("seg.nii.gz", drawn())
    path = write(folder / name, values.astype(np.uint8))
    image = nibabel.load(path)
    labels = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    labels.header["xyzt_units"] = 0
    nibabel.save(labels, path)
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    (row,) = rows(tmp_path / "out")
    assert row["annotated"] and row["notes"]["label_units"] == "not stated, taken as mm"
    assert "1 label maps, unit of the header's lengths: not stated, taken as mm" in capsys.readouterr().err


def test_a_name_that_might_be_a_patients_is_not_kept(tmp_path: Path, capsys) -> None:
    """One folder alone has it, and it names no organ that is known."""
    organ_folder(tmp_path / "in" / "s1", {"liver": 1, "canary_john": 2})
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    assert schema.read_dataset(tmp_path / "out")["labels"] == {"1": "label 1", "2": "liver"}
    assert "1 of their names are not kept" in capsys.readouterr().err
    assert all(b"canary" not in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_organ_files_that_are_not_one_map_are_left_out_with_the_reason(tmp_path: Path, capsys) -> None:
    """Two images beside the folder, a file of several labels, a map of the image's own name."""
    organ_folder(tmp_path / "in" / "two", {"liver": 1})
    write(tmp_path / "in" / "two" / "other.nii.gz", volume(1))
    organ_folder(tmp_path / "in" / "several", {"liver": 1})
    write(tmp_path / "in" / "several" / "segmentations" / "spleen.nii.gz", drawn())
    write(tmp_path / "in" / "own" / "a.nii.gz", volume(2))
    write(tmp_path / "in" / "own" / "masks" / "a.nii.gz", drawn())
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "1 organ files without an image of their own" in said
    assert "a file among the organs holds several labels; expected one organ per file" in said
    assert sum(row["status"] == "accepted" for row in rows(tmp_path / "out")) == 4


def test_organs_beside_a_dicom_series(tmp_path: Path) -> None:
    """The folder lies in that of the series, as TotalSegmentator writes it."""
    stored = volume().transpose(2, 1, 0)
    dicom_files.series(tmp_path / "in" / "p", stored)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    write(tmp_path / "in" / "p" / "segmentations" / "spleen.nii.gz", (drawn() == 2).astype(np.uint8), affine)
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    assert schema.read_dataset(tmp_path / "out")["labels"] == {"1": "spleen"}
    assert np.array_equal(labels_of(tmp_path / "out") == 1, as_stored(drawn() == 2))


def test_organs_that_change_are_another_input(tmp_path: Path, capsys) -> None:
    """A finished output is not taken for that of other organ files."""
    organ_folder(tmp_path / "in" / "s1", {"liver": 1})
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    write(tmp_path / "in" / "s1" / "segmentations" / "aorta.nii.gz", (drawn() == 2).astype(np.uint8))
    assert shard(tmp_path / "in", tmp_path / "out") == 1
    assert "the input has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["W39_1998.09.19_Segm.nii.gz", "x_GT.nii.gz", "tumour_annotation.nii.gz"])
def test_a_label_map_of_another_name_in_a_study_is_found(name: str, tmp_path: Path) -> None:
    """As that of BraTS 2020's patient 355."""
    for sequence in ("t1", "flair"):
        write(tmp_path / "in" / "P_355" / f"P_355_{sequence}.nii.gz", (volume() + 1000).astype(np.int16))
    write(tmp_path / "in" / "P_355" / name, drawn())
    assert shard(tmp_path / "in", tmp_path / "out", command=shard_mri) == 0
    assert [row["annotated"] for row in rows(tmp_path / "out")] == [[1, 2], [1, 2]]


def segmentation(path: Path, pixels: np.ndarray, refers: str, segments: dict[int, str], **attributes: object) -> None:
    """A LABELMAP segmentation: (Z, rows, columns) numbers of segments on the grid of `dicom_files.series`."""
    dataset = dicom_files.header(
        RescaleSlope=None, RescaleIntercept=None, SeriesInstanceUID="1.2.3.77", PixelRepresentation=0, **attributes
    )
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.66.7", "SEG"
    dataset.SOPInstanceUID, dataset.SegmentationType = generate_uid(entropy_srcs=[str(path)]), "LABELMAP"
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [2, 2], 3, 3
    orientation.ImageOrientationPatient = list(dicom_files.AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for place in range(len(pixels)):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 3 * place]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.SegmentSequence = []
    for number, name in segments.items():
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, name
        dataset.SegmentSequence.append(segment)
    series = Dataset()
    series.SeriesInstanceUID = refers
    dataset.ReferencedSeriesSequence = [series]
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.NumberOfFrames = bits - 1, len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.PixelData = pixels.tobytes()
    dicom_files.save(dataset, path)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_labelmap_segmentation(kind: type, tmp_path: Path, capsys) -> None:
    """Pixels are numbers of segments, in 8 or 16 bits; one that is not described is refused."""
    dicom_files.series(tmp_path / "in" / "p", volume().transpose(2, 1, 0))
    pixels = as_stored(drawn()).astype(kind)
    segmentation(tmp_path / "in" / "seg.dcm", pixels, "1.2.3.4", {1: "Liver", 2: "Spleen"})
    assert shard(tmp_path / "in", tmp_path / "out", "labels.7=spleen") == 0
    expected = np.where(as_stored(drawn()) == 2, 7, as_stored(drawn()))
    assert np.array_equal(labels_of(tmp_path / "out"), expected)
    segmentation(tmp_path / "in" / "seg.dcm", pixels, "1.2.3.4", {1: "Liver"})
    assert shard(tmp_path / "in", tmp_path / "other") == 1
    assert "pixels of segment 2, which the segmentation does not describe" in capsys.readouterr().err
    assert pydicom.dcmread(tmp_path / "in" / "seg.dcm").SOPClassUID != SegmentationStorage


def test_a_segmentation_packed_by_gzip(tmp_path: Path) -> None:
    """It gives the labels of the plain one, as packed images do."""
    dicom_files.series(tmp_path / "in" / "p", volume().transpose(2, 1, 0))
    path = tmp_path / "in" / "seg.dcm"
    segmentation(path, as_stored(drawn()).astype(np.uint8), "1.2.3.4", {1: "Liver", 2: "Spleen"})
    path.with_name("seg.dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    assert np.array_equal(labels_of(tmp_path / "out"), as_stored(drawn()))


def test_masks_that_match_some_or_none_are_said(tmp_path: Path, capsys) -> None:
    """n of m on the console; none is an error; several trees are one; nnU-Net's names lack the channel."""
    for name in ("a_0000", "b_0000", "c_0000"):
        write(tmp_path / "in" / f"{name}.nii.gz", volume())
    write(tmp_path / "first" / "a.nii.gz", drawn())
    write(tmp_path / "second" / "b.nii.gz", drawn())
    (tmp_path / "empty").mkdir()
    masks = ("--masks", str(tmp_path / "first"))
    assert shard(tmp_path / "in", tmp_path / "one", *masks) == 0
    assert "--masks: 1 of 3 images have a label map there" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "both", *masks, "--masks", str(tmp_path / "second")) == 0
    assert sum(bool(row["annotated"]) for row in rows(tmp_path / "both")) == 2
    assert shard(tmp_path / "in", tmp_path / "none", "--masks", str(tmp_path / "empty")) == 1
    assert "none of 3 images has a label map there; lay it out like --input" in capsys.readouterr().err


def test_several_inputs_are_one_data_set(tmp_path: Path, capsys) -> None:
    """Equal paths below two inputs are two images of one patient, said; a series over two folders is one series."""
    for number, place in enumerate(("a", "b")):
        write(tmp_path / place / "p" / "ct.nii.gz", volume(number))
        write(tmp_path / place / f"q{number}" / "ct.nii.gz", volume(number + 2))
    stored = volume(5).transpose(2, 1, 0)
    for path in dicom_files.series(tmp_path / "a" / "d", stored):
        if int(path.name) % 2:
            (tmp_path / "b" / "d").mkdir(exist_ok=True)
            path.rename(tmp_path / "b" / "d" / path.name)
    assert shard(tmp_path / "a", tmp_path / "out", "--input", str(tmp_path / "b")) == 0
    found = rows(tmp_path / "out")
    assert [row["status"] for row in found] == ["accepted"] * 5 and len({row["source"] for row in found}) == 5
    assert len({row["subject"] for row in found}) == 4
    assert [row["files"] for row in found if row["kind"] == "dicom"] == [8]
    assert "patients are named in several inputs" in capsys.readouterr().err
    assert verify.main([str(tmp_path / "out")]) == 0
    assert shard(tmp_path / "a", tmp_path / "out", "--input", str(tmp_path / "b")) == 0
    assert "finished before" in capsys.readouterr().err


def test_inputs_and_masks_go_together(tmp_path: Path) -> None:
    """Label maps beside images, in a tree of masks, and named by a pattern, for two inputs of the same folder name."""
    for number, place in enumerate(("x/in", "y/in")):
        write(tmp_path / place / f"p{number}" / "ct.nii.gz", volume(number))
    write(tmp_path / "masks" / "p1" / "ct.nii.gz", drawn())
    words = ("--input", str(tmp_path / "y/in"), "--masks", str(tmp_path / "masks"))
    assert shard(tmp_path / "x/in", tmp_path / "out", *words) == 0
    assert sorted(row["annotated"] for row in rows(tmp_path / "out")) == [[], [1, 2]]
    words = ("--input", str(tmp_path / "y/in"), "label_maps={in-2/*: p1/drawn.nii.gz}")
    write(tmp_path / "y/in" / "p1" / "drawn.nii.gz", drawn())
    shard(tmp_path / "x/in", tmp_path / "named", *words)
    accepted = [row["annotated"] for row in rows(tmp_path / "named") if row["status"] == "accepted"]
    assert sorted(accepted) == [[], [1, 2]]


def test_places_that_cannot_be_meant_are_errors(tmp_path: Path, capsys) -> None:
    """An output that is or holds the input, masks that are the input: nothing is written."""
    write(tmp_path / "in" / "p" / "ct.nii.gz", volume())
    before = sorted(tmp_path.rglob("*"))
    assert shard(tmp_path / "in", tmp_path / "in") == 1
    assert "is the --input" in capsys.readouterr().err
    assert shard(tmp_path / "in" / "p", tmp_path / "in") == 1
    assert "holds the --input" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "out", "--masks", str(tmp_path / "in" / "p" / "..")) == 1
    assert "label maps beside their images are found without it" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_given_twice_is_an_error(tmp_path: Path, capsys) -> None:
    """Every option but --input and --masks, folders that hold each other; of a key's values the last counts, said."""
    write(tmp_path / "in" / "p" / "ct.nii.gz", volume())
    for words in (
        ("--output", str(tmp_path / "o")),
        ("--labels", "a", "--labels", "b"),
        ("--config", "a", "--config", "b"),
    ):
        with pytest.raises(SystemExit) as left:
            shard(tmp_path / "in", tmp_path / "out", *words)
        assert left.value.code == 2 and "is given twice; give it once" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "keys", "workers=1", "workers=2") == 0
    assert "workers: given 2 times; the last one counts: workers=2" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "out", "--input", str(tmp_path / "in")) == 1
    assert "given twice; leave one out" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "out", "--input", str(tmp_path / "in" / "p")) == 1
    assert "so its files would be read twice" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "out", "--layout", "none", "layout=auto") == 1
    assert "error: --layout none: and layout=auto; give one of them" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("case", "command", "annotated", "note"),
    [
        ("70d-label-origin-off", shard_ct, [1, 2], "labels_off_mm"),
        ("71-label-float-inexact", shard_ct, [1, 2], "label_voxels_rounded"),
        ("71b-label-scl-slope", shard_ct, [1, 2], "label_voxels_rounded"),
        ("189-saros-255", shard_ct, [1, 2], "ignored_voxels"),
        ("187-totalsegmentator-layout", shard_ct, None, "organ_files"),
        ("172-brats20-355", shard_mri, [1, 2], None),
    ],
)
def test_the_cases_that_were_wrong(case: str, command, annotated, note, tmp_path: Path) -> None:
    """Each is read whole and noted."""
    if not (CASES / case).is_dir():
        pytest.skip(f"no {case} in ../shared/cases")
    assert shard(CASES / case, tmp_path / "out", command=command) == 0
    for row in rows(tmp_path / "out"):
        assert row["status"] == "accepted" and row["annotated"] == (annotated or row["annotated"]) and row["annotated"]
        assert note is None or note in row["notes"]
