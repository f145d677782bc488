"""Random volumes in random legal encodings come out voxel by voxel where they lie, or are refused for a true reason."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import dicom_encodings, image_encodings, truth
from helpers.truth import Truth

from data_prep.config import CtConfig, GeometryConfig, MriConfig
from data_prep.dicom import headers, series_reader
from data_prep.volumes import geometry, images
from data_prep.volumes.volume import RejectedSeries, Volume


def dicom_fault(seed: int, folder: Path) -> str:
    """Return what is wrong with what comes out of a case; "" if nothing is."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom on values that people write
        case = dicom_encodings.case(seed, folder)
        if strange := [path.name for path in case.paths if not headers.is_dicom(path)]:
            return f"not recognised as DICOM: {strange}\n{case.words}"
        if len({headers.read_header(path).series for path in case.paths}) != 1:
            return f"files of one series are told apart\n{case.words}"
        config = CtConfig() if case.modality == "CT" else MriConfig()
        found = list(series_reader.read_series([str(path) for path in case.paths], case.modality, config))
    wrong = compared(found, case)
    return wrong and f"{wrong}\n{case.words}"


def compared(found: list, case: dicom_encodings.Case) -> str:
    """Return what is wrong with the volumes and rejections of a case; "" if nothing is."""
    refused = [one.reason for one in found if isinstance(one, RejectedSeries)]
    if refused:
        if case.refusal and all(re.search(case.refusal, reason) for reason in refused):
            return "" if len(refused) == len(found) else "refused and taken"
        return f"refused: {refused}"
    if case.refusal:
        return f"taken, though it must be refused: {case.refusal}"
    volumes: list[Volume] = [one[0] for one in found]
    if len(volumes) != len(case.truths):
        return f"{len(volumes)} volumes of {len(case.truths)}"
    tolerance = 1e-6 if case.modality == "MR" else 0.0
    left = list(case.truths)
    for volume in volumes:
        faults = [truth.difference(volume, one, tolerance) for one in left]
        if all(faults):
            return "; ".join(faults)
        del left[faults.index("")]
    return ""


READ = {
    "ct": lambda path: images.read_ct(path, CtConfig()),
    "mr": lambda path: images.read_mr(path, MriConfig()),
    "labels": lambda path: labelled(path),
}


def labelled(path: Path) -> Volume:
    """A label map turned as Volume says; it keeps its own order of axes, which the truth knows nothing of."""
    labels, affine, _ = images.read_labels(path, CtConfig())
    turned, affine = geometry.canonical(labels, affine)
    return Volume(turned, affine)


def image_fault(write: Callable, seed: int, folder: Path) -> str:
    """Return what is wrong with what comes out of an image file; "" if nothing is."""
    case = write(seed, folder)
    try:
        volume = READ[case.reader](case.path)
    except RejectedSeries as error:
        return (
            "" if case.refusal and re.search(case.refusal, error.reason) else f"refused: {error.reason}\n{case.words}"
        )
    if case.refusal:
        return f"taken, though it must be refused: {case.refusal}\n{case.words}"
    wrong = truth.difference(volume, case.truth, 1e-6 if case.reader == "mr" else 0.0) or elsewhere(case)
    return wrong and f"{wrong}\n{case.words}"


def elsewhere(case: image_encodings.Case) -> str:
    """Return whether SimpleITK places the file elsewhere than the truth, where it reads it and heeds its unit."""
    try:
        import SimpleITK
    except ImportError:
        return ""
    if case.words.get("unit") not in (None, "", "mm") or not case.words.get("lengths", True):
        return ""  # of NIfTI it takes the lengths from pixdim alone
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(case.path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return ""
    if reader.GetDimension() != 3:
        return ""
    theirs = np.eye(4)
    theirs[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    theirs[:3, 3] = reader.GetOrigin()
    theirs[:2] *= -1
    off = np.abs(theirs - case.truth.affine).max()
    return f"SimpleITK places it {off:.3f} mm off: {theirs.tolist()}" if off > 0.01 else ""


def nifti_fault(seed: int, folder: Path) -> str:
    """A NIfTI file by its number."""
    return image_fault(image_encodings.nifti, seed, folder)


def nrrd_fault(seed: int, folder: Path) -> str:
    """An NRRD file by its number."""
    return image_fault(image_encodings.nrrd, seed, folder)


def metaimage_fault(seed: int, folder: Path) -> str:
    """A MetaImage by its number."""
    return image_fault(image_encodings.metaimage, seed, folder)


FAULTS = {"dicom": dicom_fault, "nifti": nifti_fault, "nrrd": nrrd_fault, "metaimage": metaimage_fault}
GROUPS = {"dicom": 5, "nifti": 3, "nrrd": 1, "metaimage": 1}  # of a tenth of all cases each


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.stress)])
@pytest.mark.parametrize(("kind", "group"), [(kind, n) for kind, count in GROUPS.items() for n in range(count)])
def test_any_legal_encoding(kind: str, group: int, count: int, tmp_path: Path) -> None:
    """Voxels, spacing, order of axes and place are those of the truth; a refusal says what is true.

    A case is reproduced by its number: `FAULTS[kind](seed, folder)`.
    """
    if kind in ("nrrd", "metaimage"):
        pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
    first = group * count // 10
    faults = {seed: FAULTS[kind](seed, tmp_path / str(seed)) for seed in range(first, first + count // 10)}
    wrong = {seed: fault for seed, fault in faults.items() if fault}
    assert not wrong, "\n".join(f"{kind}, seed {seed}: {fault}" for seed, fault in wrong.items())


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_an_nrrd_without_a_space_lies_as_the_setting_says(signs: tuple[int, int, int], tmp_path: Path) -> None:
    """And its unit counts too; the manifest notes both."""
    pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
    values = truth.distinct(np.random.default_rng(0), (6, 5, 4), -900, 900).astype("<i2")
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 6 5 4", "spacings: 0.2 0.3 0.4", "encoding: raw"]
    lines += ['units: "cm" "cm" "cm"', "endian: little"]
    path = tmp_path / "ct.nrrd"
    path.write_bytes("\n".join([*lines, "", ""]).encode() + values.tobytes(order="F"))
    name = {(1, 1, 1): "ras", (-1, 1, 1): "las", (-1, -1, 1): "lps"}[signs]
    volume = images.read_ct(path, CtConfig(geometry=GeometryConfig(unoriented=name)))
    assert not truth.difference(volume, Truth(values, np.diag([*np.array([2.0, 3, 4]) * signs, 1])))
    assert name in str(volume.notes["transform"]) and "10 mm" in str(volume.notes["units"])
