"""Writes PET series for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedPETImageStorage, PositronEmissionTomographyImageStorage

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


def enhanced(
    path: Path, stored: np.ndarray, tracer: dict[str, object] | None = None, unit: str = "Bq/ml", **attributes: object
) -> Path:
    """Write `series` as one enhanced file: the slopes are real-world values, the times those of its own modules.

    The frames are stored from the last to the first. unit: of UCUM; "": no real-world values. None removes.
    """
    injected = Dataset()
    injected.RadionuclideTotalDose, injected.RadionuclideHalfLife = DOSE, HALF_LIFE
    injected.RadiopharmaceuticalStartDateTime = "20200101090000.00"
    dicom_files.put(injected, tracer or {})
    each = []
    for place in range(len(stored))[::-1]:
        groups: dict[str, dict] = {"FrameContentSequence": {"FrameAcquisitionDateTime": f"2020010110{place:02d}00"}}
        groups["PETFrameTypeSequence"] = {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]}
        if unit:
            code = dicom_files.item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning=unit)
            mapping = {"RealWorldValueSlope": 1.0 + place, "RealWorldValueIntercept": 0.0}
            groups["RealWorldValueMappingSequence"] = {**mapping, "MeasurementUnitsCodeSequence": [code]}
        each.append(groups)
    common: dict[str, object] = {
        **{"SOPClassUID": EnhancedPETImageStorage, "Modality": "PT", "PixelRepresentation": 0},
        **{"ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "RescaleSlope": None, "RescaleIntercept": None},
        **{"AttenuationCorrected": "YES", "DecayCorrected": "YES", "DecayCorrectionDateTime": "20200101100000"},
        **{"PatientWeight": WEIGHT, "RadiopharmaceuticalInformationSequence": [injected]},
    }
    positions = [(0, 0, 3 * place) for place in range(len(stored))[::-1]]
    kept = {name: value for name, value in {**common, **attributes}.items() if value is not None}
    return dicom_files.enhanced(path, stored[::-1], positions, "PT", each, **kept)
