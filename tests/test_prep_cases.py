"""Inputs that people reported, from the folder to the manifest: what must come of each; and that none is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data_prep import shard_ct, shard_mri

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
TRAINING = ("split.train=1", "split.val=0", "split.test=0")
CT, MR = shard_ct, shard_mri


@dataclass(frozen=True)
class Must:
    """What must come of a case.

    volumes   (sequence, slices) of what is accepted, sorted
    reasons   how the reasons of the rest begin, sorted
    patients  that the volumes are of
    labels    values that count as annotated in every volume
    notes     keys that the notes of every volume hold, with their value (None: any)
    spacing   (z, y, x) in mm
    """

    volumes: list[tuple[str, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    patients: int = 1
    labels: tuple[int, ...] = ()
    notes: dict[str, object] = field(default_factory=dict)
    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0)


def cts(*slices: int) -> list[tuple[str, int]]:
    """Return CT volumes of so many slices."""
    return [("ct", count) for count in slices]


NOT_SCALED = "scl_slope 1 with scl_inter nan"
PRECEDENCE = "another t1 of this study "
ROWS = [
    ("20-two-phases-instance-restart", CT, (), Must(cts(12, 12), notes={"volumes_told_by": "ContentTime"})),
    ("21-enhanced-two-volumes-no-index", CT, (), Must([], ["24 slices at 12 places: their pixels differ"])),
    ("21-enhanced-two-volumes-no-index", CT, ("stacks.repeats=order",), Must(cts(12, 12), spacing=(3.0, 2.0, 2.0))),
    ("21b-enhanced-mr-two-volumes-no-index", MR, (), Must([], ["24 slices at 12 places: their pixels differ"])),
    ("22-acquisition-per-slice-one-duplicate", CT, (), Must(cts(12), notes={"duplicates_dropped": 1})),
    ("23-highbit15-bitsstored12", CT, (), Must([], ["12 bits end at bit 15 (HighBit)"])),
    ("24-unsigned-intercept-0", CT, (), Must([], ["values 0 to 1255, none below 0: not in HU"])),
    ("24-unsigned-intercept-0", CT, ("values=trust",), Must(cts(12), notes={"values_trusted": None})),
    ("24b-rsna-intercept+1", CT, (), Must([], ["values 63 to 3096, none below 0: not in HU"])),
    ("26-spacing-jitter", CT, (), Must(cts(12), spacing=(3.0, 0.4883, 0.4883))),
    ("28c-bits12packed", CT, (), Must([], ["12 bits a pixel (BitsAllocated)"])),
    ("43-series-uid-collision", CT, (), Must(cts(12, 12), patients=2)),
    ("45a-implicit-declared-explicit", CT, (), Must(cts(12))),
    ("50-multipass-overlap-half", CT, (), Must(cts(20, 20), notes={"volumes_told_by": "AcquisitionNumber"})),
    ("50-multipass-overlap-third", CT, (), Must(cts(20, 20), notes={"volumes_told_by": "AcquisitionNumber"})),
    ("50-multipass-overlap-tenth", CT, (), Must(cts(20, 20), notes={"volumes_told_by": "AcquisitionNumber"})),
    ("52-mag-phase-mixed-enhanced", MR, (), Must([], ["functional series", "functional series"])),
    ("55-one-slice-truncated", CT, (), Must(cts(9, 10), ["1 of 20 files: damaged"], notes={"uneven_runs": 2})),
    ("56-dual-energy", CT, (), Must(cts(20, 20))),
    ("60-units-meter", CT, (), Must(cts(12), notes={"units": "metre"})),
    ("60-units-micron", CT, (), Must(cts(12), notes={"units": "micron"})),
    ("62-scl-1-nan", CT, (), Must([], [NOT_SCALED])),
    ("65-ct-zscored", CT, (), Must([], ["values -1 to 1: not in HU"])),
    ("65b-ct-minus1-1", CT, (), Must([], ["values -1 to 0: not in HU"])),
    ("66-ct-plus1024-ringing", CT, (), Must([], ["no air, and 63% of its voxels are above 600: not in HU"])),
    ("67a-nii-gz-not-gz", CT, (), Must(cts(12), notes={"compression": "none, despite its name"})),
    ("67b-nii-is-gz", CT, (), Must(cts(12), notes={"compression": "gzip without .gz in its name"})),
    ("67e-bad-crc", CT, (), Must([], ["truncated or damaged image (its gzip checksum"])),
    ("70d-label-origin-off", CT, (), Must(cts(12), labels=(1, 2), notes={"labels_off_mm": 1.5})),
    ("70d-label-origin-off", CT, ("label_grid=refuse",), Must([], ["label map: of the image's shape, but 1.5 mm off"])),
    ("71-label-float-inexact", CT, (), Must(cts(12), labels=(1, 2), notes={"label_voxels_rounded": 664})),
    ("71b-label-scl-slope", CT, (), Must(cts(12), labels=(1, 2), notes={"label_voxels_rounded": 664})),
    ("80-t1-without-contrast", MR, (), Must([("t1", 12), ("t1c", 12)], ["its foreground has one value only"])),
    ("81-siemens-localizer", MR, (), Must([], ["its foreground has one value only", "localizer", "localizer"])),
    (
        "172-brats20-355",
        MR,
        (),
        Must([("flair", 12), ("t1", 12), ("t1c", 12), ("t2", 12)], labels=(1, 2)),
    ),
    ("173-ct-timepoints", CT, (), Must(cts(12, 12, 12, 12, 12), patients=4)),
    (
        "174-bids-quirks",
        MR,
        (),
        Must(
            [("flair", 12), ("t1", 12), ("t2star", 12)],
            [PRECEDENCE, PRECEDENCE, PRECEDENCE, "map, not", "phase image", "single inversion of MP2RAGE"],
        ),
    ),
    (
        "175-frame-of-reference-remapped",
        MR,
        (),
        Must([("t1", 12)], ["another frame of reference", "another frame of reference"]),
    ),
    (
        "175-frame-of-reference-remapped",
        MR,
        ("frame_of_reference=ignore",),
        Must([("flair", 12), ("t1", 12), ("t2", 12)]),
    ),
    (
        "187-totalsegmentator-layout",
        CT,
        (),
        Must(cts(12, 12), patients=2, labels=(4, 5), notes={"organ_files": 5}),
    ),
    ("189-saros-255", CT, (), Must(cts(12), labels=(1, 2), notes={"ignored_voxels": 17280})),
]
# tested with their part of the product: the readers of pictures and nnU-Net's layout in probes, layouts and patients
ELSEWHERE = ("44-all-anonymous", "73-nnunet-layout", "73b-train-folder-on-top", "74c-btcv", "141-v1-labels")
ELSEWHERE += ("142-regions", "143-ignore", "150-folders-modes")


@pytest.mark.parametrize(
    ("case", "command", "words", "must"), ROWS, ids=[" ".join((case, *words)) for case, _, words, _ in ROWS]
)
def test_a_reported_input(case: str, command, words: tuple[str, ...], must: Must, tmp_path: Path, capsys) -> None:
    """What is accepted, with its labels and notes; why the rest is left out; status 1 if all of it is."""
    if not (CASES / case).is_dir():
        pytest.skip(f"no {case} in ../shared/cases")
    output = tmp_path / "out"
    status = command.main(["--input", str(CASES / case), "--output", str(output), *TRAINING, *words])
    assert status == (0 if must.volumes else 1)
    if not must.volumes:
        said = capsys.readouterr().err
        reasons = sorted(line.split(": ", 2)[2] for line in said.splitlines() if line.startswith("left out: "))
        assert "Traceback" not in said and said.splitlines()[-1].startswith("error: ")
    else:
        rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
        reasons = sorted(row["reason"] for row in rows if row["status"] == "rejected")
        accepted = [row for row in rows if row["status"] == "accepted"]
        assert sorted((row["sequence"], row["shape"][0]) for row in accepted) == sorted(must.volumes)
        assert len({row["subject"] for row in accepted}) == must.patients
        for row in accepted:
            assert row["annotated"] == list(must.labels) and row["spacing_mm"] == pytest.approx(must.spacing, abs=1e-3)
            for key, value in must.notes.items():
                assert key in row["notes"] and value in (None, row["notes"][key])
    assert len(reasons) == len(must.reasons)
    assert all(mine.startswith(theirs) for mine, theirs in zip(reasons, must.reasons)), reasons


def test_no_reported_input_is_left_out() -> None:
    """Every folder of cases has a row here, or is named by a test of another file."""
    if not CASES.is_dir():
        pytest.skip("no ../shared/cases")
    named = {case for case, *_ in ROWS}
    folders = {path.name for path in CASES.iterdir() if path.is_dir()}
    others = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    assert not folders - named - set(ELSEWHERE)
    assert [case for case in ELSEWHERE if case in folders and case not in others] == []
