"""Synthetic patients to try the pipeline with: CT as DICOM series with label maps, or brain MRI in four sequences.

    python -m data_prep.generate --output DIR [patients=40] [size=96] [slices=40] [seed=0]
    python -m data_prep.generate --output DIR modality=mr [layout=brats|bids] [missing=0.2]

CT comes with a few odd files; MRI as NIfTI with a `labels.csv` of the tumours' types (synthetic/brain.py). The same
seed gives the same patients. A finished folder is left as it is.
"""

from __future__ import annotations

import gzip
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data_prep.synthetic import brain, phantom
from meddap.console import command, launch, parser, progress, say
from meddap.disk import disk_errors
from meddap.ranges import COUNT, NOT_NEGATIVE, SHARE, Allowed, check_ranges
from meddap.settings import SettingsError, load

_DONE = "README.txt"
_FILES = {
    "brats": ("{0}/{0}_{1}", {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "labels": "seg"}),
    "bids": (
        "{0}/anat/{0}_{1}",
        {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "t2": "T2w", "flair": "FLAIR", "labels": "label-tumour_dseg"},
    ),
}


@dataclass
class GenerateConfig:
    """Settings of the command."""

    patients: int = 40
    slices: int = 40
    size: int = 96  # pixels of a side
    seed: int = 0
    modality: Literal["ct", "mr"] = "ct"
    odd: bool = True  # CT: add files that are not CT volumes
    layout: Literal["brats", "bids"] = "brats"  # MRI: how files are named
    missing: float = 0.0  # MRI: probability that a sequence is missing; every patient keeps at least one


# Range of each number
RANGES = {"patients": COUNT, "slices": COUNT, "size": Allowed(1, 4096), "seed": NOT_NEGATIVE, "missing": SHARE}


def generate(output: Path, config: GenerateConfig) -> None:
    """Write patients below `output`, for MRI their labels.csv; a note that the folder is complete comes last.

    Raises SettingsError.
    """
    check_ranges("", config, RANGES)
    kind, made_with = config.modality.upper(), asdict(config)
    note = f"Synthetic {kind} patients, made by data_prep.generate with {made_with}. No real person is in them.\n"
    if (output / _DONE).is_file():
        if (output / _DONE).read_text() != note:
            raise SettingsError(f"{output}: holds other synthetic patients; name another --output")
        say(f"{output}: generated before")
        return
    output.mkdir(parents=True, exist_ok=True)
    kinds = {}
    for number in progress(range(config.patients), config.patients, "patients"):
        rng = np.random.default_rng([config.seed, number])
        if config.modality == "mr":
            name = f"{'sub-' if config.layout == 'bids' else 'Synthetic_'}{number:04d}"
            head = brain.make(rng, config.slices, config.size)
            write_brain(output, name, head, config, rng)
            kinds[name] = head.kind
            continue
        trunk = phantom.make(rng, config.slices, config.size)
        write_patient(output / f"patient_{number:03d}" / "ct", trunk, f"synthetic-{config.seed}-{number:03d}", rng)
    if kinds:
        lines = ["patient,tumour", *(f"{name},{kind}" for name, kind in kinds.items())]
        (output / "labels.csv").write_text("\n".join(lines) + "\n")
    elif config.odd:
        write_odd_files(output, np.random.default_rng([config.seed, 10**6]))
    (output / _DONE).write_text(note)


def write_brain(output: Path, name: str, made: brain.Brain, config: GenerateConfig, rng: np.random.Generator) -> None:
    """Write the sequences of one patient and the map of the tumour as NIfTI, named as in BraTS or BIDS."""
    pattern, endings = _FILES[config.layout]
    dz, dy, dx = made.spacing
    affine = np.diag([-dx, -dy, dz, 1.0])  # BraTS counts to the left and back
    had = rng.random(len(made.signal)) >= config.missing
    had[rng.integers(len(had))] |= not had.any()
    volumes = {sequence: signal for (sequence, signal), there in zip(made.signal.items(), had) if there}
    for kind, voxels in {**volumes, "labels": made.tumour}.items():
        path = output / f"{pattern.format(name, endings[kind])}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = voxels if kind == "labels" else np.rint(voxels).astype(np.int16)
        path.write_bytes(_compressed(nibabel.Nifti1Image(stored.transpose(2, 1, 0), affine)))


def _compressed(image: nibabel.Nifti1Image) -> bytes:
    """Return a compressed NIfTI file without a time of writing, which would make two equal runs differ."""
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def write_patient(folder: Path, made: phantom.Phantom, patient: str, rng: np.random.Generator) -> None:
    """Write a DICOM series of one patient, files in random order, and `seg.nii.gz` in the same geometry."""
    folder.mkdir(parents=True, exist_ok=True)
    depth, rows, columns = made.hu.shape
    dz, dy, dx = made.spacing
    corner = np.array([-(columns - 1) / 2 * dx, -(rows - 1) / 2 * dy, rng.uniform(-500, 500)])  # LPS, mm
    shared = _header(made, patient)
    for number, place in enumerate(rng.permutation(depth)):
        dataset = _image(shared, made.hu[place], corner + [0, 0, place * dz], number)
        dataset.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    affine = np.diag([-dx, -dy, dz, 1.0])
    affine[:3, 3] = corner * (-1, -1, 1)
    labels = nibabel.Nifti1Image(made.labels.transpose(2, 1, 0), affine)
    (folder / "seg.nii.gz").write_bytes(_compressed(labels))


def _header(made: phantom.Phantom, patient: str) -> Dataset:
    """Return the attributes that all images of the series share (PS3.3, A.3)."""
    dz, dy, dx = made.spacing
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientID, dataset.PatientName = patient, "Synthetic^Patient"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
        generate_uid(entropy_srcs=[patient, kind]) for kind in ("study", "series", "frame")
    )
    dataset.Manufacturer, dataset.BodyPartExamined, dataset.KVP = "Synthetic", "ABDOMEN", 120
    dataset.SliceThickness, dataset.PixelSpacing = round(dz, 6), [round(dy, 6), round(dx, 6)]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.Rows, dataset.Columns = made.hu.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    return dataset


def _image(shared: Dataset, hu: np.ndarray, position: np.ndarray, number: int) -> Dataset:
    dataset = Dataset()
    dataset.update(shared)
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[shared.SeriesInstanceUID, str(number)])
    dataset.InstanceNumber = number + 1
    dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
    dataset.PixelData = (hu + 1024).astype("<u2").tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def write_odd_files(output: Path, rng: np.random.Generator) -> None:
    """Write what every archive holds beside its volumes: notes, a scout image, cut and impossible files."""
    odd = output / "odd"
    (odd / "empty").mkdir(parents=True, exist_ok=True)
    (odd / "notes.txt").write_text("not an image\n")
    (odd / "report.dcm").write_text("a text file that is named like an image\n")
    made = phantom.make(rng, 4, 32)
    scout = _image(_header(made, "synthetic-scout"), made.hu[0], np.zeros(3), 0)
    scout.ImageType, scout.SeriesInstanceUID = (
        ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        generate_uid(entropy_srcs=["scout"]),
    )
    scout.save_as(odd / "scout.dcm", enforce_file_format=True)
    whole = _compressed(nibabel.Nifti1Image(made.hu.astype(np.float32), np.eye(4)))
    (odd / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    broken = made.hu.astype(np.float32)
    broken[1, 2, 3] = np.nan
    (odd / "nan.nii.gz").write_bytes(_compressed(nibabel.Nifti1Image(broken, np.eye(4))))
    series = np.stack([made.hu, made.hu], axis=-1).astype(np.int16)
    (odd / "four_d.nii.gz").write_bytes(_compressed(nibabel.Nifti1Image(series, np.eye(4))))


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options_parser = parser("Make synthetic patients: CT as DICOM, MRI as NIfTI. The same seed gives the same files.")
    options_parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the patients")
    options_parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="patients=40, size=96, slices=40, seed=0, modality=ct|mr; CT: odd=true; MRI: layout=brats|bids, missing=0",
    )
    options = options_parser.parse_intermixed_args(arguments)
    config = load(GenerateConfig, None, options.overrides)
    with disk_errors(options.output):
        generate(options.output, config)
    return 0


if __name__ == "__main__":
    launch(main)
