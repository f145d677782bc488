"""Writes whole slides for tests: pyramids of tiled TIFF, as scanners and microscopes write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import VLWholeSlideMicroscopyImageStorage, generate_uid

from helpers import dicom_files

APERIO = "Aperio Image Library v11.2.1\r\n{1}x{0} [0,0 {1}x{0}] (256x256) none|AppMag = 20|MPP = {2}"


def tissue(rows: int, columns: int, discs: Sequence[tuple[int, int, int]], seed: int = 0) -> np.ndarray:
    """Return (rows, columns, 3) uint8: white glass with a little noise, and stained discs (row, column, radius)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(240, 246, (rows, columns, 1)).astype(np.uint8).repeat(3, axis=2)
    for row, column, radius in discs:
        y, x = np.mgrid[:rows, :columns]
        inside = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        stained = np.array([190, 110, 160]) + rng.integers(-40, 41, (int(inside.sum()), 1))
        pixels[inside] = stained.astype(np.uint8)
    return pixels


def halved(pixels: np.ndarray) -> np.ndarray:
    """Return the means of 2 × 2 pixels; odd edges are cut."""
    rows, columns = (length // 2 * 2 for length in pixels.shape[:2])
    blocks = pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, *pixels.shape[2:]).astype(float)
    return np.rint(blocks.mean(axis=(1, 3))).astype(pixels.dtype)


def svs(path: Path, pixels: np.ndarray, mpp: float = 0.5, levels: int = 3) -> Path:
    """Write (rows, columns, 3) uint8 as Aperio's scanners do, without compression; skips without tifffile."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    pytest.importorskip("openslide", reason="needs OpenSlide: pip install 'meddap[slides]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            said = APERIO.format(*pixels.shape[:2], mpp) if level == 0 else None
            options = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
            file.write(pixels, description=said, subfiletype=int(level > 0), **options)
            pixels = halved(pixels)
    return path


def pyramid(path: Path, pixels: np.ndarray, levels: int = 3, **options: object) -> Path:
    """Write (rows, columns[, 3]) as a tiled BigTIFF with smaller resolutions as sub-images; skips without tifffile."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    pytest.importorskip("openslide", reason="needs OpenSlide: pip install 'meddap[slides]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"tile": (256, 256), "metadata": None, "photometric": "rgb" if pixels.ndim == 3 else "minisblack"}
    kind = {**kind, **options}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(pixels, subifds=levels - 1, **kind)
        for _ in range(levels - 1):
            pixels = halved(pixels)
            file.write(pixels, subfiletype=1, **kind)
    return path


def dicom(folder: Path, pixels: np.ndarray, mpp: float = 0.5, levels: int = 3, **attributes: object) -> list[Path]:
    """Write (rows, columns, 3) uint8 as a DICOM series, a file a resolution and one with the slide's label."""
    pytest.importorskip("openslide", reason="needs OpenSlide: pip install 'meddap[slides]'")
    paths = []
    for level in range(levels):
        words = (
            ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if level == 0 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
        )
        paths.append(_dicom_file(folder / f"level{level}.dcm", pixels, mpp * 2**level, words, attributes))
        pixels = halved(pixels)
    label = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    return [
        *paths,
        _dicom_file(folder / "a_label.dcm", label, 10.0, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], attributes),
    ]


def _dicom_file(path: Path, pixels: np.ndarray, mpp: float, words: list[str], attributes: dict) -> Path:
    rows, columns = pixels.shape[:2]
    side = 256
    down, across = -(-rows // side), -(-columns // side)
    padded = np.full((down * side, across * side, 3), 255, np.uint8)
    padded[:rows, :columns] = pixels
    frames = padded.reshape(down, side, across, side, 3).transpose(0, 2, 1, 3, 4)
    dataset = Dataset()
    common: dict[str, object] = {
        **{"SOPClassUID": VLWholeSlideMicroscopyImageStorage, "Modality": "SM", "ImageType": words},
        **{"PatientID": "someone", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"},
        **{"FrameOfReferenceUID": "1.2.3.9", "SOPInstanceUID": generate_uid(entropy_srcs=[str(path)])},
        **{"TotalPixelMatrixRows": rows, "TotalPixelMatrixColumns": columns, "Rows": side, "Columns": side},
        **{
            "SamplesPerPixel": 3,
            "PhotometricInterpretation": "RGB",
            "PlanarConfiguration": 0,
            "PixelRepresentation": 0,
        },
        **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "NumberOfFrames": down * across},
        **{"DimensionOrganizationType": "TILED_FULL", "TotalPixelMatrixFocalPlanes": 1, "NumberOfOpticalPaths": 1},
        **{"OpticalPathSequence": [dicom_files.item(OpticalPathIdentifier="1")], "InstanceNumber": 1},
    }
    spacing = dicom_files.item(PixelSpacing=[mpp / 1000, mpp / 1000], SliceThickness=0.001)
    shared = dicom_files.item(PixelMeasuresSequence=[spacing])
    dicom_files.put(dataset, {**common, "SharedFunctionalGroupsSequence": [shared], **attributes})
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OB"
    return dicom_files.save(dataset, path)
