"""DICOM series become volumes: order, values, geometry, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers import dicom_files
from pydicom.uid import SecondaryCaptureImageStorage

from data_prep.config import CtConfig, GeometryConfig, MriConfig, StackConfig
from data_prep.dicom import headers, series_reader
from data_prep.volumes.volume import RejectedSeries, Volume


def read(paths: list[Path], modality: str = "CT", **stacks: object) -> list[Volume | str]:
    """The stacks of a series; rejections as their reason."""
    config = (CtConfig if modality == "CT" else MriConfig)(stacks=StackConfig(**stacks))
    return [
        found.reason if isinstance(found, RejectedSeries) else found[0]
        for found in series_reader.read_series([str(path) for path in paths], modality, config)
    ]


def planes(count: int = 6, rows: int = 20, columns: int = 16) -> np.ndarray:
    """(Z, rows, columns) HU in which no two voxels of a plane, and no two planes, are alike."""
    ramp = np.arange(rows * columns).reshape(rows, columns)
    return np.stack([ramp + 1000 * place - 900 for place in range(count)]).astype(np.int16)


def test_slices_are_ordered_by_position(tmp_path: Path) -> None:
    """Neither file names nor instance numbers say where a slice lies; the order of the paths does not matter."""
    voxels = planes()
    order = np.random.default_rng(0).permutation(6)
    paths = dicom_files.series(tmp_path, voxels[order], positions=[(5, 7, 3.0 * place - 40) for place in order])
    for shuffled in (paths, paths[::-1]):
        (volume,) = read(shuffled)
        assert np.array_equal(volume.voxels, voxels)
        assert volume.spacing == (3, 2, 2)
        assert volume.affine @ [0, 0, 0, 1] == pytest.approx([-5, -7, -40, 1])  # RAS of the first voxel


@pytest.mark.parametrize(
    ("axes", "turn"),
    [
        ((1, 0, 0, 0, 1, 0), lambda v: v),
        ((-1, 0, 0, 0, 1, 0), lambda v: v[:, :, ::-1]),
        ((1, 0, 0, 0, -1, 0), lambda v: v[:, ::-1]),
        ((0, 1, 0, 1, 0, 0), lambda v: v.transpose(0, 2, 1)),
        ((0, -1, 0, -1, 0, 0), lambda v: v[:, ::-1, ::-1].transpose(0, 2, 1)),
    ],
)
def test_every_axial_orientation_comes_out_the_same(axes: tuple, turn, tmp_path: Path) -> None:
    """Rows anterior→posterior, columns right→left, slices inferior→superior, whichever way pixels were stored."""
    (volume,) = read(dicom_files.series(tmp_path, planes(), ImageOrientationPatient=list(axes)))
    assert np.array_equal(volume.voxels, turn(planes()))


def test_stored_values_become_hu(tmp_path: Path) -> None:
    """Signed and unsigned, 12 and 16 bits, slope and intercept that differ from slice to slice, fractions counted."""
    voxels = planes(3)
    unsigned = dicom_files.series(
        tmp_path / "u", voxels + 1024, PixelRepresentation=0, BitsStored=12, HighBit=11, RescaleIntercept=-1024
    )
    each = [{"RescaleSlope": slope, "RescaleIntercept": 10 * slope} for slope in (1, 2, 3)]
    differing = dicom_files.series(tmp_path / "d", voxels, each=each)
    fractional = dicom_files.series(tmp_path / "f", voxels, RescaleSlope="0.5", RescaleIntercept="0.25")
    assert np.array_equal(read(unsigned)[0].voxels, voxels)
    assert np.array_equal(read(differing)[0].voxels[2], voxels[2] * 3 + 30)
    (volume,) = read(fractional)
    assert np.array_equal(volume.voxels, np.rint(voxels * 0.5 + 0.25)) and volume.notes["voxels_rounded"] == voxels.size


def test_twelve_bits_hide_what_lies_above_them(tmp_path: Path) -> None:
    """Overlay bits above BitsStored do not become HU (PS3.5, 8.1.1)."""
    stored = planes(3).astype(int) + 1000
    with_overlay = (stored | 0xF000).astype(np.uint16)
    kept = dict(PixelRepresentation=0, BitsStored=12, HighBit=11, RescaleIntercept=-1000)
    (volume,) = read(dicom_files.series(tmp_path, with_overlay, **kept))
    assert np.array_equal(volume.voxels, stored - 1000)


def test_padding_is_air(tmp_path: Path) -> None:
    """PixelPaddingValue, its range, and one written as unsigned although pixels are signed; far values are counted."""
    voxels = planes(3)
    voxels[:, :2] = -2000
    voxels[:, 2] = -1990
    for attributes in ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}, {"PixelPaddingValue": -2000}):
        (volume,) = read(dicom_files.series(tmp_path / str(len(attributes)), voxels, **attributes))
        assert (volume.voxels[:, :3] == -1024).all() and np.array_equal(volume.voxels[:, 3:], voxels[:, 3:])
    positive = planes(3) + 2000
    positive[:, 0] = 3000
    (volume,) = read(dicom_files.series(tmp_path / "positive", positive, PixelPaddingValue=3000))
    assert (volume.voxels[:, 0] == -1024).all()
    high = planes(3)
    high[0, 0, 0] = 32000
    (volume,) = read(dicom_files.series(tmp_path / "high", high, RescaleSlope=2))
    assert volume.voxels.max() == 32767 and volume.notes["voxels_above_int16"] == 1


def test_monochrome1_is_inverted_for_mr_alone(tmp_path: Path) -> None:
    """MR's bright pixels are stored low there; CT's rescale gives HU whatever the display."""
    signal = planes(3, 8, 8).astype(int) + 1000
    kept = dict(PixelRepresentation=0, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    (mr,) = read(dicom_files.series(tmp_path / "mr", 4095 - signal, modality="MR", **kept), "MR")
    assert np.array_equal(mr.voxels, signal)
    (ct,) = read(dicom_files.series(tmp_path / "ct", signal, RescaleIntercept=-1000, **kept))
    assert np.array_equal(ct.voxels, signal - 1000)


def test_enhanced_ct_equals_classic(tmp_path: Path) -> None:
    """Frames in any order, each with its own rescale: the same volume as from single files."""
    voxels = planes()
    order = np.random.default_rng(1).permutation(6)
    positions = [(0, 0, 3.0 * place) for place in order]
    each = [{"PixelValueTransformationSequence": {"RescaleSlope": 1, "RescaleIntercept": int(p)}} for p in order]
    path = dicom_files.enhanced(tmp_path / "e", voxels[order], positions, each=each)
    (volume,) = read([path])
    classic = [{"RescaleIntercept": place} for place in range(6)]
    (expected,) = read(dicom_files.series(tmp_path / "classic", voxels, each=classic))
    assert np.array_equal(volume.voxels, expected.voxels) and np.allclose(volume.affine, expected.affine)
    assert volume.spacing == (3, 2, 2)


def test_enhanced_mr_of_two_echoes_is_two_stacks(tmp_path: Path) -> None:
    """Frames of one file that differ in echo time do not make one volume."""
    voxels = np.concatenate([planes(4) // 2 + 1000, planes(4) // 2 + 5000])
    positions = [(0, 0, 3.0 * place) for place in (0, 1, 2, 3)] * 2
    each = [{"MREchoSequence": {"EffectiveEchoTime": time}} for time in (10, 10, 10, 10, 80, 80, 80, 80)]
    path = dicom_files.enhanced(tmp_path / "e", voxels, positions, "MR", each)
    found = read([path], "MR")
    assert [volume.meta["te_ms"] for volume in found] == [10, 80]
    assert np.array_equal(found[0].voxels, voxels[:4]) and np.array_equal(found[1].voxels, voxels[4:])


def test_a_multi_frame_image_without_positions_is_refused(tmp_path: Path) -> None:
    """Nothing says where its frames lie."""
    path = dicom_files.enhanced(
        tmp_path / "e", planes(4), [(0, 0, 0)] * 4, PerFrameFunctionalGroupsSequence=None, NumberOfFrames=4
    )
    assert read([path]) == ["multi-frame image without a position per frame"]
    short = dicom_files.enhanced(tmp_path / "s", planes(4), [(0, 0, 0)] * 3)
    assert read([short]) == ["4 frames, but positions of 3"]


def cylinder(tilt_degrees: float, count: int = 9) -> tuple[np.ndarray, list]:
    """Slices of an upright cylinder as a tilted gantry sees them; their corners are straight above each other."""
    rows, columns = np.mgrid[:64, :64] * 2.0
    # rows run along (0, cos, sin): the cylinder around x = y = 64 mm is cut as an ellipse, the same in every slice
    body = (rows * np.cos(np.radians(tilt_degrees)) - 64) ** 2 + (columns - 64) ** 2 < 30**2
    stored = np.where(body, 40, -1000).astype(np.int16)
    return np.stack([stored] * count), [(0, 0, 5.0 * place) for place in range(count)]


@pytest.mark.parametrize("degrees", [-18.5, 12.0, 25.0])
def test_gantry_tilt_is_corrected(degrees: float, tmp_path: Path) -> None:
    """Slices move in their own plane: a cylinder along the patient's axis stands where it stood, on an upright grid."""
    angle = np.radians(degrees)
    stored, positions = cylinder(degrees)
    axes = [1, 0, 0, 0, float(np.cos(angle)), float(np.sin(angle))]
    paths = dicom_files.series(tmp_path, stored, positions, ImageOrientationPatient=axes)
    config = CtConfig(geometry=GeometryConfig(max_oblique_degrees=30))
    ((volume, _),) = series_reader.read_series([str(path) for path in paths], "CT", config)
    assert volume.notes["tilt_corrected_degrees"] == pytest.approx(abs(degrees), abs=0.05)
    axes = volume.affine[:3, :3]
    assert np.allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-6)  # right angles now
    assert volume.spacing[0] == pytest.approx(5 * np.cos(angle), rel=1e-4) and len(volume.voxels) == 9
    for place in range(9):  # the cylinder's axis, where it stands in the patient: x = 64, y = 64 mm (LPS)
        body = (volume.voxels[place] + 1000).clip(0) / 1040
        row, column = ((body * axis).sum() / body.sum() for axis in np.indices(body.shape))
        at = volume.affine @ [column, row, place, 1]
        assert at[:2] == pytest.approx([-64, -64], abs=0.1)
    assert volume.voxels.max() == 40 and volume.voxels.min() >= -1024
    refusing = CtConfig(geometry=GeometryConfig(tilt="refuse"))
    (refused,) = series_reader.read_series([str(path) for path in paths], "CT", refusing)
    assert "gantry tilt" in refused.reason and "geometry.tilt=correct" in refused.reason


def test_gaps_split_or_refuse(tmp_path: Path) -> None:
    """A missing slice leaves two even runs, or none, as configured; a run that is too short is told."""
    voxels, places = planes(10), [0, 1, 2, 3, 5, 6, 7, 8, 20, 30]
    paths = dicom_files.series(tmp_path, voxels, positions=[(0, 0, 3.0 * place) for place in places])
    first, second, rest = read(paths)
    assert np.array_equal(first.voxels, voxels[:4]) and np.array_equal(second.voxels, voxels[4:8])
    assert first.notes["uneven_runs"] == 3 and rest == "2 slices in 1 runs shorter than min_slices=3"
    (refused,) = read(paths, uneven="refuse")
    assert refused.startswith("slices 3.00 to 36.00 mm apart") and "stacks.uneven=split" in refused


def test_a_change_of_spacing_splits(tmp_path: Path) -> None:
    """Thin slices of the base and thick ones above, as in old head scans: two stacks of their own spacing."""
    places = [0, 3, 6, 9, 12, 20, 28, 36]
    found = read(dicom_files.series(tmp_path, planes(8), positions=[(0, 0, place) for place in places]))
    assert [volume.spacing[0] for volume in found] == [3, 8]
    assert sum(len(volume.voxels) for volume in found) == 8


def test_jitter_within_the_tolerance_is_even(tmp_path: Path) -> None:
    """Positions that differ by a tenth of the distance make one stack."""
    places = [0, 3.1, 5.9, 9.05, 12.1, 14.95]
    (volume,) = read(dicom_files.series(tmp_path, planes(6), positions=[(0, 0, place) for place in places]))
    assert len(volume.voxels) == 6


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    """The same slices twice: one volume, and the note says how many went."""
    paths = dicom_files.series(tmp_path / "a", planes()) + dicom_files.series(tmp_path / "b", planes())
    (volume,) = read(paths)
    assert np.array_equal(volume.voxels, planes()) and volume.notes["duplicates_dropped"] == 6


def test_phases_and_kernels_are_stacks_of_their_own(tmp_path: Path) -> None:
    """Positions that repeat under another AcquisitionNumber, or another kernel, are other volumes."""
    once, later = planes(5), planes(5) + 7
    paths = dicom_files.series(tmp_path / "1", once, AcquisitionNumber=1)
    paths += dicom_files.series(tmp_path / "2", later, AcquisitionNumber=2)
    paths += dicom_files.series(tmp_path / "3", later + 7, ConvolutionKernel="B80f")
    found = read(paths)
    assert sorted(int(volume.voxels[0, 0, 0]) for volume in found) == [-900, -893, -886]


@pytest.mark.parametrize(("plane", "axes"), [("sagittal", (0, 1, 0, 0, 0, -1)), ("coronal", (1, 0, 0, 0, 0, -1))])
def test_thick_sagittal_and_coronal_slices(plane: str, axes: tuple, tmp_path: Path) -> None:
    """Refused, or reformatted to axial slices in which a marker stands where it was."""
    normal = np.cross(axes[:3], axes[3:])
    stored = np.full((8, 30, 40), -1000, np.int16)
    stored[5, 10:14, 20:24] = 500  # (slice, row, column)
    positions = [normal * 6 * place for place in range(8)]
    paths = dicom_files.series(tmp_path, stored, positions, ImageOrientationPatient=list(axes))
    (refused,) = read(paths)
    assert refused == f"{plane} slices; geometry.planes=reformat resamples them"
    config = CtConfig(geometry=GeometryConfig(planes="reformat"))
    ((volume, _),) = series_reader.read_series([str(path) for path in paths], "CT", config)
    assert volume.notes["reformatted_from"] == plane and volume.spacing == pytest.approx((2, 2, 2))
    z, y, x = np.argwhere(volume.voxels > 0).mean(axis=0)
    found = (volume.affine @ [x, y, z, 1])[:3] * (-1, -1, 1)  # to LPS
    expected = normal * 6 * 5 + np.array(axes[:3]) * 2 * 21.5 + np.array(axes[3:]) * 2 * 11.5
    assert found == pytest.approx(expected, abs=0.3)


def test_oblique_slices(tmp_path: Path) -> None:
    """Turned about the patient's axis by 40°: refused, or resampled on an axial grid."""
    angle = np.radians(40)
    axes = [float(np.cos(angle)), float(np.sin(angle)), 0, -float(np.sin(angle)), float(np.cos(angle)), 0]
    stored = np.full((5, 40, 40), -1000, np.int16)
    stored[:, 18:22, 30:34] = 300
    paths = dicom_files.series(tmp_path, stored, ImageOrientationPatient=axes)
    assert read(paths) == ["oblique by 40 degrees; geometry.oblique=reformat resamples them"]
    config = CtConfig(geometry=GeometryConfig(oblique="reformat"))
    ((volume, _),) = series_reader.read_series([str(path) for path in paths], "CT", config)
    z, y, x = np.argwhere(volume.voxels > -300).mean(axis=0)
    found = (volume.affine @ [x, y, z, 1])[:3] * (-1, -1, 1)
    expected = np.array(axes[:3]) * 2 * 31.5 + np.array(axes[3:]) * 2 * 19.5 + [0, 0, 6]
    assert found == pytest.approx(expected, abs=0.4)


LEFT_OUT = {
    "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "screenshot": {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    "dose report": {"ImageType": ["ORIGINAL", "SECONDARY", "DOSE_INFO"]},
    "report, not an image": {"Modality": "SR"},
    "secondary capture": {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"},
    "modality PT, not CT": {"Modality": "PT"},
    "colour image": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "pixels are PALETTE COLOR": {"PhotometricInterpretation": "PALETTE COLOR"},
    "derived series; stacks.derived=keep takes it": {"ImageType": ["DERIVED", "PRIMARY", "MIP"]},
    "BurnedInAnnotation is YES; stacks.burned_in=keep takes it": {"BurnedInAnnotation": "YES"},
    "no RescaleSlope and RescaleIntercept: stored values cannot be converted to HU": {"RescaleSlope": None},
    "stored values are OD, not HU": {"RescaleType": "OD"},
    "no ImagePositionPatient": {"ImagePositionPatient": None},
    "pixel spacing of 0.0 mm": {"PixelSpacing": [0, 1]},
    "ImageOrientationPatient does not hold two unit vectors at right angles": {
        "ImageOrientationPatient": [1, 0, 0, 1, 0, 0]
    },
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_no_acquired_slice_is_left_out(reason: str, tmp_path: Path) -> None:
    """Each kind with its own reason."""
    paths = dicom_files.series(tmp_path, planes(4))
    for path in paths:
        dataset = pydicom.dcmread(path)
        dicom_files.put(dataset, LEFT_OUT[reason])
        dataset.save_as(path)
    assert read(paths) == [reason]


def test_what_may_be_kept_is_kept(tmp_path: Path) -> None:
    """stacks.derived=keep and stacks.burned_in=keep take what is refused by default."""
    derived = dicom_files.series(tmp_path / "d", planes(4), ImageType=["DERIVED", "PRIMARY", "MIP"])
    burned = dicom_files.series(tmp_path / "b", planes(4), BurnedInAnnotation="YES")
    assert np.array_equal(read(derived, derived="keep")[0].voxels, planes(4))
    assert np.array_equal(read(burned, burned_in="keep")[0].voxels, planes(4))


def test_one_bad_file_does_not_hide_in_a_series(tmp_path: Path) -> None:
    """A localizer among the slices has its own row; the rest is used."""
    paths = dicom_files.series(
        tmp_path, planes(6), each=[{}] * 5 + [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}]
    )
    volume, reason = read(paths)
    assert len(volume.voxels) == 5 and reason == "1 of 6 files: localizer"


def test_a_file_without_the_dicom_prefix_is_known_by_its_content(tmp_path: Path) -> None:
    """Before PS3.10 files began with their first element; such archives are still about."""
    path = dicom_files.series(tmp_path, planes(1))[0]
    whole = path.read_bytes()
    start = 132 + 12 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    path.write_bytes(whole[start:])
    assert headers.is_dicom(path) and headers.read_header(path).series == "1.2.3.4"
    config = CtConfig(min_slices=1)
    ((volume, _),) = series_reader.read_series([str(path)], "CT", config)
    assert np.array_equal(volume.voxels[0], planes(1)[0])


def test_whitelisted_fields_are_kept(tmp_path: Path) -> None:
    """Scanner, kernel, kVp, thickness, contrast, body part, sex and age by decade; the year only on request."""
    paths = dicom_files.series(
        tmp_path,
        planes(3),
        Manufacturer="SIEMENS",
        ManufacturerModelName="Force",
        ConvolutionKernel="Br38f",
        KVP="120",
        SliceThickness="3",
        ContrastBolusAgent="Ultravist given to J. Doe",
        BodyPartExamined="Chest",
        PatientSex="F",
        PatientAge="067Y",
        AcquisitionDate="20190807",
    )
    for keep_year in (False, True):
        ((volume, _),) = series_reader.read_series([str(p) for p in paths], "CT", CtConfig(keep_year=keep_year))
        assert volume.meta == {
            "modality": "CT",
            "manufacturer": "SIEMENS",
            "model": "Force",
            "kernel": "Br38f",
            "kvp": 120.0,
            "slice_thickness_mm": 3.0,
            "contrast": True,
            "body_part": "CHEST",
            "sex": "F",
            "age_decade": 60,
            **({"year": 2019} if keep_year else {}),
        }
