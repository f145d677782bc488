"""Where the best known volume of a sequence cannot be used, the next one is; the manifest and the console say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import dicom_files
from helpers.mri_files import RAS_2MM, head, write

from data_prep import shard_mri

SPLIT = ("split.train=1", "split.val=0", "split.test=0")
FAR = RAS_2MM + np.array([[0, 0, 0, 500]] * 3 + [[0] * 4])


def shard(source: Path, output: Path, *words: str) -> list[dict]:
    """Run shard_mri on all patients as training; return the rows of the manifest."""
    assert shard_mri.main(["--input", str(source), "--output", str(output), *SPLIT, *words]) == 0
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def accepted(rows: list[dict]) -> dict[str, dict]:
    """Return the accepted rows by sequence."""
    return {row["sequence"]: row for row in rows if row["status"] == "accepted"}


def study(folder: Path, **files: np.ndarray | tuple[np.ndarray, np.ndarray]) -> None:
    """Write a BIDS subject: suffix and entities → voxels, or voxels and affine."""
    for name, content in files.items():
        voxels, affine = content if isinstance(content, tuple) else (content, RAS_2MM)
        write(folder / "sub-01" / "anat" / f"sub-01_{name.replace('__', '-')}.nii.gz", voxels, affine)


FLAT = np.full((24, 24, 10), 7, np.int16)
SPECK = np.zeros((24, 24, 10), np.int16)
SPECK[12, 12] = np.arange(100, 110)


@pytest.mark.parametrize(
    ("best", "reason"),
    [
        ((head(seed=5), FAR), "covers 0% of the study's grid"),
        (FLAT, "its foreground has one value only"),
    ],
    ids=["elsewhere", "one value"],
)
def test_the_next_best_is_used(best, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The plain T2 cannot be used; of the two others the one with fewer entities is; the third loses to it."""
    study(
        tmp_path / "in",
        T1w=head(),
        T2w=best,
        run__2_T2w=head(seed=1, level=200),
        acq__x_run__3_T2w=head(seed=2, level=300),
    )
    rows = shard(tmp_path / "in", tmp_path / "out", "reference=t1")
    used = accepted(rows)
    assert set(used) == {"t1", "t2"}
    (lost,) = [row for row in rows if "lost_to" in row]
    (refused,) = [row for row in rows if "replaced_by" in row]
    assert refused["reason"].startswith(reason) and refused["replaced_by"] == used["t2"]["source"] == lost["lost_to"]
    assert [one["source"] for one in used["t2"]["instead_of"]] == [refused["source"]]
    assert used["t2"]["instead_of"][0]["reason"] == refused["reason"]
    assert [one["source"] for one in used["t2"]["chosen_over"]] == [lost["source"]]
    assert len({row["source"] for row in rows}) == len(rows) == 4
    said = capsys.readouterr().err
    assert f"t2 is {used['t2']['source'][:12]} (BIDS name), instead of {refused['source'][:12]}" in said


def test_the_voxels_are_those_of_the_next_best_alone(tmp_path: Path) -> None:
    """A study with a T2 that cannot be used gives the stored values of the same study without it."""
    others = {"T1w": head(), "run__2_T2w": head(seed=1, level=200)}
    study(tmp_path / "with", T2w=FLAT, **others)
    study(tmp_path / "without", **others)
    one, two = (
        [accepted(shard(tmp_path / name, tmp_path / f"{name}-out"))[sequence] for sequence in ("t1", "t2")]
        for name in ("with", "without")
    )
    for mine, other in zip(one, two):
        for key in ("scale", "shape", "slices", "reference", "spacing_mm"):
            assert mine[key] == other[key]
    index = [(tmp_path / f"{name}-out" / "histograms.json").read_text() for name in ("with", "without")]
    assert index[0] == index[1]


def test_all_of_a_sequence_may_be_refused(tmp_path: Path) -> None:
    """Each of them says why, none is called better than another; the other sequences are used."""
    study(tmp_path / "in", T1w=head(), T2w=FLAT, run__2_T2w=(head(), FAR), run__3_T2w=FLAT)
    rows = shard(tmp_path / "in", tmp_path / "out")
    assert set(accepted(rows)) == {"t1"} and len(rows) == 4
    reasons = [row["reason"] for row in rows if row["status"] == "rejected"]
    assert (
        sum("one value" in reason for reason in reasons) == 2 and sum("covers 0%" in reason for reason in reasons) == 1
    )
    assert not any("lost_to" in row or "replaced_by" in row for row in rows)


def test_the_grid_is_that_of_a_volume_that_is_used(tmp_path: Path) -> None:
    """The thickest volume would give the grid, but shows nothing: its successor's counts, not its own."""
    thick = RAS_2MM @ np.diag([1, 1, 4, 1.0])
    study(tmp_path / "in", T1w=head(), T2w=(FLAT[:, :, :3], thick), run__2_T2w=head(seed=1))
    used = accepted(shard(tmp_path / "in", tmp_path / "out"))
    assert used["t1"]["slices"] == used["t2"]["slices"] and used["t2"]["spacing_mm"][0] == 2
    assert "resampled_onto_study" not in {**used["t1"]["notes"], **used["t2"]["notes"]}


def test_a_volume_of_which_no_slice_holds_foreground_gives_way(tmp_path: Path) -> None:
    """It has a scale and the grid, but every slice would be left out."""
    study(tmp_path / "in", T1w=SPECK, run__2_T1w=head())
    rows = shard(tmp_path / "in", tmp_path / "out")
    used = accepted(rows)["t1"]
    assert used["instead_of"][0]["reason"] == "no slice holds foreground" and used["slices"] > 0
    study(tmp_path / "only", T1w=SPECK, run__2_T1w=SPECK)
    assert shard_mri.main(["--input", str(tmp_path / "only"), "--output", str(tmp_path / "none"), *SPLIT]) == 1


def test_frames_of_reference_and_several_stacks_of_a_series(tmp_path: Path) -> None:
    """Of a series of two stacks the one with the other frame of reference gives way to the other one.

    A stack is found again by its place in its series.
    """
    voxels = head((24, 24, 6)).transpose(2, 1, 0)

    def write_series(name: str, number: int, *, rows: int = 24, **attributes: object) -> None:
        own = dict(SeriesDescription=name, SeriesInstanceUID=f"1.2.{number}", **attributes)
        dicom_files.series(tmp_path / "in" / f"{number}{rows}", voxels[:, :rows], modality="MR", **own)

    write_series("AX T1", 1, FrameOfReferenceUID="1.7.1")
    write_series("AX T2", 2, FrameOfReferenceUID="1.7.2")  # the larger one
    write_series("AX T2", 2, rows=20, FrameOfReferenceUID="1.7.1", AcquisitionNumber=2)
    rows = shard(tmp_path / "in", tmp_path / "out", "reference=t1")
    used = accepted(rows)
    assert set(used) == {"t1", "t2"} and used["t2"]["shape"] == [6, 20, 24]
    assert "frame_of_reference=ignore" in used["t2"]["instead_of"][0]["reason"]
