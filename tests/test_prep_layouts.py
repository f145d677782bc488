"""Layouts through the real commands: patients, sequences, label maps and their names, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import shard_ct

CASES = Path(__file__).parents[2] / "shared" / "cases"
ALL_TRAIN = ("split.train=1", "split.val=0", "split.test=0")


def body(seed: int = 0) -> np.ndarray:
    """(24, 20, 8) HU: tissue in air."""
    hu = np.full((24, 20, 8), -1000, np.int16)
    hu[4:20, 4:16] = np.random.default_rng(seed).integers(-60, 80, (16, 12, 8))
    return hu


def labels(*values: int) -> np.ndarray:
    """(24, 20, 8) labels, each value in a block of its own."""
    drawn = np.zeros((24, 20, 8), np.uint8)
    for place, value in enumerate(values):
        drawn[5 + 4 * place : 8 + 4 * place, 6:10, 2:6] = value
    return drawn


def shard(*words: str, command=shard_ct) -> int:
    """Run the command."""
    return command.main([*words, *ALL_TRAIN])


def dataset(output: Path) -> dict:
    """Read `dataset.json`."""
    return json.loads((output / "dataset.json").read_text())


def accepted(output: Path) -> list[dict]:
    """Rows of the manifest that became samples."""
    rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    return [row for row in rows if row["status"] == "accepted"]


CASES_OF = {
    "73-nnunet-layout": ("nnunet", 6, 6, {"1": "label 1", "2": "label 2"}),
    "73b-train-folder-on-top": ("ct_rate", 6, 0, {}),
    "74c-btcv": ("btcv", 3, 3, {"1": "spleen", "2": "right kidney"}),
    "141-v1-labels": ("nnunet", 6, 6, {"1": "liver", "2": "tumour"}),
    "142-regions": ("nnunet", 6, 0, {}),
    "143-ignore": ("nnunet", 6, 6, {"1": "liver"}),
}


@pytest.mark.parametrize("case", CASES_OF)
def test_cases_of_layouts(case: str, tmp_path: Path, capsys) -> None:
    """A patient an image, label maps with their names; what was recognised is said, and stands in dataset.json."""
    if not (CASES / case).is_dir():
        pytest.skip("needs ../shared/cases")
    layout, patients, mapped, names = CASES_OF[case]
    assert shard("--input", str(CASES / case), "--output", str(tmp_path / "out")) == 0
    said, made = capsys.readouterr().err, dataset(tmp_path / "out")
    rows = accepted(tmp_path / "out")
    assert f"({layout}) by " in said and f"{patients} images of {patients} patients" in said
    assert made["made_with"]["found"]["layouts"][0]["name"] == layout
    assert {row["layout"] for row in rows} == {layout}
    assert len({row["subject"] for row in rows}) == patients == made["splits"]["train"]["subjects"]
    assert sum(bool(row["annotated"]) for row in rows) == mapped and made["labels"] == names
    if case == "142-regions":
        assert "described by regions (whole: 1, 2)" in said
    if case == "143-ignore":
        assert made["ignore"] == [2, 255]
        assert all(row["annotated"] == [1] and row["notes"]["ignored_voxels"] for row in rows)


def test_train_and_no_layout_names_patients_by_the_level_that_differs(tmp_path: Path, capsys) -> None:
    """`layout=none` of train/train_1/…: six patients, and the console says by which level."""
    case = CASES / "73b-train-folder-on-top"
    if not case.is_dir():
        pytest.skip("needs ../shared/cases")
    assert shard("--input", str(case), "--output", str(tmp_path / "out"), "--layout", "none") == 0
    assert "patients by folder level 2 (train/*): 6" in capsys.readouterr().err
    made = dataset(tmp_path / "out")
    assert made["made_with"]["found"]["layouts"] == [] and made["made_with"]["settings"]["layout"] == "none"
    assert made["splits"]["train"]["subjects"] == 6
