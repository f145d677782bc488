"""What the code of 2026-11-27 wrote is read today: its shards, its checkpoint, and the second half of its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import verify
from data_prep.schema import Split
from pretrain import train
from pretrain.runtime import metrics
from pretrain.weights import encoder

FOLDER = Path(__file__).parent / "golden" / "before_rooms"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(FOLDER, tmp_path / "kept"))


def test_the_data_set_is_whole_and_holds_the_same_slices(kept: Path) -> None:
    """`verify` finds nothing, and keys and sums of HU are those of then, in the same order."""
    assert verify.main([str(kept / "shards")]) == 0
    split = Split(kept / "shards", "val")
    slices = [split[number] for number in range(len(split))]
    assert [one.key for one in slices] == EXPECTED["slices"]
    assert [int(one.pixels.astype(np.int64).sum()) for one in slices] == EXPECTED["pixel_sums"]


def test_the_checkpoint_gives_the_same_features() -> None:
    """The teacher's cls token of every validation slice, to 1e-4; architecture and weights have the same digest."""
    loaded = encoder.load_encoder(FOLDER / "run")
    split = Split(FOLDER / "shards", "val")
    pixels = np.stack([split[number].pixels for number in range(len(split))])
    with torch.inference_mode():
        cls = loaded.model(loaded.intensity.normalise(torch.from_numpy(pixels.astype(np.float32)))).cls
    assert loaded.digest == EXPECTED["digest"]
    np.testing.assert_allclose(cls, EXPECTED["teacher_cls"], atol=1e-4)


def test_the_run_goes_on(kept: Path) -> None:
    """From step 4 on, samples and rates are those of the run that was not stopped, and its losses to 1e-4."""
    words = [f"output={kept}", f"data.root={kept / 'shards'}", "name=run"]
    assert train.main(["--config", str(kept / "run" / "config.yaml"), *words]) == 0
    rows = metrics.read(kept / "run" / "adapt" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(8))
    for row, expected in zip(rows[4:], EXPECTED["steps"], strict=True):
        assert {key: row[key] for key in ("step", "samples", "lr")} == {
            key: expected[key] for key in ("step", "samples", "lr")
        }
        for key in ("loss/total", "loss/dino_global", "loss/ibot", "loss/koleo"):
            assert row[key] == pytest.approx(expected[key], abs=1e-4), key
