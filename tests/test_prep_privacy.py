"""Nothing that identifies a patient reaches the output or a log: canaries in every attribute that may hold text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers import dicom_files, radiographs
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary, dictionary_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

ROOT = Path(__file__).resolve().parent.parent
WORD, NUMBER, YEAR, UID = "CANARY", "271828", "1889", "1.2.826.31415926"  # what is looked for
# a hashed id or a digest: one in a thousand holds the year's digits by chance. Letters tell it from a date
HASH = re.compile(rb"(?<![0-9a-f])(?=[0-9]*[a-f])(?:[0-9a-f]{64}|[0-9a-f]{12})(?![0-9a-f])")
# What the image itself consists of, and the whitelisted codes and numbers (dicom/whitelist.py): not in annex E
KEPT = {
    *("SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "PixelSpacing", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored"),
    *("HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "RescaleType", "NumberOfFrames"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "SpecificCharacterSet", "BurnedInAnnotation"),
    *("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "KVP", "SliceThickness", "MagneticFieldStrength"),
    *("RepetitionTime", "EchoTime", "InversionTime", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "DirectoryRecordSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DiffusionBValue", "SpacingBetweenSlices"),
}
TEXT = {"LO": 64, "SH": 16, "ST": 60, "LT": 60, "UT": 60, "UC": 60, "PN": 60, "CS": 16, "AE": 16, "UR": 60}


def canaries(series: str) -> Dataset:
    """A dataset with a value of its own in every standard attribute of groups 0008 to 0050 that can hold one."""
    dataset = Dataset()
    for tag, (kind, *_) in DicomDictionary.items():
        group, keyword = tag >> 16, dictionary_keyword(tag)
        if group not in (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0032, 0x0038, 0x0040, 0x0050):
            continue
        if not keyword or keyword in KEPT or DicomDictionary[tag][3] == "Retired":
            continue
        value = _value(kind, tag, series)
        if value is not None:
            dataset.add_new(tag, kind, value)
    dataset.add_new((0x0009, 0x0010), "LO", f"{WORD} maker")
    dataset.add_new((0x0009, 0x1001), "LO", f"{WORD} private")
    dataset.add_new((0x0029, 0x0010), "LO", f"{WORD} maker")
    dataset.add_new((0x0029, 0x1010), "OB", f"{WORD} private bytes".encode())
    dataset.add_new((0x6000, 0x4000), "LT", f"{WORD} overlay comment")
    return dataset


def _value(kind: str, tag: int, series: str) -> object:
    if kind in TEXT:
        return f"{WORD}{tag:08X}"[: TEXT[kind]]
    if kind == "SQ":
        inner = Dataset()
        inner.PatientName, inner.PatientBirthDate = f"{WORD}^nested", f"{YEAR}0102"
        return [inner]
    fixed = {"DA": f"{YEAR}0304", "TM": "271828", "DT": f"{YEAR}0304271828", "DS": f"{NUMBER}.5", "IS": f"{NUMBER}1"}
    if kind == "UI":
        same = Tag(tag) in (Tag("SeriesInstanceUID"), Tag("StudyInstanceUID"), Tag("FrameOfReferenceUID"))
        return f"{UID}.{series}.{0 if same else tag}"
    return fixed.get(kind)


def archive(folder: Path) -> Path:
    """CT and MR, DICOM and files, good and bad, a canary in every name and attribute."""
    ramp = np.arange(24 * 24).reshape(24, 24) - 300
    voxels = np.stack([ramp + place for place in range(5)]).astype(np.int16)
    for number, (name, more) in enumerate(
        {
            "good": {},
            "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
            "unscaled": {"RescaleSlope": None},
            "odd": {"RescaleType": f"{WORD}unit"},
            "colour": {"PhotometricInterpretation": f"{WORD}"},
            "kind": {"ImageType": ["ORIGINAL", "PRIMARY", f"{WORD}TYPE"]},
            "flat": {"PixelSpacing": [0, 0]},
        }.items()
    ):
        _plant(dicom_files.series(folder / f"{WORD}folder" / f"{WORD}{name}", voxels, **more), f"7{number}")
    mr = {"ContrastBolusAgent": f"{WORD} agent"}
    paths = dicom_files.series(folder / f"{WORD}mr", np.abs(voxels * 3), modality="MR", **mr)
    _plant(paths, "79", SeriesDescription=f"t1 {WORD} tse", ProtocolName=f"{WORD} t1")
    cut = _plant(dicom_files.series(folder / f"{WORD}cut", voxels), "78")
    for path in cut:
        path.write_bytes(path.read_bytes()[:-200])
    for name in (f"{WORD}_ct.nii.gz", f"{WORD}_T1w.nii.gz", f"{WORD}_T1w_seg.nii.gz", f"{WORD}_scan.nii"):
        _nifti(folder / f"{WORD}files" / name, np.abs(voxels) % 2 if "seg" in name else voxels)
    (folder / f"{WORD}files" / f"{WORD}_bad_ct.nii.gz").write_bytes(f"{WORD} no gzip".encode())
    (folder / f"{WORD}.dcm").write_text(f"{WORD} no DICOM")
    _pictures(folder / f"{WORD}pictures", np.abs(voxels))
    return folder


def _pictures(folder: Path, voxels: np.ndarray) -> None:
    """Radiographs and pictures, good and bad."""
    luts = dict.fromkeys(("WindowCenter", "WindowWidth", "VOILUTSequence", "ModalityLUTSequence", "VOILUTFunction"))
    kinds = {"good": luts, "lut": {}, "raw": {"PresentationIntentType": "FOR PROCESSING"}}
    for number, (name, more) in enumerate(kinds.items()):
        path = radiographs.write(folder / f"{WORD}{name}.dcm", voxels[0].astype(np.uint16))
        _plant([path], f"6{number}", **more)
    text = PngInfo()
    text.add_text("Description", f"{WORD} text")
    exif = Image.Exif()
    exif[270], exif[315] = f"{WORD} description", f"{WORD} artist"
    picture = Image.fromarray((voxels[0] % 256).astype(np.uint8))
    picture.save(folder / f"{WORD}.png", pnginfo=text, exif=exif)
    picture.save(folder / f"{WORD}.jpg", comment=f"{WORD} comment".encode(), exif=exif)
    (folder / f"{WORD}bad.png").write_bytes(f"{WORD} no picture".encode())


def _plant(paths: list[Path], series: str, **more: object) -> list[Path]:
    planted = canaries(series)
    for path in paths:
        dataset = pydicom.dcmread(path)
        kept = {name: dataset.get(name) for name in ("ImageType", "PhotometricInterpretation")}
        dataset.update(planted)
        dicom_files.put(dataset, {name: value for name, value in kept.items() if value is not None} | more)
        dataset.SOPInstanceUID = f"{UID}.{path.name}.{series}"
        dicom_files.save(dataset, path)
    return paths


def _nifti(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0).astype(np.int16), np.diag([2.0, 2, 3, 1]))
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[name] = f"{WORD}{name}"[: image.header[name].dtype.itemsize]
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{WORD} extension".encode()))
    nibabel.save(image, path)


def leaks(text: bytes) -> list[bytes]:
    """Canaries in a stretch of bytes, with what stands around them."""
    found = []
    for sign in (WORD, WORD.lower(), NUMBER, UID):
        at = text.find(sign.encode())
        if at >= 0:
            found.append(text[max(at - 60, 0) : at + 60])
    return found


@pytest.mark.parametrize("command", ["shard_ct.py", "shard_mri.py", "shard_images.py"])
def test_nothing_planted_comes_out(command: str, tmp_path: Path) -> None:
    """Accepted or left out, in shards, indices, manifest, overview, names of files and all that is printed: none."""
    source = archive(tmp_path / "in")
    out = tmp_path / "out"
    environment = {**os.environ, "MEDDAP_SALT": f"{WORD}salt", "PYTHONWARNINGS": "always"}
    script = [sys.executable, str(ROOT / "data_prep" / command), "--input", str(source), "--output", str(out)]
    done = subprocess.run([*script, "workers=2"], capture_output=True, env=environment)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed.decode()
    for module in ("data_prep.verify", "data_prep.overview"):
        done = subprocess.run([sys.executable, "-m", module, str(out)], capture_output=True, cwd=ROOT)
        printed += done.stdout + done.stderr
        assert done.returncode == 0, printed.decode()
    assert not leaks(printed), leaks(printed)
    accepted = (out / "manifest.jsonl").read_text().count('"accepted"')
    assert accepted >= 2 and (out / "manifest.jsonl").read_text().count('"rejected"') >= 8
    for path in out.rglob("*"):
        assert not leaks(str(path.relative_to(out)).encode())
        if path.is_file():
            payload = path.read_bytes()
            assert not leaks(payload), (path, leaks(payload))
            if path.suffix not in (".tar", ".npy", ".html"):  # pixels and pictures may hold any four bytes
                assert YEAR.encode() not in HASH.sub(b"", payload), path


def test_many_are_planted_and_would_be_found(tmp_path: Path) -> None:
    """The archive holds what the test looks for, attribute by attribute."""
    planted = canaries("1")
    assert len(planted) > 900
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName", "ReferringPhysicianName"):
        assert keyword in planted
    for keyword in ("AccessionNumber", "StudyDate", "AcquisitionDateTime", "PatientComments", "DeviceSerialNumber"):
        assert keyword in planted
    source = archive(tmp_path / "in")
    assert all(leaks(path.read_bytes()) or path.suffix == ".gz" for path in source.rglob("*") if path.is_file())


def test_show_names_is_the_only_way_to_see_a_name(tmp_path: Path) -> None:
    """With --show-names the console names files, on request; the output still does not."""
    source = archive(tmp_path / "in")
    script = [sys.executable, str(ROOT / "data_prep" / "shard_ct.py"), "--input", str(source), "--show-names"]
    done = subprocess.run(
        [*script, "--output", str(tmp_path / "out")], capture_output=True, env={**os.environ, "MEDDAP_SALT": "x"}
    )
    assert done.returncode == 0 and f"{WORD}.dcm: not a DICOM file".encode() in done.stderr
    assert not leaks((tmp_path / "out" / "manifest.jsonl").read_bytes())
