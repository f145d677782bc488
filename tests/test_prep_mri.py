"""MRI studies: which sequence is which, one grid, one scale, and any of them missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePath

import nibabel
import numpy as np
import pydicom
import pytest
from helpers import dicom_files
from helpers.mri_files import RAS_2MM, head, write

from data_prep import schema, shard_mri, verify
from data_prep.discovery import sequences
from data_prep.volumes import scaling


def shard(source: Path, output: Path, *words: str) -> int:
    """Run the command; all patients in training."""
    split = ("split.train=1", "split.val=0", "split.test=0")
    return shard_mri.main(["--input", str(source), "--output", str(output), *split, *words])


def samples(output: Path) -> list[schema.Slice]:
    """All slices, by series and place."""
    split = schema.Split(output, "train")
    return sorted((split[n] for n in range(len(split))), key=lambda sample: (sample.series, sample.order))


def rows(output: Path) -> list[dict]:
    """Rows of manifest.jsonl."""
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def test_brats_gives_four_sequences_and_three_where_one_is_missing(data_dir: Path, tmp_path: Path) -> None:
    """Samples of four sequences with label maps; without a file, of three; pixels give the signal back."""
    source = tmp_path / "in"
    for name in ("BraTS2021_00006", "BraTS2021_01657"):
        shutil.copytree(data_dir / "mri_brats" / name, source / name)
    (source / "BraTS2021_01657" / "BraTS2021_01657_t1ce.nii.gz").unlink()
    assert (
        shard(source, tmp_path / "out", "workers=2", "labels.1=necrosis", "labels.2=oedema", "labels.4=enhancing") == 0
    )
    found: dict[tuple, int] = {}
    for sample in samples(tmp_path / "out"):
        found[sample.sequences] = found.get(sample.sequences, 0) + 1
        assert sample.pixels.shape == (len(sample.sequences), 240, 240) and sample.pixels.dtype == np.uint16
        assert (
            sample.annotated == (1, 2, 4)
            and sample.labelmap is not None
            and len(sample.scales) == len(sample.sequences)
        )
    assert found == {("t1", "t1c", "t2", "flair"): 132, ("t1", "t2", "flair"): 125}
    dataset = schema.read_dataset(tmp_path / "out")
    assert dataset["sequences"] == {"flair": 2, "t1": 2, "t1c": 1, "t2": 2}
    assert dataset["labels"] == {"1": "necrosis", "2": "oedema", "4": "enhancing"}
    assert verify.main([str(tmp_path / "out"), "workers=2"]) == 0
    whole = np.asarray(nibabel.load(source / "BraTS2021_01657" / "BraTS2021_01657_t2.nii.gz").dataobj)
    seg = np.asarray(nibabel.load(source / "BraTS2021_01657" / "BraTS2021_01657_seg.nii.gz").dataobj)
    for sample in samples(tmp_path / "out"):
        if len(sample.sequences) == 3:
            slope, intercept = sample.scales[1]
            signal = sample.pixels[1] * slope + intercept
            # stored posterior to the left in this file: LPS order of rows and columns
            z = sample.order
            expected = whole[:, :, z].T.astype(float)
            assert np.abs(signal - expected).max() <= slope / 2 + 1e-6
            assert np.array_equal(sample.labelmap, seg[:, :, z].T)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "t1"),
        ("sub-01/ses-2/anat/sub-01_ses-2_ce-gadolinium_T1w.nii.gz", "t1c"),
        ("sub-01/anat/sub-01_acq-t1like_T2w.nii.gz", "t2"),
        ("sub-01/anat/sub-01_FLAIR.nii.gz", "flair"),
        ("sub-01/anat/sub-01_PDw.nii", "pd"),
        ("sub-01/swi/sub-01_swi.nii.gz", "swi"),
        ("sub-01/dwi/sub-01_dwi.nii.gz", "dwi"),
        ("sub-01/anat/sub-01_T2starw.nii.gz", "t2star"),
        ("BraTS2021_00006_t1ce.nii.gz", "t1c"),
        ("BraTS-GLI-00000-000-t1c.nii.gz", "t1c"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1"),
        ("BraTS-GLI-00000-000-t2f.nii.gz", "flair"),
        ("BraTS-GLI-00000-000-t2w.nii.gz", "t2"),
        ("patient07/T1POST_N4_regtoFLAIR_brain.nii.gz", "t1c"),
        ("p1/AX_T1_POST_GAD.nii.gz", "t1c"),
        ("p1/AX_T1_pre_contrast.nii.gz", "t1"),
        ("p1/AX_T2_FLAIR.nii.gz", "flair"),
        ("p1/SAG_T1_FLAIR.nii.gz", "t1"),
        ("p1/ADC.nii.gz", "adc"),
        ("p1/scan0001.nii.gz", None),
    ],
)
def test_names_tell_sequences(name: str, expected: str | None) -> None:
    """BIDS suffixes and entities, BraTS of all years, words in any order; nothing is guessed from nothing."""
    guess = sequences.by_name(PurePath(name))
    assert (guess.sequence if guess else None) == expected


@pytest.mark.parametrize(
    ("attributes", "expected", "grounds"),
    [
        ({"SeriesDescription": "AX T2 FLAIR FS"}, "flair", "SeriesDescription"),
        ({"SeriesDescription": "t1_mprage_sag_p2_iso"}, "t1", "SeriesDescription"),
        (
            {"SeriesDescription": "t1_mprage_sag", "ContrastBolusAgent": "Gadovist"},
            "t1c",
            "SeriesDescription and ContrastBolusAgent",
        ),
        ({"SeriesDescription": "Series 4", "ProtocolName": "T2 TSE tra"}, "t2", "ProtocolName"),
        (
            {"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500},
            "flair",
            "TR 9000 ms, TE 120 ms, TI 2500 ms",
        ),
        ({"RepetitionTime": 4000, "EchoTime": 95, "ScanningSequence": "SE"}, "t2", "TR 4000 ms, TE 95 ms"),
        ({"RepetitionTime": 500, "EchoTime": 12, "ScanningSequence": "SE"}, "t1", "TR 500 ms, TE 12 ms"),
        (
            {"RepetitionTime": 500, "EchoTime": 12, "ContrastBolusAgent": "Dotarem"},
            "t1c",
            "TR 500 ms, TE 12 ms, ContrastBolusAgent",
        ),
        ({"RepetitionTime": 2500, "EchoTime": 15}, "pd", "TR 2500 ms, TE 15 ms"),
        ({"RepetitionTime": 700, "EchoTime": 25, "ScanningSequence": "GR"}, "t2star", "TR 700 ms, TE 25 ms"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "adc", "ImageType"),
        ({"DiffusionBValue": 1000.0, "RepetitionTime": 6000, "EchoTime": 90}, "dwi", "DiffusionBValue"),
        ({}, None, None),
    ],
)
def test_headers_tell_sequences(attributes: dict, expected: str | None, grounds: str | None) -> None:
    """Description and protocol first, then the physics; the grounds are said and hold no free text."""
    dataset = pydicom.Dataset()
    dicom_files.put(dataset, attributes)
    guess = sequences.by_header(dataset)
    assert (guess.sequence, guess.grounds) == (expected, grounds) if expected else guess is None


def test_the_users_mapping_comes_first(tmp_path: Path) -> None:
    """A pattern of the path overrules the name; the manifest says how each sequence was known."""
    write(tmp_path / "in" / "p" / "scan_a.nii.gz", head())
    write(tmp_path / "in" / "p" / "x_T1w.nii.gz", head(seed=1))
    config = tmp_path / "c.yaml"
    config.write_text("sequences: {'*scan_a*': flair, '*_T1w*': t1c}\n")
    assert shard(tmp_path / "in", tmp_path / "out", "--config", str(config)) == 0
    assert {row["sequence"]: row["grounds"] for row in rows(tmp_path / "out")} == {
        "flair": "pattern given",
        "t1c": "pattern given",
    }
    assert samples(tmp_path / "out")[0].sequences == ("t1c", "flair")


def test_bids_sessions_are_studies(tmp_path: Path) -> None:
    """Two sessions of one subject are two studies; derivatives are left out, masks of the session are used."""
    bids = tmp_path / "in"
    for session in ("ses-1", "ses-2"):
        anat = bids / "sub-07" / session / "anat"
        write(anat / f"sub-07_{session}_T1w.nii.gz", head(seed=1))
        write(anat / f"sub-07_{session}_FLAIR.nii.gz", head(seed=2))
    mask = (head() > 60).astype(np.uint8)
    write(bids / "sub-07" / "ses-1" / "anat" / "sub-07_ses-1_label-lesion_mask.nii.gz", mask)
    write(bids / "derivatives" / "smooth" / "sub-07" / "sub-07_T1w.nii.gz", head())
    (bids / "dataset_description.json").write_text("{}")
    assert shard(bids, tmp_path / "out") == 0
    accepted = [row for row in rows(tmp_path / "out") if row["status"] == "accepted"]
    assert len(accepted) == 4 and len({row["subject"] for row in accepted}) == 1
    assert len({row["stack"] for row in accepted}) == 2
    assert sorted(tuple(row["annotated"]) for row in accepted) == [(), (), (1,), (1,)]
    (left_out,) = [row["reason"] for row in rows(tmp_path / "out") if row["status"] == "rejected"]
    assert left_out == "derivative of a BIDS data set"


def ramp(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A signal that is linear in patient coordinates: linear interpolation gives it back exactly."""
    at = (
        np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    )
    return (1000 + at @ [3.0, 5.0, 7.0]).astype(np.float32)


def test_sequences_come_to_one_grid_by_their_affines(tmp_path: Path) -> None:
    """Another voxel size, shift and axis order: a place shows the same signal; the thickest slices are the grid."""
    thick = np.array([[-1.0, 0, 0, 10], [0, -1.0, 0, 12], [0, 0, 5.0, -20], [0, 0, 0, 1]])
    fine = np.array([[0, 0, 1.0, -20], [1.0, 0, 0, -22], [0, 1.0, 0, -25], [0, 0, 0, 1]])  # axes in another order
    write(tmp_path / "in" / "p" / "a_T2w.nii.gz", ramp(thick, (30, 32, 8)), thick)
    write(tmp_path / "in" / "p" / "a_T1w.nii.gz", ramp(fine, (40, 46, 36)), fine)
    assert shard(tmp_path / "in", tmp_path / "out", "min_foreground=0") == 0
    found = samples(tmp_path / "out")
    assert len(found) == 8
    accepted = {row["sequence"]: row for row in rows(tmp_path / "out")}
    assert accepted["t2"]["reference"] and not accepted["t1"]["reference"]
    assert accepted["t1"]["notes"]["resampled_onto_study"] and accepted["t1"]["notes"]["overlap"] > 0.7
    for sample in found[1:5]:  # well inside both: at its ends a sequence is blurred with itself
        signal = {
            name: plane * slope + intercept
            for name, plane, (slope, intercept) in zip(sample.sequences, sample.pixels.astype(float), sample.scales)
        }
        assert np.abs(signal["t1"] - signal["t2"])[:, 2:-2].max() < 0.2


def test_slices_outside_a_sequence_do_not_have_it(tmp_path: Path) -> None:
    """A sequence that covers the lower part only: above it samples have the others, and say so."""
    write(tmp_path / "in" / "p" / "a_T1w.nii.gz", head((24, 24, 12)))
    write(tmp_path / "in" / "p" / "a_T2w.nii.gz", head((24, 24, 12), seed=3)[:, :, :7])
    assert shard(tmp_path / "in", tmp_path / "out", "min_foreground=0", "reference=t1") == 0
    assert [sample.sequences for sample in samples(tmp_path / "out")] == [("t1", "t2")] * 7 + [("t1",)] * 5
    accepted = {row["sequence"]: row["slices"] for row in rows(tmp_path / "out")}
    assert accepted == {"t1": 12, "t2": 7}
    assert verify.main([str(tmp_path / "out")]) == 0


def test_sequences_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    """Too little overlap, or another frame of reference: left out with a reason, the rest of the study is used."""
    moved = RAS_2MM.copy()
    moved[0, 3] = 40
    write(tmp_path / "in" / "p" / "a_T1w.nii.gz", head())
    write(tmp_path / "in" / "p" / "a_T2w.nii.gz", head(seed=1), moved)
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    (refused,) = [row for row in rows(tmp_path / "out") if row["status"] == "rejected"]
    assert refused["sequence"] == "t2" and "less than min_overlap=0.5" in refused["reason"]
    voxels = head((20, 20, 6)).transpose(2, 1, 0)
    for number, (name, frame) in enumerate((("T1", "1.2.9"), ("T2", "1.2.10"))):
        kept = dict(SeriesDescription=name, FrameOfReferenceUID=frame, SeriesInstanceUID=f"1.2.{number}")
        dicom_files.series(tmp_path / "dicom" / name, voxels, modality="MR", **kept)
    assert shard(tmp_path / "dicom", tmp_path / "out2") == 0
    (refused,) = [row for row in rows(tmp_path / "out2") if row["status"] == "rejected"]
    assert refused["reason"].startswith("another frame of reference")


def test_dicom_series_of_a_study_become_channels(tmp_path: Path) -> None:
    """T1, T1 with contrast and FLAIR of one StudyInstanceUID: one sample per slice; a second T1 is told apart."""
    for number, (name, more) in enumerate(
        [("t1 tse", {}), ("t1 tse km", {"ContrastBolusAgent": "G"}), ("t2 flair", {}), ("t1 tse again", {})]
    ):
        voxels = head((20, 20, 6), seed=number).transpose(2, 1, 0)
        kept = dict(SeriesDescription=name, SeriesInstanceUID=f"1.2.{number}", **more)
        dicom_files.series(tmp_path / "in" / "study" / str(number), voxels, modality="MR", **kept)
    assert shard(tmp_path / "in", tmp_path / "out", "min_foreground=0") == 0
    found = samples(tmp_path / "out")
    assert len(found) == 6 and all(sample.sequences == ("t1", "t1c", "flair") for sample in found)
    (refused,) = [row for row in rows(tmp_path / "out") if row["status"] == "rejected"]
    assert refused["reason"] == "another t1 of this study is larger or came first"


def test_the_scale_is_robust_and_gives_the_signal_back() -> None:
    """The foreground's percentiles at 24576 and 40960, integers come back exactly, a few huge voxels change nothing."""
    signal = head((60, 60, 20), level=800.0) + np.arange(60, dtype=np.int16)[:, None, None] * 10
    scale = scaling.robust(signal)
    stored = scale.encode(signal)
    inside = stored[signal > scaling.foreground_threshold(signal.ravel())]
    assert np.percentile(inside, [0.5, 99.5]) == pytest.approx([24576, 40960], abs=30)
    assert np.array_equal(np.rint(stored * scale.slope + scale.intercept), signal) and scale.clipped == 0
    spoilt = signal.astype(np.int32)
    spoilt[30, 30, 10:14] = 30000
    robust = scaling.robust(spoilt)
    assert robust.slope == pytest.approx(scale.slope, rel=0.02)
    robust.encode(spoilt)
    assert robust.clipped == 4


def test_the_scale_does_not_depend_on_the_unit_of_the_signal() -> None:
    """a·signal + b gives the same stored values: what the scanner's gain did is gone."""
    signal = head((40, 40, 12), level=500.0).astype(np.float64)
    first = scaling.robust(signal).encode(signal)
    for gain, shift in ((0.01, 0.0), (37.0, -1200.0)):
        other = gain * signal + shift
        assert np.abs(scaling.robust(other).encode(other).astype(int) - first).max() <= 1


def test_a_masked_background_is_told_from_noise() -> None:
    """Skull-stripped: the constant is background, all else foreground; with noise around it Otsu's threshold."""
    rng = np.random.default_rng(0)
    tissue = rng.normal(300, 40, 40_000).clip(20)
    masked = np.concatenate([np.zeros(60_000), tissue])
    assert scaling.foreground_threshold(masked) == 0
    noisy = np.concatenate([np.abs(rng.normal(0, 8, 60_000)).round(), tissue])
    assert 20 < scaling.foreground_threshold(noisy) < 180


def test_a_constant_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """No scale exists for it: it has a row and a reason."""
    write(tmp_path / "in" / "p" / "a_T1w.nii.gz", np.full((10, 10, 5), 7, np.int16))
    assert shard(tmp_path / "in", tmp_path / "out") == 1
    assert "its foreground has one value only" in capsys.readouterr().err


def test_single_files_of_a_folder_are_told_how_to_become_a_study(tmp_path: Path, capsys) -> None:
    """Files beside each other whose names have nothing in common: a hint, and study_from=folder does it."""
    write(tmp_path / "in" / "abc_T1w.nii.gz", head())
    write(tmp_path / "in" / "xyz_T2w.nii.gz", head(seed=1))
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    assert "study_from=folder" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "out2", "study_from=folder") == 0
    assert samples(tmp_path / "out2")[0].sequences == ("t1", "t2")
    assert "study_from=folder" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["t1_roi", "T1_lesion", "flair_contour", "t2_parcels", "T1_region_float"])
def test_drawings_are_no_images_whatever_their_names_say(name: str, tmp_path: Path, capsys) -> None:
    """Whole numbers in even areas are labels, few values or many; a pattern of the user takes them all the same."""
    drawn = np.zeros((24, 24, 10))
    drawn[6:18, 6:18, 2:8] = 1
    drawn[8:12, 8:12, 3:7] = 2
    if name.endswith("parcels"):
        drawn = (np.indices(drawn.shape) // 6 * np.array([1, 5, 25]).reshape(3, 1, 1, 1)).sum(axis=0) * (drawn > 0)
    kind = np.float32 if name.endswith("float") else np.uint8
    write(tmp_path / "in" / "p1" / f"{name.partition('_')[0]}.nii.gz", head(seed=1))
    write(tmp_path / "in" / "p1" / f"{name}.nii.gz", drawn.astype(kind))
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert sorted(row["status"] for row in rows) == ["accepted", "rejected"]
    assert "in even areas: a label map, not an MR image" in capsys.readouterr().err
    assert shard(tmp_path / "in", tmp_path / "taken", f"sequences.*{name}*=lesion") == 0
    assert {one for sample in samples(tmp_path / "taken") for one in sample.sequences} > {"lesion"}


@pytest.mark.parametrize("zoom", [1, 2])
def test_coarse_images_are_no_drawings(zoom: int, tmp_path: Path) -> None:
    """8 bits, steps, skulls stripped, voxels doubled without interpolation: images still."""
    signal = np.rint(head(shape=(24, 24, 12), seed=3) / 4) * 4
    signal[signal < np.median(signal)] = 0
    for axis in range(3):
        signal = np.repeat(signal, zoom, axis=axis)
    write(tmp_path / "in" / "p1" / "t1.nii.gz", signal.clip(0, 255).astype(np.uint8))
    assert shard(tmp_path / "in", tmp_path / "out") == 0
