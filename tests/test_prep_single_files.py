"""A single file as --input: it is read, what lies beside it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import dicom_files, mri_files
from PIL import Image

from data_prep import schema, shard_ct, shard_images, shard_mri
from data_prep.sharding import description

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def salted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDAP_SALT", "tests")


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (24, 20)).astype(np.uint8)).save(path)
    return path


def series(output: Path) -> int:
    return sum(split["series"] for split in schema.read_dataset(output)["splits"].values())


def test_one_picture_and_several(tmp_path: Path) -> None:
    """Its neighbours stay unread; two files of one folder, and a file beside a folder, are inputs of their own."""
    first, second = picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "b.png")
    picture(tmp_path / "in" / "c.png")
    picture(tmp_path / "more" / "a.png")
    given = ["--input", str(first)]
    assert shard_images.main([*given, "--output", str(tmp_path / "one")]) == 0
    assert len(description.read_manifest(tmp_path / "one")) == 1
    given += ["--input", str(second), "--input", str(tmp_path / "more")]
    assert shard_images.main([*given, "--output", str(tmp_path / "three")]) == 0
    assert series(tmp_path / "three") == 3


def test_a_volume_with_its_label_map(tmp_path: Path) -> None:
    """MR from one NIfTI file; a linked file is what it leads to; the masks are found by the file's name."""
    volume = mri_files.head(seed=1)
    mri_files.write(tmp_path / "in" / "p1_t1.nii.gz", volume)
    mri_files.write(tmp_path / "in" / "p2_t1.nii.gz", volume)
    mri_files.write(tmp_path / "masks" / "p1_t1.nii.gz", (volume > np.percentile(volume, 90)).astype(np.uint8))
    (tmp_path / "link_t1.nii.gz").symlink_to(tmp_path / "in" / "p1_t1.nii.gz")
    words = ["--masks", str(tmp_path / "masks"), "--output", str(tmp_path / "out")]
    assert shard_mri.main(["--input", str(tmp_path / "in" / "p1_t1.nii.gz"), *words]) == 0
    (row,) = description.read_manifest(tmp_path / "out")
    assert row["status"] == "accepted" and row["annotated"] == [1]
    assert shard_mri.main(["--input", str(tmp_path / "link_t1.nii.gz"), "--output", str(tmp_path / "linked")]) == 0
    assert series(tmp_path / "linked") == 1


def test_one_dicom_file(tmp_path: Path) -> None:
    """An enhanced CT is a series by itself."""
    hu = np.full((6, 32, 32), -1000, np.int16)
    hu[:, 6:26, 6:26] = RNG.integers(0, 80, (6, 20, 20))
    path = dicom_files.enhanced(tmp_path / "in" / "e.dcm", hu, [(0, 0, 3 * place) for place in range(6)])
    dicom_files.series(tmp_path / "in", hu, PatientID="other", SeriesInstanceUID="1.2.3.7")
    assert shard_ct.main(["--input", str(path), "--output", str(tmp_path / "out")]) == 0
    assert len(description.read_manifest(tmp_path / "out")) == 1


def test_what_is_no_image_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A text, a file given beside its folder, one that is missing."""
    inside = picture(tmp_path / "in" / "a.png")
    (tmp_path / "notes.txt").write_text("text")
    for given, says in (
        ([tmp_path / "notes.txt"], "holds no image and no DICOM file"),
        ([inside, tmp_path / "in"], "so its files would be read twice"),
        ([inside, inside], "given twice"),
        ([tmp_path / "gone.png"], "no such folder"),
    ):
        words = [word for path in given for word in ("--input", str(path))]
        assert shard_images.main([*words, "--output", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("error:") == 1
