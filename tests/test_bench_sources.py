"""What the benchmark of several sources says of two runs, and where it looks for its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import killed, several_sources
from meddap.settings import SettingsError


def write(folder: Path, rows: list[dict]) -> Path:
    """Return a folder of a stage with these metrics."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_two_runs_are_compared_step_by_step(tmp_path: Path) -> None:
    """Samples, whole numbers and others by their size; what the clock says is no difference, a lost key is one."""
    rows = [
        {"step": step, "samples": f"{step:x}", "source/a/samples": 8 * step, "loss/total": 100.0, "wait_share": 0.1}
        for step in range(4)
    ]
    whole = write(tmp_path / "whole", rows)
    same = write(tmp_path / "same", [{**row, "wait_share": 0.2} for row in rows])
    assert killed.compare(whole, same) == killed.Compared(steps=4, samples=0, other=0, difference=0.0)
    changed = [dict(row) for row in rows]
    changed[1]["samples"], changed[2]["source/a/samples"], changed[3]["loss/total"] = "f", 17, 100.2
    found = killed.compare(whole, write(tmp_path / "changed", changed))
    assert (found.samples, found.other) == (1, 1)
    assert found.difference == pytest.approx(0.2 / 100.2)
    lost = [{key: value for key, value in row.items() if key != "loss/total"} for row in rows]
    assert killed.compare(whole, write(tmp_path / "lost", lost)).other == 4
    with pytest.raises(SettingsError, match="4 and 3 steps; train both to their ends"):
        killed.compare(whole, write(tmp_path / "short", rows[:3]))


def test_inputs_are_found_in_a_folder_or_one_below(tmp_path: Path) -> None:
    """All four by name; one that is missing is named."""
    for name in ("ct_openkbp", "mri_brats", "classification/brain_mri_4class"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"has no pneumonia_subset\.npz, itself or in a folder of it"):
        several_sources.find(tmp_path)
    (tmp_path / "classification" / "pneumonia_subset.npz").touch()
    found = several_sources.find(tmp_path)
    assert found["ct_openkbp"] == tmp_path / "ct_openkbp"
    assert found["brain_mri_4class"] == tmp_path / "classification" / "brain_mri_4class"
