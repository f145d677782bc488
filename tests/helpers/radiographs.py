"""Writes radiographs and other DICOM pictures for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from helpers.dicom_files import put, save


def dataset(stored: np.ndarray, patient: str = "p", **attributes: object) -> Dataset:
    """Return a DX image of (H, W), (frames, H, W) or (H, W, 3) integers; attributes by keyword, None removes."""
    made = Dataset()
    made.SOPClassUID, made.Modality = DigitalXRayImageStorageForPresentation, "DX"
    made.ImageType, made.PresentationIntentType = ["ORIGINAL", "PRIMARY"], "FOR PRESENTATION"
    made.PatientID, made.StudyInstanceUID, made.SeriesInstanceUID = patient, f"1.2.{len(patient)}", "1.2.3.4"
    made.PhotometricInterpretation, made.PresentationLUTShape = "MONOCHROME2", "IDENTITY"
    signed = stored.dtype.kind == "i"
    made.SamplesPerPixel, made.PixelRepresentation = 1, int(signed)
    made.BitsAllocated = stored.dtype.itemsize * 8
    made.BitsStored = made.BitsAllocated if stored.dtype.itemsize == 1 or signed or stored.max() > 4095 else 12
    made.HighBit = made.BitsStored - 1
    shape = stored.shape
    if stored.ndim == 3 and shape[2] == 3:
        made.SamplesPerPixel, made.PlanarConfiguration, made.PhotometricInterpretation = 3, 0, "RGB"
        shape = shape[:2]
    elif stored.ndim == 3:
        made.NumberOfFrames, shape = shape[0], shape[1:]
    made.Rows, made.Columns = shape
    made.ImagerPixelSpacing, made.ViewPosition, made.BodyPartExamined = [0.2, 0.2], "PA", "CHEST"
    made.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    put(made, attributes)
    return made


def write(
    path: Path, stored: np.ndarray, patient: str = "p", syntax: UID = ExplicitVRLittleEndian, **attributes: object
) -> Path:
    """Write `dataset` as a file."""
    made = dataset(stored, patient, **attributes)
    made.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    save(made, path)
    if syntax != ExplicitVRLittleEndian:
        made = dcmread(path)
        made.compress(syntax, generate_instance_uid=False)
        made.save_as(path)
    return path


def chests(folder: Path, count: int = 12, size: int = 32, seed: int = 0) -> Path:
    """Write `count` pictures of each class, PNG and DICOM by turns: a body, in `sick` with a bright spot."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:size, :size]
    for number in range(count):
        for name in ("healthy", "sick"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            body = (rows - size / 2) ** 2 + (columns - size / 2 + rng.uniform(-2, 2)) ** 2 < (size * 0.4) ** 2
            values = 60.0 + 90 * body + rng.normal(0, 8, (size, size))
            if name == "sick":
                row, column = rng.uniform(size * 0.3, size * 0.7, 2)
                values += 80 * ((rows - row) ** 2 + (columns - column) ** 2 < (size * 0.12) ** 2)
            pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
            if number % 2:
                Image.fromarray(pixels).save(folder / name / f"{number}.png")
            else:
                deep, patient = pixels.astype(np.uint16) * 16, f"{name}{number}"
                write(folder / name / f"{number}.dcm", deep, patient, WindowCenter=2048, WindowWidth=4096)
    return folder
