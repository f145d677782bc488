"""Writes PET series for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage

from helpers import dicom_files

DOSE, WEIGHT, HALF_LIFE = 370e6, 74.0, 6586.2  # Bq, kg, s


def series(
    folder: Path, stored: np.ndarray, tracer: dict[str, object] | None = None, **attributes: object
) -> list[Path]:
    """Write (Z, rows, columns) stored values: slice z has a RescaleSlope of 1 + z; the scan begins an hour after the
    injection, the beds follow it. `tracer`, attributes: replace or add; None removes."""
    item = Dataset()
    item.RadionuclideTotalDose, item.RadionuclideHalfLife = DOSE, HALF_LIFE
    item.RadiopharmaceuticalStartTime = "090000.00"
    dicom_files.put(item, tracer or {})
    common: dict[str, object] = {
        **{"SOPClassUID": PositronEmissionTomographyImageStorage, "Modality": "PT", "Units": "BQML"},
        **{
            "ImageType": ["ORIGINAL", "PRIMARY"],
            "CorrectedImage": ["ATTN", "DECY", "SCAT"],
            "DecayCorrection": "START",
        },
        **{"PatientWeight": WEIGHT, "RadiopharmaceuticalInformationSequence": [item], "PixelRepresentation": 0},
        **{"SeriesDate": "20200101", "SeriesTime": "100000", "AcquisitionDate": "20200101", "RescaleIntercept": 0},
    }
    each = [{"RescaleSlope": 1 + place, "AcquisitionTime": f"10{place:02d}00"} for place in range(len(stored))]
    shared = {name: value for name, value in {**common, **attributes}.items() if value is not None}
    return dicom_files.series(folder, stored, modality="PT", each=each, **shared)
