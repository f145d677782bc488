"""PET: standardised uptake from the header as the profile defines it, or a refusal that says what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import pet_files
from helpers.pet_files import DOSE, HALF_LIFE, WEIGHT

from data_prep import schema, shard_images, verify
from data_prep.sharding import description

RNG = np.random.default_rng(0)
STORED = RNG.integers(2000, 20000, (5, 16, 16)).astype(np.uint16)
ACTIVITY = STORED * (1.0 + np.arange(5))[:, None, None]  # the slope of each slice, Bq/ml


@pytest.fixture(autouse=True)
def salted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDAP_SALT", "tests")


def sharded(tmp_path: Path, *words: str, status: int = 0) -> Path:
    output = tmp_path / "out"
    assert shard_images.main(["--input", str(tmp_path / "in"), "--output", str(output), *words]) == status
    assert status or verify.main([str(output)]) == 0
    return output


def volume(output: Path) -> np.ndarray:
    """The values of the one series, (Z, H, W), as slope and intercept give them."""
    found = {}
    for name in schema.SPLITS:
        split = schema.Split(output, name)
        for number in range(len(split)):
            sample = split[number]
            assert sample.sequences == ("pet",)
            slope, intercept = sample.scales[0]
            found[sample.order] = sample.pixels[0] * slope + intercept
    return np.stack([found[order] for order in sorted(found)])


def suv(dose: float = DOSE, hours: float = 1.0) -> np.ndarray:
    """Uptake by body weight, the dose decayed for some hours."""
    return ACTIVITY * WEIGHT * 1000 / (dose * 2 ** (-hours * 3600 / HALF_LIFE))


@pytest.mark.parametrize(
    ("tracer", "more", "expected"),
    [
        ({}, {}, suv()),
        ({"RadiopharmaceuticalStartDateTime": "20200101083000.5"}, {}, suv(hours=1.5)),
        ({"RadiopharmaceuticalStartTime": "230000"}, {}, suv(hours=11)),  # of the day before
        ({"RadionuclideTotalDose": 2.2e9}, {}, suv(dose=2.2e9)),  # as of rubidium
        ({}, {"DecayCorrection": "ADMIN"}, suv(hours=0)),
        ({}, {"SeriesTime": "180000"}, suv()),  # computed in the evening: the earliest bed counts
        ({}, {"Units": "GML", "PatientWeight": None}, ACTIVITY),
    ],
)
def test_uptake_is_what_the_header_says(tmp_path: Path, tracer: dict, more: dict, expected: np.ndarray) -> None:
    """Within a step of the scale of SUV 0 to 10; slices of each slope; time from injection to the scan's start."""
    top = max(float(expected.max()) / 2, 0.1)
    pet_files.series(tmp_path / "in", STORED, tracer, **more)
    output = sharded(tmp_path, f"pet.top={top}")
    assert np.abs(volume(output) - expected).max() < top / 16384
    (row,) = description.read_manifest(output)
    assert "suv" in row["notes"] and ("scan_start" in row["notes"]) is ("SeriesTime" in more)
    dataset = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert b"20200101" not in dataset


@pytest.mark.parametrize(
    ("tracer", "more", "reason"),
    [
        ({}, {"PatientWeight": None}, "PatientWeight is missing: no SUV; pet.values=stored takes the stored values"),
        ({}, {"PatientWeight": 7400}, "PatientWeight is not between 0.2 and 400 kg"),
        ({"RadionuclideTotalDose": 370}, {}, "RadionuclideTotalDose is not between 1e+06 and 1e+11 Bq"),
        ({"RadionuclideTotalDose": None}, {}, "RadionuclideTotalDose is missing"),
        ({"RadionuclideHalfLife": None}, {}, "RadionuclideHalfLife is missing"),
        ({"RadiopharmaceuticalStartTime": None}, {}, "the time of the injection is missing"),
        ({"RadiopharmaceuticalStartDateTime": "20191201090000"}, {}, "the scan begins 745.0 h after the injection"),
        ({}, {"Units": "CNTS"}, "Units CNTS, not BQML"),
        ({}, {"Units": "JANE"}, "Units unknown, not BQML"),
        ({}, {"CorrectedImage": ["DECY"]}, "CorrectedImage lacks ATTN"),
        ({}, {"DecayCorrection": "NONE"}, "DecayCorrection NONE"),
        ({}, {"Units": "GML", "SUVType": "BSA"}, "SUV by BSA"),
        ({}, {"AcquisitionDate": None}, "AcquisitionDate and AcquisitionTime are missing"),
        ({}, {"RadiopharmaceuticalInformationSequence": None}, "0 radiopharmaceuticals"),
    ],
)
def test_what_is_missing_is_refused(tmp_path: Path, tracer: dict, more: dict, reason: str) -> None:
    """One reason, and pet.values=stored takes the series: the stored values, scaled as MR is."""
    pet_files.series(tmp_path / "in" / "bad", STORED, tracer, **more)
    pet_files.series(tmp_path / "in" / "good", STORED, PatientID="other", SeriesInstanceUID="1.2.3.5")
    output = sharded(tmp_path)
    rows = description.read_manifest(output)
    (said,) = (row["reason"] for row in rows if row["status"] == "rejected")
    assert said.startswith(reason) and sum(row["status"] == "accepted" for row in rows) == 1
    output.rename(tmp_path / "before")
    rows = description.read_manifest(sharded(tmp_path, "pet.values=stored"))
    assert [row["status"] for row in rows] == ["accepted", "accepted"]
    assert {row["notes"]["suv"] for row in rows} == {"the stored values"}


@pytest.mark.parametrize(
    ("tracer", "more", "expected"),
    [
        ({}, {}, suv()),
        ({"RadiopharmaceuticalStartDateTime": "20200101080000"}, {}, suv(hours=2)),
        ({}, {"DecayCorrectionDateTime": "20200101090000"}, suv(hours=0)),
        ({}, {"unit": "g/ml{SUVbw}", "PatientWeight": None}, ACTIVITY),
    ],
)
def test_enhanced_files_give_what_classic_ones_do(
    tmp_path: Path, tracer: dict, more: dict, expected: np.ndarray
) -> None:
    """Slopes of each frame by real-world values, the dose decayed to the time that the file says; slices in order."""
    top = max(float(expected.max()) / 2, 0.1)
    pet_files.enhanced(tmp_path / "in" / "e.dcm", STORED, tracer, **more)
    output = sharded(tmp_path, f"pet.top={top}")
    assert np.abs(volume(output) - expected).max() < top / 16384


@pytest.mark.parametrize(
    ("tracer", "more", "reason"),
    [
        ({}, {"unit": ""}, "Units unknown, not BQML"),
        ({}, {"unit": "1"}, "Units unknown, not BQML"),
        ({}, {"DecayCorrectionDateTime": None}, "DecayCorrectionDateTime is missing"),
        ({}, {"DecayCorrectionDateTime": "20200101080000"}, "the scan begins -1.0 h after the injection"),
        ({}, {"AttenuationCorrected": "NO"}, "AttenuationCorrected is not YES"),
        ({}, {"DecayCorrected": None}, "DecayCorrected is not YES"),
        ({"RadiopharmaceuticalStartDateTime": None}, {}, "the time of the injection is missing"),
        ({}, {"PatientWeight": None}, "PatientWeight is missing"),
    ],
)
def test_what_an_enhanced_file_lacks_is_refused(tmp_path: Path, tracer: dict, more: dict, reason: str) -> None:
    """One reason; pet.values=stored takes the file."""
    pet_files.enhanced(tmp_path / "in" / "bad.dcm", STORED, tracer, **more)
    pet_files.enhanced(tmp_path / "in" / "good.dcm", STORED, PatientID="other", SeriesInstanceUID="1.2.3.5")
    output = sharded(tmp_path)
    (said,) = (row["reason"] for row in description.read_manifest(output) if row["status"] == "rejected")
    assert said.startswith(reason)
    output.rename(tmp_path / "before")
    rows = description.read_manifest(sharded(tmp_path, "pet.values=stored"))
    assert [row["status"] for row in rows] == ["accepted", "accepted"]


def test_air_is_left_out_and_hot_spots_are_counted(tmp_path: Path) -> None:
    """Slices below body_suv go; uptake beyond 2.5 × top is clipped, and the manifest says how often."""
    stored = STORED.copy()
    stored[4] = 1
    pet_files.series(tmp_path / "in", stored)
    output = sharded(tmp_path, "pet.top=1")
    (row,) = description.read_manifest(output)
    limit = (65535 - schema.MR_LOW) / (schema.MR_HIGH - schema.MR_LOW)
    assert row["slices"] == 4 and row["air_slices"] == 1
    assert row["notes"]["values_clipped"] == np.count_nonzero(suv()[:4] > limit + 1e-4) > 0


def test_damaged_files_cost_the_series_only(tmp_path: Path) -> None:
    """A slice that is cut inside its pixels is left out with a line; the other slices and series are read."""
    pet_files.series(tmp_path / "in" / "good", STORED, PatientID="other", SeriesInstanceUID="1.2.3.5")
    path = pet_files.series(tmp_path / "in" / "bad", STORED)[4]
    path.write_bytes(path.read_bytes()[:-100])
    rows = description.read_manifest(sharded(tmp_path))
    assert sorted((row["status"], row.get("slices")) for row in rows if row["status"] == "accepted") == [
        ("accepted", 4),
        ("accepted", 5),
    ]
    assert sum(row["status"] == "rejected" for row in rows) == 1
