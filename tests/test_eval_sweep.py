"""Sweeps: every point once, a table, a picture; and the comparison of two probes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import compare, probe, sweep
from eval.reporting import comparison

TASK = """
{size: 64, stride: {train: 2, val: 2, test: 2}, draws: 50, pictures: 2, probes: [knn, segmentation, patch_knn],
 drawing: {surfaces: false}, segmentation: {lr: [0.01], epochs: 1}, patch_knn: {bank: 200, k: [3]}}
"""
OWN = """
from eval.encoders.pixel_baseline import PixelBaseline

class Blurred(PixelBaseline):
    source, digest = "blurred", "1" * 64

    def prepare(self, images):
        import torch
        return torch.nn.functional.avg_pool2d(images, 5, 1, 2)
"""


@pytest.fixture
def words(tiny_dataset, tmp_path: Path) -> list[str]:
    """What every sweep here is called with: a data set, a task, an encoder of one's own."""
    data = tiny_dataset(patients={"train": 4, "val": 3, "test": 5})
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "own.py").write_text(OWN)
    return ["--task", str(tmp_path / "task.yaml"), "--output", str(tmp_path / "sweep"), f"data={data}"]


def test_a_sweep_over_encoders_and_sizes(words: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    """Four points, each probed once even where the sweep is started again; a table and a picture."""
    asked = ["--checkpoints", "pixels", f"{tmp_path}/own.py:Blurred", "--sizes", "32", "64", *words]
    assert sweep.main(asked) == 0
    out = capsys.readouterr().out
    assert out.count("| knn | auroc |") == 4 and out.count("| segmentation | dice |") == 4 and "0.0 M" in out
    rows = [json.loads(line) for line in (tmp_path / "sweep" / "sweep.jsonl").read_text().splitlines()]
    assert {(row["name"], row["size"]) for row in rows} == {(n, s) for n in ("pixels", "own") for s in (32, 64)}
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(probe, "run", lambda *_: pytest.fail("probed again"))
    assert sweep.main(asked) == 0


def test_results_of_other_weights_are_not_taken_for_those_of_today(words: list[str], tmp_path: Path, capsys) -> None:
    """An encoder that has changed under its name, as a run that trained on: one line, and the old results stay."""
    asked = ["--checkpoints", f"{tmp_path}/own.py:Blurred", "--sizes", "32", *words]
    assert sweep.main(asked) == 0
    before = (tmp_path / "sweep" / "own-32" / "results.jsonl").read_bytes()
    (tmp_path / "own.py").write_text(OWN.replace('"1" * 64', '"2" * 64'))
    capsys.readouterr()
    assert sweep.main(asked) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "own-32: holds results of other weights" in line and line.endswith("give another --output")
    assert (tmp_path / "sweep" / "own-32" / "results.jsonl").read_bytes() == before


def test_what_cannot_be_swept_is_told_before_it_begins(words: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    """A size that is no multiple of a patch, two encoders of one name."""
    monkeypatch.setattr(probe, "run", lambda *_: pytest.fail("probed"))
    assert sweep.main(["--checkpoints", "pixels", "--sizes", "32", "60", *words]) == 1
    assert sweep.main(["--checkpoints", "pixels", "pixels", "--sizes", "32", *words]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "--sizes 60: not a multiple of pixels's patch size 8" in lines[0] and "is called pixels, as" in lines[1]


def test_two_probes_of_one_run_are_compared(words: list[str], tmp_path: Path, capsys) -> None:
    """On the same patients in the same resamples; a probe that is not there is named."""
    folder = tmp_path / "out"
    assert probe.main(["--checkpoint", "pixels", *words[:2], "--output", str(folder), words[-1]]) == 0
    rows = {row["label"]: row for row in comparison.compare(folder, folder, ("segmentation", "patch_knn")) if
            row["metric"] == "dice"}  # fmt: skip
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    dice = {row["probe"]: row["value"] for row in results if row["label"] == "macro" and row["metric"] == "dice"}
    assert rows["macro"]["value"] == pytest.approx(dice["patch_knn"] - dice["segmentation"])
    assert rows["macro"]["low"] <= rows["macro"]["value"] <= rows["macro"]["high"]
    assert compare.main(["--runs", str(folder), str(folder), "--probes", "segmentation", "lora"]) == 1
    assert "has no probe lora; it has knn, segmentation, patch_knn" in capsys.readouterr().err
