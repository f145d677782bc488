"""Who is a patient, loudly: one for many images, one PatientID for many folders, splits left empty; and strict."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import dicom_files, radiographs
from helpers.prepared import Here, discovered, names

from data_prep import merge, overview, schema, shard_ct
from data_prep.config import CtConfig, ImagesConfig
from data_prep.discovery import doubts, picture_sources
from data_prep.discovery.inputs import Inputs

CASES = Path(__file__).parents[2] / "shared" / "cases"
VOLUME = np.where(np.indices((16, 14, 4))[0] > 4, 40, -1000).astype(np.int16)


@pytest.fixture(autouse=True)
def salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A salt for the hashed ids."""
    monkeypatch.setenv("MEDDAP_SALT", "x")


def nifti(*paths: Path) -> None:
    """Small CTs, no two alike."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(VOLUME + np.int16(number), np.diag([-2.0, -2.0, 3.0, 1.0])), path)


def series(folder: Path, patient: str, study: int, **attributes: object) -> None:
    """A small DICOM series, alone in its study."""
    uid = {"StudyInstanceUID": f"1.{study}", "SeriesInstanceUID": f"1.{study}.1", **attributes}
    dicom_files.series(folder, VOLUME.T[:2], PatientID=patient, **uid)


def shard(folder: Path, output: Path, *words: str) -> int:
    """Run the command."""
    return shard_ct.main(["--input", str(folder), "--output", str(output), *words])


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_eight_patients_called_anonymous(tmp_path: Path, capsys) -> None:
    """One id for eight folders and studies is warned of, with the setting that takes the folder, which does."""
    source = CASES / "44-all-anonymous"
    assert shard(source, tmp_path / "strict", "strict=true") == 1
    *lines, error = capsys.readouterr().err.splitlines()
    expected = (
        "warning: one PatientID, a placeholder as de-identification writes it, covers 8 folders with 8 studies; if "
        "they are of several patients, patient_id=path takes their paths"
    )
    assert expected in lines and error.startswith("error: strict=true: the ") and "ANONYMOUS" not in " ".join(lines)
    assert not list((tmp_path / "strict").glob("staging/*"))
    assert shard(source, tmp_path / "out", "patient_id=path") == 0
    assert "PatientID" not in capsys.readouterr().err
    splits = schema.read_dataset(tmp_path / "out")["splits"].values()
    assert sum(split["subjects"] for split in splits) == 8


@pytest.mark.parametrize(
    "patient", ["ANONYMOUS", "0", "000", "none", "Anonymized^Patient", "N/A", "xxxx", "De-Identified"]
)
def test_placeholders_are_doubtful_in_two_folders(patient: str, tmp_path: Path) -> None:
    """What de-identification writes for all; one study of a patient so called, in several folders, says nothing."""
    for number in range(2):
        series(tmp_path / "in" / f"p{number}", patient, number)
    (line,) = discovered(tmp_path / "in").warnings
    assert (
        line.startswith("one PatientID, a placeholder") and "2 folders with 2 studies" in line and patient not in line
    )
    for number in range(2):
        series(tmp_path / "one" / f"s{number}", patient, 1, SeriesInstanceUID=f"1.1.{number}")
    assert discovered(tmp_path / "one").warnings == []


@pytest.mark.parametrize("patient", ["", " "])
def test_without_an_id_the_path_names_the_patient(patient: str, tmp_path: Path) -> None:
    """Said, and two patients whose identifiers were all emptied or replaced by one are two."""
    for number in range(2):
        series(tmp_path / "in" / f"p{number}", patient, 1)
    found = discovered(tmp_path / "in")
    assert sorted(source.patient for source in found.sources) == ["p0", "p1"]
    assert found.lines == ["2 DICOM series or studies have no PatientID: their paths name the patients"]


def test_an_id_like_any_other_in_many_folders_is_doubtful(tmp_path: Path) -> None:
    """Eight folders with a study each; also among others; not a few of many."""
    for number in range(8):
        series(tmp_path / "in" / f"p{number}", "4711", number)
    (line,) = discovered(tmp_path / "in").warnings
    assert line.startswith("one PatientID covers 8 folders with 8 studies") and "4711" not in line
    for number in range(8, 18):
        series(tmp_path / "in" / f"p{number}", f"own{number}", number)
    assert len(discovered(tmp_path / "in").warnings) == 1
    for number in range(18, 42):
        series(tmp_path / "in" / f"p{number}", f"own{number}", number)
    assert discovered(tmp_path / "in").warnings == []


def test_follow_ups_are_no_doubt(tmp_path: Path) -> None:
    """Six studies of a patient in one folder, however deep; another has three in folders of their own."""
    for number in range(6):
        series(tmp_path / "in" / "p1" / f"2019-{number}" / "ct", "4711", number)
    for number in range(3):
        series(tmp_path / "in" / f"visit{number}", "4712", 10 + number)
    for number in range(4):
        series(tmp_path / "in" / f"q{number}", f"q{number}", 20 + number)
    assert discovered(tmp_path / "in").warnings == []


def test_people_who_share_an_id_are_told_by_birth_date_or_sex(tmp_path: Path) -> None:
    """Patient 1 of two hospitals; a missing date contradicts nothing."""
    series(tmp_path / "in" / "a", "1", 0, PatientBirthDate="19500101", PatientSex="M")
    series(tmp_path / "in" / "b", "1", 1, PatientBirthDate="", PatientSex="M")
    assert discovered(tmp_path / "in").warnings == []
    series(tmp_path / "in" / "b", "1", 1, PatientBirthDate="19600202", PatientSex="M")
    (line,) = discovered(tmp_path / "in").warnings
    assert line.startswith("one PatientID has several birth dates or sexes") and "patient_id=path" in line
    found = discovered(tmp_path / "in", config=CtConfig(patient_id="path"))
    assert [source.patient for source in found.sources] == ["a", "b"] and not found.warnings


def test_radiographs_that_share_an_id_are_doubtful(tmp_path: Path) -> None:
    """As series are; patient_id=path names the patients of radiographs too."""
    for number in range(8):
        place = tmp_path / "in" / f"p{number}" / "a"
        place.parent.mkdir(parents=True)
        radiographs.write(place, np.eye(16, dtype=np.uint16), "Anonymous", StudyInstanceUID=f"1.{number}")
    found = picture_sources.discover(Inputs.of([tmp_path / "in"]), [], ImagesConfig(), "IMAGE", Here())
    assert len(found.warnings) == 1 and "covers 8 folders with 8 studies" in found.warnings[0]
    by_path = ImagesConfig(patient_id="path", patient_from="auto")
    found = picture_sources.discover(Inputs.of([tmp_path / "in"]), [], by_path, "IMAGE", Here())
    assert sorted(source.patient for source in found.sources) == [f"p{number}" for number in range(8)]
    assert found.warnings == []


def test_identifiers_that_are_all_alike_do_not_merge_patients_by_path(tmp_path: Path) -> None:
    """De-identification gave everybody one PatientID, one StudyInstanceUID and one SeriesInstanceUID."""
    for number in range(3):
        series(tmp_path / "in" / f"p{number}" / "ct", "0", 1)
    found = discovered(tmp_path / "in", config=CtConfig(patient_id="path"))
    assert [(source.patient, len(source.series[0].files)) for source in found.sources] == [
        (f"p{number}", 2) for number in range(3)
    ]


@pytest.mark.parametrize("rule", ["first_folder", "parent_folder"])
def test_one_patient_for_many_images_is_doubtful(rule: str, tmp_path: Path) -> None:
    """Nine images below one folder; the other rules tell them apart."""
    nifti(*(tmp_path / "in" / "train" / f"case{n}_ct.nii.gz" for n in range(9)))
    (line,) = discovered(tmp_path / "in", config=CtConfig(patient_from=rule)).warnings
    assert line.startswith(f"one patient has 9 of 9 images, named by their paths (patient_from={rule})")
    assert "patient_from=file" in line
    assert discovered(tmp_path / "in", config=CtConfig(patient_from="file")).warnings == []


def test_a_few_images_of_each_patient_are_no_doubt(tmp_path: Path) -> None:
    """Twelve patients with ten phases, eight images of one, BIDS sessions."""
    nifti(*(tmp_path / "many" / f"p{p:02d}" / f"phase{n}_ct.nii.gz" for p in range(12) for n in range(10)))
    nifti(*(tmp_path / "few" / "p" / f"{n}_ct.nii.gz" for n in range(8)))
    nifti(*(tmp_path / "bids" / "sub-1" / f"ses-{n}" / f"sub-1_ses-{n}_ct.nii.gz" for n in range(12)))
    for name in ("many", "few", "bids"):
        assert discovered(tmp_path / name, config=CtConfig(patient_from="first_folder")).warnings == []


def test_ids_that_people_have_are_no_placeholders() -> None:
    """A hospital's numbers and names of studies."""
    for patient in ("1", "11", "4711", "P-0001", "LIDC-IDRI-0001", "sub-01", "Nona", "annon2", "1000"):
        assert not doubts.is_placeholder(patient), patient


def test_splits_without_patients_are_said_and_refused_by_strict(tmp_path: Path, capsys) -> None:
    """Before anything is staged where the ids tell it; behind it where all images of a split were left out."""
    nifti(*(tmp_path / "in" / f"p{number}" / "ct.nii.gz" for number in range(2)))
    assert shard(tmp_path / "in", tmp_path / "out", "split.test=0") == 0
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: no patient in ") and "=0" in line and "test" not in line
    dataset = schema.read_dataset(tmp_path / "out")
    assert len(dataset["warnings"]) == 1 and dataset["warnings"][0] in said
    assert f"Warning: {dataset['warnings'][0]}" in overview.overview(tmp_path / "out")
    assert shard(tmp_path / "in", tmp_path / "strict", "split.test=0", "strict=true") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: strict=true: the warning above is an error; ")
    assert not list((tmp_path / "strict").glob("staging/*"))
    words = ("split.train=1", "split.val=0", "split.test=0", "strict=true")
    assert shard(tmp_path / "in", tmp_path / "all", *words) == 0
    assert schema.read_dataset(tmp_path / "all")["warnings"] == []


def test_strict_refuses_what_only_staging_finds(tmp_path: Path, capsys) -> None:
    """A label map that does not fit is a warning; what is staged serves the start without strict."""
    train = ("split.train=1", "split.val=0", "split.test=0")
    nifti(tmp_path / "in" / "p" / "ct.nii.gz")
    labels = nibabel.Nifti1Image(np.ones((8, 8, 4), np.uint8), np.diag([-2.0, -2.0, 3.0, 1.0]))
    nibabel.save(labels, tmp_path / "in" / "p" / "ct_seg.nii.gz")
    assert shard(tmp_path / "in", tmp_path / "out", *train, "strict=true") == 1
    said = capsys.readouterr().err
    assert "warning: 1 series without their label map: found by its name" in said
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert shard(tmp_path / "in", tmp_path / "out", *train) == 0
    assert "1 of 1 inputs were staged before" in capsys.readouterr().err


def test_copies_under_two_names_are_said(tmp_path: Path, capsys) -> None:
    """A volume stored as another patient's too would be in two splits; a second volume of one patient is none."""
    for patient, name, number in (("a", "x", 0), ("b", "y", 0), ("a", "z", 1), ("a", "z2", 1), ("c", "ct", 2)):
        path = tmp_path / "in" / patient / f"{name}_ct.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(VOLUME + np.int16(number), np.diag([-2.0, -2.0, 3.0, 1.0])), path)
    train = ("split.train=1", "split.val=0", "split.test=0")
    assert shard(tmp_path / "in", tmp_path / "out", *train) == 0
    (line,) = schema.read_dataset(tmp_path / "out")["warnings"]
    assert (
        line.startswith("2 images of 2 patients are copies of each other")
        and f"warning: {line}" in capsys.readouterr().err
    )


def test_merged_parts_say_which_split_is_empty(tmp_path: Path, capsys) -> None:
    """A part may lack patients of a split in silence; the whole may not."""
    nifti(*(tmp_path / "in" / f"p{number}" / "ct.nii.gz" for number in range(2)))
    for part in ("1/2", "2/2"):
        assert shard(tmp_path / "in", tmp_path / "out", f"part={part}", "split.test=0") == 0
    capsys.readouterr()
    assert merge.main([str(tmp_path / "out")]) == 0
    assert "warning: no patient in " in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["warnings"]
    assert names(discovered(tmp_path / "in").sources)
