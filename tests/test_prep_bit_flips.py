"""One flipped bit: told by whatever checksum, codec or second statement there is, and never more than its own slice."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers import dicom_files
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from data_prep.config import CtConfig, MriConfig
from data_prep.dicom import segments, series_reader
from data_prep.volumes import images
from data_prep.volumes.volume import RejectedSeries

FLIPS = 200
GRID = np.array([[-0.8, 0, 0, 100], [0, -0.9, 0, 50], [0, 0, 2.5, -30], [0, 0, 0, 1]])
Found = tuple[np.ndarray, np.ndarray]  # voxels and affine


def anatomy() -> np.ndarray:
    """(40, 36, 6) HU that vary smoothly, so that they compress."""
    steps = np.random.default_rng(0).integers(-3, 4, (40, 36, 6))
    return np.cumsum(steps, axis=0).astype(np.int16) * 4 - 50


def labels() -> np.ndarray:
    """(40, 36, 6) labels 0, 1, 2."""
    return (anatomy() > 0).astype(np.uint8) + (anatomy() > 60)


def flipped(whole: bytes, count: int, first: int = 0, last: int | None = None) -> Iterator[bytes]:
    """Copies of `whole`, each with one bit flipped between two places."""
    rng = np.random.default_rng(len(whole))
    for place in rng.integers(first, len(whole) if last is None else last, count):
        yield whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :]


def as_nifti(path: Path, values: np.ndarray) -> None:
    """Write with both transforms."""
    image = nibabel.Nifti1Image(values, GRID)
    image.set_qform(GRID, 1)
    image.set_sform(GRID, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def by_itk(path: Path, values: np.ndarray) -> None:
    """Write compressed."""
    SimpleITK = pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.transpose(2, 1, 0)), str(path), True)


def as_ct(path: Path) -> Found:
    """Read as CT."""
    volume = images.read_ct(path, CtConfig())
    return volume.voxels, volume.affine


def as_mr(path: Path) -> Found:
    """Read as MR."""
    volume = images.read_mr(path, MriConfig())
    return volume.voxels, volume.affine


def as_labels(path: Path) -> Found:
    """Read as a label map."""
    return images.read_labels(path, CtConfig())[:2]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("read", [as_ct, as_mr, as_labels])
def test_a_checksum_tells(suffix: str, read: Callable[[Path], Found], tmp_path: Path) -> None:
    """No image or label map with other voxels; of NIfTI, whose header is packed too, none at another place."""
    path = tmp_path / f"image{suffix}"
    (as_nifti if suffix == ".nii.gz" else by_itk)(path, labels() if read is as_labels else anatomy())
    voxels, affine = read(path)
    refused = 0
    for content in flipped(path.read_bytes(), FLIPS):
        path.write_bytes(content)
        try:
            found, grid = read(path)
        except RejectedSeries:
            refused += 1
            continue
        if found.shape == voxels.shape:  # a digit of a text header may make a grid oblique or sheared
            assert np.array_equal(found, voxels)
        assert np.array_equal(grid, affine) or suffix != ".nii.gz"
    assert refused > FLIPS // 2


@pytest.mark.parametrize("read", [as_ct, as_mr, as_labels])
def test_a_header_that_contradicts_its_file_is_refused(read: Callable[[Path], Found], tmp_path: Path) -> None:
    """Plain NIfTI: each bit of dimensions, type, width and offset: refused, or the very same image."""
    path = tmp_path / "image.nii"
    as_nifti(path, labels() if read is as_labels else anatomy())
    whole = path.read_bytes()
    voxels, affine = read(path)
    for first, last in [(0, 4), (40, 56), (70, 74), (108, 112), (344, 348)]:
        for bit in range(8 * first, 8 * last):
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            try:
                found, grid = read(path)
            except RejectedSeries:
                continue
            assert np.array_equal(found, voxels) and np.array_equal(grid, affine), (bit // 8, bit % 8)


def written(folder: Path, syntax: str) -> list[Path]:
    """A series of six files."""
    places = [(-100, -50, -30 + 2.5 * k) for k in range(6)]
    words = dict(PixelSpacing=[0.9, 0.8], SliceThickness=2.5, RescaleIntercept=-24)
    paths = dicom_files.series(folder, anatomy().transpose(2, 1, 0), places, **words)
    for path in paths:
        dataset = pydicom.dcmread(path)
        if syntax in (RLELossless, JPEG2000Lossless):
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
        elif syntax == DeflatedExplicitVRLittleEndian:
            dicom_files.save(dataset, path, syntax)
        elif syntax == "gzip":
            path.write_bytes(gzip.compress(path.read_bytes()))
    return paths


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, "gzip"]
)
def test_a_flip_in_a_dicom_file_costs_its_own_slice_at_most(syntax: str, tmp_path: Path) -> None:
    """The other slices are those of the truth; a checksum (gzip) tells every flip."""
    paths, broken = written(tmp_path, syntax), 2
    whole = paths[broken].read_bytes()
    truth = anatomy().transpose(2, 1, 0) - 24
    others = np.delete(truth, broken, axis=0)
    start = whole.rfind(b"\xe0\x7f\x10\x00") if syntax != "gzip" else 0
    contents = [*flipped(whole, FLIPS // 4), *flipped(whole, 3 * FLIPS // 4, max(start, 0))]
    told = 0
    for content in contents:
        paths[broken].write_bytes(content)
        found = list(series_reader.read_series([str(path) for path in paths], "CT", CtConfig(min_slices=1)))
        volumes = [one[0] for one in found if not isinstance(one, RejectedSeries)]
        told += any(isinstance(one, RejectedSeries) for one in found)
        kept = [plane for volume in volumes for plane in volume.voxels]
        assert all(any(np.array_equal(plane, other) for plane in kept) for other in others)
        strange = [plane for plane in kept if not any(np.array_equal(plane, one) for one in truth)]
        assert len(strange) <= 1
        assert not strange or syntax != "gzip"
    assert told > (FLIPS * 9 // 10 if syntax == "gzip" else 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [True, False])
def test_a_flip_in_a_segmentation(packed: bool, tmp_path: Path) -> None:
    """Packed by gzip: told. Plain: refused, or labels that differ in one voxel at most where the grid is the same."""
    path = segmentation(tmp_path / "seg.dcm")
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    right, affine, _ = segments.read(str(path), CtConfig())
    assert right.any()
    whole = path.read_bytes()
    for content in flipped(whole, FLIPS, 0 if packed else whole.rfind(b"\xe0\x7f\x10\x00") + 12):
        path.write_bytes(content)
        try:
            found, grid, _ = segments.read(str(path), CtConfig())
        except RejectedSeries:
            continue
        assert (found != right).sum() <= (0 if packed else 1) and np.array_equal(grid, affine)


def segmentation(path: Path) -> Path:
    """A BINARY segmentation of two segments on six planes."""
    dataset = dicom_files.header("MR")
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.66.4", "SEG"
    dataset.SegmentationType, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = "BINARY", 1, 1, 0
    dataset.PixelRepresentation, dataset.SOPInstanceUID = 0, "1.2.3.5"
    dataset.SegmentSequence = [dicom_files.item(SegmentNumber=n, SegmentLabel=f"organ {n}") for n in (1, 2)]
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = [dicom_files.item(ImageOrientationPatient=list(dicom_files.AXIAL))]
    shared.PixelMeasuresSequence = [dicom_files.item(PixelSpacing=[0.9, 0.8], SliceThickness=2.5)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames, groups = [], []
    for number in (1, 2):
        for k in range(6):
            group = pydicom.Dataset()
            group.PlanePositionSequence = [dicom_files.item(ImagePositionPatient=[-100, -50, -30 + 2.5 * k])]
            group.SegmentIdentificationSequence = [dicom_files.item(ReferencedSegmentNumber=number)]
            groups.append(group)
            frames.append(number == labels()[:, :, k].T)
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = groups, len(frames)
    dataset.Rows, dataset.Columns = frames[0].shape
    dataset.PixelData = np.packbits(np.stack(frames).ravel(), bitorder="little").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dicom_files.save(dataset, path)


def test_a_metaimage_whose_field_is_nearly_another_is_refused(tmp_path: Path) -> None:
    """MetaImage ignores fields that it does not know: a damaged name would cost the origin or the orientation."""
    SimpleITK = pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
    path = tmp_path / "image.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(anatomy().transpose(2, 1, 0)), str(path))
    whole = path.read_bytes()
    for name in (b"Offset", b"TransformMatrix", b"BinaryDataByteOrderMSB", b"ElementSpacing"):
        path.write_bytes(whole.replace(name, name[:-1] + bytes([name[-1] ^ 2]), 1))
        with pytest.raises(RejectedSeries, match=f"nearly {name.decode().lower()}|no spacing"):
            as_ct(path)
    path.write_bytes(whole.replace(b"Offset", b"Custom = 3\nOffset", 1))
    as_ct(path)


def test_rle_that_holds_more_than_a_plane_is_damaged(tmp_path: Path) -> None:
    """A longer run in the middle moves all that follows it; padding of a byte or two at the end does not."""
    paths = written(tmp_path, RLELossless)
    for path, grown, refused in [(paths[2], b"\xf0\x07", True), (paths[3], b"\x00\x00", False)]:
        dataset = pydicom.dcmread(path)
        (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
        second = int.from_bytes(frame[8:12], "little")
        middle = second if refused else len(frame)
        dataset.PixelData = pydicom.encaps.encapsulate([frame[:middle] + grown + frame[middle:]])
        dataset.save_as(path)
    found = list(series_reader.read_series([str(path) for path in paths[2:]], "CT", CtConfig(min_slices=1)))
    volumes = [one[0].voxels for one in found if not isinstance(one, RejectedSeries)]
    assert [one.reason for one in found if isinstance(one, RejectedSeries)] == [
        "1 of 4 files: its pixels do not decode as RLE Lossless"
    ]
    assert np.array_equal(np.concatenate(volumes), anatomy().transpose(2, 1, 0)[3:] - 24)
