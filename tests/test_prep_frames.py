"""Which DICOM frames are one volume, and files that are DICOM a little otherwise than the standard has it."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers import dicom_files
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from data_prep.config import CtConfig, MriConfig, StackConfig
from data_prep.dicom import headers, series_reader
from data_prep.discovery import archive
from data_prep.discovery.inputs import Inputs
from data_prep.volumes.volume import RejectedSeries, Volume
from data_prep.workers import Workers

CASES = Path(__file__).resolve().parent.parent.parent / "shared" / "cases"
COUNT = 10


def read(paths: Sequence[Path], modality: str = "CT", min_slices: int = 3, **stacks: object) -> list[Volume | str]:
    """The stacks of a series; rejections as their reason."""
    config = (CtConfig if modality == "CT" else MriConfig)(stacks=StackConfig(**stacks), min_slices=min_slices)
    return [
        found.reason if isinstance(found, RejectedSeries) else found[0]
        for found in series_reader.read_series([str(path) for path in paths], modality, config)
    ]


def volume(number: int, count: int = COUNT) -> np.ndarray:
    """(Z, rows, columns) values that say to which volume and place a slice belongs."""
    ramp = np.arange(12 * 8).reshape(12, 8)
    return np.stack([ramp + 300 * number + 10 * place for place in range(count)]).astype(np.int16)


def two(folder: Path, each: Sequence[dict] = ({}, {}), modality: str = "CT", shift: float = 0.0) -> list[Path]:
    """Two volumes of one series, the second `shift` mm further up, each with attributes of its own."""
    paths: list[Path] = []
    for number, attributes in enumerate(each):
        positions = [(0, 0, 3.0 * place + shift * number) for place in range(COUNT)]
        paths += dicom_files.series(folder / str(number), volume(number), positions, modality, **attributes)
    return paths


def assert_volumes(found: list[Volume | str], count: int = 2) -> None:
    """Each of the volumes came out by itself."""
    assert len(found) == count and not any(isinstance(one, str) for one in found), found
    for number, one in enumerate(sorted(found, key=lambda one: int(one.voxels[0, 0, 0]))):
        assert np.array_equal(one.voxels, volume(number))


APART = {
    "ConvolutionKernel": ("B30f", "B80f"),
    "KVP": (80, 140),
    "TemporalPositionIdentifier": (1, 2),
    "AcquisitionNumber": (1, 2),
    "AcquisitionTime": ("101010", "101040.5"),
    "ContentTime": ("101010", "101040.5"),
    "ContrastBolusAgent": ("", "some"),
    "TriggerTime": (10, 350),
    "ImageType": (["ORIGINAL", "PRIMARY", "AXIAL", "CT_A"], ["ORIGINAL", "PRIMARY", "AXIAL", "CT_B"]),
    "SeriesDescription": ("arterial", "venous"),
    "ReconstructionDiameter": (300, 301),
}


@pytest.mark.parametrize("name", APART)
def test_any_attribute_that_tells_volumes_apart_does(name: str, tmp_path: Path) -> None:
    """Two volumes at the same places."""
    assert_volumes(read(two(tmp_path, [{name: value} for value in APART[name]])))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(("EchoTime", (5, 80)), ("DiffusionBValue", (0.0, 1000.0)), ("FlipAngle", (5, 20)), ("InversionTime", (1, 2))),
        ("ComplexImageComponent", ("MAGNITUDE", "PHASE")),
        ("DiffusionGradientOrientation", ([1.0, 0, 0], [0, 1.0, 0])),
    ],
)
def test_mr_contrasts_are_volumes_of_their_own(name: str, values: tuple, tmp_path: Path) -> None:
    """Two volumes at the same places."""
    assert_volumes(read(two(tmp_path, [{name: value} for value in values], "MR"), "MR"))


def test_private_b_values_tell_volumes_apart(tmp_path: Path) -> None:
    """Siemens writes them as private elements in classic files."""
    paths = two(tmp_path, modality="MR")
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", int(path.parent.name) * 500)
        dataset.save_as(path)
    assert_volumes(read(paths, "MR"))


def test_two_attributes_together_tell_four_volumes_apart(tmp_path: Path) -> None:
    """Neither of them alone."""
    each = [{"TriggerTime": time, "FlipAngle": angle} for time in (10, 20) for angle in (5, 15)]
    assert_volumes(read(two(tmp_path, each)), 4)


def test_volumes_in_turn_by_numbers_that_count_slices(tmp_path: Path) -> None:
    """AcquisitionNumber and AcquisitionTime run on through the second volume."""
    for name, base in (("AcquisitionNumber", 1), ("AcquisitionTime", 101010)):
        paths = two(tmp_path / name)
        for n, path in enumerate(paths):
            dataset = pydicom.dcmread(path)
            setattr(dataset, name, str(base + n))
            dataset.save_as(path)
        assert_volumes(read(paths))


def test_what_nothing_tells_apart_is_refused_unless_numbers_may(tmp_path: Path) -> None:
    """InstanceNumber alone is a guess, and one that begins again is not even that."""
    again = two(tmp_path / "again")
    (reason,) = read(again)
    assert reason == "20 slices at 10 places: their pixels differ, but no attribute tells the volumes apart"
    assert read(again, repeats="order") == [reason]
    paths = two(tmp_path / "on")
    for n, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = n + 1
        dataset.save_as(path)
    assert read(paths) == [f"{reason}; stacks.repeats=order takes them by their numbers"]
    found = read(paths, repeats="order")
    assert_volumes(found)
    assert found[0].notes["volumes_told_by"] == "order of numbers"


def test_copies_have_equal_pixels(tmp_path: Path) -> None:
    """A copy of one slice is dropped though its AcquisitionNumber differs; another picture there is no copy."""
    counted = [{"AcquisitionNumber": place + 1} for place in range(COUNT)]
    paths = dicom_files.series(tmp_path / "a", volume(0), each=counted)
    copy = dicom_files.series(tmp_path / "b", volume(0)[4:5], [(0, 0, 12)], AcquisitionNumber=99)
    found = read(paths + copy)
    assert_volumes(found, 1)
    assert found[0].notes["duplicates_dropped"] == 1
    other = dicom_files.series(tmp_path / "c", volume(1)[4:5], [(0, 0, 12)], AcquisitionNumber=99)
    (reason,) = read(paths + other)
    assert reason.startswith("11 slices at 10 places: their pixels differ")


def test_a_whole_copy_is_dropped_and_equal_slices_of_two_volumes_are_not(tmp_path: Path) -> None:
    """A series exported twice at different times; two phases whose ends are empty."""
    paths = dicom_files.series(tmp_path / "a", volume(0), ContentTime="1010")
    paths += dicom_files.series(tmp_path / "b", volume(0), ContentTime="1111")
    (found,) = read(paths)
    assert np.array_equal(found.voxels, volume(0)) and found.notes["duplicates_dropped"] == COUNT
    paths = []
    for number in (0, 1):
        voxels = volume(number)
        voxels[[0, -1]] = -1000
        paths += dicom_files.series(tmp_path / f"p{number}", voxels, AcquisitionNumber=number + 1)
    assert [len(one.voxels) for one in read(paths)] == [COUNT, COUNT]


@pytest.mark.parametrize("shift", [0.2, 1.0, 1.5, 13.7, 16.5])
@pytest.mark.parametrize("name", ["AcquisitionNumber", "AcquisitionTime"])
def test_passes_over_one_region_are_volumes_of_their_own(name: str, shift: float, tmp_path: Path) -> None:
    """Whatever the second one is off by, also where all places together are even."""
    each = [
        {name: value, "SliceThickness": 3}
        for value in (("1", "2") if name == "AcquisitionNumber" else ("101010", "101040"))
    ]
    assert_volumes(read(two(tmp_path, each, shift=shift)))


def test_slices_acquired_in_turns_and_regions_side_by_side_are_one_volume(tmp_path: Path) -> None:
    """Every other slice under another AcquisitionNumber fills the gaps; a second region continues the first one."""
    turns = [{"AcquisitionNumber": place % 2 + 1} for place in range(COUNT)]
    assert_volumes(read(dicom_files.series(tmp_path / "t", volume(0), each=turns, SliceThickness=3)), 1)
    halves = [{"AcquisitionNumber": place * 2 // COUNT} for place in range(COUNT)]
    assert_volumes(read(dicom_files.series(tmp_path / "h", volume(0), each=halves, SliceThickness=3)), 1)
    rotations = [{"AcquisitionNumber": place, "AcquisitionTime": str(100000 + place // 4)} for place in range(COUNT)]
    assert_volumes(read(dicom_files.series(tmp_path / "r", volume(0), each=rotations, SliceThickness=5)), 1)


def test_values_are_compared_with_a_tolerance(tmp_path: Path) -> None:
    """Digits that differ from slice to slice, on either side of where rounding would part them."""
    each = [
        {
            "PixelSpacing": [2.00005 + sign * 1e-6, 2.00005 - sign * 1e-6],
            "ImageOrientationPatient": [1, 0.0005 + sign * 1e-6, 0, -0.0005 - sign * 1e-6, 1, 0],
            "KVP": "120" if sign > 0 else "120.0",
        }
        for sign in (1, -1) * (COUNT // 2)
    ]
    assert_volumes(read(dicom_files.series(tmp_path / "j", volume(0), each=each)), 1)
    each = [{"PixelSpacing": [2, 2] if place < 5 else [2.1, 2.1]} for place in range(COUNT)]
    assert [len(one.voxels) for one in read(dicom_files.series(tmp_path / "s", volume(0), each=each))] == [5, 5]


def test_slices_that_are_shifted_sideways_are_no_volume(tmp_path: Path) -> None:
    """A field of view that moved, at even places: two runs, or refused."""
    positions = [(0, 40.0 * (place >= 6), 3.0 * place) for place in range(COUNT)]
    paths = dicom_files.series(tmp_path, volume(0), positions)
    first, second = read(paths)
    assert np.array_equal(np.concatenate([first.voxels, second.voxels]), volume(0)) and len(first.voxels) == 6
    assert second.affine[1, 3] == pytest.approx(-40)
    (reason,) = read(paths, uneven="refuse")
    assert reason.startswith("slices are shifted sideways")


GROUPS = {
    "component": ("MRImageFrameTypeSequence", "ComplexImageComponent", ("MAGNITUDE", "PHASE")),
    "time": ("FrameContentSequence", "TemporalPositionIndex", (1, 2)),
    "acquisition": ("FrameContentSequence", "FrameAcquisitionNumber", (1, 2)),
    "trigger": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", (10.0, 300.0)),
    "label": ("MRArterialSpinLabelingSequence", "ASLContext", ("LABEL", "CONTROL")),
    "b": ("MRDiffusionSequence", "DiffusionBValue", (0.0, 1000.0)),
    "inversion": ("MRModifierSequence", "InversionTimes", (100.0, 2000.0)),
    "phase": ("ContrastBolusUsageSequence", "ContrastBolusAgentPhase", ("PRE_CONTRAST", "ARTERIAL")),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_frames_of_an_enhanced_image_are_told_apart(kind: str, tmp_path: Path) -> None:
    """By any functional group, frames of both volumes in turn."""
    sequence, name, values = GROUPS[kind]
    stored = np.stack([volume(n % 2)[n // 2] for n in range(2 * COUNT)])
    positions = [(0, 0, 3.0 * (n // 2)) for n in range(2 * COUNT)]
    each = [{sequence: {name: values[n % 2]}} for n in range(2 * COUNT)]
    assert_volumes(read([dicom_files.enhanced(tmp_path / "e", stored, positions, "MR", each)], "MR"))


@pytest.mark.parametrize("order", ["volume", "slice"])
def test_dimension_indices_and_frame_numbers(order: str, tmp_path: Path) -> None:
    """An index of a dimension tells volumes apart; without one they are refused, or taken in the order of frames."""
    places = [divmod(n, COUNT) if order == "volume" else divmod(n, 2)[::-1] for n in range(2 * COUNT)]
    stored = np.stack([volume(number)[place] for number, place in places])
    positions = [(0, 0, 3.0 * place) for _, place in places]
    indices = [
        {"FrameContentSequence": {"DimensionIndexValues": [1, place + 1, number + 1]}} for number, place in places
    ]
    found = read([dicom_files.enhanced(tmp_path / "i", stored, positions, each=indices)])
    assert_volumes(found)
    assert found[0].notes["volumes_told_by"].startswith("DimensionIndexValues")
    path = dicom_files.enhanced(tmp_path / "none", stored, positions)
    (reason,) = read([path])
    assert reason.startswith("20 slices at 10 places")
    assert_volumes(read([path], repeats="order"))


def test_a_damaged_file_costs_itself_only(tmp_path: Path) -> None:
    """Cut inside its pixels, or compressed pixels that do not decode: the others make the runs that they make."""
    paths = dicom_files.series(tmp_path / "cut", volume(0))
    paths[5].write_bytes(paths[5].read_bytes()[:-50])
    first, second, reason = read(paths)
    assert np.array_equal(np.concatenate([first.voxels, second.voxels]), np.delete(volume(0), 5, axis=0))
    assert reason.startswith("1 of 10 files: damaged: the file ends within its pixels")
    paths = dicom_files.series(tmp_path / "rle", volume(0))
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    paths[4].write_bytes(paths[4].read_bytes()[:-150])
    first, second, reason = read(paths)
    assert np.array_equal(np.concatenate([first.voxels, second.voxels]), np.delete(volume(0), 4, axis=0))
    assert first.notes["damaged_files_left_out"] == 1 and reason.startswith("1 of 10 files: ")
    copy = dicom_files.series(tmp_path / "copy", volume(0)[4:5], [(0, 0, 12)])  # at its place: pixels are compared
    whole, reason = read(paths + copy)
    assert np.array_equal(whole.voxels, volume(0)) and reason.startswith("1 of 11 files: ")


@pytest.mark.parametrize("trailing", [False, True])
@pytest.mark.parametrize("declared", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_data_of_another_encoding_than_declared(declared: str, trailing: bool, tmp_path: Path) -> None:
    """Implicit data under an explicit syntax and the reverse, with and without padding behind the pixels."""
    written = ImplicitVRLittleEndian if declared == ExplicitVRLittleEndian else ExplicitVRLittleEndian
    paths = dicom_files.series(tmp_path, volume(0))
    for path in paths:
        dataset = pydicom.dcmread(path)
        if trailing:
            dataset.add_new(0xFFFCFFFC, "OB", bytes(40))
        dicom_files.save(dataset, path, written)
        payload = path.read_bytes()
        said, says = (f"{uid}".encode() for uid in (written, declared))
        said, says = (uid + b"\0" * (len(uid) % 2) for uid in (said, says))
        head = payload[:400].replace(
            b"UI" + len(said).to_bytes(2, "little") + said, b"UI" + len(says).to_bytes(2, "little") + says, 1
        )
        grown = len(head) - 400
        length = int.from_bytes(head[140:144], "little") + grown
        path.write_bytes(head[:140] + length.to_bytes(4, "little") + head[144:] + payload[400:])
        assert pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID == declared
    assert headers.read_header(paths[0]).series == "1.2.3.4"
    assert_volumes(read(paths), 1)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_files_without_a_preamble_or_packed_by_gzip(syntax: str, tmp_path: Path) -> None:
    """Known by their content, and read as if they were whole."""
    paths = dicom_files.series(tmp_path / "a", volume(0))
    for path in paths:
        dataset = pydicom.dcmread(path)
        if syntax == RLELossless:
            dataset.compress(RLELossless)
            dataset.save_as(path)
        else:
            dicom_files.save(dataset, path, syntax)
    bare = [path.with_suffix(".bare") for path in paths]
    packed = [path.with_suffix(".dcm.gz") for path in paths]
    for path, without, small in zip(paths, bare, packed):
        without.write_bytes(path.read_bytes()[132:])
        small.write_bytes(gzip.compress(path.read_bytes()))
    for files in (bare, packed):
        assert all(headers.is_dicom(path) for path in files)
        assert headers.read_header(files[0]).patient == "someone"
        assert_volumes(read(files), 1)
    payload = bytearray(packed[5].read_bytes())
    payload[-6] ^= 1  # its checksum
    packed[5].write_bytes(payload)
    first, second, reason = read(packed)
    assert reason == "1 of 10 files: damaged gzip: its checksum or length is wrong"
    text = tmp_path / "notes.gz"
    text.write_bytes(gzip.compress(b"no image"))
    assert not headers.is_dicom(text)


def test_bits_that_are_not_the_low_ones_of_whole_bytes_are_refused(tmp_path: Path) -> None:
    """With what is wrong, whatever the number of bits."""
    odd = {
        "12 bits end at bit 15 (HighBit), not 11: which bits count is unclear": dict(BitsStored=12, HighBit=15),
        "10 bits end at bit 11 (HighBit), not 9: which bits count is unclear": dict(BitsStored=10, HighBit=11),
        "12 bits a pixel (BitsAllocated); 8, 16 and 32 are read": dict(BitsAllocated=12, BitsStored=12, HighBit=11),
        "BitsStored is 20, BitsAllocated 16": dict(BitsStored=20, HighBit=19),
    }
    for n, (reason, attributes) in enumerate(odd.items()):
        assert read(dicom_files.series(tmp_path / str(n), volume(0), **attributes)) == [reason]


def test_mosaics_are_named(tmp_path: Path) -> None:
    """By ImageType or by Siemens' count of slices, also where one slice is enough."""
    words = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    paths = dicom_files.series(tmp_path / "w", volume(0)[:1], modality="MR", ImageType=words)
    counted = dicom_files.series(tmp_path / "c", volume(0)[:1], modality="MR", Manufacturer="SIEMENS")
    dataset = pydicom.dcmread(counted[0])
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 36)
    dataset.save_as(counted[0])
    for files in (paths, counted):
        (reason,) = read(files, "MR", min_slices=1)
        assert reason.startswith("mosaic: ")


def test_an_original_image_of_a_perfusion_is_not_derived(tmp_path: Path) -> None:
    """The word says how it was acquired; in a DERIVED image, or as the name of a map, it says what was computed."""
    for words, derived in {
        ("ORIGINAL", "PRIMARY", "PERFUSION"): False,
        ("ORIGINAL", "PRIMARY", "AVERAGE", "NONE"): False,
        ("DERIVED", "PRIMARY", "PERFUSION"): True,
        ("ORIGINAL", "PRIMARY", "PERFUSION", "RCBV"): True,
        ("ORIGINAL", "PRIMARY", "MIP"): True,
    }.items():
        (found,) = read(dicom_files.series(tmp_path / "_".join(words), volume(0), ImageType=list(words)))
        assert (found == "derived series; stacks.derived=keep takes it") == derived


def test_patients_who_share_a_series_uid_are_all_read(tmp_path: Path) -> None:
    """After anonymisation above all."""
    for patient in "abc":
        dicom_files.series(tmp_path / patient, volume(0), PatientID=patient, StudyInstanceUID=f"1.{ord(patient)}")
    with Workers(1, seconds=60, volume_gb=1) as workers:
        found = archive.discover(Inputs.of([tmp_path]), [], CtConfig(), "CT", workers)
    assert sorted((source.patient, len(source.series[0].files)) for source in found.sources) == [
        *(("a", COUNT), ("b", COUNT), ("c", COUNT))
    ]
    assert len({source.series[0].uid for source in found.sources}) == 3


# folder → slices of each volume that comes out; text is the start of a reason
SHARED = {
    "20-two-phases-instance-restart": [12, 12],
    "21-enhanced-two-volumes-no-index": ["24 slices at 12 places"],
    "21b-enhanced-mr-two-volumes-no-index": ["24 slices at 12 places"],
    "22-acquisition-per-slice-one-duplicate": [12],
    "23-highbit15-bitsstored12": ["12 bits end at bit 15"],
    "26-spacing-jitter": [12],
    "28c-bits12packed": ["12 bits a pixel"],
    "45a-implicit-declared-explicit": [12],
    "50-multipass-overlap-half": [20, 20],
    "50-multipass-overlap-third": [20, 20],
    "50-multipass-overlap-tenth": [20, 20],
    "52-mag-phase-mixed-enhanced": [20, 20],
    "55-one-slice-truncated": [9, 10, "1 of 20 files: damaged"],
    "56-dual-energy": [20, 20],
}


@pytest.mark.parametrize("name", SHARED)
def test_reported_cases(name: str) -> None:
    """Small inputs after public bug reports."""
    if not (CASES / name).is_dir():
        pytest.skip("the shared cases are not here")
    paths = sorted(path for path in (CASES / name).rglob("*") if path.is_file())
    found = read(paths, "MR" if name.startswith(("21b", "52")) else "CT")
    assert len(found) == len(SHARED[name])
    for one, expected in zip(found, SHARED[name]):
        if isinstance(expected, str):
            assert isinstance(one, str) and one.startswith(expected)
        else:
            assert len(one.voxels) == expected
