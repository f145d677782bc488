"""Linked folders and files: read once, whatever leads to them, and counted."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import dicom_files
from helpers.prepared import Here, discovered, names, problems
from PIL import Image

from data_prep import schema, shard_ct
from data_prep.config import ImagesConfig
from data_prep.discovery import picture_sources
from data_prep.discovery.inputs import Inputs

VOLUME = np.where(np.indices((16, 16, 6))[0] > 4, 40, -1000).astype(np.int16)


def nifti(path: Path, number: int = 0) -> Path:
    """A small CT whose content depends on `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(VOLUME + np.int16(number), np.diag([-2.0, -2.0, 3.0, 1.0])), path)
    return path


def series(folder: Path, number: int) -> list[Path]:
    """A small DICOM series of a patient of its own."""
    uid = {"PatientID": f"p{number}", "StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"1.{number}.1"}
    return dicom_files.series(folder, VOLUME.T, **uid)


def link(place: Path, target: Path | str) -> Path:
    """A symbolic link."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


def test_linked_patients_are_read_like_folders(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to patients elsewhere, and one to a patient who is there too: five patients, both counts said."""
    monkeypatch.setenv("MEDDAP_SALT", "x")
    source = tmp_path / "in"
    for number in range(3):
        series(tmp_path / "disk" / f"p{number}", number)
        link(source / f"p{number}", tmp_path / "disk" / f"p{number}")
    nifti(source / "p3" / "ct.nii.gz", 3)
    nifti(source / "p4" / "ct.nii.gz", 4)
    link(source / "a-first-by-name", source / "p3")
    assert shard_ct.main(["--input", str(source), "--output", str(tmp_path / "out")]) == 0
    assert "3 linked folders followed, 1 leads to a folder already read\n" in capsys.readouterr().err
    splits = schema.read_dataset(tmp_path / "out")["splits"].values()
    assert sum(split["subjects"] for split in splits) == 5
    assert sum(split["samples"] for split in splits) == 5 * 6


def test_of_two_links_the_first_by_name_counts(tmp_path: Path) -> None:
    """Links to one folder, to a folder in it, and in a folder that a link leads to."""
    nifti(tmp_path / "disk" / "x" / "deep" / "ct.nii.gz")
    nifti(tmp_path / "other" / "ct.nii.gz", 1)
    link(tmp_path / "disk" / "x" / "on", tmp_path / "other")
    for name, target in (("c", "x"), ("b", "x"), ("d", "x/deep")):
        link(tmp_path / "in" / name, tmp_path / "disk" / target)
    found = discovered(tmp_path / "in")
    assert names(found.sources) == ["b/deep/ct.nii.gz", "b/on/ct.nii.gz"]
    assert found.lines == ["2 linked folders followed, 2 lead to a folder already read"]


@pytest.mark.parametrize("target", [".", "..", "../..", "in/p", "/"])
def test_loops_end(target: str, tmp_path: Path) -> None:
    """A link to its own folder, to one that holds it or the input, to the root of the system: nothing comes twice."""
    nifti(tmp_path / "in" / "p" / "ct.nii.gz")
    nifti(tmp_path / "beside" / "ct.nii.gz")
    link(tmp_path / "in" / "p" / "loop", tmp_path / target if target == "in/p" else target)
    found = discovered(tmp_path / "in")
    assert names(found.sources) == ["p/ct.nii.gz"] and not problems(found.sources)
    assert found.lines[0].startswith("1 linked folder leads to a folder ")


def test_loops_behind_links_end(tmp_path: Path) -> None:
    """Two folders outside that lead to each other, and back to the input."""
    for name, other in (("x", "y"), ("y", "x")):
        nifti(tmp_path / name / "ct.nii.gz")
        link(tmp_path / name / "to", tmp_path / other)
        link(tmp_path / name / "up", tmp_path)
    link(tmp_path / "in" / "p", tmp_path / "x")
    assert names(discovered(tmp_path / "in").sources) == ["p/ct.nii.gz", "p/to/ct.nii.gz"]


def test_broken_links_have_rows(tmp_path: Path) -> None:
    """To nothing, to itself, to what git-annex has not fetched, to a device: a reason each."""
    nifti(tmp_path / "in" / "ct.nii.gz")
    link(tmp_path / "in" / "a", tmp_path / "nowhere")
    link(tmp_path / "in" / "b_ct.nii.gz", "b_ct.nii.gz")
    link(tmp_path / "in" / "sub-1" / "ct.nii.gz", "../.git/annex/objects/XX/YY/MD5E-s1.nii.gz")
    link(tmp_path / "in" / "d.nii", "/dev/null")
    found = discovered(tmp_path / "in")
    reasons = problems(found.sources)
    assert names(found.sources) == ["ct.nii.gz"] and list(reasons) == ["a", "b_ct.nii.gz", "d.nii", "sub-1/ct.nii.gz"]
    expected = ["broken link", "leads to itself", "neither a file nor a folder", "git-annex has not fetched"]
    assert all(words in reason for words, reason in zip(expected, reasons.values()))


def test_a_file_by_two_names_is_read_once(tmp_path: Path) -> None:
    """Linked images and DICOM files that are read directly or by another link; label maps may serve several images."""
    source = tmp_path / "in"
    first = nifti(source / "p" / "ct.nii.gz")
    link(source / "a" / "ct.nii.gz", first)  # read as p
    outside = nifti(tmp_path / "disk" / "x.nii.gz", 1)
    for name in ("q", "r"):
        link(source / name / "ct.nii.gz", outside)
    dicom = series(source / "s", 0)
    link(source / "s" / "again", dicom[0].name)
    labels = nifti(source / "p" / "seg.nii.gz")
    link(source / "q" / "seg.nii.gz", labels)
    found = discovered(source)
    assert names(found.sources) == ["p/ct.nii.gz", "q/ct.nii.gz", "s"]
    assert [len(each.series[0].files) for each in found.sources] == [1, 1, 6]
    assert [len(each.labels) for each in found.sources] == [1, 1, 0]
    assert found.lines == ["1 linked file followed, 3 lead to a file already read"]


def test_hard_links_to_an_image_are_one_image(tmp_path: Path) -> None:
    """Two patients would share every voxel; label maps (often one empty file for many) stay."""
    for name in ("a", "b", "c"):
        nifti(tmp_path / "in" / name / "ct.nii.gz", 1)
    os.remove(tmp_path / "in" / "b" / "ct.nii.gz")
    os.link(tmp_path / "in" / "a" / "ct.nii.gz", tmp_path / "in" / "b" / "ct.nii.gz")
    empty = nifti(tmp_path / "in" / "a" / "seg.nii.gz")
    os.link(empty, tmp_path / "in" / "c" / "seg.nii.gz")
    found = discovered(tmp_path / "in")
    assert names(found.sources) == ["a/ct.nii.gz", "c/ct.nii.gz"]
    assert [len(source.labels) for source in found.sources] == [1, 1]
    assert found.lines == ["1 image file is another by a second name (hard links): read once"]


def test_pictures_by_two_names_are_read_once(tmp_path: Path) -> None:
    """By a link and by a hard link; equal pictures that are two files are two."""
    rng = np.random.default_rng(0)
    source = tmp_path / "in"
    for name in ("a", "b", "c"):
        (source / name).mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(source / "b" / "x.png")
    (source / "c" / "y.png").write_bytes((source / "b" / "x.png").read_bytes())
    link(source / "a" / "x.png", source / "b" / "x.png")
    os.link(source / "b" / "x.png", source / "c" / "x.png")
    found = picture_sources.discover(Inputs.of([source]), [], ImagesConfig(), "IMAGE", Here())
    assert names(found.sources) == ["b/x.png", "c/y.png"]
    assert found.lines[:2] == [
        "1 image file is another by a second name (hard links): read once",
        "1 linked file leads to a file already read",
    ]


def test_a_data_set_of_git_annex_is_read_by_its_links(tmp_path: Path) -> None:
    """The content lies in .git, under names that end as images do; the links name patients."""
    for number in range(2):
        key = nifti(tmp_path / "in" / ".git" / "annex" / "objects" / f"key{number}.nii.gz", number)
        link(tmp_path / "in" / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz", key)
    found = discovered(tmp_path / "in", modality="CT")
    assert [source.patient for source in found.sources] == ["sub-0", "sub-1"]
    assert names(found.sources) == [f"sub-{number}/anat/sub-{number}_T1w.nii.gz" for number in range(2)]


def test_inputs_that_links_connect_are_read_once(tmp_path: Path) -> None:
    """Two --input, the first with links into the second."""
    nifti(tmp_path / "one" / "p" / "ct.nii.gz")
    ct = nifti(tmp_path / "two" / "q" / "ct.nii.gz", 1)
    link(tmp_path / "one" / "q", tmp_path / "two" / "q")
    link(tmp_path / "one" / "p" / "b.nii.gz", ct)
    found = discovered(tmp_path / "one", tmp_path / "two")
    assert names(found.sources) == ["one/p/ct.nii.gz", "two/q/ct.nii.gz"]
    assert len(found.lines) == 2


def test_the_output_is_no_input_by_any_path(tmp_path: Path) -> None:
    """An output below the input, reached directly and by links to it and to what is in it."""
    nifti(tmp_path / "in" / "p" / "ct.nii.gz")
    hidden = nifti(tmp_path / "in" / "out" / "train" / "x_ct.nii.gz")
    link(tmp_path / "in" / "a", tmp_path / "in" / "out")
    link(tmp_path / "in" / "b", tmp_path / "in" / "out" / "train")
    link(tmp_path / "in" / "c_ct.nii.gz", hidden)
    found = discovered(tmp_path / "in", skip=tmp_path / "in" / "out")
    assert names(found.sources) == ["p/ct.nii.gz"] and not problems(found.sources)
