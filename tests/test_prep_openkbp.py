"""OpenKBP's CSV files: read voxel by voxel, on the right grid; anything that is not such a file is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import openkbp_files
from helpers.golden import SHARED

from data_prep.config import CtConfig
from data_prep.volumes import images
from data_prep.volumes.volume import RejectedSeries

SPACING = (3.5, 4.0, 2.5)  # rows, columns, slices


def body(shape: tuple[int, int, int] = (30, 26, 20)) -> np.ndarray:
    """(rows, columns, slices) HU: tissue in air, every voxel with a value of its own along each axis."""
    hu = np.random.default_rng(0).integers(-1010, -980, shape).astype(float)
    hu[5:25, 5:20, 2:18] = np.random.default_rng(1).integers(-120, 120, (20, 15, 16))
    return hu


def test_a_ct_is_read_on_its_grid(tmp_path: Path) -> None:
    """HU are the stored values less 1024; rows run to the back, columns to the left, slices to the feet."""
    hu = body()
    openkbp_files.patient(tmp_path, hu, {}, SPACING)
    volume = images.read_ct(tmp_path / "ct.csv", CtConfig())
    turned = volume.voxels[::-1].transpose(1, 2, 0)  # (Z upwards, Y backwards, X to the left) as stored
    assert (turned[:30, :26, :20] == hu).all() and (turned[30:] == -1024).all()
    assert volume.spacing == pytest.approx((2.5, 3.5, 4.0))
    assert "1024" in str(volume.notes["hu"])


def test_a_structure_is_read_on_the_same_grid(tmp_path: Path) -> None:
    """Labels are 1 where the file names a voxel, and the affine is that of the CT."""
    mask = np.zeros((30, 26, 20), bool)
    mask[6:9, 10:12, 3:7] = True
    openkbp_files.patient(tmp_path, body(), {"Larynx": mask}, SPACING)
    labels, affine, _ = images.read_labels(tmp_path / "Larynx.csv", CtConfig())
    assert (labels[:30, :26, :20] == mask).all() and labels.sum() == mask.sum()
    assert (affine == images.Image(tmp_path / "ct.csv", CtConfig()).affine).all()


def test_values_that_are_not_whole_are_kept_until_they_are_rounded(tmp_path: Path) -> None:
    """A CT with fractions is rounded to whole HU, and the notes count it."""
    hu = body()
    hu[10, 10, 10] = 17.4
    openkbp_files.patient(tmp_path, hu, {})
    volume = images.read_ct(tmp_path / "ct.csv", CtConfig())
    assert volume.notes["voxels_rounded"] == 1 and volume.voxels[128 - 11, 10, 10] == 17


def test_real_patients_come_out_as_their_conversion(tmp_path: Path) -> None:
    """The CSVs of a patient give the voxels, the grid and the structures of the NIfTI files made from them."""
    folder = SHARED / "data" / "ct_openkbp" / "pt_7"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/ct_openkbp, which is not beside this checkout")
    converted, drawn = nibabel.load(folder / "ct.nii.gz"), np.asarray(nibabel.load(folder / "seg.nii.gz").dataobj)
    spacing = converted.header.get_zooms()
    openkbp_files.patient(tmp_path, np.asarray(converted.dataobj), {"Mandible": drawn == 7}, spacing)
    ours, theirs = (images.read_ct(path, CtConfig()) for path in (tmp_path / "ct.csv", folder / "ct.nii.gz"))
    assert (ours.voxels == theirs.voxels).all() and np.allclose(ours.affine, theirs.affine, atol=1e-3)
    assert (images.read_labels(tmp_path / "Mandible.csv", CtConfig())[0] == (drawn == 7)).all()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("ct.csv", "", "empty"),
        ("ct.csv", ",data\n", "empty"),
        ("ct.csv", "patient,data\n1,2.0\n", "first line"),
        ("ct.csv", ",data\n5,1.0\n6,\n", "1 of 2 lines"),
        ("ct.csv", ",data\n5,1.0\n5,2.0\n", "twice"),
        ("ct.csv", ",data\n2097152,1.0\n", "indices"),
        ("ct.csv", ",data\n-1,1.0\n", "indices"),
        ("ct.csv", ",data\n1.5,1.0\n", "indices"),
        ("ct.csv", ",data\n5,4096\n", "0 to 4095"),
        ("ct.csv", ",data\n5,-3\n", "0 to 4095"),
        ("ct.csv", ",data\n5,nan\n", "0 to 4095"),
        ("ct.csv", ",data\n5,1.0,7\n", "index,value"),
        ("ct.csv", ",data\n5,1.0,7\n6\n", "index,value"),
        ("ct.csv", ",data\n5,1.0\n6;2.0\n", "index,value"),
        ("ct.csv", ",data\nfive,1.0\n", "index,value"),
        ("voxel_dimensions.csv", "3.9\n2.5\n", "three spacings"),
        ("voxel_dimensions.csv", "3.9\n3.9\n0\n", "three spacings"),
        ("voxel_dimensions.csv", "3.9\n3.9\nthin\n", "three spacings"),
        ("voxel_dimensions.csv", None, "not beside it"),
    ],
)
def test_other_files_are_refused(name: str, content: str | None, says: str, tmp_path: Path) -> None:
    """Each with the reason, whatever reads it."""
    openkbp_files.patient(tmp_path, body(), {})
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(RejectedSeries, match=says):
        images.read_ct(tmp_path / "ct.csv", CtConfig())


def test_a_dose_is_not_a_label_map(tmp_path: Path) -> None:
    """Neither is the CT itself: values are whole numbers from 0 to 255 or refused."""
    openkbp_files.patient(tmp_path, body(), {})
    openkbp_files.sparse(tmp_path / "dose.csv", np.arange(100), np.linspace(0.5, 70.3, 100))
    for name in ("dose.csv", "ct.csv"):
        with pytest.raises(RejectedSeries, match="expected whole numbers"):
            images.read_labels(tmp_path / name, CtConfig())
